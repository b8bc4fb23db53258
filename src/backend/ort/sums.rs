//! Checksums of files: what `sha256sum` writes (`SHA256SUMS`), and that files are what it says.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// The name of a list, in the folder of what it lists.
pub(super) const LIST: &str = "SHA256SUMS";

/// Largest list that is read, bytes: thousands of files.
const LARGEST: u64 = 1 << 20;

/// Files that are remembered; beyond it all are forgotten, and read again.
const REMEMBERED: usize = 4096;

/// What is said of what is there and is none.
const NO_FILE: &str = "it is not a regular file";

/// How long a file must have been as it is to be remembered, seconds. One that is written twice within a tick of the clock has
/// the same times both times.
const STILL: i64 = 2;

/// A file's SHA-256.
pub(super) type Digest = [u8; 32];

/// A file as it was: what is written anew or put in its place differs in one of these, whatever times it claims.
pub(super) type Identity = (u64, u64, u64, i64, i64);

/// SHA-256 of files, of which one that has not changed is read once.
#[derive(Debug, Default)]
pub(super) struct Digests(Mutex<HashMap<Identity, Digest>>);

pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    let data = fs::metadata(path)?;
    // The time of change cannot be set, the time of writing can.
    Ok((data.dev(), data.ino(), data.size(), data.ctime(), data.ctime_nsec()))
}

// === impl Digests ===

impl Digests {
    /// The SHA-256 of the file at `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is no regular file: others may have no end.
    pub(super) fn of(&self, path: &Path) -> io::Result<Digest> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = identity(path)?;
        if let Some(digest) = known().get(&identity) {
            return Ok(*digest);
        }
        let digest = read(path)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if identity.3.saturating_add(STILL) < i64::try_from(now).unwrap_or(i64::MAX) {
            let mut known = known();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(identity, digest);
        }
        Ok(digest)
    }

    /// Holds the files in `folder` against the list in it. What is in those that are `needed` must be in it, by whatever name, as
    /// they may be links; of others only those that it names are looked at, and only if they lie in the folder: callers read
    /// what a file has instead, and a list from somewhere else must not tell them of any file.
    ///
    /// # Errors
    ///
    /// In plain words: the list cannot be read, a file is not what it says, or what it names is no regular file or lies
    /// elsewhere.
    pub(super) fn verify(&self, folder: &Path, needed: &[PathBuf]) -> Result<(), String> {
        let list = list(folder)?;
        let unreadable = |name: &str, error: io::Error| format!("`{name}` cannot be read: {error}");
        let home = folder.canonicalize().map_err(|error| unreadable(LIST, error))?;
        let needed_here: Vec<_> = needed.iter().filter_map(|path| path.canonicalize().ok()).collect();
        for (digest, name) in &list {
            let real = folder.join(name).canonicalize().map_err(|error| unreadable(name, error))?;
            if !real.starts_with(&home) && !needed_here.contains(&real) {
                return Err(format!("`{name}` is a link that leads outside the folder of `{LIST}`"));
            }
            let found = self.of(&real).map_err(|error| unreadable(name, error))?;
            if found != *digest {
                let (found, expected) = (hex(&found), hex(digest));
                return Err(format!("`{name}` has the SHA-256 {found}, and `{LIST}` says {expected}"));
            }
        }
        for path in needed {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let found = self.of(path).map_err(|error| unreadable(&name, error))?;
            if !list.iter().any(|(digest, _)| *digest == found) {
                return Err(format!("`{LIST}` has no line for `{name}`"));
            }
        }
        Ok(())
    }
}

/// Opens a regular file; nothing else is even opened, as a FIFO would wait for a writer.
fn open(path: &Path) -> io::Result<File> {
    let is_file = |data: fs::Metadata| data.is_file().then_some(()).ok_or_else(|| io::Error::other(NO_FILE));
    is_file(fs::metadata(path)?)?;
    let file = File::open(path)?;
    // What was opened may be another one by now.
    is_file(file.metadata()?)?;
    Ok(file)
}

fn read(path: &Path) -> io::Result<Digest> {
    let mut file = open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    Ok(digest)
}

/// The files that the list in `folder` names.
fn list(folder: &Path) -> Result<Vec<(Digest, String)>, String> {
    let unreadable = |error: io::Error| format!("`{LIST}` cannot be read: {error}");
    let mut text = String::new();
    let file = open(&folder.join(LIST)).map_err(unreadable)?;
    if file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)? as u64 > LARGEST {
        return Err(format!("`{LIST}` is larger than {LARGEST} bytes"));
    }
    parse(&text)
}

/// Reads what `sha256sum` writes: digits, two blanks or a blank and a star, a name. Names lead down from the list's folder.
fn parse(text: &str) -> Result<Vec<(Digest, String)>, String> {
    let mut list = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let wrong = || format!("`{LIST}` line {number}: expected 64 hexadecimal digits, two blanks and a name");
        let (digits, name) = line.split_once(' ').ok_or_else(wrong)?;
        let name = name.strip_prefix([' ', '*']).ok_or_else(wrong)?;
        let name = name.strip_prefix("./").unwrap_or(name);
        let is_below = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !is_below {
            return Err(format!("`{LIST}` line {number}: `{name}` is not a file below its folder"));
        }
        list.push((digest(digits).ok_or_else(wrong)?, name.to_owned()));
    }
    Ok(list)
}

/// What these digits say, if they are a digest.
pub(super) fn digest(digits: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if digits.len() != 2 * digest.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

/// Its digits.
pub(super) fn hex(digest: &Digest) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of nothing and of `abc` (FIPS 180-4's examples).
    const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn verify(list: &str, needed: &[&str]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        fs::write(folder.path().join("model.onnx"), "abc").unwrap();
        fs::write(folder.path().join("data/w"), "").unwrap();
        fs::write(folder.path().join(LIST), list).unwrap();
        let needed: Vec<_> = needed.iter().map(|name| folder.path().join(name)).collect();
        Digests::default().verify(folder.path(), &needed)
    }

    #[test]
    fn a_list_is_what_sha256sum_writes_and_holds_or_names_the_file_that_differs() {
        for list in [
            format!("{ABC}  model.onnx\n{NOTHING}  data/w\n"),
            format!("# of a build\n\n{ABC} *./model.onnx\n"),
            format!("{}  model.onnx", ABC.to_uppercase()),
        ] {
            assert_eq!(verify(&list, &["model.onnx"]), Ok(()), "{list}");
        }
        let wrong = verify(&format!("{NOTHING}  model.onnx"), &[]).unwrap_err();
        assert_eq!(wrong, format!("`model.onnx` has the SHA-256 {ABC}, and `SHA256SUMS` says {NOTHING}"));
        assert!(verify(&format!("{NOTHING}  gone"), &[]).unwrap_err().starts_with("`gone` cannot be read"));
        assert_eq!(verify("", &["model.onnx"]).unwrap_err(), "`SHA256SUMS` has no line for `model.onnx`");
    }

    #[test]
    fn a_list_that_is_none_names_the_line_and_one_that_leads_out_is_refused() {
        for line in ["", "x", ABC, &format!("{ABC} model.onnx"), &format!("{}g  model.onnx", &ABC[1..])] {
            let refused = verify(&format!("#\n{line}\n"), &["model.onnx"]).unwrap_err();
            assert!(refused.contains("line 2: expected 64") || line.is_empty(), "{line}: {refused}");
        }
        for name in ["../m", "/etc/passwd", "data/../../m", "", "."] {
            let refused = verify(&format!("{ABC}  {name}"), &[]).unwrap_err();
            assert!(refused.contains("is not a file below its folder"), "{name}: {refused}");
        }
    }

    #[test]
    fn what_a_list_names_is_a_regular_file_in_its_folder_or_one_that_is_needed() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "abc").unwrap();
        let verify = |name: &str, needed: &[&str], prepare: &dyn Fn(&Path)| {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("model.onnx"), "abc").unwrap();
            prepare(&folder.path().join(name));
            fs::write(folder.path().join(LIST), format!("{NOTHING}  {name}\n{ABC}  model.onnx\n")).unwrap();
            let needed: Vec<_> = needed.iter().map(|name| folder.path().join(name)).collect();
            Digests::default().verify(folder.path(), &needed).unwrap_err()
        };
        let fifo = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        for (prepare, reason) in [
            (&fifo as &dyn Fn(&Path), "`w` cannot be read: it is not a regular file"),
            (&|path| symlink("/dev/zero", path).unwrap(), "`w` is a link that leads outside"),
            (&|path| symlink(&secret, path).unwrap(), "`w` is a link that leads outside"),
            (&|path| fs::create_dir(path).unwrap(), "`w` cannot be read: it is not a regular file"),
        ] {
            let refused = verify("w", &["model.onnx"], prepare);
            assert!(refused.starts_with(reason), "{refused}");
            assert!(!refused.contains(ABC), "{refused}");
        }
        // The model itself may lie elsewhere, where whoever serves it has put it.
        let refused = verify("w", &["w", "model.onnx"], &|path| symlink(&secret, path).unwrap());
        assert!(refused.contains(ABC), "{refused}");
    }

    #[test]
    fn what_has_changed_is_read_again_whenever_that_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let digests = Digests::default();
        fs::write(&path, "abc").unwrap();
        assert_eq!(hex(&digests.of(&path).unwrap()), ABC);
        // As long, and within the same tick of the clock.
        fs::write(&path, "abd").unwrap();
        assert_ne!(hex(&digests.of(&path).unwrap()), ABC);
    }
}

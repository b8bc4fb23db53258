//! Which files a model consists of, and that none of them lies outside its own folder.
//!
//! ONNX lets a model name files that hold its weights. A model from somewhere else could thus make the server read any
//! file as weights, so everything is checked here before ONNX Runtime opens anything. What the files hold is not
//! looked at.

use super::protobuf::look_through;
use crate::backend::OpenError;
use rustix::process::{Resource, getrlimit};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Seek},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// The files of a model.
#[derive(Debug)]
pub(super) struct Files {
    /// Where they are, the model's own first, external ones by their real names.
    pub(super) paths: Vec<PathBuf>,
    /// How the model calls the external ones, in the same order.
    locations: Vec<PathBuf>,
    /// Whether each of these is named by another graph than the model's own.
    nested: Vec<bool>,
    /// Their bytes together.
    pub(super) bytes: u64,
    /// The operator by which its work grows with values that callers send, if there is one.
    pub(super) grows: Option<&'static str>,
}

/// Looks through the model at `path`; returns the bytes of its files together.
///
/// # Errors
///
/// As [`find`].
pub(super) fn check(path: &Path) -> Result<u64, OpenError> {
    find(path).map(|files| files.bytes)
}

/// Looks through the model at `path`, and finds its files.
///
/// # Errors
///
/// [`OpenError`] if it is no ONNX model, has weights that are larger than what holds them, or names a file that is missing, is
/// no regular file, lies outside the model's folder, or is shorter than what is to be read of it.
pub(super) fn find(path: &Path) -> Result<Files, OpenError> {
    let refuse = |reason: String| OpenError(format!("`{}` {reason}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
    if !metadata.is_file() {
        // Before it is opened, which for a FIFO would wait until somebody writes. Who can put one there just now can also
        // put a model there that never ends.
        return Err(refuse("is not a regular file".to_owned()));
    }
    let mut file = File::open(path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
    if is_git_lfs_pointer(&mut file) {
        return Err(refuse("is a Git LFS pointer and not the model; `git lfs pull` fetches it".to_owned()));
    }
    let found = look_through(file, metadata.len()).map_err(|error| refuse(error.to_string()))?;
    let (mut paths, mut locations, mut nested) = (vec![path.to_owned()], Vec::new(), Vec::new());
    let mut total = metadata.len();
    if !found.external.is_empty() {
        // The folder by its real name, so that links within it are followed and links out of it are seen.
        let folder = path.parent().unwrap_or(Path::new(".")).join(".");
        let real = folder.canonicalize().map_err(|error| refuse(format!("has no folder: {error}")))?;
        for (location, end) in found.external {
            nested.push(found.nested.contains(&location));
            let location = Path::new(OsStr::from_bytes(&location));
            let (path, size) = external_file(&real, location, end)
                .map_err(|reason| refuse(format!("keeps weights in `{}`, which {reason}", location.display())))?;
            total = total.saturating_add(size);
            paths.push(path);
            locations.push(location.to_owned());
        }
    }
    Ok(Files { paths, locations, nested, bytes: total, grows: found.grows })
}

/// What a model calls an external file, and what is in it.
pub(super) type External = (PathBuf, Arc<[u8]>);

/// Reads the external files of the model at `path`, which has these `files`: what it calls each, and what is in it.
///
/// ONNX Runtime would map them, and a file that is written over while it is mapped changes the answers of a model that is
/// served; one that is cut off ends the process. What is handed in from memory is copied, so that it need not be kept.
///
/// # Errors
///
/// If one cannot be read.
pub(super) fn read_external(path: &Path, files: &Files) -> Result<Vec<External>, OpenError> {
    let Files { paths, locations, .. } = files;
    let mut read: Vec<External> = Vec::with_capacity(locations.len());
    for (at, location) in locations.iter().enumerate() {
        let real = &paths[at + 1];
        // One file may be called by several names.
        let before = paths[1..=at].iter().position(|other| other == real);
        let data = match before {
            Some(before) => Arc::clone(&read[before].1),
            None => whole(real).map_err(|error| {
                OpenError(format!(
                    "`{}` keeps weights in `{}`, which cannot be read: {error}",
                    path.display(),
                    location.display()
                ))
            })?,
        };
        read.push((location.clone(), data));
    }
    Ok(read)
}

/// A copy of the model at `path`, which has these `files`, in a folder of its own, if other graphs than the model's own have
/// external weights.
///
/// What [`read_external`] hands in is taken for the weights of the model's own graph; those of others ONNX Runtime maps all
/// the same (1.32: `Graph::InjectExternalInitializersFromFilesInMemory` looks at no graph within). Of a copy that nobody else
/// can reach they may be mapped, and go on being so when the folder is removed.
///
/// # Errors
///
/// If it cannot be written.
pub(super) fn set_apart(path: &Path, files: &Files) -> io::Result<Option<TempDir>> {
    // A process in which a model is tried may write nothing, and what is cut off under it ends nobody else.
    let may_write = getrlimit(Resource::Fsize).current != Some(0);
    if !may_write || !files.nested.contains(&true) {
        return Ok(None);
    }
    let folder = tempfile::tempdir()?;
    let copy = |from: &Path, location: &Path| {
        let to = folder.path().join(location);
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, to)
    };
    copy(path, Path::new(path.file_name().unwrap_or_default()))?;
    let external = files.locations.iter().zip(&files.paths[1..]).zip(&files.nested);
    for ((location, real), _) in external.filter(|(_, is_nested)| **is_nested) {
        copy(real, location)?;
    }
    Ok(Some(folder))
}

fn whole(path: &Path) -> io::Result<Arc<[u8]>> {
    let mut file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    // Read to where it stays: it may be half of the memory that there is.
    let mut data: Arc<[u8]> = std::iter::repeat_n(0, size).collect();
    if let Some(data) = Arc::get_mut(&mut data) {
        file.read_exact(data)?;
    }
    Ok(data)
}

/// The real path and size of an external file, or why it must not be read. `folder` is a real path, `end` the first byte
/// behind all that is to be read of it.
fn external_file(folder: &Path, location: &Path, end: u64) -> Result<(PathBuf, u64), String> {
    let is_below = location.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_below || location.as_os_str().is_empty() {
        return Err("is outside the model's folder, expected a path below it without `..`".to_owned());
    }
    // ONNX Runtime takes some names that begin so for memory of its own (`*/_ORT_MEM_ADDR_/*`), and the offset for an address in it,
    // whether or not there is a file of that name.
    if location.starts_with("*") {
        return Err("is an address in memory and no file".to_owned());
    }
    let real = folder.join(location).canonicalize().map_err(|error| format!("cannot be found: {error}"))?;
    if !real.starts_with(folder) {
        return Err("is a link that leads outside the model's folder".to_owned());
    }
    let metadata = real.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    match metadata.len() {
        size if size < end => Err(format!("has {size} bytes, expected {end} at least")),
        size => Ok((real, size)),
    }
}

/// True for the small text that a clone without Git LFS leaves in a model's place. Leaves `file` at its start.
fn is_git_lfs_pointer(file: &mut File) -> bool {
    const START: &[u8] = b"version https://git-lfs";
    let mut start = [0; START.len()];
    let is_pointer = file.read_exact(&mut start).is_ok() && start == *START;
    // A file that cannot be read from its start again fails in the scan, with a reason.
    let _ = file.rewind();
    is_pointer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder with a model in it whose one weight lies in `location`, and its path.
    fn model(location: &str) -> (tempfile::TempDir, PathBuf) {
        reading(location, "", "")
    }

    /// The same, of which so much is to be read.
    fn reading(location: &str, offset: &str, length: &str) -> (tempfile::TempDir, PathBuf) {
        let field = |number: u8, content: &[u8]| {
            assert!(content.len() < 128);
            [&[number << 3 | 2, content.len() as u8], content].concat()
        };
        let entry =
            |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
        let entries = [entry("location", location), entry("offset", offset), entry("length", length)].concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m/1/model.onnx");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, field(7, &field(5, &entries))).unwrap();
        (folder, path)
    }

    fn refusal(path: &Path) -> String {
        check(path).unwrap_err().0
    }

    #[test]
    fn files_below_the_folder_are_counted() {
        let (_folder, path) = model("data/weights.bin");
        fs::create_dir(path.with_file_name("data")).unwrap();
        fs::write(path.with_file_name("data").join("weights.bin"), [0; 100]).unwrap();
        assert_eq!(check(&path).unwrap(), 100 + fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn paths_that_lead_out_are_refused_whether_or_not_there_is_a_file() {
        for location in ["../secret.bin", "../../m/1/model.onnx", "data/../../secret.bin", "..", "/etc/hostname", ""] {
            let (_folder, path) = model(location);
            fs::write(path.with_file_name("../secret.bin"), b"secret").unwrap();
            assert!(refusal(&path).contains("is outside the model's folder"), "{location}: {}", refusal(&path));
        }
    }

    #[test]
    fn links_out_of_the_folder_are_refused() {
        let (folder, path) = model("weights.bin");
        fs::write(folder.path().join("secret.bin"), b"secret").unwrap();
        symlink("../../secret.bin", path.with_file_name("weights.bin")).unwrap();
        assert!(refusal(&path).contains("leads outside"), "{}", refusal(&path));
    }

    #[test]
    fn a_folder_that_is_a_link_out_is_refused() {
        let (folder, path) = model("data/secret.bin");
        fs::write(folder.path().join("secret.bin"), b"secret").unwrap();
        symlink(folder.path(), path.with_file_name("data")).unwrap();
        assert!(refusal(&path).contains("leads outside"), "{}", refusal(&path));
    }

    #[test]
    fn links_within_the_folder_are_followed() {
        // So does Kubernetes mount a volume of files: each a link into a hidden folder beside it.
        let (folder, path) = model("weights.bin");
        fs::create_dir(path.with_file_name("..data")).unwrap();
        fs::write(path.with_file_name("..data").join("weights.bin"), b"weights").unwrap();
        symlink("..data/weights.bin", path.with_file_name("weights.bin")).unwrap();
        assert!(check(&path).is_ok());
        // And the folder itself may be reached through a link.
        symlink(path.parent().unwrap(), folder.path().join("link")).unwrap();
        assert!(check(&folder.path().join("link/model.onnx")).is_ok());
    }

    #[test]
    fn missing_weights_and_folders_are_named() {
        let (_folder, path) = model("weights.bin");
        assert!(refusal(&path).contains("keeps weights in `weights.bin`, which cannot be found"));
        fs::create_dir(path.with_file_name("weights.bin")).unwrap();
        assert!(refusal(&path).contains("which is not a regular file"));
        // What ONNX Runtime itself takes for an address in memory, also where there is such a file.
        let (_folder, path) = model("*/_ORT_MEM_ADDR_/*");
        fs::create_dir_all(path.with_file_name("*/_ORT_MEM_ADDR_")).unwrap();
        fs::write(path.with_file_name("*/_ORT_MEM_ADDR_/*"), b"weights").unwrap();
        assert!(refusal(&path).contains("is an address in memory"), "{}", refusal(&path));
    }

    #[test]
    fn what_is_read_of_a_file_must_be_in_it() {
        for (offset, length, end) in
            [("0", "5", 5), ("4", "1", 5), ("5", "", 6), ("1", "18446744073709551615", u64::MAX)]
        {
            let (_folder, path) = reading("weights.bin", offset, length);
            fs::write(path.with_file_name("weights.bin"), b"four").unwrap();
            let expected = format!("has 4 bytes, expected {end} at least");
            assert!(refusal(&path).contains(&expected), "{offset} {length}: {}", refusal(&path));
        }
        for (offset, length) in [("0", "4"), ("3", "1"), ("3", ""), ("", "")] {
            let (_folder, path) = reading("weights.bin", offset, length);
            fs::write(path.with_file_name("weights.bin"), b"four").unwrap();
            assert!(check(&path).is_ok(), "{offset} {length}");
        }
        let (_folder, path) = reading("weights.bin", "-1", "4");
        fs::write(path.with_file_name("weights.bin"), b"four").unwrap();
        assert!(refusal(&path).contains("expected a number of bytes"), "{}", refusal(&path));
    }

    #[test]
    fn what_is_no_model_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        assert!(refusal(&path).contains("cannot be opened"));
        assert!(refusal(folder.path()).contains("is not a regular file"));
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert!(refusal(&fifo).contains("is not a regular file"));
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(refusal(&path).contains("git lfs pull"));
        fs::write(&path, "hello").unwrap();
        assert!(refusal(&path).contains("is not an ONNX model"));
    }
}

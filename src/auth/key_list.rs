//! `keys.yaml` as the program writes it: keys are added, revoked and listed.
//!
//! What people have written around them stays where that can be done safely: a line is added or changed, and if the file then
//! says what it should, that is all. Otherwise it is written anew, and comments among the keys are lost.

use super::{
    key_file::{Entry, KeyFileError, parse, read_entries},
    timestamp,
};
use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Who may read a file that is made: its owner. Hashes of keys are no secrets to speak of, but who has keys may be one.
const MODE: u32 = 0o600;

/// The keys of a file, to be changed.
#[derive(Debug)]
pub struct KeyList {
    path: PathBuf,
    text: String,
    entries: Vec<Entry>,
}

/// Why a file of keys cannot be changed, in words for operators.
#[derive(Debug)]
pub enum KeyListError {
    /// What it says is wrong.
    File(KeyFileError),
    /// It cannot be read or written.
    Io(PathBuf, io::Error),
    /// It has no key of this id.
    Unknown(PathBuf, String),
}

/// What a list says of a key: everything but its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: String,
    /// Whom it proves.
    pub identity: String,
    /// Groups of that identity.
    pub groups: String,
    /// What it is narrowed to; empty: nothing.
    pub scope: String,
    /// When it was made, as written.
    pub created: String,
    /// When it ends, as written.
    pub expires: String,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
}

impl KeyList {
    /// Reads the file at `path`; one that is not there has no keys.
    ///
    /// # Errors
    ///
    /// [`KeyListError`] if it cannot be read, or says something wrong.
    pub fn open(path: &Path) -> Result<Self, KeyListError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => "version: 1\nkeys:\n".to_owned(),
            Err(error) => return Err(KeyListError::Io(path.to_owned(), error)),
        };
        parse(path, text.as_bytes()).map_err(KeyListError::File)?;
        let entries = read_entries(path, text.as_bytes()).map_err(KeyListError::File)?;
        Ok(Self { path: path.to_owned(), text, entries })
    }

    /// Adds a key as `line` writes it: see [`NewKey::entry`](super::api_key::NewKey::entry).
    ///
    /// # Errors
    ///
    /// [`KeyListError`] if the file cannot be written, or would say something wrong.
    pub fn append(mut self, line: &str) -> Result<(), KeyListError> {
        let mut added = read_entries(&self.path, document(line).as_bytes()).map_err(KeyListError::File)?;
        self.entries.append(&mut added);
        let indent = self.text.lines().rev().find_map(|line| line.find("- {")).unwrap_or(0);
        let end = if self.text.ends_with('\n') { "" } else { "\n" };
        let text = format!("{}{end}{:indent$}{line}\n", self.text, "");
        self.write(&text)
    }

    /// Whether a file with this entry would be taken, for who puts it there by hand.
    ///
    /// # Errors
    ///
    /// [`KeyListError::File`] names what is wrong with it.
    pub fn check(line: &str) -> Result<(), KeyListError> {
        parse(Path::new("the entry"), document(line).as_bytes()).map(drop).map_err(KeyListError::File)
    }

    /// Revokes the key `id` at `now`. One that was revoked before stays as it is.
    ///
    /// # Errors
    ///
    /// [`KeyListError`] if there is no such key, or the file cannot be written.
    pub fn revoke(mut self, id: &str, now: SystemTime) -> Result<(), KeyListError> {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) else {
            return Err(KeyListError::Unknown(self.path, id.to_owned()));
        };
        if entry.revoked.is_some() {
            return Ok(());
        }
        let now = timestamp::format(now);
        entry.revoked = Some(now.clone());
        let mut text = String::with_capacity(self.text.len() + 64);
        for line in self.text.split_inclusive('\n') {
            // The line of the key, as it is written by `append`.
            let end = line.trim_start().starts_with("- {").then(|| line.rfind('}')).flatten();
            match end {
                Some(end) if names(line, id) => {
                    text.push_str(line[..end].trim_end());
                    text.push_str(&format!(", revoked: {now} "));
                    text.push_str(&line[end..]);
                }
                _ => text.push_str(line),
            }
        }
        self.write(&text)
    }

    /// What is known of each key at `now`.
    pub fn rows(&self, now: SystemTime) -> Vec<Row> {
        let past = |time: &Option<String>| time.as_deref().and_then(timestamp::parse).is_some_and(|time| time <= now);
        let row = |entry: &Entry| Row {
            id: entry.id.clone(),
            identity: entry.identity.clone(),
            groups: entry.groups.join(","),
            scope: [
                entry.intents.as_ref().map(|list| list.join(",")),
                entry.models.as_ref().map(|list| list.join(",")),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" on "),
            created: entry.created.clone().unwrap_or_default(),
            expires: entry.expires.clone().unwrap_or_default(),
            state: match (past(&entry.revoked), past(&entry.expires)) {
                (true, _) => "revoked",
                (false, true) => "expired",
                (false, false) => "active",
            },
        };
        self.entries.iter().map(row).collect()
    }

    /// Writes `text`, if it says what the entries say, or else them; as a whole or not at all.
    fn write(&self, text: &str) -> Result<(), KeyListError> {
        let same = read_entries(&self.path, text.as_bytes()).is_ok_and(|entries| entries == self.entries);
        let text = if same { text.to_owned() } else { self.anew() };
        parse(&self.path, text.as_bytes()).map_err(KeyListError::File)?;
        self.replace(&text).map_err(|error| KeyListError::Io(self.path.clone(), error))
    }

    /// The whole file in our own words, behind the comment that it begins with.
    fn anew(&self) -> String {
        let comment =
            self.text.split_inclusive('\n').take_while(|line| line.starts_with('#') || line.trim().is_empty());
        let mut text: String = comment.collect();
        text.push_str("version: 1\nkeys:\n");
        for entry in &self.entries {
            let _ = writeln!(text, "  {}", line(entry));
        }
        text
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        // A link stays one: what it leads to is replaced.
        let place = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mode = fs::metadata(&place).map_or(MODE, |meta| meta.permissions().mode());
        let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.write_all(text.as_bytes())?;
        new.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        new.as_file().sync_all()?;
        new.persist(&place)?;
        Ok(())
    }
}

/// Whether a line of one key is that of `id`.
fn names(line: &str, id: &str) -> bool {
    let document = format!("version: 1\nkeys:\n{}\n", line.trim());
    read_entries(Path::new(""), document.as_bytes()).is_ok_and(|entries| matches!(&*entries, [entry] if entry.id == id))
}

/// A file with this entry alone.
fn document(line: &str) -> String {
    format!("version: 1\nkeys:\n{line}\n")
}

/// A key as a line: JSON strings are YAML strings, whatever they contain.
pub(super) fn line(entry: &Entry) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let list = |list: &[String]| serde_json::Value::from(list).to_string();
    let groups: Vec<String> = entry.groups.iter().map(|group| group.to_string()).collect();
    let mut pairs =
        vec![("id", quoted(&entry.id)), ("hash", quoted(&entry.hash)), ("identity", quoted(&entry.identity))];
    if !groups.is_empty() {
        pairs.push(("groups", list(&groups)));
    }
    pairs.extend(entry.intents.as_ref().map(|intents| ("intents", list(intents))));
    if let Some(models) = &entry.models {
        pairs.push(("models", list(&models.iter().map(|model| model.to_string()).collect::<Vec<_>>())));
    }
    for (name, time) in [("created", &entry.created), ("expires", &entry.expires), ("revoked", &entry.revoked)] {
        pairs.extend(time.as_ref().map(|time| (name, time.clone())));
    }
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("- {{ {} }}", pairs.join(", "))
}

impl fmt::Display for KeyListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Unknown(path, id) => write!(f, "{}: no key has the id `{id}`", path.display()),
        }
    }
}

impl std::error::Error for KeyListError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::api_key::{self, KeyFile, NewKey, Terms};
    use std::time::{Duration, UNIX_EPOCH};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn add(path: &Path, terms: &Terms) -> NewKey {
        let key = api_key::generate().unwrap();
        KeyList::open(path).unwrap().append(&key.entry("web", terms, now())).unwrap();
        key
    }

    fn works(path: &Path, key: &NewKey) -> bool {
        KeyFile::open(path).unwrap().find(&key.key).is_some()
    }

    #[test]
    fn a_file_begins_with_its_first_key_and_loses_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let first = add(&path, &Terms::default());
        let second = add(&path, &Terms { groups: vec!["a, b".into()], ..Terms::default() });
        assert!(works(&path, &first) && works(&path, &second));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        KeyList::open(&path).unwrap().revoke(&first.id, SystemTime::now()).unwrap();
        assert!(!works(&path, &first) && works(&path, &second));
        let before = fs::read(&path).unwrap();
        KeyList::open(&path).unwrap().revoke(&first.id, now()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before, "it was revoked when it was");
        let error = KeyList::open(&path).unwrap().revoke("k_nobody", now()).unwrap_err().to_string();
        assert!(error.contains("k_nobody") && error.contains("keys.yaml"), "{error}");
    }

    #[test]
    fn what_people_wrote_around_keys_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        fs::write(&path, "# ours\nversion: 1\nkeys:\n  # the web team\n").unwrap();
        let key = add(&path, &Terms::default());
        KeyList::open(&path).unwrap().revoke(&key.id, now()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# ours\nversion: 1\nkeys:\n  # the web team\n- { id: "), "{text}");
        assert!(text.contains(", revoked: 2023-11-14T22:13:20Z }"), "{text}");
    }

    #[test]
    fn a_file_of_another_form_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        fs::write(&path, "# ours\nversion: 1\nkeys: []\n").unwrap();
        let key = add(&path, &Terms::default());
        assert!(works(&path, &key));
        let hash = api_key::hash("sg_x");
        fs::write(&path, format!("version: 1\nkeys:\n  - id: a\n    hash: \"{hash}\"\n    identity: web\n")).unwrap();
        KeyList::open(&path).unwrap().revoke("a", now()).unwrap();
        assert_eq!(KeyList::open(&path).unwrap().rows(SystemTime::now())[0].state, "revoked");
        let other = add(&path, &Terms::default());
        assert!(works(&path, &other) && KeyFile::open(&path).unwrap().find("sg_x").is_none());
    }

    #[test]
    fn a_list_says_everything_but_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        let terms = Terms {
            groups: vec!["mobile".into()],
            intents: vec!["infer".into()],
            models: vec!["dig*".into()],
            expires: Some(now() + Duration::from_secs(60)),
        };
        let key = add(&path, &terms);
        let list = KeyList::open(&path).unwrap();
        let row = &list.rows(now())[0];
        assert_eq!((&*row.id, &*row.identity, &*row.groups, &*row.scope), (&*key.id, "web", "mobile", "infer on dig*"));
        assert_eq!((row.state, &*row.created), ("active", "2023-11-14T22:13:20Z"));
        assert_eq!(list.rows(now() + Duration::from_secs(60))[0].state, "expired");
        assert!(!format!("{:?}", list.rows(now())).contains(&key.hash[7..]));
    }

    #[test]
    fn a_broken_file_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        fs::write(&path, "version: 1\nkeys: [nonsense]\n").unwrap();
        assert!(KeyList::open(&path).is_err());
        let key = add(&folder.path().join("other.yaml"), &Terms::default());
        fs::copy(folder.path().join("other.yaml"), &path).unwrap();
        let twice = key.entry("web", &Terms::default(), now());
        assert!(KeyList::open(&path).unwrap().append(&twice).is_err(), "the same key again");
        assert!(works(&path, &key));
    }
}

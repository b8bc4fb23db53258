//! `keys.yaml`: what it says, checked (architecture section 11).
//!
//! Knows the file's form and nothing of requests. A file with any problem yields no keys at all: half a key ring is
//! worse than the old one.

use super::{ANONYMOUS, api_key::Key, timestamp};
use crate::call::{Identity, Intent, Scope};
use serde::Deserialize;
use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// The most that is read of a key file, in bytes: some 200,000 keys.
pub(super) const LARGEST: u64 = 64 << 20;

/// A key file that cannot be used, with everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// One line each. They name keys by id and place, never by hash.
    pub problems: Vec<String>,
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key file {}: {}", self.path.display(), self.problems.join("; "))
    }
}

impl std::error::Error for KeyFileError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    // `keys:` with nothing behind it is what remains when the last key was taken out.
    keys: Option<Vec<Entry>>,
}

/// A key, as written.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) hash: String,
    pub(super) identity: String,
    #[serde(default)]
    pub(super) groups: Vec<Arc<str>>,
    pub(super) intents: Option<Vec<String>>,
    pub(super) models: Option<Vec<Arc<str>>>,
    // Asked for so that it is written down; nothing depends on it.
    pub(super) created: Option<String>,
    pub(super) expires: Option<String>,
    pub(super) revoked: Option<String>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Somebody may have put the key itself where its hash belongs.
        f.debug_struct("Entry").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The entries of a file, unchecked.
///
/// # Errors
///
/// If it has not the form of one.
pub(super) fn read_entries(path: &Path, contents: &[u8]) -> Result<Vec<Entry>, KeyFileError> {
    Ok(read(path, contents)?.keys.unwrap_or_default())
}

fn read(path: &Path, contents: &[u8]) -> Result<File, KeyFileError> {
    let error = |problem: String| KeyFileError { path: path.to_owned(), problems: vec![problem] };
    serde_saphyr::from_slice_with_options(contents, options()).map_err(|problem| error(problem.to_string()))
}

/// Reads the contents of a key file.
///
/// # Errors
///
/// Every problem of it.
pub(super) fn parse(path: &Path, contents: &[u8]) -> Result<Vec<Key>, KeyFileError> {
    let error = |problems| KeyFileError { path: path.to_owned(), problems };
    let file = read(path, contents)?;
    let mut problems = Vec::new();
    if file.version != 1 {
        problems.push(format!("version: {} is not known, expected 1", file.version));
    }
    let (mut ids, mut digests) = (HashSet::new(), HashSet::new());
    let entries = file.keys.unwrap_or_default();
    let mut keys = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let place = format!("keys[{index}] (`{}`)", entry.id);
        let before = problems.len();
        match key(entry, &mut |problem| problems.push(format!("{place}: {problem}"))) {
            Some(key) if problems.len() == before => {
                if !digests.insert(key.digest) {
                    problems.push(format!("{place}: another entry has the same hash"));
                }
                keys.push(key);
            }
            Some(_) | None => {}
        }
        if !ids.insert(&entry.id) {
            problems.push(format!("{place}: another entry has the same id"));
        }
    }
    if problems.is_empty() { Ok(keys) } else { Err(error(problems)) }
}

fn key(entry: &Entry, complain: &mut dyn FnMut(String)) -> Option<Key> {
    if entry.id.is_empty() {
        complain("`id` is empty".to_owned());
    }
    let digest = digest(&entry.hash);
    if digest.is_none() {
        // Not the value: somebody may have put the key itself there.
        complain("`hash` is not `sha256:` and 64 hexadecimal digits".to_owned());
    }
    match entry.identity.as_str() {
        "" => complain("`identity` is empty".to_owned()),
        ANONYMOUS => complain(format!("`identity` may not be `{ANONYMOUS}`, which means callers without a key")),
        _ => {}
    }
    let intents = entry.intents.as_ref().map(|names| {
        let parse = |name: &String| {
            let intent = Intent::parse(name);
            if intent.is_none() {
                complain(format!("`intents` names `{name}`, expected {}", super::grants::INTENTS));
            }
            intent
        };
        names.iter().filter_map(parse).collect()
    });
    let mut time = |name: &str, value: &Option<String>| -> Option<SystemTime> {
        let value = value.as_ref()?;
        let time = timestamp::parse(value);
        if time.is_none() {
            complain(format!("`{name}` is `{value}`, expected a time such as 2027-01-31T00:00:00Z"));
        }
        time
    };
    time("created", &entry.created);
    let expires = time("expires", &entry.expires);
    let revoked = time("revoked", &entry.revoked);
    let scope = match (intents, entry.models.clone()) {
        (None, None) => Scope::Granted,
        (intents, models) => Scope::Narrowed { intents, models },
    };
    Some(Key {
        digest: digest?,
        identity: Arc::new(
            Identity::proven(entry.identity.as_str(), entry.groups.clone(), scope)
                .until_time([expires, revoked].into_iter().flatten().min()),
        ),
    })
}

/// `sha256:` and 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:")?.as_bytes();
    let mut digest = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

/// Room for many keys, and no quotation of the file in errors.
fn options() -> serde_saphyr::Options {
    let budget = serde_saphyr::budget! { max_nodes: 10_000_000, max_events: 20_000_000 };
    serde_saphyr::options! { budget: budget, with_snippet: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::api_key::hash;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<Key>, KeyFileError> {
        parse(Path::new("keys.yaml"), text.as_bytes())
    }

    #[test]
    fn a_whole_entry_is_read() {
        let text = format!(
            "version: 1\nkeys:\n  - {{ id: k_1, hash: \"{}\", identity: web, groups: [mobile], intents: [infer], \
             models: [\"digits\"], created: 2026-01-01T00:00:00Z, expires: 2027-01-01T00:00:00Z, \
             revoked: 2026-06-01T00:00:00Z }}\n",
            hash("sg_x")
        );
        let keys = read(&text).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(&**keys[0].identity.id(), "web");
        assert_eq!(keys[0].identity.groups(), [Arc::from("mobile")]);
        assert_eq!(keys[0].identity.until(), timestamp::parse("2026-06-01T00:00:00Z"));
        assert!(matches!(keys[0].identity.scope(), Scope::Narrowed { intents: Some(i), .. } if *i == [Intent::Infer]));
    }

    #[test]
    fn every_problem_is_named_and_no_hash_is_quoted() {
        let text = "version: 2\nkeys:\n  - { id: a, hash: sg_secret, identity: anonymous, intents: [fly] }\n  \
                    - { id: a, hash: sg_secret, identity: \"\", expires: tomorrow }\n";
        let problems = read(text).unwrap_err().problems;
        assert_eq!(problems.len(), 8, "{problems:#?}");
        assert!(!problems.concat().contains("sg_secret"));
    }

    #[test]
    fn an_unknown_member_is_refused() {
        let text = "version: 1\nkeys:\n  - { id: a, hash: x, identity: web, group: mobile }\n";
        assert!(read(text).unwrap_err().to_string().contains("group"));
    }

    #[test]
    fn the_same_key_twice_is_refused() {
        let hash = hash("sg_x");
        let text = format!(
            "version: 1\nkeys:\n  - {{ id: a, hash: \"{hash}\", identity: a }}\n  - {{ id: b, hash: \"{hash}\", identity: b }}\n"
        );
        assert!(read(&text).unwrap_err().to_string().contains("same hash"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("keys.yaml"), &bytes);
        }
    }
}

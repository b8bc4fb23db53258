//! API keys from a file: hashed, compared in constant time, re-read when the file changes.
//!
//! A key is 256 random bits, so a fast hash is enough (architecture section 11). What arrives is hashed before anything
//! else happens to it, and is never kept, compared or logged as it came.

use super::{
    key_file::{self, Entry, KeyFileError},
    key_list, timestamp,
};
use crate::{call::Identity, current::Current};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use std::{
    collections::HashMap,
    fmt, fs,
    hash::{BuildHasherDefault, Hasher},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use subtle::ConstantTimeEq;

/// Longer credentials are not hashed: ours have 46 characters, and a stranger's 16 KiB header would cost 20 µs.
const LONGEST: usize = 512;

/// One entry of `keys.yaml`.
#[derive(Debug)]
pub(super) struct Key {
    /// SHA-256 of the whole key.
    pub(super) digest: [u8; 32],
    /// Whom it proves.
    ///
    /// It is proven until the earlier of `expires` and `revoked`.
    pub(super) identity: Arc<Identity>,
}

/// All keys of one reading of the file.
#[derive(Debug, Default)]
pub struct Keyring {
    /// By the first eight bytes of the digest. A stranger cannot steer a digest, so what this look-up betrays of one
    /// is of no use; the rest is compared in constant time.
    keys: HashMap<u64, SmallVec<[Key; 1]>, BuildHasherDefault<Uniform>>,
}

/// The file that keys come from, and what it said last.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    ring: Current<Keyring>,
}

/// What a new key is for, besides its identity.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Groups of the identity.
    pub groups: Vec<String>,
    /// The only intents it is for; none: all.
    pub intents: Vec<String>,
    /// Patterns of the only models it is for; none: all.
    pub models: Vec<String>,
    /// When it ends.
    pub expires: Option<SystemTime>,
}

/// A new key, to be shown once.
pub struct NewKey {
    /// The secret: `sg_` and 43 base64url characters.
    pub key: String,
    /// Its name in `keys.yaml`, in logs and lists; chosen at random, it tells nothing of the key.
    pub id: String,
    /// What `keys.yaml` keeps of it.
    pub hash: String,
}

/// Hashes nothing: its keys are pieces of SHA-256 digests, as uniform as any hash of them.
#[derive(Clone, Copy, Debug, Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, prefix: u64) {
        self.0 = prefix;
    }
}

// === impl Keyring ===

impl Keyring {
    fn new(keys: Vec<Key>) -> Self {
        let mut ring = Self::default();
        for key in keys {
            ring.keys.entry(prefix(&key.digest)).or_default().push(key);
        }
        ring
    }

    /// The identity that `credential` proves, if it is a key that is valid now. Allocates nothing.
    fn find(&self, credential: &str, now: impl FnOnce() -> SystemTime) -> Option<Arc<Identity>> {
        if credential.len() > LONGEST {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(credential).into();
        let key = self.keys.get(&prefix(&digest))?.iter().find(|key| is_same(&key.digest, &digest))?;
        match key.identity.until() {
            // The clock is read only for keys that end.
            Some(until) if until <= now() => None,
            Some(_) | None => Some(Arc::clone(&key.identity)),
        }
    }
}

/// In constant time; by words, of which there are four, and not by bytes, of which there are 32.
fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let words = bytemuck::cast::<[u8; 32], [u64; 4]>;
    words(*one).ct_eq(&words(*other)).into()
}

fn prefix(digest: &[u8; 32]) -> u64 {
    let (prefix, _) = digest.split_first_chunk().expect("32 bytes begin with 8");
    u64::from_le_bytes(*prefix)
}

// === impl KeyFile ===

impl KeyFile {
    /// Reads the keys of the file at `path`.
    ///
    /// # Errors
    ///
    /// Every problem of the file.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let keys = key_file::parse(path, &read(path)?)?;
        Ok(Self { path: path.to_owned(), ring: Current::new(Keyring::new(keys)) })
    }

    /// The identity that `credential` proves, if it is a key that is valid now.
    pub fn find(&self, credential: &str) -> Option<Arc<Identity>> {
        self.ring.with(|ring| ring.find(credential, SystemTime::now))
    }

    /// Reads the file again and takes its keys over. Called when it has changed, from the control runtime and not from a
    /// lane.
    ///
    /// # Errors
    ///
    /// What is wrong with the new file. The old keys stay in force.
    pub fn reload(&self) -> Result<(), KeyFileError> {
        let keys = key_file::parse(&self.path, &read(&self.path)?)?;
        self.ring.set(Keyring::new(keys));
        Ok(())
    }

    /// Where the keys are.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let error = |problem: String| KeyFileError { path: path.to_owned(), problems: vec![problem] };
    let file = fs::File::open(path).map_err(|problem| error(problem.to_string()))?;
    let mut contents = Vec::new();
    file.take(key_file::LARGEST + 1).read_to_end(&mut contents).map_err(|problem| error(problem.to_string()))?;
    if contents.len() as u64 > key_file::LARGEST {
        return Err(error(format!("larger than {} MiB", key_file::LARGEST >> 20)));
    }
    Ok(contents)
}

// === keys as people get them ===

/// Makes a new key from the operating system's randomness.
///
/// # Errors
///
/// If there is none.
pub fn generate() -> Result<NewKey, getrandom::Error> {
    let (mut secret, mut id) = ([0; 32], [0; 6]);
    getrandom::fill(&mut secret)?;
    getrandom::fill(&mut id)?;
    let key = format!("sg_{}", URL_SAFE_NO_PAD.encode(secret));
    // 32 characters that are not taken for one another.
    let id = id.iter().map(|byte| char::from(b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789"[usize::from(byte % 32)]));
    Ok(NewKey { hash: hash(&key), id: format!("k_{}", id.collect::<String>()), key })
}

/// What `keys.yaml` keeps of a key: `sha256:` and 64 hexadecimal digits.
pub fn hash(key: &str) -> String {
    Sha256::digest(key).iter().fold("sha256:".to_owned(), |mut text, byte| {
        text.push(char::from_digit(u32::from(byte >> 4), 16).expect("four bits"));
        text.push(char::from_digit(u32::from(byte & 15), 16).expect("four bits"));
        text
    })
}

impl NewKey {
    /// The line for `keys.yaml`, made at `now`, for `identity` on these terms.
    pub fn entry(&self, identity: &str, terms: &Terms, now: SystemTime) -> String {
        let shared = |list: &[String]| list.iter().map(|text| Arc::from(text.as_str())).collect::<Vec<Arc<str>>>();
        key_list::line(&Entry {
            id: self.id.clone(),
            hash: self.hash.clone(),
            identity: identity.to_owned(),
            groups: shared(&terms.groups),
            intents: (!terms.intents.is_empty()).then(|| terms.intents.clone()),
            models: (!terms.models.is_empty()).then(|| shared(&terms.models)),
            created: Some(timestamp::format(now)),
            expires: terms.expires.map(timestamp::format),
            revoked: None,
        })
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn file(dir: &tempfile::TempDir, entries: &[String]) -> PathBuf {
        let path = dir.path().join("keys.yaml");
        fs::write(&path, format!("version: 1\nkeys:\n{}\n", entries.join("\n"))).unwrap();
        path
    }

    #[test]
    fn a_new_key_has_the_documented_form_and_is_found() {
        let new = generate().unwrap();
        assert_eq!(new.key.len(), 46);
        assert!(new.key.starts_with("sg_") && new.hash.len() == 71);
        let dir = tempfile::tempdir().unwrap();
        let groups = Terms { groups: vec!["mo,bile".to_owned()], ..Terms::default() };
        let keys = KeyFile::open(&file(&dir, &[new.entry("we\"b: {", &groups, SystemTime::now())])).unwrap();
        assert_eq!(&**keys.find(&new.key).unwrap().id(), "we\"b: {");
        assert!(keys.find(&new.key[..45]).is_none());
        assert!(keys.find("").is_none());
        assert!(keys.find(&"x".repeat(100_000)).is_none());
    }

    #[test]
    fn a_new_key_is_not_formatted() {
        let new = generate().unwrap();
        let text = format!("{new:?}");
        assert!(!text.contains(&new.key) && !text.contains(&new.hash));
    }

    #[test]
    fn the_hash_is_plain_sha256() {
        assert_eq!(hash("abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_key_is_valid_until_its_end() {
        let until = UNIX_EPOCH + Duration::from_secs(100);
        let identity = Identity::proven("web", Vec::new(), crate::call::Scope::Granted).until_time(Some(until));
        let digest = Sha256::digest("sg_x").into();
        let ring = Keyring::new(vec![Key { digest, identity: Arc::new(identity) }]);
        assert!(ring.find("sg_x", || until - Duration::from_nanos(1)).is_some());
        assert!(ring.find("sg_x", || until).is_none());
    }

    #[test]
    fn digests_that_share_their_beginning_are_told_apart() {
        let identity = |id: &str| Arc::new(Identity::proven(id, Vec::new(), crate::call::Scope::Granted));
        let digest: [u8; 32] = Sha256::digest("sg_x").into();
        let mut other = digest;
        other[31] ^= 1;
        let ring = Keyring::new(vec![
            Key { digest: other, identity: identity("other") },
            Key { digest, identity: identity("web") },
        ]);
        assert_eq!(&**ring.find("sg_x", SystemTime::now).unwrap().id(), "web");
    }

    #[test]
    fn a_file_that_is_read_again_is_taken_over() {
        let (dir, old, new) = (tempfile::tempdir().unwrap(), generate().unwrap(), generate().unwrap());
        let keys = KeyFile::open(&file(&dir, &[old.entry("old", &Terms::default(), UNIX_EPOCH)])).unwrap();
        file(&dir, &[new.entry("new", &Terms::default(), UNIX_EPOCH)]);
        keys.reload().unwrap();
        assert!(keys.find(&old.key).is_none() && keys.find(&new.key).is_some());
    }

    #[test]
    fn the_old_keys_outlive_a_broken_file() {
        let (dir, key) = (tempfile::tempdir().unwrap(), generate().unwrap());
        let path = file(&dir, &[key.entry("web", &Terms::default(), UNIX_EPOCH)]);
        let keys = KeyFile::open(&path).unwrap();
        fs::write(&path, "version: 1\nkeys: [nonsense]").unwrap();
        assert!(keys.reload().is_err());
        fs::remove_file(&path).unwrap();
        assert!(keys.reload().is_err());
        assert!(keys.find(&key.key).is_some());
        file(&dir, &[]);
        keys.reload().unwrap();
        assert!(keys.find(&key.key).is_none());
    }
}

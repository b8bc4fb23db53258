//! Tokens that somebody else has signed (RFC 7519): whom they prove, and for how long.
//!
//! Verification is synchronous. A signature is verified once and its token remembered; expiry is looked at on every call.
//! Keys come from files and URLs in the background ([`Tokens::keep_fetching`]), and what was verified under
//! keys that have changed since is verified anew.
//!
//! `ring` verifies, which rustls has brought along. The algorithm of a token is one of those that its issuer is configured
//! with *and* that its key is for, so a token cannot choose how it is read (RFC 8725 section 3.1); no header but `alg` and
//! `kid` is obeyed, so it cannot say where its key is either.

mod claims;
mod fetch;
mod key;
mod refresh;
#[cfg(test)]
mod tests;
mod token;

pub use key::Algorithm;

use super::SetupError;
use crate::call::Identity;
use arc_swap::ArcSwap;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use key::KeySet;
use refresh::Refresh;
use std::{
    fmt, fs,
    hash::BuildHasher,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use token::Token;
use tokio::sync::watch;

/// Tokens whose signature is remembered: of eight KiB each at most, so 80 MiB in the worst case and 8 in the usual one. Fewer
/// in tests, which sign each of them.
const REMEMBERED: usize = if cfg!(test) { 200 } else { 10_000 };
/// The most that is read of a file or an answer with keys, in bytes (attack I2).
const LARGEST: u64 = 256 << 10;
/// Keys that a token without `kid` is tried against: a set of hundreds would make one call cost milliseconds.
const TRIED: usize = 4;

/// Whose tokens are taken, and how they are read (`auth.jwt`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Its `iss`, exactly.
    pub issuer: Arc<str>,
    /// One of them must be among the `aud` of a token.
    pub audience: Vec<Arc<str>>,
    /// How its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// Where its keys are.
    pub keys: Keys,
    /// The claim that names the identity: its name, or a path with dots into objects.
    pub identity: Arc<str>,
    /// Put before the name, so that issuers do not share identities.
    pub prefix: Arc<str>,
    /// The claim that lists the groups.
    pub groups: Option<Arc<str>>,
    /// Claims that must be there. `exp` must be there in any case.
    pub require: Vec<Arc<str>>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// A file with one key: a public key or certificate in PEM, or the secret of HS algorithms.
    File(PathBuf),
    /// A file with a set of keys (RFC 7517 section 5).
    Set(PathBuf),
    /// The same, to be fetched.
    Url {
        /// `http` or `https`.
        url: http::Uri,
        /// Who vouches for its server.
        trust: Trust,
        /// How often it is fetched when nothing asks for it earlier.
        refresh: Duration,
    },
}

/// Who vouches for a server that keys are fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The authorities that the system trusts.
    System,
    /// Those of a PEM file.
    Only(PathBuf),
}

/// What is wrong with the keys of an issuer, in words for operators. It quotes no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysError(String);

/// All issuers, and what was verified.
#[derive(Debug)]
pub struct Tokens {
    issuers: Vec<Known>,
    changes: Arc<watch::Sender<()>>,
    /// By a hash of the token, whose seed only this process knows. A second token with the same hash takes the place of the
    /// first: each call of the other costs one verification then.
    seen: DashMap<u64, Seen, RandomState>,
}

/// An issuer with its keys.
#[derive(Debug)]
struct Known {
    settings: Issuer,
    keys: ArcSwap<KeySet>,
    /// Changes with the keys.
    generation: AtomicU64,
    refresh: Refresh,
}

/// A token whose signature was verified.
#[derive(Debug)]
struct Seen {
    token: Secret,
    identity: Arc<Identity>,
    issuer: usize,
    generation: u64,
    until: SystemTime,
}

/// A token, which is as good as a password. `Debug` does not print it.
struct Secret(Box<str>);

// === impl Issuer ===

impl Issuer {
    /// Whether its files can be used; a URL is not asked.
    ///
    /// # Errors
    ///
    /// [`KeysError`] names the file and what is wrong with it.
    pub fn check(&self) -> Result<(), KeysError> {
        if let Keys::Url { trust: Trust::Only(path), .. } = &self.keys {
            fetch::roots(path)?;
        }
        self.begin().map(drop)
    }

    /// Its keys as it begins with them: of a file there is one at least. Later there may be none, when the last is withdrawn.
    fn begin(&self) -> Result<KeySet, KeysError> {
        let keys = self.read()?;
        match &self.keys {
            Keys::File(_) | Keys::Url { .. } => Ok(keys),
            Keys::Set(path) => keys.useful(&self.algorithms).map_err(|error| named(path, &error)),
        }
    }

    /// The file that its keys come from, if they come from one.
    pub fn file(&self) -> Option<&Path> {
        match &self.keys {
            Keys::File(path) | Keys::Set(path) => Some(path),
            Keys::Url { .. } => None,
        }
    }

    /// Reads its file. Of a URL nothing is known yet.
    fn read(&self) -> Result<KeySet, KeysError> {
        match &self.keys {
            Keys::File(path) => read(path)
                .and_then(|contents| KeySet::of_one(&contents, &self.algorithms))
                .map_err(|error| named(path, &error)),
            Keys::Set(path) => {
                let parsed = read(path).and_then(|contents| KeySet::parse(&contents, &self.algorithms, true));
                parsed.map_err(|error| named(path, &error))
            }
            Keys::Url { .. } => Ok(KeySet::default()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    let mut contents = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut contents));
    read.map_err(|error| KeysError(error.to_string()))?;
    if contents.len() as u64 > LARGEST { Err(KeysError::large()) } else { Ok(contents) }
}

// === impl Tokens ===

impl Tokens {
    /// Reads the files of all issuers. `changes` will be told when keys have changed.
    ///
    /// # Errors
    ///
    /// [`SetupError`] names the issuer, the file and what is wrong with it.
    pub fn new(issuers: &[Issuer], changes: Arc<watch::Sender<()>>) -> Result<Self, SetupError> {
        let known = |settings: &Issuer| {
            let read = settings.begin().map_err(|error| SetupError::Issuer(Arc::clone(&settings.issuer), error))?;
            let keys = ArcSwap::from_pointee(read);
            let refresh = Refresh::default();
            Ok(Known { settings: settings.clone(), keys, generation: AtomicU64::new(0), refresh })
        };
        let issuers = issuers.iter().map(known).collect::<Result<_, _>>()?;
        Ok(Self { issuers, changes, seen: DashMap::with_hasher(RandomState::default()) })
    }

    /// The identity that `token` proves now, if it proves one.
    pub fn verify(&self, token: &str, now: SystemTime) -> Option<Arc<Identity>> {
        // Most of what is not a token, which is to say keys, ends here.
        if !token.starts_with(token::BEGINNING) {
            return None;
        }
        let hash = self.seen.hasher().hash_one(token);
        // Before its form is looked at: what was verified has it. How long the comparison takes betrays nothing, since it is
        // made only of texts with the same hash, whose seed a stranger does not know.
        if let Some(seen) = self.seen.get(&hash)
            && *seen.token.0 == *token
            && self.is_current(&seen)
        {
            return (now < seen.until).then(|| Arc::clone(&seen.identity));
        }
        if !token::is_one(token) {
            return None;
        }
        let seen = self.prove(token, now)?;
        let identity = Arc::clone(&seen.identity);
        self.remember(hash, seen, now);
        Some(identity)
    }

    /// Whether the keys that verified it are those of its issuer now.
    fn is_current(&self, seen: &Seen) -> bool {
        self.issuers[seen.issuer].generation.load(Ordering::Acquire) == seen.generation
    }

    fn prove(&self, text: &str, now: SystemTime) -> Option<Seen> {
        let token = Token::parse(text)?;
        let issuer = self.issuers.iter().position(|known| token.is_from(&known.settings.issuer))?;
        let known = &self.issuers[issuer];
        // Before the keys: if they change meanwhile, the next call looks again.
        let generation = known.generation.load(Ordering::Acquire);
        let algorithm =
            known.settings.algorithms.iter().copied().find(|algorithm| algorithm.name() == token.algorithm)?;
        let keys = known.keys.load();
        let mut candidates = keys.candidates(token.kid.as_deref(), algorithm).take(TRIED);
        if !candidates.any(|key| key.verifies(algorithm, token.signed, &token.signature)) {
            // Perhaps its key is a new one, under a new name or an old one.
            known.refresh.ask();
            return None;
        }
        let (identity, until) = claims::identity(&token.claims, &known.settings, now)?;
        Some(Seen { token: Secret(text.into()), identity: Arc::new(identity), issuer, generation, until })
    }

    fn remember(&self, hash: u64, seen: Seen, now: SystemTime) {
        if self.seen.len() >= REMEMBERED {
            self.seen.retain(|_, seen| now < seen.until && self.is_current(seen));
            if self.seen.len() >= REMEMBERED {
                // Any of them: each costs its next call one verification, no more. Some at once, so that this is rare.
                let mut spare = REMEMBERED / 8;
                self.seen.retain(|_, _| {
                    let stays = spare == 0;
                    spare = spare.saturating_sub(1);
                    stays
                });
            }
        }
        self.seen.insert(hash, seen);
    }

    /// Every issuer whose keys come from a file, by its place, with that file.
    pub fn files(&self) -> impl Iterator<Item = (usize, &Path)> {
        self.issuers.iter().enumerate().filter_map(|(place, known)| Some((place, known.settings.file()?)))
    }

    /// Reads the file of the issuer at `place` again.
    ///
    /// # Errors
    ///
    /// [`KeysError`] names the file and what is wrong with it; the old keys stay in force.
    pub fn reload(&self, place: usize) -> Result<(), KeysError> {
        let Some(known) = self.issuers.get(place) else { return Ok(()) };
        let keys = known.settings.read()?;
        if self.take(known, keys) && known.keys.load().is_empty() {
            tracing::warn!(issuer = &*known.settings.issuer, "the set has no key left: its tokens are refused");
        }
        Ok(())
    }

    /// Takes over the keys of an issuer, if they are others; true if so.
    fn take(&self, known: &Known, keys: KeySet) -> bool {
        if **known.keys.load() == keys {
            return false;
        }
        known.keys.store(Arc::new(keys));
        known.generation.fetch_add(1, Ordering::Release);
        self.changes.send_replace(());
        true
    }
}

/// The same error, of this file.
fn named(path: &Path, error: &KeysError) -> KeysError {
    KeysError(format!("{}: {}", path.display(), error.0))
}

// === impl Secret ===

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token")
    }
}

// === impl KeysError ===

impl KeysError {
    fn large() -> Self {
        Self(format!("larger than {} KiB", LARGEST >> 10))
    }
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeysError {}

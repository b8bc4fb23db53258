//! Proves who is calling, and says what they may do.
//!
//! Verification is synchronous and allocates nothing: one hash, one map read. It knows no protocol; which header or
//! message carried a credential is the front-end's to know.

pub mod api_key;
pub mod grants;
mod key_file;
pub mod timestamp;

pub use grants::Grants;
pub use key_file::KeyFileError;

use crate::{
    call::{Credentials, Identity, Peer, Scope},
    error::Error,
};
use api_key::KeyFile;
use std::{path::PathBuf, sync::Arc};

/// The identity of callers without credentials, where they are allowed. No key may prove it.
pub const ANONYMOUS: &str = "anonymous";

/// Who may call, and how they prove it (`auth`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What callers without credentials are.
    pub anonymous: Anonymous,
    /// The file with API keys (`auth.api_keys.file`); absent: keys are no method.
    pub keys: Option<PathBuf>,
}

impl Settings {
    /// Whether callers have any way to prove who they are.
    pub fn has_method(&self) -> bool {
        self.keys.is_some()
    }
}

/// What callers without credentials are (`auth.anonymous`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// On loopback listeners, while no method is configured, someone who may do everything; elsewhere refused.
    #[default]
    Loopback,
    /// The identity `anonymous`, with its grants.
    Always,
    /// Refused.
    Never,
}

/// Proves claims: methods in order, synchronously (architecture section 6).
#[derive(Debug)]
pub struct Authenticator {
    anonymous: Anonymous,
    keys: Option<KeyFile>,
    /// Anonymous with the grants of `anonymous`.
    granted: Arc<Identity>,
    /// Anonymous on loopback, before there is any configuration (decision 8).
    everything: Arc<Identity>,
}

impl Authenticator {
    /// Reads the key file, if one is configured.
    ///
    /// # Errors
    ///
    /// Every problem of the key file.
    pub fn new(settings: &Settings) -> Result<Self, KeyFileError> {
        Ok(Self {
            anonymous: settings.anonymous,
            keys: settings.keys.as_deref().map(KeyFile::open).transpose()?,
            granted: Arc::new(Identity::proven(ANONYMOUS, Vec::new(), Scope::Granted)),
            everything: Arc::new(Identity::proven(ANONYMOUS, Vec::new(), Scope::Everything)),
        })
    }

    /// Proves `credentials` sent by `peer`.
    ///
    /// A wrong key is refused where an absent one might not be: who sends a key means to be someone.
    ///
    /// # Errors
    ///
    /// [`Error::Unauthenticated`], the same for a missing, malformed, unknown, expired or revoked claim.
    pub fn verify(&self, peer: &Peer, credentials: &Credentials) -> Result<Arc<Identity>, Error> {
        match credentials {
            Credentials::ApiKey(key) | Credentials::Bearer(key) => self.keys.as_ref().and_then(|keys| keys.find(key)),
            Credentials::None => self.nobody(peer),
            // Certificates become a method with `auth.mtls`.
            Credentials::Certificate(_) => None,
        }
        .ok_or(Error::Unauthenticated)
    }

    /// Reads the key file again and takes its keys over if they changed; true if so. Called every second or more
    /// often, so that a revoked key is refused within a second (contract 06 C1).
    ///
    /// # Errors
    ///
    /// What is wrong with the new file, once per change. The old keys stay in force.
    pub fn reload_if_changed(&self) -> Result<bool, KeyFileError> {
        self.keys.as_ref().map_or(Ok(false), KeyFile::reload_if_changed)
    }

    fn nobody(&self, peer: &Peer) -> Option<Arc<Identity>> {
        match self.anonymous {
            Anonymous::Always => Some(Arc::clone(&self.granted)),
            Anonymous::Loopback if self.keys.is_none() && peer.is_loopback() => Some(Arc::clone(&self.everything)),
            Anonymous::Loopback | Anonymous::Never => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn peer(local: &str) -> Peer {
        Peer { address: "10.0.0.9:5000".parse().unwrap(), local: local.parse().unwrap(), tls: false }
    }

    const LOOPBACK: &str = "127.0.0.1:8080";
    const PUBLIC: &str = "10.0.0.1:8080";

    fn authenticator(anonymous: Anonymous) -> Authenticator {
        Authenticator::new(&Settings { anonymous, keys: None }).unwrap()
    }

    fn with_key(anonymous: Anonymous) -> (Authenticator, String, tempfile::TempDir) {
        let (dir, new) = (tempfile::tempdir().unwrap(), api_key::generate().unwrap());
        let path = dir.path().join("keys.yaml");
        std::fs::write(&path, format!("version: 1\nkeys:\n{}\n", new.entry("web", &[], UNIX_EPOCH))).unwrap();
        (Authenticator::new(&Settings { anonymous, keys: Some(path) }).unwrap(), new.key, dir)
    }

    #[test]
    fn a_key_proves_as_a_bearer_token_too() {
        let (authenticator, key, _dir) = with_key(Anonymous::Loopback);
        for credentials in [Credentials::ApiKey(key.as_str().into()), Credentials::Bearer(key.as_str().into())] {
            let identity = authenticator.verify(&peer(PUBLIC), &credentials).unwrap();
            assert_eq!(&**identity.id(), "web");
            assert_eq!(*identity.scope(), Scope::Granted);
        }
    }

    #[test]
    fn on_loopback_nobody_may_do_everything_until_a_method_is_configured() {
        let open = authenticator(Anonymous::Loopback);
        let identity = open.verify(&peer(LOOPBACK), &Credentials::None).unwrap();
        assert_eq!((&**identity.id(), identity.scope()), (ANONYMOUS, &Scope::Everything));
        assert!(open.verify(&peer("[::1]:1"), &Credentials::None).is_ok());
        assert!(matches!(open.verify(&peer(PUBLIC), &Credentials::None), Err(Error::Unauthenticated)));
        let (closed, _, _dir) = with_key(Anonymous::Loopback);
        assert!(matches!(closed.verify(&peer(LOOPBACK), &Credentials::None), Err(Error::Unauthenticated)));
    }

    #[test]
    fn always_means_the_grants_of_anonymous() {
        let (authenticator, _, _dir) = with_key(Anonymous::Always);
        let identity = authenticator.verify(&peer(PUBLIC), &Credentials::None).unwrap();
        assert_eq!((&**identity.id(), identity.scope()), (ANONYMOUS, &Scope::Granted));
    }

    #[test]
    fn never_means_never() {
        let refused = authenticator(Anonymous::Never).verify(&peer(LOOPBACK), &Credentials::None);
        assert!(matches!(refused, Err(Error::Unauthenticated)));
    }

    #[test]
    fn a_wrong_key_never_becomes_anonymous() {
        let wrong = Credentials::ApiKey("sg_wrong".into());
        for anonymous in [Anonymous::Loopback, Anonymous::Always] {
            assert!(authenticator(anonymous).verify(&peer(LOOPBACK), &wrong).is_err());
            assert!(with_key(anonymous).0.verify(&peer(LOOPBACK), &wrong).is_err());
        }
        let certificate = Credentials::Certificate("CN=web".into());
        assert!(authenticator(Anonymous::Always).verify(&peer(LOOPBACK), &certificate).is_err());
    }

    #[test]
    fn a_missing_key_file_is_an_error() {
        let settings = Settings { anonymous: Anonymous::Never, keys: Some("/nonexistent/keys.yaml".into()) };
        assert!(Authenticator::new(&settings).unwrap_err().to_string().contains("/nonexistent/keys.yaml"));
    }
}

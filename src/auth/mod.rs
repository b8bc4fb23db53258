//! Proves who is calling, and says what they may do.
//!
//! Verification is synchronous: one hash, one map read, and nothing allocated, except for what is seen for the first time
//! (a token's signature) and for certificates (their identity). It knows no protocol; which header or message carried a
//! credential is the front-end's to know.

pub mod api_key;
pub mod certificate;
pub mod grants;
pub mod jwt;
mod key_file;
pub mod key_list;
pub mod timestamp;

pub use grants::Grants;
pub use key_file::KeyFileError;

use crate::{
    call::{Certificate, Credentials, Identity, Peer, Scope},
    error::Error,
};
use api_key::KeyFile;
use jwt::{Issuer, KeysError, Tokens};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use tokio::sync::watch;

/// The identity of callers without credentials, where they are allowed. No key may prove it.
pub use crate::call::ANONYMOUS;
/// The longest name of an identity that somebody else has chosen, in bytes.
const NAME: usize = 256;

/// Who may call, and how they prove it (`auth`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What callers without credentials are.
    pub anonymous: Anonymous,
    /// The file with API keys (`auth.api_keys.file`); absent: keys are no method.
    pub keys: Option<PathBuf>,
    /// Whose tokens are taken.
    pub jwt: Vec<Issuer>,
    /// Which name of a client certificate is an identity; absent: certificates are no method.
    pub mtls: Option<certificate::Name>,
}

impl Settings {
    /// Whether callers have any way to prove who they are.
    pub fn has_method(&self) -> bool {
        self.keys.is_some() || !self.jwt.is_empty() || self.mtls.is_some()
    }
}

/// Why callers cannot prove who they are, in words for operators.
#[derive(Clone, Debug)]
pub enum SetupError {
    /// The file of API keys cannot be used.
    Keys(KeyFileError),
    /// The keys of an issuer cannot be used.
    Issuer(Arc<str>, KeysError),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keys(error) => error.fmt(f),
            Self::Issuer(issuer, error) => write!(f, "keys of the issuer `{issuer}`: {error}"),
        }
    }
}

impl std::error::Error for SetupError {}

/// A name that somebody else has chosen, if it may be one of an identity or group.
fn named(name: &str) -> Option<Arc<str>> {
    let is_one = !name.is_empty() && name.len() <= NAME && name != ANONYMOUS && !name.chars().any(char::is_control);
    is_one.then(|| name.into())
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
    /// Whether callers have any way to prove who they are.
    has_method: bool,
    keys: Option<KeyFile>,
    tokens: Option<Tokens>,
    mtls: Option<certificate::Name>,
    changes: Arc<watch::Sender<()>>,
    /// Anonymous with the grants of `anonymous`.
    granted: Arc<Identity>,
    /// Anonymous on loopback, before there is any configuration (decision 8).
    everything: Arc<Identity>,
}

impl Authenticator {
    /// Reads the files of keys that are configured.
    ///
    /// # Errors
    ///
    /// Every problem of the first file that has one.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        let keys = settings.keys.as_deref().map(KeyFile::open).transpose().map_err(SetupError::Keys)?;
        let changes = Arc::new(watch::Sender::new(()));
        let tokens = || Tokens::new(&settings.jwt, Arc::clone(&changes));
        let tokens = (!settings.jwt.is_empty()).then(tokens).transpose()?;
        Ok(Self {
            anonymous: settings.anonymous,
            has_method: settings.has_method(),
            keys,
            tokens,
            mtls: settings.mtls,
            changes,
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
        // Where nothing is taken as a proof, what clients send of their own accord (a mesh, an SDK) is no attempt at one.
        if !self.has_method {
            return self.nobody(peer).ok_or(Error::Unauthenticated);
        }
        let key = |key: &str| self.keys.as_ref().and_then(|keys| keys.find(key));
        match credentials {
            Credentials::ApiKey(text) => key(text),
            Credentials::Bearer(text) => {
                // A key may look like a token, but no token like a key that is in the file.
                let token = self.tokens.as_ref().and_then(|tokens| tokens.verify(text, SystemTime::now()));
                token.or_else(|| key(text))
            }
            Credentials::Certificate(certificate) => self.holder(certificate),
            // Who shows a certificate where it is a method means to be someone, as who sends a key does.
            Credentials::None => match &peer.certificate {
                Some(certificate) if self.mtls.is_some() => self.holder(certificate),
                _ => self.nobody(peer),
            },
        }
        .ok_or(Error::Unauthenticated)
    }

    fn holder(&self, certificate: &Certificate) -> Option<Arc<Identity>> {
        self.mtls.and_then(|name| name.identity(certificate, SystemTime::now()))
    }

    /// The file of keys, if there is one.
    pub fn key_file(&self) -> Option<&Path> {
        self.keys.as_ref().map(KeyFile::path)
    }

    /// Reads the file of keys again. Called when it has changed, within a second, so that a revoked key is refused within one
    /// (contract 06 C1).
    ///
    /// # Errors
    ///
    /// Every problem of the file. The old keys stay in force.
    pub fn reload_keys(&self) -> Result<(), KeyFileError> {
        if let Some(keys) = &self.keys {
            keys.reload()?;
            self.changes.send_replace(());
        }
        Ok(())
    }

    /// Changes whenever somebody who was known may not be any more.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The issuers of tokens, if there are any: their keys are files to be read again, or have to be fetched.
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    fn nobody(&self, peer: &Peer) -> Option<Arc<Identity>> {
        match self.anonymous {
            Anonymous::Always => Some(Arc::clone(&self.granted)),
            Anonymous::Loopback if !self.has_method && peer.is_loopback() => Some(Arc::clone(&self.everything)),
            Anonymous::Loopback | Anonymous::Never => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn peer(local: &str) -> Peer {
        Peer::new("10.0.0.9:5000".parse().unwrap(), local.parse().unwrap())
    }

    const LOOPBACK: &str = "127.0.0.1:8080";
    const PUBLIC: &str = "10.0.0.1:8080";

    fn authenticator(anonymous: Anonymous) -> Authenticator {
        Authenticator::new(&Settings { anonymous, ..Settings::default() }).unwrap()
    }

    fn with_key(anonymous: Anonymous) -> (Authenticator, String, tempfile::TempDir) {
        let (dir, new) = (tempfile::tempdir().unwrap(), api_key::generate().unwrap());
        let path = dir.path().join("keys.yaml");
        std::fs::write(
            &path,
            format!("version: 1\nkeys:\n{}\n", new.entry("web", &api_key::Terms::default(), UNIX_EPOCH)),
        )
        .unwrap();
        (Authenticator::new(&Settings { anonymous, keys: Some(path), ..Settings::default() }).unwrap(), new.key, dir)
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
            assert!(with_key(anonymous).0.verify(&peer(LOOPBACK), &wrong).is_err());
        }
        let certificate = Credentials::Certificate(certificate("spiffe://a/web"));
        assert!(with_key(Anonymous::Always).0.verify(&peer(LOOPBACK), &certificate).is_err());
    }

    #[test]
    fn what_clients_send_is_no_proof_where_none_is_taken() {
        let sent =
            [Credentials::ApiKey("x".into()), Credentials::Bearer("".into()), Credentials::Bearer("a.b.c".into())];
        for credentials in sent {
            let open = authenticator(Anonymous::Always).verify(&peer(PUBLIC), &credentials).unwrap();
            assert_eq!(&**open.id(), ANONYMOUS);
            assert!(authenticator(Anonymous::Loopback).verify(&peer(LOOPBACK), &credentials).is_ok());
            assert!(authenticator(Anonymous::Loopback).verify(&peer(PUBLIC), &credentials).is_err());
            assert!(authenticator(Anonymous::Never).verify(&peer(LOOPBACK), &credentials).is_err());
        }
    }

    fn certificate(uri: &str) -> Arc<Certificate> {
        let until = SystemTime::now() + std::time::Duration::from_secs(3600);
        Arc::new(Certificate { uris: vec![uri.into()], hosts: Vec::new(), subject: None, until })
    }

    #[test]
    fn a_certificate_of_the_connection_counts_where_nothing_was_sent() {
        let mtls = |anonymous, mtls| {
            let settings = Settings { anonymous, mtls, ..Settings::default() };
            let shown = Peer { certificate: Some(certificate("spiffe://a/web")), ..peer(LOOPBACK) };
            let authenticator = Authenticator::new(&settings).unwrap();
            let id = |credentials| authenticator.verify(&shown, &credentials).ok().map(|who| who.id().to_string());
            (id(Credentials::None), id(Credentials::ApiKey("sg_wrong".into())))
        };
        let web = Some("spiffe://a/web".to_owned());
        assert_eq!(mtls(Anonymous::Always, Some(certificate::Name::Uri)), (web, None));
        // It names nobody: that is a failed proof, not an absent one.
        assert_eq!(mtls(Anonymous::Always, Some(certificate::Name::Host)), (None, None));
        // It was asked for by the listener alone, and no key is taken either.
        let nobody = Some(ANONYMOUS.to_owned());
        assert_eq!(mtls(Anonymous::Always, None), (nobody.clone(), nobody));
    }

    #[test]
    fn a_missing_key_file_is_an_error() {
        let settings = Settings { keys: Some("/nonexistent/keys.yaml".into()), ..Settings::default() };
        assert!(Authenticator::new(&settings).unwrap_err().to_string().contains("/nonexistent/keys.yaml"));
    }
}

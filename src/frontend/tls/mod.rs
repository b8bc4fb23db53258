//! rustls configuration: certificates by server name, client certificates, ALPN, reload.
//!
//! TLS 1.2 and 1.3. Session tickets have keys that live in memory and rotate, and that end with the certificates that they
//! were made under: a session that was resumed is not asked for its certificate again, so none may survive the list of
//! authorities that it was checked against.

mod holder;
mod server;

use crate::call::Certificate;
use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use server::Certificates;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What a listener speaks below TLS, in its order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 and HTTP/1.1 (contract 00 section 4).
    Both,
    /// HTTP/1.1, as the admin listener does.
    Http1,
}

/// Certificates of a listener, and whom it asks for theirs (`listen[].tls`, `admin.tls`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// One at least. Clients that name no server, or one that none is for, get the first.
    pub certificates: Vec<Pair>,
    /// Absent: clients are not asked for a certificate.
    pub clients: Option<Clients>,
}

/// A certificate chain with its key, both PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Whose certificates are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Authorities that may have signed them, a PEM file.
    pub ca: PathBuf,
    /// Whether there is no connection without one.
    pub required: bool,
}

/// How a listener speaks TLS. Cloning shares it.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    settings: Settings,
    speaks: Speaks,
    current: ArcSwap<ServerConfig>,
}

/// Why a listener cannot speak TLS, in words for operators; names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

// === impl Settings ===

impl Settings {
    /// Every file that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let pairs = self.certificates.iter().flat_map(|pair| [&*pair.certificate, &*pair.key]);
        pairs.chain(self.clients.iter().map(|clients| &*clients.ca))
    }
}

// === impl Tls ===

impl Tls {
    /// Reads all the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file that is missing, empty, broken or does not belong to the other.
    pub fn new(settings: Settings, speaks: Speaks) -> Result<Self, TlsError> {
        let current = ArcSwap::from(config(&settings, speaks)?);
        Ok(Self(Arc::new(Inner { settings, speaks, current })))
    }

    /// Reads all the files again, for handshakes from now on. Connections that are open stay as they are.
    ///
    /// # Errors
    ///
    /// As [`Tls::new`]; what was before stays in force.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.0.current.store(config(&self.0.settings, self.0.speaks)?);
        Ok(())
    }

    /// What it was made of.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What does the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.current.load_full())
    }
}

/// What the client certificate of a connection says of its holder, if it was shown one.
pub fn shown<S>(stream: &TlsStream<S>) -> Option<Certificate> {
    let chain = stream.get_ref().1.peer_certificates()?;
    holder::certificate(chain.first()?)
}

fn config(settings: &Settings, speaks: Speaks) -> Result<Arc<ServerConfig>, TlsError> {
    // Named, not the process's default: another crate of the process may have installed a different one.
    let provider = Arc::new(ring::default_provider());
    let pairs = settings.certificates.iter().map(|pair| certified(pair, &provider));
    let certificates = Certificates::new(pairs.collect::<Result<_, _>>()?);
    let other = |error: rustls::Error| TlsError(format!("TLS cannot be set up: {error}"));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(other)?;
    let builder = match &settings.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(verifier(clients, &provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = match speaks {
        Speaks::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Speaks::Http1 => vec![b"http/1.1".to_vec()],
    };
    config.ticketer = ring::Ticketer::new().map_err(other)?;
    Ok(Arc::new(config))
}

fn certified(pair: &Pair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_certificates(&pair.certificate)?;
    let secret =
        PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| TlsError::reading("private key", &pair.key, &error))?;
    let certified = CertifiedKey::from_der(chain, secret, provider).map_err(|error| {
        let (certificate, key) = (pair.certificate.display(), pair.key.display());
        TlsError(format!("certificate `{certificate}` and private key `{key}` cannot be used: {error}"))
    })?;
    Ok(Arc::new(certified))
}

fn verifier(clients: &Clients, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let wrong = |error: &dyn fmt::Display| TlsError(format!("`{}` cannot be used: {error}", clients.ca.display()));
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&clients.ca)? {
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if clients.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| wrong(&error))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(TlsError::reading("certificate", path, &pem::Error::NoItemsFound))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(TlsError::reading("certificate", path, &error)),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

// === impl TlsError ===

impl TlsError {
    fn reading(what: &str, path: &Path, error: &pem::Error) -> Self {
        let path = path.display();
        Self(match error {
            pem::Error::Io(error) => format!("cannot read {what} `{path}`: {error}"),
            pem::Error::NoItemsFound => format!("`{path}` holds no {what}, expected PEM"),
            // Of a private key not even the line that is wrong is quoted.
            _ if what == "private key" => format!("`{path}` is no {what} in PEM"),
            other => format!("`{path}` is no {what} in PEM: {other}"),
        })
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

#[cfg(test)]
mod tests;

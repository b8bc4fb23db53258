//! Who vouches for a server that this program connects to: that of an issuer of tokens, or a Redis.
//!
//! With rustls and `ring`, as the listeners; certificates are always verified, and there is no way to say otherwise.

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Who vouches for a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The authorities that the system trusts (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or where systems keep them).
    #[default]
    System,
    /// Those of a PEM file.
    Only(PathBuf),
}

/// Why nobody can be trusted, in words for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustError(String);

// === impl Trust ===

impl Trust {
    /// A client that trusts them. Reads files: what was changed in them counts from now on.
    ///
    /// # Errors
    ///
    /// [`TrustError`] names the file.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TrustError> {
        let roots = match self {
            Self::System => {
                let (mut roots, found) = (RootCertStore::empty(), rustls_native_certs::load_native_certs());
                if roots.add_parsable_certificates(found.certs).0 == 0 {
                    return Err(TrustError("the system trusts no authority; name one with `ca`".into()));
                }
                roots
            }
            Self::Only(path) => authorities(path)?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| TrustError(error.to_string()))?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    /// Whether the file that it names, if it names one, holds authorities. The system is not asked.
    ///
    /// # Errors
    ///
    /// [`TrustError`] names the file.
    pub fn check(&self) -> Result<(), TrustError> {
        match self {
            Self::System => Ok(()),
            Self::Only(path) => authorities(path).map(drop),
        }
    }
}

/// The authorities in a PEM file.
fn authorities(path: &Path) -> Result<RootCertStore, TrustError> {
    let wrong = |error: &dyn fmt::Display| TrustError(format!("{}: {error}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() { Err(wrong(&"it holds no certificate, expected PEM")) } else { Ok(roots) }
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TrustError {}

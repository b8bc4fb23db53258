//! rustls configuration, ALPN, reload.
//!
//! One certificate per listener for now. TLS 1.2 and 1.3, with session tickets whose keys live in memory and rotate.

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use std::{fmt, path::Path, sync::Arc};
use tokio_rustls::TlsAcceptor;

/// What we speak, in our order of preference (contract 00 section 4).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How a listener speaks TLS. Cloning shares it.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// Why a listener cannot speak TLS, in words for operators; names the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl Tls {
    /// Reads the certificate chain (leaf first) and its key from PEM files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file that is missing, empty, broken or does not belong to the other.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| TlsError::reading("certificate", certificate, &error))?;
        if chain.is_empty() {
            return Err(TlsError::reading("certificate", certificate, &pem::Error::NoItemsFound));
        }
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::reading("private key", key, &error))?;
        Self::new(chain, secret).map_err(|error| {
            let (certificate, key) = (certificate.display(), key.display());
            TlsError(format!("certificate `{certificate}` and private key `{key}` cannot be used: {error}"))
        })
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, rustls::Error> {
        // Named, not the process's default: another crate of the process may have installed a different one.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl TlsError {
    fn reading(what: &str, path: &Path, error: &pem::Error) -> Self {
        let path = path.display();
        Self(match error {
            pem::Error::Io(error) => format!("cannot read {what} `{path}`: {error}"),
            pem::Error::NoItemsFound => format!("`{path}` holds no {what}, expected PEM"),
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
mod tests {
    use super::*;
    use std::fs;

    fn pair(folder: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    #[test]
    fn a_pair_of_files_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = pair(folder.path(), "server");
        assert!(Tls::from_files(&certificate, &key).is_ok());
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = pair(folder.path(), "server");
        let (_, other) = pair(folder.path(), "other");
        let missing = folder.path().join("missing.pem");
        let error = |certificate: &Path, key: &Path| Tls::from_files(certificate, key).unwrap_err().to_string();
        assert!(
            error(&missing, &key).contains("cannot read certificate") && error(&missing, &key).contains("missing.pem")
        );
        assert!(error(&certificate, &missing).contains("cannot read private key"));
        assert!(error(&key, &key).contains("holds no certificate"));
        assert!(error(&certificate, &certificate).contains("holds no private key"));
        assert!(error(&certificate, &other).contains("cannot be used"));
    }
}

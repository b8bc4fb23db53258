//! An authority that signs certificates, and a way to show one: whoever connects to it speaks clear text, and reaches the
//! gateway over TLS. So every client of these tests can have a certificate.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub struct Issued {
    pub certificate: CertificateDer<'static>,
    pub pem: String,
    key: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn write(&self, path: &Path) {
        fs::write(path, self.0.pem()).unwrap();
    }

    fn issue(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let issuer: &Issuer<'_, KeyPair> = &self.0;
        let made = params.signed_by(&key, issuer).unwrap();
        Issued { certificate: made.der().clone(), pem: made.pem(), key }
    }

    /// For a server of these names.
    pub fn server(&self, names: &[&str]) -> Issued {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        self.issue(&CertificateParams::new(names).unwrap())
    }

    /// For a client with this URI, until `until`.
    pub fn client(&self, uri: &str, until: Option<SystemTime>) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        if let Some(until) = until {
            params.not_after = until.into();
        }
        self.issue(&params)
    }

    /// A connection to `address` as `name`, showing `shown`.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        shown: Option<&Issued>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some(shown) => {
                let key = PrivateKeyDer::try_from(shown.key.serialize_der()).unwrap();
                config.with_client_auth_cert(vec![shown.certificate.clone()], key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
    }

    /// Where one speaks clear text to reach `address` over TLS, showing `shown`.
    pub async fn tunnel(self: &Arc<Self>, address: SocketAddr, shown: Option<Issued>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (local, authority, shown) = (listener.local_addr().unwrap(), Arc::clone(self), Arc::new(shown));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (authority, shown) = (Arc::clone(&authority), Arc::clone(&shown));
                tokio::spawn(async move {
                    if let Ok(mut far) = authority.connect(address, "localhost", (*shown).as_ref()).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        local
    }
}

impl Issued {
    /// As the files `NAME.pem` and `NAME.key`.
    pub fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.key")), self.key.serialize_pem()).unwrap();
        fs::write(folder.join(format!("{name}.pem")), &self.pem).unwrap();
    }
}

//! Certificates, good and bad, and their exchange while connections are made.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, pki_types::ServerName};
use std::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsConnector, client};

fn pair(folder: &Path, name: &str) -> Pair {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pair = Pair { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    fs::write(&pair.certificate, made.cert.pem()).unwrap();
    fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
    pair
}

fn alone(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
    let pair = Pair { certificate: certificate.to_owned(), key: key.to_owned() };
    Tls::new(Settings { certificates: vec![pair], clients: None }, Speaks::Both)
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn write(&self, path: &Path) {
        fs::write(path, self.0.pem()).unwrap();
    }

    fn issue(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let issuer: &Issuer<'_, KeyPair> = &self.0;
        let made = CertificateParams::new(vec!["web.example".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
        (made.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

/// A handshake over memory: the client's end, and what the server found.
async fn shake(
    tls: &Tls,
    shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> (std::io::Result<client::TlsStream<DuplexStream>>, std::io::Result<usize>) {
    let mut roots = RootCertStore::empty();
    for path in tls.settings().certificates.iter().map(|pair| &pair.certificate) {
        roots.add(read_certificates(path).unwrap().remove(0)).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => config.with_no_client_auth(),
    };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let acceptor = tls.acceptor();
    let served = tokio::spawn(async move {
        let mut stream = acceptor.accept(theirs).await?;
        let shown = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        Ok(shown)
    });
    let name = ServerName::try_from("localhost").unwrap();
    let client = TlsConnector::from(Arc::new(config)).connect(name, ours).await;
    (client, served.await.unwrap())
}

#[test]
fn a_pair_of_files_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let pair = pair(folder.path(), "server");
    assert!(alone(&pair.certificate, &pair.key).is_ok());
}

#[test]
fn what_is_wrong_is_said_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let Pair { certificate, key } = pair(folder.path(), "server");
    let other = pair(folder.path(), "other").key;
    let missing = folder.path().join("missing.pem");
    let error = |certificate: &Path, key: &Path| alone(certificate, key).unwrap_err().to_string();
    assert!(error(&missing, &key).contains("cannot read certificate") && error(&missing, &key).contains("missing.pem"));
    assert!(error(&certificate, &missing).contains("cannot read private key"));
    assert!(error(&key, &key).contains("holds no certificate"));
    assert!(error(&certificate, &certificate).contains("holds no private key"));
    assert!(error(&certificate, &other).contains("cannot be used"));
    let clients = Some(Clients { ca: key.clone(), required: true });
    let settings = Settings { certificates: vec![Pair { certificate, key }], clients };
    assert!(Tls::new(settings, Speaks::Both).unwrap_err().to_string().contains("holds no certificate"));
}

#[tokio::test]
async fn what_was_read_again_counts_from_the_next_handshake_on() {
    let folder = tempfile::tempdir().unwrap();
    let first = pair(folder.path(), "server");
    let tls = alone(&first.certificate, &first.key).unwrap();
    let old = read_certificates(&first.certificate).unwrap();
    let (open, _) = shake(&tls, None).await;
    let mut open = open.unwrap();
    assert_eq!(open.get_ref().1.peer_certificates().unwrap(), old);

    pair(folder.path(), "server");
    tls.reload().unwrap();
    let (next, _) = shake(&tls, None).await;
    assert_ne!(next.unwrap().get_ref().1.peer_certificates().unwrap(), old);
    let mut said = String::new();
    open.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello", "the connection that was open is none the worse");

    fs::write(&first.key, "nonsense").unwrap();
    assert!(tls.reload().is_err());
    assert_eq!(tls.acceptor().config().alpn_protocols.len(), 2, "what was before stays");
}

#[tokio::test]
async fn a_client_certificate_is_asked_for_and_its_authority_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, ours, foreign) = (folder.path().join("ca.pem"), Authority::new(), Authority::new());
    ours.write(&ca);
    let settings = |required| Settings {
        certificates: vec![pair(folder.path(), "server")],
        clients: Some(Clients { ca: ca.clone(), required }),
    };
    for (required, without) in [(true, None), (false, Some(0))] {
        let tls = Tls::new(settings(required), Speaks::Both).unwrap();
        assert_eq!(shake(&tls, Some(ours.issue())).await.1.unwrap(), 1);
        assert!(shake(&tls, Some(foreign.issue())).await.1.is_err(), "optional is not careless");
        assert_eq!(shake(&tls, None).await.1.ok(), without);
    }
    // The authority changes while the listener runs.
    let tls = Tls::new(settings(true), Speaks::Both).unwrap();
    foreign.write(&ca);
    tls.reload().unwrap();
    assert!(shake(&tls, Some(ours.issue())).await.1.is_err());
    assert_eq!(shake(&tls, Some(foreign.issue())).await.1.unwrap(), 1);
}

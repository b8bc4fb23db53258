//! Keys that are fetched, from servers that a test makes up.

use super::*;
use std::sync::{Mutex, atomic::AtomicUsize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A server that answers every request with what it is told to.
struct Server {
    url: http::Uri,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

impl Server {
    async fn new(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks?x=1", listener.local_addr().unwrap()).parse().unwrap();
        let server = Self { url, answer: Arc::new(Mutex::new(answer)), asked: Arc::default() };
        let (answer, asked) = (Arc::clone(&server.answer), Arc::clone(&server.asked));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                asked.fetch_add(1, Ordering::SeqCst);
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /jwks?x=1 HTTP/1.1\r\n"));
                let answer = answer.lock().unwrap().clone();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        server
    }

    fn tokens(&self, refresh: Duration) -> Arc<Tokens> {
        let keys = Keys::Url { url: self.url.clone(), trust: Trust::System, refresh };
        Arc::new(tokens(issuer(keys, &[Algorithm::EdDsa])).unwrap())
    }

    fn says(&self, answer: String) {
        *self.answer.lock().unwrap() = answer;
    }
}

#[tokio::test]
async fn keys_are_fetched_and_an_answer_of_another_kind_changes_nothing() {
    let signer = Signer::new("a");
    let server = Server::new(ok(&set(&[&signer]))).await;
    let tokens = server.tokens(Duration::from_secs(300));
    let token = signer.sign(&claims());
    assert!(tokens.verify(&token, at(NOW)).is_none());
    tokens.fetch().await;
    assert!(tokens.verify(&token, at(NOW)).is_some());
    for answer in [
        ok("{}"),
        ok(&"x".repeat(300_000)),
        format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", server.url),
        "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "nonsense\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{}".to_owned(),
    ] {
        server.says(answer.clone());
        tokens.fetch().await;
        assert!(tokens.verify(&token, at(NOW)).is_some(), "{answer:.60}");
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 7, "a redirect is not followed");
}

#[tokio::test]
async fn a_key_that_is_not_known_is_looked_for_and_strangers_cannot_hurry() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let server = Server::new(ok(&set(&[&old]))).await;
    let gap = Duration::from_millis(200);
    let tokens = server.tokens(gap);
    tokens.fetch().await;
    let keeping = Arc::clone(&tokens);
    let task = tokio::spawn(async move { match keeping.keep_fetching().await {} });
    server.says(ok(&set(&[&old, &new])));
    let (started, token) = (std::time::Instant::now(), new.sign(&claims()));
    while tokens.verify(&token, at(NOW)).is_none() {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A look for it with every call, and one fetch in each gap at most.
    let gaps = usize::try_from(started.elapsed().as_millis() / gap.as_millis()).unwrap();
    assert!(server.asked.load(Ordering::SeqCst) <= 2 + gaps, "{gaps}");
    task.abort();
}

#[tokio::test]
async fn a_server_is_trusted_if_its_authority_is() {
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: http::Uri = format!("https://localhost:{}/jwks", listener.local_addr().unwrap().port()).parse().unwrap();
    let signer = Signer::new("a");
    let answer = ok(&set(&[&signer]));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    assert!(fetch::get(&url, &Trust::Only(ca)).await.is_ok());
    assert!(fetch::get(&url, &Trust::System).await.is_err());
}

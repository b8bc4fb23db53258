//! `/livez`, `/readyz` and `/metrics` on a listener of their own.
//!
//! Outside the stack on purpose (architecture section 3, invariant 3): they read one value or one
//! page, and must answer when every slot is taken.

use crate::{
    call::Readiness,
    model::{Repository, State},
    telemetry::metrics::{Metrics, page::Format},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io::Write, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// Open connections at once: probes and scrapers, never clients.
const CONNECTIONS: usize = 64;
/// Time for a request's head.
const HEADER: Duration = Duration::from_secs(10);
/// Time for a whole connection, which is one request: who does not read the answer must not keep a slot.
const CONNECTION: Duration = Duration::from_secs(30);

/// What the admin listener shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// What `/livez` and `/readyz` answer.
    pub readiness: Readiness,
    /// What `/metrics` renders.
    pub metrics: Arc<Metrics>,
    /// Whose failures `/readyz` names.
    pub repository: Arc<Repository>,
}

impl Admin {
    /// Serves until the future is dropped.
    pub async fn serve(self, listener: TcpListener) {
        self.serve_at_once(listener, CONNECTIONS).await;
    }

    async fn serve_at_once(self, listener: TcpListener, connections: usize) {
        let slots = Arc::new(tokio::sync::Semaphore::new(connections));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = admin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                match tokio::time::timeout(CONNECTION, connection).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "admin connection ended"),
                    Err(_) => tracing::debug!("admin connection took too long"),
                }
                drop(slot);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/livez" | "/readyz" | "/metrics") {
            return plain(StatusCode::NOT_FOUND, "not found, expected /livez, /readyz or /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed, expected GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match path {
            "/livez" if self.readiness.is_live() => plain(StatusCode::OK, "live\n"),
            "/livez" => plain(StatusCode::SERVICE_UNAVAILABLE, "broken\n"),
            "/readyz" if self.readiness.is_ready() => plain(StatusCode::OK, self.with_failures("ready")),
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, self.with_failures(self.readiness.reason())),
            _ => self.page(request.headers()),
        }
    }

    /// The page of metrics, as the reader takes it (contract 09 section 1).
    fn page(&self, asked: &HeaderMap) -> Response<Full<Bytes>> {
        let accept = |name| asked.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let format = Format::accepted(&accept(ACCEPT).collect::<Vec<_>>());
        let page = self.metrics.page(format);
        let takes_gzip = |range: &str| {
            let (coding, weight) = range.split_once(';').unwrap_or((range, "q=1"));
            let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.));
            matches!(coding.trim(), "gzip" | "*") && !refused
        };
        let packed = accept(ACCEPT_ENCODING).flat_map(|value| value.split(',')).any(takes_gzip).then(|| gzip(&page));
        let is_packed = packed.is_some();
        let mut response = Response::new(Full::from(packed.unwrap_or_else(|| page.into_bytes())));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if is_packed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    /// The word, and a line for each model that is not served. This listener is for operators: they read why.
    fn with_failures(&self, word: &str) -> String {
        let mut text = format!("{word}\n");
        for (name, version, state) in self.repository.states() {
            if let State::Failed(reason) = state {
                text.push_str(&format!("not served: {name}/{version}: {reason}\n"));
            }
        }
        text
    }
}

fn gzip(page: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(page.len() / 8), Compression::fast());
    // Writing into memory cannot fail.
    let _ = encoder.write_all(page.as_bytes());
    encoder.finish().unwrap_or_default()
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::Instant,
    };

    const PROBE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn admin(metrics: Metrics) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let repository = Arc::default();
        let admin = Admin { readiness: Readiness::default(), metrics: Arc::new(metrics), repository };
        tokio::spawn(admin.serve_at_once(listener, 1));
        address
    }

    async fn probe(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PROBE).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_connection_is_one_request() {
        let answer = probe(admin(Metrics::new()).await).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("live\n"), "{answer}");
    }

    #[tokio::test]
    async fn who_does_not_read_loses_its_slot() {
        let metrics = Metrics::new();
        // A page that fits into no socket's buffers.
        for policy in 0..100_000 {
            metrics.rate_limited(&format!("a-policy-with-a-name-that-is-long-enough-to-fill-a-page-{policy:0>64}"));
        }
        let address = admin(metrics).await;
        let mut stalled = TcpStream::connect(address).await.unwrap();
        stalled.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // The answer has begun, so the one slot is taken.
        stalled.readable().await.unwrap();
        tokio::time::pause();
        let started = Instant::now();
        assert!(probe(address).await.starts_with("HTTP/1.1 200"));
        assert!(started.elapsed() <= CONNECTION + Duration::from_secs(1));
    }
}

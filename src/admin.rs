//! `/livez`, `/readyz` and `/metrics` on a listener of their own.
//!
//! Outside the stack on purpose (architecture section 3, invariant 3): they read one value or one
//! page, and must answer when every slot is taken. Whatever else is asked of this listener, the stack is asked first whether
//! its sender may manage the server: who may not does not learn what there is (attack I12).

use crate::{
    call::{Call, CallId, Head, Intent, Manage, Operation, Peer, Pending, Readiness, Surface},
    error::Error,
    frontend::{
        Connection, Frontend, Surfaces, head, rest,
        tls::{self, Tls},
    },
    model::{Repository, State},
    telemetry::metrics::{Metrics, page::Format},
    wire::problem,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY,
        WWW_AUTHENTICATE,
    },
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io::Write, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

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
    /// Who is asked about everything else.
    pub frontend: Arc<ArcSwap<Frontend>>,
}

impl Admin {
    /// Serves until the future is dropped.
    pub async fn serve(self, listener: TcpListener, tls: Option<Tls>) {
        self.serve_at_once(listener, tls, CONNECTIONS).await;
    }

    async fn serve_at_once(self, listener: TcpListener, tls: Option<Tls>, connections: usize) {
        let slots = Arc::new(tokio::sync::Semaphore::new(connections));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (stream, mut peer) = match listener.accept().await {
                Ok((stream, remote)) => {
                    // A connection that has no address of ours is gone, and nobody hears what it is told.
                    let local = stream.local_addr().unwrap_or(remote);
                    (stream, Peer { tls: tls.is_some(), ..Peer::new(remote, local) })
                }
                Err(error) => {
                    tracing::warn!(%error, "admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admin = self.clone();
            let acceptor = tls.as_ref().map(Tls::acceptor);
            tokio::spawn(async move {
                let connection = async {
                    match acceptor {
                        None => admin.connection(stream, peer).await,
                        // It has the time of a head to begin: a head is what has to follow.
                        Some(acceptor) => match tokio::time::timeout(HEADER, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => {
                                peer.certificate = tls::shown(&stream).map(Arc::new);
                                admin.connection(stream, peer).await;
                            }
                            Ok(Err(error)) => tracing::debug!(%error, "an admin connection did not begin"),
                            Err(_) => tracing::debug!("an admin connection did not begin in time"),
                        },
                    }
                };
                if tokio::time::timeout(CONNECTION, connection).await.is_err() {
                    tracing::debug!("admin connection took too long");
                }
                drop(slot);
            });
        }
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer) {
        let connection = Connection::new(self.frontend.load_full(), Arc::new(peer), Surfaces::NONE);
        let shared = Arc::new((self, connection));
        let service = service_fn(move |request: Request<Incoming>| {
            let shared = Arc::clone(&shared);
            async move {
                let (admin, connection) = &*shared;
                Ok::<_, Infallible>(admin.answer(connection, &request).await)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin connection ended");
        }
    }

    async fn answer(&self, connection: &Connection, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/livez" | "/readyz" | "/metrics") {
            let id = head::call_id(request.headers());
            let client = connection.of_client(&head::Fields::of(request.headers()), request.headers());
            let connection = client.as_ref().unwrap_or(connection);
            if let Err(error) = may_manage(connection, request, id.clone()).await {
                return refusal(&error, &id, path);
            }
            return plain(StatusCode::NOT_FOUND, "not found, expected /livez, /readyz or /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed, expected GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match path {
            "/livez" if self.readiness.is_live() => plain(StatusCode::OK, "live\n"),
            "/livez" => unavailable(format!("{}\n", self.readiness.reason())),
            "/readyz" if self.readiness.is_ready() => plain(StatusCode::OK, self.with_failures("ready")),
            "/readyz" => unavailable(self.with_failures(&self.readiness.reason_in_full())),
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

/// Whether the sender of `request` may manage the server, by the same stack that every call goes through.
async fn may_manage(connection: &Connection, request: &Request<Incoming>, id: CallId) -> Result<(), Error> {
    connection.gate()?;
    let head = Head::new(id, Surface::Rest, Intent::Manage, Arc::clone(&connection.peer));
    let sender = head::credentials(request.headers());
    let input = Pending::ready(Operation::Manage(Manage::Nothing));
    let asked = connection.frontend.gateway.call(Call { head, sender, input }).await;
    asked.map(drop).inspect_err(|error| connection.observe(error))
}

/// Problem details (contract 10 section 3).
fn refusal(error: &Error, id: &CallId, path: &str) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(error.code().row().http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain(status, problem::encode(error, status.as_u16(), id, path));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = error.retry_after() {
        rest::retry_after(headers, after, status == StatusCode::SERVICE_UNAVAILABLE);
    }
    response
}

fn unavailable(text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    rest::retry_after(response.headers_mut(), Duration::from_secs(1), true);
    response
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
        let frontend = Arc::new(ArcSwap::new(Arc::clone(&crate::frontend::testing::connection().frontend)));
        let admin = Admin { readiness: Readiness::default(), metrics: Arc::new(metrics), repository, frontend };
        tokio::spawn(admin.serve_at_once(listener, None, 1));
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
    async fn who_is_to_come_again_is_told_when() {
        let address = admin(Metrics::new()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\r\nretry-after: "), "{answer}");
        for error in [
            Error::RateLimited { retry_after: Duration::from_millis(1_500), cap: crate::error::Cap::Address },
            Error::ShuttingDown,
        ] {
            let response = refusal(&error, &CallId::make(), "/");
            let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=2).contains(&after), "{error}: {after}");
        }
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

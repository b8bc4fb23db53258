//! `/livez`, `/readyz` and `/metrics` on a listener of their own.
//!
//! Outside the stack on purpose (architecture section 3, invariant 3): they read one value or one
//! page, and must answer when every slot is taken.

use crate::{call::Readiness, telemetry::metrics::Metrics};
use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// Open connections at once: probes and scrapers, never clients.
const CONNECTIONS: usize = 64;
/// Time for a request's head.
const HEADER: Duration = Duration::from_secs(10);
/// The content type of Prometheus text (contract 09 section 1).
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What the admin listener shows.
#[derive(Clone, Debug)]
pub struct Admin {
    /// What `/livez` and `/readyz` answer.
    pub readiness: Readiness,
    /// What `/metrics` renders.
    pub metrics: Arc<Metrics>,
}

impl Admin {
    /// Serves until the future is dropped.
    pub async fn serve(self, listener: TcpListener) {
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
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
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "admin connection ended");
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
            "/readyz" if self.readiness.is_ready() => plain(StatusCode::OK, "ready\n"),
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, self.readiness.reason()),
            _ => {
                let mut response = Response::new(Full::from(self.metrics.render()));
                response.headers_mut().insert(CONTENT_TYPE, METRICS);
                response
            }
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

//! REST: a route becomes a call, a reply becomes a response.
//!
//! Routes are matched by [`route`], bodies are `infer`'s, responses `render`'s.

mod infer;
mod render;
mod route;
#[cfg(test)]
mod tests;

pub(super) use render::{error, id_value, plain};

use super::{
    Body, Connection, head,
    http::{Request, Response},
};
use crate::{
    call::{Call, CallId, Head, Inspect, Intent, Operation, Pending, Surface},
    error::Error,
    wire::Wishes,
};
use http::{
    HeaderValue, Method, StatusCode, Version,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, UPGRADE},
};
use route::{Family, Probe, Route};
use std::sync::{Arc, OnceLock};

/// Answers one request of this surface.
pub async fn serve(connection: Arc<Connection>, request: Request) -> Response {
    let id = head::call_id(request.headers());
    let version = request.version();
    match route::find(request.method(), request.uri().path()) {
        Ok(Route::Probe(probe)) => answer_probe(probe, &connection, &request, &id),
        Ok(Route::Inspect(inspect)) => {
            call(connection, id, &request, Intent::Inspect, Pending::ready(Operation::Inspect(inspect)), None).await
        }
        Ok(Route::Infer(model)) => {
            let wishes = Arc::new(OnceLock::new());
            let (parts, body) = request.into_parts();
            let pending = infer::pending(&connection, &parts.headers, body, model, Arc::clone(&wishes));
            let request = http::Request::from_parts(parts, ());
            call(connection, id, &request, Intent::Infer, pending, Some(&wishes)).await
        }
        Ok(Route::WebSocketOnly) => {
            let error = Error::invalid("this path speaks WebSocket only, expected a request to upgrade");
            let mut response = render::family_error(Family::Problem, &error, &id, version, request.uri().path());
            *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            response
        }
        Err(miss) => render::family_error(miss.family, &miss.error, &id, version, request.uri().path()),
    }
}

/// Refuses a request before any surface has looked at it, in the form of its route's family.
pub(super) fn refuse(request: &Request, error: &Error) -> Response {
    let path = request.uri().path();
    render::family_error(Family::of(path), error, &head::call_id(request.headers()), request.version(), path)
}

async fn call<B>(
    connection: Arc<Connection>,
    id: CallId,
    request: &http::Request<B>,
    intent: Intent,
    input: Pending,
    wishes: Option<&OnceLock<Wishes>>,
) -> Response {
    let version = request.version();
    if let Err(error) = connection.gate() {
        connection.frontend.metrics.refused("address");
        return render::error(&error, &id, version);
    }
    let head = Head::new(id.clone(), Surface::Rest, intent, Arc::clone(&connection.peer));
    let sender = head::credentials(request.headers());
    let reply = connection.frontend.gateway.call(Call { head, sender, input }).await;
    let rendered = match reply {
        Ok(reply) => render::reply(reply, &id, wishes.and_then(OnceLock::get), &connection.frontend).await,
        Err(error) => Err(error),
    };
    rendered.unwrap_or_else(|error| {
        connection.observe(&error);
        let mut response = render::error(&error, &id, version);
        if matches!(error, Error::UnsupportedMedia(_)) && request.headers().contains_key(CONTENT_ENCODING) {
            response.headers_mut().insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    })
}

/// Probes take no slot and need no credentials (contract 00 section 3); they read one value.
fn answer_probe(probe: Probe, connection: &Connection, request: &Request, id: &CallId) -> Response {
    let readiness = &connection.frontend.readiness;
    let (good, body) = match probe {
        Probe::Root => (readiness.is_live(), &br#"{"status":"alive"}"#[..]),
        Probe::Live => (readiness.is_live(), &br#"{"live":true}"#[..]),
        Probe::Ready => (readiness.is_ready(), &br#"{"ready":true}"#[..]),
    };
    let mut response = if good {
        render::json(StatusCode::OK, bytes::Bytes::from_static(body), id)
    } else {
        let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, readiness.reason(), id, request.version());
        render::retry_after(response.headers_mut(), std::time::Duration::from_secs(1), true);
        response
    };
    if request.method() == Method::HEAD {
        // HTTP/2 would send the body; both versions are told its length.
        if let Body::Full(bytes) = std::mem::take(response.body_mut()) {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
    }
    response
}

/// HTTP/1 says when it ends a connection; HTTP/2 has no such header.
fn closes(version: Version) -> bool {
    version < Version::HTTP_2
}

impl From<Inspect> for Route {
    fn from(inspect: Inspect) -> Self {
        Self::Inspect(inspect)
    }
}

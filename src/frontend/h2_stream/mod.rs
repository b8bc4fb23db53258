//! NDJSON streams: `POST /v2/stream`, full duplex over one HTTP request (contract 07 section 2).
//!
//! The opening is a call ("who am I?"), and the head of the response goes out once it is answered, before any line is
//! read. The lines are a session of the duplex loop.
//!
//! Between two lines a client may be silent for as long as a call is in flight; without one, for `websocket.idle`, as on
//! a WebSocket. Within a line `timers.read_stall` runs. A stream that ends well ends with the line `done`, any other with
//! a line `error` whose `id` is `null`.

mod codec;
mod link;
#[cfg(test)]
mod tests;

use self::{codec::Protocol, link::Lines};
use super::{
    Body, Connection, Phase, Settings,
    duplex::{Beyond, Order, Rules, Session, Speaker},
    head,
    http::{Request, Response},
    rest,
};
use crate::{
    call::{Call, Head, Inspect, Intent, Operation, Pending, Route, Surface},
    error::Error,
};
use http::{
    HeaderValue, Method, Version,
    header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, TRAILER},
};
use std::sync::Arc;

/// The media type of lines of JSON.
const LINES: &str = "application/x-ndjson";
/// The trailer that repeats how the stream ended.
const STATUS: &str = "x-stream-status";

/// Answers one request of this surface. A refusal is ordinary HTTP with problem details.
pub async fn serve(connection: Arc<Connection>, request: Request) -> Response {
    let id = head::call_id(request.headers());
    let sender = head::credentials(request.headers());
    let context = head::context(request.headers());
    let steered = connection.steered(request.headers());
    let opened = match check(&connection, &request) {
        Ok(()) => {
            let head = Head::new(id.clone(), Surface::H2Stream, Intent::Inspect, Arc::clone(&connection.peer));
            let head = head.at(Route::Lines).part_of(context);
            let facts = Arc::clone(&head.facts);
            let input = Pending::ready(Operation::Inspect(Inspect::Session));
            connection.frontend.gateway.call(Call { head, sender: sender.clone(), input }).await.map(|_| facts)
        }
        Err(error) => Err(error),
    };
    let facts = match opened {
        Ok(facts) => facts,
        Err(error) => {
            connection.observe(&error);
            return rest::refuse(&request, &error);
        }
    };

    let version = request.version();
    let rules = rules(&connection.frontend.settings, is_ordered(&request));
    let limit = connection.frontend.settings.size.message;
    let (link, receiver) = Lines::new(request.into_body(), limit, connection.frontend.memory.for_arrivals());
    let codec = Protocol::new(Arc::clone(&connection), context);
    let speaker = Speaker::proven(sender, facts).steered(steered);
    tokio::spawn(Session::new(connection, rules, speaker, codec, link).run());

    let mut response = Response::new(Body::Channel(receiver));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(LINES));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert(head::REQUEST_ID, rest::id_value(&id));
    if version < Version::HTTP_2 {
        headers.insert(TRAILER, HeaderValue::from_static(STATUS));
    }
    response
}

fn check(connection: &Connection, request: &Request) -> Result<(), Error> {
    connection.gate()?;
    if request.method() != Method::POST {
        return Err(Error::MethodNotAllowed { allow: "POST" });
    }
    let headers = request.headers();
    let kind = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let end = kind.iter().position(|byte| *byte == b';').unwrap_or(kind.len());
    if !kind[..end].trim_ascii().eq_ignore_ascii_case(LINES.as_bytes()) {
        let found = kind.escape_ascii();
        return Err(Error::UnsupportedMedia(
            format!("content type `{found}` is not supported, expected `{LINES}`").into(),
        ));
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Error::UnsupportedMedia("a stream with a content encoding is not supported".into()));
    }
    match *connection.frontend.phase.borrow() {
        Phase::Serving => Ok(()),
        Phase::Draining { .. } | Phase::Stopping => Err(Error::ShuttingDown),
    }
}

fn is_ordered(request: &Request) -> bool {
    request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .any(|pair| matches!(pair, "ordered=true" | "ordered=1" | "ordered"))
}

fn rules(settings: &Settings, ordered: bool) -> Rules {
    Rules {
        surface: Surface::H2Stream,
        route: Route::Lines,
        in_flight: settings.concurrency.per_socket,
        beyond: Beyond::Wait,
        order: if ordered { Order::All } else { Order::Any },
        send_messages: settings.websocket.send_messages,
        send_bytes: settings.http2.stream_buffer,
        write_stall: settings.timers.write_stall,
        patient: true,
    }
}

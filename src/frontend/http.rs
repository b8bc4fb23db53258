//! One hyper service per connection: which surface is this?
//!
//! Looks at heads only and in the order of contract 00 section 4. What makes an HTTP request unsound whatever it asks
//! for (its size, its authority) is refused here, before any surface sees it.

mod compression;
mod cors;
mod exchange;

use super::{
    Body, Connection,
    accept::{Hold, InFlight},
    body::Coding,
    grpc, h2_stream,
    head::{self, Fields, Single},
    rest, websocket,
};
use crate::{
    call::{CallId, Surface},
    error::Error,
};
use exchange::{Answering, Exchange};
use futures_util::{FutureExt, future::BoxFuture};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
};
use http_body::Body as _;
use hyper::{body::Incoming, ext::Protocol};
use std::sync::Arc;

/// A request as hyper gives it.
pub type Request = http::Request<Incoming>;
/// A response as hyper takes it.
pub type Response = http::Response<Body>;

/// Path of the surface `h2_stream`.
const STREAM: &str = "/v2/stream";
/// The one protocol that a connection or a stream can be upgraded to.
const WEBSOCKET: &str = "websocket";
/// Bytes of a request line besides its target: the longest method we know, two spaces, the version, the line's end.
const LINE_REST: usize = 24;

/// Bytes that a host may have. A table, because this is asked of every byte of every request.
const IN_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = !matches!(
            byte,
            b'/' | b'?' | b'#' | b'@' | b'\\' | b',' | b'"' | b'<' | b'>' | b'{' | b'}' | b'|' | b'^' | b'`'
        );
        byte += 1;
    }
    table
};

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    GrpcWeb,
    Grpc,
    WebSocket,
    Stream,
    Rest,
}

/// Answers one request; always with a response. When the process stops, what is not answered yet is `not_ready`.
///
/// No `async fn` down to the call itself: each would keep the request twice. What is returned is boxed once, because hyper
/// and the connection's task move it several times before its first poll.
pub(super) fn answer(connection: Arc<Connection>, in_flight: InFlight, request: Request, piece: usize) -> Answering {
    let (parts, body) = request.into_parts();
    let request = http::Request::from_parts(parts, ());
    let fields = Fields::of(request.headers());
    let connection = connection.of_client(&fields, request.headers()).map_or(connection, Arc::new);
    let asked = Asked {
        target: Target::of(&request, &fields),
        version: request.version(),
        head_only: *request.method() == Method::HEAD,
        id: fields.request_id.cloned(),
    };
    let (hold, over) = match asked.target {
        Target::WebSocket if asked.version >= Version::HTTP_2 => {
            let (hold, over) = Hold::new(in_flight.activity().begin());
            (Some(hold), Some(over))
        }
        _ => (None, None),
    };
    let target = asked.target;
    let exchange = Exchange { asked, in_flight, piece, over };
    if let Some(refused) = refusal(&connection, target, &request, &fields, &body) {
        return exchange.answered_by(std::future::ready(refused));
    }
    if fields.origin && cors::concerns(&connection, target) {
        return exchange.answered_by(cors::serve(connection, target, request.map(|()| body)));
    }
    match target {
        Target::Rest => match coding_of_answer(&connection, &request, &fields) {
            None => exchange.answered_by(rest::serve(connection, &request, &fields, body)),
            Some(coding) => exchange.answered_by(coded(rest::serve(connection, &request, &fields, body), coding)),
        },
        Target::Grpc if grpc::is_infer(&request, &fields) => {
            exchange.answered_by(grpc::infer(connection, &fields, body))
        }
        Target::Grpc => exchange.answered_by(grpc::serve(connection, request.map(|()| body))),
        Target::GrpcWeb => exchange.answered_by(grpc::serve_web(connection, request.map(|()| body))),
        Target::WebSocket => exchange.answered_by(websocket::serve(connection, request.map(|()| body), hold)),
        Target::Stream => exchange.answered_by(h2_stream::serve(connection, request.map(|()| body))),
    }
}

/// What the answer to a stopped request needs to know of it.
struct Asked {
    target: Target,
    version: Version,
    head_only: bool,
    id: Option<HeaderValue>,
}

impl Asked {
    /// The answer to a HEAD says how long its body would be and has none. hyper sees to that on HTTP/1.1 only.
    fn of_method(&self, mut response: Response) -> Response {
        if self.head_only {
            let body = std::mem::take(response.body_mut());
            if let Some(length) = body.size_hint().exact() {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
        }
        response
    }

    /// The answer to what was running, or came, when the process stopped (contract 07 section 5).
    fn stopping(&self) -> Response {
        let id = CallId::from_client(self.id.as_ref().and_then(|id| id.to_str().ok()));
        match self.target {
            Target::Grpc => grpc::refuse(&id, &Error::ShuttingDown),
            Target::GrpcWeb => grpc::refuse_web(&id, &Error::ShuttingDown),
            Target::WebSocket | Target::Stream | Target::Rest => rest::error(&Error::ShuttingDown, &id, self.version),
        }
    }
}

/// What is said to a request that no surface gets to see.
fn refusal(
    connection: &Connection,
    target: Target,
    request: &http::Request<()>,
    fields: &Fields<'_>,
    body: &Incoming,
) -> Option<Response> {
    if let Err(unsound) = check(connection, request, fields, body) {
        connection.frontend.metrics.refused("malformed");
        return Some(unsound.render(request));
    }
    // Whether it is served here or not: only HTTP/2 has the trailers in which gRPC would say so.
    if target == Target::Grpc && request.version() < Version::HTTP_2 {
        let unsound = Unsound::Status(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "grpc needs HTTP/2");
        return Some(unsound.render(request));
    }
    (!connection.surfaces.has(target.surface())).then(|| not_served(target, request))
}

/// REST, in the coding that the client takes.
fn serve_rest(
    connection: Arc<Connection>,
    request: &http::Request<()>,
    fields: &Fields<'_>,
    body: Incoming,
) -> BoxFuture<'static, Response> {
    let coding = coding_of_answer(&connection, request, fields);
    let response = rest::serve(connection, request, fields, body);
    match coding {
        Some(coding) => coded(response, coding).boxed(),
        None => response.boxed(),
    }
}

/// The answer in this coding, if it has so many bytes.
async fn coded(answer: impl Future<Output = Response>, (above, coding): (usize, Coding)) -> Response {
    compression::compressed(answer.await, coding, above).await
}

/// The coding that an answer of REST may have, and above how many bytes it is worth it.
fn coding_of_answer(
    connection: &Connection,
    request: &http::Request<()>,
    fields: &Fields<'_>,
) -> Option<(usize, Coding)> {
    let above = connection.frontend.settings.rest.compress_above?;
    let coding = fields.accepted()?;
    compression::may(request.uri().path()).then_some((above, coding))
}

/// What is wrong with a head, whatever it asks for.
enum Unsound {
    /// Statuses of HTTP that have no code of ours. The connection ends: what follows could be anything.
    Status(StatusCode, &'static str),
    /// `CONNECT`, which opens tunnels elsewhere.
    Connect,
    /// `CONNECT` for a protocol that is not spoken here (RFC 8441).
    Protocol,
}

/// Refuses what no surface should see (contract 10 section 5, attacks A7, A9, A19).
fn check(
    connection: &Connection,
    request: &http::Request<()>,
    fields: &Fields<'_>,
    body: &Incoming,
) -> Result<(), Unsound> {
    let size = connection.frontend.settings.size;
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target + LINE_REST > size.request_line {
        return Err(Unsound::Status(StatusCode::URI_TOO_LONG, "the request line is longer than its limit"));
    }
    let too_large = |text| Err(Unsound::Status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text));
    if request.headers().len() > size.header_fields {
        return too_large("the request has more header fields than its limit");
    }
    if fields.size > size.headers {
        return too_large("the headers of the request are larger than their limit");
    }
    check_authority(request, fields.host).map_err(|text| Unsound::Status(StatusCode::BAD_REQUEST, text))?;
    // hyper looks at the last coding only: what it hands over would still be in the others.
    if fields.transfer {
        return Err(Unsound::Status(
            StatusCode::NOT_IMPLEMENTED,
            "the request has a transfer coding other than chunked",
        ));
    }
    if *request.method() == Method::CONNECT {
        return match request.extensions().get::<Protocol>() {
            Some(protocol) if protocol.as_str() == WEBSOCKET => Ok(()),
            Some(_) => Err(Unsound::Protocol),
            None => Err(Unsound::Connect),
        };
    }
    // Bytes behind such a head could be taken for frames by whoever is in between (attack A9).
    if fields.upgrade && !body.is_end_stream() && is_websocket(request) {
        return Err(Unsound::Status(StatusCode::BAD_REQUEST, "a request to upgrade has a body"));
    }
    Ok(())
}

impl Unsound {
    fn render(self, request: &http::Request<()>) -> Response {
        let version = request.version();
        match self {
            Self::Connect => rest::refuse(request, &Error::MethodNotAllowed { allow: "GET, POST" }),
            Self::Protocol => {
                let text = format!("a `:protocol` that is not spoken here, expected `{WEBSOCKET}`");
                rest::refuse(request, &Error::Unimplemented(text.into()))
            }
            Self::Status(status, text) => {
                let mut response = rest::plain(status, text, &head::call_id(request.headers()));
                if version < Version::HTTP_2 {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }
}

/// One authority, well-formed: two readings of it are how requests are smuggled past whoever checks the first.
fn check_authority(request: &http::Request<()>, host: Single<'_>) -> Result<(), &'static str> {
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    match (host, authority) {
        (Single::Repeated, _) => Err("the request has more than one `host`"),
        (Single::Once(host), authority) => {
            let host = host.as_bytes();
            if !host.iter().all(|byte| IN_HOST[usize::from(*byte)]) {
                return Err("the `host` of the request is malformed");
            }
            if authority.is_some_and(|authority| !authority.as_bytes().eq_ignore_ascii_case(host)) {
                return Err("the `host` of the request contradicts its target");
            }
            Ok(())
        }
        (Single::Absent, None) if request.version() == Version::HTTP_11 => Err("the request has no `host`"),
        (Single::Absent, Some(authority)) if authority.contains('@') => {
            Err("the authority of the request is malformed")
        }
        (Single::Absent, _) => Ok(()),
    }
}

fn is_websocket(request: &http::Request<()>) -> bool {
    request.version() == Version::HTTP_11
        && has_token(request.headers(), &UPGRADE, WEBSOCKET)
        && has_token(request.headers(), &CONNECTION, "upgrade")
}

fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

fn not_served(target: Target, request: &http::Request<()>) -> Response {
    match target {
        Target::Grpc | Target::GrpcWeb => {
            let error = Error::Unimplemented("grpc is not served on this address".into());
            let refuse = if target == Target::Grpc { grpc::refuse } else { grpc::refuse_web };
            refuse(&head::call_id(request.headers()), &error)
        }
        Target::WebSocket | Target::Stream | Target::Rest => {
            rest::refuse(request, &Error::NoRoute("this is not served on this address".into()))
        }
    }
}

// === impl Target ===

impl Target {
    /// In the order of contract 00 section 4.
    fn of(request: &http::Request<()>, fields: &Fields<'_>) -> Self {
        let kind = fields.content_type.map(HeaderValue::as_bytes).unwrap_or_default();
        if *request.method() == Method::CONNECT {
            // Whatever else it says: gRPC refuses with 200, which would open a tunnel.
            Self::WebSocket
        } else if begins_with(kind, b"application/grpc-web") {
            Self::GrpcWeb
        } else if begins_with(kind, b"application/grpc") {
            Self::Grpc
        } else if fields.upgrade && is_websocket(request) {
            Self::WebSocket
        } else if request.uri().path() == STREAM {
            Self::Stream
        } else {
            Self::Rest
        }
    }

    fn surface(self) -> Surface {
        match self {
            Self::GrpcWeb | Self::Grpc => Surface::Grpc,
            Self::WebSocket => Surface::WebSocket,
            Self::Stream => Surface::H2Stream,
            Self::Rest => Surface::Rest,
        }
    }
}

fn begins_with(value: &[u8], prefix: &[u8]) -> bool {
    value.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

//! One hyper service per connection: which surface is this?
//!
//! Looks at heads only and in the order of contract 00 section 4. What makes an HTTP request unsound whatever it asks
//! for (its size, its authority) is refused here, before any surface sees it.

mod compression;
mod cors;

use super::{
    Body, Connection,
    accept::{Hold, InFlight, Outgoing, opened},
    body::Coding,
    grpc, h2_stream, head, rest, websocket,
};
use crate::{
    call::{CallId, Surface},
    error::Error,
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Either},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, UPGRADE},
};
use http_body::Body as _;
use hyper::ext::Protocol;
use std::{
    convert::Infallible,
    future::{Ready, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
};

/// A request as hyper gives it.
pub type Request = http::Request<hyper::body::Incoming>;
/// A response as hyper takes it.
pub type Response = http::Response<Body>;

/// Path of the surface `h2_stream`.
const STREAM: &str = "/v2/stream";
/// The one protocol that a connection or a stream can be upgraded to.
const WEBSOCKET: &str = "websocket";
/// Bytes of a request line besides its target: the longest method we know, two spaces, the version, the line's end.
const LINE_REST: usize = 24;
/// Bytes of a header field besides its name and value, as HTTP/1.1 writes it.
const FIELD_REST: usize = 4;

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
/// No `async fn` down to the call itself: each would keep the request twice, and hyper moves the whole future.
pub(super) fn answer(
    connection: Arc<Connection>,
    in_flight: InFlight,
    request: Request,
    piece: usize,
) -> impl Future<Output = Result<http::Response<Outgoing>, Infallible>> + Send {
    let asked = Asked {
        target: Target::of(&request),
        version: request.version(),
        head_only: *request.method() == Method::HEAD,
        id: request.headers().get(head::REQUEST_ID).cloned(),
    };
    let (hold, over) = match asked.target {
        Target::WebSocket if asked.version >= Version::HTTP_2 => {
            let (hold, over) = Hold::new(in_flight.activity().begin());
            (Some(hold), Some(over))
        }
        _ => (None, None),
    };
    let mut response = dispatch(connection, asked.target, request, hold);
    if asked.version < Version::HTTP_2 {
        // Polled by the connection's own task, which is woken when the process stops: looking is enough.
        let mut in_flight = Some(in_flight);
        return Either::Left(poll_fn(move |cx| {
            let stopping = in_flight.as_ref().is_some_and(|request| request.activity().is_stopping());
            let response = if stopping { asked.stopping() } else { ready!(response.poll_unpin(cx)) };
            let in_flight = in_flight.take().expect("a future is not polled after its end");
            Poll::Ready(Ok(asked.of_method(response).map(|body| Outgoing::new(body, piece, in_flight))))
        }));
    }
    let took_back = in_flight.activity().took_back();
    Either::Right(async move {
        if took_back {
            // Perhaps this very request. hyper looks for resets only while there is no answer, and a body that had
            // come whole would be answered: nothing is begun before hyper has looked (attack A13).
            tokio::task::yield_now().await;
        }
        let activity = Arc::clone(in_flight.activity());
        let mut stopped = pin!(activity.stopped());
        let response = if activity.is_stopping() {
            asked.stopping()
        } else {
            tokio::select! {
                biased;
                response = response => response,
                () = stopped.as_mut() => asked.stopping(),
            }
        };
        if let Some(over) = over
            && response.status().is_success()
        {
            opened(over);
        }
        Ok(asked.of_method(response).map(|body| Outgoing::new(body, piece, in_flight)))
    })
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
            Target::Grpc | Target::GrpcWeb => grpc::refuse(&id, &Error::ShuttingDown),
            Target::WebSocket | Target::Stream | Target::Rest => rest::error(&Error::ShuttingDown, &id, self.version),
        }
    }
}

/// Boxed: hyper and the connection's task move a future several times before its first poll.
fn dispatch(
    connection: Arc<Connection>,
    target: Target,
    request: Request,
    hold: Option<Hold>,
) -> Either<Ready<Response>, BoxFuture<'static, Response>> {
    let now = |response| Either::Left(std::future::ready(response));
    if let Err(unsound) = check(&connection, &request) {
        connection.frontend.metrics.refused("malformed_request");
        return now(unsound.render(&request));
    }
    if !connection.surfaces.has(target.surface()) {
        return now(not_served(target, &request));
    }
    if matches!(target, Target::Rest | Target::GrpcWeb) && cors::concerns(&connection.frontend.settings.cors, &request)
    {
        let frontend = Arc::clone(&connection.frontend);
        return Either::Right(Box::pin(async move {
            // No tunnel comes by here.
            let answer = move |request| serve(connection, target, request, None);
            cors::answer(&frontend.settings.cors, request, answer).await
        }));
    }
    serve(connection, target, request, hold)
}

fn serve(
    connection: Arc<Connection>,
    target: Target,
    request: Request,
    hold: Option<Hold>,
) -> Either<Ready<Response>, BoxFuture<'static, Response>> {
    let now = |response| Either::Left(std::future::ready(response));
    match target {
        Target::Rest => match (connection.frontend.settings.rest.compress_above, Coding::accepted(request.headers())) {
            (Some(above), Some(coding)) => {
                let response = rest::serve(connection, request);
                Either::Right(Box::pin(async move { compression::compressed(response.await, coding, above).await }))
            }
            _ => Either::Right(Box::pin(rest::serve(connection, request))),
        },
        // Comes with a later issue (05); until then it says so in HTTP, where every client of it can see it.
        Target::GrpcWeb => {
            let error = Error::Unimplemented("grpc-web is not part of this version, use grpc over HTTP/2".into());
            now(rest::refuse(&request, &error))
        }
        Target::Grpc if request.version() < Version::HTTP_2 => {
            let unsound = Unsound::Status(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "grpc needs HTTP/2");
            now(unsound.render(&request))
        }
        Target::Grpc => Either::Right(Box::pin(grpc::serve(connection, request))),
        Target::WebSocket => Either::Right(Box::pin(websocket::serve(connection, request, hold))),
        Target::Stream => Either::Right(Box::pin(h2_stream::serve(connection, request))),
    }
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
fn check(connection: &Connection, request: &Request) -> Result<(), Unsound> {
    let size = connection.frontend.settings.size;
    let (uri, headers) = (request.uri(), request.headers());
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target + LINE_REST > size.request_line {
        return Err(Unsound::Status(StatusCode::URI_TOO_LONG, "the request line is longer than its limit"));
    }
    let too_large = |text| Err(Unsound::Status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text));
    if headers.len() > size.header_fields {
        return too_large("the request has more header fields than its limit");
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_REST).sum();
    if bytes > size.headers {
        return too_large("the headers of the request are larger than their limit");
    }
    check_authority(request).map_err(|text| Unsound::Status(StatusCode::BAD_REQUEST, text))?;
    if *request.method() == Method::CONNECT {
        return match request.extensions().get::<Protocol>() {
            Some(protocol) if protocol.as_str() == WEBSOCKET => Ok(()),
            Some(_) => Err(Unsound::Protocol),
            None => Err(Unsound::Connect),
        };
    }
    // Bytes behind such a head could be taken for frames by whoever is in between (attack A9).
    if headers.contains_key(UPGRADE) && !request.body().is_end_stream() && is_websocket(request) {
        return Err(Unsound::Status(StatusCode::BAD_REQUEST, "a request to upgrade has a body"));
    }
    Ok(())
}

impl Unsound {
    fn render(self, request: &Request) -> Response {
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
fn check_authority(request: &Request) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err("the request has more than one `host`");
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    match (host, authority) {
        (Some(host), authority) => {
            let host = host.as_bytes();
            if !host.iter().all(|byte| IN_HOST[usize::from(*byte)]) {
                return Err("the `host` of the request is malformed");
            }
            if authority.is_some_and(|authority| !authority.as_bytes().eq_ignore_ascii_case(host)) {
                return Err("the `host` of the request contradicts its target");
            }
            Ok(())
        }
        (None, None) if request.version() == Version::HTTP_11 => Err("the request has no `host`"),
        (None, Some(authority)) if authority.contains('@') => Err("the authority of the request is malformed"),
        (None, _) => Ok(()),
    }
}

fn is_websocket(request: &Request) -> bool {
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

fn not_served(target: Target, request: &Request) -> Response {
    match target {
        Target::Grpc | Target::GrpcWeb => {
            let error = Error::Unimplemented("grpc is not served on this address".into());
            grpc::refuse(&head::call_id(request.headers()), &error)
        }
        Target::WebSocket | Target::Stream | Target::Rest => {
            rest::refuse(request, &Error::NoRoute("this is not served on this address".into()))
        }
    }
}

// === impl Target ===

impl Target {
    /// In the order of contract 00 section 4.
    fn of(request: &Request) -> Self {
        let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if *request.method() == Method::CONNECT {
            // Whatever else it says: gRPC refuses with 200, which would open a tunnel.
            Self::WebSocket
        } else if begins_with(kind, b"application/grpc-web") {
            Self::GrpcWeb
        } else if begins_with(kind, b"application/grpc") {
            Self::Grpc
        } else if is_websocket(request) {
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

//! gRPC-Web: the same methods for pages, over HTTP/1.1 too (contract 05 section 4).
//!
//! Frames of answers are tonic-web's. What it does not do is here: base64 in pieces that were padded one by one, errors
//! inside the body, and refusals that a page can read.

use super::{Arrived, Form, refuse};
use crate::{
    call::CallId,
    error::Error,
    frontend::{
        Body, Connection,
        head::{REQUEST_ID, call_id},
        http::{Request, Response},
        rest,
    },
};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{
    HeaderValue, Method, StatusCode,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt, service_fn};

const BINARY: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
/// Clients pad each piece that they flush, or leave the padding of the last one away.
const QUADS: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Binary,
    Text,
}

/// Answers one request whose `content-type` begins with `application/grpc-web`.
pub(in crate::frontend) async fn serve(connection: Arc<Connection>, mut request: Request) -> Response {
    let id = call_id(request.headers());
    let family = match check(&connection, &request) {
        Ok(family) => family,
        Err(Refusal::Http(error)) => return rest::refuse(&request, &error),
        Err(Refusal::Type(text)) => return rest::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text, &id),
    };
    let headers = request.headers_mut();
    let answers = headers.get(ACCEPT).and_then(Family::of).unwrap_or(family);
    // To tonic-web every request is binary; `accept` says what the answers are.
    headers.insert(CONTENT_TYPE, BINARY);
    headers.insert(ACCEPT, if answers == Family::Text { TEXT } else { BINARY });
    // The encoding of single messages is not used here, whatever a proxy left in.
    let encoded =
        headers.get(CONTENT_ENCODING).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));

    let service = GrpcWebLayer::new().layer(service_fn(move |request: http::Request<tonic::body::Body>| {
        let (connection, id) = (Arc::clone(&connection), id.clone());
        async move {
            let response = if encoded {
                let error = "a gRPC-Web body cannot have a `content-encoding`, expected none";
                refuse(&id, &Error::UnsupportedMedia(error.into()))
            } else {
                let body = |body| match family {
                    Family::Binary => Arrived::Web(body),
                    Family::Text => Arrived::Text(Text::new(body)),
                };
                super::dispatch(connection, request.map(body), Form::Web).await
            };
            Ok::<_, Infallible>(with_trailers(response))
        }
    }));
    match service.oneshot(request).await {
        Ok(response) => response.map(Body::Grpc),
        Err(never) => match never {},
    }
}

/// A whole answer that is nothing but `error`, when no method was looked for: its status is in the headers.
pub(in crate::frontend) fn refuse_web(id: &CallId, error: &Error) -> Response {
    let mut response = refuse(id, error);
    response.headers_mut().insert(CONTENT_TYPE, BINARY);
    response
}

/// What is said in HTTP: pages and people see it, and no client of gRPC-Web sends such a request.
enum Refusal {
    Http(Error),
    Type(String),
}

fn check(connection: &Connection, request: &Request) -> Result<Family, Refusal> {
    if !connection.frontend.settings.grpc.web {
        let error = "grpc-web is switched off (`grpc.web`), use grpc over HTTP/2";
        return Err(Refusal::Http(Error::Unimplemented(error.into())));
    }
    let kind = request.headers().get(CONTENT_TYPE);
    let Some(family) = kind.and_then(Family::of) else {
        let found = kind.map(HeaderValue::as_bytes).unwrap_or_default().escape_ascii();
        return Err(Refusal::Type(format!(
            "content type `{found}` is not supported, expected `application/grpc-web` or `application/grpc-web-text`"
        )));
    };
    if request.method() != Method::POST {
        return Err(Refusal::Http(Error::MethodNotAllowed { allow: "POST, OPTIONS" }));
    }
    Ok(family)
}

impl Family {
    fn of(kind: &HeaderValue) -> Option<Self> {
        let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        match kind.to_ascii_lowercase().as_slice() {
            b"application/grpc-web" | b"application/grpc-web+proto" => Some(Self::Binary),
            b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Some(Self::Text),
            _ => None,
        }
    }
}

/// An answer that is one block of headers becomes a body of trailers: a page sees the headers of another origin only if
/// CORS exposes each.
fn with_trailers(response: Response) -> http::Response<tonic::body::Body> {
    let (mut parts, body) = response.into_parts();
    if !body.is_end_stream() {
        return http::Response::from_parts(parts, tonic::body::Body::new(body));
    }
    let mut trailers = std::mem::take(&mut parts.headers);
    // tonic-web says the type.
    trailers.remove(CONTENT_TYPE);
    if let Some(id) = trailers.get(REQUEST_ID) {
        parts.headers.insert(REQUEST_ID, id.clone());
    }
    let body = StreamBody::new(stream::iter([Ok::<_, tonic::Status>(Frame::<Bytes>::trailers(trailers))]));
    http::Response::from_parts(parts, tonic::body::Body::new(body))
}

/// base64 of messages: groups of four characters, any of which may be the last of a padded piece.
pub(super) struct Text<B> {
    body: B,
    /// Characters that are no whole group yet.
    rest: BytesMut,
}

// === impl Text ===

impl<B> Text<B> {
    fn new(body: B) -> Self {
        Self { body, rest: BytesMut::new() }
    }

    /// Decodes what is there in whole groups, or all of it `at_end`.
    fn decode(&mut self, at_end: bool) -> Result<Bytes, Error> {
        let length = if at_end { self.rest.len() } else { self.rest.len() - self.rest.len() % 4 };
        let text = self.rest.split_to(length);
        let (mut bytes, mut rest) = (Vec::with_capacity(length / 4 * 3), &text[..]);
        while !rest.is_empty() {
            // A piece ends with the group that is padded.
            let padded = rest.chunks_exact(4).position(|group| group[3] == b'=');
            let (piece, after) = rest.split_at(padded.map_or(rest.len(), |index| (index + 1) * 4));
            let decoded = QUADS.decode_vec(piece, &mut bytes);
            decoded.map_err(|error| Error::MalformedMessage(format!("the body is no base64: {error}").into()))?;
            rest = after;
        }
        Ok(bytes.into())
    }
}

impl<B> http_body::Body for Text<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            let (bytes, at_end) = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.rest.extend_from_slice(&data);
                        (this.decode(false)?, false)
                    }
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(super::broken_off(&error)))),
                None => (this.decode(true)?, true),
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if at_end {
                return Poll::Ready(None);
            }
        }
    }
}

#[cfg(test)]
#[path = "web_tests.rs"]
mod tests;

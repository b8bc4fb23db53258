//! gRPC: the method table.
//!
//! Methods are matched here and not by generated services, whose handlers run only after the message is decoded: a
//! call's message is read when the stack asks for it (architecture section 5.2). Knows paths, metadata and statuses;
//! what a method means is the stack's business. Probes and reflection are answered beside the stack (invariant 3).

mod arriving;
mod encoding;
mod head;
mod health;
mod input;
mod leash;
mod parse;
mod reflection;
mod report;
mod single;
mod status;
mod stream;
mod tfserving;
mod unary;
mod web;
mod written;

#[cfg(test)]
mod fixture;

pub(in crate::frontend) use status::{refuse, status};
pub(in crate::frontend) use web::{refuse_web, serve as serve_web};

use super::{
    Connection,
    head::{Fields, call_id},
    http::Response,
};
use crate::{
    call::{self, CallId, Intent},
    error::Error,
};
use bytes::Bytes;
use http::{Method, header::CONTENT_TYPE};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// The inference service (contract 01 section 4).
const INFERENCE: &str = "inference.GRPCInferenceService";

/// A request of either form.
type Request = http::Request<Arrived>;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Over HTTP/2, with trailers.
    Native,
    /// From a page, which can send one message only (contract 05 section 4).
    Web,
}

/// Answers one request of this surface: a request whose `content-type` begins with `application/grpc`, over HTTP/2.
///
/// Never fails as HTTP: every refusal is status 200 with `grpc-status` (contract 05 section 1.3).
pub async fn serve(connection: Arc<Connection>, request: http::Request<Incoming>) -> Response {
    dispatch(connection, request.map(Arrived::Native), Form::Native).await
}

/// Whether this is `ModelInfer` as almost every request is, which [`infer`] answers.
pub fn is_infer(request: &http::Request<()>, fields: &Fields<'_>) -> bool {
    request.uri().path() == call::Route::GrpcInfer.name()
        && *request.method() == Method::POST
        && fields.content_type.is_some_and(|kind| media_type(kind.as_bytes()).is_ok())
}

/// Answers such a request, of which the head is borrowed: it need not live as long as the call.
pub fn infer(
    connection: Arc<Connection>,
    fields: &Fields<'_>,
    body: Incoming,
) -> impl Future<Output = Response> + Send + use<> {
    unary::infer(connection, fields, Arrived::Native(body), Form::Native)
}

async fn dispatch(connection: Arc<Connection>, request: Request, form: Form) -> Response {
    let id = call_id(request.headers());
    let method = match route(&connection, &request, form) {
        Ok(method) => method,
        Err(error) => return refuse(&id, &error),
    };
    let coding = encoding::of_answers(request.headers());
    let response = match method {
        Rpc::Infer => {
            let (parts, body) = request.into_parts();
            return Box::pin(unary::infer(connection, &Fields::of(&parts.headers), body, form)).await;
        }
        Rpc::Report(question) => Box::pin(report::serve(connection, id, question, request)).await,
        Rpc::Stream => Box::pin(open_stream(connection, id, request)).await,
        Rpc::TfServing(method) => Box::pin(tfserving::serve(connection, id, method, request)).await,
        Rpc::Probe(probe) => Box::pin(unary::probe(connection, id, probe, request)).await,
        Rpc::Health(method) => Box::pin(health::serve(connection, id, method, request)).await,
        Rpc::Reflection => Box::pin(reflection::serve(connection, id, request)).await,
    };
    match coding {
        Some(coding) => encoding::compressed(response, coding),
        None => response,
    }
}

/// The methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rpc {
    Infer,
    Stream,
    Report(report::Question),
    TfServing(tfserving::Method),
    Probe(unary::Probe),
    Health(health::Method),
    Reflection,
}

fn route(connection: &Connection, request: &Request, form: Form) -> Result<Rpc, Error> {
    let path = request.uri().path();
    if form == Form::Native {
        media_type(request.headers().get(CONTENT_TYPE).map_or(&[], |value| value.as_bytes()))?;
    }
    if request.method() != Method::POST {
        return Err(Error::MethodNotAllowed { allow: "POST" });
    }
    let (service, method) = path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or_default();
    let known = match (service, method) {
        (INFERENCE, "ModelInfer") => Some(Rpc::Infer),
        (INFERENCE, "ModelStreamInfer") => Some(Rpc::Stream),
        (INFERENCE, "ServerLive") => Some(Rpc::Probe(unary::Probe::Live)),
        (INFERENCE, "ServerReady") => Some(Rpc::Probe(unary::Probe::Ready)),
        (INFERENCE, method) => report::Question::parse(method).map(Rpc::Report),
        (health::SERVICE, method) => health::Method::parse(method).map(Rpc::Health),
        (reflection::V1 | reflection::V1ALPHA, "ServerReflectionInfo") if reflection::is_open(connection) => {
            Some(Rpc::Reflection)
        }
        (service, method) => tfserving::Method::parse(service, method).map(Rpc::TfServing),
    };
    match known {
        Some(Rpc::Stream | Rpc::Reflection) if form == Form::Web => {
            let error = format!("`{path}` takes a stream of messages, which gRPC-Web cannot send");
            Err(Error::Unimplemented(error.into()))
        }
        Some(method) => Ok(method),
        None => Err(unknown(path)),
    }
}

/// The body of a request, whichever way it came.
enum Arrived {
    Native(Incoming),
    Web(tonic::body::Body),
    Text(web::Text<tonic::body::Body>),
}

impl http_body::Body for Arrived {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Native(body) => Pin::new(body).poll_frame(cx).map_err(|error| broken_off(&error)),
            Self::Web(body) => Pin::new(body).poll_frame(cx).map_err(|error| broken_off(&error)),
            Self::Text(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Native(body) => body.is_end_stream(),
            Self::Web(body) => body.is_end_stream(),
            // Only its end says that nothing is left to be decoded.
            Self::Text(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Native(body) => body.size_hint(),
            Self::Web(body) => body.size_hint(),
            Self::Text(_) => SizeHint::default(),
        }
    }
}

/// The client went away, or broke the rules of HTTP.
fn broken_off(error: &dyn std::fmt::Display) -> Error {
    tracing::debug!(%error, "a message broke off");
    Error::Cancelled
}

/// `ModelStreamInfer`. The opening is a call of its own: strangers get a status and no stream.
async fn open_stream(connection: Arc<Connection>, id: CallId, request: Request) -> Response {
    let (head, sender) = match head::open(&connection, &id, Intent::Inspect, &request) {
        Ok(opened) => opened,
        Err(error) => return refuse(&id, &error),
    };
    // Contract 02 section 4, item 7.
    let strict = request.headers().get("triton_grpc_error").is_some_and(|value| value == "true");
    let messages = match unary::messages(&connection, request, arriving::Wait::WithinMessages) {
        Ok(messages) => messages,
        Err(error) => return refuse(&id, &error),
    };
    match stream::serve(Arc::clone(&connection), head, sender, strict, messages).await {
        Ok(answers) => unary::stream_of(&id, answers),
        Err(error) => {
            connection.observe(&error);
            refuse(&id, &error)
        }
    }
}

fn unknown(path: &str) -> Error {
    Error::NoRoute(format!("method `{path}` is unknown").into())
}

/// Protobuf is the only message format (contract 05 section 1.1).
fn media_type(value: &[u8]) -> Result<(), Error> {
    let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
    match value[..end].trim_ascii() {
        kind if kind.eq_ignore_ascii_case(b"application/grpc") => Ok(()),
        kind if kind.eq_ignore_ascii_case(b"application/grpc+proto") => Ok(()),
        kind => Err(Error::UnsupportedMedia(
            format!("content type `{}` is not supported, expected `application/grpc`", kind.escape_ascii()).into(),
        )),
    }
}

/// Puts the call id where the client looks for it (contract 00 section 5).
fn name<B>(response: &mut http::Response<B>, id: &CallId) {
    response.headers_mut().insert(super::head::REQUEST_ID, super::rest::id_value(id));
}

#[cfg(test)]
mod tests;

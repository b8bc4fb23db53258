//! gRPC: the method table.
//!
//! Methods are matched here and not by generated services, whose handlers run only after the message is decoded: a
//! call's message is read when the stack asks for it (architecture section 5.2). Knows paths, metadata and statuses;
//! what a method means is the stack's business. Probes and reflection are answered beside the stack (invariant 3).

mod arriving;
mod head;
mod health;
mod input;
mod leash;
mod reflection;
mod report;
mod status;
mod stream;
mod unary;

#[cfg(test)]
mod fixture;

pub(in crate::frontend) use status::{refuse, status};

use super::{
    Connection,
    head::call_id,
    http::{Request, Response},
};
use crate::{
    call::{CallId, Intent},
    error::Error,
};
use http::{Method, header::CONTENT_TYPE};
use std::sync::Arc;

/// The inference service (contract 01 section 4).
const INFERENCE: &str = "inference.GRPCInferenceService";

/// Answers one request of this surface: a request whose `content-type` begins with `application/grpc`, over HTTP/2.
///
/// Never fails as HTTP: every refusal is status 200 with `grpc-status` (contract 05 section 1.3).
pub async fn serve(connection: Arc<Connection>, request: Request) -> Response {
    let id = call_id(request.headers());
    let method = match route(&connection, &request) {
        Ok(method) => method,
        Err(error) => return refuse(&id, &error),
    };
    match method {
        Rpc::Infer => unary::infer(connection, id, request).await,
        // Long or rare, and their futures need not make that of every call larger.
        Rpc::Report(question) => Box::pin(report::serve(connection, id, question, request)).await,
        Rpc::Stream => Box::pin(open_stream(connection, id, request)).await,
        Rpc::Probe(probe) => Box::pin(unary::probe(connection, id, probe, request)).await,
        Rpc::Health(method) => Box::pin(health::serve(connection, id, method, request)).await,
        Rpc::Reflection => Box::pin(reflection::serve(connection, id, request)).await,
    }
}

/// The methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rpc {
    Infer,
    Stream,
    Report(report::Question),
    Probe(unary::Probe),
    Health(health::Method),
    Reflection,
}

fn route(connection: &Connection, request: &Request) -> Result<Rpc, Error> {
    let path = request.uri().path();
    media_type(request.headers().get(CONTENT_TYPE).map_or(&[], |value| value.as_bytes()))?;
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
        _ => None,
    };
    known.ok_or_else(|| unknown(path))
}

/// `ModelStreamInfer`. The opening is a call of its own: strangers get a status and no stream.
async fn open_stream(connection: Arc<Connection>, id: CallId, request: Request) -> Response {
    let (head, sender) = match head::open(&connection, &id, Intent::Inspect, request.headers()) {
        Ok(opened) => opened,
        Err(error) => return refuse(&id, &error),
    };
    // Contract 02 section 4, item 7.
    let strict = request.headers().get("triton_grpc_error").is_some_and(|value| value == "true");
    let messages = unary::messages(&connection, request, arriving::Wait::WithinMessages);
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

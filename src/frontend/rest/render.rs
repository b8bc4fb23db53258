//! Replies and errors as HTTP responses, in the body of their route's family.

use super::{
    super::{
        Body, Frontend,
        body::{self, TEXT},
        head::{Fields, JSON_LENGTH, REQUEST_ID},
        http::Response,
    },
    closes,
    route::Family,
};
use crate::{
    call::{CallId, Chunk, InferResponse, Reply, ReplyStream, Report, Surface, Timing},
    error::{Code, Error},
    telemetry::metrics::page::Format,
    wire::{Wishes, framed, json as v2, problem},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version,
    header::{ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

// Exactly this, with no parameters: a client compares it byte for byte (contract 00 section 7, trap 3).
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A whole reply, or exactly one chunk, as a response.
///
/// # Errors
///
/// What has no form in the encoding asked for, and models that stream.
pub(super) async fn reply(
    reply: Reply,
    id: &CallId,
    wishes: Option<&Wishes>,
    frontend: &Arc<Frontend>,
) -> Result<Response, Error> {
    match reply {
        Reply::Infer(response) => infer(response, id, wishes, frontend).await,
        Reply::Stream(stream) => infer(Box::pin(only_chunk(stream)).await?, id, wishes, frontend).await,
        // Known and not able to run is no answer to "ready?" that a status of 200 could give (contract 01 section 1).
        Reply::Report(Report::Ready { model, ready: false }) => Err(Error::ModelNotReady { model, state: "not ready" }),
        Reply::Report(report) => {
            let body = v2::encode_report(&report);
            frontend.metrics.body_sent(Surface::Rest, body.len() as u64);
            Ok(json(StatusCode::OK, body, id))
        }
    }
}

/// The one response of an inference, whether it came whole or as a stream.
///
/// # Errors
///
/// [`Error::Unimplemented`] for none or several.
pub(super) async fn whole(reply: Reply) -> Result<InferResponse, Error> {
    match reply {
        Reply::Infer(response) => Ok(response),
        Reply::Stream(stream) => Box::pin(only_chunk(stream)).await,
        Reply::Report(_) => Err(Error::internal("a report answers an inference")),
    }
}

async fn only_chunk(mut stream: ReplyStream) -> Result<InferResponse, Error> {
    let streams = || {
        Error::Unimplemented(
            "this model answers more than once, ask for a stream (`infer_stream`, or another surface)".into(),
        )
    };
    let Some(first) = stream.next().await else { return Err(streams()) };
    let Chunk::Tensors(response) = first?;
    if stream.has_more().await? {
        return Err(streams());
    }
    Ok(response)
}

async fn infer(
    response: InferResponse,
    id: &CallId,
    wishes: Option<&Wishes>,
    frontend: &Arc<Frontend>,
) -> Result<Response, Error> {
    let binary = wishes.filter(|wishes| wishes.any_binary(response.outputs.iter().map(|output| &*output.name)));
    let Some(wishes) = binary else {
        return outputs(response, id, frontend, |response, id, frontend| {
            v2::encode_infer(response, id, &frontend.settings.wire)
        })
        .await;
    };
    let text = response.outputs.iter().filter(|output| !wishes.wants_binary(&output.name));
    let text: usize = text.map(|output| output.tensor.data().len() * TEXT).sum();
    let framed = if body::is_small(text) {
        framed::encode_infer(&response, id, wishes, &frontend.settings.wire)?
    } else {
        let (id, wishes, frontend) = (id.clone(), wishes.clone(), Arc::clone(frontend));
        let encode = move || {
            frontend.memory.expect(text)?;
            framed::encode_infer(&response, &id, &wishes, &frontend.settings.wire)
        };
        Box::pin(body::offload(text, encode)).await?
    };
    let framed::Framed { header, tensors } = framed;
    // Nothing binary came of it: clients then parse the whole body as JSON (contract 02 section 1.2).
    if tensors.iter().all(Bytes::is_empty) {
        let header = frontend.memory.hold(header)?;
        frontend.metrics.body_sent(Surface::Rest, header.len() as u64);
        return Ok(json(StatusCode::OK, header, id));
    }
    let length = header.len();
    let mut frames = Vec::with_capacity(tensors.len() + 1);
    frames.push(header);
    frames.extend(tensors);
    frontend.memory.hold_each(&mut frames)?;
    frontend.metrics.body_sent(Surface::Rest, frames.iter().map(|frame| frame.len() as u64).sum());
    let mut response = response_of(StatusCode::OK, BINARY, Body::Frames(frames.into()), id);
    response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// A ticket, which nobody but its reader may keep (contract 06 C1 item 2).
pub(super) fn ticket(ticket: &str, age: Duration, id: &CallId) -> Response {
    // Base64url needs no escape.
    let body = format!("{{\"ticket\":\"{ticket}\",\"expires_in\":{}}}", age.as_secs());
    let mut response = json(StatusCode::OK, body.into(), id);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A response whose body `encode` makes of outputs: here if they are few, else on the decoding threads.
///
/// # Errors
///
/// What `encode` answers; as [`Memory`](body::Memory) if there is no room for the body.
pub(super) async fn outputs<E>(
    response: InferResponse,
    id: &CallId,
    frontend: &Arc<Frontend>,
    encode: E,
) -> Result<Response, Error>
where
    E: FnOnce(&InferResponse, &CallId, &Frontend) -> Result<Bytes, Error> + Send + 'static,
{
    let text = response.bytes() * TEXT;
    let body = if body::is_small(text) {
        encode(&response, id, frontend)?
    } else {
        let (call, shared) = (id.clone(), Arc::clone(frontend));
        // Boxed, so that the many small answers do not carry the room for this.
        let encode = move || {
            shared.memory.expect(text)?;
            encode(&response, &call, &shared)
        };
        Box::pin(body::offload(text, encode)).await?
    };
    let body = frontend.memory.hold(body)?;
    frontend.metrics.body_sent(Surface::Rest, body.len() as u64);
    Ok(json(StatusCode::OK, body, id))
}

/// The page of metrics, made off the lane: it is as long as there are models.
///
/// # Errors
///
/// [`Error::Overloaded`] if too much waits for the decoding threads already.
pub(super) async fn metrics(format: Format, id: &CallId, frontend: &Arc<Frontend>) -> Result<Response, Error> {
    let metrics = Arc::clone(&frontend.metrics);
    let page = body::offload(usize::MAX, move || Ok(metrics.page(format))).await?;
    let kind = HeaderValue::from_static(format.content_type());
    Ok(response_of(StatusCode::OK, kind, Body::Full(page.into()), id))
}

/// How long a call waited and ran, for the developer tools of browsers (contract 00 section 5).
pub(super) fn server_timing(headers: &mut HeaderMap, timing: Timing) {
    let mut value = Vec::with_capacity(48);
    let mut write = |name: &[u8], took: Duration| {
        value.extend_from_slice(name);
        // By hand, because every answer has two of these.
        let millis = took.as_secs().saturating_mul(1000) + u64::from(took.subsec_millis());
        let micros = took.subsec_micros() % 1000;
        value.extend_from_slice(itoa::Buffer::new().format(millis).as_bytes());
        let digits = [micros / 100, micros / 10 % 10, micros % 10].map(|digit| b'0' + digit as u8);
        value.extend_from_slice(&[b'.', digits[0], digits[1], digits[2]]);
    };
    write(b"queue;dur=", timing.queue);
    write(b", run;dur=", timing.compute);
    if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        // As an id: never the same again.
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static("server-timing"), value);
    }
}

/// How errors are told to whoever asked.
#[derive(Debug)]
pub(super) struct Voice {
    version: Version,
    /// The path, if problem details are wanted (contract 10 section 3).
    problem: Option<Box<str>>,
    /// Whether the request named a content encoding.
    encoded: bool,
}

impl Voice {
    /// The same, in problem details in any case.
    pub(super) fn in_problems(self, request: &Request<()>) -> Self {
        Self { problem: Some(request.uri().path().into()), ..self }
    }

    /// As the head of a request has it.
    pub(super) fn of(request: &Request<()>, fields: &Fields<'_>) -> Self {
        let problem = fields.problem.then(|| request.uri().path().into());
        Self { version: request.version(), problem, encoded: fields.encoded }
    }

    /// An error of a route of `family`.
    pub(super) fn miss(&self, family: Family, error: &Error, id: &CallId, path: &str) -> Response {
        let family = if self.problem.is_some() { Family::Problem } else { family };
        family_error(family, error, id, self.version, path)
    }

    /// An error of a call.
    pub(super) fn error(&self, error: &Error, id: &CallId) -> Response {
        let mut response = match &self.problem {
            Some(path) => family_error(Family::Problem, error, id, self.version, path),
            None => family_error(Family::Text, error, id, self.version, ""),
        };
        if self.encoded && matches!(error, Error::UnsupportedMedia(_)) {
            response.headers_mut().insert(ACCEPT_ENCODING, body::ACCEPTED);
        }
        response
    }
}

/// An error of a V2 route.
pub(in crate::frontend) fn error(error: &Error, id: &CallId, version: Version) -> Response {
    family_error(Family::Text, error, id, version, "")
}

/// An error in the body of `family`, about the path `instance`.
pub(super) fn family_error(family: Family, error: &Error, id: &CallId, version: Version, instance: &str) -> Response {
    if matches!(error, Error::TrailersTooLarge) {
        return plain(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &error.to_string(), id);
    }
    let status = match error {
        // The one time-out that is the client's (contract 00 section 2).
        Error::BodyStalled => StatusCode::REQUEST_TIMEOUT,
        // 499 is for logs only. Who still reads has sent less than it announced.
        Error::Cancelled => StatusCode::BAD_REQUEST,
        _ => StatusCode::from_u16(error.code().row().http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    let (kind, body) = match family {
        Family::Text => (JSON, v2::encode_error(error, id)),
        Family::OpenAi => (JSON, open_ai(error)),
        Family::Problem => (PROBLEM, problem::encode(error, status.as_u16(), id, instance)),
    };
    let mut response = response_of(status, kind, Body::Full(body), id);
    let headers = response.headers_mut();
    if let Some(after) = error.retry_after() {
        retry_after(headers, after, status == StatusCode::SERVICE_UNAVAILABLE);
    }
    match error {
        Error::Unauthenticated => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sluicegate\""));
        }
        Error::MethodNotAllowed { allow } => {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        // The rest of the body would have to be read to use the connection again.
        Error::TooLarge { .. } | Error::BodyStalled | Error::Cancelled if closes(version) => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// A status that has no code, but for 400: `{"error": text, "request_id": …}`.
pub(in crate::frontend) fn plain(status: StatusCode, text: &str, id: &CallId) -> Response {
    if status == StatusCode::BAD_REQUEST {
        return json(status, v2::encode_error(&Error::invalid(text.to_owned()), id), id);
    }
    let mut body = Vec::with_capacity(text.len() + 96);
    body.extend_from_slice(b"{\"error\":");
    v2::write_string(&mut body, text);
    body.extend_from_slice(b",\"request_id\":");
    v2::write_string(&mut body, &id.to_string());
    body.push(b'}');
    json(status, body.into(), id)
}

/// Problem details of a status that has no code.
pub(super) fn problem(status: StatusCode, title: &str, detail: &str, id: &CallId, instance: &str) -> Response {
    response_of(status, PROBLEM, Body::Full(problem::plain(status.as_u16(), title, detail, id, instance)), id)
}

/// A JSON response.
pub(super) fn json(status: StatusCode, body: Bytes, id: &CallId) -> Response {
    response_of(status, JSON, Body::Full(body), id)
}

/// The head of a response whose body comes in pieces.
pub(super) fn stream_response(kind: HeaderValue, body: Body, id: &CallId) -> Response {
    response_of(StatusCode::OK, kind, body, id)
}

fn response_of(status: StatusCode, kind: HeaderValue, body: Body, id: &CallId) -> Response {
    // Room for what is added here and by hyper (`date`, `content-length`), so that the map is made once.
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(REQUEST_ID, id_value(id));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The call id as a header value, which HTTP/2 is not to remember: the next is another, and to look through what is
/// remembered takes longer than to write it.
pub(in crate::frontend) fn id_value(id: &CallId) -> HeaderValue {
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = match id {
        CallId::Made(uuid) => &*uuid.hyphenated().encode_lower(&mut buffer),
        CallId::Given(id) => id,
    };
    let mut value = HeaderValue::from_str(text).expect("a call id is made of letters, digits and `._-`");
    value.set_sensitive(true);
    value
}

/// Whole seconds, rounded up, at least one; `spread` over two so that refused clients do not come back as one.
pub(crate) fn retry_after(headers: &mut HeaderMap, after: Duration, spread: bool) {
    static TURN: AtomicU8 = AtomicU8::new(0);
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    let jitter = if spread { u64::from(TURN.fetch_add(1, Ordering::Relaxed) % 2) } else { 0 };
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1) + jitter));
}

/// The OpenAI form of an error (contract 00 section 2).
fn open_ai(error: &Error) -> Bytes {
    let code = error.code();
    let (kind, name) = match code {
        Code::Unauthenticated => ("invalid_request_error", "\"invalid_api_key\""),
        Code::PermissionDenied => ("invalid_request_error", "\"permission_denied\""),
        Code::NotFound => ("invalid_request_error", "\"model_not_found\""),
        Code::Unimplemented => ("invalid_request_error", "\"unsupported\""),
        Code::RateLimited => ("requests", "\"rate_limit_exceeded\""),
        Code::Overloaded => ("server_error", "\"overloaded\""),
        Code::NotReady => ("server_error", "\"model_not_ready\""),
        Code::DeadlineExceeded => ("server_error", "\"timeout\""),
        Code::Internal => ("server_error", "null"),
        Code::InvalidArgument
        | Code::MethodNotAllowed
        | Code::Conflict
        | Code::PayloadTooLarge
        | Code::UnsupportedMediaType
        | Code::Unprocessable
        | Code::Cancelled => ("invalid_request_error", "null"),
    };
    let mut body = b"{\"error\":{\"message\":".to_vec();
    v2::write_string(&mut body, &error.to_string());
    body.extend_from_slice(b",\"type\":\"");
    body.extend_from_slice(kind.as_bytes());
    body.extend_from_slice(b"\",\"param\":null,\"code\":");
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(b"}}");
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{ModelKey, NamedTensor, Parameters},
        error::Limit,
        tensor::{DataType, Tensor},
    };
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn outputs_that_will_not_fit_are_not_written() {
        let frontend = crate::frontend::testing::connection().frontend;
        let room = frontend.memory.reserve(frontend.settings.concurrency.memory - 500_000).unwrap();
        let tensor = Tensor::of(DataType::Fp32, [100_000].into(), vec![0.5_f32; 100_000]).unwrap();
        let response = InferResponse {
            model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
            client_id: None,
            outputs: vec![NamedTensor { name: "y".into(), tensor }],
            parameters: Parameters::default(),
            timing: Timing::default(),
        };
        let id = CallId::Given("a".into());
        let write = |_: &InferResponse, _: &CallId, _: &Frontend| -> Result<Bytes, Error> { panic!("written") };
        let refused = outputs(response.clone(), &id, &frontend, write).await.unwrap_err();
        assert!(matches!(refused, Error::Overloaded { limit: Limit::Memory }));
        drop(room);
        let write = |_: &InferResponse, _: &CallId, _: &Frontend| Ok(Bytes::from_static(b"{}"));
        assert_eq!(outputs(response, &id, &frontend, write).await.unwrap().status(), StatusCode::OK);
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up() {
        let seconds = |after: Duration| {
            let mut headers = HeaderMap::new();
            retry_after(&mut headers, after, false);
            headers[RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!(seconds(Duration::ZERO), "1");
        assert_eq!(seconds(Duration::from_millis(1)), "1");
        assert_eq!(seconds(Duration::from_millis(1001)), "2");
        assert_eq!(seconds(Duration::from_secs(7)), "7");
    }

    #[tokio::test]
    async fn a_problem_has_the_status_of_its_response() {
        for (error, status) in
            [(Error::BodyStalled, 408), (Error::Cancelled, 400), (Error::NoRoute("gone".into()), 404)]
        {
            let response = family_error(Family::Problem, &error, &CallId::make(), Version::HTTP_11, "/v1/ws");
            assert_eq!(response.status(), status);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["status"], &body["code"]), (&status.into(), &error.code().name().into()));
        }
    }

    #[test]
    fn ids_are_written_as_they_are_displayed() {
        for id in [CallId::make(), CallId::from_client(Some("a-1._B"))] {
            assert_eq!(id_value(&id), id.to_string());
        }
    }
}

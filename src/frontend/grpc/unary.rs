//! Unary methods, lazily decoded: the message is awaited only when the stack asks for it.
//!
//! On the wire a unary call is a stream of one message, so it is read as one, and a second message is refused here.

use super::{
    Request,
    arriving::{self, Arriving, PREFIX, Wait},
    encoding, head,
    input::Input,
    name, refuse,
};
use crate::{
    call::{
        Call, CallId, Chunk, Credentials, Facts, Head, InferResponse, Intent, Operation, Pending, Reply, ReplyStream,
        Surface,
    },
    error::Error,
    frontend::{Connection, body::Body, http::Response, quota},
    wire::proto::{self, inference as pb},
};
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header::CONTENT_TYPE};
use prost::Message;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tonic::codec::{EncodeBody, SingleMessageCompressionOverride, Streaming};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Questions that are answered beside the stack, from the readiness value (contract 05 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Live,
    Ready,
}

/// `ModelInfer`.
pub(super) async fn infer(connection: Arc<Connection>, id: CallId, request: Request) -> Response {
    let settings = Arc::clone(&connection);
    // Known once the message is read, and wanted only where answers mirror it.
    let typed = settings.frontend.settings.grpc.mirror.then(|| Arc::new(AtomicBool::new(false)));
    let noted = typed.clone();
    let decode = move |message| {
        if let Some(typed) = noted {
            typed.store(proto::is_typed(&message), Ordering::Relaxed);
        }
        Input::hold(&settings, message)?.decode(&settings.frontend.settings.wire)
    };
    let (head, sender) = match head::open(&connection, &id, Intent::Infer, &request) {
        Ok(opened) => opened,
        Err(error) => return refused(&connection, &id, &error),
    };
    let facts = Arc::clone(&head.facts);
    let response = match send(&connection, head, sender, request, decode).await {
        Ok(reply) => whole(reply).await,
        Err(error) => Err(error),
    };
    let error = response.as_ref().err().cloned();
    let encode = |response| {
        let typed = typed.is_some_and(|typed| typed.load(Ordering::Relaxed));
        let message = proto::encode_infer(response, typed);
        connection.frontend.encoded(Surface::Grpc, &facts);
        message
    };
    let mut answer = respond(&connection, &id, response.map(encode));
    quota::insert(answer.headers_mut(), &facts, error.as_ref());
    answer
}

/// `ServerLive` and `ServerReady`: without credentials, not counted as calls.
pub(super) async fn probe(connection: Arc<Connection>, id: CallId, probe: Probe, request: Request) -> Response {
    // Both requests are empty messages; what is in one is nothing that we know.
    if let Err(error) = read::<pb::ServerLiveRequest>(&connection, request).await {
        return refuse(&id, &error);
    }
    let readiness = &connection.frontend.readiness;
    match probe {
        Probe::Live => answer(&connection, &id, pb::ServerLiveResponse { live: readiness.is_live() }),
        Probe::Ready => answer(&connection, &id, pb::ServerReadyResponse { ready: readiness.is_ready() }),
    }
}

/// Sends a call through the stack, and says what was learnt of it besides the reply. `decode` is not run before the stack
/// asks for the message.
pub(super) async fn call<M, D>(
    connection: &Arc<Connection>,
    id: &CallId,
    intent: Intent,
    request: Request,
    decode: D,
) -> Result<(Reply, Arc<Facts>), Error>
where
    M: Message + Default + 'static,
    D: FnOnce(M) -> Result<Operation, Error> + Send + 'static,
{
    let (head, sender) = head::open(connection, id, intent, &request)?;
    let facts = Arc::clone(&head.facts);
    let reply = send(connection, head, sender, request, decode).await?;
    Ok((reply, facts))
}

/// The same for a call whose head is known.
pub(super) async fn send<M, D>(
    connection: &Arc<Connection>,
    head: Head,
    sender: Credentials,
    request: Request,
    decode: D,
) -> Result<Reply, Error>
where
    M: Message + Default + 'static,
    D: FnOnce(M) -> Result<Operation, Error> + Send + 'static,
{
    let limit = connection.frontend.settings.size.body;
    let messages = messages(connection, request, Wait::Throughout)?;
    let input = Pending::new(async move { one(messages, limit).await.and_then(decode) });
    connection.frontend.gateway.call(Call { head, sender, input }).await
}

/// Reads the one message of a request that is answered beside the stack.
///
/// # Errors
///
/// What [`messages`] and [`one`] answer.
pub(super) async fn read<M: Message + Default + 'static>(
    connection: &Arc<Connection>,
    request: Request,
) -> Result<M, Error> {
    one(messages(connection, request, Wait::Throughout)?, connection.frontend.settings.size.body).await
}

/// The messages of a request, none of them read. Each may have `limits.size.body` bytes: tonic's own limit is 4 MiB.
///
/// # Errors
///
/// As [`encoding::of_request`].
pub(super) fn messages<M: Message + Default + 'static>(
    connection: &Arc<Connection>,
    request: Request,
    wait: Wait,
) -> Result<Streaming<M>, Error> {
    let limit = connection.frontend.settings.size.body;
    let coding = encoding::of_request(request.headers())?;
    let body = Arriving::new(request.into_body(), Arc::clone(connection), wait);
    let decode = ProstDecoder::<M>::default();
    Ok(match coding {
        None => Streaming::new_request(decode, body, None, Some(limit)),
        Some(coding) => {
            let body = encoding::inflated(body, coding, Arc::clone(connection));
            Streaming::new_request(decode, body, None, Some(limit))
        }
    })
}

/// Exactly one message.
///
/// # Errors
///
/// [`Error::Unimplemented`] if there is none or a second one, as gRPC's status table has it; [`Error::TooLarge`],
/// [`Error::BodyStalled`], [`Error::Overloaded`], [`Error::Cancelled`], or [`Error::MalformedMessage`] if it is none.
async fn one<M>(mut messages: Streaming<M>, limit: usize) -> Result<M, Error> {
    let failed = |status: tonic::Status| arriving::error(&status, limit);
    let count = |found| Error::Unimplemented(format!("the request has {found}, expected exactly one").into());
    let message = messages.message().await.map_err(failed)?.ok_or_else(|| count("no message"))?;
    match messages.message().await.map_err(failed)? {
        None => Ok(message),
        Some(_) => Err(count("more than one message")),
    }
}

/// The one response of an inference. A unary method renders a streaming reply only if it is one chunk (contract 02
/// section 4, item 8).
pub(super) async fn whole(reply: Reply) -> Result<InferResponse, Error> {
    match reply {
        Reply::Infer(response) => Ok(response),
        Reply::Stream(stream) => only(stream).await,
        Reply::Report(_) => Err(mismatch()),
    }
}

async fn only(mut stream: ReplyStream) -> Result<InferResponse, Error> {
    let decoupled = || Error::Unimplemented("this model does not answer once; use `ModelStreamInfer`".into());
    let Chunk::Tensors(response) = stream.next().await.ok_or_else(decoupled)??;
    if stream.has_more().await? { Err(decoupled()) } else { Ok(response) }
}

/// The error of a reply that is no answer to what was asked.
pub(super) fn mismatch() -> Error {
    Error::internal("another question was answered")
}

/// One message and status 0, or what went wrong.
pub(super) fn respond<M: Message + Default + 'static>(
    connection: &Connection,
    id: &CallId,
    reply: Result<M, Error>,
) -> Response {
    reply.map_or_else(|error| refused(connection, id, &error), |message| answer(connection, id, message))
}

fn refused(connection: &Connection, id: &CallId, error: &Error) -> Response {
    connection.observe(error);
    refuse(id, error)
}

/// One message and status 0.
pub(super) fn answer<M: Message + Default + 'static>(connection: &Connection, id: &CallId, message: M) -> Response {
    let length = PREFIX + message.encoded_len();
    let reservation = match connection.frontend.memory.reserve_large(length) {
        Ok(reservation) => reservation,
        Err(error) => return refused(connection, id, &error),
    };
    connection.frontend.metrics.body_sent(Surface::Grpc, length as u64);
    // tonic asks for a second message, and so lets go of this, once the first has been handed over.
    stream_of(id, stream::iter([Ok(message)]).inspect(move |_| _ = &reservation))
}

/// Messages as they come, and the status at their end.
pub(super) fn stream_of<M, S>(id: &CallId, messages: S) -> Response
where
    M: Message + Default + 'static,
    S: stream::Stream<Item = Result<M, tonic::Status>> + Send + 'static,
{
    let encode = ProstEncoder::<M>::default();
    // A length is four bytes; what the server makes is bounded by what it took in and by its models.
    let limit = Some(u32::MAX as usize);
    let body = EncodeBody::new_server(encode, messages, None, SingleMessageCompressionOverride::default(), limit);
    let mut response = Response::new(Body::Grpc(tonic::body::Body::new(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    name(&mut response, id);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::{Settings, grpc::fixture::world};
    use bytes::Bytes;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn an_answer_is_counted_until_it_is_handed_over() {
        let mut settings = Settings::default();
        settings.concurrency.memory = 300_000;
        let connection = world(settings, |_| async { Err(Error::Cancelled) }).connection;
        let id = CallId::Given("a".into());
        let large = || pb::ModelInferResponse {
            raw_output_contents: vec![Bytes::from(vec![1; 200_000])],
            ..pb::ModelInferResponse::default()
        };
        let response = answer(&connection, &id, large());
        assert!(connection.frontend.memory.used() > 200_000);
        let refused = answer(&connection, &id, large());
        assert_eq!(refused.headers()["grpc-status"], "14");
        let sent = response.into_body().collect().await.unwrap();
        assert_eq!(sent.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(connection.frontend.memory.used(), 0);
    }
}

//! Unary methods, lazily decoded: the message is awaited only when the stack asks for it.
//!
//! On the wire a unary call is a stream of one message; a second one is refused.

use super::{
    Arrived, Form, Request,
    arriving::{self, Arriving, PREFIX, Wait},
    encoding, head,
    input::Input,
    name,
    parse::{Parsed, Readable, Whole, parse},
    refuse,
    single::{Decoding, Single, count},
    written,
};
use crate::{
    call::{
        Call, CallId, Chunk, Credentials, Facts, Head, InferResponse, Intent, Operation, Pending, Reply, ReplyStream,
        Route, Surface,
    },
    error::Error,
    frontend::{
        Connection,
        body::{self, Body, Coding, Reservation, Trailed},
        head::Fields,
        http::Response,
        quota,
    },
    wire::proto::{self, inference as pb},
};
use bytes::Bytes;
use futures_util::{future::Either, stream};
use http::{HeaderValue, header::CONTENT_TYPE};
use prost::Message;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tonic::codec::{EncodeBody, SingleMessageCompressionOverride, Streaming};
use tonic_prost::ProstEncoder;

/// Questions that are answered beside the stack, from the readiness value (contract 05 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Live,
    Ready,
}

/// `ModelInfer`, of whose head nothing is kept but the call. The call is made at the first poll.
///
/// No `async fn`: it would keep what it is given twice, and this is moved for each call.
pub(super) fn infer(
    connection: Arc<Connection>,
    fields: &Fields<'_>,
    body: Arrived,
    form: Form,
) -> impl Future<Output = Response> + Send + use<> {
    let id = fields.call_id();
    let opened = head::open_at(&connection, &id, Intent::Infer, Route::GrpcInfer, fields);
    let opened = opened.and_then(|opened| Ok((opened, encoding::named(fields.grpc_encoding)?)));
    let ((head, sender), coding) = match opened {
        Ok(opened) => opened,
        Err(error) => return Either::Left(std::future::ready(refused(&connection, &id, &error))),
    };
    // Known once the message is read, and wanted only where answers mirror it.
    let typed = connection.frontend.settings.grpc.mirror.then(|| Arc::new(AtomicBool::new(false)));
    let noted = typed.clone();
    let decode = move |connection: &Arc<Connection>, parsed: Parsed<pb::ModelInferRequest>| {
        if let Some(typed) = noted {
            typed.store(proto::is_typed(&parsed.message), Ordering::Relaxed);
        }
        Input::of(parsed).decoding(connection)
    };
    let answers = coding.and_then(|_| encoding::of_answers(fields.headers()));
    let facts = Arc::clone(&head.facts);
    let call = Call { head, sender, input: pending(&connection, coding, body, decode) };
    Either::Right(async move {
        let is_typed =
            |typed: &Option<Arc<AtomicBool>>| typed.as_ref().is_some_and(|typed| typed.load(Ordering::Relaxed));
        let message = match connection.frontend.gateway.call(call).await {
            Ok(Reply::Infer(response)) if !is_typed(&typed) => Ok(proto::encode_infer(response, false)),
            // Rare, and its future need not make that of every call larger.
            Ok(reply) => Box::pin(encoded(&connection, reply, is_typed(&typed))).await,
            Err(error) => Err(error),
        };
        let (mut answer, error) = match message {
            Ok(message) => {
                connection.frontend.encoded(Surface::Grpc, &facts);
                // A page decodes each frame by itself, and what is compressed is copied anyway.
                let answer = if form == Form::Native && answers.is_none() {
                    let length = message.encoded_len();
                    send_off(&connection, &id, length, |reservation| written::in_frames(message, length, reservation))
                } else {
                    answer(&connection, &id, &message)
                };
                (answer, None)
            }
            Err(error) => (refused(&connection, &id, &error), Some(error)),
        };
        quota::insert(answer.headers_mut(), &facts, error.as_ref());
        match answers {
            Some(coding) => encoding::compressed(answer, coding),
            None => answer,
        }
    })
}

/// `ServerLive` and `ServerReady`: without credentials, not counted as calls.
pub(super) async fn probe(connection: Arc<Connection>, id: CallId, probe: Probe, request: Request) -> Response {
    // Both requests are empty messages; what is in one is nothing that we know.
    if let Err(error) = read::<pb::ServerLiveRequest>(&connection, request).await {
        return refuse(&id, &error);
    }
    let readiness = &connection.frontend.readiness;
    match probe {
        Probe::Live => answer(&connection, &id, &pb::ServerLiveResponse { live: readiness.is_live() }),
        Probe::Ready => answer(&connection, &id, &pb::ServerReadyResponse { ready: readiness.is_ready() }),
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
    M: Readable,
    D: FnOnce(M) -> Result<Operation, Error> + Send + 'static,
{
    let (head, sender) = head::open(connection, id, intent, &request)?;
    let facts = Arc::clone(&head.facts);
    let decode = move |_: &Arc<Connection>, Parsed { message, whole, made, .. }: Parsed<M>| {
        // What is kept of it counts itself; what was made of it is there until then.
        drop(whole);
        let operation = decode(message);
        drop(made);
        operation
    };
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
    M: Readable,
    D: FnOnce(&Arc<Connection>, Parsed<M>) -> Result<Operation, Error> + Send + 'static,
{
    let coding = encoding::of_request(request.headers())?;
    let decode = move |connection: &Arc<Connection>, parsed: Parsed<M>| Decoding::Now(decode(connection, parsed));
    let input = pending(connection, coding, request.into_body(), decode);
    connection.frontend.gateway.call(Call { head, sender, input }).await
}

/// A message that will be read and decoded when the stack has decided that it may be.
fn pending<M, D>(connection: &Arc<Connection>, coding: Option<Coding>, body: Arrived, decode: D) -> Pending
where
    M: Readable,
    D: FnOnce(&Arc<Connection>, Parsed<M>) -> Decoding<Operation> + Send + 'static,
{
    let limit = connection.frontend.settings.size.body;
    let shared = Arc::clone(connection);
    let decode = move |message| parse(&shared, message, decode);
    let body = Arriving::new(body, Arc::clone(connection), Wait::Throughout);
    match coding {
        None => Pending::new(Single::new(body, limit, decode)),
        Some(_) => {
            let messages = streaming(connection, coding, body.handing_over());
            Pending::new(async move { decode(one(messages, limit).await?).wait().await })
        }
    }
}

/// Reads the one message of a request that is answered beside the stack.
///
/// # Errors
///
/// What [`encoding::of_request`] and [`Single`] answer.
pub(super) async fn read<M: Readable>(connection: &Arc<Connection>, request: Request) -> Result<M, Error> {
    let limit = connection.frontend.settings.size.body;
    let coding = encoding::of_request(request.headers())?;
    let body = Arriving::new(request.into_body(), Arc::clone(connection), Wait::Throughout);
    let message = match coding {
        None => Single::new(body, limit, |message| Decoding::Now(Ok(message))).await?,
        Some(_) => one(streaming(connection, coding, body.handing_over()), limit).await?,
    };
    alone(connection, message).await
}

/// A message of which nothing else is to be known.
///
/// # Errors
///
/// As [`parse`].
pub(super) async fn alone<M: Readable>(connection: &Arc<Connection>, message: Bytes) -> Result<M, Error> {
    parse(connection, message, |_, parsed: Parsed<M>| Decoding::Now(Ok(parsed.message))).wait().await
}

/// The messages of a request, none of them read. Each may have `limits.size.body` bytes: tonic's own limit is 4 MiB.
///
/// # Errors
///
/// As [`encoding::of_request`].
pub(super) fn messages(connection: &Arc<Connection>, request: Request, wait: Wait) -> Result<Streaming<Bytes>, Error> {
    let coding = encoding::of_request(request.headers())?;
    let body = Arriving::new(request.into_body(), Arc::clone(connection), wait);
    Ok(streaming(connection, coding, body))
}

fn streaming(connection: &Arc<Connection>, coding: Option<Coding>, body: Arriving<Arrived>) -> Streaming<Bytes> {
    let limit = Some(connection.frontend.settings.size.body);
    match coding {
        None => Streaming::new_request(Whole, body, None, limit),
        Some(coding) => {
            let body = encoding::inflated(body, coding, Arc::clone(connection));
            Streaming::new_request(Whole, body, None, limit)
        }
    }
}

/// Exactly one message of those that tonic reads: the compressed ones.
///
/// # Errors
///
/// As [`Single`].
pub(super) async fn one(mut messages: Streaming<Bytes>, limit: usize) -> Result<Bytes, Error> {
    let failed = |status: tonic::Status| arriving::error(&status, limit);
    let message = messages.message().await.map_err(failed)?.ok_or_else(|| count("no message"))?;
    match messages.message().await.map_err(failed)? {
        None => Ok(message),
        Some(_) => Err(count("more than one message")),
    }
}

/// The message of an answer, off the lane if many contents are typed: they are made element by element.
async fn encoded(connection: &Connection, reply: Reply, typed: bool) -> Result<pb::ModelInferResponse, Error> {
    let response = whole(reply).await?;
    let (work, memory) = (if typed { response.bytes() } else { 0 }, connection.frontend.memory.clone());
    let encode = move || {
        memory.expect(work)?;
        Ok(proto::encode_infer(response, typed))
    };
    body::offload(work, encode).await
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
pub(super) fn respond<M: Message>(connection: &Connection, id: &CallId, reply: Result<M, Error>) -> Response {
    reply.map_or_else(|error| refused(connection, id, &error), |message| answer(connection, id, &message))
}

fn refused(connection: &Connection, id: &CallId, error: &Error) -> Response {
    connection.observe(error);
    refuse(id, error)
}

/// One message and status 0.
pub(super) fn answer(connection: &Connection, id: &CallId, message: &impl Message) -> Response {
    let length = message.encoded_len();
    send_off(connection, id, length, |reservation| written::whole(message, length, reservation))
}

/// A message of `length` bytes that `write` writes, counted until it is handed over.
fn send_off(
    connection: &Connection,
    id: &CallId,
    length: usize,
    write: impl FnOnce(Option<Reservation>) -> Result<Trailed, Error>,
) -> Response {
    let body = connection.frontend.memory.reserve_large(PREFIX + length).and_then(write);
    let body = match body {
        Ok(body) => body,
        Err(error) => {
            connection.no_room(&error);
            return refused(connection, id, &error);
        }
    };
    connection.frontend.metrics.body_sent(Surface::Grpc, (PREFIX + length) as u64);
    headed(id, Body::Trailed(body))
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
    headed(id, Body::Grpc(tonic::body::Body::new(body)))
}

fn headed(id: &CallId, body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    name(&mut response, id);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::{Settings, grpc::fixture::world};
    use http_body_util::BodyExt;

    #[test]
    fn what_is_kept_of_a_call_stays_small() {
        fn size<F>(_: impl FnOnce(Arc<Connection>, &'static Fields<'static>, Arrived, Form) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(|connection, fields, body, form| infer(connection, fields, body, form));
        assert!(size <= 336, "{size}");
        let read = size_of::<Single<Arrived, fn(Bytes) -> Decoding<()>, ()>>();
        assert!(read <= 448, "{read}");
    }

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
        let response = answer(&connection, &id, &large());
        assert!(connection.frontend.memory.used() > 200_000);
        let refused = answer(&connection, &id, &large());
        assert_eq!(refused.headers()["grpc-status"], "14");
        let sent = response.into_body().collect().await.unwrap();
        assert_eq!(sent.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(connection.frontend.memory.used(), 0);
    }
}

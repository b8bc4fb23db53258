//! Replies as server-sent events: `infer_stream` and `generate_stream` (contract 07 section 1.2, contract 02 section 7).
//!
//! The head waits for the first output or failure, so that its status can be right, but not for ever. From then on the
//! stream runs on a task of its own that is gone as soon as nobody reads: dropping the reply cancels the work behind it.
//! What an event looks like is the dialect's.

use super::{Asked, render::stream_response};
use crate::{
    call::{Call, CallId, Chunk, Head, InferResponse, Intent, Pending, Reply, ReplyStream, Surface},
    error::Error,
    frontend::{
        Connection, Phase,
        body::{Body, TEXT, offload},
        http::Response,
        quota,
    },
    wire::{Settings, json, say_final},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use http_body::Frame;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// How long the head waits for the first output (contract 07 section 1.2).
const FIRST: Duration = Duration::from_secs(10);

/// How a stream of events is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Named events, and one that ends the stream.
    Infer,
    /// Plain data; the end of the body is the end.
    Generate,
}

impl Dialect {
    const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Infer => "text/event-stream",
            Self::Generate => "text/event-stream; charset=utf-8",
        })
    }

    fn output(self, mut response: InferResponse, last: bool, id: &CallId, settings: &Settings) -> Result<Bytes, Error> {
        match self {
            Self::Infer => {
                say_final(&mut response, last);
                json::encode_output_event(&response, id, settings)
            }
            Self::Generate => json::encode_generate(&response, settings).map(|data| json::event(None, &data)),
        }
    }

    fn done(self, client_id: Option<&str>, id: &CallId) -> Option<Bytes> {
        match self {
            Self::Infer => Some(json::encode_done_event(client_id, id)),
            Self::Generate => None,
        }
    }

    fn failed(self, error: &Error, id: &CallId) -> Bytes {
        match self {
            Self::Infer => json::encode_error_event(error, id),
            Self::Generate => json::event(None, &json::encode_error(error, id)),
        }
    }
}

/// Answers a request whose reply is a stream of events, whether the model streams or not.
pub(super) async fn serve(connection: Arc<Connection>, asked: Asked, pending: Pending, dialect: Dialect) -> Response {
    let Asked { id, label, context, steered, voice, sender, .. } = asked;
    if let Err(error) = connection.gate() {
        return voice.error(&error, &id);
    }
    let head = Head::new(id.clone(), Surface::Rest, Intent::Infer, Arc::clone(&connection.peer));
    let head = head.at(label).part_of(context).steered(steered);
    let facts = Arc::clone(&head.facts);
    let call = connection.frontend.gateway.call(Call { head, sender, input: pending });
    let mut writer = Writer { connection, id, dialect, client_id: None };
    let mut source = Source::Asking(call);
    let first = match timeout(FIRST, source.next()).await {
        Ok(Event::Failed(error)) => {
            writer.connection.observe(&error);
            let mut response = voice.error(&error, &writer.id);
            quota::insert(response.headers_mut(), &facts, Some(&error));
            return response;
        }
        Ok(event) => match writer.write(event).await {
            Ok(event) => event,
            Err(error) => return voice.error(&error, &writer.id),
        },
        // It takes its time: from here on a failure is an event.
        Err(_) => Some(Bytes::from_static(json::KEEP_ALIVE)),
    };
    let (events, body) = mpsc::channel(1);
    let mut response = stream_response(dialect.content_type(), Body::Channel(body), &writer.id);
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache, no-transform"));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    quota::insert(response.headers_mut(), &facts, None);
    tokio::spawn(pump(source, writer, first, events));
    response
}

/// Where events come from.
enum Source {
    Asking(BoxFuture<'static, Result<Reply, Error>>),
    Streaming(ReplyStream),
    /// All outputs are there; the end is still to be told.
    Ending,
    Over,
}

enum Event {
    Output(InferResponse, bool),
    Failed(Error),
    Done,
}

impl Source {
    /// The next event; [`Event::Done`] or [`Event::Failed`] is the last. May be dropped and asked again.
    async fn next(&mut self) -> Event {
        loop {
            match self {
                Self::Asking(call) => match call.await {
                    Ok(Reply::Infer(response)) => {
                        *self = Self::Ending;
                        return Event::Output(response, true);
                    }
                    Ok(Reply::Stream(stream)) => *self = Self::Streaming(stream),
                    Ok(Reply::Report(_)) => return self.fail(Error::internal("a report answers an inference")),
                    Err(error) => return self.fail(error),
                },
                Self::Streaming(stream) => match stream.next().await {
                    Some(Ok(Chunk::Tensors(response))) => return Event::Output(response, false),
                    Some(Err(error)) => return self.fail(error),
                    None => *self = Self::Ending,
                },
                Self::Ending | Self::Over => {
                    *self = Self::Over;
                    return Event::Done;
                }
            }
        }
    }

    fn fail(&mut self, error: Error) -> Event {
        *self = Self::Over;
        Event::Failed(error)
    }
}

/// Makes bytes of events.
struct Writer {
    connection: Arc<Connection>,
    id: CallId,
    dialect: Dialect,
    client_id: Option<Arc<str>>,
}

impl Writer {
    /// The bytes of `event`, counted against the memory budget; none if there is nothing to say. Large ones are made on the
    /// decoding threads, one event after the other.
    async fn write(&mut self, event: Event) -> Result<Option<Bytes>, Error> {
        let bytes = match event {
            Event::Output(response, last) => {
                self.client_id.clone_from(&response.client_id);
                let size = response.bytes() * TEXT;
                let (dialect, id, connection) = (self.dialect, self.id.clone(), Arc::clone(&self.connection));
                let encode = move || {
                    connection.frontend.memory.expect(size)?;
                    dialect.output(response, last, &id, &connection.frontend.settings.wire)
                };
                Some(offload(size, encode).await.inspect_err(|error| self.connection.no_room(error))?)
            }
            Event::Failed(error) => Some(self.dialect.failed(&error, &self.id)),
            Event::Done => self.dialect.done(self.client_id.as_deref(), &self.id),
        };
        let held = bytes.map(|bytes| self.connection.frontend.memory.hold(bytes)).transpose();
        held.inspect_err(|error| self.connection.no_room(error))
    }
}

/// Sends events until the last one, or until nobody reads.
async fn pump(mut source: Source, mut writer: Writer, first: Option<Bytes>, events: mpsc::Sender<Frame<Bytes>>) {
    let frontend = Arc::clone(&writer.connection.frontend);
    let mut phase = frontend.phase.clone();
    let mut sent = 0;
    let mut next = first;
    let mut over = matches!(source, Source::Over);
    loop {
        if let Some(bytes) = next.take() {
            sent += bytes.len() as u64;
            if events.send(Frame::data(bytes)).await.is_err() {
                break;
            }
        }
        if over {
            break;
        }
        let event = tokio::select! {
            biased;
            () = events.closed() => break,
            // A process without a phase is on its way out too.
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => Event::Failed(Error::ShuttingDown),
            event = source.next() => event,
            () = sleep(frontend.settings.timers.stream_ping) => {
                next = Some(Bytes::from_static(json::KEEP_ALIVE));
                continue;
            }
        };
        over = !matches!(event, Event::Output(..));
        if let Event::Failed(error) = &event {
            writer.connection.observe(error);
        }
        next = match writer.write(event).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // It is gone with its outputs: the rest would not be what was asked for.
                over = true;
                Some(writer.dialect.failed(&error, &writer.id))
            }
        };
    }
    frontend.metrics.body_sent(Surface::Rest, sent);
}

#[cfg(test)]
#[path = "sse_tests.rs"]
mod tests;

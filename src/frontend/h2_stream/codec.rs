//! The text messages of `sluicegate.v1`, one a line, without a session's own (contract 07 section 2).

use super::{
    STATUS,
    link::{Line, Outgoing},
};
use crate::{
    call::{InferResponse, trace::TraceContext},
    error::Error,
    frontend::{
        Connection,
        duplex::{
            About, Ask, Codec, Outbox, State, Why,
            messages::{self, Binary, Body, Note, Tag},
        },
    },
    wire::message::{self, Encoded, Envelope, Kind},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Lines in a row that may be no messages.
const BAD: usize = 3;

/// The session of one stream.
pub(super) struct Protocol {
    connection: Arc<Connection>,
    /// Whose work the stream is part of.
    context: Option<TraceContext>,
    requests: u64,
    errors: u64,
    /// Lines in a row that were no messages.
    bad: usize,
    /// When a line last came or went.
    active: Instant,
    /// When a line last went.
    spoke: Instant,
    /// When bytes of a line last came whose end has not come.
    part: Option<Instant>,
}

impl Protocol {
    pub(super) fn new(connection: Arc<Connection>, context: Option<TraceContext>) -> Self {
        let now = Instant::now();
        Self { connection, context, requests: 0, errors: 0, bad: 0, active: now, spoke: now, part: None }
    }

    fn say(&mut self, line: Bytes, out: &mut Outbox<Outgoing>) {
        self.output(Outgoing::Line(line), out);
    }

    /// An error that is nobody's request.
    fn complain(&mut self, error: &Error, out: &mut Outbox<Outgoing>) {
        self.errors += 1;
        self.say(message::server_error(error), out);
    }

    /// A line that is no message.
    fn bad(&mut self, error: &Error, out: &mut Outbox<Outgoing>) -> Result<Ask<Tag, Note>, Why> {
        self.bad += 1;
        if self.bad == BAD {
            self.errors += 1;
            return Err(Why::Error(Error::invalid(format!("{BAD} lines in a row are no messages: {error}"))));
        }
        self.complain(error, out);
        Ok(Ask::Nothing)
    }

    /// Since when the rest of a line is waited for. While nobody listens, nobody waits.
    fn stalls(&self, state: State) -> Option<Instant> {
        Some(self.part?.max(state.reading?))
    }

    fn message(&mut self, line: Bytes, out: &mut Outbox<Outgoing>) -> Result<Ask<Tag, Note>, Why> {
        let (line, room) = messages::hold(&self.connection, line);
        let body = Body::Text(line);
        let shared = body.clone();
        let mut envelope = match Envelope::peek(body.json()) {
            Ok(envelope) => envelope,
            Err(error) => return self.bad(&error, out),
        };
        if !envelope.kind.needs_id() {
            return self.bad(&Error::invalid("a message of this `type` has no place in a stream"), out);
        }
        self.bad = 0;
        self.requests += u64::from(envelope.kind == Kind::Infer);
        let Some(id) = envelope.id else {
            self.complain(&Error::invalid("the message has no valid `id`"), out);
            return Ok(Ask::Nothing);
        };
        Ok(messages::ask(&self.connection, Tag::from(id), &mut envelope, shared, room, None, Binary::Never))
    }
}

impl Codec for Protocol {
    type Tag = Tag;
    type Note = Note;
    type Received = Line;
    type Frame = Outgoing;

    fn receive(&mut self, line: Line, out: &mut Outbox<Outgoing>) -> Result<Ask<Tag, Note>, Why> {
        let Line::Whole(line) = line else {
            self.part = Some(out.now());
            return Ok(Ask::Nothing);
        };
        self.part = None;
        self.active = out.now();
        if line.trim_ascii().is_empty() {
            return Ok(Ask::Nothing);
        }
        self.message(line, out)
    }

    fn proved(&mut self, _: Result<(), Error>, _: &mut Outbox<Outgoing>) -> Result<(), Why> {
        Ok(())
    }

    fn work(note: &Note, response: &InferResponse) -> usize {
        messages::work(note, response)
    }

    fn encode(
        connection: &Connection,
        about: &About<'_, Tag, Note>,
        last: bool,
        response: InferResponse,
    ) -> Result<Outgoing, Error> {
        match messages::output(connection, about, last, &response)? {
            Encoded::Text(json) => Ok(Outgoing::Line(json)),
            Encoded::Binary(_) => Err(Error::internal("a binary frame has no place in a line")),
        }
    }

    fn output(&mut self, line: Outgoing, out: &mut Outbox<Outgoing>) {
        (self.spoke, self.active) = (out.now(), out.now());
        out.push(line);
    }

    fn done(&mut self, about: About<'_, Tag, Note>, out: &mut Outbox<Outgoing>) {
        let timing = about.facts.and_then(|facts| facts.timing.get());
        self.say(message::done(about.tag, timing), out);
    }

    fn context(&self) -> Option<TraceContext> {
        self.context
    }

    fn cancelled(&mut self, tag: &Tag, out: &mut Outbox<Outgoing>) {
        self.say(message::cancelled(tag), out);
    }

    fn failed(&mut self, about: About<'_, Tag, Note>, error: &Error, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        self.errors += 1;
        self.say(message::error(about.tag, error), out);
        Ok(())
    }

    fn duplicate(&mut self, tag: &Tag, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        // With the `id` it would be the end of the request that has it.
        self.complain(&Error::Conflict(format!("a request with `id` `{tag}` is in flight").into()), out);
        Ok(())
    }

    fn unauthenticated(&mut self, _: &mut Outbox<Outgoing>) -> Result<(), Why> {
        // There is no way to renew credentials here (contract 06 C1).
        Err(Why::Error(Error::Unauthenticated))
    }

    fn draining(&mut self, _: Duration, _: &mut Outbox<Outgoing>) {}

    fn farewell(&mut self, why: &Why, out: &mut Outbox<Outgoing>) {
        let (line, status) = match why {
            Why::Done => (message::finished(self.requests, self.errors), "ok"),
            Why::Draining => failure(&Error::ShuttingDown),
            Why::Idle => failure(&Error::BodyStalled),
            Why::Error(error) => failure(error),
            Why::Fault(_, reason) => failure(&Error::invalid(reason.clone())),
            Why::SlowConsumer | Why::Gone | Why::Lost => return,
        };
        self.say(line, out);
        let trailers: HeaderMap =
            [(HeaderName::from_static(STATUS), HeaderValue::from_static(status))].into_iter().collect();
        out.push(Outgoing::Trailers(trailers));
    }

    fn deadline(&self, state: State) -> Option<Instant> {
        let settings = &self.connection.frontend.settings;
        let ping = self.spoke + settings.timers.stream_ping;
        let stalled = self.stalls(state).map(|since| since + settings.timers.read_stall);
        // A stream without a line and without a call is no more than a WebSocket that idles.
        let idle = (!state.busy).then(|| self.active + settings.websocket.idle);
        [Some(ping), stalled, idle].into_iter().flatten().min()
    }

    fn due(&mut self, state: State, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        let settings = &self.connection.frontend.settings;
        let since = |moment: Instant| state.now.saturating_duration_since(moment);
        if self.stalls(state).is_some_and(|part| since(part) >= settings.timers.read_stall) {
            return Err(Why::Error(Error::BodyStalled));
        }
        if !state.busy && since(self.active) >= settings.websocket.idle {
            return Err(Why::Idle);
        }
        if since(self.spoke) >= settings.timers.stream_ping {
            // Not activity: it only keeps proxies awake.
            self.spoke = out.now();
            out.push(Outgoing::Line(Bytes::new()));
        }
        Ok(())
    }
}

fn failure(error: &Error) -> (Bytes, &'static str) {
    (message::server_error(error), error.code().name())
}

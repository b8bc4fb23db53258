//! `sluicegate.v1` on a WebSocket: who speaks, what they say, and when the socket is closed (contract 06 C).
//!
//! Knows messages, close codes and the session's clocks; frames are the link's business, and calls the loop's.

use super::{close, frames::Welcomed, link::Outgoing};
use crate::{
    call::{Credentials, InferResponse, trace::TraceContext},
    error::{Code, Error},
    frontend::{
        Connection,
        duplex::{
            About, Ask, Codec, Outbox, State, Why,
            messages::{self, Binary, Body, Note, Tag},
        },
    },
    wire::message::{self, Auth, Encoded, Envelope, Frame, Kind, Limits, Want},
};
use std::{borrow::Cow, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

/// What is served; `input_stream` is not there yet.
const FEATURES: [&str; 4] = ["binary", "stream", "cancel", "credit"];

/// Who the handshake found.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// Whoever the handshake's own credentials prove.
    Proven,
    /// Nobody in particular, whom the stack knows or refuses; `hello` may say more.
    Anonymous(Result<(), Error>),
    /// Somebody whose credentials, sent where a browser sees no answer, prove nothing.
    Refused(Error),
}

/// The session of one WebSocket.
pub(super) struct Protocol {
    connection: Arc<Connection>,
    caller: Caller,
    greeting: Greeting,
    /// Tells the link about `greeting`.
    welcomed: Welcomed,
    want: Want,
    /// Whose work the session is part of, as its hello says, or else its handshake.
    context: Option<TraceContext>,
    clock: Clock,
    /// Until when credentials have to be renewed.
    renew: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    /// `hello` has to come until then.
    Awaited(Instant),
    /// Its credentials are looked at.
    Proving,
    /// `welcome` was sent.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    /// When anything came.
    heard: Instant,
    /// When a message came or went, or a call was in flight.
    active: Instant,
    /// A ping is out, since the last time anything came.
    pinged: bool,
}

impl Protocol {
    pub(super) fn new(
        connection: Arc<Connection>,
        caller: Caller,
        context: Option<TraceContext>,
        welcomed: Welcomed,
    ) -> Self {
        let now = Instant::now();
        let hello = now + connection.frontend.settings.websocket.hello;
        Self {
            connection,
            caller,
            greeting: Greeting::Awaited(hello),
            welcomed,
            want: Want::default(),
            context,
            clock: Clock { heard: now, active: now, pinged: false },
            renew: None,
        }
    }

    fn hello(&mut self, json: &[u8], out: &mut Outbox<Outgoing>) -> Result<Ask<Tag, Note>, Why> {
        if !matches!(self.greeting, Greeting::Awaited(_)) {
            return Err(fault(close::SECOND_HELLO, "a second hello"));
        }
        let hello =
            message::hello(json, &self.connection.frontend.settings.wire).map_err(|error| no_message(&error))?;
        if hello.protocol != 1 {
            return Err(fault(close::of(Code::InvalidArgument), "a `protocol` that is not 1"));
        }
        self.want = hello.want;
        self.context = Envelope::peek(json).ok().and_then(|envelope| envelope.context).or(self.context);
        let accepts = self.connection.frontend.settings.websocket.first_message;
        match (&self.caller, hello.auth) {
            (Caller::Anonymous(_), Some(auth)) if accepts => {
                self.greeting = Greeting::Proving;
                Ok(Ask::Prove(credentials(auth)))
            }
            (Caller::Anonymous(_), Some(_)) => Err(self.refusal(&Error::Unauthenticated)),
            // What was sent with the handshake decides (contract 06 C1).
            (Caller::Proven, _) | (Caller::Anonymous(Ok(())), None) => {
                self.welcome(out);
                Ok(Ask::Nothing)
            }
            (Caller::Anonymous(Err(error)), None) => {
                self.connection.observe(error);
                Err(self.refusal(error))
            }
            (Caller::Refused(error), _) => Err(self.refusal(error)),
        }
    }

    fn welcome(&mut self, out: &mut Outbox<Outgoing>) {
        self.greeting = Greeting::Over;
        self.welcomed.set();
        let settings = &self.connection.frontend.settings;
        let (websocket, most) = (&settings.websocket, settings.concurrency.per_socket);
        let limits = Limits {
            max_message_bytes: settings.size.message,
            max_inflight: most,
            max_id_length: Limits::ID,
            default_credit: self.credit(),
            idle_timeout_ms: websocket.idle.as_millis(),
            ping_interval_ms: websocket.ping.as_millis(),
            max_send_buffer_bytes: websocket.send_buffer,
        };
        // A name for logs, and for people who ask about one.
        let session = format!("s_{}", crate::call::CallId::make());
        out.push(Outgoing::Text(message::welcome(&session, &limits, &FEATURES)));
    }

    fn credit(&self) -> u32 {
        let credit = self.connection.frontend.settings.websocket.credit;
        self.want.default_credit.map_or(credit, |wanted| wanted.min(credit))
    }

    /// Why a session without a caller ends.
    fn refusal(&self, error: &Error) -> Why {
        match error.code() {
            Code::Unauthenticated => fault(close::of(Code::Unauthenticated), "not authenticated"),
            Code::PermissionDenied => fault(close::of(Code::PermissionDenied), "no grant"),
            Code::NotReady => Why::Draining,
            // Known only now: at the handshake it would have been a status.
            Code::RateLimited => fault(close::TOO_MANY, "as many sessions as one identity may have"),
            Code::Overloaded => fault(close::NO_CAPACITY, "no capacity for the session"),
            _ => Why::Error(error.clone()),
        }
    }

    fn message(
        &mut self,
        body: &Body,
        room: Result<(), Error>,
        out: &mut Outbox<Outgoing>,
    ) -> Result<Ask<Tag, Note>, Why> {
        let json = body.json();
        let mut envelope = Envelope::peek(json).map_err(|error| no_message(&error))?;
        if let Body::Binary(frame) = body {
            frame.check(&envelope).map_err(|error| no_message(&error))?;
        }
        match envelope.kind {
            Kind::Hello => return self.hello(json, out),
            Kind::Ping => {
                out.push(Outgoing::Text(message::pong(envelope.t)));
                return Ok(Ask::Nothing);
            }
            Kind::Pong => return Ok(Ask::Nothing),
            _ if self.greeting != Greeting::Over => {
                return Err(fault(close::of(Code::Unauthenticated), "a request before hello"));
            }
            Kind::Auth => {
                let auth =
                    message::auth(json, &self.connection.frontend.settings.wire).map_err(|error| no_message(&error))?;
                return Ok(Ask::Prove(credentials(auth)));
            }
            Kind::Bye => return Ok(Ask::Finish(Why::Done)),
            Kind::Infer | Kind::Input | Kind::Credit | Kind::Cancel => {}
        }
        let Some(id) = envelope.id else {
            return Err(fault(close::of(Code::InvalidArgument), "a message without a valid `id`"));
        };
        let binary = if self.want.binary_outputs { Binary::Wanted } else { Binary::IfSaid };
        let credit = Some(self.credit());
        // The envelope borrows the message: its bytes are shared, not copied.
        let shared = body.clone();
        Ok(messages::ask(&self.connection, Tag::from(id), &mut envelope, shared, room, credit, binary))
    }
}

fn fault(code: u16, reason: impl Into<Cow<'static, str>>) -> Why {
    Why::Fault(code, reason.into())
}

/// What came is no message.
fn no_message(error: &Error) -> Why {
    fault(close::of(Code::InvalidArgument), error.to_string())
}

/// A scheme that is not known proves nothing.
fn credentials(auth: Auth) -> Credentials {
    match &*auth.scheme {
        "bearer" => Credentials::Bearer(auth.token.into()),
        "api_key" => Credentials::ApiKey(auth.token.into()),
        _ => Credentials::ApiKey("".into()),
    }
}

impl Codec for Protocol {
    type Tag = Tag;
    type Note = Note;
    type Received = Message;
    type Frame = Outgoing;

    fn receive(&mut self, frame: Message, out: &mut Outbox<Outgoing>) -> Result<Ask<Tag, Note>, Why> {
        self.clock.heard = out.now();
        self.clock.pinged = false;
        let (body, room) = match frame {
            Message::Text(text) => {
                let (json, room) = messages::hold(&self.connection, text.into());
                (Body::Text(json), room)
            }
            Message::Binary(payload) => {
                let (payload, room) = messages::hold(&self.connection, payload);
                (Body::Binary(Frame::cut(&payload).map_err(|error| no_message(&error))?), room)
            }
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return Ok(Ask::Nothing),
        };
        self.clock.active = out.now();
        self.message(&body, room, out)
    }

    fn proved(&mut self, result: Result<(), Error>, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        match result {
            Ok(()) => {
                self.caller = Caller::Proven;
                self.renew = None;
                if self.greeting == Greeting::Proving {
                    self.welcome(out);
                }
                Ok(())
            }
            Err(error) => Err(self.refusal(&error)),
        }
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
        messages::output(connection, about, last, &response).map(|encoded| match encoded {
            Encoded::Text(json) => Outgoing::Text(json),
            Encoded::Binary(pieces) => Outgoing::Binary(pieces),
        })
    }

    fn output(&mut self, frame: Outgoing, out: &mut Outbox<Outgoing>) {
        self.clock.active = out.now();
        out.push(frame);
    }

    fn done(&mut self, about: About<'_, Tag, Note>, out: &mut Outbox<Outgoing>) {
        self.clock.active = out.now();
        let timing = about.facts.and_then(|facts| facts.timing.get());
        out.push(Outgoing::Text(message::done(about.tag, timing)));
    }

    fn context(&self) -> Option<TraceContext> {
        self.context
    }

    fn cancelled(&mut self, tag: &Tag, out: &mut Outbox<Outgoing>) {
        out.push(Outgoing::Text(message::cancelled(tag)));
    }

    fn failed(&mut self, about: About<'_, Tag, Note>, error: &Error, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        self.clock.active = out.now();
        out.push(Outgoing::Text(message::error(about.tag, error)));
        Ok(())
    }

    fn duplicate(&mut self, _: &Tag, _: &mut Outbox<Outgoing>) -> Result<(), Why> {
        Err(fault(close::DUPLICATE, "an `id` that is in flight"))
    }

    fn unauthenticated(&mut self, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        if self.renew.is_none() {
            let renew = self.connection.frontend.settings.websocket.renew;
            self.renew = Some(out.now() + renew);
            out.push(Outgoing::Text(message::auth_required(renew)));
        }
        Ok(())
    }

    fn draining(&mut self, within: Duration, out: &mut Outbox<Outgoing>) {
        out.push(Outgoing::Text(message::goaway("draining", within)));
    }

    fn farewell(&mut self, why: &Why, out: &mut Outbox<Outgoing>) {
        let (code, reason) = match why {
            Why::Done => (close::NORMAL, Cow::Borrowed("")),
            Why::Idle => (close::NORMAL, Cow::Borrowed("idle")),
            Why::Draining => (close::of(Code::NotReady), Cow::Borrowed("draining")),
            Why::SlowConsumer => (close::SLOW, Cow::Borrowed("slow consumer")),
            Why::Fault(code, reason) => (*code, reason.clone()),
            Why::Error(error) => (close::of(error.code()), Cow::Owned(error.to_string())),
            Why::Gone | Why::Lost => return,
        };
        out.push(Outgoing::Close(code, reason));
    }

    fn deadline(&self, state: State) -> Option<Instant> {
        let limits = &self.connection.frontend.settings.websocket;
        // A peer that is not read cannot be heard: then only its own reading counts.
        let intervals = if self.clock.pinged { 2 } else { 1 };
        let alive = state.reading.map(|since| self.clock.heard.max(since) + limits.ping * intervals);
        let idle = (!state.busy).then(|| self.clock.active + limits.idle);
        let hello = match (&self.caller, self.greeting) {
            (Caller::Refused(_), _) => Some(self.clock.active),
            (_, Greeting::Awaited(until)) => Some(until),
            (_, Greeting::Proving | Greeting::Over) => None,
        };
        [alive, idle, hello, self.renew].into_iter().flatten().min()
    }

    fn due(&mut self, state: State, out: &mut Outbox<Outgoing>) -> Result<(), Why> {
        let limits = &self.connection.frontend.settings.websocket;
        let passed = |moment: Instant| moment <= state.now;
        if let Caller::Refused(error) = &self.caller {
            return Err(self.refusal(error));
        }
        if let Greeting::Awaited(until) = self.greeting
            && passed(until)
        {
            return Err(fault(close::NO_HELLO, "no hello in time"));
        }
        if self.renew.is_some_and(passed) {
            return Err(fault(close::of(Code::Unauthenticated), "credentials not renewed in time"));
        }
        if !state.busy && passed(self.clock.active + limits.idle) {
            return Err(Why::Idle);
        }
        let Some(since) = state.reading else { return Ok(()) };
        let heard = self.clock.heard.max(since);
        if passed(heard + limits.ping * 2) {
            return Err(Why::Lost);
        }
        if !self.clock.pinged && passed(heard + limits.ping) {
            self.clock.pinged = true;
            out.push(Outgoing::Ping);
        }
        Ok(())
    }
}

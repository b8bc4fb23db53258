//! THE loop of message-oriented surfaces: WebSocket, NDJSON and gRPC streams.
//!
//! One `Session` per socket or stream, on one task: it reads frames, makes a call of each message, and writes what
//! becomes of them. A `Link` moves frames and knows nothing of their meaning; a `Codec` knows what they mean and
//! nothing of bytes on sockets. The loop itself knows neither protocol: it holds the calls in flight, their order,
//! their credit, and the limits of what waits to be sent.
//!
//! Calls are futures within the session's own task and not tasks of their own: an idle session then costs no more than
//! its connection, a call no channel and no second wake-up, and all that became ready in one turn is written at once.
//! Dropping the session drops its calls, and dropping is cancelling.
//!
//! What a reply becomes on the wire is written here too, unless it is large: then a decoding thread writes it, and the call
//! waits for that as it waited for its reply, in its place and bounded by the same limits.

mod call;
mod exchange;
#[cfg(test)]
pub(super) mod fixture;
pub(super) mod messages;
mod outbox;
mod pipe;
mod session;

pub(super) use call::{Ask, Credit, Opened, Ticket};
pub(super) use outbox::{Outbox, Weigh};
pub(super) use pipe::Pipe;
pub(super) use session::Session;

use crate::{
    call::{Credentials, Facts, InferResponse, Route, Steered, Surface, trace::TraceContext},
    error::Error,
    frontend::Connection,
};
use std::{
    borrow::Cow,
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant as StdInstant},
};
use tokio::time::Instant;

/// Moves frames between the session and its peer.
pub(super) trait Link: Send {
    /// What is read.
    type Received;
    /// What is written.
    type Frame: Weigh;

    /// The next frame.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received<Self::Received>>;

    /// Takes frames out of `outbox` for as long as the peer takes them. Ready once all are handed over.
    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox<Self::Frame>) -> Sending;

    /// Says goodbye in the way of the transport, after the last frame was sent.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// What came of reading.
#[derive(Debug)]
pub(super) enum Received<T> {
    /// A frame.
    Frame(T),
    /// The peer has said all that it wanted to say, and still listens.
    Over,
    /// The peer has ended the session, or is gone: nobody listens.
    Closed,
    /// What came is not what the transport allows.
    Fault(Why),
}

/// What came of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// Everything is handed over.
    Done,
    /// The peer took something, and there is more.
    Some,
    /// The peer takes nothing.
    Blocked,
    /// Nobody listens.
    Gone,
}

/// Knows what frames mean: the vocabulary of one surface, and the state of its session.
pub(super) trait Codec: Send {
    /// What names a call within the session.
    type Tag: Clone + Eq + Hash + Debug + Send + Unpin + 'static;
    /// What a call's request says about its answers.
    type Note: Send + Sync + 'static;
    /// What is read.
    type Received;
    /// What is written.
    type Frame: Weigh + Send + 'static;

    /// What `frame` asks for. What can be answered at once goes into `out`.
    ///
    /// # Errors
    ///
    /// Why the session has to end.
    fn receive(
        &mut self,
        frame: Self::Received,
        out: &mut Outbox<Self::Frame>,
    ) -> Result<Ask<Self::Tag, Self::Note>, Why>;

    /// Credentials that the session asked about are proven, or are not.
    ///
    /// # Errors
    ///
    /// Why the session has to end.
    fn proved(&mut self, result: Result<(), Error>, out: &mut Outbox<Self::Frame>) -> Result<(), Why>;

    /// Bytes that [`Codec::encode`] would have to write one by one: what is large is written on the decoding threads.
    /// Raw tensors are shared and count nothing.
    fn work(note: &Self::Note, response: &InferResponse) -> usize;

    /// Writes outputs of a call, the last ones if `last`. It may run on a decoding thread, and then `about` has no facts.
    ///
    /// # Errors
    ///
    /// Whatever cannot be encoded; the call is then answered with it.
    fn encode(
        connection: &Connection,
        about: &About<'_, Self::Tag, Self::Note>,
        last: bool,
        response: InferResponse,
    ) -> Result<Self::Frame, Error>;

    /// Outputs of a call that are written: they leave now.
    fn output(&mut self, frame: Self::Frame, out: &mut Outbox<Self::Frame>);

    /// A call that streamed is over.
    fn done(&mut self, about: About<'_, Self::Tag, Self::Note>, out: &mut Outbox<Self::Frame>);

    /// A call was taken back by its client.
    fn cancelled(&mut self, tag: &Self::Tag, out: &mut Outbox<Self::Frame>);

    /// A call failed, or was refused.
    ///
    /// # Errors
    ///
    /// Why the session has to end with it.
    fn failed(
        &mut self,
        about: About<'_, Self::Tag, Self::Note>,
        error: &Error,
        out: &mut Outbox<Self::Frame>,
    ) -> Result<(), Why>;

    /// A call has the tag of one that is in flight.
    ///
    /// # Errors
    ///
    /// Why the session has to end.
    fn duplicate(&mut self, tag: &Self::Tag, out: &mut Outbox<Self::Frame>) -> Result<(), Why>;

    /// Whose work the session is part of, for calls that do not say so themselves.
    fn context(&self) -> Option<TraceContext> {
        None
    }

    /// The credentials of the session prove nothing any more.
    ///
    /// # Errors
    ///
    /// Why the session has to end once what runs has finished.
    fn unauthenticated(&mut self, out: &mut Outbox<Self::Frame>) -> Result<(), Why>;

    /// The process is on its way out: new calls will be refused.
    fn draining(&mut self, within: Duration, out: &mut Outbox<Self::Frame>);

    /// The last words. Nothing is written after them.
    fn farewell(&mut self, why: &Why, out: &mut Outbox<Self::Frame>);

    /// When to look at the clock next.
    fn deadline(&self, state: State) -> Option<Instant>;

    /// Does what is due.
    ///
    /// # Errors
    ///
    /// Why the session has to end.
    fn due(&mut self, state: State, out: &mut Outbox<Self::Frame>) -> Result<(), Why>;
}

/// What a codec may want to know of a call in flight.
#[derive(Debug)]
pub(super) struct About<'a, T, N> {
    /// Its name.
    pub(super) tag: &'a T,
    /// What its request said.
    pub(super) note: &'a N,
    /// How many outputs there were before.
    pub(super) seq: u64,
    /// What the stack learned; `None` if it never saw the call.
    pub(super) facts: Option<&'a Facts>,
}

/// What the session is doing, as far as timers care.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// The present.
    pub(super) now: Instant,
    /// Calls are in flight.
    pub(super) busy: bool,
    /// Since when the peer is listened to, if it is.
    pub(super) reading: Option<Instant>,
}

/// Why a session ends.
#[derive(Clone, Debug)]
pub(super) enum Why {
    /// The client has what it wanted.
    Done,
    /// Nothing has happened for too long.
    Idle,
    /// The process is on its way out.
    Draining,
    /// The peer does not read.
    SlowConsumer,
    /// The peer has said goodbye: there is nobody to tell.
    Gone,
    /// The peer is not heard any more: nothing is waited for.
    Lost,
    /// A fault that the surface has a number of its own for, and a few words.
    Fault(u16, Cow<'static, str>),
    /// The session itself failed.
    Error(Error),
}

/// Who a session speaks for.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    /// What its calls are sent with.
    credentials: Credentials,
    /// What the stack learned when it proved them; `None` if it did not, or was not asked.
    proof: Option<Arc<Facts>>,
    /// Headers that the session was opened with: they count for each of its calls.
    steered: Option<Steered>,
}

impl Speaker {
    /// Whoever `credentials` prove: the stack has said so in `proof`.
    pub(super) const fn proven(credentials: Credentials, proof: Arc<Facts>) -> Self {
        Self { credentials, proof: Some(proof), steered: None }
    }

    /// Nobody that the stack knows.
    pub(super) const fn unknown() -> Self {
        Self { credentials: Credentials::None, proof: None, steered: None }
    }

    /// The same, in a session that was opened with these headers.
    #[must_use]
    pub(super) fn steered(self, steered: Option<Steered>) -> Self {
        Self { steered, ..self }
    }

    /// When the proof will have ended, if that is known.
    fn until(&self) -> Option<Instant> {
        let until = self.proof.as_ref()?.identity.get()?.until()?;
        let left = until.duration_since(std::time::SystemTime::now()).unwrap_or_default();
        // A time that no clock will reach is no end.
        Instant::now().checked_add(left)
    }
}

/// Limits and choices of one session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// For heads of calls.
    pub(super) surface: Surface,
    /// For heads of calls.
    pub(super) route: Route,
    /// Calls in flight.
    pub(super) in_flight: usize,
    /// What happens to a call beyond.
    pub(super) beyond: Beyond,
    /// In which order answers leave.
    pub(super) order: Order,
    /// Messages that wait to be sent, as a number.
    pub(super) send_messages: usize,
    /// Messages that wait to be sent, in bytes.
    pub(super) send_bytes: usize,
    /// How long a peer may take nothing (`limits.timers.write_stall`).
    pub(super) write_stall: Duration,
    /// Whether what runs is finished before a fault ends the session.
    pub(super) patient: bool,
}

/// What happens to a call beyond those that may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    /// It is refused, and the peer is still listened to: what it says may end other calls.
    Refuse,
    /// It is not read, unless a call in flight waits for credit, which comes by the same way.
    Wait,
}

/// In which order answers leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they come.
    Any,
    /// In the order of requests, except those that stream.
    Whole,
    /// In the order of requests.
    All,
}

/// How long until `deadline`, from now on.
pub(super) fn within(deadline: StdInstant) -> Duration {
    deadline.saturating_duration_since(StdInstant::now())
}

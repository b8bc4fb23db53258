//! The loop itself: one session, its calls in flight, and its end.

mod calls;
mod proof;

use super::{
    Beyond, Codec, Link, Outbox, Received, Rules, Sending, Speaker, State, Ticket, Why,
    exchange::{Event, Exchange},
    within,
};
use crate::{
    call::{Facts, InferResponse, Steered},
    error::Error,
    frontend::{Connection, Phase},
    telemetry::metrics::Gauge,
};
use futures_util::stream::FuturesUnordered;
use proof::Proof;
use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// For the last words and the goodbye of the transport.
const CLOSING: Duration = Duration::from_secs(5);
/// Frames read, and events taken, before the other side has its turn.
const BURST: usize = 32;
/// Rounds of reading, running and writing before other tasks of the lane have their turn.
const ROUNDS: usize = 16;
/// When to look at the clock if nobody wants to.
const FAR: Duration = Duration::from_secs(3600);

/// One WebSocket, or one stream, from its opening to its end.
pub(in crate::frontend) struct Session<C: Codec, L> {
    connection: Arc<Connection>,
    rules: Rules,
    codec: C,
    link: L,
    speaker: Speaker,
    /// Headers that it was opened with, whoever it speaks for later.
    steered: Option<Steered>,
    /// Credentials that the client has sent. Nothing is read until they are known.
    proving: Option<Proof>,
    /// The speaker's own, looked at again. All else goes on meanwhile.
    checking: Option<Proof>,
    /// When to look at them again.
    check: Option<Instant>,
    running: FuturesUnordered<Exchange<C>>,
    entries: HashMap<C::Tag, Entry<C>>,
    /// Tags in the order of requests, where answers leave in that order.
    order: VecDeque<(C::Tag, u64)>,
    /// Calls in flight whose client said how many chunks it takes.
    credited: usize,
    serial: u64,
    outbox: Outbox<C::Frame>,
    /// When the peer last took something, while there is more.
    stalled: Option<Instant>,
    /// Since when the peer is listened to, if it is.
    reading: Option<Instant>,
    input_over: bool,
    draining: bool,
    life: Life,
    /// Those of the call that opened it: they hold its place among its caller's sessions. `None` while nobody is known.
    place: Option<Arc<Facts>>,
    _gauge: Gauge,
}

/// A call in flight.
struct Entry<C: Codec> {
    serial: u64,
    ticket: Arc<Ticket<C::Note>>,
    facts: Arc<Facts>,
    streams: bool,
    credited: bool,
    seq: u64,
    received: usize,
    sent: u64,
    /// The one chunk of a reply that must not be more.
    only: Option<InferResponse>,
    /// What happened before it was this call's turn.
    held: Option<(Exchange<C>, Event<C::Frame>)>,
}

enum Life {
    Open,
    /// Nothing new is taken; ends when nothing is in flight.
    Finishing(Why),
    /// The last words are said; until then at most.
    Closing(Instant),
}

enum Step {
    Over,
    Phase {
        orphaned: bool,
    },
    /// Credentials may have been revoked; `orphaned` if nobody will say so again.
    Proofs {
        orphaned: bool,
    },
}

impl<C, L> Session<C, L>
where
    C: Codec,
    L: Link<Received = C::Received, Frame = C::Frame>,
{
    /// A session that speaks for `speaker`.
    pub(in crate::frontend) fn new(
        connection: Arc<Connection>,
        rules: Rules,
        speaker: Speaker,
        codec: C,
        link: L,
    ) -> Self {
        let place = speaker.proof.clone();
        let gauge = connection.frontend.metrics.session_opened(rules.surface);
        Self {
            connection,
            codec,
            link,
            check: speaker.until(),
            steered: speaker.steered.clone(),
            speaker,
            proving: None,
            checking: None,
            running: FuturesUnordered::new(),
            entries: HashMap::new(),
            order: VecDeque::new(),
            credited: 0,
            serial: 0,
            outbox: Outbox::new(rules.send_messages, rules.send_bytes),
            stalled: None,
            reading: None,
            input_over: false,
            draining: false,
            life: Life::Open,
            place,
            rules,
            _gauge: gauge,
        }
    }

    /// Runs until the session is over. Dropping it cancels its calls and says nothing.
    pub(in crate::frontend) async fn run(mut self) {
        let mut phase = self.connection.frontend.phase.clone();
        // What was said before this session was there counts too.
        phase.mark_changed();
        let mut sleep = pin!(sleep_until(Instant::now() + FAR));
        let mut proofs = self.connection.frontend.proofs.clone();
        let (mut orphaned, mut unheard) = (false, false);
        loop {
            let step = {
                let mut changed = pin!(phase.changed());
                let mut doubted = pin!(proofs.changed());
                poll_fn(|cx| {
                    if !orphaned && let Poll::Ready(result) = changed.as_mut().poll(cx) {
                        return Poll::Ready(Step::Phase { orphaned: result.is_err() });
                    }
                    if !unheard && let Poll::Ready(result) = doubted.as_mut().poll(cx) {
                        return Poll::Ready(Step::Proofs { orphaned: result.is_err() });
                    }
                    self.poll(cx, sleep.as_mut()).map(|()| Step::Over)
                })
                .await
            };
            match step {
                Step::Over => return,
                Step::Proofs { orphaned } => {
                    unheard = orphaned;
                    self.outbox.set_now(Instant::now());
                    self.look_again();
                }
                Step::Phase { orphaned: true } => {
                    // A process without a phase is on its way out too.
                    orphaned = true;
                    self.stop();
                }
                Step::Phase { orphaned: false } => {
                    self.outbox.set_now(Instant::now());
                    let phase = *phase.borrow_and_update();
                    match phase {
                        Phase::Serving => {}
                        Phase::Draining { deadline } => self.drain(within(deadline)),
                        Phase::Stopping => self.stop(),
                    }
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        self.outbox.set_now(Instant::now());
        for _ in 0..ROUNDS {
            let mut moved = false;
            if !self.is_closing() {
                moved |= self.poll_proof(cx);
                moved |= self.poll_check(cx);
                moved |= self.poll_input(cx);
                moved |= self.poll_running(cx);
                self.settle();
            }
            let waited = (self.outbox.is_full(), self.outbox.is_overfull());
            match self.link.poll_send(cx, &mut self.outbox) {
                Sending::Done => self.stalled = None,
                Sending::Some => self.stalled = Some(self.outbox.now()),
                Sending::Blocked => {
                    self.stalled.get_or_insert(self.outbox.now());
                }
                Sending::Gone => return Poll::Ready(()),
            }
            moved |= waited != (self.outbox.is_full(), self.outbox.is_overfull());
            if self.is_closing() && self.outbox.is_empty() && self.link.poll_shutdown(cx).is_ready() {
                return Poll::Ready(());
            }
            if moved {
                continue;
            }
            self.reading = if self.reads() { self.reading.or(Some(self.outbox.now())) } else { None };
            match self.poll_timers(cx, sleep.as_mut()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(true) => return Poll::Ready(()),
                Poll::Ready(false) => {}
            }
        }
        // There is more to do; the lane has other sessions.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_closing(&self) -> bool {
        matches!(self.life, Life::Closing(_))
    }

    // --- reading ---

    /// Whether the peer is listened to now.
    fn reads(&self) -> bool {
        let room =
            self.entries.len() < self.rules.in_flight || self.rules.beyond == Beyond::Refuse || self.credited > 0;
        !self.is_closing() && !self.input_over && self.proving.is_none() && room && !self.outbox.is_overfull()
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        for _ in 0..BURST {
            if !self.reads() {
                break;
            }
            let Poll::Ready(received) = self.link.poll_receive(cx) else { break };
            moved = true;
            match received {
                Received::Frame(frame) => match self.codec.receive(frame, &mut self.outbox) {
                    Ok(ask) => self.take(ask),
                    Err(why) => self.fault(why),
                },
                Received::Over => {
                    self.input_over = true;
                    self.finish(Why::Done);
                }
                Received::Closed => {
                    self.outbox.clear();
                    self.end(&Why::Gone);
                }
                Received::Fault(why) => {
                    if let Why::Error(error) = &why {
                        self.connection.no_room(error);
                    }
                    self.fault(why)
                }
            }
        }
        moved
    }

    // --- the end ---

    fn drain(&mut self, within: Duration) {
        if self.draining || self.is_closing() {
            return;
        }
        self.draining = true;
        self.codec.draining(within, &mut self.outbox);
        self.finish(Why::Draining);
    }

    fn stop(&mut self) {
        if self.is_closing() {
            return;
        }
        self.outbox.set_now(Instant::now());
        let mut rest: Vec<_> = self.entries.iter().map(|(tag, entry)| (entry.serial, tag.clone())).collect();
        rest.sort_unstable_by_key(|(serial, _)| *serial);
        for (_, tag) in rest {
            self.fail(&tag, &Error::ShuttingDown);
        }
        self.end(&Why::Draining);
    }

    /// Takes nothing new, and ends when nothing is in flight.
    fn finish(&mut self, why: Why) {
        match &self.life {
            Life::Open => self.life = Life::Finishing(why),
            // What the client wanted comes before what we have to.
            Life::Finishing(Why::Draining) if matches!(why, Why::Done) => self.life = Life::Finishing(why),
            Life::Finishing(Why::Done) if matches!(why, Why::Error(_)) => self.life = Life::Finishing(why),
            Life::Finishing(_) | Life::Closing(_) => {}
        }
    }

    /// The session is at fault: ends it at once, or once what runs has finished where the surface is that patient.
    fn fault(&mut self, why: Why) {
        if self.rules.patient && matches!(why, Why::Error(_) | Why::Fault(..)) {
            self.input_over = true;
            self.finish(why);
        } else {
            self.end(&why);
        }
    }

    fn settle(&mut self) {
        if !self.entries.is_empty() || self.proving.is_some() {
            return;
        }
        if let Life::Finishing(why) = &self.life {
            let why = why.clone();
            self.end(&why);
        }
    }

    /// Drops what runs and says the last words.
    fn end(&mut self, why: &Why) {
        if self.is_closing() {
            return;
        }
        tracing::debug!(?why, surface = self.rules.surface.name(), "a session ends");
        self.entries = HashMap::new();
        self.order = VecDeque::new();
        self.proving = None;
        self.checking = None;
        drop(mem::take(&mut self.running));
        if matches!(why, Why::SlowConsumer) {
            self.outbox.clear();
        }
        self.codec.farewell(why, &mut self.outbox);
        let grace = if matches!(why, Why::Lost) { Duration::ZERO } else { CLOSING };
        self.life = Life::Closing(self.outbox.now() + grace);
    }

    // --- timers ---

    fn state(&self) -> State {
        State { now: self.outbox.now(), busy: !self.entries.is_empty(), reading: self.reading }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if let Life::Closing(until) = self.life {
            return Some(until);
        }
        let stalled = self.stalled.map(|since| since + self.rules.write_stall);
        [stalled, self.check, self.codec.deadline(self.state())].into_iter().flatten().min()
    }

    /// Ready if something was due: true if the session is over with it.
    fn poll_timers(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<bool> {
        loop {
            let Some(moment) = self.next_deadline() else { return Poll::Pending };
            // Moved only to an earlier moment: a later one is seen when the timer fires, so most messages leave it.
            if moment < sleep.deadline() {
                sleep.as_mut().reset(moment);
            }
            std::task::ready!(sleep.as_mut().poll(cx));
            let now = Instant::now();
            self.outbox.set_now(now);
            sleep.as_mut().reset(moment.max(now + Duration::from_millis(1)));
            if moment > now {
                continue;
            }
            if self.is_closing() {
                return Poll::Ready(true);
            }
            if self.stalled.is_some_and(|since| since + self.rules.write_stall <= now) {
                self.end(&Why::SlowConsumer);
            } else if self.check.is_some_and(|moment| moment <= now) {
                self.look_again();
            } else if let Err(why) = self.codec.due(self.state(), &mut self.outbox) {
                self.fault(why);
            }
            return Poll::Ready(false);
        }
    }
}

//! One line per call, when its exchange is over, from the facts.
//!
//! A lane only moves a few words into a bounded channel; one thread makes text of them and writes it. It never waits for
//! that thread: when the channel is full, lines are dropped and counted. Nothing here has seen credentials or tensors.

use super::Format;
use crate::call::{CallId, End, Facts, Head, Intent, Observer, Peer, Surface};
use crate::error::Stage;
use std::{
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, Thread},
    time::{Duration, Instant, SystemTime},
};

/// Lines that may wait for the writer. At 10 ms between its turns this is room for 800,000 calls per second.
const QUEUE: usize = 8192;
/// How long the writer rests between turns while calls come in, so that a busy lane never pays for waking it.
const BUSY_REST: Duration = Duration::from_millis(10);
/// How long it rests when a turn found nothing; the first call after that wakes it.
const IDLE_REST: Duration = Duration::from_millis(250);
/// Text that is collected before it is written.
const BUFFER: usize = 64 * 1024;

/// The access log. Cloning it is cloning an `Arc`; when the last one is gone, the writer ends.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: SyncSender<Entry>,
    writer: Thread,
    state: Arc<State>,
}

/// What both sides know.
#[derive(Debug, Default)]
struct State {
    idle: AtomicBool,
    dropped: AtomicU64,
    /// How many flushes were asked for.
    asked: AtomicU64,
    /// How many of them are done.
    flushed: Mutex<u64>,
    told: Condvar,
}

/// The line of one call, to be written at its end.
#[derive(Debug)]
pub struct Line {
    log: AccessLog,
    entry: Option<Entry>,
}

/// What a line says. Identity, model and timing are in the facts.
#[derive(Debug)]
struct Entry {
    id: CallId,
    surface: Surface,
    intent: Intent,
    peer: Arc<Peer>,
    facts: Arc<Facts>,
    received: Instant,
    ended: Instant,
    end: End,
    stage: Stage,
}

/// The writer's side.
struct Writer<W> {
    receiver: Receiver<Entry>,
    state: Arc<State>,
    out: W,
    format: Format,
    text: Vec<u8>,
    /// Lines reported as dropped so far.
    reported: u64,
}

/// The same moment on both clocks, so that a lane reads only one of them.
struct Clocks {
    instant: Instant,
    wall: SystemTime,
}

// === impl AccessLog ===

impl AccessLog {
    /// Starts the thread that writes to `out`. [`Format::Auto`] writes JSON: only the caller knows what `out` is.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static, format: Format) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let state = Arc::<State>::default();
        let writer = Writer {
            receiver,
            state: Arc::clone(&state),
            out,
            format,
            text: Vec::with_capacity(BUFFER + 1024),
            reported: 0,
        };
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        Ok(Self(Arc::new(Shared { sender, writer: thread.thread().clone(), state })))
    }

    /// The line of the call with this `head`; written when it hears the end.
    pub fn begin(&self, head: &Head) -> Line {
        let entry = Entry {
            id: head.id.clone(),
            surface: head.surface,
            intent: head.intent,
            peer: Arc::clone(&head.peer),
            facts: Arc::clone(&head.facts),
            received: head.received,
            ended: head.received,
            end: End::Abandoned,
            stage: Stage::Received,
        };
        Line { log: self.clone(), entry: Some(entry) }
    }

    /// Waits until everything logged so far is written, at most for `timeout`. True if it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let state = &self.0.state;
        let ticket = state.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.0.writer.unpark();
        let flushed = state.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        let (flushed, _) = state
            .told
            .wait_timeout_while(flushed, timeout, |flushed| *flushed < ticket)
            .unwrap_or_else(PoisonError::into_inner);
        *flushed >= ticket
    }

    /// How many lines were dropped because the writer could not keep up.
    pub fn dropped(&self) -> u64 {
        self.0.state.dropped.load(Ordering::Relaxed)
    }

    fn submit(&self, entry: Entry) {
        let state = &self.0.state;
        if self.0.sender.try_send(entry).is_err() {
            state.dropped.fetch_add(1, Ordering::Relaxed);
        }
        // A wake-up lost to the race with the writer's own flag costs 250 ms of delay and nothing else.
        if state.idle.load(Ordering::Relaxed) && state.idle.swap(false, Ordering::Relaxed) {
            self.0.writer.unpark();
        }
    }
}

// === impl Line ===

impl Observer for Line {
    fn end(&mut self, end: End) {
        if let Some(mut entry) = self.entry.take() {
            entry.ended = Instant::now();
            entry.end = end;
            entry.stage = entry.facts.stage();
            self.log.submit(entry);
        }
    }
}

// === impl Writer ===

impl<W: Write> Writer<W> {
    fn run(mut self) {
        loop {
            let asked = self.state.asked.load(Ordering::Acquire);
            let (found, connected) = self.turn();
            *self.state.flushed.lock().unwrap_or_else(PoisonError::into_inner) = asked;
            self.state.told.notify_all();
            if !connected {
                return;
            }
            if self.state.asked.load(Ordering::Acquire) != asked {
                continue;
            }
            self.state.idle.store(!found, Ordering::Relaxed);
            thread::park_timeout(if found { BUSY_REST } else { IDLE_REST });
        }
    }

    /// Writes what is there: whether there was anything, and whether there can be more.
    fn turn(&mut self) -> (bool, bool) {
        let clocks = Clocks { instant: Instant::now(), wall: SystemTime::now() };
        let mut found = false;
        let connected = loop {
            match self.receiver.try_recv() {
                Ok(entry) => {
                    found = true;
                    entry.write(self.format, &clocks, &mut self.text);
                    if self.text.len() >= BUFFER {
                        self.write_out();
                    }
                }
                Err(TryRecvError::Empty) => break true,
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        if !self.text.is_empty() {
            self.write_out();
        }
        let dropped = self.state.dropped.load(Ordering::Relaxed);
        if dropped > self.reported {
            tracing::warn!(lines = dropped - self.reported, "access log lines dropped");
            self.reported = dropped;
        }
        (found, connected)
    }

    fn write_out(&mut self) {
        // A reader of our output that has gone away must not end the server, and there is no better place to say it.
        let _ = self.out.write_all(&self.text).and_then(|()| self.out.flush());
        self.text.clear();
    }
}

// === impl Entry ===

impl Entry {
    fn write(&self, format: Format, clocks: &Clocks, text: &mut Vec<u8>) {
        // Writing into memory cannot fail.
        let _ = match format {
            Format::Pretty => self.write_pretty(clocks, text),
            Format::Auto | Format::Json => self.write_json(clocks, text),
        };
    }

    fn write_json(&self, clocks: &Clocks, text: &mut Vec<u8>) -> io::Result<()> {
        text.extend_from_slice(b"{\"timestamp\":\"");
        write_timestamp(clocks.wall_at(self.ended), text)?;
        text.extend_from_slice(b"\",\"level\":\"INFO\",\"target\":\"sluicegate::access\",\"message\":\"call\"");
        // Sane by construction: no character that JSON escapes.
        write!(text, ",\"call_id\":\"{}\",\"surface\":\"{}\"", self.id, self.surface.name())?;
        write!(text, ",\"intent\":\"{}\",\"code\":\"{}\"", self.intent.name(), self.end.name())?;
        if let Some(identity) = self.facts.identity.get() {
            text.extend_from_slice(b",\"identity\":");
            serde_json::to_writer(&mut *text, &**identity.id())?;
        }
        if let Some(model) = self.facts.model.get() {
            text.extend_from_slice(b",\"model\":");
            serde_json::to_writer(&mut *text, &*model.name)?;
            text.extend_from_slice(b",\"version\":");
            serde_json::to_writer(&mut *text, &*model.version)?;
        }
        if let Some(timing) = self.facts.timing.get() {
            write!(text, ",\"queue_us\":{},\"run_us\":{}", timing.queue.as_micros(), timing.compute.as_micros())?;
        }
        let took = self.ended.saturating_duration_since(self.received).as_micros();
        write!(text, ",\"took_us\":{took},\"stage\":\"{}\"", self.stage.name())?;
        writeln!(text, ",\"peer\":\"{}\"}}", self.peer.address)
    }

    fn write_pretty(&self, clocks: &Clocks, text: &mut Vec<u8>) -> io::Result<()> {
        write_timestamp(clocks.wall_at(self.ended), text)?;
        let took = self.ended.saturating_duration_since(self.received);
        let (code, surface, intent) = (self.end.name(), self.surface.name(), self.intent.name());
        write!(text, "  CALL {code} {surface} {intent}")?;
        if let Some(model) = self.facts.model.get() {
            write!(text, " {}", Escaped(&model.name))?;
            write!(text, "/{}", Escaped(&model.version))?;
        }
        write!(text, " took {took:.1?}")?;
        if let Some(timing) = self.facts.timing.get() {
            write!(text, " (queue {:.1?}, run {:.1?})", timing.queue, timing.compute)?;
        }
        if self.end != End::Complete {
            write!(text, " while {}", self.stage.name())?;
        }
        if let Some(identity) = self.facts.identity.get() {
            write!(text, " identity={}", Escaped(identity.id()))?;
        }
        writeln!(text, " peer={} call_id={}", self.peer.address, self.id)
    }
}

/// A name in a line for people: control characters must not reach a terminal or break the line.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => write!(f, "{c}"),
        })
    }
}

// === impl Clocks ===

impl Clocks {
    fn wall_at(&self, instant: Instant) -> SystemTime {
        match self.instant.checked_duration_since(instant) {
            Some(ago) => self.wall.checked_sub(ago),
            None => self.wall.checked_add(instant - self.instant),
        }
        .unwrap_or(self.wall)
    }
}

/// RFC 3339 in UTC with microseconds.
fn write_timestamp(time: SystemTime, text: &mut Vec<u8>) -> io::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = date(since.as_secs() / 86_400);
    let second = since.as_secs() % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Year, month and day of the day `days` after 1970-01-01, in the Gregorian calendar. Years begin in March here, so that
/// the leap day is the last day of one and months have a regular pattern: 153 days in five.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01 to 1970-01-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
pub(crate) mod tests;

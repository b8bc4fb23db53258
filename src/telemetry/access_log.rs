//! One line per call, when its exchange is over, from the facts.
//!
//! A lane makes the text itself, in a buffer that no other lane uses: its facts stay on its core, and memory is freed
//! where it was taken. One thread collects the buffers and writes them out. A lane never waits for that thread: when a
//! buffer is full, lines are dropped and counted. Nothing here has seen credentials or tensors.

mod line;

use super::Format;
use crate::call::{CallId, End, Facts, Head, Intent, Observer, Peer, Route, Surface};
use line::{Clock, Text};
use std::{
    fmt,
    io::{self, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Text that a buffer may hold until it is collected: some 3,000 lines.
const FULL: usize = 1024 * 1024;
/// Text at which the writer is woken before its rest is over: some 400 lines. A busy lane that let it grow would write
/// through more memory than its cache holds, which cost it more than making the text.
const WAKE: usize = 128 * 1024;
/// Text that a buffer has room for from its first line on, so that lines do not make it grow one by one.
const ROOM: usize = 192 * 1024;
/// How long the writer rests between turns while calls come in, so that a busy lane never pays for waking it.
const BUSY_REST: Duration = Duration::from_millis(10);
/// How long it rests when a turn found nothing; the first call after that wakes it.
const IDLE_REST: Duration = Duration::from_millis(250);

/// The access log. Cloning it is cloning an `Arc`; when the last one is gone, the writer writes what is left and ends.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    writer: Thread,
    state: Arc<State>,
}

/// What lanes and writer share.
#[derive(Debug)]
struct State {
    format: Format,
    buffers: Box<[Mutex<Buffer>]>,
    idle: AtomicBool,
    closed: AtomicBool,
    dropped: AtomicU64,
    /// How many flushes were asked for.
    asked: AtomicU64,
    /// How many of them are done.
    flushed: Mutex<u64>,
    told: Condvar,
}

/// The lines of one lane that are not collected yet.
#[derive(Debug, Default)]
struct Buffer {
    text: Vec<u8>,
    clock: Option<Clock>,
}

/// The line of one call, written at its end.
pub struct Line {
    log: AccessLog,
    entry: Entry,
    written: bool,
}

/// What a line says. Identity, model and timing are in the facts.
#[derive(Debug)]
struct Entry {
    id: CallId,
    surface: Surface,
    route: Route,
    intent: Intent,
    peer: Arc<Peer>,
    facts: Arc<Facts>,
    received: Instant,
}

/// The writer's side.
struct Writer<W> {
    state: Arc<State>,
    out: W,
    /// Exchanged for the buffer of a lane, so that neither side allocates.
    spare: Vec<u8>,
    /// Lines reported as dropped so far.
    reported: u64,
}

// === impl AccessLog ===

impl AccessLog {
    /// Starts the thread that writes to `out`. [`Format::Auto`] writes JSON: only the caller knows what `out` is.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static, format: Format) -> io::Result<Self> {
        let lanes = thread::available_parallelism().map_or(1, usize::from);
        let state = Arc::new(State {
            format,
            buffers: (0..lanes).map(|_| Mutex::default()).collect(),
            idle: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            flushed: Mutex::new(0),
            told: Condvar::new(),
        });
        let writer = Writer { state: Arc::clone(&state), out, spare: Vec::new(), reported: 0 };
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        Ok(Self(Arc::new(Handle { writer: thread.thread().clone(), state })))
    }

    /// The line of the call with this `head`; written when it hears the end.
    pub fn begin(&self, head: &Head) -> Line {
        let entry = Entry {
            id: head.id.clone(),
            surface: head.surface,
            route: head.route,
            intent: head.intent,
            peer: Arc::clone(&head.peer),
            facts: Arc::clone(&head.facts),
            received: head.received,
        };
        Line { log: self.clone(), entry, written: false }
    }

    /// Waits until everything logged so far is written, at most for `timeout`. True if it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let state = &self.0.state;
        let ticket = state.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.0.writer.unpark();
        let (flushed, _) = state
            .told
            .wait_timeout_while(locked(&state.flushed), timeout, |flushed| *flushed < ticket)
            .unwrap_or_else(PoisonError::into_inner);
        *flushed >= ticket
    }

    /// How many lines were dropped because the writer could not keep up.
    pub fn dropped(&self) -> u64 {
        self.0.state.dropped.load(Ordering::Relaxed)
    }

    fn write(&self, entry: &Entry, end: End, now: Instant) {
        let state = &self.0.state;
        let mut buffer = locked(&state.buffers[lane() % state.buffers.len()]);
        let Buffer { text, clock } = &mut *buffer;
        if text.len() >= FULL {
            state.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if text.capacity() == 0 {
            text.reserve(ROOM);
        }
        let before = text.len();
        entry.write(state.format, end, now, clock.get_or_insert_with(Clock::new), Text(text));
        let enough = before < WAKE && text.len() >= WAKE;
        drop(buffer);
        // A wake-up lost to the race with the writer's own flag costs 250 ms of delay and nothing else.
        if enough || (state.idle.load(Ordering::Relaxed) && state.idle.swap(false, Ordering::Relaxed)) {
            self.0.writer.unpark();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Release);
        self.writer.unpark();
    }
}

/// The number of this thread among those that ever wrote a line; lanes are the first ones.
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! { static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed) }
    LANE.try_with(|lane| *lane).unwrap_or_default()
}

/// Nothing that is done under these locks can leave a half-made state behind, so a panic there is no reason to stop.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Line ===

impl Observer for Line {
    fn end(&mut self, end: End) {
        if !mem::replace(&mut self.written, true) {
            self.log.write(&self.entry, end, self.entry.facts.over());
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("id", &self.entry.id).finish_non_exhaustive()
    }
}

// === impl Writer ===

impl<W: Write> Writer<W> {
    fn run(mut self) {
        loop {
            // Both are asked before the turn: what was logged before them is then in the buffers.
            let asked = self.state.asked.load(Ordering::Acquire);
            let closed = self.state.closed.load(Ordering::Acquire);
            let found = self.turn();
            *locked(&self.state.flushed) = asked;
            self.state.told.notify_all();
            if closed {
                return;
            }
            self.state.idle.store(!found, Ordering::Relaxed);
            // A flush that came in between has unparked this thread, so it does not rest.
            thread::park_timeout(if found { BUSY_REST } else { IDLE_REST });
        }
    }

    /// Writes what is there, and says whether there was anything.
    fn turn(&mut self) -> bool {
        let mut found = false;
        for index in 0..self.state.buffers.len() {
            mem::swap(&mut locked(&self.state.buffers[index]).text, &mut self.spare);
            if !self.spare.is_empty() {
                found = true;
                // A reader of our output that has gone away must not end the server, and there is no better place to
                // say so.
                let _ = self.out.write_all(&self.spare).and_then(|()| self.out.flush());
                self.spare.clear();
            }
        }
        let dropped = self.state.dropped.load(Ordering::Relaxed);
        if dropped > self.reported {
            tracing::warn!(lines = dropped - self.reported, "access log lines dropped");
            self.reported = dropped;
        }
        found
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! How long a connection may keep us waiting: for a head, between requests, with its reading.
//!
//! One timer per connection that is moved only when an earlier moment matters. hyper's own timer for heads is off: it
//! would allocate and register anew for each request, and cannot tell an idle connection from a slow head.

use crate::frontend::{Phase, settings::Timers};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::{
    sync::{Notify, futures::OwnedNotified, watch},
    time::{Instant, sleep_until},
};

/// What is left for goodbyes when everything else is over.
const GRACE: Duration = Duration::from_secs(1);

/// What a connection is doing, as far as its timers care. Written by its socket and its requests.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests whose response is not wholly handed over.
    in_flight: AtomicUsize,
    /// Requests so far.
    served: AtomicUsize,
    /// Bytes came since the last request did.
    heard: AtomicBool,
    /// The kernel takes no more bytes from us.
    blocked: AtomicBool,
    /// Writes that the kernel took.
    written: AtomicUsize,
    /// A head took too long: the socket says so and ends.
    late: AtomicBool,
    /// The peer sent too many frames that cost it nothing: the socket says so and ends.
    flooded: AtomicBool,
    /// The peer reset streams since the connection was last polled.
    took_back: AtomicBool,
    stopping: AtomicBool,
    stop: Arc<Notify>,
}

/// One request of a connection, until its response is handed over.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Activity>);

/// A hyper connection, of either version.
pub(super) trait Served: Future<Output = hyper::Result<()>> {
    /// HTTP/1 has heads between requests, HTTP/2 frames at all times.
    const HTTP1: bool;

    /// Finish what runs, take nothing new.
    fn close(self: Pin<&mut Self>);
}

/// Drives `connection` until it is over, has waited too long, or the process stops. Returns the error it ended with.
pub(super) async fn drive<C: Served>(
    connection: C,
    activity: &Arc<Activity>,
    timers: Timers,
    mut phase: watch::Receiver<Phase>,
) -> Option<hyper::Error> {
    let mut connection = pin!(connection);
    let mut patience = Patience::new(timers, C::HTTP1);
    let mut sleep = pin!(sleep_until(Instant::now() + timers.keep_alive));
    // What was said before this connection was there counts too.
    phase.mark_changed();
    let mut orphaned = false;
    loop {
        let event = poll_fn(|cx| {
            activity.took_back.store(false, Ordering::Relaxed);
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(Event::Over(result));
            }
            // Moved only to an earlier moment: a later one is seen when the timer fires, so most requests leave it.
            if let Some(moment) = patience.next(activity).filter(|moment| *moment < sleep.deadline()) {
                sleep.as_mut().reset(moment);
            }
            sleep.as_mut().poll(cx).map(|()| Event::Due)
        });
        tokio::select! {
            biased;
            event = event => match event {
                Event::Over(result) => {
                    let error = result.err();
                    if let Some(error) = &error {
                        tracing::debug!(%error, "a connection ended");
                    }
                    return error;
                }
                Event::Due => {
                    match patience.verdict(activity) {
                        Verdict::Wait => {}
                        Verdict::Cut(why) => {
                            tracing::debug!(why, "a connection was cut off");
                            return None;
                        }
                        Verdict::Late => {
                            // The socket answers 408 and ends; hyper sees the end of the stream.
                            activity.late.store(true, Ordering::Relaxed);
                            patience.end_after(GRACE);
                        }
                        Verdict::Close => {
                            connection.as_mut().close();
                            patience.end_after(timers.write_stall);
                        }
                    }
                    let far = || Instant::now() + timers.keep_alive;
                    sleep.as_mut().reset(patience.next(activity).unwrap_or_else(far));
                }
            },
            changed = phase.changed(), if !orphaned => {
                orphaned = changed.is_err();
                match *phase.borrow_and_update() {
                    Phase::Serving if !orphaned => {}
                    // Nothing of a request has come, and nothing of a reply is left: nobody is waiting.
                    Phase::Draining { .. } if C::HTTP1 && activity.is_quiet() => return None,
                    Phase::Draining { .. } if !orphaned => connection.as_mut().close(),
                    Phase::Serving | Phase::Draining { .. } | Phase::Stopping => {
                        activity.stop();
                        connection.as_mut().close();
                        patience.end_after(GRACE);
                    }
                }
            }
        }
    }
}

enum Event {
    /// The connection ended by itself.
    Over(hyper::Result<()>),
    /// Something may have waited too long.
    Due,
}

enum Verdict {
    /// Nothing has run out.
    Wait,
    /// Say goodbye.
    Close,
    /// Say 408.
    Late,
    /// Drop it.
    Cut(&'static str),
}

struct Patience {
    timers: Timers,
    http1: bool,
    served: usize,
    idle: Option<Instant>,
    head: Option<Instant>,
    blocked: Option<(usize, Instant)>,
    end: Option<Instant>,
}

// === impl Patience ===

impl Patience {
    fn new(timers: Timers, http1: bool) -> Self {
        Self { timers, http1, served: 0, idle: None, head: None, blocked: None, end: None }
    }

    fn end_after(&mut self, grace: Duration) {
        let end = Instant::now() + grace;
        self.end = Some(self.end.map_or(end, |before| before.min(end)));
    }

    /// Takes note of what the connection does now, and says when to look again; `None` while only a request runs, whose
    /// own deadline is enough.
    fn next(&mut self, activity: &Activity) -> Option<Instant> {
        if activity.is_flooded() {
            // For a last frame, which the peer may not even read.
            self.end_after(GRACE);
        }
        self.note(activity);
        // At the end the other moments have passed already, or do not matter any more.
        let waiting = self.end.is_none();
        let moments = [
            self.end,
            self.blocked.map(|(_, since)| since + self.timers.write_stall),
            self.head.filter(|_| waiting).map(|since| since + self.timers.header),
            self.idle.filter(|_| waiting).map(|since| since + self.timers.keep_alive),
        ];
        moments.into_iter().flatten().min()
    }

    fn note(&mut self, activity: &Activity) {
        if activity.blocked.load(Ordering::Relaxed) {
            let written = activity.written.load(Ordering::Relaxed);
            if self.blocked.is_none_or(|(before, _)| before != written) {
                self.blocked = Some((written, Instant::now()));
            }
        } else {
            self.blocked = None;
        }
        // hyper lets go of a request once it has its whole reply, of which the peer may have read next to nothing.
        if activity.in_flight.load(Ordering::Relaxed) > 0 || self.blocked.is_some() {
            (self.idle, self.head) = (None, None);
            return;
        }
        let served = activity.served.load(Ordering::Relaxed);
        if served != self.served {
            self.served = served;
            (self.idle, self.head) = (None, None);
        }
        if self.http1 && activity.heard.load(Ordering::Relaxed) {
            self.idle = None;
            self.head.get_or_insert_with(Instant::now);
        } else {
            self.idle.get_or_insert_with(Instant::now);
        }
    }

    fn verdict(&mut self, activity: &Activity) -> Verdict {
        let moment = self.next(activity);
        let now = Instant::now();
        if moment.is_none_or(|moment| now < moment) {
            return Verdict::Wait;
        }
        let over = |since: Option<Instant>, limit: Duration| since.is_some_and(|since| since + limit <= now);
        if over(self.end, Duration::ZERO) {
            Verdict::Cut("the grace period is over")
        } else if over(self.blocked.map(|(_, since)| since), self.timers.write_stall) {
            Verdict::Cut("the peer does not read")
        } else if over(self.head, self.timers.header) {
            Verdict::Late
        } else {
            Verdict::Close
        }
    }
}

// === impl Activity ===

impl Activity {
    /// Counts a request until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        self.heard.store(false, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// The peer sent something.
    pub(super) fn hear(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// The kernel took bytes from us.
    pub(super) fn wrote(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
    }

    /// The kernel took nothing.
    pub(super) fn block(&self) {
        self.blocked.store(true, Ordering::Relaxed);
    }

    /// Whether a head took too long.
    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// The peer sent too many frames: its last words are heard, ours are said, and that is all.
    pub(super) fn flood(&self) {
        self.flooded.store(true, Ordering::Relaxed);
    }

    /// Whether the peer sent too many frames.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }

    /// The peer reset a stream.
    pub(super) fn take_back(&self) {
        self.took_back.store(true, Ordering::Relaxed);
    }

    /// Whether requests that hyper hands over now may have been reset already, while they waited for that.
    pub(crate) fn took_back(&self) -> bool {
        self.took_back.load(Ordering::Relaxed)
    }

    /// Whether the process stops: what runs is answered with `not_ready`.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Returns when the process stops. Create it before asking [`Activity::is_stopping`].
    pub(crate) fn stopped(&self) -> OwnedNotified {
        Arc::clone(&self.stop).notified_owned()
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop.notify_waiters();
    }

    /// Whether nobody waits for anything. hyper writes until the kernel refuses, also after a write that was taken in
    /// part: so what is not blocked has been handed over.
    fn is_quiet(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
            && !self.heard.load(Ordering::Relaxed)
            && !self.blocked.load(Ordering::Relaxed)
    }
}

// === impl InFlight ===

impl InFlight {
    /// What the connection of this request is doing.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // What came in the meantime belonged to this request's body.
        self.0.heard.store(false, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

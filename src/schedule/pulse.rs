//! What a lane does, for those who look at it from outside: since when it runs which model, and when it last turned.
//!
//! A run on a lane holds up every connection of that lane, deadlines included: nothing on the lane can end it. So a thread
//! looks at all lanes every now and then ([`Lanes::look`](super::turn::Lanes::look)) and tells a run to end that takes too
//! long. Whether it does is the back end's matter: where it does not, the lane stands still, and probes say so.

use crate::call::Stop;
use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// One lane, as it is seen from outside. Its own lane writes, hardly anybody reads: the lock is free.
pub struct Pulse {
    begun: Instant,
    /// Milliseconds from `begun` to the last time that the lane turned.
    turned: AtomicU64,
    run: Mutex<Option<Run>>,
}

/// A run that is under way.
struct Run {
    /// Of the model.
    id: u64,
    since: Instant,
    limit: Duration,
    stop: Option<Stop>,
    ended: bool,
}

/// A run that is under way; over when it is dropped.
pub(super) struct Running<'a>(&'a Pulse);

/// Why a model does not run on lanes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// Its batches were over the budget, time after time.
    Budget,
    /// A run held a lane until it was told to end.
    Limit,
}

// === impl Pulse ===

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, turned: AtomicU64::new(0), run: Mutex::new(None) }
    }

    /// The lane turns: whoever was ready has had its time.
    pub fn beat(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.begun).as_millis();
        self.turned.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// For how long the lane has not turned.
    pub fn still(&self, now: Instant) -> Duration {
        let turned = Duration::from_millis(self.turned.load(Ordering::Acquire));
        now.saturating_duration_since(self.begun).saturating_sub(turned)
    }

    /// A run of the model `id` begins, which may take `limit` and is ended by `stop` then.
    pub(super) fn begin(&self, id: u64, limit: Duration, stop: Option<Stop>) -> Running<'_> {
        *self.lock() = Some(Run { id, since: Instant::now(), limit, stop, ended: false });
        Running(self)
    }

    /// The model that the lane runs now.
    pub(super) fn runs(&self) -> Option<u64> {
        self.lock().as_ref().map(|run| run.id)
    }

    /// Tells a run to end that takes longer than it may, and names its model, once.
    pub(super) fn look(&self, now: Instant) -> Option<u64> {
        let mut state = self.lock();
        let run = state.as_mut().filter(|run| !run.ended)?;
        if now.saturating_duration_since(run.since) <= run.limit {
            return None;
        }
        run.ended = true;
        // Under the lock: once the run is over, the next one may have begun.
        if let Some(stop) = &run.stop {
            stop();
        }
        Some(run.id)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Run>> {
        // Each state is whole.
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("turned", &self.turned).finish_non_exhaustive()
    }
}

// === impl Running ===

impl Running<'_> {
    /// Whether it was told to end.
    pub(super) fn was_ended(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|run| run.ended)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

// === impl Moved ===

impl Moved {
    /// The word used in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Limit => "limit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, atomic::AtomicUsize};

    const LIMIT: Duration = Duration::from_millis(100);

    #[test]
    fn a_run_beyond_its_limit_is_told_to_end_once_and_one_that_is_over_is_not() {
        let (told, pulse) = (Arc::new(AtomicUsize::new(0)), Pulse::new(Instant::now()));
        let count = Arc::clone(&told);
        let stop: Stop = Arc::new(move || _ = count.fetch_add(1, Ordering::SeqCst));
        let running = pulse.begin(7, LIMIT, Some(Arc::clone(&stop)));
        let late = || Instant::now() + LIMIT * 100;
        assert_eq!((pulse.look(Instant::now()), running.was_ended(), pulse.runs()), (None, false, Some(7)));
        assert_eq!((pulse.look(late()), pulse.look(late()), running.was_ended()), (Some(7), None, true));
        drop(running);
        let next = pulse.begin(7, LIMIT * 1000, Some(stop));
        assert_eq!((pulse.look(late()), next.was_ended(), told.load(Ordering::SeqCst)), (None, false, 1));
        drop(next);
        assert_eq!((pulse.look(late()), pulse.runs()), (None, None));
    }

    #[test]
    fn a_lane_is_still_from_its_last_turn_on() {
        let begun = Instant::now();
        let pulse = Pulse::new(begun);
        assert_eq!(pulse.still(begun + 3 * LIMIT), 3 * LIMIT);
        pulse.beat(begun + 2 * LIMIT);
        assert_eq!((pulse.still(begun + 3 * LIMIT), pulse.still(begun)), (LIMIT, Duration::ZERO));
    }
}

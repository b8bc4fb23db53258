//! Shedding by queue delay: a queue that stays long is told from one that is long for a moment.
//!
//! After CoDel (RFC 8289): a burst is what queues are for, so what counts is the *least* delay over a while. Once it has
//! been above the target for that long, new jobs are refused until a job is taken that waited for less. There is no
//! probing: the queue is our own, and its delay is known.

use std::time::{Duration, Instant};

/// How long the delay must stay above its target; RFC 8289's interval.
const INTERVAL: Duration = Duration::from_millis(100);

/// Knows whether a queue is too slow to take more.
#[derive(Debug)]
pub(super) struct QueueDelay {
    /// `limits.concurrency.queue_delay`; absent: nothing is shed.
    target: Option<Duration>,
    /// Since when every job that was taken had waited for longer than that.
    above: Option<Instant>,
    sheds: bool,
}

impl QueueDelay {
    pub(super) const fn new(target: Option<Duration>) -> Self {
        Self { target, above: None, sheds: false }
    }

    /// The queue is empty: how slow it was says nothing of those who come now.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.target);
    }

    /// A job was taken that had waited since `queued`; `empty` if none is left.
    pub(super) fn took(&mut self, queued: Instant, now: Instant, empty: bool) {
        let Some(target) = self.target else { return };
        if empty || now.saturating_duration_since(queued) < target {
            return self.reset();
        }
        let since = *self.above.get_or_insert(now);
        self.sheds |= now.saturating_duration_since(since) >= INTERVAL;
    }

    /// Whether a job that comes now is to be refused, where the next one to be taken waits since `next`.
    pub(super) fn sheds(&self, next: Option<Instant>, now: Instant) -> bool {
        let (Some(target), Some(next)) = (self.target, next) else { return false };
        // An instance that takes nothing at all is no better than one that takes slowly.
        self.sheds || now.saturating_duration_since(next) >= target + INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_not_shed_and_a_standing_queue_is() {
        let start = Instant::now();
        let mut delay = QueueDelay::new(Some(10 * MS));
        for at in (0..=90).step_by(10) {
            let now = start + at * MS;
            delay.took(now - 20 * MS, now, false);
            assert!(!delay.sheds(Some(now), now), "{at} ms");
        }
        let now = start + 100 * MS;
        delay.took(now - 20 * MS, now, false);
        assert!(delay.sheds(Some(now), now));
        // One job that waited for less is enough: the queue drains.
        delay.took(now - 5 * MS, now, false);
        assert!(!delay.sheds(Some(now), now));
    }

    #[test]
    fn an_empty_queue_is_never_too_slow() {
        let now = Instant::now();
        let mut delay = QueueDelay::new(Some(MS));
        delay.took(now - 20 * MS, now, false);
        delay.took(now - 20 * MS, now + 200 * MS, false);
        assert!(delay.sheds(Some(now), now) && !delay.sheds(None, now));
        delay.took(now - 20 * MS, now, true);
        assert!(!delay.sheds(Some(now), now));
    }

    #[test]
    fn a_queue_that_nobody_takes_from_is_too_slow() {
        let now = Instant::now();
        let delay = QueueDelay::new(Some(10 * MS));
        assert!(!delay.sheds(Some(now), now + 109 * MS));
        assert!(delay.sheds(Some(now), now + 110 * MS));
        assert!(!QueueDelay::new(None).sheds(Some(now), now + 9999 * MS));
    }
}

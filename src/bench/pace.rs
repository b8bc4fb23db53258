//! When requests are due.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// Timers ring on whole milliseconds, and late: this long before a request is due the client stops sleeping and looks at
/// the clock between two looks at the sockets. So an open loop above some 500 requests per second never sleeps.
const AWAKE: Duration = Duration::from_millis(2);

/// The fastest rate: a request each 100 ns, which no client keeps up with.
const FASTEST: f64 = 1e7;

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// Each caller sends its next request when its last is answered.
    Closed,
    /// Requests are due at this rate, answered or not.
    Open(Rate),
}

/// Requests per second, above zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate(f64);

/// The requests of one phase, which its callers take one by one.
#[derive(Debug)]
pub(super) struct Queue {
    pace: Pace,
    start: Instant,
    end: Instant,
    /// The number of the next request. Held by the caller that waits for it to be due: others wait for their turn.
    next: Mutex<u64>,
}

// === impl Rate ===

impl Rate {
    /// When request number `number` is due, after the first, which has number 0.
    pub(super) fn due(self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.0)
    }

    /// How many requests are due within `time`, its end excluded.
    pub(super) fn within(self, time: Duration) -> u64 {
        let mut count = (time.as_secs_f64() * self.0).ceil() as u64;
        // What rounding has brought in or left out.
        while count > 0 && self.due(count - 1) >= time {
            count -= 1;
        }
        while self.due(count) < time {
            count += 1;
        }
        count
    }

    /// Requests per second.
    pub(super) const fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim_end_matches("/s").parse() {
            Ok(rate) if rate > 0.0 && rate <= FASTEST => Ok(Self(rate)),
            _ => Err(format!("expected requests per second, above 0 and at most {FASTEST}")),
        }
    }
}

// === impl Queue ===

impl Queue {
    /// The requests from `start` to `start + length`.
    pub(super) fn new(pace: Pace, start: Instant, length: Duration) -> Self {
        Self { pace, start, end: start + length, next: Mutex::new(0) }
    }

    /// When no more are sent.
    pub(super) fn end(&self) -> Instant {
        self.end
    }

    /// Waits for the next request, and says since when its caller waits for an answer; `None` at the end. `now` is the
    /// time, which callers know.
    pub(super) async fn take(&self, now: Instant) -> Option<Instant> {
        let Pace::Open(rate) = self.pace else { return (now < self.end).then_some(now) };
        let mut next = self.next.lock().await;
        let due = self.start + rate.due(*next);
        if due >= self.end || Instant::now() >= self.end {
            return None;
        }
        *next += 1;
        wait_until(due).await;
        Some(due)
    }

    /// How long those requests had waited at the end that were due and that no caller came to send. Their latency is
    /// unknown, and longer than that: to leave them out would be to count only the requests that were lucky.
    pub(super) async fn unsent(&self) -> Vec<Duration> {
        let Pace::Open(rate) = self.pace else { return Vec::new() };
        let length = self.end - self.start;
        (*self.next.lock().await..rate.within(length)).map(|number| length - rate.due(number)).collect()
    }
}

async fn wait_until(due: Instant) {
    let now = Instant::now();
    if due.saturating_duration_since(now) > AWAKE {
        tokio::time::sleep_until((due - AWAKE).into()).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn requests_are_due_at_even_distances() {
        let ten = rate("10/s");
        assert_eq!([0, 1, 25].map(|number| ten.due(number)), [0, 100, 2500].map(Duration::from_millis));
        assert_eq!(rate("0.5").due(3), Duration::from_secs(6));
        assert_eq!(ten.within(Duration::from_secs(1)), 10, "the one that is due at the end is the next phase's");
        assert_eq!(ten.within(Duration::from_millis(1001)), 11);
        assert_eq!(ten.within(Duration::ZERO), 0);
        for wrong in ["0", "-1", "NaN", "inf", "x", "1e9"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn within_counts_what_is_due(per_second in 0.1..1e6, millis in 0_u64..5_000) {
            let (rate, time) = (Rate(per_second), Duration::from_millis(millis));
            let count = rate.within(time);
            prop_assert!(count == 0 || rate.due(count - 1) < time);
            prop_assert!(rate.due(count) >= time);
        }
    }

    #[tokio::test]
    async fn a_closed_loop_counts_from_when_it_sends() {
        let start = Instant::now();
        let queue = Queue::new(Pace::Closed, start, Duration::from_secs(1));
        let later = start + Duration::from_millis(999);
        assert_eq!(queue.take(later).await, Some(later));
        assert_eq!(queue.take(start + Duration::from_secs(1)).await, None);
        assert!(queue.unsent().await.is_empty());
    }

    #[tokio::test]
    async fn an_open_loop_counts_from_when_a_request_was_due() {
        // It began ten seconds ago: every caller comes late, and is told when it should have come.
        let ago = Duration::from_secs(10);
        let start = Instant::now().checked_sub(ago).unwrap();
        let queue = Queue::new(Pace::Open(rate("4")), start, Duration::from_secs(3600));
        for number in 0..8 {
            assert_eq!(queue.take(Instant::now()).await, Some(start + Duration::from_millis(250) * number));
        }
    }

    #[tokio::test]
    async fn what_was_due_and_not_sent_is_counted_with_its_wait() {
        // It is over, and nobody came.
        let start = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let queue = Queue::new(Pace::Open(rate("2")), start, Duration::from_secs(2));
        assert_eq!(queue.take(Instant::now()).await, None);
        assert_eq!(queue.unsent().await, [2000, 1500, 1000, 500].map(Duration::from_millis));
    }
}

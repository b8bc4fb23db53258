//! The generic cell rate algorithm: the arithmetic of a rate, and nothing else.
//!
//! A bucket is one number, the *theoretical arrival time* (TAT): the instant at which everything charged so far has
//! drained, in nanoseconds since a start instant. This file knows no clock, no map and no atomics, so every rule of it
//! is a property test.

use std::{num::NonZeroU64, time::Duration};

/// Instants and tolerances stay below this, so that their sums cannot overflow (146 years).
const HORIZON: u64 = 1 << 62;

/// A rate with its burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// `limit` units drain in `per` nanoseconds.
    limit: u64,
    per: u64,
    /// Nanoseconds that one unit takes to drain, rounded up: what most calls are charged.
    interval: u64,
    /// How far the TAT may lie ahead of now: `burst` units.
    tolerance: u64,
}

impl Rate {
    /// `limit` units per `per`, of which `burst` may come at once.
    ///
    /// What a charge takes is rounded up to whole nanoseconds, so the rate is never exceeded; it falls short by at most
    /// one nanosecond per charge.
    pub fn new(limit: NonZeroU64, per: Duration, burst: NonZeroU64) -> Self {
        let (limit, per) = (limit.get(), nanos(per).max(1));
        let interval = span(1, per, limit);
        let whole = span(burst.get(), per, limit);
        // A burst of single units must fit although each of them is rounded up.
        let singles = interval.saturating_mul(burst.get()).min(HORIZON);
        let tolerance = if singles - whole.min(singles) < interval { singles } else { whole };
        Self { limit, per, interval, tolerance: tolerance.max(interval) }
    }

    /// The same rate, of which only `share` (0 to 1) is had, at least one unit of its burst.
    #[must_use]
    pub fn shared(self, share: f64) -> Self {
        let per = (self.per as f64 / share.clamp(f64::MIN_POSITIVE, 1.)).min(HORIZON as f64) as u64;
        let interval = span(1, per, self.limit);
        // The tolerance in time stays: `share` of the units drain in it.
        Self { per, interval, tolerance: self.tolerance.max(interval), ..self }
    }

    /// Microseconds in which one unit drains, and those in which the burst does, for whoever counts elsewhere.
    pub fn micros(self) -> (f64, f64) {
        (self.per as f64 / self.limit as f64 / 1000., self.tolerance as f64 / 1000.)
    }

    /// Charges `units` at `now` to a bucket whose TAT is `tat`: the new TAT.
    ///
    /// More units than the burst pass only where nothing else is charged, and are charged in full: whoever waits long
    /// enough is served, and the rate holds in the long run.
    ///
    /// # Errors
    ///
    /// How long until they would be accepted; never zero.
    pub fn charge(self, tat: u64, units: u64, now: u64) -> Result<u64, Duration> {
        let now = now.min(HORIZON);
        let (begin, span) = (tat.max(now), self.span(units));
        let latest = now + self.tolerance.saturating_sub(span);
        match begin.checked_sub(latest) {
            None | Some(0) => Ok(begin.saturating_add(span)),
            Some(excess) => Err(Duration::from_nanos(excess)),
        }
    }

    /// Charges `units` whatever was charged before: they were used already.
    pub fn add(self, tat: u64, units: u64, now: u64) -> u64 {
        tat.max(now.min(HORIZON)).saturating_add(self.span(units)).min(2 * HORIZON)
    }

    /// How long until `units` would be accepted; zero if they would be now.
    pub fn wait(self, tat: u64, units: u64, now: u64) -> Duration {
        self.charge(tat, units, now).err().unwrap_or(Duration::ZERO)
    }

    /// Takes `units` back whose charge had made the TAT `until`: the new TAT.
    ///
    /// Only what of them has not drained by `now` comes back. Otherwise a caller could hold charged calls for long,
    /// cancel them, and find the rate of *later* calls forgotten.
    pub fn give_back(self, tat: u64, units: u64, until: u64, now: u64) -> u64 {
        tat.saturating_sub(until.saturating_sub(now).min(self.span(units)))
    }

    /// Units that would be accepted now.
    pub fn left(self, tat: u64, now: u64) -> u64 {
        let now = now.min(HORIZON);
        let room = (now + self.tolerance).saturating_sub(tat.max(now));
        match room.checked_mul(self.limit) {
            Some(product) => product / self.per,
            None => (u128::from(room) * u128::from(self.limit) / u128::from(self.per)) as u64,
        }
    }

    /// How long `units` take to drain, in nanoseconds, rounded up.
    fn span(self, units: u64) -> u64 {
        if units == 1 { self.interval } else { span(units, self.per, self.limit) }
    }
}

/// Nanoseconds in which `units` drain, rounded up, at least one and at most the horizon.
fn span(units: u64, per: u64, limit: u64) -> u64 {
    match units.checked_mul(per) {
        Some(0) => 0,
        Some(product) => product.div_ceil(limit).clamp(1, HORIZON),
        None => {
            let exact = (u128::from(units) * u128::from(per)).div_ceil(u128::from(limit));
            u64::try_from(exact).unwrap_or(HORIZON).clamp(1, HORIZON)
        }
    }
}

/// Whole nanoseconds of `duration`, at most the horizon.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(HORIZON).min(HORIZON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(limit: u64, per: Duration, burst: u64) -> Rate {
        Rate::new(NonZeroU64::new(limit).unwrap(), per, NonZeroU64::new(burst).unwrap())
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_one_more_waits_one_interval() {
        let rate = rate(10, Duration::from_secs(1), 5);
        let mut tat = 0;
        for _ in 0..5 {
            tat = rate.charge(tat, 1, SECOND).unwrap();
        }
        assert_eq!(rate.charge(tat, 1, SECOND), Err(Duration::from_millis(100)));
        assert_eq!(rate.wait(tat, 1, SECOND), Duration::from_millis(100));
        assert!(rate.charge(tat, 1, SECOND + SECOND / 10).is_ok());
    }

    #[test]
    fn a_drained_charge_cannot_be_given_back() {
        let rate = rate(1, Duration::from_secs(1), 1);
        let first = rate.charge(0, 1, 0).unwrap();
        // Long after the first has drained a second one is charged; giving the first back must not forget it.
        let second = rate.charge(first, 1, 5 * SECOND).unwrap();
        assert_eq!(rate.give_back(second, 1, first, 5 * SECOND), second);
    }

    #[test]
    fn bytes_are_counted_exactly_although_each_takes_less_than_a_nanosecond() {
        let ten_gigabytes = rate(10_000_000_000, Duration::from_secs(1), 10_000_000_000);
        let tat = ten_gigabytes.charge(SECOND, 5_000_000_000, SECOND).unwrap();
        assert_eq!(tat, SECOND + SECOND / 2);
        assert_eq!(ten_gigabytes.left(tat, SECOND), 5_000_000_000);
        assert_eq!(ten_gigabytes.charge(tat, 6_000_000_000, SECOND), Err(Duration::from_millis(100)));
    }

    #[test]
    fn a_share_of_a_rate_is_that_much_slower_and_never_nothing() {
        let quarter = rate(100, Duration::from_secs(1), 100).shared(0.25);
        let mut tat = 0;
        let passed = (0..100)
            .filter(|_| {
                quarter.charge(tat, 1, SECOND).is_ok_and(|new| {
                    tat = new;
                    true
                })
            })
            .count();
        assert_eq!(passed, 25);
        assert!(rate(2, Duration::from_secs(86_400), 2).shared(0.01).charge(0, 1, SECOND).is_ok());
    }

    #[test]
    fn extremes_do_not_overflow() {
        for (limit, per, burst) in [
            (1, Duration::MAX, u64::MAX),
            (u64::MAX, Duration::from_nanos(1), u64::MAX),
            (1, Duration::ZERO, 1),
            (u64::MAX, Duration::MAX, 1),
        ] {
            let rate = rate(limit, per, burst);
            for tat in [0, 1, HORIZON, u64::MAX] {
                for now in [0, 1, HORIZON, u64::MAX] {
                    for units in [0, 1, 1 << 40, u64::MAX] {
                        let _ = rate.charge(tat, units, now);
                        let _ = rate.add(tat, units, now);
                        let _ = rate.give_back(tat, units, now, tat);
                    }
                    let _ = rate.left(tat, now);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_window_accepts_more_than_burst_and_rate(
            limit in 1u64..10_000,
            burst in 1u64..50,
            steps in prop::collection::vec((0u64..50_000_000, 1u64..8), 1..300),
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            let (mut tat, mut now) = (0, 0);
            let mut accepted = Vec::new();
            for (step, units) in steps {
                now += step;
                // What is larger than the burst is another rule's.
                if units <= burst && let Ok(charged) = rate.charge(tat, units, now) {
                    tat = charged;
                    accepted.push((now, units));
                }
            }
            for (i, (from, _)) in accepted.iter().enumerate() {
                let mut sum = 0_u128;
                for (to, units) in accepted.iter().skip(i) {
                    sum += u128::from(*units);
                    let window = u128::from(to - from);
                    let allowed = u128::from(burst) + window * u128::from(limit) / u128::from(SECOND);
                    prop_assert!(sum <= allowed, "{sum} in {window} ns, allowed {allowed}");
                }
            }
        }

        #[test]
        fn what_is_larger_than_the_burst_waits_for_an_empty_bucket_and_holds_the_rate(
            limit in 1u64..10_000, burst in 1u64..50, more in 1u64..1000, charged in 1u64..50,
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            let (units, charged) = (burst + more, charged.min(burst));
            let tat = rate.charge(0, charged, SECOND).unwrap();
            prop_assert!(rate.charge(tat, units, SECOND).is_err());
            let large = rate.charge(tat, units, tat).unwrap();
            // From then on as long as its units take to drain, nothing else passes but what the burst leaves.
            prop_assert!(u128::from(large - tat) * u128::from(limit) >= u128::from(units) * u128::from(SECOND));
        }

        #[test]
        fn what_is_left_passes_and_one_more_does_not(
            limit in 1u64..1_000_000, burst in 1u64..50, spent in 0u64..50, ago in 0u64..1 << 31,
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            let mut tat = 0;
            for _ in 0..spent {
                tat = rate.charge(tat, 1, SECOND).unwrap_or(tat);
            }
            let now = SECOND + ago;
            let left = rate.left(tat, now);
            prop_assert!(left <= burst);
            prop_assert!(left == 0 || rate.charge(tat, left, now).is_ok());
            prop_assert!(left == burst || rate.charge(tat, left + 1, now).is_err());
        }

        #[test]
        fn a_wait_is_exact(
            limit in 1u64..1_000_000, burst in 1u64..50, units in 0u64..100, tat in 0u64..1 << 40, now in 0u64..1 << 40,
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            if let Err(wait) = rate.charge(tat, units, now) {
                let wait = u64::try_from(wait.as_nanos()).unwrap();
                prop_assert!(rate.charge(tat, units, now + wait).is_ok());
                prop_assert!(rate.charge(tat, units, now + wait - 1).is_err());
            }
        }

        #[test]
        fn giving_back_at_once_restores_exactly(
            limit in 1u64..1_000_000, burst in 1u64..50, units in 0u64..100, tat in 0u64..1 << 40, now in 0u64..1 << 40,
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            if let Ok(charged) = rate.charge(tat, units, now) {
                let restored = rate.give_back(charged, units, charged, now);
                // A TAT in the past and one at now are the same state.
                prop_assert_eq!(restored.max(now), tat.max(now));
            }
        }
    }
}

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
    /// Nanoseconds that one unit takes to drain.
    interval: u64,
    /// How far the TAT may lie ahead of now: `burst` intervals.
    tolerance: u64,
}

impl Rate {
    /// `limit` units per `per`, of which `burst` may come at once.
    ///
    /// The interval is rounded up to whole nanoseconds, so the rate is never exceeded; at the ten million units per
    /// second that the configuration allows it falls short by at most one per cent.
    pub fn new(limit: NonZeroU64, per: Duration, burst: NonZeroU64) -> Self {
        let interval = nanos(per).div_ceil(limit.get()).clamp(1, HORIZON);
        let burst = burst.get().min(HORIZON / interval);
        Self { interval, tolerance: interval * burst }
    }

    /// Charges one unit at `now` to a bucket whose TAT is `tat`: the new TAT.
    ///
    /// # Errors
    ///
    /// How long until one unit would be accepted; never zero.
    pub fn charge(self, tat: u64, now: u64) -> Result<u64, Duration> {
        let now = now.min(HORIZON);
        let charged = tat.max(now).saturating_add(self.interval);
        match charged.checked_sub(now + self.tolerance) {
            None | Some(0) => Ok(charged),
            Some(excess) => Err(Duration::from_nanos(excess)),
        }
    }

    /// How long until one unit would be accepted; zero if it would be now.
    pub fn wait(self, tat: u64, now: u64) -> Duration {
        self.charge(tat, now).err().unwrap_or(Duration::ZERO)
    }

    /// Takes one unit back whose charge had made the TAT `until`: the new TAT.
    ///
    /// Only what of it has not drained by `now` comes back. Otherwise a caller could hold charged calls for long,
    /// cancel them, and find the rate of *later* calls forgotten.
    pub fn give_back(self, tat: u64, until: u64, now: u64) -> u64 {
        tat.saturating_sub(until.saturating_sub(now).min(self.interval))
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
            tat = rate.charge(tat, SECOND).unwrap();
        }
        assert_eq!(rate.charge(tat, SECOND), Err(Duration::from_millis(100)));
        assert_eq!(rate.wait(tat, SECOND), Duration::from_millis(100));
        assert!(rate.charge(tat, SECOND + SECOND / 10).is_ok());
    }

    #[test]
    fn a_drained_charge_cannot_be_given_back() {
        let rate = rate(1, Duration::from_secs(1), 1);
        let first = rate.charge(0, 0).unwrap();
        // Long after the first has drained a second one is charged; giving the first back must not forget it.
        let second = rate.charge(first, 5 * SECOND).unwrap();
        assert_eq!(rate.give_back(second, first, 5 * SECOND), second);
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
                    let _ = rate.charge(tat, now);
                    let _ = rate.give_back(tat, now, tat);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_window_accepts_more_than_burst_and_rate(
            limit in 1u64..10_000,
            burst in 1u64..50,
            steps in prop::collection::vec(0u64..50_000_000, 1..300),
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            let (mut tat, mut now) = (0, 0);
            let mut accepted = Vec::new();
            for step in steps {
                now += step;
                if let Ok(charged) = rate.charge(tat, now) {
                    tat = charged;
                    accepted.push(now);
                }
            }
            for (i, from) in accepted.iter().enumerate() {
                for (j, to) in accepted.iter().enumerate().skip(i) {
                    let window = u128::from(to - from);
                    let allowed = u128::from(burst) + window * u128::from(limit) / u128::from(SECOND);
                    prop_assert!((j - i + 1) as u128 <= allowed, "{} in {window} ns, allowed {allowed}", j - i + 1);
                }
            }
        }

        #[test]
        fn a_wait_is_exact(limit in 1u64..1_000_000, burst in 1u64..50, tat in 0u64..1 << 40, now in 0u64..1 << 40) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            if let Err(wait) = rate.charge(tat, now) {
                let wait = u64::try_from(wait.as_nanos()).unwrap();
                prop_assert!(rate.charge(tat, now + wait).is_ok());
                prop_assert!(rate.charge(tat, now + wait - 1).is_err());
            }
        }

        #[test]
        fn giving_back_at_once_restores_exactly(
            limit in 1u64..1_000_000, burst in 1u64..50, tat in 0u64..1 << 40, now in 0u64..1 << 40,
        ) {
            let rate = rate(limit, Duration::from_secs(1), burst);
            if let Ok(charged) = rate.charge(tat, now) {
                let restored = rate.give_back(charged, charged, now);
                // A TAT in the past and one at now are the same state.
                prop_assert_eq!(restored.max(now), tat.max(now));
            }
        }
    }
}

//! One word that all threads charge: a GCRA cell.
//!
//! `tests/loom` runs this very file under every interleaving of its threads, with other atomics in place of [`sync`](super::sync).

use super::{
    gcra::Rate,
    sync::{AtomicU64, Ordering},
};
use std::time::Duration;

/// One GCRA cell shared by all lanes: the theoretical arrival time, in nanoseconds since start.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

// === impl Bucket ===

impl Bucket {
    /// Charges `units` at `now`: the theoretical arrival time that came of it.
    ///
    /// # Errors
    ///
    /// How long until they would be accepted.
    pub fn charge(&self, rate: Rate, units: u64, now: u64) -> Result<u64, Duration> {
        let mut tat = self.0.load(Ordering::Relaxed);
        loop {
            let charged = rate.charge(tat, units, now)?;
            match self.0.compare_exchange_weak(tat, charged, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(charged),
                Err(found) => tat = found,
            }
        }
    }

    /// How long until `units` would be accepted; zero if they would be now.
    pub fn wait(&self, rate: Rate, units: u64, now: u64) -> Duration {
        rate.wait(self.0.load(Ordering::Relaxed), units, now)
    }

    /// Takes back `units` that were charged until `until`.
    pub fn give_back(&self, rate: Rate, units: u64, until: u64, now: u64) {
        self.change(|tat| rate.give_back(tat, units, until, now));
    }

    /// Charges `units` that were used already, however many are left.
    pub fn add(&self, rate: Rate, units: u64, now: u64) {
        self.change(|tat| rate.add(tat, units, now));
    }

    /// From when on nothing is charged: the theoretical arrival time.
    pub fn empty_from(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn change(&self, new: impl Fn(u64) -> u64) {
        let mut tat = self.0.load(Ordering::Relaxed);
        while let Err(found) = self.0.compare_exchange_weak(tat, new(tat), Ordering::AcqRel, Ordering::Relaxed) {
            tat = found;
        }
    }
}

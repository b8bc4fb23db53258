//! Rates per identity: which policies match, and what they charge.
//!
//! Keys of buckets are proven identities and groups, so clients cannot mint them. This module knows nothing of models
//! or bodies: a call is charged before it is read.

pub mod address;
pub mod gcra;
pub mod table;

use crate::{
    call::{End, Facts, Identity, Intent, Observer},
    error::{Code, Stage},
};
use foldhash::fast::RandomState;
use gcra::Rate;
use smallvec::SmallVec;
use std::{
    num::NonZeroU64,
    slice,
    sync::Arc,
    time::{Duration, Instant},
};
use table::{Bucket, Table};

/// One entry of `limits.rate`, counted in calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name, unique among policies.
    pub name: Arc<str>,
    /// Whose calls are counted together.
    pub by: By,
    /// The only identity or group it counts; `None` for each of them.
    pub only: Option<Arc<str>>,
    /// Calls in each `per`.
    pub limit: NonZeroU64,
    /// The period of `limit`.
    pub per: Duration,
    /// Calls that may come at once.
    pub burst: NonZeroU64,
    /// Intents it counts.
    pub intents: Vec<Intent>,
}

/// Whose calls are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Those of one identity.
    Identity,
    /// Those of all members of a group; a member of several is counted in each.
    Group,
}

impl Policy {
    /// The intents that count where a policy names none: all but `inspect` (contract 10 section 2).
    pub fn default_intents() -> Vec<Intent> {
        Intent::ALL.into_iter().filter(|intent| *intent != Intent::Inspect).collect()
    }
}

/// Charges calls against every matching policy. All must agree.
#[derive(Debug)]
pub struct RateLimiter {
    counters: Vec<Counter>,
    start: Instant,
}

/// A policy with its buckets.
#[derive(Debug)]
struct Counter {
    by: By,
    only: Option<Arc<str>>,
    /// A bit per intent.
    intents: u8,
    rate: Rate,
    /// Keys are proven, so a fast hasher is enough: nobody can choose them so that they collide.
    buckets: Table<Arc<str>, Bucket, RandomState>,
}

/// What a call was charged. Given back on some ends; an observer of the call.
#[derive(Debug)]
pub struct Charge {
    /// Two policies are usual (per identity, per group); more spill to the heap.
    held: SmallVec<[Held; 2]>,
    facts: Arc<Facts>,
    start: Instant,
}

/// One unit in one bucket.
#[derive(Debug)]
struct Held {
    bucket: Arc<Bucket>,
    rate: Rate,
    until: u64,
}

// === impl RateLimiter ===

impl RateLimiter {
    /// A limiter with empty buckets, at most `cap` of them together (`limits.buckets`).
    pub fn new(policies: Vec<Policy>, start: Instant, cap: usize) -> Self {
        let share = cap / policies.len().max(1);
        Self { counters: policies.into_iter().map(|policy| Counter::new(policy, share)).collect(), start }
    }

    /// Charges one call, to be given back if *we* refuse it later (contract 10 section 2).
    ///
    /// `None` if no policy matches: nothing is charged and nothing is allocated.
    ///
    /// # Errors
    ///
    /// How long until the most constrained policy would accept one.
    pub fn charge(
        &self,
        identity: &Arc<Identity>,
        intent: Intent,
        facts: &Arc<Facts>,
        now: Instant,
    ) -> Result<Option<Charge>, Duration> {
        let now = self.nanos(now);
        let mut held: SmallVec<[Held; 2]> = SmallVec::new();
        for (counter, key) in self.matching(identity, intent) {
            let bucket = counter.buckets.entry(key, now);
            match bucket.charge(counter.rate, now) {
                Ok(until) => held.push(Held { bucket, rate: counter.rate, until }),
                Err(_) => {
                    held.iter().for_each(|held| held.give_back(now));
                    return Err(self.longest_wait(identity, intent, now));
                }
            }
        }
        Ok((!held.is_empty()).then(|| Charge { held, facts: Arc::clone(facts), start: self.start }))
    }

    /// Forgets buckets that are full again. Called from a timer.
    pub fn sweep(&self, now: Instant) {
        let now = self.nanos(now);
        self.counters.iter().for_each(|counter| counter.buckets.sweep(now));
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> usize {
        self.counters.iter().map(|counter| counter.buckets.len()).sum()
    }

    /// Policies that count this call, each with the key that it counts by.
    fn matching<'a>(
        &'a self,
        identity: &'a Identity,
        intent: Intent,
    ) -> impl Iterator<Item = (&'a Counter, &'a Arc<str>)> {
        self.counters.iter().filter(move |counter| counter.intents & bit(intent) != 0).flat_map(move |counter| {
            let keys = match counter.by {
                By::Identity => slice::from_ref(identity.id()),
                By::Group => identity.groups(),
            };
            keys.iter()
                .filter(|key| counter.only.as_ref().is_none_or(|only| only == *key))
                .map(move |key| (counter, key))
        })
    }

    fn longest_wait(&self, identity: &Identity, intent: Intent, now: u64) -> Duration {
        self.matching(identity, intent)
            .filter_map(|(counter, key)| Some(counter.buckets.get(key)?.wait(counter.rate, now)))
            .max()
            // Another thread may have given back meanwhile; "try again at once" would be a busy loop.
            .unwrap_or_default()
            .max(Duration::from_nanos(1))
    }

    fn nanos(&self, now: Instant) -> u64 {
        gcra::nanos(now.saturating_duration_since(self.start))
    }
}

impl Counter {
    fn new(policy: Policy, cap: usize) -> Self {
        Self {
            by: policy.by,
            only: policy.only,
            intents: policy.intents.into_iter().fold(0, |bits, intent| bits | bit(intent)),
            rate: Rate::new(policy.limit, policy.per, policy.burst),
            buckets: Table::new(cap),
        }
    }
}

const fn bit(intent: Intent) -> u8 {
    1 << intent as u8
}

// === impl Charge ===

impl Charge {
    /// Whether contract 10 section 2 gives the charge back on this end.
    fn is_returned_on(&self, end: End) -> bool {
        match end {
            End::Failed(Code::Overloaded | Code::NotReady | Code::RateLimited) => true,
            End::Abandoned | End::Failed(Code::DeadlineExceeded | Code::Cancelled) => {
                self.facts.stage() < Stage::Running
            }
            End::Complete | End::Failed(_) => false,
        }
    }
}

impl Observer for Charge {
    fn end(&mut self, end: End) {
        if self.is_returned_on(end) {
            let now = gcra::nanos(self.start.elapsed());
            self.held.drain(..).for_each(|held| held.give_back(now));
        }
    }
}

impl Held {
    fn give_back(&self, now: u64) {
        self.bucket.give_back(self.rate, self.until, now);
    }
}

#[cfg(test)]
mod tests;

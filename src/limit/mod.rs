//! Rates and quotas: which policies match a call, and what they charge it.
//!
//! A call is charged twice at most: before its body is read by those policies that need to know no more than who sends
//! it, and after by those that ask for the model, or for rows, bytes, elements or compute time. Keys of buckets are
//! proven identities and groups, and models that such an identity is granted, so strangers cannot mint them.

pub mod address;
mod charge;
mod counter;
pub mod gcra;
mod policy;
pub mod table;

pub use charge::Charge;
pub use policy::{By, Policy, Unit};

use crate::{
    call::{Head, Identity, Operation, Quotas, Work},
    error::{Cap, Error},
};
use charge::Held;
use counter::{Counter, Key};
use futures_util::future::BoxFuture;
use gcra::Rate;
use policy::Subject;
use smallvec::SmallVec;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// A call that is to be charged.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who sends it.
    pub identity: &'a Arc<Identity>,
    /// What is known of it.
    pub head: &'a Head,
    /// What it asks for; absent before its body is read.
    pub operation: Option<&'a Operation>,
}

/// What came of asking.
pub enum Outcome<C = Charge> {
    /// No policy matches: nothing is charged.
    Free,
    /// Charged; to be told how the call ends.
    Charged(C),
    /// Refused, with when to come again.
    Refused(Error),
    /// Not decided yet: somebody else has to be asked, for a bounded time.
    Later(BoxFuture<'static, Result<Option<C>, Error>>),
}

/// Charges calls against every matching policy. All must agree; where one refuses, none charges.
#[derive(Debug)]
pub struct RateLimiter {
    counters: Vec<Counter>,
    /// Whether there are policies for a call before its body is read, and after.
    phases: [bool; 2],
    start: Instant,
}

// === impl Outcome ===

impl<C> fmt::Debug for Outcome<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "Free",
            Self::Charged(_) => "Charged",
            Self::Refused(_) => "Refused",
            Self::Later(_) => "Later",
        })
    }
}

// === impl RateLimiter ===

impl RateLimiter {
    /// A limiter with empty buckets, at most `cap` of them together (`limits.buckets`).
    pub fn new(policies: Vec<Policy>, start: Instant, cap: usize) -> Self {
        let share = cap / policies.len().max(1);
        let phases = [false, true].map(|needs_body| policies.iter().any(|policy| policy.needs_body() == needs_body));
        Self { counters: policies.into_iter().map(|policy| Counter::new(policy, share)).collect(), phases, start }
    }

    /// Charges one call, to be settled or given back when it is over (contract 10 section 2). Where no policy matches,
    /// nothing is allocated.
    pub fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome {
        let needs_body = ask.operation.is_some();
        if !self.phases[usize::from(needs_body)] {
            return Outcome::Free;
        }
        let Ask { identity, head, operation } = ask;
        // Reading a body takes time, which has drained buckets.
        let now = self.nanos(if needs_body { Instant::now() } else { head.received });
        let subject = Subject {
            identity,
            intent: operation.map_or(head.intent, policy::intent_of),
            model: operation.and_then(Operation::model).map(|model| &model.name),
        };
        let brought = operation.map_or_else(Work::default, policy::work_of);
        let mut held: SmallVec<[Held; 2]> = SmallVec::new();
        let mut quotas = Quotas::new();
        for (index, counter, key) in self.matching(subject, needs_body) {
            let (bucket, units) = (counter.bucket(key, now), counter.unit().of(brought));
            match bucket.charge(counter.rate, units, now) {
                Ok(until) => {
                    held.push(Held { counter: index, bucket, units, until });
                    quotas.push(counter.quota(key, until, now));
                }
                Err(_) => {
                    held.iter().for_each(|held| held.give_back(self, held.units, now));
                    return Outcome::Refused(self.refusal(subject, needs_body, brought, now));
                }
            }
        }
        if held.is_empty() {
            return Outcome::Free;
        }
        let told = if needs_body { &head.facts.reserved } else { &head.facts.quotas };
        let _ = told.set(quotas);
        let (limiter, facts) = (Arc::clone(self), Arc::clone(&head.facts));
        Outcome::Charged(Charge { limiter, facts, held, brought, made: Work::default() })
    }

    /// Forgets buckets that are full again. Called from a timer.
    pub fn sweep(&self, now: Instant) {
        let now = self.nanos(now);
        self.counters.iter().for_each(|counter| counter.sweep(now));
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> usize {
        self.counters.iter().map(Counter::len).sum()
    }

    /// Policies that count this call, each with the key that it counts by.
    fn matching<'a>(
        &'a self,
        subject: Subject<'a>,
        needs_body: bool,
    ) -> impl Iterator<Item = (usize, &'a Counter, Key<'a>)> {
        let counters = self.counters.iter().enumerate().filter(move |(_, counter)| counter.needs_body == needs_body);
        counters.flat_map(move |(index, counter)| counter.keys(subject).map(move |key| (index, counter, key)))
    }

    /// Says which policy is the most constrained, and for how long.
    fn refusal(&self, subject: Subject<'_>, needs_body: bool, brought: Work, now: u64) -> Error {
        let waits = self.matching(subject, needs_body).map(|(_, counter, key)| {
            let wait = counter.wait(key, counter.unit().of(brought), now);
            (wait, &counter.allowance)
        });
        match waits.max_by_key(|(wait, _)| *wait) {
            Some((wait, allowance)) => Error::RateLimited {
                // Another thread may have given back meanwhile; "try again at once" would be a busy loop.
                retry_after: wait.max(Duration::from_nanos(1)),
                cap: Cap::Policy(Arc::clone(allowance)),
            },
            None => Error::internal("a policy refused a call that it does not count"),
        }
    }

    fn rate(&self, counter: usize) -> Rate {
        self.counters[counter].rate
    }

    fn unit(&self, counter: usize) -> Unit {
        self.counters[counter].unit()
    }

    fn now(&self) -> u64 {
        gcra::nanos(self.start.elapsed())
    }

    fn nanos(&self, now: Instant) -> u64 {
        gcra::nanos(now.saturating_duration_since(self.start))
    }
}

#[cfg(test)]
mod tests;

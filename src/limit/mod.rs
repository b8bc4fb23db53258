//! Rates and quotas: which policies match a call, and what they charge it.
//!
//! A call is charged twice at most: before its body is read by those policies that need to know no more than who sends
//! it, and after by those that ask for the model, or for rows, bytes, elements or compute time. Keys of buckets are
//! proven identities and groups, and models that such an identity is granted, so strangers cannot mint them.

pub mod address;
mod bucket;
mod cell;
mod charge;
mod counter;
pub mod gcra;
mod lease;
mod policy;
pub mod redis;
mod redis_address;
pub mod shared_slots;
mod slot_lease;
pub mod table;
mod told;

/// The atomics of this module, so that a model checker can put others in their place.
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

pub use charge::Charge;
pub use policy::{By, Policy, Unit};

use crate::{
    call::{Head, Identity, Operation, Quota, Work},
    error::{Cap, Error, Limit},
};
use charge::{Granted, Held, Units};
use counter::Counter;
use futures_util::future::BoxFuture;
use lease::{Lease, Take};
use policy::Subject;
use redis::{Shared, WhenAway};
use smallvec::SmallVec;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use told::Told;

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
    /// Shared with the limiters before and after this one, as far as their policies are the same.
    counters: Vec<Arc<Counter>>,
    /// Whether there are policies for a call before its body is read, and after.
    phases: [bool; 2],
    start: Instant,
    /// Where the quotas are kept, if not here.
    shared: Option<Shared>,
}

/// What came of trying to charge.
enum Attempt {
    Charged(Units),
    /// With what is left of the policy that refuses, if one does.
    Refused(Error, Option<Quota>),
    /// These leases have to be asked for, for these claims.
    Ask(Units, SmallVec<[Arc<Lease>; 2]>),
}

/// How long a call waits for a shared limit before the fall-back decides.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often it asks within that time.
const ROUNDS: u32 = 8;

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
        let none = Self { counters: Vec::new(), phases: [false; 2], start, shared: None };
        none.renewed(policies, cap)
    }

    /// A limiter of other policies after this one. Those that are the same keep what they have counted, wherever they stand
    /// in the list: whoever changes one policy must not hand out a new burst of all.
    #[must_use]
    pub fn renewed(&self, policies: Vec<Policy>, cap: usize) -> Self {
        let share = cap / policies.len().max(1);
        let phases = [false, true].map(|needs_body| policies.iter().any(|policy| policy.needs_body() == needs_body));
        let counter = |policy: Policy| {
            let named = self.counters.iter().find(|counter| counter.policy().name == policy.name);
            match named.filter(|counter| *counter.policy() == policy) {
                Some(same) => {
                    same.set_cap(share);
                    Arc::clone(same)
                }
                // Under the same name, keys are written alike to clients.
                None => Arc::new(Counter::new(policy, share, named.map(|counter| counter.salt()))),
            }
        };
        let counters: Vec<_> = policies.into_iter().map(counter).collect();
        for gone in self.counters.iter().filter(|old| !counters.iter().any(|new| Arc::ptr_eq(old, new))) {
            self.retire(gone);
        }
        Self { counters, phases, start: self.start, shared: self.shared.clone() }
    }

    /// The same limiter over quotas that are shared with other processes; times are then counted as they count them.
    #[must_use]
    pub fn sharing(self, shared: Shared) -> Self {
        Self { start: shared.start, shared: Some(shared), ..self }
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
        let claims = self.claims(subject, needs_body, brought, now);
        if claims.is_empty() {
            return Outcome::Free;
        }
        let told = Told { limiter: Arc::clone(self), facts: Arc::clone(&head.facts), needs_body, brought };
        match self.attempt(claims, now, false) {
            Attempt::Charged(held) => Outcome::Charged(told.charge(held, now)),
            Attempt::Refused(error, quota) => Outcome::Refused(told.refused(error, quota)),
            Attempt::Ask(claims, leases) => Outcome::Later(Box::pin(told.later(claims, leases))),
        }
    }

    /// Forgets buckets that are full again, and returns what leases no longer need. Called from a timer.
    pub fn sweep(&self, now: Instant) {
        let now = self.nanos(now);
        for counter in &self.counters {
            if let Some(shared) = &self.shared {
                counter.each(|cell| {
                    if let Some(lease) = cell.leased()
                        && let Some(draw) = lease.tidy(now)
                    {
                        shared.send(lease, counter.rate, draw);
                    }
                });
            }
            counter.sweep(now);
        }
    }

    /// Returns what the leases of a policy that is no more hold, and tells what they owe: no sweep comes by again.
    fn retire(&self, counter: &Counter) {
        let Some(shared) = &self.shared else { return };
        counter.each(|cell| {
            if let Some(lease) = cell.leased()
                && let Some(draw) = lease.clear()
            {
                shared.send(lease, counter.rate, draw);
            }
        });
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> usize {
        self.counters.iter().map(|counter| counter.len()).sum()
    }

    /// What policies that count this call want of it.
    fn claims(&self, subject: Subject<'_>, needs_body: bool, brought: Work, now: u64) -> Units {
        let mut claims = Units::new();
        for (index, counter) in self.counters.iter().enumerate().filter(|(_, counter)| counter.needs_body == needs_body)
        {
            for key in counter.keys(subject) {
                let cell = counter.cell(key, now);
                if self.shared.is_some() {
                    cell.lease(|| counter.shared_key(key));
                }
                let (partition, units) = (counter.partition(key), counter.unit().of(brought));
                claims.push(Held { counter: index, cell, partition, units, until: 0, from: Granted::Bucket });
            }
        }
        claims
    }

    /// Charges all `claims` or none. `late`: what would have to be asked for is decided here.
    fn attempt(&self, mut claims: Units, now: u64, late: bool) -> Attempt {
        let mut ask = SmallVec::new();
        // How long, and which claim.
        let mut refused: Option<(Duration, usize)> = None;
        let mut away = false;
        let mut charged = 0;
        for (at, claim) in claims.iter_mut().enumerate() {
            match self.take(claim, now, late) {
                Ok(()) if refused.is_none() && !away => charged += 1,
                // Taken behind a refusal: what is behind it is only asked how long it would wait.
                Ok(()) => self.undo(claim, now),
                Err(Refusal::Wait(wait)) => refused = refused.max(Some((wait, at))),
                Err(Refusal::Ask) => ask.extend(claim.cell.leased().cloned()),
                Err(Refusal::Away) => away = true,
            }
            if !ask.is_empty() {
                break;
            }
        }
        if refused.is_none() && !away && ask.is_empty() {
            return Attempt::Charged(claims);
        }
        claims[..charged].iter().for_each(|claim| self.undo(claim, now));
        match refused {
            Some((wait, at)) => self.refusal(&claims[at], wait, now),
            None if away => Attempt::Refused(Error::Overloaded { limit: Limit::Shared }, None),
            None => Attempt::Ask(claims, ask),
        }
    }

    /// Charges one claim.
    fn take(&self, claim: &mut Held, now: u64, late: bool) -> Result<(), Refusal> {
        let counter = &self.counters[claim.counter];
        let (Some(shared), Some(lease)) = (&self.shared, claim.cell.leased()) else {
            claim.until = claim.cell.bucket.charge(counter.rate, claim.units, now).map_err(Refusal::Wait)?;
            return Ok(());
        };
        let (take, draw) = lease.take(claim.units, counter.burst(), now);
        let present = shared.is_present() && !late;
        if let Some(draw) = draw {
            if shared.is_present() { shared.send(lease, counter.rate, draw) } else { lease.failed(draw) }
        }
        match take {
            Take::Taken { tat, .. } => {
                (claim.until, claim.from) = (tat, Granted::Lease);
                return Ok(());
            }
            Take::Dry(wait) if shared.is_present() => {
                claim.from = Granted::Lease;
                return Err(Refusal::Wait(wait));
            }
            Take::Ask if present => return Err(Refusal::Ask),
            Take::Dry(_) | Take::Ask => {}
        }
        let WhenAway::Share(share) = shared.when_away else { return Err(Refusal::Away) };
        let rate = counter.rate.shared(share);
        claim.from = Granted::Share;
        claim.until = claim.cell.bucket.charge(rate, claim.units, now).map_err(Refusal::Wait)?;
        lease.owe(claim.units);
        Ok(())
    }

    /// Takes a charge back of which nobody has heard.
    fn undo(&self, held: &Held, now: u64) {
        match (held.from, held.cell.leased()) {
            (Granted::Lease, Some(lease)) => lease.put_back(held.units),
            _ => self.give_back(held, held.units, now),
        }
    }

    /// Gives `units` of a charge back.
    fn give_back(&self, held: &Held, units: u64, now: u64) {
        let rate = self.counters[held.counter].rate;
        match (held.from, &self.shared, held.cell.leased()) {
            (Granted::Lease, Some(shared), Some(lease)) if shared.is_present() => {
                shared.send(lease, rate, lease.give_back(units, held.until));
            }
            (Granted::Lease, _, Some(lease)) => lease.put_back(units),
            (Granted::Share, Some(Shared { when_away: WhenAway::Share(share), .. }), Some(lease)) => {
                lease.forgive(units);
                held.cell.bucket.give_back(rate.shared(*share), units, held.until, now);
            }
            _ => held.cell.bucket.give_back(rate, units, held.until, now),
        }
    }

    /// Charges what was `used` instead of what was reserved.
    fn settle(&self, held: &Held, used: u64) {
        let now = self.now();
        if used < held.units {
            return self.give_back(held, held.units - used, now);
        }
        let more = used - held.units;
        match held.cell.leased() {
            Some(lease) => lease.owe(more),
            None => held.cell.bucket.add(self.counters[held.counter].rate, more, now),
        }
    }

    fn refusal(&self, claim: &Held, wait: Duration, now: u64) -> Attempt {
        let counter = &self.counters[claim.counter];
        // "Try again at once" would be a busy loop.
        let retry_after = wait.max(Duration::from_nanos(1));
        let cap = Cap::Policy(Arc::clone(&counter.allowance));
        let tat = match (claim.from, claim.cell.leased()) {
            (Granted::Lease, Some(lease)) => lease.left().0,
            _ => claim.cell.bucket.empty_from(),
        };
        Attempt::Refused(Error::RateLimited { retry_after, cap }, Some(self.quota(claim, tat, now)))
    }

    /// What is left of what grants this claim, whose theoretical arrival time is `tat`.
    fn quota(&self, claim: &Held, tat: u64, now: u64) -> Quota {
        let counter = &self.counters[claim.counter];
        let quota = match (claim.from, &self.shared, claim.cell.leased()) {
            // What lies in the lease is this process's to use.
            (Granted::Lease, _, Some(lease)) => counter.quota(counter.rate, tat, lease.left().1, now),
            (Granted::Share, Some(Shared { when_away: WhenAway::Share(share), .. }), _) => {
                counter.quota(counter.rate.shared(*share), tat, 0, now)
            }
            _ => counter.quota(counter.rate, tat, 0, now),
        };
        Quota { partition: claim.partition, ..quota }
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

/// Why a claim is not charged.
enum Refusal {
    Wait(Duration),
    Ask,
    Away,
}

#[cfg(test)]
mod renewed_tests;
#[cfg(test)]
mod tests;

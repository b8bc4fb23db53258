//! Slots per identity that several processes share, kept in Redis or Valkey beside the rates.
//!
//! Each process leases slots, decides on them alone and renews them for as long as it needs them. The leases of one that
//! dies expire by themselves. What is decided without the server is the share that is configured.

use super::{
    Outcome, PATIENCE, ROUNDS,
    redis::{Shared, WhenAway},
    slot_lease::{Request, SlotLease, Take},
    table::Table,
};
use crate::error::{Cap, Error, Limit};
use foldhash::fast::RandomState;
use std::{fmt::Write as _, sync::Arc, time::Duration};

/// How often [`SharedSlots::tend`] wants to be called: often enough for the shortest lease.
pub const TEND_EVERY: Duration = Duration::from_millis(250);
/// What an identity at its cap waits before it tries again: its calls end when they end, so the least that the protocols
/// can say (contract 10 section 2).
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// One field for each process: its slots, until when they are its own (microseconds since 2025, by the server's clock), and
/// the number of the question.
///
/// A question that arrives behind a later one, on a connection that was given up, changes nothing. What is in use counts
/// even where there is no room for it: then nobody gets more before enough of it has ended.
const SCRIPT: &str = r"
local limit, held, want = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local ttl, number = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = (tonumber(time[1]) - 1735689600) * 1000000 + tonumber(time[2])
local stored = redis.call('HGETALL', KEYS[1])
local others, last = 0, 0
for at = 1, #stored, 2 do
  local slots, expires, latest = string.match(stored[at + 1], '^(%d+):(%d+):(%d+)$')
  slots, expires, latest = tonumber(slots), tonumber(expires), tonumber(latest)
  if stored[at] == ARGV[2] then
    if latest > number then return { slots, 0, 0, 0 } end
  elseif expires <= now then
    redis.call('HDEL', KEYS[1], stored[at])
  else
    others, last = others + slots, math.max(last, expires)
  end
end
local granted = math.max(math.min(want, limit - others), 0)
local counted = math.max(granted, held)
if counted > 0 then
  local value = string.format('%.0f:%.0f:%.0f', counted, now + ttl, number)
  redis.call('HSET', KEYS[1], ARGV[2], value)
  redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(last, now + ttl) - now) / 1000))
else
  redis.call('HDEL', KEYS[1], ARGV[2])
end
return { granted, 0, 0, 0 }
";

/// Slots for calls in flight of each identity, over all processes together (`limits.concurrency.per_identity`).
#[derive(Debug)]
pub struct SharedSlots {
    terms: Arc<Terms>,
    leases: Table<Arc<str>, SlotLease, RandomState>,
    shared: Shared,
}

/// One slot. Dropping it gives it back.
#[derive(Debug)]
pub struct SharedSlot(Arc<SlotLease>);

/// What every request of this process has in common.
#[derive(Debug)]
struct Terms {
    limit: u32,
    /// How long a lease lasts.
    ttl: Duration,
    /// The name of this process.
    holder: Box<str>,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct SlotOrder {
    lease: Arc<SlotLease>,
    identity: Arc<str>,
    terms: Arc<Terms>,
    request: Request,
}

/// What came of trying to take a slot.
enum Attempt {
    Taken(SharedSlot),
    Refused(Error),
    Ask,
}

// === impl SharedSlots ===

impl SharedSlots {
    /// At most `limit` slots of each identity, and at most `cap` identities remembered (`limits.buckets`).
    ///
    /// # Errors
    ///
    /// If the system has no randomness for the name of this process.
    pub fn new(limit: usize, cap: usize, shared: Shared) -> Result<Self, String> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| error.to_string())?;
        let holder = name.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let terms = Terms { limit, ttl: shared.lease, holder: holder.into() };
        Ok(Self { terms: Arc::new(terms), leases: Table::new(cap), shared })
    }

    /// Takes a slot for one call of `identity`. Where one is leased and free, or it is known that none is, that is decided
    /// at once and nothing is allocated.
    pub fn take(self: &Arc<Self>, identity: &Arc<str>) -> Outcome<SharedSlot> {
        let lease = self.leases.entry(identity, self.shared.now());
        match self.attempt(identity, &lease, false) {
            Attempt::Taken(slot) => Outcome::Charged(slot),
            Attempt::Refused(error) => Outcome::Refused(error),
            Attempt::Ask => Outcome::Later(Box::pin(Arc::clone(self).later(Arc::clone(identity), lease))),
        }
    }

    /// Renews leases, and returns slots that are not needed. Called every [`TEND_EVERY`].
    pub fn tend(&self) {
        let (epoch, now) = (self.shared.epoch(), self.shared.now());
        let (present, settled) = (self.shared.is_present(), self.shared.is_settled(now));
        let Terms { limit, ttl, .. } = &*self.terms;
        self.leases.each_key(|identity, lease| {
            // Calls that wait come first; what finds no room is told the next time.
            if present
                && self.shared.has_room()
                && let Some(request) = lease.tend(*limit, *ttl, now, epoch, settled)
            {
                self.send(identity, lease, request);
            }
        });
        self.leases.sweep(now);
    }

    /// How many identities are remembered.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// `late`: what would have to be asked for is decided here.
    fn attempt(&self, identity: &Arc<str>, lease: &Arc<SlotLease>, late: bool) -> Attempt {
        // The epoch first: what is granted over a connection that ends meanwhile is not relied on.
        let (epoch, now) = (self.shared.epoch(), self.shared.now());
        let settled = self.shared.is_settled(now);
        let (take, request) = lease.take(self.terms.limit, now, epoch);
        if let Some(request) = request {
            if settled { self.send(identity, lease, request) } else { lease.failed() }
        }
        let refused = || Attempt::Refused(Error::RateLimited { retry_after: RETRY_AFTER, cap: Cap::Calls });
        match take {
            Take::Taken => return Attempt::Taken(SharedSlot(Arc::clone(lease))),
            Take::Full if settled => return refused(),
            Take::Ask if settled && !late => return Attempt::Ask,
            Take::Full | Take::Ask => {}
        }
        match self.shared.when_away {
            WhenAway::Share(share) if lease.take_unasked(part(self.terms.limit, share)) => {
                Attempt::Taken(SharedSlot(Arc::clone(lease)))
            }
            WhenAway::Share(_) => refused(),
            WhenAway::Refuse => Attempt::Refused(Error::Overloaded { limit: Limit::Shared }),
        }
    }

    /// Waits until what was asked for is there, and decides alone if that takes too long.
    async fn later(self: Arc<Self>, identity: Arc<str>, lease: Arc<SlotLease>) -> Result<Option<SharedSlot>, Error> {
        let until = tokio::time::Instant::now() + PATIENCE;
        let _waiting = lease.wait();
        for round in 0..=ROUNDS {
            let answered = lease.answered.notified();
            tokio::pin!(answered);
            // Listened for first: the answer may come between asking and waiting.
            let _ = answered.as_mut().enable();
            let unanswered = lease.is_asking() && tokio::time::timeout_at(until, answered).await.is_err();
            match self.attempt(&identity, &lease, unanswered || round == ROUNDS) {
                Attempt::Taken(slot) => return Ok(Some(slot)),
                Attempt::Refused(error) => return Err(error),
                Attempt::Ask => {}
            }
        }
        Err(Error::Overloaded { limit: Limit::Shared })
    }

    fn send(&self, identity: &Arc<str>, lease: &Arc<SlotLease>, request: Request) {
        let (lease, identity, terms) = (Arc::clone(lease), Arc::clone(identity), Arc::clone(&self.terms));
        self.shared.send_order(SlotOrder { lease, identity, terms, request }.into());
    }
}

/// What each process grants by itself: at least one.
fn part(limit: u32, share: f64) -> u32 {
    // A share is at most 1, so the product fits.
    ((f64::from(limit) * share) as u32).max(1)
}

// === impl SharedSlot ===

impl Drop for SharedSlot {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

// === impl SlotOrder ===

impl SlotOrder {
    pub(super) fn command(&self) -> redis::Cmd {
        let (Terms { limit, ttl, holder }, request) = (&*self.terms, self.request);
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(format!("sluicegate:calls:{}", self.identity));
        command.arg(limit).arg(&**holder).arg(request.held).arg(request.want);
        command.arg(ttl.as_micros() as u64).arg(request.number);
        command
    }

    pub(super) fn answered(self, granted: u64, now: u64) {
        self.lease.granted(self.request, u32::try_from(granted).unwrap_or(u32::MAX), self.terms.ttl, now);
    }

    pub(super) fn failed(self) {
        self.lease.failed();
    }
}

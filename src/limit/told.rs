//! What a call hears of being charged: what is left, or that it is refused, now or once a shared limit has answered.

use super::{
    Attempt, PATIENCE, ROUNDS, RateLimiter,
    charge::{Charge, Held, Units},
    lease::Lease,
};
use crate::{
    call::{Facts, Quota, Work},
    error::{Error, Limit},
};
use smallvec::SmallVec;
use std::sync::Arc;

/// What a charge has to know of its call.
pub(super) struct Told {
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) facts: Arc<Facts>,
    pub(super) needs_body: bool,
    pub(super) brought: Work,
}

impl Told {
    /// Says what is left, and keeps what is held.
    pub(super) fn charge(self, held: Units, now: u64) -> Charge {
        let Self { limiter, facts, needs_body, brought } = self;
        let quota = |held: &Held| {
            let charged = held.units / limiter.unit(held.counter).scale();
            Quota { charged, ..limiter.quota(held, held.until, now) }
        };
        let told = if needs_body { &facts.reserved } else { &facts.quotas };
        let _ = told.set(held.iter().map(quota).collect());
        Charge { limiter, facts, held, brought, made: Work::default() }
    }

    /// Says what is left for a call that is refused.
    pub(super) fn refused(&self, error: Error, quota: Option<Quota>) -> Error {
        if let Some(quota) = quota {
            let _ = self.facts.exhausted.set(quota);
        }
        error
    }

    /// Waits until what was asked for is there, and decides by itself if that takes too long.
    pub(super) async fn later(
        self,
        mut claims: Units,
        mut asked: SmallVec<[Arc<Lease>; 2]>,
    ) -> Result<Option<Charge>, Error> {
        let until = tokio::time::Instant::now() + PATIENCE;
        for round in 0..=ROUNDS {
            let lease = asked.pop();
            let late = match &lease {
                // Others took what was granted, time after time, or nobody can be asked.
                _ if round == ROUNDS => true,
                None => true,
                Some(lease) => {
                    let answered = lease.answered.notified();
                    tokio::pin!(answered);
                    // Listened for first: the answer may come between asking and waiting.
                    let _ = answered.as_mut().enable();
                    lease.is_drawing() && tokio::time::timeout_at(until, answered).await.is_err()
                }
            };
            let now = self.limiter.now();
            match self.limiter.attempt(claims, now, late) {
                Attempt::Charged(held) => return Ok(Some(self.charge(held, now))),
                Attempt::Refused(error, quota) => return Err(self.refused(error, quota)),
                Attempt::Ask(same, leases) => (claims, asked) = (same, leases),
            }
        }
        Err(Error::Overloaded { limit: Limit::Shared })
    }
}

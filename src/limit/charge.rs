//! What a call was charged: settled, or given back, when it is over (contract 10 section 2).

use super::{RateLimiter, cell::Cell, policy::Unit};
use crate::{
    call::{Chunk, End, Facts, InferResponse, Observer, Work},
    error::{Code, Stage},
};
use smallvec::SmallVec;
use std::sync::Arc;

/// What a call was charged. An observer of the call.
#[derive(Debug)]
pub struct Charge {
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) facts: Arc<Facts>,
    pub(super) held: Units,
    /// What the call brought, as far as it was known when it was charged.
    pub(super) brought: Work,
    /// What it was answered with.
    pub(super) made: Work,
}

/// Units of several policies. Two are usual (per identity, per group); more spill to the heap.
pub(super) type Units = SmallVec<[Held; 2]>;

/// Units of one key of one policy, charged or to be charged.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Which policy.
    pub(super) counter: usize,
    pub(super) cell: Arc<Cell>,
    /// Names the key to clients.
    pub(super) partition: u64,
    pub(super) units: u64,
    /// The theoretical arrival time that the charge made.
    pub(super) until: u64,
    pub(super) from: Granted,
}

/// Who granted units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// This process, whose quota it is.
    Bucket,
    /// A lease of a quota that is shared.
    Lease,
    /// This process, while the shared quota was away.
    Share,
}

// === impl Charge ===

impl Charge {
    /// Whether contract 10 section 2 gives the charge back on this end.
    fn is_returned_on(&self, end: End) -> bool {
        match end {
            End::Failed(Code::Overloaded | Code::NotReady | Code::RateLimited) => true,
            End::Abandoned | End::Failed(Code::DeadlineExceeded | Code::Cancelled) => !self.has_run(),
            End::Complete | End::Failed(_) => false,
        }
    }

    fn has_run(&self) -> bool {
        self.facts.stage() >= Stage::Running
    }

    /// What the call came to in this unit.
    fn used(&self, unit: Unit) -> u64 {
        // As the model took it, where it came that far.
        let brought = self.facts.work.get().unwrap_or(self.brought);
        match unit {
            Unit::Calls => 1,
            Unit::Rows => brought.rows,
            Unit::Bytes => brought.bytes.saturating_add(self.made.bytes),
            Unit::Elements => brought.elements.saturating_add(self.made.elements),
            Unit::ComputeMs => u64::try_from(self.facts.computed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl Observer for Charge {
    fn whole(&mut self, response: &InferResponse) {
        self.made.add_outputs(response);
    }

    fn chunk(&mut self, chunk: &Chunk) {
        let Chunk::Tensors(response) = chunk;
        self.made.add_outputs(response);
    }

    fn end(&mut self, end: End) {
        let held = std::mem::take(&mut self.held);
        if self.is_returned_on(end) {
            let now = self.limiter.now();
            self.facts.give_back();
            held.iter().for_each(|held| self.limiter.give_back(held, held.units, now));
        } else if self.has_run() {
            for held in &held {
                let unit = self.limiter.unit(held.counter);
                if unit != Unit::Calls {
                    self.limiter.settle(held, self.used(unit));
                }
            }
        }
    }
}

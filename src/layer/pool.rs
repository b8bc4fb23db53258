//! A number of slots that all threads take from.
//!
//! `tests/loom` runs this very file under every interleaving of its threads, with other atomics in place of [`sync`](super::sync).

use super::sync::{AtomicUsize, Ordering};

/// A number of slots of one kind.
#[derive(Debug)]
pub(super) struct Pool {
    limit: usize,
    taken: AtomicUsize,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: AtomicUsize::new(0) }
    }

    /// Takes one, if one is free; to be given back.
    pub(super) fn take(&self) -> bool {
        self.taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < self.limit).then_some(taken + 1))
            .is_ok()
    }

    pub(super) fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}

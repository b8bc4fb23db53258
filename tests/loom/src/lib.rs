//! The gateway's own files, over loom's atomics: what is beside them there is beside them here.

#[path = "../../../src/limit/bucket.rs"]
pub mod bucket;
#[path = "../../../src/limit/gcra.rs"]
pub mod gcra;
#[path = "../../../src/layer/pool.rs"]
mod pool;

mod sync {
    pub(super) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}

/// The pool of slots, which is the gateway's own business otherwise.
#[derive(Debug)]
pub struct Slots(pool::Pool);

impl Slots {
    /// So many slots.
    pub fn new(limit: usize) -> Self {
        Self(pool::Pool::new(limit))
    }

    /// Takes one.
    pub fn take(&self) -> bool {
        self.0.take()
    }

    /// Gives one back.
    pub fn give_back(&self) {
        self.0.give_back();
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.0.taken()
    }
}

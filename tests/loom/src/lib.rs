//! The gateway's own files, over loom's atomics.

/// As in the gateway's `limit`.
pub mod limit {
    #[path = "../../../src/limit/bucket.rs"]
    pub mod bucket;
    #[path = "../../../src/limit/gcra.rs"]
    pub mod gcra;
    mod sync {
        pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
    }
}

/// As in the gateway's `layer`.
pub mod layer {
    #[path = "../../../src/layer/pool.rs"]
    mod pool;
    mod sync {
        pub(super) use loom::sync::atomic::{AtomicUsize, Ordering};
    }

    /// What only `layer` may see, for tests.
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
}

//! The state of one key of one policy: a bucket of this process and, where limits are shared, a lease.

use super::{
    lease::Lease,
    table::{Bucket, Entry},
};
use std::sync::{Arc, OnceLock};

/// What a policy remembers of one key.
#[derive(Debug, Default)]
pub(super) struct Cell {
    /// The whole quota where it is this process's own; else what is granted while the shared one is away.
    pub(super) bucket: Bucket,
    lease: OnceLock<Arc<Lease>>,
}

impl Cell {
    /// The lease of this key, made if there is none.
    pub(super) fn lease(&self, key: impl FnOnce() -> Box<str>) -> &Arc<Lease> {
        self.lease.get_or_init(|| Arc::new(Lease::new(key())))
    }

    /// The lease, if there is one.
    pub(super) fn leased(&self) -> Option<&Arc<Lease>> {
        self.lease.get()
    }
}

impl Entry for Cell {
    fn idle_from(&self) -> u64 {
        let lease = self.lease.get().map_or(0, |lease| lease.idle_from());
        self.bucket.idle_from().max(lease)
    }
}

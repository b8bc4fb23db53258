//! How many of something each identity has at once. Holds only identities that have one, so whatever bounds those bounds
//! this.

use dashmap::{DashMap, Entry};
use std::sync::Arc;

/// Counts per identity, up to a limit.
#[derive(Debug)]
pub(super) struct PerIdentity {
    limit: usize,
    taken: DashMap<Arc<str>, usize>,
}

impl PerIdentity {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: DashMap::new() }
    }

    /// One more, if `identity` may have it; to be given back.
    pub(super) fn take(&self, identity: &Arc<str>) -> bool {
        let mut taken = self.taken.entry(Arc::clone(identity)).or_insert(0);
        let free = *taken < self.limit;
        *taken += usize::from(free);
        free
    }

    pub(super) fn give_back(&self, identity: Arc<str>) {
        if let Entry::Occupied(mut entry) = self.taken.entry(identity) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// True if nobody has any.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

//! A bounded DashMap of shared entries: lookup, sweep, cap.
//!
//! Returns handles, never guards: no lock of a shard outlives a function of this file. It does not know what an entry
//! is for, only when it may be forgotten.

pub use super::bucket::Bucket;

use dashmap::{DashMap, Entry as Place};
use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What a table holds.
pub trait Entry: Default {
    /// From when on, in nanoseconds since start, forgetting it loses nothing.
    fn idle_from(&self) -> u64;
}

/// Entries by key, at most `cap` of them. Keys that strangers may choose need a hasher that they cannot foresee, as the
/// standard library's is.
pub struct Table<K, V, S = RandomState> {
    map: DashMap<K, Arc<V>, S>,
    /// Kept beside the map: its own `len` locks every shard.
    len: AtomicUsize,
    cap: AtomicUsize,
    /// One thread makes room, the others wait for it: went they on, a flood would outrun the scan. So the cap is
    /// overshot by an entry per thread at most.
    clearing: Mutex<()>,
}

// === impl Bucket ===

impl Entry for Bucket {
    fn idle_from(&self) -> u64 {
        self.empty_from()
    }
}

// === impl Table ===

impl<K: Eq + Hash + Clone, V: Entry, S: BuildHasher + Clone + Default> Table<K, V, S> {
    /// An empty table for at most `cap` entries.
    pub fn new(cap: usize) -> Self {
        Self {
            map: DashMap::default(),
            len: AtomicUsize::new(0),
            cap: AtomicUsize::new(cap.max(1)),
            clearing: Mutex::new(()),
        }
    }

    /// From now on there are at most `cap` entries. Those beyond it leave as new ones come.
    pub fn set_cap(&self, cap: usize) {
        self.cap.store(cap.max(1), Ordering::Relaxed);
    }

    fn cap(&self) -> usize {
        self.cap.load(Ordering::Relaxed)
    }

    /// The entry of `key`, if there is one. Allocates nothing.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.map.get(key).map(|found| Arc::clone(&found))
    }

    /// The entry of `key`, made if there is none. A full table first lets go of the oldest.
    pub fn entry(&self, key: &K, now: u64) -> Arc<V> {
        if let Some(found) = self.get(key) {
            return found;
        }
        if self.len() >= self.cap() {
            self.make_room(now);
        }
        match self.map.entry(key.clone()) {
            Place::Occupied(found) => Arc::clone(found.get()),
            Place::Vacant(place) => {
                self.len.fetch_add(1, Ordering::Relaxed);
                let made = Arc::new(V::default());
                drop(place.insert(Arc::clone(&made)));
                made
            }
        }
    }

    /// Looks at every entry; their shards are locked meanwhile.
    pub fn each(&self, mut look: impl FnMut(&Arc<V>)) {
        self.map.iter().for_each(|entry| look(entry.value()));
    }

    /// Looks at every entry and its key; their shards are locked meanwhile.
    pub fn each_key(&self, mut look: impl FnMut(&K, &Arc<V>)) {
        self.map.iter().for_each(|entry| look(entry.key(), entry.value()));
    }

    /// Forgets what is idle at `now` and in nobody's hands.
    pub fn sweep(&self, now: u64) {
        self.forget(|entry| entry.idle_from() <= now);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets idle entries; if all are busy, the sixteenth that will be idle first, so that a flood of new keys pays
    /// for one scan in so many insertions and not for one each.
    fn make_room(&self, now: u64) {
        let _clearing = self.clearing.lock().unwrap_or_else(PoisonError::into_inner);
        let cap = self.cap();
        if self.len() < cap {
            return;
        }
        self.sweep(now);
        if self.len() >= cap {
            let mut ages: Vec<u64> = self.map.iter().filter(|e| is_free(e.value())).map(|e| e.idle_from()).collect();
            // All that is beyond it too, where the cap was lowered.
            let spare = (cap.div_ceil(16) + self.len().saturating_sub(cap)).min(ages.len());
            if spare > 0 {
                let (_, threshold, _) = ages.select_nth_unstable(spare - 1);
                let threshold = *threshold;
                let mut left = spare;
                self.forget(|entry| {
                    let goes = left > 0 && entry.idle_from() <= threshold;
                    left -= usize::from(goes);
                    goes
                });
            }
        }
    }

    /// Removes entries that `idle` names, except those that somebody holds: their charges would be lost.
    fn forget(&self, mut idle: impl FnMut(&V) -> bool) {
        let mut gone = 0;
        self.map.retain(|_, entry| {
            let stays = !(is_free(entry) && idle(entry));
            gone += usize::from(!stays);
            stays
        });
        self.len.fetch_sub(gone, Ordering::Relaxed);
    }
}

/// True if only the table holds it. Handles are cloned under the shard's lock, so this cannot change meanwhile.
fn is_free<V>(entry: &Arc<V>) -> bool {
    Arc::strong_count(entry) == 1
}

impl<K: Eq + Hash + Clone, V: Entry, S: BuildHasher + Clone + Default> fmt::Debug for Table<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the keys: some are identities.
        f.debug_struct("Table").field("len", &self.len()).field("cap", &self.cap()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::gcra::Rate;
    use std::{num::NonZeroU64, time::Duration};

    fn rate(limit: u64, burst: u64) -> Rate {
        Rate::new(NonZeroU64::new(limit).unwrap(), Duration::from_secs(1), NonZeroU64::new(burst).unwrap())
    }

    fn keys(table: &Table<u32, Bucket>) -> Vec<u32> {
        let mut keys: Vec<u32> = table.map.iter().map(|entry| *entry.key()).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn threads_that_share_a_bucket_never_exceed_its_burst() {
        let bucket = Bucket::default();
        let accepted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if bucket.charge(rate(1, 1_000), 1, 5).is_ok() {
                            accepted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(accepted.into_inner(), 1_000);
    }

    #[test]
    fn what_threads_give_back_is_there_again() {
        let bucket = Bucket::default();
        let rate = rate(1, 1_000);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let until = bucket.charge(rate, 1, 5).unwrap();
                        bucket.give_back(rate, 1, until, 5);
                    }
                });
            }
        });
        assert_eq!((0..2_000).filter(|_| bucket.charge(rate, 1, 5).is_ok()).count(), 1_000);
    }

    #[test]
    fn the_same_key_has_the_same_entry() {
        let table = Table::<u32, Bucket>::new(10);
        assert!(Arc::ptr_eq(&table.entry(&1, 0), &table.entry(&1, 0)));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_sweep_forgets_the_idle_and_keeps_what_is_held() {
        let table = Table::<u32, Bucket>::new(10);
        table.entry(&1, 0).charge(rate(1, 1), 1, 0).unwrap();
        let held = table.entry(&2, 0);
        drop(table.entry(&3, 0));
        table.sweep(0);
        assert_eq!(keys(&table), [1, 2]);
        drop(held);
        table.sweep(2_000_000_000);
        assert!(table.is_empty());
    }

    #[test]
    fn in_a_full_table_the_oldest_leaves() {
        let table = Table::<u32, Bucket>::new(4);
        for key in 0..4 {
            table.entry(&key, 0).charge(rate(1, 100), 1, u64::from(key)).unwrap();
        }
        table.entry(&9, 5).charge(rate(1, 100), 1, 5).unwrap();
        assert_eq!(keys(&table), [1, 2, 3, 9]);
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn where_the_cap_is_lowered_those_beyond_it_leave() {
        let table = Table::<u32, Bucket>::new(8);
        for key in 0..8 {
            table.entry(&key, 0).charge(rate(1, 100), 1, u64::from(key)).unwrap();
        }
        table.set_cap(4);
        table.entry(&9, 8).charge(rate(1, 100), 1, 8).unwrap();
        assert_eq!(keys(&table), [5, 6, 7, 9]);
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn a_flood_of_keys_stays_within_the_cap() {
        let table = Table::<u32, Bucket>::new(1_000);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let table = &table;
                scope.spawn(move || {
                    for key in 0..5_000 {
                        let _ = table.entry(&(thread * 10_000 + key), 0).charge(rate(1, 1), 1, 0);
                        assert!(table.len() <= 1_004);
                    }
                });
            }
        });
        assert_eq!(table.len(), table.map.len());
    }
}

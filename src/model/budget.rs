//! The cores and the memory that models use together.
//!
//! Whoever prepares models asks here first and holds what it was given for as long as the model may run. Nothing is taken
//! back from a model that has it: one that is loaded later gets what is left.

use crate::call::ModelKey;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// What there is, and who has what.
#[derive(Debug)]
pub struct Budget {
    cores: usize,
    /// Bytes; `None`: as many as there are.
    memory: Option<u64>,
    held: Mutex<Held>,
    /// Told when a model that was served gives memory back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    shares: HashMap<u64, Part>,
    /// Who was refused last time, and how many bytes were asked for.
    refused: HashMap<ModelKey, u64>,
}

#[derive(Debug)]
struct Part {
    key: ModelKey,
    threads: usize,
    bytes: u64,
    /// Whether the model was ready.
    is_known: bool,
}

/// A model's part of the budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    number: u64,
}

/// What a model that is going to run on threads asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its name.
    pub model: Arc<str>,
    /// Its instances.
    pub instances: usize,
    /// Threads within one run of each; `None`: its part of what is there.
    pub threads: Option<usize>,
}

// === impl Budget ===

impl Budget {
    /// A budget of so many cores, at least one, and so many bytes, if they are limited.
    pub fn new(cores: usize, memory: Option<u64>) -> Arc<Self> {
        Arc::new(Self { cores: cores.max(1), memory, held: Mutex::default(), freed: Notify::new() })
    }

    /// Cores for inference, whoever has them.
    pub fn cores(&self) -> usize {
        self.cores
    }

    /// Bytes for models, whoever has them, if they are limited.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Threads within one run for each of `wants`, in their order: what nobody holds, divided equally among those that do
    /// not say. What other versions of the same models hold counts as free, because they are about to be replaced, except `kept`,
    /// which are not.
    ///
    /// Instances × threads of all together stay within the cores, unless there are more instances than cores, or models say
    /// otherwise: nobody has less than one.
    pub fn divide(&self, wants: &[Want], kept: &[ModelKey]) -> Vec<usize> {
        let leaves = |key: &ModelKey| wants.iter().any(|want| want.model == key.name) && !kept.contains(key);
        let held: usize =
            self.lock().shares.values().filter(|share| !leaves(&share.key)).map(|share| share.threads).sum();
        let mut threads: Vec<usize> = wants.iter().map(|want| want.threads.unwrap_or(1)).collect();
        let total = |at: usize, threads: &[usize]| wants[at].instances.max(1) * threads[at];
        let taken: usize = held + (0..wants.len()).map(|at| total(at, &threads)).sum::<usize>();
        let mut left = self.cores.saturating_sub(taken);
        // One thread after the other, for whoever has least.
        loop {
            let fits = |at: &usize| wants[*at].threads.is_none() && wants[*at].instances.max(1) <= left;
            let Some(at) = (0..wants.len()).filter(fits).min_by_key(|at| total(*at, &threads)) else { break threads };
            threads[at] += 1;
            left -= wants[at].instances.max(1);
        }
    }

    /// Takes threads and memory for a model, until the share is dropped.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: how many bytes it needs and how many are left. Threads are never refused.
    pub fn take(self: &Arc<Self>, key: &ModelKey, threads: usize, bytes: u64) -> Result<Share, String> {
        let mut held = self.lock();
        if let Some(limit) = self.memory {
            let taken: u64 = held.shares.values().map(|share| share.bytes).sum();
            let left = limit.saturating_sub(taken);
            if bytes > left {
                held.refused.insert(key.clone(), bytes);
                return Err(format!(
                    "it needs about {} of memory, and {} of {} for models (`models.memory`) are left",
                    mib(bytes),
                    mib(left),
                    mib(limit)
                ));
            }
        }
        let number = held.next;
        held.next += 1;
        held.refused.remove(key);
        held.shares.insert(number, Part { key: key.clone(), threads, bytes, is_known: false });
        Ok(Share { budget: Arc::clone(self), number })
    }

    /// Waits until a model that was served has given its memory back since this was last asked. For one who asks.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Whether a model was refused when it last asked.
    pub fn refuses(&self, key: &ModelKey) -> bool {
        self.lock().refused.contains_key(key)
    }

    /// Whether there is now what a model asked for when it was refused.
    pub fn has_room(&self, key: &ModelKey) -> bool {
        let held = self.lock();
        let taken: u64 = held.shares.values().map(|share| share.bytes).sum();
        let left = self.memory.map_or(u64::MAX, |limit| limit.saturating_sub(taken));
        held.refused.get(key).is_some_and(|bytes| *bytes <= left)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Each change is one statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Share ===

impl Share {
    /// Says what the model has turned out to need, now that it is there: it is not refused any more.
    pub fn set(&self, threads: usize, bytes: u64) {
        if let Some(share) = self.budget.lock().shares.get_mut(&self.number) {
            (share.threads, share.bytes, share.is_known) = (threads, bytes, true);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // What a load has taken and gives up changes nothing for others; it would be tried again for ever.
        if self.budget.lock().shares.remove(&self.number).is_some_and(|share| share.is_known) {
            self.budget.freed.notify_one();
        }
    }
}

/// Bytes as operators read them.
pub(super) fn mib(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        bytes if bytes < MIB => format!("{} KiB", bytes.div_ceil(1 << 10)),
        bytes if bytes < 100 * MIB => format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB),
        bytes => format!("{} MiB", bytes / MIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(model: &str) -> ModelKey {
        ModelKey { name: model.into(), version: "1".into() }
    }

    fn want(model: &str, instances: usize, threads: Option<usize>) -> Want {
        Want { model: model.into(), instances, threads }
    }

    #[test]
    fn cores_are_divided_among_all_that_do_not_say() {
        let budget = Budget::new(8, None);
        assert_eq!(budget.divide(&[want("a", 1, None)], &[]), [8]);
        assert_eq!(budget.divide(&[want("a", 1, None), want("b", 1, None), want("c", 1, None)], &[]), [3, 3, 2]);
        assert_eq!(budget.divide(&[want("a", 2, Some(3)), want("b", 1, None)], &[]), [3, 2]);
        assert_eq!(budget.divide(&[want("a", 4, None), want("b", 1, None)], &[]), [1, 4]);
        assert_eq!(budget.divide(&[want("a", 16, None)], &[]), [1], "nobody has less than one");
    }

    #[test]
    fn what_is_loaded_later_gets_what_is_left_and_a_new_version_what_the_old_one_has() {
        let budget = Budget::new(4, None);
        let first = budget.take(&key("a"), 3, 0).unwrap();
        assert_eq!(budget.divide(&[want("b", 1, None)], &[]), [1]);
        assert_eq!(budget.divide(&[want("a", 1, None)], &[]), [4]);
        let kept = [key("a")];
        assert_eq!(budget.divide(&[want("a", 1, None)], &kept), [1], "another version of it goes on");
        drop(first);
        assert_eq!(budget.divide(&[want("b", 1, None)], &[]), [4]);
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_and_says_by_how_much() {
        let budget = Budget::new(1, Some(100 << 20));
        let share = budget.take(&key("a"), 1, 60 << 20).unwrap();
        let refused = budget.take(&key("b"), 1, 50 << 20).unwrap_err();
        assert_eq!(
            refused,
            "it needs about 50.0 MiB of memory, and 40.0 MiB of 100 MiB for models (`models.memory`) are left"
        );
        share.set(1, 10 << 20);
        assert!(budget.take(&key("b"), 1, 50 << 20).is_ok());
        drop(share);
        assert!(budget.take(&key("c"), 1, 100 << 20).is_ok());
    }

    proptest! {
        #[test]
        fn together_they_stay_within_the_cores(
            cores in 1_usize..128,
            held in 0_usize..64,
            models in prop::collection::vec((1_usize..8, prop::option::of(1_usize..8)), 1..12),
        ) {
            let budget = Budget::new(cores, None);
            let _other = budget.take(&key("other"), held, 0).unwrap();
            let wants: Vec<_> = models.iter().enumerate().map(|(at, (instances, threads))| {
                want(&at.to_string(), *instances, *threads)
            }).collect();
            let threads = budget.divide(&wants, &[]);
            let sum: usize = held + wants.iter().zip(&threads).map(|(want, threads)| want.instances * threads).sum::<usize>();
            // Who has one thread for each instance could not have less, and who says has what he says.
            let least: usize = held + wants.iter().map(|want| want.instances * want.threads.unwrap_or(1)).sum::<usize>();
            prop_assert!(threads.iter().all(|threads| *threads >= 1));
            prop_assert!(sum <= cores.max(least), "{sum} of {cores}, at least {least}: {threads:?}");
        }
    }
}

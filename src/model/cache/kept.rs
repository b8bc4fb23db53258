//! The answers that are kept: bounded in bytes and in age, least recently used out first.
//!
//! Pure: the time is given, nothing is locked, and what goes is handed back so that it is not freed under a lock.

use super::question::{Hash, Question};
use crate::call::NamedTensor;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// What an entry takes besides the bytes of its tensors: the maps' nodes and the lists, as a generous round number.
const ENTRY: usize = 512;
/// What a tensor takes besides its bytes: its name, shape and the head of its bytes, in lists that may be half empty.
const TENSOR: usize = 256;

/// A question and its answer.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) question: Question,
    /// All outputs of the model, named.
    pub(super) outputs: Vec<NamedTensor>,
    /// When the model answered.
    pub(super) made: Instant,
}

/// Entries by hash.
#[derive(Debug)]
pub(super) struct Kept {
    /// Bytes, at most.
    most: usize,
    age: Duration,
    entries: HashMap<Hash, Held>,
    /// By when they were used last, and by when they came; both in ticks.
    used: BTreeMap<u64, Hash>,
    came: BTreeMap<u64, Hash>,
    tick: u64,
    bytes: usize,
    gone: Gone,
}

#[derive(Debug)]
struct Held {
    entry: Arc<Entry>,
    size: usize,
    used: u64,
    came: u64,
}

/// What went, and why.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Whose time was over.
    pub(super) aged: usize,
    /// For want of room.
    pub(super) squeezed: usize,
    /// All of them, and those that were replaced.
    entries: Vec<Arc<Entry>>,
}

#[derive(Clone, Copy)]
enum Why {
    Aged,
    Squeezed,
    Replaced,
}

/// Bytes that an entry of this question and these outputs counts as.
pub(super) fn size(question: &Question, outputs: &[NamedTensor]) -> usize {
    let answer: usize = outputs.iter().map(|output| output.tensor.data().len()).sum();
    let tensors = question.inputs.len() + outputs.len();
    ENTRY + tensors * TENSOR + question.bytes().saturating_add(answer)
}

// === impl Kept ===

impl Kept {
    pub(super) fn new(most: usize, age: Duration) -> Self {
        Self {
            most,
            age,
            entries: HashMap::new(),
            used: BTreeMap::new(),
            came: BTreeMap::new(),
            tick: 0,
            bytes: 0,
            gone: Gone::default(),
        }
    }

    /// Bytes that the entries count as together.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether something of this size would be kept.
    pub(super) fn has_room_for(&self, size: usize) -> bool {
        size <= self.most
    }

    /// The entry under `hash`, which is now the one that was used last, unless its time is over.
    pub(super) fn get(&mut self, hash: &Hash, now: Instant) -> Option<Arc<Entry>> {
        let held = self.entries.get_mut(hash)?;
        if is_over(&held.entry, self.age, now) {
            self.remove(hash, Why::Aged);
            return None;
        }
        // The most asked for is often the last that was.
        if held.used != self.tick {
            self.used.remove(&held.used);
            self.tick += 1;
            held.used = self.tick;
            self.used.insert(self.tick, *hash);
        }
        Some(Arc::clone(&held.entry))
    }

    /// Keeps `entry`, in place of what is under its hash, and lets go of what there is no room or no time for.
    pub(super) fn put(&mut self, hash: Hash, entry: Arc<Entry>, now: Instant) {
        let size = size(&entry.question, &entry.outputs);
        self.remove(&hash, Why::Replaced);
        self.sweep(now);
        if !self.has_room_for(size) {
            return;
        }
        while self.bytes + size > self.most {
            let Some((_, oldest)) = self.used.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(&oldest, Why::Squeezed);
        }
        self.tick += 1;
        let held = Held { entry, size, used: self.tick, came: self.tick };
        self.used.insert(held.used, hash);
        self.came.insert(held.came, hash);
        self.bytes += size;
        self.entries.insert(hash, held);
    }

    /// Lets go of what is too old: all entries have the same time, so the first that came is the first whose time is over.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some((_, first)) = self.came.first_key_value() {
            let first = *first;
            match self.entries.get(&first) {
                Some(held) if !is_over(&held.entry, self.age, now) => break,
                _ => self.remove(&first, Why::Aged),
            }
        }
    }

    /// What went since this was last asked. To be dropped where nobody waits.
    pub(super) fn take_gone(&mut self) -> Gone {
        std::mem::take(&mut self.gone)
    }

    fn remove(&mut self, hash: &Hash, why: Why) {
        let Some(held) = self.entries.remove(hash) else { return };
        self.used.remove(&held.used);
        self.came.remove(&held.came);
        self.bytes -= held.size;
        match why {
            Why::Aged => self.gone.aged += 1,
            Why::Squeezed => self.gone.squeezed += 1,
            Why::Replaced => {}
        }
        self.gone.entries.push(held.entry);
    }
}

fn is_over(entry: &Entry, age: Duration, now: Instant) -> bool {
    now.saturating_duration_since(entry.made) >= age
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;

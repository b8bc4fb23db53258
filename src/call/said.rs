//! What is said of a call once and asked for often, where it is a few words of memory.

use super::{Timing, Work};
use std::{
    array, fmt,
    marker::PhantomData,
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A value of `N` words that is said once: a `OnceLock` for what is `Copy`.
///
/// One thread at a time has a call in hand, so there is one writer at a time, and plain stores will do where `OnceLock`
/// takes two locked operations. A call says half a dozen of these, which was a twentieth of its cost.
pub struct Said<T, const N: usize> {
    words: [AtomicU64; N],
    is_said: AtomicBool,
    of: PhantomData<fn() -> T>,
}

/// A value that can be taken apart into `N` words and put together again.
pub trait Words<const N: usize>: Copy {
    /// Its words.
    fn words(self) -> [u64; N];
    /// The value with these words.
    fn of_words(words: [u64; N]) -> Self;
}

/// Any moment that moments are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Marks a moment before that one.
const BEFORE: u64 = 1 << 63;

// === impl Said ===

impl<T: Words<N>, const N: usize> Said<T, N> {
    /// Says it. Only the first word on a thing is heard: true if this is it.
    pub fn set(&self, value: T) -> bool {
        if self.is_said.load(Ordering::Relaxed) {
            return false;
        }
        for (place, word) in self.words.iter().zip(value.words()) {
            place.store(word, Ordering::Relaxed);
        }
        self.is_said.store(true, Ordering::Release);
        true
    }

    /// What was said, if it was.
    pub fn get(&self) -> Option<T> {
        let read = || T::of_words(array::from_fn(|at| self.words[at].load(Ordering::Relaxed)));
        self.is_said.load(Ordering::Acquire).then(read)
    }
}

impl<T, const N: usize> Default for Said<T, N> {
    fn default() -> Self {
        Self { words: array::from_fn(|_| AtomicU64::default()), is_said: AtomicBool::default(), of: PhantomData }
    }
}

impl<T: Words<N> + fmt::Debug, const N: usize> fmt::Debug for Said<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

// === impl Words ===

/// Seconds and nanoseconds from [`EPOCH`], and in the highest bit whether that is before it: as a span has them, so that
/// nothing is divided.
impl Words<2> for Instant {
    fn words(self) -> [u64; 2] {
        match self.checked_duration_since(*EPOCH) {
            Some(after) => [after.as_secs(), u64::from(after.subsec_nanos())],
            None => {
                let before = EPOCH.saturating_duration_since(self);
                [before.as_secs(), u64::from(before.subsec_nanos()) | BEFORE]
            }
        }
    }

    fn of_words([seconds, nanos]: [u64; 2]) -> Self {
        let span = Duration::new(seconds, (nanos & !BEFORE) as u32);
        // It was an instant before it was a number.
        let moment = if nanos & BEFORE == 0 { EPOCH.checked_add(span) } else { EPOCH.checked_sub(span) };
        moment.unwrap_or(*EPOCH)
    }
}

/// Both spans in nanoseconds.
impl Words<2> for Timing {
    fn words(self) -> [u64; 2] {
        [self.queue, self.compute].map(|span| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }

    fn of_words(words: [u64; 2]) -> Self {
        let [queue, compute] = words.map(Duration::from_nanos);
        Self { queue, compute }
    }
}

impl Words<3> for Work {
    fn words(self) -> [u64; 3] {
        [self.rows, self.bytes, self.elements]
    }

    fn of_words([rows, bytes, elements]: [u64; 3]) -> Self {
        Self { rows, bytes, elements }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_counts() {
        let work = Said::default();
        assert_eq!(work.get(), None);
        let (one, two) = (Work { rows: 1, bytes: 2, elements: u64::MAX }, Work::default());
        assert!(work.set(one));
        assert!(!work.set(two));
        assert_eq!(work.get(), Some(one));
    }

    #[test]
    fn moments_stay_what_they_are_before_and_after_the_first() {
        let now = Instant::now();
        for moment in [Some(now), now.checked_sub(Duration::from_nanos(7)), now.checked_add(Duration::from_secs(7))] {
            let said = Said::default();
            said.set(moment.unwrap());
            assert_eq!(said.get(), moment);
        }
        let (before, said) = (EPOCH.checked_sub(Duration::from_nanos(1)), Said::default());
        said.set(before.unwrap());
        assert_eq!(said.get(), before);
    }

    #[test]
    fn spans_stay_what_they_are() {
        let timing = Timing { queue: Duration::from_nanos(3), compute: Duration::from_secs(90) };
        let said = Said::default();
        said.set(timing);
        assert_eq!(said.get(), Some(timing));
    }
}

//! A value that is read with each call and exchanged now and then: settings, keys, grants.
//!
//! Does not know what it holds. A reader keeps what was exchanged until its thread looks again, so this is for values
//! that cost nothing to keep; models, whose memory is wanted back, are held by `ArcSwap` itself.

use arc_swap::{ArcSwap, Cache};
use std::{cell::RefCell, fmt, sync::Arc};
use thread_local::ThreadLocal;

/// A value that may be exchanged for another while all threads read it.
///
/// A look is a comparison with what this thread saw last. `ArcSwap::load` takes two locked operations, which is little;
/// a call takes five looks.
pub struct Current<T: Send + Sync> {
    value: Arc<ArcSwap<T>>,
    seen: ThreadLocal<RefCell<Seen<T>>>,
}

type Seen<T> = Cache<Arc<ArcSwap<T>>, Arc<T>>;

impl<T: Send + Sync> Current<T> {
    /// Begins with `value`.
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Self { value: Arc::new(ArcSwap::new(value.into())), seen: ThreadLocal::new() }
    }

    /// From now on it is `value`; a look that has begun ends with what it sees.
    pub fn set(&self, value: impl Into<Arc<T>>) {
        self.value.store(value.into());
    }

    /// Exchanges it for what `change` makes of it, and asks again if another was faster.
    pub fn change(&self, change: impl FnMut(&Arc<T>) -> T) {
        self.value.rcu(change);
    }

    /// What it is now, to keep.
    pub fn get(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Looks at what it is now.
    pub fn with<R>(&self, look: impl FnOnce(&Arc<T>) -> R) -> R {
        let seen = self.seen.get_or(|| RefCell::new(Cache::new(Arc::clone(&self.value))));
        match seen.try_borrow_mut() {
            Ok(mut seen) => look(seen.load()),
            // From within a look.
            Err(_) => look(&self.value.load()),
        }
    }
}

impl<T: Send + Sync + Default> Default for Current<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Send + Sync + fmt::Debug> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.load().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_of_every_thread_sees_what_was_set() {
        let current = Current::new(1);
        let (asked, questions) = std::sync::mpsc::channel::<i32>();
        std::thread::scope(|scope| {
            let current = &current;
            scope.spawn(move || {
                for expected in questions {
                    assert_eq!(current.with(|value| **value), expected);
                }
            });
            for value in 2..100 {
                current.set(value);
                assert_eq!(current.with(|value| **value), value);
            }
            asked.send(99).unwrap();
            drop(asked);
        });
        current.change(|value| **value + 1);
        assert_eq!((*current.get(), current.with(|value| **value)), (100, 100));
    }

    #[test]
    fn a_look_within_a_look_sees_what_is_new() {
        let current = Current::new(1);
        current.with(|outer| {
            current.set(2);
            assert_eq!((**outer, current.with(|inner| **inner)), (1, 2));
        });
    }

    #[test]
    fn what_was_exchanged_is_let_go_at_the_next_look() {
        let current: Current<String> = Current::new(String::from("a"));
        let first = Arc::downgrade(&current.get());
        current.with(|_| ());
        current.set(String::from("b"));
        assert!(first.upgrade().is_some());
        current.with(|_| ());
        assert!(first.upgrade().is_none());
    }
}

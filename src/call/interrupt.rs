//! The way from a caller that leaves to the run that works for it.
//!
//! Dropping is cancelling, and what waits in a queue is dropped when its turn comes. A run that has begun does not look up
//! from its work: whoever runs it leaves the means to end it here, for as long as it runs.

use super::{End, Facts, Observer};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ends a run early. Called from any thread; must not wait.
pub type Stop = Arc<dyn Fn() + Send + Sync>;

/// Knows whether a call's run can be ended now.
#[derive(Default)]
pub struct Interrupt(Mutex<State>);

#[derive(Default)]
enum State {
    /// Nothing runs that could be ended.
    #[default]
    Idle,
    Running(Stop),
    /// The caller is gone.
    Fired,
}

/// While it lives, the run can be ended.
#[derive(Debug)]
pub struct Armed<'a>(&'a Interrupt);

impl Interrupt {
    /// Lets `stop` end the run that now begins, until the guard is dropped. `None` if the caller is gone already: then the
    /// run must not begin.
    pub fn arm(&self, stop: &Stop) -> Option<Armed<'_>> {
        let mut state = self.lock();
        if matches!(*state, State::Fired) {
            return None;
        }
        *state = State::Running(Arc::clone(stop));
        Some(Armed(self))
    }

    /// The caller is gone: ends its run, if there is one.
    pub fn fire(&self) {
        // Under the lock: once the guard is gone, the next run of the same instance may have begun.
        if let State::Running(stop) = std::mem::replace(&mut *self.lock(), State::Fired) {
            stop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each state is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if matches!(*state, State::Running(_)) {
            *state = State::Idle;
        }
    }
}

/// Ends the run of a stream whose reader has gone.
#[derive(Debug)]
pub struct Leaving(pub Arc<Facts>);

impl Observer for Leaving {
    fn end(&mut self, end: End) {
        if end != End::Complete {
            self.0.interrupt.fire();
        }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counted() -> (Stop, Arc<AtomicUsize>) {
        let stopped = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&stopped);
        (Arc::new(move || _ = count.fetch_add(1, Ordering::SeqCst)), stopped)
    }

    #[test]
    fn a_run_is_ended_only_while_it_runs_and_once() {
        let (stop, stopped) = counted();
        let interrupt = Interrupt::default();
        drop(interrupt.arm(&stop).unwrap());
        let armed = interrupt.arm(&stop).unwrap();
        interrupt.fire();
        interrupt.fire();
        drop(armed);
        assert_eq!(stopped.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_run_whose_caller_is_gone_does_not_begin() {
        let (stop, stopped) = counted();
        let interrupt = Interrupt::default();
        interrupt.fire();
        assert!(interrupt.arm(&stop).is_none());
        assert_eq!(stopped.load(Ordering::SeqCst), 0);
    }
}

//! Runs that take too long: they are ended, and the instance is given up if its run does not end then.
//!
//! A run that is given up goes on, on its own thread, with its instance and its buffers: ONNX Runtime may write to them until
//! it returns (onnxruntime#24601), so nothing of it may be touched or freed before. This file knows one instance and its
//! clock; who looks at the clock, and what takes the instance's place, is the pool's business.

use super::{Job, callers::Callers};
use crate::{
    backend::Backend,
    call::Stop,
    error::Error,
    tensor::{Signature, Tensor, Tensors},
};
use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a run that was told to end may take to do so: ONNX Runtime looks up between two nodes of a graph.
const GRACE: Duration = Duration::from_secs(10);

/// What an instance is doing, for those who look at it from outside.
#[derive(Default)]
pub(super) struct Watch {
    state: Mutex<State>,
    /// Those who wait for the batch that it runs.
    callers: Mutex<Option<Arc<Callers>>>,
    /// The next runs may take this long and no longer.
    short: Mutex<Option<Duration>>,
    /// Its last run was told to end.
    was_ended: AtomicBool,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Running {
        since: Instant,
        stop: Option<Stop>,
        /// When it was told to end.
        ended: Option<Instant>,
    },
    GivenUp,
}

/// What is to be done about an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing.
    Fine,
    /// Its run was told to end, just now.
    Ended,
    /// Its run did not end: it is given up from now on.
    GivenUp,
}

/// An instance that is watched: each of its runs begins and ends under the eyes of its [`Watch`].
pub(super) struct Watched {
    backend: Box<dyn Backend>,
    watch: Arc<Watch>,
    /// What ends the next run, if somebody has asked for it.
    stop: Option<Stop>,
}

/// A run that is under way; over when it is dropped, by a panic too.
struct Running<'a>(&'a Watch);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let State::Running { .. } = *state {
            *state = State::Idle;
        }
    }
}

// === impl Watch ===

impl Watch {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps those who wait for the batch that is about to run.
    pub(super) fn hold(&self, jobs: &mut [Job]) {
        *self.callers.lock().unwrap_or_else(PoisonError::into_inner) = Some(Callers::of(jobs));
    }

    /// Those who wait for the batch that it runs.
    pub(super) fn callers(&self) -> Option<Arc<Callers>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on runs may take `short`, if that is less than the limit; nothing: as long as the limit says.
    pub(super) fn hurry(&self, short: Option<Duration>) {
        *self.short.lock().unwrap_or_else(PoisonError::into_inner) = short;
    }

    /// Whether its last run was told to end.
    pub(super) fn was_ended(&self) -> bool {
        self.was_ended.load(Ordering::Acquire)
    }

    fn begin(&self, stop: Option<Stop>) -> Result<Running<'_>, Error> {
        let mut state = self.lock();
        if let State::GivenUp = *state {
            return Err(Error::internal("the instance was given up"));
        }
        *state = State::Running { since: Instant::now(), stop, ended: None };
        self.was_ended.store(false, Ordering::Release);
        Ok(Running(self))
    }

    /// Looks at the clock: ends a run that takes longer than `limit`, and gives the instance up some time after.
    pub(super) fn look(&self, now: Instant, limit: Duration) -> Finding {
        let mut state = self.lock();
        let State::Running { since, stop, ended } = &mut *state else { return Finding::Fine };
        let short = *self.short.lock().unwrap_or_else(PoisonError::into_inner);
        match *ended {
            None if now.saturating_duration_since(*since) <= short.unwrap_or(limit).min(limit) => return Finding::Fine,
            None => *ended = Some(now),
            Some(ended) if now.saturating_duration_since(ended) <= limit.min(GRACE) => return Finding::Fine,
            Some(_) => {
                *state = State::GivenUp;
                return Finding::GivenUp;
            }
        }
        self.was_ended.store(true, Ordering::Release);
        // Under the lock: once the run is over, the next one may have begun.
        if let Some(stop) = stop {
            stop();
        }
        Finding::Ended
    }

    pub(super) fn is_given_up(&self) -> bool {
        matches!(*self.lock(), State::GivenUp)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(backend: Box<dyn Backend>, watch: Arc<Watch>) -> Self {
        Self { backend, watch, stop: None }
    }

    /// What ends the next run: what was handed out to somebody, or else something of our own.
    fn stop(&mut self) -> Option<Stop> {
        self.stop.take().or_else(|| self.backend.interruptible())
    }
}

impl Backend for Watched {
    fn signature(&self) -> &Arc<Signature> {
        self.backend.signature()
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let stop = self.stop();
        let _running = self.watch.begin(stop)?;
        self.backend.run(inputs)
    }

    fn interruptible(&mut self) -> Option<Stop> {
        self.stop = self.backend.interruptible();
        self.stop.clone()
    }

    fn is_decoupled(&self) -> bool {
        self.backend.is_decoupled()
    }

    fn stream(&mut self, inputs: &[Tensor], emit: &mut dyn FnMut(Tensors) -> ControlFlow<()>) -> Result<(), Error> {
        let stop = self.stop();
        let _running = self.watch.begin(stop)?;
        self.backend.stream(inputs, emit)
    }

    fn weight_bytes(&self) -> u64 {
        self.backend.weight_bytes()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.backend.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::fake::Fake,
        schedule::testing::{self, Fault, Script},
    };

    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn a_run_beyond_the_limit_is_ended_once_and_given_up_later() {
        let watch = Watch::default();
        let told = Arc::new(Mutex::new(0));
        let count = Arc::clone(&told);
        let running = watch.begin(Some(Arc::new(move || *count.lock().unwrap() += 1))).unwrap();
        let after = |seconds| watch.look(Instant::now() + Duration::from_secs(seconds), LIMIT);
        assert_eq!(after(0), Finding::Fine);
        // However late it is noticed, it has the time to end.
        assert_eq!((after(10), after(10), *told.lock().unwrap()), (Finding::Ended, Finding::Fine, 1));
        assert_eq!((after(12), after(12)), (Finding::GivenUp, Finding::Fine));
        drop(running);
        assert!(watch.is_given_up() && watch.begin(None).is_err());
    }

    #[test]
    fn a_run_that_is_over_is_not_ended() {
        let watch = Arc::new(Watch::default());
        let mut watched = Watched::new(Box::new(Fake::new()), Arc::clone(&watch));
        watched.run(&[testing::tensor(1, 4, 1.0)]).unwrap();
        assert_eq!(watch.look(Instant::now() + LIMIT * 100, LIMIT), Finding::Fine);
    }

    #[test]
    fn a_panic_ends_a_run_too() {
        let (script, watch) = (Script::default(), Arc::new(Watch::default()));
        let mut watched = Watched::new(testing::backend(&script), Arc::clone(&watch));
        script.set(Fault::Panic);
        let run = std::panic::AssertUnwindSafe(|| watched.run(&[testing::tensor(1, 4, 1.0)]));
        assert!(std::panic::catch_unwind(run).is_err());
        assert_eq!(watch.look(Instant::now() + LIMIT * 100, LIMIT), Finding::Fine);
    }
}

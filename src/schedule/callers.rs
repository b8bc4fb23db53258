//! The callers of a run, within reach of those who give the run up.
//!
//! A run that does not end keeps its jobs, because it may still read their inputs. Whoever waits for it must not: what answers
//! a job is kept here while the job runs, and is taken by whoever is first, the run or those who have given it up.

use super::{Job, ReplyTo};
use crate::{call::Chunk, error::Error};
use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc::OwnedPermit;

/// Those who wait for one batch, in its order.
pub(super) struct Callers(Mutex<Vec<Caller>>);

/// What is left to tell a caller.
enum Caller {
    /// Nothing: it was answered, or nobody waits.
    Gone,
    /// Its answer.
    Waits(ReplyTo),
    /// The end of its stream.
    Reads(OwnedPermit<Result<Chunk, Error>>),
}

/// A caller that is kept while its job runs. Dropping it tells the caller as dropping its reply would.
pub struct Held {
    callers: Arc<Callers>,
    index: usize,
}

// === impl Callers ===

impl Callers {
    /// Keeps the callers of `jobs` for as long as they run.
    pub(super) fn of(jobs: &mut [Job]) -> Arc<Self> {
        let callers = Arc::new(Self(Mutex::new(Vec::with_capacity(jobs.len()))));
        let mut kept = callers.lock();
        for (index, job) in jobs.iter_mut().enumerate() {
            let held = ReplyTo::Held(Held { callers: Arc::clone(&callers), index });
            kept.push(Caller::Waits(mem::replace(&mut job.reply, held)));
        }
        drop(kept);
        callers
    }

    /// Fails all who still wait.
    pub(super) fn fail(&self, error: &Error) {
        let kept: Vec<_> = self.lock().iter_mut().map(Caller::take).collect();
        // Not under the lock: an answer wakes its caller, and that may be any code.
        for caller in kept {
            match caller {
                Caller::Gone => {}
                Caller::Waits(reply) => reply.fail(error.clone()),
                Caller::Reads(last) => drop(last.send(Err(error.clone()))),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Caller>> {
        // Nothing that can panic runs under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Caller ===

impl Caller {
    fn take(&mut self) -> Self {
        mem::replace(self, Self::Gone)
    }
}

// === impl Held ===

impl Held {
    /// What answers the job; nothing once somebody else has.
    pub(super) fn take(&self) -> Option<ReplyTo> {
        match self.swap(Caller::Gone) {
            Caller::Waits(reply) => Some(reply),
            Caller::Gone | Caller::Reads(_) => None,
        }
    }

    /// Has `last` tell the end of the job's stream, if the run is given up.
    pub(super) fn reads(&self, last: OwnedPermit<Result<Chunk, Error>>) {
        self.swap(Caller::Reads(last));
    }

    /// The place that is kept for the end of the job's stream; nothing once somebody else has told it.
    pub(super) fn end(&self) -> Option<OwnedPermit<Result<Chunk, Error>>> {
        match self.swap(Caller::Gone) {
            Caller::Reads(last) => Some(last),
            Caller::Gone | Caller::Waits(_) => None,
        }
    }

    /// Whether the caller has been told all there is.
    pub(super) fn is_gone(&self) -> bool {
        self.callers.lock().get(self.index).is_none_or(|caller| matches!(caller, Caller::Gone))
    }

    /// Whether nobody waits for the answer.
    pub(super) fn is_abandoned(&self) -> bool {
        match self.callers.lock().get(self.index) {
            Some(Caller::Waits(reply)) => reply.is_abandoned(),
            Some(Caller::Reads(_)) => false,
            Some(Caller::Gone) | None => true,
        }
    }

    fn swap(&self, caller: Caller) -> Caller {
        self.callers.lock().get_mut(self.index).map_or(Caller::Gone, |kept| mem::replace(kept, caller))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.swap(Caller::Gone));
    }
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callers")
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing;

    #[test]
    fn a_caller_hears_once_whoever_is_first() {
        let (mut jobs, mut receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| testing::job(1, 1.0)).unzip();
        let callers = Callers::of(&mut jobs);
        let (late, answered) = (jobs.pop().unwrap(), jobs.pop().unwrap());
        assert!(!answered.is_abandoned() && !late.is_abandoned());
        answered.succeed(Vec::new(), crate::call::Timing::default());
        callers.fail(&Error::internal("given up"));
        assert!(receivers[0].try_recv().unwrap().is_ok());
        assert!(matches!(receivers[1].try_recv().unwrap(), Err(Error::Internal(_))));
        assert!(late.is_abandoned());
        late.succeed(Vec::new(), crate::call::Timing::default());
    }

    #[test]
    fn a_job_that_is_dropped_lets_go_of_its_caller() {
        let (job, mut receiver) = testing::job(1, 1.0);
        let mut jobs = vec![job];
        let _callers = Callers::of(&mut jobs);
        assert!(matches!(receiver.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)));
        drop(jobs);
        assert!(matches!(receiver.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Closed)));
    }

    #[test]
    fn a_job_whose_caller_has_left_is_abandoned() {
        let (job, receiver) = testing::job(1, 1.0);
        let mut jobs = vec![job];
        let _callers = Callers::of(&mut jobs);
        drop(receiver);
        assert!(jobs[0].is_abandoned());
    }
}

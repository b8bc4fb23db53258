//! The life of one inference thread: it takes batches and runs them, until its pool closes or its run is given up.

use super::{Shared, Sound, delta};
use crate::{
    backend::Backend,
    schedule::{
        Company, Job, QUEUE_FULL, Verdict,
        run::{self, Ran},
        watch::{Watch, Watched},
    },
};
use smallvec::SmallVec;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

/// First and longest pause between two attempts to make an instance after a panic.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// An instance, and what watches it where runs have a limit.
type Kept = (Box<dyn Backend>, Option<Arc<Watch>>);

/// How a thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// The pool closed, or no instance could be made before it did.
    ToTheEnd,
    /// Its run took so long that another thread has its place.
    GivenUp,
}

impl Shared {
    /// The life of one thread.
    pub(super) fn serve(&self, instance: Box<dyn Backend>) -> Served {
        let mut instance = Some(self.watched(instance));
        let mut sound = Some(Sound(self));
        while let Some((backend, watch)) = &mut instance {
            let Some(jobs) = self.next_batch() else { break };
            let ran = self.run(&mut **backend, jobs, watch.as_deref());
            if watch.as_ref().is_some_and(|watch| watch.is_given_up()) {
                std::mem::forget(sound.take());
                dispose(instance.map(|(backend, _)| backend));
                return Served::GivenUp;
            }
            if ran == Ran::Panicked {
                drop(sound.take());
                self.plan.metrics.replaced("panic");
                self.forget(instance.take());
                instance = self.reopen().map(|instance| self.watched(instance));
                sound = instance.is_some().then(|| Sound(self));
            }
        }
        drop(sound);
        self.forget(instance);
        Served::ToTheEnd
    }

    /// Watches an instance, if runs of the model have a limit.
    fn watched(&self, instance: Box<dyn Backend>) -> Kept {
        if self.plan.run_limit.is_none() {
            return (instance, None);
        }
        let watch = Arc::new(Watch::default());
        self.lock().watches.push(Arc::clone(&watch));
        (Box::new(Watched::new(instance, Arc::clone(&watch))), Some(watch))
    }

    /// Drops an instance that is not running.
    fn forget(&self, instance: Option<Kept>) {
        let Some((backend, watch)) = instance else { return };
        if let Some(watch) = watch {
            self.lock().watches.retain(|other| !Arc::ptr_eq(other, &watch));
        }
        dispose(Some(backend));
    }

    fn run(&self, backend: &mut dyn Backend, mut jobs: Vec<Job>, watch: Option<&Watch>) -> Ran {
        if let Some(watch) = watch {
            watch.hold(&mut jobs);
        }
        let (begun, answered) = (Instant::now(), (jobs.len(), jobs.iter().map(|job| job.rows).sum()));
        let ran = if backend.is_decoupled() {
            let mut streams = jobs.drain(..);
            let mut ran = Ran::Sound(Duration::ZERO);
            for job in streams.by_ref() {
                ran = run::stream(backend, job, &self.plan);
                if ran == Ran::Panicked {
                    break;
                }
            }
            streams.for_each(|job| job.fail(self.plan.not_ready("failed")));
            ran
        } else {
            run::run(backend, &mut jobs, &self.plan, watch)
        };
        let again: SmallVec<[Job; 1]> = jobs.drain(..).filter_map(Job::released).collect();
        let mut state = self.lock();
        state.queue.recycle(jobs);
        if let Ran::Sound(took) = ran
            && !backend.is_decoupled()
            && !watch.is_some_and(Watch::is_given_up)
        {
            state.queue.ran(begun + took, answered);
        }
        drop(state);
        again.into_iter().for_each(|job| self.again(Job { company: Company::Alone, ..job }));
        ran
    }

    /// Has a job that was not done soon wait behind the others.
    pub(super) fn again(&self, job: Job) {
        let pushed = self.push(&mut self.lock(), job);
        match pushed {
            Ok(wake) => self.wake(wake),
            Err(job) => job.fail(QUEUE_FULL),
        }
    }

    /// A run that was given up is over. True if an instance is to be made that was not made in its place; its thread is counted
    /// then.
    pub(super) fn returned(&self) -> bool {
        self.plan.metrics.given_up(-1);
        let mut state = self.lock();
        state.given_up -= 1;
        let makes = state.owed > 0 && !state.closed;
        if makes {
            state.owed -= 1;
            state.threads += 1;
            self.plan.metrics.replaced("hang");
        }
        makes
    }

    /// Waits for a batch; `None` when the pool is closed and empty.
    fn next_batch(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let before = state.queue.len();
            let verdict = state.queue.next(now, 1);
            self.plan.metrics.queue_changed(delta(before, state.queue.len()));
            let due = match verdict {
                Verdict::Run(jobs) if self.plan.policy.preserve_order => {
                    // Under the lock, in which they were taken.
                    return Some(jobs.into_iter().map(|job| job.in_order(|| self.order.place())).collect());
                }
                Verdict::Run(jobs) => return Some(jobs),
                Verdict::Wait(due) => due,
            };
            if state.closed && state.queue.is_empty() {
                return None;
            }
            state.asleep += 1;
            state = match due {
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.asleep -= 1;
            state.woken = state.woken.saturating_sub(1);
        }
    }

    /// Makes another instance, trying until it succeeds or the pool closes. It is counted then.
    pub(super) fn reopen(&self) -> Option<Box<dyn Backend>> {
        let mut pause = RETRY.0;
        loop {
            match self.plan.open_again() {
                Ok(instance) => {
                    self.alive.fetch_add(1, Ordering::AcqRel);
                    self.lock().expects = false;
                    return Some(instance);
                }
                Err(error) if self.lock().expects => {
                    tracing::error!(model = %self.plan.key, error, "first instance not opened");
                }
                Err(error) => tracing::error!(model = %self.plan.key, error, "instance not rebuilt"),
            }
            let until = Instant::now() + pause;
            let mut state = self.lock();
            while !state.closed && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.closed {
                return None;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }
}

/// Drops an instance, broken ones too: what panicked once may panic again.
pub(in crate::schedule) fn dispose(instance: Option<Box<dyn Backend>>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(instance)));
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;

//! Threads that each own one instance, and the one queue that feeds them.
//!
//! All lanes push into the same queue, so batches form across lanes. A lock guards it, held for the
//! time of a decision and never during a run; the threads know no runtime and await nothing.
//! A panic costs the instance, not the thread: the thread makes itself another one. A run that does not end costs both, and
//! another thread makes another instance.

use super::{
    BatchQueue, Company, Job, Plan, QUEUE_FULL, QUEUE_SLOW, Verdict,
    background::lower_priority,
    order::Order,
    run,
    run::Ran,
    watch::{Finding, Watch, Watched},
};
use crate::{backend::Backend, error::Error};
use smallvec::SmallVec;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// First and longest pause between two attempts to make an instance after a panic.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Runs of one model that may go on after they were given up. Each keeps a thread, an instance and a processor busy; beyond so
/// many, nothing is made in their place until one of them ends.
const GIVEN_UP: usize = 4;

/// The inference threads of one version of one model.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Arc<Plan>,
    order: Arc<Order>,
    state: Mutex<State>,
    /// Told when there is a job, and when the pool closes. Only threads that can take a job wait
    /// for it: another one could swallow the wake-up that was meant for them.
    work: Condvar,
    /// Told when a thread has ended, and when the pool closes.
    ended: Condvar,
    /// Sound instances; read by probes without the lock.
    alive: AtomicUsize,
}

#[derive(Debug)]
struct State {
    queue: BatchQueue,
    closed: bool,
    threads: usize,
    /// Threads started so far; names them.
    started: usize,
    /// Threads that wait for work, and wake-ups on their way to them: waking is a system call, so
    /// it is done only where somebody sleeps who has not been woken yet.
    asleep: usize,
    woken: usize,
    /// Those of the instances whose runs have a limit.
    watches: Vec<Arc<Watch>>,
    /// Runs that were given up and go on.
    given_up: usize,
    /// Instances that are to be made in their place when one of them has ended.
    owed: usize,
    /// The first instance is being made: jobs may wait for it.
    expects: bool,
}

/// Why a job was given back; small, because it travels with the job.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Full,
    Slow,
    NotReady(&'static str),
}

/// An instance, and what watches it where runs have a limit.
type Kept = (Box<dyn Backend>, Option<Arc<Watch>>);

/// How a thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// The pool closed, or no instance could be made before it did.
    ToTheEnd,
    /// Its run took so long that another thread has its place.
    GivenUp,
}

/// A thread that is counted, until it ends in whatever way.
struct Present<'a>(&'a Shared);

/// An instance that is counted as alive; dropping it, a panic of ours included, takes it off.
struct Sound<'a>(&'a Shared);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
        self.0.ended.notify_all();
    }
}

impl Drop for Sound<'_> {
    fn drop(&mut self) {
        self.0.lose();
    }
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        let queue = BatchQueue::with_cost(plan.policy, Arc::clone(&plan.cost));
        let state = State {
            queue,
            closed: false,
            threads: 0,
            started: 0,
            asleep: 0,
            woken: 0,
            watches: Vec::new(),
            given_up: 0,
            owed: 0,
            expects: false,
        };
        let shared = Shared {
            plan,
            order: Arc::default(),
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: Condvar::new(),
            alive: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Gives `instance` a thread of its own.
    pub(super) fn adopt(&self, instance: Box<dyn Backend>) -> Result<(), Error> {
        self.shared.alive.fetch_add(1, Ordering::AcqRel);
        self.spawn(Some(instance)).inspect_err(|_| _ = self.shared.alive.fetch_sub(1, Ordering::AcqRel))
    }

    /// Gives an instance that is made there a thread of its own. Until it is there, jobs may wait for it.
    pub(super) fn expect_one(&self) -> Result<(), Error> {
        self.shared.lock().expects = true;
        self.spawn(None)
    }

    /// Starts a thread that serves with `instance`, which is counted, or with one that it makes itself.
    fn spawn(&self, instance: Option<Box<dyn Backend>>) -> Result<(), Error> {
        let number = {
            let mut state = self.shared.lock();
            state.threads += 1;
            state.started += 1;
            let threads = state.threads;
            state.queue.served_by(threads);
            state.started - 1
        };
        let shared = Arc::clone(&self.shared);
        let name = format!("infer-{}-{number}", shared.plan.key.name);
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            if shared.plan.background {
                lower_priority();
            }
            let mut instance = instance;
            loop {
                let present = Present(&shared);
                let Some(sound) = instance.take().or_else(|| shared.reopen()) else { return };
                if shared.serve(sound) == Served::ToTheEnd {
                    return;
                }
                // Whoever gave it up has counted it off, and another in if there may be one.
                std::mem::forget(present);
                if !shared.returned() {
                    return;
                }
            }
        });
        spawned.map(drop).map_err(|error| {
            self.shared.lock().threads -= 1;
            Error::internal(format!("no thread for an instance: {error}"))
        })
    }

    /// Ends runs that take longer than the model's limit, and replaces instances whose runs do not end. To be called every
    /// now and then.
    pub(super) fn tend(&self, now: Instant) {
        let Some(limit) = self.shared.plan.run_limit else { return };
        let (mut ended, mut given_up) = (0, Vec::new());
        {
            let mut state = self.shared.lock();
            for watch in std::mem::take(&mut state.watches) {
                match watch.look(now, limit) {
                    Finding::Fine => state.watches.push(watch),
                    Finding::Ended => {
                        ended += 1;
                        state.watches.push(watch);
                    }
                    // Under the lock: its thread, which may return just now, counts it off under it.
                    Finding::GivenUp => given_up.push((watch.callers(), state.give_up())),
                }
            }
        }
        let model = &self.shared.plan.key;
        if ended > 0 {
            tracing::warn!(%model, ?limit, "a run took longer than `run_limit` and was told to end");
        }
        for (callers, is_replaced) in given_up {
            self.shared.plan.metrics.given_up(1);
            drop(Present(&self.shared));
            self.shared.lose();
            if let Some(callers) = callers {
                callers.fail(&Error::internal("the run does not end"));
            }
            if !is_replaced {
                tracing::error!(%model, ?limit, "a run does not end, as many others: no instance until one has");
                continue;
            }
            tracing::error!(%model, ?limit, "a run does not end: its instance is given up and replaced");
            self.shared.plan.metrics.replaced("hang");
            if let Err(error) = self.spawn(None) {
                tracing::error!(%model, %error, "instance not replaced");
            }
        }
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), Error> {
        self.offer(job).map_err(|(_, why)| self.refusal(why))
    }

    /// Takes over a job that somebody else had accepted; answers it if that cannot be.
    pub(super) fn take_over(&self, job: Job) {
        if let Err((job, why)) = self.offer(job) {
            job.fail(self.refusal(why));
        }
    }

    fn refusal(&self, why: Refusal) -> Error {
        match why {
            Refusal::Full => QUEUE_FULL,
            Refusal::Slow => QUEUE_SLOW,
            Refusal::NotReady(state) => self.shared.plan.not_ready(state),
        }
    }

    fn offer(&self, job: Job) -> Result<(), (Job, Refusal)> {
        let shared = &*self.shared;
        let wake = {
            let mut state = shared.lock();
            if state.closed {
                return Err((job, Refusal::NotReady("unloading")));
            }
            // Asked under the lock: whoever loses the last instance then empties the queue under it.
            if !self.is_ready() && !state.expects {
                return Err((job, Refusal::NotReady(state.lost())));
            }
            if state.queue.is_slow(job.queued) {
                return Err((job, Refusal::Slow));
            }
            let before = state.queue.len();
            let pushed = state.queue.push(job);
            // Not simply one more: pushing may drop abandoned jobs.
            shared.plan.metrics.queue_changed(delta(before, state.queue.len()));
            if let Err(job) = pushed {
                return Err((job, Refusal::Full));
            }
            let wake = state.asleep > state.woken;
            state.woken += usize::from(wake);
            wake
        };
        if wake {
            shared.work.notify_one();
        }
        Ok(())
    }

    pub(super) fn is_ready(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire) > 0
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }

    pub(super) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        self.shared.ended.notify_all();
    }

    pub(super) fn wait_closed(&self, deadline: Instant) -> bool {
        let mut state = self.shared.lock();
        while state.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) = self.shared.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

// === impl State ===

impl State {
    /// What a model is that has no instance left.
    fn lost(&self) -> &'static str {
        if self.owed > 0 { "stuck in runs that do not end" } else { "failed" }
    }

    /// A run is given up. True if another instance may take the place of the one that it keeps.
    fn give_up(&mut self) -> bool {
        self.given_up += 1;
        let may = self.given_up <= GIVEN_UP;
        self.owed += usize::from(!may);
        may
    }
}

// === impl Shared ===

impl Shared {
    /// A poisoned lock is taken all the same: no code that can panic in a way that leaves the
    /// queue half-changed runs under it, and refusing every later call would be worse.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of one thread.
    fn serve(&self, instance: Box<dyn Backend>) -> Served {
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
        self.lock().queue.recycle(jobs);
        again.into_iter().for_each(|job| self.again(Job { company: Company::Alone, ..job }));
        ran
    }

    /// Has a job that was not done soon wait behind the others.
    fn again(&self, job: Job) {
        let mut state = self.lock();
        let before = state.queue.len();
        let pushed = state.queue.push(job);
        self.plan.metrics.queue_changed(delta(before, state.queue.len()));
        drop(state);
        if let Err(job) = pushed {
            job.fail(QUEUE_FULL);
        }
    }

    /// A run that was given up is over. True if an instance is to be made that was not made in its place; its thread is counted
    /// then.
    fn returned(&self) -> bool {
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
            let mut verdict = state.queue.next(now, 1);
            if let (Verdict::Wait(Some(due)), true) = (&verdict, state.closed) {
                // Nobody will join this batch any more.
                verdict = state.queue.next(*due, 1);
            }
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

    /// One sound instance less. With the last one goes everybody who waits for it.
    fn lose(&self) {
        if self.alive.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let mut state = self.lock();
        let lost: Vec<_> = state.queue.drain().collect();
        let why = state.lost();
        drop(state);
        self.plan.metrics.queue_changed(delta(lost.len(), 0));
        lost.into_iter().for_each(|job| job.fail(self.plan.not_ready(why)));
    }

    /// Makes another instance, trying until it succeeds or the pool closes. It is counted then.
    fn reopen(&self) -> Option<Box<dyn Backend>> {
        let mut pause = RETRY.0;
        loop {
            match self.plan.open_again() {
                Ok(instance) => {
                    self.alive.fetch_add(1, Ordering::AcqRel);
                    self.lock().expects = false;
                    return Some(instance);
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
pub(super) fn dispose(instance: Option<Box<dyn Backend>>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(instance)));
}

/// The change of a queue's length, for its gauge.
pub(super) fn delta(before: usize, after: usize) -> i64 {
    let signed = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    signed(after) - signed(before)
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;

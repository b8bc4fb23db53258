//! Small models on the lane itself: one batch per turn of its event loop.
//!
//! A lane enters once, on its own thread: [`Seat::enter`] makes the thread-local registry and gives
//! the [`TurnTask`] to spawn. A submission puts its job into the registry and wakes that task. A
//! single-threaded runtime runs its tasks first in, first out, so the turn task is polled after all
//! the connections that had become ready before it: whatever they submitted runs as one batch, on
//! this very thread, with no timer and no hand-over (architecture decision 9).
//!
//! What a lane must not run goes to the model's threads: jobs with more rows than the measured cap,
//! jobs submitted from a thread that is no lane, jobs that come while this lane's instance is being
//! rebuilt, jobs whose batch failed here as a whole, and, once batches have been over their budget
//! time after time or one of them held the lane for so long that it was told to end ([`Pulse`]), every job of the model.
//!
//! This file knows nothing of connections; the registry is the only state that is bound to a thread.

use super::{
    BatchPolicy, BatchQueue, Company, Job, Plan, QUEUE_FULL, QUEUE_SLOW, TurnSettings, Verdict,
    extent::least_row,
    instance::{Pool, delta},
    lanes::{Hold, Holds, Order, reap, rebuild},
    pulse::{Moved, Pulse},
    run::{self, Ran},
};
use crate::{backend::Backend, error::Error};
use std::{
    cell::RefCell,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::Sleep};

pub use super::lanes::{Lanes, Seat};

/// Batches over the budget, one after the other, after which a model moves to its threads.
const OVERRUNS: u32 = 8;

/// A batch this many times over the budget counts as half of [`OVERRUNS`]: a model whose run time
/// depends on its input must not hold a lane eight times. One alone may be the system's pause.
const GROSS: u32 = 50;

/// A job with more bytes than so many times the most that ever ran is for threads, which find out what it costs: a model whose
/// work goes with the square of a length takes 16 times as long for four times the bytes.
const BEYOND: usize = 4;

/// How long whoever waits for the end of a model's threads waits for lanes to let go of it: they do so between two turns, and
/// one that has not turned for as long is stuck.
const LEAVE: Duration = Duration::from_secs(1);

thread_local! {
    static LANE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

/// Keeps this thread a lane. Dropping it drops the lane's instances and answers what is queued with
/// [`Error::ShuttingDown`]. Bound to its thread.
#[derive(Debug)]
pub struct LaneGuard(PhantomData<*const ()>);

/// Runs what was submitted on this lane. To be spawned on the lane's runtime.
#[derive(Debug)]
pub struct TurnTask {
    orders: Option<mpsc::Receiver<Order>>,
    timer: Option<Pin<Box<Sleep>>>,
    pulse: Arc<Pulse>,
}

/// One version of one model on all lanes.
#[derive(Debug)]
pub(super) struct Turn {
    id: u64,
    plan: Arc<Plan>,
    pool: Arc<Pool>,
    lanes: Lanes,
    policy: BatchPolicy,
    budget: Duration,
    limit: Duration,
    /// Sound instances on lanes.
    alive: AtomicUsize,
    moved: AtomicBool,
    closed: AtomicBool,
    holds: Holds,
}

/// What belongs to this thread.
#[derive(Debug)]
struct Lane {
    index: usize,
    /// Sorted by id; ids only grow, so a new one goes to the end.
    entries: Vec<Entry>,
    /// Where the next pass begins, so that a busy model does not keep others waiting.
    cursor: usize,
    waker: Option<Waker>,
    woken: bool,
}

#[derive(Debug)]
struct Entry {
    turn: Arc<Turn>,
    queue: BatchQueue,
    /// Absent while it is being rebuilt, and during a run.
    instance: Option<Box<dyn Backend>>,
    overruns: u32,
    _hold: Option<Arc<Hold>>,
}

/// What is left to do after a pass.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// There is more to run: come back after the connections had their turn.
    more: bool,
    /// Look again then.
    due: Option<Instant>,
}

// === impl Seat ===

impl Seat {
    /// Makes this thread a lane. Spawn the task on this thread's runtime and keep the guard for as
    /// long as the runtime lives.
    ///
    /// A thread has one lane: entering again replaces the first.
    pub fn enter(self) -> (LaneGuard, TurnTask) {
        let lane = Lane { index: self.index, entries: Vec::new(), cursor: 0, waker: None, woken: false };
        let before = LANE.replace(Some(lane));
        drop(before);
        (LaneGuard(PhantomData), TurnTask { orders: Some(self.orders), timer: None, pulse: self.pulse })
    }
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        // Taken out first: answering a job may wake tasks, which must not find the registry borrowed.
        let Some(lane) = LANE.take() else { return };
        for mut entry in lane.entries {
            entry.queue.drain().for_each(|job| job.fail(Error::ShuttingDown));
            if entry.instance.is_some() {
                entry.turn.alive.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

// === impl Turn ===

impl Turn {
    pub(super) fn new(
        plan: &Arc<Plan>,
        pool: &Arc<Pool>,
        lanes: &Lanes,
        policy: BatchPolicy,
        settings: &TurnSettings,
    ) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let is_told_by_rows = policy.enabled && (policy.even || policy.max_elements.is_some());
        if !is_told_by_rows {
            plan.cost.learn_by_bytes(least_row(&plan.signature), policy.max_rows);
        }
        Arc::new(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            plan: Arc::clone(plan),
            pool: Arc::clone(pool),
            lanes: lanes.clone(),
            policy,
            budget: settings.budget,
            limit: settings.limit,
            alive: AtomicUsize::new(0),
            moved: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            holds: Holds::new(Arc::clone(pool)),
        })
    }

    pub(super) fn submit(&self, job: Job) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.plan.not_ready("unloading"));
        }
        let too_large = self.policy.enabled && job.extent().exceeds(self.policy.room());
        if too_large || self.has_moved() || !self.is_short(&job) {
            return self.pool.submit(job);
        }
        let elsewhere = LANE.with_borrow_mut(|lane| {
            let entry = lane.as_mut().and_then(|lane| lane.entry(self.id));
            let Some(entry) = entry.filter(|entry| entry.instance.is_some()) else { return Ok(Some(job)) };
            if entry.queue.is_slow(job.queued) {
                return Err(QUEUE_SLOW);
            }
            let before = entry.queue.len();
            let pushed = entry.queue.push(job);
            self.plan.metrics.queue_changed(delta(before, entry.queue.len()));
            pushed.map_err(|_| QUEUE_FULL)?;
            if let Some(lane) = lane {
                lane.wake();
            }
            Ok(None)
        })?;
        elsewhere.map_or(Ok(()), |job| self.pool.submit(job))
    }

    /// Whether a job may be expected to stay within the budget, where its rows do not say so: calls choose how long they are.
    fn is_short(&self, job: &Job) -> bool {
        let Some(cost) = self.plan.cost.by_bytes() else { return true };
        let bytes = job.bytes();
        match cost.estimate(bytes) {
            Some(took) => took <= self.budget && bytes <= cost.reach().saturating_mul(BEYOND),
            // Nothing was ever measured: whoever wanted it on lanes all the same has said so.
            None => true,
        }
    }

    pub(super) fn has_moved(&self) -> bool {
        self.moved.load(Ordering::Acquire)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.alive.load(Ordering::Acquire) > 0
    }

    /// Takes no more jobs. Once all lanes have handed over what waits there, the model's threads take no more either.
    pub(super) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.lanes.sweep();
        }
        self.holds.end();
    }

    /// Waits until lanes have let go of a model that is closed, until `deadline` at the latest, and not for one that is stuck.
    pub(super) fn wait_left(&self, deadline: Instant) {
        if self.closed.load(Ordering::Acquire) {
            self.pool.wait_closing(deadline.min(Instant::now() + LEAVE));
            self.pool.close();
        }
    }

    /// False once no lane is to run it any more.
    pub(super) fn is_wanted(&self) -> bool {
        !self.has_moved() && !self.closed.load(Ordering::Acquire)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// From now on, everything on threads.
    pub(super) fn move_to_threads(&self, why: Moved) {
        if self.moved.swap(true, Ordering::AcqRel) {
            return;
        }
        let model = &self.plan.key;
        match why {
            Moved::Budget => {
                tracing::warn!(%model, budget = ?self.budget, "batches over the turn budget, moved to threads");
            }
            Moved::Limit => {
                tracing::warn!(%model, limit = ?self.limit, "a run held a lane and was told to end, moved to threads");
            }
        }
        self.plan.metrics.moved(why.name());
        self.lanes.sweep();
    }
}

// === impl Lane ===

impl Lane {
    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        let index = self.entries.binary_search_by_key(&id, |entry| entry.turn.id).ok()?;
        self.entries.get_mut(index)
    }

    /// Wakes the turn task, once per turn.
    fn wake(&mut self) {
        if !self.woken {
            self.woken = true;
            if let Some(waker) = &self.waker {
                waker.wake_by_ref();
            }
        }
    }

    fn install(&mut self, turn: Arc<Turn>, instance: Box<dyn Backend>) {
        turn.alive.fetch_add(1, Ordering::AcqRel);
        match self.entries.binary_search_by_key(&turn.id, |entry| entry.turn.id) {
            Ok(index) => {
                if let Some(lost) = self.entries[index].instance.replace(instance) {
                    turn.alive.fetch_sub(1, Ordering::AcqRel);
                    reap(lost);
                }
            }
            Err(index) => {
                let queue = BatchQueue::with_cost(turn.policy, Arc::clone(&turn.plan.cost)).within(turn.budget);
                let _hold = turn.holds.another();
                self.entries.insert(index, Entry { turn, queue, instance: Some(instance), overruns: 0, _hold });
            }
        }
    }

    /// Takes out the entries of models that were closed or have moved.
    fn sweep(&mut self) -> Vec<Entry> {
        self.entries.extract_if(.., |entry| !entry.turn.is_wanted()).collect()
    }
}

// === impl Entry ===

impl Entry {
    /// Lets go of a closed or moved model: its jobs go to the model's threads.
    fn leave(mut self) {
        let jobs = self.queue.len();
        self.turn.plan.metrics.queue_changed(delta(jobs, 0));
        self.queue.drain().for_each(|job| self.turn.pool.take_over(job));
        let Some(instance) = self.instance.take() else { return };
        self.turn.alive.fetch_sub(1, Ordering::AcqRel);
        reap(instance);
    }

    /// Counts a batch that took `took`; true if the model has no place on a lane any more.
    fn overran(&mut self, took: Duration) -> bool {
        let budget = self.turn.budget;
        match took {
            took if took <= budget => self.overruns = 0,
            took if took <= budget * GROSS => self.overruns += 1,
            _ => self.overruns += OVERRUNS / 2,
        }
        self.overruns >= OVERRUNS
    }
}

// === impl TurnTask ===

impl Future for TurnTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.begin(cx) {
            return Poll::Ready(());
        }
        this.obey(cx);
        let left = pass(&this.pulse);
        if left.more {
            // Behind the connections that were just answered: sockets are looked at in between.
            LANE.with_borrow_mut(|lane| lane.as_mut().map(Lane::wake));
        }
        this.arm(left.due, cx);
        Poll::Pending
    }
}

impl TurnTask {
    /// False if this thread is no lane (any more).
    fn begin(&mut self, cx: &mut Context<'_>) -> bool {
        LANE.with_borrow_mut(|lane| {
            let Some(lane) = lane else { return false };
            lane.woken = false;
            if !lane.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                lane.waker = Some(cx.waker().clone());
            }
            true
        })
    }

    /// Carries out what the loader ordered since the last turn.
    fn obey(&mut self, cx: &mut Context<'_>) {
        let mut obeyed = false;
        while let Some(orders) = &mut self.orders {
            match orders.poll_recv(cx) {
                Poll::Pending => break,
                // All handles are gone: nothing is ever ordered again.
                Poll::Ready(None) => self.orders = None,
                Poll::Ready(Some(order)) => {
                    obeyed = true;
                    if let Order::Install { turn, instance, done } = order {
                        LANE.with_borrow_mut(|lane| lane.as_mut().map(|lane| lane.install(turn, instance)));
                        // A loader that no longer waits has closed the model, and a sweep follows.
                        done.map(|done| done.send(()).ok());
                    }
                }
            }
        }
        if obeyed {
            let gone = LANE.with_borrow_mut(|lane| lane.as_mut().map(Lane::sweep)).unwrap_or_default();
            gone.into_iter().for_each(Entry::leave);
        }
    }

    fn arm(&mut self, due: Option<Instant>, cx: &mut Context<'_>) {
        let Some(due) = due else { return self.timer = None };
        let due = tokio::time::Instant::from_std(due);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        timer.as_mut().reset(due);
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// Runs what is queued, model after model, one batch each, until all have had their turn or together have spent what each of
/// their batches may (`runtime.turn.budget`).
fn pass(pulse: &Pulse) -> Left {
    let mut left = Left::default();
    let started = Instant::now();
    let (count, first) =
        LANE.with_borrow(|lane| lane.as_ref().map_or((0, 0), |lane| (lane.entries.len(), lane.cursor)));
    for step in 0..count {
        let index = (first + step) % count;
        // The registry is not borrowed during the run: a back end or a waker may do anything.
        let Some((turn, mut instance, mut jobs)) = take(index, &mut left) else { continue };
        let before = Instant::now();
        let stop = instance.interruptible();
        let budget = turn.budget;
        let running = pulse.begin(turn.id, turn.limit, stop);
        let ran = run::batch(&mut *instance, &mut jobs, &turn.plan, &|| running.was_ended());
        let was_ended = running.was_ended();
        drop(running);
        if let Ran::Undone(_) = ran {
            // One by one they may take many times a turn: that is for threads.
            let company = if was_ended { Company::Hurried } else { Company::Any };
            jobs.drain(..).for_each(|job| turn.pool.take_over(Job { company, ..job }));
        }
        put_back(index, turn, instance, jobs, ran, &mut left);
        if before.duration_since(started) + before.elapsed() >= budget && step + 1 < count {
            LANE.with_borrow_mut(|lane| lane.as_mut().map(|lane| lane.cursor = index + 1));
            left.more = true;
            break;
        }
    }
    left
}

type Taken = (Arc<Turn>, Box<dyn Backend>, Vec<Job>);

fn take(index: usize, left: &mut Left) -> Option<Taken> {
    LANE.with_borrow_mut(|lane| {
        let entry = lane.as_mut()?.entries.get_mut(index)?;
        if entry.queue.is_empty() || entry.instance.is_none() {
            return None;
        }
        let before = entry.queue.len();
        let verdict = entry.queue.next(Instant::now(), 1);
        entry.turn.plan.metrics.queue_changed(delta(before, entry.queue.len()));
        match verdict {
            Verdict::Run(jobs) => Some((Arc::clone(&entry.turn), entry.instance.take()?, jobs)),
            Verdict::Wait(due) => {
                left.due = [left.due, due].into_iter().flatten().min();
                None
            }
        }
    })
}

fn put_back(index: usize, turn: Arc<Turn>, instance: Box<dyn Backend>, jobs: Vec<Job>, ran: Ran, left: &mut Left) {
    let gone = LANE.with_borrow_mut(|lane| {
        let Some(lane) = lane else { return None };
        let number = lane.index;
        let entry = lane.entries.get_mut(index)?;
        entry.queue.recycle(jobs);
        match ran {
            Ran::Sound(took) | Ran::Undone(took) => {
                entry.instance = Some(instance);
                left.more |= !entry.queue.is_empty();
                entry.overran(took).then(|| turn.move_to_threads(Moved::Budget));
                None
            }
            Ran::Panicked => {
                turn.alive.fetch_sub(1, Ordering::AcqRel);
                let jobs: Vec<_> = entry.queue.drain().collect();
                Some((number, turn, instance, jobs))
            }
        }
    });
    if let Some((number, turn, instance, jobs)) = gone {
        turn.plan.metrics.queue_changed(delta(jobs.len(), 0));
        jobs.into_iter().for_each(|job| turn.pool.take_over(job));
        rebuild(turn, number, instance);
    }
}

#[cfg(test)]
#[path = "turn_tests.rs"]
mod tests;

//! When to run what: batching as a pure state machine.
//!
//! It has no clock and waits for nothing: time and idle instances are arguments, so every rule of
//! batching is a table test. It does not know who runs the batches it gives out.
//!
//! The rules. Jobs wait by their level of priority, and within a level in the order they came, which
//! is made fair between those who sent them (see [`fair`]). The first job decides: only
//! jobs that are compatible with it join its batch, in their order. A batch has at most `max_rows`
//! rows, and `max_elements` elements of ragged inputs, unless its only job is larger by itself.
//! Where answers are in order, a batch ends before the first job that is not: nobody is overtaken.
//! Late and abandoned jobs are dropped here and never run. With `max_delay` zero an idle instance
//! runs at once what is there; batches then form by themselves under load.
//!
//! What a batch will take is known by its size (see [`Cost`] and [`Extent`]). So it is made smaller where that serves
//! callers sooner and costs nothing ([`size`](super::size)), and where it would make somebody late who need not be
//! ([`late`](super::late)). As long as nothing is known, or nobody is in danger, all that waits runs together.

use super::{
    BatchPolicy, Cost, Extent, Job, QUEUE_FULL, QUEUE_TIMEOUT, WhenLate,
    delay::QueueDelay,
    fair::{self, FairOrder},
    late::{Course, FOREVER, Outlook},
    size::{BatchSize, WORTH},
};
use crate::error::{Error, Stage};
use smallvec::SmallVec;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// Jobs that wait, the next first; bounded by [`BatchPolicy::max_queue`].
#[derive(Debug)]
pub struct BatchQueue {
    waiting: VecDeque<Job>,
    policy: BatchPolicy,
    order: FairOrder,
    delay: QueueDelay,
    cost: Arc<Cost>,
    size: BatchSize,
    /// How many instances take from it.
    instances: u32,
    /// A buffer that came back through [`BatchQueue::recycle`], so that steady load allocates none.
    spare: Vec<Job>,
}

/// What to do now.
#[derive(Debug)]
pub enum Verdict {
    /// Run these now, as one batch. Never empty.
    Run(Vec<Job>),
    /// Nothing to do until then, or until something changes.
    Wait(Option<Instant>),
}

/// Jobs that may run together: so many that are compatible with the first, all of them among the first `seen`.
#[derive(Clone, Copy, Debug)]
struct Batch {
    jobs: usize,
    seen: usize,
    extent: Extent,
    /// The most that this batch and those like it may be.
    room: Extent,
    /// The first of their deadlines.
    urgent: Instant,
    /// Until when it may wait for more; absent: it is complete.
    due: Option<Instant>,
}

impl Batch {
    /// None yet, with `first` to come first.
    fn before(first: &Job, room: Extent) -> Self {
        Self { jobs: 0, seen: 0, extent: Extent::default(), room, urgent: first.deadline, due: None }
    }

    fn add(&mut self, job: &Job) {
        self.jobs += 1;
        self.extent = self.extent.plus(job.extent());
        self.urgent = self.urgent.min(job.deadline);
    }
}

impl BatchQueue {
    /// An empty queue that knows nothing of what batches cost, and is told nothing.
    pub fn new(policy: BatchPolicy) -> Self {
        Self::with_cost(policy, Arc::default())
    }

    /// An empty queue. Whoever runs its batches tells `cost` what they took.
    pub fn with_cost(policy: BatchPolicy, cost: Arc<Cost>) -> Self {
        Self {
            waiting: VecDeque::new(),
            policy,
            order: FairOrder::default(),
            delay: QueueDelay::new(policy.queue_delay),
            cost,
            size: BatchSize::default(),
            instances: 1,
            spare: Vec::new(),
        }
    }

    /// So many instances take from this queue; one, if nothing is said.
    pub fn served_by(&mut self, instances: usize) {
        self.instances = u32::try_from(instances).unwrap_or(u32::MAX);
    }

    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True if no job waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a job, behind all of its level of priority and before all of lower ones.
    ///
    /// # Errors
    ///
    /// Gives the job back when full: the caller turns that into `Overloaded`. Abandoned jobs do not
    /// count; they are dropped before anyone is refused. And whoever fills the queue does not keep others out of it: the
    /// last job of all is refused, if the new one is to run before it.
    pub fn push(&mut self, mut job: Job) -> Result<(), Job> {
        if self.waiting.len() >= self.policy.max_queue {
            self.waiting.retain(|job| !job.is_abandoned());
        }
        job.priority = self.policy.priorities.level(job.priority);
        job.turn = self.order.turn(&self.waiting, &job);
        if self.waiting.len() >= self.policy.max_queue {
            match self.waiting.pop_back_if(|last| fair::rank(last) > fair::rank(&job)) {
                Some(last) => last.fail(QUEUE_FULL),
                None => return Err(job),
            }
        }
        fair::insert(&mut self.waiting, job);
        Ok(())
    }

    /// Whether jobs wait for so long that one which comes at `now` is to be refused.
    pub fn is_slow(&self, now: Instant) -> bool {
        self.delay.sheds(self.waiting.front().map(|next| next.queued), now)
    }

    /// What to do at `now` with `idle` instances.
    pub fn next(&mut self, now: Instant, idle: usize) -> Verdict {
        self.drop_hopeless(now);
        let mut may_drop = true;
        loop {
            let Some(batch) = self.waiting().filter(|_| idle > 0) else { return Verdict::Wait(None) };
            if let Some(due) = batch.due.filter(|due| now < *due) {
                return Verdict::Wait(Some(due));
            }
            let (batch, cost) = match self.cost.at_most(batch.extent.size) {
                Some(cost) if cost >= WORTH => {
                    let batch = self.enough(batch);
                    (batch, self.cost.at_most(batch.extent.size))
                }
                cost => (batch, cost),
            };
            match self.course(&batch, cost, now) {
                Course::Ride => return Verdict::Run(self.take(batch.jobs, batch.seen, now)),
                Course::Cut { jobs, .. } => {
                    let batch = self.first(batch.seen, |next| next.jobs <= jobs);
                    return Verdict::Run(self.take(batch.jobs, batch.seen, now));
                }
                // Somebody else is left: dropping is chosen only where it serves more of them.
                Course::Drop if may_drop => self.drop_late(batch.room, now),
                Course::Drop => return Verdict::Run(self.take(batch.jobs, batch.seen, now)),
            }
            may_drop = false;
        }
    }

    /// Takes back the emptied buffer of a batch.
    pub fn recycle(&mut self, mut jobs: Vec<Job>) {
        jobs.clear();
        if jobs.capacity() > self.spare.capacity() {
            self.spare = jobs;
        }
    }

    /// Takes every job, in order, whatever its state.
    pub fn drain(&mut self) -> impl Iterator<Item = Job> + '_ {
        self.waiting.drain(..)
    }

    /// The batch that the first job and those that may join it make now; `None` if nobody waits.
    fn waiting(&self) -> Option<Batch> {
        let first = self.waiting.front()?;
        if !self.policy.enabled {
            let alone = Batch::before(first, Extent::default());
            return Some(Batch { jobs: 1, seen: 1, extent: first.extent(), ..alone });
        }
        let (mut preferred, room) = (None, self.policy.room());
        let mut batch = Batch::before(first, room);
        for job in &self.waiting {
            if batch.jobs == 0 || job.is_compatible(first) {
                // A later, smaller job might still fit; it must not overtake this one.
                if batch.jobs > 0 && batch.extent.plus(job.extent()).exceeds(room) {
                    batch.due = None;
                    return Some(preferred.unwrap_or(batch));
                }
                batch.add(job);
                let patience = self.patience(job);
                batch.due = Some(batch.due.map_or(patience, |due: Instant| due.min(patience)));
            } else if self.policy.preserve_order {
                // Whoever joined from behind it would overtake it.
                batch.due = None;
                break;
            }
            batch.seen += 1;
            let rows = batch.extent.rows;
            if self.policy.preferred.contains(rows) {
                preferred = Some(Batch { due: None, room: self.policy.room_of(rows), ..batch });
            }
            if batch.extent.fills(room) {
                batch.due = None;
                break;
            }
        }
        // Nor may waiting make anybody late who would be in time now.
        if let (Some(due), false) = (&mut batch.due, self.policy.max_delay.is_zero())
            && let Some(cost) = self.cost.at_most(batch.extent.size)
        {
            *due = batch.urgent.checked_sub(cost).map_or(*due, |latest| latest.min(*due));
        }
        Some(preferred.unwrap_or(batch))
    }

    /// As much of a batch as serves its callers soonest, where rows gain nothing by being many.
    fn enough(&mut self, batch: Batch) -> Batch {
        if batch.jobs < 2 || !self.policy.even || !self.policy.preferred.is_empty() {
            return batch;
        }
        let overload = self.waiting.len() > batch.jobs;
        let Some(limit) = self.size.limit(&self.cost, self.policy.max_rows, overload) else { return batch };
        let room = self.policy.room_of(limit);
        let part = Batch { room, ..self.first(batch.seen, |next| !next.extent.exceeds(room)) };
        let [Some(whole), Some(now), Some(then)] =
            [batch.extent, part.extent, batch.extent.minus(part.extent)].map(|part| self.cost.estimate(part.size))
        else {
            return batch;
        };
        // The sum of the times at which its callers are served, if the rest is the next batch.
        let jobs = |jobs: usize| u32::try_from(jobs).unwrap_or(u32::MAX);
        let apart = now.saturating_mul(jobs(batch.jobs)) + then.saturating_mul(jobs(batch.jobs - part.jobs));
        if apart < whole.saturating_mul(jobs(batch.jobs)) { part } else { batch }
    }

    /// The first jobs of the batch that is among the first `seen`, as long as it `fits`; one at least.
    fn first(&self, seen: usize, fits: impl Fn(&Batch) -> bool) -> Batch {
        let mut batch = Batch::before(&self.waiting[0], self.policy.room());
        for (seen, job) in self.waiting.iter().take(seen).enumerate() {
            if !job.is_compatible(&self.waiting[0]) {
                continue;
            }
            let mut with = batch;
            with.add(job);
            if batch.jobs > 0 && !fits(&with) {
                break;
            }
            batch = Batch { seen: seen + 1, ..with };
        }
        batch
    }

    /// What to do about those whom `batch`, which takes `cost` at most, would make late.
    fn course(&self, batch: &Batch, cost: Option<Duration>, now: Instant) -> Course {
        match cost {
            Some(cost) if now + cost.min(FOREVER) > batch.urgent && self.waiting.len() > 1 => {
                self.outlook(batch.room, now).course(batch.jobs)
            }
            _ => Course::Ride,
        }
    }

    fn outlook(&self, room: Extent, now: Instant) -> Outlook<'_> {
        Outlook { waiting: &self.waiting, cost: &self.cost, room, instances: self.instances, now }
    }

    /// Refuses those who would be late in the next batch, until it is full of others.
    fn drop_late(&mut self, room: Extent, now: Instant) {
        let end = self.outlook(room, now).end_of_full();
        let mut kept = Extent::default();
        for job in std::mem::take(&mut self.waiting) {
            // One that runs alone takes its own time.
            let alone = |job: &Job| self.cost.at_most(job.extent().size).map_or(now, |cost| now + cost.min(FOREVER));
            let end = if self.policy.enabled { end } else { alone(&job) };
            let is_full = kept.rows > 0 && kept.fills(room);
            if !is_full && job.deadline < end {
                job.fail(Error::DeadlineExceeded { stage: Stage::Queued });
            } else {
                kept = kept.plus(job.extent().or_one());
                self.waiting.push_back(job);
            }
        }
    }

    /// Until when this job may be kept waiting for others: `max_delay`, and never more than half of
    /// the time it has, so that waiting for a batch cannot make it late.
    fn patience(&self, job: &Job) -> Instant {
        if self.policy.max_delay.is_zero() {
            return job.queued;
        }
        let time = job.deadline.saturating_duration_since(job.queued);
        let time = self.policy.timeout.map_or(time, |timeout| timeout.min(time));
        job.queued + self.policy.max_delay.min(time / 2)
    }

    /// Drops late and abandoned jobs. The late ones are told: a stream that merely ended would look complete. So are those
    /// whose time in the queue is over, if they are not to wait behind the others.
    fn drop_hopeless(&mut self, now: Instant) {
        let policy = &self.policy;
        let hopeless = |job: &Job| now >= job.deadline || job.is_abandoned();
        let expired = |job: &Job| {
            policy.timeout.is_some_and(|timeout| now.saturating_duration_since(job.queued) >= timeout)
                && !fair::is_delayed(job)
        };
        if !self.waiting.iter().any(|job| hopeless(job) || expired(job)) {
            return;
        }
        let mut delayed = SmallVec::<[Job; 4]>::new();
        for mut job in std::mem::take(&mut self.waiting) {
            if hopeless(&job) {
                job.fail(Error::DeadlineExceeded { stage: Stage::Queued });
            } else if !expired(&job) {
                self.waiting.push_back(job);
            } else if policy.when_late == WhenLate::Reject {
                job.fail(QUEUE_TIMEOUT);
            } else {
                fair::delay(&mut job);
                delayed.push(job);
            }
        }
        delayed.into_iter().for_each(|job| fair::insert(&mut self.waiting, job));
    }

    /// Takes the first `jobs` jobs that are compatible with the very first, all within the first `seen`.
    fn take(&mut self, jobs: usize, seen: usize, now: Instant) -> Vec<Job> {
        if let Some(first) = self.waiting.front() {
            self.order.took(first.turn);
            self.delay.took(first.queued, now, self.waiting.len() == jobs);
        }
        let mut batch = std::mem::take(&mut self.spare);
        if jobs == seen {
            batch.extend(self.waiting.drain(..jobs));
            return batch;
        }
        let mut others = VecDeque::with_capacity(self.waiting.len() - jobs);
        for job in self.waiting.drain(..) {
            let joins = batch.len() < jobs && batch.first().is_none_or(|first| job.is_compatible(first));
            if joins {
                batch.push(job);
            } else {
                others.push_back(job);
            }
        }
        self.waiting = others;
        batch
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "adaptive_tests.rs"]
mod adaptive;

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
//! runs at once what is there (unless `rejoin` says otherwise); batches then form by themselves under load. Where the first job waits for others, those it
//! cannot run with do not wait behind it: the first of their batches that is complete, or has waited for long enough, runs.
//!
//! With `rejoin` a batch may wait for those whom the run before it answered ([`rejoin`](super::rejoin)).
//!
//! What a batch will take is known by its size (see [`Cost`] and [`Extent`]). So it is made smaller where that serves
//! callers sooner and costs nothing ([`size`](super::size)), and where it would make somebody late who need not be
//! ([`late`](super::late)). As long as nothing is known, or nobody is in danger, all that waits runs together.

mod batch;

use super::{
    BatchPolicy, Company, Cost, Extent, Job, QUEUE_FULL, QUEUE_TIMEOUT, WhenLate,
    delay::QueueDelay,
    fair::{self, FairOrder},
    late::{Course, FOREVER, Outlook},
    rejoin::{Here, Rejoin},
    size::{BatchSize, WORTH},
};
use crate::error::{Error, Stage};
use batch::Batch;
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
    /// What a batch may take by the bytes of its inputs, where rows do not say it; absent: that is not asked.
    budget: Option<Duration>,
    /// Nobody comes any more for whom it would be worth to wait.
    closing: bool,
    /// When abandoned jobs were last looked for, to make room.
    purged: Option<Instant>,
    rejoin: Rejoin,
    /// Whether the last job that came is one to look at the queue for.
    is_news: bool,
}

/// How often a full queue is searched for abandoned jobs: whoever is refused costs the others no search of all that waits.
const PURGE: Duration = Duration::from_millis(5);

/// What to do now.
#[derive(Debug)]
pub enum Verdict {
    /// Run these now, as one batch. Never empty.
    Run(Vec<Job>),
    /// Nothing to do until then, or until something changes.
    Wait(Option<Instant>),
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
            budget: None,
            closing: false,
            purged: None,
            rejoin: Rejoin::default(),
            is_news: true,
        }
    }

    /// The same with batches that end before they are expected to take longer than `budget` by the bytes of their inputs, where
    /// the cost is known by them. A single job runs in any case.
    #[must_use]
    pub(super) fn within(self, budget: Duration) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Nobody comes any more: from now on no job waits for others to run with.
    pub(super) fn close(&mut self) {
        self.closing = true;
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

    /// Adds a job, behind all of its level of priority and before all of lower ones; behind all there are, if it runs alone for
    /// as long as runs may take ([`Company::Alone`]).
    ///
    /// # Errors
    ///
    /// Gives the job back when full: the caller turns that into `Overloaded`. Abandoned jobs do not
    /// count, unless they were abandoned within the last few milliseconds; they are dropped before anyone is refused. And
    /// whoever fills the queue does not keep others out of it: the last job of all is refused, if the new one is to run before
    /// it.
    pub fn push(&mut self, mut job: Job) -> Result<(), Job> {
        if self.is_full() {
            self.purge(job.queued);
        }
        if self.waiting.is_empty() {
            // However it became so: what was true of the jobs that waited is no longer.
            self.order.reset();
            self.delay.reset();
        }
        job.priority = self.policy.priorities.level(job.priority);
        job.turn = self.order.turn(&self.waiting, &job);
        if job.company == Company::Alone {
            fair::delay(&mut job);
        }
        if self.is_full() {
            match self.waiting.pop_back_if(|last| last.is_abandoned() || fair::rank(last) > fair::rank(&job)) {
                Some(last) => last.fail(QUEUE_FULL),
                None => return Err(job),
            }
        }
        // One that cannot run with those who wait may have to run before them.
        let joins = |first: &Job| job.is_compatible(first);
        self.is_news =
            !self.rejoin.is_waiting() || !self.waiting.front().is_none_or(joins) || self.rejoin.came(job.deadline);
        fair::insert(&mut self.waiting, job);
        Ok(())
    }

    /// Whether the last job that came is one to look at the queue for. It is not while more like it are waited for: whoever was
    /// told until when to wait need not be told of it.
    pub(super) fn is_news(&self) -> bool {
        self.is_news
    }

    /// A run of so many jobs and rows ended at `over`, before its callers were answered.
    pub(super) fn ran(&mut self, over: Instant, answered: (usize, usize)) {
        // Several instances would run side by side what they are better not to wait for.
        if self.policy.rejoin && self.instances < 2 {
            let came = self.waiting.iter().filter(|job| job.queued <= over);
            let came = came.fold((0, 0), |(jobs, rows), job| (jobs + 1, job.rows.saturating_add(rows)));
            self.rejoin.ran(over, answered, came);
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= self.policy.max_queue
    }

    /// Drops abandoned jobs, if that was not done just now.
    fn purge(&mut self, now: Instant) {
        if self.purged.is_none_or(|last| now.saturating_duration_since(last) >= PURGE) {
            self.purged = Some(now);
            self.waiting.retain(|job| !job.is_abandoned());
        }
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
            if self.waiting.is_empty() {
                self.rejoin.forget_wait();
                return Verdict::Wait(None);
            }
            if idle == 0 {
                return Verdict::Wait(None);
            }
            let batch = match self.ready(now) {
                Ok(batch) => batch,
                Err(due) => return Verdict::Wait(Some(due)),
            };
            let (batch, cost) = match self.cost.at_most(batch.extent.size) {
                Some(cost) if cost >= WORTH => {
                    let batch = self.enough(batch);
                    (batch, self.cost.at_most(batch.extent.size))
                }
                cost => (batch, cost),
            };
            match self.course(&batch, cost, now) {
                Course::Ride => {
                    return match self.rejoin_until(&batch, now) {
                        Some(until) => Verdict::Wait(Some(until)),
                        None => Verdict::Run(self.take(&batch, now)),
                    };
                }
                Course::Cut { jobs, .. } => {
                    let batch = self.first(&batch, |next| next.jobs <= jobs);
                    return Verdict::Run(self.take(&batch, now));
                }
                // Somebody else is left: dropping is chosen only where it serves more of them.
                Course::Drop if may_drop => self.drop_late(batch.room, now),
                Course::Drop => return Verdict::Run(self.take(&batch, now)),
            }
            may_drop = false;
        }
    }

    /// Until when `batch`, which may run, waits for those who were just answered.
    fn rejoin_until(&mut self, batch: &Batch, now: Instant) -> Option<Instant> {
        let is_all = batch.jobs == self.waiting.len() && self.waiting[0].company == Company::Any;
        let policy = &self.policy;
        // What runs cost is known by their rows where these are alike; a `timeout` is time that waiting would use up; and a
        // size that is preferred is not to be passed by.
        let may_wait = policy.enabled && policy.even && policy.timeout.is_none() && policy.preferred.is_empty();
        if !is_all || !may_wait || self.closing {
            self.rejoin.give_up();
            return None;
        }
        let (jobs, rows, room, urgent) = (batch.jobs, batch.extent.rows, batch.room.rows, batch.urgent);
        self.rejoin.until(Here { jobs, rows, room, urgent }, &self.cost, now)
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

    /// What to do about those whom `batch`, which takes `cost` at most, would make late.
    fn course(&self, batch: &Batch, cost: Option<Duration>, now: Instant) -> Course {
        match cost {
            Some(cost) if now + cost.min(FOREVER) > batch.urgent && self.waiting.len() > 1 => {
                self.outlook(batch.room, now).course(self.members(batch).map(|(_, job)| job))
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

    /// Takes the jobs of a batch.
    fn take(&mut self, batch: &Batch, now: Instant) -> Vec<Job> {
        let Batch { lead, jobs, seen, .. } = *batch;
        // Whoever waited for others runs now, whatever made it.
        self.rejoin.give_up();
        if let Some(first) = self.waiting.get(lead) {
            self.order.took(first.turn);
            self.delay.took(first.queued, now, self.waiting.len() == jobs);
        }
        let mut batch = std::mem::take(&mut self.spare);
        if jobs == seen - lead {
            batch.extend(self.waiting.drain(lead..seen));
            return batch;
        }
        let mut others = VecDeque::with_capacity(self.waiting.len() - jobs);
        for (at, job) in self.waiting.drain(..).enumerate() {
            let joins = batch.len() < jobs && at >= lead && batch.first().is_none_or(|first| job.is_compatible(first));
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

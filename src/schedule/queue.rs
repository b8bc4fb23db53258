//! When to run what: batching as a pure state machine.
//!
//! It has no clock and waits for nothing: time and idle instances are arguments, so every rule of
//! batching is a table test. It does not know who runs the batches it gives out.
//!
//! The rules. Jobs wait by their level of priority, and within a level in the order they came, which
//! is made fair between those who sent them (see [`fair`]). The first job decides: only
//! jobs that are compatible with it join its batch, in their order. A batch has at most `max_rows`
//! rows, unless its only job is larger by itself.
//! Late and abandoned jobs are dropped here and never run. With `max_delay` zero an idle instance
//! runs at once what is there; batches then form by themselves under load.

use super::{
    BatchPolicy, Job, QUEUE_FULL,
    delay::QueueDelay,
    fair::{self, FairOrder},
};
use crate::error::{Error, Stage};
use std::{collections::VecDeque, time::Instant};

/// Jobs that wait, the next first; bounded by [`BatchPolicy::max_queue`].
#[derive(Debug)]
pub struct BatchQueue {
    waiting: VecDeque<Job>,
    policy: BatchPolicy,
    order: FairOrder,
    delay: QueueDelay,
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

impl BatchQueue {
    /// An empty queue.
    pub fn new(policy: BatchPolicy) -> Self {
        let delay = QueueDelay::new(policy.queue_delay);
        Self { waiting: VecDeque::new(), policy, order: FairOrder::default(), delay, spare: Vec::new() }
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
        let Some(first) = self.waiting.front() else { return Verdict::Wait(None) };
        if idle == 0 {
            return Verdict::Wait(None);
        }
        if !self.policy.enabled {
            return Verdict::Run(self.take(1, 1, now));
        }
        let mut rows = 0_usize;
        let mut jobs = 0;
        let mut seen = 0;
        let mut due = None;
        let mut full = false;
        for job in &self.waiting {
            if jobs == 0 || job.is_compatible(first) {
                let with = rows.saturating_add(job.rows);
                // A later, smaller job might still fit; it must not overtake this one.
                if jobs > 0 && with > self.policy.max_rows {
                    full = true;
                    break;
                }
                rows = with;
                jobs += 1;
                let patience = self.patience(job);
                due = Some(due.map_or(patience, |due: Instant| due.min(patience)));
            }
            seen += 1;
            if rows >= self.policy.max_rows {
                full = true;
                break;
            }
        }
        match due {
            Some(due) if !full && now < due => Verdict::Wait(Some(due)),
            _ => Verdict::Run(self.take(jobs, seen, now)),
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

    /// Until when this job may be kept waiting for others: `max_delay`, and never more than half of
    /// the time it has, so that waiting for a batch cannot make it late.
    fn patience(&self, job: &Job) -> Instant {
        if self.policy.max_delay.is_zero() {
            return job.queued;
        }
        let half = job.deadline.saturating_duration_since(job.queued) / 2;
        job.queued + self.policy.max_delay.min(half)
    }

    /// Drops late and abandoned jobs. The late ones are told: a stream that merely ended would look complete.
    fn drop_hopeless(&mut self, now: Instant) {
        let hopeless = |job: &Job| now >= job.deadline || job.is_abandoned();
        if !self.waiting.iter().any(hopeless) {
            return;
        }
        for job in std::mem::take(&mut self.waiting) {
            if hopeless(&job) {
                job.fail(Error::DeadlineExceeded { stage: Stage::Queued });
            } else {
                self.waiting.push_back(job);
            }
        }
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

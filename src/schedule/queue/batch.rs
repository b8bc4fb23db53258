//! Which of the jobs that wait would run together now, and whether they wait for more.

use super::BatchQueue;
use crate::schedule::{Company, Extent, Job};
use smallvec::SmallVec;
use std::time::Instant;

/// Batches of different shapes that may form beside each other while they wait. Jobs of further shapes still run when they have
/// waited for long enough.
const FORMING: usize = 8;

/// Jobs that may run together: the one at `lead` and those behind it that are compatible with it, so many in all, and all of
/// them among the first `seen` of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) lead: usize,
    pub(super) jobs: usize,
    pub(super) seen: usize,
    pub(super) extent: Extent,
    /// The most that this batch and those like it may be.
    pub(super) room: Extent,
    /// The first of their deadlines.
    pub(super) urgent: Instant,
    /// Until when it may wait for more; absent: it is complete.
    due: Option<Instant>,
}

impl Batch {
    /// None yet, with `first`, which waits at `lead`, to come first.
    fn before(first: &Job, lead: usize, room: Extent) -> Self {
        Self { lead, jobs: 0, seen: lead, extent: Extent::default(), room, urgent: first.deadline, due: None }
    }

    /// Adds the job that waits at `at`.
    fn add(&mut self, at: usize, job: &Job) {
        self.jobs += 1;
        self.seen = at + 1;
        self.extent = self.extent.plus(job.extent());
        self.urgent = self.urgent.min(job.deadline);
    }
}

impl BatchQueue {
    /// The first batch that need not wait any longer, or until when all of them may. For a queue that is not empty.
    ///
    /// Every job that waits has a say in that time. It takes a look at all of them for each shape that is forming, and no more.
    pub(super) fn ready(&self, now: Instant) -> Result<Batch, Instant> {
        let first = self.batch(0);
        let Some(mut due) = first.due.filter(|due| now < *due) else { return Ok(first) };
        if first.jobs == self.waiting.len() {
            return Err(due);
        }
        let mut leads = SmallVec::<[usize; FORMING]>::from_elem(0, 1);
        for (at, job) in self.waiting.iter().enumerate().skip(1) {
            if job.company == Company::Alone {
                // These are the last, and who waits before them would wait for as long as runs may take.
                break;
            }
            let joins = |lead: usize| job.is_compatible(&self.waiting[lead]);
            if leads.iter().any(|lead| joins(*lead)) {
                continue;
            }
            let until = if leads.len() < FORMING {
                leads.push(at);
                let batch = self.batch(at);
                match batch.due.filter(|due| now < *due) {
                    Some(due) => due,
                    None => return Ok(batch),
                }
            } else {
                let until = self.latest(self.patience(job), job.deadline, job.extent());
                if until <= now {
                    return Ok(self.batch((1..at).find(|lead| joins(*lead)).unwrap_or(at)));
                }
                until
            };
            due = due.min(until);
        }
        Err(due)
    }

    /// The batch that the job at `lead` and those behind it that may join it make now.
    fn batch(&self, lead: usize) -> Batch {
        let first = &self.waiting[lead];
        if !self.policy.enabled {
            let mut alone = Batch::before(first, lead, Extent::default());
            alone.add(lead, first);
            return alone;
        }
        let (mut preferred, room) = (None, self.policy.room());
        let mut batch = Batch::before(first, lead, room);
        // Nobody joins a job that runs alone.
        let waits = first.company == Company::Any && !self.closing;
        for (at, job) in self.waiting.iter().enumerate().skip(lead) {
            if at == lead || job.is_compatible(first) {
                // A later, smaller job might still fit; it must not overtake this one.
                if at > lead && batch.extent.plus(job.extent()).exceeds(room) {
                    batch.due = None;
                    break;
                }
                batch.add(at, job);
                let patience = self.patience(job);
                batch.due = waits.then(|| batch.due.map_or(patience, |due: Instant| due.min(patience)));
                let rows = batch.extent.rows;
                if self.policy.preferred.contains(rows) {
                    preferred = Some(Batch { due: None, room: self.policy.room_of(rows), ..batch });
                }
                if batch.extent.fills(room) {
                    batch.due = None;
                    break;
                }
            } else if self.policy.preserve_order {
                // Whoever joined from behind it would overtake it.
                batch.due = None;
                break;
            }
        }
        if let (Some(due), false) = (&mut batch.due, self.policy.max_delay.is_zero()) {
            *due = self.latest(*due, batch.urgent, batch.extent);
        }
        self.affordable(preferred.unwrap_or(batch))
    }

    /// Until when to wait, if not beyond `due`: nor may it make anybody late who would be in time now.
    fn latest(&self, due: Instant, urgent: Instant, extent: Extent) -> Instant {
        let Some(cost) = self.cost.at_most(extent.size) else { return due };
        urgent.checked_sub(cost).map_or(due, |latest| latest.min(due))
    }

    /// As much of a batch as should stay within the budget by its bytes; one job at least.
    fn affordable(&self, batch: Batch) -> Batch {
        let (Some(budget), Some(cost)) = (self.budget, self.cost.by_bytes()) else { return batch };
        let is_within = |bytes: usize| cost.estimate(bytes).is_none_or(|took| took <= budget);
        // Nearly always all of it is, so that is asked first and once.
        if batch.jobs < 2 || is_within(self.members(&batch).map(|(_, job)| job.bytes()).sum()) {
            return batch;
        }
        let (mut part, mut bytes) = (Batch::before(&self.waiting[batch.lead], batch.lead, batch.room), 0);
        for (at, job) in self.members(&batch) {
            bytes += job.bytes();
            if part.jobs > 0 && !is_within(bytes) {
                break;
            }
            part.add(at, job);
        }
        part
    }

    /// The jobs of a batch, and where they wait.
    pub(super) fn members(&self, batch: &Batch) -> impl Iterator<Item = (usize, &Job)> {
        let lead = batch.lead;
        let first = &self.waiting[lead];
        // The first itself, whatever it is: one that runs alone is compatible with nobody.
        let behind = self.waiting.iter().enumerate().take(batch.seen).skip(lead);
        behind.filter(move |(at, job)| *at == lead || job.is_compatible(first)).take(batch.jobs)
    }

    /// As much of a batch as serves its callers soonest, where rows gain nothing by being many.
    pub(super) fn enough(&mut self, batch: Batch) -> Batch {
        if batch.jobs < 2 || !self.policy.even || !self.policy.preferred.is_empty() {
            return batch;
        }
        let overload = self.waiting.len() > batch.jobs;
        let Some(limit) = self.size.limit(&self.cost, self.policy.max_rows, overload) else { return batch };
        let room = self.policy.room_of(limit);
        let part = Batch { room, ..self.first(&batch, |next| !next.extent.exceeds(room)) };
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

    /// The first jobs of a batch, as long as what they make `fits`; one at least.
    pub(super) fn first(&self, of: &Batch, fits: impl Fn(&Batch) -> bool) -> Batch {
        let mut batch = Batch::before(&self.waiting[of.lead], of.lead, self.policy.room());
        for (at, job) in self.members(of) {
            let mut with = batch;
            with.add(at, job);
            if batch.jobs > 0 && !fits(&with) {
                break;
            }
            batch = with;
        }
        batch
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
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;

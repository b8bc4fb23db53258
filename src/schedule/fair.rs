//! Whose turn it is when a queue forms: a fair order between identities, by their shares.
//!
//! Self-clocked fair queueing (Golestani 1994): each job is given the virtual time at which it would end if every identity
//! that waits were served at once, in proportion to its share, and jobs are taken in the order of these times. Whoever
//! sends little waits for little, whoever sends much waits behind its own. One identity alone is served in the order in
//! which it came.
//!
//! Nothing is remembered of an identity that does not wait, so there is no table to bound.

use super::{Company, Job};
use std::{collections::VecDeque, sync::Arc};

/// What a row of an identity with a share of 1 takes. Large, so that shares divide it well.
const ROW: u64 = 1 << 20;

/// Set in the turn of a job that goes behind all others of its level, because it has waited for too long
/// (`batching.when_late: delay`).
const DELAYED: u64 = 1 << 63;

/// The virtual time of a queue: that of the job that was taken last.
#[derive(Debug, Default)]
pub(super) struct FairOrder {
    now: u64,
}

impl FairOrder {
    /// Nobody waits: the virtual time begins anew, so that it never comes to its end where a queue is empty now and then.
    pub(super) fn reset(&mut self) {
        self.now = 0;
    }

    /// The virtual time at which `job` will have been served, behind those that wait.
    pub(super) fn turn(&self, waiting: &VecDeque<Job>, job: &Job) -> u64 {
        // Its own last one waits near the end of its level, if it has one; one that is not ahead of now makes no difference.
        let level = waiting.iter().rev().skip_while(|other| is_last(other) || other.priority > job.priority);
        let mut ahead = level.take_while(|other| other.priority == job.priority && other.turn > self.now);
        let before = ahead.find(|other| !is_delayed(other) && are_of_one(other, job)).map_or(0, |other| other.turn);
        let rows = u64::try_from(job.rows).unwrap_or(u64::MAX).max(1);
        let takes = rows.saturating_mul(ROW) / u64::from(job.facts.share());
        before.max(self.now).saturating_add(takes).min(DELAYED - 1)
    }

    /// The queue goes on with a job of this turn.
    pub(super) fn took(&mut self, turn: u64) {
        if turn < DELAYED {
            self.now = self.now.max(turn);
        }
    }
}

/// Sends a job behind all others of its level; those that were sent there keep their order.
pub(super) fn delay(job: &mut Job) {
    job.turn |= DELAYED;
}

/// Whether a job was sent behind all others of its level.
pub(super) fn is_delayed(job: &Job) -> bool {
    job.turn >= DELAYED
}

/// Whether a job goes behind all others of all levels: it was not done soon, and nobody is to wait while it is tried for as long
/// as runs may take.
fn is_last(job: &Job) -> bool {
    job.company == Company::Alone
}

/// What jobs wait by: whether they go last, then their level of priority, then their turn.
pub(super) fn rank(job: &Job) -> (bool, u32, u64) {
    (is_last(job), job.priority, job.turn)
}

/// Puts a job among those that wait, which are sorted by rank: behind its equals.
pub(super) fn insert(waiting: &mut VecDeque<Job>, job: Job) {
    match waiting.back() {
        Some(last) if rank(last) > rank(&job) => {
            waiting.insert(waiting.partition_point(|other| rank(other) <= rank(&job)), job);
        }
        _ => waiting.push_back(job),
    }
}

/// Whether both are of one identity. Jobs of calls that nobody has identified, as in tests, count as one identity's.
fn are_of_one(a: &Job, b: &Job) -> bool {
    match (a.facts.identity.get(), b.facts.identity.get()) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.id() == b.id(),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Identity, Scope},
        schedule::{BatchPolicy, BatchQueue, Verdict, testing},
    };
    use std::{collections::HashMap, time::Instant};

    fn job(identity: &str, share: u32, rows: usize) -> (Job, testing::Receiver) {
        let (job, receiver) = testing::job(rows, 0.0);
        let identity = Arc::new(Identity::proven(identity, Vec::new(), Scope::Granted));
        job.facts.identity.set(identity).unwrap();
        job.facts.set_share(share);
        (job, receiver)
    }

    /// A queue that gives out one job at a time.
    fn queue(max_queue: usize) -> BatchQueue {
        BatchQueue::new(BatchPolicy { max_queue, ..BatchPolicy::default() })
    }

    fn next(queue: &mut BatchQueue) -> Option<String> {
        match queue.next(Instant::now(), 1) {
            Verdict::Run(jobs) => Some(jobs[0].facts.identity.get().unwrap().id().to_string()),
            Verdict::Wait(_) => None,
        }
    }

    #[test]
    fn who_sends_little_does_not_wait_behind_who_sends_much() {
        let mut queue = queue(100);
        let mut receivers = Vec::new();
        for (identity, count) in [("much", 20), ("little", 2)] {
            for _ in 0..count {
                let (job, receiver) = job(identity, 1, 1);
                queue.push(job).unwrap();
                receivers.push(receiver);
            }
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order[..5], ["much", "little", "much", "little", "much"]);
        assert_eq!(order.len(), 22);
    }

    #[test]
    fn shares_divide_a_full_queue_by_rows() {
        let mut queue = queue(1000);
        let mut receivers = Vec::new();
        for (identity, share, rows) in [("paid", 3, 1), ("free", 1, 1), ("wide", 1, 4)] {
            for _ in 0..100 {
                let (job, receiver) = job(identity, share, rows);
                queue.push(job).unwrap();
                receivers.push(receiver);
            }
        }
        let mut served = HashMap::new();
        for _ in 0..85 {
            *served.entry(next(&mut queue).unwrap()).or_insert(0_i32) += 1;
        }
        // 60 : 20 : 5 jobs, and so as many rows for each unit of share.
        for (identity, expected) in [("paid", 60), ("free", 20), ("wide", 5)] {
            assert!((served[identity] - expected).abs() <= 1, "{served:?}");
        }
    }

    #[test]
    fn who_was_away_has_saved_nothing_and_lost_nothing() {
        let mut queue = queue(100);
        let mut receivers = Vec::new();
        for _ in 0..10 {
            let (job, receiver) = job("early", 1, 1);
            queue.push(job).unwrap();
            receivers.push(receiver);
            assert_eq!(next(&mut queue).unwrap(), "early");
        }
        for identity in ["early", "late", "early", "late"] {
            let (job, receiver) = job(identity, 1, 1);
            queue.push(job).unwrap();
            receivers.push(receiver);
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order, ["early", "late", "early", "late"]);
    }

    #[test]
    fn the_end_of_the_virtual_time_is_not_the_end_of_fairness() {
        let mut queue = queue(100);
        let (endless, _receiver) = job("much", 1, 1);
        queue.push(Job { rows: usize::MAX, ..endless }).unwrap();
        next(&mut queue).unwrap();
        let mut receivers = Vec::new();
        for (identity, count) in [("much", 5), ("little", 2)] {
            for _ in 0..count {
                let (job, receiver) = job(identity, 1, 1);
                queue.push(job).unwrap();
                receivers.push(receiver);
            }
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order[..4], ["much", "little", "much", "little"]);
    }

    #[test]
    fn whoever_fills_the_queue_does_not_keep_others_out() {
        let mut queue = queue(4);
        let (jobs, mut receivers): (Vec<_>, Vec<_>) = (0..4).map(|_| job("much", 1, 1)).unzip();
        jobs.into_iter().for_each(|job| queue.push(job).unwrap());
        let (more, _receiver) = job("much", 1, 1);
        assert!(queue.push(more).is_err(), "its own last one is no later");
        let (little, _waits) = job("little", 1, 1);
        queue.push(little).unwrap();
        assert_eq!(queue.len(), 4);
        let refused = receivers.pop().unwrap().try_recv().unwrap().unwrap_err();
        assert_eq!(refused.code(), crate::error::Code::Overloaded);
    }
}

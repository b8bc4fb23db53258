//! Whose turn it is when a queue forms: a fair order between identities, by their shares.
//!
//! Self-clocked fair queueing (Golestani 1994): each job is given the virtual time at which it would end if every identity
//! that waits were served at once, in proportion to its share, and jobs are taken in the order of these times. Whoever
//! sends little waits for little, whoever sends much waits behind its own. One identity alone is served in the order in
//! which it came.
//!
//! Nothing is remembered of an identity that does not wait, so there is no table to bound.

use super::Job;
use std::{collections::VecDeque, sync::Arc};

/// What a row of an identity with a share of 1 takes. Large, so that shares divide it well.
const ROW: u64 = 1 << 20;

/// The virtual time of a queue: that of the job that was taken last.
#[derive(Debug, Default)]
pub(super) struct FairOrder {
    now: u64,
}

impl FairOrder {
    /// The virtual time at which `job` will have been served, behind those that wait.
    pub(super) fn turn(&self, waiting: &VecDeque<Job>, job: &Job) -> u64 {
        // Its own last one waits near the end, if it has one.
        let before = waiting.iter().rev().find(|other| are_of_one(other, job)).map_or(0, |other| other.turn);
        let rows = u64::try_from(job.rows).unwrap_or(u64::MAX).max(1);
        let takes = rows.saturating_mul(ROW) / u64::from(job.facts.share());
        before.max(self.now).saturating_add(takes)
    }

    /// The queue goes on with a job of this turn.
    pub(super) fn took(&mut self, turn: u64) {
        self.now = self.now.max(turn);
    }
}

/// Where a job with this turn belongs among those that wait, sorted by turn: behind its equals.
pub(super) fn place(waiting: &VecDeque<Job>, turn: u64) -> usize {
    waiting.iter().rev().position(|other| other.turn <= turn).map_or(0, |behind| waiting.len() - behind)
}

/// Jobs of calls that nobody has identified, as in tests, count as one identity's.
fn are_of_one(a: &Job, b: &Job) -> bool {
    match (a.facts.identity.get(), b.facts.identity.get()) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.id() == b.id(),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

//! What to do where a batch would make some of its jobs late: as few as possible should be.
//!
//! Three courses are played through over all jobs that wait, by the learnt cost, and the one that serves most of them within
//! their deadlines is taken. So an urgent call is not made late by company that could have waited, and a queue in which
//! everybody is about to be late does not become one in which everybody is: it lets those go who cannot be served, and
//! serves the others in full batches.
//!
//! Pure: what waits, the cost and the time are arguments.

use super::{Cost, Extent, Job};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What can be done about a batch that would be late for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Run it as it is: nobody is helped by anything else.
    Ride,
    /// Run only so many of its jobs now, and the others next.
    Cut {
        /// Jobs.
        jobs: usize,
        /// How much they are together.
        extent: Extent,
    },
    /// Refuse those that would be late, and let others have their places.
    Drop,
}

/// A batch that is about to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook<'a> {
    /// Everything that waits, in its order.
    pub(super) waiting: &'a VecDeque<Job>,
    /// What runs cost.
    pub(super) cost: &'a Cost,
    /// The most that this batch and those that follow may be; nothing where each job runs alone.
    pub(super) room: Extent,
    /// How many instances there are to run them.
    pub(super) instances: u32,
    /// When it would begin.
    pub(super) now: Instant,
}

// === impl Outlook ===

impl Outlook<'_> {
    /// The best course for a batch of `jobs`.
    pub(super) fn course<'a>(&self, jobs: impl Iterator<Item = &'a Job>) -> Course {
        let mut best = (Course::Ride, self.served(Course::Ride));
        let mut consider = |course| {
            let served = self.served(course);
            if served > best.1 {
                best = (course, served);
            }
        };
        if let Some(cut) = self.cut(jobs) {
            consider(cut);
        }
        consider(Course::Drop);
        best.0
    }

    /// When the first batch that drops who is late would end.
    pub(super) fn end_of_full(&self) -> Instant {
        self.end(self.now, self.all().within(self.room))
    }

    /// The most jobs with which nobody is late who would not be late with fewer; `None` if that is all of them.
    fn cut<'a>(&self, jobs: impl Iterator<Item = &'a Job>) -> Option<Course> {
        let mut extent = Extent::default();
        let mut urgent: Option<Instant> = None;
        for (jobs, job) in jobs.enumerate() {
            let with = extent.plus(job.extent());
            let end = self.end(self.now, with);
            if urgent.is_some_and(|urgent| urgent < end) {
                return Some(Course::Cut { jobs, extent });
            }
            if end <= job.deadline {
                urgent = Some(urgent.map_or(job.deadline, |urgent| urgent.min(job.deadline)));
            }
            extent = with;
        }
        None
    }

    /// How many of those that wait would be served in time. Takes all of them to be of one shape.
    fn served(&self, course: Course) -> usize {
        let mut left = self.all();
        let mut room = if let Course::Cut { extent, .. } = course { extent } else { self.room };
        let (mut begin, mut batch, mut served, mut is_first) = (self.now, Extent::default(), 0, true);
        let mut end = self.end(begin, left.within(room));
        for job in self.waiting {
            let one = job.extent();
            if batch.rows > 0 && batch.plus(one).exceeds(room) {
                begin += end.saturating_duration_since(begin) / self.instances.max(1);
                (room, batch, is_first) = (self.room, Extent::default(), false);
                end = self.end(begin, left.within(room));
            }
            if batch.rows == 0 && one.exceeds(room) {
                end = self.end(begin, one);
            }
            let is_served = end <= job.deadline;
            served += usize::from(is_served);
            if is_served || (is_first && course != Course::Drop) {
                batch = batch.plus(one.or_one());
            }
            left = left.minus(one);
        }
        served
    }

    /// All that waits.
    fn all(&self) -> Extent {
        self.waiting.iter().fold(Extent::default(), |all, job| all.plus(job.extent()))
    }

    fn end(&self, begin: Instant, batch: Extent) -> Instant {
        begin + self.cost.at_most(batch.size).unwrap_or_default().min(FOREVER)
    }
}

/// Longer than any deadline, and short enough to be added to a clock.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing::{self, Receiver};

    const MS: Duration = Duration::from_millis(1);

    /// 10 ms, and 1 ms for each row.
    fn cost() -> Cost {
        let cost = Cost::default();
        for rows in [1, 2, 4, 8, 16, 32, 64] {
            cost.seed(rows, (10 + rows as u32) * MS);
        }
        cost
    }

    fn course(room: usize, jobs: usize, waiting: &[(usize, u32)]) -> Course {
        let now = Instant::now();
        let (waiting, _receivers): (VecDeque<Job>, Vec<Receiver>) =
            waiting.iter().map(|(rows, patience)| testing::job_at(*rows, 0., now, *patience * MS)).unzip();
        Outlook { waiting: &waiting, cost: &cost(), room: Extent::of_rows(room), instances: 1, now }
            .course(waiting.iter().take(jobs))
    }

    #[test]
    fn an_urgent_job_is_not_made_late_by_those_that_can_wait() {
        let waiting = [(1, 20), (4, 900), (4, 900), (16, 900)];
        assert_eq!(course(64, 4, &waiting), Course::Cut { jobs: 3, extent: Extent::of_rows(9) });
        // Nor by those in front of it, if they can be told apart from those behind it.
        let waiting = [(4, 900), (1, 20), (30, 900)];
        assert_eq!(course(64, 3, &waiting), Course::Cut { jobs: 2, extent: Extent::of_rows(5) });
    }

    #[test]
    fn who_is_late_in_any_case_rides_along_where_nobody_waits_for_its_place() {
        assert_eq!(course(64, 1, &[(1, 5)]), Course::Ride);
        assert_eq!(course(64, 2, &[(1, 5), (1, 900)]), Course::Ride);
        // Nothing of the batch can be saved by cutting it.
        assert_eq!(course(64, 2, &[(1, 5), (1, 5)]), Course::Ride);
    }

    #[test]
    fn who_is_late_in_any_case_makes_room_for_those_who_are_not() {
        let waiting: Vec<_> = (0..8).map(|_| (1, 5)).chain((0..8).map(|_| (1, 20))).collect();
        assert_eq!(course(8, 8, &waiting), Course::Drop);
        // Where each runs alone.
        assert_eq!(course(0, 1, &[(1, 5), (1, 15)]), Course::Drop);
    }

    #[test]
    fn nobody_is_cut_off_for_one_where_others_would_be_late_for_it() {
        // One could be served alone, and then none of the others.
        let waiting: Vec<_> = [(1, 12)].into_iter().chain((0..7).map(|_| (1, 20))).collect();
        assert_ne!(course(8, 8, &waiting), Course::Cut { jobs: 1, extent: Extent::of_rows(1) });
    }
}

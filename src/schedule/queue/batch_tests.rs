//! Jobs of several shapes beside each other, those that run alone, and batches that are held to a budget.

use super::*;
use crate::{
    call::{Identity, Scope},
    schedule::{
        BatchPolicy, Cost, Priorities, Verdict, WhenLate,
        testing::{self, Receiver},
    },
};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};

const MS: Duration = Duration::from_millis(1);

fn policy() -> BatchPolicy {
    BatchPolicy { enabled: true, max_rows: 8, max_queue: 64, max_delay: 100 * MS, ..BatchPolicy::default() }
}

/// A job of `rows` rows of `width` elements, all of them `mark`, that came at `now` and has so many milliseconds.
fn wide(rows: usize, width: usize, mark: usize, now: Instant, patience: u32) -> (Job, Receiver) {
    let (mut job, receiver) = testing::job_at(rows, 0.0, now, patience * MS);
    job.inputs = [testing::tensor(rows, width, mark as f32)].into();
    (job, receiver)
}

fn marks(verdict: Verdict) -> Vec<usize> {
    match verdict {
        Verdict::Run(jobs) => jobs.iter().map(|job| testing::mark(&job.inputs[0]) as usize).collect(),
        Verdict::Wait(_) => Vec::new(),
    }
}

fn all(queue: &mut BatchQueue, now: Instant) -> Vec<Vec<usize>> {
    std::iter::from_fn(|| Some(marks(queue.next(now, 1))).filter(|marks| !marks.is_empty())).collect()
}

#[test]
fn a_job_of_another_shape_does_not_wait_behind_one_that_waits_for_others() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let (first, _first) = wide(1, 16, 1, now, 60_000);
    let (other, mut waits) = wide(1, 32, 2, now + MS, 50);
    queue.push(first).unwrap();
    queue.push(other).unwrap();
    // Half of its time.
    let due = now + 26 * MS;
    assert!(matches!(queue.next(now + MS, 1), Verdict::Wait(Some(until)) if until == due));
    assert_eq!(marks(queue.next(due, 1)), [2]);
    assert!(waits.try_recv().is_err());
    assert!(matches!(queue.next(due, 1), Verdict::Wait(Some(until)) if until == now + 100 * MS));
    assert_eq!(marks(queue.next(now + 100 * MS, 1)), [1]);
}

#[test]
fn a_full_batch_of_another_shape_runs_at_once_and_leaves_the_others_in_their_order() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let jobs = [(1, 4), (4, 5), (1, 4), (1, 6), (4, 5), (1, 5)];
    let _receivers: Vec<_> = (0..)
        .zip(jobs)
        .map(|(mark, (rows, width))| {
            let (job, receiver) = wide(rows, width, mark, now, 60_000);
            queue.push(job).unwrap();
            receiver
        })
        .collect();
    assert_eq!(all(&mut queue, now), [[1, 4]]);
    assert_eq!(all(&mut queue, now + 100 * MS), [vec![0, 2], vec![3], vec![5]]);
}

#[test]
fn of_two_that_are_due_the_one_of_the_higher_level_runs_first() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { priorities: Priorities::new(3, None), ..policy() });
    let jobs = [(4, 3, 50), (5, 2, 50), (6, 1, 60_000)];
    let _receivers: Vec<_> = (0..)
        .zip(jobs)
        .map(|(mark, (width, priority, patience))| {
            let (job, receiver) = wide(1, width, mark, now, patience);
            queue.push(Job { priority, ..job }).unwrap();
            receiver
        })
        .collect();
    assert_eq!(all(&mut queue, now + 25 * MS), [[1], [0]]);
    assert_eq!(all(&mut queue, now + 100 * MS), [[2]]);
}

#[test]
fn however_many_shapes_wait_nobody_waits_for_too_long() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let mut receivers = Vec::new();
    for mark in 0..3 * FORMING {
        let (job, receiver) = wide(1, 4 + mark, mark, now, 60_000);
        queue.push(job).unwrap();
        receivers.push(receiver);
    }
    // Behind all of them, one that is urgent, and one of its shape before it.
    for (mark, patience) in [(90, 60_000), (91, 40)] {
        let (job, receiver) = wide(1, 99, mark, now, patience);
        queue.push(job).unwrap();
        receivers.push(receiver);
    }
    assert!(matches!(queue.next(now, 1), Verdict::Wait(Some(until)) if until == now + 20 * MS));
    assert_eq!(all(&mut queue, now + 20 * MS), [[90, 91]]);
}

#[test]
fn nobody_waits_any_more_in_a_queue_that_is_closing() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let mut receivers = Vec::new();
    for (mark, width, patience) in [(1, 4, 60_000), (2, 5, 3), (3, 4, 60_000)] {
        let (job, receiver) = wide(1, width, mark, now, patience);
        queue.push(job).unwrap();
        receivers.push(receiver);
    }
    assert!(all(&mut queue, now).is_empty());
    queue.close();
    assert_eq!(all(&mut queue, now), [vec![1, 3], vec![2]]);
}

#[test]
fn a_job_that_runs_alone_waits_for_nobody() {
    let now = Instant::now();
    for company in [Company::Hurried, Company::Alone] {
        let mut queue = BatchQueue::new(policy());
        let (job, _receiver) = wide(1, 4, 1, now, 60_000);
        queue.push(Job { company, ..job }).unwrap();
        assert_eq!(marks(queue.next(now, 1)), [1], "{company:?}");
    }
}

#[test]
fn what_is_not_done_soon_is_the_last_of_all_whoever_sent_it_and_whatever_its_level() {
    let now = Instant::now();
    let policy = BatchPolicy {
        enabled: false,
        priorities: Priorities::new(2, None),
        // Its time in the queue is not what it has run for.
        timeout: Some(10 * MS),
        when_late: WhenLate::Reject,
        ..policy()
    };
    let mut queue = BatchQueue::new(policy);
    let send = |queue: &mut BatchQueue, mark, identity: &str, priority, company, queued| {
        let (job, receiver) = wide(1, 4, mark, queued, 60_000);
        job.facts.identity.set(Arc::new(Identity::proven(identity, Vec::new(), Scope::Granted))).unwrap();
        queue.push(Job { priority, company, ..job }).unwrap();
        receiver
    };
    let later = now + 20 * MS;
    let _receivers = [
        send(&mut queue, 1, "other", 1, Company::Any, later),
        send(&mut queue, 2, "other", 1, Company::Any, later),
        send(&mut queue, 0, "own", 1, Company::Alone, now),
        send(&mut queue, 3, "own", 2, Company::Any, later),
        send(&mut queue, 4, "other", 2, Company::Any, later),
        send(&mut queue, 5, "own", 1, Company::Any, later),
    ];
    // Nor does it keep those back who sent it.
    assert_eq!(all(&mut queue, later), [[1], [5], [2], [3], [4], [0]]);
}

#[test]
fn what_is_not_done_soon_does_not_run_while_others_wait_for_company() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let (alone, _alone) = wide(1, 4, 1, now, 60_000);
    let (waits, _waits) = wide(1, 4, 2, now, 60_000);
    queue.push(Job { company: Company::Alone, ..alone }).unwrap();
    queue.push(waits).unwrap();
    assert!(all(&mut queue, now).is_empty());
    assert_eq!(all(&mut queue, now + 100 * MS), [[2], [1]]);
}

#[test]
fn a_batch_ends_before_it_takes_longer_than_the_budget_by_its_bytes() {
    let now = Instant::now();
    let cost = Arc::new(Cost::default());
    // A millisecond for each KiB.
    (0..12).for_each(|size| cost.learn_by_bytes(1, 1).seed(1 << size, MS * (1 << size) / 1024));
    for (budget, batches) in [
        (Some(4 * MS), vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7]]),
        (Some(3 * MS), vec![vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]),
        // One runs in any case.
        (Some(MS / 2), (0..8).map(|job| vec![job]).collect()),
        (None, vec![(0..8).collect()]),
    ] {
        let policy = BatchPolicy { max_delay: Duration::ZERO, even: false, ..policy() };
        let mut queue = BatchQueue::with_cost(policy, Arc::clone(&cost));
        if let Some(budget) = budget {
            queue = queue.within(budget);
        }
        let _receivers: Vec<_> = (0..8)
            .map(|mark| {
                let (job, receiver) = wide(1, 256, mark, now, 60_000);
                queue.push(job).unwrap();
                receiver
            })
            .collect();
        assert_eq!(all(&mut queue, now), batches, "{budget:?}");
    }
}

proptest! {
    /// What `ready` may say, by looking at every job and its shape.
    #[test]
    fn an_idle_instance_waits_only_while_no_shape_is_full_or_due(
        // Rows, width, milliseconds that it has, when it came, level.
        jobs in prop::collection::vec((1..5_usize, 4..20_usize, 1..300_u32, 0..40_u32, 1..3_u32), 1..50),
        at in 40..120_u32,
    ) {
        let now = Instant::now();
        let mut queue = BatchQueue::new(BatchPolicy { priorities: Priorities::new(2, None), ..policy() });
        let mut waiting: Vec<Option<(usize, usize, u32)>> = Vec::new();
        let mut receivers = Vec::new();
        for (mark, (rows, width, patience, came, priority)) in jobs.iter().copied().enumerate() {
            let (job, receiver) = wide(rows, width, mark, now + came * MS, patience);
            queue.push(Job { priority, ..job }).unwrap();
            receivers.push(receiver);
            let is_late = came + patience <= at;
            waiting.push((!is_late).then_some((rows, width, came * 2 + patience.min(200))));
        }
        while let Verdict::Run(batch) = queue.next(now + at * MS, 1) {
            let batch = marks(Verdict::Run(batch));
            let width = jobs[batch[0]].1;
            let members: Vec<_> = batch.iter().map(|mark| waiting[*mark].take().unwrap()).collect();
            let rows: usize = members.iter().map(|(rows, ..)| rows).sum();
            prop_assert!(rows <= 8 && members.iter().all(|(_, of, _)| *of == width));
            let left: usize = waiting.iter().flatten().filter(|(_, of, _)| *of == width).map(|(rows, ..)| rows).sum();
            // Full, or due; half milliseconds, so that halves are whole.
            prop_assert!(rows + left >= 8 || members.iter().any(|(.., due)| *due <= 2 * at));
        }
        for (_, width, due) in waiting.iter().flatten() {
            prop_assert!(*due > 2 * at, "{width} wide is due");
            let alike = waiting.iter().flatten().filter(|(_, of, _)| of == width);
            let shapes: std::collections::BTreeSet<_> = waiting.iter().flatten().map(|(_, of, _)| of).collect();
            let rows: usize = alike.map(|(rows, ..)| rows).sum();
            prop_assert!(rows < 8 || shapes.len() > FORMING);
        }
    }
}

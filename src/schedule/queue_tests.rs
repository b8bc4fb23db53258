//! The rules of batching as tables, and what must hold for every history as properties.

use super::*;
use crate::schedule::{
    Preferred, Priorities,
    testing::{self, Receiver},
};
use proptest::prelude::*;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn policy() -> BatchPolicy {
    BatchPolicy { enabled: true, max_rows: 8, max_queue: 16, ..BatchPolicy::default() }
}

fn fill(queue: &mut BatchQueue, now: Instant, rows: &[usize]) -> Vec<Receiver> {
    rows.iter()
        .map(|rows| {
            let (job, receiver) = testing::job_at(*rows, 0.0, now, Duration::from_secs(1));
            queue.push(job).unwrap();
            receiver
        })
        .collect()
}

fn rows(verdict: Verdict) -> Option<Vec<usize>> {
    match verdict {
        Verdict::Run(jobs) => Some(jobs.iter().map(|job| job.rows).collect()),
        Verdict::Wait(_) => None,
    }
}

#[test]
fn an_idle_instance_runs_at_once_what_is_there() {
    // (rows of the jobs that wait, batches that come out)
    let table: [(&[usize], &[&[usize]]); 6] = [
        (&[1], &[&[1]]),
        (&[1, 1, 1], &[&[1, 1, 1]]),
        (&[4, 4, 1], &[&[4, 4], &[1]]),
        (&[5, 4, 1], &[&[5], &[4, 1]]),
        (&[20, 1], &[&[20], &[1]]),
        (&[1, 20, 1], &[&[1], &[20], &[1]]),
    ];
    let now = Instant::now();
    for (waiting, batches) in table {
        let mut queue = BatchQueue::new(policy());
        let _receivers = fill(&mut queue, now, waiting);
        for batch in batches {
            assert_eq!(rows(queue.next(now, 1)).as_deref(), Some(*batch), "{waiting:?}");
        }
        assert!(matches!(queue.next(now, 1), Verdict::Wait(None)));
    }
}

#[test]
fn without_batching_jobs_run_one_by_one() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { enabled: false, ..policy() });
    let _receivers = fill(&mut queue, now, &[1, 1]);
    assert_eq!(rows(queue.next(now, 1)), Some(vec![1]));
    assert_eq!(rows(queue.next(now, 1)), Some(vec![1]));
}

#[test]
fn without_an_idle_instance_nothing_runs() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let _receivers = fill(&mut queue, now, &[1]);
    assert!(matches!(queue.next(now, 0), Verdict::Wait(None)));
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_delay_waits_for_more_rows_until_the_oldest_is_due() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { max_delay: 5 * MS, ..policy() });
    let _first = fill(&mut queue, now, &[1]);
    assert!(matches!(queue.next(now, 1), Verdict::Wait(Some(due)) if due == now + 5 * MS));
    let _second = fill(&mut queue, now + MS, &[1]);
    assert!(matches!(queue.next(now + 4 * MS, 1), Verdict::Wait(Some(due)) if due == now + 5 * MS));
    assert_eq!(rows(queue.next(now + 5 * MS, 1)), Some(vec![1, 1]));
}

#[test]
fn a_full_batch_does_not_wait() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { max_delay: 5 * MS, ..policy() });
    let _receivers = fill(&mut queue, now, &[4, 4]);
    assert_eq!(rows(queue.next(now, 1)), Some(vec![4, 4]));
}

#[test]
fn waiting_for_a_batch_takes_at_most_half_of_a_jobs_time() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { max_delay: Duration::from_secs(9), ..policy() });
    let (job, _receiver) = testing::job_at(1, 0.0, now, 10 * MS);
    queue.push(job).unwrap();
    assert!(matches!(queue.next(now, 1), Verdict::Wait(Some(due)) if due == now + 5 * MS));
    assert_eq!(rows(queue.next(now + 5 * MS, 1)), Some(vec![1]));
}

#[test]
fn jobs_of_another_shape_stay_in_their_order() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let mut receivers = Vec::new();
    for (width, mark) in [(4, 1.0), (5, 2.0), (4, 3.0), (5, 4.0)] {
        let (mut job, receiver) = testing::job_at(1, 0.0, now, Duration::from_secs(1));
        job.inputs = [testing::tensor(1, width, mark)].into();
        queue.push(job).unwrap();
        receivers.push(receiver);
    }
    let marks = |verdict| match verdict {
        Verdict::Run(jobs) => jobs.iter().map(|job| testing::mark(&job.inputs[0])).collect::<Vec<_>>(),
        Verdict::Wait(_) => Vec::new(),
    };
    assert_eq!(marks(queue.next(now, 1)), [1.0, 3.0]);
    assert_eq!(marks(queue.next(now, 1)), [2.0, 4.0]);
}

#[test]
fn a_higher_level_goes_first_and_one_level_is_the_order_of_arrival() {
    let now = Instant::now();
    // (levels, default, what the jobs ask for, the order in which they run)
    type Row<'a> = (u32, Option<u32>, &'a [u32], &'a [usize]);
    let table: [Row<'_>; 5] = [
        (1, None, &[0, 3, 1, 2], &[0, 1, 2, 3]),
        (3, None, &[0, 3, 1, 2, 1], &[2, 4, 3, 0, 1]),
        (3, Some(1), &[2, 0, 1, 0], &[1, 2, 3, 0]),
        (2, None, &[9, 1, 2, u32::MAX], &[1, 0, 2, 3]),
        (2, Some(2), &[1, 1, 1], &[0, 1, 2]),
    ];
    for (levels, default, asked, order) in table {
        let priorities = Priorities::new(levels, default);
        let mut queue = BatchQueue::new(BatchPolicy { enabled: false, priorities, ..policy() });
        let mut receivers = Vec::new();
        for (mark, priority) in asked.iter().enumerate() {
            let (job, receiver) = testing::job_at(1, mark as f32, now, Duration::from_secs(1));
            queue.push(Job { priority: *priority, ..job }).unwrap();
            receivers.push(receiver);
        }
        let mut ran = Vec::new();
        while let Verdict::Run(jobs) = queue.next(now, 1) {
            ran.extend(jobs.iter().map(|job| testing::mark(&job.inputs[0]) as usize));
        }
        assert_eq!(ran, order, "{levels} levels, {asked:?}");
    }
}

#[test]
fn levels_are_at_least_one_and_hold_their_default() {
    assert_eq!(Priorities::new(0, None), Priorities::default());
    assert_eq!(Priorities::new(2, Some(7)).level(0), 2);
    assert_eq!(Priorities::new(2, Some(0)).level(0), 1);
}

#[test]
fn a_late_job_hears_so_and_does_not_run() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(policy());
    let mut receivers = fill(&mut queue, now, &[1]);
    assert!(matches!(queue.next(now + Duration::from_secs(1), 1), Verdict::Wait(None)));
    let answer = receivers[0].try_recv().unwrap();
    assert!(matches!(answer, Err(Error::DeadlineExceeded { stage: Stage::Queued })));
}

#[test]
fn an_abandoned_job_neither_runs_nor_takes_room() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { max_queue: 1, ..policy() });
    drop(fill(&mut queue, now, &[1]));
    let _second = fill(&mut queue, now, &[2]);
    assert_eq!(rows(queue.next(now, 1)), Some(vec![2]));
}

#[test]
fn a_full_queue_gives_the_job_back() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { max_queue: 1, ..policy() });
    let _first = fill(&mut queue, now, &[1]);
    let (job, _second) = testing::job_at(3, 0.0, now, MS);
    assert_eq!(queue.push(job).unwrap_err().rows, 3);
}

#[test]
fn a_full_queue_is_searched_for_the_abandoned_now_and_then_and_not_for_each_that_it_refuses() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { max_queue: 3, ..policy() });
    let mut receivers = fill(&mut queue, now, &[1, 2, 3]);
    let mut offer = |at: Instant| {
        let (job, receiver) = testing::job_at(1, 0.0, at, Duration::from_secs(1));
        queue.push(job).is_ok().then_some(receiver)
    };
    assert!(offer(now).is_none());
    receivers.remove(0);
    assert!(offer(now + PURGE - MS).is_none());
    let fourth = offer(now + PURGE).unwrap();
    // The very last costs no search.
    let fifth = offer(now + 2 * PURGE);
    assert!(fifth.is_none());
    drop(fourth);
    assert!(offer(now + 2 * PURGE).is_some());
}

#[test]
fn a_queue_that_became_empty_by_itself_is_not_slow() {
    let now = Instant::now();
    let mut queue = BatchQueue::new(BatchPolicy { enabled: false, queue_delay: Some(10 * MS), ..policy() });
    let receivers = fill(&mut queue, now, &[1, 1, 1]);
    for at in [20, 200] {
        assert!(rows(queue.next(now + at * MS, 1)).is_some());
    }
    let later = now + 201 * MS;
    assert!(queue.is_slow(later));
    drop(receivers);
    assert!(matches!(queue.next(later, 1), Verdict::Wait(None)));
    let _receivers = fill(&mut queue, later, &[1]);
    assert!(!queue.is_slow(later));
}

#[test]
fn a_batch_leaves_with_the_largest_preferred_size_that_it_reaches() {
    let now = Instant::now();
    // (preferred, rows that wait, whether the delay is over, batches that come out)
    type Row<'a> = (&'a [usize], &'a [usize], bool, &'a [&'a [usize]]);
    let table: [Row<'_>; 8] = [
        (&[2, 4], &[1], false, &[]),
        (&[2, 4], &[1], true, &[&[1]]),
        (&[2, 4], &[1, 1], false, &[&[1, 1]]),
        (&[2, 4], &[1, 1, 1], false, &[&[1, 1]]),
        (&[2, 4], &[1, 1, 1, 1, 1, 1, 1], true, &[&[1, 1, 1, 1], &[1, 1], &[1]]),
        // Sizes that nobody makes up are no reason to leave jobs behind.
        (&[4], &[3, 3], true, &[&[3, 3]]),
        (&[4], &[3, 3, 3], false, &[&[3, 3]]),
        (&[4], &[1, 3, 5], true, &[&[1, 3], &[5]]),
    ];
    for (preferred, waiting, is_over, batches) in table {
        let preferred = Preferred::new(preferred.iter().copied());
        let mut queue = BatchQueue::new(BatchPolicy { preferred, max_delay: 5 * MS, ..policy() });
        let _receivers = fill(&mut queue, now, waiting);
        let now = if is_over { now + 5 * MS } else { now };
        for batch in batches {
            assert_eq!(rows(queue.next(now, 1)).as_deref(), Some(*batch), "{preferred:?} {waiting:?}");
        }
        if is_over || batches.is_empty() {
            assert!(matches!(queue.next(now, 1), Verdict::Wait(_)));
        }
    }
}

#[test]
fn who_waited_for_too_long_is_refused_or_goes_behind_the_others() {
    let now = Instant::now();
    let one_by_one = BatchPolicy { enabled: false, timeout: Some(10 * MS), ..policy() };
    let marks = |queue: &mut BatchQueue, now: Instant| -> Vec<usize> {
        std::iter::from_fn(|| match queue.next(now, 1) {
            Verdict::Run(jobs) => Some(testing::mark(&jobs[0].inputs[0]) as usize),
            Verdict::Wait(_) => None,
        })
        .collect()
    };
    let filled = |when_late: WhenLate, levels: u32| {
        let priorities = Priorities::new(levels, None);
        let mut queue = BatchQueue::new(BatchPolicy { when_late, priorities, ..one_by_one });
        // (when it came, its level)
        let jobs = [(0, 2), (1, 2), (5, 2), (6, 1)];
        let receivers: Vec<_> = (0..)
            .zip(jobs)
            .map(|(mark, (came, priority))| {
                let (job, receiver) = testing::job_at(1, mark as f32, now + came * MS, Duration::from_millis(100));
                queue.push(Job { priority, ..job }).unwrap();
                receiver
            })
            .collect();
        (queue, receivers)
    };
    let (mut queue, mut receivers) = filled(WhenLate::Reject, 1);
    assert_eq!(marks(&mut queue, now + 11 * MS), [2, 3]);
    for refused in [0, 1] {
        let error = receivers[refused].try_recv().unwrap().unwrap_err();
        assert!(matches!(error, Error::Overloaded { limit: crate::error::Limit::QueueTimeout }), "{error:?}");
    }
    let (mut queue, _receivers) = filled(WhenLate::Delay, 1);
    assert_eq!(marks(&mut queue, now + 11 * MS), [2, 3, 0, 1]);
    let (mut queue, _receivers) = filled(WhenLate::Delay, 2);
    assert_eq!(marks(&mut queue, now + 11 * MS), [3, 2, 0, 1], "behind those of its level, before those of lower ones");
    // Its deadline holds all the same, and those who come later do not wait behind it.
    let (mut queue, mut receivers) = filled(WhenLate::Delay, 1);
    assert!(matches!(queue.next(now + 11 * MS, 0), Verdict::Wait(None)));
    let (late, _receiver) = testing::job_at(1, 4., now + 12 * MS, Duration::from_secs(1));
    queue.push(late).unwrap();
    assert_eq!(marks(&mut queue, now + 12 * MS), [2, 3, 4, 0, 1]);
    let (mut queue, mut more) = filled(WhenLate::Delay, 1);
    receivers.append(&mut more);
    assert!(marks(&mut queue, now + 200 * MS).is_empty());
    assert!(matches!(receivers[4].try_recv(), Ok(Err(Error::DeadlineExceeded { stage: Stage::Queued }))));
}

#[test]
fn waiting_for_a_batch_does_not_wait_for_the_timeout() {
    let now = Instant::now();
    let policy = BatchPolicy { max_delay: 50 * MS, timeout: Some(10 * MS), ..policy() };
    let mut queue = BatchQueue::new(policy);
    let _receiver = fill(&mut queue, now, &[1]);
    assert!(matches!(queue.next(now, 1), Verdict::Wait(Some(due)) if due == now + 5 * MS));
    assert_eq!(rows(queue.next(now + 5 * MS, 1)), Some(vec![1]));
}

/// One thing that happens to a queue.
#[derive(Clone, Copy, Debug)]
enum Event {
    Push { rows: usize, width: usize, patience: u64, priority: u32 },
    Abandon(usize),
    Pass(u64),
    Next { idle: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..12_usize, 1..4_usize, 1..40_u64, 0..4_u32)
            .prop_map(|(rows, width, patience, priority)| Event::Push { rows, width, patience, priority }),
        1 => (0..64_usize).prop_map(Event::Abandon),
        2 => (0..8_u64).prop_map(Event::Pass),
        3 => (0..2_usize).prop_map(|idle| Event::Next { idle }),
    ]
}

proptest! {
    #[test]
    fn in_order_nobody_is_overtaken_by_whoever_came_later(
        // Rows, and the width, by which jobs may lie together or not.
        waiting in prop::collection::vec((1..9_usize, 4..6_usize), 1..40),
        preferred in prop::collection::vec(1..9_usize, 0..3),
        max_delay in 0..3_u32,
        cost in prop::option::of((0..10_u32, 0..4_u32)),
        together in 1..6_usize,
    ) {
        let (now, mut out) = (Instant::now(), Vec::new());
        let learnt = Arc::new(Cost::default());
        for rows in [1, 2, 4, 8] {
            cost.iter().for_each(|(fixed, each)| learnt.seed(rows, MS * (fixed + each * rows as u32)));
        }
        let preferred = Preferred::new(preferred);
        let policy = BatchPolicy { preserve_order: true, preferred, max_delay: MS * max_delay, max_queue: 64, ..policy() };
        let mut queue = BatchQueue::with_cost(policy, learnt);
        let mut receivers = Vec::new();
        let mut take = |queue: &mut BatchQueue| {
            if let Verdict::Run(jobs) = queue.next(now + MS * max_delay, 1) {
                out.extend(jobs.iter().map(|job| testing::mark(&job.inputs[0]) as usize));
            }
        };
        for (at, (rows, width)) in waiting.iter().enumerate() {
            let (mut job, receiver) = testing::job_at(*rows, 0.0, now, Duration::from_secs(600));
            job.inputs = [testing::tensor(*rows, *width, at as f32)].into();
            queue.push(job).unwrap();
            receivers.push(receiver);
            if at % together == 0 {
                take(&mut queue);
            }
        }
        while !queue.is_empty() {
            take(&mut queue);
        }
        prop_assert_eq!(out, (0..waiting.len()).collect::<Vec<_>>());
    }

    #[test]
    fn no_job_is_lost_run_twice_run_late_or_run_for_nobody(
        events in prop::collection::vec(event(), 1..120),
        max_delay in 0..6_u64,
        enabled: bool,
        levels in 1..3_u32,
        preferred in prop::collection::vec(1..9_usize, 0..3),
        timeout in prop::option::of(1..20_u64),
        delays: bool,
        // Milliseconds of a batch, and of each row in it.
        cost in prop::option::of((0..10_u32, 0..4_u32)),
    ) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let when_late = if delays { WhenLate::Delay } else { WhenLate::Reject };
        let policy = BatchPolicy {
            enabled,
            max_delay: Duration::from_millis(max_delay),
            priorities: Priorities::new(levels, None),
            preferred: Preferred::new(preferred),
            timeout: timeout.map(Duration::from_millis),
            when_late,
            ..policy()
        };
        let learnt = Arc::new(Cost::default());
        for rows in [1, 2, 4, 8] {
            cost.iter().for_each(|(fixed, each)| learnt.seed(rows, MS * (fixed + each * rows as u32)));
        }
        let mut queue = BatchQueue::with_cost(policy, learnt);
        let mut now = 0;
        let mut receivers: Vec<Option<Receiver>> = Vec::new();
        let mut fate: Vec<Option<&str>> = Vec::new();
        for event in events {
            match event {
                Event::Push { rows, width, patience, priority } => {
                    let (mut job, receiver) = testing::job_at(rows, 0.0, at(now), Duration::from_millis(patience));
                    job.inputs = [testing::tensor(rows, width, receivers.len() as f32)].into();
                    job.priority = priority;
                    let accepted = queue.push(job).is_ok();
                    receivers.push(accepted.then_some(receiver));
                    fate.push((!accepted).then_some("refused"));
                }
                Event::Abandon(which) => {
                    if let Some(slot @ Some(_)) = receivers.get_mut(which) {
                        *slot = None;
                        fate[which].get_or_insert("abandoned");
                    }
                }
                Event::Pass(ms) => now += ms,
                Event::Next { idle } => match queue.next(at(now), idle) {
                    Verdict::Wait(due) => prop_assert!(due.is_none_or(|due| due > at(now))),
                    Verdict::Run(jobs) => {
                        prop_assert!(idle > 0 && !jobs.is_empty());
                        let rows: usize = jobs.iter().map(|job| job.rows).sum();
                        prop_assert!(jobs.len() == 1 || (enabled && rows <= policy.max_rows));
                        let marks: Vec<_> = jobs.iter().map(|job| testing::mark(&job.inputs[0]) as usize).collect();
                        let order: Vec<_> = jobs.iter().zip(&marks).map(|(job, mark)| (job.priority, *mark)).collect();
                        // Who was sent behind the others keeps its level.
                        prop_assert!(order.is_sorted() || (delays && order.is_sorted_by_key(|(level, _)| level)));
                        let expired = |job: &Job| timeout.is_some_and(|timeout| at(now) >= job.queued + Duration::from_millis(timeout));
                        prop_assert!(delays || !jobs.iter().any(expired));
                        for (job, mark) in jobs.iter().zip(marks) {
                            prop_assert!(job.is_compatible(&jobs[0]));
                            prop_assert!(at(now) < job.deadline);
                            prop_assert_eq!(fate[mark].replace("run"), None);
                        }
                        queue.recycle(jobs);
                    }
                },
            }
            prop_assert!(queue.len() <= policy.max_queue);
        }
        // Far in the future all that is left is late; whoever waits for it hears so.
        prop_assert!(matches!(queue.next(at(now + 1_000_000), 1), Verdict::Wait(None)));
        prop_assert!(queue.is_empty());
        for (receiver, fate) in receivers.iter_mut().zip(&fate) {
            if let (Some(receiver), None) = (receiver, fate) {
                // Late, or the last of a full queue when somebody came who goes first.
                let heard =
                    matches!(receiver.try_recv(), Ok(Err(Error::DeadlineExceeded { .. } | Error::Overloaded { .. })));
                prop_assert!(heard);
            }
        }
    }
}

//! Who is waited for, played through with a clock of its own: callers in loops, callers who come as they like, and one alone.

use super::*;
use crate::schedule::{
    BatchPolicy, BatchQueue, Verdict,
    testing::{self, Receiver},
};
use std::sync::Arc;

const MS: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);
const PATIENT: Duration = Duration::from_secs(600);

fn policy() -> BatchPolicy {
    BatchPolicy { enabled: true, rejoin: true, max_rows: 64, max_queue: 10_000, ..BatchPolicy::default() }
}

/// Some time for a run, whatever it has, and some for each row.
fn affine(rows: usize) -> Duration {
    4 * MS + MS * rows as u32 / 4
}

/// A run costs its rows and nothing besides.
fn linear(rows: usize) -> Duration {
    MS * rows as u32 / 4
}

type Model = fn(usize) -> Duration;

fn cost(model: Model) -> Arc<Cost> {
    let cost = Cost::default();
    (0..7).for_each(|group| cost.seed(1 << group, model(1 << group)));
    Arc::new(cost)
}

/// What has become of a history.
#[derive(Debug, Default)]
struct Played {
    /// Rows of each batch.
    batches: Vec<usize>,
    over: Duration,
    /// From each call to its answer, all together.
    waited: Duration,
}

impl Played {
    fn rows(&self) -> usize {
        self.batches.iter().sum()
    }

    /// Rows in a second.
    fn rate(&self) -> f64 {
        self.rows() as f64 / self.over.as_secs_f64()
    }

    fn mean(&self) -> Duration {
        self.waited / self.rows() as u32
    }
}

/// One instance that runs what its queue says until `rows` have run. Callers come at `first`; one who was answered comes again
/// after `back`, which is told which of those of its batch it was.
fn play(
    policy: BatchPolicy,
    model: Model,
    first: impl IntoIterator<Item = Duration>,
    mut back: impl FnMut(usize) -> Option<Duration>,
    rows: usize,
) -> Played {
    let (start, cost) = (Instant::now(), cost(model));
    let mut queue = BatchQueue::with_cost(policy, Arc::clone(&cost));
    let mut played = Played::default();
    let mut coming: Vec<Duration> = first.into_iter().collect();
    let mut kept: Vec<Receiver> = Vec::new();
    let (mut now, mut due, mut is_told) = (Duration::ZERO, None, true);
    let mut come = |queue: &mut BatchQueue, coming: &mut Vec<Duration>, now: Duration| {
        coming.sort_unstable();
        let come = coming.partition_point(|at| *at <= now);
        let mut is_told = false;
        for at in coming.drain(..come) {
            let (job, receiver) = testing::job_at(1, 0., start + at, PATIENT);
            queue.push(job).unwrap();
            kept.push(receiver);
            is_told |= queue.is_news();
        }
        is_told
    };
    loop {
        is_told |= come(&mut queue, &mut coming, now);
        // A thread sleeps until it is told of somebody, or until the time that it was given.
        if is_told || due.is_some_and(|due| due <= now) {
            is_told = false;
            match queue.next(start + now, 1) {
                Verdict::Run(jobs) => {
                    now += model(jobs.len());
                    cost.observe(jobs.len(), model(jobs.len()));
                    played.waited += jobs.iter().map(|job| start + now - job.queued).sum::<Duration>();
                    played.batches.push(jobs.len());
                    // Those who came while it ran are there before anybody is answered.
                    come(&mut queue, &mut coming, now);
                    coming.extend((0..jobs.len()).filter_map(|place| Some(now + back(place)?)));
                    queue.ran(start + now, (jobs.len(), jobs.len()));
                    (due, is_told) = (None, true);
                    if played.rows() >= rows {
                        return Played { over: now, ..played };
                    }
                    continue;
                }
                Verdict::Wait(until) => due = until.map(|until| until - start),
            }
        }
        let next = due.into_iter().chain(coming.iter().min().copied()).min();
        let Some(next) = next else { return Played { over: now, ..played } };
        now = now.max(next);
    }
}

/// So many callers in loops, of whom each comes back some time after the one before it.
fn loops(policy: BatchPolicy, model: Model, callers: usize, each: Duration) -> Played {
    // Not all at once: else they would be together from the start.
    let first = (0..callers).map(|caller| MS * caller as u32 / 2);
    play(policy, model, first, |place| Some(100 * US + each * place as u32), 200 * callers)
}

#[test]
fn callers_in_loops_run_together_where_a_run_costs_much_whatever_it_has() {
    for callers in [2, 7, 40, 64] {
        let split = loops(BatchPolicy { rejoin: false, ..policy() }, affine, callers, 10 * US);
        let joined = loops(policy(), affine, callers, 10 * US);
        let late = &joined.batches[20..];
        assert!(late.iter().all(|rows| *rows == callers), "{callers}: {late:?}");
        assert!(joined.rate() > 1.15 * split.rate(), "{callers}: {} to {}", joined.rate(), split.rate());
        assert!(joined.mean() < split.mean(), "{callers}: {:?} to {:?}", joined.mean(), split.mean());
    }
}

#[test]
fn one_caller_never_waits_for_anybody() {
    let alone = loops(policy(), affine, 1, Duration::ZERO);
    assert_eq!(alone.mean(), affine(1));
}

#[test]
fn nobody_waits_where_nothing_is_saved_by_it() {
    let (with, without) =
        [policy(), BatchPolicy { rejoin: false, ..policy() }].map(|policy| loops(policy, linear, 40, 10 * US)).into();
    assert_eq!(with.batches, without.batches);
    assert_eq!(with.over, without.over);
}

#[test]
fn the_one_who_is_left_of_two_waits_once() {
    let mut answers = 0;
    let back = |_| {
        answers += 1;
        // From then on every other answer is the last one of its caller; there are two of them.
        (answers != 101).then_some(100 * US)
    };
    let played = play(policy(), affine, [Duration::ZERO, MS], back, 200);
    let both = played.batches.iter().filter(|rows| **rows == 2).count();
    let alone = played.batches.len() - both;
    // Two runs before they were together, at most, and then one alone after the other had left.
    assert!((45..=51).contains(&both), "{:?}", played.batches);
    let least = affine(2) * both as u32 + affine(1) * alone as u32 + 100 * US * played.batches.len() as u32;
    assert!(played.over < least + affine(1), "{:?} {least:?}", played.over);
}

#[test]
fn who_comes_back_too_late_is_waited_for_ever_more_rarely() {
    // Each takes longer to come back than a run could save.
    let back = |_| Some(7 * MS);
    let first = || (0..32).map(|caller| MS * caller / 2);
    let without = play(BatchPolicy { rejoin: false, ..policy() }, affine, first(), back, 32_000);
    let with = play(policy(), affine, first(), back, 32_000);
    assert!(with.rate() > 0.99 * without.rate(), "{} to {}", with.rate(), without.rate());
}

/// So many jobs of a row each, who have time.
fn here(jobs: usize, now: Instant) -> Here {
    Here { jobs, rows: jobs, room: 64, urgent: now + PATIENT }
}

#[test]
fn the_wait_is_as_long_as_they_usually_take_and_no_longer() {
    let (mut rejoin, cost, start) = (Rejoin::default(), cost(affine), Instant::now());
    let ask = |rejoin: &mut Rejoin, jobs: usize, now: Instant| rejoin.until(here(jobs, start), &cost, now);
    rejoin.ran(start, (4, 4), (4, 4));
    assert_eq!(ask(&mut rejoin, 4, start), Some(start + 4 * MS), "what a second run costs whatever it has");
    assert_eq!(ask(&mut rejoin, 8, start + MS), None);
    rejoin.ran(start, (8, 8), (0, 0));
    assert_eq!(ask(&mut rejoin, 1, start), Some(start + 2 * MS), "twice what it took");
    assert_eq!(ask(&mut rejoin, 7, start + 2 * MS), None);
    rejoin.ran(start, (8, 8), (0, 0));
    assert_eq!(ask(&mut rejoin, 1, start), None, "without trust");
}

#[test]
fn who_is_back_is_told_by_calls_and_not_by_their_rows() {
    let (cost, start) = (cost(affine), Instant::now());
    // One caller, who sends fewer rows than before.
    let mut rejoin = Rejoin::default();
    rejoin.ran(start, (1, 8), (0, 0));
    assert_eq!(rejoin.until(Here { rows: 4, ..here(1, start) }, &cost, start), None);
    // Two, of whom one sends more than both did.
    let mut rejoin = Rejoin::default();
    rejoin.ran(start, (2, 8), (0, 0));
    assert!(rejoin.until(Here { rows: 20, ..here(1, start) }, &cost, start).is_some());
    assert_eq!(rejoin.until(Here { rows: 21, ..here(2, start) }, &cost, start), None);
    // More rows than a batch may have wait for nobody.
    let mut rejoin = Rejoin::default();
    rejoin.ran(start, (2, 8), (0, 0));
    assert_eq!(rejoin.until(Here { rows: 64, ..here(1, start) }, &cost, start), None);
}

#[test]
fn nobody_is_made_late_by_waiting() {
    let (cost, now) = (cost(affine), Instant::now());
    for (spare, due) in [(20 * MS, Some(now + 4 * MS)), (MS, Some(now + MS)), (Duration::ZERO, None)] {
        let mut rejoin = Rejoin::default();
        rejoin.ran(now, (4, 4), (4, 4));
        let here = Here { urgent: now + affine(8) + spare, ..here(4, now) };
        assert_eq!(rejoin.until(here, &cost, now), due, "{spare:?}");
    }
    let mut rejoin = Rejoin::default();
    rejoin.ran(now, (4, 4), (4, 4));
    let until = rejoin.until(here(4, now), &cost, now).unwrap();
    assert!(!rejoin.came(now + PATIENT), "three more are waited for");
    assert!(rejoin.came(until + affine(8)), "an urgent one is to be looked at");
    assert!(!rejoin.came(now + PATIENT));
    assert!(rejoin.came(now + PATIENT), "all are here");
}

#[test]
fn where_others_run_beside_it_nobody_waits() {
    let start = Instant::now();
    for (instances, waits) in [(1, true), (2, false)] {
        let mut queue = BatchQueue::with_cost(policy(), cost(affine));
        queue.served_by(instances);
        let (job, _receiver) = testing::job_at(1, 0., start, PATIENT);
        queue.push(job).unwrap();
        queue.ran(start, (3, 3));
        assert_eq!(matches!(queue.next(start, 1), Verdict::Wait(Some(_))), waits, "{instances}");
    }
}

#[test]
fn whoever_comes_when_all_others_have_left_is_looked_at() {
    let start = Instant::now();
    let mut queue = BatchQueue::with_cost(policy(), cost(affine));
    let (job, receiver) = testing::job_at(1, 0., start, PATIENT);
    queue.push(job).unwrap();
    queue.ran(start, (3, 3));
    assert!(matches!(queue.next(start, 1), Verdict::Wait(Some(_))));
    drop(receiver);
    assert!(matches!(queue.next(start, 1), Verdict::Wait(None)));
    let (job, _receiver) = testing::job_at(1, 0., start, PATIENT);
    queue.push(job).unwrap();
    assert!(queue.is_news());
}

#[test]
fn who_cannot_run_with_the_others_is_looked_at() {
    let start = Instant::now();
    let mut queue = BatchQueue::with_cost(policy(), cost(affine));
    let (job, _receiver) = testing::job_at(1, 0., start, PATIENT);
    queue.push(job).unwrap();
    queue.ran(start, (3, 3));
    assert!(matches!(queue.next(start, 1), Verdict::Wait(Some(_))));
    let (other, _receiver) = testing::job_of([testing::tensor(1, 5, 0.)].into(), None);
    queue.push(other).unwrap();
    assert!(queue.is_news());
    assert!(matches!(queue.next(start, 1), Verdict::Run(jobs) if jobs.len() == 1));
}

#[test]
fn a_queue_that_closes_waits_for_nobody() {
    let start = Instant::now();
    let mut queue = BatchQueue::with_cost(policy(), cost(affine));
    let (job, _receiver) = testing::job_at(1, 0., start, PATIENT);
    queue.push(job).unwrap();
    queue.ran(start, (3, 3));
    queue.close();
    assert!(matches!(queue.next(start, 1), Verdict::Run(_)));
}

/// So many arrivals that know nothing of each other, by the mean time between two of them in seconds.
fn poisson(seed: u64, gap: f64, count: usize) -> Vec<Duration> {
    let (mut state, mut at) = (seed, 0.);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        at -= gap * (((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64).ln();
        Duration::from_secs_f64(at)
    };
    (0..count).map(|_| next()).collect()
}

/// At up to eight tenths of what the model can do.
#[test]
fn callers_who_come_as_they_like_are_served_about_as_soon_as_ever() {
    for (seed, load) in (1..=8).flat_map(|seed| [0.1, 0.3, 0.5, 0.8].map(|load| (seed, load))) {
        let arrivals = poisson(seed, affine(64).as_secs_f64() / 64. / load, 4000);
        let played = |rejoin| {
            let policy = BatchPolicy { rejoin, ..policy() };
            play(policy, affine, arrivals.iter().copied(), |_| None, arrivals.len())
        };
        let (with, without) = (played(true), played(false));
        assert_eq!(with.rows(), arrivals.len());
        let (with, without) = (with.mean(), without.mean());
        assert!(with.as_secs_f64() < 1.1 * without.as_secs_f64(), "{seed} {load}: {with:?} to {without:?}");
    }
}

/// However many call, and whatever they need to come back. Where that is about as long as a run, it depends on chance how they
/// fall into batches, with waiting and without.
#[test]
fn callers_in_loops_lose_a_fifth_at_most() {
    for callers in [1, 3, 6, 13, 24, 50, 79] {
        for (base, each) in [(0, 0), (0, 150), (1300, 1), (4000, 40), (6285, 24), (13_000, 1), (20_000, 200)] {
            let back = |place: usize| Some(US * base + US * each * place as u32);
            let played = |rejoin| {
                let policy = BatchPolicy { rejoin, ..policy() };
                play(policy, affine, (0..callers).map(|caller| MS * caller as u32 / 2), back, 300 * callers)
            };
            let (with, without) = (played(true).rate(), played(false).rate());
            assert!(with > 0.8 * without, "{callers} {base} {each}: {with} to {without}");
        }
    }
}

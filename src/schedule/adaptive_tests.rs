//! What follows from knowing the cost: histories played through with a clock of their own, with the cost known and not.

use super::*;
use crate::schedule::testing::{self, Receiver};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// A model: how long it runs, by rows.
type Model<'a> = &'a dyn Fn(usize) -> Duration;

/// Someone who calls: when, with how many rows, and for how long they wait.
type Caller = (Duration, usize, Duration);

/// What has become of all callers.
#[derive(Debug, Default)]
struct Outcome {
    /// Rows of each batch.
    batches: Vec<usize>,
    /// Those answered in time.
    served: usize,
    /// Of all that ran, from the call to the answer.
    waited: Duration,
    /// When the last batch was over.
    over: Duration,
}

fn policy() -> BatchPolicy {
    BatchPolicy { enabled: true, max_rows: 32, max_queue: 10_000, ..BatchPolicy::default() }
}

/// Most models: some time for a run, whatever it has, and some for each row.
fn affine(rows: usize) -> Duration {
    2 * MS + MS * rows as u32 / 8
}

/// A model that gains nothing from batches.
fn linear(rows: usize) -> Duration {
    MS * rows as u32
}

/// A model that loses by them.
fn steep(rows: usize) -> Duration {
    MS * (rows * (32 + rows)) as u32 / 32
}

fn seeded(model: Model<'_>) -> Arc<Cost> {
    let cost = Cost::default();
    (0..6).for_each(|group| cost.seed(1 << group, model(1 << group)));
    Arc::new(cost)
}

/// One instance that runs what the queue says, while `callers` come.
fn play(policy: BatchPolicy, cost: Option<&Arc<Cost>>, model: Model<'_>, callers: &[Caller]) -> Outcome {
    let start = Instant::now();
    let mut queue =
        cost.map_or_else(|| BatchQueue::new(policy), |cost| BatchQueue::with_cost(policy, Arc::clone(cost)));
    let mut outcome = Outcome::default();
    let mut receivers: Vec<Receiver> = Vec::new();
    let mut coming = callers.iter().peekable();
    let mut now = Duration::ZERO;
    loop {
        while let Some((at, rows, patience)) = coming.next_if(|caller| caller.0 <= now) {
            let (job, receiver) = testing::job_at(*rows, 0., start + *at, *patience);
            queue.push(job).unwrap();
            receivers.push(receiver);
        }
        let due = match queue.next(start + now, 1) {
            Verdict::Run(jobs) => {
                let rows = jobs.iter().map(|job| job.rows).sum();
                let took = model(rows);
                now += took;
                if let Some(cost) = cost {
                    cost.observe(rows, took);
                }
                outcome.batches.push(rows);
                outcome.served += jobs.iter().filter(|job| start + now <= job.deadline).count();
                outcome.waited += jobs.iter().map(|job| start + now - job.queued).sum::<Duration>();
                outcome.over = now;
                continue;
            }
            Verdict::Wait(due) => due.map(|due| due - start),
        };
        let next = coming.peek().map(|caller| caller.0);
        let Some(until) = due.into_iter().chain(next).min() else { return outcome };
        now = now.max(until);
    }
}

/// So many callers at once.
fn burst(callers: usize, patience: Duration) -> Vec<Caller> {
    vec![(Duration::ZERO, 1, patience); callers]
}

/// So many callers a second, evenly, for a second.
fn stream(rate: u32, patience: Duration) -> Vec<Caller> {
    (0..rate).map(|caller| (Duration::from_secs(1) * caller / rate, 1, patience)).collect()
}

#[test]
fn a_model_that_gains_from_batches_is_given_all_that_waits_as_ever() {
    for callers in [burst(100, Duration::from_secs(60)), stream(3000, Duration::from_secs(60))] {
        let known = play(policy(), Some(&seeded(&affine)), &affine, &callers);
        assert_eq!(known.batches, play(policy(), None, &affine, &callers).batches);
        assert_eq!(known.served, callers.len());
    }
}

#[test]
fn a_model_that_gains_nothing_serves_its_first_callers_sooner_and_its_last_no_later() {
    let callers = burst(32, Duration::from_secs(60));
    for model in [linear, steep] {
        let (known, blind) =
            (play(policy(), Some(&seeded(&model)), &model, &callers), play(policy(), None, &model, &callers));
        assert!(known.waited.as_secs_f64() < 0.6 * blind.waited.as_secs_f64(), "{known:?} {blind:?}");
        assert!(known.over <= blind.over, "{known:?} {blind:?}");
    }
}

#[test]
fn what_is_short_is_not_cut_into_pieces() {
    let model = |rows: usize| Duration::from_micros(25) * rows as u32;
    let known = play(policy(), Some(&seeded(&model)), &model, &burst(32, Duration::from_secs(60)));
    assert_eq!(known.batches, [32]);
}

#[test]
fn where_rows_have_many_shapes_their_number_decides_nothing() {
    let policy = BatchPolicy { even: false, ..policy() };
    assert_eq!(play(policy, Some(&seeded(&linear)), &linear, &burst(32, Duration::from_secs(60))).batches, [32]);
}

#[test]
fn an_urgent_call_is_not_made_late_by_company_that_can_wait() {
    let mut callers = burst(24, Duration::from_secs(60));
    callers.insert(0, (Duration::ZERO, 1, 3 * MS));
    let known = play(policy(), Some(&seeded(&affine)), &affine, &callers);
    assert_eq!((known.served, known.batches.len()), (25, 2), "{known:?}");
    assert_eq!(play(policy(), None, &affine, &callers).served, 24);
}

#[test]
fn under_overload_those_are_served_who_can_be_and_in_full_batches() {
    // 32 rows take 6 ms: 5,333 calls a second at most. Twice as many come, and wait for 50 ms.
    let callers = stream(10_000, 50 * MS);
    let most = 5333.;
    let known = play(policy(), Some(&seeded(&affine)), &affine, &callers);
    let full = known.batches.iter().filter(|rows| **rows == 32).count() as f64 / known.batches.len() as f64;
    assert!(known.served as f64 > 0.9 * most && full > 0.9, "{} served, {full} full", known.served);
    // Not knowing, every batch is of those who are about to be late.
    assert!((play(policy(), None, &affine, &callers).served as f64) < 0.3 * most);
    // Where each call runs alone: 1,000 a second.
    let alone = BatchPolicy { enabled: false, ..policy() };
    let served = play(alone, Some(&seeded(&linear)), &linear, &stream(2000, 50 * MS)).served;
    assert!(served > 900, "{served}");
}

#[test]
fn nobody_is_refused_on_a_guess_while_nobody_else_is_helped() {
    // It takes 100 ms now, as far as is known; who has 50 ms is tried all the same, and so it is learnt that it takes 1.
    let cost = Arc::new(Cost::default());
    cost.seed(1, 100 * MS);
    let callers: Vec<Caller> = (0..40).map(|caller| (MS * 200 * caller, 1, 50 * MS)).collect();
    let outcome = play(policy(), Some(&cost), &|_| MS, &callers);
    assert_eq!(outcome.served, 40);
    assert!(cost.estimate(1).unwrap() < 2 * MS);
}

#[test]
fn waiting_for_a_batch_makes_nobody_late_who_would_be_in_time() {
    let policy = BatchPolicy { max_delay: 40 * MS, ..policy() };
    let slow = |_: usize| 70 * MS;
    let callers = burst(1, 100 * MS);
    assert_eq!(play(policy, Some(&seeded(&slow)), &slow, &callers).served, 1);
    assert_eq!(play(policy, None, &slow, &callers).served, 0);
}

#[test]
fn a_lone_caller_never_waits_for_company_without_a_delay() {
    let callers: Vec<Caller> = (0..50).map(|caller| (MS * 10 * caller, 1, Duration::from_secs(1))).collect();
    for model in [affine, linear] {
        let outcome = play(policy(), Some(&seeded(&model)), &model, &callers);
        assert_eq!(outcome.waited, model(1) * 50);
    }
}

proptest! {
    #[test]
    fn knowing_the_cost_never_costs_throughput(
        fixed in 0..20_u32,
        each in 1..10_u32,
        bend in 0..3_u32,
        callers in prop::collection::vec(1..6_usize, 50..400),
    ) {
        let model = |rows: usize| {
            let rows = rows as u32;
            MS * fixed + MS * each * rows + MS * bend * rows * rows / 64
        };
        let callers: Vec<Caller> = callers.into_iter().map(|rows| (Duration::ZERO, rows, Duration::from_secs(3600))).collect();
        let (known, blind) = (play(policy(), Some(&seeded(&model)), &model, &callers), play(policy(), None, &model, &callers));
        prop_assert_eq!(known.served, callers.len());
        prop_assert!(known.over.as_secs_f64() <= 1.05 * blind.over.as_secs_f64(), "{:?} {:?}", known.over, blind.over);
    }

    #[test]
    fn knowing_the_cost_serves_about_as_many_in_time_and_mostly_more(
        fixed in 0..20_u32,
        each in 1..4_u32,
        callers in prop::collection::vec((0..300_u64, 1..4_usize, 5..200_u64), 1..200),
    ) {
        let model = |rows: usize| MS * fixed + MS * each * rows as u32;
        let mut callers: Vec<Caller> = callers
            .into_iter()
            .map(|(at, rows, patience)| (Duration::from_millis(at), rows, Duration::from_millis(patience)))
            .collect();
        callers.sort();
        let (known, blind) = (play(policy(), Some(&seeded(&model)), &model, &callers), play(policy(), None, &model, &callers));
        // Nobody knows who will come, so a choice that was the best at its time may turn out not to be.
        prop_assert!(known.served + 2 + callers.len() / 10 >= blind.served, "{} below {}", known.served, blind.served);
    }
}

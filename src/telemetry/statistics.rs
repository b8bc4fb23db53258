//! What each version of a model has done: the counters behind Triton's statistics (contract 02 section 6).
//!
//! Calls are reported by the metrics layer, batches by the scheduler; who reads them is the router's business. Counters
//! begin at zero with each loading and never go down. Batches are counted once each and not once per job, so a busy
//! model pays for a handful of additions per batch.

use crate::{
    call::{BatchReport, End, ModelKey, StatisticsReport, Tally},
    error::{Code, Stage},
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Sizes of batches that are counted apart; runs of further sizes are counted with the largest. Single calls may have any
/// number of rows, and a client must not fill our memory with them.
const SIZES: usize = 1024;

/// The counters of one version of a model.
#[derive(Debug, Default)]
pub struct Statistics {
    success: Counter,
    failures: [Counter; Reason::ALL.len()],
    pending: AtomicI64,
    queue: Counter,
    compute_input: Counter,
    compute_infer: Counter,
    compute_output: Counter,
    cache_hit: Counter,
    cache_miss: Counter,
    has_cache: AtomicBool,
    inferences: AtomicU64,
    executions: AtomicU64,
    last: AtomicU64,
    batches: Mutex<BTreeMap<u64, Batches>>,
}

#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    nanos: AtomicU64,
}

/// How a call to a model ended, as Triton tells them apart (contract 09 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Success,
    /// It was not.
    Failure(Reason),
}

/// Why a call to a model was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was refused, or its time ran out before it ran.
    Rejected,
    /// Its client went away.
    Canceled,
    /// Its run failed.
    Backend,
    /// Something else, the client's own faults among them.
    Other,
}

/// Runs of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Batches {
    runs: u64,
    spent: Spent,
}

/// What a batch spent its time on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Laying inputs together.
    pub input: Duration,
    /// The run.
    pub infer: Duration,
    /// Cutting outputs apart and answering.
    pub output: Duration,
}

// === impl Statistics ===

impl Statistics {
    /// A call to this model is over after `took`.
    pub fn call_ended(&self, outcome: Outcome, took: Duration) {
        let counter = match outcome {
            Outcome::Success => &self.success,
            Outcome::Failure(reason) => &self.failures[reason as usize],
        };
        counter.add(1, took);
    }

    /// The number of jobs that wait has changed by `delta`.
    pub fn queue_changed(&self, delta: i64) {
        self.pending.fetch_add(delta, Ordering::Relaxed);
    }

    /// Jobs that wait.
    pub fn pending(&self) -> i64 {
        self.pending.load(Ordering::Relaxed).max(0)
    }

    /// Calls that failed for `reason`.
    pub fn failures(&self, reason: Reason) -> u64 {
        self.failures[reason as usize].tally().count
    }

    /// `jobs` jobs waited `queued` together and then ran, `rows` rows in one batch.
    pub fn ran(&self, jobs: usize, rows: usize, queued: Duration, spent: Spent) {
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
        let rows = rows as u64;
        self.queue.add(jobs, queued);
        // Each job is charged the whole batch's time: that is how long it took for it.
        self.compute_input.add(jobs, spent.input * jobs);
        self.compute_infer.add(jobs, spent.infer * jobs);
        self.compute_output.add(jobs, spent.output * jobs);
        self.inferences.fetch_add(rows, Ordering::Relaxed);
        self.executions.fetch_add(1, Ordering::Relaxed);
        self.answered_now();
        // A panic cannot happen under this lock, and half a sum would be no reason to stop either.
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let size = match batches.len() < SIZES || batches.contains_key(&rows) {
            true => rows,
            false => batches.last_key_value().map_or(rows, |(largest, _)| *largest),
        };
        let batch = batches.entry(size).or_default();
        batch.runs += 1;
        batch.spent.input += spent.input;
        batch.spent.infer += spent.infer;
        batch.spent.output += spent.output;
    }

    /// A call was answered without a run of its own: it had waited for `waited`, and it took `looked` to see that there is an
    /// answer, or will be.
    pub fn spared(&self, waited: Duration, looked: Duration) {
        self.queue.add(1, waited);
        self.cache_hit.add(1, looked);
        self.answered_now();
    }

    /// A call was not, which was seen in `looked`.
    pub fn missed(&self, looked: Duration) {
        self.cache_miss.add(1, looked);
    }

    /// The model keeps answers.
    pub fn has_cache(&self) {
        self.has_cache.store(true, Ordering::Relaxed);
    }

    /// Whether the model keeps answers.
    pub fn keeps_answers(&self) -> bool {
        self.has_cache.load(Ordering::Relaxed)
    }

    fn answered_now(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last.fetch_max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What the counters of `model` say now.
    pub fn report(&self, model: &ModelKey) -> StatisticsReport {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = batches.iter().map(|(rows, batch)| BatchReport {
            rows: *rows,
            compute_input: Tally { count: batch.runs, nanos: nanos(batch.spent.input) },
            compute_infer: Tally { count: batch.runs, nanos: nanos(batch.spent.infer) },
            compute_output: Tally { count: batch.runs, nanos: nanos(batch.spent.output) },
        });
        StatisticsReport {
            name: model.name.clone(),
            version: model.version.clone(),
            last_inference: self.last.load(Ordering::Relaxed),
            inferences: self.inferences.load(Ordering::Relaxed),
            executions: self.executions.load(Ordering::Relaxed),
            success: self.success.tally(),
            fail: self.failures.iter().map(Counter::tally).fold(Tally::default(), |all, one| Tally {
                count: all.count + one.count,
                nanos: all.nanos + one.nanos,
            }),
            queue: self.queue.tally(),
            compute_input: self.compute_input.tally(),
            compute_infer: self.compute_infer.tally(),
            compute_output: self.compute_output.tally(),
            cache_hit: self.cache_hit.tally(),
            cache_miss: self.cache_miss.tally(),
            batches: batches.collect(),
        }
    }
}

// === impl Outcome, Reason ===

impl Outcome {
    /// Of a call that ended with `end` when it had come to `stage`.
    pub fn of(end: End, stage: Stage) -> Self {
        let reason = match end {
            End::Complete => return Self::Success,
            End::Abandoned | End::Failed(Code::Cancelled) => Reason::Canceled,
            End::Failed(Code::Overloaded | Code::NotReady | Code::RateLimited) => Reason::Rejected,
            End::Failed(Code::DeadlineExceeded) if stage < Stage::Running => Reason::Rejected,
            // What fails with no fault of the client's, once the run has begun, is the run.
            End::Failed(Code::Internal) if stage >= Stage::Running => Reason::Backend,
            End::Failed(_) => Reason::Other,
        };
        Self::Failure(reason)
    }
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// The label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

// === impl Counter ===

impl Counter {
    fn add(&self, count: u32, took: Duration) {
        self.count.fetch_add(u64::from(count), Ordering::Relaxed);
        self.nanos.fetch_add(nanos(took), Ordering::Relaxed);
    }

    fn tally(&self) -> Tally {
        Tally { count: self.count.load(Ordering::Relaxed), nanos: self.nanos.load(Ordering::Relaxed) }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ModelKey {
        ModelKey { name: "m".into(), version: "1".into() }
    }

    fn millis(input: u64, infer: u64, output: u64) -> Spent {
        let millis = Duration::from_millis;
        Spent { input: millis(input), infer: millis(infer), output: millis(output) }
    }

    #[test]
    fn each_job_is_charged_its_whole_batch_and_the_batch_itself_once() {
        let statistics = Statistics::default();
        statistics.ran(3, 6, Duration::from_millis(9), millis(1, 10, 2));
        let report = statistics.report(&key());
        assert_eq!((report.inferences, report.executions), (6, 1));
        assert_eq!(report.queue, Tally { count: 3, nanos: 9_000_000 });
        assert_eq!(report.compute_infer, Tally { count: 3, nanos: 30_000_000 });
        let [batch] = report.batches.as_slice() else { panic!("one size") };
        assert_eq!((batch.rows, batch.compute_infer), (6, Tally { count: 1, nanos: 10_000_000 }));
        assert!(report.last_inference > 1_700_000_000_000, "milliseconds since 1970");
    }

    #[test]
    fn answered_and_failed_calls_are_told_apart() {
        let statistics = Statistics::default();
        statistics.call_ended(Outcome::Success, Duration::from_nanos(5));
        statistics.call_ended(Outcome::Success, Duration::from_nanos(6));
        statistics.call_ended(Outcome::Failure(Reason::Backend), Duration::from_nanos(3));
        statistics.call_ended(Outcome::Failure(Reason::Canceled), Duration::from_nanos(4));
        let report = statistics.report(&key());
        assert_eq!(report.success, Tally { count: 2, nanos: 11 });
        assert_eq!(report.fail, Tally { count: 2, nanos: 7 });
        assert_eq!(report.last_inference, 0);
    }

    #[test]
    fn calls_without_a_run_wait_and_run_nothing() {
        let statistics = Statistics::default();
        statistics.missed(Duration::from_nanos(5));
        statistics.ran(1, 4, Duration::from_millis(1), millis(1, 10, 2));
        statistics.spared(Duration::from_millis(2), Duration::from_nanos(7));
        let report = statistics.report(&key());
        assert_eq!((report.cache_hit, report.cache_miss), (Tally { count: 1, nanos: 7 }, Tally { count: 1, nanos: 5 }));
        assert_eq!(report.queue, Tally { count: 2, nanos: 3_000_000 });
        assert_eq!((report.compute_infer.count, report.inferences, report.executions), (1, 4, 1));
    }

    #[test]
    fn each_end_has_the_reason_that_triton_would_give() {
        let of = |code, stage| match Outcome::of(End::Failed(code), stage) {
            Outcome::Success => "ok",
            Outcome::Failure(reason) => reason.name(),
        };
        for code in [Code::Overloaded, Code::NotReady, Code::RateLimited, Code::DeadlineExceeded] {
            assert_eq!(of(code, Stage::Queued), "REJECTED");
        }
        assert_eq!(of(Code::DeadlineExceeded, Stage::Running), "OTHER");
        assert_eq!((of(Code::Internal, Stage::Running), of(Code::Internal, Stage::Queued)), ("BACKEND", "OTHER"));
        assert_eq!(
            (of(Code::Cancelled, Stage::Running), of(Code::InvalidArgument, Stage::Queued)),
            ("CANCELED", "OTHER")
        );
        assert_eq!(Outcome::of(End::Abandoned, Stage::Running), Outcome::Failure(Reason::Canceled));
        assert!(Reason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
    }

    #[test]
    fn sizes_of_batches_do_not_grow_without_bound() {
        let statistics = Statistics::default();
        (1..2000).for_each(|rows| statistics.ran(1, rows, Duration::ZERO, Spent::default()));
        let report = statistics.report(&key());
        assert_eq!(report.batches.len(), SIZES);
        let runs: u64 = report.batches.iter().map(|batch| batch.compute_infer.count).sum();
        assert_eq!(runs, 1999);
    }
}

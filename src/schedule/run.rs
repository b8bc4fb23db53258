//! One batch through one instance: gather, run, cut apart, answer.
//!
//! The same code runs on inference threads and on lanes; it does not know which.

use super::{Extent, Job, Layout, Plan, ReplyTo, layout::Laid, ragged::Cuts};
use crate::{
    backend::Backend,
    call::{
        Chunk, NamedTensor, Timing,
        trace::{self, Run},
    },
    error::{Error, Stage},
    telemetry::statistics::Spent,
    tensor::{self, Tensor, TensorSpec, Tensors},
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::error::TrySendError;

/// An output below this many bytes is shared whatever the size of a row: a copy would be an
/// allocation of about the same weight as what it keeps from being pinned.
const SHARE_BELOW: usize = 4096;

/// How long a stream that finds its channel full waits before it looks again.
const STEP: Duration = Duration::from_millis(1);

/// How a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// All jobs were answered; the instance is sound. All runs together took this long.
    Sound(Duration),
    /// The batch failed, which took this long, and says nothing about its jobs: they are still in the buffer, unanswered,
    /// and should run one by one. The instance is sound.
    Undone(Duration),
    /// All jobs were answered; the back end panicked and its instance must not be used again.
    Panicked,
}

/// Runs `jobs` as one batch, one by one if that fails, and answers each of them. Leaves the buffer empty.
///
/// A job that runs alone is ended when its caller leaves; one that runs with others is not, and its answer is dropped.
pub(super) fn run(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan) -> Ran {
    match alone_or_batch(backend, jobs, plan) {
        Ran::Undone(took) => one_by_one(backend, jobs, plan, took),
        ran => ran,
    }
}

fn alone_or_batch(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan) -> Ran {
    let [only] = jobs.as_slice() else { return batch(backend, jobs, plan) };
    let Some(stop) = backend.interruptible() else { return batch(backend, jobs, plan) };
    let facts = Arc::clone(&only.facts);
    let Some(armed) = facts.interrupt.arm(&stop) else {
        jobs.drain(..).for_each(|job| job.fail(Error::Cancelled));
        return Ran::Sound(Duration::ZERO);
    };
    let ran = batch(backend, jobs, plan);
    drop(armed);
    ran
}

/// Runs `jobs` as one batch, once, and answers each of them. Leaves the buffer empty unless it says [`Ran::Undone`],
/// which it says only of more than one job.
pub(super) fn batch(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan) -> Ran {
    let started = Instant::now();
    let mut extent = Extent::default();
    let mut queued = Duration::ZERO;
    for job in jobs.iter() {
        // A job whose batch has failed comes a second time, and has waited once.
        if job.facts.stage() < Stage::Running {
            let waited = started.saturating_duration_since(job.queued);
            plan.metrics.waited(waited);
            queued += waited;
        }
        job.facts.run_since(started);
        extent = extent.plus(job.extent());
    }
    let rows = extent.rows;
    let mut input = Duration::ZERO;
    let mut laid = None;
    let result = catch_unwind(AssertUnwindSafe(|| match jobs.as_slice() {
        [only] if !plan.layout.as_ref().is_some_and(|layout| layout.changes(&only.inputs)) => backend.run(&only.inputs),
        many => {
            let inputs = gather(many, plan, &mut laid)?;
            input = started.elapsed();
            backend.run(laid.as_ref().map_or(&inputs, |laid| &laid.inputs))
        }
    }));
    let took = started.elapsed();
    let misfit = |outputs: &Tensors| match (&laid, &plan.layout) {
        (Some(laid), Some(layout)) => layout.misfit(laid, outputs),
        _ if jobs.len() == 1 || outputs.iter().all(|output| output.rows() == rows) => None,
        _ => Some("an output does not follow the rows of the inputs".to_owned()),
    };
    match result {
        Err(panic) => {
            let error = panicked(plan, &*panic);
            jobs.drain(..).for_each(|job| job.fail(error.clone()));
            return Ran::Panicked;
        }
        Ok(Ok(outputs)) if outputs.len() != plan.signature.outputs.len() => {
            plan.metrics.failed();
            let error = Error::backend(format!(
                "a run yielded {} outputs, expected {}",
                outputs.len(),
                plan.signature.outputs.len()
            ));
            jobs.drain(..).for_each(|job| job.fail(error.clone()));
        }
        Ok(Ok(outputs)) if misfit(&outputs).is_none() => {
            let parts = apart(jobs, outputs, plan, laid.is_some());
            count(jobs, laid.as_ref(), plan);
            let spent = Spent { input, infer: took - input, output: started.elapsed() - took };
            // Counted before anyone hears of it: who was answered finds itself in the statistics.
            plan.metrics.ran(jobs.len(), rows, queued, spent);
            plan.learn(extent, took);
            note(jobs, Run { begun: started, over: started + took, rows, jobs: jobs.len() });
            answer(jobs, parts, started, took);
        }
        Ok(Err(error)) if jobs.len() == 1 => {
            // Most likely it failed because it was ended.
            if !jobs[0].is_abandoned() {
                plan.metrics.failed();
            }
            note(jobs, Run { begun: started, over: started + took, rows, jobs: 1 });
            jobs.drain(..).for_each(|job| job.fail(error.clone()));
        }
        Ok(Ok(outputs)) if jobs.len() == 1 => {
            // Nothing is left to try: alone, too, it was laid out.
            plan.metrics.failed();
            let error = Error::backend(format!("model `{}`: {}", plan.key, misfit(&outputs).unwrap_or_default()));
            jobs.drain(..).for_each(|job| job.fail(error.clone()));
        }
        // One caller's bad values must not fail the calls that happened to run with it, and outputs
        // whose rows are not those of the batch cannot be cut apart: each job is to run alone.
        Ok(_) => return Ran::Undone(took),
    }
    Ran::Sound(took)
}

/// Runs one job of a decoupled back end and sends each of its answers.
///
/// One place of the channel is kept for the end: a stream that is cut off must be able to say so
/// however slow its reader is, or it would look complete.
pub(super) fn stream(backend: &mut dyn Backend, job: Job, plan: &Plan) -> Ran {
    let Job { inputs, rows, queued, reply, facts, .. } = job;
    let (sender, frame, until) = match reply {
        ReplyTo::Stream { sender, frame, until } => (sender, frame, until),
        once => {
            once.fail(Error::internal("a decoupled model was asked for one answer"));
            return Ran::Sound(Duration::ZERO);
        }
    };
    let Ok(last) = sender.clone().try_reserve_owned() else { return Ran::Sound(Duration::ZERO) };
    let started = Instant::now();
    let queue = started.saturating_duration_since(queued);
    facts.run_since(started);
    plan.metrics.waited(queue);
    let mut late = false;
    let mut unframed = None;
    let mut emit = |outputs: Tensors| {
        facts.reach(Stage::Streaming);
        let timing = Timing { queue, compute: started.elapsed() };
        let mut item = match frame(named(plan, outputs), timing) {
            Ok(response) => Ok(Chunk::Tensors(response)),
            Err(error) => {
                unframed = Some(error);
                return ControlFlow::Break(());
            }
        };
        loop {
            late = Instant::now() >= until;
            if late {
                return ControlFlow::Break(());
            }
            match sender.try_send(item) {
                Ok(()) => return ControlFlow::Continue(()),
                Err(TrySendError::Closed(_)) => return ControlFlow::Break(()),
                Err(TrySendError::Full(back)) => item = back,
            }
            std::thread::park_timeout(STEP);
        }
    };
    let stop = backend.interruptible();
    let armed = stop.as_ref().map(|stop| facts.interrupt.arm(stop));
    if let Some(None) = armed {
        return Ran::Sound(Duration::ZERO);
    }
    let result = catch_unwind(AssertUnwindSafe(|| backend.stream(&inputs, &mut emit)));
    drop(armed);
    let took = started.elapsed();
    facts.timing.set(Timing { queue, compute: took });
    if let Some(trace) = facts.trace.get() {
        trace::ran(&[(&**trace, queued)], Run { begun: started, over: started + took, rows, jobs: 1 });
    }
    let (ran, error) = match result {
        Err(panic) => (Ran::Panicked, Some(panicked(plan, &*panic))),
        Ok(Err(error)) => {
            if !sender.is_closed() {
                plan.metrics.failed();
            }
            (Ran::Sound(took), Some(error))
        }
        Ok(Ok(())) => {
            plan.metrics.ran(1, rows, queue, Spent { infer: took, ..Spent::default() });
            (Ran::Sound(took), late.then_some(Error::DeadlineExceeded { stage: Stage::Streaming }))
        }
    };
    if let Some(error) = error.or(unframed) {
        last.send(Err(error));
    }
    ran
}

/// Notes the run for those jobs whose calls are traced.
fn note(jobs: &[Job], run: Run) {
    let traced: SmallVec<[_; 4]> =
        jobs.iter().filter_map(|job| job.facts.trace.get().map(|trace| (&**trace, job.queued))).collect();
    if !traced.is_empty() {
        trace::ran(&traced, run);
    }
}

fn one_by_one(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan, mut took: Duration) -> Ran {
    let mut waiting = jobs.drain(..);
    let mut one = Vec::with_capacity(1);
    while let Some(job) = waiting.next() {
        one.push(job);
        match alone_or_batch(backend, &mut one, plan) {
            Ran::Sound(more) | Ran::Undone(more) => took += more,
            Ran::Panicked => {
                let error = Error::internal("the instance panicked on another job of the batch");
                waiting.for_each(|job| job.fail(error.clone()));
                return Ran::Panicked;
            }
        }
    }
    Ran::Sound(took)
}

/// Logs a panic, counts it, and says what its jobs are answered with.
fn panicked(plan: &Plan, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("a panic without a message");
    tracing::error!(model = %plan.key, panic = text, "back end panicked");
    plan.metrics.failed();
    Error::internal(format!("back end panicked: {text}"))
}

/// Inputs of several jobs as one: `laid` where there is a layout, else what is returned.
fn gather(jobs: &[Job], plan: &Plan, laid: &mut Option<Laid>) -> Result<Tensors, Error> {
    if let Some(layout) = &plan.layout {
        let jobs: SmallVec<[&Tensors; 64]> = jobs.iter().map(|job| &job.inputs).collect();
        *laid = Some(layout.lay(&jobs)?);
        return Ok(Tensors::new());
    }
    (0..plan.signature.inputs.len())
        .map(|index| {
            let parts = jobs
                .iter()
                .map(|job| job.inputs.get(index).ok_or_else(|| Error::internal("a job without all its inputs")))
                .collect::<Result<SmallVec<[&Tensor; 64]>, Error>>()?;
            tensor::batch::gather(&parts)
        })
        .collect()
}

/// What each job of a batch is answered with, in their order. A batch of one keeps its outputs whole.
type Parts = SmallVec<[Result<Vec<NamedTensor>, Error>; 1]>;

fn apart(jobs: &[Job], outputs: Tensors, plan: &Plan, laid: bool) -> Parts {
    if jobs.len() == 1 && !laid {
        return SmallVec::from_iter([Ok(named(plan, outputs))]);
    }
    let mut from = 0;
    let layout = plan.layout.as_deref();
    let mut cuts = layout.and_then(Layout::ragged).map(Cuts::new);
    let part = |job: &Job| {
        let range = from..from + job.rows;
        from = range.end;
        if let Some(cuts) = &mut cuts {
            cuts.next(&job.inputs);
        }
        let one = |(at, (output, spec)): (usize, (&Tensor, &TensorSpec))| {
            let tensor = match (&cuts, layout.and_then(Layout::padding)) {
                (Some(cuts), _) => cuts.part(at, output, cut)?,
                (None, Some(padding)) => match padding.cut_back(at, output, range.clone(), &job.inputs)? {
                    Some(back) => back,
                    None => cut(output, range.clone())?,
                },
                (None, None) => cut(output, range.clone())?,
            };
            Ok(NamedTensor { name: spec.name.clone(), tensor })
        };
        outputs.iter().zip(&plan.signature.outputs).enumerate().map(one).collect()
    };
    jobs.iter().map(part).collect()
}

/// Counts what was filled up, where anything may be.
fn count(jobs: &[Job], laid: Option<&Laid>, plan: &Plan) {
    let Some(padding) = plan.layout.as_deref().and_then(Layout::padding) else { return };
    let own = jobs.iter().map(|job| padding.elements(&job.inputs)).sum();
    let all = laid.map_or(own, |laid| padding.elements(&laid.inputs));
    plan.metrics.laid(own, all.saturating_sub(own));
}

fn answer(jobs: &mut Vec<Job>, parts: Parts, started: Instant, took: Duration) {
    for (job, part) in jobs.drain(..).zip(parts) {
        let timing = Timing { queue: started.saturating_duration_since(job.queued), compute: took };
        match part {
            Ok(part) => job.succeed(part, timing),
            Err(error) => job.fail(error),
        }
    }
}

/// Rows of a batch's output. Small ones are copied: one row that is read slowly would otherwise
/// pin the whole batch's memory (architecture section 9: smaller than an eighth of it).
fn cut(output: &Tensor, range: std::ops::Range<usize>) -> Result<Tensor, Error> {
    let part = tensor::batch::rows(output, range)?;
    let whole = output.data().len();
    if whole < SHARE_BELOW || part.data().len() >= whole / 8 {
        return Ok(part);
    }
    let copy = Bytes::copy_from_slice(part.data());
    Tensor::new(part.dtype(), part.shape().clone(), copy).map_err(|error| Error::internal(error.to_string()))
}

fn named(plan: &Plan, outputs: Tensors) -> Vec<NamedTensor> {
    // Room for exactly so many: collecting would make room for four.
    let mut named = Vec::with_capacity(outputs.len());
    let specs = plan.signature.outputs.iter();
    named.extend(specs.zip(outputs).map(|(spec, tensor)| NamedTensor { name: spec.name.clone(), tensor }));
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::fake::Fake,
        schedule::testing::{self, Fault, Script},
        telemetry::metrics::Metrics,
    };

    fn run_jobs(script: &Script, rows: &[usize]) -> (Ran, Vec<testing::Receiver>) {
        let plan = testing::plan();
        let mut backend = testing::backend(script);
        let mut receivers = Vec::new();
        let mut jobs = Vec::new();
        for (mark, rows) in rows.iter().enumerate() {
            let (job, receiver) = testing::job(*rows, mark as f32 + 1.0);
            jobs.push(job);
            receivers.push(receiver);
        }
        let ran = run(&mut *backend, &mut jobs, &plan);
        assert!(jobs.is_empty());
        (ran, receivers)
    }

    #[test]
    fn each_job_gets_its_own_rows_of_the_batch() {
        let script = Script::default();
        let (ran, receivers) = run_jobs(&script, &[1, 3, 2]);
        assert!(matches!(ran, Ran::Sound(_)));
        assert_eq!(script.batches(), [6]);
        for (mut receiver, (rows, mark)) in receivers.into_iter().zip([(1, 1.0), (3, 2.0), (2, 3.0)]) {
            let answer = receiver.try_recv().unwrap().unwrap();
            assert_eq!(&*answer.outputs[0].name, "y");
            assert_eq!(answer.outputs[0].tensor.shape().dims(), [rows, 4]);
            assert_eq!(testing::mark(&answer.outputs[0].tensor), mark * 2.0);
        }
    }

    #[test]
    fn one_bad_job_does_not_fail_its_batch() {
        let script = Script::default();
        script.fail_on(2.0);
        let (ran, mut receivers) = run_jobs(&script, &[1, 1, 1]);
        assert!(matches!(ran, Ran::Sound(_)));
        assert_eq!(script.batches(), [3, 1, 1, 1]);
        assert!(receivers[0].try_recv().unwrap().is_ok());
        assert!(matches!(receivers[1].try_recv().unwrap(), Err(Error::Backend(_))));
        assert!(receivers[2].try_recv().unwrap().is_ok());
    }

    #[test]
    fn the_time_of_a_batch_that_failed_is_that_of_all_its_runs() {
        let script = Script::default();
        script.fail_on(2.0);
        script.take(Duration::from_millis(5));
        let (ran, _receivers) = run_jobs(&script, &[1, 1, 1]);
        let Ran::Sound(took) = ran else { panic!("{ran:?}") };
        assert!(took >= Duration::from_millis(20), "four runs of 5 ms: {took:?}");
    }

    #[test]
    fn a_job_waits_once_however_often_it_runs() {
        let (script, metrics) = (Script::default(), Metrics::new());
        script.fail_on(2.0);
        let mut plan = testing::plan();
        plan.metrics = metrics.model(&plan.key);
        let (mut jobs, _receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| testing::job(1, 2.0)).unzip();
        run(&mut *testing::backend(&script), &mut jobs, &plan);
        let page = metrics.render();
        assert!(page.contains("sluicegate_queue_wait_seconds_count{model=\"double\"} 3"), "{page}");
    }

    #[test]
    fn outputs_that_do_not_follow_the_rows_are_never_cut_apart() {
        let script = Script::default();
        script.set(Fault::ExtraRow);
        let (_, mut receivers) = run_jobs(&script, &[1, 1]);
        assert_eq!(script.batches(), [2, 1, 1]);
        let answer = receivers[1].try_recv().unwrap().unwrap();
        assert_eq!(testing::mark(&answer.outputs[0].tensor), 4.0);
    }

    #[test]
    fn a_panic_answers_the_whole_batch_as_internal() {
        let script = Script::default();
        script.set(Fault::Panic);
        let (ran, receivers) = run_jobs(&script, &[1, 1]);
        assert_eq!(ran, Ran::Panicked);
        for mut receiver in receivers {
            assert!(matches!(receiver.try_recv().unwrap(), Err(Error::Internal(_))));
        }
    }

    #[test]
    fn a_job_of_a_batch_whose_caller_leaves_is_discarded_and_ends_no_run() {
        let (script, plan) = (Script::default(), testing::plan());
        let (leaving, gone) = testing::job(1, 1.0);
        let (staying, mut receiver) = testing::job(1, 2.0);
        leaving.facts.interrupt.fire();
        drop(gone);
        let ran = run(&mut *testing::backend(&script), &mut vec![leaving, staying], &plan);
        assert!(matches!(ran, Ran::Sound(_)));
        assert_eq!(script.batches(), [2]);
        assert_eq!(testing::mark(&receiver.try_recv().unwrap().unwrap().outputs[0].tensor), 4.0);
    }

    #[test]
    fn a_job_alone_whose_caller_left_in_the_last_moment_does_not_run() {
        let plan = testing::plan();
        let (job, _receiver) = testing::job(1, 1.0);
        job.facts.interrupt.fire();
        let fake = Fake::new();
        let control = fake.control();
        let ran = run(&mut fake.clone(), &mut vec![job], &plan);
        assert_eq!((ran, control.started()), (Ran::Sound(Duration::ZERO), 0));
    }

    #[test]
    fn a_small_part_of_a_large_output_is_a_copy() {
        let large = testing::tensor(64, 64, 1.0);
        let shares = |part: &Tensor| large.data().as_ptr_range().contains(&part.data().as_ptr());
        assert!(!shares(&cut(&large, 3..4).unwrap()));
        assert!(shares(&cut(&large, 0..8).unwrap()));
        let small = testing::tensor(64, 1, 1.0);
        assert!(small.data().as_ptr_range().contains(&cut(&small, 3..4).unwrap().data().as_ptr()));
    }
}

//! One batch through one instance: gather, run, cut apart, answer.
//!
//! The same code runs on inference threads and on lanes; it does not know which.

use super::{Company, Extent, Held, Job, Layout, Plan, ReplyTo, layout::Laid, ragged::Cuts, watch::Watch};
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
    collections::VecDeque,
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

/// By how much a job that may be the one which does not end may exceed what is usual of it, and what part of the limit of runs
/// it may take at most, before the others have their turn.
const HURRIED: u32 = 8;

/// Below this nothing is a long run: what is usual may be a few microseconds.
const SOON: Duration = Duration::from_millis(100);

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

/// Runs `jobs` as one batch, one by one if that fails, and answers each of them. Leaves the buffer empty, unless it says
/// [`Ran::Undone`]: of a hurried job that was not done soon.
///
/// A job that runs alone is ended when its caller leaves; one that runs with others is not, and its answer is dropped.
/// `watch` is what ends runs that take too long, if anything does.
pub(super) fn run(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan, watch: Option<&Watch>) -> Ran {
    if let ([only], Some(watch)) = (jobs.as_slice(), watch)
        && only.company == Company::Hurried
    {
        watch.hurry(short(only, plan));
        let ran = alone_or_batch(backend, jobs, plan, &|| watch.was_ended());
        watch.hurry(None);
        return ran;
    }
    match alone_or_batch(backend, jobs, plan, &|| false) {
        Ran::Undone(took) => one_by_one(backend, jobs, plan, watch, took),
        ran => ran,
    }
}

/// How long a job may take that may be the one which does not end, while others wait for it.
fn short(job: &Job, plan: &Plan) -> Option<Duration> {
    let limit = plan.run_limit? / HURRIED;
    let usual = plan.cost.at_most(job.extent().size).map(|usual| (usual * HURRIED).max(SOON));
    Some(usual.map_or(limit, |usual| usual.min(limit)))
}

fn alone_or_batch(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan, is_ended: &dyn Fn() -> bool) -> Ran {
    let [only] = jobs.as_slice() else { return batch(backend, jobs, plan, is_ended) };
    let Some(stop) = backend.interruptible() else { return batch(backend, jobs, plan, is_ended) };
    let facts = Arc::clone(&only.facts);
    let Some(armed) = facts.interrupt.arm(&stop) else {
        jobs.drain(..).for_each(|job| job.fail(Error::Cancelled));
        return Ran::Sound(Duration::ZERO);
    };
    let ran = batch(backend, jobs, plan, is_ended);
    drop(armed);
    ran
}

/// Runs `jobs` as one batch, once, and answers each of them. Leaves the buffer empty unless it says [`Ran::Undone`],
/// which it says of more than one job, and of one whose run fails and `is_ended`: that was told to end by others than its
/// caller.
pub(super) fn batch(backend: &mut dyn Backend, jobs: &mut Vec<Job>, plan: &Plan, is_ended: &dyn Fn() -> bool) -> Ran {
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
            // What was not changed lies in it as it came, and goes with the inputs.
            drop(laid);
            let spent = Spent { input, infer: took - input, output: started.elapsed() - took };
            // Counted before anyone hears of it: who was answered finds itself in the statistics.
            plan.metrics.ran(jobs.len(), rows, queued, spent);
            plan.learn(jobs, extent, took);
            note(jobs, Run { begun: started, over: started + took, rows, jobs: jobs.len() });
            answer(jobs, parts, started, took);
        }
        Ok(Err(error)) if jobs.len() == 1 && !is_ended() => {
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
    let (reply, held) = match reply {
        ReplyTo::Held(held) => match held.take() {
            Some(reply) => (reply, Some(held)),
            None => return Ran::Sound(Duration::ZERO),
        },
        reply => (reply, None),
    };
    let (sender, frame, until) = match reply {
        ReplyTo::Stream { sender, frame, until } => (sender, frame, until),
        once => {
            once.fail(Error::internal("a decoupled model was asked for one answer"));
            return Ran::Sound(Duration::ZERO);
        }
    };
    let Ok(last) = sender.clone().try_reserve_owned() else { return Ran::Sound(Duration::ZERO) };
    // Where it can be told by those who give the run up.
    let last = match &held {
        Some(held) => {
            held.reads(last);
            None
        }
        None => Some(last),
    };
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
            if late || held.as_ref().is_some_and(Held::is_gone) {
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
    let last = last.or_else(|| held.as_ref().and_then(Held::end));
    if let (Some(error), Some(last)) = (error.or(unframed), last) {
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

/// Runs each of `jobs` by itself. If the batch that they were failed because it was told to end, one of them may be endless:
/// each is then run for a short time only, and those that are not done come again when all others have been answered.
fn one_by_one(
    backend: &mut dyn Backend,
    jobs: &mut Vec<Job>,
    plan: &Plan,
    watch: Option<&Watch>,
    mut took: Duration,
) -> Ran {
    let ended = watch.filter(|watch| watch.was_ended());
    let mut hurried = if ended.is_some() { jobs.len() } else { 0 };
    let mut waiting: VecDeque<Job> = jobs.drain(..).collect();
    let mut one = Vec::with_capacity(1);
    while let Some(job) = waiting.pop_front() {
        let watch = ended.filter(|_| hurried > 0);
        hurried = hurried.saturating_sub(1);
        if let Some(ended) = ended {
            ended.hurry(watch.and_then(|_| short(&job, plan)));
        }
        one.push(job);
        match alone_or_batch(backend, &mut one, plan, &|| watch.is_some_and(Watch::was_ended)) {
            Ran::Sound(more) => took += more,
            Ran::Undone(more) => {
                took += more;
                waiting.extend(one.drain(..));
            }
            Ran::Panicked => {
                let error = Error::internal("the instance panicked on another job of the batch");
                waiting.into_iter().for_each(|job| job.fail(error.clone()));
                return Ran::Panicked;
            }
        }
    }
    if let Some(ended) = ended {
        ended.hurry(None);
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
#[path = "run_tests.rs"]
mod tests;

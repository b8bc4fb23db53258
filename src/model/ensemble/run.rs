//! One call through the graph: each step as soon as what it takes is there, all within the call's own future.
//!
//! Nothing is spawned, so dropping the future drops every step, and what waits in a queue or runs for one is ended as it
//! is for any caller who leaves. The first step that fails ends the others in the same way.

use super::{Bound, Does, Ensemble, Place};
use crate::{
    builtin::Builtin,
    call::{End, Facts, Head, Identity, InferRequest, NamedTensor, Reply, Timing, trace::Trace},
    error::{Code, Error},
    model::{Model, router::Router},
    offload::{InPieces, is_small},
    schedule::Answer,
    telemetry::statistics::{Outcome, Spent},
    tensor::{Tensor, Tensors},
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A call of an ensemble that was checked and has its place.
#[derive(Debug)]
pub(in crate::model) struct Run {
    /// Where steps go.
    pub(in crate::model) router: Router,
    /// Whose call it is: its deadline is every step's.
    pub(in crate::model) head: Head,
    /// Who sent it: steps wait in its name.
    pub(in crate::model) sender: Arc<Identity>,
    pub(in crate::model) model: Arc<Model>,
    pub(in crate::model) place: Place,
    pub(in crate::model) rows: usize,
    pub(in crate::model) priority: u32,
    /// Ensembles around this one.
    pub(in crate::model) depth: usize,
}

/// What callers read where a model was swapped for one that does not fit.
const MISFIT: &str = "not ready: a model that it is made of was replaced by one that does not fit";

/// A step that is over: its number, its outputs and what it took.
type Done = (usize, Result<(Vec<NamedTensor>, Timing), Error>);

/// What is known of a step's call, until it is over.
struct Watched {
    facts: Arc<Facts>,
    router: Router,
    begun: Instant,
    ended: bool,
}

/// Tensors that are there, each until its last taker has it.
struct Held {
    values: Vec<Option<Tensor>>,
    takers: Vec<usize>,
}

/// Runs the graph on `inputs`, which are in the signature's order.
///
/// # Errors
///
/// The first error of a step, in the names of the ensemble: the steps behind it are nobody's business but its own.
pub(in crate::model) async fn run(run: Run, inputs: Tensors) -> Result<Answer, Error> {
    let begun = Instant::now();
    run.head.facts.run_since(begun);
    let ensemble = Arc::clone(&run.place.0);
    let result = steps(&ensemble, &run, inputs).await;
    match result {
        Ok((outputs, timing)) => {
            let spent = Spent { infer: begun.elapsed(), ..Spent::default() };
            ensemble.metrics.ran(1, run.rows, timing.queue, spent);
            Ok(Answer { outputs, timing })
        }
        Err(error) => {
            if matches!(error.code(), Code::Internal) {
                ensemble.metrics.failed();
            }
            Err(error)
        }
    }
}

async fn steps(ensemble: &Ensemble, run: &Run, inputs: Tensors) -> Result<(Vec<NamedTensor>, Timing), Error> {
    let mut tensors = Held { values: vec![None; ensemble.tensors.len()], takers: ensemble.takers.clone() };
    for (tensor, value) in ensemble.inputs.iter().zip(inputs) {
        tensors.values[*tensor] = Some(value);
    }
    let (mut begun, mut running) = (vec![false; ensemble.steps.len()], FuturesUnordered::new());
    let mut timing = Timing { queue: Duration::ZERO, compute: Duration::ZERO };
    loop {
        for (at, step) in ensemble.steps.iter().enumerate() {
            if !begun[at] && step.inputs.iter().all(|(_, tensor)| tensors.values[*tensor].is_some()) {
                begun[at] = true;
                let inputs = step.inputs.iter().filter_map(|(name, tensor)| {
                    Some(NamedTensor { name: Arc::clone(name), tensor: tensors.take(*tensor)? })
                });
                running.push(begin(run, at, step, inputs.collect()));
            }
        }
        let Some((at, result)) = running.next().await else { break };
        let (found, took) = result.map_err(|error| translated(error, ensemble, run, at))?;
        timing.queue += took.queue;
        timing.compute += took.compute;
        for (name, tensor) in &ensemble.steps[at].outputs {
            let output = found.iter().find(|output| output.name == *name);
            let output = output.ok_or_else(|| Error::backend(format!("a step yielded no output `{name}`")))?;
            if ensemble.takers[*tensor] > 0 {
                tensors.values[*tensor] = Some(output.tensor.clone());
            }
        }
    }
    let specs = run.model.signature.outputs.iter().zip(&ensemble.outputs);
    let mut outputs = Vec::with_capacity(ensemble.outputs.len());
    for (spec, tensor) in specs {
        let value = tensors.take(*tensor).ok_or_else(|| Error::internal("an ensemble without one of its outputs"))?;
        let dims = value.shape().dims();
        let fits = spec.dtype == Some(value.dtype())
            && dims.len() == spec.dims.len()
            && dims.iter().zip(&spec.dims).all(|(found, expected)| expected.is_none_or(|expected| expected == *found));
        if !fits {
            // A model was replaced by one that yields something else.
            let text = format!("output `{}` of an ensemble became {}{}", spec.name, value.dtype(), value.shape());
            return Err(Error::backend(text));
        }
        outputs.push(NamedTensor { name: Arc::clone(&spec.name), tensor: value });
    }
    Ok((outputs, timing))
}

/// Begins a step: what a model is to do is on its way when this returns.
fn begin(run: &Run, at: usize, step: &Bound, inputs: Vec<NamedTensor>) -> BoxFuture<'static, Done> {
    match &step.does {
        Does::Builtin(_, builtin) => {
            let builtin = Arc::clone(builtin);
            let trace = run.head.facts.clone();
            Box::pin(async move { (at, build(builtin, inputs, &trace).await) })
        }
        Does::Model(model) => {
            let watched = Watched::new(run);
            let head = Head { facts: Arc::clone(&watched.facts), ..run.head.clone() };
            let mut request = InferRequest::new(model.clone(), inputs);
            request.priority = run.priority;
            request.outputs = step.outputs.iter().map(|(name, _)| Arc::clone(name).into()).collect();
            let fits = |found: &Model| {
                let Some(reason) = step.misfit(found) else { return Ok(()) };
                tracing::warn!(ensemble = %run.model.key, step = at + 1, model = %found.key, reason, "a model does not fit");
                Err(Error::ModelNotReady { model: Arc::clone(&found.key.name), state: MISFIT })
            };
            let routed = run.router.step(head, &run.sender, request, run.depth + 1, &fits);
            Box::pin(async move {
                let reply = routed.await;
                let timing = watched.facts.timing.get().unwrap_or_default();
                let result = match reply {
                    Ok(Reply::Infer(response)) => Ok((response.outputs, timing)),
                    Ok(_) => Err(Error::internal("a step was answered with something else than tensors")),
                    Err(error) => Err(error),
                };
                watched.over(result.as_ref().map_or_else(|error| End::Failed(error.code()), |_| End::Complete));
                (at, result)
            })
        }
    }
}

/// Runs a built-in step, on a thread for that if it would hold the lane up, and there piece by piece.
async fn build(
    builtin: Arc<dyn Builtin>,
    mut inputs: Vec<NamedTensor>,
    facts: &Facts,
) -> Result<(Vec<NamedTensor>, Timing), Error> {
    let fed = |name: &str| {
        let input = inputs.iter().find(|input| *input.name == *name)?;
        let dims = input.tensor.shape().dims().iter().copied().map(Some).collect();
        Some(crate::tensor::TensorSpec { name: name.into(), dtype: Some(input.tensor.dtype()), dims })
    };
    let signature = builtin.signature(&fed).map_err(Error::backend)?;
    let order = |name: &Arc<str>| signature.inputs.iter().position(|spec| spec.name == *name);
    inputs.sort_by_key(|input| order(&input.name));
    let tensors: Tensors = inputs.into_iter().map(|input| input.tensor).collect();
    let (waiting, work) = (Instant::now(), builtin.work(&tensors));
    let mut pieces = builtin.begin(tensors);
    let (mut begun, mut compute) = (None, Duration::ZERO);
    let outputs = if is_small(work) {
        begun = Some(waiting);
        let made = loop {
            if let Some(made) = pieces(&|| true)? {
                break made;
            }
        };
        compute = waiting.elapsed();
        made
    } else {
        // Dropping this future, as the end of the deadline does, ends the piece that runs.
        let thread = InPieces::begin()?;
        loop {
            let piece = thread.next(move |wanted| {
                let begun = Instant::now();
                let made = pieces(wanted)?;
                Ok((pieces, made, begun, begun.elapsed()))
            });
            let (rest, made, at, took) = piece.await?;
            pieces = rest;
            begun = begun.or(Some(at));
            compute += took;
            if let Some(made) = made {
                break made;
            }
        }
    };
    let over = Instant::now();
    if let Some(trace) = facts.trace.get() {
        trace.note("builtin", begun.unwrap_or(waiting), over);
    }
    let names = signature.outputs.iter().map(|spec| Arc::clone(&spec.name));
    let outputs = names.zip(outputs).map(|(name, tensor)| NamedTensor { name, tensor }).collect();
    Ok((outputs, Timing { queue: over.duration_since(waiting).saturating_sub(compute), compute }))
}

/// The error of a step as the ensemble's caller may read it: its own tensors, and no names of models that it may not know.
fn translated(error: Error, ensemble: &Ensemble, run: &Run, at: usize) -> Error {
    let not_ready = |state| Error::ModelNotReady { model: Arc::clone(&run.model.key.name), state };
    match error {
        Error::InvalidTensor { tensor, reason } => {
            match ensemble.steps[at].inputs.iter().find(|(name, _)| *name == tensor) {
                Some((_, place)) => Error::InvalidTensor { tensor: Arc::clone(&ensemble.tensors[*place]), reason },
                // None that the caller could have sent.
                None => Error::backend(format!("step {}: tensor `{tensor}` {reason}", at + 1)),
            }
        }
        Error::ModelNotReady { state: MISFIT, .. } => not_ready(MISFIT),
        Error::ModelNotFound { model, .. } | Error::ModelNotReady { model, .. } => {
            tracing::debug!(ensemble = %run.model.key, step = %model, "a step's model is not served");
            not_ready("not ready: a model that it is made of is not served")
        }
        error => error,
    }
}

// === impl Watched ===

impl Watched {
    fn new(run: &Run) -> Self {
        let facts = Facts::part_of(&run.head.facts);
        if let Some(trace) = run.head.facts.trace.get() {
            // Nobody else has seen these facts.
            let _ = facts.trace.set(Box::new(Trace::step_of(trace)));
        }
        Self { facts: Arc::new(facts), router: run.router.clone(), begun: Instant::now(), ended: false }
    }

    fn over(mut self, end: End) {
        self.tell(end);
    }

    /// Counts the step with its model, as a call of the model's own would be.
    fn tell(&mut self, end: End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let (now, model) = (Instant::now(), self.facts.model.get());
        if let Some(trace) = self.facts.trace.get() {
            trace.end(end, now, model);
        }
        if let Some(model) = model.and_then(|key| self.router.model(key)) {
            let stage = self.facts.stage();
            model.scheduler.statistics().call_ended(Outcome::of(end, stage), now - self.begun);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tell(End::Abandoned);
    }
}

// === impl Held ===

impl Held {
    /// A tensor for one of its takers; the last one takes it with it.
    fn take(&mut self, tensor: usize) -> Option<Tensor> {
        self.takers[tensor] = self.takers[tensor].saturating_sub(1);
        match self.takers[tensor] {
            0 => self.values[tensor].take(),
            _ => self.values[tensor].clone(),
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;

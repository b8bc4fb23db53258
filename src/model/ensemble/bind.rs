//! Holds a graph against the signatures of its models: what feeds what, whether types and shapes can fit, and what the
//! ensemble itself takes and yields.
//!
//! Pure: what is served is asked of `look`. Every problem is found and named, not only the first.

use super::{Bound, Declared, Does, Ensemble, Settings};
use crate::{
    call::ModelRef,
    model::declared::shape,
    telemetry::metrics::ModelMetrics,
    tensor::{DataType, Signature, TensorSpec},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::AtomicUsize},
};

/// What is known of a model that a step may run.
#[derive(Clone, Debug)]
pub(in crate::model) struct Served {
    pub(in crate::model) signature: Arc<Signature>,
    /// Whether rows of several calls run together.
    pub(in crate::model) batches: bool,
    pub(in crate::model) decoupled: bool,
    /// Inputs that a call may leave out.
    pub(in crate::model) optional: Vec<Arc<str>>,
}

/// What is said of a sequence or a map: no protocol carries it, and so no step.
const NO_TENSOR: &str = "is no tensor, and only tensors go from step to step";

/// Finds what runs for a reference, or says why nothing does.
type Look<'a> = dyn Fn(&ModelRef) -> Result<Served, String> + 'a;

/// A graph that can run, and what it takes and yields.
#[derive(Debug)]
pub(in crate::model) struct Graph {
    pub(in crate::model) signature: Signature,
    /// Whether every model of it runs rows together.
    pub(in crate::model) batches: bool,
    settings: Settings,
    opened: Vec<Does>,
    /// Of each step.
    signatures: Vec<Option<Arc<Signature>>>,
    tensors: Vec<Arc<str>>,
}

/// What is known of one tensor.
#[derive(Clone, Debug, Default)]
struct Known {
    dtype: Option<DataType>,
    dims: Option<Vec<Option<usize>>>,
}

struct Binder<'a> {
    settings: &'a Settings,
    /// The step that yields each tensor.
    yielded: HashMap<Arc<str>, usize>,
    known: BTreeMap<Arc<str>, Known>,
    problems: Vec<String>,
}

/// Holds `settings` with its `opened` steps against what `look` finds.
///
/// # Errors
///
/// For operators, in plain words: every problem, each with its step and tensor.
pub(in crate::model) fn bind(settings: &Settings, opened: Vec<Does>, look: &Look<'_>) -> Result<Graph, String> {
    let mut binder = Binder { settings, yielded: HashMap::new(), known: BTreeMap::new(), problems: Vec::new() };
    binder.names();
    let order = binder.order();
    let (mut batches, mut signatures) = (true, vec![None; settings.steps.len()]);
    for at in order {
        signatures[at] = binder.step(at, &opened[at], look, &mut batches);
    }
    let signature = binder.ends(&signatures);
    if !binder.problems.is_empty() {
        return Err(binder.problems.join("; "));
    }
    let tensors = binder.known.into_keys().collect();
    let batches = batches && signature.is_batchable();
    Ok(Graph { signature, batches, settings: settings.clone(), opened, signatures, tensors })
}

// === impl Binder ===

impl Binder<'_> {
    /// Who yields what, and whether each name is used once and everything is fed.
    fn names(&mut self) {
        let settings = self.settings;
        for (at, step) in settings.steps.iter().enumerate() {
            for (_, tensor) in &step.outputs {
                if let Some(first) = self.yielded.insert(Arc::clone(tensor), at) {
                    let (first, at) = (settings.called(first), settings.called(at));
                    self.problems.push(format!("tensor `{tensor}` is yielded twice: by {first} and by {at}"));
                }
                self.known.entry(Arc::clone(tensor)).or_default();
            }
        }
        let mut seen = HashSet::new();
        for Declared { name, dtype, dims } in settings.inputs.iter().flatten() {
            if !seen.insert(name) {
                self.problems.push(format!("input `{name}` is declared twice"));
            }
            if let Some(at) = self.yielded.get(name) {
                self.problems.push(format!("input `{name}` is yielded by {} too", settings.called(*at)));
            }
            self.known.insert(Arc::clone(name), Known { dtype: *dtype, dims: dims.clone() });
        }
        for (at, step) in settings.steps.iter().enumerate() {
            for (input, tensor) in &step.inputs {
                if settings.inputs.is_some() && !self.known.contains_key(tensor) {
                    let step = settings.called(at);
                    self.problems.push(format!(
                        "{step}: input `{input}` is fed by `{tensor}`, which no step yields and is no input"
                    ));
                }
                self.known.entry(Arc::clone(tensor)).or_default();
            }
        }
    }

    /// The steps in an order in which everything is there before it is taken.
    fn order(&mut self) -> Vec<usize> {
        let steps = &self.settings.steps;
        let (mut order, mut done) = (Vec::with_capacity(steps.len()), vec![false; steps.len()]);
        let is_there = |tensor: &Arc<str>, done: &[bool]| self.yielded.get(tensor).is_none_or(|by| done[*by]);
        while let Some(at) = (0..steps.len())
            .find(|at| !done[*at] && steps[*at].inputs.iter().all(|(_, tensor)| is_there(tensor, &done)))
        {
            done[at] = true;
            order.push(at);
        }
        if order.len() < steps.len() {
            let circle: Vec<_> = (0..steps.len()).filter(|at| !done[*at]).map(|at| self.settings.called(at)).collect();
            self.problems.push(format!("steps wait for each other in a circle: {}", circle.join(", ")));
        }
        order
    }

    /// Holds one step against its model. Its signature, if that is known.
    fn step(&mut self, at: usize, opened: &Does, look: &Look<'_>, batches: &mut bool) -> Option<Arc<Signature>> {
        let (step, called) = (&self.settings.steps[at], self.settings.called(at));
        let found = match opened {
            Does::Model(model) => look(model).and_then(|served| {
                *batches &= served.batches;
                let stream = || "answers with streams, and a step answers once".to_owned();
                if served.decoupled { Err(stream()) } else { Ok((served.signature, served.optional)) }
            }),
            Does::Builtin(_, builtin) => {
                let fed = |input: &str| {
                    let (_, tensor) = step.inputs.iter().find(|(name, _)| **name == *input)?;
                    let known = self.known.get(tensor)?;
                    let dims = known.dims.clone()?;
                    Some(TensorSpec { name: input.into(), dtype: Some(known.dtype?), dims })
                };
                builtin.signature(&fed).map(|signature| (Arc::new(signature), Vec::new()))
            }
        };
        let (signature, optional) = match found {
            Ok(found) => found,
            Err(reason) => {
                // What could not be found out about a tensor was said where it is yielded.
                let is_told = step.inputs.iter().any(|(_, tensor)| {
                    self.yielded.contains_key(tensor) && self.known.get(tensor).is_some_and(|it| it.dtype.is_none())
                });
                if !(is_told && matches!(opened, Does::Builtin(..))) {
                    self.problems.push(format!("{called}: {reason}"));
                }
                return None;
            }
        };
        self.fits(&called, at, &signature, &optional);
        Some(signature)
    }

    /// Holds the tensors of a step against its signature, and learns from it what they are. What is `optional` may be fed by
    /// nothing.
    fn fits(&mut self, called: &str, at: usize, signature: &Signature, optional: &[Arc<str>]) {
        let step = &self.settings.steps[at];
        let mut taken = HashSet::new();
        for (input, tensor) in &step.inputs {
            if !taken.insert(input) {
                self.problems.push(format!("{called}: input `{input}` is fed twice"));
            }
            let Some(spec) = signature.inputs.iter().find(|spec| spec.name == *input) else {
                self.problems.push(format!("{called}: has no input `{input}`, {}", has(&signature.inputs)));
                continue;
            };
            if spec.dtype.is_none() {
                self.problems.push(format!("{called}: input `{input}` {NO_TENSOR}"));
            }
            if let Err(reason) = self.known.entry(Arc::clone(tensor)).or_default().narrow(spec) {
                self.problems.push(format!("{called}: input `{input}` cannot be `{tensor}`: {reason}"));
            }
        }
        let is_missing = |spec: &&TensorSpec| !taken.contains(&spec.name) && !optional.contains(&spec.name);
        for spec in signature.inputs.iter().filter(is_missing) {
            self.problems.push(format!("{called}: input `{}` is fed by nothing", spec.name));
        }
        for (output, tensor) in &step.outputs {
            match signature.outputs.iter().find(|spec| spec.name == *output) {
                None => self.problems.push(format!("{called}: has no output `{output}`, {}", has(&signature.outputs))),
                Some(spec) => {
                    if spec.dtype.is_none() {
                        self.problems.push(format!("{called}: output `{output}` {NO_TENSOR}"));
                    }
                    let known = Known { dtype: spec.dtype, dims: Some(spec.dims.clone()) };
                    self.known.insert(Arc::clone(tensor), known);
                }
            }
        }
    }

    /// What the ensemble takes and yields.
    fn ends(&mut self, signatures: &[Option<Arc<Signature>>]) -> Signature {
        let settings = self.settings;
        let taken: HashSet<&Arc<str>> =
            settings.steps.iter().flat_map(|step| step.inputs.iter().map(|(_, tensor)| tensor)).collect();
        let inputs: Vec<Arc<str>> = match &settings.inputs {
            Some(declared) => declared.iter().map(|declared| Arc::clone(&declared.name)).collect(),
            None => in_order(settings.steps.iter().zip(signatures).flat_map(|(step, signature)| {
                as_the_model(&step.inputs, signature.as_ref().map_or(&[], |signature| &signature.inputs))
            }))
            .filter(|tensor| !self.yielded.contains_key(tensor))
            .collect(),
        };
        for input in inputs.iter().filter(|input| !taken.contains(input)) {
            self.problems.push(format!("input `{input}` is taken by no step"));
        }
        let outputs: Vec<Arc<str>> = match &settings.outputs {
            Some(declared) => {
                declared.iter().for_each(|declared| self.declared(declared));
                declared.iter().map(|declared| Arc::clone(&declared.name)).collect()
            }
            None => in_order(settings.steps.iter().zip(signatures).flat_map(|(step, signature)| {
                as_the_model(&step.outputs, signature.as_ref().map_or(&[], |signature| &signature.outputs))
            }))
            .filter(|tensor| !taken.contains(tensor))
            .collect(),
        };
        for (what, names) in [("inputs", &inputs), ("outputs", &outputs)] {
            if names.is_empty() {
                self.problems.push(format!("has no {what}"));
            }
        }
        // Where a step is not known, neither is what it takes and yields, and that was said.
        let is_whole = signatures.iter().all(Option::is_some);
        let mut specs = |names: &[Arc<str>]| -> Vec<TensorSpec> {
            let spec = |name: &Arc<str>| {
                let known = self.known.get(name).cloned().unwrap_or_default();
                if is_whole && known.dims.is_none() {
                    self.problems.push(format!("of `{name}` no shape is known; say which in `inputs`"));
                }
                TensorSpec { name: Arc::clone(name), dtype: known.dtype, dims: known.dims.unwrap_or_default() }
            };
            names.iter().map(spec).collect()
        };
        Signature { inputs: specs(&inputs), outputs: specs(&outputs) }
    }

    /// Holds what is declared of an output against what is known of it.
    fn declared(&mut self, Declared { name, dtype, dims }: &Declared) {
        if !self.yielded.contains_key(name) {
            self.problems.push(format!("output `{name}` is yielded by no step"));
            return;
        }
        let known = self.known.entry(Arc::clone(name)).or_default();
        if known.dtype.is_none() && known.dims.is_none() {
            return;
        }
        let of = known.clone();
        let spec = TensorSpec {
            name: Arc::clone(name),
            dtype: dtype.or(of.dtype),
            dims: dims.clone().or(of.dims).unwrap_or_default(),
        };
        if let Err(reason) = known.narrow(&spec) {
            self.problems.push(format!("output `{name}` is not what is declared: {reason}"));
        }
    }
}

/// The tensors of a step in the order of its model.
fn as_the_model<'a>(named: &'a [(Arc<str>, Arc<str>)], specs: &[TensorSpec]) -> Vec<&'a (Arc<str>, Arc<str>)> {
    let mut sorted: Vec<_> = named.iter().collect();
    sorted.sort_by_key(|(name, _)| specs.iter().position(|spec| spec.name == *name));
    sorted
}

fn in_order<'a>(tensors: impl Iterator<Item = &'a (Arc<str>, Arc<str>)>) -> impl Iterator<Item = Arc<str>> {
    let mut seen = HashSet::new();
    tensors.map(|(_, tensor)| Arc::clone(tensor)).filter(move |tensor| seen.insert(Arc::clone(tensor)))
}

fn has(specs: &[TensorSpec]) -> String {
    let names: Vec<_> = specs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    format!("it has {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

// === impl Known ===

impl Known {
    /// Takes in what whoever takes the tensor wants of it, or says why it can never be that.
    fn narrow(&mut self, spec: &TensorSpec) -> Result<(), String> {
        match (self.dtype, spec.dtype) {
            (Some(dtype), wanted) if wanted != Some(dtype) => {
                return Err(format!("it has datatype {dtype}, expected {}", spec.dtype_name()));
            }
            (None, wanted) => self.dtype = wanted,
            (Some(_), _) => {}
        }
        let Some(dims) = &mut self.dims else {
            self.dims = Some(spec.dims.clone());
            return Ok(());
        };
        let fits = dims.len() == spec.dims.len()
            && dims.iter().zip(&spec.dims).all(|(a, b)| a.is_none() || b.is_none() || a == b);
        if !fits {
            let found = TensorSpec { name: Arc::clone(&spec.name), dtype: self.dtype, dims: dims.clone() };
            return Err(format!("it has shape {}, expected {}", shape(&found), shape(spec)));
        }
        dims.iter_mut().zip(&spec.dims).for_each(|(known, wanted)| *known = known.or(*wanted));
        Ok(())
    }
}

// === impl Graph ===

impl Graph {
    /// The graph as it runs, reporting to `metrics`.
    pub(in crate::model) fn finish(self, metrics: ModelMetrics) -> Ensemble {
        let Self { signature, settings, opened, signatures, tensors, .. } = self;
        let place = |name: &Arc<str>| tensors.binary_search(name).unwrap_or_default();
        let numbered = |list: &[(Arc<str>, Arc<str>)]| -> Vec<(Arc<str>, usize)> {
            list.iter().map(|(name, tensor)| (Arc::clone(name), place(tensor))).collect()
        };
        let steps: Vec<Bound> = settings
            .steps
            .iter()
            .zip(opened.into_iter().zip(signatures))
            .map(|(step, (does, signature))| {
                let expected = signature.filter(|_| matches!(does, Does::Model(_)));
                Bound { does, expected, inputs: numbered(&step.inputs), outputs: numbered(&step.outputs) }
            })
            .collect();
        let ends = |specs: &[TensorSpec]| -> Vec<usize> { specs.iter().map(|spec| place(&spec.name)).collect() };
        let (inputs, outputs) = (ends(&signature.inputs), ends(&signature.outputs));
        let mut takers = vec![0; tensors.len()];
        let taken = steps.iter().flat_map(|step| step.inputs.iter().map(|(_, tensor)| tensor)).chain(&outputs);
        taken.for_each(|tensor| takers[*tensor] += 1);
        let running = AtomicUsize::new(0);
        Ensemble { steps, inputs, outputs, tensors, takers, running, most: settings.in_flight, metrics }
    }
}

#[cfg(test)]
#[path = "bind_tests.rs"]
mod tests;

//! Ensembles: models that are made of other models and of built-in steps (`ensemble` in `model.yaml`).
//!
//! A graph of named tensors. `bind` holds it against the signatures of its models when it is loaded, and says what is
//! wrong with it; `run` sends one call through it. A step is a call of its own to its model: it goes through the router,
//! so labels, splits, swaps and batches are what they are for anybody else, and its model is looked up when it runs. It
//! has no sender to be asked for grants or charged: that was done once, for the ensemble.

mod bind;
mod fit;
mod run;

pub(super) use bind::{Served, bind};
pub(super) use run::{Run, run};

use crate::{
    builtin::{self, Builtin},
    call::ModelRef,
    error::{Error, Limit},
    telemetry::metrics::ModelMetrics,
    tensor::{DataType, Signature},
};
use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Ensembles within ensembles, at most. Loading refuses circles; two that are loaded at the same moment may still make
/// one.
pub(super) const DEPTH: usize = 8;

/// Calls of an ensemble that are in flight at once, unless it says otherwise.
pub const IN_FLIGHT: usize = 64;

/// What metadata calls the kind of an ensemble, as Triton does.
pub const PLATFORM: &str = "ensemble";

/// The graph, as `model.yaml` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its steps, in the order in which they were written.
    pub steps: Vec<Step>,
    /// Most calls that are in flight at once.
    pub in_flight: usize,
    /// What callers bring; `None`: every tensor that no step yields.
    pub inputs: Option<Vec<Declared>>,
    /// What they get; `None`: every tensor that no step takes.
    pub outputs: Option<Vec<Declared>>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What runs.
    pub what: What,
    /// Its inputs, and the tensor that feeds each.
    pub inputs: Vec<(Arc<str>, Arc<str>)>,
    /// Outputs of it that are used, and the tensor that each becomes.
    pub outputs: Vec<(Arc<str>, Arc<str>)>,
}

/// What runs in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A model of the repository; without a version, as for a call that names none.
    Model(ModelRef),
    /// A step that is built in.
    Builtin(builtin::Settings),
}

/// An input or output of the ensemble, as far as `model.yaml` says what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The tensor.
    pub name: Arc<str>,
    /// Its type.
    pub dtype: Option<DataType>,
    /// Its dimensions, `None` for a free one.
    pub dims: Option<Vec<Option<usize>>>,
}

/// A graph that was held against its models and can run.
#[derive(Debug)]
pub struct Ensemble {
    steps: Vec<Bound>,
    /// The tensor of each input, in the signature's order.
    inputs: Vec<usize>,
    /// The tensor of each output, in the signature's order.
    outputs: Vec<usize>,
    /// Names of its tensors.
    tensors: Vec<Arc<str>>,
    /// Who takes each tensor: so many steps, and one more if it is an output.
    takers: Vec<usize>,
    running: AtomicUsize,
    most: usize,
    metrics: ModelMetrics,
}

/// A step whose tensors are numbered.
#[derive(Debug)]
pub(super) struct Bound {
    does: Does,
    /// What its model took and yielded when it was held against it.
    expected: Option<Arc<Signature>>,
    inputs: Vec<(Arc<str>, usize)>,
    outputs: Vec<(Arc<str>, usize)>,
}

/// What a step runs. A built-in one has read its files.
#[derive(Clone, Debug)]
pub(in crate::model) enum Does {
    Model(ModelRef),
    Builtin(&'static str, Arc<dyn Builtin>),
}

/// A place among the calls in flight. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place(Arc<Ensemble>);

// === impl Settings ===

impl Settings {
    /// Opens what needs files of `folder`, the ensemble's. Blocks.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: the steps that cannot be opened, and why.
    pub(super) fn open(&self, folder: &Path) -> Result<Vec<Does>, String> {
        let mut problems = Vec::new();
        let mut opened = Vec::with_capacity(self.steps.len());
        for (at, step) in self.steps.iter().enumerate() {
            match &step.what {
                What::Model(model) => opened.push(Does::Model(model.clone())),
                What::Builtin(settings) => match settings.open(folder) {
                    Ok(builtin) => opened.push(Does::Builtin(settings.name(), builtin)),
                    Err(reason) => problems.push(format!("{}: {reason}", self.called(at))),
                },
            }
        }
        if problems.is_empty() { Ok(opened) } else { Err(problems.join("; ")) }
    }

    /// The models that it is made of.
    pub(super) fn models(&self) -> impl Iterator<Item = &ModelRef> {
        self.steps.iter().filter_map(|step| match &step.what {
            What::Model(model) => Some(model),
            What::Builtin(_) => None,
        })
    }

    /// `reason`, which is about the ensemble `name`, as its callers may read it: they need no grant for its models, so these
    /// are not named.
    pub(super) fn for_callers(&self, name: &str, reason: &str) -> String {
        self.models().filter(|model| *model.name != *name).fold(reason.to_owned(), |text, ModelRef { name, .. }| {
            text.replace(&format!(" (`{name}`):"), ":").replace(&format!("model `{name}`"), "its model")
        })
    }

    /// How a step is called in messages.
    fn called(&self, at: usize) -> String {
        match &self.steps[at].what {
            What::Model(model) => format!("step {} (`{}`)", at + 1, model.name),
            What::Builtin(settings) => format!("step {} (`{}{}`)", at + 1, builtin::PREFIX, settings.name()),
        }
    }
}

/// Why the ensemble `name` cannot be, if it would be a part of itself, where `graph` has the graph of each that is loaded
/// with it.
pub(super) fn circle(name: &str, graph: &dyn Fn(&str) -> Option<Arc<Settings>>) -> Option<String> {
    let (mut left, mut seen) = (vec![Arc::<str>::from(name)], HashSet::new());
    while let Some(next) = left.pop() {
        for model in graph(&next).iter().flat_map(|graph| graph.models()) {
            if *model.name == *name {
                return Some(part_of_itself(name));
            }
            if seen.insert(Arc::clone(&model.name)) {
                left.push(Arc::clone(&model.name));
            }
        }
    }
    None
}

/// What is said of an ensemble that would run itself.
pub(super) fn part_of_itself(name: &str) -> String {
    format!("`{name}` would be a part of itself")
}

// === impl Ensemble ===

impl Ensemble {
    /// The steps that run a model: their number from 1, the model, and the step.
    pub(super) fn parts(&self) -> impl Iterator<Item = (usize, &ModelRef, &Bound)> {
        self.steps.iter().enumerate().filter_map(|(at, step)| match &step.does {
            Does::Model(model) => Some((at + 1, model, step)),
            Does::Builtin(..) => None,
        })
    }

    /// Steps, each with the model and version that run and its named tensors, for those who report them.
    pub(super) fn report(&self) -> Vec<crate::call::StepReport> {
        let named = |list: &[(Arc<str>, usize)]| {
            list.iter().map(|(name, tensor)| (Arc::clone(name), Arc::clone(&self.tensors[*tensor]))).collect()
        };
        let steps = self.steps.iter().map(|step| {
            let (model, version) = match &step.does {
                Does::Model(model) => (Arc::clone(&model.name), model.version.clone()),
                Does::Builtin(name, _) => (format!("{}{name}", builtin::PREFIX).into(), None),
            };
            crate::call::StepReport { model, version, inputs: named(&step.inputs), outputs: named(&step.outputs) }
        });
        steps.collect()
    }

    /// Takes a place among the calls in flight, or refuses: never waits.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Place, Error> {
        let grown = |running: usize| (running < self.most).then_some(running + 1);
        match self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown) {
            Ok(_) => Ok(Place(Arc::clone(self))),
            Err(_) => Err(Error::Overloaded { limit: Limit::Ensemble }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

//! Whether a model that took the place of another still fits the step that runs it.
//!
//! Models may be swapped under an ensemble. What its callers see stays what it was when it was loaded, so a step wants of
//! its model what it had then: what does not fit makes the ensemble not ready, and is no fault of its callers. That it is
//! as ready as its models is said here too, for all who ask.

use super::{Bound, DEPTH, Ensemble};
use crate::{
    call::{ModelKey, VersionState},
    model::{Model, Repository, declared::shape, state::Version},
    tensor::{Signature, TensorSpec},
};
use std::{collections::HashSet, sync::Arc};

impl Bound {
    /// Why `found` cannot run this step; `None`: it can.
    pub(in crate::model) fn misfit(&self, found: &Model) -> Option<String> {
        let expected = self.expected.as_ref()?;
        if found.decoupled {
            return Some("it answers with streams".to_owned());
        }
        // That of the same model, in most calls.
        if Arc::ptr_eq(expected, &found.signature) {
            return None;
        }
        self.signatures(expected, &found.signature, &found.absent.names(&found.signature))
    }

    /// `optional`: inputs that nothing has to feed.
    fn signatures(&self, expected: &Signature, found: &Signature, optional: &[Arc<str>]) -> Option<String> {
        let is_fed = |spec: &TensorSpec| self.inputs.iter().any(|(name, _)| *name == spec.name);
        if let Some(more) = found.inputs.iter().find(|spec| !is_fed(spec) && !optional.contains(&spec.name)) {
            return Some(format!("nothing feeds its input `{}`", more.name));
        }
        let inputs = self.inputs.iter().find_map(|(name, _)| differs("input", name, &expected.inputs, &found.inputs));
        let outputs =
            || self.outputs.iter().find_map(|(name, _)| differs("output", name, &expected.outputs, &found.outputs));
        inputs.or_else(outputs)
    }
}

/// How the tensor `name` of the one differs from that of the other, so that no tensor could be both.
fn differs(kind: &str, name: &Arc<str>, expected: &[TensorSpec], found: &[TensorSpec]) -> Option<String> {
    let of = |specs: &[TensorSpec]| specs.iter().find(|spec| spec.name == *name).cloned();
    let expected = of(expected)?;
    let Some(found) = of(found) else { return Some(format!("it has no {kind} `{name}`")) };
    if found.dtype != expected.dtype {
        let (found, expected) = (found.dtype_name(), expected.dtype_name());
        return Some(format!("its {kind} `{name}` has datatype {found}, expected {expected}"));
    }
    let may_be = |(a, b): (&Option<usize>, &Option<usize>)| a.is_none() || b.is_none() || a == b;
    let fits = found.dims.len() == expected.dims.len() && found.dims.iter().zip(&expected.dims).all(may_be);
    (!fits).then(|| format!("its {kind} `{name}` has shape {}, expected {}", shape(&found), shape(&expected)))
}

// === impl Ensemble ===

impl Ensemble {
    /// Whether the models of both took and yielded the same, step by step, when they were held against them.
    pub(in crate::model) fn expects_the_same(&self, other: &Self) -> bool {
        let expected = |ensemble: &Self| ensemble.steps.iter().map(|step| step.expected.clone()).collect::<Vec<_>>();
        expected(self) == expected(other)
    }
}

// === impl Repository ===

impl Repository {
    /// Whether `model` would take a call now: an ensemble would if all its models would and still fit it.
    pub(in crate::model) fn would_run(&self, model: &Model) -> bool {
        match &model.ensemble {
            Some(ensemble) => self.unfit(ensemble, 0, &mut HashSet::new()).is_none(),
            None => model.scheduler.is_ready(),
        }
    }

    /// Why `ensemble`, below `depth` others, would take no call now, as its callers may read it: they may not know its
    /// models. What was `seen` within it at some depth would take one: the ways that lead to it may be too many to walk.
    fn unfit(&self, ensemble: &Ensemble, depth: usize, seen: &mut HashSet<(Arc<ModelKey>, usize)>) -> Option<String> {
        if depth > DEPTH {
            return Some("ensembles within ensembles, too many or in a circle".to_owned());
        }
        ensemble.parts().find_map(|(at, wanted, step)| {
            let trouble = match self.resolve(wanted) {
                Err(_) => "its model is not served".to_owned(),
                Ok(found) => match (step.misfit(&found), &found.ensemble) {
                    (Some(reason), _) => format!("its model was replaced by one that does not fit: {reason}"),
                    (None, Some(_)) if !seen.insert((Arc::clone(&found.key), depth)) => return None,
                    (None, Some(inner)) => format!("its model is not ready: {}", self.unfit(inner, depth + 1, seen)?),
                    (None, None) if found.scheduler.is_ready() => return None,
                    (None, None) => "its model is not ready".to_owned(),
                },
            };
            Some(format!("step {at}: {trouble}"))
        })
    }

    /// What has become of a version, and why it is not served. An ensemble is served as long as its models are.
    /// `trouble` is what is wrong with the model as a whole.
    pub(in crate::model) fn told(&self, version: &Version, trouble: Option<&Arc<str>>) -> (VersionState, Arc<str>) {
        let model = version.state.model();
        match model.as_ref().and_then(|model| self.unfit(model.ensemble.as_deref()?, 0, &mut HashSet::new())) {
            Some(unfit) => (VersionState::Failed, format!("not ready: {unfit}").into()),
            None => version.told(trouble),
        }
    }
}

//! What `sluicegate check` says of each model: inputs, outputs and problems, in plain words.
//!
//! Opens every model once and runs none.

use super::{
    ModelSettings, Settings, declared,
    ensemble::{self, Served},
    labels, samples,
    scan::{Found, scan},
    workshop::{self, check_rows, innermost_first, may_batch},
};
use crate::{
    backend::{Open, SessionSettings},
    call::ModelRef,
    tensor::{Signature, TensorSpec},
};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// What is known of one version of a model, or of something that should have been one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `NAME/VERSION`, or a path.
    pub what: String,
    /// Sentences about it; empty if there is a problem.
    pub lines: Vec<String>,
    /// Why it would not be served.
    pub problem: Option<String>,
}

/// Describes every model that `settings` would load. Blocks while models are opened.
pub fn describe(settings: &Settings, opener: &dyn Open) -> Vec<Description> {
    let (found, problems) = scan(settings);
    let mut descriptions: Vec<_> = problems
        .into_iter()
        .map(|(what, reason)| Description { what, lines: Vec::new(), problem: Some(reason) })
        .collect();
    let (ensembles, found): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| found.settings.ensemble.is_some() && found.fault.is_none());
    let mut served = Described::default();
    descriptions.extend(found.into_iter().map(|found| {
        let what = format!("{}/{}", found.name, found.version);
        if let Some(fault) = found.fault {
            return Description { what, lines: Vec::new(), problem: Some(fault) };
        }
        let open = AssertUnwindSafe(|| opener.open(&found.path, &SessionSettings::default()));
        let problem = match catch_unwind(open) {
            Ok(Ok(backend)) => {
                let (signature, settings) = (backend.signature(), &found.settings);
                let declared =
                    settings.declared.as_ref().map_or(Ok(()), |declared| declared::check(declared, signature));
                let batches = may_batch(settings, signature);
                let rows = declared.and_then(|()| check_rows(settings, signature));
                let sampled = rows.and_then(|()| samples::make(settings, signature, batches));
                let labels = match sampled.and_then(|_| labels::read(settings, &found.folder, signature)) {
                    Ok(labels) => labels,
                    Err(reason) => return Description { what, lines: Vec::new(), problem: Some(reason) },
                };
                let inputs = signature.inputs.iter().map(|spec| line("input", spec));
                let outputs = signature.outputs.iter().map(|spec| line("output", spec));
                let mut lines: Vec<_> = inputs.chain(outputs).collect();
                lines.push(together(batches, backend.is_decoupled()).to_owned());
                let labelled = signature.outputs.iter().zip(&labels).filter_map(|(spec, labels)| {
                    let count = labels.as_ref()?.len();
                    Some(format!("classes of `{}` have {count} labels", spec.name))
                });
                lines.extend(labelled);
                let called = settings.routing.labels.iter().filter(|(_, version)| **version == found.version);
                lines.extend(called.map(|(label, _)| format!("callers may name it by the label `{label}`")));
                lines.extend(settings.warnings.iter().map(|warning| format!("warning: {warning}")));
                served.add(&found.name, &found.version, settings, signature, batches, backend.is_decoupled());
                return Description { what, lines, problem: None };
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "opening it panicked".to_owned(),
        };
        Description { what, lines: Vec::new(), problem: Some(problem) }
    }));
    for found in innermost_first(ensembles) {
        descriptions.push(ensemble(&found, &mut served));
    }
    descriptions.sort_by(|a, b| a.what.cmp(&b.what));
    descriptions
}

/// What steps may run, as far as it has been described: by model, the highest version last.
#[derive(Default)]
struct Described(HashMap<Arc<str>, Vec<Version>>);

/// A version, its labels, and what it takes and yields.
type Version = (Arc<str>, Vec<Arc<str>>, Served);

impl Described {
    fn add(
        &mut self,
        name: &Arc<str>,
        version: &Arc<str>,
        settings: &ModelSettings,
        signature: &Arc<Signature>,
        batches: bool,
        decoupled: bool,
    ) {
        let labels = settings.routing.labels.iter().filter(|(_, of)| **of == *version);
        let labels = labels.map(|(label, _)| Arc::clone(label)).collect();
        let served = Served { signature: Arc::clone(signature), batches, decoupled };
        self.0.entry(Arc::clone(name)).or_default().push((Arc::clone(version), labels, served));
    }

    fn look(&self, wanted: &ModelRef) -> Result<Served, String> {
        let unknown = || format!("model `{}` is unknown, or would not be served", wanted.name);
        let versions = self.0.get(&wanted.name).ok_or_else(unknown)?;
        let found = versions.iter().rfind(|(version, labels, _)| {
            wanted.version.as_ref().is_none_or(|wanted| version == wanted || labels.contains(wanted))
        });
        let version = || format!("`{}` of model `{}` is unknown", wanted.version.as_deref().unwrap_or(""), wanted.name);
        found.map(|(.., served)| served.clone()).ok_or_else(version)
    }
}

/// Describes an ensemble whose models were described before it.
fn ensemble(found: &Found, served: &mut Described) -> Description {
    let what = format!("{}/{}", found.name, found.version);
    let settings = &found.settings;
    let bound = settings.ensemble.as_ref().ok_or_else(|| "is no ensemble".to_owned()).and_then(|graph| {
        let steps = workshop::open_steps(found)?.steps;
        let bound = ensemble::bind(graph, steps, &|wanted| served.look(wanted))?;
        settings.declared.as_ref().map_or(Ok(()), |declared| declared::check(declared, &bound.signature))?;
        labels::read(settings, &found.folder, &bound.signature)?;
        Ok((graph.steps.len(), bound))
    });
    let (steps, bound) = match bound {
        Ok(bound) => bound,
        Err(problem) => return Description { what, lines: Vec::new(), problem: Some(problem) },
    };
    let signature = Arc::new(bound.signature);
    let inputs = signature.inputs.iter().map(|spec| line("input", spec));
    let mut lines: Vec<_> = inputs.chain(signature.outputs.iter().map(|spec| line("output", spec))).collect();
    lines.push(format!("an ensemble of {steps} steps, which run with those of other calls"));
    lines.extend(settings.warnings.iter().map(|warning| format!("warning: {warning}")));
    served.add(&found.name, &found.version, settings, &signature, bound.batches, false);
    Description { what, lines, problem: None }
}

fn line(kind: &str, spec: &TensorSpec) -> String {
    let dims: Vec<_> = spec.dims.iter().map(|dim| dim.map_or_else(|| "any".to_owned(), |n| n.to_string())).collect();
    let shape = if dims.is_empty() { "a single value".to_owned() } else { format!("of shape {}", dims.join(" x ")) };
    match spec.dtype {
        Some(dtype) => format!("{kind} `{}`: {dtype}, {shape}", spec.name),
        None => {
            format!("{kind} `{}`: of a type that the protocol cannot carry, so the model cannot be called", spec.name)
        }
    }
}

fn together(batches: bool, decoupled: bool) -> &'static str {
    match (batches, decoupled) {
        (_, true) => "one call yields any number of answers",
        (true, false) => "calls that wait at the same time run as one batch",
        (false, false) => "calls run one by one",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ModelSettings, Reader, Sample,
        testing::{Opener, directory},
    };

    #[test]
    fn each_model_is_described_or_its_problem_is() {
        let directory = directory(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "corrupt"), ("c/model.onnx", "ok")]);
        let settings = Settings { directories: vec![directory.path().to_owned()], ..Settings::default() };
        let descriptions = describe(&settings, &Opener::default());
        assert_eq!(descriptions[0].what, "a/1");
        assert_eq!(
            descriptions[0].lines,
            [
                "input `x`: FP32, of shape any x 4",
                "output `y`: FP32, of shape any x 4",
                "calls that wait at the same time run as one batch",
            ]
        );
        assert_eq!(descriptions[1].problem.as_deref(), Some("not a model: corrupt"));
        assert_eq!(descriptions[2].problem.as_deref(), Some("has no version: expected `c/1/model.onnx`"));
    }

    #[test]
    fn what_a_configuration_says_is_held_against_the_model() {
        let directory = directory(&[("a/1/model.onnx", "ok")]);
        let described = |change: &dyn Fn(&mut ModelSettings)| {
            let mut settings = Settings { directories: vec![directory.path().to_owned()], ..Settings::default() };
            change(&mut settings.defaults);
            describe(&settings, &Opener::default()).remove(0)
        };
        let warned = described(&|settings| settings.warnings = vec!["optimization: has no effect".to_owned()]);
        assert_eq!(warned.lines[3], "warning: optimization: has no effect");
        let sample = Sample { name: "s".into(), inputs: Vec::new(), runs: 1 };
        let sampled = described(&|settings| settings.samples = vec![sample.clone()]);
        assert_eq!(sampled.problem.as_deref(), Some("warm-up sample `s`: input `x` is missing"));
    }

    #[test]
    fn an_ensemble_is_described_beside_its_models_or_its_problems_are() {
        let directory = directory(&[("b/1/model.onnx", "ok"), ("a/model.yaml", "b"), ("c/model.yaml", "none")]);
        let reader = Reader::new(|source, defaults| {
            let file = std::fs::read_to_string(source.folder.join("model.yaml")).unwrap();
            let what = ensemble::What::Model(ModelRef { name: file.into(), version: None });
            let named = |name: &str, tensor: &str| vec![(name.into(), tensor.into())];
            let steps = vec![ensemble::Step { what, inputs: named("x", "in"), outputs: named("y", "out") }];
            let graph = ensemble::Settings { steps, in_flight: 1, inputs: None, outputs: None };
            Ok(ModelSettings { ensemble: Some(Arc::new(graph)), ..defaults.clone() })
        });
        let directories = vec![directory.path().to_owned()];
        let settings = Settings { directories, reader: Some(reader), ..Settings::default() };
        let descriptions = describe(&settings, &Opener::default());
        assert_eq!(descriptions.iter().map(|one| &*one.what).collect::<Vec<_>>(), ["a/1", "b/1", "c/1"]);
        assert_eq!(descriptions[0].lines[0], "input `in`: FP32, of shape any x 4");
        let problem = descriptions[2].problem.as_deref().unwrap();
        assert!(problem.contains("step 1 (`none`): model `none` is unknown, or would not be served"), "{problem}");
    }
}

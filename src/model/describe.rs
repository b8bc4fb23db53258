//! What `sluicegate check` says of each model: inputs, outputs and problems, in plain words.
//!
//! Opens every model once and runs none.

use super::{
    Settings, declared, labels, samples,
    scan::scan,
    shapes::shapes,
    workshop::{check_rows, may_batch},
};
use crate::{
    backend::{Open, SessionSettings},
    tensor::TensorSpec,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
                let shapes = declared.and_then(|()| shapes(settings, signature, &backend.axis_names()));
                let shapes = match shapes {
                    Ok(shapes) => shapes,
                    Err(reason) => return Description { what, lines: Vec::new(), problem: Some(reason) },
                };
                let signature = &shapes.signature;
                let batches = may_batch(settings, signature);
                let rows = check_rows(settings, signature);
                let padding = shapes.padding.as_ref();
                let sampled = rows.and_then(|()| samples::make(settings, signature, batches, padding));
                let labels = match sampled.and_then(|_| labels::read(settings, &found.folder, signature)) {
                    Ok(labels) => labels,
                    Err(reason) => return Description { what, lines: Vec::new(), problem: Some(reason) },
                };
                let inputs = signature.inputs.iter().map(|spec| line("input", spec));
                let outputs = signature.outputs.iter().map(|spec| line("output", spec));
                let mut lines: Vec<_> = inputs.chain(outputs).collect();
                lines.push(together(batches, backend.is_decoupled()).to_owned());
                lines.extend(shapes.lines.iter().cloned());
                let labelled = signature.outputs.iter().zip(&labels).filter_map(|(spec, labels)| {
                    let count = labels.as_ref()?.len();
                    Some(format!("classes of `{}` have {count} labels", spec.name))
                });
                lines.extend(labelled);
                lines.extend(settings.warnings.iter().map(|warning| format!("warning: {warning}")));
                return Description { what, lines, problem: None };
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "opening it panicked".to_owned(),
        };
        Description { what, lines: Vec::new(), problem: Some(problem) }
    }));
    descriptions.sort_by(|a, b| a.what.cmp(&b.what));
    descriptions
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
        ModelSettings, Sample,
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
}

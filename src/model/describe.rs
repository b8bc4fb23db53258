//! What `sluicegate check` says of each model: inputs, outputs and problems, in plain words.
//!
//! Opens and measures every model once, as the loader does, and serves none.

use super::{
    CacheScope, CacheSettings, Settings,
    budget::mib,
    declared,
    ensemble::{self, Served},
    labels, samples,
    scan::{Found, scan},
    shapes::Shapes,
    workshop::{self, First, Graphs, Workshop, guarded, held, innermost_first, kept, key, want},
};
use crate::{
    backend::Open,
    call::ModelRef,
    telemetry::metrics::Metrics,
    tensor::{Signature, TensorSpec},
};
use std::{collections::HashMap, sync::Arc};

/// What is known of one version of a model, or of something that should have been one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `NAME/VERSION`, or a path.
    pub what: String,
    /// Sentences about it; empty if there is a problem.
    pub lines: Vec<String>,
    /// Why it would not be served.
    pub problem: Option<String>,
    /// What it takes and yields, if it would be served.
    pub signature: Option<Arc<Signature>>,
}

/// Describes every model that `settings` would load, with `lanes` lanes. Blocks while models are opened and measured.
pub fn describe(settings: &Settings, opener: Arc<dyn Open>, lanes: usize) -> Vec<Description> {
    let (found, problems) = scan(settings);
    let problem = |what, reason| Description { what, lines: Vec::new(), problem: Some(reason), signature: None };
    let mut descriptions: Vec<_> =
        problems.into_iter().map(|found| problem(found.about.to_string(), found.reason)).collect();
    let (ensembles, found): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| found.settings.ensemble.is_some() && found.fault.is_none());
    let mut served = Described::default();
    let metrics = Arc::new(Metrics::new());
    let workshop = Workshop { settings: Arc::new(settings.clone()), opener, metrics, lanes, explain: true };
    // As the loader does: who runs on lanes is known before the cores are divided among the others.
    let (mut others, mut shares) = (Vec::new(), Vec::new());
    let mut tell = |found: &Found, first: Result<First, String>, threads: usize| {
        let told = first.and_then(|mut first| {
            let lines = guarded(|| lines(&workshop, found, &mut first, threads))?;
            Ok((lines, first))
        });
        let what = format!("{}/{}", found.name, found.version);
        match told {
            Ok((lines, First { backend, shapes, decision, share, .. })) => {
                served.add(found, &shapes, decision.batches, backend.is_decoupled());
                // Held to the end: whether all models fit is asked of all together.
                shares.push(share);
                Description { what, lines, problem: None, signature: Some(shapes.signature) }
            }
            Err(reason) => problem(what, reason),
        }
    };
    for found in found {
        match guarded(|| workshop.look(&found)) {
            Ok(Some(first)) if first.decision.turn_rows.is_some() => descriptions.push(tell(&found, Ok(first), 0)),
            Ok(first) => others.push((found, first)),
            Err(reason) => descriptions.push(tell(&found, Err(reason), 0)),
        }
    }
    let wants: Vec<_> = others.iter().map(|(found, _)| want(found)).collect();
    for ((found, looked), threads) in others.into_iter().zip(settings.budget.divide(&wants, &[])) {
        let first = match looked {
            Some(first) => Ok(first),
            None => guarded(|| workshop.first(&found, workshop.wide(&found.settings, threads))),
        };
        descriptions.push(tell(&found, first, threads));
    }
    let graphs = workshop::graphs(&ensembles);
    for found in innermost_first(ensembles) {
        descriptions.push(ensemble(&found, &graphs, &mut served));
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
    fn add(&mut self, found: &Found, shapes: &Shapes, batches: bool, decoupled: bool) {
        let signature = Arc::clone(&shapes.signature);
        let optional = shapes.absent.names(&signature);
        self.served(found, Served { signature, batches, decoupled, optional });
    }

    fn served(&mut self, found: &Found, served: Served) {
        let labels = found.settings.routing.labels.iter().filter(|(_, of)| **of == found.version);
        let labels = labels.map(|(label, _)| Arc::clone(label)).collect();
        let versions = self.0.entry(Arc::clone(&found.name)).or_default();
        versions.push((Arc::clone(&found.version), labels, served));
        // Models on lanes are described before others, whatever their version.
        versions.sort_by_key(|(version, ..)| version.parse::<u64>().ok());
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
fn ensemble(found: &Found, graphs: &Graphs, served: &mut Described) -> Description {
    let what = format!("{}/{}", found.name, found.version);
    let settings = &found.settings;
    let bound = settings.ensemble.as_ref().ok_or_else(|| "is no ensemble".to_owned()).and_then(|graph| {
        let opened = guarded(|| workshop::open_steps(found, graphs))?;
        let bound = ensemble::bind(graph, opened.steps, &|wanted| served.look(wanted))?;
        settings.declared.as_ref().map_or(Ok(()), |declared| declared::check(declared, &bound.signature))?;
        labels::of(settings, &opened.labels, &bound.signature)?;
        Ok((graph.steps.len(), bound))
    });
    let (steps, bound) = match bound {
        Ok(bound) => bound,
        Err(problem) => return Description { what, lines: Vec::new(), problem: Some(problem), signature: None },
    };
    let signature = Arc::new(bound.signature);
    let inputs = signature.inputs.iter().map(|spec| line("input", spec));
    let mut lines: Vec<_> = inputs.chain(signature.outputs.iter().map(|spec| line("output", spec))).collect();
    lines.push(format!("an ensemble of {steps} steps, which run with those of other calls"));
    lines.extend(settings.warnings.iter().map(|warning| format!("warning: {warning}")));
    served.served(
        found,
        Served { signature: Arc::clone(&signature), batches: bound.batches, decoupled: false, optional: Vec::new() },
    );
    Description { what, lines, problem: None, signature: Some(signature) }
}

/// What is said of a model that can be served; `threads` is 0 for one on lanes.
fn lines(workshop: &Workshop, found: &Found, first: &mut First, threads: usize) -> Result<Vec<String>, String> {
    let settings = &found.settings;
    // What the loader does before it serves a model: it may be refused for that.
    let samples = samples::make(settings, &first.shapes, first.decision.batches)?;
    samples::run(&samples, &mut *first.backend)?;
    workshop::fill_up(found, &mut *first.backend, &mut first.shapes)?;
    first.backend.ready().map_err(|error| error.to_string())?;
    let signature = &first.shapes.signature;
    let inputs = signature.inputs.iter().map(|spec| line("input", spec));
    let outputs = signature.outputs.iter().map(|spec| line("output", spec));
    let mut lines: Vec<_> = inputs.chain(outputs).collect();
    lines.push(together(first.decision.batches, first.backend.is_decoupled(), first.decision.mixed).to_owned());
    lines.extend(first.shapes.lines.iter().cloned());
    let labelled = signature.outputs.iter().zip(&first.labels).filter_map(|(spec, labels)| {
        Some(format!("classes of `{}` have {} labels", spec.name, labels.as_ref()?.len()))
    });
    lines.extend(labelled);
    let instances = settings.instances.unwrap_or(1);
    let sessions = match first.decision.turn_rows {
        Some(_) => {
            lines.push(format!("runs on the event loop: {}", first.decision.why));
            workshop.lanes + 1
        }
        None => {
            let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
            let (instances, threads) = (count(instances, "instance"), count(threads, "thread"));
            lines.push(format!("runs on {instances} of {threads}: {}", first.decision.why));
            let shares = settings.shares_weights() && first.backend.another().is_some();
            if shares { 1 } else { settings.instances.unwrap_or(1) }
        }
    };
    if sessions > 1 {
        // As the loader asks for what it is about to open, so that both refuse the same.
        let nothing = workshop.settings.budget.take(&key(found), 0, 0)?;
        drop(std::mem::replace(&mut first.share, nothing));
        first.share = workshop.share(found, 0, sessions)?;
    }
    let memory = held(&*first.backend, found) * sessions as u64;
    first.share.set(0, memory.saturating_add(kept(settings)));
    let one = if sessions == 1 { String::new() } else { format!(", in {sessions} sessions") };
    lines.push(format!("holds {} of memory{one}", mib(memory)));
    lines.extend(settings.cache.filter(|_| !first.backend.is_decoupled()).map(keeps));
    lines.extend(first.backend.notes());
    let called = settings.routing.labels.iter().filter(|(_, version)| **version == found.version);
    lines.extend(called.map(|(label, _)| format!("callers may name it by the label `{label}`")));
    lines.extend(settings.warnings.iter().map(|warning| format!("warning: {warning}")));
    Ok(lines)
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

fn keeps(CacheSettings { memory, age, scope }: CacheSettings) -> String {
    let whose = match scope {
        CacheScope::Identity => "the calls of one identity",
        CacheScope::Model => "all who may call it",
    };
    format!("keeps answers for {age:?}, in {} at most, and shares them among {whose}", mib(memory as u64))
}

fn together(batches: bool, decoupled: bool, mixed: bool) -> &'static str {
    match (batches, decoupled, mixed) {
        (_, true, _) => "one call yields any number of answers",
        (true, false, false) => "calls that wait at the same time run as one batch",
        (true, false, true) => {
            "calls that wait at the same time run as one batch, as is asked for, though its rows depend on each other: \
             a call may be answered otherwise than alone"
        }
        (false, false, false) => "calls run one by one",
        (false, false, true) => {
            "calls run one by one: its rows depend on each other (`batching.enabled: true` runs them together all the same)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Fill, ModelSettings, Reader, Sample, SampleInput,
        testing::{Opener, directory},
    };

    #[test]
    fn each_model_is_described_or_its_problem_is() {
        let directory = directory(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "corrupt"), ("c/model.onnx", "ok")]);
        let settings = Settings { directories: vec![directory.path().to_owned()], ..Settings::default() };
        let descriptions = describe(&settings, Arc::new(Opener::default()), 0);
        assert_eq!(descriptions[0].what, "a/1");
        assert_eq!(
            descriptions[0].lines,
            [
                "input `x`: FP32, of shape any x 4",
                "output `y`: FP32, of shape any x 4",
                "calls that wait at the same time run as one batch",
                "runs on 1 instance of 1 thread: there are no lanes",
                "holds 1 KiB of memory",
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
            describe(&settings, Arc::new(Opener::default()), 0).remove(0)
        };
        let warned = described(&|settings| settings.warnings = vec!["optimization: has no effect".to_owned()]);
        assert_eq!(warned.lines.last().unwrap(), "warning: optimization: has no effect");
        let cache =
            CacheSettings { memory: 5 << 20, age: std::time::Duration::from_secs(60), scope: CacheScope::Identity };
        let keeps = described(&|settings| settings.cache = Some(cache));
        let line = "keeps answers for 60s, in 5.0 MiB at most, and shares them among the calls of one identity";
        assert_eq!(keeps.lines.last().unwrap(), line);
        let sample = Sample { name: "s".into(), inputs: Vec::new(), outputs: Vec::new(), runs: 1 };
        let sampled = described(&|settings| settings.samples = vec![sample.clone()]);
        assert_eq!(sampled.problem.as_deref(), Some("warm-up sample `s`: input `x` is missing"));
    }

    #[test]
    fn what_the_loader_refuses_for_a_run_is_not_said_to_be_served() {
        // It fails on zeros, as warm-up does not mind and a sample does.
        let directory = directory(&[("a/1/model.onnx", "fails")]);
        let described = |samples: Vec<Sample>| {
            let mut settings = Settings { directories: vec![directory.path().to_owned()], ..Settings::default() };
            settings.defaults.samples = samples;
            describe(&settings, Arc::new(Opener::default()), 0).remove(0)
        };
        assert_eq!(described(Vec::new()).problem, None);
        let input = SampleInput {
            name: "x".into(),
            dtype: crate::tensor::DataType::Fp32,
            dims: vec![1, 4],
            fill: Fill::Zeros,
            given: None,
        };
        let problem = described(vec![Sample { name: "s".into(), inputs: vec![input], outputs: Vec::new(), runs: 1 }])
            .problem
            .unwrap();
        assert!(problem.starts_with("warm-up sample `s` failed: "), "{problem}");
    }

    #[test]
    fn where_models_run_and_why_is_said_of_all_together() {
        let files = [("a/1/model.onnx", "ok"), ("b/1/model.onnx", "slow"), ("c/1/model.onnx", "ok")];
        let directory = directory(&files);
        let turn = crate::schedule::TurnSettings {
            run: std::time::Duration::from_millis(1),
            ..crate::schedule::TurnSettings::default()
        };
        let reader = crate::model::Reader::new(|source, defaults| {
            let execution =
                if source.name == "c" { crate::schedule::Execution::Thread } else { crate::schedule::Execution::Auto };
            Ok(ModelSettings { execution, instances: Some(2), ..defaults.clone() })
        });
        for name in ["a", "b", "c"] {
            std::fs::write(directory.path().join(name).join("model.yaml"), "").unwrap();
        }
        let settings = Settings {
            directories: vec![directory.path().to_owned()],
            budget: crate::model::budget::Budget::new(8, Some(13)),
            reader: Some(reader),
            turn,
            ..Settings::default()
        };
        let described = describe(&settings, Arc::new(Opener::default()), 1);
        let line = |at: usize| described[at].lines.iter().find(|line| line.starts_with("runs on")).cloned();
        assert_eq!(line(0).unwrap(), "runs on the event loop: a run takes no longer than `runtime.turn.run`");
        assert_eq!(
            line(1).unwrap(),
            "runs on 2 instances of 2 threads: a run takes longer than `runtime.turn.run`",
            "of 8 cores, half"
        );
        // Two bytes twice for the first, four bytes twice for the second: one is left.
        let problem = described[2].problem.as_deref().unwrap();
        assert!(problem.contains("of 1 KiB for models (`models.memory`) are left"), "{problem}");
    }

    #[test]
    fn memory_is_asked_for_as_the_loader_asks_for_it() {
        let directory = directory(&[("a/1/model.onnx", "ok")]);
        let directories = vec![directory.path().to_owned()];
        let cache =
            CacheSettings { memory: 5 << 20, age: std::time::Duration::from_secs(60), scope: CacheScope::Identity };
        // Two bytes for each of two instances are wanted, and there are three.
        let budget = crate::model::budget::Budget::new(1, Some((5 << 20) + 3));
        let defaults = ModelSettings { instances: Some(2), cache: Some(cache), ..ModelSettings::default() };
        let settings = Settings { directories, budget, defaults, ..Settings::default() };
        let problem = describe(&settings, Arc::new(Opener::default()), 0).remove(0).problem.unwrap();
        assert!(problem.contains("needs about 5.0 MiB of memory, and 5.0 MiB of 5.0 MiB"), "{problem}");
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
        let descriptions = describe(&settings, Arc::new(Opener::default()), 1);
        assert_eq!(descriptions.iter().map(|one| &*one.what).collect::<Vec<_>>(), ["a/1", "b/1", "c/1"]);
        assert_eq!(descriptions[0].lines[0], "input `in`: FP32, of shape any x 4");
        let problem = descriptions[2].problem.as_deref().unwrap();
        assert!(problem.contains("step 1 (`none`): model `none` is unknown, or would not be served"), "{problem}");
    }
    #[test]
    fn ensembles_in_a_circle_and_steps_that_cannot_be_made_are_problems_of_their_own() {
        let files = [("b/1/model.onnx", "ok"), ("e1/model.yaml", "e2"), ("e2/model.yaml", "e1"), ("t/model.yaml", "")];
        let directory = directory(&files);
        let merges =
            r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}"#;
        std::fs::write(directory.path().join("t/tokenizer.json"), merges).unwrap();
        let reader = Reader::new(|source, defaults| {
            let file = std::fs::read_to_string(source.folder.join("model.yaml")).unwrap();
            let what = match &*file {
                "" => ensemble::What::Builtin(crate::builtin::Settings::Tokenize(crate::builtin::tokenize::Settings {
                    file: "tokenizer.json".into(),
                    max_length: 8,
                    fill: false,
                    special_tokens: true,
                    max_bytes: 64,
                    max_texts: 8,
                })),
                name => ensemble::What::Model(ModelRef { name: name.into(), version: None }),
            };
            let named = |name: &str, tensor: &str| vec![(name.into(), tensor.into())];
            let steps = vec![ensemble::Step { what, inputs: named("text", "in"), outputs: named("input_ids", "out") }];
            let graph = ensemble::Settings { steps, in_flight: 1, inputs: None, outputs: None };
            Ok(ModelSettings { ensemble: Some(Arc::new(graph)), ..defaults.clone() })
        });
        let directories = vec![directory.path().to_owned()];
        let settings = Settings { directories, reader: Some(reader), ..Settings::default() };
        let descriptions = describe(&settings, Arc::new(Opener::default()), 1);
        let problem = |at: usize| descriptions[at].problem.as_deref();
        assert_eq!((&*descriptions[0].what, problem(0)), ("b/1", None), "the others are described all the same");
        assert_eq!(problem(1), Some("`e1` would be a part of itself"));
        assert_eq!(problem(2), Some("`e2` would be a part of itself"));
        assert!(problem(3).unwrap().starts_with("step 1 (`builtin/tokenize`): "), "{:?}", problem(3));
    }
}

//! `models`, `models.defaults` and `model.yaml`.

use super::{at_most, ensemble::ensemble, session, traffic::traffic};
use crate::{
    config::{
        Batching, Control, Kind, ModelConfig, ModelDefaults, Models, Problems,
        raw::{self, Amount, Execution, Load, Versions, Warmup},
        units::Number,
    },
    model::{InputSettings, Pad, RaggedSettings, watch},
    schedule::PREFERRED,
    tensor::Marks,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Component, Path},
    sync::Arc,
};

pub(super) fn models(raw: &raw::Models, folder: &Path, problems: &mut Problems) -> Models {
    if raw.directory.0.is_empty() {
        problems.missing("models.directory", "the list is empty, expected one folder at least");
    }
    if let Load::Named(names) = &raw.load {
        names.iter().enumerate().for_each(|(at, name)| check_name(&format!("models.load[{at}]"), name, problems));
    }
    for (at, name) in raw.required.iter().enumerate() {
        let path = format!("models.required[{at}]");
        check_name(&path, name, problems);
        let loads = match &raw.load {
            Load::All => true,
            Load::None => false,
            Load::Named(names) => names.contains(name),
        };
        if !loads {
            problems.push(path, format!("`{name}` is not in models.load, so it would be waited for for ever"));
        }
    }
    check_defaults(
        "models.defaults.",
        &raw.defaults.versions,
        (raw.defaults.instances, raw.defaults.threads),
        &raw.defaults.batching,
        problems,
    );
    session::providers("models.defaults.", &raw.defaults.providers, problems);
    session::options("models.defaults.session", &raw.defaults.session, problems);
    routing("models.defaults.", &raw.defaults.warmup, raw.defaults.traffic.as_ref(), problems);
    Models {
        directories: raw.directory.0.iter().map(|path| folder.join(path)).collect(),
        control: match raw.control {
            raw::Control::Explicit => Control::Explicit,
            raw::Control::Fixed => Control::Fixed,
            raw::Control::Watch => {
                Control::Watch(watch::Settings { every: raw.watch.every.0, settle: raw.watch.settle.0 })
            }
        },
        load: raw.load.clone(),
        required: raw.required.iter().map(|name| name.as_str().into()).collect(),
        memory: raw.memory,
        probe: raw.probe,
        probe_timeout: raw.probe_timeout.0,
        probe_memory: raw.probe_memory.map(|size| size.0 as u64),
        optimized_cache: raw.optimized_cache.as_ref().map(|cache| {
            if cache.directory.as_os_str().is_empty() {
                problems.missing("models.optimized_cache.directory", "expected a folder that nobody else may write");
            }
            (folder.join(&cache.directory), cache.size.0 as u64)
        }),
        defaults: model_defaults(&raw.defaults),
        written: raw.defaults.clone(),
    }
}

/// What models demand of the rest.
pub(super) fn check(raw: &raw::Config, problems: &mut Problems) {
    if raw.runtime.kind == Kind::WorkStealing && raw.models.defaults.execution == Execution::Turn {
        problems.push("models.defaults.execution", "there are no turns with runtime.kind work_stealing; write auto");
    }
    check_order("models.defaults.", raw.models.defaults.execution, &raw.models.defaults.batching, problems);
}

fn check_order(prefix: &str, execution: Execution, batching: &raw::Batching, problems: &mut Problems) {
    if batching.preserve_order && execution == Execution::Turn {
        let text = "is not for `execution: turn`, where each lane answers by itself; write auto or thread there";
        problems.push(format!("{prefix}batching.preserve_order"), text);
    }
}

/// What a model may say for itself, as the program sees it.
pub(in crate::config) fn model_defaults(raw: &raw::ModelDefaults) -> ModelDefaults {
    ModelDefaults {
        versions: raw.versions.clone(),
        instances: raw.instances,
        threads: raw.threads,
        execution: raw.execution,
        share_weights: raw.share_weights,
        batching: batching(&raw.batching),
        pad: pad(&raw.batching.pad),
        rows: raw.batching.rows,
        arena: raw.arena,
        providers: raw.providers.clone(),
        session: raw.session.clone(),
        run_limit: raw.run_limit,
        warmup: raw.warmup.clone(),
        cache: raw.cache,
        traffic: raw.traffic.clone(),
    }
}

/// One model's own configuration. Label files must lie in the model's folder.
pub(in crate::config) fn model(raw: &raw::ModelFile, problems: &mut Problems) -> ModelConfig {
    check_defaults("", &raw.versions, (raw.instances, raw.threads), &raw.batching, problems);
    session::providers("", &raw.providers, problems);
    session::options("session", &raw.session, problems);
    check_order("", raw.execution, &raw.batching, problems);
    routing("", &raw.warmup, raw.traffic.as_ref(), problems);
    for label in raw.version_labels.keys().filter(|label| !is_label(label)) {
        let expected = "expected letters, digits and `._-`, and not digits alone: it stands where a version does";
        problems.push(format!("version_labels.{label}"), format!("`{label}` is not a label, {expected}"));
    }
    for (output, file) in &raw.class_labels {
        if !is_inside(file) {
            problems.push(format!("class_labels.{output}"), format!("`{}` {OUTSIDE}", file.display()));
        }
    }
    ModelConfig {
        defaults: model_defaults(&raw.shared()),
        inputs: inputs(&raw.inputs, problems),
        class_labels: raw.class_labels.iter().map(|(name, file)| (name.as_str().into(), file.clone())).collect(),
        ensemble: raw.ensemble.as_ref().map(|raw| ensemble(raw, problems)),
        version_labels: raw.version_labels.iter().map(|(name, version)| (name.as_str().into(), version.0)).collect(),
        ..ModelConfig::default()
    }
}

/// What is said of inputs: that it fits the model is seen when that is there.
fn inputs(raw: &BTreeMap<String, raw::Input>, problems: &mut Problems) -> Vec<(Arc<str>, InputSettings)> {
    let mut inputs = Vec::with_capacity(raw.len());
    for (name, raw::Input { pad, mask, optional, ragged }) in raw {
        if matches!(pad, Some(Value::Array(_) | Value::Object(_))) {
            problems.push(format!("inputs.{name}.pad"), "is several values, expected a number, true, false or a text");
        }
        let mask = mask.as_deref().map(Arc::from);
        let ragged = ragged.as_ref().map(|raw| ragged_settings(&format!("inputs.{name}.ragged"), raw, problems));
        let input = InputSettings { pad: pad.clone(), mask, optional: *optional, ragged };
        inputs.push((name.as_str().into(), input));
    }
    inputs
}

fn ragged_settings(path: &str, raw: &raw::Ragged, problems: &mut Problems) -> RaggedSettings {
    let said = |what: &Marks| match what {
        Marks::Counts => &raw.counts,
        Marks::Starts => &raw.starts,
        Marks::Ends => &raw.ends,
        Marks::Bounds => &raw.bounds,
    };
    let mut made: Vec<(Marks, Arc<str>)> = Vec::new();
    for (what, target) in Marks::ALL.iter().filter_map(|what| Some((*what, said(what).as_deref()?))) {
        if let Some((other, _)) = made.iter().find(|(_, before)| **before == *target) {
            let text = format!("`{target}` is the input for `{}` too", other.name());
            problems.push(format!("{path}.{}", what.name()), text);
        }
        made.push((what, target.into()));
    }
    RaggedSettings { made, outputs: raw.outputs.iter().map(|output| output.as_str().into()).collect() }
}

/// Hundredths; what is wrong with it has been said by [`check_pad`].
fn pad(raw: &raw::Pad) -> Pad {
    match raw {
        raw::Pad::Auto => Pad::Auto,
        raw::Pad::Off => Pad::Off,
        raw::Pad::Ratio(ratio) => Pad::Ratio((ratio * 100.0).round() as u32),
        raw::Pad::Lengths(lengths) => Pad::Lengths(lengths.clone()),
    }
}

/// Most lengths that inputs are filled up to, and the largest ratio: more would be no bound.
const LENGTHS: usize = 256;
const RATIO: f64 = 1000.0;

fn check_pad(prefix: &str, batching: &raw::Batching, problems: &mut Problems) {
    let path = format!("{prefix}batching.pad");
    match &batching.pad {
        raw::Pad::Ratio(ratio) if !(1.0..=RATIO).contains(ratio) => {
            problems.push(path, format!("the ratio is {ratio}, expected 1 to {RATIO}"));
        }
        raw::Pad::Lengths(lengths) if lengths.is_empty() || lengths.len() > LENGTHS => {
            problems.push(path, format!("has {} lengths, expected 1 to {LENGTHS}", lengths.len()));
        }
        raw::Pad::Lengths(lengths) if !lengths.is_sorted_by(|a, b| a < b) => {
            problems.push(path, "the lengths do not ascend");
        }
        _ => {}
    }
    if batching.rows == raw::Rows::Fixed && batching.enabled == raw::Switch::Off {
        let text = "`fixed` fills rows up to run calls together, and batching.enabled is false";
        problems.push(format!("{prefix}batching.rows"), text);
    }
}

/// Completes what is said of a file that is not [`is_inside`].
pub(in crate::config) const OUTSIDE: &str = "is not a file in the model's folder";

/// Whether a path leads down from where it starts, and nowhere else.
pub(in crate::config) fn is_inside(path: &Path) -> bool {
    !path.as_os_str().is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn batching(raw: &raw::Batching) -> Batching {
    let level = |level: usize| u32::try_from(level).unwrap_or(u32::MAX);
    Batching {
        enabled: raw.enabled,
        max_rows: raw.max_rows.0,
        max_elements: raw.max_elements,
        max_delay: raw.max_delay.0,
        max_queue: raw.max_queue.0,
        priorities: level(raw.priorities.0),
        default_priority: match raw.default_priority {
            Amount::Auto => level(raw.priorities.0),
            Amount::Exactly(default) => level(default),
        },
        preferred: preferred(&raw.preferred),
        timeout: raw.timeout.map(|timeout| timeout.0),
        when_late: raw.when_late,
        preserve_order: raw.preserve_order,
    }
}

fn preferred(raw: &[Number]) -> Vec<usize> {
    let mut sizes: Vec<usize> = raw.iter().map(|size| size.0).collect();
    sizes.sort_unstable();
    sizes
}

/// Most instances of a model, and most threads of one.
const MOST: usize = 1024;

/// Most levels of priority: an order and no more, but a number that people can still mean.
const LEVELS: usize = 1000;

fn check_priorities(prefix: &str, batching: &raw::Batching, problems: &mut Problems) {
    let levels = batching.priorities.0;
    if levels > LEVELS {
        problems.push(format!("{prefix}batching.priorities"), format!("{levels} is above {LEVELS}"));
    }
    if let Amount::Exactly(level) = batching.default_priority
        && level > levels
    {
        let path = format!("{prefix}batching.default_priority");
        problems.push(path, format!("{level} is below the lowest level, which is {levels} (`priorities`)"));
    }
}

fn check_preferred(prefix: &str, batching: &raw::Batching, problems: &mut Problems) {
    let (sizes, most) = (&batching.preferred, batching.max_rows.0);
    if sizes.len() > PREFERRED {
        let text = format!("has {} sizes, expected {PREFERRED} at most", sizes.len());
        problems.push(format!("{prefix}batching.preferred"), text);
    }
    for (at, size) in sizes.iter().enumerate().filter(|(_, size)| size.0 > most) {
        let text = format!("{} is above {most} (`max_rows`): no batch has so many rows", size.0);
        problems.push(format!("{prefix}batching.preferred[{at}]"), text);
    }
}

fn check_defaults(
    prefix: &str,
    versions: &Versions,
    (instances, threads): (Amount, Amount),
    batching: &raw::Batching,
    problems: &mut Problems,
) {
    check_priorities(prefix, batching, problems);
    check_pad(prefix, batching, problems);
    check_preferred(prefix, batching, problems);
    at_most(&format!("{prefix}instances"), instances, MOST, problems);
    at_most(&format!("{prefix}threads"), threads, MOST, problems);
    if matches!(versions, Versions::Listed(list) if list.is_empty()) {
        problems.missing(format!("{prefix}versions"), "the list is empty, expected one version at least");
    }
}

/// What is said of warming up and of traffic.
fn routing(prefix: &str, warmup: &Warmup, split: Option<&raw::Traffic>, problems: &mut Problems) {
    if let Warmup::Files(files) = warmup {
        if files.is_empty() {
            problems.missing(format!("{prefix}warmup"), "the list is empty, expected one file at least; or write auto");
        }
        for (at, file) in files.iter().enumerate().filter(|(_, file)| !is_inside(file)) {
            problems.push(format!("{prefix}warmup[{at}]"), format!("`{}` {OUTSIDE}", file.display()));
        }
    }
    if let Some(split) = split {
        traffic(&format!("{prefix}traffic"), split, problems);
    }
}

/// What may stand where a version stands, and is none.
fn is_label(label: &str) -> bool {
    is_plain(label) && !label.bytes().all(|byte| byte.is_ascii_digit())
}

/// The grammar of names, of models and of their files (attack M1).
pub(in crate::config) fn is_plain(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn check_name(path: &str, name: &str, problems: &mut Problems) {
    if !is_plain(name) {
        problems.push(path, format!("`{name}` is not a model's name, expected letters, digits and `._-`"));
    }
}

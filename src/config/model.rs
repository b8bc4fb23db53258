//! What one model says of itself: `model.yaml`, ours, and Triton's model configuration, laid over each other.
//!
//! Defaults are below both. The two files share some settings: where one is silent the other decides, and where they
//! differ nobody can know which one is meant, so that is a problem which names both. What a file says is read by
//! `pbtxt` and `raw`; here it is only laid together.

use super::{
    ModelConfig, Problem, Problems,
    later::{LATER, LATER_IN_MODELS},
    pbtxt::{self, Said, Word},
    raw, source, validate,
};
use crate::wire::proto;
use serde::Serialize;
use serde_json::Value;
use std::{
    fmt::Display,
    fs::{self, File},
    io::{ErrorKind, Read},
    path::Path,
    sync::Arc,
};

/// Ours, and Triton's.
const OURS: &str = "model.yaml";
const THEIRS: &str = "config.pbtxt";
/// What a configuration that a call brought is called in messages.
const BROUGHT: &str = "config";

/// Largest such file, bytes. Those that people write have a few thousand.
const LARGEST: usize = 1 << 20;

/// Keys of `model.yaml` whose settings a model configuration of Triton's has too.
const SHARED: [&str; 5] = ["versions", "instances", "batching", "cache", "class_labels"];

/// What keys of `model.yaml` are called in Triton's model configuration.
const NAMES: [(&str, &str); 12] = [
    ("versions", "version_policy"),
    ("instances", "instance_group"),
    ("batching.enabled", "max_batch_size"),
    ("batching.max_rows", "max_batch_size"),
    ("batching.max_delay", "dynamic_batching.max_queue_delay_microseconds"),
    ("batching.max_queue", "dynamic_batching.default_queue_policy.max_queue_size"),
    ("batching.priorities", "dynamic_batching.priority_levels"),
    ("batching.default_priority", "dynamic_batching.default_priority_level"),
    ("batching.preferred", "dynamic_batching.preferred_batch_size"),
    ("batching.timeout", "dynamic_batching.default_queue_policy.default_timeout_microseconds"),
    ("batching.when_late", "dynamic_batching.default_queue_policy.timeout_action"),
    ("batching.preserve_order", "dynamic_batching.preserve_ordering"),
];

/// Reads what the model `name` says of itself in its `folder`, over `defaults`: `config.pbtxt`, and `model.yaml` with the
/// keys of `models.defaults` and those of the model alone. `config` is a model configuration as JSON that a load call
/// brought: it stands for `config.pbtxt`, and for all of `model.yaml` that is about the same things.
///
/// # Errors
///
/// Every problem of what was read.
pub fn load_model(
    name: &str,
    folder: &Path,
    config: Option<&str>,
    defaults: &raw::ModelDefaults,
) -> Result<ModelConfig, Problems> {
    let mut problems = Problems::new(name);
    let read = |file: &str, problems: &mut Problems| {
        read(&folder.join(file)).unwrap_or_else(|problem| {
            problems.push(file, problem);
            None
        })
    };
    let (theirs, label) = match config {
        Some(_) => (None, BROUGHT),
        None => (read(THEIRS, &mut problems), THEIRS),
    };
    let said = match (config, &theirs) {
        (Some(json), _) => {
            Some(within(json).and_then(|json| proto::parse_config_json(json).map_err(|e| e.to_string())))
        }
        (None, Some(text)) => Some(proto::parse_config_text(text).map_err(|error| error.to_string())),
        (None, None) => None,
    };
    let said = match said {
        None => Said::default(),
        Some(Ok(config)) => {
            let mut found = Problems::new(label);
            let said = pbtxt::read(&config, name, label, &mut found);
            problems.absorb(label, found);
            said
        }
        Some(Err(problem)) => {
            problems.push(label, problem);
            Said::default()
        }
    };
    let ours = read(OURS, &mut problems).unwrap_or_default();
    let mut found = Problems::new(OURS);
    let (model, taken) = lay(&ours, said, config.is_some(), defaults, &mut found);
    let mut of_theirs = Problems::new(label);
    found.list.retain(|problem| match as_theirs(&taken, problem) {
        Some(problem) => {
            of_theirs.list.push(problem);
            false
        }
        None => true,
    });
    problems.absorb(label, of_theirs);
    problems.absorb(OURS, found);
    problems.or(model)
}

/// A problem with a setting that was `taken` from Triton's model configuration, in the words of that; `None` for others.
fn as_theirs(taken: &[&str], problem: &Problem) -> Option<Problem> {
    let named = || NAMES.iter().filter(|(key, _)| taken.contains(key));
    let (rest, name) = named().find_map(|(key, name)| {
        let rest = problem.path.strip_prefix(key)?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((rest, name))
    })?;
    let last = |key: &str| format!("`{}`", key.rsplit('.').next().unwrap_or(key));
    let text = named().fold(problem.text.clone(), |text, (key, name)| text.replace(&last(key), &last(name)));
    // Sizes were sorted, so that a place among them is not that in the file.
    let path = if rest.starts_with('[') { (*name).to_owned() } else { format!("{name}{rest}") };
    Some(Problem { path, text })
}

/// Lays `yaml`, the text of `model.yaml`, over what a model configuration has `said`, and that over `defaults`. Also the keys
/// that were taken from the model configuration.
fn lay(
    yaml: &str,
    said: Said,
    brought: bool,
    defaults: &raw::ModelDefaults,
    problems: &mut Problems,
) -> (ModelConfig, Vec<&'static str>) {
    let mut tree = source::tree(yaml, problems);
    source::expand(&mut tree, &|name| std::env::var(name).ok(), problems);
    let shared = LATER.iter().filter_map(|path| path.strip_prefix("models.defaults."));
    let later: Vec<&str> = shared.chain(LATER_IN_MODELS.iter().copied()).collect();
    source::refuse_later(&mut tree, &later, problems);
    source::drop_empty(&mut tree, "");
    if let (Value::Object(keys), true) = (&mut tree, brought) {
        keys.retain(|key, _| !SHARED.contains(&key.as_str()));
    }
    let own = tree.clone();
    source::underlay(&mut tree, &raw::ModelFile::from(defaults.clone()));
    let mut raw: raw::ModelFile = source::read(tree, problems);
    // What could not be read says nothing that could be compared.
    let mut taken = Vec::new();
    if problems.list.is_empty() {
        taken = settle(&mut raw, &own, &said, problems);
    }
    if raw.ensemble.is_some() && own.get("cache").is_some_and(|cache| cache != "off") {
        problems.push("cache", "is not for an ensemble: the models that it is made of keep answers, where they say so");
    }
    let config = validate::model(&raw, problems);
    let config = ModelConfig {
        file: said.file.map(Arc::from),
        declared: said.declared,
        samples: said.samples,
        notes: said.notes,
        warnings: said.warnings,
        ..config
    };
    (config, taken)
}

/// Puts what a model configuration has said where `own`, which is `model.yaml`, says nothing. The keys of what it said.
fn settle(raw: &mut raw::ModelFile, own: &Value, said: &Said, problems: &mut Problems) -> Vec<&'static str> {
    let mut one = Settle { own, taken: Vec::new(), problems };
    one.settle("versions", &mut raw.versions, said.versions.as_ref());
    one.settle("instances", &mut raw.instances, said.instances.as_ref());
    one.settle("batching.enabled", &mut raw.batching.enabled, said.enabled.as_ref());
    one.settle("batching.max_rows", &mut raw.batching.max_rows, said.max_rows.as_ref());
    one.settle("batching.max_delay", &mut raw.batching.max_delay, said.max_delay.as_ref());
    one.settle("batching.max_queue", &mut raw.batching.max_queue, said.max_queue.as_ref());
    one.settle("batching.priorities", &mut raw.batching.priorities, said.priorities.as_ref());
    one.settle("batching.default_priority", &mut raw.batching.default_priority, said.default_priority.as_ref());
    one.settle("batching.preferred", &mut raw.batching.preferred, said.preferred.as_ref());
    one.settle("batching.timeout", &mut raw.batching.timeout, said.timeout.as_ref());
    one.settle("batching.when_late", &mut raw.batching.when_late, said.when_late.as_ref());
    one.settle("batching.preserve_order", &mut raw.batching.preserve_order, said.preserve_order.as_ref());
    one.cache(&mut raw.cache, said.cache.as_ref());
    if let Some(Word { value, text }) = &said.ensemble {
        match &raw.ensemble {
            None => raw.ensemble = Some(value.clone()),
            Some(ours) if ours == value => {}
            Some(_) => one.contradiction("ensemble", &"another graph", text),
        }
    }
    for (input, word) in &said.ragged {
        let ours = &mut raw.inputs.entry(input.clone()).or_default().ragged;
        match ours {
            None => *ours = Some(word.value.clone()),
            Some(ours) if *ours == word.value => {}
            Some(_) => {
                one.contradiction(&format!("inputs.{input}.ragged"), &"about other inputs or outputs", &word.text)
            }
        }
    }
    for (output, word) in &said.labels {
        let ours = raw.class_labels.entry(output.clone()).or_insert_with(|| word.value.clone());
        if *ours != word.value {
            let ours = ours.display().to_string();
            one.contradiction(&format!("class_labels.{output}"), &ours, &word.text);
        }
    }
    one.taken
}

struct Settle<'a> {
    own: &'a Value,
    taken: Vec<&'static str>,
    problems: &'a mut Problems,
}

impl Settle<'_> {
    fn settle<T: Clone + PartialEq + Serialize>(&mut self, key: &'static str, ours: &mut T, theirs: Option<&Word<T>>) {
        let Some(Word { value, text }) = theirs else { return };
        if self.own.pointer(&format!("/{}", key.replace('.', "/"))).is_none() {
            ours.clone_from(value);
            self.taken.push(key);
        } else if ours != value {
            let ours = serde_json::to_value(&*ours).unwrap_or_default();
            let ours = ours.as_str().map_or_else(|| ours.to_string(), str::to_owned);
            self.contradiction(key, &ours, text);
        }
    }

    /// Triton says whether answers are kept, and nothing of how.
    fn cache(&mut self, ours: &mut raw::Cache, theirs: Option<&Word<bool>>) {
        let Some(Word { value, text }) = theirs else { return };
        if (*ours != raw::Cache::Off) == *value {
            return;
        }
        if self.own.get("cache").is_some() {
            return self.contradiction("cache", &if *value { "off" } else { "on" }, text);
        }
        *ours = if *value { raw::Cache::On(raw::Keep::default()) } else { raw::Cache::Off };
    }

    fn contradiction(&mut self, key: &str, ours: &dyn Display, theirs: &str) {
        self.problems
            .push(key, format!("is {ours} and contradicts `{theirs}` in {THEIRS}; take it out of one of them"));
    }
}

/// The text of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, String> {
    // Before it is opened: opening what is no file may wait for ever.
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
        Ok(found) if !found.is_file() => return Err("is not a regular file".to_owned()),
        Ok(_) => {}
    }
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > LARGEST {
        return Err(too_large());
    }
    String::from_utf8(bytes).map(Some).map_err(|_| "is not UTF-8".to_owned())
}

fn within(text: &str) -> Result<&str, String> {
    if text.len() > LARGEST { Err(too_large()) } else { Ok(text) }
}

fn too_large() -> String {
    format!("is larger than {} MiB", LARGEST >> 20)
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;

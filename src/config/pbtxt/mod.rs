//! What a model configuration of Triton's says, in this program's words (contract 02 section 10).
//!
//! It arrives as `wire::proto` has read it, whichever form it had. What applies here becomes a setting; what does not is
//! named in a warning that says what happens instead; what would make serving the model wrong is a problem. Knows nothing of
//! `model.yaml`, and nothing of the model: whether the two fit is found out when it is opened.

mod ensemble;
mod ragged;
mod tensors;
mod warmup;

use super::{
    Problems,
    raw::{self, Amount, Switch, Versions, WhenLate},
    units::{MaxDelay, Number, Span},
    validate,
};
use crate::{
    call::Notes,
    model::Sample,
    tensor::Signature,
    wire::proto::inference::{
        ModelConfig, ModelDynamicBatching, ModelInstanceGroup, ModelQueuePolicy, model_config::SchedulingChoice,
        model_instance_group::Kind, model_queue_policy::TimeoutAction, model_version_policy::PolicyChoice,
    },
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

/// Most instances of a model: each is a session with weights of its own.
const INSTANCES: usize = 1024;
/// Warnings that are told: each is a line of the log whenever the model is loaded.
const WARNINGS: usize = 64;
/// Longest delay; beyond it, sums with the clock could overflow.
const DELAY: Duration = Duration::from_secs(365 * 86_400);

/// Parameters that Triton's back end for ONNX Runtime obeys and this program does not, and what says it in `model.yaml`; empty:
/// nothing does.
const OBEYED: [(&str, &str); 8] = [
    ("intra_op_thread_count", "threads"),
    ("inter_op_thread_count", "session.inter_op_threads"),
    ("execution_mode", "session.execution_mode"),
    ("enable_mem_arena", "arena"),
    // Memory is never planned by shapes here: callers choose them.
    ("enable_mem_pattern", ""),
    ("memory.enable_memory_arena_shrinkage", "arena"),
    ("session.use_device_allocator_for_initializers", "session.entries"),
    ("optimization.graph_optimization_level", "session.graph_optimization_level"),
];

/// A setting, and how the file has it.
#[derive(Debug)]
pub(super) struct Word<T> {
    pub(super) value: T,
    /// As the file has it, for messages.
    pub(super) text: String,
}

/// All that was said. What is `None` or empty was not.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) versions: Option<Word<Versions>>,
    pub(super) instances: Option<Word<Amount>>,
    pub(super) enabled: Option<Word<Switch>>,
    pub(super) max_rows: Option<Word<Number>>,
    pub(super) max_delay: Option<Word<MaxDelay>>,
    pub(super) max_queue: Option<Word<Number>>,
    pub(super) priorities: Option<Word<Number>>,
    pub(super) default_priority: Option<Word<Amount>>,
    pub(super) preferred: Option<Word<Vec<Number>>>,
    pub(super) timeout: Option<Word<Option<Span>>>,
    pub(super) when_late: Option<Word<WhenLate>>,
    pub(super) preserve_order: Option<Word<bool>>,
    /// Whether answers are kept.
    pub(super) cache: Option<Word<bool>>,
    /// Files in the model's folder, by output.
    pub(super) labels: BTreeMap<String, Word<PathBuf>>,
    /// The file of each version.
    pub(super) file: Option<String>,
    pub(super) declared: Option<Signature>,
    /// What belongs to inputs in which rows lie one behind the other, by input.
    pub(super) ragged: BTreeMap<String, Word<raw::Ragged>>,
    /// The graph of other models that it is.
    pub(super) ensemble: Option<Word<raw::ensemble::Ensemble>>,
    pub(super) samples: Vec<Sample>,
    pub(super) notes: Notes,
    pub(super) warnings: Vec<String>,
}

/// Reads one configuration.
struct Reader<'a> {
    config: &'a ModelConfig,
    /// The file, before each warning.
    label: &'a str,
    said: Said,
    problems: &'a mut Problems,
}

/// What `config` says of the model `name`. `label` is what the configuration is called in warnings; problems are named by
/// their place in it.
pub(super) fn read(config: &ModelConfig, name: &str, label: &str, problems: &mut Problems) -> Said {
    let mut reader = Reader { config, label, said: Said::default(), problems };
    reader.names(name);
    reader.refused();
    reader.without_effect();
    reader.batching();
    reader.instances();
    reader.versions();
    reader.file();
    reader.cache();
    reader.notes();
    reader.tensors();
    reader.ragged();
    reader.ensemble();
    reader.samples();
    reader.said
}

impl<T> Word<T> {
    fn new(value: T, text: impl Into<String>) -> Self {
        Self { value, text: text.into() }
    }
}

impl Reader<'_> {
    fn problem(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push(path, text);
    }

    fn warn(&mut self, path: &str, text: &str) {
        match self.said.warnings.len() {
            ..WARNINGS => self.said.warnings.push(format!("{} {path}: {text}", self.label)),
            WARNINGS => self.said.warnings.push(format!("{} has more that does not apply here", self.label)),
            _ => {}
        }
    }

    /// Rows are counted by a dimension that the file leaves out.
    fn counts_rows(&self) -> bool {
        self.config.max_batch_size.is_some_and(|rows| rows > 0)
    }

    fn names(&mut self, name: &str) {
        let config = self.config;
        if !config.name.is_empty() && config.name != name {
            self.problem("name", format!("is `{}`, and the model is `{name}`", shown(&config.name)));
        }
        if self.is_ensemble() && !matches!(&*config.platform, "" | "ensemble") {
            let text = format!("is `{}`, expected `ensemble` beside `ensemble_scheduling`", shown(&config.platform));
            self.problem("platform", text);
        } else if !self.is_ensemble() && !matches!(&*config.platform, "" | "onnxruntime_onnx") {
            let text =
                format!("is `{}`, expected `onnxruntime_onnx`: only ONNX models run here", shown(&config.platform));
            self.problem("platform", text);
        }
        if !matches!(&*config.backend, "" | "onnxruntime" | "onnxruntime_onnx") {
            let text = format!("is `{}`, expected `onnxruntime`: only ONNX models run here", shown(&config.backend));
            self.problem("backend", text);
        }
    }

    /// What would make every answer wrong, or no answer at all.
    fn refused(&mut self) {
        let config = self.config;
        if config.model_transaction_policy.is_some_and(|policy| policy.decoupled) {
            let text = "is true, and an ONNX model answers each call exactly once: callers would wait for more";
            self.problem("model_transaction_policy.decoupled", text);
        }
        match &config.scheduling_choice {
            Some(SchedulingChoice::SequenceBatching(_)) => {
                let text = "keeps a state between calls, and none is kept here: every call would begin a new sequence";
                self.problem("sequence_batching", text);
            }
            Some(SchedulingChoice::EnsembleScheduling(_) | SchedulingChoice::DynamicBatching(_)) | None => {}
        }
        if config.model_operations.as_ref().is_some_and(|found| !found.op_library_filename.is_empty()) {
            let text = "has libraries of operators, which are not loaded here: the model could not run";
            self.problem("model_operations", text);
        }
    }

    /// What changes how well the model runs elsewhere, and nothing here.
    fn without_effect(&mut self) {
        let config = self.config;
        let agents = config.model_repository_agents.as_ref().is_some_and(|found| !found.agents.is_empty());
        let metrics = config.model_metrics.as_ref().is_some_and(|found| !found.metric_control.is_empty());
        for (said, path, text) in [
            (
                config.optimization.is_some(),
                "optimization",
                "has no effect: `session.graph_optimization_level` in model.yaml says how far graphs are optimised, and \
                 `providers` what runs them",
            ),
            (
                !config.cc_model_filenames.is_empty(),
                "cc_model_filenames",
                "has no effect: `default_model_filename` is the file, whatever `providers` in model.yaml says runs it",
            ),
            (agents, "model_repository_agents", "has no effect: files are read as they are"),
            (!config.runtime.is_empty(), "runtime", "has no effect: models run on ONNX Runtime"),
            (metrics, "model_metrics", "has no effect: metrics are the same for all models"),
        ] {
            if said {
                self.warn(path, text);
            }
        }
    }

    fn cache(&mut self) {
        let Some(cache) = self.config.response_cache else { return };
        if cache.enable && self.is_ensemble() {
            let text =
                "has no effect: an ensemble keeps no answers; the models that it is made of do, where they say so";
            return self.warn("response_cache", text);
        }
        self.said.cache = Some(Word::new(cache.enable, format!("response_cache {{ enable: {} }}", cache.enable)));
    }

    fn batching(&mut self) {
        match self.config.max_batch_size {
            None => {}
            Some(0) => self.said.enabled = Some(Word::new(Switch::Off, "max_batch_size: 0")),
            Some(rows) => match usize::try_from(rows) {
                Ok(count) => {
                    let text = format!("max_batch_size: {rows}");
                    self.said.enabled = Some(Word::new(Switch::On, text.clone()));
                    self.said.max_rows = Some(Word::new(Number(count), text));
                }
                Err(_) => self.problem("max_batch_size", format!("is {rows}, expected 0 or above")),
            },
        }
        let Some(SchedulingChoice::DynamicBatching(dynamic)) = &self.config.scheduling_choice else { return };
        if self.config.max_batch_size == Some(0) {
            return self.warn("dynamic_batching", "has no effect: `max_batch_size` is 0, so calls run one by one");
        }
        self.dynamic_batching(dynamic);
    }

    fn dynamic_batching(&mut self, dynamic: &ModelDynamicBatching) {
        let micros = dynamic.max_queue_delay_microseconds;
        if let Some(delay) = self.micros("dynamic_batching.max_queue_delay_microseconds", micros) {
            self.said.max_delay =
                Some(Word::new(MaxDelay(Some(delay)), format!("max_queue_delay_microseconds: {micros}")));
        }
        let policy = dynamic.default_queue_policy.unwrap_or_default();
        self.queue_policy(&policy);
        self.preferred(&dynamic.preferred_batch_size);
        if dynamic.preserve_ordering {
            self.said.preserve_order = Some(Word::new(true, "preserve_ordering: true"));
        }
        if let Ok(size @ 1..) = usize::try_from(policy.max_queue_size) {
            self.said.max_queue = Some(Word::new(Number(size), format!("max_queue_size: {size}")));
        }
        if let Ok(levels @ 1..) = usize::try_from(dynamic.priority_levels) {
            self.said.priorities = Some(Word::new(Number(levels), format!("priority_levels: {levels}")));
        }
        if let Ok(level @ 1..) = usize::try_from(dynamic.default_priority_level) {
            let text = format!("default_priority_level: {level}");
            self.said.default_priority = Some(Word::new(Amount::Exactly(level), text));
        }
        for (said, path, text) in [
            (
                !dynamic.priority_queue_policy.is_empty(),
                "priority_queue_policy",
                "has no effect: all levels share one queue and its policy",
            ),
            (
                policy.allow_timeout_override,
                "default_queue_policy.allow_timeout_override",
                "has no effect: a call may always ask for less time, up to `limits.deadline.max`",
            ),
        ] {
            if said {
                self.warn(&format!("dynamic_batching.{path}"), text);
            }
        }
    }

    fn queue_policy(&mut self, policy: &ModelQueuePolicy) {
        let micros = policy.default_timeout_microseconds;
        if let Some(timeout) = self.micros("dynamic_batching.default_queue_policy.default_timeout_microseconds", micros)
        {
            let text = format!("default_timeout_microseconds: {micros}");
            self.said.timeout = Some(Word::new(Some(Span(timeout)), text));
        }
        match TimeoutAction::try_from(policy.timeout_action) {
            // What is done anyway: protobuf does not tell whether it was said.
            Ok(TimeoutAction::Reject) => {}
            Ok(TimeoutAction::Delay) => {
                self.said.when_late = Some(Word::new(WhenLate::Delay, "timeout_action: DELAY"));
            }
            Err(_) => {
                let text = format!("is {}, which is no action", policy.timeout_action);
                self.problem("dynamic_batching.default_queue_policy.timeout_action", text);
            }
        }
    }

    fn preferred(&mut self, sizes: &[i32]) {
        // Whole batches alone are what is done anyway.
        if sizes.iter().all(|size| Some(*size) == self.config.max_batch_size) {
            return;
        }
        let counts: Option<Vec<_>> = sizes.iter().map(|size| usize::try_from(*size).ok().filter(|n| *n > 0)).collect();
        match counts {
            Some(mut counts) => {
                counts.sort_unstable();
                let text = format!("preferred_batch_size: {counts:?}");
                self.said.preferred = Some(Word::new(counts.into_iter().map(Number).collect(), text));
            }
            None => {
                self.problem("dynamic_batching.preferred_batch_size", format!("is {sizes:?}, expected 1 or above"));
            }
        }
    }

    /// A time that is not zero, which says nothing.
    fn micros(&mut self, path: &str, micros: u64) -> Option<Duration> {
        let time = Duration::from_micros(micros);
        if time > DELAY {
            self.problem(path, format!("is {micros}, which is above 365d"));
        }
        (micros > 0 && time <= DELAY).then_some(time)
    }

    fn instances(&mut self) {
        let mut total = 0_usize;
        let mut texts = Vec::new();
        for (at, group) in self.config.instance_group.iter().enumerate() {
            let path = format!("instance_group[{at}]");
            let counted = self.group(&path, group);
            // Unset counts as one, as for Triton.
            match usize::try_from(group.count.max(1)) {
                _ if group.count < 0 => {
                    self.problem(format!("{path}.count"), format!("is {}, expected 1 or above", group.count));
                }
                Ok(count) if counted => {
                    total = total.saturating_add(count);
                    texts.push(format!("{path}.count: {count}"));
                }
                _ => {}
            }
        }
        if total > INSTANCES {
            self.problem("instance_group", format!("asks for {total} instances, expected at most {INSTANCES}"));
        } else if total > 0 {
            self.said.instances = Some(Word::new(Amount::Exactly(total), texts.join(", ")));
        }
    }

    /// Whether the instances of a group are made here as they are meant.
    fn group(&mut self, path: &str, group: &ModelInstanceGroup) -> bool {
        for (said, field) in [
            (group.rate_limiter.is_some(), "rate_limiter"),
            (!group.profile.is_empty(), "profile"),
            (!group.secondary_devices.is_empty(), "secondary_devices"),
            (!group.host_policy.is_empty(), "host_policy"),
        ] {
            if said {
                self.warn(
                    &format!("{path}.{field}"),
                    "has no effect: each instance runs when it is needed, where `providers` in model.yaml says",
                );
            }
        }
        if group.passive {
            self.warn(&format!("{path}.passive"), "has no effect: an instance that takes no calls is not made");
            return false;
        }
        match Kind::try_from(group.kind) {
            Ok(Kind::Cpu) => true,
            Ok(Kind::Auto) => {
                if !group.gpus.is_empty() {
                    self.warn(
                        &format!("{path}.gpus"),
                        "has no effect: `providers` in model.yaml says which device runs the model",
                    );
                }
                true
            }
            Ok(kind @ (Kind::Gpu | Kind::Model)) => {
                let text = format!(
                    "is {}, and the count is not taken: `providers` and `instances` in model.yaml say what runs the model",
                    kind.as_str_name()
                );
                self.warn(&format!("{path}.kind"), &text);
                false
            }
            Err(_) => {
                self.problem(format!("{path}.kind"), format!("is {}, which is no kind", group.kind));
                false
            }
        }
    }

    fn versions(&mut self) {
        let policy = self.config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref());
        self.said.versions = match policy {
            None => None,
            Some(PolicyChoice::All(_)) => Some(Word::new(Versions::All, "version_policy: { all }")),
            Some(PolicyChoice::Latest(latest)) => {
                // Unset counts as one, as for Triton.
                let count = usize::try_from(latest.num_versions).unwrap_or(usize::MAX).max(1);
                let text = format!("version_policy: {{ latest: {{ num_versions: {count} }} }}");
                Some(Word::new(Versions::Latest(count), text))
            }
            Some(PolicyChoice::Specific(specific)) => {
                let path = "version_policy.specific.versions";
                if specific.versions.is_empty() {
                    return self.problem(path, "is empty, expected one version at least");
                }
                let numbers: Vec<u64> = specific.versions.iter().filter_map(|v| u64::try_from(*v).ok()).collect();
                if numbers.len() < specific.versions.len() || numbers.contains(&0) {
                    return self.problem(path, "has a version below 1");
                }
                let text = format!("version_policy: {{ specific: {{ versions: {numbers:?} }} }}");
                Some(Word::new(Versions::Listed(numbers), text))
            }
        };
    }

    fn file(&mut self) {
        let name = &self.config.default_model_filename;
        if validate::is_plain(name) {
            self.said.file = Some(name.clone());
        } else if !name.is_empty() {
            let text = format!("is `{}`, expected the plain name of a file: letters, digits and `._-`", shown(name));
            self.problem("default_model_filename", text);
        }
    }

    fn notes(&mut self) {
        let sorted: BTreeMap<_, _> = self.config.parameters.iter().collect();
        for (name, parameter) in sorted {
            if let Some((_, key)) = OBEYED.iter().find(|(obeyed, _)| obeyed == name) {
                let text = match *key {
                    "" => "has no effect: there is nothing like it here".to_owned(),
                    key => format!("has no effect: `{key}` in model.yaml says that here"),
                };
                self.warn(&format!("parameters.{name}"), &text);
            }
            self.said.notes.parameters.push((name.as_str().into(), parameter.string_value.as_str().into()));
        }
        let tags: BTreeMap<_, _> = self.config.metric_tags.iter().collect();
        let shared = |text: &String| Arc::from(text.as_str());
        self.said.notes.tags = tags.into_iter().map(|(name, text)| (shared(name), shared(text))).collect();
    }
}

/// Something that was written, short enough to be quoted.
fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

#[cfg(test)]
mod tests;

//! `models`, and `NAME/model.yaml`, as people write them.

use super::{
    cache::Cache,
    choice::{Amount, Limit, Load, Memory, Paths, Provider, Switch, Version, Versions, Warmup, Word},
    ensemble::Ensemble,
    pad::{Pad, Rows},
    traffic::Traffic,
};
use crate::{
    backend::ProviderKind,
    config::units::{MaxDelay, Number, Size, Span},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Which models, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Models {
    pub directory: Paths,
    pub control: Control,
    pub watch: Watch,
    pub load: Load,
    pub required: Vec<String>,
    pub memory: Memory,
    pub probe: Probe,
    pub probe_timeout: Span,
    pub probe_memory: Option<Size>,
    pub optimized_cache: Option<OptimizedCache>,
    pub defaults: ModelDefaults,
}

/// Which model files are tried in a process of their own first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// Those that were not tried before.
    #[default]
    Auto,
    /// All, each time.
    Always,
    /// None.
    Never,
}

/// Where optimised graphs are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct OptimizedCache {
    pub directory: PathBuf,
    pub size: Size,
}

/// When models are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `config::Control`")]
pub enum Control {
    Fixed,
    #[default]
    Watch,
    Explicit,
}

/// How folders are looked at with `control: watch`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Watch {
    pub every: Span,
    pub settle: Span,
}

/// What each model may say for itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct ModelDefaults {
    pub versions: Versions,
    pub instances: Amount,
    pub threads: Amount,
    pub execution: Execution,
    pub share_weights: bool,
    pub batching: Batching,
    pub arena: Arena,
    pub providers: Vec<Provider>,
    pub session: Session,
    pub run_limit: Limit,
    pub warmup: Warmup,
    pub cache: Cache,
    pub traffic: Option<Traffic>,
}

/// How calls are run together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Batching {
    pub enabled: Switch,
    pub max_rows: Number,
    pub max_elements: Amount,
    pub max_delay: MaxDelay,
    pub max_queue: Number,
    pub priorities: Number,
    pub default_priority: Amount,
    pub rows: Rows,
    pub pad: Pad,
    pub preferred: Vec<Number>,
    pub timeout: Option<Span>,
    pub when_late: WhenLate,
    pub preserve_order: bool,
}

/// What becomes of a call that has waited for longer than `timeout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenLate {
    /// It is refused.
    #[default]
    Reject,
    /// It goes behind the others.
    Delay,
}

/// `NAME/model.yaml`: the keys of `models.defaults` and its own. serde's `flatten` would lose the refusal of unknown
/// keys, so they are repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct ModelFile {
    pub versions: Versions,
    pub instances: Amount,
    pub threads: Amount,
    pub execution: Execution,
    pub share_weights: bool,
    pub batching: Batching,
    pub arena: Arena,
    pub providers: Vec<Provider>,
    pub session: Session,
    pub run_limit: Limit,
    pub warmup: Warmup,
    pub cache: Cache,
    pub traffic: Option<Traffic>,
    pub class_labels: BTreeMap<String, PathBuf>,
    pub version_labels: BTreeMap<String, Version>,
    pub ensemble: Option<Ensemble>,
    pub inputs: BTreeMap<String, Input>,
}

impl From<ModelDefaults> for ModelFile {
    /// The file that says what `defaults` say.
    fn from(defaults: ModelDefaults) -> Self {
        let ModelDefaults {
            versions,
            instances,
            threads,
            execution,
            share_weights,
            batching,
            arena,
            providers,
            session,
            run_limit,
            warmup,
            cache,
            traffic,
        } = defaults;
        Self {
            versions,
            instances,
            threads,
            execution,
            share_weights,
            batching,
            arena,
            providers,
            session,
            run_limit,
            warmup,
            cache,
            traffic,
            class_labels: BTreeMap::new(),
            version_labels: BTreeMap::new(),
            ensemble: None,
            inputs: BTreeMap::new(),
        }
    }
}

impl ModelFile {
    /// What `models.defaults` has too.
    pub fn shared(&self) -> ModelDefaults {
        let Self { instances, threads, execution, share_weights, arena, run_limit, cache, .. } = *self;
        ModelDefaults {
            versions: self.versions.clone(),
            instances,
            threads,
            execution,
            share_weights,
            batching: self.batching.clone(),
            arena,
            providers: self.providers.clone(),
            session: self.session.clone(),
            run_limit,
            warmup: self.warmup.clone(),
            cache,
            traffic: self.traffic.clone(),
        }
    }
}

/// What is said of one input of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/models.md")]
pub struct Input {
    /// A number, a flag or a text.
    pub pad: Option<Value>,
    pub mask: Option<String>,
    pub optional: bool,
    pub ragged: Option<Ragged>,
}

/// Rows that lie in an input one behind the other: the inputs that say where they are, and the outputs that are like it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/models.md")]
pub struct Ragged {
    pub counts: Option<String>,
    pub starts: Option<String>,
    pub ends: Option<String>,
    pub bounds: Option<String>,
    pub outputs: Vec<String>,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// On the lane if it is short enough, else on threads.
    #[default]
    Auto,
    /// On the lane, one batch per turn of the event loop.
    Turn,
    /// On threads of its own.
    Thread,
}

/// What becomes of memory after a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words are explained in docs/models.md")]
pub enum Arena {
    #[default]
    Auto,
    Keep,
    Shrink,
    None,
}

/// Options of ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Session {
    pub graph_optimization_level: Optimization,
    pub execution_mode: Mode,
    pub inter_op_threads: Number,
    pub entries: BTreeMap<String, Word>,
}

/// How far a graph is rewritten before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "ONNX Runtime's own words")]
pub enum Optimization {
    Disabled,
    Basic,
    Extended,
    Layout,
    #[default]
    All,
}

/// Whether nodes of one graph run beside each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "ONNX Runtime's own words")]
pub enum Mode {
    #[default]
    Sequential,
    Parallel,
}

// === defaults (architecture section 11) ===

impl Default for Models {
    fn default() -> Self {
        Self {
            directory: Paths::default(),
            control: Control::default(),
            watch: Watch::default(),
            load: Load::default(),
            required: Vec::new(),
            memory: Memory::Auto,
            probe: Probe::Auto,
            probe_timeout: Span(Duration::from_secs(120)),
            probe_memory: None,
            optimized_cache: None,
            defaults: ModelDefaults::default(),
        }
    }
}

impl Default for OptimizedCache {
    fn default() -> Self {
        Self { directory: PathBuf::new(), size: Size(8 << 30) }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            graph_optimization_level: Optimization::default(),
            execution_mode: Mode::default(),
            inter_op_threads: Number(1),
            entries: BTreeMap::new(),
        }
    }
}

impl Default for Provider {
    fn default() -> Self {
        Self { kind: ProviderKind::Cpu, options: BTreeMap::new() }
    }
}

impl Default for ModelFile {
    fn default() -> Self {
        Self::from(ModelDefaults::default())
    }
}

impl Default for ModelDefaults {
    fn default() -> Self {
        Self {
            versions: Versions::default(),
            instances: Amount::Auto,
            threads: Amount::Auto,
            execution: Execution::Auto,
            share_weights: true,
            batching: Batching::default(),
            arena: Arena::Auto,
            providers: vec![Provider::default()],
            session: Session::default(),
            run_limit: Limit::Auto,
            warmup: Warmup::Auto,
            cache: Cache::Off,
            traffic: None,
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self { every: Span(Duration::from_secs(5)), settle: Span(Duration::from_secs(2)) }
    }
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            enabled: Switch::Auto,
            max_rows: Number(64),
            max_elements: Amount::Auto,
            max_delay: MaxDelay(None),
            max_queue: Number(1024),
            priorities: Number(1),
            default_priority: Amount::Auto,
            rows: Rows::Auto,
            pad: Pad::Auto,
            preferred: Vec::new(),
            timeout: None,
            when_late: WhenLate::Reject,
            preserve_order: false,
        }
    }
}

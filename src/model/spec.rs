//! What may be set for a model, and for all of them (`models` in the configuration, `model.yaml`).
//!
//! Plain data: how it is written in a file is known to `config` alone, which also supplies the
//! reader of `model.yaml`.

use super::{CacheSettings, Routing, budget::Budget, ensemble};
use crate::{
    backend::{Arena, Provider, SessionOptions, SessionSettings},
    call::{Notes, RequestedOutput},
    schedule::{BatchPolicy, Execution, Preferred, Priorities, TurnSettings, WhenLate},
    tensor::{DataType, Marks, Signature, Tensor},
};
use std::{collections::HashSet, fmt, path::Path, path::PathBuf, sync::Arc, time::Duration};

/// Which models there are, and how they run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories that hold `NAME/VERSION/model.onnx`.
    pub directories: Vec<PathBuf>,
    /// Which models are loaded at start.
    pub load: Load,
    /// What a model's own file does not set.
    pub defaults: ModelSettings,
    /// What a lane may spend on a model.
    pub turn: TurnSettings,
    /// Cores for inference threads, and memory for models.
    pub budget: Arc<Budget>,
    /// Reads what a model says of itself; a model that says something fails to load without a reader, because serving
    /// it with other settings than its own would be wrong.
    pub reader: Option<Reader>,
}

/// Reads what a model says of itself over the defaults. The error is for operators, in plain words.
#[derive(Clone)]
pub struct Reader(Arc<ReadSettings>);

type ReadSettings = dyn Fn(Source<'_>, &ModelSettings) -> Result<ModelSettings, String> + Send + Sync;

/// Where a model says how it is to run.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its folder, with `model.yaml` or `config.pbtxt` or neither in it.
    pub folder: &'a Path,
    /// A model configuration as JSON that a load call brought instead of the one in the folder.
    pub config: Option<&'a str>,
}

/// Which models are loaded at start (`models.load`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Every model that is found.
    #[default]
    All,
    /// None.
    None,
    /// These.
    Names(HashSet<String>),
}

/// How one model runs (`models.defaults`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSettings {
    /// Which of its versions are served.
    pub versions: VersionPolicy,
    /// Instances on threads; `None`: one.
    pub instances: Option<usize>,
    /// Threads within one operator; `None`: what the inference cores allow.
    pub threads: Option<usize>,
    /// Where it runs.
    pub execution: Execution,
    /// Whether its instances on threads share their weights, where the CPU alone runs it.
    pub share_weights: bool,
    /// What becomes of memory after a run.
    pub arena: Arena,
    /// Where its nodes run, best first.
    pub providers: Vec<Provider>,
    /// Options of ONNX Runtime.
    pub session: SessionOptions,
    /// How long a run on a thread may take before it is ended, and its instance replaced if it does not end; `None`: for ever.
    pub run_limit: Option<Duration>,
    /// How calls become batches.
    pub batching: Batching,
    /// Which calls of different lengths run together.
    pub pad: Pad,
    /// Whether the model's fixed first dimension counts rows, which are filled up.
    pub fixed_rows: bool,
    /// What is said of inputs, by name.
    pub inputs: Vec<(Arc<str>, InputSettings)>,
    /// How answers are kept; absent: they are not.
    pub cache: Option<CacheSettings>,
    /// Whether it is run before it is ready. Without, nothing is measured and `auto` means threads.
    pub warmup: bool,
    /// What metadata calls its kind.
    pub platform: Arc<str>,
    /// Files with the labels of an output's classes, by output. Without any, `labels.txt` in the model's folder serves a
    /// model with one output (contract 02 section 8).
    pub labels: Vec<(Arc<str>, PathBuf)>,
    /// The file of each version.
    pub file: Arc<str>,
    /// What its `config.pbtxt` says of inputs and outputs, rows included; it must not contradict the model.
    pub declared: Option<Signature>,
    /// Runs before it is ready, besides those that measure it.
    pub samples: Vec<Sample>,
    /// What its `config.pbtxt` says that only clients read.
    pub notes: Notes,
    /// What was said and does not apply here, a sentence each.
    pub warnings: Vec<String>,
    /// What it says of its versions besides which of them are served.
    pub routing: Arc<Routing>,
    /// The graph of other models that it is; absent: it has a file.
    pub ensemble: Option<Arc<ensemble::Settings>>,
}

/// What a model is run on before it is ready (`model_warmup`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its name, for messages.
    pub name: Arc<str>,
    /// What it is run on.
    pub inputs: Vec<SampleInput>,
    /// Outputs that it asks for, which the model must have.
    pub outputs: Vec<RequestedOutput>,
    /// How often each instance runs it.
    pub runs: usize,
}

/// One input of a [`Sample`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleInput {
    /// The input.
    pub name: Arc<str>,
    /// Its type.
    pub dtype: DataType,
    /// Its dimensions, rows included.
    pub dims: Vec<usize>,
    /// What is made up in it.
    pub fill: Fill,
    /// What is in it instead, as a file has it.
    pub given: Option<Tensor>,
}

/// What is in an input that is made up. Strings are empty either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    Zeros,
    /// Fractions from 0 to 1, integers and flags of 0 or 1, which are indices of nearly everything: the same each time.
    Random,
}

/// Which calls of different lengths run together (`batching.pad`), of models that say with what inputs are filled up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pad {
    /// Those that cost less together than apart.
    #[default]
    Auto,
    /// None.
    Off,
    /// Those whose lengths differ by a factor of so many hundredths at most.
    Ratio(u32),
    /// Those that are filled up to the same of these lengths, ascending.
    Lengths(Vec<usize>),
}

/// What is said of an input (`inputs` in `model.yaml`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputSettings {
    /// The element that fills it up: a number, a flag or a text.
    pub pad: Option<serde_json::Value>,
    /// The input that is 0 where this one was filled up.
    pub mask: Option<Arc<str>>,
    /// Whether calls may leave it out; it is then `pad` everywhere.
    pub optional: bool,
    /// That rows lie in it one behind the other, and where the model learns about it.
    pub ragged: Option<RaggedSettings>,
}

/// What belongs to an input in which rows lie one behind the other (`inputs.INPUT.ragged`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaggedSettings {
    /// Inputs that say where rows are, and what each says.
    pub made: Vec<(Marks, Arc<str>)>,
    /// Outputs with an element for each of its own, besides those that have its axis by name.
    pub outputs: Vec<Arc<str>>,
}

/// Elements of ragged inputs for each row that a batch may have, if nothing is said: with the usual 64 rows 16,384, as others
/// take of packed texts (text-embeddings-inference, `max_batch_tokens`).
pub const ELEMENTS: usize = 256;

/// How calls become batches (`batching`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// `None`: where every input and output has a free first dimension.
    pub enabled: Option<bool>,
    /// Most rows of a batch.
    pub max_rows: usize,
    /// Most elements of ragged inputs in a batch; `None`: [`ELEMENTS`] for each row.
    pub max_elements: Option<usize>,
    /// How long a job may be kept waiting for others.
    pub max_delay: Duration,
    /// Whether a batch may wait for those whom the run before it answered.
    pub rejoin: bool,
    /// Most jobs that wait.
    pub max_queue: usize,
    /// How long jobs may wait before new ones are refused.
    pub queue_delay: Option<std::time::Duration>,
    /// Who goes first among them.
    pub priorities: Priorities,
    /// Rows that a batch should rather have than others.
    pub preferred: Preferred,
    /// How long a job may wait before `when_late` says what becomes of it.
    pub timeout: Option<Duration>,
    /// What becomes of it.
    pub when_late: WhenLate,
    /// Whether answers are given in the order in which jobs were taken.
    pub preserve_order: bool,
}

/// Which versions of a model are served (`versions`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionPolicy {
    /// The highest so many.
    Latest(usize),
    /// All.
    All,
    /// These.
    Only(Vec<u64>),
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            directories: vec![PathBuf::from("models")],
            load: Load::All,
            defaults: ModelSettings::default(),
            turn: TurnSettings::default(),
            budget: Budget::new(1, None),
            reader: None,
        }
    }
}

// === impl Reader ===

impl Reader {
    /// A reader of `model.yaml` and what else there may be.
    pub fn new(
        read: impl Fn(Source<'_>, &ModelSettings) -> Result<ModelSettings, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(read))
    }

    /// What `source` says, over `defaults`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in plain words.
    pub fn read(&self, source: Source<'_>, defaults: &ModelSettings) -> Result<ModelSettings, String> {
        (self.0)(source, defaults)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

// === impl Load ===

impl Load {
    /// True if the model of this name is loaded at start.
    pub fn includes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Names(names) => names.contains(name),
        }
    }
}

// === impl ModelSettings ===

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            versions: VersionPolicy::Latest(1),
            instances: None,
            threads: None,
            execution: Execution::Auto,
            share_weights: true,
            arena: Arena::Auto,
            providers: vec![Provider::CPU],
            session: SessionOptions::default(),
            run_limit: None,
            batching: Batching::default(),
            pad: Pad::Auto,
            fixed_rows: false,
            inputs: Vec::new(),
            cache: None,
            warmup: true,
            // Contract 01 section 2.2: what Triton reports.
            platform: "onnxruntime_onnx".into(),
            labels: Vec::new(),
            file: "model.onnx".into(),
            declared: None,
            samples: Vec::new(),
            notes: Notes::default(),
            warnings: Vec::new(),
            routing: Arc::default(),
            ensemble: None,
        }
    }
}

impl ModelSettings {
    /// How an instance is made that runs with `threads` and shares what is opened with so many, itself included.
    pub fn session(&self, threads: usize, sharers: usize) -> SessionSettings {
        SessionSettings {
            threads: threads.max(1),
            sharers: sharers.max(1),
            arena: self.arena,
            ragged: self.is_ragged(),
            providers: self.providers.clone(),
            options: self.session.clone(),
            explain: false,
        }
    }

    /// Whether instances are meant to share their weights, and can.
    pub fn shares_weights(&self) -> bool {
        self.share_weights && self.session(1, 1).is_cpu_only()
    }

    /// Whether rows lie one behind the other in any input.
    pub fn is_ragged(&self) -> bool {
        self.inputs.iter().any(|(_, input)| input.ragged.is_some())
    }

    /// Whether a version runs the same with these settings: they differ at most in which versions are served and called.
    pub(super) fn runs_like(&self, other: &Self) -> bool {
        let (versions, routing) = (other.versions.clone(), Arc::clone(&other.routing));
        Self { versions, routing, ..self.clone() } == *other
    }
}

// === impl Batching ===

impl Default for Batching {
    fn default() -> Self {
        let policy = BatchPolicy::default();
        Self {
            enabled: None,
            max_rows: policy.max_rows,
            max_elements: None,
            max_delay: policy.max_delay,
            rejoin: policy.rejoin,
            max_queue: policy.max_queue,
            queue_delay: policy.queue_delay,
            priorities: policy.priorities,
            preferred: policy.preferred,
            timeout: policy.timeout,
            when_late: policy.when_late,
            preserve_order: policy.preserve_order,
        }
    }
}

impl Batching {
    /// Most elements of ragged inputs in a batch.
    pub fn elements(&self) -> usize {
        self.max_elements.unwrap_or(self.max_rows.saturating_mul(ELEMENTS))
    }

    /// The policy for a model that batches or does not, and whose rows all have one shape (`even`) or do not.
    pub fn policy(&self, enabled: bool, even: bool) -> BatchPolicy {
        BatchPolicy {
            enabled,
            even,
            max_rows: self.max_rows,
            max_elements: None,
            max_delay: self.max_delay,
            rejoin: self.rejoin,
            max_queue: self.max_queue,
            queue_delay: self.queue_delay,
            priorities: self.priorities,
            preferred: self.preferred,
            timeout: self.timeout,
            when_late: self.when_late,
            preserve_order: self.preserve_order,
        }
    }
}

// === impl VersionPolicy ===

impl VersionPolicy {
    /// Those of `found` that are served, ascending.
    pub fn choose(&self, mut found: Vec<u64>) -> Vec<u64> {
        found.sort_unstable();
        match self {
            Self::All => found,
            Self::Latest(count) => found.split_off(found.len().saturating_sub(*count)),
            Self::Only(wanted) => {
                found.retain(|version| wanted.contains(version));
                found
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CacheScope;

    #[test]
    fn a_policy_chooses_versions_by_number() {
        let found = || vec![10, 9, 2];
        assert_eq!(VersionPolicy::Latest(1).choose(found()), [10]);
        assert_eq!(VersionPolicy::Latest(9).choose(found()), [2, 9, 10]);
        assert_eq!(VersionPolicy::All.choose(found()), [2, 9, 10]);
        assert_eq!(VersionPolicy::Only(vec![9, 3]).choose(found()), [9]);
    }

    #[test]
    fn a_version_runs_otherwise_where_its_session_its_memory_or_its_limit_is_another() {
        let before = ModelSettings::default();
        assert!(before.runs_like(&ModelSettings { versions: VersionPolicy::All, ..before.clone() }));
        let cache = CacheSettings { memory: 1, age: Duration::from_secs(1), scope: CacheScope::Model };
        let session = SessionOptions { parallel: Some(2), ..SessionOptions::default() };
        let others = [
            ModelSettings { arena: Arena::Shrink, ..before.clone() },
            ModelSettings { providers: Vec::new(), ..before.clone() },
            ModelSettings { session, ..before.clone() },
            ModelSettings { run_limit: Some(Duration::from_millis(7)), ..before.clone() },
            ModelSettings { share_weights: !before.share_weights, ..before.clone() },
            ModelSettings { cache: Some(cache), ..before.clone() },
        ];
        assert!(others.iter().all(|other| !before.runs_like(other)));
    }
}

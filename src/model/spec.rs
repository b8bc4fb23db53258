//! What may be set for a model, and for all of them (`models` in the configuration, `model.yaml`).
//!
//! Plain data: how it is written in a file is known to `config` alone, which also supplies the
//! reader of `model.yaml`.

use crate::{
    call::Notes,
    schedule::{BatchPolicy, Execution, Priorities, TurnSettings},
    tensor::{DataType, Signature},
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
    /// Cores for inference threads: the sum of instances × threads stays within it where both are `auto`.
    pub inference_cores: usize,
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
    /// How calls become batches.
    pub batching: Batching,
    /// Which calls of different lengths run together.
    pub pad: Pad,
    /// Whether the model's fixed first dimension counts rows, which are filled up.
    pub fixed_rows: bool,
    /// What is said of inputs, by name.
    pub inputs: Vec<(Arc<str>, InputSettings)>,
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
}

/// What a model is run on before it is ready (`model_warmup`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its name, for messages.
    pub name: Arc<str>,
    /// What it is run on.
    pub inputs: Vec<SampleInput>,
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
    /// What is in it.
    pub fill: Fill,
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
}

/// How calls become batches (`batching`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// `None`: where every input and output has a free first dimension.
    pub enabled: Option<bool>,
    /// Most rows of a batch.
    pub max_rows: usize,
    /// How long a job may be kept waiting for others.
    pub max_delay: Duration,
    /// Most jobs that wait.
    pub max_queue: usize,
    /// How long jobs may wait before new ones are refused.
    pub queue_delay: Option<std::time::Duration>,
    /// Who goes first among them.
    pub priorities: Priorities,
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
            inference_cores: 1,
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
            batching: Batching::default(),
            pad: Pad::Auto,
            fixed_rows: false,
            inputs: Vec::new(),
            warmup: true,
            // Contract 01 section 2.2: what Triton reports.
            platform: "onnxruntime_onnx".into(),
            labels: Vec::new(),
            file: "model.onnx".into(),
            declared: None,
            samples: Vec::new(),
            notes: Notes::default(),
            warnings: Vec::new(),
        }
    }
}

// === impl Batching ===

impl Default for Batching {
    fn default() -> Self {
        let BatchPolicy { max_rows, max_delay, max_queue, queue_delay, priorities, .. } = BatchPolicy::default();
        Self { enabled: None, max_rows, max_delay, max_queue, queue_delay, priorities }
    }
}

impl Batching {
    /// The policy for a model that batches or does not.
    pub fn policy(&self, enabled: bool) -> BatchPolicy {
        let Self { max_rows, max_delay, max_queue, queue_delay, priorities, .. } = *self;
        BatchPolicy { enabled, max_rows, max_delay, max_queue, queue_delay, priorities }
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

    #[test]
    fn a_policy_chooses_versions_by_number() {
        let found = || vec![10, 9, 2];
        assert_eq!(VersionPolicy::Latest(1).choose(found()), [10]);
        assert_eq!(VersionPolicy::Latest(9).choose(found()), [2, 9, 10]);
        assert_eq!(VersionPolicy::All.choose(found()), [2, 9, 10]);
        assert_eq!(VersionPolicy::Only(vec![9, 3]).choose(found()), [9]);
    }
}

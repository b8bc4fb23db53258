//! Answers to questions about the server, a model or the caller.

use super::Identity;
use crate::tensor::{DataType, Marks, Signature};
use std::{sync::Arc, time::Duration};

/// The answer to an [`Inspect`](super::Inspect), or what a [`Manage`](super::Manage) came to.
#[derive(Clone, Debug)]
pub enum Report {
    /// Who the caller is.
    Caller(Arc<Identity>),
    /// What the server is.
    Server(ServerReport),
    /// Names of the models the caller may know of, sorted.
    Models(Vec<Arc<str>>),
    /// The same, each with the time at which it came into service.
    Catalog(Vec<CatalogEntry>),
    /// Inputs and outputs of a model.
    Model(ModelReport),
    /// Whether a model can run now.
    Ready {
        /// Its name.
        model: Arc<str>,
        /// The answer.
        ready: bool,
    },
    /// The versions of a model and what has become of each.
    Versions(VersionsReport),
    /// Models and their versions, served or not.
    Index(Vec<IndexEntry>),
    /// How a model is configured.
    Config(Box<ConfigReport>),
    /// What versions of models have done so far.
    Statistics(Vec<StatisticsReport>),
    /// Trace settings in force, by name.
    Trace(Vec<(Arc<str>, Vec<Arc<str>>)>),
    /// Logging as it is.
    Logging(Logging),
    /// The caller may read the page of metrics, which whoever asked has.
    Metrics,
    /// A model was loaded.
    Loaded(Arc<str>),
    /// A model is no longer served.
    Unloaded(Arc<str>),
}

impl Report {
    /// Leaves out of a list what is about models that its reader may not see.
    pub fn retain_models(&mut self, may_see: impl Fn(&str) -> bool) {
        match self {
            Self::Models(names) => names.retain(|name| may_see(name)),
            Self::Catalog(entries) => entries.retain(|entry| may_see(&entry.name)),
            Self::Index(entries) => entries.retain(|entry| may_see(&entry.name)),
            Self::Statistics(reports) => reports.retain(|report| may_see(&report.name)),
            _ => {}
        }
    }
}

impl IndexEntry {
    /// Whether it is about a version of which a reader may know: by its number, or by a label that means it.
    pub fn is_known(&self, may_see: impl Fn(&Arc<str>) -> bool) -> bool {
        self.version.as_ref().is_none_or(|version| may_see(version) || self.labels.iter().any(may_see))
    }
}

/// What the server is (contract 01 section 2.1).
#[derive(Clone, Copy, Debug)]
pub struct ServerReport {
    /// The product's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Names of the V2 extensions that are implemented, and of no others.
    pub extensions: &'static [&'static str],
}

/// What a model is (contract 01 section 2.2).
#[derive(Clone, Debug)]
pub struct ModelReport {
    /// Its name.
    pub name: Arc<str>,
    /// The version that a call without one would run, or the one that was asked for.
    pub version: Arc<str>,
    /// Versions that may be requested now; only the one asked for, if one was.
    pub versions: Vec<Arc<str>>,
    /// `onnxruntime_onnx` unless configured otherwise.
    pub platform: Arc<str>,
    /// Its inputs and outputs.
    pub signature: Arc<Signature>,
}

/// What has become of a version of a model (contract 02 section 5, contract 03 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// It is being opened and warmed up.
    Loading,
    /// It takes calls.
    Ready,
    /// It cannot be loaded.
    Failed,
    /// It takes no new calls.
    Unloading,
    /// It was served and is no longer.
    Unloaded,
}

/// The versions of one model.
#[derive(Clone, Debug)]
pub struct VersionsReport {
    /// Its name.
    pub name: Arc<str>,
    /// Whether a call without a version would run.
    pub ready: bool,
    /// When the newest version that is ready came into service, as seconds since 1970.
    pub since: u64,
    /// Each version with its state and, unless it is ready, why: the highest first.
    pub versions: Vec<(Arc<str>, VersionState, Arc<str>)>,
}

/// One model that may be asked for (contract 04 section 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its name.
    pub name: Arc<str>,
    /// When its newest version that is ready came into service, as seconds since 1970; 0 if none is.
    pub since: u64,
}

/// One line of the repository's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model's name.
    pub name: Arc<str>,
    /// A version; absent for a model that was never loaded, or that is none.
    pub version: Option<Arc<str>>,
    /// What has become of it; absent for a model that was never loaded.
    pub state: Option<VersionState>,
    /// The labels that mean the version.
    pub labels: Vec<Arc<str>>,
    /// Why it is not served, or not as it should be; empty if all is well.
    pub reason: Arc<str>,
}

/// How a model is configured (contract 02 section 10).
#[derive(Clone, Debug)]
pub struct ConfigReport {
    /// Its name.
    pub name: Arc<str>,
    /// What metadata calls its kind.
    pub platform: Arc<str>,
    /// Most rows of a batch; `None` where rows of several calls do not run together.
    pub max_rows: Option<usize>,
    /// Its inputs and outputs, rows included.
    pub signature: Arc<Signature>,
    /// Whether one call may yield any number of answers.
    pub decoupled: bool,
    /// Instances that run it.
    pub instances: usize,
    /// How long the oldest call may wait for others.
    pub max_delay: Duration,
    /// Rows that a batch should rather have than others; empty: none.
    pub preferred: Vec<usize>,
    /// Whether answers are given in the order in which calls began to run.
    pub preserve_order: bool,
    /// How long a call may wait, and whether it then goes behind the others and is not refused.
    pub timeout: (Option<Duration>, bool),
    /// Levels of priority among calls that wait, and the level of one that asks for none; one level is none.
    pub priorities: (u32, u32),
    /// Which versions are served.
    pub versions: ServedVersions,
    /// Outputs whose classes have labels, and the files that these are in.
    pub labels: Vec<(Arc<str>, Arc<str>)>,
    /// Whether answers are kept.
    pub caches: bool,
    /// The file of each version.
    pub file: Arc<str>,
    /// What it says that only clients read.
    pub notes: Notes,
    /// The steps of an ensemble; none of any other model.
    pub steps: Vec<StepReport>,
    /// Inputs in which rows of different lengths lie one behind the other, and what belongs to them.
    pub ragged: RaggedReport,
}

/// Inputs in which rows lie one behind the other (Triton's ragged batches). Nothing of most models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaggedReport {
    /// The inputs.
    pub inputs: Vec<Arc<str>>,
    /// Inputs that no call sends: what each says, its type, and the input that it is about.
    pub made: Vec<(Arc<str>, Marks, DataType, Arc<str>)>,
    /// Outputs that have an element for each of an input's, and that input.
    pub outputs: Vec<(Arc<str>, Arc<str>)>,
}

/// One step of an ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// What runs: a model, or a step that is built in.
    pub model: Arc<str>,
    /// Its version, if the ensemble names one.
    pub version: Option<Arc<str>>,
    /// Its inputs, and the tensor that feeds each.
    pub inputs: Vec<(Arc<str>, Arc<str>)>,
    /// Its outputs, and the tensor that each becomes.
    pub outputs: Vec<(Arc<str>, Arc<str>)>,
}

/// What a model's configuration says and only clients read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Inputs that are images, and where their channels are.
    pub formats: Vec<(Arc<str>, ImageFormat)>,
    /// `parameters`, by name.
    pub parameters: Vec<(Arc<str>, Arc<str>)>,
    /// `metric_tags`, by name.
    pub tags: Vec<(Arc<str>, Arc<str>)>,
}

/// Where the channels of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// Behind height and width.
    Nhwc,
    /// Before height and width.
    Nchw,
}

/// Which versions of a model are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServedVersions {
    /// The highest so many.
    Latest(usize),
    /// All.
    All,
    /// These.
    Only(Vec<u64>),
}

/// How often something was done, and how long it took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// How long, in nanoseconds.
    pub nanos: u64,
}

/// What a version of a model has done since it was loaded (contract 02 section 6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatisticsReport {
    /// The model's name.
    pub name: Arc<str>,
    /// The version.
    pub version: Arc<str>,
    /// When it last ran or gave an answer that was kept, as milliseconds since 1970; 0: never.
    pub last_inference: u64,
    /// Rows that were run for calls that succeeded.
    pub inferences: u64,
    /// Runs.
    pub executions: u64,
    /// Calls that were answered, from their head to their end.
    pub success: Tally,
    /// Calls that were not.
    pub fail: Tally,
    /// Waits for an instance, one per job, and for the run of another call that asked the same.
    pub queue: Tally,
    /// Laying inputs together; the whole batch's time for each of its jobs.
    pub compute_input: Tally,
    /// Runs; the whole batch's time for each of its jobs.
    pub compute_infer: Tally,
    /// Cutting outputs apart; the whole batch's time for each of its jobs.
    pub compute_output: Tally,
    /// Calls that were answered without a run of their own, and looking for their answers.
    pub cache_hit: Tally,
    /// Calls that were not, of a model that keeps answers, and looking for theirs.
    pub cache_miss: Tally,
    /// Runs by the number of their rows, each once.
    pub batches: Vec<BatchReport>,
}

/// Runs of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchReport {
    /// Rows.
    pub rows: u64,
    /// Laying inputs together.
    pub compute_input: Tally,
    /// The runs.
    pub compute_infer: Tally,
    /// Cutting outputs apart.
    pub compute_output: Tally,
}

/// What is logged (contract 02 section 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Whether what is of level info is logged.
    pub info: bool,
    /// Whether warnings are.
    pub warning: bool,
    /// Whether errors are.
    pub error: bool,
    /// 0: nothing below info; 1: debug; 2 and more: trace.
    pub verbose: u32,
    /// `default` or `ISO8601`; kept and told, both mean the same here.
    pub format: Arc<str>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { info: true, warning: true, error: true, verbose: 0, format: "default".into() }
    }
}

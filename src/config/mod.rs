//! The configuration: from what people write to what the program sees.
//!
//! [`raw`] is what people write, [`Config`] what the program sees: plain structs, the settings of each module among
//! them, valid by construction. All problems of a file are found at once and named with their path. What a model says of
//! itself, in `model.yaml` or in Triton's `config.pbtxt`, is read here too ([`load_model`]). Nothing here listens, loads or
//! spawns; of other files, it looks only at whether those that it names are there.

mod later;
mod live;
mod log;
mod model;
mod pbtxt;
pub mod problems;
pub mod raw;
mod schema;
mod source;
pub mod units;
mod validate;

pub use live::{Changes, Source, Written};
pub use log::{Log, LogFormat, LogLevel};
pub use model::load_model;
pub use problems::{Problem, Problems};
pub use raw::{
    Amount, Arena, Execution, Limit, Load, Memory, Mode, Optimization, Probe, Rows, Switch, Versions, Warmup, WhenLate,
};
pub use schema::schema;
pub(crate) use validate::routing;

use crate::{
    auth::{self, grants},
    call::Notes,
    frontend::{self, Surfaces, tls},
    lane,
    limit::{
        self,
        address::{self, Network},
    },
    model::{InputSettings, Pad, Sample, ensemble, watch},
    schedule::TurnSettings,
    telemetry::{metrics, traces},
    tensor::Signature,
};
use later::LATER;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What the program sees.
#[derive(Clone, Debug)]
pub struct Config {
    /// API listeners, one at least.
    pub listen: Vec<Listen>,
    /// The listener of `/livez`, `/readyz` and `/metrics`; `None` if switched off.
    pub admin: Option<Admin>,
    /// Who may call, and how they prove it.
    pub auth: auth::Settings,
    /// What is granted.
    pub grants: Vec<grants::Rule>,
    /// Limits and choices of the front-ends and codecs.
    pub frontend: frontend::Settings,
    /// What strangers may cost.
    pub addresses: address::Settings,
    /// Rates; all that match must agree.
    pub rates: Vec<limit::Policy>,
    /// Where rates are kept that several processes share.
    pub shared: Option<limit::redis::Settings>,
    /// How many times an identity of a group is served where one of none is served once.
    pub weights: Vec<(Arc<str>, NonZeroU32)>,
    /// Rate buckets kept at once.
    pub buckets: usize,
    /// Calls in flight.
    pub concurrency: Concurrency,
    /// Deadlines.
    pub deadline: Deadline,
    /// Which models, and how.
    pub models: Models,
    /// Threads and ONNX Runtime.
    pub runtime: Runtime,
    /// What is told about calls.
    pub telemetry: Telemetry,
    /// The graceful stop.
    pub drain: Drain,
    /// What people wrote, to compare it with what they write next.
    pub written: Written,
    /// Where it was read from; `None` without a file.
    pub source: Option<Source>,
}

/// One API listener.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where. Port 0: the system chooses.
    pub address: SocketAddr,
    /// What it serves.
    pub surfaces: Surfaces,
    /// How it speaks TLS; `None`: clear text.
    pub tls: Option<tls::Settings>,
    /// Networks of proxies that are believed when they say whose a call is.
    pub trusted_proxies: Vec<Network>,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where. Port 0: the system chooses.
    pub address: SocketAddr,
    /// How it speaks TLS; `None`: clear text.
    pub tls: Option<tls::Settings>,
}

/// Calls in flight (`limits.concurrency`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// At once.
    pub calls: usize,
    /// At once for `inspect`, besides.
    pub inspect: usize,
    /// At once of one identity.
    pub per_identity: Option<usize>,
    /// WebSockets and streams open at once of one identity (`limits.connections.per_identity`).
    pub sessions: Option<usize>,
    /// How long calls may wait in a queue before new ones are refused.
    pub queue_delay: Option<Duration>,
}

/// Deadlines (`limits.deadline`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Of a whole reply, if the client asks for none.
    pub default: Duration,
    /// Of a streaming reply, if the client asks for none.
    pub stream: Duration,
    /// The most a client may ask for.
    pub max: Duration,
}

/// Which models, and how (`models`).
#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    /// Folders of models.
    pub directories: Vec<PathBuf>,
    /// When models may change.
    pub control: Control,
    /// What is loaded at start.
    pub load: Load,
    /// What readiness waits for.
    pub required: Vec<Arc<str>>,
    /// Memory for all of them.
    pub memory: Memory,
    /// Which files are tried in a process of their own first.
    pub probe: Probe,
    /// How long that may take.
    pub probe_timeout: Duration,
    /// What of memory it may take, bytes; `None`: by the size of the files.
    pub probe_memory: Option<u64>,
    /// Where optimised graphs are kept, and how many bytes of them; `None`: nowhere.
    pub optimized_cache: Option<(PathBuf, u64)>,
    /// What each model may say for itself.
    pub defaults: ModelDefaults,
    /// The same as it was written, for [`load_model`].
    pub written: raw::ModelDefaults,
}

/// When models may change (`models.control`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Never, while the server runs.
    Fixed,
    /// When their folders do: looked at so often, and loaded once they have been still for so long.
    Watch(watch::Settings),
    /// When a call says so.
    Explicit,
}

/// How a model is served (`models.defaults`, `model.yaml`).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDefaults {
    /// Which versions.
    pub versions: Versions,
    /// Sessions of each version.
    pub instances: Amount,
    /// Threads within one run.
    pub threads: Amount,
    /// Where it runs.
    pub execution: Execution,
    /// Whether its instances on threads share their weights.
    pub share_weights: bool,
    /// How calls are run together.
    pub batching: Batching,
    /// Which calls of different lengths are.
    pub pad: Pad,
    /// How many rows a run has.
    pub rows: Rows,
    /// What becomes of memory after a run.
    pub arena: Arena,
    /// What runs its nodes, best first.
    pub providers: Vec<raw::Provider>,
    /// Options of ONNX Runtime.
    pub session: raw::Session,
    /// How long a run on a thread may take.
    pub run_limit: Limit,
    /// What it is run on before it is ready.
    pub warmup: Warmup,
    /// Whether and how answers are kept.
    pub cache: raw::Cache,
    /// To which versions calls go that name none; checked.
    pub traffic: Option<raw::Traffic>,
}

/// How calls are run together (`batching`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Whether; `Auto`: for models whose first axis is free.
    pub enabled: Switch,
    /// Rows in one batch.
    pub max_rows: usize,
    /// Elements of ragged inputs in one batch; `Auto`: so many for each row.
    pub max_elements: Amount,
    /// How long the oldest call waits for others, zero being not at all; `None`: for those who were just answered, as long as
    /// that pays.
    pub max_delay: Option<Duration>,
    /// Calls waiting.
    pub max_queue: usize,
    /// Levels of priority among them; 1: the order of arrival.
    pub priorities: u32,
    /// The level of a call that asks for none.
    pub default_priority: u32,
    /// Rows that a batch should rather have than others, ascending; empty: none.
    pub preferred: Vec<usize>,
    /// How long a call may wait; `None`: as long as its deadline lets it.
    pub timeout: Option<Duration>,
    /// What becomes of a call that has waited for longer.
    pub when_late: WhenLate,
    /// Whether answers are given in the order in which calls began to run.
    pub preserve_order: bool,
}

/// One model's own configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelConfig {
    /// The defaults, with what its file says instead.
    pub defaults: ModelDefaults,
    /// Files with the names of classes, by output.
    pub class_labels: BTreeMap<Arc<str>, PathBuf>,
    /// What is said of inputs, by name.
    pub inputs: Vec<(Arc<str>, InputSettings)>,
    /// Names of versions: label and version.
    pub version_labels: BTreeMap<Arc<str>, u64>,
    /// The graph of other models that it is.
    pub ensemble: Option<ensemble::Settings>,
    /// The file of each version, if it is not `model.onnx`.
    pub file: Option<Arc<str>>,
    /// What its `config.pbtxt` says of inputs and outputs, rows included.
    pub declared: Option<Signature>,
    /// What its `config.pbtxt` wants it to be run on before it is ready.
    pub samples: Vec<Sample>,
    /// What its `config.pbtxt` says that only clients read.
    pub notes: Notes,
    /// What was said and does not apply here, a sentence each.
    pub warnings: Vec<String>,
}

/// Threads and ONNX Runtime (`runtime`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// How connections are spread over threads.
    pub kind: Kind,
    /// Lanes; `Auto`: one per core that the process may use.
    pub lanes: Amount,
    /// Cores for inference; `Auto`: as many.
    pub inference_cores: Amount,
    /// Threads for large decodes.
    pub decode_threads: usize,
    /// What may run on a lane (decision 9).
    pub turn: TurnSettings,
    /// When a lane that does not turn is told.
    pub stall: lane::Stall,
    /// The library of ONNX Runtime; `None`: the search order of decision 6.
    pub onnxruntime: Option<PathBuf>,
    /// Whether models are laid in huge pages.
    pub huge_pages: HugePages,
}

/// Whether models are laid in huge pages (`runtime.huge_pages`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HugePages {
    /// Where the system has them.
    #[default]
    Auto,
    /// As the system does by itself.
    Never,
}

/// How connections are spread over threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One single-threaded runtime per core.
    #[default]
    Lanes,
    /// One runtime of many threads. There are no turns then.
    WorkStealing,
}

/// What is told about calls (`telemetry`).
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The log.
    pub log: Log,
    /// One line per call.
    pub access_log: bool,
    /// What is counted besides.
    pub metrics: metrics::Settings,
    /// Where traces go, if calls are traced.
    pub otlp: Option<traces::Settings>,
}

/// The graceful stop (contract 07 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long connections are still taken.
    pub delay: Duration,
    /// How long it takes in all.
    pub timeout: Duration,
}

/// What flags and variables say; each wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Replaces the whole `listen` list, each address with all surfaces and no TLS.
    pub listen: Vec<SocketAddr>,
    /// Replaces `models.directory`.
    pub models: Option<PathBuf>,
    /// Replaces `admin.address`, and switches the listener on.
    pub admin_listen: Option<SocketAddr>,
    /// Replaces `runtime.onnxruntime`.
    pub onnxruntime: Option<PathBuf>,
    /// Replaces `telemetry.log.format`.
    pub log_format: Option<LogFormat>,
}

// === impl Config ===

impl Config {
    /// Reads the file at `path`, or the defaults without one, and puts `overrides` over it.
    ///
    /// # Errors
    ///
    /// Every problem of the file and of what came of it.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, Problems> {
        let Some(path) = path else { return Self::parse("", "the defaults", Path::new(""), overrides) };
        let source = path.display().to_string();
        let text = read(path, &source)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut problems = Problems::new(source);
        let tree = source::tree(&text, &mut problems);
        // An empty file is what an editor leaves between truncating and writing; all defaults are not what it means.
        if tree.get("version").is_none() && problems.list.is_empty() {
            problems.push("version", "is missing, expected 1");
            return Err(problems);
        }
        let config = Self::of(tree, problems, folder, overrides.clone())?;
        Ok(Self { source: Some(Source { path: path.to_owned(), overrides }), ..config })
    }

    fn parse(text: &str, source: &str, folder: &Path, overrides: Overrides) -> Result<Self, Problems> {
        let mut problems = Problems::new(source);
        let tree = source::tree(text, &mut problems);
        Self::of(tree, problems, folder, overrides)
    }

    /// What `tree` says, if there are no problems with it, nor were any before.
    fn of(
        mut tree: serde_json::Value,
        mut problems: Problems,
        folder: &Path,
        overrides: Overrides,
    ) -> Result<Self, Problems> {
        source::expand(&mut tree, &|name| std::env::var(name).ok(), &mut problems);
        source::refuse_later(&mut tree, LATER, &mut problems);
        source::drop_empty(&mut tree, "admin");
        // A default path starts where the program does, not at a file that does not mention it.
        let writes_directory = tree.pointer("/models/directory").is_some();
        let raw: raw::Config = source::read(tree, &mut problems);
        let config = validate::config(&raw, folder, writes_directory, overrides, &mut problems);
        problems.or(config)
    }

    /// What is valid and probably not meant, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let has_identities = self.auth.has_method() || self.auth.anonymous == auth::Anonymous::Always;
        if has_identities && self.grants.is_empty() {
            warnings.push("`grants` is empty: nobody may do anything".to_owned());
        }
        let clear = |issuer: &&auth::jwt::Issuer| matches!(&issuer.keys, auth::jwt::Keys::Url { url, .. } if url.scheme_str() == Some("http"));
        if let Some(issuer) = self.auth.jwt.iter().find(clear) {
            let name = &issuer.issuer;
            warnings.push(format!(
                "the keys of `{name}` (`auth.jwt`) are fetched in clear text: whoever is on the way can make tokens"
            ));
        }
        if self.auth.anonymous == auth::Anonymous::Never && !self.auth.has_method() {
            warnings.push("`auth` has no method and `auth.anonymous` is never: every call will be refused".to_owned());
        }
        for listen in &self.listen {
            if let Some(all) = listen.trusted_proxies.iter().find(|network| network.is_everything()) {
                let address = listen.address;
                warnings.push(format!(
                    "{all} is among the `trusted_proxies` of {address}: whoever reaches it may say that he is anybody"
                ));
            }
        }
        warnings
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::parse("", "the defaults", Path::new(""), Overrides::default()).expect("a test proves the defaults valid")
    }
}

fn read(path: &Path, source: &str) -> Result<String, Problems> {
    fs::read_to_string(path).map_err(|error| {
        let mut problems = Problems::new(source);
        problems.push("", error.to_string());
        problems
    })
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { calls: 4096, inspect: 16, per_identity: None, sessions: None, queue_delay: None }
    }
}

impl Default for Deadline {
    fn default() -> Self {
        let [default, long] = [60, 600].map(Duration::from_secs);
        Self { default, stream: long, max: long }
    }
}

impl Default for ModelDefaults {
    fn default() -> Self {
        validate::model_defaults(&raw::ModelDefaults::default())
    }
}

#[cfg(test)]
mod auth_tests;
#[cfg(test)]
mod problem_tests;
#[cfg(test)]
mod tests;

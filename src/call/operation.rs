//! What a call asks for, decoded and free of any protocol.

use super::{Inputs, Manage};
use crate::tensor::Tensor;
use std::{fmt, num::NonZeroUsize, sync::Arc, time::Duration};

/// What a call asks for.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Run a model.
    Infer(InferRequest),
    /// Look at something.
    Inspect(Inspect),
    /// Change something.
    Manage(Manage),
}

impl Operation {
    /// The model it is about, if it is about one.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            Self::Infer(request) => Some(&request.model),
            Self::Inspect(question) => question.model(),
            Self::Manage(change) => change.model(),
        }
    }
}

/// A model as a client names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// Its name.
    pub name: Arc<str>,
    /// Its version; absent: the server chooses (contract 01 section 5).
    pub version: Option<Arc<str>>,
}

impl ModelRef {
    /// The version of `name` that carries `label` (contract 03 section 8).
    ///
    /// A label stands where a version stands: which version it is, is the repository's to say when it looks the model up.
    /// What has the form of a version is no label; it is written so that it is the name of no version either.
    pub fn labelled(name: impl Into<Arc<str>>, label: &str) -> Self {
        let is_version = label.bytes().all(|byte| byte.is_ascii_digit());
        let version = if is_version { format!("labels/{label}").into() } else { label.into() };
        Self { name: name.into(), version: Some(version) }
    }
}

/// A model as the repository knows it. May be a metric label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Its name.
    pub name: Arc<str>,
    /// The version that runs.
    pub version: Arc<str>,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// A request to run a model once.
#[derive(Debug)]
pub struct InferRequest {
    /// Which model.
    pub model: ModelRef,
    /// The client's own id, echoed. An empty one counts as absent (contract 01 section 2.3).
    pub client_id: Option<Arc<str>>,
    /// What it is run on.
    pub inputs: Inputs,
    /// The outputs wanted, in order; empty: all, in the model's order.
    pub outputs: Vec<RequestedOutput>,
    /// A wish found in the body; `Decode` can only shorten the deadline by it.
    pub timeout: Option<Duration>,
    /// 0: the model's default; 1: the highest; larger is lower (contract 02 section 3). Counts where a model has levels.
    pub priority: u32,
    /// Everything else the client said, by name.
    pub parameters: Parameters,
}

impl InferRequest {
    /// A request for all outputs with no wishes.
    pub fn new(model: ModelRef, inputs: impl Into<Inputs>) -> Self {
        Self {
            model,
            client_id: None,
            inputs: inputs.into(),
            outputs: Vec::new(),
            timeout: None,
            priority: 0,
            parameters: Parameters::new(),
        }
    }
}

/// An output that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    /// Its name.
    pub name: Arc<str>,
    /// Instead of its numbers: the best so many classes of each row, as text (contract 02 section 8).
    pub classes: Option<NonZeroUsize>,
}

impl<N: Into<Arc<str>>> From<N> for RequestedOutput {
    /// The output of this name, as numbers.
    fn from(name: N) -> Self {
        Self { name: name.into(), classes: None }
    }
}

/// A tensor with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name of the input or output.
    pub name: Arc<str>,
    /// Its value.
    pub tensor: Tensor,
}

/// Named parameters, in the order they were written. Few, so a list beats a map.
pub type Parameters = Vec<(Arc<str>, Parameter)>;

/// The value of a parameter (contract 01 section 4.1, `InferParameter`).
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits into 64 bits with a sign.
    Int(i64),
    /// An integer above `i64::MAX`.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// Text.
    String(Arc<str>),
}

/// A question about the server, a model or the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// Who am I? Allowed to every identity that has any grant, never charged (architecture section 5.2).
    Caller,
    /// The same, by whoever opens a WebSocket or a stream: the answer comes with a place for one session more.
    Session,
    /// Name, version and extensions of the server.
    Server,
    /// Names of the models the caller may know of.
    Models,
    /// The same, each with the time at which it came into service.
    Catalog,
    /// Inputs and outputs of a model.
    Model(ModelRef),
    /// Whether a model can run now.
    Ready(ModelRef),
    /// What has become of each version of a model.
    Versions(ModelRef),
    /// How a model is configured.
    Config(ModelRef),
    /// What a model has done; absent: all of them.
    Statistics(Option<ModelRef>),
    /// Models and their versions, served or not.
    Index {
        /// Only those that are ready.
        ready: bool,
    },
    /// Trace settings of a model; absent: of the server.
    Trace(Option<ModelRef>),
    /// What is logged.
    Logging,
    /// The page of metrics.
    Metrics,
}

impl Inspect {
    /// The model it is about, if it is about one.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            Self::Model(model) | Self::Ready(model) | Self::Versions(model) | Self::Config(model) => Some(model),
            Self::Statistics(model) | Self::Trace(model) => model.as_ref(),
            Self::Caller
            | Self::Session
            | Self::Server
            | Self::Models
            | Self::Catalog
            | Self::Index { .. }
            | Self::Logging
            | Self::Metrics => None,
        }
    }
}

//! What an operator changes through a call (contract 02 sections 5 and 11).

use super::ModelRef;
use bytes::Bytes;
use std::sync::Arc;

/// A change of the server, of intent `manage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manage {
    /// Nothing: asks whether the caller may change anything.
    Nothing,
    /// Loads a model, or loads it again.
    Load(LoadRequest),
    /// Stops serving a model, or the one version that is named.
    Unload(UnloadRequest),
    /// Changes trace settings.
    Trace(TraceChange),
    /// Changes logging.
    Logging(LoggingChange),
}

/// A model to load, and what differs from its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// Which model; with a version, that one alone.
    pub model: ModelRef,
    /// A model configuration as JSON that replaces the one in its folder.
    pub config: Option<Arc<str>>,
    /// Files that replace its folder, as `VERSION/NAME`.
    pub files: Vec<(Arc<str>, Bytes)>,
}

/// A model to unload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnloadRequest {
    /// Which model; with a version, that one alone.
    pub model: ModelRef,
    /// Whether the models that it is made of are to go with it.
    pub dependents: bool,
}

/// Trace settings to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceChange {
    /// The model whose settings these are; absent: the server's.
    pub model: Option<ModelRef>,
    /// What to change.
    pub settings: Vec<(Arc<str>, NewValues)>,
}

/// New values of a trace setting; none to go back to the server's.
pub type NewValues = Option<Vec<Arc<str>>>;

/// Parts of [`Logging`](super::Logging) to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggingChange {
    /// `log_info`
    pub info: Option<bool>,
    /// `log_warning`
    pub warning: Option<bool>,
    /// `log_error`
    pub error: Option<bool>,
    /// `log_verbose_level`
    pub verbose: Option<u32>,
    /// `log_format`
    pub format: Option<Arc<str>>,
}

impl Manage {
    /// The model it is about, if it is about one.
    pub fn model(&self) -> Option<&ModelRef> {
        match self {
            Self::Load(request) => Some(&request.model),
            Self::Unload(request) => Some(&request.model),
            Self::Trace(change) => change.model.as_ref(),
            Self::Logging(_) | Self::Nothing => None,
        }
    }
}

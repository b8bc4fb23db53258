//! Models: their versions, their signatures, and the router at the bottom of the stack.
//!
//! Knows calls and schedulers; knows neither who calls nor over which wire.

pub mod describe;
pub mod loader;
mod measure;
mod raw;
pub mod repository;
pub mod router;
mod scan;
pub mod signature;
pub mod spec;
#[cfg(test)]
mod testing;

pub use loader::{Loaded, Loader};
pub use repository::{Repository, State};
pub use router::Router;
pub use spec::{Batching, Load, ModelSettings, Reader, Settings, VersionPolicy};

use crate::{call::ModelKey, schedule::Scheduler, tensor::Signature};
use std::sync::Arc;

/// One version of a model that runs. Never changed in place: another version is another model.
///
/// Dropping the last handle stops its instances without waiting for them, so it may happen on a lane.
#[derive(Debug)]
pub struct Model {
    /// Its name and version; may be a metric label.
    pub key: Arc<ModelKey>,
    /// Its inputs and outputs.
    pub signature: Arc<Signature>,
    /// Takes its jobs.
    pub scheduler: Scheduler,
    /// What metadata calls its kind.
    pub platform: Arc<str>,
    /// True if one call yields any number of answers.
    pub decoupled: bool,
}

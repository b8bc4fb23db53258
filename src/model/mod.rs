//! Models: their versions, their signatures, and the router at the bottom of the stack.
//!
//! Knows calls and schedulers; knows neither who calls nor over which wire.

mod absent;
mod again;
pub mod budget;
mod busy;
mod cache;
pub mod classify;
mod compare;
pub mod control;
mod decision;
mod declared;
pub mod describe;
pub mod ensemble;
mod first;
mod forget;
mod index;
mod labels;
pub mod loader;
mod measure;
mod picture;
mod publish;
mod ragged;
pub mod repository;
pub mod router;
mod samples;
mod scan;
mod shadow;
mod shapes;
pub mod signature;
pub mod spec;
mod state;
mod tend;
#[cfg(test)]
mod testing;
mod traffic;
mod wanted;
pub mod watch;
mod workshop;
mod worth;

pub use absent::Absent;
pub use cache::{CacheScope, CacheSettings};
pub use loader::{Loaded, Loader};
pub use measure::run_on_zeros;
pub use repository::Repository;
pub use router::Router;
pub use samples::made as made_up;
pub use scan::path_of;
pub use shadow::Shadows;
pub use spec::{
    Batching, Fill, InputSettings, Load, ModelSettings, Pad, RaggedSettings, Reader, Sample, SampleInput, Settings,
    Source, VersionPolicy,
};
pub use state::State;
pub use tend::tend;
pub use traffic::{Routing, Shadow, Sticky, Traffic};
pub use workshop::reason;

use crate::{
    call::{ConfigReport, ModelKey, ServedVersions, StatisticsReport},
    schedule::{Scheduler, WhenLate},
    tensor::Signature,
};
use cache::Cache;
use classify::Labels;
use ensemble::Ensemble;
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};
use tempfile::TempDir;

/// One version of a model that runs. Never changed in place: another version is another model.
///
/// Dropping the last handle stops its instances without waiting for them, so it may happen on a lane.
#[derive(Debug)]
pub struct Model {
    /// Its name and version; may be a metric label.
    pub key: Arc<ModelKey>,
    /// Its inputs and outputs.
    pub signature: Arc<Signature>,
    /// Takes its jobs. That of an ensemble has no instances and takes none.
    pub scheduler: Scheduler,
    /// The graph that runs instead.
    pub ensemble: Option<Arc<Ensemble>>,
    /// True if one call yields any number of answers.
    pub decoupled: bool,
    /// How it was to run.
    pub settings: Arc<ModelSettings>,
    /// Instances that run it.
    pub instances: usize,
    /// Bytes of weights and arenas of all of them, about; none of an ensemble's own.
    pub memory: Option<u64>,
    /// Its answers, if they are kept.
    cache: Option<Arc<Cache>>,
    /// What stands for inputs that a call may leave out.
    pub absent: Absent,
    /// The labels of each output's classes, in the signature's order.
    pub labels: Arc<[Option<Labels>]>,
    /// When it came into service.
    pub since: SystemTime,
    /// Files that a load call brought; they are there for as long as the model may be opened again.
    pub files: Option<Arc<TempDir>>,
}

impl Model {
    /// Whether rows of several calls run together.
    pub fn batches(&self) -> bool {
        self.scheduler.policy().enabled
    }

    /// The labels of the classes of the output `name`.
    pub fn labels_of(&self, name: &str) -> Option<&Labels> {
        let place = self.signature.outputs.iter().position(|spec| *spec.name == *name)?;
        self.labels.get(place)?.as_ref()
    }

    /// Looks after its runs and its answers; see [`mod@tend`].
    fn tend(&self, now: Instant) {
        self.scheduler.tend(now);
        if let Some(cache) = &self.cache {
            cache.tend(now);
        }
    }

    /// What it has done so far.
    pub fn statistics(&self) -> StatisticsReport {
        self.scheduler.statistics().report(&self.key)
    }

    /// How it is configured (contract 02 section 10).
    pub fn config(&self) -> ConfigReport {
        let policy = self.scheduler.policy();
        let file = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into();
        ConfigReport {
            name: Arc::clone(&self.key.name),
            platform: Arc::clone(&self.settings.platform),
            max_rows: policy.enabled.then_some(policy.max_rows),
            signature: Arc::clone(&self.signature),
            decoupled: self.decoupled,
            instances: self.instances,
            max_delay: policy.max_delay,
            preferred: policy.preferred.iter().collect(),
            preserve_order: policy.preserve_order,
            timeout: (policy.timeout, policy.when_late == WhenLate::Delay),
            priorities: (policy.priorities.levels(), policy.priorities.level(0)),
            versions: match &self.settings.versions {
                VersionPolicy::Latest(count) => ServedVersions::Latest(*count),
                VersionPolicy::All => ServedVersions::All,
                VersionPolicy::Only(versions) => ServedVersions::Only(versions.clone()),
            },
            labels: self.settings.labels.iter().map(|(output, path)| (Arc::clone(output), file(path))).collect(),
            caches: self.cache.is_some(),
            file: Arc::clone(&self.settings.file),
            notes: self.settings.notes.clone(),
            steps: self.ensemble.as_ref().map(|ensemble| ensemble.report()).unwrap_or_default(),
            ragged: self.scheduler.ragged().map(|ragged| ragged.report(&self.signature.outputs)).unwrap_or_default(),
        }
    }
}

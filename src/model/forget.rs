//! Forgets models: what is nowhere any more leaves the index and the page of metrics.
//!
//! What has a folder, or had one, is the operator's. Names and versions that came with the files of a call are its caller's,
//! and whoever thinks of ever more of them would fill both.

use super::{Loader, Repository};
use crate::call::{ModelKey, ModelRef};
use std::sync::Arc;

// === impl Loader ===

impl Loader {
    /// Forgets a version that is nowhere any more.
    pub(super) fn forget(&self, name: &Arc<str>, version: &Arc<str>) {
        let key = ModelKey { name: Arc::clone(name), version: Arc::clone(version) };
        self.waiting.forget(&key);
        self.repository.remove(name, version);
        self.metrics.model_gone(&key);
    }

    /// Forgets versions whose files a call brought, and the name if there is nothing else of it.
    pub(super) fn forget_brought<'a>(&self, name: &Arc<str>, versions: impl IntoIterator<Item = &'a Arc<str>>) {
        versions.into_iter().for_each(|version| self.forget(name, version));
        if known(&self.repository, name).is_empty() {
            self.metrics.model_unknown(name);
        }
    }
}

/// Versions of a model that the repository knows, whatever their state.
pub(super) fn known(repository: &Repository, name: &Arc<str>) -> Vec<Arc<str>> {
    let report = repository.versions(&ModelRef { name: Arc::clone(name), version: None });
    report.map_or_else(|_| Vec::new(), |report| report.versions.into_iter().map(|(version, ..)| version).collect())
}

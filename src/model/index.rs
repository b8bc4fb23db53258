//! What is said of all models at once: the index, and the shorter list of other protocols.

use super::{Repository, repository::seconds, state::Versions};
use crate::call::{CatalogEntry, IndexEntry, Report, VersionState};
use std::{
    collections::HashSet,
    sync::{Arc, PoisonError},
};

/// A folder that should have been a model, or a version of one, and is not: nothing that a call could mean.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// The model, or what should have been one.
    pub(super) name: Arc<str>,
    /// The folder within, if it is only about that.
    pub(super) version: Option<Arc<str>>,
    pub(super) reason: Arc<str>,
}

// === impl Repository ===

impl Repository {
    /// Says what should have been models or versions: all there are, or only what is of the model `of`.
    pub(super) fn refuse(&self, of: Option<&str>, refused: Vec<Refused>) {
        let mut known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| of.is_some_and(|of| *known.name != *of));
        known.extend(refused);
    }

    /// Every version of every model with its state, what should have been one, and the models of `others` that were never
    /// loaded. With `ready`, only what takes calls.
    pub fn index(&self, others: Vec<Arc<str>>, ready: bool) -> Report {
        let models = self.models.load();
        let mut entries = Vec::new();
        for (name, versions) in models.iter() {
            for version in &versions.list {
                let (state, reason) = self.told(version, versions.trouble.as_ref());
                if ready && state != VersionState::Ready {
                    continue;
                }
                let (name, labels) = (Arc::clone(name), versions.labels_of(&version.name));
                entries.push(IndexEntry {
                    name,
                    version: Some(Arc::clone(&version.name)),
                    state: Some(state),
                    labels,
                    reason,
                });
            }
        }
        if !ready {
            let entry = |name, version, state, reason| IndexEntry { name, version, state, labels: Vec::new(), reason };
            for Refused { name, version, reason } in &*self.refused.lock().unwrap_or_else(PoisonError::into_inner) {
                // Of a model that is served, what is wrong is said of its versions.
                if version.is_some() || !models.contains_key(name) {
                    let state = Some(VersionState::Failed);
                    entries.push(entry(Arc::clone(name), version.clone(), state, Arc::clone(reason)));
                }
            }
            let known: HashSet<_> = entries.iter().map(|entry| Arc::clone(&entry.name)).collect();
            let unknown = others.into_iter().filter(|name| !known.contains(name));
            entries.extend(unknown.map(|name| entry(name, None, None, "".into())));
        }
        // Stable, so the versions of a model stay in their order.
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Report::Index(entries)
    }

    /// All models, whatever their state, sorted by name, each with the time at which its newest ready version came.
    pub fn catalog(&self) -> Vec<CatalogEntry> {
        let models = self.models.load();
        let since =
            |versions: &Versions| seconds(versions.list.iter().find_map(|version| version.state.model()).as_deref());
        let mut entries: Vec<_> = models
            .iter()
            .map(|(name, versions)| CatalogEntry { name: Arc::clone(name), since: since(versions) })
            .collect();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries
    }
}

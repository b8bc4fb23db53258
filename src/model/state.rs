//! Versions of one model, and what can be said of each.
//!
//! Plain values: which names there are, and who may change them when, is the repository's.

use super::Model;
use crate::{
    call::{ModelRef, VersionState},
    error::Error,
};
use std::{cmp::Reverse, sync::Arc};

/// What can be said of one version of a model.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being opened and warmed up.
    Loading,
    /// It takes calls.
    Ready(Arc<Model>),
    /// It cannot be loaded, for this reason, which operators read.
    Failed(Arc<str>),
    /// It takes no new calls.
    Unloading,
    /// It was served and is no longer: known by name only.
    Unloaded,
}

/// What clients read of a model that could not be loaded.
const FAILED: &str = "not served: loading it failed";

/// Versions of one model, the highest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions(pub(super) Vec<Version>);

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) name: Arc<str>,
    pub(super) state: State,
}

// === impl State ===

impl State {
    /// The word used in errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Failed(_) => "failed",
            Self::Unloading => "unloading",
            Self::Unloaded => "unloaded",
        }
    }

    /// The same in the vocabulary of reports, and why it is not served, which operators and clients read.
    pub(super) fn told(&self) -> (VersionState, Arc<str>) {
        match self {
            Self::Loading => (VersionState::Loading, "loading".into()),
            Self::Ready(_) => (VersionState::Ready, "".into()),
            // Why it failed may name files: that is for the log, the banner and `check`.
            Self::Failed(_) => (VersionState::Failed, FAILED.into()),
            Self::Unloading => (VersionState::Unloading, "unloading".into()),
            Self::Unloaded => (VersionState::Unloaded, "unloaded".into()),
        }
    }

    /// The model, if it takes calls.
    pub(super) fn model(&self) -> Option<Arc<Model>> {
        match self {
            Self::Ready(model) => Some(Arc::clone(model)),
            Self::Loading | Self::Failed(_) | Self::Unloading | Self::Unloaded => None,
        }
    }
}

// === impl Versions ===

impl Versions {
    pub(super) fn get(&self, name: &str) -> Option<&Version> {
        self.0.iter().find(|version| *version.name == *name)
    }

    /// Puts a version into its place, or another state into a version that is there.
    pub(super) fn set(&mut self, name: &Arc<str>, state: &State) {
        let version = Version { name: Arc::clone(name), state: state.clone() };
        match self.0.iter_mut().find(|known| known.name == *name) {
            Some(known) => *known = version,
            None => self.0.push(version),
        }
        self.0.sort_by_cached_key(|version| Reverse(order(&version.name)));
    }

    /// The version whose state explains best why there is none that is ready.
    pub(super) fn most_hopeful(&self) -> Option<&Version> {
        self.0.iter().min_by_key(|version| match version.state {
            State::Ready(_) => 0,
            State::Loading => 1,
            State::Unloading => 2,
            State::Failed(_) => 3,
            State::Unloaded => 4,
        })
    }

    pub(super) fn ready(&self, version: Option<&Version>, wanted: &ModelRef) -> Result<Arc<Model>, Error> {
        match version.map(|version| &version.state) {
            Some(State::Ready(model)) => Ok(Arc::clone(model)),
            Some(State::Unloaded) | None => Err(not_found(wanted)),
            Some(state) => {
                // Why it failed may name files: that is for the log, the banner and `check`.
                let state = if matches!(state, State::Failed(_)) { FAILED } else { state.name() };
                Err(Error::ModelNotReady { model: Arc::clone(&wanted.name), state })
            }
        }
    }
}

/// The error of a model, or a version of it, that there is not.
pub(super) fn not_found(wanted: &ModelRef) -> Error {
    Error::ModelNotFound { model: Arc::clone(&wanted.name), version: wanted.version.clone() }
}

/// Integers by value, and all of them above names that are no integers.
fn order(version: &str) -> (Option<u64>, String) {
    (version.parse().ok(), version.to_owned())
}

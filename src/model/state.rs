//! Versions of one model, and what can be said of each.
//!
//! Plain values: which names there are, and who may change them when, is the repository's.

use super::{
    Model, Routing,
    traffic::{Caller, Routes},
};
use crate::{
    call::{ModelRef, VersionState},
    error::Error,
};
use std::{
    cmp::Reverse,
    sync::{Arc, Weak},
};

/// What can be said of one version of a model.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being opened and warmed up.
    Loading,
    /// It takes calls.
    Ready(Arc<Model>),
    /// It cannot be loaded, for this reason, which operators read.
    Failed(Arc<str>),
    /// It takes no new calls. The model that it was ends with those that it has: another one may have been unloaded before.
    Unloading(Weak<Model>),
    /// It was served and is no longer: known by name only.
    Unloaded,
}

/// What clients read of a model that could not be loaded.
const FAILED: &str = "not served: loading it failed";

/// Versions of one model, and which of them a call means. One value, so that whoever looks sees both as they belong
/// together.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions {
    /// The highest first.
    pub(super) list: Vec<Version>,
    /// Absent until the model has said something of it.
    pub(super) routes: Option<Arc<Routes>>,
    /// What the model says and that is not so, if that is all that is wrong.
    pub(super) trouble: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) name: Arc<str>,
    pub(super) state: State,
    /// That what would have replaced it could not be loaded, if that was tried since it came into service.
    pub(super) trouble: Option<Arc<str>>,
}

// === impl State ===

impl State {
    /// The word used in errors and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Failed(_) => "failed",
            Self::Unloading(_) => "unloading",
            Self::Unloaded => "unloaded",
        }
    }

    /// The same in the vocabulary of reports, and why it is not served, which operators and clients read.
    pub(super) fn told(&self) -> (VersionState, Arc<str>) {
        match self {
            Self::Loading => (VersionState::Loading, "loading".into()),
            Self::Ready(_) => (VersionState::Ready, "".into()),
            // Its paths begin at the models' folder, so whoever may look at the model may read it.
            Self::Failed(reason) => (VersionState::Failed, format!("{FAILED}: {reason}").into()),
            Self::Unloading(_) => (VersionState::Unloading, "unloading".into()),
            Self::Unloaded => (VersionState::Unloaded, "unloaded".into()),
        }
    }

    /// The model, if it takes calls.
    pub(super) fn model(&self) -> Option<Arc<Model>> {
        match self {
            Self::Ready(model) => Some(Arc::clone(model)),
            Self::Loading | Self::Failed(_) | Self::Unloading(_) | Self::Unloaded => None,
        }
    }
}

// === impl Version ===

impl Version {
    /// What has become of it, and what there is to say of that, for operators and for callers who may look.
    /// `trouble` is the model's.
    pub(super) fn told(&self, trouble: Option<&Arc<str>>) -> (VersionState, Arc<str>) {
        match (&self.state, self.trouble.as_ref().or(trouble)) {
            (State::Ready(_), Some(reason)) => (VersionState::Ready, Arc::clone(reason)),
            (state, _) => state.told(),
        }
    }
}

// === impl Versions ===

impl Versions {
    pub(super) fn get(&self, name: &str) -> Option<&Version> {
        self.list.iter().find(|version| *version.name == *name)
    }

    /// The version that carries the label `name`, by its name.
    pub(super) fn labelled(&self, name: &str) -> Option<&Arc<str>> {
        self.routes.as_ref()?.routing.labels.get(name)
    }

    /// The labels that mean the version `name`.
    pub(super) fn labels_of(&self, name: &str) -> Vec<Arc<str>> {
        let labels = self.routes.iter().flat_map(|routes| &routes.routing.labels);
        labels.filter(|(_, version)| ***version == *name).map(|(label, _)| Arc::clone(label)).collect()
    }

    /// Puts a version into its place, or another state into a version that is there.
    pub(super) fn set(&mut self, name: &Arc<str>, state: &State) {
        let version = Version { name: Arc::clone(name), state: state.clone(), trouble: None };
        match self.list.iter_mut().find(|known| known.name == *name) {
            Some(known) => *known = version,
            None => self.list.push(version),
        }
        self.list.sort_by_cached_key(|version| Reverse(order(&version.name)));
    }

    /// Puts what the model says of its versions in force. What is the same as before goes on counting where it was.
    pub(super) fn rule(&mut self, routing: &Arc<Routing>) {
        if self.routes.as_ref().is_none_or(|routes| routes.routing != *routing) {
            self.routes = Some(Arc::new(Routes::new(routing, self.routes.as_deref())));
        }
    }

    /// Lets go of the rules of a model of which nothing is there any more but names.
    pub(super) fn rest(&mut self) {
        if self.list.iter().all(|version| matches!(version.state, State::Unloaded)) {
            self.routes = None;
        }
    }

    /// Models that take calls.
    pub(super) fn models(&self) -> impl Iterator<Item = Arc<Model>> {
        self.list.iter().filter_map(|version| version.state.model())
    }

    /// Says what came of replacing a version that goes on.
    pub(super) fn trouble(&mut self, name: &str, reason: &Arc<str>) {
        if let Some(version) = self.list.iter_mut().find(|version| *version.name == *name) {
            version.trouble = Some(Arc::clone(reason));
        }
    }

    /// The version that a question means that names none: where most calls go. A shadow is nobody's answer.
    pub(super) fn usual(&self) -> Option<&Version> {
        let Some(routes) = &self.routes else { return self.highest(|_| true) };
        let traffic = &routes.routing.traffic;
        if !traffic.split.is_empty() {
            return self.get(routes.split(None, |name| self.is_ready(name))?);
        }
        self.highest(|name| traffic.shadow.as_ref().is_none_or(|shadow| *shadow.to != *name))
    }

    /// The version to which a call goes that names none.
    pub(super) fn chosen(&self, caller: &Caller<'_>) -> Option<&Version> {
        match &self.routes {
            Some(routes) if !routes.routing.traffic.split.is_empty() => {
                self.get(routes.split(Some(caller), |name| self.is_ready(name))?)
            }
            _ => self.usual(),
        }
    }

    fn highest(&self, may: impl Fn(&str) -> bool) -> Option<&Version> {
        self.list.iter().find(|version| matches!(version.state, State::Ready(_)) && may(&version.name))
    }

    fn is_ready(&self, name: &str) -> bool {
        self.get(name).is_some_and(|version| matches!(version.state, State::Ready(_)))
    }

    /// The model that the text `name`, a version or a label, means.
    pub(super) fn named(&self, name: &str, wanted: &ModelRef) -> Result<Arc<Model>, Error> {
        if let Some(version) = self.get(name) {
            return self.ready(Some(version), wanted);
        }
        let unknown =
            |version: Arc<str>| Error::ModelNotFound { model: Arc::clone(&wanted.name), version: Some(version) };
        let Some(version) = self.labelled(name) else { return Err(unknown(name.into())) };
        self.ready(self.get(version), wanted).map_err(|error| match error {
            // Whoever named the label cannot know which version it is.
            Error::ModelNotFound { .. } => unknown(format!("{version}`, labelled `{name}").into()),
            error => error,
        })
    }

    /// The version whose state explains best why there is none that is ready.
    pub(super) fn most_hopeful(&self) -> Option<&Version> {
        self.list.iter().filter(|version| !matches!(version.state, State::Ready(_))).min_by_key(|version| match version
            .state
        {
            State::Ready(_) => 0,
            State::Loading => 1,
            State::Unloading(_) => 2,
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

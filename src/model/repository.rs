//! Which models there are: name → versions → state.
//!
//! Calls read a snapshot and take no lock; writers copy it. A repository knows nothing of files or
//! of how a model is made.

use super::{
    Model, Routing, State,
    ensemble::{DEPTH, Served},
    index::Refused,
    shadow::Aim,
    state::{Version, Versions, not_found},
    traffic::Caller,
};
use crate::{
    call::{ModelRef, ModelReport, Readiness, Steering, VersionsReport},
    error::Error,
};
use arc_swap::ArcSwap;
use foldhash::HashMap;
use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Instant, SystemTime},
};

/// All models of the process.
#[derive(Debug, Default)]
pub struct Repository {
    /// Names are those of folders. Strangers' names are looked up and never kept, so a fast hasher is enough.
    pub(super) models: ArcSwap<HashMap<Arc<str>, Arc<Versions>>>,
    /// Told of every change.
    readiness: Readiness,
    /// Told which headers decide where calls go.
    steering: Steering,
    /// Held while that is worked out, so that the last to say so has seen all.
    steers: Mutex<()>,
    /// Models that are served no more and that calls may still wait in.
    left: Mutex<Vec<Weak<Model>>>,
    /// Folders that should have been models or versions, as they were found last.
    pub(super) refused: Mutex<Vec<Refused>>,
}

// === impl Repository ===

impl Repository {
    /// An empty one. Whoever waits for changes of `readiness` hears of its own.
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness, ..Self::default() }
    }

    /// Which headers decide where calls go: front-ends keep them.
    pub fn steering(&self) -> &Steering {
        &self.steering
    }

    /// The model that a question means (contract 01 section 5): the version or label it names, else the version where most
    /// calls go, which is the highest that is ready unless the model says otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`] if there is none of that name or version, [`Error::ModelNotReady`]
    /// if there is and it takes no calls.
    pub fn resolve(&self, wanted: &ModelRef) -> Result<Arc<Model>, Error> {
        let models = self.models.load();
        let versions = find(&models, wanted)?;
        match &wanted.version {
            Some(name) => versions.named(name, wanted),
            None => unnamed(versions, versions.usual(), wanted),
        }
    }

    /// The model that runs a call, as [`Repository::resolve`] finds it; of a call that names no version, the one that the
    /// model's rules of traffic choose, and where a copy of the call is to go.
    ///
    /// # Errors
    ///
    /// As [`Repository::resolve`].
    pub(super) fn route(&self, caller: &Caller<'_>) -> Result<(Arc<Model>, Option<Aim>), Error> {
        let (models, wanted) = (self.models.load(), caller.wanted());
        let versions = find(&models, wanted)?;
        if let Some(name) = &wanted.version {
            return Ok((versions.named(name, wanted)?, None));
        }
        if let Some(name) = versions.routes.as_ref().and_then(|routes| routes.asked(caller)) {
            return Ok((versions.named(name, wanted)?, None));
        }
        let model = unnamed(versions, versions.chosen(caller), wanted)?;
        let mirror = versions.routes.as_ref().and_then(|routes| routes.mirror.as_ref());
        let aim = mirror.filter(|mirror| !model.decoupled && mirror.wants_next()).map(|mirror| {
            let target = versions.get(mirror.target()).and_then(|version| version.state.model());
            Aim { mirror: Arc::clone(mirror), target }
        });
        Ok((model, aim))
    }

    /// What a model says of its versions, if it has said something.
    pub(super) fn routing(&self, name: &str) -> Option<Arc<Routing>> {
        Some(Arc::clone(&self.models.load().get(name)?.routes.as_ref()?.routing))
    }

    /// Puts what a model says of its versions in force, all of it at once. A split or a shadow that is the same as before goes on
    /// counting where it was. Without any version there is nothing to say it of.
    ///
    /// # Errors
    ///
    /// As [`Repository::admits`], and then nothing has changed.
    pub(super) fn set_routing(&self, name: &Arc<str>, routing: &Arc<Routing>) -> Result<(), String> {
        self.publish(name, &[], Some(routing)).map(drop)
    }

    /// Puts versions of a model in service and, if there is something new, what it says of them in force, with one change:
    /// nobody sees the one without the other. A version that was unloaded or forgotten since its load began stays so; the
    /// others are those that are returned. Models that are replaced finish the calls they have.
    ///
    /// # Errors
    ///
    /// As [`Repository::admits`], and then nothing has changed.
    pub(super) fn publish(
        &self,
        name: &Arc<str>,
        ready: &[Arc<Model>],
        routing: Option<&Arc<Routing>>,
    ) -> Result<Vec<Arc<str>>, String> {
        let routing = routing.filter(|routing| self.routing(name).as_ref() != Some(routing));
        if ready.is_empty() && routing.is_none() {
            return Ok(Vec::new());
        }
        let _steers = self.steers.lock().unwrap_or_else(PoisonError::into_inner);
        routing.map_or(Ok(()), |routing| self.admits(name, routing))?;
        let mut entered = Vec::new();
        self.change(name, |versions| {
            // It may be called again, on what somebody else has changed meanwhile.
            entered.clear();
            for model in ready {
                let version = &model.key.version;
                let state = versions.get(version).map(|version| &version.state);
                if matches!(state, Some(State::Loading | State::Ready(_) | State::Failed(_))) {
                    versions.set(version, &State::Ready(Arc::clone(model)));
                    entered.push(Arc::clone(version));
                }
            }
            if let Some(routing) = routing {
                versions.rule(routing);
            }
        });
        if let Some(routing) = routing {
            let mut headers = self.headers_besides(name);
            if self.models.load().contains_key(name) {
                headers.extend(routing.headers().cloned());
            }
            self.steering.set(headers.into_iter().collect());
        }
        Ok(entered)
    }

    /// Whether what a model says of its versions can be in force beside what others say.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: which header is one too many.
    pub(super) fn admits(&self, name: &str, routing: &Routing) -> Result<(), String> {
        routing.beyond(&self.headers_besides(name)).map_or(Ok(()), Err)
    }

    /// Headers that the rules of all models but `name` look at.
    fn headers_besides(&self, name: &str) -> BTreeSet<Arc<str>> {
        let models = self.models.load();
        let others = models.iter().filter(|(other, _)| ***other != *name);
        let routes = others.filter_map(|(_, versions)| versions.routes.as_ref());
        routes.flat_map(|routes| routes.routing.headers()).cloned().collect()
    }

    /// Says what is wrong with what a model says, or that nothing is. Its versions are served all the same.
    pub(super) fn trouble(&self, name: &Arc<str>, trouble: Option<&Arc<str>>) {
        if self.models.load().get(name).is_some_and(|versions| versions.trouble.as_ref() != trouble) {
            self.change(name, |versions| versions.trouble = trouble.cloned());
        }
    }

    /// What metadata says of a model (contract 01 section 2.2).
    ///
    /// # Errors
    ///
    /// As [`Repository::resolve`].
    pub fn report(&self, wanted: &ModelRef) -> Result<(Arc<Model>, ModelReport), Error> {
        let model = self.resolve(wanted)?;
        let versions = match &wanted.version {
            Some(_) => vec![Arc::clone(&model.key.version)],
            None => self.ready_versions(&wanted.name),
        };
        let report = ModelReport {
            name: Arc::clone(&model.key.name),
            version: Arc::clone(&model.key.version),
            versions,
            platform: Arc::clone(&model.settings.platform),
            signature: Arc::clone(&model.signature),
        };
        Ok((model, report))
    }

    /// Whether a model would take a call now.
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`] if there is none of that name or version.
    pub fn is_ready(&self, wanted: &ModelRef) -> Result<bool, Error> {
        match self.resolve(wanted) {
            Ok(model) => Ok(self.would_run(&model)),
            Err(Error::ModelNotReady { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a step of an ensemble would run, for whoever loads it.
    pub(super) fn served(&self, wanted: &ModelRef) -> Result<Served, String> {
        let model = self.resolve(wanted).map_err(|error| error.to_string())?;
        let (signature, batches) = (Arc::clone(&model.signature), model.batches());
        let optional = model.absent.names(&signature);
        Ok(Served { signature, batches, decoupled: model.decoupled, optional })
    }

    /// Whether the model `name` is part of what a step runs that names `wanted`, however deep below it.
    pub(super) fn contains(&self, wanted: &ModelRef, name: &str) -> bool {
        // Level by level, and each model once on each: the ways that lead to one may be too many to walk.
        let mut level = HashSet::from([wanted.clone()]);
        for _ in 0..=DEPTH {
            if level.iter().any(|wanted| *wanted.name == *name) {
                return true;
            }
            let ensembles = level.iter().filter_map(|wanted| self.resolve(wanted).ok()?.ensemble.clone());
            level = ensembles.fold(HashSet::new(), |mut below, ensemble| {
                below.extend(ensemble.parts().map(|(_, inner, _)| inner.clone()));
                below
            });
        }
        !level.is_empty()
    }

    /// Each version of a model, or the one that is named, with what has become of it.
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`] if there is none of that name or version.
    pub fn versions(&self, wanted: &ModelRef) -> Result<VersionsReport, Error> {
        let models = self.models.load();
        let versions = find(&models, wanted)?;
        let label = wanted.version.as_ref().and_then(|name| versions.labelled(name));
        let wanted_version = label.or(wanted.version.as_ref());
        let named = |version: &&Version| wanted_version.is_none_or(|name| version.name == *name);
        let entries: Vec<_> = versions.list.iter().filter(named).collect();
        if entries.is_empty() {
            return Err(not_found(wanted));
        }
        let newest = entries.iter().find_map(|version| version.state.model());
        Ok(VersionsReport {
            name: Arc::clone(&wanted.name),
            since: seconds(newest.as_deref()),
            ready: newest.is_some_and(|model| self.would_run(&model)),
            versions: entries
                .into_iter()
                .map(|version| {
                    let (state, reason) = self.told(version, versions.trouble.as_ref());
                    (Arc::clone(&version.name), state, reason)
                })
                .collect(),
        })
    }

    /// Models that take calls: all of them, all versions of one, or one version.
    ///
    /// # Errors
    ///
    /// As [`Repository::resolve`], if one was named.
    pub fn ready(&self, wanted: Option<&ModelRef>) -> Result<Vec<Arc<Model>>, Error> {
        let Some(wanted) = wanted else {
            return Ok(self.states().into_iter().filter_map(|(_, _, state)| state.model()).collect());
        };
        let chosen = self.resolve(wanted)?;
        if wanted.version.is_some() {
            return Ok(vec![chosen]);
        }
        let models = self.models.load();
        let versions = find(&models, wanted)?;
        Ok(versions.list.iter().filter_map(|version| version.state.model()).collect())
    }

    /// Names of all models, whatever their state, sorted.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.models.load().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Every version of every model with its state, sorted by name, the highest version first.
    pub fn states(&self) -> Vec<(Arc<str>, Arc<str>, State)> {
        let models = self.models.load();
        let mut states: Vec<_> = models
            .iter()
            .flat_map(|(name, versions)| {
                versions
                    .list
                    .iter()
                    .map(move |version| (Arc::clone(name), Arc::clone(&version.name), version.state.clone()))
            })
            .collect();
        // Stable, so the versions of a model stay in their order.
        states.sort_by(|a, b| a.0.cmp(&b.0));
        states
    }

    /// Says what has become of a version. A model that it replaces finishes the calls it has.
    pub fn set(&self, name: &Arc<str>, version: &Arc<str>, state: &State) {
        self.change(name, |versions| versions.set(version, state));
    }

    /// Says that a version is being loaded. One that takes calls goes on taking them until it is replaced.
    pub fn begin(&self, name: &Arc<str>, version: &Arc<str>) {
        if !self.is_serving(name, version) {
            self.set(name, version, &State::Loading);
        }
    }

    /// Says that a version could not be loaded, for `reason`. One that takes calls goes on taking them, and the index has
    /// the reason beside it.
    pub fn failed(&self, name: &Arc<str>, version: &Arc<str>, reason: &str) {
        if self.is_serving(name, version) {
            let reason = goes_on(reason);
            self.change(name, |versions| versions.trouble(version, &reason));
        } else {
            self.set(name, version, &State::Failed(reason.into()));
        }
    }

    /// Takes a version out of service: the model that was, if it was one. The calls that it has are its holder's to wait
    /// for.
    pub fn retire(&self, name: &Arc<str>, version: &Arc<str>) -> Option<Arc<Model>> {
        let model = self.models.load().get(name)?.get(version)?.state.model()?;
        self.set(name, version, &State::Unloading(Arc::downgrade(&model)));
        Some(model)
    }

    /// Says that a version that was retired as `model` is gone; false if it has come back meanwhile, whatever has become of it
    /// since.
    pub fn retired(&self, name: &Arc<str>, version: &Arc<str>, model: &Weak<Model>) -> bool {
        let gone = matches!(self.state(name, version), Some(State::Unloading(last)) if last.ptr_eq(model));
        if gone {
            self.set(name, version, &State::Unloaded);
        }
        gone
    }

    /// Versions of a model that take calls, the highest first.
    pub fn serving(&self, name: &str) -> Vec<Arc<str>> {
        self.ready_versions(name).into_iter().rev().collect()
    }

    /// Whether a version takes calls.
    pub fn is_serving(&self, name: &str, version: &str) -> bool {
        let models = self.models.load();
        let version = models.get(name).and_then(|versions| versions.get(version));
        version.is_some_and(|version| matches!(version.state, State::Ready(_)))
    }

    /// What has become of a version; `None` if there is none.
    pub(super) fn state(&self, name: &str, version: &str) -> Option<State> {
        Some(self.models.load().get(name)?.get(version)?.state.clone())
    }

    /// Forgets a version.
    pub fn remove(&self, name: &Arc<str>, version: &str) {
        self.change(name, |versions| versions.list.retain(|known| *known.name != *version));
    }

    /// Lets no model take calls any more, and waits until their threads have ended, until
    /// `deadline` at the latest. True if they have. Blocks: not for lanes.
    pub fn close(&self, deadline: Instant) -> bool {
        let models: Vec<_> = self.states().into_iter().filter_map(|(_, _, state)| state.model()).collect();
        models.iter().for_each(|model| model.scheduler.close());
        // Not `all`, which stops at the first that has not ended: each thread has until the deadline.
        models.iter().filter(|model| !model.scheduler.wait_closed(deadline)).count() == 0
    }

    fn ready_versions(&self, name: &str) -> Vec<Arc<str>> {
        let models = self.models.load();
        let Some(versions) = models.get(name) else { return Vec::new() };
        let ready = versions.list.iter().rev().filter(|version| matches!(version.state, State::Ready(_)));
        ready.map(|version| Arc::clone(&version.name)).collect()
    }

    /// Models whose runs are to be looked after: those that take calls, and those that took some which may still wait.
    pub(super) fn running(&self) -> Vec<Arc<Model>> {
        let mut running: Vec<_> = self.models.load().values().flat_map(|versions| versions.models()).collect();
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|model| model.strong_count() > 0);
        running.extend(left.iter().filter_map(Weak::upgrade));
        running
    }

    fn change(&self, name: &Arc<str>, mut change: impl FnMut(&mut Versions)) {
        let before = self.models.rcu(|models| {
            let mut models = HashMap::clone(models);
            let mut versions = models.get(name).map(|versions| Versions::clone(versions)).unwrap_or_default();
            change(&mut versions);
            versions.rest();
            if versions.list.is_empty() {
                models.remove(name);
            } else {
                models.insert(Arc::clone(name), Arc::new(versions));
            }
            models
        });
        let models = self.models.load();
        let stays =
            |model: &Arc<Model>| models.get(name).is_some_and(|now| now.models().any(|now| Arc::ptr_eq(&now, model)));
        let gone = before.get(name).into_iter().flat_map(|versions| versions.models()).filter(|model| !stays(model));
        self.left.lock().unwrap_or_else(PoisonError::into_inner).extend(gone.map(|model| Arc::downgrade(&model)));
        self.readiness.changed();
    }
}

/// The model of a version that was chosen because none was named.
fn unnamed(versions: &Versions, chosen: Option<&Version>, wanted: &ModelRef) -> Result<Arc<Model>, Error> {
    if chosen.is_none() && versions.list.iter().any(|version| matches!(version.state, State::Ready(_))) {
        let state = "not ready: none of the versions that its traffic goes to is served";
        return Err(Error::ModelNotReady { model: Arc::clone(&wanted.name), state });
    }
    versions.ready(chosen.or_else(|| versions.most_hopeful()), wanted)
}

fn find<'a>(models: &'a HashMap<Arc<str>, Arc<Versions>>, wanted: &ModelRef) -> Result<&'a Versions, Error> {
    // An unknown name is reported without its version: it is the name that is unknown.
    let unknown = || Error::ModelNotFound { model: Arc::clone(&wanted.name), version: None };
    models.get(&wanted.name).map(Arc::as_ref).ok_or_else(unknown)
}

/// What is said of what is served and was to be replaced.
pub(super) fn goes_on(reason: &str) -> Arc<str> {
    format!("goes on as it was loaded before: {reason}").into()
}

/// When a model came into service, as seconds since 1970; 0 if there is none.
pub(super) fn seconds(model: Option<&Model>) -> u64 {
    let since = model.map_or(SystemTime::UNIX_EPOCH, |model| model.since);
    since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;

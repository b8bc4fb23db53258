//! Puts what was loaded in service: versions and what their model says of them, with one change.
//!
//! A version that new rules make small must not be there without them for a moment: as the highest it would get all calls
//! that name none. So versions wait for each other where rules change, and where a part of a model fails, the rules that are
//! in force stay, with what they send calls to.

use super::{
    Loaded, Loader, Model, Routing, State,
    loader::{REASON, for_callers, short},
    scan::Found,
    workshop::key,
};
use crate::call::ModelKey;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Why a version is not served that could be, if a call asked for it with others.
const SIBLING: &str = "another version of the same load cannot be loaded";

/// The same, if its model's folder has changed.
const SHIELDED: &str = "its new rules of traffic are not in force, because not all of the model can be loaded, and without \
                        them it would get calls that they keep from it";

/// Rules of models, by name.
pub(super) type Routings = BTreeMap<Arc<str>, Arc<Routing>>;

/// Versions that are ready and wait for the others of their load.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What a call asks for is served as a whole, or nothing changes.
    is_call: bool,
    /// What was known of the versions before.
    before: HashMap<ModelKey, Option<State>>,
    ready: Vec<(Found, Arc<Model>)>,
}

// === impl Held ===

impl Held {
    pub(super) fn of(is_call: bool) -> Self {
        Self { is_call, ..Self::default() }
    }

    pub(super) fn begins(&mut self, found: &Found, before: Option<State>) {
        self.before.insert(key(found), before);
    }

    /// Whether a call asks for several versions, of which it has all or none.
    pub(super) fn is_several(&self) -> bool {
        self.is_call && self.before.len() > 1
    }

    fn take(&mut self, name: &str) -> Vec<(Found, Arc<Model>)> {
        self.ready.extract_if(.., |(found, _)| *found.name == *name).collect()
    }
}

// === impl Loader ===

impl Loader {
    /// What has come of a version: it is served now, waits for [`Loader::settle`], or has failed.
    pub(super) fn finish(&self, found: Found, placed: Result<Model, String>, held: &mut Held, loaded: &mut Loaded) {
        let placed = placed.and_then(|model| {
            self.repository.admits(&found.name, &found.settings.routing)?;
            Ok(Arc::new(model))
        });
        match placed {
            Ok(model) if held.is_call || !self.is_in_force(&found.name, &found.settings.routing) => {
                held.ready.push((found, model));
            }
            Ok(model) => self.enter_as_ruled(&found, model, loaded),
            Err(reason) => {
                let reason = self.without_folders(found.files.as_deref(), &found.name, short(&reason, REASON));
                let told = for_callers(&found, &reason);
                self.fails((&found.name, &found.version), &reason, told, loaded);
            }
        }
    }

    /// Puts in service what waits, with what its model says, now that all of the load is known. What is said holds all at once,
    /// and only if nothing of the model has failed: a label must not move to a version that is not there.
    pub(super) fn settle(&self, mut held: Held, routings: &Routings, loaded: &mut Loaded) {
        for (name, routing) in routings {
            let ready = held.take(name);
            let is_whole = loaded.is_whole(name) && (!held.is_call || loaded.failed.is_empty());
            if is_whole {
                match self.enter(name, &ready, Some(routing), loaded) {
                    Ok(()) => continue,
                    Err(reason) => self.is_not_in_force(name, reason, loaded),
                }
            }
            loaded.old_rules |= !self.is_in_force(name, routing);
            for (found, model) in ready {
                let now = self.repository.routing(name).filter(|_| !held.is_call);
                match now.is_some_and(|now| now.shields(&found.version, routing)) {
                    true => self.enter_as_ruled(&found, model, loaded),
                    false => self.withhold(&found, &held),
                }
            }
        }
    }

    /// Puts the rules of a model in force, or says why they cannot be.
    pub(super) fn rule(&self, name: &Arc<str>, routing: &Arc<Routing>, loaded: &mut Loaded) {
        if let Err(reason) = self.repository.set_routing(name, routing) {
            self.is_not_in_force(name, reason, loaded);
        }
    }

    pub(super) fn is_in_force(&self, name: &str, routing: &Routing) -> bool {
        self.repository.routing(name).is_some_and(|now| *now == *routing)
    }

    /// Says why a version is not served: in the log, and to callers, who are `told` less of some.
    pub(super) fn fails(
        &self,
        (name, version): (&Arc<str>, &Arc<str>),
        reason: &str,
        told: String,
        loaded: &mut Loaded,
    ) {
        self.metrics.model_load_ended(name, false);
        tracing::error!(model = %name, %version, reason, "model not loaded");
        self.is_not(name, version, &told);
        loaded.failed.push((format!("{name}/{version}"), told));
    }

    /// Puts versions of one model in service, with its rules if they change too.
    fn enter(
        &self,
        name: &Arc<str>,
        ready: &[(Found, Arc<Model>)],
        routing: Option<&Arc<Routing>>,
        loaded: &mut Loaded,
    ) -> Result<(), String> {
        let models: Vec<_> = ready.iter().map(|(_, model)| Arc::clone(model)).collect();
        let entered = self.repository.publish(name, &models, routing)?;
        for model in models {
            let version = &model.key.version;
            if !entered.contains(version) {
                tracing::info!(model = %model.key, "was taken out of service while it was loaded, and stays out");
                continue;
            }
            self.metrics.model_load_ended(name, true);
            tracing::info!(model = %model.key, execution = model.scheduler.execution().name(), "model ready");
            self.metrics.model_memory(&model.key, model.memory);
            self.says(name, version, "ready");
            loaded.ok += 1;
            loaded.versions.push(Arc::clone(version));
        }
        Ok(())
    }

    /// Puts a version in service under the rules that are in force.
    fn enter_as_ruled(&self, found: &Found, model: Arc<Model>, loaded: &mut Loaded) {
        // Without new rules there is nothing that could be refused.
        if let Err(reason) = self.enter(&found.name, &[(found.clone(), model)], None, loaded) {
            self.fails((&found.name, &found.version), &reason, reason.clone(), loaded);
        }
    }

    fn is_not_in_force(&self, name: &Arc<str>, reason: String, loaded: &mut Loaded) {
        tracing::error!(model = %name, reason, "a model's rules are not in force");
        self.repository.trouble(name, Some(&Arc::from(&*reason)));
        loaded.failed.push((name.to_string(), reason));
    }

    /// A version is not served though it is ready: it is as it was before.
    fn withhold(&self, found: &Found, held: &Held) {
        let (name, version) = (&found.name, &found.version);
        match held.before.get(&key(found)) {
            Some(Some(State::Unloaded)) => {
                self.repository.set(name, version, &State::Unloaded);
                self.says(name, version, "unloaded");
            }
            _ => self.is_not(name, version, if held.is_call { SIBLING } else { SHIELDED }),
        }
    }

    /// A version is not served for `reason`, or goes on as it is.
    fn is_not(&self, name: &Arc<str>, version: &Arc<str>, reason: &str) {
        self.repository.failed(name, version, reason);
        if !self.repository.is_serving(name, version) {
            self.says(name, version, "failed");
        }
    }
}

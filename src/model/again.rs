//! Models that could not be loaded, and are loaded once what they waited for is there: an ensemble's models, or memory.
//!
//! What was found then is what is loaded: files that have changed since are somebody else's to load. A version that was taken
//! out of service meanwhile stays out.

use super::{
    Loaded, Loader, Model, Routing, State, control,
    ensemble::DEPTH,
    loader::for_callers,
    publish::{Held, Routings},
    scan::Found,
    wanted::Wanted,
    workshop::Opened,
};
use crate::call::ModelKey;
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Who waits for what. As many as there are versions on disk.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Ensembles, also those that are served: their models may become others.
    ensembles: Mutex<HashMap<ModelKey, (Waits, Opened)>>,
    /// Models for which there was no memory, and whether each was to be loaded besides those that are served.
    memory: Mutex<HashMap<ModelKey, (Waits, bool)>>,
    /// Versions that have no folder any more and stay for the sake of the rules that are in force, by the names of models.
    gone: Mutex<HashMap<Arc<str>, Vec<Arc<str>>>>,
}

/// What waits, as it was found.
#[derive(Clone, Debug)]
struct Waits {
    found: Found,
    /// The rules of the model that were in force then: if others are now, they are newer than those that were found.
    ruled: Option<Arc<Routing>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Waiting ===

impl Waiting {
    pub(super) fn wants_models(&self, key: ModelKey, found: &Found, opened: &Opened, ruled: Option<Arc<Routing>>) {
        lock(&self.ensembles).insert(key, (Waits { found: found.clone(), ruled }, opened.clone()));
    }

    pub(super) fn wants_memory(&self, key: ModelKey, found: &Found, is_alone: bool, ruled: Option<Arc<Routing>>) {
        lock(&self.memory).insert(key, (Waits { found: found.clone(), ruled }, is_alone));
    }

    /// Of the models `names` only the versions `wanted` are from now on.
    pub(super) fn wants_only(&self, names: &HashSet<&Arc<str>>, wanted: &HashSet<ModelKey>) {
        lock(&self.memory).retain(|key, _| !names.contains(&key.name) || wanted.contains(key));
    }

    /// Versions of a model that are to be forgotten once its new rules are in force.
    pub(super) fn set_gone(&self, name: &Arc<str>, versions: Vec<Arc<str>>) {
        lock(&self.gone).insert(Arc::clone(name), versions);
    }

    /// The same, to be forgotten now.
    pub(super) fn take_gone(&self, name: &str) -> Vec<Arc<str>> {
        lock(&self.gone).remove(name).unwrap_or_default()
    }

    /// It is gone or unloaded, or is being loaded anew.
    pub(super) fn forget(&self, key: &ModelKey) {
        lock(&self.ensembles).remove(key);
        lock(&self.memory).remove(key);
    }
}

// === impl Waits ===

impl Waits {
    /// What was found, with the rules that hold for it if they are in force `now`.
    fn found(&self, now: Option<Arc<Routing>>) -> Found {
        let mut found = self.found.clone();
        if let Some(newer) = now.filter(|now| self.ruled.as_ref() != Some(now)) {
            found.settings.routing = newer;
        }
        found
    }
}

// === impl Loader ===

impl Loader {
    /// Puts ensembles together again of which models have `changed`: those that could not be because of them, and those that
    /// take or yield something else now. Others go on as they are.
    pub(super) fn assemble_again(&self, mut changed: HashSet<Arc<str>>) {
        let ensembles = lock(&self.waiting.ensembles);
        // One that has changed may be part of another.
        for _ in 0..=DEPTH {
            let is_part = |found: &Found| {
                let mut models = found.settings.ensemble.iter().flat_map(|ensemble| ensemble.models());
                models.any(|model| changed.contains(&model.name))
            };
            let parts: Vec<_> = ensembles.iter().filter(|(_, (waits, _))| is_part(&waits.found)).collect();
            let again = parts.into_iter().filter(|(key, (waits, opened))| self.is_new(key, waits, opened));
            let next: HashSet<_> = again.map(|(key, _)| Arc::clone(&key.name)).collect();
            if next.is_empty() {
                break;
            }
            changed = next;
        }
    }

    /// Puts one ensemble together; whether it is another one than before.
    fn is_new(&self, key: &ModelKey, waits: &Waits, opened: &Opened) -> bool {
        let found = &waits.found(self.repository.routing(&key.name));
        match self.repository.state(&key.name, &key.version) {
            Some(State::Failed(before)) => match self.assemble(found, opened.clone()) {
                Ok(model) => {
                    self.comes(found, model);
                    true
                }
                Err(reason) => {
                    let reason = self.without_folders(found.files.as_deref(), &found.name, &reason);
                    let told = for_callers(found, &reason);
                    if *before != *told {
                        tracing::error!(model = %key, reason, "model not loaded");
                        self.repository.failed(&key.name, &key.version, &told);
                    }
                    false
                }
            },
            Some(State::Ready(before)) => match self.assemble(found, opened.clone()) {
                Ok(model) if is_another(&before, &model) => {
                    self.comes(found, model);
                    true
                }
                // What cannot be put together any more goes on as it is: each call says what is missing.
                _ => false,
            },
            Some(State::Loading | State::Unloading(_) | State::Unloaded) | None => false,
        }
    }

    /// Puts a version in service that was not ready with the rest of its load.
    fn comes(&self, found: &Found, model: Model) {
        let (mut held, mut loaded) = (Held::default(), Loaded::default());
        let routings = Routings::from([(Arc::clone(&found.name), Arc::clone(&found.settings.routing))]);
        self.finish(found.clone(), Ok(model), &mut held, &mut loaded);
        self.settle(held, &routings, &mut loaded);
    }

    /// Loads models for which there was no memory as soon as there is, for ever. To be run on the control runtime.
    pub async fn load_what_fits(self: Arc<Self>) -> Infallible {
        loop {
            self.settings.budget.freed().await;
            let waiting: Vec<_> = lock(&self.waiting.memory).keys().cloned().collect();
            for key in waiting {
                if !self.settings.budget.has_room(&key) {
                    continue;
                }
                // What was so before may be otherwise when nobody else does anything with the model.
                let _turn = self.busy.wait(&key.name).await;
                let waits = lock(&self.waiting.memory).get(&key).cloned();
                let Some((waits, is_alone)) = waits.filter(|_| self.settings.budget.has_room(&key)) else { continue };
                let is_wanted = match self.repository.state(&key.name, &key.version) {
                    Some(State::Failed(_) | State::Ready(_)) => true,
                    Some(State::Loading | State::Unloading(_) | State::Unloaded) | None => false,
                };
                if !is_wanted {
                    self.waiting.forget(&key);
                    continue;
                }
                tracing::info!(model = %key, "there is memory for the model now");
                let found = waits.found(self.repository.routing(&key.name));
                let versions = found.settings.versions.clone();
                let loaded = self.carry_out(Wanted::Again(Box::new(found)), None).await;
                if is_alone || !loaded.is_whole(&key.name) {
                    continue;
                }
                for version in self.waiting.take_gone(&key.name) {
                    control::retire(&self, &self.repository, &key.name, &version, true);
                }
                // As a load by name does: what it was to take over from goes.
                let serving = self.repository.serving(&key.name);
                let chosen = versions.choose(serving.iter().filter_map(|version| version.parse().ok()).collect());
                for version in serving.iter().filter(|it| it.parse().is_ok_and(|number| !chosen.contains(&number))) {
                    control::retire(&self, &self.repository, &key.name, version, false);
                }
            }
        }
    }
}

/// Whether an ensemble that was put together anew is another one: for its callers, or for the models that it runs. What it
/// takes and yields may be the same where what goes from step to step is not: it would go on refusing models that fit.
fn is_another(before: &Model, now: &Model) -> bool {
    let steps = |model: &Model| model.ensemble.clone();
    now.signature != before.signature
        || now.batches() != before.batches()
        || steps(before).zip(steps(now)).is_some_and(|(before, now)| !now.expects_the_same(&before))
}

#[cfg(test)]
#[path = "again_tests.rs"]
mod tests;

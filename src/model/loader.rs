//! Loads models: has them prepared on a thread of its own, then puts them where they run and into the repository.
//!
//! A model that cannot be loaded is reported and the rest is served. How one is opened and measured is the workshop's
//! business, which calls it gets the repository's.

use super::{
    Absent, Cache, Model, ModelSettings, Repository, Settings, State,
    again::Waiting,
    declared, ensemble, labels,
    picture::{self, Pictures},
    scan::{self, Found},
    workshop::{Event, Opened, Place, Prepared, Wanted, Workshop, key, reason},
};
use crate::{
    backend::{Open, OpenError},
    call::{LoadRequest, ModelKey, ModelRef},
    schedule::{Plan, Scheduler, turn::Lanes},
    telemetry::metrics::Metrics,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};
use tokio::sync::{mpsc, oneshot};

/// Loads the models of a directory into a repository.
#[derive(Debug)]
pub struct Loader {
    pub(super) settings: Arc<Settings>,
    opener: Arc<dyn Open>,
    pub(super) repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    lanes: Option<Lanes>,
    pub(super) waiting: Waiting,
}

/// What came of loading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Versions of models that are ready.
    pub ok: usize,
    /// The same by name, in the order they became ready.
    pub versions: Vec<Arc<str>>,
    /// What was not loaded, as `NAME/VERSION` or a path, and why, in plain words.
    pub failed: Vec<(String, String)>,
}

// === impl Loaded ===

impl Loaded {
    /// Whether nothing of the model `name` has failed.
    pub(super) fn is_whole(&self, name: &str) -> bool {
        let is_of = |what: &str| what.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        !self.failed.iter().any(|(what, _)| is_of(what))
    }
}

// === impl Loader ===

impl Loader {
    /// A loader into `repository`. Without `lanes` every model runs on threads.
    pub fn new(
        settings: Settings,
        opener: Arc<dyn Open>,
        repository: Arc<Repository>,
        metrics: Arc<Metrics>,
        lanes: Option<Lanes>,
    ) -> Self {
        Self { settings: Arc::new(settings), opener, repository, metrics, lanes, waiting: Waiting::default() }
    }

    /// Loads every model that is found and configured. To be called on the control runtime, when the lanes run: they
    /// accept instances between two turns.
    ///
    /// The versions that are found are `loading` in the repository before the first is opened, unless they take calls:
    /// then they do so until they are replaced, and a failure changes nothing.
    pub async fn load(&self) -> Loaded {
        self.carry_out(Wanted::Configured).await
    }

    /// Loads the versions of one model, as [`Loader::load`] does.
    pub async fn load_one(&self, request: LoadRequest) -> Loaded {
        self.carry_out(Wanted::One(request)).await
    }

    pub(super) async fn carry_out(&self, wanted: Wanted) -> Loaded {
        let is_alone = matches!(&wanted, Wanted::One(request) if request.model.version.is_some());
        let workshop = Workshop {
            settings: Arc::clone(&self.settings),
            opener: Arc::clone(&self.opener),
            metrics: Arc::clone(&self.metrics),
            lanes: self.lanes.as_ref().map_or(0, Lanes::count),
            explain: false,
        };
        let (sender, mut events) = mpsc::channel(1);
        let (mut loaded, mut routings, mut changed) = (Loaded::default(), BTreeMap::new(), HashSet::new());
        let work = move || workshop.work(&wanted, &sender);
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(work);
        if let Err(error) = thread {
            loaded.failed.push(("loader".to_owned(), format!("no thread to load models: {error}")));
        }
        // Ends with the thread, which ends with its models: opening a large one has no deadline.
        while let Some(event) = events.recv().await {
            match event {
                Event::Scanned { found, kept, problems } => {
                    for (what, reason) in &problems {
                        tracing::error!(what, reason, "not loaded");
                    }
                    loaded.failed.extend(problems);
                    loaded.versions.extend(kept.iter().map(|found| Arc::clone(&found.version)));
                    for found in found.iter().chain(&kept).filter(|found| found.fault.is_none()) {
                        routings.insert(Arc::clone(&found.name), Arc::clone(&found.settings.routing));
                    }
                    for found in found {
                        if !self.repository.is_serving(&found.name, &found.version) {
                            self.says(&found.name, &found.version, "loading");
                        }
                        self.repository.begin(&found.name, &found.version);
                    }
                    for (name, routing) in &routings {
                        // While a model is loaded for the first time its rules hold for what is there of it.
                        if self.repository.routing(name).is_none() {
                            self.repository.set_routing(name, routing);
                        }
                    }
                }
                Event::Prepared(found, prepared) => {
                    changed.insert(Arc::clone(&found.name));
                    let key = key(&found);
                    self.waiting.forget(&key);
                    let placed = match prepared {
                        Ok(prepared) => {
                            self.metrics.model_loaded(&key, prepared.took, Some(prepared.memory));
                            self.place(&found, *prepared).await
                        }
                        Err(reason) => {
                            if self.settings.budget.refuses(&key) {
                                self.waiting.wants_memory(key, &found, is_alone);
                            }
                            Err(reason)
                        }
                    };
                    self.finish(&found, placed, &mut loaded);
                }
                Event::Opened(found, opened) => {
                    changed.insert(Arc::clone(&found.name));
                    self.waiting.forget(&key(&found));
                    let placed = opened.and_then(|opened| {
                        self.waiting.wants_models(key(&found), &found, &opened);
                        self.assemble(&found, opened)
                    });
                    self.finish(&found, placed, &mut loaded);
                }
            }
        }
        // All of it at once, and only when all of it is there: a label must not move to a version that failed.
        for (name, routing) in routings.iter().filter(|(name, _)| loaded.is_whole(name)) {
            self.repository.set_routing(name, routing);
        }
        self.assemble_again(changed);
        loaded
    }

    /// Loads what is new of a model, as [`Loader::load`] does; `kept` are its versions whose files have not changed, with
    /// how they run.
    pub(super) async fn renew(&self, name: &Arc<str>, kept: HashMap<Arc<str>, Arc<ModelSettings>>) -> Loaded {
        self.carry_out(Wanted::Renewed { name: Arc::clone(name), kept }).await
    }

    /// Forgets a version that is nowhere any more.
    pub(super) fn forget(&self, name: &Arc<str>, version: &Arc<str>) {
        let key = ModelKey { name: Arc::clone(name), version: Arc::clone(version) };
        self.waiting.forget(&key);
        self.repository.remove(name, version);
        self.metrics.model_gone(&key);
    }

    /// What the models folders look like now.
    ///
    /// # Errors
    ///
    /// In plain words: a folder that cannot be read, or there is no thread to read it.
    pub(super) async fn pictures(&self) -> Result<Pictures, String> {
        let (settings, (done, pictures)) = (Arc::clone(&self.settings), oneshot::channel());
        let work = move || drop(done.send(picture::take(&settings)));
        let thread = std::thread::Builder::new().name("watcher".to_owned()).spawn(work);
        thread.map_err(|error| format!("no thread to look for models: {error}"))?;
        pictures.await.unwrap_or_else(|_| Err("looking for models panicked".to_owned()))
    }

    /// Names of the models that could be loaded, sorted.
    pub async fn names(&self) -> Vec<Arc<str>> {
        let (settings, (done, names)) = (Arc::clone(&self.settings), oneshot::channel());
        let work = move || drop(done.send(scan::names(&settings)));
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(work);
        if let Err(error) = thread {
            tracing::error!(%error, "no thread to look for models");
        }
        names.await.unwrap_or_default()
    }

    /// Says in metrics that a version is in `state` now.
    pub(super) fn says(&self, name: &Arc<str>, version: &Arc<str>, state: &'static str) {
        let key = ModelKey { name: Arc::clone(name), version: Arc::clone(version) };
        self.metrics.model_state(&key, state);
    }

    pub(super) fn finish(&self, found: &Found, placed: Result<Model, String>, loaded: &mut Loaded) {
        match placed {
            Ok(model) => {
                self.metrics.model_load_ended(&found.name, true);
                tracing::info!(model = %model.key, execution = model.scheduler.execution().name(), "model ready");
                self.repository.set(&found.name, &found.version, &State::Ready(Arc::new(model)));
                self.says(&found.name, &found.version, "ready");
                loaded.ok += 1;
                loaded.versions.push(Arc::clone(&found.version));
            }
            Err(reason) => {
                self.metrics.model_load_ended(&found.name, false);
                let reason = self.without_folders(found, &reason);
                tracing::error!(model = %found.name, version = %found.version, reason, "model not loaded");
                let reason = match &found.settings.ensemble {
                    Some(graph) => graph.for_callers(&found.name, &reason),
                    None => reason,
                };
                self.repository.failed(&found.name, &found.version, &reason);
                if !self.repository.is_serving(&found.name, &found.version) {
                    self.says(&found.name, &found.version, "failed");
                }
                loaded.failed.push((format!("{}/{}", found.name, found.version), reason));
            }
        }
    }

    /// Paths in a reason begin at the models' folder: callers read them too (contract 00 section 2, rule 3).
    pub(super) fn without_folders(&self, found: &Found, reason: &str) -> String {
        // Files that came in a load lie in a folder of no name; to the caller they are the model's.
        let brought = found.files.as_ref().map(|files| (files.path(), format!("{}/", found.name)));
        let folders = self.settings.directories.iter().map(|folder| (folder.as_path(), String::new()));
        brought.into_iter().chain(folders).fold(reason.to_owned(), |text, (folder, instead)| match folder.to_str() {
            Some(folder) if !folder.is_empty() => text.replace(&format!("{}/", folder.trim_end_matches('/')), &instead),
            _ => text,
        })
    }

    async fn place(&self, found: &Found, prepared: Prepared) -> Result<Model, String> {
        let Prepared { plan, place, decoupled, absent, labels, took: _, memory: _ } = prepared;
        let (key, signature) = (Arc::clone(&plan.key), Arc::clone(&plan.signature));
        let instances = match &place {
            Place::Threads(instances) => instances.len(),
            Place::Lanes { instances, .. } => instances.len(),
        };
        // What answers with streams has no answer to keep.
        let cache = found.settings.cache.filter(|_| !decoupled);
        let cache = cache.map(|settings| Cache::new(settings, self.metrics.cache(&key, &plan.metrics))).transpose()?;
        let scheduler = match (place, &self.lanes) {
            (Place::Threads(instances), _) => Scheduler::on_threads(plan, instances),
            (Place::Lanes { room, instances, spare }, Some(lanes)) => {
                let budget = self.settings.turn.budget;
                Scheduler::on_lanes(plan, lanes, room, budget, instances, spare).await
            }
            (Place::Lanes { .. }, None) => return Err("there are no lanes to run on".to_owned()),
        };
        let scheduler = scheduler.map_err(|error| reason(&error))?;
        Ok(Model {
            key,
            signature,
            scheduler,
            decoupled,
            settings: Arc::new(found.settings.clone()),
            instances,
            cache,
            absent,
            labels: labels.into(),
            since: SystemTime::now(),
            files: found.files.clone(),
            ensemble: None,
        })
    }

    /// Holds an ensemble against its models as they are served now.
    pub(super) fn assemble(&self, found: &Found, Opened { steps, took }: Opened) -> Result<Model, String> {
        let settings = found.settings.ensemble.as_ref().ok_or("is no ensemble")?;
        let look = |wanted: &ModelRef| match self.repository.contains(wanted, &found.name, 0) {
            true => Err(ensemble::part_of_itself(&found.name)),
            false => self.repository.served(wanted),
        };
        let graph = ensemble::bind(settings, steps, &look)?;
        if let Some(declared) = &found.settings.declared {
            declared::check(declared, &graph.signature)?;
        }
        let labels = labels::read(&found.settings, &found.folder, &graph.signature)?;
        let key = Arc::new(key(found));
        self.metrics.model_loaded(&key, took, None);
        let batches = graph.batches && found.settings.batching.enabled != Some(false);
        let plan = Plan {
            metrics: self.metrics.model(&key),
            key: Arc::clone(&key),
            policy: found.settings.batching.policy(batches, false),
            signature: Arc::new(graph.signature.clone()),
            run_limit: None,
            layout: None,
            cost: Arc::default(),
            reopen: Arc::new(|| Err(OpenError("an ensemble has no instances".to_owned()))),
        };
        let (signature, ensemble) = (Arc::clone(&plan.signature), Arc::new(graph.finish(plan.metrics.clone())));
        let scheduler = Scheduler::on_threads(plan, Vec::new()).map_err(|error| reason(&error))?;
        Ok(Model {
            key,
            signature,
            scheduler,
            decoupled: false,
            settings: Arc::new(found.settings.clone()),
            instances: 0,
            labels: labels.into(),
            since: SystemTime::now(),
            files: found.files.clone(),
            // What it answers depends on models that may be replaced while it stays: they keep answers, where they are to.
            cache: None,
            absent: Absent::default(),
            ensemble: Some(ensemble),
        })
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;

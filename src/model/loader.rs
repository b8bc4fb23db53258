//! Loads models: has them prepared on a thread of its own, then puts them where they run and into the repository.
//!
//! A model that cannot be loaded is reported and the rest is served. How one is opened and measured is the workshop's
//! business, which calls it gets the repository's.

use super::{
    Absent, Cache, Model, ModelSettings, Repository, Settings,
    again::Waiting,
    busy::Busy,
    declared, ensemble,
    index::Refused,
    labels,
    picture::{self, Pictures},
    publish::{Held, Routings},
    repository::goes_on,
    scan::{self, About, Found, Problem},
    wanted::Wanted,
    workshop::{Event, Opened, Place, Prepared, Workshop, key, reason},
};
use crate::{
    backend::{Open, OpenError},
    call::{LoadRequest, ModelKey, ModelRef},
    schedule::{Plan, Reopen, Scheduler, turn::Lanes},
    telemetry::metrics::Metrics,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// The longest name of a folder that is shown in the index though it is no model's.
const SHOWN: usize = 128;

/// Bytes of a name that is no model's in a line of the log: as much as callers get of a text in an answer.
const LOGGED: usize = 1024;

/// Bytes of a reason in the log and the index: what a call brings may be in it. Several problems of one file have room.
pub(super) const REASON: usize = 4096;

/// Loads the models of a directory into a repository.
#[derive(Debug)]
pub struct Loader {
    pub(super) settings: Arc<Settings>,
    opener: Arc<dyn Open>,
    pub(super) repository: Arc<Repository>,
    pub(super) metrics: Arc<Metrics>,
    lanes: Option<Lanes>,
    pub(super) waiting: Waiting,
    /// Models that somebody loads or takes away: calls, the watcher, and who loads again.
    pub(super) busy: Arc<Busy>,
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
    /// The server's own fault, for operators, if nothing is known for that reason: no thread, or a bug of ours. It is among
    /// what has `failed` too.
    pub fault: Option<String>,
    /// Whether rules stay in force that what was found does not say: what they mean must stay too.
    pub(super) old_rules: bool,
}

// === impl Loaded ===

impl Loaded {
    /// Says that nothing is known because of a fault of the server's own.
    fn at_fault(&mut self, fault: String) {
        self.failed.push(("loader".to_owned(), fault.clone()));
        self.fault = Some(fault);
    }

    /// Whether it is known what there is of the model `name`, and nothing of that has failed.
    pub(super) fn is_whole(&self, name: &str) -> bool {
        let is_of = |what: &str| what.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.fault.is_none() && !self.failed.iter().any(|(what, _)| is_of(what))
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
        let (settings, waiting, busy) = (Arc::new(settings), Waiting::default(), Arc::default());
        Self { settings, opener, repository, metrics, lanes, waiting, busy }
    }

    /// Loads every model that is found and configured. To be called on the control runtime, when the lanes run: they
    /// accept instances between two turns.
    ///
    /// The versions that are found are `loading` in the repository before the first is opened, unless they take calls:
    /// then they do so until they are replaced, and a failure changes nothing.
    pub async fn load(&self) -> Loaded {
        self.carry_out(Wanted::Configured, None).await
    }

    /// The same; `scanned` is dropped when it is known which models there are.
    pub async fn load_telling(&self, scanned: oneshot::Sender<()>) -> Loaded {
        self.carry_out(Wanted::Configured, Some(scanned)).await
    }

    /// Loads the versions of one model, all that are asked for or none: they are exchanged for those that are served when
    /// the last of them is ready.
    pub async fn load_one(&self, request: LoadRequest) -> Loaded {
        self.carry_out(Wanted::One(request), None).await
    }

    pub(super) async fn carry_out(&self, wanted: Wanted, mut scanned: Option<oneshot::Sender<()>>) -> Loaded {
        let is_alone = matches!(&wanted, Wanted::One(request) if request.model.version.is_some());
        // What was found before is not looked for, so nothing is learnt of what else there is.
        let is_scan = !matches!(&wanted, Wanted::Again(_));
        let workshop = Workshop {
            settings: Arc::clone(&self.settings),
            opener: Arc::clone(&self.opener),
            metrics: Arc::clone(&self.metrics),
            lanes: self.lanes.as_ref().map_or(0, Lanes::count),
            explain: false,
        };
        let (sender, mut events) = mpsc::channel(1);
        let (mut loaded, mut routings, mut pending) = (Loaded::default(), Routings::new(), BTreeSet::new());
        let is_call = matches!(&wanted, Wanted::One(_));
        let (mut held, mut changed) = (Held::of(is_call), HashSet::new());
        let (mut is_known, mut wanted_now) = (false, HashSet::new());
        let about = wanted.about().cloned();
        let work = move || workshop.work(&wanted, &sender);
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(work);
        if let Err(error) = thread {
            loaded.at_fault(format!("no thread to load models: {error}"));
        }
        // Ends with the thread, which ends with its models: opening a large one has no deadline.
        while let Some(event) = events.recv().await {
            match event {
                Event::Scanned { found, kept, problems } => {
                    is_known = true;
                    loaded.versions.extend(kept.iter().map(|found| Arc::clone(&found.version)));
                    for found in found.iter().chain(&kept).filter(|found| found.fault.is_none()) {
                        routings.insert(Arc::clone(&found.name), Arc::clone(&found.settings.routing));
                    }
                    wanted_now.extend(found.iter().chain(&kept).map(key));
                    for found in found {
                        held.begins(&found, self.repository.state(&found.name, &found.version));
                        if !self.repository.is_serving(&found.name, &found.version) {
                            self.says(&found.name, &found.version, "loading");
                        }
                        self.repository.begin(&found.name, &found.version);
                        pending.insert((found.name, found.version));
                    }
                    if is_scan {
                        self.refused(about.as_ref(), problems, is_call, &mut loaded);
                    }
                    for (name, routing) in &routings {
                        // Of a model that takes no calls they hold for what comes of it.
                        let is_new = !is_call && self.repository.serving(name).is_empty();
                        if is_new || self.repository.routing(name).is_none() {
                            self.rule(name, routing, &mut loaded);
                        }
                    }
                    drop(scanned.take());
                }
                Event::Prepared(found, prepared) => {
                    changed.insert(Arc::clone(&found.name));
                    let key = key(&found);
                    self.waiting.forget(&key);
                    pending.remove(&(Arc::clone(&found.name), Arc::clone(&found.version)));
                    let placed = match prepared {
                        Ok(prepared) => {
                            self.metrics.model_loaded(&key, prepared.took);
                            self.place(&found, *prepared).await
                        }
                        Err(reason) => {
                            // A call for several versions has all of them or none.
                            if !held.is_several() && self.settings.budget.refuses(&key) {
                                self.waiting.wants_memory(key, &found, is_alone, self.repository.routing(&found.name));
                            }
                            Err(reason)
                        }
                    };
                    self.finish(*found, placed, &mut held, &mut loaded);
                }
                Event::Opened(found, opened) => {
                    changed.insert(Arc::clone(&found.name));
                    self.waiting.forget(&key(&found));
                    pending.remove(&(Arc::clone(&found.name), Arc::clone(&found.version)));
                    let placed = opened.and_then(|opened| {
                        self.waiting.wants_models(key(&found), &found, &opened, self.repository.routing(&found.name));
                        self.assemble(&found, opened)
                    });
                    self.finish(*found, placed, &mut held, &mut loaded);
                }
            }
        }
        // Its thread has ended before they were told of: nobody will tell any more.
        for (name, version) in &pending {
            let reason = "panicked while it was loaded";
            self.fails((name, version), reason, reason.to_owned(), &mut loaded);
        }
        if !is_known && loaded.fault.is_none() {
            loaded.at_fault("panicked while models were looked for".to_owned());
        }
        self.settle(held, &routings, &mut loaded);
        if is_scan && !is_alone {
            let whole = routings.keys().filter(|name| loaded.is_whole(name)).collect();
            self.waiting.wants_only(&whole, &wanted_now);
        }
        self.assemble_again(changed);
        loaded
    }

    /// Loads what is new of a model, as [`Loader::load`] does; `kept` are its versions whose files have not changed, with
    /// how they run.
    pub(super) async fn renew(&self, name: &Arc<str>, kept: HashMap<Arc<str>, Arc<ModelSettings>>) -> Loaded {
        self.carry_out(Wanted::Renewed { name: Arc::clone(name), kept }, None).await
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

    /// Says in the log, the index and metrics what should have been there of all models, or of the model `of`, and is not.
    fn refused(&self, of: Option<&Arc<str>>, problems: Vec<Problem>, is_call: bool, loaded: &mut Loaded) {
        let (mut refused, mut troubles) = (Vec::new(), BTreeMap::<Arc<str>, Vec<String>>::new());
        for problem in problems {
            let (what, mut reason) = (problem.about.to_string(), short(&problem.reason, REASON).to_owned());
            // It may be a caller's, however long, or a folder's, whatever is in it.
            let shown = short(&what, LOGGED).escape_debug();
            tracing::error!(what = %shown, reason, "not loaded");
            let name = match &problem.about {
                About::Directory(_) => None,
                About::Model(name) | About::Version(name, _) => Some(name),
            };
            let label = name.filter(|name| scan::check_name(name).is_ok());
            self.metrics.model_load_ended(label.map_or("", |name| name), false);
            if let Some(name) = name.filter(|name| is_shown(name)) {
                reason = self.without_folders(None, name, &reason);
                match &problem.about {
                    About::Version(_, version) if is_shown(version) => {
                        let version = Some(Arc::clone(version));
                        refused.push(Refused { name: Arc::clone(name), version, reason: reason.as_str().into() });
                    }
                    _ => troubles.entry(Arc::clone(name)).or_default().push(reason.clone()),
                }
            }
            // A folder that is no version is in nobody's way: what there is of the model is taken over without it.
            if problem.is_about_all() || of.is_none() {
                loaded.failed.push((what, reason));
            }
        }
        for (name, reasons) in &troubles {
            let reason: Arc<str> = reasons.join("; ").into();
            refused.push(Refused { name: Arc::clone(name), version: None, reason: Arc::clone(&reason) });
            let reason = if is_call { goes_on(&reason) } else { reason };
            self.repository.trouble(name, Some(&reason));
        }
        let all = of.map_or_else(|| self.repository.names(), |name| vec![Arc::clone(name)]);
        for name in all.iter().filter(|name| !troubles.contains_key(*name)) {
            self.repository.trouble(name, None);
        }
        self.repository.refuse(of.map(|name| &**name), refused);
    }

    /// Paths in a reason begin at the models' folder: callers read them too (contract 00 section 2, rule 3).
    pub(super) fn without_folders(&self, files: Option<&TempDir>, name: &str, reason: &str) -> String {
        // Files that came in a load lie in a folder of no name; to the caller they are the model's.
        let brought = files.map(|files| (files.path(), format!("{name}/")));
        let folders = self.settings.directories.iter().map(|folder| (folder.as_path(), String::new()));
        brought.into_iter().chain(folders).fold(reason.to_owned(), |text, (folder, instead)| match folder.to_str() {
            Some(folder) if !folder.is_empty() => text.replace(&format!("{}/", folder.trim_end_matches('/')), &instead),
            _ => text,
        })
    }

    async fn place(&self, found: &Found, prepared: Prepared) -> Result<Model, String> {
        let Prepared { plan, place, decoupled, absent, labels, took: _, memory } = prepared;
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
                Scheduler::on_lanes(plan, lanes, room, &self.settings.turn, instances, spare).await
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
            memory: Some(memory),
        })
    }

    /// Holds an ensemble against its models as they are served now.
    pub(super) fn assemble(&self, found: &Found, Opened { steps, labels, took }: Opened) -> Result<Model, String> {
        let settings = found.settings.ensemble.as_ref().ok_or("is no ensemble")?;
        let look = |wanted: &ModelRef| match self.repository.contains(wanted, &found.name) {
            true => Err(ensemble::part_of_itself(&found.name)),
            false => self.repository.served(wanted),
        };
        let graph = ensemble::bind(settings, steps, &look)?;
        if let Some(declared) = &found.settings.declared {
            declared::check(declared, &graph.signature)?;
        }
        let labels = labels::of(&found.settings, &labels, &graph.signature)?;
        let key = Arc::new(key(found));
        self.metrics.model_loaded(&key, took);
        let batches = graph.batches && found.settings.batching.enabled != Some(false);
        let nothing: Reopen = Arc::new(|| Err(OpenError("an ensemble has no instances".to_owned())));
        let plan = Plan {
            metrics: self.metrics.model(&key),
            key: Arc::clone(&key),
            policy: found.settings.batching.policy(batches, false),
            signature: Arc::new(graph.signature.clone()),
            run_limit: None,
            layout: None,
            cost: Arc::default(),
            another: Arc::clone(&nothing),
            reopen: nothing,
            background: false,
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
            memory: None,
        })
    }
}

/// What callers read of why a version is not served: those of an ensemble may not know its models.
pub(super) fn for_callers(found: &Found, reason: &str) -> String {
    let graph = found.settings.ensemble.as_ref();
    graph.map_or_else(|| reason.to_owned(), |graph| graph.for_callers(&found.name, reason))
}

pub(super) fn short(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Whether a folder's name can be shown to whoever looks at the index: no long one, and nothing that a terminal obeys.
fn is_shown(name: &str) -> bool {
    name.len() <= SHOWN && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;

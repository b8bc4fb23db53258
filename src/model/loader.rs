//! Makes models: opens, warms up and measures them on a thread of its own, then puts them where
//! they run and into the repository.
//!
//! A model that cannot be loaded is reported and the rest is served. The loader knows files and back
//! ends; which calls a model gets is the repository's business.

use super::{
    Model, ModelSettings, Repository, Settings, State,
    classify::Labels,
    declared, labels,
    measure::{Measured, measure},
    samples,
    scan::{self, Found, Problem},
};
use crate::{
    backend::{Backend, Open, SessionSettings},
    call::{LoadRequest, ModelKey},
    schedule::{Execution, Plan, Scheduler, turn::Lanes},
    telemetry::metrics::Metrics,
    tensor::Signature,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{mpsc, oneshot};

/// Loads the models of a directory into a repository.
#[derive(Debug)]
pub struct Loader {
    settings: Arc<Settings>,
    opener: Arc<dyn Open>,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    lanes: Option<Lanes>,
}

/// What is to be loaded.
#[derive(Debug)]
enum Wanted {
    /// What is configured to be loaded at start.
    Configured,
    /// What a load call asks for.
    One(LoadRequest),
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

/// What the loader's thread tells.
enum Event {
    Scanned(Vec<Found>, Vec<Problem>),
    Prepared(Box<Found>, Result<Box<Prepared>, String>),
}

/// A model whose instances are open and wait for their place.
struct Prepared {
    plan: Plan,
    place: Place,
    decoupled: bool,
    labels: Vec<Option<Labels>>,
    /// From the first look at the file to the last warm-up run.
    took: Duration,
}

enum Place {
    Threads(Vec<Box<dyn Backend>>),
    Lanes { max_rows: usize, instances: Vec<Box<dyn Backend>>, spare: Box<dyn Backend> },
}

/// What preparing needs, on whatever thread.
struct Workshop {
    settings: Arc<Settings>,
    opener: Arc<dyn Open>,
    metrics: Arc<Metrics>,
    /// 0: there are no lanes.
    lanes: usize,
}

/// How a model is going to run, once it has been measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) batches: bool,
    /// Most rows of a batch on a lane; `None`: threads.
    pub(super) turn_rows: Option<usize>,
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
        Self { settings: Arc::new(settings), opener, repository, metrics, lanes }
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

    async fn carry_out(&self, wanted: Wanted) -> Loaded {
        let workshop = Workshop {
            settings: Arc::clone(&self.settings),
            opener: Arc::clone(&self.opener),
            metrics: Arc::clone(&self.metrics),
            lanes: self.lanes.as_ref().map_or(0, Lanes::count),
        };
        let (sender, mut events) = mpsc::channel(1);
        let mut loaded = Loaded::default();
        let work = move || workshop.work(&wanted, &sender);
        let thread = std::thread::Builder::new().name("loader".to_owned()).spawn(work);
        if let Err(error) = thread {
            loaded.failed.push(("loader".to_owned(), format!("no thread to load models: {error}")));
        }
        // Ends with the thread, which ends with its models: opening a large one has no deadline.
        while let Some(event) = events.recv().await {
            match event {
                Event::Scanned(found, problems) => {
                    for (what, reason) in &problems {
                        tracing::error!(what, reason, "not loaded");
                    }
                    loaded.failed.extend(problems);
                    for found in found {
                        if !self.repository.is_serving(&found.name, &found.version) {
                            self.says(&found.name, &found.version, "loading");
                        }
                        self.repository.begin(&found.name, &found.version);
                    }
                }
                Event::Prepared(found, prepared) => self.finish(&found, prepared, &mut loaded).await,
            }
        }
        loaded
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

    async fn finish(&self, found: &Found, prepared: Result<Box<Prepared>, String>, loaded: &mut Loaded) {
        let placed = match prepared {
            Ok(prepared) => {
                self.metrics.model_loaded(&key(found), prepared.took, Some(found.bytes));
                self.place(found, *prepared).await
            }
            Err(reason) => Err(reason),
        };
        match placed {
            Ok(model) => {
                tracing::info!(model = %model.key, execution = model.scheduler.execution().name(), "model ready");
                self.repository.set(&found.name, &found.version, &State::Ready(Arc::new(model)));
                self.says(&found.name, &found.version, "ready");
                loaded.ok += 1;
                loaded.versions.push(Arc::clone(&found.version));
            }
            Err(reason) => {
                let reason = self.without_folders(&reason);
                tracing::error!(model = %found.name, version = %found.version, reason, "model not loaded");
                self.repository.failed(&found.name, &found.version, &reason);
                if !self.repository.is_serving(&found.name, &found.version) {
                    self.says(&found.name, &found.version, "failed");
                }
                loaded.failed.push((format!("{}/{}", found.name, found.version), reason));
            }
        }
    }

    /// Paths in a reason begin at the models' folder: callers read them too (contract 00 section 2, rule 3).
    fn without_folders(&self, reason: &str) -> String {
        let temporary = std::env::temp_dir();
        let folders = self.settings.directories.iter().chain([&temporary]);
        folders.fold(reason.to_owned(), |text, folder| match folder.to_str() {
            Some(folder) if !folder.is_empty() => text.replace(&format!("{}/", folder.trim_end_matches('/')), ""),
            _ => text,
        })
    }

    async fn place(&self, found: &Found, prepared: Prepared) -> Result<Model, String> {
        let Prepared { plan, place, decoupled, labels, took: _ } = prepared;
        let (key, signature) = (Arc::clone(&plan.key), Arc::clone(&plan.signature));
        let instances = match &place {
            Place::Threads(instances) => instances.len(),
            Place::Lanes { instances, .. } => instances.len(),
        };
        let scheduler = match (place, &self.lanes) {
            (Place::Threads(instances), _) => Scheduler::on_threads(plan, instances),
            (Place::Lanes { max_rows, instances, spare }, Some(lanes)) => {
                let budget = self.settings.turn.budget;
                Scheduler::on_lanes(plan, lanes, max_rows, budget, instances, spare).await
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
            labels: labels.into(),
            since: SystemTime::now(),
            files: found.files.clone(),
        })
    }
}

fn key(found: &Found) -> ModelKey {
    ModelKey { name: Arc::clone(&found.name), version: Arc::clone(&found.version) }
}

/// An error in the words that operators read: the cause, which clients never see.
pub(super) fn reason(error: &crate::error::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

// === impl Workshop ===

impl Workshop {
    fn work(&self, wanted: &Wanted, events: &mpsc::Sender<Event>) {
        let (found, problems) = match wanted {
            Wanted::Configured => scan::scan(&self.settings),
            Wanted::One(request) => scan::one(&self.settings, request),
        };
        let threads = self.threads(&found);
        // A send fails only if nobody wants the models any more.
        if events.blocking_send(Event::Scanned(found.clone(), problems)).is_err() {
            return;
        }
        for found in found {
            let prepare = AssertUnwindSafe(|| self.prepare(&found, threads).map(Box::new));
            let prepared = catch_unwind(prepare).unwrap_or_else(|_| Err("panicked while it was loaded".to_owned()));
            if events.blocking_send(Event::Prepared(Box::new(found), prepared)).is_err() {
                return;
            }
        }
    }

    /// Threads within one operator for a model that does not say: the inference cores, shared by the
    /// models that are sure to run on threads.
    fn threads(&self, found: &[Found]) -> usize {
        let large = found.iter().filter(|found| found.bytes > self.settings.turn.weights).count();
        (self.settings.inference_cores / large.max(1)).max(1)
    }

    fn prepare(&self, found: &Found, threads: usize) -> Result<Prepared, String> {
        let began = Instant::now();
        if let Some(fault) = &found.fault {
            return Err(fault.clone());
        }
        let settings = &found.settings;
        let large = found.bytes > self.settings.turn.weights;
        let wide = SessionSettings { threads: settings.threads.unwrap_or(threads).max(1) };
        // What may run on lanes is opened as it would run there: with one thread.
        let narrow = SessionSettings { threads: settings.threads.unwrap_or(1).max(1) };
        let try_lanes = self.lanes > 0 && !large && settings.execution != Execution::Thread;
        let mut session = if try_lanes { narrow } else { wide.clone() };
        let mut first = self.open(found, &session)?;
        if let Some(declared) = &settings.declared {
            declared::check(declared, first.signature())?;
        }
        for warning in &settings.warnings {
            tracing::warn!(model = %found.name, warning, "part of a model's configuration does not apply here");
        }
        let labels = labels::read(settings, &found.folder, first.signature())?;
        let decoupled = first.is_decoupled();
        let measured = if settings.warmup && !decoupled {
            let rows = if may_batch(settings, first.signature()) { settings.batching.max_rows } else { 1 };
            measure(&mut *first, rows, &self.settings.turn)
        } else {
            Measured { max_rows: 1, ..Measured::default() }
        };
        let decision = self.decide(settings, &*first, large, &measured)?;
        let samples = samples::make(settings, first.signature(), decision.batches)?;
        let more = |count: usize, session: &SessionSettings| {
            (0..count).map(|_| self.open(found, session)).collect::<Result<Vec<_>, _>>()
        };
        let signature = Arc::clone(first.signature());
        let place = match decision.turn_rows {
            Some(max_rows) => {
                let mut instances = more(self.lanes, &session)?;
                if settings.warmup {
                    instances.iter_mut().for_each(|instance| warm(&mut **instance));
                }
                for instance in instances.iter_mut().chain([&mut first]) {
                    samples::run(&samples, &mut **instance)?;
                }
                Place::Lanes { max_rows, instances, spare: first }
            }
            None => {
                if session != wide {
                    // It turned out too slow for a lane: open it again with its share of the cores.
                    // The first is dropped before, not after: there may not be memory for both.
                    session = wide;
                    drop(first);
                    first = self.open(found, &session)?;
                }
                let mut instances = more(settings.instances.unwrap_or(1).saturating_sub(1), &session)?;
                instances.push(first);
                if settings.warmup && !decoupled {
                    instances.iter_mut().for_each(|instance| warm(&mut **instance));
                }
                for instance in &mut instances {
                    samples::run(&samples, &mut **instance)?;
                }
                Place::Threads(instances)
            }
        };
        let plan = self.plan(found, signature, session, &decision);
        Ok(Prepared { plan, place, decoupled, labels, took: began.elapsed() })
    }

    fn plan(&self, found: &Found, signature: Arc<Signature>, session: SessionSettings, decision: &Decision) -> Plan {
        let key = Arc::new(key(found));
        let (opener, path, files) = (Arc::clone(&self.opener), found.path.clone(), found.files.clone());
        Plan {
            metrics: self.metrics.model(&key),
            key,
            signature,
            policy: found.settings.batching.policy(decision.batches),
            reopen: Arc::new(move || {
                // Held for as long as this may be called.
                let _files = &files;
                opener.open(&path, &session)
            }),
        }
    }

    fn open(&self, found: &Found, session: &SessionSettings) -> Result<Box<dyn Backend>, String> {
        if !found.path.exists() {
            return Err(format!("`{}` is not there", found.path.display()));
        }
        self.opener.open(&found.path, session).map_err(|error| error.to_string())
    }

    fn decide(
        &self,
        settings: &ModelSettings,
        backend: &dyn Backend,
        large: bool,
        measured: &Measured,
    ) -> Result<Decision, String> {
        let signature = backend.signature();
        let turn = &self.settings.turn;
        if settings.batching.enabled == Some(true) {
            check_rows(settings, signature)?;
            if !signature.is_batchable() || backend.is_decoupled() {
                return Err(format!("{BATCHING}, and the model has no inputs or answers with streams"));
            }
            if let Some(output) = measured.stray.and_then(|index| signature.outputs.get(index)) {
                return Err(format!("{BATCHING}: output `{}` does not follow the rows of the inputs", output.name));
            }
        }
        let batches = may_batch(settings, signature) && measured.stray.is_none() && !backend.is_decoupled();
        let light = !large && backend.weight_bytes() <= turn.weights;
        let fast = measured.run.is_some_and(|run| run <= turn.run);
        let on_lanes = match settings.execution {
            Execution::Thread => false,
            Execution::Auto => self.lanes > 0 && light && fast && !backend.is_decoupled(),
            Execution::Turn if self.lanes == 0 => {
                return Err("`execution: turn` needs `runtime.kind: lanes`".to_owned());
            }
            Execution::Turn if backend.is_decoupled() => return Err("`execution: turn` is not for streams".to_owned()),
            Execution::Turn => true,
        };
        Ok(Decision { batches, turn_rows: on_lanes.then_some(measured.max_rows) })
    }
}

/// How batching is asked for, in messages.
const BATCHING: &str = "batching is asked for (`batching.enabled`, or `max_batch_size` in a model configuration)";

/// Where batching is asked for, every first dimension must be free to count rows.
///
/// # Errors
///
/// For operators, in plain words: the tensor whose first dimension is not.
pub(super) fn check_rows(settings: &ModelSettings, signature: &Signature) -> Result<(), String> {
    let mut specs = signature.inputs.iter().chain(&signature.outputs);
    match specs.find(|spec| settings.batching.enabled == Some(true) && !spec.has_free_rows()) {
        Some(spec) => {
            let found = declared::shape(spec);
            Err(format!("{BATCHING}: `{}` has shape {found}, expected a free first dimension", spec.name))
        }
        None => Ok(()),
    }
}

/// Whether rows of several calls may run together, before the model was run.
pub(super) fn may_batch(settings: &ModelSettings, signature: &Signature) -> bool {
    // Whoever asks for batches of one row wants the first dimension to count rows, as Triton's clients then expect.
    settings.batching.enabled.unwrap_or(settings.batching.max_rows > 1) && signature.is_batchable()
}

/// A few runs, of which nothing is learnt: the first calls should not pay for them.
fn warm(backend: &mut dyn Backend) {
    let settings = crate::schedule::TurnSettings::default();
    let _ = measure(backend, 1, &settings);
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;

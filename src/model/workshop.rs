//! Prepares models: opens, warms up and measures them, one after the other, on the loader's own thread.
//!
//! Blocks, and knows no repository: what has become of each model is told as an [`Event`].

use super::{
    Absent, ModelSettings, Settings,
    budget::{Share, Want},
    classify::Labels,
    decision::{Decision, is_cpu_only, is_even},
    ensemble, labels,
    measure::{measure, measure_ragged},
    samples,
    scan::{Found, Problem},
    shapes::Shapes,
    wanted::Wanted,
    worth,
};
use crate::{
    backend::{Backend, Open, OpenError, SessionSettings},
    call::ModelKey,
    schedule::{Cost, Execution, Extent, Layout, Plan, Reopen},
    telemetry::metrics::Metrics,
};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// What the loader's thread tells.
pub(super) enum Event {
    Scanned {
        /// What is going to be loaded.
        found: Vec<Found>,
        /// What goes on as it is.
        kept: Vec<Found>,
        problems: Vec<Problem>,
    },
    Prepared(Box<Found>, Result<Box<Prepared>, String>),
    /// An ensemble whose built-in steps are open. Its models came before it, if they were found too.
    Opened(Box<Found>, Result<Opened, String>),
}

/// What an ensemble has of files: its steps and labels.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) steps: Vec<ensemble::Does>,
    pub(super) labels: labels::Opened,
    /// From the first look to the last file.
    pub(super) took: Duration,
}

/// A model whose instances are open and wait for their place.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) place: Place,
    pub(super) decoupled: bool,
    pub(super) absent: Absent,
    pub(super) labels: Vec<Option<Labels>>,
    /// From the first look at the file to the last warm-up run.
    pub(super) took: Duration,
    /// Bytes that its instances hold together.
    pub(super) memory: u64,
}

pub(super) enum Place {
    Threads(Vec<Box<dyn Backend>>),
    Lanes { room: Extent, instances: Vec<Box<dyn Backend>>, spare: Box<dyn Backend> },
}

/// What preparing needs, on whatever thread.
pub(super) struct Workshop {
    pub(super) settings: Arc<Settings>,
    pub(super) opener: Arc<dyn Open>,
    pub(super) metrics: Arc<Metrics>,
    /// 0: there are no lanes.
    pub(super) lanes: usize,
    /// Whether to find out where nodes run.
    pub(super) explain: bool,
}

/// The first instance of a model, which was looked at and measured.
pub(super) struct First {
    pub(super) backend: Box<dyn Backend>,
    pub(super) session: SessionSettings,
    /// As its callers see it.
    pub(super) shapes: Shapes,
    pub(super) labels: Vec<Option<Labels>>,
    pub(super) decision: Decision,
    pub(super) share: Share,
    /// Begins with what was measured.
    pub(super) cost: Cost,
    pub(super) took: Duration,
}

// === impl Workshop ===

impl Workshop {
    pub(super) fn work(&self, wanted: &Wanted, events: &mpsc::Sender<Event>) {
        let (mut found, problems) = wanted.find(&self.settings);
        // What a call asks for is done as a whole or not at all.
        if matches!(wanted, Wanted::One(_)) && problems.iter().any(Problem::is_about_all) {
            found.clear();
        }
        // What stays has its cores, and is not divided among the others.
        let (kept, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| wanted.keeps(found));
        let stays: Vec<_> = kept.iter().map(key).collect();
        // A send fails only if nobody wants the models any more.
        if events.blocking_send(Event::Scanned { found: found.clone(), kept, problems }).is_err() {
            return;
        }
        let (models, ensembles): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| found.settings.ensemble.is_none() || found.fault.is_some());
        // What may run on a lane is measured first: only then is it known how many models share the cores.
        let mut others = Vec::new();
        for found in models {
            let prepared = match guarded(|| self.look(&found)) {
                Ok(Some(first)) if first.decision.turn_rows.is_some() => guarded(|| self.on_lanes(&found, first)),
                Ok(first) => {
                    others.push((found, first));
                    continue;
                }
                Err(reason) => Err(reason),
            };
            if events.blocking_send(Event::Prepared(Box::new(found), prepared.map(Box::new))).is_err() {
                return;
            }
        }
        let wants: Vec<_> = others.iter().map(|(found, _)| want(found)).collect();
        let threads = self.settings.budget.divide(&wants, &stays);
        for ((found, first), threads) in others.into_iter().zip(threads) {
            let prepared = guarded(|| self.on_threads(&found, first, threads)).map(Box::new);
            if events.blocking_send(Event::Prepared(Box::new(found), prepared)).is_err() {
                return;
            }
        }
        let graphs = graphs(&ensembles);
        for found in innermost_first(ensembles) {
            let opened = guarded(|| open_steps(&found, &graphs));
            if events.blocking_send(Event::Opened(Box::new(found), opened)).is_err() {
                return;
            }
        }
    }

    /// Opens and measures a model that may run on lanes; `None` for one that is sure to run on threads.
    pub(super) fn look(&self, found: &Found) -> Result<Option<First>, String> {
        if let Some(fault) = &found.fault {
            return Err(fault.clone());
        }
        let settings = &found.settings;
        let may = match settings.execution {
            Execution::Auto => {
                let light = found.bytes <= self.settings.turn.weights;
                light && is_cpu_only(settings) && !settings.batching.preserve_order
            }
            Execution::Turn => true,
            Execution::Thread => false,
        };
        if self.lanes == 0 || !may {
            return Ok(None);
        }
        // As it would run there: with one thread.
        self.first(found, self.session(settings, settings.threads.unwrap_or(1), 1)).map(Some)
    }

    /// One instance for each lane, and a spare one for a thread.
    fn on_lanes(&self, found: &Found, first: First) -> Result<Prepared, String> {
        let began = Instant::now();
        let First { backend: mut spare, session, mut shapes, labels, decision, share, cost, took } = first;
        let settings = &found.settings;
        drop(share);
        let share = self.share(found, 0, self.lanes + 1)?;
        let samples = samples::make(settings, &shapes, decision.batches)?;
        let mut instances = (0..self.lanes).map(|_| self.open(found, &session)).collect::<Result<Vec<_>, _>>()?;
        if settings.warmup {
            instances.iter_mut().for_each(|instance| warm(&mut **instance, &shapes));
        }
        for instance in instances.iter_mut().chain([&mut spare]) {
            samples::run(&samples, &mut **instance)?;
        }
        fill_up(found, &mut *spare, &mut shapes)?;
        told_filling(found, &shapes);
        for instance in instances.iter_mut().chain([&mut spare]) {
            instance.ready().map_err(|error| error.to_string())?;
        }
        let memory = held(&*spare, found) * (instances.len() as u64 + 1);
        share.set(0, memory.saturating_add(kept(settings)));
        let absent = std::mem::take(&mut shapes.absent);
        let plan = self.plan(found, shapes, session, &decision, share, cost);
        let room = Extent { rows: decision.turn_rows.unwrap_or(1), size: decision.turn_elements };
        let place = Place::Lanes { room, instances, spare };
        Ok(Prepared { plan, place, decoupled: false, absent, labels, took: took + began.elapsed(), memory })
    }

    /// As many instances as are configured, each with so many threads.
    fn on_threads(&self, found: &Found, looked: Option<First>, threads: usize) -> Result<Prepared, String> {
        let began = Instant::now();
        let settings = &found.settings;
        let count = settings.instances.unwrap_or(1).max(1);
        let session = self.wide(settings, threads);
        let is_measured = looked.as_ref().is_none_or(|first| first.session == session);
        let mut first = match looked {
            None => self.first(found, session.clone())?,
            Some(first) if is_measured => first,
            Some(mut first) => {
                // It turned out too slow for a lane: open it again with its part of the cores. What it is is dropped before,
                // not after: there may not be memory for both.
                drop(first.backend);
                first.backend = self.open(found, &session)?;
                // What was measured with other threads says nothing about this one.
                first.cost = Cost::default();
                first
            }
        };
        let shared = if count > 1 && settings.shares_weights() { first.backend.another() } else { None };
        let mut instances = Vec::with_capacity(count);
        let mut sessions = 1;
        match shared {
            Some(second) => {
                let more = std::iter::once(second).chain(std::iter::from_fn(|| first.backend.another()));
                for instance in more.take(count - 1) {
                    instances.push(instance.map_err(|error| error.to_string())?);
                }
            }
            None => {
                drop(first.share);
                first.share = self.share(found, 0, count)?;
                for _ in 1..count {
                    instances.push(self.open(found, &session)?);
                }
                sessions = count;
            }
        }
        let decoupled = first.backend.is_decoupled();
        let mut shapes = first.shapes;
        let samples = samples::make(settings, &shapes, first.decision.batches)?;
        if settings.warmup && !decoupled {
            instances.iter_mut().for_each(|instance| warm(&mut **instance, &shapes));
            // One that was measured is warm.
            if !is_measured {
                warm(&mut *first.backend, &shapes);
            }
        }
        instances.push(first.backend);
        for instance in &mut instances {
            samples::run(&samples, &mut **instance)?;
        }
        if let Some(instance) = instances.last_mut() {
            fill_up(found, &mut **instance, &mut shapes)?;
            told_filling(found, &shapes);
        }
        for instance in &mut instances {
            instance.ready().map_err(|error| error.to_string())?;
        }
        let memory = instances.last().map_or(0, |instance| held(&**instance, found)) * sessions as u64;
        first.share.set(threads * count, memory.saturating_add(kept(settings)));
        let absent = std::mem::take(&mut shapes.absent);
        let plan = self.plan(found, shapes, session, &first.decision, first.share, first.cost);
        let took = first.took + began.elapsed();
        let place = Place::Threads(instances);
        Ok(Prepared { plan, place, decoupled, absent, labels: first.labels, took, memory })
    }

    /// How an instance on a thread is made.
    pub(super) fn wide(&self, settings: &ModelSettings, threads: usize) -> SessionSettings {
        let sharers = if settings.shares_weights() { settings.instances.unwrap_or(1) } else { 1 };
        self.session(settings, threads, sharers)
    }

    fn session(&self, settings: &ModelSettings, threads: usize, sharers: usize) -> SessionSettings {
        SessionSettings { explain: self.explain, ..settings.session(threads, sharers) }
    }

    /// The model's part of the budget, with as many sessions, and what its answers may take.
    pub(super) fn share(&self, found: &Found, threads: usize, sessions: usize) -> Result<Share, String> {
        let bytes = self.opener.weight_bytes(&found.path).unwrap_or(found.bytes);
        let bytes = bytes.saturating_mul(sessions as u64).saturating_add(kept(&found.settings));
        self.settings.budget.take(&key(found), threads, bytes)
    }

    fn plan(
        &self,
        found: &Found,
        shapes: Shapes,
        session: SessionSettings,
        decision: &Decision,
        share: Share,
        cost: Cost,
    ) -> Plan {
        let key = Arc::new(key(found));
        let mut policy = found.settings.batching.policy(decision.batches, is_even(&shapes.signature));
        if let Some(rows) = shapes.rows() {
            policy.max_rows = rows;
        }
        policy.max_elements = shapes.ragged().map(|ragged| ragged.max_elements);
        let Shapes { signature, layout, .. } = shapes;
        let (opener, path, files) = (Arc::clone(&self.opener), found.path.clone(), found.files.clone());
        // What takes the place of an instance that broke shares nothing with it.
        let session = SessionSettings { sharers: 1, ..session };
        Plan {
            metrics: self.metrics.model(&key),
            key,
            policy,
            signature,
            layout: layout.map(Arc::new),
            run_limit: found.settings.run_limit,
            cost: Arc::new(cost),
            another: self.another(found, session.clone()),
            reopen: Arc::new(move || {
                // Held for as long as this may be called.
                let _held = (&files, &share);
                open_ready(&*opener, &path, &session)
            }),
            background: false,
        }
    }

    /// Makes an instance beside those of the plan, if there is memory for it; what it takes is kept for it from then on.
    fn another(&self, found: &Found, session: SessionSettings) -> Reopen {
        let (opener, budget) = (Arc::clone(&self.opener), Arc::clone(&self.settings.budget));
        let (key, path, bytes, files) = (key(found), found.path.clone(), found.bytes, found.files.clone());
        let share = OnceLock::<Share>::new();
        Arc::new(move || {
            let _held = &files;
            if share.get().is_none() {
                let needed = opener.weight_bytes(&path).unwrap_or(bytes);
                // No threads: it has what the others leave.
                drop(share.set(budget.take(&key, 0, needed).map_err(OpenError)?));
            }
            let instance = open_ready(&*opener, &path, &session)?;
            if let Some(share) = share.get() {
                share.set(0, memory(&*instance, bytes));
            }
            Ok(instance)
        })
    }

    pub(super) fn is_there(&self, found: &Found) -> Result<(), String> {
        found.path.exists().then_some(()).ok_or_else(|| format!("`{}` is not there", found.path.display()))
    }

    pub(super) fn open(&self, found: &Found, session: &SessionSettings) -> Result<Box<dyn Backend>, String> {
        self.is_there(found)?;
        self.opener.open(&found.path, session).map_err(|error| error.to_string())
    }
}

/// What `work` comes to; a panic is an error like any other.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("panicked while it was loaded".to_owned()))
}

/// What a model that runs on threads asks of the cores.
pub(super) fn want(found: &Found) -> Want {
    let settings = &found.settings;
    Want {
        model: Arc::clone(&found.name),
        instances: settings.instances.unwrap_or(1).max(1),
        threads: settings.threads,
    }
}

/// Graphs by the names of their ensembles.
pub(super) type Graphs = HashMap<Arc<str>, Arc<ensemble::Settings>>;

/// Those of `ensembles`, which are loaded together.
pub(super) fn graphs(ensembles: &[Found]) -> Graphs {
    let graph = |found: &Found| Some((Arc::clone(&found.name), Arc::clone(found.settings.ensemble.as_ref()?)));
    ensembles.iter().filter_map(graph).collect()
}

/// Opens the built-in steps of an ensemble, which is one of `graphs`, and reads its labels: whoever puts it together has no
/// time to wait for files.
pub(super) fn open_steps(found: &Found, graphs: &Graphs) -> Result<Opened, String> {
    let began = Instant::now();
    let settings = found.settings.ensemble.as_ref().ok_or("is no ensemble")?;
    if let Some(circle) = ensemble::circle(&found.name, &|name| graphs.get(name).cloned()) {
        return Err(circle);
    }
    if let Some(sample) = found.settings.samples.first() {
        return Err(format!("warm-up sample `{}`: an ensemble is not warmed up, its models are", sample.name));
    }
    for warning in &found.settings.warnings {
        tracing::warn!(model = %found.name, warning, "part of a model's configuration does not apply here");
    }
    let steps = settings.open(&found.folder)?;
    let labels = labels::open(&found.settings, &found.folder);
    Ok(Opened { steps, labels, took: began.elapsed() })
}

/// Ensembles in an order in which each comes after those that it is made of. Those in a circle keep their place; they are
/// refused when they are put together.
pub(super) fn innermost_first(mut left: Vec<Found>) -> Vec<Found> {
    let mut order = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |found: &Found| {
            let mut models = found.settings.ensemble.iter().flat_map(|ensemble| ensemble.models());
            models.any(|model| model.name != found.name && left.iter().any(|other| other.name == model.name))
        };
        let next = left.iter().position(|found| !waits(found)).unwrap_or(0);
        order.push(left.remove(next));
    }
    order
}

/// Bytes that the answers of a version may take, which are its own from the start: it must not grow into what others have.
pub(super) fn kept(settings: &ModelSettings) -> u64 {
    settings.cache.map_or(0, |cache| cache.memory as u64)
}

/// Bytes that an instance holds, with what it shares.
pub(super) fn held(instance: &dyn Backend, found: &Found) -> u64 {
    memory(instance, found.bytes)
}

/// An instance of a model that is served already: what it runs are calls.
fn open_ready(opener: &dyn Open, path: &Path, session: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
    let mut instance = opener.open(path, session)?;
    instance.ready()?;
    Ok(instance)
}

fn memory(instance: &dyn Backend, bytes: u64) -> u64 {
    instance.memory_bytes().unwrap_or(bytes).max(instance.weight_bytes())
}

pub(super) fn key(found: &Found) -> ModelKey {
    ModelKey { name: Arc::clone(&found.name), version: Arc::clone(&found.version) }
}

/// An error in the words that operators read: the cause, which clients never see.
pub fn reason(error: &crate::error::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Measures how far calls of a model are filled up, if any are, and sees whether its outputs can be cut back.
pub(super) fn fill_up(found: &Found, instance: &mut dyn Backend, shapes: &mut Shapes) -> Result<(), String> {
    let Some(Layout::Padded(padding)) = shapes.layout.as_mut().filter(|_| found.settings.warmup) else { return Ok(()) };
    worth::measure(instance, &shapes.signature, padding)?;
    Ok(())
}

/// Says what [`fill_up`] has found.
fn told_filling(found: &Found, shapes: &Shapes) {
    if let Some(padding) = shapes.padding().filter(|_| found.settings.warmup) {
        let (pad, elements) = (&padding.reach, padding.worth());
        tracing::info!(model = %found.name, %pad, elements, "how far calls are filled up");
    }
}

/// A few runs, of which nothing is learnt: the first calls should not pay for them.
fn warm(backend: &mut dyn Backend, shapes: &Shapes) {
    let settings = crate::schedule::TurnSettings::default();
    let _ = match shapes.ragged() {
        Some(ragged) => measure_ragged(backend, &shapes.signature, ragged, 1, &settings),
        None => measure(backend, 1, &settings),
    };
}

//! Prepares models: opens, warms up and measures them, one after the other, on the loader's own thread.
//!
//! Blocks, and knows no repository: what has become of each model is told as an [`Event`].

use super::{
    ModelSettings, Settings,
    classify::Labels,
    declared, ensemble, labels,
    measure::{Measured, measure},
    samples,
    scan::{self, Found, Problem},
};
use crate::{
    backend::{Backend, Open, SessionSettings},
    call::{LoadRequest, ModelKey, ModelRef},
    schedule::{Cost, Execution, Plan},
    telemetry::metrics::Metrics,
    tensor::{DataType, Signature},
};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// What is to be loaded.
#[derive(Debug)]
pub(super) enum Wanted {
    /// What is configured to be loaded at start.
    Configured,
    /// What a load call asks for.
    One(LoadRequest),
    /// What has changed of a model: versions that are `kept` are not loaded again if they would run the same.
    Renewed {
        name: Arc<str>,
        /// How the versions that are served and whose files are the same were to run.
        kept: HashMap<Arc<str>, Arc<ModelSettings>>,
    },
}

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

/// The steps of an ensemble.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) steps: Vec<ensemble::Does>,
    /// From the first look to the last file.
    pub(super) took: Duration,
}

/// A model whose instances are open and wait for their place.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) place: Place,
    pub(super) decoupled: bool,
    pub(super) labels: Vec<Option<Labels>>,
    /// From the first look at the file to the last warm-up run.
    pub(super) took: Duration,
}

pub(super) enum Place {
    Threads(Vec<Box<dyn Backend>>),
    Lanes { max_rows: usize, instances: Vec<Box<dyn Backend>>, spare: Box<dyn Backend> },
}

/// What preparing needs, on whatever thread.
pub(super) struct Workshop {
    pub(super) settings: Arc<Settings>,
    pub(super) opener: Arc<dyn Open>,
    pub(super) metrics: Arc<Metrics>,
    /// 0: there are no lanes.
    pub(super) lanes: usize,
}

/// How a model is going to run, once it has been measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decision {
    batches: bool,
    /// Most rows of a batch on a lane; `None`: threads.
    turn_rows: Option<usize>,
}

// === impl Wanted ===

impl Wanted {
    fn keeps(&self, found: &Found) -> bool {
        match self {
            Self::Configured | Self::One(_) => false,
            Self::Renewed { kept, .. } => {
                let before = kept.get(&found.version).filter(|_| found.fault.is_none());
                before.is_some_and(|before| before.runs_like(&found.settings))
            }
        }
    }
}

// === impl Workshop ===

impl Workshop {
    pub(super) fn work(&self, wanted: &Wanted, events: &mpsc::Sender<Event>) {
        let (found, problems) = match wanted {
            Wanted::Configured => scan::scan(&self.settings),
            Wanted::One(request) => scan::one(&self.settings, request),
            Wanted::Renewed { name, .. } => {
                let model = ModelRef { name: Arc::clone(name), version: None };
                scan::one(&self.settings, &LoadRequest { model, config: None, files: Vec::new() })
            }
        };
        let (kept, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| wanted.keeps(found));
        let threads = self.threads(&found);
        // A send fails only if nobody wants the models any more.
        if events.blocking_send(Event::Scanned { found: found.clone(), kept, problems }).is_err() {
            return;
        }
        let (models, ensembles): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| found.settings.ensemble.is_none() || found.fault.is_some());
        for found in models {
            let prepare = AssertUnwindSafe(|| self.prepare(&found, threads).map(Box::new));
            let prepared = catch_unwind(prepare).unwrap_or_else(|_| Err("panicked while it was loaded".to_owned()));
            if events.blocking_send(Event::Prepared(Box::new(found), prepared)).is_err() {
                return;
            }
        }
        for found in innermost_first(ensembles) {
            let open = AssertUnwindSafe(|| open_steps(&found));
            let opened = catch_unwind(open).unwrap_or_else(|_| Err("panicked while it was loaded".to_owned()));
            if events.blocking_send(Event::Opened(Box::new(found), opened)).is_err() {
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
        let cost = Cost::default();
        // What was measured with other threads says nothing about the instances that are made instead.
        if decision.turn_rows.is_some() || session == wide {
            measured.costs.iter().for_each(|(rows, took)| cost.seed(*rows, *took));
        }
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
        let plan = self.plan(found, signature, session, &decision, cost);
        Ok(Prepared { plan, place, decoupled, labels, took: began.elapsed() })
    }

    fn plan(
        &self,
        found: &Found,
        signature: Arc<Signature>,
        session: SessionSettings,
        decision: &Decision,
        cost: Cost,
    ) -> Plan {
        let key = Arc::new(key(found));
        let (opener, path, files) = (Arc::clone(&self.opener), found.path.clone(), found.files.clone());
        Plan {
            metrics: self.metrics.model(&key),
            key,
            policy: found.settings.batching.policy(decision.batches, is_even(&signature)),
            signature,
            cost: Arc::new(cost),
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
            Execution::Auto if settings.batching.preserve_order => false,
            Execution::Turn if settings.batching.preserve_order => {
                return Err(
                    "`batching.preserve_order` is not for `execution: turn`: each lane answers by itself".to_owned()
                );
            }
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

/// Opens the built-in steps of an ensemble.
pub(super) fn open_steps(found: &Found) -> Result<Opened, String> {
    let began = Instant::now();
    let settings = found.settings.ensemble.as_ref().ok_or("is no ensemble")?;
    if let Some(sample) = found.settings.samples.first() {
        return Err(format!("warm-up sample `{}`: an ensemble is not warmed up, its models are", sample.name));
    }
    for warning in &found.settings.warnings {
        tracing::warn!(model = %found.name, warning, "part of a model's configuration does not apply here");
    }
    let steps = settings.open(&found.folder)?;
    Ok(Opened { steps, took: began.elapsed() })
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

pub(super) fn key(found: &Found) -> ModelKey {
    ModelKey { name: Arc::clone(&found.name), version: Arc::clone(&found.version) }
}

/// An error in the words that operators read: the cause, which clients never see.
pub(super) fn reason(error: &crate::error::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
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

/// Whether all rows have one shape, so that their number alone says what a batch costs.
pub(super) fn is_even(signature: &Signature) -> bool {
    let is_fixed = |dims: &[Option<usize>]| dims.iter().skip(1).all(Option::is_some);
    signature.inputs.iter().all(|spec| spec.dtype != Some(DataType::Bytes) && is_fixed(&spec.dims))
}

/// A few runs, of which nothing is learnt: the first calls should not pay for them.
fn warm(backend: &mut dyn Backend) {
    let settings = crate::schedule::TurnSettings::default();
    let _ = measure(backend, 1, &settings);
}

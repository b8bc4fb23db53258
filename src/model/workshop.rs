//! Prepares models: opens, warms up and measures them, one after the other, on the loader's own thread.
//!
//! Blocks, and knows no repository: what has become of each model is told as an [`Event`].

use super::{
    Absent, ModelSettings, Settings,
    classify::Labels,
    declared, labels,
    measure::{Measured, measure},
    samples,
    scan::{self, Found, Problem},
    shapes::{self, Shapes},
    worth,
};
use crate::{
    backend::{Backend, Open, SessionSettings},
    call::{LoadRequest, ModelKey},
    schedule::{Execution, Plan},
    telemetry::metrics::Metrics,
    tensor::Signature,
};
use std::{
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
}

/// What the loader's thread tells.
pub(super) enum Event {
    Scanned(Vec<Found>, Vec<Problem>),
    Prepared(Box<Found>, Result<Box<Prepared>, String>),
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

// === impl Workshop ===

impl Workshop {
    pub(super) fn work(&self, wanted: &Wanted, events: &mpsc::Sender<Event>) {
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
        let Shapes { signature, mut padding, absent, .. } =
            shapes::shapes(settings, first.signature(), &first.axis_names())?;
        for warning in &settings.warnings {
            tracing::warn!(model = %found.name, warning, "part of a model's configuration does not apply here");
        }
        let labels = labels::read(settings, &found.folder, first.signature())?;
        let decoupled = first.is_decoupled();
        let mut measured = if settings.warmup && !decoupled {
            let free = padding.as_ref().is_none_or(|padding| padding.rows.is_none());
            let rows = if free && may_batch(settings, &signature) { settings.batching.max_rows } else { 1 };
            measure(&mut *first, rows, &self.settings.turn)
        } else {
            Measured { max_rows: 1, ..Measured::default() }
        };
        if let Some(rows) = padding.as_ref().and_then(|padding| padding.rows) {
            measured.max_rows = rows;
        }
        let decision = self.decide(settings, &*first, &signature, large, &measured)?;
        if !decision.batches {
            padding = None;
        }
        let samples = samples::make(settings, &signature, decision.batches, padding.as_ref())?;
        let more = |count: usize, session: &SessionSettings| {
            (0..count).map(|_| self.open(found, session)).collect::<Result<Vec<_>, _>>()
        };
        let mut place = match decision.turn_rows {
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
        if let (Some(padding), true) = (&mut padding, settings.warmup) {
            let instance = match &mut place {
                Place::Threads(instances) => instances.last_mut(),
                Place::Lanes { spare, .. } => Some(spare),
            };
            if let Some(instance) = instance {
                worth::measure(&mut **instance, &signature, padding)?;
                let (reach, elements) = (&padding.reach, padding.worth());
                tracing::info!(model = %found.name, ?reach, elements, "how far calls are filled up");
            }
        }
        let mut plan = self.plan(found, signature, session, &decision);
        if let Some(rows) = padding.as_ref().and_then(|padding| padding.rows) {
            plan.policy.max_rows = rows;
        }
        plan.padding = padding.map(Arc::new);
        Ok(Prepared { plan, place, decoupled, absent, labels, took: began.elapsed() })
    }

    fn plan(&self, found: &Found, signature: Arc<Signature>, session: SessionSettings, decision: &Decision) -> Plan {
        let key = Arc::new(key(found));
        let (opener, path, files) = (Arc::clone(&self.opener), found.path.clone(), found.files.clone());
        Plan {
            metrics: self.metrics.model(&key),
            key,
            signature,
            policy: found.settings.batching.policy(decision.batches),
            padding: None,
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
        signature: &Signature,
        large: bool,
        measured: &Measured,
    ) -> Result<Decision, String> {
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
    settings.batching.enabled.unwrap_or(settings.fixed_rows || settings.batching.max_rows > 1)
        && signature.is_batchable()
}

/// A few runs, of which nothing is learnt: the first calls should not pay for them.
fn warm(backend: &mut dyn Backend) {
    let settings = crate::schedule::TurnSettings::default();
    let _ = measure(backend, 1, &settings);
}

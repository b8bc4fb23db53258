//! Counting: what other modules call, with handles that are resolved once and not per call.
//!
//! Families and their labels stand in [`families`], the process's own figures come from [`process`]. Does not know who
//! reports; label values come from configuration or the repository, never from a client's bytes (invariant 9).

mod families;
mod model;
mod process;

pub use model::ModelMetrics;

use super::statistics::Statistics;
use crate::{
    call::{End, Intent, ModelKey, Surface},
    error::{Code, Error, Stage},
};
use arc_swap::ArcSwap;
use families::Families;
use foldhash::HashMap;
use prometheus::{Histogram, IntCounter, IntGauge, Registry, TextEncoder};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

const SURFACES: usize = Surface::ALL.len();
const INTENTS: usize = Intent::ALL.len();
/// `ok`, and every code.
const ENDS: usize = 1 + Code::ALL.len();

/// All metric families of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    surfaces: [PerSurface; SURFACES],
    /// Calls that never came to a model that the repository knows.
    no_model: PerModel,
    /// By the address of the repository's key, which stays unique because the key is kept alive here: finding the
    /// handles of a call costs no comparison of names.
    models: ArcSwap<HashMap<usize, Arc<PerModel>>>,
}

/// Handles that depend on the surface only. Those of families that a surface may never use are made when first used.
#[derive(Debug)]
struct PerSurface {
    in_flight: IntGauge,
    chunks: OnceLock<IntCounter>,
    durations: [OnceLock<Histogram>; INTENTS],
    request_bytes: OnceLock<Histogram>,
    response_bytes: OnceLock<Histogram>,
    messages: OnceLock<(IntCounter, IntCounter)>,
}

/// Handles of calls about one model. Made when first used, so that a page holds no series that never counted.
#[derive(Debug)]
struct PerModel {
    key: Option<Arc<ModelKey>>,
    statistics: Arc<Statistics>,
    calls: Box<[OnceLock<IntCounter>]>,
    first_chunk: [OnceLock<Histogram>; SURFACES],
}

/// What a connection speaks, once its first bytes have told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// WebSocket.
    WebSocket,
}

/// Lowers its gauge when dropped.
#[derive(Debug)]
pub struct Gauge(IntGauge);

// === impl Metrics ===

impl Metrics {
    /// Registers all families.
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families::register(&registry);
        families.config_reload.set(1);
        let surfaces = Surface::ALL.map(|surface| PerSurface::new(&families, surface));
        Self { registry, families, surfaces, no_model: PerModel::new(None), models: ArcSwap::default() }
    }

    /// The page of `/metrics`, Prometheus text 0.0.4.
    pub fn render(&self) -> String {
        let mut page = String::with_capacity(16 * 1024);
        // Only a family without samples is an error to the encoder, and gathering leaves those out.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut page);
        process::render(&mut page);
        page
    }

    /// A call has begun.
    pub fn call_started(&self, surface: Surface, _: Intent) {
        self.surfaces[surface as usize].in_flight.inc();
    }

    /// A call was refused or failed, for `error`; counts the limits that it ran into. [`Metrics::call_ended`] follows.
    pub fn call_refused(&self, error: &Error) {
        match error {
            Error::Overloaded { what } => self.overloaded(limit(what)),
            Error::RateLimited { cap, .. } => self.rate_limited(cap.name()),
            _ => {}
        }
    }

    /// A call is over, in reply, in error or abandoned. `model` only as the repository knows it.
    pub fn call_ended(
        &self,
        surface: Surface,
        intent: Intent,
        model: Option<&Arc<ModelKey>>,
        end: End,
        took: Duration,
    ) {
        let handles = &self.surfaces[surface as usize];
        handles.in_flight.dec();
        handles.durations[intent as usize]
            .get_or_init(|| self.families.call_duration.with_label_values(&[surface.name(), intent.name()]))
            .observe(took.as_secs_f64());
        self.about(model, |about| {
            let index = (surface as usize * INTENTS + intent as usize) * ENDS + index(end);
            about.calls[index]
                .get_or_init(|| {
                    let labels = [surface.name(), intent.name(), end.name(), about.name()];
                    self.families.calls.with_label_values(&labels)
                })
                .inc();
            // Questions about a model are no work of its own.
            if matches!(intent, Intent::Infer | Intent::Generate) {
                about.statistics.call_ended(end == End::Complete, took);
            }
        });
    }

    /// The client of a call went away when it had come to `stage`. [`Metrics::call_ended`] follows.
    pub fn cancelled(&self, surface: Surface, stage: Stage) {
        // Nothing waits before the body is read, so a call that is dropped there counts as being read.
        self.families.cancelled.with_label_values(&[surface.name(), stage.max(Stage::Reading).name()]).inc();
    }

    /// A chunk of a stream passed by; `first` with the time since the call began.
    pub fn chunk(&self, surface: Surface, model: Option<&Arc<ModelKey>>, first: Option<Duration>) {
        self.surfaces[surface as usize]
            .chunks
            .get_or_init(|| self.families.chunks.with_label_values(&[surface.name()]))
            .inc();
        let Some(first) = first else { return };
        self.about(model, |about| {
            about.first_chunk[surface as usize]
                .get_or_init(|| self.families.first_chunk.with_label_values(&[surface.name(), about.name()]))
                .observe(first.as_secs_f64());
        });
    }

    /// Handles for one model version, to be kept by its scheduler. Versions of a model share their series; each has
    /// statistics of its own, which begin at zero here. `model` is the key that its calls will bring.
    pub fn model(&self, model: &Arc<ModelKey>) -> ModelMetrics {
        let about = self.enrol(model);
        ModelMetrics::new(&self.families, &model.name, Arc::clone(&about.statistics))
    }

    /// A connection was accepted; the guard closes it when dropped. [`Metrics::connection_is`] says what it speaks.
    pub fn connection_opened(&self) -> Gauge {
        self.families.connections_total.with_label_values(&["", "accepted"]).inc();
        Gauge::raise(self.families.connections.with_label_values(&[""]))
    }

    /// The connection of `gauge` speaks `kind`.
    pub fn connection_is(&self, gauge: &mut Gauge, kind: Kind) {
        *gauge = Gauge::raise(self.families.connections.with_label_values(&[kind.name()]));
    }

    /// A connection or request was refused before there was a call, for `reason`: `limit`, `address`, `timeout`, `tls`,
    /// `flood` or `malformed`.
    pub fn refused(&self, reason: &'static str) {
        self.families.connections_total.with_label_values(&["", reason]).inc();
        if reason == "address" {
            self.rate_limited("address");
        }
    }

    /// Something was refused for lack of room, before there was a call or below the stack: `memory`, `socket`, `queue`.
    pub fn overloaded(&self, limit: &'static str) {
        self.families.overloaded.with_label_values(&[limit]).inc();
    }

    /// Whether limits are shared now, where they are to be.
    pub fn shared_limits(&self, up: bool) {
        self.families.shared_limits.with_label_values::<&str>(&[]).set(i64::from(up));
    }

    /// Something was refused by `policy`, a name of the configuration, `concurrency` or `address`.
    pub fn rate_limited(&self, policy: &str) {
        self.families.rate_limited.with_label_values(&[policy]).inc();
    }

    /// A message-oriented session was opened; the guard closes it when dropped. A WebSocket counts as a connection: the
    /// HTTP/1.1 connection that it was is over. So does one on an HTTP/2 stream, because it is one to its client.
    pub fn session_opened(&self, surface: Surface) -> Gauge {
        if surface == Surface::WebSocket {
            let kind = Kind::WebSocket.name();
            self.families.connections_total.with_label_values(&[kind, "accepted"]).inc();
            return Gauge::raise(self.families.connections.with_label_values(&[kind]));
        }
        Gauge::raise(self.families.sessions.with_label_values(&[surface.name()]))
    }

    /// A message of a session arrived.
    pub fn message_received(&self, surface: Surface) {
        self.messages(surface).0.inc();
    }

    /// A message of a session was sent.
    pub fn message_sent(&self, surface: Surface) {
        self.messages(surface).1.inc();
    }

    /// A front-end has read the body of a call, which had so many bytes.
    pub fn body_received(&self, surface: Surface, bytes: u64) {
        self.surfaces[surface as usize]
            .request_bytes
            .get_or_init(|| self.families.request_bytes.with_label_values(&[surface.name()]))
            .observe(bytes as f64);
    }

    /// A front-end hands over the body of a reply, which has so many bytes.
    pub fn body_sent(&self, surface: Surface, bytes: u64) {
        self.surfaces[surface as usize]
            .response_bytes
            .get_or_init(|| self.families.response_bytes.with_label_values(&[surface.name()]))
            .observe(bytes as f64);
    }

    /// A model version is in `state` now and no longer in the one before: `loading`, `ready`, `failed`,
    /// `unloading`, `unloaded`.
    pub fn model_state(&self, model: &ModelKey, state: &'static str) {
        for other in ["loading", "ready", "failed", "unloading", "unloaded"] {
            let labels = [&*model.name, &*model.version, other];
            if other == state {
                self.families.model_state.with_label_values(&labels).set(1);
            } else {
                self.families.model_state.with_label_values(&labels).set(0);
            }
        }
    }

    /// A model version was loaded and warmed in `took`, and holds about `memory` bytes if that is known.
    pub fn model_loaded(&self, model: &ModelKey, took: Duration, memory: Option<u64>) {
        self.families.model_load.with_label_values(&[&*model.name]).observe(took.as_secs_f64());
        if let Some(memory) = memory.and_then(|bytes| i64::try_from(bytes).ok()) {
            self.families.model_memory.with_label_values(&[&*model.name, &*model.version]).set(memory);
        }
    }

    /// The configuration was reloaded, or refused.
    pub fn config_reloaded(&self, taken: bool) {
        self.families.config_reload.set(i64::from(taken));
    }

    /// Which ONNX Runtime was loaded; completes `sluicegate_build_info`. Once, at start.
    pub fn build_info(&self, ort_version: &str) {
        let commit = option_env!("SLUICEGATE_COMMIT").unwrap_or_default();
        let rustc = option_env!("SLUICEGATE_RUSTC").unwrap_or_default();
        let labels = [env!("CARGO_PKG_VERSION"), commit, ort_version, rustc];
        self.families.build_info.with_label_values(&labels).set(1);
    }

    fn messages(&self, surface: Surface) -> &(IntCounter, IntCounter) {
        self.surfaces[surface as usize].messages.get_or_init(|| {
            let count = |direction| self.families.messages.with_label_values(&[surface.name(), direction]);
            (count("in"), count("out"))
        })
    }

    /// Hands `count` the handles of `model`.
    fn about(&self, model: Option<&Arc<ModelKey>>, count: impl Fn(&PerModel)) {
        let Some(key) = model else { return count(&self.no_model) };
        let address = Arc::as_ptr(key) as usize;
        if let Some(about) = self.models.load().get(&address) {
            return count(about);
        }
        count(&self.enrol(key));
    }

    /// Makes the handles of calls about `key`.
    fn enrol(&self, key: &Arc<ModelKey>) -> Arc<PerModel> {
        let about = Arc::new(PerModel::new(Some(Arc::clone(key))));
        self.models.rcu(|models| {
            // A key that nobody else holds belongs to a model that is gone: this is the only place where it is kept.
            let used =
                models.iter().filter(|(_, about)| about.key.as_ref().is_some_and(|key| Arc::strong_count(key) > 1));
            let mut models: HashMap<_, _> = used.map(|(address, about)| (*address, Arc::clone(about))).collect();
            models.insert(Arc::as_ptr(key) as usize, Arc::clone(&about));
            models
        });
        about
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The label for what [`Error::Overloaded`] says is full.
fn limit(what: &str) -> &'static str {
    match what {
        "calls in flight" => "calls",
        "inspect calls in flight" => "inspect",
        "memory" => "memory",
        "queue of the model" => "queue",
        "queue delay" => "queue_delay",
        "shared limits" => "shared_limits",
        _ => "other",
    }
}

fn index(end: End) -> usize {
    match end {
        End::Complete => 0,
        End::Failed(code) => 1 + code as usize,
        End::Abandoned => 1 + Code::Cancelled as usize,
    }
}

// === impl PerSurface, PerModel ===

impl PerSurface {
    fn new(families: &Families, surface: Surface) -> Self {
        Self {
            in_flight: families.in_flight.with_label_values(&[surface.name()]),
            chunks: OnceLock::new(),
            durations: Default::default(),
            request_bytes: OnceLock::new(),
            response_bytes: OnceLock::new(),
            messages: OnceLock::new(),
        }
    }
}

impl PerModel {
    fn new(key: Option<Arc<ModelKey>>) -> Self {
        let calls = std::iter::repeat_with(OnceLock::new).take(SURFACES * INTENTS * ENDS).collect();
        Self { key, statistics: Arc::default(), calls, first_chunk: Default::default() }
    }

    fn name(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.name)
    }
}

// === impl Kind, Gauge ===

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::WebSocket => "websocket",
        }
    }
}

impl Gauge {
    fn raise(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;

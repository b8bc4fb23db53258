//! Counting: what other modules call, with handles that are resolved once and not per call.
//!
//! Families and their labels stand in [`families`], the process's own figures come from [`process`]. Does not know who
//! reports; label values come from configuration or the repository, never from a client's bytes (invariant 9).
//! What the page looks like is the matter of [`page`], and of [`nv`] for the families that Triton has.

mod cache;
mod exemplars;
mod families;
mod gauge;
mod histogram;
mod identities;
mod model;
mod nv;
pub mod page;
mod process;
mod shadow;
mod unknown;

pub use cache::CacheMetrics;
pub use gauge::{Gauge, Kind};
pub use model::ModelMetrics;
pub use shadow::{ShadowDifference, ShadowEnd};

use super::statistics::{Outcome, Statistics};
use crate::{
    call::{End, Facts, Intent, ModelKey, Route, Surface},
    current::Current,
    error::{Code, Error, Limit, Stage},
};
use exemplars::Exemplars;
use families::Families;
use foldhash::HashMap;
use histogram::Histogram;
use identities::Identities;
use page::{Format, Page};
use prometheus::{IntCounter, IntGauge, Registry};
use std::{
    array,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const SURFACES: usize = Surface::ALL.len();
const ROUTES: usize = Route::ALL.len();
/// A place for each route, which belongs to one surface, and for what comes in elsewhere on each surface.
const DOORS: usize = ROUTES + SURFACES;
/// `ok`, and every code.
const ENDS: usize = 1 + Code::ALL.len();

/// States that a model version may be in.
const STATES: [&str; 5] = ["loading", "ready", "failed", "unloading", "unloaded"];

/// `telemetry.metrics`, as far as it is about what is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether the page has Triton's families too.
    pub nv_view: bool,
    /// Whether calls are counted by identity.
    pub by_identity: bool,
}

/// All metric families of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
    surfaces: [PerSurface; SURFACES],
    durations: [OnceLock<Histogram>; DOORS],
    exemplars: Exemplars,
    /// Absent unless it was asked for.
    identities: Option<Identities>,
    /// Absent unless it was asked for.
    nv: Option<nv::View>,
    /// What could not be read again: files that the configuration names, and itself.
    broken: [AtomicBool; 2],
    /// Model versions so far.
    enrolled: AtomicU64,
    /// Calls that never came to a model that the repository knows.
    no_model: PerModel,
    /// By the address of the repository's key, which stays unique because the key is kept alive here: finding the
    /// handles of a call costs no comparison of names.
    models: Current<HashMap<usize, Arc<PerModel>>>,
}

/// Handles that depend on the surface only. Those of families that a surface may never use are made when first used.
#[derive(Debug)]
struct PerSurface {
    in_flight: IntGauge,
    chunks: OnceLock<IntCounter>,
    decode: OnceLock<Histogram>,
    encode: OnceLock<Histogram>,
    request_bytes: OnceLock<Histogram>,
    response_bytes: OnceLock<Histogram>,
    messages: OnceLock<(IntCounter, IntCounter)>,
}

/// Handles of calls about one model. Made when first used, so that a page holds no series that never counted.
#[derive(Debug)]
struct PerModel {
    key: Option<Arc<ModelKey>>,
    /// Its place among all that were enrolled: of two with the same name, the later one is loaded.
    serial: u64,
    statistics: Arc<Statistics>,
    /// How long it took to load, in microseconds.
    load: AtomicU64,
    calls: [OnceLock<Box<[OnceLock<IntCounter>; ENDS]>>; DOORS],
    first_chunk: [OnceLock<Histogram>; SURFACES],
}

// === impl Metrics ===

impl Metrics {
    /// Registers all families but those that have to be asked for.
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    /// Registers all families that `settings` ask for.
    pub fn with(settings: Settings) -> Self {
        let registry = Registry::new();
        let families = Families::register(&registry);
        families.config_reload.set(1);
        families.config_reload_time.set(seconds_since_1970());
        let identities = settings.by_identity.then(|| Identities::register(&registry));
        let surfaces = Surface::ALL.map(|surface| PerSurface::new(&families, surface));
        Self {
            registry,
            families,
            surfaces,
            durations: array::from_fn(|_| OnceLock::new()),
            exemplars: Exemplars::default(),
            identities,
            nv: settings.nv_view.then(nv::View::default),
            broken: Default::default(),
            enrolled: AtomicU64::new(0),
            no_model: PerModel::new(None, 0),
            models: Current::default(),
        }
    }

    /// The page of `/metrics` as Prometheus text 0.0.4.
    pub fn render(&self) -> String {
        self.page(Format::Text)
    }

    /// The page of `/metrics`. Takes no lock that a call waits for.
    pub fn page(&self, format: Format) -> String {
        let mut page = Page::new(format);
        page.families(&self.registry.gather(), &self.exemplars);
        process::render(&mut page);
        if let Some(nv) = &self.nv {
            let models = self.models.get();
            nv.render(&mut page, models.values().map(|about| &**about));
        }
        page.finish()
    }

    /// A call has begun.
    pub fn call_started(&self, surface: Surface, _: Intent) {
        self.surfaces[surface as usize].in_flight.inc();
    }

    /// A call was refused or failed, for `error`; counts the limits that it ran into. [`Metrics::call_ended`] follows.
    pub fn call_refused(&self, error: &Error) {
        match error {
            Error::Overloaded { limit } => self.overloaded(*limit),
            Error::RateLimited { cap, .. } => self.rate_limited(cap.name()),
            _ => {}
        }
    }

    /// A call is over, in reply, in error or abandoned. `facts` name the model only as the repository knows it.
    pub fn call_ended(&self, surface: Surface, route: Route, intent: Intent, facts: &Facts, end: End, took: Duration) {
        let handles = &self.surfaces[surface as usize];
        handles.in_flight.dec();
        let (door, labels) = (door(surface, route), [surface.name(), route.name()]);
        self.durations[door]
            .get_or_init(|| self.families.call_duration.with_label_values(&labels))
            .observe(took.as_secs_f64());
        if let Some(queued) = facts.queued.get() {
            // From the head on, which for a body that was there at once is when it began to be read.
            let decode = queued.saturating_duration_since(facts.over().checked_sub(took).unwrap_or(queued));
            handles
                .decode
                .get_or_init(|| self.families.decode.with_label_values(&labels[..1]))
                .observe(decode.as_secs_f64());
        }
        self.about(facts.model.get(), |about| {
            about.calls[door].get_or_init(|| Box::new(array::from_fn(|_| OnceLock::new())))[index(end)]
                .get_or_init(|| {
                    let labels = [labels[0], labels[1], end.name(), about.name()];
                    self.families.calls.with_label_values(&labels)
                })
                .inc();
            // Questions about a model are no work of its own.
            if matches!(intent, Intent::Infer | Intent::Generate) {
                about.statistics.call_ended(Outcome::of(end, facts.stage()), took);
            }
        });
        if let (Some(identities), Some(identity)) = (&self.identities, facts.identity.get()) {
            identities.count(identity.id(), end);
        }
        if let Some(trace) = facts.trace.get() {
            self.exemplars.keep(labels, trace.id(), took);
        }
    }

    /// The whole reply of a call was written for its client in `took`.
    pub fn encoded(&self, surface: Surface, took: Duration) {
        self.surfaces[surface as usize]
            .encode
            .get_or_init(|| self.families.encode.with_label_values(&[surface.name()]))
            .observe(took.as_secs_f64());
    }

    /// `count` traces came to nothing, for `outcome`: `dropped` (the queue was full) or `failed`; or were `exported`.
    pub fn traces(&self, outcome: &'static str, count: u64) {
        self.families.traces.with_label_values(&[outcome]).inc_by(count);
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
        ModelMetrics::new(&self.families, model, Arc::clone(&about.statistics))
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

    /// The lane `lane` has not turned for `still`.
    pub fn lane_still(&self, lane: usize, still: Duration) {
        self.families.lane_still.with_label_values(&[&lane.to_string()]).set(still.as_secs_f64());
    }

    /// A connection or request was refused before there was a call, for `reason`: `limit`, `address`, `timeout`, `tls`,
    /// `flood`, `malformed`, or `origin` for a page that may not open a WebSocket.
    pub fn refused(&self, reason: &'static str) {
        self.families.connections_total.with_label_values(&["", reason]).inc();
        if reason == "address" {
            self.rate_limited("address");
        }
    }

    /// Something was refused for lack of room; called directly where there is no call that would be counted.
    pub fn overloaded(&self, limit: Limit) {
        self.families.overloaded.with_label_values(&[limit.name()]).inc();
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
        for other in STATES {
            let labels = [&*model.name, &*model.version, other];
            if other == state {
                self.families.model_state.with_label_values(&labels).set(1);
            } else {
                self.families.model_state.with_label_values(&labels).set(0);
            }
        }
        if !matches!(state, "ready" | "unloading") {
            self.model_memory(model, None);
        }
    }

    /// A model version that comes into service holds about `memory` bytes; `None`: it holds none, or nothing is known.
    /// The series ends with its service.
    pub fn model_memory(&self, model: &ModelKey, memory: Option<u64>) {
        let (family, labels) = (&self.families.model_memory, [&*model.name, &*model.version]);
        match memory.and_then(|bytes| i64::try_from(bytes).ok()) {
            Some(bytes) => family.with_label_values(&labels).set(bytes),
            // There may be none to remove.
            None => drop(family.remove_label_values(&labels)),
        }
    }

    /// A model version was loaded and warmed in `took`.
    pub fn model_loaded(&self, model: &ModelKey, took: Duration) {
        self.families.model_load.with_label_values(&[&*model.name]).observe(took.as_secs_f64());
        let latest = self.models.get();
        let latest =
            latest.values().filter(|about| about.key.as_deref() == Some(model)).max_by_key(|about| about.serial);
        if let Some(about) = latest {
            about.load.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Files that the configuration names (keys, certificates) were read again, or some of them are broken.
    pub fn config_reloaded(&self, taken: bool) {
        self.reloaded(0, taken);
    }

    /// The configuration itself was read again, or refused.
    pub fn config_file_reloaded(&self, taken: bool) {
        self.reloaded(1, taken);
    }

    /// What is well does not hide what is broken.
    fn reloaded(&self, part: usize, taken: bool) {
        self.broken[part].store(!taken, Ordering::Relaxed);
        let is_good = self.broken.iter().all(|broken| !broken.load(Ordering::Relaxed));
        self.families.config_reload.set(i64::from(is_good));
        if taken {
            self.families.config_reload_time.set(seconds_since_1970());
        }
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
        let known = self.models.with(|models| models.get(&address).map(|about| count(about)));
        if known.is_none() {
            count(&self.enrol(key));
        }
    }

    /// Makes the handles of calls about `key`.
    fn enrol(&self, key: &Arc<ModelKey>) -> Arc<PerModel> {
        let about = Arc::new(PerModel::new(Some(Arc::clone(key)), 1 + self.enrolled.fetch_add(1, Ordering::Relaxed)));
        self.models.change(|models| {
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

fn door(surface: Surface, route: Route) -> usize {
    match route {
        Route::Other => ROUTES + surface as usize,
        route => route as usize,
    }
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
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
            decode: OnceLock::new(),
            encode: OnceLock::new(),
            request_bytes: OnceLock::new(),
            response_bytes: OnceLock::new(),
            messages: OnceLock::new(),
        }
    }
}

impl PerModel {
    fn new(key: Option<Arc<ModelKey>>, serial: u64) -> Self {
        Self {
            key,
            serial,
            statistics: Arc::default(),
            load: AtomicU64::new(0),
            calls: array::from_fn(|_| OnceLock::new()),
            first_chunk: Default::default(),
        }
    }

    fn name(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.name)
    }
}

#[cfg(test)]
mod tests;

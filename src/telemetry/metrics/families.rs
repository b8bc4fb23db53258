//! THE table of metric families (contract 09 section 3): name, help, labels, buckets. Nothing else names a metric, but
//! the process's own family names in `process.rs`.

use super::histogram::HistogramVec;
use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector};

/// Seconds of a call, 0.001 to 60 (contract 09 section 3).
static CALL_SECONDS: [f64; 15] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60.];
/// Seconds of a part of a call. Small models run in microseconds (architecture, decision 9), so these begin lower.
static PART_SECONDS: [f64; 16] =
    [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1., 5., 60.];
/// Seconds of loading a model.
static LOAD_SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1., 5., 10., 30., 60., 300.];
/// Distances of two answers: from the noise of another order of the same sums up to another answer.
static DIFFERENCES: [f64; 11] = [0., 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1., 10., 100.];
/// Rows of a batch; `max_rows` is 64 by default.
static ROWS: [f64; 9] = [1., 2., 4., 8., 16., 32., 64., 128., 256.];
/// Bytes of a body, up to `limits.size.body`.
static BYTES: [f64; 10] = [64., 256., 1024., 4096., 16_384., 65_536., 262_144., 1_048_576., 16_777_216., 67_108_864.];

/// Every family, registered.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) calls: IntCounterVec,
    pub(super) call_duration: HistogramVec,
    pub(super) first_chunk: HistogramVec,
    pub(super) chunks: IntCounterVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) decode: HistogramVec,
    pub(super) encode: HistogramVec,
    pub(super) queue_wait: HistogramVec,
    pub(super) run: HistogramVec,
    pub(super) run_failures: IntCounterVec,
    pub(super) replaced: IntCounterVec,
    pub(super) moved: IntCounterVec,
    pub(super) given_up: IntGaugeVec,
    pub(super) lane_still: GaugeVec,
    pub(super) queue_depth: IntGaugeVec,
    pub(super) batch_size: HistogramVec,
    pub(super) batch_elements: IntCounterVec,
    pub(super) batch_cost: GaugeVec,
    pub(super) request_bytes: HistogramVec,
    pub(super) response_bytes: HistogramVec,
    pub(super) connections: IntGaugeVec,
    pub(super) connections_total: IntCounterVec,
    pub(super) sessions: IntGaugeVec,
    pub(super) messages: IntCounterVec,
    pub(super) rate_limited: IntCounterVec,
    pub(super) shared_limits: IntGaugeVec,
    pub(super) overloaded: IntCounterVec,
    pub(super) cancelled: IntCounterVec,
    pub(super) config_reload: IntGauge,
    pub(super) config_reload_time: IntGauge,
    pub(super) traces: IntCounterVec,
    pub(super) model_state: IntGaugeVec,
    pub(super) model_load: HistogramVec,
    pub(super) model_memory: IntGaugeVec,
    pub(super) model_loads: IntCounterVec,
    pub(super) cache_calls: IntCounterVec,
    pub(super) cache_bytes: IntGaugeVec,
    pub(super) cache_evictions: IntCounterVec,
    pub(super) shadow_calls: IntCounterVec,
    pub(super) shadow_duration: HistogramVec,
    pub(super) shadow_difference: HistogramVec,
    pub(super) shadow_disagreements: IntCounterVec,
    pub(super) build_info: IntGaugeVec,
}

impl Families {
    pub(super) fn register(registry: &Registry) -> Self {
        let counter = |name, help, labels: &[&str]| add(registry, IntCounterVec::new(Opts::new(name, help), labels));
        let gauge = |name, help, labels: &[&str]| add(registry, IntGaugeVec::new(Opts::new(name, help), labels));
        let histogram = |name, help, labels: &[&str], bounds: &'static [f64]| {
            add(registry, HistogramVec::new(name, help, labels, bounds))
        };
        Self {
            calls: counter(
                "sluicegate_calls_total",
                "Calls that are over, refused and abandoned ones included.",
                &["surface", "route", "code", "model"],
            ),
            call_duration: histogram(
                "sluicegate_call_duration_seconds",
                "From the head of a call to the end of its reply.",
                &["surface", "route"],
                &CALL_SECONDS,
            ),
            first_chunk: histogram(
                "sluicegate_time_to_first_chunk_seconds",
                "From the head of a call to the first chunk of a streaming reply.",
                &["surface", "model"],
                &CALL_SECONDS,
            ),
            chunks: counter("sluicegate_chunks_total", "Chunks of streaming replies.", &["surface"]),
            in_flight: gauge("sluicegate_calls_in_flight", "Calls whose reply is not over.", &["surface"]),
            decode: histogram(
                "sluicegate_decode_seconds",
                "From the head of a call to its submission: its body read, decoded and checked.",
                &["surface"],
                &PART_SECONDS,
            ),
            encode: histogram(
                "sluicegate_encode_seconds",
                "From the end of a whole reply until it was written for its client.",
                &["surface"],
                &PART_SECONDS,
            ),
            queue_wait: histogram(
                "sluicegate_queue_wait_seconds",
                "From submission of a job to the start of its run.",
                &["model"],
                &PART_SECONDS,
            ),
            run: histogram("sluicegate_run_seconds", "Run of a batch.", &["model"], &PART_SECONDS),
            run_failures: counter("sluicegate_run_failures_total", "Runs that failed or panicked.", &["model"]),
            replaced: counter(
                "sluicegate_instances_replaced_total",
                "Instances that panicked, or whose run did not end.",
                &["model", "reason"],
            ),
            given_up: gauge("sluicegate_runs_given_up", "Runs that were given up and have not ended.", &["model"]),
            lane_still: add(
                registry,
                GaugeVec::new(
                    Opts::new("sluicegate_lane_still_seconds", "For how long an event loop has not turned."),
                    &["lane"],
                ),
            ),
            moved: counter(
                "sluicegate_models_moved_total",
                "Models that left the lanes for threads.",
                &["model", "reason"],
            ),
            queue_depth: gauge("sluicegate_queue_depth", "Jobs that wait for an instance.", &["model"]),
            batch_size: histogram("sluicegate_batch_size", "Rows of a batch.", &["model"], &ROWS),
            batch_elements: counter(
                "sluicegate_batch_elements_total",
                "Elements of inputs that are filled up: those of callers, and those that fill up.",
                &["model", "kind"],
            ),
            batch_cost: add(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "sluicegate_batch_cost_seconds",
                        "What the scheduler takes a batch to cost, by its rows: powers of two that were seen.",
                    ),
                    &["model", "version", "rows"],
                ),
            ),
            request_bytes: histogram("sluicegate_request_bytes", "Body bytes of a call.", &["surface"], &BYTES),
            response_bytes: histogram("sluicegate_response_bytes", "Body bytes of a reply.", &["surface"], &BYTES),
            connections: gauge(
                "sluicegate_connections",
                "Open connections; without a kind until the first bytes tell it.",
                &["kind"],
            ),
            connections_total: counter(
                "sluicegate_connections_total",
                "Connections and handshakes by what became of them; without a kind if that was not known yet.",
                &["kind", "outcome"],
            ),
            sessions: gauge("sluicegate_sessions", "Open message streams inside connections.", &["surface"]),
            messages: counter(
                "sluicegate_stream_messages_total",
                "Messages of message-oriented surfaces.",
                &["surface", "direction"],
            ),
            shared_limits: gauge(
                "sluicegate_shared_limits_up",
                "1 while limits are counted together with other processes, 0 while each decides by itself.",
                &[],
            ),
            rate_limited: counter(
                "sluicegate_rate_limited_total",
                "Refusals because of the caller's own rate, by the name of the policy; `concurrency` and `address` are built in.",
                &["policy"],
            ),
            overloaded: counter("sluicegate_overloaded_total", "Refusals for lack of room, by limit.", &["limit"]),
            cancelled: counter(
                "sluicegate_cancelled_total",
                "Calls whose client went away, by how far they had come.",
                &["surface", "stage"],
            ),
            config_reload: add(
                registry,
                IntGauge::new("sluicegate_config_reload_success", "Whether the last reload was taken."),
            ),
            config_reload_time: add(
                registry,
                IntGauge::new(
                    "sluicegate_config_reload_timestamp_seconds",
                    "When the configuration in use was taken, since 1970.",
                ),
            ),
            traces: counter("sluicegate_traces_total", "Traced calls by what became of their traces.", &["outcome"]),
            model_state: gauge(
                "sluicegate_model_state",
                "1 for the state that a model version is in, 0 for the others it was in.",
                &["model", "version", "state"],
            ),
            model_load: histogram(
                "sluicegate_model_load_seconds",
                "From reading a model to its first warm run.",
                &["model"],
                &LOAD_SECONDS,
            ),
            model_memory: gauge("sluicegate_model_memory_bytes", "Memory of a model version.", &["model", "version"]),
            model_loads: counter("sluicegate_model_loads_total", "Loads that are over.", &["model", "outcome"]),
            cache_calls: counter(
                "sluicegate_cache_calls_total",
                "Calls of models that keep answers: hit, shared (the run was another call's) or miss.",
                &["model", "outcome"],
            ),
            cache_bytes: gauge(
                "sluicegate_cache_bytes",
                "What the answers that are kept count as, by the version that gave them.",
                &["model", "version"],
            ),
            cache_evictions: counter(
                "sluicegate_cache_evictions_total",
                "Answers that are kept no longer: too old, or for want of room.",
                &["model", "reason"],
            ),
            shadow_calls: counter(
                "sluicegate_shadow_calls_total",
                "Copies of calls by what became of them, by the version that they were for.",
                &["model", "version", "outcome"],
            ),
            shadow_duration: histogram(
                "sluicegate_shadow_duration_seconds",
                "Waiting and running, of calls that were copied and of their copies.",
                &["model", "version", "role"],
                &PART_SECONDS,
            ),
            shadow_difference: histogram(
                "sluicegate_shadow_difference",
                "The largest distance of two numbers in the answers to a call and to its copy.",
                &["model", "version"],
                &DIFFERENCES,
            ),
            shadow_disagreements: counter(
                "sluicegate_shadow_disagreements_total",
                "Copies of calls whose answers differ in more than numbers, by kind.",
                &["model", "version", "kind"],
            ),
            build_info: gauge(
                "sluicegate_build_info",
                "1, with what this program was built from and which ONNX Runtime it loaded.",
                &["version", "commit", "ort_version", "rustc"],
            ),
        }
    }
}

/// Registers `made` and keeps a handle of it.
pub(super) fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let family = made.expect("names and labels of the table are valid; a test makes it");
    registry.register(Box::new(family.clone())).expect("names of the table are unique; a test makes it");
    family
}

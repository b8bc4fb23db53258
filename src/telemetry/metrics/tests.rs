//! What the page says, and what it must never say.

use super::*;
use crate::telemetry::statistics::Spent;
use std::collections::HashSet;

fn key(name: &str) -> Arc<ModelKey> {
    Arc::new(ModelKey { name: name.into(), version: "1".into() })
}

fn spent(micros: u64) -> Spent {
    Spent { infer: Duration::from_micros(micros), ..Spent::default() }
}

fn served(metrics: &Metrics, model: Option<&Arc<ModelKey>>) {
    ended(metrics, model, End::Complete);
}

fn ended(metrics: &Metrics, model: Option<&Arc<ModelKey>>, end: End) {
    let facts = Facts::default();
    if let Some(model) = model {
        facts.model.set(Arc::clone(model)).unwrap();
    }
    facts.queued.set(facts.over());
    metrics.call_started(Surface::Grpc, Intent::Infer);
    metrics.call_ended(Surface::Grpc, Route::GrpcInfer, Intent::Infer, &facts, end, Duration::from_micros(1500));
}

#[track_caller]
fn assert_line(metrics: &Metrics, line: &str) {
    let page = metrics.render();
    assert!(page.lines().any(|found| found == line), "no `{line}` in\n{page}");
}

/// Every sample belongs to the family announced above it, and nothing is announced or counted twice.
#[track_caller]
fn assert_strict(page: &str) {
    let (mut families, mut series) = (HashSet::new(), HashSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} twice");
        } else if let Some(announced) = line.strip_prefix("# TYPE ") {
            kind = announced.strip_prefix(&*family).unwrap().trim().to_owned();
            assert!(["counter", "gauge", "histogram"].contains(&&*kind), "{line}");
            assert!((kind == "counter") == family.ends_with("_total") || family.starts_with("nv_"), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name.to_owned()), "{name} twice");
            let name = name.split('{').next().unwrap();
            let suffix = name.strip_prefix(&*family).unwrap_or_else(|| panic!("{line} under {family}"));
            let allowed: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line}");
        }
    }
}

/// Uses every family once.
fn everything(metrics: &Metrics) {
    let digits = key("digits");
    served(metrics, Some(&digits));
    metrics.chunk(Surface::Rest, Some(&digits), Some(Duration::ZERO));
    metrics.cancelled(Surface::Rest, Stage::Received);
    metrics.overloaded(Limit::Memory);
    metrics.refused("address");
    metrics.body_received(Surface::Rest, 10);
    metrics.body_sent(Surface::Rest, 20);
    metrics.encoded(Surface::Rest, Duration::ZERO);
    metrics.traces("exported", 1);
    metrics.message_received(Surface::WebSocket);
    metrics.message_sent(Surface::WebSocket);
    metrics.build_info("1.32.0");
    metrics.model_state(&digits, "ready");
    metrics.model_loaded(&digits, Duration::from_secs(1));
    metrics.model_memory(&digits, Some(4096));
    drop(metrics.session_opened(Surface::H2Stream));
    drop(metrics.connection_opened());
    metrics.model(&digits).ran(2, 8, Duration::ZERO, spent(40));
}

#[test]
fn a_strict_reader_takes_the_page_empty_and_full() {
    let metrics = Metrics::new();
    assert_strict(&metrics.render());
    everything(&metrics);
    assert_strict(&metrics.render());
}

#[test]
fn the_page_has_every_family_of_the_contract() {
    let metrics = Metrics::new();
    everything(&metrics);
    let page = metrics.render();
    for family in [
        "sluicegate_calls_total",
        "sluicegate_call_duration_seconds",
        "sluicegate_time_to_first_chunk_seconds",
        "sluicegate_calls_in_flight",
        "sluicegate_decode_seconds",
        "sluicegate_encode_seconds",
        "sluicegate_queue_wait_seconds",
        "sluicegate_run_seconds",
        "sluicegate_queue_depth",
        "sluicegate_batch_size",
        "sluicegate_batch_elements_total",
        "sluicegate_request_bytes",
        "sluicegate_response_bytes",
        "sluicegate_connections",
        "sluicegate_connections_total",
        "sluicegate_stream_messages_total",
        "sluicegate_rate_limited_total",
        "sluicegate_overloaded_total",
        "sluicegate_cancelled_total",
        "sluicegate_config_reload_success",
        "sluicegate_model_state",
        "sluicegate_model_load_seconds",
        "sluicegate_model_memory_bytes",
        "sluicegate_build_info",
    ] {
        assert!(page.contains(&format!("# TYPE {family} ")), "{family}");
    }
    #[cfg(target_os = "linux")]
    for family in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(page.contains(&format!("# TYPE {family} ")), "{family}");
    }
}

#[test]
fn calls_are_counted_by_surface_route_code_and_model() {
    let metrics = Metrics::new();
    let digits = key("digits");
    served(&metrics, Some(&digits));
    served(&metrics, Some(&digits));
    served(&metrics, None);
    assert_line(
        &metrics,
        r#"sluicegate_calls_total{code="ok",model="digits",route="/inference.GRPCInferenceService/ModelInfer",surface="grpc"} 2"#,
    );
    assert_line(
        &metrics,
        r#"sluicegate_calls_total{code="ok",model="",route="/inference.GRPCInferenceService/ModelInfer",surface="grpc"} 1"#,
    );
    assert_line(
        &metrics,
        r#"sluicegate_call_duration_seconds_bucket{route="/inference.GRPCInferenceService/ModelInfer",surface="grpc",le="0.0025"} 3"#,
    );
}

#[test]
fn each_end_has_a_place_of_its_own() {
    let mut ends: Vec<_> = Code::ALL.into_iter().map(|code| index(End::Failed(code))).collect();
    ends.push(index(End::Complete));
    ends.sort_unstable();
    assert_eq!(ends, (0..ENDS).collect::<Vec<_>>());
    assert_eq!(index(End::Abandoned), index(End::Failed(Code::Cancelled)));
    assert!(Surface::ALL.into_iter().enumerate().all(|(index, surface)| surface as usize == index));
    let mut doors: Vec<_> = Surface::ALL.into_iter().map(|surface| door(surface, Route::Other)).collect();
    doors.extend(Route::ALL.iter().filter(|route| **route != Route::Other).map(|route| door(Surface::Rest, *route)));
    assert_eq!(doors.iter().copied().collect::<HashSet<_>>().len(), doors.len());
    assert!(doors.into_iter().all(|door| door < DOORS));
}

#[test]
fn a_model_that_was_loaded_again_goes_on_counting_and_the_old_key_is_let_go() {
    let metrics = Metrics::new();
    let old = key("digits");
    served(&metrics, Some(&old));
    let gone = Arc::downgrade(&old);
    drop(old);
    let new = key("digits");
    // A thread lets go of what it saw when it looks again.
    for _ in 0..2 {
        served(&metrics, Some(&new));
    }
    assert_line(
        &metrics,
        r#"sluicegate_calls_total{code="ok",model="digits",route="/inference.GRPCInferenceService/ModelInfer",surface="grpc"} 3"#,
    );
    assert_eq!(metrics.models.get().len(), 1);
    assert!(gone.upgrade().is_none());
}

#[test]
fn a_model_name_with_quotes_and_backslashes_is_escaped() {
    let metrics = Metrics::new();
    served(&metrics, Some(&key("a\"b\\c")));
    assert_strict(&metrics.render());
    assert!(metrics.render().contains(r#"model="a\"b\\c""#));
}

#[test]
fn a_connection_is_counted_once_whatever_it_becomes() {
    let metrics = Metrics::new();
    let mut connection = metrics.connection_opened();
    assert_line(&metrics, r#"sluicegate_connections{kind=""} 1"#);
    metrics.connection_is(&mut connection, Kind::Http2);
    assert_line(&metrics, r#"sluicegate_connections{kind=""} 0"#);
    assert_line(&metrics, r#"sluicegate_connections{kind="http2"} 1"#);
    drop(connection);
    assert_line(&metrics, r#"sluicegate_connections{kind="http2"} 0"#);
    let socket = metrics.session_opened(Surface::WebSocket);
    assert_line(&metrics, r#"sluicegate_connections{kind="websocket"} 1"#);
    drop(socket);
    assert_line(&metrics, r#"sluicegate_connections{kind="websocket"} 0"#);
}

#[test]
fn a_model_is_in_one_state_at_a_time() {
    let metrics = Metrics::new();
    let digits = key("digits");
    metrics.model_state(&digits, "loading");
    metrics.model_state(&digits, "ready");
    assert_line(&metrics, r#"sluicegate_model_state{model="digits",state="loading",version="1"} 0"#);
    assert_line(&metrics, r#"sluicegate_model_state{model="digits",state="ready",version="1"} 1"#);
}

#[test]
fn what_schedulers_report_stands_under_their_model() {
    let metrics = Metrics::new();
    let model = metrics.model(&key("digits"));
    model.queue_changed(3);
    model.queue_changed(-1);
    model.waited(Duration::from_micros(20));
    model.ran(2, 8, Duration::ZERO, spent(40));
    model.failed();
    assert_line(&metrics, r#"sluicegate_queue_depth{model="digits"} 2"#);
    assert_line(&metrics, r#"sluicegate_queue_wait_seconds_bucket{model="digits",le="0.000025"} 1"#);
    assert_line(&metrics, r#"sluicegate_batch_size_bucket{model="digits",le="8"} 1"#);
    assert_line(&metrics, r#"sluicegate_batch_size_bucket{model="digits",le="4"} 0"#);
    assert_line(&metrics, r#"sluicegate_run_failures_total{model="digits"} 1"#);
}

#[test]
fn limits_that_refuse_are_named() {
    let metrics = Metrics::new();
    metrics.call_refused(&Error::Overloaded { limit: Limit::Inspect });
    metrics.call_refused(&Error::Overloaded { limit: Limit::Queue });
    metrics.call_refused(&Error::RateLimited { retry_after: Duration::ZERO, cap: crate::error::Cap::Calls });
    metrics.refused("address");
    assert_line(&metrics, r#"sluicegate_overloaded_total{limit="inspect"} 1"#);
    assert_line(&metrics, r#"sluicegate_overloaded_total{limit="queue"} 1"#);
    for limit in Limit::ALL {
        metrics.call_refused(&Error::Overloaded { limit });
    }
    assert_line(&metrics, r#"sluicegate_overloaded_total{limit="decoding"} 1"#);
    assert_line(&metrics, r#"sluicegate_overloaded_total{limit="ensemble"} 1"#);
    let page = metrics.render();
    let counted: Vec<_> = page.lines().filter(|line| line.starts_with("sluicegate_overloaded_total{")).collect();
    assert_eq!(counted.len(), Limit::ALL.len(), "each is named: {counted:?}");
    assert_line(&metrics, r#"sluicegate_rate_limited_total{policy="concurrency"} 1"#);
    assert_line(&metrics, r#"sluicegate_rate_limited_total{policy="address"} 1"#);
}

fn nv() -> Metrics {
    Metrics::with(Settings { nv_view: true, by_identity: true })
}

#[test]
fn a_strict_reader_takes_what_has_to_be_asked_for_too() {
    let metrics = nv();
    assert_strict(&metrics.render());
    everything(&metrics);
    assert_strict(&metrics.render());
}

#[test]
fn failures_have_each_reason_from_the_start_and_statistics_say_the_same() {
    let metrics = nv();
    let digits = key("digits");
    let model = metrics.model(&digits);
    for reason in ["REJECTED", "CANCELED", "BACKEND", "OTHER"] {
        let line = format!("nv_inference_request_failure{{model=\"digits\",version=\"1\",reason=\"{reason}\"}} 0");
        assert_line(&metrics, &line);
    }
    assert_line(&metrics, r#"nv_inference_count{model="digits",version="1"} 0"#);
    for end in [End::Complete, End::Complete, End::Abandoned, End::Failed(Code::Overloaded)] {
        ended(&metrics, Some(&digits), end);
    }
    model.ran(2, 8, Duration::from_micros(30), spent(40));
    model.queue_changed(1);
    let report = model.statistics().report(&digits);
    for (line, value) in [
        (r#"nv_inference_request_success{model="digits",version="1"}"#, report.success.count),
        (r#"nv_inference_request_duration_us{model="digits",version="1"}"#, report.success.nanos / 1000),
        (r#"nv_inference_queue_duration_us{model="digits",version="1"}"#, report.queue.nanos / 1000),
        (r#"nv_inference_compute_infer_duration_us{model="digits",version="1"}"#, report.compute_infer.nanos / 1000),
        (r#"nv_inference_count{model="digits",version="1"}"#, 8),
        (r#"nv_inference_exec_count{model="digits",version="1"}"#, 1),
        (r#"nv_inference_pending_request_count{model="digits",version="1"}"#, 1),
        (r#"nv_inference_request_failure{model="digits",version="1",reason="CANCELED"}"#, 1),
        (r#"nv_inference_request_failure{model="digits",version="1",reason="REJECTED"}"#, 1),
    ] {
        assert_line(&metrics, &format!("{line} {value}"));
    }
    assert_eq!(report.success.count + report.fail.count, 4, "all that came");
}

#[test]
fn a_models_series_of_triton_come_with_it_and_go_with_it() {
    let metrics = nv();
    let series = |metrics: &Metrics| metrics.render().matches("nv_inference_count{").count();
    assert_eq!(series(&metrics), 0);
    let old = key("digits");
    let held = metrics.model(&old);
    metrics.model_loaded(&old, Duration::from_millis(1500));
    assert_line(&metrics, r#"nv_model_load_duration_secs{model="digits",version="1"} 1.5"#);
    held.ran(1, 1, Duration::ZERO, spent(1));
    // Loaded again while calls still run on the old one: one series, the new one's.
    let new = key("digits");
    metrics.model(&new);
    assert_strict(&metrics.render());
    assert_line(&metrics, r#"nv_inference_count{model="digits",version="1"} 0"#);
    drop((old, held));
    assert_eq!(series(&metrics), 1);
    drop(new);
    assert_eq!(series(&metrics), 0);
}

#[test]
fn without_being_asked_for_there_is_nothing_of_triton_and_nobodys_name() {
    let metrics = Metrics::new();
    everything(&metrics);
    let page = metrics.render();
    assert!(!page.contains("nv_") && !page.contains("identity"), "{page}");
}

/// OpenMetrics 1.0 as far as contract 09 section 1 has it.
#[track_caller]
fn assert_open(page: &str) {
    let (mut series, mut families) = (HashSet::new(), HashSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    assert!(page.ends_with("# EOF\n") && page.matches("# EOF").count() == 1);
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "{family} twice");
        } else if let Some(announced) = line.strip_prefix("# TYPE ") {
            kind = announced.strip_prefix(&*family).unwrap().trim().to_owned();
            assert!(!(kind == "counter" && family.ends_with("_total")), "{line}");
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let unit = unit.strip_prefix(&*family).unwrap().trim();
            assert!(family.ends_with(&format!("_{unit}")), "{line}");
        } else if line != "# EOF" {
            let (sample, exemplar) = line.split_once(" # ").map_or((line, None), |(sample, it)| (sample, Some(it)));
            let (name, value) = sample.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok() && series.insert(name.to_owned()), "{line}");
            let suffix = name.split('{').next().unwrap().strip_prefix(&*family).unwrap();
            let allowed: &[&str] = match &*kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "gauge" | "unknown" => &[""],
                other => panic!("{other}"),
            };
            assert!(allowed.contains(&suffix), "{line}");
            assert!(exemplar.is_none_or(|exemplar| exemplar.starts_with("{trace_id=\"") && suffix == "_bucket"));
        }
    }
}

#[test]
fn openmetrics_is_strict_too_and_names_a_traced_call() {
    struct Nowhere;
    impl crate::call::trace::Sink for Nowhere {
        fn complete(&self, _: crate::call::trace::Record) {}
    }
    let metrics = nv();
    everything(&metrics);
    let held = key("held");
    metrics.model(&held);
    let call = crate::layer::fixture::decoded("a", crate::layer::fixture::infer());
    let trace = crate::call::trace::Trace::of(&call.head, Arc::new(Nowhere));
    let id = trace.id();
    let facts = &call.head.facts;
    facts.trace.set(Box::new(trace)).unwrap();
    metrics.call_started(Surface::Rest, Intent::Infer);
    metrics.call_ended(Surface::Rest, Route::Infer, Intent::Infer, facts, End::Complete, Duration::from_millis(3));
    let page = metrics.page(Format::OpenMetrics);
    assert_open(&page);
    assert!(page.contains("\nnv_inference_count{"), "the name of Triton stays: {page}");
    let line = page.lines().find(|line| line.contains(&id.to_string())).unwrap();
    assert!(line.starts_with("sluicegate_call_duration_seconds_bucket") && line.contains(r#"le="0.005""#), "{line}");
    assert_eq!(page.matches("trace_id").count(), 1);
    assert!(!metrics.render().contains("trace_id"), "text has no exemplars");
}

#[test]
fn what_was_read_well_does_not_hide_what_is_broken() {
    let metrics = Metrics::new();
    let shows = |success: &str| assert_line(&metrics, &format!("sluicegate_config_reload_success {success}"));
    shows("1");
    metrics.config_file_reloaded(false);
    metrics.config_reloaded(true);
    shows("0");
    metrics.config_file_reloaded(true);
    shows("1");
    metrics.config_reloaded(false);
    shows("0");
}

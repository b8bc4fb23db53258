//! Traces as a collector receives them: whose they are, what they are made of, and that nothing waits for it.

use crate::support::{
    Running, Setup,
    client::{Client, Ndjson, Request, grpc, http_request, http1, next_json, websocket},
    double_tensor,
};
use futures_util::SinkExt;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value as Any,
    trace::v1::Span,
};
use serde_json::{Value, json};
use sluicegate::{backend::ort::Runtime, call::Surface};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Somebody who takes OTLP over gRPC.
#[derive(Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans;
        for resource in resources {
            let attributes = resource.resource.expect("who sends").attributes;
            assert!(attributes.iter().any(|attribute| attribute.key == "service.name"));
            self.0.lock().unwrap().extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

impl Collector {
    pub async fn start() -> (Self, SocketAddr) {
        let (collector, listener) = (Self::default(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let incoming = futures_util::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        (collector, address)
    }

    /// The spans of `trace`, once there are `count`.
    async fn spans(&self, trace: &str, count: usize) -> Vec<Span> {
        let started = Instant::now();
        loop {
            let all = self.0.lock().unwrap().clone();
            let found: Vec<_> = all.iter().filter(|span| hex(&span.trace_id) == trace).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let names: Vec<_> = all.iter().map(|span| (hex(&span.trace_id), span.name.clone())).collect();
            assert!(started.elapsed() < Duration::from_secs(20), "only {names:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everything, as text.
    pub fn text(&self) -> String {
        format!("{:?}", self.0.lock().unwrap())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parent(trace: &str) -> String {
    format!("00-{trace}-{PARENT}-01")
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
}

fn attribute(span: &Span, key: &str) -> Value {
    let found = span.attributes.iter().find(|attribute| attribute.key == key).unwrap_or_else(|| panic!("no {key}"));
    match found.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        other => panic!("{other:?}"),
    }
}

fn setup(collector: SocketAddr, sample: &str) -> Setup {
    Setup::new().yaml(&format!("telemetry: {{ otlp: {{ endpoint: \"http://{collector}\", sample: {sample} }} }}"))
}

#[tokio::test]
async fn one_trace_runs_from_a_websocket_message_to_the_run_of_onnx() {
    let (collector, address) = Collector::start().await;
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let running = setup(address, "0").start_with(&models, Arc::new(runtime), Vec::new()).await;
    let mut socket = websocket(&running, None).await.unwrap();
    let message = json!({
        "type": "infer", "id": "a", "model": "digits", "trace": { "traceparent": parent(TRACE) },
        "inputs": [{ "name": "image", "datatype": "FP32", "shape": [1, 64], "data": vec![0.5; 64] }],
    });
    socket.send(Message::text(message.to_string())).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "output");

    let spans = collector.spans(TRACE, 5).await;
    let call = named(&spans, "/v1/ws");
    assert_eq!(hex(&call.parent_span_id), PARENT, "the client's own span waits for it");
    assert_eq!(attribute(call, "sluicegate.model"), "digits");
    assert_eq!(attribute(call, "sluicegate.surface"), "websocket");
    assert_eq!(attribute(call, "sluicegate.code"), "ok");
    let mut at = call.start_time_unix_nano;
    for name in ["decode", "queue", "run", "encode"] {
        let span = named(&spans, name);
        assert_eq!(span.parent_span_id, call.span_id, "{name}");
        assert!(span.start_time_unix_nano >= at && span.end_time_unix_nano >= span.start_time_unix_nano, "{name}");
        at = span.start_time_unix_nano;
    }
    assert_eq!(
        (attribute(named(&spans, "run"), "rows"), attribute(named(&spans, "run"), "jobs")),
        (json!(1), json!(1))
    );
    assert_eq!(spans.len(), 5, "{spans:#?}");
}

#[tokio::test]
async fn each_step_of_an_ensemble_has_a_span_within_that_of_the_call() {
    let (collector, address) = Collector::start().await;
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ensemble/models");
    let running = setup(address, "0").start_with(&models, Arc::new(runtime), Vec::new()).await;
    let body = json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [1], "data": ["a text"] }] });
    let mut request = http_request(&running, "POST", "/v2/models/embed/infer", None, body.to_string());
    request.headers_mut().insert("traceparent", parent(TRACE).parse().unwrap());
    assert_eq!(http1(&running, request).await.status(), 200);

    // The call, its parts, three built-in steps, and one of a model with its queue and its run.
    let spans = collector.spans(TRACE, 8).await;
    let call = named(&spans, "/v2/models/{model}/infer");
    assert_eq!(attribute(call, "sluicegate.model"), "embed");
    let builtin: Vec<_> = spans.iter().filter(|span| span.name == "builtin").collect();
    assert_eq!(builtin.len(), 3, "{spans:#?}");
    let step = named(&spans, "step");
    for span in builtin.iter().copied().chain([step]) {
        assert_eq!(span.parent_span_id, call.span_id);
        assert!(span.start_time_unix_nano >= call.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= call.end_time_unix_nano);
    }
    assert_eq!(attribute(step, "sluicegate.model"), "encoder");
    for name in ["queue", "run"] {
        assert_eq!(named(&spans, name).parent_span_id, step.span_id, "{name}");
    }
}

#[tokio::test]
async fn the_steps_of_an_ensemble_are_spans_of_its_call_with_spans_of_their_own() {
    let (collector, address) = Collector::start().await;
    let setup = setup(address, "0");
    let folder = setup.folder().join("models/both");
    std::fs::create_dir_all(&folder).unwrap();
    let yaml = "ensemble:\n  steps:\n    - { model: double, inputs: { x: x }, outputs: { y: z } }\n    \
                - { model: slow, inputs: { x: z }, outputs: { y: y } }\n";
    std::fs::write(folder.join("model.yaml"), yaml).unwrap();
    let running = setup.start().await;
    for (place, surface) in Surface::ALL.into_iter().enumerate() {
        let trace = format!("{:032x}", 0xdef0 + place);
        call_with_context(&running, surface, &trace, "both").await;
        // The call with its own decode and encode, and two steps that decode, wait and run.
        let spans = collector.spans(&trace, 3 + 2 * 4).await;
        let call = spans.iter().find(|span| hex(&span.parent_span_id) == PARENT).unwrap();
        assert_eq!(attribute(call, "sluicegate.model"), "both", "{surface:?}");
        let steps: Vec<_> = spans
            .iter()
            .filter(|span| span.parent_span_id == call.span_id)
            .filter(|span| span.attributes.iter().any(|attribute| attribute.key == "sluicegate.model"))
            .collect();
        let models: BTreeSet<_> = steps.iter().map(|step| attribute(step, "sluicegate.model").to_string()).collect();
        assert_eq!(models, BTreeSet::from(["\"double\"".to_owned(), "\"slow\"".to_owned()]), "{surface:?}: {spans:#?}");
        for step in steps {
            assert_eq!(attribute(step, "sluicegate.code"), "ok", "{surface:?}");
            let parts: BTreeSet<_> =
                spans.iter().filter(|span| span.parent_span_id == step.span_id).map(|span| &*span.name).collect();
            assert!(parts.is_superset(&BTreeSet::from(["queue", "run"])), "{surface:?}: {parts:?}");
            let within = |span: &Span| {
                span.start_time_unix_nano >= call.start_time_unix_nano
                    && span.end_time_unix_nano <= call.end_time_unix_nano
            };
            assert!(within(step), "{surface:?}: {step:#?} in {call:#?}");
        }
    }
}

/// One call of `model` on each surface, with a context where that surface has its place for one.
async fn call_with_context(running: &Running, surface: Surface, trace: &str, model: &str) {
    let request = Request::new(model, &[1, 4], vec![1.0; 4]);
    match surface {
        Surface::Rest => {
            let body = json!({ "inputs": double_tensor() }).to_string();
            let mut http = http_request(running, "POST", &format!("/v2/models/{model}/infer"), None, body);
            http.headers_mut().insert("traceparent", parent(trace).parse().unwrap());
            assert_eq!(http1(running, http).await.status(), 200);
        }
        Surface::Grpc => {
            let mut message = tonic::Request::new(request.proto());
            message.metadata_mut().insert("traceparent", parent(trace).parse().unwrap());
            grpc(running).await.model_infer(message).await.unwrap();
        }
        Surface::WebSocket => {
            let mut socket = crate::support::client::websocket_upgrade(running, None).await.unwrap();
            // Once for the whole session, in its hello.
            let hello = json!({ "type": "hello", "protocol": 1, "trace": { "traceparent": parent(trace) } });
            let infer = json!({ "type": "infer", "id": "a", "model": model, "inputs": double_tensor() });
            for message in [hello, infer] {
                socket.send(Message::text(message.to_string())).await.unwrap();
            }
            while next_json(&mut socket).await.unwrap()["type"] != "output" {}
        }
        Surface::H2Stream => {
            let mut stream = Ndjson::open(running, None).await.unwrap();
            let trace = json!({ "traceparent": parent(trace) });
            let line = json!({ "type": "infer", "id": "a", "model": model, "inputs": double_tensor(), "trace": trace });
            stream.send(&line).await;
            assert_eq!(stream.next().await.unwrap()["type"], "output");
        }
    }
}

#[tokio::test]
async fn every_surface_takes_the_context_of_its_caller() {
    let (collector, address) = Collector::start().await;
    let running = setup(address, "0").start().await;
    for (place, surface) in Surface::ALL.into_iter().enumerate() {
        let trace = format!("{:032x}", 0xabc0 + place);
        call_with_context(&running, surface, &trace, "double").await;
        let spans = collector.spans(&trace, 5).await;
        let call = spans.iter().find(|span| span.name.starts_with('/')).unwrap();
        assert_eq!(attribute(call, "sluicegate.surface"), surface.name());
        assert_eq!(hex(&call.parent_span_id), PARENT, "{surface:?}");
        let names: BTreeSet<_> = spans.iter().filter(|span| *span != call).map(|span| span.name.as_str()).collect();
        assert_eq!(names, BTreeSet::from(["decode", "encode", "queue", "run"]), "{surface:?}");
    }
    running.until("they are counted", |page| page.contains("sluicegate_traces_total{outcome=\"exported\"} ")).await;
    let page = running.metrics().await;
    assert!(!page.contains("outcome=\"dropped\""), "{page}");
}

#[tokio::test]
async fn calls_that_ran_together_are_linked_and_a_failed_one_says_why() {
    let (collector, address) = Collector::start().await;
    let running = setup(address, "0").start().await;
    let holder = running.hold("held").await;
    let traces = [1, 2].map(|number| format!("{number:032x}"));
    let calls = traces.clone().map(|trace| {
        let running = running.clone();
        tokio::spawn(async move {
            let body = json!({ "inputs": double_tensor() }).to_string();
            let mut http = http_request(&running, "POST", "/v2/models/held/infer", None, body);
            http.headers_mut().insert("traceparent", parent(&trace).parse().unwrap());
            http1(&running, http).await.status()
        })
    });
    running.until("both wait", |page| page.contains("sluicegate_queue_depth{model=\"held\"} 2")).await;
    holder.release().await;
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    let [first, second] = [collector.spans(&traces[0], 5).await, collector.spans(&traces[1], 5).await];
    let (with_batch, other) = if first.len() > second.len() { (first, second) } else { (second, first) };
    let batch = named(&with_batch, "batch");
    let call = |spans: &[Span]| named(spans, "/v2/models/{model}/infer").span_id.clone();
    let linked: BTreeSet<_> = batch.links.iter().map(|link| link.span_id.clone()).collect();
    assert_eq!(linked, BTreeSet::from([call(&with_batch), call(&other)]));
    assert_eq!(attribute(batch, "jobs"), 2);
    for spans in [&with_batch, &other] {
        assert_eq!(named(spans, "run").links[0].span_id, batch.span_id);
    }

    let trace = format!("{:032x}", 3);
    let mut http = http_request(&running, "POST", "/v2/models/none/infer", None, "{\"inputs\":[]}");
    http.headers_mut().insert("traceparent", parent(&trace).parse().unwrap());
    assert_eq!(http1(&running, http).await.status(), 404);
    let spans = collector.spans(&trace, 1).await;
    assert_eq!(attribute(&spans[0], "sluicegate.code"), "not_found");
    assert_eq!(spans[0].status.as_ref().unwrap().message, "not_found");
}

#[tokio::test]
async fn a_share_is_traced_without_a_context_and_a_malformed_one_is_nobodys() {
    let (collector, address) = Collector::start().await;
    let running = setup(address, "1").start().await;
    let body = json!({ "inputs": double_tensor() }).to_string();
    let mut http = http_request(&running, "POST", "/v2/models/double/infer", None, body);
    http.headers_mut().insert("traceparent", "00-zz".parse().unwrap());
    assert_eq!(http1(&running, http).await.status(), 200);
    running.until("it is sent", |page| page.contains("sluicegate_traces_total{outcome=\"exported\"} 1")).await;
    assert!(collector.text().contains("/v2/models/{model}/infer"));
    assert!(collector.0.lock().unwrap().iter().any(|span| span.parent_span_id.is_empty()));
}

#[tokio::test]
async fn the_last_traces_are_sent_before_the_end() {
    let (collector, address) = Collector::start().await;
    let running = setup(address, "1").yaml("drain: { delay: 10ms, timeout: 1s }").start().await;
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    client.infer(&Request::new("double", &[1, 4], vec![1.0; 4])).await.unwrap();
    running.drain().over().await;
    assert!(collector.text().contains("/v2/models/{model}/infer"), "{}", collector.text());
}

#[tokio::test]
async fn a_collector_that_is_away_costs_traces_and_nothing_else() {
    // A port that nobody listens on: bound, and let go of.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = setup(address, "1").start().await;
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    for _ in 0..50 {
        client.infer(&Request::new("double", &[1, 4], vec![1.0; 4])).await.unwrap();
    }
    running.until("they are counted", |page| page.contains("sluicegate_traces_total{outcome=\"failed\"}")).await;
}

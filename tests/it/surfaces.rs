//! What is peculiar to one surface, end to end.

use crate::support::{
    KEY, Setup,
    client::{Client, Ndjson, Request, grpc, http_request, http1, next_json, websocket, websocket_upgrade},
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference};
use std::collections::BTreeSet;
use tokio_tungstenite::tungstenite::Message;

fn infer(id: &str, model: &str) -> Value {
    json!({ "type": "infer", "id": id, "model": model,
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4] }] })
}

#[tokio::test]
async fn probes_answer_json_and_head() {
    let running = Setup::new().start().await;
    for (path, body) in [
        ("/", r#"{"status":"alive"}"#),
        ("/v2/health/live", r#"{"live":true}"#),
        ("/v2/health/ready", r#"{"ready":true}"#),
    ] {
        let response = http1(&running, http_request(&running, "GET", path, None, "")).await;
        assert_eq!((response.status().as_u16(), &response.body()[..]), (200, body.as_bytes()), "{path}");
        let response = http1(&running, http_request(&running, "HEAD", path, None, "")).await;
        assert_eq!((response.status().as_u16(), response.body().len()), (200, 0), "{path}");
    }
}

#[tokio::test]
async fn metadata_is_the_same_over_rest_and_grpc() {
    let running = Setup::new().start().await;
    let response = http1(&running, http_request(&running, "GET", "/v2/models/double", None, "")).await;
    let rest: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(rest["inputs"], json!([{ "name": "x", "datatype": "FP32", "shape": [-1, 4] }]));
    let mut client = grpc(&running).await;
    let request = inference::ModelMetadataRequest { name: "double".into(), version: String::new() };
    let message = client.model_metadata(request).await.unwrap().into_inner();
    assert_eq!(json!(message.versions), rest["versions"]);
    assert_eq!(json!(message.platform), rest["platform"]);
    assert_eq!(message.inputs[0].shape, [-1, 4]);
    for path in ["/v2", "/v2/"] {
        let response = http1(&running, http_request(&running, "GET", path, None, "")).await;
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["name"], "sluicegate");
        assert!(body["extensions"].is_array());
    }
}

#[tokio::test]
async fn one_websocket_carries_many_requests_and_every_id_ends_once() {
    let running = Setup::new().yaml("limits: { concurrency: { per_socket: 1000 } }").start().await;
    let (mut sink, mut stream) = websocket(&running, None).await.unwrap().split();
    let sender = tokio::spawn(async move {
        for index in 0..1000 {
            let message = json!({ "type": "infer", "id": format!("r{index}"), "model": "double",
                "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [index, 0, 0, 0] }] });
            sink.send(Message::text(message.to_string())).await.unwrap();
        }
        sink
    });
    let mut seen = BTreeSet::new();
    while seen.len() < 1000 {
        let Some(Ok(Message::Text(text))) = stream.next().await else { panic!("a message") };
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message["type"], "output", "{message}");
        let id = message["id"].as_str().unwrap().to_owned();
        let index: f64 = id[1..].parse().unwrap();
        assert_eq!(message["outputs"][0]["data"][0].as_f64(), Some(2.0 * index));
        assert!(seen.insert(id), "two terminal messages for one id");
    }
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn a_streaming_model_streams_on_streaming_surfaces() {
    let running = Setup::new().start().await;
    let mut socket = websocket(&running, None).await.unwrap();
    let mut message = infer("s", "stream");
    message["stream"] = json!(true);
    socket.send(Message::text(message.to_string())).await.unwrap();
    let mut seqs = Vec::new();
    loop {
        let message = next_json(&mut socket).await.unwrap();
        match message["type"].as_str() {
            Some("output") => seqs.push(message["seq"].as_u64().unwrap()),
            Some("done") => break,
            _ => panic!("{message}"),
        }
        if message["final"] == true {
            break;
        }
    }
    assert_eq!(seqs, [0, 1, 2]);

    let mut stream = Ndjson::open(&running, None).await.unwrap();
    stream.send(&message).await;
    let mut outputs = 0;
    loop {
        let line = stream.next().await.unwrap();
        outputs += u32::from(line["type"] == "output");
        if line["type"] == "done" || line["final"] == true {
            break;
        }
    }
    assert_eq!(outputs, 3);

    let request = Request::new("stream", &[1, 4], vec![0.0; 4]).proto();
    let mut client = grpc(&running).await;
    let mut answers = client.model_stream_infer(tokio_stream::iter([request])).await.unwrap().into_inner();
    let mut outputs = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.error_message, "");
        outputs += 1;
    }
    assert!(outputs >= 3, "{outputs}");

    // A unary surface cannot carry three answers, and says so.
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    let refused = client.infer(&Request::new("stream", &[1, 4], vec![0.0; 4])).await.unwrap_err();
    assert_eq!(refused.code, "unimplemented");
}

#[tokio::test]
async fn an_ndjson_stream_is_full_duplex_and_its_last_line_is_the_truth() {
    let running = Setup::new().start().await;
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    for round in 0..3 {
        // The next line is sent only after the answer to the one before.
        stream.send(&infer(&format!("r{round}"), "double")).await;
        assert_eq!(stream.next().await.unwrap()["id"], format!("r{round}"));
    }
    stream.finish();
    let last = stream.next().await.unwrap();
    assert_eq!(last, json!({ "type": "done", "id": null, "requests": 3, "errors": 0 }));
    assert!(stream.next().await.is_none());
    assert_eq!(stream.trailers.unwrap()["x-stream-status"], "ok");
}

#[tokio::test]
async fn a_grpc_stream_says_errors_of_one_message_in_band() {
    let running = Setup::new().start().await;
    let good = |id: &str| inference::ModelInferRequest {
        model_name: "double".into(),
        id: id.into(),
        inputs: vec![inference::model_infer_request::InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1, 4],
            ..Default::default()
        }],
        raw_input_contents: vec![vec![0; 16].into()],
        ..Default::default()
    };
    let bad = inference::ModelInferRequest { model_name: "nobody".into(), ..good("bad") };
    let mut client = grpc(&running).await;
    let mut answers =
        client.model_stream_infer(tokio_stream::iter([good("a"), bad, good("b")])).await.unwrap().into_inner();
    let (mut ok, mut failed) = (0, 0);
    while let Some(answer) = answers.message().await.unwrap() {
        if answer.error_message.is_empty() { ok += 1 } else { failed += 1 }
    }
    assert_eq!((ok, failed), (2, 1));
}

#[tokio::test]
async fn a_browser_brings_its_key_in_hello_or_in_a_subprotocol() {
    use base64::Engine;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let running = Setup::new().with_key().start().await;

    let mut socket = websocket_upgrade(&running, None).await.expect("101, the key comes later");
    let hello = json!({ "type": "hello", "protocol": 1, "auth": { "scheme": "bearer", "token": KEY } });
    socket.send(Message::text(hello.to_string())).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "welcome");

    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(KEY);
    let mut request = format!("ws://{}/v1/ws", running.address).into_client_request().unwrap();
    let offered = format!("sluicegate.v1, sluicegate.bearer.{token}");
    request.headers_mut().insert("sec-websocket-protocol", offered.parse().unwrap());
    let stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "sluicegate.v1", "the token is never echoed");
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "welcome");
    socket.send(Message::text(infer("a", "double").to_string())).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "output");
}

#[tokio::test]
async fn the_request_id_comes_back_on_every_answer() {
    let running = Setup::new().start().await;
    let mut request = http_request(&running, "GET", "/v2/models/nobody", None, "");
    request.headers_mut().insert("x-request-id", "mine-1".parse().unwrap());
    let response = http1(&running, request).await;
    assert_eq!(response.headers()["x-request-id"], "mine-1");
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(body["request_id"], "mine-1");

    let mut request =
        tonic::Request::new(inference::ModelMetadataRequest { name: "nobody".into(), ..Default::default() });
    request.metadata_mut().insert("x-request-id", "mine-2".parse().unwrap());
    let status = grpc(&running).await.model_metadata(request).await.unwrap_err();
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "mine-2");
}

#[tokio::test]
async fn metrics_count_calls_of_every_surface_with_the_same_codes() {
    let running = Setup::new().start().await;
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        client.infer(&Request::new("double", &[1, 4], vec![0.0; 4])).await.unwrap();
        client.infer(&Request::new("nobody", &[1, 4], vec![0.0; 4])).await.unwrap_err();
    }
    let page = running.metrics().await;
    for surface in Surface::ALL {
        for code in ["ok", "not_found"] {
            let found = page.lines().any(|line| {
                line.starts_with("sluicegate_calls_total{")
                    && line.contains(&format!("surface=\"{}\"", surface.name()))
                    && line.contains(&format!("code=\"{code}\""))
            });
            assert!(found, "{surface:?} {code} is not in\n{page}");
        }
    }
    assert!(!page.contains("nobody"), "a client's bytes became a label");
    for series in [
        "sluicegate_model_state{model=\"double\",state=\"ready\",version=\"1\"} 1",
        "sluicegate_model_state{model=\"corrupt\",state=\"failed\",version=\"1\"} 1",
        "sluicegate_model_load_seconds_count{model=\"double\"} 1",
        "sluicegate_connections{kind=\"http2\"}",
        "sluicegate_queue_wait_seconds_count{model=\"double\"} 4",
    ] {
        assert!(page.contains(series), "no {series} in\n{page}");
    }
}

#[tokio::test]
async fn a_call_has_one_body_in_and_one_body_out() {
    let running = Setup::new().start().await;
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        client.infer(&Request::new("double", &[1, 4], vec![0.0; 4])).await.unwrap();
        let page = running.metrics().await;
        for family in ["sluicegate_request_bytes", "sluicegate_response_bytes"] {
            let count = format!("{family}_count{{surface=\"{}\"}} 1\n", surface.name());
            assert!(page.contains(&count), "no {count} in\n{page}");
            let none = format!("{family}_sum{{surface=\"{}\"}} 0\n", surface.name());
            assert!(!page.contains(&none), "{none} in\n{page}");
        }
    }
}

#[tokio::test]
async fn readiness_names_the_models_that_are_not_served_and_why() {
    let running = Setup::new().start().await;
    let admin = running.at_admin();
    let response = http1(&admin, http_request(&admin, "GET", "/readyz", None, "")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(&response.body()[..], b"ready\nnot served: corrupt/1: not a model\n");
}

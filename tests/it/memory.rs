//! What waits is counted by the memory budget, however it came in: not only while it is read, and as large as it became.

use crate::support::{
    Running, Setup,
    client::{Ndjson, Request, http_request, http1, next_json, websocket},
    ways::{Caller, Way, every_way},
};
use futures_util::SinkExt;
use prost::Message as _;
use serde_json::json;
use sluicegate::wire::proto::inference::{InferTensorContents, ModelInferRequest};
use std::{future::Future, time::Duration};
use tokio_tungstenite::tungstenite::Message;

/// Rows of four floats: 250,000 bytes, as a tensor and as text.
const ROWS: usize = 15_625;

/// What four of them take.
const FOUR: usize = 1 << 20;

fn floats() -> Vec<f32> {
    vec![0.0; 4 * ROWS]
}

/// Four wait for a model that is held, and a fifth is refused until they are gone. `ask` says with which code.
async fn four_wait<F>(ask: impl Fn(Running) -> F)
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    four_wait_in(FOUR, ask).await;
}

/// The same in so much memory.
async fn four_wait_in<F>(memory: usize, ask: impl Fn(Running) -> F)
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let limits =
        format!("limits: {{ size: {{ body: 300KiB, message: 300KiB }}, concurrency: {{ memory: {memory}B }} }}");
    let running = Setup::new().yaml(&format!("{limits}\nrest: {{ predict: {{ model: held }} }}")).start().await;
    let holder = running.hold("held").await;
    let mut waiting = Vec::new();
    for waits in 1..=4 {
        waiting.push(tokio::spawn(ask(running.clone())));
        let depth = format!("sluicegate_queue_depth{{model=\"held\"}} {waits}\n");
        running.until("it waits", |metrics| metrics.contains(&depth)).await;
    }
    let refused = tokio::time::timeout(Duration::from_secs(20), ask(running.clone())).await;
    let refused = refused.expect("a fifth does not wait").expect_err("there is no room for a fifth");
    assert!(refused.contains("overloaded"), "{refused}");
    let page = running.metrics().await;
    assert!(page.contains("sluicegate_overloaded_total{limit=\"memory\"} 1\n"), "{page}");
    holder.release().await;
    for call in waiting {
        // As text, four answers at once may have no room either.
        let _ = call.await.unwrap();
    }
    ask(running).await.expect("what is over is counted no more");
}

async fn by(way: Way) {
    four_wait(|running| async move {
        let mut caller = Caller::open(way, &running, None).await.map_err(|said| said.text)?;
        caller.ask(&Request::new("held", &[ROWS, 4], floats())).await.map_err(|said| said.text)
    })
    .await;
}

/// A call alone, in memory for its input or its answer and not for both.
async fn alone(way: Way) {
    let memory = match way {
        Way::Grpc | Way::GrpcStream | Way::GrpcWeb => 400_000,
        // As text an answer is taken to be twice as long.
        Way::Rest | Way::WebSocket | Way::Ndjson | Way::Sse => 600_000,
    };
    let limits =
        format!("limits: {{ size: {{ body: 300KiB, message: 300KiB }}, concurrency: {{ memory: {memory}B }} }}");
    let running = Setup::new().yaml(&limits).start().await;
    let mut caller = Caller::open(way, &running, None).await.unwrap();
    caller.ask(&Request::new("held", &[ROWS, 4], floats())).await.unwrap();
}

every_way! {
    what_waits: by,
    an_answer_takes_the_room_of_its_inputs: alone,
}

async fn post(
    running: Running,
    path: &str,
    headers: &[(&'static str, String)],
    body: impl Into<bytes::Bytes>,
) -> Result<(), String> {
    let mut request = http_request(&running, "POST", path, None, body);
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let response = http1(&running, request).await;
    match response.status().as_u16() {
        200 => Ok(()),
        503 => Err("overloaded".into()),
        _ => Err(String::from_utf8_lossy(response.body()).into_owned()),
    }
}

async fn json_waits(path: &'static str, body: &str) {
    four_wait(|running| {
        let body = body.to_owned();
        async move { post(running, path, &[], body).await }
    })
    .await;
}

#[tokio::test]
async fn rows_of_v1_wait_counted() {
    let rows = vec![[0.0_f32; 4]; ROWS];
    let body = json!({ "instances": rows }).to_string();
    json_waits("/v1/models/held:predict", &body).await;
}

#[tokio::test]
async fn bare_objects_wait_counted() {
    let body = json!({ "x": vec![[0.0_f32; 4]; ROWS] }).to_string();
    json_waits("/predict", &body).await;
}

#[tokio::test]
async fn what_is_generated_from_waits_counted() {
    let body = json!({ "x": floats() }).to_string();
    json_waits("/v2/models/held/generate", &body).await;
}

#[tokio::test]
async fn raw_tensors_wait_counted_once() {
    let length = 16 * ROWS;
    let input =
        json!({ "name": "x", "shape": [ROWS, 4], "datatype": "FP32", "parameters": { "binary_data_size": length } });
    let header = json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
    let body = [header.as_bytes(), &vec![0; length]].concat();
    four_wait(|running| {
        let (body, header) = (body.clone(), header.len().to_string());
        async move {
            let headers = [("inference-header-content-length", header)];
            post(running, "/v2/models/held/infer", &headers, body).await
        }
    })
    .await;
}

#[tokio::test]
async fn typed_contents_wait_counted() {
    // A list is counted beside its message while it is made of it.
    four_wait_in(FOUR + FOUR / 4, |running| async move {
        let mut request: ModelInferRequest = Request::new("held", &[ROWS, 4], floats()).proto();
        request.raw_input_contents.clear();
        request.inputs[0].contents = Some(InferTensorContents { fp32_contents: floats(), ..Default::default() });
        let mut client = crate::support::client::grpc(&running).await;
        client
            .model_infer(running.grpc(request, None))
            .await
            .map(drop)
            .map_err(|status| crate::support::client::status_failure(&status).code)
    })
    .await;
}

#[tokio::test]
async fn lists_of_tensorflow_wait_counted() {
    let request = || {
        let mut request = crate::v1::grpc::predict_request("held");
        let input = request.inputs.get_mut("x").unwrap();
        input.tensor_content = bytes::Bytes::new();
        // One value stands for all.
        input.float_val = vec![1.0];
        input.tensor_shape.as_mut().unwrap().dim[0].size = ROWS as i64;
        request
    };
    assert!(request().encoded_len() < 100);
    four_wait(|running| async move {
        let mut client = crate::v1::grpc::prediction(&running).await;
        let answer = client.predict(request()).await;
        answer.map(drop).map_err(|status| crate::support::client::status_failure(&status).code)
    })
    .await;
}

/// What is said of so many bytes with a megabyte of memory.
fn never(bytes: usize) -> String {
    format!("needs {bytes} bytes of memory, expected at most 1048576 (`limits.concurrency.memory`)")
}

#[tokio::test]
async fn what_a_text_grows_to_must_fit_by_itself() {
    let limits = "limits: { size: { body: 900KiB, message: 900KiB }, concurrency: { memory: 1MiB } }";
    let running = Setup::new().yaml(limits).start().await;
    let values = 150_000;
    let body = |data: &str| {
        let data = data.repeat(values);
        let data = data.trim_end_matches(',');
        format!(r#"{{"inputs":[{{"name":"x","shape":[{values}],"datatype":"INT64","data":[{data}]}}]}}"#)
    };
    let refused = post(running, "/v2/models/double/infer", &[], body("0,")).await.unwrap_err();
    assert!(refused.contains("\"code\":\"payload_too_large\""), "300 kB of text are 1.2 MB of tensor: {refused}");
    assert!(refused.contains(&never(1_200_000)), "{refused}");
}

#[tokio::test]
async fn a_message_whose_tensors_never_fit_is_too_large_and_its_session_goes_on() {
    let limits = "limits: { size: { body: 900KiB, message: 900KiB }, concurrency: { memory: 1MiB } }";
    let running = Setup::new().yaml(limits).start().await;
    let input = json!({ "name": "x", "shape": [150_000], "datatype": "INT64", "data": vec![0; 150_000] });
    let message = json!({ "type": "infer", "id": "t1", "model": "double", "inputs": [input] });
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    stream.send(&message).await;
    let mut socket = websocket(&running, None).await.unwrap();
    socket.send(Message::text(message.to_string())).await.unwrap();
    for answer in [stream.next().await.unwrap(), next_json(&mut socket).await.unwrap()] {
        assert_eq!((&answer["id"], &answer["code"]), (&json!("t1"), &json!("payload_too_large")), "{answer}");
        // The id waits with the tensor.
        assert_eq!((&answer["message"], &answer["retryable"]), (&json!(never(1_200_002)), &json!(false)));
    }
    let sound = Request::new("double", &[1, 4], vec![0.0; 4]).json_message();
    stream.send(&sound).await;
    socket.send(Message::text(sound.to_string())).await.unwrap();
    for answer in [stream.next().await.unwrap(), next_json(&mut socket).await.unwrap()] {
        assert_eq!(answer["type"], "output", "{answer}");
    }
}

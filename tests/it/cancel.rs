//! Dropping is cancelling: a client that goes away costs nothing from then on.

use crate::support::{
    Running, Setup,
    client::{Client, Ndjson, Request, next_json, websocket},
    until,
};
use futures_util::SinkExt;
use serde_json::json;
use sluicegate::call::Surface;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

fn held() -> Request {
    Request::new("held", &[1, 4], vec![0.0; 4])
}

/// While the one instance is blocked, a second job waits; its client leaves; it must never run.
async fn a_client_that_leaves_takes_its_job_along(surface: Surface) {
    let running = Setup::new().start().await;
    let holder = running.hold("held").await;
    let before = running.runs("held");
    let mut client = Client::connect(surface, &running, None).await.unwrap();
    let leaving = tokio::time::timeout(Duration::from_millis(200), client.infer(&held())).await;
    assert!(leaving.is_err(), "the call should have been waiting");
    drop(client);
    running.until("the abandoned call was counted", |metrics| metrics.contains("code=\"cancelled\"")).await;
    holder.release().await;
    // A call of somebody else passes, and only it has run.
    let mut other = Client::connect(Surface::Rest, &running, None).await.unwrap();
    other.infer(&held()).await.unwrap();
    assert_eq!(running.runs("held"), before + 1);
}

#[tokio::test]
async fn rest_client_that_leaves_takes_its_job_along() {
    a_client_that_leaves_takes_its_job_along(Surface::Rest).await;
}

#[tokio::test]
async fn grpc_client_that_leaves_takes_its_job_along() {
    a_client_that_leaves_takes_its_job_along(Surface::Grpc).await;
}

#[tokio::test]
async fn websocket_client_that_leaves_takes_its_job_along() {
    a_client_that_leaves_takes_its_job_along(Surface::WebSocket).await;
}

#[tokio::test]
async fn h2_stream_client_that_leaves_takes_its_job_along() {
    a_client_that_leaves_takes_its_job_along(Surface::H2Stream).await;
}

/// A job whose time runs out in the queue must never run, and its caller hears where it was.
#[tokio::test]
async fn a_deadline_in_the_queue_takes_its_job_along_on_every_surface() {
    for surface in Surface::ALL {
        let running = Setup::new().start().await;
        let holder = running.hold("held").await;
        let before = running.runs("held");
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let request = Request { timeout: Some(Duration::from_millis(50)), ..held() };
        let failure = client.infer(&request).await.unwrap_err();
        assert_eq!(
            (&*failure.code, &*failure.message),
            ("deadline_exceeded", "deadline exceeded while queued"),
            "{surface:?}"
        );
        holder.release().await;
        client.infer(&held()).await.unwrap();
        assert_eq!(running.runs("held"), before + 1, "{surface:?}: only who came after it has run");
    }
}

#[tokio::test]
async fn a_deadline_during_a_run_is_told_so_on_every_surface() {
    for surface in Surface::ALL {
        let running = Setup::new().start().await;
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let slow = Request::new("slow", &[1, 4], vec![0.0; 4]);
        let request = Request { timeout: Some(Duration::from_millis(100)), ..slow.clone() };
        let failure = client.infer(&request).await.unwrap_err();
        assert_eq!(
            (&*failure.code, &*failure.message),
            ("deadline_exceeded", "deadline exceeded while running"),
            "{surface:?}"
        );
        client.infer(&slow).await.expect("the instance is free again");
    }
}

#[tokio::test]
async fn cancel_on_a_websocket_ends_one_request_and_leaves_the_socket_open() {
    let running = Setup::new().start().await;
    let holder = running.hold("held").await;
    let mut socket = websocket(&running, None).await.unwrap();
    let infer = json!({ "type": "infer", "id": "a", "model": "held",
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0] }] });
    socket.send(Message::text(infer.to_string())).await.unwrap();
    socket.send(Message::text(r#"{"type":"cancel","id":"a"}"#)).await.unwrap();
    socket.send(Message::text(r#"{"type":"cancel","id":"unknown"}"#)).await.unwrap();
    let message = next_json(&mut socket).await.unwrap();
    assert_eq!((&message["type"], &message["id"]), (&json!("cancelled"), &json!("a")));
    holder.release().await;
    // The id may be reused at once.
    socket.send(Message::text(infer.to_string())).await.unwrap();
    let message = next_json(&mut socket).await.unwrap();
    assert_eq!((&message["type"], &message["id"]), (&json!("output"), &json!("a")));
}

#[tokio::test]
async fn cancel_on_a_stream_ends_one_request_and_leaves_the_stream_open() {
    let running = Setup::new().start().await;
    let holder = running.hold("held").await;
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    let infer = json!({ "type": "infer", "id": "a", "model": "held",
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0] }] });
    stream.send(&infer).await;
    stream.send(&json!({ "type": "cancel", "id": "a" })).await;
    assert_eq!(stream.next().await.unwrap()["type"], "cancelled");
    holder.release().await;
    stream.send(&infer).await;
    assert_eq!(stream.next().await.unwrap()["type"], "output");
    stream.finish();
    let last = stream.next().await.unwrap();
    assert_eq!((&last["type"], &last["id"]), (&json!("done"), &json!(null)));
}

/// How long a slot and an instance may stay taken after their caller has gone: 50 ms are promised, and a test machine may be
/// busy with something else. A run that nobody ends lasts for ever.
const FREE_AGAIN: Duration = Duration::from_secs(5);

/// A run of `held` has begun that only its end can end.
async fn runs(running: &Running, before: u64) {
    until(|| running.runs("held") > before, "the call runs").await;
}

/// The run was ended, its slot is free, and the instance serves the next caller.
async fn is_free_again(running: &Running, gone: Instant) {
    until(|| running.interrupted("held") == 1, "the run is ended").await;
    running.until("the slot is free", |page| !page.contains("in_flight{surface") || all_zero(page)).await;
    assert!(gone.elapsed() < FREE_AGAIN, "{:?}", gone.elapsed());
    running.release("held");
    Client::connect(Surface::Rest, running, None).await.unwrap().infer(&held()).await.unwrap();
}

fn all_zero(page: &str) -> bool {
    let gauges = page.lines().filter(|line| line.starts_with("sluicegate_calls_in_flight{"));
    gauges.into_iter().all(|line| line.ends_with(" 0"))
}

async fn a_client_that_leaves_ends_its_run(surface: Surface, whole_connection: bool) {
    let running = Setup::new().start().await;
    running.block("held");
    let before = running.runs("held");
    let mut client = Client::connect(surface, &running, None).await.unwrap();
    let request = held();
    {
        let mut call = std::pin::pin!(client.infer(&request));
        tokio::select! {
            answer = &mut call => panic!("a blocked run was answered: {answer:?}"),
            () = runs(&running, before) => {}
        }
    }
    let gone = Instant::now();
    if whole_connection {
        drop(client);
        is_free_again(&running, gone).await;
    } else {
        is_free_again(&running, gone).await;
        drop(client);
    }
}

#[tokio::test]
async fn rest_client_that_leaves_ends_its_run() {
    a_client_that_leaves_ends_its_run(Surface::Rest, true).await;
}

#[tokio::test]
async fn grpc_client_that_leaves_ends_its_run() {
    a_client_that_leaves_ends_its_run(Surface::Grpc, true).await;
}

#[tokio::test]
async fn grpc_cancel_ends_the_run_and_leaves_the_connection_open() {
    // Dropping the call resets its HTTP/2 stream: that is what cancelling is in gRPC.
    a_client_that_leaves_ends_its_run(Surface::Grpc, false).await;
}

#[tokio::test]
async fn websocket_client_that_leaves_ends_its_run() {
    a_client_that_leaves_ends_its_run(Surface::WebSocket, true).await;
}

#[tokio::test]
async fn h2_stream_client_that_leaves_ends_its_run() {
    a_client_that_leaves_ends_its_run(Surface::H2Stream, true).await;
}

fn message() -> serde_json::Value {
    json!({ "type": "infer", "id": "a", "model": "held",
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0] }] })
}

#[tokio::test]
async fn cancel_on_a_websocket_ends_the_run() {
    let running = Setup::new().start().await;
    running.block("held");
    let before = running.runs("held");
    let mut socket = websocket(&running, None).await.unwrap();
    socket.send(Message::text(message().to_string())).await.unwrap();
    runs(&running, before).await;
    let gone = Instant::now();
    socket.send(Message::text(r#"{"type":"cancel","id":"a"}"#)).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "cancelled");
    is_free_again(&running, gone).await;
}

#[tokio::test]
async fn cancel_on_a_stream_ends_the_run() {
    let running = Setup::new().start().await;
    running.block("held");
    let before = running.runs("held");
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    stream.send(&message()).await;
    runs(&running, before).await;
    let gone = Instant::now();
    stream.send(&json!({ "type": "cancel", "id": "a" })).await;
    assert_eq!(stream.next().await.unwrap()["type"], "cancelled");
    is_free_again(&running, gone).await;
}

async fn a_deadline_ends_the_run(surface: Surface) {
    let running = Setup::new().start().await;
    running.block("held");
    let mut client = Client::connect(surface, &running, None).await.unwrap();
    let request = Request { timeout: Some(Duration::from_millis(200)), ..held() };
    assert_eq!(client.infer(&request).await.unwrap_err().code, "deadline_exceeded");
    is_free_again(&running, Instant::now()).await;
}

#[tokio::test]
async fn a_deadline_ends_the_run_on_every_surface() {
    for surface in Surface::ALL {
        a_deadline_ends_the_run(surface).await;
    }
}

/// Nobody leaves and no deadline passes: the server itself ends a run that takes too long, and the instance serves on.
#[tokio::test]
async fn a_run_beyond_its_limit_is_ended_on_every_surface() {
    for surface in Surface::ALL {
        let limit = "models: { defaults: { run_limit: 100ms, execution: thread } }";
        let running = Setup::new().yaml(limit).start().await;
        let before = running.interrupted("held");
        running.block("held");
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&held()).await.unwrap_err();
        assert_eq!(failure.code, "internal", "{surface:?}");
        assert_eq!(running.interrupted("held"), before + 1, "{surface:?}");
        running.release("held");
        client.infer(&held()).await.unwrap();
    }
}

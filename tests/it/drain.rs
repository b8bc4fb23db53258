//! A drain finishes what runs, refuses what is new, and says goodbye on every surface (contract 07 section 5).

use crate::support::{
    Setup,
    client::{Client, Ndjson, Request, http_request, http1, next_json, websocket},
};
use futures_util::StreamExt;
use serde_json::json;
use sluicegate::call::Surface;
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message;

const DRAIN: &str = "drain: { delay: 50ms, timeout: 10s }";

fn held() -> Request {
    Request::new("held", &[1, 4], vec![0.0; 4])
}

async fn what_runs_is_finished(surface: Surface) {
    let running = Setup::new().yaml(DRAIN).start().await;
    let holder = running.hold("held").await;
    let call = {
        let running = running.clone();
        tokio::spawn(async move {
            let mut client = Client::connect(surface, &running, None).await.unwrap();
            client.infer(&held()).await
        })
    };
    running.until("the call waits", |metrics| metrics.contains("sluicegate_queue_depth{model=\"held\"} 1")).await;
    let drained = running.drain();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(tokio::net::TcpStream::connect(running.address).await.is_err(), "the listener is closed");
    holder.release().await;
    call.await.unwrap().unwrap();
    drained.over().await;
}

#[tokio::test]
async fn rest_call_that_runs_is_finished() {
    what_runs_is_finished(Surface::Rest).await;
}

#[tokio::test]
async fn grpc_call_that_runs_is_finished() {
    what_runs_is_finished(Surface::Grpc).await;
}

#[tokio::test]
async fn websocket_call_that_runs_is_finished() {
    what_runs_is_finished(Surface::WebSocket).await;
}

#[tokio::test]
async fn h2_stream_call_that_runs_is_finished() {
    what_runs_is_finished(Surface::H2Stream).await;
}

async fn what_outlives_the_timeout_is_told_not_ready(surface: Surface) {
    let running = Setup::new().yaml("drain: { delay: 10ms, timeout: 300ms }").start().await;
    let holder = running.hold("held").await;
    let call = {
        let running = running.clone();
        tokio::spawn(async move {
            let mut client = Client::connect(surface, &running, None).await.unwrap();
            client.infer(&held()).await
        })
    };
    running.until("the call waits", |metrics| metrics.contains("sluicegate_queue_depth{model=\"held\"} 1")).await;
    running.drain().over().await;
    assert_eq!(call.await.unwrap().unwrap_err().code, "not_ready");
    holder.release_unanswered();
}

#[tokio::test]
async fn rest_call_that_outlives_the_timeout_is_told_not_ready() {
    what_outlives_the_timeout_is_told_not_ready(Surface::Rest).await;
}

#[tokio::test]
async fn grpc_call_that_outlives_the_timeout_is_told_not_ready() {
    what_outlives_the_timeout_is_told_not_ready(Surface::Grpc).await;
}

#[tokio::test]
async fn websocket_call_that_outlives_the_timeout_is_told_not_ready() {
    what_outlives_the_timeout_is_told_not_ready(Surface::WebSocket).await;
}

#[tokio::test]
async fn h2_stream_call_that_outlives_the_timeout_is_told_not_ready() {
    what_outlives_the_timeout_is_told_not_ready(Surface::H2Stream).await;
}

#[tokio::test]
async fn readiness_turns_false_at_once_while_connections_are_still_accepted() {
    let running = Setup::new().yaml("drain: { delay: 2s, timeout: 4s }").start().await;
    let _drained = running.drain();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ready = http1(&running, http_request(&running, "GET", "/v2/health/ready", None, "")).await;
    assert_eq!(ready.status(), 503);
    let live = http1(&running, http_request(&running, "GET", "/v2/health/live", None, "")).await;
    assert_eq!(live.status(), 200);
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    client.infer(&Request::new("double", &[1, 4], vec![0.0; 4])).await.expect("calls are still taken");
}

#[tokio::test]
async fn an_idle_websocket_hears_goaway_and_is_closed_with_1012() {
    let running = Setup::new().yaml(DRAIN).start().await;
    let mut socket = websocket(&running, None).await.unwrap();
    let drained = running.drain();
    let message = next_json(&mut socket).await.unwrap();
    assert_eq!(message["type"], "goaway");
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(Some(frame)))) => {
                assert_eq!(u16::from(frame.code), 1012);
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    drop(socket);
    drained.over().await;
}

#[tokio::test]
async fn an_idle_stream_is_ended_with_its_last_line() {
    let running = Setup::new().yaml(DRAIN).start().await;
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    let drained = running.drain();
    let mut last = json!(null);
    while let Some(line) = stream.next().await {
        last = line;
    }
    // The client had not finished: the last line says why the stream did (contract 07 section 2, rule 5).
    assert_eq!((&last["type"], &last["id"], &last["code"]), (&json!("error"), &json!(null), &json!("not_ready")));
    drained.over().await;
}

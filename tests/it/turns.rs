//! A model that stops a lane stops nobody else for long: its run is ended from outside, and goes on where it may.

use crate::support::{
    Running, Setup,
    client::{Client, Data, Request, http_request, http1},
};
use sluicegate::{
    backend::{
        fake::{Fake, FakeOpen},
        ort::Runtime,
    },
    call::Surface,
};
use std::{fs, path::Path, sync::Arc, time::Duration};

/// A gateway of one lane over models whose rounds are what their input says, one of which is forced to run there.
async fn loops() -> Running {
    let setup = Setup::new().yaml("runtime: { lanes: 1, turn: { limit: 50ms } }");
    let models = setup.folder().join("models");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/good/countdown/1/model.onnx");
    for name in ["forced", "free"] {
        fs::create_dir_all(models.join(name).join("1")).unwrap();
        fs::copy(&file, models.join(name).join("1/model.onnx")).unwrap();
    }
    fs::write(models.join("forced/model.yaml"), "execution: turn\n").unwrap();
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    setup.start_with(&models, Arc::new(runtime), Vec::new()).await
}

fn rounds(model: &str, rounds: i64) -> Request {
    Request { input: "n".into(), data: Data::Ints(vec![rounds]), ..Request::new(model, &[1], Vec::new()) }
}

fn endless(model: &str) -> Request {
    Request { timeout: Some(Duration::from_secs(1)), ..rounds(model, 1_000_000_000_000) }
}

async fn an_endless_call_stops_no_lane(surface: Surface) {
    let running = loops().await;
    for model in ["forced", "free"] {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let mut other = Client::connect(surface, &running, None).await.unwrap();
        assert_eq!(other.infer(&rounds(model, 4)).await.unwrap().outputs["sum"].1, Data::Ints(vec![6]));
        let failure = client.infer(&endless(model)).await.unwrap_err();
        assert_eq!(failure.code, "deadline_exceeded", "{surface:?} {model}: {}", failure.message);
        assert_eq!(other.infer(&rounds(model, 4)).await.unwrap().outputs["sum"].1, Data::Ints(vec![6]));
    }
    let metrics = running.metrics().await;
    let moved = |model, times| format!("sluicegate_models_moved_total{{model=\"{model}\",reason=\"limit\"}} {times}\n");
    assert!(metrics.contains(&moved("forced", 1)) && metrics.contains(&moved("free", 0)), "{metrics}");
}

#[tokio::test]
async fn rest_call_without_end_stops_no_lane() {
    an_endless_call_stops_no_lane(Surface::Rest).await;
}

#[tokio::test]
async fn grpc_call_without_end_stops_no_lane() {
    an_endless_call_stops_no_lane(Surface::Grpc).await;
}

#[tokio::test]
async fn websocket_call_without_end_stops_no_lane() {
    an_endless_call_stops_no_lane(Surface::WebSocket).await;
}

#[tokio::test]
async fn h2_stream_call_without_end_stops_no_lane() {
    an_endless_call_stops_no_lane(Surface::H2Stream).await;
}

/// A fake on a thread that does not end when it is told to would need a run limit of minutes; what it may be told is short here.
#[tokio::test]
async fn who_waits_for_a_run_that_is_given_up_hears_at_once_on_every_surface() {
    for surface in Surface::ALL {
        let running = Setup::new().yaml("models: { defaults: { run_limit: 1s } }").start().await;
        running.control("held").defy();
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        // Its own deadline is a minute away.
        let failure = client.infer(&Request::new("held", &[1, 4], vec![0.0; 4])).await.unwrap_err();
        assert_eq!(failure.code, "internal", "{surface:?}: {}", failure.message);
        running.control("held").release();
        running
            .until("the run has ended", |metrics| metrics.contains("sluicegate_runs_given_up{model=\"held\"} 0"))
            .await;
        client.infer(&Request::new("held", &[1, 4], vec![0.0; 4])).await.unwrap();
    }
}

/// What an admin page answers: status and text.
async fn page(running: &Running, path: &str) -> (u16, String) {
    let response = http1(&running.at_admin(), http_request(&running.at_admin(), "GET", path, None, Vec::new())).await;
    (response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned())
}

#[tokio::test]
async fn a_lane_that_stands_still_is_told_of_until_it_turns_again() {
    let setup = Setup::new().yaml("runtime: { lanes: 1, turn: { limit: 1ms }, stall: { unready: 500ms, dead: 1s } }");
    let (models, fake) = (setup.folder().join("models"), Fake::new());
    fs::create_dir_all(models.join("still/1")).unwrap();
    fs::write(models.join("still/1/model.onnx"), b"").unwrap();
    fs::write(models.join("still/model.yaml"), "execution: turn\n").unwrap();
    let control = fake.control();
    let running = setup.start_with(&models, Arc::new(FakeOpen::new().with("still", fake)), Vec::new()).await;
    for round in 0..2 {
        // The second run is on a thread, and stops no lane.
        control.defy();
        let begun = control.started();
        let call = tokio::spawn({
            let running = running.clone();
            async move {
                let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
                client.infer(&Request::new("still", &[1, 4], vec![0.0; 4])).await
            }
        });
        if round == 0 {
            running.until("the lane stands still", |metrics| still(metrics) >= 1.5).await;
            let (status, text) = page(&running, "/readyz").await;
            assert!(status == 503 && text.contains("a lane does not turn"), "{text}");
            let (status, text) = page(&running, "/livez").await;
            assert!(status == 503 && text.contains("a lane does not turn"), "{text}");
        } else {
            crate::support::until(|| control.started() > begun, "it runs").await;
            assert_eq!(page(&running, "/livez").await.0, 200);
        }
        control.release();
        call.await.unwrap().unwrap();
        running.until("the lane turns", |metrics| still(metrics) < 0.5).await;
        while page(&running, "/readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// For how long the only lane has not turned, in seconds.
fn still(metrics: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix("sluicegate_lane_still_seconds{lane=\"0\"} "));
    line.map_or(0.0, |seconds| seconds.parse().unwrap())
}

#[tokio::test]
async fn a_lane_that_stands_still_holds_up_no_drain() {
    let setup = Setup::new().yaml("runtime: { lanes: 1 }\ndrain: { delay: 10ms, timeout: 100ms }");
    let (models, fake) = (setup.folder().join("models"), Fake::new());
    fs::create_dir_all(models.join("still/1")).unwrap();
    fs::write(models.join("still/1/model.onnx"), b"").unwrap();
    fs::write(models.join("still/model.yaml"), "execution: turn\n").unwrap();
    let control = fake.control();
    let running = setup.start_with(&models, Arc::new(FakeOpen::new().with("still", fake)), Vec::new()).await;
    control.defy();
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    let call = tokio::spawn(async move { client.infer(&Request::new("still", &[1, 4], vec![0.0; 4])).await });
    crate::support::until(|| control.started() > 0 && control.started() > control.finished(), "it runs").await;
    running.until("the lane stands still", |metrics| still(metrics) >= 1.0).await;
    running.drain().over().await;
    // Everything that waits for its lanes would wait for ever.
    drop(running);
    control.release();
    drop(call.await);
}

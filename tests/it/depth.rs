//! JSON beyond `limits.size.json_depth` is refused wherever JSON is read, before anything could recurse on it.

use crate::support::{
    Running, Setup,
    client::{Ndjson, http_request, http1, next_json, websocket, websocket_upgrade},
};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

/// The default of `limits.size.json_depth`.
const LIMIT: usize = 100;
/// Deep enough for the stack of any thread, were there a call for each level.
const BOMB: usize = 1_000_000;

/// A value of so many levels.
fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

/// An object of so many levels, its own included, with `members` before the one that nobody knows.
fn object(members: &str, levels: usize) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!("{{{members}{comma}\"extra\":{}}}", nested(levels - 1))
}

async fn post(running: &Running, path: &str, body: String) -> (u16, String) {
    let response = http1(running, http_request(running, "POST", path, None, body)).await;
    let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    (response.status().as_u16(), body["error"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn every_body_of_rest_is_refused_beyond_a_hundred_levels() {
    let yaml = "rest: { predict: { model: double } }\nmodels: { control: explicit, load: all }";
    let running = Setup::new().yaml(yaml).start().await;
    for path in [
        "/v2/models/double/infer",
        "/v2/models/double/infer_stream",
        "/v2/models/double/generate",
        "/v2/models/double/generate_stream",
        "/v1/models/double:predict",
        "/v2/repository/index",
        "/v2/repository/models/nothing/load",
        "/v2/repository/models/nothing/unload",
    ] {
        let (_, error) = post(&running, path, object("", LIMIT)).await;
        assert!(!error.contains("deeper"), "{path}: {error}");
        for levels in [LIMIT + 1, BOMB] {
            let (status, error) = post(&running, path, object("", levels)).await;
            assert_eq!(status, 400, "{path}: {error}");
            assert!(error.contains("deeper than 100 levels"), "{path}: {error}");
        }
    }
    // `:classify` and `:regress` look at the model first, and so have a test beside their codec. Here every member means
    // something, and none is nested.
    for path in ["/predict", "/v2/logging", "/v2/trace/setting", "/v2/models/double/trace/setting"] {
        for levels in [LIMIT + 1, BOMB] {
            assert_eq!(post(&running, path, object("", levels)).await.0, 400, "{path}");
        }
    }
}

#[tokio::test]
async fn the_data_of_an_input_is_bounded_too() {
    let running = Setup::new().yaml("rest: { predict: { model: double } }").start().await;
    let v2 =
        |levels| format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,4],"data":{}}}]}}"#, nested(levels));
    for (path, body) in [
        ("/v2/models/double/infer", v2(BOMB)),
        ("/v2/models/double/generate", format!(r#"{{"x":{}}}"#, nested(BOMB))),
        ("/predict", format!(r#"{{"x":{}}}"#, nested(BOMB))),
        ("/v1/models/double:predict", format!(r#"{{"instances":{}}}"#, nested(BOMB))),
        ("/v1/models/double:predict", format!(r#"{{"inputs":{{"x":{}}}}}"#, nested(BOMB))),
    ] {
        let (status, error) = post(&running, path, body).await;
        assert!(status == 400 && !error.is_empty(), "{path}: {status} {error}");
    }
}

#[tokio::test]
async fn a_configuration_within_a_load_is_no_way_around() {
    let running = Setup::new().yaml("models: { control: explicit, load: all }").start().await;
    for config in [nested(LIMIT + 1), nested(BOMB / 10), format!(r#"{{"parameters":{}}}"#, r#"{"a":"#.repeat(5000))] {
        let body = serde_json::json!({ "parameters": { "config": config } }).to_string();
        let (status, error) = post(&running, "/v2/repository/models/double/load", body).await;
        assert_eq!(status, 400, "{error}");
        assert!(error.contains("nested deeper than"), "{error}");
    }
}

const INFER: &str = r#""type":"infer","id":"a","model":"double","inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]"#;

#[tokio::test]
async fn messages_and_lines_are_refused_by_their_id() {
    let running = Setup::new().start().await;
    let mut socket = websocket(&running, None).await.unwrap();
    let mut lines = Ndjson::open(&running, None).await.unwrap();
    for (levels, kind) in [(LIMIT, "output"), (LIMIT + 1, "error"), (BOMB, "error"), (LIMIT, "output")] {
        socket.send(Message::text(object(INFER, levels))).await.unwrap();
        lines.send_raw(object(INFER, levels) + "\n").await;
        for answer in [next_json(&mut socket).await.unwrap(), lines.next().await.unwrap()] {
            assert_eq!((&answer["type"], &answer["id"]), (&kind.into(), &"a".into()), "{answer}");
            let deep = answer["message"].as_str().is_some_and(|text| text.contains("deeper than 100 levels"));
            assert_eq!(deep, kind == "error", "{answer}");
        }
    }
    // What is said back is not read, however deep.
    socket.send(Message::text(format!(r#"{{"type":"ping","t":{}}}"#, nested(BOMB)))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().len(), 2 * BOMB + r#"{"type":"pong","t":}"#.len());
}

#[tokio::test]
async fn greetings_and_credentials_are_bounded_too() {
    let running = Setup::new().start().await;
    for (levels, welcome) in [(LIMIT, true), (LIMIT + 1, false), (30_000, false)] {
        let mut socket = websocket_upgrade(&running, None).await.unwrap();
        socket.send(Message::text(object(r#""type":"hello","protocol":1"#, levels))).await.unwrap();
        match socket.next().await {
            Some(Ok(Message::Text(text))) => assert!(welcome && text.contains("welcome"), "{text}"),
            Some(Ok(Message::Close(Some(close)))) => {
                assert!(!welcome && close.reason.contains("deeper than 100 levels"), "{close:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let mut socket = websocket(&running, None).await.unwrap();
    let auth = object(r#""type":"auth","auth":{"scheme":"bearer","token":"x"}"#, LIMIT + 1);
    socket.send(Message::text(auth)).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = socket.next().await else { panic!("not closed") };
    assert!(close.reason.contains("deeper than 100 levels"), "{close:?}");
}

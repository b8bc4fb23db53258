//! The ways in that came with V1: what the stack says is the same at each, and in the words of its protocol.

use super::{
    ROW, get,
    grpc::{predict_request, prediction},
    refusal,
};
use crate::support::{
    KEY, Running, Setup,
    client::{Failure, http_request, http1, status_failure},
};
use serde_json::{Value, json};
use std::time::Duration;

/// The three ways in that are new here. What the stack says is the same at each.
#[derive(Clone, Copy, Debug)]
enum Door {
    Predict,
    Plain,
    Grpc,
}

const DOORS: [Door; 3] = [Door::Predict, Door::Plain, Door::Grpc];

impl Door {
    async fn infer(self, running: &Running, key: Option<&str>, model: &str) -> Result<(), Failure> {
        let (path, body) = match self {
            Self::Predict => (format!("/v1/models/{model}:predict"), ROW),
            Self::Plain => ("/predict".to_owned(), r#"{"x":[[1,2,3,4]]}"#),
            Self::Grpc => {
                let mut request = tonic::Request::new(predict_request(model));
                if let Some(key) = key {
                    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
                }
                let answered = prediction(running).await.predict(request).await;
                return answered.map(drop).map_err(|status| status_failure(&status));
            }
        };
        let response = http1(running, http_request(running, "POST", &path, key, body)).await;
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        if response.status() == 200 {
            return Ok(());
        }
        assert_eq!(response.headers()["content-type"], "application/json");
        let after = response.headers().get("retry-after");
        Err(Failure {
            code: body["code"].as_str().unwrap().to_owned(),
            message: body["error"].as_str().expect("`error` is a string").to_owned(),
            retry_after: after.map(|value| Duration::from_secs(value.to_str().unwrap().parse().unwrap())),
        })
    }
}

fn plain(model: &str) -> String {
    format!("rest: {{ predict: {{ model: {model} }} }}")
}

#[tokio::test]
async fn strangers_are_unauthenticated_at_every_door() {
    let running = Setup::new().with_key().yaml(&plain("double")).start().await;
    for door in DOORS {
        door.infer(&running, Some(KEY), "double").await.unwrap();
        for key in [None, Some("sg_0000000000000000000000000000000000000000000")] {
            assert_eq!(door.infer(&running, key, "double").await.unwrap_err().code, "unauthenticated", "{door:?}");
        }
    }
}

#[tokio::test]
async fn a_rate_holds_for_all_doors_together() {
    let running = Setup::new().with_key().yaml(&plain("double")).with_rate("3/day", 3).start().await;
    for door in DOORS {
        door.infer(&running, Some(KEY), "double").await.unwrap();
    }
    for door in DOORS {
        let failure = door.infer(&running, Some(KEY), "double").await.unwrap_err();
        assert_eq!(failure.code, "rate_limited", "{door:?}");
        assert!(failure.retry_after.unwrap() >= Duration::from_secs(1), "{failure:?}");
    }
}

#[tokio::test]
async fn the_default_deadline_holds_at_every_door() {
    let setup = Setup::new().yaml("limits: { deadline: { default: 20ms } }").yaml(&plain("slow"));
    let running = setup.start().await;
    for door in DOORS {
        let failure = door.infer(&running, None, "slow").await.unwrap_err();
        assert_eq!(failure.code, "deadline_exceeded", "{door:?}");
    }
}

#[tokio::test]
async fn a_model_without_any_grant_does_not_exist_at_any_door() {
    let grants = "[{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"d*\"] }]";
    let running = Setup::new().with_key().with_grants(grants).yaml(&plain("echo")).start().await;
    for door in DOORS {
        let failure = door.infer(&running, Some(KEY), "echo").await.unwrap_err();
        assert_eq!((&*failure.code, &*failure.message), ("not_found", "model `echo` is unknown"), "{door:?}");
    }
    let get = |path: &str| http_request(&running, "GET", path, Some(KEY), "");
    for path in ["/v1/models/echo", "/v1/models/echo/metadata", "/v1/models/echo/versions/1"] {
        assert_eq!(http1(&running, get(path)).await.status(), 404, "{path}");
    }
    let list: Value = serde_json::from_slice(http1(&running, get("/v1/models")).await.body()).unwrap();
    assert_eq!((&list["models"], &list["data"][0]["id"]), (&json!(["double"]), &json!("double")));
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    // What is wrong with a body is told to nobody who may not send it.
    let garbage = http_request(&running, "POST", "/v1/models/echo:predict", Some(KEY), "garbage");
    assert_eq!(http1(&running, garbage).await.status(), 404);
}

#[tokio::test]
async fn a_call_beyond_the_slots_is_overloaded_at_every_door() {
    let running = Setup::new().yaml("limits: { concurrency: { calls: 1 } }").yaml(&plain("double")).start().await;
    let holder = running.hold("slow").await;
    for door in DOORS {
        let failure = door.infer(&running, None, "double").await.unwrap_err();
        assert_eq!(failure.code, "overloaded", "{door:?}");
        assert!(failure.retry_after.is_some());
    }
    // Questions have slots of their own.
    get(&running, "/v1/models/double").await;
    holder.release().await;
    for door in DOORS {
        door.infer(&running, None, "double").await.unwrap();
    }
}

#[tokio::test]
async fn what_fails_inside_says_nothing_of_the_inside() {
    for model in ["fail", "panic"] {
        let running = Setup::new().yaml(&plain(model)).start().await;
        for door in DOORS {
            assert_eq!(door.infer(&running, None, model).await.unwrap_err().code, "internal", "{door:?} {model}");
        }
    }
    let running = Setup::new().start().await;
    assert_eq!(
        refusal(&running, "POST", "/v1/models/stream:predict", ROW, 501).await,
        "this model answers more than once, ask for a stream (`infer_stream`, or another surface)"
    );
}

//! Ensembles: models made of other models and of built-in steps, with the numbers that the same steps give by hand.
//!
//! `tests/fixtures/ensemble/make.py` did the steps with numpy, onnxruntime, PIL and tokenizers and wrote its numbers down.

use crate::support::{
    Running, Setup,
    client::{Answer, Client, Data, Request, http_request, http1},
    scripts::World,
    until,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sluicegate::call::Surface;
use std::{fs, path::Path, time::Duration};

const FIXTURES: &str = "tests/fixtures/ensemble";

async fn served() -> Running {
    Setup::new().start_over(&format!("{FIXTURES}/models")).await
}

fn expected() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIXTURES).join("expected.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn near(found: impl IntoIterator<Item = f64>, expected: &[f64], within: f64, what: &str) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= within, "{what}: {a}, expected {b}");
    }
}

fn floats(answer: &Answer, output: &str) -> Vec<f64> {
    let Data::Floats(values) = &answer.outputs[output].1 else { panic!("floats") };
    values.iter().map(|value| f64::from(*value)).collect()
}

#[tokio::test]
async fn a_text_becomes_the_vector_that_the_same_steps_give_by_hand_on_every_surface() {
    let (running, expected) = (served().await, expected());
    let given = texts(&expected["texts"]);
    let request = Request {
        input: "text".into(),
        data: Data::Strings(given.clone()),
        ..Request::new("embed", &[given.len()], vec![])
    };
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let answer = client.infer(&request).await.unwrap();
        assert_eq!((&*answer.model, &*answer.version, answer.outputs.len()), ("embed", "1", 1), "{surface:?}");
        assert_eq!(answer.outputs["embedding"].0, [5, 8], "{surface:?}");
        near(floats(&answer, "embedding"), &numbers(&expected["vectors"]), 1e-5, surface.name());
    }
}

/// What is asked of a picture's classes, over each surface; REST with its binary extension, as V2's JSON has no bytes.
async fn look(running: &Running, surface: Surface, files: &[Vec<u8>]) -> (Vec<f64>, Vec<i64>, Vec<String>) {
    if surface == Surface::Rest {
        let raw: Vec<u8> = files
            .iter()
            .flat_map(|file| u32::try_from(file.len()).unwrap().to_le_bytes().into_iter().chain(file.iter().copied()))
            .collect();
        let header = json!({ "inputs": [{ "name": "image", "datatype": "BYTES", "shape": [files.len()],
            "parameters": { "binary_data_size": raw.len() } }] })
        .to_string();
        let mut request =
            http_request(running, "POST", "/v2/models/look/infer", None, [header.as_bytes(), &raw].concat());
        request.headers_mut().insert("content-type", "application/octet-stream".parse().unwrap());
        request.headers_mut().insert("inference-header-content-length", header.len().into());
        let response = http1(running, request).await;
        assert_eq!(response.status(), 200, "{:?}", response.body());
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        let output = |name: &str| {
            let outputs = body["outputs"].as_array().unwrap();
            outputs.iter().find(|output| output["name"] == *name).unwrap()["data"].clone()
        };
        let classes = output("classes").as_array().unwrap().iter().map(|class| class.as_i64().unwrap()).collect();
        return (numbers(&output("best")), classes, texts(&output("names")));
    }
    let request = Request {
        input: "image".into(),
        data: Data::Blobs(files.to_vec()),
        ..Request::new("look", &[files.len()], vec![])
    };
    let mut client = Client::connect(surface, running, None).await.unwrap();
    let answer = client.infer(&request).await.unwrap();
    let (Data::Ints(classes), Data::Strings(names)) = (&answer.outputs["classes"].1, &answer.outputs["names"].1) else {
        panic!("{answer:?}");
    };
    (floats(&answer, "best"), classes.clone(), names.clone())
}

#[tokio::test]
async fn a_picture_has_the_classes_that_the_same_steps_give_by_hand_on_every_surface() {
    let (running, expected) = (served().await, expected());
    // Decoders of JPEG round differently; those of PNG must not differ at all.
    for (form, within) in [("png", 1e-5), ("jpeg", 0.01)] {
        let given = &expected[form];
        let files: Vec<_> = texts(&given["files"]).iter().map(|file| STANDARD.decode(file).unwrap()).collect();
        for surface in Surface::ALL {
            let what = format!("{form}, {surface:?}");
            let (scores, classes, names) = look(&running, surface, &files).await;
            near(classes.iter().map(|class| *class as f64), &numbers(&given["indices"]), 0.0, &what);
            assert_eq!(names, texts(&given["labels"]), "{what}");
            near(scores, &numbers(&given["scores"]), within, &what);
        }
    }
}

async fn get(running: &Running, path: &str) -> Value {
    let response = http1(running, http_request(running, "GET", path, None, "")).await;
    serde_json::from_slice(response.body()).unwrap()
}

#[tokio::test]
async fn an_ensemble_has_what_every_model_has() {
    let running = served().await;
    let metadata = get(&running, "/v2/models/look").await;
    assert_eq!((&metadata["platform"], &metadata["versions"]), (&json!("ensemble"), &json!(["1"])));
    assert_eq!(metadata["inputs"], json!([{ "name": "image", "datatype": "BYTES", "shape": [-1] }]));
    assert_eq!(metadata["outputs"][0], json!({ "name": "best", "datatype": "FP32", "shape": [-1, 2] }));
    let config = get(&running, "/v2/models/embed/config").await;
    let step = &config["ensemble_scheduling"]["step"][1];
    assert_eq!((&step["model_name"], &step["input_map"]["input_ids"]), (&json!("encoder"), &json!("ids")));
    assert_eq!(config["platform"], "ensemble");
    let files: Vec<_> = texts(&expected()["png"]["files"]).iter().map(|file| STANDARD.decode(file).unwrap()).collect();
    look(&running, Surface::Rest, &files).await;
    for name in ["look", "classifier"] {
        let statistics = &get(&running, &format!("/v2/models/{name}/stats")).await["model_stats"][0];
        assert_eq!(statistics["inference_stats"]["success"]["count"], 1, "{name}: {statistics}");
        assert_eq!(statistics["inference_count"], 3, "{name}: {statistics}");
    }
    let error = Client::connect(Surface::H2Stream, &running, None)
        .await
        .unwrap()
        .infer(&Request {
            input: "image".into(),
            data: Data::Blobs(vec![b"no picture".to_vec()]),
            ..Request::new("look", &[1], vec![])
        })
        .await
        .unwrap_err();
    assert_eq!(
        (&*error.code, &*error.message),
        ("invalid_argument", "tensor `image` is neither a JPEG nor a PNG file in row 0")
    );
}

/// `both` doubles and then waits in `held`, beside a step in `slow`.
fn fakes() -> Setup {
    let setup = Setup::new();
    let folder = setup.folder().join("models/both");
    fs::create_dir_all(&folder).unwrap();
    let yaml = "ensemble:\n  steps:\n    - { model: double, inputs: { x: x }, outputs: { y: z } }\n    \
                - { model: held, inputs: { x: z }, outputs: { y: y } }\n    \
                - { model: slow, inputs: { x: x }, outputs: { y: w } }\n";
    fs::write(folder.join("model.yaml"), yaml).unwrap();
    setup
}

fn both() -> Request {
    Request::new("both", &[1, 4], vec![1.5; 4])
}

#[tokio::test]
async fn a_deadline_ends_every_step_that_runs_on_every_surface() {
    for surface in Surface::ALL {
        let running = fakes().start().await;
        running.block("held");
        running.block("slow");
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let request = Request { timeout: Some(Duration::from_millis(300)), ..both() };
        let failure = client.infer(&request).await.unwrap_err();
        assert_eq!(failure.code, "deadline_exceeded", "{surface:?}");
        for step in ["held", "slow"] {
            until(|| running.interrupted(step) == 1, "the step was ended").await;
            running.release(step);
        }
        let answer = client.infer(&Request { id: "t2".into(), ..both() }).await.unwrap();
        assert_eq!(floats(&answer, "y"), [6.0; 4], "{surface:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_every_step_that_runs_on_every_surface() {
    for surface in Surface::ALL {
        let running = fakes().start().await;
        let before = (running.runs("held"), running.runs("slow"));
        running.block("held");
        running.block("slow");
        let asked = running.clone();
        let leaving = tokio::spawn(async move {
            let mut client = Client::connect(surface, &asked, None).await.unwrap();
            let _ = client.infer(&both()).await;
        });
        until(|| running.runs("held") > before.0 && running.runs("slow") > before.1, "both steps run").await;
        leaving.abort();
        for step in ["held", "slow"] {
            until(|| running.interrupted(step) == 1, "the step was ended").await;
        }
    }
}

#[tokio::test]
async fn whoever_may_call_the_ensemble_needs_no_grant_for_its_steps_and_is_charged_once() {
    let grants = "[{ to: [\"identity:web\"], intents: [infer, inspect], models: [both] }]";
    for surface in Surface::ALL {
        let running = fakes().with_key().with_grants(grants).with_rate("2/h", 2).start().await;
        let mut client = Client::connect(surface, &running, Some(crate::support::KEY)).await.unwrap();
        for id in ["a", "b"] {
            let answer = client.infer(&Request { id: id.into(), ..both() }).await.unwrap();
            assert_eq!(floats(&answer, "y"), [6.0; 4], "{surface:?}");
        }
        assert_eq!(client.infer(&both()).await.unwrap_err().code, "rate_limited", "{surface:?}");
    }
}

#[tokio::test]
async fn an_ensemble_that_cannot_be_is_named_with_what_is_wrong() {
    let setup = fakes();
    let folder = setup.folder().join("models/broken");
    fs::create_dir_all(&folder).unwrap();
    let yaml = "ensemble: { steps: [{ model: nowhere, inputs: { x: a }, outputs: { y: b } }, \
                { model: double, inputs: { z: b }, outputs: { y: c } }] }\n";
    fs::write(folder.join("model.yaml"), yaml).unwrap();
    let running = setup.start().await;
    let response = http1(&running, http_request(&running, "POST", "/v2/repository/index", None, "{}")).await;
    let index: Value = serde_json::from_slice(response.body()).unwrap();
    let entry = index.as_array().unwrap().iter().find(|entry| entry["name"] == "broken").unwrap();
    let reason = entry["reason"].as_str().unwrap();
    for problem in
        ["step 1: its model is unknown", "step 2: has no input `z`, it has `x`", "step 2: input `x` is fed by nothing"]
    {
        assert!(reason.contains(problem), "{reason}");
    }
    assert!(!reason.contains("nowhere") && !reason.contains("double"), "callers may not know its models: {reason}");
}

#[tokio::test]
async fn a_swap_for_a_model_that_does_not_fit_is_no_fault_of_callers_on_every_surface() {
    let yaml = "ensemble: { steps: [{ model: a, inputs: { x: x }, outputs: { y: z } }, \
                { model: b, inputs: { x: z }, outputs: { y: y } }] }\n";
    let files = [("a/1/model.onnx", "double"), ("b/1/model.onnx", "double"), ("both/model.yaml", yaml)];
    let world = World::explicit("[a, b, both]", &files).await;
    let said = async |body: &'static str| {
        let (_, index) = world.rest("POST", "/v2/repository/index", body).await;
        index.as_array().unwrap().iter().find(|entry| entry["name"] == "both").cloned()
    };
    let ready = async || world.rest("GET", "/v2/models/both/ready", "").await.0 == 200;
    let code = async |surface| {
        let mut client = Client::connect(surface, &world.running, None).await.unwrap();
        client.infer(&both()).await.map_or_else(|failure| failure.code, |_| "ok".to_owned())
    };
    for (model, expected) in [("double", "ok"), ("renamed", "not_ready"), ("double", "ok")] {
        world.write("b/1/model.onnx", model);
        assert_eq!(world.rest("POST", "/v2/repository/models/b/load", "").await.0, 200);
        for surface in Surface::ALL {
            assert_eq!(code(surface).await, expected, "{surface:?}");
        }
        assert_eq!(ready().await, expected == "ok");
        let entry = said("").await.unwrap();
        assert_eq!(entry["state"], if expected == "ok" { "READY" } else { "UNAVAILABLE" }, "{entry}");
        assert_eq!(said(r#"{"ready":true}"#).await.is_some(), expected == "ok");
        let reason = "not ready: step 2: its model was replaced by one that does not fit: nothing feeds its input `zz`";
        assert_eq!(entry["reason"].as_str().unwrap_or(""), if expected == "ok" { "" } else { reason });
    }
    let all = r#"{"parameters":{"unload_dependents":true}}"#;
    let (status, error) = world.rest("POST", "/v2/repository/models/both/unload", all).await;
    assert_eq!((status, &error["code"]), (501, &json!("unimplemented")), "{error}");
    assert_eq!(world.rest("POST", "/v2/repository/models/b/unload", "").await.0, 200);
    assert!(!ready().await && said(r#"{"ready":true}"#).await.is_none());
    assert_eq!(world.rest("POST", "/v2/repository/models/both/unload", "").await.0, 200);
    assert_ne!(said("").await.unwrap()["state"], "READY");
}

/// A PNG file of 16 Mi black pixels, some 16 KB.
fn large() -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, 4096, 4096);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&vec![0; 4096 * 4096]).unwrap();
    out
}

#[tokio::test]
async fn large_pictures_hold_nobody_up_once_their_caller_is_told_that_the_time_is_up_on_every_surface() {
    let (running, expected) = (served().await, expected());
    let small: Vec<_> = texts(&expected["png"]["files"]).iter().map(|file| STANDARD.decode(file).unwrap()).collect();
    let files = vec![large(); 8];
    for surface in Surface::ALL.into_iter().filter(|surface| *surface != Surface::Rest) {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let request = Request {
            input: "image".into(),
            data: Data::Blobs(files.clone()),
            timeout: Some(Duration::from_millis(100)),
            ..Request::new("look", &[files.len()], vec![])
        };
        assert_eq!(client.infer(&request).await.unwrap_err().code, "deadline_exceeded", "{surface:?}");
    }
    // What they left behind would take far longer than this call may.
    look(&running, Surface::Rest, &small).await;
    let nine = vec![files[0].clone(); 9];
    let mut client = Client::connect(Surface::Grpc, &running, None).await.unwrap();
    let request = Request { input: "image".into(), data: Data::Blobs(nine), ..Request::new("look", &[9], vec![]) };
    let failure = client.infer(&request).await.unwrap_err();
    assert_eq!(
        (&*failure.code, &*failure.message),
        ("invalid_argument", "tensor `image` has pictures of 150994944 pixels together, expected at most 134217728")
    );
}

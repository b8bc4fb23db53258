//! Rows of different lengths one behind the other, on every surface, with the real runtime: each answer is that of the call
//! alone.

use crate::{
    padding::{over, over_with},
    support::{
        Running,
        client::{Answer, Client, Data, Request, http_request, http1},
    },
};
use serde_json::{Value, json};
use sluicegate::{
    backend::ort::Runtime,
    call::Surface,
    model::{InputSettings, ModelSettings, RaggedSettings, Settings, describe::describe},
    tensor::Marks,
};
use std::{path::Path, sync::Arc};

/// Every way to say where rows are.
const MARKS: &str = "inputs: { values: { ragged: { counts: counts, starts: starts, ends: ends, bounds: bounds } } }\n";

fn values(rows: usize, length: usize, seed: usize) -> Request {
    let values = (0..rows * length).map(|at| ((7 * seed + at) % 50) as f32).collect();
    Request { input: "values".into(), ..Request::new("ragged", &[rows, length], values) }
}

/// What the model makes of a request: whole numbers, so that sums are the same in whatever company.
fn expect(request: &Request, answer: &Answer) {
    let (Data::Floats(values), &[rows, length]) = (&request.data, &request.shape[..]) else { panic!("values") };
    let of = |row: usize| &values[row * length..(row + 1) * length];
    let sums: Vec<f32> = (0..rows).map(|row| of(row).iter().sum()).collect();
    let deviations = (0..rows).flat_map(|row| of(row).iter().map(|value| value - sums[row]).collect::<Vec<_>>());
    let (rows, long) = (rows as i64, length as i64);
    // On some surfaces nothing at all has no type.
    let is = |name: &str, shape: &[i64], expected: Vec<f32>| {
        let (found, data) = &answer.outputs[name];
        assert_eq!(found, shape, "{name}");
        assert!(expected.is_empty() || *data == Data::Floats(expected.clone()), "{name}: {data:?}, not {expected:?}");
    };
    is("deviations", &[rows, long], deviations.collect());
    is("lengths", &[rows], vec![length as f32; sums.len()]);
    is("sums", &[rows], sums);
}

async fn get(running: &Running, path: &str) -> Value {
    let answer = http1(running, http_request(running, "GET", path, None, "")).await;
    serde_json::from_slice(answer.body()).unwrap()
}

/// Calls that ran, and the runs that they took.
async fn counts(running: &Running, model: &str) -> (u64, u64) {
    let stats = get(running, &format!("/v2/models/{model}/stats")).await;
    let count = |name: &str| stats["model_stats"][0][name].as_u64().unwrap();
    (count("inference_count"), count("execution_count"))
}

async fn call(running: &Running, surface: Surface, request: Request) {
    let mut client = Client::connect(surface, running, None).await.unwrap();
    expect(&request, &client.infer(&request).await.unwrap());
}

#[tokio::test]
async fn calls_of_different_lengths_share_runs_on_every_surface() {
    let running = over("ragged", &format!("{MARKS}batching: {{ max_delay: 20ms }}\nexecution: thread\n")).await;
    for surface in Surface::ALL {
        let before = counts(&running, "ragged").await;
        // On a busy machine a round may find no two calls waiting at once; the answers are right in any case.
        for round in 0.. {
            let calls = (0..12).map(|at| call(&running, surface, values(1, (5 * at + round) % 17, at)));
            futures_util::future::join_all(calls).await;
            let after = counts(&running, "ragged").await;
            if after.1 - before.1 < after.0 - before.0 {
                break;
            }
            assert!(round < 100, "{surface:?}: each call had a run of its own");
        }
    }
}

#[tokio::test]
async fn several_rows_of_one_length_are_one_call_wherever_it_runs() {
    for execution in ["turn", "thread"] {
        let running =
            over("ragged", &format!("{MARKS}batching: {{ max_elements: 64 }}\nexecution: {execution}\n")).await;
        for surface in Surface::ALL {
            // More than a batch may have, and nothing at all, are among them.
            let calls = [(1, 1), (3, 2), (2, 0), (1, 200), (0, 4), (5, 30)].into_iter().enumerate();
            let calls = calls.map(|(seed, (rows, length))| call(&running, surface, values(rows, length, seed)));
            futures_util::future::join_all(calls).await;
        }
    }
}

#[tokio::test]
async fn callers_see_rows_and_lengths_and_not_what_is_made_of_them() {
    let running = over("ragged", MARKS).await;
    let metadata = get(&running, "/v2/models/ragged").await;
    assert_eq!(metadata["inputs"], json!([{ "name": "values", "datatype": "FP32", "shape": [-1, -1] }]));
    let shape = |at: usize| &metadata["outputs"][at]["shape"];
    assert_eq!((shape(0), shape(2)), (&json!([-1]), &json!([-1, -1])));
    let config = get(&running, "/v2/models/ragged/config").await;
    let input = &config["input"][0];
    assert_eq!(
        (&input["name"], &input["dims"], &input["allow_ragged_batch"]),
        (&json!("values"), &json!([-1]), &json!(true))
    );
    let made: Vec<_> = config["batch_input"].as_array().unwrap().iter().map(|input| &input["target_name"][0]).collect();
    assert_eq!(made, ["counts", "ends", "bounds"], "in the model's order; Triton has no word for starts");
    assert_eq!(config["batch_output"][0]["target_name"], json!(["deviations"]));
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let ends = Request { input: "ends".into(), ..values(1, 2, 1) };
        let flat = Request { shape: vec![5], ..values(1, 5, 1) };
        for (request, message) in [
            (ends, "input `ends` is unknown, expected `values`"),
            (flat, "tensor `values` has shape [5], expected [-1, -1]"),
        ] {
            let failure = client.infer(&request).await.unwrap_err();
            assert_eq!((&*failure.code, &*failure.message), ("invalid_argument", message), "{surface:?}");
        }
    }
    let body = r#"{"instances":[[1,2,3],[4,5,6]]}"#;
    let answer = http1(&running, http_request(&running, "POST", "/v1/models/ragged:predict", None, body)).await;
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(answer["predictions"][1]["deviations"], json!([-11.0, -10.0, -9.0]), "{answer}");
}

#[tokio::test]
async fn a_repository_of_tritons_is_served_as_it_is() {
    let config = "max_batch_size: 16\n\
        input [ { name: \"values\" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true } ]\n\
        output [ { name: \"sums\" data_type: TYPE_FP32 dims: [ ] },\n\
        { name: \"deviations\" data_type: TYPE_FP32 dims: [ -1 ] } ]\n\
        batch_input [ { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: \"ends\" data_type: TYPE_INT32\n\
        source_input: \"values\" } ]\n\
        batch_output [ { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: \"deviations\" source_input: \"values\" } ]\n\
        dynamic_batching { max_queue_delay_microseconds: 5000 }\n";
    let running = over_with("nameless", "config.pbtxt", config).await;
    for surface in Surface::ALL {
        let calls = (0..6).map(|at| {
            let request = Request { model: "nameless".into(), ..values(1 + at % 2, 1 + 3 * at, at) };
            call(&running, surface, request)
        });
        futures_util::future::join_all(calls).await;
    }
    let told = get(&running, "/v2/models/nameless/config").await;
    assert_eq!(told["max_batch_size"], 16);
    let batch_input = json!([{
        "kind": "BATCH_ACCUMULATED_ELEMENT_COUNT", "target_name": ["ends"], "data_type": "TYPE_INT32",
        "source_input": ["values"],
    }]);
    assert_eq!(told["batch_input"], batch_input);
}

/// What `check` says of `nameless`, which has these settings.
fn described(made: &[(Marks, &str)], outputs: &[&str]) -> (Vec<String>, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let version = folder.path().join("nameless/1");
    std::fs::create_dir_all(&version).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/good/nameless/1/model.onnx");
    std::fs::copy(from, version.join("model.onnx")).unwrap();
    let ragged = RaggedSettings {
        made: made.iter().map(|(marks, name)| (*marks, (*name).into())).collect(),
        outputs: outputs.iter().map(|output| (*output).into()).collect(),
    };
    let input = InputSettings { ragged: Some(ragged), ..InputSettings::default() };
    let defaults = ModelSettings { inputs: vec![("values".into(), input)], ..ModelSettings::default() };
    let settings = Settings { directories: vec![folder.path().to_owned()], defaults, ..Settings::default() };
    let runtime = Arc::new(Runtime::load(None).unwrap_or_else(|error| panic!("{error}")));
    let found = describe(&settings, runtime, 1).remove(0);
    (found.lines, found.problem)
}

#[test]
fn check_says_what_is_done_and_what_would_not_work() {
    let (lines, problem) = described(&[(Marks::Ends, "ends")], &["deviations"]);
    assert_eq!(problem, None);
    for line in [
        "input `values`: FP32, of shape any x any",
        "output `deviations`: FP32, of shape any x any",
        "output `sums`: FP32, of shape any",
        "`values`: rows of any lengths run together, one behind the other, up to 16384 elements",
        "`ends` is not sent: it says where each row ends in `values`",
        "`deviations` is cut by the lengths of `values`",
        "`sums` has one row for each row",
        "memory of runs goes back every 5s: callers choose dimensions besides the rows",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:#?}");
    }
    // Without names only a run shows that an output follows the elements.
    let (_, problem) = described(&[(Marks::Ends, "ends")], &[]);
    let problem = problem.unwrap();
    assert!(problem.starts_with("output `deviations` does not have one row for each row of the inputs"), "{problem}");
    assert!(problem.ends_with("name it in `outputs` of that input's `ragged`"), "{problem}");
    let (_, problem) = described(&[(Marks::Ends, "ends")], &["sums", "deviations"]);
    assert!(problem.unwrap().starts_with("output `sums` does not have an element for each of the inputs'"));
}

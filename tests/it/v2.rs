//! The Open Inference Protocol as its clients see it: real models, real sockets.

mod binary;
mod messages;

use crate::support::{
    Running, Setup,
    client::{Client, Data, Request, grpc, http_request, http1},
    scripts::World,
};
use http::HeaderMap;
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference as pb};

async fn models() -> Running {
    Setup::new().start_over("tests/models/good").await
}

/// Status, headers and body of one exchange.
async fn ask(running: &Running, method: &str, path: &str, body: impl Into<bytes::Bytes>) -> (u16, HeaderMap, Vec<u8>) {
    let (parts, body) = http1(running, http_request(running, method, path, None, body)).await.into_parts();
    (parts.status.as_u16(), parts.headers, body.to_vec())
}

async fn get(running: &Running, path: &str) -> Value {
    let (status, _, body) = ask(running, "GET", path, "").await;
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// The body of an answer that must be one.
async fn answer(running: &Running, model: &str, body: &str) -> String {
    let (status, _, answer) = ask(running, "POST", &format!("/v2/models/{model}/infer"), body.to_owned()).await;
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// The text of an error, in the form that clients of V2 read.
async fn refusal(running: &Running, model: &str, body: &str, expected: u16) -> String {
    let (status, headers, text) = ask(running, "POST", &format!("/v2/models/{model}/infer"), body.to_owned()).await;
    let text = String::from_utf8(text).unwrap();
    assert_eq!(status, expected, "{body}: {text}");
    // Byte for byte: KServe's client reads the error only then.
    assert_eq!(headers["content-type"], "application/json");
    let error: Value = serde_json::from_str(&text).unwrap();
    error["error"].as_str().expect("`error` is a string").to_owned()
}

/// A request of one input, `x`.
fn one(datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}"#)
}

#[tokio::test]
async fn ready_is_503_while_models_are_loaded_and_each_model_says_so_itself() {
    let files = [("a/1/model.onnx", "gate"), ("b/1/model.onnx", "double")];
    let world = World::begin(Setup::new(), &files).await;
    world.at_the_gate().await;
    let (status, error) = world.rest("GET", "/v2/health/ready", "").await;
    assert_eq!(status, 503);
    assert!(error["error"].is_string(), "{error}");
    assert_eq!(world.rest("GET", "/v2/health/live", "").await, (200, json!({ "live": true })));
    let (status, error) = world.rest("GET", "/v2/models/a/ready", "").await;
    assert_eq!((status, &error["code"]), (503, &json!("not_ready")));
    let mut client = world.grpc().await;
    assert!(client.server_live(pb::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(!client.server_ready(pb::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    world.open_the_gate();
    world.running.loaded().await;
    assert_eq!(world.rest("GET", "/v2/health/ready", "").await, (200, json!({ "ready": true })));
    assert_eq!(world.rest("GET", "/v2/models/a/ready", "").await, (200, json!({ "name": "a", "ready": true })));
    assert_eq!(world.rest("GET", "/v2/models/a/versions/1/ready", "").await.0, 200);
    assert!(client.server_ready(pb::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let ready = |name: &str| pb::ModelReadyRequest { name: name.into(), version: String::new() };
    assert!(client.model_ready(ready("a")).await.unwrap().into_inner().ready);
    assert_eq!(client.model_ready(ready("x")).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn the_server_says_the_same_of_itself_with_and_without_a_slash() {
    let running = models().await;
    let (first, second) = (ask(&running, "GET", "/v2", "").await, ask(&running, "GET", "/v2/", "").await);
    assert_eq!((first.0, &first.2), (200, &second.2));
    let rest: Value = serde_json::from_slice(&first.2).unwrap();
    let message = grpc(&running).await.server_metadata(pb::ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(rest, json!({ "name": message.name, "version": message.version, "extensions": message.extensions }));
    // perf_analyzer asks for statistics only where they are announced; nobody is to find what is not there.
    for (name, there) in [("statistics", true), ("binary_tensor_data", true), ("system_shared_memory", false)] {
        assert_eq!(message.extensions.iter().any(|extension| extension == name), there, "{name}");
    }
}

#[tokio::test]
async fn metadata_has_free_dimensions_as_minus_one_and_rows_where_there_are_any() {
    let running = models().await;
    for (model, inputs, outputs) in [
        ("scalar", json!([[]]), json!([[]])),
        ("fixed", json!([[1, 4]]), json!([[1, 4]])),
        ("mlp_4_16_3", json!([[-1, 4]]), json!([[-1, 3]])),
        ("two_by_two", json!([[-1, 2], [-1, 2]]), json!([[-1, 2], [-1, 2]])),
        ("reduced", json!([[-1, 2]]), json!([[-1], []])),
        ("nonzero", json!([[-1]]), json!([[1, -1]])),
    ] {
        let metadata = get(&running, &format!("/v2/models/{model}")).await;
        let shapes =
            |tensors: &Value| tensors.as_array().unwrap().iter().map(|t| t["shape"].clone()).collect::<Value>();
        assert_eq!((shapes(&metadata["inputs"]), shapes(&metadata["outputs"])), (inputs, outputs), "{model}");
        assert_eq!(metadata["versions"], json!(["1"]), "text, though they are numbers");
        assert_eq!(metadata["platform"], "onnxruntime_onnx");
        // Where rows are batched the configuration leaves them out and metadata does not; clients rely on it.
        let config = get(&running, &format!("/v2/models/{model}/config")).await;
        let rows = config["max_batch_size"].as_i64().unwrap() > 0;
        for (tensors, configured) in [("inputs", "input"), ("outputs", "output")] {
            for (tensor, configured) in
                metadata[tensors].as_array().unwrap().iter().zip(config[configured].as_array().unwrap())
            {
                let mut whole = configured["dims"].as_array().unwrap().clone();
                if rows {
                    whole.insert(0, json!(-1));
                }
                assert_eq!(tensor["shape"], json!(whole), "{model}");
                assert_eq!(tensor["name"], configured["name"]);
            }
        }
    }
    for (model, batched) in [("mlp_4_16_3", true), ("fixed", false), ("scalar", false)] {
        let rows = get(&running, &format!("/v2/models/{model}/config")).await["max_batch_size"].as_i64().unwrap();
        assert_eq!(rows > 0, batched, "{model}");
    }
    // What the protocol has no name for is shown, and refused when it is run.
    assert_eq!(get(&running, "/v2/models/float8").await["inputs"][0]["datatype"], "INVALID");
    refusal(&running, "float8", &one("UINT8", "[1]", "[1]"), 501).await;
}

#[tokio::test]
async fn a_version_in_the_path_is_that_one_in_the_answer() {
    let files = [("a/1/model.onnx", "double"), ("a/10/model.onnx", "double"), ("a/9/model.onnx", "nonsense")];
    let world = World::start(Setup::new().yaml("models: { defaults: { versions: all } }"), &files).await;
    let versions = async |path: &str| world.rest("GET", path, "").await.1["versions"].clone();
    assert_eq!(versions("/v2/models/a").await, json!(["1", "10"]), "those that take calls");
    assert_eq!(versions("/v2/models/a/versions/1").await, json!(["1"]));
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}"#;
    for (path, expected) in [("a", "10"), ("a/versions/1", "1"), ("a/versions/10", "10")] {
        let (status, answer) = world.rest("POST", &format!("/v2/models/{path}/infer"), body).await;
        assert_eq!((status, &answer["model_version"]), (200, &json!(expected)), "{path}: by number and not by letters");
    }
    for (path, status) in [("a/versions/9", 503), ("a/versions/2", 404), ("a/versions/x", 404), ("a/versions/01", 404)]
    {
        assert_eq!(world.rest("POST", &format!("/v2/models/{path}/infer"), body).await.0, status, "{path}");
        assert_eq!(world.rest("GET", &format!("/v2/models/{path}/ready"), "").await.0, status, "{path}");
    }
}

#[tokio::test]
async fn flat_and_nested_data_are_the_same_and_what_is_neither_is_refused() {
    let running = models().await;
    let flat = answer(&running, "mlp_4_16_3", &one("FP32", "[2,4]", "[1,2,3,4,5,6,7,8]")).await;
    let nested = answer(&running, "mlp_4_16_3", &one("FP32", "[2,4]", "[[1,2,3,4],[5,6,7,8]]")).await;
    let outputs = |text: &str| serde_json::from_str::<Value>(text).unwrap()["outputs"].to_string();
    assert_eq!(outputs(&flat), outputs(&nested));
    for data in ["[[1,2,3,4],[5,6,7]]", "[[1,2],[3,4],[5,6],[7,8]]", "[1,2,3]", "[1,2,3,4,5,6,7,8,9]", "[]", "7"] {
        let text = refusal(&running, "mlp_4_16_3", &one("FP32", "[2,4]", data), 400).await;
        assert!(text.contains("`x`"), "{data}: {text}");
    }
}

#[tokio::test]
async fn an_answer_is_these_bytes() {
    let running = models().await;
    let ask = |more: &str| {
        format!(r#"{{{more}"inputs":[{{"name":"x","datatype":"FP32","shape":[2],"data":[0.1,-2]}}],"outputs":[]}}"#)
    };
    let expected = |id: &str| {
        format!(
            "{{\"id\":\"{id}\",\"model_name\":\"echo_fp32\",\"model_version\":\"1\",\"outputs\":[{{\"name\":\"y\",\
             \"datatype\":\"FP32\",\"shape\":[2],\"data\":[0.1,-2.0]}}]}}"
        )
    };
    // No `parameters` where there is nothing to say: Triton's C++ client looks into them as soon as they exist.
    assert_eq!(answer(&running, "echo_fp32", &ask(r#""id":"mine","#)).await, expected("mine"));
    for absent in ["", r#""id":"","#] {
        let mut request = http_request(&running, "POST", "/v2/models/echo_fp32/infer", None, ask(absent));
        request.headers_mut().insert("x-request-id", "call-1".parse().unwrap());
        let response = http1(&running, request).await;
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(!response.headers().contains_key("inference-header-content-length"));
        assert_eq!(response.body(), &expected("call-1"), "{absent:?}: an empty id is none");
    }
}

#[tokio::test]
async fn outputs_are_those_that_were_asked_for_in_their_order() {
    let running = models().await;
    let inputs = r#""inputs":[{"name":"a","datatype":"FP32","shape":[1,2],"data":[1.5,2]},{"name":"b","datatype":"INT32","shape":[1,2],"data":[1,1]}]"#;
    for (outputs, expected) in [
        ("", &["sum", "difference"][..]),
        (r#""outputs":[],"#, &["sum", "difference"]),
        (r#""outputs":[{"name":"difference"},{"name":"sum"}],"#, &["difference", "sum"]),
        (r#""outputs":[{"name":"difference"}],"#, &["difference"]),
    ] {
        let text = answer(&running, "two_by_two", &format!("{{{outputs}{inputs}}}")).await;
        let found: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = found["outputs"].as_array().unwrap().iter().map(|output| &output["name"]).collect();
        assert_eq!(names, expected, "{outputs}");
    }
    let unknown = format!(r#"{{"outputs":[{{"name":"product"}}],{inputs}}}"#);
    assert!(refusal(&running, "two_by_two", &unknown, 400).await.contains("`product`"));
}

#[tokio::test]
async fn integers_are_exact_and_what_does_not_fit_is_refused_by_its_place() {
    let running = models().await;
    for (datatype, data) in
        [("INT64", "[9007199254740993]"), ("UINT64", "[18446744073709551615]"), ("INT8", "[-128,127]")]
    {
        let elements = data.matches(',').count() + 1;
        let model = format!("echo_{}", datatype.to_lowercase());
        let text = answer(&running, &model, &one(datatype, &format!("[{elements}]"), data)).await;
        assert!(text.contains(&format!("\"data\":{data}")), "{text}");
    }
    for (datatype, data, place) in [
        ("INT8", "[1,128]", "at index 1"),
        ("INT32", "[1.5]", "at index 0"),
        ("UINT64", "[18446744073709551616]", "index 0"),
    ] {
        let elements = data.matches(',').count() + 1;
        let model = format!("echo_{}", datatype.to_lowercase());
        let text = refusal(&running, &model, &one(datatype, &format!("[{elements}]"), data), 400).await;
        assert!(text.contains("`x`") && text.contains(place), "{text}");
    }
}

#[tokio::test]
async fn a_scalar_and_no_elements_at_all_go_in_and_come_out_on_every_surface() {
    let running = models().await;
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let scalar = client.infer(&Request::new("scalar", &[], vec![0.25])).await.unwrap();
        assert_eq!(scalar.outputs["y"], (vec![], Data::Floats(vec![0.5])), "{surface:?}");
        let none = client.infer(&Request::new("nonzero", &[3], vec![0.0; 3])).await.unwrap();
        assert_eq!(none.outputs["y"], (vec![1, 0], Data::Ints(vec![])), "{surface:?}");
        let empty = client.infer(&Request::new("mlp_4_16_3", &[0, 4], vec![])).await.unwrap();
        assert_eq!(empty.outputs["y"], (vec![0, 3], Data::Floats(vec![])), "{surface:?}");
    }
    // A scalar needs no list around it.
    let bare = answer(&running, "scalar", &one("FP32", "[]", "0.25")).await;
    assert!(bare.ends_with(r#""shape":[],"data":[0.5]}]}"#), "{bare}");
}

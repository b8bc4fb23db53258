//! The Open Inference Protocol and its binary tensors as their clients see them: real models, real sockets.

use crate::support::{
    Running, Setup,
    client::{Client, Data, Request, grpc, http_request, http1},
    scripts::World,
};
use http::HeaderMap;
use serde_json::{Value, json};
use sluicegate::{
    call::Surface,
    wire::proto::inference::{
        self as pb, InferTensorContents, ModelInferRequest,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
};
use tonic_types::StatusExt;

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

/// A request in two parts, with or without saying how long the first is.
async fn framed(running: &Running, model: &str, length: Option<&str>, parts: &[&[u8]]) -> (u16, HeaderMap, Vec<u8>) {
    let mut request = http_request(running, "POST", &format!("/v2/models/{model}/infer"), None, parts.concat());
    if let Some(length) = length {
        request.headers_mut().insert("inference-header-content-length", length.parse().unwrap());
    }
    let (parts, body) = http1(running, request).await.into_parts();
    (parts.status.as_u16(), parts.headers, body.to_vec())
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
async fn strings_that_are_no_text_come_back_in_binary_only() {
    let running = models().await;
    let header = |wish: &str| {
        format!(
            r#"{{{wish}"inputs":[{{"name":"x","datatype":"BYTES","shape":[1],"parameters":{{"binary_data_size":6}}}}]}}"#
        )
    };
    let raw = b"\x02\0\0\0\xff\0";
    let json = header("");
    let length = json.len().to_string();
    let (status, _, body) = framed(&running, "echo_bytes", Some(&length), &[json.as_bytes(), raw]).await;
    let error: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 400, "{error}");
    assert!(error["error"].as_str().unwrap().contains("binary output"), "{error}");
    let json = header(r#""parameters":{"binary_data_output":true},"#);
    let length = json.len().to_string();
    let (status, headers, body) = framed(&running, "echo_bytes", Some(&length), &[json.as_bytes(), raw]).await;
    assert_eq!((status, &headers["content-type"]), (200, &"application/octet-stream".parse().unwrap()));
    assert!(body.ends_with(raw));
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

#[tokio::test]
async fn the_length_of_the_json_may_be_said_and_must_be_true() {
    let running = models().await;
    let json = one("FP32", "[1]", "[0.5]");
    let binary = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
    let raw = 0.5_f32.to_le_bytes();
    let number = |length: usize| length.to_string();
    let (all, beyond, before) = (number(json.len()), number(json.len() + 1), number(json.len() - 1));
    let part = number(binary.len());
    for (length, parts, expected) in [
        (None, [json.as_bytes(), b""], 200),
        (Some(&*all), [json.as_bytes(), b""], 200),
        (Some(&part), [binary.as_bytes(), &raw], 200),
        (Some("0"), [&raw, b""], 200),
        (Some(&before), [json.as_bytes(), b""], 400),
        (Some(&beyond), [json.as_bytes(), b""], 400),
        (Some("-1"), [json.as_bytes(), b""], 400),
        (Some("abc"), [json.as_bytes(), b""], 400),
        // Bytes that the JSON does not speak of are an error, and never the next request.
        (Some(&all), [json.as_bytes(), b"more"], 400),
        (Some(&part), [binary.as_bytes(), &raw[..3]], 400),
        (None, [binary.as_bytes(), &raw], 400),
    ] {
        let (status, headers, body) = framed(&running, "echo_fp32", length, &parts).await;
        let shown = String::from_utf8_lossy(&body);
        assert_eq!(status, expected, "{length:?}: {shown}");
        match headers.get("inference-header-content-length") {
            // A raw body is answered in kind.
            Some(said) => {
                assert_eq!(length, Some("0"));
                let json: usize = said.to_str().unwrap().parse().unwrap();
                assert_eq!(body[json..], raw);
            }
            None if status == 200 => assert!(shown.contains("\"data\":[0.5]"), "{shown}"),
            None => assert!(shown.starts_with("{\"error\":\""), "{shown}"),
        }
    }
}

#[tokio::test]
async fn json_and_binary_inputs_mix_and_outputs_follow_the_default_or_their_own_wish() {
    let running = models().await;
    let ask = async |wishes: &str| {
        let json = format!(
            r#"{{{wishes}"inputs":[{{"name":"a","datatype":"FP32","shape":[1,2],"data":[1.5,2]}},{{"name":"b","datatype":"INT32","shape":[1,2],"parameters":{{"binary_data_size":8}}}}]}}"#
        );
        let length = json.len().to_string();
        let raw = [1_i32.to_le_bytes(), 1_i32.to_le_bytes()].concat();
        let (status, headers, body) = framed(&running, "two_by_two", Some(&length), &[json.as_bytes(), &raw]).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let length = headers.get("inference-header-content-length");
        let length = length.map_or(body.len(), |length| length.to_str().unwrap().parse().unwrap());
        (serde_json::from_slice::<Value>(&body[..length]).unwrap()["outputs"].clone(), body[length..].to_vec())
    };
    let raw = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
    let (sum, difference) = (raw([2.5, 3.0]), raw([0.5, 1.0]));
    let (outputs, tail) = ask("").await;
    assert_eq!((&outputs[0]["data"], &outputs[1]["data"], tail), (&json!([2.5, 3.0]), &json!([0.5, 1.0]), vec![]));
    let default = r#""parameters":{"binary_data_output":true},"#;
    let (outputs, tail) = ask(default).await;
    assert_eq!(tail, [&sum[..], &difference].concat());
    assert_eq!(outputs[1]["parameters"], json!({ "binary_data_size": 8 }));
    // A listed output takes the default unless it says otherwise.
    let listed = r#""outputs":[{"name":"difference"},{"name":"sum","parameters":{"binary_data":false}}],"#;
    let (outputs, tail) = ask(&format!("{default}{listed}")).await;
    assert_eq!((tail, &outputs[1]["data"]), (difference, &json!([2.5, 3.0])));
    let listed = r#""outputs":[{"name":"sum","parameters":{"binary_data":true}},{"name":"difference"}],"#;
    let (outputs, tail) = ask(listed).await;
    assert_eq!((tail, &outputs[1]["data"]), (sum, &json!([0.5, 1.0])));
}

fn input(datatype: &str, contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor { name: "x".into(), datatype: datatype.into(), shape: vec![1], contents, ..Default::default() }
}

fn message(model: &str, inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
    let raw_input_contents = raw.iter().map(|raw| bytes::Bytes::from_static(raw)).collect();
    ModelInferRequest { model_name: model.into(), inputs, raw_input_contents, ..Default::default() }
}

#[tokio::test]
async fn a_message_has_its_tensors_raw_or_typed_and_wholly() {
    let running = models().await;
    let mut client = grpc(&running).await;
    let floats = || Some(InferTensorContents { fp32_contents: vec![0.5], ..Default::default() });
    let ints = |value| Some(InferTensorContents { int_contents: vec![value], ..Default::default() });
    for (request, field, said) in [
        (message("echo_fp32", vec![input("FP32", floats())], &[&[0; 4]]), "x", "both raw and typed"),
        (message("echo_fp32", vec![input("FP32", None)], &[&[0; 4], &[0; 4]]), "request", "2 entries for 1 inputs"),
        (message("echo_fp32", vec![input("FP32", None)], &[&[0; 3]]), "x", "3 bytes, expected 4"),
        (message("echo_fp32", vec![input("FP32", None)], &[]), "x", "no data"),
        (message("echo_int8", vec![input("INT8", ints(200))], &[]), "x", "`200` at index 0"),
        (message("echo_int64", vec![input("INT64", ints(1))], &[]), "x", "expected `int64_contents`"),
        (message("echo_fp16", vec![input("FP16", floats())], &[]), "x", "raw_input_contents"),
    ] {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(said), "{status:?}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    // Raw, also where it was asked typed, and one entry for each output, also for an empty one.
    let typed =
        client.model_infer(message("echo_fp32", vec![input("FP32", floats())], &[])).await.unwrap().into_inner();
    assert_eq!(typed.raw_output_contents, [0.5_f32.to_le_bytes().to_vec()]);
    assert!(typed.outputs[0].contents.is_none());
    let none =
        client.model_infer(message("nonzero", vec![input("FP32", None)], &[&[0; 4]])).await.unwrap().into_inner();
    assert_eq!((&none.outputs[0].shape[..], &none.raw_output_contents[..]), (&[1, 0][..], &[bytes::Bytes::new()][..]));
}

#[tokio::test]
async fn reserved_parameters_have_their_types_on_a_call_too() {
    let running = models().await;
    let mut client = grpc(&running).await;
    let mut ask = async |name: &str, choice| {
        let mut request = message("echo_fp32", vec![input("FP32", None)], &[&[0, 0, 0, 0x3f]]);
        request.parameters.insert(name.into(), pb::InferParameter { parameter_choice: Some(choice) });
        client.model_infer(request).await.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
    };
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam, Uint64Param};
    for (name, choice) in [
        // Triton's C++ client sends it with every call, a stream or not.
        ("triton_enable_empty_final_response", BoolParam(false)),
        ("triton_enable_empty_final_response", BoolParam(true)),
        ("priority", Int64Param(1)),
        ("priority", Uint64Param(2)),
        ("timeout", Int64Param(10_000_000)),
        ("timeout", Int64Param(0)),
        ("sequence_id", Uint64Param(7)),
        ("sequence_id", StringParam("s".into())),
        ("mine", DoubleParam(0.5)),
    ] {
        assert_eq!(ask(name, choice).await, Ok(()), "{name}");
    }
    for (name, choice) in [
        ("timeout", Uint64Param(5)),
        ("timeout", StringParam("5".into())),
        ("priority", Int64Param(-1)),
        ("sequence_start", BoolParam(true)),
        ("triton_unknown", BoolParam(true)),
        ("headers", StringParam("a".into())),
    ] {
        let (code, text) = ask(name, choice).await.unwrap_err();
        assert_eq!(code, tonic::Code::InvalidArgument, "{name}");
        assert!(text.contains(&format!("`{name}`")), "{text}");
    }
}

#[tokio::test]
async fn classes_may_come_in_binary_too() {
    let running = models().await;
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[3],"data":[0.5,3.3,-1]}],"outputs":[{"name":"y","parameters":{"classification":1,"binary_data":true}}]}"#;
    let (status, headers, text) = ask(&running, "POST", "/v2/models/echo_fp32/infer", body).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&text));
    let length: usize = headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    // Every element of this model is a row of its own, with the one class that it has.
    let element = |text: &str| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
    let expected = ["0.500000:0", "3.300000:0", "-1.000000:0"].map(element).concat();
    assert_eq!(text[length..], expected);
    let mut request = message("scalar", vec![InferInputTensor { shape: vec![], ..input("FP32", None) }], &[&[0; 4]]);
    let wish =
        ("classification".to_owned(), pb::InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(5)) });
    request.outputs.push(InferRequestedOutputTensor { name: "y".into(), parameters: [wish].into() });
    let found = grpc(&running).await.model_infer(request).await.unwrap().into_inner();
    assert_eq!((&*found.outputs[0].datatype, &found.outputs[0].shape[..]), ("BYTES", &[1][..]));
}

//! KServe V1, TensorFlow Serving and `POST /predict`: what clients of those protocols see, through real sockets.

mod doors;
pub(crate) mod grpc;

use crate::support::{
    Running, Setup,
    client::{http_request, http1},
    scripts::World,
};
use http::HeaderMap;
use serde_json::{Value, json};
use std::path::Path;

/// Status, headers and body of one exchange.
async fn ask(running: &Running, method: &str, path: &str, body: impl Into<bytes::Bytes>) -> (u16, HeaderMap, String) {
    let response = http1(running, http_request(running, method, path, None, body)).await;
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(running: &Running, path: &str, body: &str) -> (u16, String) {
    let (status, _, body) = ask(running, "POST", path, body.to_owned()).await;
    (status, body)
}

/// The body of an answer that must be one.
async fn answer(running: &Running, path: &str, body: &str) -> String {
    let (status, answer) = post(running, path, body).await;
    assert_eq!(status, 200, "{path} {body}: {answer}");
    answer
}

/// The text of an error that must have this status, in the form that V1 clients read.
async fn refusal(running: &Running, method: &str, path: &str, body: &str, status: u16) -> String {
    let (found, headers, text) = ask(running, method, path, body.to_owned()).await;
    assert_eq!(found, status, "{method} {path} {body}: {text}");
    // Byte for byte: KServe's client reads the error only then (contract 00 section 7).
    assert_eq!(headers["content-type"], "application/json", "{path}");
    let error: Value = serde_json::from_str(&text).unwrap();
    error["error"].as_str().expect("`error` is a string").to_owned()
}

async fn get(running: &Running, path: &str) -> Value {
    let (status, headers, body) = ask(running, "GET", path, "").await;
    assert_eq!((status, &headers["content-type"]), (200, &"application/json".parse().unwrap()), "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

async fn real(folder: &str) -> Running {
    real_with(Setup::new(), folder).await
}

async fn real_with(setup: Setup, folder: &str) -> Running {
    setup.start_over(folder).await
}

const ROW: &str = r#"{"instances":[[1,2,3,4.5]]}"#;
const DOUBLED: &str = r#"{"predictions":[[2.0,4.0,6.0,9.0]]}"#;

#[tokio::test]
async fn a_verb_follows_a_colon_however_it_is_written() {
    let running = Setup::new().start().await;
    for path in [
        "/v1/models/double:predict",
        "/v1/models/double%3Apredict",
        "/v1/models/double/versions/1:predict",
        "/v1/models/double/versions/1%3apredict",
        "/v1/models/double:predict?a=b",
    ] {
        assert_eq!(answer(&running, path, ROW).await, DOUBLED, "{path}");
    }
    let unknown = refusal(&running, "POST", "/v1/models/double:unknown", ROW, 404).await;
    assert_eq!(unknown, "this path is unknown");
    let version = refusal(&running, "POST", "/v1/models/double/versions/9:predict", ROW, 404).await;
    assert_eq!(version, "version `9` of model `double` is unknown");
    let label = refusal(&running, "POST", "/v1/models/double/labels/stable:predict", ROW, 404).await;
    assert_eq!(label, "version `stable` of model `double` is unknown");
    let model = refusal(&running, "POST", "/v1/models/no.such:predict", ROW, 404).await;
    assert_eq!(model, "model `no.such` is unknown");
    let explain = refusal(&running, "POST", "/v1/models/double:explain", ROW, 501).await;
    assert_eq!(explain, "models of this server explain nothing");
    refusal(&running, "GET", "/v1/models/double:predict", "", 405).await;
    refusal(&running, "POST", "/v1/models/double", "", 405).await;
}

#[tokio::test]
async fn a_name_may_have_dots_before_the_verb() {
    let world = World::explicit("all", &[("a.b-c_d.v2/1/model.onnx", "double")]).await;
    for path in ["/v1/models/a.b-c_d.v2:predict", "/v1/models/a%2Eb-c_d.v2/versions/1:predict"] {
        assert_eq!(answer(&world.running, path, ROW).await, DOUBLED, "{path}");
    }
    assert_eq!(get(&world.running, "/v1/models/a.b-c_d.v2").await["ready"], true);
}

#[tokio::test]
async fn a_body_is_read_whatever_its_type_is_called() {
    let running = Setup::new().start().await;
    for kind in [None, Some("text/plain"), Some("application/json; charset=utf-8"), Some("nonsense")] {
        let mut request = http_request(&running, "POST", "/v1/models/double:predict", None, ROW);
        request.headers_mut().remove("content-type");
        if let Some(kind) = kind {
            request.headers_mut().insert("content-type", kind.parse().unwrap());
        }
        // An event in binary mode is its body; its own headers say nothing here (contract 03 section 9).
        request.headers_mut().insert("ce-specversion", "1.0".parse().unwrap());
        request.headers_mut().insert("ce-type", "x".parse().unwrap());
        let response = http1(&running, request).await;
        assert_eq!(response.body(), DOUBLED, "{kind:?}");
        assert!(!response.headers().keys().any(|name| name.as_str().starts_with("ce-")));
    }
    let mut event = http_request(&running, "POST", "/v1/models/double:predict", None, ROW);
    event.headers_mut().insert("content-type", "application/cloudevents+json".parse().unwrap());
    assert_eq!(http1(&running, event).await.status(), 415);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_one_clear_string() {
    let running = Setup::new().start().await;
    let path = "/v1/models/double:predict";
    for (body, said) in [
        (r#"{"instances":[[1,2,3,4]],"inputs":[[1,2,3,4]]}"#, "both `instances` and `inputs`"),
        ("{}", "neither `instances` nor `inputs`"),
        (r#"{"instances":[]}"#, "`instances` is empty"),
        (r#"{"instances":7}"#, "expected a list"),
        (r#"{"instances":[[1,2,3,4],[1,2,3]]}"#, "found a list of 3 at `instances[1]`, expected 4"),
        (r#"{"instances":[[1,2,3]]}"#, "has shape [1, 3], expected [-1, 4]"),
        (r#"{"inputs":[1,2,3,4]}"#, "has shape [4], expected [-1, 4]"),
        (r#"{"instances":[[1,2,3,"4"]]}"#, "at `instances[0][3]`, expected a number for FP32"),
        (r#"{"instances":[{"y":[1,2,3,4]}]}"#, "`y`, which is no input, expected `x`"),
        (r#"{"instances":[[1,2,3,4]],"signature_name":"other"}"#, "signature `other` is unknown"),
        ("not json", "invalid JSON"),
    ] {
        let text = refusal(&running, "POST", path, body, 400).await;
        assert!(text.contains(said), "{body}: {text}");
    }
    answer(&running, path, r#"{"instances":[{"x":[1,2,3,4]}],"parameters":{"anything":[1]}}"#).await;
}

#[tokio::test]
async fn every_datatype_is_the_same_bits_as_over_v2() {
    let running = real("tests/models/good").await;
    for (model, data) in [
        ("bool", "[true,false]"),
        ("uint8", "[0,255]"),
        ("uint16", "[0,65535]"),
        ("uint32", "[0,4294967295]"),
        ("uint64", "[0,18446744073709551615]"),
        ("int8", "[-128,127]"),
        ("int16", "[-32768,32767]"),
        ("int32", "[-2147483648,2147483647]"),
        ("int64", "[-9223372036854775808,9007199254740993]"),
        ("fp32", "[0.1,-0.0,3.4028235e38,1e-45,5]"),
        ("fp64", "[0.1,2.2250738585072014e-308,1.7976931348623157e308,7]"),
        ("bytes", r#"["","Füße","a\u0000b"]"#),
    ] {
        let body = |member: &str| format!("{{\"{member}\":{data}}}");
        let path = format!("/v1/models/echo_{model}:predict");
        let columns = answer(&running, &path, &body("inputs")).await;
        let rows = answer(&running, &path, &body("instances")).await;
        assert_eq!(columns.replace("{\"outputs\":", "{\"predictions\":"), rows, "{model}");
        let count = data.matches(',').count() + 1;
        let datatype = model.to_uppercase();
        let v2 = format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[{count}],"data":{data}}}]}}"#);
        let v2 = answer(&running, &format!("/v2/models/echo_{model}/infer"), &v2).await;
        let printed = columns.strip_prefix("{\"outputs\":").unwrap().strip_suffix('}').unwrap();
        assert!(v2.contains(&format!("\"data\":{printed}")), "{model}: {v2} has no {printed}");
    }
    // V2 has no numbers for half types unless it is told to; V1 always does.
    for (model, printed) in [("fp16", "[1.5,-2.0,0.099975586]"), ("bf16", "[1.5,-2.0,0.100097656]")] {
        let found = answer(&running, &format!("/v1/models/echo_{model}:predict"), r#"{"inputs":[1.5,-2,0.1]}"#).await;
        assert_eq!(found, format!("{{\"outputs\":{printed}}}"));
    }
}

#[tokio::test]
async fn several_tensors_are_objects_both_ways() {
    let running = real("tests/models/good").await;
    let path = "/v1/models/two_by_two:predict";
    let rows = r#"{"instances":[{"a":[1.5,2],"b":[1,1]},{"b":[2,2],"a":[3,4]}]}"#;
    assert_eq!(
        answer(&running, path, rows).await,
        r#"{"predictions":[{"sum":[2.5,3.0],"difference":[0.5,1.0]},{"sum":[5.0,6.0],"difference":[1.0,2.0]}]}"#
    );
    let columns = r#"{"inputs":{"a":[[1.5,2],[3,4]],"b":[[1,1],[2,2]]}}"#;
    assert_eq!(
        answer(&running, path, columns).await,
        r#"{"outputs":{"sum":[[2.5,3.0],[5.0,6.0]],"difference":[[0.5,1.0],[1.0,2.0]]}}"#
    );
    let missing = refusal(&running, "POST", path, r#"{"instances":[{"a":[1,2]}]}"#, 400).await;
    assert_eq!(missing, "`instances[0]` has no `b`");
    let integer = refusal(&running, "POST", path, r#"{"inputs":{"a":[[1,2]],"b":[[1.0,2]]}}"#, 400).await;
    assert!(integer.contains("has `1.0` at `inputs.b[0][0]`, expected an integer"), "{integer}");
    let rows = refusal(&running, "POST", path, r#"{"inputs":{"a":[[1,2]],"b":[[1,2],[3,4]]}}"#, 400).await;
    assert!(rows.contains("has 2 rows, expected 1"), "{rows}");
}

#[tokio::test]
async fn what_has_no_rows_works_in_columns() {
    let running = real("tests/models/good").await;
    assert_eq!(answer(&running, "/v1/models/scalar:predict", r#"{"inputs":0.25}"#).await, r#"{"outputs":0.5}"#);
    let scalar = refusal(&running, "POST", "/v1/models/scalar:predict", r#"{"instances":[0.25]}"#, 400).await;
    assert!(scalar.contains("send `inputs` instead of `instances`"), "{scalar}");
    let path = "/v1/models/reduced:predict";
    let reduced = refusal(&running, "POST", path, r#"{"instances":[[1,2],[3,4]]}"#, 400).await;
    assert_eq!(
        reduced,
        "output `total` has no dimensions, so the answer has no rows: send `inputs` instead of `instances`"
    );
    assert_eq!(
        answer(&running, path, r#"{"inputs":[[1,2],[3,4]]}"#).await,
        r#"{"outputs":{"sums":[3.0,7.0],"total":10.0}}"#
    );
    assert_eq!(answer(&running, "/v1/models/nonzero:predict", r#"{"inputs":[0,5,6]}"#).await, r#"{"outputs":[[1,2]]}"#);
}

#[tokio::test]
async fn binary_data_goes_in_and_comes_out_as_base64() {
    let running = real("tests/models/good").await;
    let path = "/v1/models/echo_bytes:predict";
    let found = answer(&running, path, r#"{"instances":[{"b64":"gGE="},"text",{"b64":"dGV4dA"}]}"#).await;
    assert_eq!(found, r#"{"predictions":[{"b64":"gGE="},"text","text"]}"#);
    let invalid = refusal(&running, "POST", path, r#"{"instances":["a",{"b64":"%"}]}"#, 400).await;
    assert!(invalid.contains("expected standard base64"), "{invalid}");
}

#[tokio::test]
async fn what_is_no_number_goes_in_as_a_token_and_comes_out_by_the_option() {
    let body = r#"{"instances":[NaN,Infinity,-Infinity,1]}"#;
    let path = "/v1/models/echo_fp32:predict";
    let running = real("tests/models/good").await;
    assert_eq!(answer(&running, path, body).await, r#"{"predictions":[null,null,null,1.0]}"#);
    let running = real_with(Setup::new().yaml("json: { non_finite: as_token }"), "tests/models/good").await;
    assert_eq!(answer(&running, path, body).await, r#"{"predictions":[NaN,Infinity,-Infinity,1.0]}"#);
    let running = real_with(Setup::new().yaml("json: { non_finite: refuse }"), "tests/models/good").await;
    assert!(refusal(&running, "POST", path, body, 400).await.contains("not finite"));
    // Over V2 the tokens are no JSON.
    let v2 = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}"#;
    refusal(&running, "POST", "/v2/models/echo_fp32/infer", v2, 400).await;
}

#[tokio::test]
async fn one_answer_satisfies_the_clients_of_three_protocols() {
    let running = Setup::new().start().await;
    let model = get(&running, "/v1/models/double").await;
    // OpenAI's object, KServe's readiness, TensorFlow Serving's state.
    assert_eq!(
        (&model["id"], &model["object"], &model["owned_by"]),
        (&json!("double"), &json!("model"), &json!("sluicegate"))
    );
    assert!(model["created"].as_u64().is_some_and(|created| created > 1_700_000_000), "{model}");
    assert_eq!((&model["name"], &model["ready"]), (&json!("double"), &json!(true)));
    let available =
        json!([{ "version": "1", "state": "AVAILABLE", "status": { "error_code": "OK", "error_message": "" } }]);
    assert_eq!(model["model_version_status"], available);
    let list = get(&running, "/v1/models").await;
    assert_eq!(
        (&list["object"], list["data"].as_array().unwrap().len()),
        (&json!("list"), list["models"].as_array().unwrap().len())
    );
    let listed = list["data"].as_array().unwrap().iter().find(|entry| entry["id"] == "double").unwrap();
    assert_eq!(listed["created"], model["created"]);
    assert!(list["models"].as_array().unwrap().contains(&json!("double")));
    let version = get(&running, "/v1/models/double/versions/1").await;
    assert_eq!(version, json!({ "model_version_status": available }));
    assert_eq!(ask(&running, "GET", "/", "").await.2, r#"{"status":"alive"}"#);
}

#[tokio::test]
async fn a_model_that_is_not_ready_is_503_and_an_unknown_one_404() {
    let running = Setup::new().start().await;
    let (status, headers, body) = ask(&running, "GET", "/v1/models/corrupt", "").await;
    assert_eq!(status, 503, "{body}");
    assert!(headers.contains_key("retry-after"));
    let said = refusal(&running, "GET", "/v1/models/corrupt", "", 503).await;
    assert_eq!(said, "model `corrupt` is not served: loading it failed");
    assert_eq!(refusal(&running, "POST", "/v1/models/corrupt:predict", ROW, 503).await, said);
    // One version's state can be told whatever it is.
    let version = get(&running, "/v1/models/corrupt/versions/1").await;
    assert_eq!(version["model_version_status"][0]["state"], "END");
    assert_eq!(version["model_version_status"][0]["status"]["error_code"], "INTERNAL");
    for path in [
        "/v1/models/nobody",
        "/v1/models/nobody/metadata",
        "/v1/models/double/versions/9",
        "/v1/models/double/labels/a",
    ] {
        refusal(&running, "GET", path, "", 404).await;
    }
}

#[tokio::test]
async fn metadata_is_what_perf_analyzer_reads() {
    let running = Setup::new().start().await;
    for path in ["/v1/models/double/metadata", "/v1/models/double/versions/1/metadata"] {
        let metadata = get(&running, path).await;
        assert_eq!(metadata["model_spec"], json!({ "name": "double", "signature_name": "", "version": "1" }));
        let signature = &metadata["metadata"]["signature_def"]["signature_def"]["serving_default"];
        assert_eq!(signature["method_name"], "tensorflow/serving/predict");
        let x = &signature["inputs"]["x"];
        assert_eq!((&x["dtype"], &x["tensor_shape"]["unknown_rank"]), (&json!("DT_FLOAT"), &json!(false)));
        assert_eq!(x["tensor_shape"]["dim"][1]["size"], "4");
    }
}

#[tokio::test]
async fn examples_are_classified_and_regressed_where_a_model_allows_it() {
    let running = real("models").await;
    let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/example.json")).unwrap();
    let image = &serde_json::from_slice::<Value>(&text).unwrap()["inputs"][0]["data"];
    let body = json!({ "signature_name": "serving_default", "examples": [{ "image": image }, { "image": image }] });
    let found: Value =
        serde_json::from_str(&answer(&running, "/v1/models/digits:classify", &body.to_string()).await).unwrap();
    let results = found["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]), (2, &results[1]));
    assert_eq!((&results[0][9][0], results[0].as_array().unwrap().len()), (&json!("nine"), 10));
    // The very numbers of the model, in the order of its classes.
    let predicted: Value = serde_json::from_str(
        &answer(&running, "/v1/models/digits:predict", &json!({ "instances": [image, image] }).to_string()).await,
    )
    .unwrap();
    let scores: Vec<_> = results[0].as_array().unwrap().iter().map(|pair| pair[1].clone()).collect();
    assert_eq!(json!(scores), predicted["predictions"][0]);

    let lengths =
        answer(&running, "/v1/models/text_length:regress", r#"{"examples":[{"text":"gate"},{"text":"Füße!"}]}"#);
    assert_eq!(lengths.await, r#"{"results":[4,5]}"#);
    let none =
        refusal(&running, "POST", "/v1/models/text_length:classify", r#"{"examples":[{"text":"a"}]}"#, 501).await;
    assert!(none.contains("its output `length` is INT64 with 1 dimensions"), "{none}");
    let none = refusal(&running, "POST", "/v1/models/digits:regress", r#"{"examples":[]}"#, 501).await;
    assert!(none.contains("`probabilities` is FP32 with 2 dimensions"), "{none}");
}

#[tokio::test]
async fn a_plain_call_is_there_when_it_is_configured() {
    let running = Setup::new().start().await;
    for method in ["POST", "GET", "DELETE"] {
        assert_eq!(refusal(&running, method, "/predict", "{}", 404).await, "this path is unknown");
    }
    let setup = Setup::new().yaml("rest: { predict: { model: double, inputs: { rows: x }, outputs: { doubled: y } } }");
    let running = setup.start().await;
    assert_eq!(answer(&running, "/predict", r#"{"rows":[[1,2,3,4]]}"#).await, r#"{"doubled":[[2.0,4.0,6.0,8.0]]}"#);
    let said = refusal(&running, "POST", "/predict", r#"{"x":[[1,2,3,4]]}"#, 400).await;
    assert_eq!(said, "the request has `x`, which is no input, expected `rows`");
    refusal(&running, "GET", "/predict", "", 405).await;
    let setup = Setup::new().yaml("rest: { predict: { model: double, version: 9 } }");
    refusal(&setup.start().await, "POST", "/predict", r#"{"x":[[1,2,3,4]]}"#, 404).await;
}

#[tokio::test]
async fn large_bodies_are_read_and_written_off_the_lane() {
    let running = Setup::new().start().await;
    let row = "[1.25,2.5,3.75,4.125]";
    let rows = vec![row; 20_000].join(",");
    let found = answer(&running, "/v1/models/double:predict", &format!("{{\"instances\":[{rows}]}}")).await;
    assert_eq!(found.matches("[2.5,5.0,7.5,8.25]").count(), 20_000);
}

//! Responses, reports and errors.

use super::*;
use crate::{
    call::{CallId, Identity, InferResponse, ModelKey, ModelReport, Parameter, Report, Scope, ServerReport, Timing},
    error::Code,
    tensor::{Signature, TensorSpec},
    wire::NonFinite,
};
use bytes::Bytes;
use proptest::prelude::*;

fn response(outputs: Vec<NamedTensor>) -> InferResponse {
    InferResponse {
        model: Arc::new(ModelKey { name: "resnet50".into(), version: "3".into() }),
        client_id: Some("r-1".into()),
        outputs,
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

fn id() -> CallId {
    CallId::Given("call-1".into())
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn data_with(output: NamedTensor, dialect: Dialect, settings: &Settings) -> Result<String, Error> {
    let mut out = Vec::new();
    write_outputs(&mut out, &[output], dialect, &Wishes::default(), settings)?;
    let json = String::from_utf8(out).unwrap();
    let start = json.find("\"data\":").unwrap() + 7;
    Ok(json[start..json.len() - 2].to_owned())
}

fn data(output: NamedTensor) -> Result<String, Error> {
    data_with(output, Dialect::V2, &Settings::default())
}

#[test]
fn the_response_of_the_contract() {
    let tensor = Tensor::of(DataType::Fp32, [2, 2].into(), vec![0.1_f32, 0.9, 0.4, 0.6]).unwrap();
    let mut response = response(vec![named("logits", tensor)]);
    let json = encode_infer(&response, &id(), &Settings::default()).unwrap();
    assert_eq!(
        text(&json),
        concat!(
            r#"{"id":"r-1","model_name":"resnet50","model_version":"3","#,
            r#""outputs":[{"name":"logits","datatype":"FP32","shape":[2,2],"data":[0.1,0.9,0.4,0.6]}]}"#
        )
    );
    response.client_id = None;
    let json = encode_infer(&response, &id(), &Settings::default()).unwrap();
    assert!(text(&json).starts_with(r#"{"id":"call-1","model_name""#), "always an id");
}

#[test]
fn parameters_are_there_only_if_there_are_some() {
    let mut response = response(vec![singles(&[1.0])]);
    assert!(!text(&encode_infer(&response, &id(), &Settings::default()).unwrap()).contains("parameters"));
    response.parameters =
        vec![("triton_final_response".into(), Parameter::Bool(true)), ("n".into(), Parameter::Double(0.5))];
    let json = encode_infer(&response, &id(), &Settings::default()).unwrap();
    assert!(text(&json).contains(r#","parameters":{"triton_final_response":true,"n":0.5},"outputs":"#));
}

#[test]
fn numbers_are_the_shortest_that_read_back() {
    assert_eq!(
        data(singles(&[1.0, 0.1, -1.5, 1e20, f32::MAX, f32::MIN_POSITIVE, -0.0])).unwrap(),
        "[1.0,0.1,-1.5,1e20,3.4028235e38,1.1754944e-38,-0.0]"
    );
    let doubles = Tensor::of(DataType::Fp64, [2].into(), vec![0.1_f64, 1e300]).unwrap();
    assert_eq!(data(named("Y", doubles)).unwrap(), "[0.1,1e300]");
    let whole = Tensor::of(DataType::Uint64, [2].into(), vec![u64::MAX, 9_007_199_254_740_993]).unwrap();
    assert_eq!(data(named("Y", whole)).unwrap(), "[18446744073709551615,9007199254740993]");
    let whole = Tensor::of(DataType::Int8, [2].into(), vec![-128_i8, 127]).unwrap();
    assert_eq!(data(named("Y", whole)).unwrap(), "[-128,127]");
}

#[test]
fn bytes_that_lie_askew_are_written_all_the_same() {
    let raw: Vec<u8> = [0].into_iter().chain(1.5_f32.to_le_bytes()).collect();
    let tensor = Tensor::new(DataType::Fp32, [1].into(), Bytes::from(raw).slice(1..)).unwrap();
    assert_eq!(data(named("Y", tensor)).unwrap(), "[1.5]");
}

#[test]
fn scalars_and_empty_tensors_are_arrays() {
    let scalar = Tensor::of(DataType::Int64, [].into(), vec![5_i64]).unwrap();
    let empty = Tensor::of(DataType::Int64, [0, 3].into(), Vec::<i64>::new()).unwrap();
    let mut out = Vec::new();
    write_outputs(
        &mut out,
        &[named("a", scalar), named("b", empty)],
        Dialect::V2,
        &Wishes::default(),
        &Settings::default(),
    )
    .unwrap();
    assert_eq!(
        std::str::from_utf8(&out).unwrap(),
        concat!(
            r#"[{"name":"a","datatype":"INT64","shape":[],"data":[5]},"#,
            r#"{"name":"b","datatype":"INT64","shape":[0,3],"data":[]}]"#
        )
    );
}

#[test]
fn what_is_not_finite_is_null_a_token_or_refused() {
    let write = |non_finite| {
        let output = singles(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        data_with(output, Dialect::V2, &Settings { non_finite, ..Settings::default() })
    };
    assert_eq!(write(NonFinite::AsNull).unwrap(), "[null,null,null,1.0]");
    assert_eq!(write(NonFinite::AsToken).unwrap(), "[NaN,Infinity,-Infinity,1.0]");
    assert!(write(NonFinite::Refuse).unwrap_err().to_string().ends_with("expected a request for binary output"));
}

#[test]
fn strings_are_escaped_and_must_be_utf_8() {
    let strings = Tensor::strings([4].into(), ["a\0b", "", "😀\"\\\n\u{1f}\u{7f}", "/"]).unwrap();
    assert_eq!(data(named("Y", strings)).unwrap(), "[\"a\\u0000b\",\"\",\"😀\\\"\\\\\\n\\u001f\u{7f}\",\"/\"]");
    let broken = Tensor::strings([1].into(), [&b"\xff"[..]]).unwrap();
    let error = data(named("Y", broken.clone())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `Y` has strings that are not UTF-8 and so no JSON form, expected a request for binary output"
    );
    let message = data_with(named("Y", broken), Dialect::Message, &Settings::default()).unwrap();
    assert_eq!(message, r#"{"b64":"AQAAAP8="}"#);
}

#[test]
fn half_types_have_no_json_form_unless_converted() {
    let half = || named("Y", Tensor::of(DataType::Fp16, [2].into(), vec![0x3E00_u16, 0x7E00]).unwrap());
    assert_eq!(data(half()).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(data_with(half(), Dialect::Message, &Settings::default()).unwrap(), r#"{"b64":"AD4Afg=="}"#);
    let settings = Settings { convert_half: true, ..Settings::default() };
    assert_eq!(data_with(half(), Dialect::V2, &settings).unwrap(), "[1.5,null]");
    let brain = named("Y", Tensor::of(DataType::Bf16, [1].into(), vec![0x3FC0_u16]).unwrap());
    assert_eq!(data_with(brain, Dialect::V2, &settings).unwrap(), "[1.5]");
}

#[test]
fn booleans_are_words() {
    let bools = Tensor::new(DataType::Bool, [3].into(), Bytes::from_static(&[0, 1, 2])).unwrap();
    assert_eq!(data(named("Y", bools)).unwrap(), "[false,true,true]");
}

#[test]
fn raw_outputs_are_announced_in_the_way_of_the_dialect() {
    let outputs = [singles(&[1.0]), named("Z", Tensor::of(DataType::Int8, [1].into(), vec![1_i8]).unwrap())];
    let wishes = Wishes { binary: false, outputs: vec![("Y".into(), true)] };
    let write = |dialect| {
        let mut out = Vec::new();
        let raw = write_outputs(&mut out, &outputs, dialect, &wishes, &Settings::default()).unwrap();
        assert_eq!(raw.len(), 1);
        assert_eq!(raw[0].as_ptr(), outputs[0].tensor.data().as_ptr(), "shared, not copied");
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        write(Dialect::Message),
        concat!(
            r#"[{"name":"Y","datatype":"FP32","shape":[1],"byte_length":4},"#,
            r#"{"name":"Z","datatype":"INT8","shape":[1],"data":[1]}]"#
        )
    );
    assert!(write(Dialect::V2).contains(r#""shape":[1],"parameters":{"binary_data_size":4}},"#));
}

#[test]
fn reports_are_the_contract_s() {
    let identity = Identity::proven("team-a", vec!["blue".into(), "green".into()], Scope::Granted);
    let report = |report: &Report| text(&encode_report(report)).to_owned();
    assert_eq!(report(&Report::Caller(Arc::new(identity))), r#"{"identity":"team-a","groups":["blue","green"]}"#);
    let server =
        ServerReport { name: "sluicegate", version: "0.1.0", extensions: &["binary_tensor_data", "parameters"] };
    assert_eq!(
        report(&Report::Server(server)),
        r#"{"name":"sluicegate","version":"0.1.0","extensions":["binary_tensor_data","parameters"]}"#
    );
    let none = ServerReport { extensions: &[], ..server };
    assert!(report(&Report::Server(none)).ends_with(r#""extensions":[]}"#));
    assert_eq!(report(&Report::Models(vec!["a".into(), "b".into()])), r#"{"models":["a","b"]}"#);
    assert_eq!(report(&Report::Ready { model: "m".into(), ready: true }), r#"{"name":"m","ready":true}"#);
}

#[test]
fn model_metadata_is_the_contract_s() {
    let spec = |name: &str, dtype, dims: &[Option<usize>]| TensorSpec { name: name.into(), dtype, dims: dims.into() };
    let signature = Signature {
        inputs: vec![spec("data", Some(DataType::Fp32), &[None, Some(3), Some(224), Some(224)])],
        outputs: vec![spec("logits", Some(DataType::Fp32), &[None, Some(1000)]), spec("odd", None, &[])],
    };
    let report = ModelReport {
        name: "resnet50".into(),
        version: "1".into(),
        versions: vec!["1".into(), "3".into()],
        platform: "onnxruntime_onnx".into(),
        signature: Arc::new(signature),
    };
    assert_eq!(
        text(&encode_report(&Report::Model(report))),
        concat!(
            r#"{"name":"resnet50","versions":["1","3"],"platform":"onnxruntime_onnx","#,
            r#""inputs":[{"name":"data","datatype":"FP32","shape":[-1,3,224,224]}],"#,
            r#""outputs":[{"name":"logits","datatype":"FP32","shape":[-1,1000]},"#,
            r#"{"name":"odd","datatype":"INVALID","shape":[]}]}"#
        )
    );
}

#[test]
fn an_error_is_a_string_with_members_beside() {
    let error = Error::tensor("a\"b", "is wrong");
    assert_eq!(
        text(&encode_error(&error, &id())),
        r#"{"error":"tensor `a\"b` is wrong","code":"invalid_argument","request_id":"call-1","retryable":false}"#
    );
    let made = CallId::make();
    let json: serde_json::Value = serde_json::from_slice(&encode_error(&Error::ShuttingDown, &made)).unwrap();
    assert_eq!(json["request_id"], made.to_string());
    assert_eq!(json["retryable"], true);
}

proptest! {
    #[test]
    fn any_string_is_read_back_by_others(string: String) {
        let mut out = Vec::new();
        write_string(&mut out, &string);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), string);
    }

    #[test]
    fn any_parameters_are_json(names: Vec<String>, whole: i64, large: u64, fraction: f64) {
        let values = [Parameter::Int(whole), Parameter::Uint(large), Parameter::Double(fraction)];
        let names = names.into_iter().map(Arc::from);
        let parameters: Parameters = names.zip(values.into_iter().cycle()).collect();
        let mut out = Vec::new();
        write_parameters(&mut out, &parameters);
        prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
    }
}

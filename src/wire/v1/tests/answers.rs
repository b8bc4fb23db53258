//! Answers: predictions, outputs, lists, states and metadata, to the byte.

use super::*;
use crate::{
    call::{CatalogEntry, ModelReport, VersionState, VersionsReport},
    tensor::{Shape, Tensor},
    wire::NonFinite,
};

fn output(name: &str, dims: &[usize], values: Vec<f32>) -> NamedTensor {
    let shape = Shape::new(dims.iter().copied());
    NamedTensor { name: name.into(), tensor: Tensor::of(DataType::Fp32, shape, values).unwrap() }
}

fn bytes(name: &str, dims: &[usize], strings: &[&[u8]]) -> NamedTensor {
    let shape = Shape::new(dims.iter().copied());
    NamedTensor { name: name.into(), tensor: Tensor::strings(shape, strings).unwrap() }
}

fn encode(outputs: &[NamedTensor], form: Form) -> String {
    let encoded = encode_predict(outputs, form, &Settings::default()).unwrap();
    String::from_utf8(encoded.to_vec()).unwrap()
}

#[test]
fn one_output_is_bare_and_several_are_objects() {
    let y = output("y", &[2, 2], vec![0.1, 0.9, 0.7, 3.0]);
    let z = output("z", &[2], vec![5.0, 6.0]);
    assert_eq!(encode(std::slice::from_ref(&y), Form::Rows), r#"{"predictions":[[0.1,0.9],[0.7,3.0]]}"#);
    assert_eq!(encode(std::slice::from_ref(&y), Form::Columns), r#"{"outputs":[[0.1,0.9],[0.7,3.0]]}"#);
    let both = [y, z];
    assert_eq!(encode(&both, Form::Rows), r#"{"predictions":[{"y":[0.1,0.9],"z":5.0},{"y":[0.7,3.0],"z":6.0}]}"#);
    assert_eq!(encode(&both, Form::Columns), r#"{"outputs":{"y":[[0.1,0.9],[0.7,3.0]],"z":[5.0,6.0]}}"#);
    let names = Names { inputs: vec![], outputs: vec![("y_pred".into(), "y".into())] };
    let object = encode_object(&both, &names, &Settings::default()).unwrap();
    assert_eq!(object, r#"{"y_pred":[[0.1,0.9],[0.7,3.0]],"z":[5.0,6.0]}"#);
}

#[test]
fn a_scalar_is_bare_in_columns_and_has_no_rows() {
    let scalar = [output("y", &[], vec![0.5])];
    assert_eq!(encode(&scalar, Form::Columns), r#"{"outputs":0.5}"#);
    let error = encode_predict(&scalar, Form::Rows, &Settings::default()).unwrap_err();
    let said = "output `y` has no dimensions, so the answer has no rows: send `inputs` instead of `instances`";
    assert_eq!(error.to_string(), said);
}

#[test]
fn outputs_with_other_rows_are_columns_only() {
    let both = [output("y", &[2], vec![1.0, 2.0]), output("z", &[3], vec![1.0, 2.0, 3.0])];
    assert_eq!(encode(&both, Form::Columns), r#"{"outputs":{"y":[1.0,2.0],"z":[1.0,2.0,3.0]}}"#);
    let error = encode_predict(&both, Form::Rows, &Settings::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "output `z` has 3 rows, output `y` has 2, so the answer has no rows: send `inputs` instead of `instances`"
    );
}

#[test]
fn empty_dimensions_are_empty_lists() {
    assert_eq!(encode(&[output("y", &[2, 0], vec![])], Form::Rows), r#"{"predictions":[[],[]]}"#);
    assert_eq!(encode(&[output("y", &[0, 2], vec![])], Form::Columns), r#"{"outputs":[]}"#);
}

#[test]
fn strings_are_text_unless_named_or_made_binary() {
    let text = bytes("y", &[2], &["Füße\n".as_bytes(), b"\x80"]);
    assert_eq!(encode(&[text], Form::Rows), r#"{"predictions":["Füße\n",{"b64":"gA=="}]}"#);
    let named = bytes("image_bytes", &[1, 2], &[b"a", b""]);
    assert_eq!(encode(&[named], Form::Columns), r#"{"outputs":[[{"b64":"YQ=="},{"b64":""}]]}"#);
}

#[test]
fn what_is_not_finite_follows_the_option() {
    let outputs = [output("y", &[4], vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0])];
    let encode = |non_finite| {
        let settings = Settings { non_finite, ..Settings::default() };
        encode_predict(&outputs, Form::Columns, &settings).map(|body| String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(encode(NonFinite::AsNull).unwrap(), r#"{"outputs":[null,null,null,1.0]}"#);
    assert_eq!(encode(NonFinite::AsToken).unwrap(), r#"{"outputs":[NaN,Infinity,-Infinity,1.0]}"#);
    let refused = encode(NonFinite::Refuse).unwrap_err();
    assert!(refused.to_string().contains("`json.non_finite: refuse`"), "{refused}");
}

#[test]
fn half_types_are_numbers_whatever_v2_does() {
    let half = Tensor::of(DataType::Fp16, Shape::new([2]), vec![0x3E00_u16, 0x2E66]).unwrap();
    let brain = Tensor::of(DataType::Bf16, Shape::new([1]), vec![0x3FC0_u16]).unwrap();
    let outputs = [NamedTensor { name: "h".into(), tensor: half }, NamedTensor { name: "b".into(), tensor: brain }];
    assert_eq!(encode(&outputs, Form::Columns), r#"{"outputs":{"h":[1.5,0.099975586],"b":[1.5]}}"#);
}

fn versions(ready: bool) -> VersionsReport {
    let version = |name: &str, state, reason: &str| (name.into(), state, reason.into());
    VersionsReport {
        name: "m".into(),
        ready,
        since: 1_750_000_000,
        versions: vec![version("2", VersionState::Failed, "not served"), version("1", VersionState::Ready, "")],
    }
}

#[test]
fn a_model_is_one_object_for_three_kinds_of_client() {
    assert_eq!(
        encode_model(&versions(true)),
        r#"{"id":"m","object":"model","created":1750000000,"owned_by":"sluicegate","name":"m","ready":true,"model_version_status":[{"version":"2","state":"END","status":{"error_code":"INTERNAL","error_message":"not served"}},{"version":"1","state":"AVAILABLE","status":{"error_code":"OK","error_message":""}}]}"#
    );
    assert!(encode_status(&versions(true)).starts_with(br#"{"model_version_status":[{"version":"2","#));
    let entries = [CatalogEntry { name: "a".into(), since: 7 }, CatalogEntry { name: "b".into(), since: 0 }];
    assert_eq!(
        encode_catalog(&entries),
        r#"{"object":"list","data":[{"id":"a","object":"model","created":7,"owned_by":"sluicegate"},{"id":"b","object":"model","created":0,"owned_by":"sluicegate"}],"models":["a","b"]}"#
    );
}

#[test]
fn every_state_has_a_word() {
    let word = |state| version_status(state, "why");
    assert_eq!(word(VersionState::Loading), ("LOADING", "OK", ""));
    assert_eq!(word(VersionState::Ready), ("AVAILABLE", "OK", ""));
    assert_eq!(word(VersionState::Unloading), ("UNLOADING", "OK", ""));
    assert_eq!(word(VersionState::Unloaded), ("END", "OK", ""));
    assert_eq!(word(VersionState::Failed), ("END", "INTERNAL", "why"));
}

#[test]
fn metadata_has_the_signature_in_two_objects() {
    let signature = Signature {
        inputs: vec![spec("x", DataType::Fp32, &[None, Some(4)])],
        outputs: vec![spec("y", DataType::Int64, &[None])],
    };
    let report = ModelReport {
        name: "m".into(),
        version: "1".into(),
        versions: vec!["1".into()],
        platform: "p".into(),
        signature: Arc::new(signature),
    };
    assert_eq!(
        encode_metadata(&report),
        r#"{"model_spec":{"name":"m","signature_name":"","version":"1"},"metadata":{"signature_def":{"signature_def":{"serving_default":{"inputs":{"x":{"dtype":"DT_FLOAT","tensor_shape":{"dim":[{"size":"-1","name":""},{"size":"4","name":""}],"unknown_rank":false},"name":"x:0"}},"outputs":{"y":{"dtype":"DT_INT64","tensor_shape":{"dim":[{"size":"-1","name":""}],"unknown_rank":false},"name":"y:0"}},"method_name":"tensorflow/serving/predict"}}}}}"#
    );
}

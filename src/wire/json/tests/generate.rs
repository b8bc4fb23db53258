//! `generate`: what is an input, what a parameter, and how shapes are rebuilt.

use super::*;
use crate::{
    call::{ModelKey, Timing},
    error::Code,
    tensor::{DataType, Signature},
};

fn spec(name: &str, dtype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

fn expected() -> Expected {
    let inputs = vec![
        spec("text_input", DataType::Bytes, &[None, Some(1)]),
        spec("image", DataType::Fp32, &[None, Some(2), Some(2)]),
        spec("temperature", DataType::Fp32, &[Some(1)]),
    ];
    Expected { signature: Arc::new(Signature { inputs, outputs: Vec::new() }), batches: true, labels: Arc::new([]) }
}

fn model() -> ModelRef {
    ModelRef { name: "m".into(), version: None }
}

fn decode(json: &str) -> Result<InferRequest, Error> {
    decode_generate(&Bytes::copy_from_slice(json.as_bytes()), model(), &Settings::default())
}

/// Name and shape of each input, once the model is known.
fn typed(json: &str) -> Result<Vec<(String, Vec<usize>)>, Error> {
    let inputs = tensors(json.as_bytes(), &expected(), &Settings::default())?;
    Ok(inputs.iter().map(|input| (input.name.to_string(), input.tensor.shape().dims().to_vec())).collect())
}

#[test]
fn names_of_inputs_are_inputs_wherever_they_stand() {
    let found = typed(r#"{"id":"r","text_input":"hello","parameters":{"temperature":0.5,"stop":"x","max_tokens":7}}"#);
    assert_eq!(found.unwrap(), [("text_input".to_owned(), vec![1, 1]), ("temperature".to_owned(), vec![1])]);
}

#[test]
fn the_innermost_free_dimension_takes_what_remains() {
    let image = |values: usize| typed(&format!(r#"{{"image":[{}]}}"#, vec!["1"; values].join(",")));
    assert_eq!(image(8).unwrap()[0].1, [2, 2, 2]);
    assert_eq!(image(0).unwrap()[0].1, [0, 2, 2]);
    let error = image(6).unwrap_err();
    assert_eq!(error.to_string(), "tensor `image` has 6 values, expected as many as fill [-1, 2, 2]");
    assert_eq!(typed(r#"{"text_input":["a","b","c"]}"#).unwrap()[0].1, [3, 1]);
}

#[test]
fn what_is_reserved_speaks_to_the_server() {
    let request = decode(r#"{"id":"r-1","timeout":1500,"parameters":{"priority":2},"text_input":"x"}"#).unwrap();
    assert_eq!(request.client_id.as_deref(), Some("r-1"));
    assert_eq!(request.timeout, Some(std::time::Duration::from_micros(1500)));
    assert_eq!(request.priority, 2);
    assert_eq!(decode(r#"{"id":""}"#).unwrap().client_id, None);
    for bad in [r#"{"timeout":"soon"}"#, r#"{"parameters":{"triton_x":1}}"#, r#"{"sequence_start":true}"#] {
        assert_eq!(decode(bad).unwrap_err().code(), Code::InvalidArgument, "{bad}");
    }
}

#[test]
fn what_is_neither_input_nor_parameter_is_named() {
    let error = |json: &str| typed(json).unwrap_err().to_string();
    assert!(error(r#"{"colours":["red"]}"#).contains("`colours`"));
    assert!(error(r#"{"image":[[1,2],[3,4]]}"#).contains("nested"));
    assert!(error(r#"{"image":{"b":1}}"#).contains("`image`"));
    assert!(error(r#"{"text_input":"a","parameters":{"text_input":"b"}}"#).contains("twice"));
    assert!(error(r#"{"text_input":7}"#).contains("`7`"));
    for bad in ["", "[]", r#"{"a":1,"a":2}"#, r#"{"parameters":{},"parameters":{}}"#, r#"{"parameters":[]}"#] {
        assert!(decode(bad).is_err(), "{bad}");
    }
}

#[test]
fn one_element_is_bare_and_parameters_stand_beside() {
    let outputs = vec![
        NamedTensor { name: "text_output".into(), tensor: Tensor::strings(Shape::new([1, 1]), ["Hel\"lo"]).unwrap() },
        NamedTensor {
            name: "scores".into(),
            tensor: Tensor::of(DataType::Fp32, Shape::new([2]), vec![0.5_f32, 1.0]).unwrap(),
        },
    ];
    let response = InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: None,
        outputs,
        parameters: vec![("done".into(), crate::call::Parameter::Bool(true))],
        timing: Timing::default(),
    };
    let json = encode_generate(&response, &Settings::default()).unwrap();
    let expected = r#"{"model_name":"m","model_version":"1","text_output":"Hel\"lo","scores":[0.5,1.0],"done":true}"#;
    assert_eq!(json, expected);
    let named = InferResponse { client_id: Some("r".into()), ..response };
    assert!(encode_generate(&named, &Settings::default()).unwrap().starts_with(br#"{"id":"r","model_name":"m""#));
}

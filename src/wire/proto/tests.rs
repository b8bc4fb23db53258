//! What the protobuf codec promises (contract 01 sections 4 and 6).

use super::*;
use crate::{
    call::{ModelKey, Timing},
    error::Code,
    tensor::Tensor,
};
use inference::{InferTensorContents, ModelInferResponse, model_infer_request::InferRequestedOutputTensor};
use proptest::prelude::*;
use prost::Message;
use std::time::Duration;

/// Contract 01 section 4.4.
const REQUEST: [u8; 53] = [
    0x0a, 0x01, 0x6d, 0x1a, 0x02, 0x72, 0x31, 0x22, 0x0e, 0x0a, 0x07, 0x74, 0x69, 0x6d, 0x65, 0x6f, 0x75, 0x74, 0x12,
    0x03, 0x10, 0x88, 0x27, 0x2a, 0x0d, 0x0a, 0x01, 0x58, 0x12, 0x04, 0x46, 0x50, 0x33, 0x32, 0x1a, 0x02, 0x01, 0x02,
    0x32, 0x03, 0x0a, 0x01, 0x59, 0x3a, 0x08, 0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x00, 0x40,
];
const RESPONSE: [u8; 35] = [
    0x0a, 0x01, 0x6d, 0x12, 0x01, 0x31, 0x1a, 0x02, 0x72, 0x31, 0x2a, 0x0d, 0x0a, 0x01, 0x59, 0x12, 0x04, 0x46, 0x50,
    0x33, 0x32, 0x1a, 0x02, 0x01, 0x02, 0x32, 0x08, 0x00, 0x00, 0x80, 0x3e, 0x00, 0x00, 0xc0, 0xbf,
];

fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: "X".into(),
        datatype: datatype.into(),
        shape: shape.into(),
        parameters: HashMap::new(),
        contents,
    }
}

fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "m".into(),
        inputs,
        raw_input_contents: raw.iter().map(|raw| Bytes::from_static(raw)).collect(),
        ..ModelInferRequest::default()
    }
}

fn decode(message: ModelInferRequest) -> Result<InferRequest, Error> {
    decode_infer(message, &Settings::default())
}

fn typed(datatype: &str, shape: &[i64], contents: InferTensorContents) -> Result<Bytes, String> {
    let request = decode(request(vec![input(datatype, shape, Some(contents))], &[]));
    request.map(|request| request.inputs.tensors().unwrap()[0].tensor.data().clone()).map_err(|error| error.to_string())
}

fn refused(message: ModelInferRequest) -> String {
    let error = decode(message).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    error.to_string()
}

#[test]
fn the_request_of_the_contract() {
    let bytes = Bytes::from_static(&REQUEST);
    let message = ModelInferRequest::decode(bytes.clone()).unwrap();
    assert_eq!(message.encode_to_vec(), REQUEST);
    let request = decode(message).unwrap();
    assert_eq!((request.model.name.as_ref(), request.model.version), ("m", None));
    assert_eq!(request.client_id.as_deref(), Some("r1"));
    assert_eq!(request.timeout, Some(Duration::from_millis(5)));
    assert_eq!(request.outputs, ["Y".into()]);
    assert!(request.parameters.is_empty());
    let tensor = &request.inputs.tensors().unwrap()[0].tensor;
    assert_eq!((tensor.dtype(), tensor.shape().dims()), (DataType::Fp32, &[1, 2][..]));
    assert_eq!(tensor.data().as_ptr(), bytes[45..].as_ptr(), "shared, not copied");
    assert_eq!(&tensor.data()[..], &REQUEST[45..]);
}

#[test]
fn the_response_of_the_contract() {
    let tensor = Tensor::of(DataType::Fp32, [1, 2].into(), vec![0.25_f32, -1.5]).unwrap();
    let response = InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: Some("r1".into()),
        outputs: vec![NamedTensor { name: "Y".into(), tensor }],
        parameters: Vec::new(),
        timing: Timing::default(),
    };
    assert_eq!(encode_infer(response, false).encode_to_vec(), RESPONSE);
    assert!(ModelInferResponse::decode(&RESPONSE[..]).is_ok());
}

#[test]
fn every_output_has_a_raw_entry_even_an_empty_one() {
    let empty = Tensor::new(DataType::Fp32, [0].into(), Bytes::new()).unwrap();
    let one = Tensor::of(DataType::Int8, [].into(), vec![1_i8]).unwrap();
    let outputs = [("a", empty.clone()), ("b", one), ("c", empty)];
    let response = encode_infer(
        InferResponse {
            model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
            client_id: None,
            outputs: outputs.map(|(name, tensor)| NamedTensor { name: name.into(), tensor }).into(),
            parameters: vec![("triton_final_response".into(), Parameter::Bool(true))],
            timing: Timing::default(),
        },
        false,
    );
    assert_eq!(response.raw_output_contents, [&[][..], &[1], &[]]);
    assert!(response.outputs.iter().all(|output| output.contents.is_none()));
    let flag = response.parameters["triton_final_response"].parameter_choice.clone();
    assert_eq!(flag, Some(ParameterChoice::BoolParam(true)));
}

#[test]
fn raw_and_typed_contents_do_not_mix() {
    let contents = InferTensorContents { fp32_contents: vec![1.0], ..Default::default() };
    let error = refused(request(vec![input("FP32", &[1], Some(contents))], &[&[0; 4]]));
    assert_eq!(error, "tensor `X` has both raw and typed contents, expected one");
}

#[test]
fn there_is_one_raw_entry_per_input() {
    let error = refused(request(vec![input("FP32", &[1], None)], &[&[0; 4], &[0; 4]]));
    assert_eq!(error, "`raw_input_contents` has 2 entries for 1 inputs, expected one each");
    let error = refused(request(vec![input("FP32", &[1], None)], &[&[0; 3]]));
    assert_eq!(error, "tensor `X` has 3 bytes, expected 4");
    let error = refused(request(vec![input("BYTES", &[2], None)], &[&[1, 0, 0, 0, b'a']]));
    assert_eq!(error, "tensor `X` has 1 whole strings, expected 2");
    assert!(
        decode(request(vec![input("BOOL", &[1], None)], &[&[7]])).unwrap().inputs.tensors().unwrap()[0].tensor.data()[..]
            == [1]
    );
}

#[test]
fn typed_contents_become_bytes() {
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.into(), ..Default::default() };
    let uints = |values: &[u32]| InferTensorContents { uint_contents: values.into(), ..Default::default() };
    assert_eq!(typed("INT8", &[2], ints(&[-1, 127])).unwrap()[..], [255, 127]);
    assert_eq!(typed("INT16", &[1], ints(&[-2])).unwrap()[..], [254, 255]);
    assert_eq!(typed("INT32", &[1], ints(&[1])).unwrap()[..], [1, 0, 0, 0]);
    assert_eq!(typed("UINT8", &[1], uints(&[255])).unwrap()[..], [255]);
    let bools = InferTensorContents { bool_contents: vec![true, false], ..Default::default() };
    assert_eq!(typed("BOOL", &[2], bools).unwrap()[..], [1, 0]);
    let strings =
        InferTensorContents { bytes_contents: vec![Bytes::from_static(b"hi\0"), Bytes::new()], ..Default::default() };
    assert_eq!(typed("BYTES", &[2], strings).unwrap()[..], *b"\x03\0\0\0hi\0\0\0\0\0");
    let doubles = InferTensorContents { fp64_contents: vec![1.0], ..Default::default() };
    assert_eq!(typed("FP64", &[], doubles).unwrap()[..], 1.0_f64.to_le_bytes());
}

#[test]
fn typed_contents_must_fit() {
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.into(), ..Default::default() };
    assert_eq!(
        typed("INT8", &[1], ints(&[200])).unwrap_err(),
        "tensor `X` has `200` at index 0, beyond the range of INT8"
    );
    assert_eq!(
        typed("INT64", &[1], ints(&[1])).unwrap_err(),
        "tensor `X` has `int_contents`, expected `int64_contents` for INT64"
    );
    assert_eq!(
        typed("INT32", &[2], ints(&[1])).unwrap_err(),
        "tensor `X` has 1 elements in `int_contents`, expected 2 for shape [2]"
    );
    let both = InferTensorContents { int_contents: vec![1], fp32_contents: vec![1.0], ..Default::default() };
    assert!(typed("INT32", &[1], both).is_err());
    assert_eq!(
        typed("FP32", &[1], InferTensorContents::default()).unwrap_err(),
        "tensor `X` has no data, expected `fp32_contents`"
    );
    assert!(refused(request(vec![input("FP32", &[1], None)], &[])).contains("has no data"));
    assert!(refused(request(vec![input("FP16", &[1], None)], &[])).contains("expected `raw_input_contents`"));
}

#[test]
fn no_elements_need_no_contents() {
    for datatype in ["FP32", "BYTES", "FP16", "BOOL"] {
        assert!(decode(request(vec![input(datatype, &[0, 2], None)], &[])).is_ok(), "{datatype}");
        assert!(decode(request(vec![input(datatype, &[0, 2], None)], &[b""])).is_ok(), "{datatype}");
    }
}

#[test]
fn shapes_names_and_types_are_checked() {
    let error = refused(request(vec![input("FP32", &[-1], None)], &[&[]]));
    assert_eq!(error, "tensor `X` has a dimension of `-1`, expected an integer from 0 on");
    assert!(refused(request(vec![input("FP32", &[i64::MAX, i64::MAX], None)], &[&[]])).contains("overflows"));
    assert!(refused(request(vec![input("FP32", &[1 << 32, 1 << 32], None)], &[])).contains("overflows"));
    assert!(refused(request(vec![input("fp32", &[1], None)], &[&[0; 4]])).contains("has datatype `fp32`"));
    assert!(refused(request(vec![input("FP32", &[1; 17], None)], &[&[0; 4]])).contains("has 17 dimensions"));
    let twice = vec![input("UINT8", &[1], None), input("UINT8", &[1], None)];
    assert_eq!(refused(request(twice, &[&[0], &[0]])), "tensor `X` is there twice, expected once");
    assert_eq!(refused(ModelInferRequest::default()), "`model_name` is empty");
    let settings = Settings { tensors: 0, ..Settings::default() };
    assert!(decode_infer(request(vec![input("UINT8", &[1], None)], &[&[0]]), &settings).is_err());
}

#[test]
fn parameters_have_the_types_of_the_contract() {
    let with = |name: &str, choice| {
        let mut message = request(Vec::new(), &[]);
        message.parameters.insert(name.into(), InferParameter { parameter_choice: choice });
        decode(message)
    };
    use ParameterChoice::*;
    assert_eq!(with("timeout", Some(Uint64Param(5))).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(with("priority", Some(Uint64Param(5))).unwrap().priority, 5);
    assert_eq!(with("priority", Some(Int64Param(5))).unwrap().priority, 5);
    assert!(with("triton_enable_empty_final_response", Some(BoolParam(false))).is_ok());
    assert!(with("triton_x", Some(BoolParam(false))).is_err());
    assert!(with("x", None).is_err());
    assert_eq!(with("x", Some(DoubleParam(0.5))).unwrap().parameters, [("x".into(), Parameter::Double(0.5))]);
}

#[test]
fn an_output_may_be_wanted_as_its_best_classes() {
    let with = |choice| {
        let mut message = request(Vec::new(), &[]);
        let parameter = InferParameter { parameter_choice: choice };
        message.outputs.push(InferRequestedOutputTensor {
            name: "Y".into(),
            parameters: [("classification".to_owned(), parameter)].into(),
        });
        decode(message)
    };
    let request = with(Some(ParameterChoice::Int64Param(3))).unwrap();
    assert_eq!(request.outputs[0].classes.map(usize::from), Some(3));
    for bad in [Some(ParameterChoice::Int64Param(0)), Some(ParameterChoice::BoolParam(true)), None] {
        assert_eq!(with(bad).unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn unpacked_numbers_are_read_too() {
    // `contents { fp32_contents: 1.0, fp32_contents: 2.0 }`, each with a tag of its own.
    let contents = [0x35, 0, 0, 0x80, 0x3f, 0x35, 0, 0, 0, 0x40];
    let contents = InferTensorContents::decode(&contents[..]).unwrap();
    assert_eq!(contents.fp32_contents, [1.0, 2.0]);
    // A shape of two dimensions, unpacked.
    let input = InferInputTensor::decode(&[0x18, 1, 0x18, 2][..]).unwrap();
    assert_eq!(input.shape, [1, 2]);
}

#[test]
fn the_descriptors_hold_every_method_and_message() {
    let builder = tonic_reflection::server::Builder::configure();
    assert!(builder.register_encoded_file_descriptor_set(DESCRIPTOR).build_v1().is_ok());
    // The descriptors spell every name out.
    let contains = |name: &str| DESCRIPTOR.windows(name.len()).any(|window| window == name.as_bytes());
    for name in ["GRPCInferenceService", "ModelStreamInfer", "LogSettings", "ModelConfig", "ModelStatistics"] {
        assert!(contains(name), "{name}");
    }
}

#[test]
fn metadata_is_converted() {
    let server = ServerReport { name: "sluicegate", version: "0.1.0", extensions: &["parameters"] };
    let server = encode_server(&server);
    assert_eq!((server.name.as_str(), server.extensions.as_slice()), ("sluicegate", &["parameters".to_owned()][..]));
    let spec = TensorSpec { name: "x".into(), dtype: None, dims: vec![None, Some(3)] };
    let model = encode_model(&ModelReport {
        name: "m".into(),
        version: "1".into(),
        versions: vec!["1".into()],
        platform: "onnxruntime_onnx".into(),
        signature: Arc::new(crate::tensor::Signature { inputs: vec![spec], outputs: Vec::new() }),
    });
    assert_eq!((model.inputs[0].datatype.as_str(), model.inputs[0].shape.as_slice()), ("INVALID", &[-1, 3][..]));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        if let Ok(message) = ModelInferRequest::decode(&bytes[..]) {
            let _ = decode(message);
        }
    }

    #[test]
    fn damaged_messages_never_panic(at: prop::sample::Index, byte: u8) {
        let mut bytes = REQUEST;
        bytes[at.index(REQUEST.len())] = byte;
        if let Ok(message) = ModelInferRequest::decode(&bytes[..]) {
            let _ = decode(message);
        }
    }

    #[test]
    fn raw_and_typed_requests_give_the_same_tensor(values: Vec<f32>) {
        let shape = [i64::try_from(values.len()).unwrap()];
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut message = request(vec![input("FP32", &shape, None)], &[]);
        message.raw_input_contents.push(raw.into());
        let raw = decode(message).unwrap().inputs.tensors().unwrap()[0].tensor.data().clone();
        let contents = InferTensorContents { fp32_contents: values, ..Default::default() };
        prop_assert_eq!(typed("FP32", &shape, contents).unwrap(), raw);
    }
}

//! What a message of gRPC must be, beyond what a body must be.

use super::models;
use crate::support::client::grpc;
use sluicegate::wire::proto::inference::{
    self as pb, InferTensorContents, ModelInferRequest,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use tonic_types::StatusExt;

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
async fn a_scalar_is_its_only_class() {
    let running = models().await;
    let mut request = message("scalar", vec![InferInputTensor { shape: vec![], ..input("FP32", None) }], &[&[0; 4]]);
    let wish =
        ("classification".to_owned(), pb::InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(5)) });
    request.outputs.push(InferRequestedOutputTensor { name: "y".into(), parameters: [wish].into() });
    let found = grpc(&running).await.model_infer(request).await.unwrap().into_inner();
    assert_eq!((&*found.outputs[0].datatype, &found.outputs[0].shape[..]), ("BYTES", &[1][..]));
}

//! TensorFlow Serving's services, as tonic's client sees them.

use super::real;
use crate::support::{
    Running, Setup,
    client::{grpc_channel, status_failure},
};
use sluicegate::wire::tfserving::pb::{self, serving as tf};
use std::collections::HashMap;
use tf::{model_service_client::ModelServiceClient, prediction_service_client::PredictionServiceClient};

pub(crate) async fn prediction(running: &Running) -> PredictionServiceClient<tonic::transport::Channel> {
    PredictionServiceClient::new(grpc_channel(running).await)
}

fn spec(model: &str) -> Option<tf::ModelSpec> {
    Some(tf::ModelSpec { name: model.into(), ..tf::ModelSpec::default() })
}

fn floats(dims: &[i64], values: &[f32]) -> pb::TensorProto {
    let dim = dims.iter().map(|size| pb::tensor_shape_proto::Dim { size: *size, name: String::new() }).collect();
    pb::TensorProto {
        dtype: pb::DataType::DtFloat.into(),
        tensor_shape: Some(pb::TensorShapeProto { dim, unknown_rank: false }),
        tensor_content: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into(),
        ..pb::TensorProto::default()
    }
}

pub(crate) fn predict_request(model: &str) -> tf::PredictRequest {
    let inputs = HashMap::from([("x".to_owned(), floats(&[1, 4], &[1.0, 2.0, 3.0, 4.0]))]);
    tf::PredictRequest { model_spec: spec(model), inputs, output_filter: Vec::new() }
}

#[tokio::test]
async fn large_messages_are_tensors_too() {
    let running = Setup::new().start().await;
    let values: Vec<f32> = vec![1.25; 400_000];
    let mut request = predict_request("double");
    request.inputs.insert("x".into(), floats(&[100_000, 4], &values));
    let message = tonic::Request::new(request);
    let mut client = prediction(&running).await.max_decoding_message_size(usize::MAX);
    let found = client.predict(message).await.unwrap().into_inner();
    assert_eq!(found.outputs["y"].tensor_content.len(), 1_600_000);
}

#[tokio::test]
async fn grpc_predicts_what_rest_predicts() {
    let running = real("tests/models/good").await;
    let mut client = prediction(&running).await;
    let request = |a: pb::TensorProto, filter: &[&str]| {
        let b = pb::TensorProto {
            dtype: pb::DataType::DtInt32.into(),
            int_val: vec![1],
            tensor_content: bytes::Bytes::new(),
            ..floats(&[2, 2], &[])
        };
        tf::PredictRequest {
            model_spec: spec("two_by_two"),
            inputs: HashMap::from([("a".to_owned(), a), ("b".to_owned(), b)]),
            output_filter: filter.iter().map(|name| (*name).to_owned()).collect(),
        }
    };
    // One value of the second input stands for all four.
    let found = client.predict(request(floats(&[2, 2], &[1.5, 2.0, 3.0, 4.0]), &[])).await.unwrap().into_inner();
    assert_eq!(found.outputs["sum"], floats(&[2, 2], &[2.5, 3.0, 4.0, 5.0]));
    assert_eq!(found.outputs["difference"], floats(&[2, 2], &[0.5, 1.0, 2.0, 3.0]));
    let about = found.model_spec.unwrap();
    assert_eq!(
        (&*about.name, about.version_choice, &*about.signature_name),
        ("two_by_two", Some(tf::model_spec::VersionChoice::Version(1)), "serving_default")
    );
    let listed = pb::TensorProto { tensor_content: bytes::Bytes::new(), float_val: vec![2.0], ..floats(&[2, 2], &[]) };
    let found = client.predict(request(listed, &["sum"])).await.unwrap().into_inner();
    assert_eq!((found.outputs.len(), &found.outputs["sum"].float_val[..]), (1, &[3.0; 4][..]));
    let failure = client.predict(request(floats(&[2, 2], &[0.0; 4]), &["product"])).await.unwrap_err();
    assert!(failure.message().contains("output `product` is unknown"), "{failure:?}");
    let failure = client.predict(request(floats(&[1, 3], &[0.0; 3]), &[])).await.unwrap_err();
    assert!(failure.message().contains("has shape [1, 3], expected [-1, 2]"), "{failure:?}");
    let strings = pb::TensorProto {
        dtype: pb::DataType::DtString.into(),
        string_val: vec!["a".into(), bytes::Bytes::from_static(b"\x80")],
        tensor_content: bytes::Bytes::new(),
        ..floats(&[2], &[])
    };
    let inputs = HashMap::from([("x".to_owned(), strings.clone())]);
    let request = tf::PredictRequest { model_spec: spec("echo_bytes"), inputs, output_filter: Vec::new() };
    assert_eq!(client.predict(request).await.unwrap().into_inner().outputs["y"], strings);
    let half = pb::TensorProto {
        dtype: pb::DataType::DtHalf.into(),
        half_val: vec![0x3E00],
        tensor_content: bytes::Bytes::new(),
        ..floats(&[2], &[])
    };
    let inputs = HashMap::from([("x".to_owned(), half)]);
    let request = tf::PredictRequest { model_spec: spec("echo_fp16"), inputs, output_filter: Vec::new() };
    assert_eq!(client.predict(request).await.unwrap().into_inner().outputs["y"].half_val, [0x3E00, 0x3E00]);
}

#[tokio::test]
async fn grpc_refuses_in_its_own_words() {
    let running = Setup::new().start().await;
    let mut client = prediction(&running).await;
    let version = |choice| {
        let model_spec = Some(tf::ModelSpec { version_choice: Some(choice), ..spec("double").unwrap() });
        tf::PredictRequest { model_spec, ..predict_request("double") }
    };
    client.predict(version(tf::model_spec::VersionChoice::Version(1))).await.unwrap();
    for choice in [
        tf::model_spec::VersionChoice::Version(9),
        tf::model_spec::VersionChoice::Version(-1),
        tf::model_spec::VersionChoice::VersionLabel("stable".into()),
    ] {
        assert_eq!(status_failure(&client.predict(version(choice)).await.unwrap_err()).code, "not_found");
    }
    let signature = tf::ModelSpec { signature_name: "other".into(), ..spec("double").unwrap() };
    let request = tf::PredictRequest { model_spec: Some(signature), ..predict_request("double") };
    assert!(client.predict(request).await.unwrap_err().message().contains("signature `other`"));
    // Sixteen bytes that ask for four gigabytes.
    let mut request = predict_request("double");
    let huge =
        pb::TensorProto { float_val: vec![1.0], tensor_content: bytes::Bytes::new(), ..floats(&[1 << 28, 4], &[]) };
    request.inputs.insert("x".into(), huge);
    assert_eq!(status_failure(&client.predict(request).await.unwrap_err()).code, "payload_too_large");
    let complex = pb::TensorProto { dtype: pb::DataType::DtComplex64.into(), ..floats(&[1, 4], &[0.0; 4]) };
    let mut request = predict_request("double");
    request.inputs.insert("x".into(), complex);
    assert!(client.predict(request).await.unwrap_err().message().contains("DT_COMPLEX64"));
    // Known by name and not served.
    for (service, method) in [
        ("PredictionService", "Classify"),
        ("PredictionService", "Regress"),
        ("PredictionService", "MultiInference"),
        ("ModelService", "HandleReloadConfigRequest"),
        ("SessionService", "SessionRun"),
    ] {
        let mut client = tonic::client::Grpc::new(grpc_channel(&running).await);
        client.ready().await.unwrap();
        let path = format!("/tensorflow.serving.{service}/{method}").parse().unwrap();
        let codec = tonic_prost::ProstCodec::<tf::ModelSpec, tf::ModelSpec>::default();
        let status = client.unary(tonic::Request::new(tf::ModelSpec::default()), path, codec).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{method}");
        assert!(status.message().contains(&format!("`{method}`")), "{status:?}");
    }
}

#[tokio::test]
async fn grpc_tells_states_and_metadata() {
    let running = Setup::new().start().await;
    let mut models = ModelServiceClient::new(grpc_channel(&running).await);
    let status = |model: &str| tf::GetModelStatusRequest { model_spec: spec(model) };
    let found = models.get_model_status(status("double")).await.unwrap().into_inner().model_version_status;
    assert_eq!((found.len(), found[0].version, found[0].state().as_str_name()), (1, 1, "AVAILABLE"));
    let failed = models.get_model_status(status("corrupt")).await.unwrap().into_inner().model_version_status;
    assert_eq!(failed[0].state().as_str_name(), "END");
    assert_eq!(models.get_model_status(status("nobody")).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut client = prediction(&running).await;
    let request =
        |field: &str| tf::GetModelMetadataRequest { model_spec: spec("double"), metadata_field: vec![field.into()] };
    let found = client.get_model_metadata(request("signature_def")).await.unwrap().into_inner();
    let map: tf::SignatureDefMap = prost::Message::decode(&*found.metadata["signature_def"].value).unwrap();
    assert_eq!(map.signature_def["serving_default"].inputs["x"].dtype(), pb::DataType::DtFloat);
    assert_eq!(client.get_model_metadata(request("graph")).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

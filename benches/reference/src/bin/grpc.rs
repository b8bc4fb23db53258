//! One model over gRPC, by hand: tonic and ONNX Runtime, run where the request is handled.
//!
//! `grpc ADDRESS ONNXRUNTIME_LIBRARY MODEL [NAME]`

use inference::{
    ModelInferRequest, ModelInferResponse, ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
};
use reference::{Arguments, Failure, Model};
use tonic::{Request, Response, Status, transport::Server};

/// The messages and the service, as generated.
#[allow(clippy::enum_variant_names, reason = "the protocol's names")]
mod inference {
    tonic::include_proto!("inference");
}

struct Service(Model);

fn main() -> Result<(), Failure> {
    let Arguments { address, model } = Arguments::read()?;
    let address = address.parse()?;
    reference::serve(async {
        let service = GrpcInferenceServiceServer::new(Service(model));
        Ok(Server::builder().tcp_nodelay(true).add_service(service).serve(address).await?)
    })
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let request = request.into_inner();
        if request.model_name != self.0.name {
            return Err(Status::not_found(format!("no model `{}`", request.model_name)));
        }
        run(&self.0, request).map(Response::new).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

fn run(model: &Model, request: ModelInferRequest) -> Result<ModelInferResponse, Failure> {
    let ([input], [raw]) = (&request.inputs[..], &request.raw_input_contents[..]) else {
        return Err("expected one input with raw contents".into());
    };
    if input.name != "x" || input.datatype != "FP32" {
        return Err("expected `x`, FP32".into());
    }
    // Bytes of a message lie anywhere.
    let data: Vec<f32> = match raw.len() % 4 {
        0 => bytemuck::pod_collect_to_vec(raw),
        _ => return Err("the raw contents are no FP32".into()),
    };
    let (id, name) = (request.id, model.name.clone());
    model.run(&input.shape, &data, |shape, data| ModelInferResponse {
        model_name: name,
        model_version: "1".to_owned(),
        id,
        outputs: vec![InferOutputTensor {
            name: "y".to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
            ..Default::default()
        }],
        raw_output_contents: vec![bytemuck::cast_slice::<f32, u8>(data).to_vec().into()],
        ..Default::default()
    })
}

//! One model over V2 JSON, by hand: axum, serde_json and ONNX Runtime, run where the request is handled.
//!
//! Written as well as one writes such a server: typed structs, one buffer for the numbers of a request, the answer
//! written straight from ONNX Runtime's own memory, one thread. No identity, no limits, no deadlines, no metrics, no
//! log, no other surface: that is what it is compared for.
//!
//! `reference ADDRESS ONNXRUNTIME_LIBRARY MODEL`

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use ort::{
    session::{Session, builder::GraphOptimizationLevel},
    value::TensorRef,
};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    sync::{Arc, Mutex},
};

#[derive(Deserialize)]
struct InferRequest {
    id: Option<String>,
    inputs: Vec<InputTensor>,
}

#[derive(Deserialize)]
struct InputTensor {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    data: Vec<f32>,
}

#[derive(Serialize)]
struct InferResponse<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    model_version: &'a str,
    outputs: [OutputTensor<'a>; 1],
}

#[derive(Serialize)]
struct OutputTensor<'a> {
    name: &'a str,
    shape: &'a [i64],
    datatype: &'a str,
    data: &'a [f32],
}

#[derive(Serialize)]
struct Failure {
    error: String,
}

type Model = Arc<Mutex<Session>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().ok_or("usage: reference ADDRESS ONNXRUNTIME_LIBRARY MODEL");
    let (address, library, model) = (argument()?, argument()?, argument()?);

    let environment = ort::init_from(library)?.with_telemetry(false).build()?;
    let session = Session::builder(&environment)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        // As in the product, where it is a matter of memory; it gains a small model some percent.
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .commit_from_file(model)?;

    let router = Router::new()
        .route("/v2/health/ready", get(|| async {}))
        .route("/v2/models/mlp/infer", post(infer))
        .with_state(Arc::new(Mutex::new(session)));
    // One thread has no one to hand work to, and none to wake: the fastest form that such a server has on one core.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, router).await
    })?;
    Ok(())
}

async fn infer(State(model): State<Model>, Json(request): Json<InferRequest>) -> Response {
    match run(&model, &request) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, Json(Failure { error: error.to_string() })).into_response(),
    }
}

fn run(model: &Mutex<Session>, request: &InferRequest) -> Result<Vec<u8>, Box<dyn Error>> {
    let [input] = &request.inputs[..] else { return Err("expected one input".into()) };
    if input.name != "x" || input.datatype != "FP32" {
        return Err("expected `x`, FP32".into());
    }
    // Checks that the shape is that of the data.
    let tensor = TensorRef::from_array_view((&input.shape[..], &input.data[..]))?;
    let mut session = model.lock().map_err(|_| "an earlier run panicked")?;
    let outputs = session.run(ort::inputs![tensor])?;
    let (shape, data) = outputs[0].try_extract_tensor::<f32>()?;
    let response = InferResponse {
        id: request.id.as_deref(),
        model_name: "mlp",
        model_version: "1",
        outputs: [OutputTensor { name: "y", shape, datatype: "FP32", data }],
    };
    Ok(serde_json::to_vec(&response)?)
}

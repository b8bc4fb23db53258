//! One model over V2 JSON, by hand: axum, serde_json and ONNX Runtime, run where the request is handled.
//!
//! `reference ADDRESS ONNXRUNTIME_LIBRARY MODEL [NAME]`

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use reference::{Arguments, Failure, InferRequest, Model, input};
use std::sync::Arc;

fn main() -> Result<(), Failure> {
    let Arguments { address, model } = Arguments::read()?;
    let router = Router::new()
        .route("/v2/health/ready", get(|| async {}))
        .route(&format!("/v2/models/{}/infer", model.name), post(infer))
        .with_state(Arc::new(model));
    reference::serve(async {
        let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router).await?)
    })
}

async fn infer(State(model): State<Arc<Model>>, Json(request): Json<InferRequest>) -> Response {
    match run(&model, &request) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            (StatusCode::BAD_REQUEST, Json(serde_json::json!({ "error": error.to_string() }))).into_response()
        }
    }
}

fn run(model: &Model, request: &InferRequest) -> Result<Vec<u8>, Failure> {
    let input = input(&request.inputs)?;
    model.run(&input.shape, &input.data, |shape, data| model.response(request.id.as_deref(), shape, data))?
}

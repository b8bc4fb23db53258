//! The same as `reference`, with a batcher that has no timer: what has come while the model ran is the next batch.
//!
//! `batcher ADDRESS ONNXRUNTIME_LIBRARY MODEL [NAME]`

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use reference::{Arguments, Failure, InferRequest, InputTensor, Model, input};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Most rows of a batch, as the product has it.
const MOST: usize = 64;

/// Requests that wait for a batch.
const WAITING: usize = 1024;

/// A request on its way to a batch; it is answered with a body.
struct Job {
    request: InferRequest,
    reply: oneshot::Sender<Result<Vec<u8>, Failure>>,
}

fn main() -> Result<(), Failure> {
    let Arguments { address, model } = Arguments::read()?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let router = Router::new()
        .route("/v2/health/ready", get(|| async {}))
        .route(&format!("/v2/models/{}/infer", model.name), post(infer))
        .with_state(sender);
    reference::serve(async {
        tokio::spawn(batches(Arc::new(model), receiver));
        let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router).await?)
    })
}

async fn infer(State(batcher): State<mpsc::Sender<Job>>, Json(request): Json<InferRequest>) -> Response {
    let (reply, answer) = oneshot::channel();
    let refuse = |error: String| (StatusCode::BAD_REQUEST, Json(serde_json::json!({ "error": error }))).into_response();
    if batcher.send(Job { request, reply }).await.is_err() {
        return refuse("the batcher has ended".to_owned());
    }
    match answer.await {
        Ok(Ok(body)) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Ok(Err(error)) => refuse(error.to_string()),
        Err(_) => refuse("the batcher has ended".to_owned()),
    }
}

async fn batches(model: Arc<Model>, mut jobs: mpsc::Receiver<Job>) {
    let (mut batch, mut data) = (Vec::with_capacity(MOST), Vec::new());
    while let Some(first) = jobs.recv().await {
        batch.push(first);
        while batch.len() < MOST
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        // The session runs here: nothing is read meanwhile, so what comes waits in the sockets for the next batch.
        if let Err(error) = run(&model, &mut batch, &mut data) {
            let error = error.to_string();
            batch.drain(..).for_each(|job| drop(job.reply.send(Err(error.clone().into()))));
        }
    }
}

/// Runs all jobs together. Their rows must be of one length.
fn run(model: &Model, batch: &mut Vec<Job>, data: &mut Vec<f32>) -> Result<(), Failure> {
    data.clear();
    let (mut rows, mut width) = (0, None);
    for job in &*batch {
        let InputTensor { shape, data: row, .. } = input(&job.request.inputs)?;
        let [count, length] = shape[..] else { return Err("expected two dimensions".into()) };
        if *width.get_or_insert(length) != length {
            return Err("expected rows of one length".into());
        }
        rows += count;
        data.extend_from_slice(row);
    }
    model.run(&[rows, width.unwrap_or_default()], data, |shape, output| {
        let length = shape.get(1).copied().unwrap_or(1);
        let mut rest = output;
        for Job { request, reply } in batch.drain(..) {
            let count = request.inputs[0].shape[0];
            let (own, behind) = rest.split_at(usize::try_from(count * length).unwrap_or_default().min(rest.len()));
            rest = behind;
            // Who has gone does not want to know.
            let _ = reply.send(model.response(request.id.as_deref(), &[count, length], own));
        }
    })
}

//! One model over WebSockets, by hand: axum, serde_json and ONNX Runtime, run where the message is handled.
//!
//! It takes and gives the messages of `sluicegate.v1` that carry requests: `hello`, `infer`; `welcome`, `output`, `error`.
//!
//! `websocket ADDRESS ONNXRUNTIME_LIBRARY MODEL [NAME]`

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, Utf8Bytes, WebSocket},
    },
    response::Response,
    routing::get,
    serve::ListenerExt,
};
use reference::{Arguments, Failure, InputTensor, Model, OutputTensor, input, output};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a client says.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Asked {
    Hello {},
    Infer { id: String, model: String, inputs: Vec<InputTensor> },
}

/// What it hears.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Said<'a> {
    Welcome {
        protocol: u32,
    },
    Output {
        id: &'a str,
        seq: u32,
        #[serde(rename = "final")]
        last: bool,
        model: &'a str,
        version: &'a str,
        outputs: [OutputTensor<'a>; 1],
    },
    Error {
        id: Option<&'a str>,
        code: &'a str,
        message: &'a str,
    },
}

fn main() -> Result<(), Failure> {
    let Arguments { address, model } = Arguments::read()?;
    let router = Router::new()
        .route("/v2/health/ready", get(|| async {}))
        .route("/v1/ws", get(upgrade))
        .with_state(Arc::new(model));
    reference::serve(async {
        let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router).await?)
    })
}

async fn upgrade(State(model): State<Arc<Model>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.protocols(["sluicegate.v1"]).on_upgrade(|socket| session(model, socket))
}

async fn session(model: Arc<Model>, mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(text) = message else { continue };
        let Ok(answer) = answer(&model, &text) else { return };
        if socket.send(Message::Text(answer)).await.is_err() {
            return;
        }
    }
}

fn answer(model: &Model, text: &str) -> Result<Utf8Bytes, Failure> {
    let written = match serde_json::from_str(text) {
        Ok(Asked::Hello {}) => serde_json::to_string(&Said::Welcome { protocol: 1 })?,
        Ok(Asked::Infer { id, model: name, inputs }) if name == model.name => match run(model, &id, &inputs) {
            Ok(written) => written,
            Err(error) => refuse(Some(&id), "invalid_argument", &error.to_string())?,
        },
        Ok(Asked::Infer { id, .. }) => refuse(Some(&id), "not_found", "no such model")?,
        Err(error) => refuse(None, "invalid_argument", &error.to_string())?,
    };
    Ok(written.into())
}

fn run(model: &Model, id: &str, inputs: &[InputTensor]) -> Result<String, Failure> {
    let input = input(inputs)?;
    model.run(&input.shape, &input.data, |shape, data| {
        let outputs = [output(shape, data)];
        let said = Said::Output { id, seq: 0, last: true, model: &model.name, version: "1", outputs };
        Ok(serde_json::to_string(&said)?)
    })?
}

fn refuse(id: Option<&str>, code: &str, message: &str) -> Result<String, Failure> {
    Ok(serde_json::to_string(&Said::Error { id, code, message })?)
}

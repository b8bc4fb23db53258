//! What a person sees when the server is ready: what is served, where, and one command for each surface.

use super::App;
use crate::model::{Loaded, State};
use std::{
    fmt::{self, Write as _},
    io::Write as _,
};

/// Prints it to standard output, in one piece.
pub(super) fn print(app: &App, loaded: &Loaded, engine: &str, secured: bool) {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, app, loaded, engine, secured);
    // Nobody may be reading: that is no reason to stop.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

fn write(text: &mut String, app: &App, loaded: &Loaded, engine: &str, secured: bool) -> fmt::Result {
    writeln!(text, "sluicegate {} with {engine}\n", env!("CARGO_PKG_VERSION"))?;
    let states = app.repository().states();
    let ready = states.iter().filter_map(|(_, _, state)| match state {
        State::Ready(model) => Some(model),
        State::Loading | State::Failed(_) | State::Unloading => None,
    });
    for model in ready {
        let spec = |specs: &[crate::tensor::TensorSpec]| {
            let specs = specs.iter().map(|spec| {
                let dims: Vec<_> = spec.wire_dims().map(|dim| dim.to_string()).collect();
                format!("{} {}[{}]", spec.name, spec.dtype_name(), dims.join(","))
            });
            specs.collect::<Vec<_>>().join(", ")
        };
        let place = model.scheduler.execution().name();
        writeln!(
            text,
            "  {:<24} {} -> {}  ({place})",
            model.key.to_string(),
            spec(&model.signature.inputs),
            spec(&model.signature.outputs)
        )?;
    }
    for (what, why) in &loaded.failed {
        writeln!(text, "  {what:<24} not served: {why}")?;
    }
    if states.is_empty() && loaded.failed.is_empty() {
        writeln!(text, "  no models: expected NAME/VERSION/model.onnx")?;
    }
    let Some(address) = app.addresses().first() else { return Ok(()) };
    let key = if secured { " -H 'authorization: Bearer YOUR_KEY'" } else { "" };
    let model = states.iter().find(|(_, _, state)| matches!(state, State::Ready(_)));
    let model = model.map_or("MODEL", |(name, _, _)| name);
    writeln!(text)?;
    for address in app.addresses() {
        writeln!(text, "  http://{address}  rest, grpc, websocket, h2_stream")?;
    }
    if let Some(admin) = app.admin_address() {
        writeln!(text, "  http://{admin}  /metrics /livez /readyz")?;
    }
    writeln!(text)?;
    let example = if std::path::Path::new("models/digits/example.json").exists() && model == "digits" {
        format!("curl -s http://{address}/v2/models/digits/infer{key} -d @models/digits/example.json")
    } else {
        format!("curl -s http://{address}/v2/models/{model}{key}")
    };
    writeln!(text, "  REST       {example}")?;
    writeln!(
        text,
        "  gRPC       grpcurl -plaintext{key} -d '{{\"name\":\"{model}\"}}' {address} inference.GRPCInferenceService/ModelReady"
    )?;
    writeln!(text, "  WebSocket  websocat --protocol sluicegate.v1{key} ws://{address}/v1/ws")?;
    writeln!(
        text,
        "  HTTP/2     curl -sN --http2-prior-knowledge http://{address}/v2/stream{key} -H 'content-type: application/x-ndjson' --data-binary @FILE"
    )?;
    writeln!(text, "\nCtrl-C drains and stops; twice stops at once.")
}

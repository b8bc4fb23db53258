//! What a person sees when the server is ready: what is served, where, and one command for each surface.

use super::{App, Bound};
use crate::{
    call::Surface,
    model::{Loaded, State},
};
use std::{
    fmt::{self, Write as _},
    io::Write as _,
    path::Path,
};

/// Prints it to standard output, in one piece.
pub(super) fn print(app: &App, loaded: &Loaded, ort_version: &str, secured: bool) {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, app, loaded, ort_version, secured);
    // Nobody may be reading: that is no reason to stop.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

fn write(text: &mut String, app: &App, loaded: &Loaded, ort_version: &str, secured: bool) -> fmt::Result {
    writeln!(text, "sluicegate {} with ONNX Runtime {ort_version}\n", env!("CARGO_PKG_VERSION"))?;
    let states = app.repository().states();
    let ready = states.iter().filter_map(|(_, _, state)| match state {
        State::Ready(model) => Some(model),
        State::Loading | State::Failed(_) | State::Unloading(_) | State::Unloaded => None,
    });
    for model in ready {
        let spec = |specs: &[crate::tensor::TensorSpec]| {
            let specs = specs.iter().map(|spec| {
                let dims: Vec<_> = spec.wire_dims().map(|dim| dim.to_string()).collect();
                format!("{} {}[{}]", spec.name.escape_debug(), spec.dtype_name(), dims.join(","))
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
        let (what, why) = (what.escape_debug().to_string(), why.replace(char::is_control, " "));
        writeln!(text, "  {what:<24} not served: {why}")?;
    }
    if states.is_empty() && loaded.failed.is_empty() {
        writeln!(text, "  no models: expected NAME/VERSION/model.onnx")?;
    }
    let key = if secured { " -H 'authorization: Bearer YOUR_KEY'" } else { "" };
    let model = states.iter().find(|(_, _, state)| matches!(state, State::Ready(_)));
    let model = model.map_or("MODEL", |(name, _, _)| name);
    writeln!(text)?;
    for bound in &app.bound {
        let scheme = if bound.tls { "https" } else { "http" };
        writeln!(text, "  {scheme}://{}  {}", bound.address, bound.surfaces.names().join(", "))?;
    }
    if let Some(admin) = app.admin_address() {
        let scheme = if app.admin_tls { "https" } else { "http" };
        writeln!(text, "  {scheme}://{admin}  /metrics /livez /readyz")?;
    }
    writeln!(text)?;
    for surface in Surface::ALL {
        if let Some(bound) = app.bound.iter().find(|bound| bound.surfaces.has(surface)) {
            writeln!(text, "  {}", example(surface, bound, model, key))?;
        }
    }
    writeln!(text, "\nCtrl-C drains and stops; twice stops at once.")
}

/// One command to copy for `surface`. Those of the repository's own examples where they lie in this folder.
fn example(surface: Surface, bound: &Bound, model: &str, key: &str) -> String {
    let Bound { address, tls, .. } = bound;
    let (scheme, web, plain, prior) = match tls {
        true => ("https", "wss", "", "--http2"),
        false => ("http", "ws", "-plaintext ", "--http2-prior-knowledge"),
    };
    let there = |file: &str| Path::new(file).exists();
    match surface {
        Surface::Rest if model == "digits" && there("models/digits/example.json") => {
            format!(
                "REST       curl -s {scheme}://{address}/v2/models/digits/infer{key} -d @models/digits/example.json"
            )
        }
        Surface::Rest => format!("REST       curl -s {scheme}://{address}/v2/models/{model}{key}"),
        Surface::Grpc => format!(
            "gRPC       grpcurl {plain}{key} -d '{{\"name\":\"{model}\"}}' {address} inference.GRPCInferenceService/ModelReady"
        ),
        Surface::WebSocket => format!("WebSocket  websocat --protocol sluicegate.v1{key} {web}://{address}/v1/ws"),
        Surface::H2Stream => {
            let lines = if there("examples/stream.ndjson") { "examples/stream.ndjson" } else { "FILE" };
            format!(
                "HTTP/2     curl -sN {prior} {scheme}://{address}/v2/stream{key} -H 'content-type: application/x-ndjson' --data-binary @{lines}"
            )
        }
    }
}

//! The session alone, run after run on this thread: what everything else is held against.

use super::{
    BenchError, Lengths,
    arguments::Arguments,
    engine,
    input::Payload,
    measure::Recorder,
    progress::Progress,
    report::{Asked, Report, Run},
};
use crate::{
    app,
    backend::{Backend, Open},
    model,
    tensor::Tensors,
};
use futures_util::FutureExt;
use std::time::{Duration, Instant};

/// What it is called in reports.
const NAME: &str = "session";

/// Opens the model as the server would for a thread of its own, and runs it.
///
/// # Errors
///
/// [`BenchError`] if it cannot be opened, its inputs cannot be made up, or its first run fails.
pub(super) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let (config, runtime) = engine::load(arguments)?;
    let settings = app::model_settings(&config);
    let (path, own) = model::path_of(&settings, &arguments.model, arguments.model_version.as_deref())
        .map_err(|reason| BenchError(format!("{}: {reason}", arguments.model)))?;
    let session = own.session(own.threads.unwrap_or(settings.budget.cores()), 1);
    let mut backend = runtime.open(&path, &session).map_err(BenchError::new)?;
    let payloads = Payload::all(arguments, async || Ok((**backend.signature()).clone())).now_or_never();
    let payloads = payloads.ok_or_else(|| BenchError::new("requests that are not at hand"))??;
    let [payload] = payloads.as_slice() else { return Err(BenchError::new("--bare runs one request again and again")) };
    let rows = payload.rows();
    let checked = model::signature::check(backend.signature(), false, payload.inputs().to_vec());
    let inputs = checked.map_err(BenchError::new)?.inputs;
    let outputs = backend.signature().outputs.iter().map(|spec| format!("`{}`", spec.name)).collect::<Vec<_>>();
    let lengths = Lengths { warmup: arguments.warmup.0, measured: arguments.duration.0 };
    let rounds = arguments.rounds.get();
    let progress = Progress::start(rounds, lengths.warmup + lengths.measured);
    let mut runs = Vec::with_capacity(rounds);
    for round in 1..=rounds {
        progress.next(&format!("{NAME}, {rows} rows, round {round}"));
        phase(&mut *backend, &inputs, lengths.warmup)?;
        let recorder = phase(&mut *backend, &inputs, lengths.measured)?;
        let asked = Asked { name: NAME, source: 0, callers: 1, round, rows };
        runs.push(Run::new(asked, &recorder, None, lengths.measured));
    }
    progress.end();
    Ok(Report::new(arguments, vec![(NAME.to_owned(), outputs.join(", "))], runs))
}

/// Runs for `length`, once at least.
fn phase(backend: &mut dyn Backend, inputs: &Tensors, length: Duration) -> Result<Recorder, BenchError> {
    let end = Instant::now() + length;
    let mut recorder = Recorder::new(end);
    loop {
        let begun = Instant::now();
        let outputs = backend.run(inputs);
        let now = Instant::now();
        let failed = |error: crate::error::Error| {
            BenchError(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
        };
        drop(outputs.map_err(failed)?);
        recorder.record(begun, now, Ok(None));
        if now >= end {
            return Ok(recorder);
        }
    }
}

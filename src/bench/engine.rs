//! The engine in this process: the loader and the scheduler of the server, on one lane that is this thread.

use super::{
    BenchError,
    arguments::Arguments,
    campaign,
    input::Payload,
    report::Report,
    source::{Engine, Source, named},
};
use crate::{
    app,
    backend::ort::Runtime,
    call::ModelRef,
    config::{Config, Overrides},
    model::{Load, Loader, Repository, signature},
    schedule::turn,
    telemetry::metrics::Metrics,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime;

/// How often an idle lane looks at its clock: see `lane`.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// How long inference threads have to end.
const THREADS_END: Duration = Duration::from_secs(5);

/// What `--engine` reads: the configuration, and the ONNX Runtime that it names.
///
/// # Errors
///
/// [`BenchError`] lists what is wrong with either.
pub(super) fn load(arguments: &Arguments) -> Result<(Config, Runtime), BenchError> {
    let overrides = Overrides {
        models: arguments.models.clone(),
        onnxruntime: arguments.onnxruntime.clone(),
        ..Overrides::default()
    };
    let config = Config::load(arguments.config.as_deref(), overrides).map_err(BenchError::new)?;
    let runtime = Runtime::load(config.runtime.onnxruntime.as_deref()).map_err(BenchError::new)?;
    Ok((config, runtime))
}

/// Loads the model as the server would, and measures it.
///
/// # Errors
///
/// [`BenchError`] if it cannot be loaded or its inputs cannot be made up.
pub(super) fn run(client: &runtime::Runtime, arguments: &Arguments) -> Result<Report, BenchError> {
    let (config, opener) = load(arguments)?;
    let (lanes, mut seats) = turn::Lanes::new(1);
    let seat = seats.pop().ok_or_else(|| BenchError::new("no lane"))?;
    let (guard, turns) = seat.enter();
    let repository = Arc::new(Repository::default());
    let report = client.block_on(async {
        tokio::spawn(turns);
        tokio::spawn(async {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
        let mut settings = app::model_settings(&config);
        let wanted = named(arguments);
        settings.load = Load::Names([wanted.name.to_string()].into());
        let metrics = Arc::new(Metrics::new());
        let loader = Loader::new(settings, Arc::new(opener), Arc::clone(&repository), metrics, Some(lanes));
        let loaded = loader.load().await;
        if let Some((what, reason)) = loaded.failed.first() {
            return Err(BenchError(format!("{what}: {reason}")));
        }
        let source = engine(&repository, &wanted, arguments).await?;
        campaign(&[source], arguments).await
    });
    // The lane has had its last turn: it must let go of the model, which keeps its threads until then.
    drop(guard);
    // Threads that are left would meet ONNX Runtime's destructors on the way out.
    repository.close(Instant::now() + THREADS_END);
    report
}

async fn engine(repository: &Repository, wanted: &ModelRef, arguments: &Arguments) -> Result<Source, BenchError> {
    let model = repository.resolve(wanted).map_err(BenchError::new)?;
    let (mut inputs, mut rows) = (Vec::new(), 1);
    for payload in Payload::all(arguments, async || Ok((*model.signature).clone())).await? {
        let checked = signature::check(&model.signature, model.batches(), payload.inputs().to_vec());
        let checked = checked.map_err(BenchError::new)?;
        inputs.push(checked.inputs);
        rows = checked.rows;
    }
    Ok(Source::Engine(Engine { model, inputs, rows }))
}

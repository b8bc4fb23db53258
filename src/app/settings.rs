//! From the configuration to the settings of the modules that must not know it.

use super::memory;
use crate::{
    backend::{
        self,
        ort::{optimized, probe},
    },
    builtin::files,
    config::{
        self, Amount, Arena, Config, Execution, Kind, Limit, Load, LogFormat, LogLevel, Memory, Mode, Optimization,
        Rows, Switch, Versions, Warmup, WhenLate, raw,
    },
    lane,
    layer::deadline,
    model, schedule,
    telemetry::{Format, LogSettings},
    wire::{
        self,
        json::{self, Dialect},
    },
};
use bytes::Bytes;
use std::{
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

/// The cores that this process may use.
fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// `limits.deadline`.
pub(super) fn deadlines(settings: &config::Deadline) -> deadline::Settings {
    deadline::Settings { default: settings.default, stream: settings.stream, max: settings.max }
}

/// `telemetry.log`.
pub(super) fn log(settings: &config::Telemetry) -> LogSettings {
    let level = match settings.log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let format = match settings.log.format {
        LogFormat::Auto => Format::Auto,
        LogFormat::Pretty => Format::Pretty,
        LogFormat::Json => Format::Json,
    };
    LogSettings { level: level.to_owned(), format }
}

/// `runtime.kind`, `runtime.lanes`.
pub(super) fn lanes(settings: &config::Runtime) -> lane::Settings {
    let threads = amount(settings.lanes).and_then(NonZeroUsize::new).unwrap_or_else(cores);
    match settings.kind {
        Kind::Lanes => lane::Settings::Lanes(threads),
        Kind::WorkStealing => lane::Settings::WorkStealing(threads),
    }
}

/// How many lanes run models: none where connections are spread otherwise.
pub fn lane_count(config: &Config) -> usize {
    match lanes(&config.runtime) {
        lane::Settings::Lanes(count) => count.get(),
        lane::Settings::WorkStealing(_) => 0,
    }
}

/// `models.probe`, with `program` to try files; `None`: none are tried.
pub fn probe(config: &Config, program: PathBuf) -> Option<probe::Settings> {
    let when = match config.models.probe {
        config::Probe::Auto => probe::When::Auto,
        config::Probe::Always => probe::When::Always,
        config::Probe::Never => return None,
    };
    let (timeout, memory) = (config.models.probe_timeout, config.models.probe_memory);
    Some(probe::Settings { when, timeout, memory, program })
}

/// `models.optimized_cache`.
pub fn optimized(config: &Config) -> Option<optimized::Settings> {
    let (folder, size) = config.models.optimized_cache.clone()?;
    Some(optimized::Settings { folder, size })
}

/// `models`, `runtime.turn`, `runtime.inference_cores`.
pub fn models(config: &Config) -> model::Settings {
    let (written, queue_delay) = (config.models.written.clone(), config.concurrency.queue_delay);
    // Twice the longest deadline: nobody waits any more, however long the call stood in the queue.
    let patience = config.deadline.max * 2;
    let memory = match config.models.memory {
        Memory::Auto => memory::share(),
        Memory::Exactly(bytes) => Some(bytes as u64),
    };
    model::Settings {
        directories: config.models.directories.clone(),
        load: match &config.models.load {
            Load::All => model::Load::All,
            Load::None => model::Load::None,
            Load::Named(names) => model::Load::Names(names.iter().cloned().collect()),
        },
        defaults: model_settings(&config.models.defaults, queue_delay, patience),
        turn: config.runtime.turn,
        budget: model::budget::Budget::new(amount(config.runtime.inference_cores).unwrap_or(cores().get()), memory),
        reader: Some(model::Reader::new(move |source, _| {
            let read = config::load_model(source.name, source.folder, source.config, &written);
            let read = read.map_err(|problems| problems.in_one_line())?;
            let settings = model_settings(&read.defaults, queue_delay, patience);
            Ok(model::ModelSettings {
                routing: Arc::new(config::routing(&read)),
                samples: samples(&read, source.folder)?,
                labels: read.class_labels.into_iter().collect(),
                inputs: read.inputs,
                file: read.file.unwrap_or(settings.file),
                declared: read.declared,
                platform: match &read.ensemble {
                    Some(_) => model::ensemble::PLATFORM.into(),
                    None => settings.platform,
                },
                ensemble: read.ensemble.map(Arc::new),
                notes: read.notes,
                warnings: read.warnings,
                ..settings
            })
        })),
    }
}

fn model_settings(
    settings: &config::ModelDefaults,
    queue_delay: Option<Duration>,
    patience: Duration,
) -> model::ModelSettings {
    let batching = &settings.batching;
    model::ModelSettings {
        versions: match &settings.versions {
            Versions::Latest(count) => model::VersionPolicy::Latest(*count),
            Versions::All => model::VersionPolicy::All,
            Versions::Listed(versions) => model::VersionPolicy::Only(versions.clone()),
        },
        instances: amount(settings.instances),
        threads: amount(settings.threads),
        execution: match settings.execution {
            Execution::Auto => schedule::Execution::Auto,
            Execution::Turn => schedule::Execution::Turn,
            Execution::Thread => schedule::Execution::Thread,
        },
        share_weights: settings.share_weights,
        arena: match settings.arena {
            Arena::Auto => backend::Arena::Auto,
            Arena::Keep => backend::Arena::Keep,
            Arena::Shrink => backend::Arena::Shrink,
            Arena::None => backend::Arena::None,
        },
        providers: settings.providers.iter().map(provider).collect(),
        session: session(&settings.session),
        run_limit: match settings.run_limit {
            Limit::Auto => Some(patience),
            Limit::Never => None,
            Limit::After(limit) => Some(limit),
        },
        batching: model::Batching {
            enabled: match batching.enabled {
                Switch::Auto => None,
                Switch::On => Some(true),
                Switch::Off => Some(false),
            },
            max_rows: batching.max_rows,
            max_elements: amount(batching.max_elements),
            max_delay: batching.max_delay.unwrap_or_default(),
            rejoin: batching.max_delay.is_none(),
            max_queue: batching.max_queue,
            queue_delay,
            priorities: schedule::Priorities::new(batching.priorities, Some(batching.default_priority)),
            preferred: schedule::Preferred::new(batching.preferred.iter().copied()),
            timeout: batching.timeout,
            when_late: match batching.when_late {
                WhenLate::Reject => schedule::WhenLate::Reject,
                WhenLate::Delay => schedule::WhenLate::Delay,
            },
            preserve_order: batching.preserve_order,
        },
        pad: settings.pad.clone(),
        fixed_rows: settings.rows == Rows::Fixed,
        warmup: settings.warmup != Warmup::Off,
        cache: settings.cache.settings(),
        ..model::ModelSettings::default()
    }
}

fn provider(provider: &raw::Provider) -> backend::Provider {
    let options = provider.options.iter().map(|(key, value)| (key.clone(), value.0.clone()));
    backend::Provider { kind: provider.kind, options: options.collect() }
}

fn session(settings: &raw::Session) -> backend::SessionOptions {
    backend::SessionOptions {
        optimization: match settings.graph_optimization_level {
            Optimization::Disabled => backend::Optimization::Disabled,
            Optimization::Basic => backend::Optimization::Basic,
            Optimization::Extended => backend::Optimization::Extended,
            Optimization::Layout => backend::Optimization::Layout,
            Optimization::All => backend::Optimization::All,
        },
        parallel: (settings.execution_mode == Mode::Parallel).then_some(settings.inter_op_threads.0),
        entries: settings.entries.iter().map(|(key, value)| (key.clone(), value.0.clone())).collect(),
    }
}

/// What a model is run on before it is ready, besides what is made up: what its `config.pbtxt` describes, and then the V2
/// requests in the files of its `warmup`. Nothing with `warmup: off`.
///
/// # Errors
///
/// In plain words: a file that cannot be read, or that is no request.
fn samples(model: &config::ModelConfig, folder: &Path) -> Result<Vec<model::Sample>, String> {
    let files = match &model.defaults.warmup {
        Warmup::Off => return Ok(Vec::new()),
        Warmup::Auto => &[][..],
        Warmup::Files(files) => files,
    };
    let mut samples = model.samples.clone();
    for file in files {
        let wrong = |reason: &dyn fmt::Display| format!("warmup: `{}`: {reason}", file.display());
        let text = files::text(folder, file).and_then(|text| text.ok_or_else(|| "is not there".to_owned()));
        let body = Bytes::from(text.map_err(|error| wrong(&error))?);
        let request = json::decode_request(&body, Dialect::V2, None, &wire::Settings::default());
        let request = request.map_err(|error| wrong(&error))?;
        let inputs = request.inputs.into_iter().map(|input| model::SampleInput {
            name: input.name,
            dtype: input.tensor.dtype(),
            dims: input.tensor.shape().dims().to_vec(),
            fill: model::Fill::Zeros,
            given: Some(input.tensor),
        });
        let (name, inputs) = (file.display().to_string().into(), inputs.collect());
        samples.push(model::Sample { name, inputs, outputs: request.outputs, runs: 1 });
    }
    Ok(samples)
}

fn amount(amount: Amount) -> Option<usize> {
    match amount {
        Amount::Auto => None,
        Amount::Exactly(count) => Some(count),
    }
}

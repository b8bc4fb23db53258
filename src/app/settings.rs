//! From the configuration to the settings of the modules that must not know it.

use crate::{
    config::{self, Amount, Config, Execution, Kind, Load, LogFormat, LogLevel, Rows, Switch, Versions},
    lane,
    layer::deadline,
    model, schedule,
    telemetry::{Format, LogSettings},
};
use std::{num::NonZeroUsize, thread, time::Duration};

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

/// `models`, `runtime.turn`, `runtime.inference_cores`.
pub fn models(config: &Config) -> model::Settings {
    let (defaults, queue_delay) = (config.models.defaults.clone(), config.concurrency.queue_delay);
    model::Settings {
        directories: config.models.directories.clone(),
        load: match &config.models.load {
            Load::All => model::Load::All,
            Load::None => model::Load::None,
            Load::Named(names) => model::Load::Names(names.iter().cloned().collect()),
        },
        defaults: model_settings(&defaults, queue_delay),
        turn: schedule::TurnSettings {
            run: config.runtime.turn.run,
            budget: config.runtime.turn.budget,
            weights: config.runtime.turn.weights as u64,
        },
        inference_cores: amount(config.runtime.inference_cores).unwrap_or(cores().get()),
        reader: Some(model::Reader::new(move |source, _| {
            let read = config::load_model(source.name, source.folder, source.config, &defaults);
            let read = read.map_err(|problems| problems.in_one_line())?;
            let settings = model_settings(&read.defaults, queue_delay);
            Ok(model::ModelSettings {
                labels: read.class_labels.into_iter().collect(),
                inputs: read.inputs,
                file: read.file.unwrap_or(settings.file),
                declared: read.declared,
                samples: read.samples,
                notes: read.notes,
                warnings: read.warnings,
                ..settings
            })
        })),
    }
}

fn model_settings(settings: &config::ModelDefaults, queue_delay: Option<Duration>) -> model::ModelSettings {
    let batching = settings.batching;
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
        batching: model::Batching {
            enabled: match batching.enabled {
                Switch::Auto => None,
                Switch::On => Some(true),
                Switch::Off => Some(false),
            },
            max_rows: batching.max_rows,
            max_delay: batching.max_delay,
            max_queue: batching.max_queue,
            queue_delay,
            priorities: schedule::Priorities::new(batching.priorities, Some(batching.default_priority)),
        },
        pad: settings.pad.clone(),
        fixed_rows: settings.rows == Rows::Fixed,
        ..model::ModelSettings::default()
    }
}

fn amount(amount: Amount) -> Option<usize> {
    match amount {
        Amount::Auto => None,
        Amount::Exactly(count) => Some(count),
    }
}

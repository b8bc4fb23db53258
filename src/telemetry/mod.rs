//! Logs, metrics and traces: how they are started, what they are called, how they are written.
//!
//! Knows calls and errors, but not where in the stack they are reported from.

pub mod access_log;
pub mod metrics;
pub mod statistics;
pub mod switches;
pub mod traces;

use std::io::IsTerminal;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// How log lines look (`telemetry.log.format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// [`Format::Pretty`] on a terminal, [`Format::Json`] elsewhere.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// For machines: one JSON object per line.
    Json,
}

impl Format {
    /// This format, or for [`Format::Auto`] the one that suits `output`.
    #[must_use]
    pub fn for_output(self, output: &impl IsTerminal) -> Self {
        match self {
            Self::Auto if output.is_terminal() => Self::Pretty,
            Self::Auto => Self::Json,
            chosen => chosen,
        }
    }
}

/// `telemetry.log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A level (`info`), or directives per target as tracing writes them (`info,sluicegate::frontend=debug`).
    pub level: String,
    /// How lines look.
    pub format: Format,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Auto }
    }
}

/// Why logs could not be started.
#[derive(Debug)]
pub struct LogError(String);

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}

/// Libraries that at their finer levels write down what they send and receive, credentials and all. A level is one of
/// ours; who wants theirs names them in a directive.
const CALMED: [&str; 8] = ["h2", "hyper", "hyper_util", "tungstenite", "tokio_tungstenite", "rustls", "tonic", "tower"];

/// Checks `level` without starting anything; configuration does this.
///
/// # Errors
///
/// If it is neither a level nor a list of directives.
pub fn parse_level(level: &str) -> Result<EnvFilter, LogError> {
    let capped = match level {
        "debug" | "trace" => CALMED.iter().fold(level.to_owned(), |all, target| format!("{all},{target}=info")),
        directives => directives.to_owned(),
    };
    EnvFilter::builder().parse(capped).map_err(|error| {
        LogError(format!("log level `{level}` is not one of error, warn, info, debug, trace: {error}"))
    })
}

/// Sends everything that is logged from now on to standard error. Once per process.
///
/// Standard output stays free for the banner and the access log. What is returned changes the level while the process
/// runs, to one that [`parse_level`] accepts; others change nothing.
///
/// # Errors
///
/// If the level is malformed, or logs were started before.
pub fn start_logs(settings: &LogSettings) -> Result<impl Fn(&str) + Send + Sync + use<>, LogError> {
    let terminal = std::io::stderr().is_terminal();
    let (log, set_level) = log_to(settings, settings.format.for_output(&std::io::stderr()), terminal, std::io::stderr)?;
    log.try_init().map_err(|error| LogError(format!("logs cannot be started: {error}")))?;
    Ok(set_level)
}

/// A log of its own, and what changes its level.
fn log_to<W>(
    settings: &LogSettings,
    format: Format,
    ansi: bool,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, impl Fn(&str) + Send + Sync + use<W>), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_level(&settings.level)?);
    let log = fmt::layer().with_writer(writer);
    let log = match format {
        Format::Json => log.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        Format::Auto | Format::Pretty => log.with_ansi(ansi).boxed(),
    };
    let set_level = move |level: &str| {
        if let Ok(filter) = parse_level(level) {
            // Fails only if the subscriber is gone, and with it the log.
            drop(handle.reload(filter));
        }
    };
    Ok((tracing_subscriber::registry().with(filter).with(log), set_level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_directives_are_taken_and_nonsense_is_named() {
        assert!(parse_level("info").is_ok());
        let trace = parse_level("trace").unwrap().to_string();
        assert!(trace.contains("tungstenite=info") && trace.contains("h2=info"), "{trace}");
        assert!(parse_level("warn,sluicegate::frontend=debug").is_ok());
        let error = parse_level("sluicegate=loud").unwrap_err().to_string();
        assert!(error.contains("`sluicegate=loud`"), "{error}");
    }

    #[test]
    fn a_call_that_switches_the_level_changes_what_is_logged() {
        use crate::call::LoggingChange;
        use std::{
            io::{Read, Seek},
            sync::Arc,
        };
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (log, set_level) = log_to(&LogSettings::default(), Format::Json, false, Arc::clone(&file)).unwrap();
        let switches = switches::Switches::new("info", set_level);
        let say = |word: &str| {
            tracing::debug!(word, "fine");
            tracing::warn!(word, "coarse");
        };
        tracing::subscriber::with_default(log, || {
            say("first");
            let set = |change| switches.change_logging(&change).unwrap();
            set(LoggingChange { verbose: Some(1), ..LoggingChange::default() });
            say("second");
            set(LoggingChange {
                verbose: Some(0),
                info: Some(false),
                warning: Some(false),
                ..LoggingChange::default()
            });
            say("third");
        });
        let mut written = String::new();
        (&*file).rewind().unwrap();
        (&*file).read_to_string(&mut written).unwrap();
        let said: Vec<_> = written
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                format!("{} {}", line["word"].as_str().unwrap(), line["level"].as_str().unwrap())
            })
            .collect();
        assert_eq!(said, ["first WARN", "second DEBUG", "second WARN"]);
    }

    #[test]
    fn only_auto_asks_the_output() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Format::Auto.for_output(&file), Format::Json);
        assert_eq!(Format::Pretty.for_output(&file), Format::Pretty);
    }
}

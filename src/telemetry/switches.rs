//! What operators may switch through a call: the level of the log, and Triton's trace settings (contract 02 section 11).
//!
//! The log's switches take effect at once. Trace settings are kept and told as they were set: what they ask for (files of
//! time stamps) is not what this server's traces are, so they change nothing else.

use crate::{
    call::{Logging, LoggingChange, NewValues, TraceChange},
    error::{Error, Limit},
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Trace settings by name, with what they are at first. Numbers are strings, as Triton has them.
const TRACE: [(&str, &str); 5] =
    [("trace_level", "OFF"), ("trace_rate", "1000"), ("trace_count", "-1"), ("log_frequency", "0"), ("trace_file", "")];
/// Most values of one setting, and most bytes of one value: they are kept.
const VALUES: usize = 16;
const VALUE: usize = 1024;
/// Models that may have trace settings of their own.
const MODELS: usize = 1024;

/// Applies a level to the log, as tracing writes levels.
type SetLevel = dyn Fn(&str) + Send + Sync;

/// The switches of the process.
#[derive(Default)]
pub struct Switches {
    state: Mutex<State>,
    set_level: Option<Box<SetLevel>>,
}

#[derive(Debug, Default)]
struct State {
    logging: Logging,
    server: Overrides,
    models: BTreeMap<Arc<str>, Overrides>,
}

type Overrides = BTreeMap<&'static str, Vec<Arc<str>>>;

/// Settings with their values, in a fixed order.
pub type Settings = Vec<(Arc<str>, Vec<Arc<str>>)>;

// === impl Switches ===

impl Switches {
    /// Switches of a log whose level is `level`; changes are handed to `set_level`.
    pub fn new(level: &str, set_level: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let state = State { logging: logging(level), ..State::default() };
        Self { state: Mutex::new(state), set_level: Some(Box::new(set_level)) }
    }

    /// What is logged.
    pub fn logging(&self) -> Logging {
        self.state().logging.clone()
    }

    /// Changes what is logged.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] for an unknown `log_format`; nothing is changed then.
    pub fn change_logging(&self, change: &LoggingChange) -> Result<Logging, Error> {
        let mut state = self.state();
        if let Some(format) = &change.format
            && !matches!(&**format, "default" | "ISO8601")
        {
            let format: String = format.chars().take(24).collect();
            return Err(Error::invalid(format!("`log_format` is `{format}`, expected `default` or `ISO8601`")));
        }
        let logging = &mut state.logging;
        logging.info = change.info.unwrap_or(logging.info);
        logging.warning = change.warning.unwrap_or(logging.warning);
        logging.error = change.error.unwrap_or(logging.error);
        logging.verbose = change.verbose.unwrap_or(logging.verbose);
        if let Some(format) = &change.format {
            logging.format = Arc::clone(format);
        }
        if let Some(set_level) = &self.set_level {
            set_level(level(logging));
        }
        Ok(logging.clone())
    }

    /// Sets the level that the configuration names, whatever was switched before.
    pub fn set_level(&self, level: &str) {
        let mut state = self.state();
        state.logging = Logging { format: Arc::clone(&state.logging.format), ..logging(level) };
        if let Some(set_level) = &self.set_level {
            set_level(level);
        }
    }

    /// Trace settings of `model`, or of the server.
    pub fn trace(&self, model: Option<&str>) -> Settings {
        self.state().trace(model)
    }

    /// Changes trace settings.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] for an unknown setting or a value that it cannot have; nothing is changed then.
    pub fn change_trace(&self, change: &TraceChange) -> Result<Settings, Error> {
        let checked: Vec<_> = change.settings.iter().map(check).collect::<Result<_, _>>()?;
        let mut state = self.state();
        let model = change.model.as_ref().map(|model| &model.name);
        let overrides = match model {
            None => &mut state.server,
            Some(name) if state.models.len() < MODELS || state.models.contains_key(name) => {
                state.models.entry(Arc::clone(name)).or_default()
            }
            Some(_) => return Err(Error::Overloaded { limit: Limit::TraceSettings }),
        };
        for (name, values) in checked {
            match values {
                Some(values) => drop(overrides.insert(name, values)),
                None => drop(overrides.remove(name)),
            }
        }
        Ok(state.trace(model.map(|name| &**name)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing done under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Switches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switches").field("state", &self.state).finish_non_exhaustive()
    }
}

impl State {
    fn trace(&self, model: Option<&str>) -> Settings {
        let own = model.and_then(|model| self.models.get(model));
        TRACE
            .iter()
            .map(|(name, first)| {
                let values = own.and_then(|own| own.get(name)).or_else(|| self.server.get(name)).cloned();
                ((*name).into(), values.unwrap_or_else(|| vec![(*first).into()]))
            })
            .collect()
    }
}

type Checked = (&'static str, NewValues);

fn check((name, values): &(Arc<str>, NewValues)) -> Result<Checked, Error> {
    let Some((known, _)) = TRACE.iter().find(|(known, _)| *known == &**name) else {
        let name: String = name.chars().take(64).collect();
        let known: Vec<_> = TRACE.iter().map(|(known, _)| format!("`{known}`")).collect();
        return Err(Error::invalid(format!("trace setting `{name}` is unknown, expected {}", known.join(", "))));
    };
    let Some(values) = values else { return Ok((known, None)) };
    let wrong = |expected: &str| {
        let found: String = values.join(", ").chars().take(64).collect();
        Err(Error::invalid(format!("trace setting `{known}` is `{found}`, expected {expected}")))
    };
    if values.is_empty() || values.len() > VALUES || values.iter().any(|value| value.len() > VALUE) {
        return wrong("one to sixteen short values");
    }
    let sound = match *known {
        "trace_level" => values.iter().all(|value| matches!(&**value, "OFF" | "TIMESTAMPS" | "TENSORS")),
        "trace_file" => values.len() == 1,
        _ => values.len() == 1 && values[0].parse::<i64>().is_ok(),
    };
    match (sound, *known) {
        (true, _) => Ok((known, Some(values.clone()))),
        (false, "trace_level") => wrong("`OFF`, `TIMESTAMPS` or `TENSORS`"),
        (false, "trace_file") => wrong("one name"),
        (false, _) => wrong("one integer, as text"),
    }
}

/// The level that lets through what is switched on. Levels nest, so the finest that is on decides.
fn level(logging: &Logging) -> &'static str {
    match (logging.verbose, logging.info, logging.warning, logging.error) {
        (2.., ..) => "trace",
        (1, ..) => "debug",
        (0, true, ..) => "info",
        (0, false, true, _) => "warn",
        (0, false, false, true) => "error",
        (0, false, false, false) => "off",
    }
}

/// What is switched on at a level: what [`level`] makes that level of.
fn logging(level: &str) -> Logging {
    Logging {
        info: !matches!(level, "off" | "error" | "warn"),
        warning: !matches!(level, "off" | "error"),
        error: level != "off",
        verbose: match level {
            "trace" => 2,
            "debug" => 1,
            _ => 0,
        },
        ..Logging::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::ModelRef;

    #[test]
    fn the_switches_begin_as_the_log_is_configured() {
        for level in ["off", "error", "warn", "info", "debug", "trace"] {
            assert_eq!(super::level(&logging(level)), level);
        }
        assert_eq!(logging("info"), Logging::default());
        let levels = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&levels);
        let switches = Switches::new("debug", move |level| seen.lock().unwrap().push(level.to_owned()));
        switches.change_logging(&LoggingChange { format: Some("ISO8601".into()), ..Default::default() }).unwrap();
        assert_eq!(*levels.lock().unwrap(), ["debug"], "what was not asked for stays");
    }

    #[test]
    fn the_level_follows_the_switches() {
        let levels = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&levels);
        let switches = Switches::new("info", move |level| seen.lock().unwrap().push(level.to_owned()));
        let change = |change: LoggingChange| switches.change_logging(&change).unwrap();
        assert_eq!(change(LoggingChange { verbose: Some(1), ..Default::default() }).verbose, 1);
        change(LoggingChange { verbose: Some(0), info: Some(false), ..Default::default() });
        change(LoggingChange { warning: Some(false), ..Default::default() });
        change(LoggingChange { error: Some(false), ..Default::default() });
        change(LoggingChange { info: Some(true), ..Default::default() });
        assert_eq!(*levels.lock().unwrap(), ["debug", "warn", "error", "off", "info"]);
    }

    #[test]
    fn an_unknown_format_changes_nothing() {
        let switches = Switches::default();
        let change = LoggingChange { info: Some(false), format: Some("xml".into()), ..Default::default() };
        assert!(switches.change_logging(&change).unwrap_err().to_string().contains("`xml`"));
        assert_eq!(switches.logging(), Logging::default());
    }

    fn trace(model: Option<&str>, settings: &[(&str, Option<&[&str]>)]) -> TraceChange {
        TraceChange {
            model: model.map(|name| ModelRef { name: name.into(), version: None }),
            settings: settings
                .iter()
                .map(|(name, values)| {
                    ((*name).into(), values.map(|values| values.iter().map(|value| (*value).into()).collect()))
                })
                .collect(),
        }
    }

    #[test]
    fn a_model_has_the_servers_settings_until_it_has_its_own() {
        let switches = Switches::default();
        switches.change_trace(&trace(None, &[("trace_rate", Some(&["5"]))])).unwrap();
        switches.change_trace(&trace(Some("m"), &[("trace_level", Some(&["TIMESTAMPS", "TENSORS"]))])).unwrap();
        let of = |model: Option<&str>, name: &str| {
            let settings = switches.trace(model);
            settings.into_iter().find(|(known, _)| &**known == name).unwrap().1.join(",")
        };
        assert_eq!(of(Some("m"), "trace_rate"), "5");
        assert_eq!(of(Some("m"), "trace_level"), "TIMESTAMPS,TENSORS");
        assert_eq!(of(None, "trace_level"), "OFF");
        switches.change_trace(&trace(Some("m"), &[("trace_level", None)])).unwrap();
        assert_eq!(of(Some("m"), "trace_level"), "OFF");
    }

    #[test]
    fn what_a_setting_cannot_be_is_refused_whole() {
        let switches = Switches::default();
        for bad in
            [("trace_rate", &["often"][..]), ("trace_level", &["ALL"]), ("nothing", &["1"]), ("trace_count", &[])]
        {
            let change = trace(None, &[("trace_rate", Some(&["7"])), (bad.0, Some(bad.1))]);
            assert!(switches.change_trace(&change).is_err(), "{bad:?}");
        }
        assert_eq!(&*switches.trace(None)[1].1[0], "1000");
    }
}

//! Bodies of the calls that look at the repository or change the server (contract 02 sections 5 and 11).
//!
//! All are one small object, but for the files of a load; an empty body is an empty object. What the calls mean is not
//! known here.

use super::reader::Reader;
use crate::{
    call::{LoadRequest, LoggingChange, ModelRef, TraceChange, UnloadRequest},
    error::Error,
    wire::{Settings, reserved},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::sync::Arc;

/// Reads the body of an index: whether only what is ready is wanted.
///
/// # Errors
///
/// [`Error::InvalidRequest`], here and below, with what was found and what was expected.
pub fn decode_index(body: &[u8], settings: &Settings) -> Result<bool, Error> {
    let mut ready = false;
    members(body, settings, |reader, name| {
        match name {
            "ready" => ready = reader.boolean()?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    Ok(ready)
}

/// Reads the body of a load of `model`.
///
/// # Errors
///
/// Also for a parameter that a load does not know.
pub fn decode_load(body: &[u8], model: ModelRef, settings: &Settings) -> Result<LoadRequest, Error> {
    let mut request = LoadRequest { model, config: None, files: Vec::new() };
    parameters(body, settings, |reader, name| {
        match (name, name.strip_prefix(reserved::FILE)) {
            ("config", _) => request.config = Some(reader.string()?.into()),
            (reserved::VERSION, _) => request.model.version = Some(reader.string()?.into()),
            (_, Some(path)) => {
                let text = reader.string()?;
                let data = STANDARD.decode(&*text).map_err(|error| {
                    Error::invalid(format!("parameter `{}` is no base64: {error}", reserved::shown(name)))
                })?;
                request.files.push((path.into(), data.into()));
            }
            _ => return Err(reserved::unknown_load_parameter(name)),
        }
        Ok(())
    })?;
    Ok(request)
}

/// Reads the body of an unload of `model`.
///
/// # Errors
///
/// As [`decode_load`].
pub fn decode_unload(body: &[u8], model: ModelRef, settings: &Settings) -> Result<UnloadRequest, Error> {
    let mut request = UnloadRequest { model, dependents: false };
    parameters(body, settings, |reader, name| {
        match name {
            "unload_dependents" => request.dependents = reader.boolean()?,
            reserved::VERSION => request.model.version = Some(reader.string()?.into()),
            _ => return Err(reserved::unknown_unload_parameter(name)),
        }
        Ok(())
    })?;
    Ok(request)
}

/// Reads new trace settings: strings, lists of strings, or `null` to go back to the server's.
///
/// # Errors
///
/// As [`decode_index`].
pub fn decode_trace(body: &[u8], model: Option<ModelRef>, settings: &Settings) -> Result<TraceChange, Error> {
    let mut change = TraceChange { model, settings: Vec::new() };
    members(body, settings, |reader, name| {
        let values = match reader.peek() {
            Some(b'[') => {
                let mut values: Vec<Arc<str>> = Vec::new();
                let mut items = reader.array()?;
                while reader.item(&mut items)? {
                    values.push(reader.string()?.into());
                }
                Some(values)
            }
            _ if reader.take("null") => None,
            _ => Some(vec![reader.string()?.into()]),
        };
        change.settings.push((name.into(), values));
        Ok(())
    })?;
    Ok(change)
}

/// Reads what is to be logged.
///
/// # Errors
///
/// As [`decode_index`]; also for a setting that is unknown, or `log_file`, which no call may change.
pub fn decode_logging(body: &[u8], settings: &Settings) -> Result<LoggingChange, Error> {
    let mut change = LoggingChange::default();
    members(body, settings, |reader, name| {
        match name {
            "log_info" => change.info = Some(reader.boolean()?),
            "log_warning" => change.warning = Some(reader.boolean()?),
            "log_error" => change.error = Some(reader.boolean()?),
            "log_verbose_level" => {
                let number = reader.number()?;
                let level = number.parse().map_err(|_| {
                    Error::invalid(format!("`{name}` is `{}`, expected an integer from 0 on", reserved::shown(number)))
                })?;
                change.verbose = Some(level);
            }
            "log_format" => change.format = Some(reader.string()?.into()),
            _ => return Err(reserved::unknown_log_setting(name)),
        }
        Ok(())
    })?;
    Ok(change)
}

/// Hands each member of the object below `parameters` to `take`.
fn parameters(
    body: &[u8],
    settings: &Settings,
    mut take: impl FnMut(&mut Reader<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    members(body, settings, |reader, name| match name {
        "parameters" if !reader.take("null") => object(reader, &mut take),
        "parameters" => Ok(()),
        _ => reader.skip(),
    })
}

/// Hands each member of a body's object to `take`, which reads its value.
fn members(
    body: &[u8],
    settings: &Settings,
    mut take: impl FnMut(&mut Reader<'_>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let mut reader = Reader::new(body, settings.json_depth)?;
    object(&mut reader, &mut take)?;
    reader.end()
}

fn object<'a>(
    reader: &mut Reader<'a>,
    take: &mut impl FnMut(&mut Reader<'a>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut members = reader.object()?;
    while let Some(name) = reader.member(&mut members)? {
        take(reader, &name)?;
        reader.note(&members, name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::default()
    }

    fn model() -> ModelRef {
        ModelRef { name: "m".into(), version: None }
    }

    #[test]
    fn an_empty_body_asks_for_nothing_special() {
        for body in [&b""[..], b" \n", b"{}"] {
            assert!(!decode_index(body, &settings()).unwrap());
            assert_eq!(decode_load(body, model(), &settings()).unwrap().files, []);
            let unload = UnloadRequest { model: model(), dependents: false };
            assert_eq!(decode_unload(body, model(), &settings()).unwrap(), unload);
        }
        assert!(decode_index(br#"{"ready":true}"#, &settings()).unwrap());
    }

    #[test]
    fn a_load_brings_a_configuration_and_files() {
        let body = br#"{"parameters":{"config":"{\"max_batch_size\":4}","file:1/model.onnx":"AQI="}}"#;
        let request = decode_load(body, model(), &settings()).unwrap();
        assert_eq!(request.config.as_deref(), Some(r#"{"max_batch_size":4}"#));
        assert_eq!(request.files, [("1/model.onnx".into(), vec![1, 2].into())]);
        let one = decode_load(br#"{"parameters":{"version":"3"}}"#, model(), &settings()).unwrap();
        assert_eq!(one.model.version.as_deref(), Some("3"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let load = |body: &[u8]| decode_load(body, model(), &settings()).unwrap_err().to_string();
        assert!(load(br#"{"parameters":{"colour":"red"}}"#).contains("`colour`"));
        assert!(load(br#"{"parameters":{"file:1/m":"%"}}"#).contains("base64"));
        assert!(load(br#"{"parameters":{"config":"a","config":"b"}}"#).contains("twice"));
        assert!(load(b"[]").contains("an object"));
        let logging = |body: &[u8]| decode_logging(body, &settings()).unwrap_err().to_string();
        assert!(logging(br#"{"log_file":"x"}"#).contains("`log_file`"));
        assert!(logging(br#"{"log_info":1}"#).contains("`true` or `false`"));
        assert!(logging(br#"{"log_verbose_level":-1}"#).contains("`-1`"));
    }

    #[test]
    fn an_object_has_so_many_members_and_no_more() {
        // Looking for names that stand twice would take for ever among the millions that a body has room for.
        let names = |count: usize| (0..count).map(|name| format!("\"{name}\":0")).collect::<Vec<_>>().join(",");
        let index = |count| decode_index(format!("{{{}}}", names(count)).as_bytes(), &settings());
        assert!(index(1000).is_ok());
        assert!(index(2000).unwrap_err().to_string().contains("members"));
        let text = |count: usize| (0..count).map(|name| format!("\"{name}\":\"\"")).collect::<Vec<_>>().join(",");
        let trace = |count| decode_trace(format!("{{{}}}", text(count)).as_bytes(), None, &settings());
        assert!(trace(1000).is_ok() && trace(2000).is_err());
    }

    #[test]
    fn trace_settings_are_text_lists_or_nothing() {
        let body = br#"{"trace_level":["TIMESTAMPS","TENSORS"],"trace_rate":"7","trace_file":null}"#;
        let change = decode_trace(body, Some(model()), &settings()).unwrap();
        let [level, rate, file] = change.settings.as_slice() else { panic!("three") };
        assert_eq!(level.1.as_ref().map(Vec::len), Some(2));
        assert_eq!(rate.1.as_deref(), Some(&["7".into()][..]));
        assert_eq!((&*file.0, &file.1), ("trace_file", &None));
    }
}

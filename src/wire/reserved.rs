//! Names of parameters that mean something to the server (contract 02 section 3), the same on every surface.
//!
//! Nothing that a client says is dropped silently: a name is understood, handed on, or refused.

use super::json::MEMBERS;
use crate::{
    call::{InferResponse, Parameter, Parameters},
    error::Error,
};
use std::{num::NonZeroUsize, time::Duration};

/// The way a request came in; a few names differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// V2 JSON.
    Rest,
    /// A `sluicegate.v1` message, which has members of its own for what V2 puts here.
    Message,
    /// V2 gRPC.
    Grpc,
}

/// What the parameters of a request come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// From `timeout`; 0 counts as absent.
    pub(super) timeout: Option<Duration>,
    /// From `priority`.
    pub(super) priority: u32,
    /// From `binary_data_output`.
    pub(super) binary: Option<bool>,
    /// Everything else.
    pub(super) parameters: Parameters,
    /// `sequence_start` or `sequence_end`, if one was true.
    sequence: Option<&'static str>,
    /// Whether there was a `sequence_id`. Models without a state have no use for it (contract 02 section 9).
    in_sequence: bool,
}

impl Options {
    /// Takes one parameter.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRequest`] if a reserved name has a value of the wrong type.
    pub(super) fn take(&mut self, form: Form, name: &str, value: Parameter) -> Result<(), Error> {
        match (name, form) {
            ("timeout", Form::Message) => return Err(elsewhere(name, "timeout_ms")),
            ("priority", Form::Message) => return Err(elsewhere(name, "priority")),
            ("binary_data_output", Form::Message) => return Err(elsewhere(name, "binary_outputs")),
            ("timeout", _) => self.timeout = microseconds(form, &value)?,
            ("priority", _) => self.priority = priority(&value)?,
            ("binary_data_output", _) => self.binary = Some(boolean(name, &value)?),
            ("sequence_id", _) => self.in_sequence = is_sequence(&value)?,
            ("sequence_start", _) if boolean(name, &value)? => self.sequence = Some("sequence_start"),
            ("sequence_end", _) if boolean(name, &value)? => self.sequence = Some("sequence_end"),
            ("sequence_start" | "sequence_end", _) => {}
            ("headers", _) => return Err(Error::invalid("parameter `headers` is reserved")),
            (EMPTY_FINAL, Form::Grpc) => {
                boolean(name, &value)?;
                self.keep(name, value)?;
            }
            _ if name.starts_with("triton_") => {
                return Err(Error::invalid(format!("parameter `{}` is reserved", shown(name))));
            }
            _ => self.keep(name, value)?,
        }
        Ok(())
    }

    /// Checks what only all parameters together tell.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.sequence {
            Some(flag) if !self.in_sequence => Err(Error::invalid(format!("parameter `{flag}` needs a `sequence_id`"))),
            _ => Ok(()),
        }
    }

    fn keep(&mut self, name: &str, value: Parameter) -> Result<(), Error> {
        if self.parameters.len() >= MEMBERS {
            return Err(Error::invalid(format!("more than {MEMBERS} parameters")));
        }
        self.parameters.push((name.into(), value));
        Ok(())
    }
}

/// Says whether a response is the last one of its request (contract 02 section 4, item 4).
pub const FINAL: &str = "triton_final_response";
/// Asks for an empty last response of a request that streams (contract 02 section 4, item 5).
pub const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

/// Says in a response of a stream whether it is the `last` one, unless the model says so itself.
pub fn say_final(response: &mut InferResponse, last: bool) {
    if !response.parameters.iter().any(|(name, _)| &**name == FINAL) {
        response.parameters.push((FINAL.into(), Parameter::Bool(last)));
    }
}

/// The error of bringing shared memory (contract 02 section 12).
pub fn no_shared_memory() -> Error {
    Error::Unimplemented("this server has no shared memory, send tensors in the request".into())
}

/// The parameter of an output that asks for its best classes instead of its numbers (contract 02 section 8).
pub(super) const CLASSIFICATION: &str = "classification";

/// How many classes a `classification` asks for.
///
/// # Errors
///
/// [`Error::InvalidRequest`] if it is no integer above 0.
pub(super) fn classes(value: &Parameter) -> Result<NonZeroUsize, Error> {
    let number = match value {
        Parameter::Int(number) => u64::try_from(*number).ok(),
        Parameter::Uint(number) => Some(*number),
        Parameter::Bool(_) | Parameter::Double(_) | Parameter::String(_) => None,
    };
    // More than there are means all.
    let number = number.map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    number.and_then(NonZeroUsize::new).ok_or_else(|| wrong(CLASSIFICATION, value, "an integer of at least 1"))
}

/// Refuses parameters of a single input or output that ask for what is not there.
///
/// # Errors
///
/// [`Error::InvalidRequest`] for shared memory, which is for one host only and not offered (contract 02 section 12).
pub(super) fn check_tensor_parameter(name: &str) -> Result<(), Error> {
    match name {
        "shared_memory_region" | "shared_memory_offset" | "shared_memory_byte_size" => {
            Err(Error::invalid(format!("`{name}` is set, expected no shared memory: this server has none")))
        }
        _ => Ok(()),
    }
}

/// A `priority`: 0 is the model's default, 1 the highest, larger is lower.
pub(super) fn priority(value: &Parameter) -> Result<u32, Error> {
    match value {
        // Beyond `u32` all are equally low.
        Parameter::Int(level @ 0..) => Ok(u32::try_from(*level).unwrap_or(u32::MAX)),
        Parameter::Uint(level) => Ok(u32::try_from(*level).unwrap_or(u32::MAX)),
        _ => Err(wrong("priority", value, "an integer of at least 0")),
    }
}

fn microseconds(form: Form, value: &Parameter) -> Result<Option<Duration>, Error> {
    let number = match (value, form) {
        (Parameter::Int(number), _) => u64::try_from(*number).ok(),
        (Parameter::Uint(number), Form::Rest) => Some(*number),
        _ => None,
    };
    match number {
        Some(0) => Ok(None),
        Some(number) => Ok(Some(Duration::from_micros(number))),
        None => Err(wrong("timeout", value, "an integer of microseconds, at least 0")),
    }
}

fn boolean(name: &str, value: &Parameter) -> Result<bool, Error> {
    match value {
        Parameter::Bool(flag) => Ok(*flag),
        _ => Err(wrong(name, value, "`true` or `false`")),
    }
}

/// Whether the value names a sequence; 0 and the empty string do not.
fn is_sequence(value: &Parameter) -> Result<bool, Error> {
    match value {
        Parameter::Int(id) => Ok(*id != 0),
        Parameter::Uint(id) => Ok(*id != 0),
        Parameter::String(id) => Ok(!id.is_empty()),
        Parameter::Bool(_) | Parameter::Double(_) => Err(wrong("sequence_id", value, "an integer or a string")),
    }
}

/// The parameter of a load or unload that names one version: ours, because Triton has none.
pub(super) const VERSION: &str = "version";
/// What the names of the files of a load begin with.
pub(super) const FILE: &str = "file:";

/// The error of a parameter that a load or unload does not know (contract 02 section 5).
#[cold]
pub(super) fn unknown_load_parameter(name: &str) -> Error {
    let name = shown(name);
    Error::invalid(format!(
        "parameter `{name}` is unknown, expected `config`, `file:VERSION/NAME`, `version` or `unload_dependents`"
    ))
}

/// The error of a log setting that a call may not change, or that does not exist (contract 02 section 11).
#[cold]
pub(super) fn unknown_log_setting(name: &str) -> Error {
    match name {
        "log_file" => Error::invalid("`log_file` cannot be changed by a call"),
        _ => Error::invalid(format!("log setting `{}` is unknown", shown(name))),
    }
}

/// A client's text, short enough to be quoted.
pub(super) fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

#[cold]
fn elsewhere(name: &str, member: &str) -> Error {
    Error::invalid(format!("parameter `{name}` stands below `parameters`, expected `{member}` beside it"))
}

#[cold]
fn wrong(name: &str, value: &Parameter, expected: &str) -> Error {
    let found = match value {
        Parameter::Bool(flag) => format!("`{flag}`"),
        Parameter::Int(number) => format!("`{number}`"),
        Parameter::Uint(number) => format!("the unsigned `{number}`"),
        Parameter::Double(number) => format!("`{number}`"),
        Parameter::String(_) => "a string".to_owned(),
    };
    Error::invalid(format!("parameter `{name}` is {found}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn take(form: Form, name: &str, value: Parameter) -> Result<Options, Error> {
        let mut options = Options::default();
        options.take(form, name, value)?;
        options.check()?;
        Ok(options)
    }

    #[test]
    fn timeouts_are_microseconds_and_zero_is_none() {
        let timeout = |form, value| take(form, "timeout", value).map(|options| options.timeout).ok();
        let five = Some(Some(Duration::from_millis(5)));
        assert_eq!(timeout(Form::Rest, Parameter::Int(5000)), five);
        assert_eq!(timeout(Form::Rest, Parameter::String("5000".into())), None, "as on every other surface");
        assert_eq!(timeout(Form::Grpc, Parameter::Int(5000)), five);
        assert_eq!(timeout(Form::Rest, Parameter::Int(0)), Some(None));
        for bad in [Parameter::Int(-1), Parameter::Double(1.0), Parameter::String("1s".into()), Parameter::Bool(true)] {
            assert_eq!(timeout(Form::Rest, bad.clone()), None, "{bad:?}");
        }
        assert_eq!(timeout(Form::Grpc, Parameter::Uint(5000)), None, "contract 02 section 3: int64_param only");
        assert_eq!(timeout(Form::Message, Parameter::Int(5000)), None, "messages have `timeout_ms`");
    }

    #[test]
    fn priorities_come_with_and_without_a_sign() {
        let priority = |value| take(Form::Grpc, "priority", value).map(|options| options.priority).ok();
        assert_eq!(priority(Parameter::Int(1)), Some(1));
        assert_eq!(priority(Parameter::Uint(u64::MAX)), Some(u32::MAX));
        assert_eq!(priority(Parameter::Int(-1)), None);
        assert_eq!(priority(Parameter::String("1".into())), None);
    }

    #[test]
    fn a_flag_of_a_sequence_needs_its_name() {
        let code = |name, value| take(Form::Rest, name, value).err().map(|error| error.code());
        assert_eq!(code("sequence_id", Parameter::Int(7)), None);
        assert_eq!(code("sequence_id", Parameter::String("s".into())), None);
        assert_eq!(code("sequence_id", Parameter::Bool(true)), Some(Code::InvalidArgument));
        assert_eq!(code("sequence_start", Parameter::Bool(true)), Some(Code::InvalidArgument));
        assert_eq!(code("sequence_end", Parameter::Bool(false)), None);
    }

    #[test]
    fn reserved_names_are_refused_and_others_kept() {
        let name = EMPTY_FINAL;
        assert!(take(Form::Rest, name, Parameter::Bool(false)).is_err());
        let kept = take(Form::Grpc, name, Parameter::Bool(false)).unwrap().parameters;
        assert_eq!(kept, [(name.into(), Parameter::Bool(false))]);
        assert!(take(Form::Grpc, "triton_other", Parameter::Bool(false)).is_err());
        assert!(take(Form::Rest, "headers", Parameter::String("x".into())).is_err());
        assert_eq!(take(Form::Rest, "mine", Parameter::Double(0.5)).unwrap().parameters.len(), 1);
    }

    #[test]
    fn what_single_tensors_may_not_ask_for() {
        assert!(check_tensor_parameter(CLASSIFICATION).is_ok());
        assert_eq!(check_tensor_parameter("shared_memory_region").unwrap_err().code(), Code::InvalidArgument);
        assert!(check_tensor_parameter("content_type").is_ok());
    }
}

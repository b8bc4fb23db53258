//! The top level of a request, in both dialects.

use super::{
    Dialect, Request,
    input::{self, Tail},
    numbers,
    reader::{Reader, twice},
};
use crate::{
    call::{Parameter, RequestedOutput},
    error::Error,
    wire::{
        Settings, Wishes,
        reserved::{self, Form, Options},
    },
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::{borrow::Cow, sync::Arc, time::Duration};

/// Decodes a request. `tail` holds the raw tensors that follow the JSON, already cut off it and
/// without the header; each tensor takes its announced bytes in order (in messages, after padding to 8
/// counted from `tail_offset`, the offset of `tail` from the start of the frame).
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`], naming what was found and what was expected.
pub fn decode_request(
    json: &[u8],
    dialect: Dialect,
    tail: Option<(Bytes, usize)>,
    settings: &Settings,
) -> Result<Request, Error> {
    let mut reader = Reader::new(json, settings.json_depth)?;
    let mut tail = Tail::new(tail, dialect);
    let mut request = Partial::default();
    let mut members = reader.object()?;
    while let Some(member) = reader.member(&mut members)? {
        let Some(known) = Known::of(&member, dialect) else {
            reader.note(&members, member)?;
            reader.skip()?;
            continue;
        };
        if request.seen & known.bit() != 0 {
            return Err(twice(&member));
        }
        request.seen |= known.bit();
        // What is optional may be spelled out as nothing.
        if known == Known::Inputs || !reader.take("null") {
            request.read(&mut reader, known, dialect, &mut tail, settings)?;
        }
    }
    reader.end()?;
    if let Some(tail) = tail {
        tail.finish()?;
    }
    request.finish(dialect)
}

/// The members that mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Id,
    Inputs,
    Outputs,
    Parameters,
    Model,
    Version,
    Timeout,
    Priority,
    Binary,
}

impl Known {
    fn of(member: &str, dialect: Dialect) -> Option<Self> {
        match (member, dialect) {
            ("id", _) => Some(Self::Id),
            ("inputs", _) => Some(Self::Inputs),
            ("outputs", _) => Some(Self::Outputs),
            ("parameters", _) => Some(Self::Parameters),
            ("model", Dialect::Message) => Some(Self::Model),
            ("version", Dialect::Message) => Some(Self::Version),
            ("timeout_ms", Dialect::Message) => Some(Self::Timeout),
            ("priority", Dialect::Message) => Some(Self::Priority),
            ("binary_outputs", Dialect::Message) => Some(Self::Binary),
            _ => None,
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A request of which some members were read.
#[derive(Debug, Default)]
struct Partial {
    seen: u16,
    model: Option<Arc<str>>,
    version: Option<Arc<str>>,
    id: Option<Arc<str>>,
    inputs: Vec<crate::call::NamedTensor>,
    outputs: Vec<RequestedOutput>,
    /// What single outputs said, in the order of `outputs`: `None` takes the default.
    binary: SmallVec<[Option<bool>; 8]>,
    all_binary: bool,
    timeout: Option<Duration>,
    priority: u32,
    options: Options,
}

impl Partial {
    fn read(
        &mut self,
        reader: &mut Reader<'_>,
        known: Known,
        dialect: Dialect,
        tail: &mut Option<Tail>,
        settings: &Settings,
    ) -> Result<(), Error> {
        match known {
            Known::Id => self.id = text(reader)?,
            Known::Model => self.model = text(reader)?,
            Known::Version => self.version = text(reader)?,
            Known::Inputs => self.inputs(reader, dialect, tail, settings)?,
            Known::Outputs => self.outputs(reader, dialect, settings)?,
            Known::Parameters => self.parameters(reader, dialect)?,
            Known::Timeout => self.timeout = milliseconds(reader)?,
            Known::Priority => self.priority = reserved::priority(&parameter(reader, "priority")?)?,
            Known::Binary => self.all_binary = reader.boolean()?,
        }
        Ok(())
    }

    fn inputs(
        &mut self,
        reader: &mut Reader<'_>,
        dialect: Dialect,
        tail: &mut Option<Tail>,
        settings: &Settings,
    ) -> Result<(), Error> {
        let mut items = reader.array()?;
        while reader.item(&mut items)? {
            if self.inputs.len() == settings.tensors {
                return Err(too_many("inputs", settings.tensors));
            }
            let input = input::read(reader, self.inputs.len(), dialect, tail, settings)?;
            if self.inputs.iter().any(|other| other.name == input.name) {
                return Err(Error::tensor(input.name, "is there twice, expected once"));
            }
            // Most requests have one, for which a vector that merely grows makes room for four.
            self.inputs.reserve_exact(usize::from(self.inputs.is_empty()));
            self.inputs.push(input);
        }
        Ok(())
    }

    fn outputs(&mut self, reader: &mut Reader<'_>, dialect: Dialect, settings: &Settings) -> Result<(), Error> {
        let mut items = reader.array()?;
        while reader.item(&mut items)? {
            if self.outputs.len() == settings.tensors {
                return Err(too_many("outputs", settings.tensors));
            }
            let (output, binary) = output(reader, dialect, self.outputs.len())?;
            if self.outputs.iter().any(|other| other.name == output.name) {
                return Err(Error::tensor(output.name, "is requested twice, expected once"));
            }
            self.outputs.push(output);
            self.binary.push(binary);
        }
        Ok(())
    }

    fn parameters(&mut self, reader: &mut Reader<'_>, dialect: Dialect) -> Result<(), Error> {
        let form = match dialect {
            Dialect::V2 => Form::Rest,
            Dialect::Message => Form::Message,
        };
        let mut members = reader.object()?;
        while let Some(name) = reader.member(&mut members)? {
            let value = parameter(reader, &name)?;
            self.options.take(form, &name, value)?;
            reader.note(&members, name)?;
        }
        self.options.check()
    }

    fn finish(self, dialect: Dialect) -> Result<Request, Error> {
        if self.seen & Known::Inputs.bit() == 0 {
            return Err(Error::invalid("the request has no `inputs`"));
        }
        let (timeout, priority, binary) = match dialect {
            Dialect::V2 => (self.options.timeout, self.options.priority, self.options.binary.unwrap_or(false)),
            Dialect::Message => (self.timeout, self.priority, self.all_binary),
        };
        // Only what differs from the default is worth a list. A message's default may be the session's, which is not
        // known here.
        let kept = |wish: &bool| *wish != binary || dialect == Dialect::Message;
        let single = self.outputs.iter().zip(&self.binary);
        let single = single.filter_map(|(output, wish)| wish.filter(kept).map(|wish| (&output.name, wish)));
        let wishes = Wishes { binary, outputs: single.map(|(name, wish)| (Arc::clone(name), wish)).collect() };
        Ok(Request {
            model: self.model,
            version: self.version,
            id: self.id,
            inputs: self.inputs,
            outputs: self.outputs,
            wishes,
            timeout,
            priority,
            parameters: self.options.parameters,
        })
    }
}

/// Reads entry `place` of `outputs`, and whether it said how it wants to be written.
fn output(reader: &mut Reader<'_>, dialect: Dialect, place: usize) -> Result<(RequestedOutput, Option<bool>), Error> {
    let (mut name, mut classes, mut binary) = (None, None, None);
    let mut members = reader.object()?;
    while let Some(member) = reader.member(&mut members)? {
        match (&*member, dialect) {
            ("name", _) => name = Some(input::name(reader)?),
            ("binary", Dialect::Message) => binary = Some(reader.boolean()?),
            ("classification", Dialect::Message) => classes = Some(reserved::classes(&parameter(reader, &member)?)?),
            ("parameters", Dialect::V2) if !reader.take("null") => {
                let mut members = reader.object()?;
                while let Some(member) = reader.member(&mut members)? {
                    reserved::check_tensor_parameter(&member)?;
                    match &*member {
                        "binary_data" => binary = Some(reader.boolean()?),
                        reserved::CLASSIFICATION => classes = Some(reserved::classes(&parameter(reader, &member)?)?),
                        _ => reader.skip()?,
                    }
                    reader.note(&members, member)?;
                }
            }
            ("parameters", Dialect::V2) => {}
            _ => reader.skip()?,
        }
        reader.note(&members, member)?;
    }
    let name = name.ok_or_else(|| Error::invalid(format!("output {place} has no `name`")))?;
    Ok((RequestedOutput { name, classes }, binary))
}

/// Reads a string of which an empty one counts as absent.
fn text(reader: &mut Reader<'_>) -> Result<Option<Arc<str>>, Error> {
    let text = reader.string()?;
    Ok(match text {
        text if text.is_empty() => None,
        Cow::Borrowed(text) => Some(text.into()),
        Cow::Owned(text) => Some(text.into()),
    })
}

/// Reads a string, a number or a boolean; what else there is, is no parameter (contract 01 section 2.3).
pub(super) fn parameter(reader: &mut Reader<'_>, name: &str) -> Result<Parameter, Error> {
    match reader.peek() {
        Some(b'"') => Ok(Parameter::String(reader.string()?.into())),
        Some(b't' | b'f') => reader.boolean().map(Parameter::Bool),
        Some(b'-' | b'0'..=b'9') => {
            let token = reader.number()?;
            number(token).ok_or_else(|| {
                let token: String = token.chars().take(24).collect();
                Error::invalid(format!(
                    "parameter `{name}` is `{token}`, expected a number within the range of a double"
                ))
            })
        }
        _ => {
            let found = reader.found();
            Err(Error::invalid(format!(
                "parameter `{name}` is {found} at byte {}, expected a string, a number or a boolean",
                reader.position()
            )))
        }
    }
}

/// The narrowest parameter that holds the number exactly, if it is written as an integer.
fn number(token: &str) -> Option<Parameter> {
    let (number, _) = numbers::scan(token.as_bytes())?;
    if !token.contains(['.', 'e', 'E']) {
        let integer = number.integer(token.as_bytes());
        if let Some(integer) = integer.and_then(|integer| i64::try_from(integer).ok()) {
            return Some(Parameter::Int(integer));
        }
        if let Some(integer) = integer.and_then(|integer| u64::try_from(integer).ok()) {
            return Some(Parameter::Uint(integer));
        }
    }
    number.double(token.as_bytes()).map(Parameter::Double)
}

fn milliseconds(reader: &mut Reader<'_>) -> Result<Option<Duration>, Error> {
    reader.peek();
    let start = reader.position();
    let milliseconds = match parameter(reader, "timeout_ms")? {
        Parameter::Int(number) => u64::try_from(number).ok(),
        Parameter::Uint(number) => Some(number),
        Parameter::Bool(_) | Parameter::Double(_) | Parameter::String(_) => None,
    };
    match milliseconds {
        Some(0) => Ok(None),
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        None => {
            reader.seek(start);
            let found = reader.found();
            Err(Error::invalid(format!("`timeout_ms` is {found}, expected an integer of at least 0")))
        }
    }
}

#[cold]
fn too_many(what: &str, most: usize) -> Error {
    Error::invalid(format!("the request has more than {most} {what}, expected at most {most}"))
}

//! Requests to predict: rows, columns, and the bare object of `POST /predict` (contract 03 section 2).

use super::{
    Form, NUMBERS, Names, SIGNATURE,
    column::{Column, Place},
    element::binary,
    response::no_rows,
};
use crate::{
    call::{Expected, NamedTensor},
    error::Error,
    tensor::Signature,
    wire::{
        Settings,
        json::{Members, Reader, twice},
    },
};
use std::{borrow::Cow, fmt::Write};

/// Decodes a request to `:predict`: its tensors, and the form that its answer has.
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`] with the position, what was found and what was expected;
/// [`Error::Unimplemented`] for a model with a type that the protocol cannot carry.
pub fn decode_predict(
    body: &[u8],
    expected: &Expected,
    settings: &Settings,
) -> Result<(Vec<NamedTensor>, Form), Error> {
    let mut reader = Reader::new(body, settings.json_depth)?;
    let mut found: Option<(Vec<NamedTensor>, Form)> = None;
    let mut signed = false;
    let mut members = reader.object()?;
    while let Some(member) = reader.member(&mut members)? {
        let form = match &*member {
            "instances" => Form::Rows,
            "inputs" => Form::Columns,
            _ => {
                beside(&mut reader, &members, member, &mut signed)?;
                continue;
            }
        };
        match &found {
            Some((_, other)) if *other == form => return Err(twice(&member)),
            Some(_) => {
                return Err(Error::invalid("the request has both `instances` and `inputs`, expected one of them"));
            }
            None => {}
        }
        let tensors = match form {
            Form::Rows => rows(&mut reader, &expected.signature, settings)?,
            Form::Columns => columns(&mut reader, &expected.signature, settings)?,
        };
        found = Some((tensors, form));
    }
    reader.end()?;
    found.ok_or_else(|| Error::invalid("the request has neither `instances` nor `inputs`, expected one of them"))
}

/// Decodes a body of `POST /predict`: an object from the client's names of inputs to tensors.
///
/// # Errors
///
/// As [`decode_predict`].
pub fn decode_object(
    body: &[u8],
    expected: &Expected,
    names: &Names,
    settings: &Settings,
) -> Result<Vec<NamedTensor>, Error> {
    let mut reader = Reader::new(body, settings.json_depth)?;
    let mut inputs = inputs(&expected.signature, names, body.len())?;
    object(&mut reader, &mut inputs, Place::Member, "the request", settings)?;
    reader.end()?;
    inputs.into_iter().map(|input| input.finish(false)).collect()
}

/// Reads a member that has no data: `signature_name`, once, or one that is skipped. KServe hands those to its model; these
/// models take none (contract 03 section 2).
pub(super) fn beside<'a>(
    reader: &mut Reader<'a>,
    members: &Members,
    member: Cow<'a, str>,
    signed: &mut bool,
) -> Result<(), Error> {
    if member == "signature_name" {
        return if std::mem::replace(signed, true) { Err(twice(&member)) } else { signature_name(reader) };
    }
    reader.skip_with(&NUMBERS)?;
    reader.note(members, member)
}

/// Reads `signature_name`, of which there is one value (contract 03 section 6).
fn signature_name(reader: &mut Reader<'_>) -> Result<(), Error> {
    if reader.peek() != Some(b'"') {
        let found = reader.found();
        return Err(Error::invalid(format!("`signature_name` is {found}, expected a string")));
    }
    match &*reader.string()? {
        "" | SIGNATURE => Ok(()),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(Error::invalid(format!("signature `{other}` is unknown, expected `{SIGNATURE}`")))
        }
    }
}

/// A column for each of the model's inputs. `room`: bytes of the text that their values stand in.
pub(super) fn inputs<'a>(signature: &'a Signature, names: &'a Names, room: usize) -> Result<Vec<Column<'a>>, Error> {
    let specs = &signature.inputs;
    let room = room / specs.len().max(1);
    specs.iter().map(|spec| Column::new(spec, names.of_input(&spec.name), room)).collect()
}

/// What no input is renamed to.
pub(super) static OWN: Names = Names { inputs: Vec::new(), outputs: Vec::new() };

fn rows(reader: &mut Reader<'_>, signature: &Signature, settings: &Settings) -> Result<Vec<NamedTensor>, Error> {
    const MEMBER: &str = Form::Rows.member();
    let mut inputs = inputs(signature, &OWN, reader.rest().len())?;
    let mut items = array(reader, MEMBER)?;
    let mut named = None;
    let mut row = 0;
    while reader.item(&mut items)? {
        let object = reader.peek() == Some(b'{') && !is_binary(reader);
        if *named.get_or_insert(object) != object {
            let (found, expected) = if object { ("an object", "a value") } else { ("a value", "an object") };
            return Err(Error::invalid(format!(
                "`{MEMBER}[{row}]` is {found}, expected {expected} as in the first one"
            )));
        }
        match (object, inputs.as_mut_slice()) {
            (true, _) => {
                let what = format_args!("`{MEMBER}[{row}]`");
                self::object(reader, &mut inputs, |name| Place::NamedRow(MEMBER, row, name), what, settings)?;
            }
            (false, [input]) => input.read(reader, Place::Row(MEMBER, row), settings)?,
            (false, _) => {
                let found = reader.found();
                let text = format!("`{MEMBER}[{row}]` is {found}, expected an object with {}", listed(signature));
                return Err(Error::invalid(text));
            }
        }
        row += 1;
    }
    if row == 0 {
        return Err(Error::invalid(format!("`{MEMBER}` is empty, expected one value at least")));
    }
    if let Some(scalar) = inputs.iter().find(|input| input.spec().dims.is_empty()) {
        let text = "has no dimensions, so there are no rows of it: send `inputs` instead of `instances`";
        return Err(Error::tensor(scalar.name(), text));
    }
    // Known before the run: no need to run for an answer that cannot be given.
    if let Some(output) = signature.outputs.iter().find(|output| output.dims.is_empty()) {
        // Columns would not help where there is no type to write them in.
        output.known_dtype()?;
        return Err(no_rows(&format!("output `{}` has no dimensions", output.name)));
    }
    inputs.into_iter().map(|input| input.finish(true)).collect()
}

fn columns(reader: &mut Reader<'_>, signature: &Signature, settings: &Settings) -> Result<Vec<NamedTensor>, Error> {
    const MEMBER: &str = Form::Columns.member();
    let mut inputs = inputs(signature, &OWN, reader.rest().len())?;
    let named = reader.peek() == Some(b'{') && !is_binary(reader);
    match (named, inputs.as_mut_slice()) {
        (true, _) => {
            let what = format_args!("`{MEMBER}`");
            object(reader, &mut inputs, |name| Place::Named(MEMBER, name), what, settings)?;
        }
        (false, [input]) => input.read(reader, Place::Member(MEMBER), settings)?,
        (false, _) => {
            let found = reader.found();
            let text = format!("`{MEMBER}` is {found}, expected an object with {}", listed(signature));
            return Err(Error::invalid(text));
        }
    }
    inputs.into_iter().map(|input| input.finish(false)).collect()
}

/// Enters the array that is the value of `member`.
pub(super) fn array(reader: &mut Reader<'_>, member: &str) -> Result<crate::wire::json::Items, Error> {
    if reader.peek() != Some(b'[') {
        let found = reader.found();
        return Err(Error::invalid(format!("`{member}` is {found}, expected a list")));
    }
    reader.array()
}

/// Reads an object with a value for each of `inputs`, no more and no fewer. `what` it is, errors say.
fn object<'n>(
    reader: &mut Reader<'_>,
    inputs: &mut [Column<'n>],
    place: impl Fn(&'n str) -> Place<'n>,
    what: impl std::fmt::Display,
    settings: &Settings,
) -> Result<(), Error> {
    let before = inputs.first().map_or(0, |input| input.values());
    let mut members = reader.object()?;
    let mut next = 0;
    while let Some(member) = reader.member(&mut members)? {
        // Most senders keep to one order, and most of those to the model's.
        let hinted = inputs.get(next).is_some_and(|input| input.name() == member);
        let at = if hinted { Some(next) } else { inputs.iter().position(|input| input.name() == member) };
        let Some(input) = at.and_then(|at| inputs.get_mut(at)) else {
            let member: String = member.chars().take(64).collect();
            let names = list(inputs.iter().map(Column::name));
            return Err(Error::invalid(format!("{what} has `{member}`, which is no input, expected {names}")));
        };
        if input.values() > before {
            return Err(twice(&member));
        }
        input.read(reader, place(input.name()), settings)?;
        next = at.unwrap_or(next) + 1;
    }
    match inputs.iter().find(|input| input.values() == before) {
        Some(input) => Err(Error::invalid(format!("{what} has no `{}`", input.name()))),
        None => Ok(()),
    }
}

/// Whether binary data stands here; the reader stays before it.
fn is_binary(reader: &mut Reader<'_>) -> bool {
    let start = reader.position();
    let found = binary(reader).is_some();
    reader.seek(start);
    found
}

fn listed(signature: &Signature) -> String {
    list(signature.inputs.iter().map(|spec| &*spec.name))
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.enumerate().fold(String::new(), |mut text, (at, name)| {
        let comma = if at == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}`{name}`");
        text
    })
}

//! Responses and their tensors as JSON text.

use super::{
    Dialect,
    half::{BF16, FP16, Half},
    plain::plain_length,
    report::write_id,
};
use crate::{
    call::{CallId, InferResponse, NamedTensor, Parameter, Parameters},
    error::Error,
    tensor::{DataType, Tensor},
    wire::{NonFinite, Settings, Wishes},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use std::sync::Arc;

/// Encodes a V2 REST response whose tensors are all JSON (contract 01 section 2.4).
///
/// # Errors
///
/// As [`write_outputs`].
pub fn encode_infer(response: &InferResponse, id: &CallId, settings: &Settings) -> Result<Bytes, Error> {
    write_response(response, id, &Wishes::default(), settings).map(|(json, _)| json)
}

/// A V2 REST response, and the tensors that `wishes` wants raw.
pub(in crate::wire) fn write_response(
    response: &InferResponse,
    id: &CallId,
    wishes: &Wishes,
    settings: &Settings,
) -> Result<(Bytes, Vec<Bytes>), Error> {
    let mut out = Vec::with_capacity(estimate(response, wishes));
    out.extend_from_slice(b"{\"id\":");
    match &response.client_id {
        Some(id) => write_string(&mut out, id),
        None => write_id(&mut out, id),
    }
    out.extend_from_slice(b",\"model_name\":");
    write_string(&mut out, &response.model.name);
    out.extend_from_slice(b",\"model_version\":");
    write_string(&mut out, &response.model.version);
    if !response.parameters.is_empty() {
        out.extend_from_slice(b",\"parameters\":");
        write_parameters(&mut out, &response.parameters);
    }
    out.extend_from_slice(b",\"outputs\":");
    let tensors = write_outputs(&mut out, &response.outputs, Dialect::V2, wishes, settings)?;
    out.push(b'}');
    Ok((out.into(), tensors))
}

/// Enough room for nearly every response, so that its text is not moved while it grows.
fn estimate(response: &InferResponse, wishes: &Wishes) -> usize {
    let outputs = response.outputs.iter().map(|output| {
        let (tensor, length) = (&output.tensor, output.tensor.data().len());
        let text = match tensor.dtype() {
            _ if wishes.wants_binary(&output.name) => 0,
            // Characters per byte of data: `0.123456789,` for four bytes is the common longest.
            DataType::Fp32 | DataType::Int64 | DataType::Uint64 | DataType::Fp64 => length * 3,
            DataType::Bool | DataType::Uint8 | DataType::Int8 => length * 6,
            _ => length * 4,
        };
        output.name.len() + 96 + text
    });
    let id = response.client_id.as_ref().map_or(0, |id| id.len());
    192 + id + response.model.name.len() + response.parameters.len() * 48 + outputs.sum::<usize>()
}

/// Appends `outputs` as a JSON array. Those that `wishes` wants raw are announced (in the way of `dialect`) and
/// returned in order; the others are written as numbers.
///
/// In messages, what has no JSON form is written as `{"b64": "…"}` (contract 07 section 2).
///
/// # Errors
///
/// [`Error::InvalidTensor`] for what has no JSON form: in V2 half types and strings that are not UTF-8, in both
/// non-finite numbers under [`NonFinite::Refuse`].
pub fn write_outputs(
    out: &mut Vec<u8>,
    outputs: &[NamedTensor],
    dialect: Dialect,
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Vec<Bytes>, Error> {
    let mut tensors = Vec::new();
    out.push(b'[');
    for (index, NamedTensor { name, tensor }) in outputs.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{\"name\":" } else { b",{\"name\":" });
        write_string(out, name);
        out.extend_from_slice(b",\"datatype\":\"");
        out.extend_from_slice(tensor.dtype().name().as_bytes());
        out.extend_from_slice(b"\",\"shape\":");
        write_list(out, tensor.shape().dims(), |out, dim| write_integer(out, *dim));
        if wishes.wants_binary(name) {
            let length = tensor.data().len();
            match dialect {
                Dialect::V2 => {
                    out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
                    write_integer(out, length);
                    out.push(b'}');
                }
                Dialect::Message => {
                    out.extend_from_slice(b",\"byte_length\":");
                    write_integer(out, length);
                }
            }
            tensors.push(tensor.data().clone());
        } else {
            out.extend_from_slice(b",\"data\":");
            write_data(out, name, tensor, dialect, settings)?;
        }
        out.push(b'}');
    }
    out.push(b']');
    Ok(tensors)
}

pub(super) fn write_data(
    out: &mut Vec<u8>,
    name: &Arc<str>,
    tensor: &Tensor,
    dialect: Dialect,
    settings: &Settings,
) -> Result<(), Error> {
    macro_rules! each {
        ($type:ty, $write:expr) => {
            // Bytes may lie anywhere; assembling values from them costs no more than reading them.
            write_list(out, tensor.data().as_chunks().0, |out, bytes| $write(out, <$type>::from_le_bytes(*bytes)))
        };
    }
    let mut all_finite = true;
    let mut single = |out: &mut Vec<u8>, value: f32| match value.is_finite() {
        true => out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes()),
        false => all_finite &= write_non_finite(out, value.into(), settings.non_finite),
    };
    let half = |half: Half| move |bits: u16| half.value(bits);
    match tensor.dtype() {
        DataType::Bool => write_list(out, tensor.data(), |out, byte| {
            out.extend_from_slice(if *byte == 0 { b"false" } else { b"true" });
        }),
        DataType::Uint8 => each!(u8, write_integer),
        DataType::Uint16 => each!(u16, write_integer),
        DataType::Uint32 => each!(u32, write_integer),
        DataType::Uint64 => each!(u64, write_integer),
        DataType::Int8 => each!(i8, write_integer),
        DataType::Int16 => each!(i16, write_integer),
        DataType::Int32 => each!(i32, write_integer),
        DataType::Int64 => each!(i64, write_integer),
        DataType::Fp32 => each!(f32, single),
        DataType::Fp64 => each!(f64, |out: &mut Vec<u8>, value: f64| match value.is_finite() {
            true => out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes()),
            false => all_finite &= write_non_finite(out, value, settings.non_finite),
        }),
        DataType::Fp16 if settings.convert_half => each!(u16, |out: &mut _, bits| single(out, half(FP16)(bits))),
        DataType::Bf16 if settings.convert_half => each!(u16, |out: &mut _, bits| single(out, half(BF16)(bits))),
        DataType::Bytes if tensor.iter_strings().all(|string| std::str::from_utf8(string).is_ok()) => {
            write_list(out, tensor.iter_strings(), |out, string| {
                write_string(out, std::str::from_utf8(string).unwrap_or_default());
            });
        }
        DataType::Fp16 | DataType::Bf16 | DataType::Bytes => {
            return write_base64(out, name, tensor, dialect);
        }
    }
    if all_finite {
        return Ok(());
    }
    Err(Error::tensor(
        Arc::clone(name),
        "has numbers that are not finite and so no JSON form, expected a request for binary output",
    ))
}

fn write_base64(out: &mut Vec<u8>, name: &Arc<str>, tensor: &Tensor, dialect: Dialect) -> Result<(), Error> {
    if dialect == Dialect::V2 {
        let what = if tensor.dtype() == DataType::Bytes { "strings that are not UTF-8" } else { "a half type" };
        let reason = format!("has {what} and so no JSON form, expected a request for binary output");
        return Err(Error::tensor(Arc::clone(name), reason));
    }
    out.extend_from_slice(b"{\"b64\":\"");
    out.extend_from_slice(STANDARD.encode(tensor.data()).as_bytes());
    out.extend_from_slice(b"\"}");
    Ok(())
}

/// Appends what stands for NaN and the infinities; false if nothing does.
#[cold]
pub(in crate::wire) fn write_non_finite(out: &mut Vec<u8>, value: f64, how: NonFinite) -> bool {
    let word: &[u8] = match how {
        NonFinite::AsToken if value.is_nan() => b"NaN",
        NonFinite::AsToken if value > 0.0 => b"Infinity",
        NonFinite::AsToken => b"-Infinity",
        NonFinite::AsNull | NonFinite::Refuse => b"null",
    };
    out.extend_from_slice(word);
    how != NonFinite::Refuse
}

/// Appends a JSON array of whatever `write` makes of the items.
pub(in crate::wire) fn write_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// Appends an integer.
pub(in crate::wire) fn write_integer(out: &mut Vec<u8>, integer: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(integer).as_bytes());
}

/// Appends `text` as a JSON string with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, special) = rest.split_at(plain_length(rest));
        out.extend_from_slice(plain);
        let Some((special, more)) = special.split_first() else { break };
        rest = more;
        match *special {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]]);
            }
        }
    }
    out.push(b'"');
}

/// Appends parameters as a JSON object.
pub fn write_parameters(out: &mut Vec<u8>, parameters: &Parameters) {
    out.push(b'{');
    write_members(out, parameters);
    out.push(b'}');
}

/// Appends parameters as members of an object that is open.
pub(super) fn write_members(out: &mut Vec<u8>, parameters: &Parameters) {
    for (index, (name, value)) in parameters.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        match value {
            Parameter::Bool(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
            Parameter::Int(number) => write_integer(out, *number),
            Parameter::Uint(number) => write_integer(out, *number),
            Parameter::Double(number) if number.is_finite() => {
                out.extend_from_slice(ryu::Buffer::new().format_finite(*number).as_bytes());
            }
            Parameter::Double(_) => out.extend_from_slice(b"null"),
            Parameter::String(text) => write_string(out, text),
        }
    }
}

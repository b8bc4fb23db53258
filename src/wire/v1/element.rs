//! One element of a tensor out of JSON, by the model's type (contract 03 sections 2.3 and 2.4).
//!
//! Each type says how it is read and what to call it in errors; where its elements go is not known here.

use crate::{
    tensor::push_string,
    wire::json::{
        BASE64, Reader,
        half::{BF16, FP16, Half},
        numbers::{self, Decimal},
    },
};
use base64::Engine;
use bytemuck::Pod;
use std::borrow::Cow;

/// What was expected where the reader stands.
#[derive(Debug)]
pub(super) struct Unexpected(pub(super) &'static str);

/// How the elements of one type are read.
pub(super) trait Element {
    /// Appends one element to `data`, or leaves the reader before what is none. `null`: it may stand for NaN.
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, null: bool) -> Result<(), Unexpected>;
}

macro_rules! integers {
    ($($type:ty: $expected:literal,)*) => {
        $(impl Element for $type {
            #[inline]
            fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, _: bool) -> Result<(), Unexpected> {
                const EXPECTED: Unexpected = Unexpected(concat!("an integer ", $expected, ", without a fraction or an exponent"));
                let (number, token) = number(reader).ok_or(EXPECTED)?;
                // TensorFlow Serving wants an integer token: `1.0` is none, whatever its value.
                let plain = token.iter().all(|byte| *byte == b'-' || byte.is_ascii_digit());
                let value = plain.then(|| number.integer(token)).flatten();
                push(reader, data, token, value.and_then(|value| <$type>::try_from(value).ok()).ok_or(EXPECTED)?);
                Ok(())
            }
        })*
    };
}

integers! {
    u8: "from 0 to 255",
    u16: "from 0 to 65535",
    u32: "from 0 to 4294967295",
    u64: "from 0 to 18446744073709551615",
    i8: "from -128 to 127",
    i16: "from -32768 to 32767",
    i32: "from -2147483648 to 2147483647",
    i64: "from -9223372036854775808 to 9223372036854775807",
}

/// FP32.
impl Element for f32 {
    #[inline]
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, null: bool) -> Result<(), Unexpected> {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        float(reader, data, Decimal::single, special, null)
    }
}

/// FP64.
impl Element for f64 {
    #[inline]
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, null: bool) -> Result<(), Unexpected> {
        let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        float(reader, data, Decimal::double, special, null)
    }
}

/// FP16.
pub(super) struct Half16;
/// BF16.
pub(super) struct Brain16;

impl Element for Half16 {
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, null: bool) -> Result<(), Unexpected> {
        half(reader, data, FP16, null)
    }
}

impl Element for Brain16 {
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, null: bool) -> Result<(), Unexpected> {
        half(reader, data, BF16, null)
    }
}

/// BOOL.
impl Element for bool {
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, _: bool) -> Result<(), Unexpected> {
        let value = reader.take("true");
        if !value && !reader.take("false") {
            return Err(Unexpected("`true` or `false`"));
        }
        data.push(u8::from(value));
        Ok(())
    }
}

/// BYTES: a string, or binary data in base64.
pub(super) struct Text;

impl Element for Text {
    fn read(reader: &mut Reader<'_>, data: &mut Vec<u8>, _: bool) -> Result<(), Unexpected> {
        const EXPECTED: Unexpected = Unexpected("a string or `{\"b64\": \"…\"}`");
        const LONG: Unexpected = Unexpected("a string of less than 4 GiB");
        reader.peek();
        let start = reader.position();
        if let Some(text) = binary(reader) {
            let end = reader.position();
            let bytes = BASE64.decode(text.as_bytes()).map_err(|_| {
                reader.seek(start);
                Unexpected("standard base64 in `b64`")
            })?;
            reader.seek(end);
            return push_string(data, &bytes).map_err(|_| LONG);
        }
        let string = reader.string().map_err(|_| {
            reader.seek(start);
            EXPECTED
        })?;
        push_string(data, string.as_bytes()).map_err(|_| LONG)
    }
}

/// The text of the object `{"b64": "…"}`, if that is what stands here; else the reader stays where it is.
///
/// An object of that one member is binary data and never a map of names, so an input called `b64` has no name here
/// (contract 03 section 2.1).
pub(super) fn binary<'a>(reader: &mut Reader<'a>) -> Option<Cow<'a, str>> {
    if reader.peek() != Some(b'{') {
        return None;
    }
    let start = reader.position();
    let mut members = reader.object().ok()?;
    let text = match reader.member(&mut members) {
        Ok(Some(name)) if name == "b64" => reader.string().ok().filter(|_| reader.peek() == Some(b'}')),
        Ok(None) => {
            // An empty object, which the reader has left.
            reader.seek(start);
            return None;
        }
        _ => None,
    };
    reader.leave();
    if text.is_none() {
        reader.seek(start);
    }
    text
}

/// The number that stands here and its token; the reader stays before it.
#[inline(always)]
fn number<'a>(reader: &mut Reader<'a>) -> Option<(Decimal, &'a [u8])> {
    reader.peek();
    let (number, length) = numbers::scan(reader.bytes())?;
    Some((number, &reader.bytes()[..length]))
}

#[inline(always)]
fn push(reader: &mut Reader<'_>, data: &mut Vec<u8>, token: &[u8], value: impl Pod) {
    data.extend_from_slice(bytemuck::bytes_of(&value));
    reader.advance(token.len());
}

/// Reads a number, one of the three tokens (`special`, in the order NaN, Infinity, -Infinity), or `null`.
#[inline(always)]
fn float<T: Pod>(
    reader: &mut Reader<'_>,
    data: &mut Vec<u8>,
    convert: impl Fn(&Decimal, &[u8]) -> Option<T>,
    special: [T; 3],
    null: bool,
) -> Result<(), Unexpected> {
    if let Some((number, token)) = number(reader) {
        let value = convert(&number, token).ok_or(Unexpected("a number within the range of the type"))?;
        push(reader, data, token, value);
        return Ok(());
    }
    let [nan, infinity, negative] = special;
    let value = if reader.take("NaN") || (null && reader.take("null")) {
        nan
    } else if reader.take("Infinity") {
        infinity
    } else if reader.take("-Infinity") {
        negative
    } else {
        return Err(Unexpected("a number"));
    };
    data.extend_from_slice(bytemuck::bytes_of(&value));
    Ok(())
}

/// Numbers for half types, which V2 takes only where `json.half` says so: rounded to the nearest, ties to even.
fn half(reader: &mut Reader<'_>, data: &mut Vec<u8>, kind: Half, null: bool) -> Result<(), Unexpected> {
    let special = [kind.nan(), kind.infinity(), kind.infinity() | 0x8000];
    float(reader, data, |number, token| kind.of(number.double(token)?), special, null)
}

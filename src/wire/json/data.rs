//! `data` of an input: straight from the text into the tensor's own memory.
//!
//! The reader must stand before the value, and type and shape must be known; what to do when they come
//! later is decided in [`super::input`]. Nested arrays are counted, not called: no recursion.

use super::{
    half::{BF16, FP16, Half},
    numbers::{self, Decimal},
    reader::Reader,
};
use crate::{
    error::Error,
    tensor::{DataType, Shape, Tensor, push_string},
    wire::{NonFinite, Settings},
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytemuck::Pod;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;

/// The standard alphabet only, padded and unpadded (contract 03 section 2.4): clients of both habits exist, and neither is
/// ambiguous.
pub(in crate::wire) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads `data` of the input `name`.
///
/// # Errors
///
/// [`Error::InvalidTensor`] with the index and the token of the first wrong element, or with both
/// counts; [`Error::InvalidRequest`] if it is no JSON.
pub(super) fn read(
    reader: &mut Reader<'_>,
    name: &Arc<str>,
    dtype: DataType,
    shape: Shape,
    settings: &Settings,
) -> Result<Tensor, Error> {
    let elements = shape.elements().ok_or_else(|| overflow(name))?;
    // An element takes two bytes of text at least, so a shape alone never allocates much.
    let room = elements.min(reader.rest().len() / 2 + 1);
    let walk = Walk { name, shape: &shape, elements };
    let null = settings.non_finite == NonFinite::AsNull;
    let data = match dtype {
        DataType::Bool => walk.fill(reader, Bools(Vec::with_capacity(room)))?,
        DataType::Uint8 => walk.integers::<u8>(reader, room)?,
        DataType::Uint16 => walk.integers::<u16>(reader, room)?,
        DataType::Uint32 => walk.integers::<u32>(reader, room)?,
        DataType::Uint64 => walk.integers::<u64>(reader, room)?,
        DataType::Int8 => walk.integers::<i8>(reader, room)?,
        DataType::Int16 => walk.integers::<i16>(reader, room)?,
        DataType::Int32 => walk.integers::<i32>(reader, room)?,
        DataType::Int64 => walk.integers::<i64>(reader, room)?,
        DataType::Fp32 => walk.numbers(reader, room, Decimal::single, null.then_some(f32::NAN))?,
        DataType::Fp64 => walk.numbers(reader, room, Decimal::double, null.then_some(f64::NAN))?,
        DataType::Fp16 if settings.convert_half => walk.halves(reader, room, FP16, null)?,
        DataType::Bf16 if settings.convert_half => walk.halves(reader, room, BF16, null)?,
        DataType::Fp16 | DataType::Bf16 => {
            return Err(Error::tensor(Arc::clone(name), format!("has JSON `data`, expected binary data for {dtype}")));
        }
        DataType::Bytes => walk.fill(reader, Strings::default())?,
    };
    Tensor::new(dtype, shape, data).map_err(|error| Error::tensor(Arc::clone(name), error.to_string()))
}

/// Reads `{"b64": "…"}`, the raw form of a tensor in base64 (contract 07 section 2).
///
/// # Errors
///
/// As [`read`]; also for types that JSON can carry as numbers.
pub(super) fn read_base64(
    reader: &mut Reader<'_>,
    name: &Arc<str>,
    dtype: DataType,
    shape: Shape,
) -> Result<Tensor, Error> {
    if !matches!(dtype, DataType::Bytes | DataType::Fp16 | DataType::Bf16) {
        return Err(Error::tensor(Arc::clone(name), format!("has base64 `data`, expected an array for {dtype}")));
    }
    let mut members = reader.object()?;
    let mut data = None;
    while let Some(member) = reader.member(&mut members)? {
        if member != "b64" || data.is_some() {
            return Err(Error::tensor(Arc::clone(name), "has an object as `data`, expected `b64` alone in it"));
        }
        data = Some(BASE64.decode(reader.string()?.as_bytes()).map_err(|error| {
            let error = error.to_string().to_lowercase();
            Error::tensor(Arc::clone(name), format!("has bad base64 in `b64`: {}", error.trim_end_matches('.')))
        })?);
    }
    let data = data.ok_or_else(|| Error::tensor(Arc::clone(name), "has an empty object as `data`, expected `b64`"))?;
    Tensor::new(dtype, shape, data.into()).map_err(|error| Error::tensor(Arc::clone(name), error.to_string()))
}

#[cold]
fn overflow(name: &Arc<str>) -> Error {
    Error::tensor(Arc::clone(name), crate::tensor::TensorError::Overflow.to_string())
}

/// Why an element was not taken. The reader stands before it.
struct Expected(&'static str);

/// Where elements go.
trait Sink {
    /// Reads one element, or leaves the reader before it.
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<(), Expected>;
    /// How many there are so far.
    fn count(&self) -> usize;
    /// All of them, as raw bytes.
    fn finish(self) -> Bytes;
}

/// Bytes rather than `Vec<T>`: shared without a second allocation. Allocators lay blocks on 8 or more, and a back end
/// copies what is not aligned.
struct Numbers<T, F> {
    bytes: Vec<u8>,
    convert: F,
    null: Option<T>,
    expected: &'static str,
}

impl<T: Pod + Send, F: Fn(&Decimal, &[u8]) -> Option<T>> Sink for Numbers<T, F> {
    #[inline(always)]
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<(), Expected> {
        reader.peek();
        let Some((number, length)) = numbers::scan(reader.bytes()) else {
            return match self.null {
                Some(null) if reader.take("null") => {
                    self.bytes.extend_from_slice(bytemuck::bytes_of(&null));
                    Ok(())
                }
                _ => Err(Expected(self.expected)),
            };
        };
        let value = (self.convert)(&number, &reader.bytes()[..length]).ok_or(Expected(self.expected))?;
        self.bytes.extend_from_slice(bytemuck::bytes_of(&value));
        reader.advance(length);
        Ok(())
    }

    fn count(&self) -> usize {
        self.bytes.len() / size_of::<T>()
    }

    fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

struct Bools(Vec<u8>);

impl Sink for Bools {
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<(), Expected> {
        let value = reader.take("true");
        if !value && !reader.take("false") {
            return Err(Expected("`true` or `false`"));
        }
        self.0.push(u8::from(value));
        Ok(())
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn finish(self) -> Bytes {
        self.0.into()
    }
}

#[derive(Default)]
struct Strings {
    data: Vec<u8>,
    count: usize,
}

impl Sink for Strings {
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<(), Expected> {
        let start = reader.position();
        let Ok(string) = reader.string() else {
            reader.seek(start);
            return Err(Expected("a string"));
        };
        push_string(&mut self.data, string.as_bytes()).map_err(|_| Expected("a string of less than 4 GiB"))?;
        self.count += 1;
        Ok(())
    }

    fn count(&self) -> usize {
        self.count
    }

    fn finish(self) -> Bytes {
        self.data.into()
    }
}

/// An integer type and what to call it in errors.
trait Integer: Pod + Send + TryFrom<i128> {
    const EXPECTED: &'static str;
}

macro_rules! integers {
    ($($type:ty: $expected:literal,)*) => {
        $(impl Integer for $type {
            const EXPECTED: &'static str = concat!("an integer ", $expected);
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

/// What the arrays must come to.
struct Walk<'a> {
    name: &'a Arc<str>,
    shape: &'a Shape,
    elements: usize,
}

impl Walk<'_> {
    fn integers<T: Integer>(&self, reader: &mut Reader<'_>, room: usize) -> Result<Bytes, Error> {
        let convert = |number: &Decimal, text: &[u8]| T::try_from(number.integer(text)?).ok();
        self.fill(
            reader,
            Numbers::<T, _> {
                bytes: Vec::with_capacity(room * size_of::<T>()),
                convert,
                null: None,
                expected: T::EXPECTED,
            },
        )
    }

    fn numbers<T: Pod + Send>(
        &self,
        reader: &mut Reader<'_>,
        room: usize,
        convert: impl Fn(&Decimal, &[u8]) -> Option<T>,
        null: Option<T>,
    ) -> Result<Bytes, Error> {
        let expected = "a finite number within the range of the type";
        self.fill(reader, Numbers::<T, _> { bytes: Vec::with_capacity(room * size_of::<T>()), convert, null, expected })
    }

    fn halves(&self, reader: &mut Reader<'_>, room: usize, half: Half, null: bool) -> Result<Bytes, Error> {
        let convert = |number: &Decimal, text: &[u8]| half.of(number.double(text)?);
        self.numbers(reader, room, convert, null.then_some(half.nan()))
    }

    fn fill<S: Sink>(&self, reader: &mut Reader<'_>, mut sink: S) -> Result<Bytes, Error> {
        if reader.peek() != Some(b'[') {
            if self.shape.rank() != 0 {
                return Err(self.wrong(format!("has {} as `data`, expected an array", reader.found())));
            }
            self.element(reader, &mut sink)?;
            return Ok(sink.finish());
        }
        reader.enter()?;
        if self.shape.rank() > 1 && reader.peek() == Some(b'[') {
            self.nested(reader, &mut sink)?;
        } else {
            self.row(reader, &mut sink, self.elements)?;
            reader.leave();
        }
        Ok(sink.finish())
    }

    /// Reads the arrays within the outermost one, whose bracket is read, and its end.
    fn nested<S: Sink>(&self, reader: &mut Reader<'_>, sink: &mut S) -> Result<(), Error> {
        let dims = self.shape.dims();
        let mut counts: SmallVec<[usize; 8]> = SmallVec::new();
        counts.push(0);
        loop {
            let level = counts.len();
            if level == dims.len() {
                self.row(reader, sink, dims[level - 1])?;
            } else {
                match reader.peek() {
                    Some(b'[') => {
                        reader.enter()?;
                        counts.push(0);
                        continue;
                    }
                    Some(b']') if counts[level - 1] == 0 && dims[level - 1] == 0 => {}
                    _ => return Err(self.ragged(reader)),
                }
            }
            // The reader stands before the bracket that ends this array; ends of others may follow.
            loop {
                reader.leave();
                counts.pop();
                let Some(count) = counts.last_mut() else {
                    return Ok(());
                };
                *count += 1;
                let full = *count == dims[counts.len() - 1];
                match reader.peek() {
                    Some(b',') if !full => {
                        reader.advance(1);
                        if reader.peek() != Some(b'[') {
                            return Err(self.ragged(reader));
                        }
                        break;
                    }
                    Some(b']') if full => {}
                    Some(b',' | b']') => return Err(self.ragged(reader)),
                    _ => return Err(reader.unexpected("`,` or `]`")),
                }
            }
        }
    }

    /// Reads exactly `expected` elements, up to the bracket after them.
    fn row<S: Sink>(&self, reader: &mut Reader<'_>, sink: &mut S, expected: usize) -> Result<(), Error> {
        let before = sink.count();
        if reader.peek() != Some(b']') {
            loop {
                if sink.count() - before == expected {
                    return Err(self.counted(&format!("more than {expected}"), expected));
                }
                self.element(reader, sink)?;
                match reader.peek() {
                    Some(b',') => reader.advance(1),
                    Some(b']') => break,
                    _ => return Err(reader.unexpected("`,` or `]`")),
                }
            }
        }
        match sink.count() - before {
            count if count == expected => Ok(()),
            count => Err(self.counted(&count.to_string(), expected)),
        }
    }

    #[inline(always)]
    fn element<S: Sink>(&self, reader: &mut Reader<'_>, sink: &mut S) -> Result<(), Error> {
        sink.element(reader).map_err(|Expected(expected)| {
            self.wrong(format!("has {} at index {}, expected {expected}", reader.found(), sink.count()))
        })
    }

    #[cold]
    fn counted(&self, found: &str, expected: usize) -> Error {
        let what = if expected == self.elements { "`data`" } else { "a row of `data`" };
        self.wrong(format!("has {found} elements in {what}, expected {expected} for shape {}", self.shape))
    }

    #[cold]
    fn ragged(&self, reader: &mut Reader<'_>) -> Error {
        let (found, at) = (reader.found(), reader.position());
        self.wrong(format!("has {found} in `data` at byte {at}, expected arrays nested as shape {}", self.shape))
    }

    #[cold]
    fn wrong(&self, reason: String) -> Error {
        Error::tensor(Arc::clone(self.name), reason)
    }
}

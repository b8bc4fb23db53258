//! One entry of `inputs`, and the raw tensors behind the JSON.
//!
//! Members may come in any order. Numbers are read in place where type and shape stand before them, as
//! all known clients write; else their place is remembered and they are read once the object is over.

use super::{
    Dialect, data,
    reader::{Reader, twice},
};
use crate::{
    call::NamedTensor,
    error::Error,
    tensor::{DataType, Shape},
    wire::{Settings, reserved, shared},
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::{borrow::Cow, sync::Arc};

/// Longest name of a tensor, in bytes. Names come back in errors and answers; ONNX's own are far shorter.
const NAME: usize = 1024;

/// The raw tensors that follow the JSON.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Bytes,
    /// Where `bytes` begins, counted from the start of the frame.
    offset: usize,
    at: usize,
    /// Tensors begin at multiples of 8 (contract 06 section C4).
    padded: bool,
}

impl Tail {
    /// The bytes behind the JSON; `None` where there cannot be any.
    pub(super) fn new(tail: Option<(Bytes, usize)>, dialect: Dialect) -> Option<Self> {
        tail.map(|(bytes, offset)| Self { bytes, offset, at: 0, padded: dialect == Dialect::Message })
    }

    fn take(&mut self, name: &Arc<str>, length: usize) -> Result<Bytes, Error> {
        let left = self.bytes.len() - self.at;
        let padding = if self.padded { (self.offset + self.at).wrapping_neg() % 8 } else { 0 };
        // Nothing follows an empty tensor at the end, so nothing needs to be aligned.
        let padding = if length == 0 { padding.min(left) } else { padding };
        let found = left.saturating_sub(padding);
        if found < length {
            let reason = format!("announces {length} bytes, {found} follow the JSON");
            return Err(Error::tensor(Arc::clone(name), reason));
        }
        let start = self.at + padding;
        if self.bytes[self.at..start].iter().any(|byte| *byte != 0) {
            return Err(Error::tensor(Arc::clone(name), "has other bytes than zeros before it, expected padding to 8"));
        }
        self.at = start + length;
        Ok(self.bytes.slice(start..self.at))
    }

    /// All bytes must have been taken.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(Error::invalid(format!("{left} bytes follow the last binary tensor, expected none"))),
        }
    }
}

/// What is known of an input so far.
#[derive(Debug, Default)]
struct Input {
    name: Option<Arc<str>>,
    dtype: Option<DataType>,
    shape: Option<Shape>,
    source: Option<Source>,
    /// The members that were there.
    seen: u8,
}

/// Where the elements are.
#[derive(Debug)]
enum Source {
    /// Read already.
    Here(NamedTensor),
    /// In the JSON, at this byte: type or shape came later.
    At(usize),
    /// In the tail, so many bytes.
    Tail(usize),
}

/// Reads the `index`th input.
///
/// # Errors
///
/// [`Error::InvalidTensor`] where the name is known, else [`Error::InvalidRequest`].
pub(super) fn read(
    reader: &mut Reader<'_>,
    index: usize,
    dialect: Dialect,
    tail: &mut Option<Tail>,
    settings: &Settings,
) -> Result<NamedTensor, Error> {
    let mut input = Input::default();
    let mut members = reader.object()?;
    while let Some(member) = reader.member(&mut members)? {
        let bit = match (&*member, dialect) {
            ("name", _) => 1,
            ("shape", _) => 2,
            ("datatype", _) => 4,
            ("data", _) => 8,
            ("parameters", _) => 16,
            ("byte_length", Dialect::Message) => 32,
            _ => {
                reader.note(&members, member)?;
                reader.skip()?;
                continue;
            }
        };
        if input.seen & bit != 0 {
            return Err(twice(&member));
        }
        input.seen |= bit;
        match bit {
            1 => input.name = Some(name(reader)?),
            2 => input.shape = Some(input.shape(reader, index, settings)?),
            4 => input.dtype = Some(input.datatype(reader, index)?),
            8 => input.data(reader, index, dialect, settings)?,
            16 => input.parameters(reader, index, dialect)?,
            _ => {
                let length = input.length(reader, index, "byte_length")?;
                input.set(index, Source::Tail(length))?;
            }
        }
    }
    input.finish(reader, index, dialect, tail, settings)
}

/// Reads the name of an input or output.
pub(super) fn name(reader: &mut Reader<'_>) -> Result<Arc<str>, Error> {
    let name = reader.string()?;
    if name.len() > NAME {
        return Err(Error::invalid(format!("a name has {} bytes, expected at most {NAME}", name.len())));
    }
    Ok(match name {
        Cow::Borrowed(name) => name.into(),
        Cow::Owned(name) => name.into(),
    })
}

/// Reads an integer from 0 on that fits into memory's sizes; the reason if it is none.
fn size(reader: &mut Reader<'_>) -> Result<usize, String> {
    reader.peek();
    let number = super::numbers::scan(reader.bytes()).and_then(|(number, length)| {
        let size = usize::try_from(number.integer(&reader.bytes()[..length])?).ok()?;
        Some((size, length))
    });
    match number {
        Some((size, length)) => {
            reader.advance(length);
            Ok(size)
        }
        None => Err(format!("{}, expected an integer from 0 to {}", reader.found(), usize::MAX)),
    }
}

impl Input {
    #[cold]
    fn wrong(&self, index: usize, reason: impl Into<Cow<'static, str>>) -> Error {
        match &self.name {
            Some(name) => Error::tensor(Arc::clone(name), reason),
            None => Error::invalid(format!("input {index} {}", reason.into())),
        }
    }

    fn set(&mut self, index: usize, source: Source) -> Result<(), Error> {
        if self.source.is_some() {
            return Err(self.wrong(index, "has both JSON `data` and binary data, expected one"));
        }
        self.source = Some(source);
        Ok(())
    }

    fn shape(&self, reader: &mut Reader<'_>, index: usize, settings: &Settings) -> Result<Shape, Error> {
        let mut items = reader.array()?;
        let mut dims: SmallVec<[usize; 4]> = SmallVec::new();
        while reader.item(&mut items)? {
            if dims.len() == settings.rank {
                let most = settings.rank;
                return Err(self.wrong(index, format!("has more than {most} dimensions, expected at most {most}")));
            }
            let dim = size(reader);
            dims.push(dim.map_err(|reason| self.wrong(index, format!("has a dimension of {reason}")))?);
        }
        let shape = Shape::from(dims);
        match shape.elements() {
            Some(_) => Ok(shape),
            None => Err(self.wrong(index, format!("has shape {shape} whose size overflows"))),
        }
    }

    fn datatype(&self, reader: &mut Reader<'_>, index: usize) -> Result<DataType, Error> {
        reader.peek();
        let start = reader.position();
        DataType::parse(&reader.string()?).ok_or_else(|| {
            reader.seek(start);
            self.wrong(index, format!("has datatype {}, expected a V2 name such as `FP32`", reader.found()))
        })
    }

    fn length(&self, reader: &mut Reader<'_>, index: usize, member: &str) -> Result<usize, Error> {
        size(reader).map_err(|reason| self.wrong(index, format!("has a `{member}` of {reason}")))
    }

    fn data(
        &mut self,
        reader: &mut Reader<'_>,
        index: usize,
        dialect: Dialect,
        settings: &Settings,
    ) -> Result<(), Error> {
        // So KServe's client ends a tensor that it sends as binary data and that has no elements.
        if self.source.is_some() && reader.take("null") {
            return Ok(());
        }
        let source = match (&self.name, self.dtype, &mut self.shape) {
            // The shape moves into the tensor; what is left behind is never looked at again.
            (Some(name), Some(dtype), Some(shape)) if self.source.is_none() => {
                let shape = std::mem::take(shape);
                Source::Here(elements(reader, Arc::clone(name), dtype, shape, dialect, settings)?)
            }
            _ => {
                reader.peek();
                let position = reader.position();
                reader.skip()?;
                Source::At(position)
            }
        };
        self.set(index, source)
    }

    fn parameters(&mut self, reader: &mut Reader<'_>, index: usize, dialect: Dialect) -> Result<(), Error> {
        if reader.take("null") {
            return Ok(());
        }
        let mut members = reader.object()?;
        while let Some(member) = reader.member(&mut members)? {
            reserved::check_tensor_parameter(&member)?;
            if member == "binary_data_size" && dialect == Dialect::V2 {
                let length = self.length(reader, index, "binary_data_size")?;
                self.set(index, Source::Tail(length))?;
            } else {
                reader.skip()?;
            }
            reader.note(&members, member)?;
        }
        Ok(())
    }

    fn finish(
        mut self,
        reader: &mut Reader<'_>,
        index: usize,
        dialect: Dialect,
        tail: &mut Option<Tail>,
        settings: &Settings,
    ) -> Result<NamedTensor, Error> {
        let Some(name) = self.name.clone() else {
            return Err(self.wrong(index, "has no `name`"));
        };
        match self.source.take() {
            Some(Source::Here(tensor)) => Ok(tensor),
            source => {
                let dtype = self.dtype.ok_or_else(|| self.wrong(index, "has no `datatype`"))?;
                let shape = self.shape.take().ok_or_else(|| self.wrong(index, "has no `shape`"))?;
                match source {
                    Some(Source::At(position)) => {
                        let end = reader.position();
                        reader.seek(position);
                        // Its depth was checked when it was skipped, one level further in.
                        let tensor = elements(reader, name, dtype, shape, dialect, settings)?;
                        reader.seek(end);
                        Ok(tensor)
                    }
                    Some(Source::Tail(length)) => {
                        let data = match tail {
                            Some(tail) => tail.take(&name, length)?,
                            None if length == 0 => Bytes::new(),
                            None => return Err(Error::tensor(name, "announces binary data, none follows the JSON")),
                        };
                        shared(name, dtype, shape, data)
                    }
                    _ => Err(self.wrong(index, "has no data, expected `data` or binary data")),
                }
            }
        }
    }
}

fn elements(
    reader: &mut Reader<'_>,
    name: Arc<str>,
    dtype: DataType,
    shape: Shape,
    dialect: Dialect,
    settings: &Settings,
) -> Result<NamedTensor, Error> {
    let tensor = if dialect == Dialect::Message && reader.peek() == Some(b'{') {
        data::read_base64(reader, &name, dtype, shape)?
    } else {
        data::read(reader, &name, dtype, shape, settings)?
    };
    Ok(NamedTensor { name, tensor })
}

//! Values of one tensor, in the order they come, with a shape that is learnt on the way (contract 03 section 2.3).
//!
//! The first value decides: what is nested deeper, less deep, or longer than it at some depth, is ragged. Arrays are
//! counted, not called: no recursion.

use super::element::{Brain16, Element, Half16, Text};
use crate::{
    call::NamedTensor,
    error::Error,
    tensor::{DataType, Shape, Tensor, TensorSpec},
    wire::{NonFinite, Settings, json::Reader},
};
use smallvec::SmallVec;
use std::{fmt, sync::Arc};

/// The dimensions of one value; `None` where no array of that depth has ended yet.
type Dims = SmallVec<[Option<usize>; 8]>;

/// Where a value stands in its request, as a path that its sender can follow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// The value of a member.
    Member(&'a str),
    /// A named value in a member.
    Named(&'a str, &'a str),
    /// An element of a member.
    Row(&'a str, usize),
    /// A named value in an element of a member.
    NamedRow(&'a str, usize, &'a str),
}

/// Values of one input.
pub(super) struct Column<'a> {
    spec: &'a TensorSpec,
    /// What the sender calls it.
    name: &'a str,
    dtype: DataType,
    data: Vec<u8>,
    dims: Dims,
    /// How deep elements lie, once that is known.
    rank: Option<usize>,
    /// Values so far.
    values: usize,
}

// === impl Place ===

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member) => f.write_str(member),
            Self::Named(member, name) => write!(f, "{member}.{name}"),
            Self::Row(member, row) => write!(f, "{member}[{row}]"),
            Self::NamedRow(member, row, name) => write!(f, "{member}[{row}].{name}"),
        }
    }
}

// === impl Column ===

impl<'a> Column<'a> {
    /// No value yet of the input `spec`, which its sender calls `name`. `room`: bytes that its values may take.
    ///
    /// # Errors
    ///
    /// [`Error::Unimplemented`] for a type that the protocol cannot carry.
    pub(super) fn new(spec: &'a TensorSpec, name: &'a str, room: usize) -> Result<Self, Error> {
        let dtype = spec.known_dtype()?;
        let data = Vec::with_capacity(room);
        Ok(Self { spec, name, dtype, data, dims: Dims::new(), rank: None, values: 0 })
    }

    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    pub(super) fn spec(&self) -> &'a TensorSpec {
        self.spec
    }

    /// How many values there are.
    pub(super) fn values(&self) -> usize {
        self.values
    }

    /// How many bytes they take.
    pub(super) fn size(&self) -> usize {
        self.data.len()
    }

    /// Reads one more value, which must have the shape of the first.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] with the position, what was found there and what was expected.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, place: Place<'_>, settings: &Settings) -> Result<(), Error> {
        self.values += 1;
        match self.dtype {
            DataType::Bool => self.value::<bool>(reader, place, settings),
            DataType::Uint8 => self.value::<u8>(reader, place, settings),
            DataType::Uint16 => self.value::<u16>(reader, place, settings),
            DataType::Uint32 => self.value::<u32>(reader, place, settings),
            DataType::Uint64 => self.value::<u64>(reader, place, settings),
            DataType::Int8 => self.value::<i8>(reader, place, settings),
            DataType::Int16 => self.value::<i16>(reader, place, settings),
            DataType::Int32 => self.value::<i32>(reader, place, settings),
            DataType::Int64 => self.value::<i64>(reader, place, settings),
            DataType::Fp16 => self.value::<Half16>(reader, place, settings),
            DataType::Bf16 => self.value::<Brain16>(reader, place, settings),
            DataType::Fp32 => self.value::<f32>(reader, place, settings),
            DataType::Fp64 => self.value::<f64>(reader, place, settings),
            DataType::Bytes => self.value::<Text>(reader, place, settings),
        }
    }

    /// Takes the value of `other` once more; both are of the same input.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] if it has another shape than the first.
    pub(super) fn repeat(&mut self, other: &Self, place: Place<'_>) -> Result<(), Error> {
        if self.values == 0 {
            (self.dims, self.rank) = (other.dims.clone(), other.rank);
        }
        if self.dims != other.dims {
            return Err(self.wrong(format!("has another shape at `{place}` than in the first example")));
        }
        self.values += 1;
        self.data.extend_from_slice(&other.data);
        Ok(())
    }

    /// The tensor of all values: of one alone, or one behind the other in a dimension of their own (`rows`).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] for sizes that overflow.
    pub(super) fn finish(self, rows: bool) -> Result<NamedTensor, Error> {
        let rows = rows.then_some(self.values).into_iter();
        let shape = Shape::new(rows.chain(self.dims.iter().map(|dim| dim.unwrap_or(0))));
        self.shaped(shape)
    }

    /// The tensor of all values, each one feature: a single element, or a flat list (contract 03 section 7).
    ///
    /// # Errors
    ///
    /// As [`Column::finish`]; also for lists where the model takes one element each.
    pub(super) fn finish_features(self) -> Result<NamedTensor, Error> {
        let width = match self.dims.as_slice() {
            [] => 1,
            [width] => width.unwrap_or(0),
            _ => return Err(self.wrong("has nested lists, expected a value or a flat list in each example".to_owned())),
        };
        let shape = match self.spec.dims.len() {
            1 if width == 1 => Shape::new([self.values]),
            1 => return Err(self.wrong(format!("has {width} values in each example, expected 1"))),
            _ => Shape::new([self.values, width]),
        };
        self.shaped(shape)
    }

    fn shaped(self, shape: Shape) -> Result<NamedTensor, Error> {
        let name = Arc::clone(&self.spec.name);
        match Tensor::new(self.dtype, shape, self.data.into()) {
            Ok(tensor) => Ok(NamedTensor { name, tensor }),
            Err(error) => Err(Error::tensor(name, error.to_string())),
        }
    }

    fn value<E: Element>(
        &mut self,
        reader: &mut Reader<'_>,
        place: Place<'_>,
        settings: &Settings,
    ) -> Result<(), Error> {
        let null = settings.non_finite == NonFinite::AsNull;
        // How many values the arrays that are open have so far, the outermost first.
        let mut counts: SmallVec<[usize; 8]> = SmallVec::new();
        loop {
            if reader.peek() == Some(b'[') {
                if self.rank.is_some_and(|rank| rank == counts.len()) {
                    return Err(self.ragged("a list", place, &counts, "a single value"));
                }
                if counts.len() == settings.rank {
                    let most = settings.rank;
                    return Err(self.wrong(format!("is nested deeper than {most} lists, expected at most {most}")));
                }
                reader.enter()?;
                counts.push(0);
                if reader.peek() != Some(b']') {
                    continue;
                }
                self.rank.get_or_insert(counts.len());
            } else {
                let rank = *self.rank.get_or_insert(counts.len());
                if rank != counts.len() {
                    let found = reader.found();
                    return Err(self.ragged(&found, place, &counts, "a list"));
                }
                if let Err(error) = E::read(reader, &mut self.data, null) {
                    return Err(self.unread(reader, place, &counts, error.0));
                }
                let Some(count) = counts.last_mut() else { return Ok(()) };
                *count += 1;
                match reader.peek() {
                    Some(b',') => {
                        reader.advance(1);
                        continue;
                    }
                    Some(b']') => {}
                    _ => return Err(reader.unexpected("`,` or `]`")),
                }
            }
            // The reader stands before the bracket that ends this array; ends of others may follow.
            loop {
                self.close(&counts, place)?;
                reader.leave();
                counts.pop();
                let Some(count) = counts.last_mut() else { return Ok(()) };
                *count += 1;
                match reader.peek() {
                    Some(b',') => {
                        reader.advance(1);
                        break;
                    }
                    Some(b']') => {}
                    _ => return Err(reader.unexpected("`,` or `]`")),
                }
            }
        }
    }

    /// Learns, or checks, the length of the innermost array that is open.
    fn close(&mut self, counts: &[usize], place: Place<'_>) -> Result<(), Error> {
        // Known: an array ends behind an element or is empty, and either has said how deep elements lie.
        self.dims.resize(self.rank.unwrap_or_default(), None);
        let (depth, found) = (counts.len() - 1, counts[counts.len() - 1]);
        match &mut self.dims[depth] {
            Some(expected) if *expected == found => Ok(()),
            Some(expected) => {
                let expected = *expected;
                Err(self.ragged(&format!("a list of {found}"), place, &counts[..depth], &format!("{expected}")))
            }
            first @ None => {
                *first = Some(found);
                Ok(())
            }
        }
    }

    /// `counts`: the indices that lead to what was found.
    #[cold]
    fn ragged(&self, found: &str, place: Place<'_>, counts: &[usize], expected: &str) -> Error {
        let path = path(place, counts);
        self.wrong(format!("is ragged: found {found} at `{path}`, expected {expected} as in the first one"))
    }

    #[cold]
    fn unread(&self, reader: &mut Reader<'_>, place: Place<'_>, counts: &[usize], expected: &str) -> Error {
        let (path, found) = (path(place, counts), reader.found());
        self.wrong(format!("has {found} at `{path}`, expected {expected} for {}", self.dtype))
    }

    #[cold]
    fn wrong(&self, reason: String) -> Error {
        Error::tensor(self.name, reason)
    }
}

fn path(place: Place<'_>, counts: &[usize]) -> String {
    counts.iter().fold(place.to_string(), |path, index| format!("{path}[{index}]"))
}

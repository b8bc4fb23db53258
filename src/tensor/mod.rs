//! Tensors: a type, a shape and shared bytes, checked once on construction.
//!
//! Nothing here knows where the bytes came from or what a model wants of them.

pub mod batch;
mod dtype;
pub mod half;
mod marks;
pub mod pad;
mod shape;
mod spec;
pub mod view;

pub use dtype::DataType;
pub use marks::Marks;
pub use shape::Shape;
pub use spec::{AxisNames, Signature, TensorSpec};

use bytemuck::Pod;
use bytes::Bytes;
use smallvec::SmallVec;
use std::fmt;

/// Inputs or outputs in a signature's order. The one tensor of most models is held without an allocation.
pub type Tensors = SmallVec<[Tensor; 1]>;

/// A dense, row-major, little-endian tensor whose bytes are shared, not owned.
///
/// Invariant: `data.len() == shape.elements() * dtype.size()`; for [`DataType::Bytes`], `data` is
/// exactly `shape.elements()` strings, each with its 4-byte little-endian length before it.
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DataType,
    shape: Shape,
    data: Bytes,
}

/// Why bytes are not a tensor of the claimed type and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorError {
    /// The product of the dimensions and the element size does not fit into `usize`.
    Overflow,
    /// The bytes do not have the length that type and shape ask for.
    Length {
        /// Bytes that type and shape ask for.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// The strings do not have the number that the shape asks for, or are cut off.
    Strings {
        /// Strings that the shape asks for.
        expected: usize,
        /// Whole strings that there are.
        found: usize,
    },
    /// More bytes follow the last string.
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl fmt::Display for TensorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overflow => f.write_str("has a shape whose size overflows"),
            Self::Length { expected, found } => write!(f, "has {found} bytes, expected {expected}"),
            Self::Strings { expected, found } => write!(f, "has {found} whole strings, expected {expected}"),
            Self::Trailing { bytes } => write!(f, "has {bytes} bytes after its last string"),
        }
    }
}

impl std::error::Error for TensorError {}

impl Tensor {
    /// A tensor over `data`, which must have the length that `dtype` and `shape` ask for.
    ///
    /// # Errors
    ///
    /// [`TensorError`] names what was found and what was expected.
    pub fn new(dtype: DataType, shape: Shape, data: Bytes) -> Result<Self, TensorError> {
        let elements = shape.elements().ok_or(TensorError::Overflow)?;
        match dtype.size() {
            Some(size) => {
                let expected = elements.checked_mul(size).ok_or(TensorError::Overflow)?;
                if expected != data.len() {
                    return Err(TensorError::Length { expected, found: data.len() });
                }
            }
            None => check_strings(elements, &data)?,
        }
        Ok(Self { dtype, shape, data })
    }

    /// A tensor of numbers, whose memory is taken over.
    ///
    /// # Errors
    ///
    /// As [`Tensor::new`].
    pub fn of<T: Pod + Send>(dtype: DataType, shape: Shape, values: Vec<T>) -> Result<Self, TensorError> {
        Self::new(dtype, shape, view::bytes_of(values))
    }

    /// A tensor of strings, each of any bytes.
    ///
    /// # Errors
    ///
    /// [`TensorError::Strings`] if their number is not the one that `shape` asks for.
    pub fn strings<S: AsRef<[u8]>>(shape: Shape, strings: impl IntoIterator<Item = S>) -> Result<Self, TensorError> {
        let mut data = Vec::new();
        for string in strings {
            push_string(&mut data, string.as_ref())?;
        }
        Self::new(DataType::Bytes, shape, data.into())
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The raw bytes, as V2 sends them (contract 01 section 3).
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Keeps `companion` until the last slice of the bytes is gone. The bytes stay where they are.
    pub fn keep_with(&mut self, companion: impl Send + 'static) {
        self.data = view::kept_with(std::mem::take(&mut self.data), companion);
    }

    /// The first dimension, 1 for a scalar: how many rows this tensor brings to a batch.
    pub fn rows(&self) -> usize {
        self.shape.dims().first().copied().unwrap_or(1)
    }

    /// The elements, if the bytes happen to lie on `T`'s alignment.
    pub fn try_elements<T: Pod>(&self) -> Option<&[T]> {
        view::elements(&self.data)
    }

    /// The strings of a [`DataType::Bytes`] tensor; of any other type, nothing.
    pub fn iter_strings(&self) -> Strings<'_> {
        Strings { rest: if self.dtype == DataType::Bytes { &self.data } else { &[] } }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes may be a caller's private data and may be large: never print them.
        write!(f, "{}{} ({} bytes)", self.dtype, self.shape, self.data.len())
    }
}

/// Iterates over length-prefixed strings. Made by [`Tensor::iter_strings`].
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.rest = rest;
        Some(string)
    }
}

/// Appends one string with its length before it.
///
/// # Errors
///
/// [`TensorError::Overflow`] if it is longer than 4 GiB.
pub fn push_string(data: &mut Vec<u8>, string: &[u8]) -> Result<(), TensorError> {
    let length = u32::try_from(string.len()).map_err(|_| TensorError::Overflow)?;
    data.extend_from_slice(&length.to_le_bytes());
    data.extend_from_slice(string);
    Ok(())
}

fn check_strings(expected: usize, data: &[u8]) -> Result<(), TensorError> {
    let mut strings = Strings { rest: data };
    let found = strings.by_ref().take(expected).count();
    if found != expected {
        return Err(TensorError::Strings { expected, found });
    }
    match strings.rest.len() {
        0 => Ok(()),
        bytes => Err(TensorError::Trailing { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_times_type_must_be_the_bytes() {
        let shape = Shape::from([1, 2]);
        assert!(Tensor::new(DataType::Fp32, shape.clone(), Bytes::from_static(&[0; 8])).is_ok());
        assert_eq!(
            Tensor::new(DataType::Fp32, shape, Bytes::from_static(&[0; 7])),
            Err(TensorError::Length { expected: 8, found: 7 })
        );
        assert_eq!(Tensor::new(DataType::Fp64, Shape::from([usize::MAX]), Bytes::new()), Err(TensorError::Overflow));
    }

    #[test]
    fn strings_are_walked() {
        // Contract 01 section 3.2: `["hi\0", ""]`.
        let raw = Bytes::from_static(&[3, 0, 0, 0, b'h', b'i', 0, 0, 0, 0, 0]);
        let tensor = Tensor::new(DataType::Bytes, Shape::from([2]), raw.clone()).unwrap();
        assert_eq!(tensor.iter_strings().collect::<Vec<_>>(), [&b"hi\0"[..], b""]);
        assert_eq!(Tensor::strings(Shape::from([2]), ["hi\0", ""]).unwrap().data(), &raw);
        assert_eq!(
            Tensor::new(DataType::Bytes, Shape::from([1]), raw.clone()),
            Err(TensorError::Trailing { bytes: 4 })
        );
        assert_eq!(
            Tensor::new(DataType::Bytes, Shape::from([3]), raw.clone()),
            Err(TensorError::Strings { expected: 3, found: 2 })
        );
        assert_eq!(
            Tensor::new(DataType::Bytes, Shape::from([2]), raw.slice(..6)),
            Err(TensorError::Strings { expected: 2, found: 0 })
        );
    }
}

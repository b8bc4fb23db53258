//! Laying rows of several tensors together, and cutting them apart again.

use super::{DataType, Shape, Tensor};
use crate::error::Error;
use bytes::Bytes;
use std::ops::Range;

/// Lays `parts` together along their first axis, in order.
///
/// All must have one type and agree in every dimension but the first; the result's memory is
/// aligned for every element type.
///
/// # Errors
///
/// [`Error::Internal`] if they do not agree: the queue only batches compatible jobs, so this is a bug.
pub fn gather(parts: &[&Tensor]) -> Result<Tensor, Error> {
    let Some(first) = parts.first() else {
        return Err(Error::internal("a batch of no tensors"));
    };
    let tail = first.shape().dims().get(1..);
    let agree = parts.iter().all(|part| part.dtype() == first.dtype() && part.shape().dims().get(1..) == tail);
    if !agree {
        return Err(Error::internal("a batch of tensors that differ in type or inner shape"));
    }
    let rows = parts.iter().map(|part| part.rows()).sum();
    let length = parts.iter().map(|part| part.data().len()).sum::<usize>();
    // Words, so that the bytes lie on 8: any element can then be read in place.
    let mut words = vec![0_u64; length.div_ceil(8)];
    let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let mut at = 0;
    for part in parts {
        buffer[at..at + part.data().len()].copy_from_slice(part.data());
        at += part.data().len();
    }
    let data = super::view::bytes_of(words).slice(..length);
    Tensor::new(first.dtype(), first.shape().with_rows(rows), data)
        .map_err(|error| Error::Internal(std::sync::Arc::new(error)))
}

/// The rows `range` of `tensor`, sharing its memory.
///
/// # Errors
///
/// [`Error::Internal`] if the range is not within the tensor: the back end returned fewer rows than went in.
pub fn rows(tensor: &Tensor, range: Range<usize>) -> Result<Tensor, Error> {
    let total = tensor.rows();
    if range.start > range.end || range.end > total || tensor.shape().rank() == 0 {
        return Err(Error::internal(format!("rows {range:?} of an output of shape {}", tensor.shape())));
    }
    let shape = tensor.shape().with_rows(range.len());
    let data = match tensor.dtype() {
        DataType::Bytes => string_rows(tensor, &range),
        _ => {
            let row = tensor.data().len().checked_div(total).unwrap_or(0);
            tensor.data().slice(range.start * row..range.end * row)
        }
    };
    cut(tensor.dtype(), shape, data)
}

/// A tensor's first two axes as one, sharing its memory: rows of one length, one behind the other. What has fewer than two
/// axes stays as it is.
pub fn merge(tensor: &Tensor) -> Tensor {
    let shape = match tensor.shape().dims() {
        [rows, length, inner @ ..] => Shape::new(std::iter::once(rows * length).chain(inner.iter().copied())),
        dims => Shape::new(dims.iter().copied()),
    };
    Tensor { dtype: tensor.dtype, shape, data: tensor.data.clone() }
}

/// A tensor's first axis as two, `rows` and `length`, sharing its memory: undoes [`merge`].
///
/// # Errors
///
/// [`Error::Internal`] if the axis is not as long as both together.
pub fn split(tensor: &Tensor, rows: usize, length: usize) -> Result<Tensor, Error> {
    match tensor.shape().dims() {
        [all, inner @ ..] if rows.checked_mul(length) == Some(*all) => {
            let shape = Shape::new([rows, length].into_iter().chain(inner.iter().copied()));
            Ok(Tensor { dtype: tensor.dtype, shape, data: tensor.data.clone() })
        }
        _ => Err(Error::internal(format!("{rows} rows of {length} of a tensor of shape {}", tensor.shape()))),
    }
}

fn cut(dtype: DataType, shape: Shape, data: Bytes) -> Result<Tensor, Error> {
    Tensor::new(dtype, shape, data).map_err(|error| Error::Internal(std::sync::Arc::new(error)))
}

/// Strings differ in length, so the borders are found by walking.
fn string_rows(tensor: &Tensor, range: &Range<usize>) -> Bytes {
    let per_row = tensor.shape().dims()[1..].iter().product::<usize>();
    let mut lengths = tensor.iter_strings().map(|string| string.len() + 4);
    let start = lengths.by_ref().take(range.start * per_row).sum::<usize>();
    let length = lengths.take(range.len() * per_row).sum::<usize>();
    tensor.data().slice(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gathered_is_cut_apart_again() {
        let a = Tensor::of(DataType::Fp32, [1, 2].into(), vec![1.0_f32, 2.0]).unwrap();
        let b = Tensor::of(DataType::Fp32, [2, 2].into(), vec![3.0_f32, 4.0, 5.0, 6.0]).unwrap();
        let all = gather(&[&a, &b]).unwrap();
        assert_eq!(all.shape().dims(), [3, 2]);
        assert_eq!(rows(&all, 0..1).unwrap(), a);
        assert_eq!(rows(&all, 1..3).unwrap(), b);
        assert!(rows(&all, 2..4).is_err());
    }

    #[test]
    fn strings_are_cut_at_their_own_borders() {
        let a = Tensor::strings([1, 2].into(), ["a", "bcd"]).unwrap();
        let b = Tensor::strings([1, 2].into(), ["", "e"]).unwrap();
        let all = gather(&[&a, &b]).unwrap();
        assert_eq!(rows(&all, 0..1).unwrap(), a);
        assert_eq!(rows(&all, 1..2).unwrap(), b);
    }

    #[test]
    fn rows_are_merged_and_split_without_a_copy() {
        let rows = Tensor::of(DataType::Fp32, [2, 3, 1].into(), vec![0.0_f32; 6]).unwrap();
        let flat = merge(&rows);
        assert_eq!((flat.shape().dims(), flat.data().as_ptr()), (&[6, 1][..], rows.data().as_ptr()));
        assert_eq!(split(&flat, 2, 3).unwrap(), rows);
        assert_eq!(split(&flat, 3, 2).unwrap().shape().dims(), [3, 2, 1]);
        assert!(split(&flat, 2, 2).is_err() && split(&flat, usize::MAX, 2).is_err());
        let scalar = Tensor::of(DataType::Fp32, Shape::default(), vec![0.0_f32]).unwrap();
        assert!(split(&scalar, 1, 1).is_err());
        assert_eq!(merge(&scalar), scalar);
    }

    #[test]
    fn tensors_that_differ_are_not_laid_together() {
        let a = Tensor::of(DataType::Fp32, [1, 2].into(), vec![1.0_f32, 2.0]).unwrap();
        let b = Tensor::of(DataType::Int32, [1, 2].into(), vec![1_i32, 2]).unwrap();
        let c = Tensor::of(DataType::Fp32, [1, 1].into(), vec![1.0_f32]).unwrap();
        assert!(gather(&[&a, &b]).is_err());
        assert!(gather(&[&a, &c]).is_err());
        assert!(gather(&[]).is_err());
    }
}

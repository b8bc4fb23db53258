//! A tensor in the corner of a larger one: filled up where it is shorter, and cut out again.
//!
//! Knows no axes by name and no model; which axes may be filled, and with what, its callers say.

use super::{DataType, Shape, Strings, Tensor, push_string, view};
use crate::error::Error;
use std::{ops::Range, sync::Arc};

/// Lays `parts` together along their first axis, in order, in a tensor of shape `into`. What a part lacks along an inner
/// axis is filled with `element`, which is one element as tensors hold it (a string has no length before it). Rows that
/// are missing at the end repeat the last one, so that they are values which a model takes; without any row, they are
/// `element` too.
///
/// Each byte is written once; the result's memory is aligned for every element type.
///
/// # Errors
///
/// [`Error::Internal`] if a part is of another type or rank, or does not fit into `into`: callers have made sure, so this
/// is a bug.
pub fn lay(parts: &[&Tensor], into: &Shape, element: &[u8]) -> Result<Tensor, Error> {
    let Some(first) = parts.first() else { return Err(Error::internal("a batch of no tensors")) };
    let (dtype, dims) = (first.dtype(), into.dims());
    let fits = |part: &&Tensor| {
        let inner = part.shape().dims().get(1..).unwrap_or_default();
        let room = dims.get(1..).unwrap_or_default();
        part.dtype() == dtype && inner.len() == room.len() && inner.iter().zip(room).all(|(inner, room)| inner <= room)
    };
    let rows: usize = parts.iter().map(|part| part.rows()).sum();
    if dims.is_empty() || !parts.iter().all(fits) || rows > dims[0] {
        return Err(Error::internal(format!("a batch of tensors that do not fit into {into}")));
    }
    let wrong = |error| Error::Internal(Arc::new(error));
    let elements = into.elements().ok_or_else(|| Error::internal(format!("a batch of shape {into}")))?;
    let Some(size) = dtype.size() else {
        return Tensor::new(dtype, into.clone(), lay_strings(parts, dims, element)?.into()).map_err(wrong);
    };
    if element.len() != size {
        return Err(Error::internal(format!("an element of {dtype} of {} bytes", element.len())));
    }
    let length = elements.checked_mul(size).ok_or_else(|| Error::internal(format!("a batch of shape {into}")))?;
    // Words, so that the bytes lie on 8: any element can then be read in place.
    let mut words = vec![0_u64; length.div_ceil(8)];
    let buffer: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut words)[..length];
    let row = length.checked_div(dims[0]).unwrap_or(0);
    let fill = element.iter().any(|byte| *byte != 0).then_some(element);
    let mut at = 0;
    for part in parts {
        let to = &mut buffer[at..at + part.rows() * row];
        place(to, &dims[1..], part.data(), part.shape().dims(), size, fill);
        at += to.len();
    }
    match at {
        0 => fill_up(buffer, fill),
        at => {
            for begin in (at..length).step_by(row.max(1)) {
                buffer.copy_within(at - row..at, begin);
            }
        }
    }
    let data = view::bytes_of(words).slice(..length);
    Tensor::new(dtype, into.clone(), data).map_err(wrong)
}

/// A tensor that is `element` everywhere; a string has no length before it.
///
/// # Errors
///
/// [`Error::Internal`] if the element is not of that type, or the shape overflows.
pub fn filled(dtype: DataType, shape: Shape, element: &[u8]) -> Result<Tensor, Error> {
    let elements = shape.elements().ok_or_else(|| Error::internal(format!("a tensor of shape {shape}")))?;
    let mut one = Vec::new();
    match dtype.size() {
        Some(_) => one.extend_from_slice(element),
        None => push_string(&mut one, element).map_err(|error| Error::Internal(Arc::new(error)))?,
    }
    let data = view::aligned_copy(&one.repeat(elements));
    Tensor::new(dtype, shape, data).map_err(|error| Error::Internal(Arc::new(error)))
}

/// The first `dims` of each inner axis of the rows `range` of `tensor`: its corner, copied.
///
/// # Errors
///
/// [`Error::Internal`] if the tensor is smaller than that.
pub fn corner(tensor: &Tensor, range: Range<usize>, inner: &[usize]) -> Result<Tensor, Error> {
    let dims = tensor.shape().dims();
    let fits = dims.len() == inner.len() + 1 && inner.iter().zip(&dims[1..]).all(|(inner, dim)| inner <= dim);
    if !fits || range.start > range.end || range.end > dims[0] {
        let shape = tensor.shape();
        return Err(Error::internal(format!("rows {range:?} and {inner:?} of an output of shape {shape}")));
    }
    let shape = Shape::new(std::iter::once(range.len()).chain(inner.iter().copied()));
    let rows = super::batch::rows(tensor, range)?;
    let mut out = Vec::new();
    match tensor.dtype().size() {
        Some(size) => take(&mut out, rows.data(), rows.shape().dims(), shape.dims(), size),
        None => take_strings(&mut out, &mut rows.iter_strings(), rows.shape().dims(), shape.dims())?,
    }
    Tensor::new(tensor.dtype(), shape, out.into()).map_err(|error| Error::Internal(Arc::new(error)))
}

/// Copies `from`, of shape `dims`, into `to`, whose inner axes are `inner` and which has as many rows.
fn place(to: &mut [u8], inner: &[usize], from: &[u8], dims: &[usize], size: usize, fill: Option<&[u8]>) {
    if dims[1..] == *inner {
        return to.copy_from_slice(from);
    }
    let step = inner.iter().product::<usize>() * size;
    let stride = dims[1..].iter().product::<usize>() * size;
    for row in 0..dims[0] {
        let to = &mut to[row * step..(row + 1) * step];
        let there = dims[1] * inner[1..].iter().product::<usize>() * size;
        place(&mut to[..there], &inner[1..], &from[row * stride..(row + 1) * stride], &dims[1..], size, fill);
        fill_up(&mut to[there..], fill);
    }
}

/// Nothing is to be done for zeros, which a new buffer has.
fn fill_up(to: &mut [u8], fill: Option<&[u8]>) {
    if let Some(element) = fill {
        to.chunks_exact_mut(element.len()).for_each(|place| place.copy_from_slice(element));
    }
}

fn take(out: &mut Vec<u8>, from: &[u8], dims: &[usize], wanted: &[usize], size: usize) {
    if dims[1..] == wanted[1..] {
        let row = dims[1..].iter().product::<usize>() * size;
        return out.extend_from_slice(&from[..wanted[0] * row]);
    }
    let stride = dims[1..].iter().product::<usize>() * size;
    for row in 0..wanted[0] {
        take(out, &from[row * stride..(row + 1) * stride], &dims[1..], &wanted[1..], size);
    }
}

fn lay_strings(parts: &[&Tensor], dims: &[usize], element: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let (mut rows, mut last) = (0, 0);
    for part in parts {
        let mut strings = part.iter_strings();
        for _ in 0..part.rows() {
            (rows, last) = (rows + 1, out.len());
            place_strings(&mut out, &dims[1..], &mut strings, &part.shape().dims()[1..], element)?;
        }
    }
    let row = out[last..].to_vec();
    for _ in rows..dims[0] {
        match rows {
            0 => place_strings(&mut out, &dims[1..], &mut Strings { rest: &[] }, &vec![0; dims.len() - 1], element)?,
            _ => out.extend_from_slice(&row),
        }
    }
    Ok(out)
}

/// Appends one block of shape `into`: the next strings in the corner of shape `dims`, and `element` everywhere else.
fn place_strings(
    out: &mut Vec<u8>,
    into: &[usize],
    strings: &mut Strings<'_>,
    dims: &[usize],
    element: &[u8],
) -> Result<(), Error> {
    let too_long = |error| Error::Internal(Arc::new(error));
    let (Some((room, into)), Some((length, dims))) = (into.split_first(), dims.split_first()) else {
        return push_string(out, strings.next().unwrap_or(element)).map_err(too_long);
    };
    for _ in 0..*length {
        place_strings(out, into, strings, dims, element)?;
    }
    for _ in 0..(room - length) * into.iter().product::<usize>() {
        push_string(out, element).map_err(too_long)?;
    }
    Ok(())
}

fn take_strings(out: &mut Vec<u8>, strings: &mut Strings<'_>, dims: &[usize], wanted: &[usize]) -> Result<(), Error> {
    let (Some((length, dims)), Some((take, wanted))) = (dims.split_first(), wanted.split_first()) else {
        let string = strings.next().unwrap_or_default();
        return push_string(out, string).map_err(|error| Error::Internal(Arc::new(error)));
    };
    for _ in 0..*take {
        take_strings(out, strings, dims, wanted)?;
    }
    let skipped = (length - take) * dims.iter().product::<usize>();
    strings.by_ref().take(skipped).for_each(drop);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(dims: &[usize], from: i32) -> Tensor {
        let count = dims.iter().product::<usize>() as i32;
        Tensor::of(DataType::Int32, Shape::new(dims.iter().copied()), (from..from + count).collect()).unwrap()
    }

    fn values(tensor: &Tensor) -> &[i32] {
        tensor.try_elements().unwrap()
    }

    #[test]
    fn what_is_shorter_is_filled_up_and_rows_that_are_missing_repeat_the_last() {
        let (short, long) = (numbers(&[1, 2], 1), numbers(&[2, 3], 10));
        let laid = lay(&[&short, &long], &[5, 4].into(), &(-1_i32).to_le_bytes()).unwrap();
        assert_eq!(values(&laid), [1, 2, -1, -1, 10, 11, 12, -1, 13, 14, 15, -1, 13, 14, 15, -1, 13, 14, 15, -1]);
        let none = lay(&[&numbers(&[0, 2], 0)], &[2, 2].into(), &7_i32.to_le_bytes()).unwrap();
        assert_eq!(values(&none), [7; 4]);
    }

    #[test]
    fn strings_are_filled_up_too() {
        let short = Tensor::strings([1, 1, 1].into(), ["a"]).unwrap();
        let long = Tensor::strings([1, 2, 2].into(), ["b", "cc", "", "d"]).unwrap();
        let laid = lay(&[&short, &long], &[3, 2, 2].into(), b"-").unwrap();
        let all: Vec<_> = laid.iter_strings().collect();
        let expected: [&[u8]; 12] = [b"a", b"-", b"-", b"-", b"b", b"cc", b"", b"d", b"b", b"cc", b"", b"d"];
        assert_eq!(all, expected);
        assert_eq!(corner(&laid, 0..1, &[1, 1]).unwrap(), short);
        assert_eq!(corner(&laid, 1..2, &[2, 2]).unwrap(), long);
    }

    #[test]
    fn what_does_not_fit_is_not_laid() {
        let (a, other) = (numbers(&[1, 3], 0), Tensor::strings([1, 1].into(), ["a"]).unwrap());
        for (parts, into) in [(vec![&a], [1, 2]), (vec![&a, &a], [1, 3]), (vec![&a, &other], [2, 3]), (vec![], [0, 0])]
        {
            assert!(lay(&parts, &into.into(), &[0; 4]).is_err(), "{parts:?} {into:?}");
        }
        assert!(lay(&[&a], &[1, 3].into(), &[0; 8]).is_err(), "an element of another type");
        assert!(corner(&a, 0..2, &[3]).is_err() && corner(&a, 0..1, &[4]).is_err());
    }

    proptest! {
        #[test]
        fn every_part_is_cut_out_as_it_was(
            shapes in prop::collection::vec((0_usize..3, 0_usize..4, 0_usize..4), 1..5),
            more in (0_usize..3, 0_usize..3, 0_usize..3),
            strings: bool,
        ) {
            let parts: Vec<_> = shapes.iter().enumerate().map(|(at, (rows, a, b))| {
                let count = rows * a * b;
                let shape = [*rows, *a, *b].into();
                match strings {
                    true => Tensor::strings(shape, (0..count).map(|n| "x".repeat((at + n) % 5))).unwrap(),
                    false => numbers(&[*rows, *a, *b], 100 * at as i32),
                }
            }).collect();
            let most = |axis: usize| parts.iter().map(|part| part.shape().dims()[axis]).max().unwrap_or(0);
            let rows: usize = parts.iter().map(Tensor::rows).sum();
            let into = [rows + more.0, most(1) + more.1, most(2) + more.2].into();
            let element: &[u8] = if strings { b"pad" } else { &[1, 2, 3, 4] };
            let laid = lay(&parts.iter().collect::<Vec<_>>(), &into, element).unwrap();
            let mut from = 0;
            for part in &parts {
                let dims = part.shape().dims();
                prop_assert_eq!(&corner(&laid, from..from + dims[0], &dims[1..]).unwrap(), part);
                from += dims[0];
            }
        }
    }
}

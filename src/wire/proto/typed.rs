//! Tensors in the fields of `InferTensorContents` (contract 01 section 4.2).

use super::inference::InferTensorContents;
use crate::tensor::{DataType, Shape, Tensor, TensorError};
use bytemuck::{Pod, allocation::pod_collect_to_vec};
use bytes::Bytes;

/// Builds a tensor of typed contents, or says what is wrong with them (contract 01 section 4.2, rules 4 to 7).
pub(super) fn tensor(dtype: DataType, shape: Shape, contents: InferTensorContents) -> Result<Tensor, String> {
    let overflow = || TensorError::Overflow.to_string();
    let expected = shape.elements().ok_or_else(overflow)?;
    // Half types have no field of their own; any that is filled is the wrong one.
    let field = field_of(dtype).unwrap_or("raw_input_contents");
    let filled = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    if let Some((found, _)) = filled.iter().find(|(name, length)| *length > 0 && *name != field) {
        return Err(format!("has `{found}`, expected `{field}` for {dtype}"));
    }
    let found = filled.iter().map(|(_, length)| length).sum::<usize>();
    if found == 0 && expected > 0 {
        return Err(format!("has no data, expected `{field}`"));
    }
    if found != expected {
        return Err(format!("has {found} elements in `{field}`, expected {expected} for shape {shape}"));
    }
    let tensor = match dtype {
        DataType::Bool => Tensor::new(dtype, shape, contents.bool_contents.into_iter().map(u8::from).collect()),
        DataType::Int8 => Tensor::of(dtype, shape, narrow::<_, i8>(&contents.int_contents, dtype)?),
        DataType::Int16 => Tensor::of(dtype, shape, narrow::<_, i16>(&contents.int_contents, dtype)?),
        DataType::Int32 => Tensor::of(dtype, shape, contents.int_contents),
        DataType::Int64 => Tensor::of(dtype, shape, contents.int64_contents),
        DataType::Uint8 => Tensor::of(dtype, shape, narrow::<_, u8>(&contents.uint_contents, dtype)?),
        DataType::Uint16 => Tensor::of(dtype, shape, narrow::<_, u16>(&contents.uint_contents, dtype)?),
        DataType::Uint32 => Tensor::of(dtype, shape, contents.uint_contents),
        DataType::Uint64 => Tensor::of(dtype, shape, contents.uint64_contents),
        DataType::Fp32 => Tensor::of(dtype, shape, contents.fp32_contents),
        DataType::Fp64 => Tensor::of(dtype, shape, contents.fp64_contents),
        DataType::Bytes => Tensor::strings(shape, contents.bytes_contents),
        // Only without elements: everything else is refused above.
        DataType::Fp16 | DataType::Bf16 => Tensor::new(dtype, shape, Bytes::new()),
    };
    tensor.map_err(|error| error.to_string())
}

const fn field_of(dtype: DataType) -> Option<&'static str> {
    match dtype {
        DataType::Bool => Some("bool_contents"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Some("int_contents"),
        DataType::Int64 => Some("int64_contents"),
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Some("uint_contents"),
        DataType::Uint64 => Some("uint64_contents"),
        DataType::Fp32 => Some("fp32_contents"),
        DataType::Fp64 => Some("fp64_contents"),
        DataType::Bytes => Some("bytes_contents"),
        DataType::Fp16 | DataType::Bf16 => None,
    }
}

fn narrow<W: Copy + std::fmt::Display, T: TryFrom<W>>(wide: &[W], dtype: DataType) -> Result<Vec<T>, String> {
    let narrow = |(index, value): (usize, &W)| {
        T::try_from(*value).map_err(|_| format!("has `{value}` at index {index}, beyond the range of {dtype}"))
    };
    wide.iter().enumerate().map(narrow).collect()
}

/// Whether tensors of this type have a field.
pub(super) const fn has_form(dtype: DataType) -> bool {
    field_of(dtype).is_some()
}

/// The elements of `tensor`, widened where its field is; empty for a type that has none.
pub(super) fn contents(tensor: &Tensor) -> InferTensorContents {
    let data = &tensor.data()[..];
    let mut contents = InferTensorContents::default();
    match tensor.dtype() {
        DataType::Bool => contents.bool_contents = data.iter().map(|byte| *byte != 0).collect(),
        DataType::Int8 => contents.int_contents = widened::<i8, _>(data),
        DataType::Int16 => contents.int_contents = widened::<i16, _>(data),
        DataType::Int32 => contents.int_contents = pod_collect_to_vec(data),
        DataType::Int64 => contents.int64_contents = pod_collect_to_vec(data),
        DataType::Uint8 => contents.uint_contents = widened::<u8, _>(data),
        DataType::Uint16 => contents.uint_contents = widened::<u16, _>(data),
        DataType::Uint32 => contents.uint_contents = pod_collect_to_vec(data),
        DataType::Uint64 => contents.uint64_contents = pod_collect_to_vec(data),
        DataType::Fp32 => contents.fp32_contents = pod_collect_to_vec(data),
        DataType::Fp64 => contents.fp64_contents = pod_collect_to_vec(data),
        DataType::Bytes => {
            contents.bytes_contents = tensor.iter_strings().map(|string| tensor.data().slice_ref(string)).collect();
        }
        DataType::Fp16 | DataType::Bf16 => {}
    }
    contents
}

fn widened<T: Pod, W: From<T>>(data: &[u8]) -> Vec<W> {
    pod_collect_to_vec::<u8, T>(data).into_iter().map(W::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_becomes_typed_becomes_the_same_tensor_again(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for dtype in DataType::ALL {
                let made = match dtype.size() {
                    Some(size) => {
                        let bytes = bytes.iter().map(|byte| if dtype == DataType::Bool { byte & 1 } else { *byte });
                        let count = bytes.len() / size;
                        Tensor::new(dtype, Shape::new([count]), bytes.take(count * size).collect())
                    }
                    None => Tensor::strings(Shape::new([bytes.len().div_ceil(7)]), bytes.chunks(7)),
                };
                let made = made.unwrap();
                if has_form(dtype) {
                    let again = tensor(dtype, made.shape().clone(), contents(&made)).unwrap();
                    prop_assert_eq!((again.dtype(), again.data()), (dtype, made.data()));
                } else {
                    prop_assert_eq!(contents(&made), InferTensorContents::default());
                }
            }
        }
    }
}

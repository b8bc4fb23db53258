//! `TensorProto` and back: raw bytes are shared, lists are converted.
//!
//! The rules for lists are TensorFlow's own: one that is shorter than the shape goes on with its last value, and an empty
//! one is all zeros. So a few bytes may ask for a large tensor; [`weight()`] says how large before any of it is made.

use super::pb::{self, tensor_shape_proto::Dim};
use crate::{
    call::NamedTensor,
    error::Error,
    tensor::{DataType, Shape, Tensor, TensorError, push_string},
    wire::{Settings, shared, weight},
};
use bytemuck::Pod;
use bytes::Bytes;
use std::{collections::HashMap, fmt::Display, sync::Arc};

/// How the numbers of an answer are written. Strings have one form only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// As `tensor_content`.
    #[default]
    Raw,
    /// As the list that is for their type.
    Typed,
}

/// How an answer to `inputs` is written: as they were, so that whoever reads lists alone gets lists.
///
/// TensorFlow's own functions read both; clients without TensorFlow often know the one that they send.
pub fn contents(inputs: &HashMap<String, pb::TensorProto>) -> Contents {
    match inputs.values().all(|tensor| tensor.tensor_content.is_empty()) {
        true => Contents::Typed,
        false => Contents::Raw,
    }
}

/// The bytes that have to be made of `inputs`, beyond those that came; `usize::MAX` if they cannot be counted.
pub fn weight(inputs: &HashMap<String, pb::TensorProto>) -> usize {
    inputs.values().map(tensor_weight).fold(0, usize::saturating_add)
}

fn tensor_weight(tensor: &pb::TensorProto) -> usize {
    if !tensor.tensor_content.is_empty() {
        return 0;
    }
    let dims = tensor.tensor_shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    // What is no size at all is refused by name, later, before anything is made of it.
    if dims.iter().any(|dim| dim.size < 0) {
        return 0;
    }
    let product = |product: usize, dim: &Dim| product.checked_mul(usize::try_from(dim.size).ok()?);
    let Some(elements) = dims.iter().try_fold(1, product) else { return usize::MAX };
    let strings = &tensor.string_val;
    let size = match parse(tensor.dtype).ok().and_then(DataType::size) {
        Some(size) => return elements.saturating_mul(size),
        None => strings.iter().map(|string| string.len() + 4).fold(0, usize::saturating_add),
    };
    let more = elements.saturating_sub(strings.len());
    size.saturating_add(more.saturating_mul(4 + strings.last().map_or(0, Bytes::len)))
}

/// The work of converting raw tensors, bytes: those of a type that is looked through. Others are as they came.
pub fn raw_work(inputs: &HashMap<String, pb::TensorProto>) -> usize {
    let walked = inputs.values().filter(|tensor| tensor.dtype == i32::from(pb::DataType::DtBool));
    walked.map(|tensor| tensor.tensor_content.len()).sum()
}

/// Converts the inputs of a request.
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`], naming what was found and what was expected.
pub fn decode_inputs(inputs: HashMap<String, pb::TensorProto>, settings: &Settings) -> Result<Vec<NamedTensor>, Error> {
    if inputs.len() > settings.tensors {
        return Err(weight::too_many_tensors("inputs", settings));
    }
    inputs.into_iter().map(|(name, tensor)| decode(name.into(), tensor, settings)).collect()
}

fn decode(name: Arc<str>, mut tensor: pb::TensorProto, settings: &Settings) -> Result<NamedTensor, Error> {
    let wrong = |reason: String| Error::tensor(Arc::clone(&name), reason);
    let dtype = parse(tensor.dtype).map_err(wrong)?;
    let shape = shape(&tensor.tensor_shape.take().unwrap_or_default(), settings).map_err(wrong)?;
    let raw = std::mem::take(&mut tensor.tensor_content);
    if raw.is_empty() {
        let tensor = listed(dtype, shape, tensor).map_err(wrong)?;
        return Ok(NamedTensor { name, tensor });
    }
    if let Some((field, _)) = lists(&tensor).into_iter().find(|(_, length)| *length > 0) {
        return Err(wrong(format!("has both `tensor_content` and `{field}`, expected one")));
    }
    if dtype == DataType::Bytes {
        return Err(wrong("has `tensor_content`, expected `string_val` for DT_STRING".to_owned()));
    }
    shared(name, dtype, shape, raw)
}

fn shape(shape: &pb::TensorShapeProto, settings: &Settings) -> Result<Shape, String> {
    if shape.unknown_rank {
        return Err("has a shape of unknown rank, expected its dimensions".to_owned());
    }
    if shape.dim.len() > settings.rank {
        return Err(weight::too_many_dimensions(shape.dim.len(), settings));
    }
    if let Some(dim) = shape.dim.iter().find(|dim| usize::try_from(dim.size).is_err()) {
        return Err(format!("has a dimension of `{}`, expected an integer from 0 on", dim.size));
    }
    Ok(Shape::new(shape.dim.iter().map(|dim| usize::try_from(dim.size).unwrap_or_default())))
}

/// The fields with lists, and how many values are in each.
fn lists(tensor: &pb::TensorProto) -> [(&'static str, usize); 9] {
    [
        ("half_val", tensor.half_val.len()),
        ("float_val", tensor.float_val.len()),
        ("double_val", tensor.double_val.len()),
        ("int_val", tensor.int_val.len()),
        ("string_val", tensor.string_val.len()),
        ("int64_val", tensor.int64_val.len()),
        ("bool_val", tensor.bool_val.len()),
        ("uint32_val", tensor.uint32_val.len()),
        ("uint64_val", tensor.uint64_val.len()),
    ]
}

const fn list_of(dtype: DataType) -> &'static str {
    match dtype {
        DataType::Fp16 | DataType::Bf16 => "half_val",
        DataType::Fp32 => "float_val",
        DataType::Fp64 => "double_val",
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Uint8 | DataType::Uint16 => "int_val",
        DataType::Int64 => "int64_val",
        DataType::Uint32 => "uint32_val",
        DataType::Uint64 => "uint64_val",
        DataType::Bool => "bool_val",
        DataType::Bytes => "string_val",
    }
}

fn listed(dtype: DataType, shape: Shape, tensor: pb::TensorProto) -> Result<Tensor, String> {
    let field = list_of(dtype);
    if let Some((found, _)) = lists(&tensor).into_iter().find(|(name, length)| *length > 0 && *name != field) {
        return Err(format!(
            "has `{found}`, expected `{field}` or `tensor_content` for {}",
            dtype_of(Some(dtype)).as_str_name()
        ));
    }
    let Some(elements) = shape.elements() else { return Err(TensorError::Overflow.to_string()) };
    let found = lists(&tensor).iter().map(|(_, length)| length).sum::<usize>();
    if found > elements {
        return Err(format!("has {found} values in `{field}`, expected at most {elements} for shape {shape}"));
    }
    macro_rules! numbers {
        ($list:expr, $type:ty) => {
            Tensor::of(dtype, shape, filled::<_, $type>($list, elements, dtype, |value| <$type>::try_from(value).ok())?)
        };
    }
    let bits = |bits: i32| u16::try_from(bits).ok();
    let tensor = match dtype {
        DataType::Fp16 | DataType::Bf16 => Tensor::of(dtype, shape, filled(tensor.half_val, elements, dtype, bits)?),
        DataType::Fp32 => Tensor::of(dtype, shape, filled(tensor.float_val, elements, dtype, Some)?),
        DataType::Fp64 => Tensor::of(dtype, shape, filled(tensor.double_val, elements, dtype, Some)?),
        DataType::Int8 => numbers!(tensor.int_val, i8),
        DataType::Int16 => numbers!(tensor.int_val, i16),
        DataType::Int32 => numbers!(tensor.int_val, i32),
        DataType::Uint8 => numbers!(tensor.int_val, u8),
        DataType::Uint16 => numbers!(tensor.int_val, u16),
        DataType::Int64 => numbers!(tensor.int64_val, i64),
        DataType::Uint32 => numbers!(tensor.uint32_val, u32),
        DataType::Uint64 => numbers!(tensor.uint64_val, u64),
        DataType::Bool => {
            let one = |flag: bool| Some(u8::from(flag));
            Tensor::of(dtype, shape, filled(tensor.bool_val, elements, dtype, one)?)
        }
        DataType::Bytes => strings(&tensor.string_val, elements).and_then(|data| Tensor::new(dtype, shape, data)),
    };
    tensor.map_err(|error| error.to_string())
}

/// `elements` values: those of the list, then its last one, then, if it has none, zeros.
fn filled<W: Copy + Display, T: Pod>(
    list: Vec<W>,
    elements: usize,
    dtype: DataType,
    convert: impl Fn(W) -> Option<T>,
) -> Result<Vec<T>, String> {
    let mut values = Vec::with_capacity(elements);
    for (index, value) in list.into_iter().enumerate() {
        let converted = convert(value);
        values.push(converted.ok_or_else(|| format!("has `{value}` at index {index}, beyond the range of {dtype}"))?);
    }
    let last = values.last().copied().unwrap_or_else(T::zeroed);
    values.resize(elements, last);
    Ok(values)
}

fn strings(list: &[Bytes], elements: usize) -> Result<Bytes, TensorError> {
    let mut data = Vec::new();
    for string in list {
        push_string(&mut data, string)?;
    }
    let last = list.last().map_or(&[][..], |last| last);
    for _ in list.len()..elements {
        push_string(&mut data, last)?;
    }
    Ok(data.into())
}

/// Our name of a type.
fn parse(dtype: i32) -> Result<DataType, String> {
    use pb::DataType as Pb;
    Ok(match Pb::try_from(dtype) {
        Ok(Pb::DtBool) => DataType::Bool,
        Ok(Pb::DtUint8) => DataType::Uint8,
        Ok(Pb::DtUint16) => DataType::Uint16,
        Ok(Pb::DtUint32) => DataType::Uint32,
        Ok(Pb::DtUint64) => DataType::Uint64,
        Ok(Pb::DtInt8) => DataType::Int8,
        Ok(Pb::DtInt16) => DataType::Int16,
        Ok(Pb::DtInt32) => DataType::Int32,
        Ok(Pb::DtInt64) => DataType::Int64,
        Ok(Pb::DtHalf) => DataType::Fp16,
        Ok(Pb::DtBfloat16) => DataType::Bf16,
        Ok(Pb::DtFloat) => DataType::Fp32,
        Ok(Pb::DtDouble) => DataType::Fp64,
        Ok(Pb::DtString) => DataType::Bytes,
        Ok(other) => return Err(format!("has dtype {}, which no model here takes", other.as_str_name())),
        Err(_) => return Err(format!("has dtype {dtype}, which no model here takes")),
    })
}

/// TensorFlow's name of a type.
pub(super) const fn dtype_of(dtype: Option<DataType>) -> pb::DataType {
    match dtype {
        None => pb::DataType::DtInvalid,
        Some(DataType::Bool) => pb::DataType::DtBool,
        Some(DataType::Uint8) => pb::DataType::DtUint8,
        Some(DataType::Uint16) => pb::DataType::DtUint16,
        Some(DataType::Uint32) => pb::DataType::DtUint32,
        Some(DataType::Uint64) => pb::DataType::DtUint64,
        Some(DataType::Int8) => pb::DataType::DtInt8,
        Some(DataType::Int16) => pb::DataType::DtInt16,
        Some(DataType::Int32) => pb::DataType::DtInt32,
        Some(DataType::Int64) => pb::DataType::DtInt64,
        Some(DataType::Fp16) => pb::DataType::DtHalf,
        Some(DataType::Bf16) => pb::DataType::DtBfloat16,
        Some(DataType::Fp32) => pb::DataType::DtFloat,
        Some(DataType::Fp64) => pb::DataType::DtDouble,
        Some(DataType::Bytes) => pb::DataType::DtString,
    }
}

/// Converts an output.
pub(super) fn encode(tensor: &Tensor, contents: Contents) -> pb::TensorProto {
    let size = |dim: &usize| i64::try_from(*dim).unwrap_or(i64::MAX);
    let dim =
        tensor.shape().dims().iter().map(|dim| pb::tensor_shape_proto::Dim { size: size(dim), name: String::new() });
    let mut encoded = pb::TensorProto {
        dtype: dtype_of(Some(tensor.dtype())).into(),
        tensor_shape: Some(pb::TensorShapeProto { dim: dim.collect(), unknown_rank: false }),
        ..pb::TensorProto::default()
    };
    if tensor.dtype() == DataType::Bytes {
        encoded.string_val = tensor.iter_strings().map(|string| tensor.data().slice_ref(string)).collect();
        return encoded;
    }
    if contents == Contents::Raw {
        encoded.tensor_content = tensor.data().clone();
        return encoded;
    }
    macro_rules! list {
        ($field:ident, $type:ty) => {
            encoded.$field =
                tensor.data().as_chunks().0.iter().map(|bytes| <$type>::from_le_bytes(*bytes).into()).collect()
        };
    }
    match tensor.dtype() {
        DataType::Fp16 | DataType::Bf16 => list!(half_val, u16),
        DataType::Fp32 => list!(float_val, f32),
        DataType::Fp64 => list!(double_val, f64),
        DataType::Int8 => list!(int_val, i8),
        DataType::Int16 => list!(int_val, i16),
        DataType::Int32 => list!(int_val, i32),
        DataType::Uint8 => list!(int_val, u8),
        DataType::Uint16 => list!(int_val, u16),
        DataType::Int64 => list!(int64_val, i64),
        DataType::Uint32 => list!(uint32_val, u32),
        DataType::Uint64 => list!(uint64_val, u64),
        DataType::Bool => encoded.bool_val = tensor.data().iter().map(|byte| *byte != 0).collect(),
        DataType::Bytes => {}
    }
    encoded
}

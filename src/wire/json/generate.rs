//! Triton's `generate`: inputs and parameters side by side in one plain object (contract 02 section 7).
//!
//! Which member is an input and which a parameter only the model knows, so a request is looked at twice: once for what is
//! reserved, and again, beside the signature, for tensors. A value is a scalar or a flat array; its shape is rebuilt from
//! the model's.

use super::{
    data,
    reader::{Reader, twice},
    request::parameter,
    response::{write_data, write_members, write_string},
};
use crate::{
    call::{Expected, InferRequest, InferResponse, Inputs, ModelRef, NamedTensor, Untyped},
    error::Error,
    tensor::{Shape, Tensor, TensorSpec},
    wire::{
        Settings,
        reserved::{Form, Options},
    },
};
use bytes::Bytes;
use std::sync::Arc;

/// Members that speak to the server and never to the model.
const RESERVED: [&str; 7] =
    ["timeout", "priority", "sequence_id", "sequence_start", "sequence_end", "headers", "binary_data_output"];

/// Decodes a request to `generate` with `model`.
///
/// # Errors
///
/// [`Error::InvalidRequest`] if it is no JSON object, has a name twice, or a reserved parameter of the wrong type. What is
/// wrong with a tensor is said when the model is known.
pub fn decode_generate(body: &Bytes, model: ModelRef, settings: &Settings) -> Result<InferRequest, Error> {
    let mut options = Options::default();
    let mut id = None;
    members(body, settings, |reader, place, name| {
        match (place, name) {
            (Place::Top, "id") => id = Some(Arc::<str>::from(reader.string()?)),
            (_, name) if is_reserved(name) => options.take(Form::Rest, name, parameter(reader, name)?)?,
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    options.check()?;
    let (body, settings) = (body.clone(), settings.clone());
    let inputs = Untyped::new(move |expected| tensors(&body, &expected, &settings));
    let mut request = InferRequest::new(model, Inputs::Untyped(inputs));
    request.client_id = id.filter(|id| !id.is_empty());
    request.timeout = options.timeout;
    request.priority = options.priority;
    Ok(request)
}

fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name.starts_with("triton_")
}

/// The members that are inputs of the model, as tensors. What is none must be something that a parameter can be.
fn tensors(body: &[u8], expected: &Expected, settings: &Settings) -> Result<Vec<NamedTensor>, Error> {
    let mut inputs: Vec<NamedTensor> = Vec::with_capacity(expected.signature.inputs.len());
    members(body, settings, |reader, place, name| {
        if is_reserved(name) || (place, name) == (Place::Top, "id") {
            return reader.skip();
        }
        let Some(spec) = expected.signature.inputs.iter().find(|spec| *spec.name == *name) else {
            // Handed to the model in other servers; a model of ONNX takes nothing but its inputs.
            return parameter(reader, name).map(drop);
        };
        if inputs.iter().any(|input| input.name == spec.name) {
            return Err(Error::tensor(Arc::clone(&spec.name), "is there twice, expected once"));
        }
        inputs.push(NamedTensor { name: Arc::clone(&spec.name), tensor: tensor(reader, spec, settings)? });
        Ok(())
    })?;
    Ok(inputs)
}

fn tensor(reader: &mut Reader<'_>, spec: &TensorSpec, settings: &Settings) -> Result<Tensor, Error> {
    let dtype = spec.known_dtype()?;
    let is_scalar = reader.peek() != Some(b'[');
    let count = if is_scalar { 1 } else { count(reader, &spec.name)? };
    let shape = shape(spec, count)?;
    // One flat list, whatever the shape is: it is only counted.
    let flat = if is_scalar { Shape::new([]) } else { Shape::new([count]) };
    let read = data::read(reader, &spec.name, dtype, flat, settings)?;
    let tensor = Tensor::new(dtype, shape, read.data().clone());
    tensor.map_err(|error| Error::tensor(Arc::clone(&spec.name), error.to_string()))
}

/// How many values a flat array has. The reader stays before it.
fn count(reader: &mut Reader<'_>, name: &Arc<str>) -> Result<usize, Error> {
    let start = reader.position();
    let mut items = reader.array()?;
    let mut count = 0;
    while reader.item(&mut items)? {
        if matches!(reader.peek(), Some(b'[' | b'{')) {
            return Err(Error::tensor(Arc::clone(name), "is nested, expected a scalar or a flat array"));
        }
        reader.skip()?;
        count += 1;
    }
    reader.seek(start);
    Ok(count)
}

/// Fixed dimensions as they are, the innermost free one takes what remains, other free ones are 1.
fn shape(spec: &TensorSpec, count: usize) -> Result<Shape, Error> {
    let innermost = spec.dims.iter().rposition(Option::is_none);
    let known = spec.dims.iter().flatten().try_fold(1_usize, |product, dim| product.checked_mul(*dim)).unwrap_or(0);
    let rest = count.checked_div(known).unwrap_or(0);
    let dims = spec.dims.iter().enumerate().map(|(place, dim)| match dim {
        Some(dim) => *dim,
        None if Some(place) == innermost => rest,
        None => 1,
    });
    let shape = Shape::new(dims);
    if shape.elements() == Some(count) {
        return Ok(shape);
    }
    let dims: Vec<_> = spec.wire_dims().map(|dim| dim.to_string()).collect();
    let text = format!("has {count} values, expected as many as fill [{}]", dims.join(", "));
    Err(Error::tensor(Arc::clone(&spec.name), text))
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Top,
    Parameters,
}

/// Hands every member, those below `parameters` too, to `take`, which reads its value.
fn members(
    body: &[u8],
    settings: &Settings,
    mut take: impl FnMut(&mut Reader<'_>, Place, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reader = Reader::new(body, settings.json_depth)?;
    let mut members = reader.object()?;
    let mut parameters = false;
    while let Some(name) = reader.member(&mut members)? {
        if name == "parameters" {
            if std::mem::replace(&mut parameters, true) {
                return Err(twice(&name));
            }
            if !reader.take("null") {
                let mut members = reader.object()?;
                while let Some(name) = reader.member(&mut members)? {
                    take(&mut reader, Place::Parameters, &name)?;
                    reader.note(&members, name)?;
                }
            }
            continue;
        }
        take(&mut reader, Place::Top, &name)?;
        reader.note(&members, name)?;
    }
    reader.end()
}

/// Encodes a response: one member per output, a bare value where it has one element.
///
/// # Errors
///
/// [`Error::InvalidTensor`] for what has no JSON form, as V2 has it.
pub fn encode_generate(response: &InferResponse, settings: &Settings) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    if let Some(id) = &response.client_id {
        out.extend_from_slice(b"\"id\":");
        write_string(&mut out, id);
        out.push(b',');
    }
    out.extend_from_slice(b"\"model_name\":");
    write_string(&mut out, &response.model.name);
    out.extend_from_slice(b",\"model_version\":");
    write_string(&mut out, &response.model.version);
    for output in &response.outputs {
        out.push(b',');
        write_string(&mut out, &output.name);
        out.push(b':');
        let start = out.len();
        write_data(&mut out, &output.name, &output.tensor, super::Dialect::V2, settings)?;
        if output.tensor.shape().elements() == Some(1) {
            // `[x]` without its brackets.
            out.remove(start);
            out.pop();
        }
    }
    if !response.parameters.is_empty() {
        out.push(b',');
        write_members(&mut out, &response.parameters);
    }
    out.push(b'}');
    Ok(out.into())
}

#[cfg(test)]
#[path = "tests/generate.rs"]
mod tests;

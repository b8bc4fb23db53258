//! The codec of V1: what is read, what is refused and how, and what is written.

mod answers;
mod examples;
mod properties;
mod requests;

use super::*;
use crate::{
    call::{Expected, NamedTensor},
    error::Error,
    tensor::{DataType, Signature, TensorSpec},
    wire::Settings,
};
use std::sync::Arc;

pub(super) fn spec(name: &str, dtype: DataType, dims: &[Option<usize>]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

/// A model with these inputs and outputs, the first of which has these labels.
pub(super) fn model(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>, labels: &[&str]) -> Expected {
    let labels = (!labels.is_empty()).then(|| labels.iter().map(|label| Arc::from(*label)).collect());
    let labels = outputs.iter().enumerate().map(|(at, _)| labels.clone().filter(|_| at == 0)).collect();
    Expected { signature: Arc::new(Signature { inputs, outputs }), batches: true, labels }
}

/// A model with one input `x` of `dtype`.
pub(super) fn of(dtype: DataType, dims: &[Option<usize>]) -> Expected {
    model(vec![spec("x", dtype, dims)], vec![spec("y", dtype, dims)], &[])
}

/// The two inputs of the contract's example.
pub(super) fn tagged() -> Expected {
    let inputs = vec![spec("tag", DataType::Bytes, &[None]), spec("box", DataType::Fp32, &[None, Some(4)])];
    model(inputs, vec![spec("y", DataType::Fp32, &[None])], &[])
}

pub(super) fn predict(expected: &Expected, body: &str) -> Result<(Vec<NamedTensor>, Form), Error> {
    decode_predict(body.as_bytes(), expected, &Settings::default())
}

/// The shape and the bytes of the only tensor.
pub(super) fn only(expected: &Expected, body: &str) -> (Vec<usize>, Vec<u8>) {
    let (tensors, _) = predict(expected, body).unwrap_or_else(|error| panic!("{body}: {error}"));
    let [tensor] = tensors.as_slice() else { panic!("one tensor") };
    (tensor.tensor.shape().dims().to_vec(), tensor.tensor.data().to_vec())
}

pub(super) fn refusal(expected: &Expected, body: &str) -> String {
    match predict(expected, body) {
        Ok(_) => panic!("{body} is taken"),
        Err(error) => {
            assert_eq!(error.code(), crate::error::Code::InvalidArgument, "{body}: {error}");
            error.to_string()
        }
    }
}

pub(super) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(super) fn strings(tensor: &NamedTensor) -> Vec<Vec<u8>> {
    tensor.tensor.iter_strings().map(<[u8]>::to_vec).collect()
}

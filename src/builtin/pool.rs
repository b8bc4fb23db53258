//! What makes one vector of a text's tokens: the mean under a mask, and the length taken out of it.

use super::{Builtin, Fed, Pieces, each_row, each_row_signature, floats, floats_fed, spec, yielded};
use crate::{
    error::Error,
    tensor::{DataType, Shape, Signature, Tensor, Tensors},
};
use std::sync::Arc;

/// Least number of tokens that a sum is divided by, as sentence-transformers has it.
const TOKENS: f64 = 1e-9;
/// Least length that a vector is divided by, as `torch.nn.functional.normalize` has it.
const LENGTH: f64 = 1e-12;

/// `x`, FP32 `[rows, tokens, width]`, and `mask`, INT64 `[rows, tokens]`, to `y`, FP32 `[rows, width]`: the mean of the
/// tokens, each counted as often as its mask says.
#[derive(Debug)]
pub struct MeanPool;

/// `x`, FP32 of any shape, to `y` of the same: the last axis divided by its length (L2).
#[derive(Debug)]
pub struct Normalize;

impl Builtin for MeanPool {
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String> {
        let dims = match fed("x") {
            Some(_) => floats_fed(fed, "x")?,
            None => vec![None; 3],
        };
        let [rows, tokens, width] = dims[..] else {
            return Err(format!("`x` has {} axes, expected rows, tokens and width", dims.len()));
        };
        Ok(Signature {
            inputs: vec![spec("x", DataType::Fp32, dims), spec("mask", DataType::Int64, [rows, tokens])],
            outputs: vec![spec("y", DataType::Fp32, [rows, width])],
        })
    }

    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces {
        Box::new(move |_| self.run(&inputs).map(Some))
    }
}

impl MeanPool {
    fn run(&self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let (x, mask) = (&inputs[0], &inputs[1]);
        let [rows, tokens, width] = *x.shape().dims() else { return Err(Error::internal("a mean over no tokens")) };
        if mask.shape().dims() != [rows, tokens] {
            let text = format!("has shape {}, expected [{rows}, {tokens}] as `x` has", mask.shape());
            return Err(Error::tensor("mask", text));
        }
        let values = floats(x);
        let counts: Vec<i64> = mask.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        let mut means = Vec::with_capacity(rows * width);
        for row in 0..rows {
            let mut sum = vec![0_f64; width];
            let counts = &counts[row * tokens..][..tokens];
            // Tokens that count nothing are added too: what is no number there makes the mean none, as it does in Python.
            for (token, count) in counts.iter().enumerate() {
                let vector = &values[(row * tokens + token) * width..][..width];
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += f64::from(*value) * *count as f64);
            }
            let count = counts.iter().map(|count| *count as f64).sum::<f64>().max(TOKENS);
            means.extend(sum.into_iter().map(|sum| (sum / count) as f32));
        }
        Ok([yielded(Tensor::of(DataType::Fp32, Shape::from([rows, width]), means))?].into())
    }
}

impl Builtin for Normalize {
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String> {
        each_row_signature(fed)
    }

    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces {
        Box::new(move |_| self.run(&inputs).map(Some))
    }
}

impl Normalize {
    fn run(&self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        each_row(&inputs[0], |row| {
            let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            // Not `max`, which would make a length of what is no number.
            let length = if length < LENGTH { LENGTH } else { length };
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::testing::{near, tensor};

    fn mask(dims: [usize; 2], values: &[i64]) -> Tensor {
        Tensor::of(DataType::Int64, dims.into(), values.to_vec()).unwrap()
    }

    #[test]
    fn only_tokens_that_the_mask_keeps_count() {
        let x = tensor(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0, 9.0]);
        let y = MeanPool.run(&[x, mask([2, 2], &[1, 1, 1, 0])]).unwrap();
        assert_eq!(y[0].shape().dims(), [2, 2]);
        near(&y[0], &[2.0, 3.0, 5.0, 6.0]);
    }

    #[test]
    fn a_text_without_tokens_is_nothing_and_not_nan() {
        let y = MeanPool.run(&[tensor(&[1, 1, 2], &[7.0, 7.0]), mask([1, 1], &[0])]).unwrap();
        near(&y[0], &[0.0, 0.0]);
    }

    #[test]
    fn a_mask_of_another_shape_is_refused_by_name() {
        let error = MeanPool.run(&[tensor(&[1, 2, 1], &[1.0, 1.0]), mask([1, 1], &[1])]).unwrap_err();
        assert!(error.to_string().contains("tensor `mask` has shape [1, 1], expected [1, 2]"), "{error}");
    }

    #[test]
    fn vectors_get_the_length_one_and_zeros_stay_zeros() {
        let y = Normalize.run(&[tensor(&[2, 2], &[3.0, 4.0, 0.0, 0.0])]).unwrap();
        near(&y[0], &[0.6, 0.8, 0.0, 0.0]);
    }
    #[test]
    fn what_is_no_number_spoils_its_row_as_it_does_in_python() {
        // torch.nn.functional.normalize, and (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9).
        let is_nan = |y: &Tensor| floats(y).iter().map(|value| value.is_nan()).collect::<Vec<_>>();
        let y = Normalize.run(&[tensor(&[2, 2], &[f32::NAN, 1.0, 0.0, 2.0])]).unwrap();
        assert_eq!(is_nan(&y[0]), [true, true, false, false]);
        let x = tensor(&[2, 2, 1], &[1.0, f32::NAN, 1.0, 5.0]);
        let y = MeanPool.run(&[x, mask([2, 2], &[1, 0, 1, 0])]).unwrap();
        assert_eq!(is_nan(&y[0]), [true, false]);
        let x = tensor(&[1, 2, 1], &[1.0, f32::INFINITY]);
        assert_eq!(is_nan(&MeanPool.run(&[x, mask([1, 2], &[1, 0])]).unwrap()[0]), [true]);
    }
}

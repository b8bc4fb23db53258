//! Soft-max over the last axis: numbers that are positive and sum to 1.

use super::{Builtin, Fed, Pieces, each_row, each_row_signature};
use crate::{
    error::Error,
    tensor::{Signature, Tensor, Tensors},
};
use std::sync::Arc;

/// `x`, FP32 of any shape, to `y` of the same: `exp(x) / Σ exp(x)` over the last axis, the largest taken off first, as
/// ONNX defines it.
#[derive(Debug)]
pub struct Softmax;

impl Builtin for Softmax {
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String> {
        each_row_signature(fed)
    }

    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces {
        Box::new(move |_| self.run(&inputs).map(Some))
    }
}

impl Softmax {
    fn run(&self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        each_row(&inputs[0], |row| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|value| *value = (*value - largest).exp());
            // In double precision: a hundred thousand classes are many small numbers.
            let sum = row.iter().map(|value| f64::from(*value)).sum::<f64>();
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / sum) as f32);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        builtin::{
            spec,
            testing::{near, tensor},
        },
        tensor::DataType,
    };

    #[test]
    fn each_row_sums_to_one_however_large_its_numbers() {
        let x = tensor(&[2, 3], &[1.0, 2.0, 3.0, 1000.0, 1000.0, -1000.0]);
        let y = Softmax.run(&[x]).unwrap();
        assert_eq!(y[0].shape().dims(), [2, 3]);
        near(&y[0], &[0.090_030_57, 0.244_728_48, 0.665_240_94, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn rows_without_elements_stay_what_they_are() {
        assert_eq!(Softmax.run(&[tensor(&[2, 0], &[])]).unwrap()[0].shape().dims(), [2, 0]);
    }

    #[test]
    fn what_it_is_fed_decides_its_shape_and_must_be_known() {
        let fed = spec("h", DataType::Fp32, [None, Some(10)]);
        let signature = Softmax.signature(&|_| Some(fed.clone())).unwrap();
        assert_eq!(signature.outputs[0].dims, [None, Some(10)]);
        assert_eq!(
            Softmax.signature(&|_| None).unwrap_err(),
            "`x` may have any shape; say which in the ensemble's `inputs`"
        );
        let ids = spec("ids", DataType::Int64, [None]);
        assert_eq!(Softmax.signature(&|_| Some(ids.clone())).unwrap_err(), "`x` has datatype INT64, expected FP32");
    }
}

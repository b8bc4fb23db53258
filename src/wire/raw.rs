//! A body that is the one input's bytes and nothing more (contract 02 section 1.4): its shape follows from the model.

use crate::{
    call::{Expected, NamedTensor},
    error::Error,
    tensor::{Shape, Tensor, push_string},
};
use bytes::Bytes;

/// The one input of a model out of `bytes`. Where the first dimension counts rows, a raw body is one row.
///
/// # Errors
///
/// [`Error::InvalidRequest`] if the model has more inputs, or more than one dimension is free; [`Error::InvalidTensor`] if
/// the bytes do not fill its shape; [`Error::Unimplemented`] for a type that V2 cannot name.
pub(super) fn input(expected: &Expected, bytes: &Bytes) -> Result<NamedTensor, Error> {
    let Expected { signature, batches, .. } = expected;
    let [spec] = signature.inputs.as_slice() else {
        let inputs = signature.inputs.len();
        return Err(Error::invalid(format!("a raw body for a model with {inputs} inputs, expected a JSON header")));
    };
    let dtype = spec.known_dtype()?;
    let mut dims = spec.dims.clone();
    if let (true, Some(rows)) = (*batches, dims.first_mut()) {
        *rows = Some(1);
    }
    let name = || spec.name.clone();
    let known = dims.iter().flatten().try_fold(dtype.size().unwrap_or(1), |product, dim| product.checked_mul(*dim));
    let (Some(known), true) = (known, dims.iter().filter(|dim| dim.is_none()).count() <= 1) else {
        return Err(Error::tensor(name(), "has more than one free dimension, expected a JSON header"));
    };
    let Some(size) = dtype.size() else {
        // One element: the body is its bytes, without a length before it.
        if known > 1 || dims.iter().skip(1).any(Option::is_none) {
            return Err(Error::tensor(name(), "has several strings, expected a JSON header"));
        }
        let mut data = Vec::with_capacity(bytes.len() + 4);
        let shape = Shape::new(dims.iter().map(|dim| dim.unwrap_or(1)));
        let tensor = push_string(&mut data, bytes).and_then(|()| Tensor::new(dtype, shape, data.into()));
        return tensor
            .map(|tensor| NamedTensor { name: name(), tensor })
            .map_err(|error| Error::tensor(name(), error.to_string()));
    };
    let free = bytes.len().checked_div(known).unwrap_or(0);
    let shape = Shape::new(dims.iter().map(|dim| dim.unwrap_or(free)));
    Tensor::new(dtype, shape, bytes.clone()).map(|tensor| NamedTensor { name: name(), tensor }).map_err(|_| {
        let expected = if dims.contains(&None) { format!("a multiple of {known}") } else { known.to_string() };
        let found = bytes.len();
        Error::tensor(name(), format!("has {found} raw bytes, expected {expected} ({size} an element)"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DataType, Signature, TensorSpec};
    use std::sync::Arc;

    fn expected(dtype: DataType, dims: &[Option<usize>], inputs: usize, batches: bool) -> Expected {
        let spec = TensorSpec { name: "x".into(), dtype: Some(dtype), dims: dims.to_vec() };
        let signature = Arc::new(Signature { inputs: vec![spec; inputs], outputs: Vec::new() });
        Expected { signature, batches, labels: Arc::new([]) }
    }

    fn shape(dtype: DataType, dims: &[Option<usize>], batches: bool, bytes: &'static [u8]) -> Option<Vec<usize>> {
        let input = input(&expected(dtype, dims, 1, batches), &Bytes::from_static(bytes)).ok()?;
        Some(input.tensor.shape().dims().to_vec())
    }

    #[test]
    fn a_row_of_a_model_that_batches_is_one_row() {
        assert_eq!(shape(DataType::Fp32, &[None, Some(2)], true, &[0; 8]), Some(vec![1, 2]));
        assert_eq!(shape(DataType::Fp32, &[None, Some(2)], true, &[0; 16]), None);
    }

    #[test]
    fn one_free_dimension_follows_from_the_bytes_and_two_do_not() {
        assert_eq!(shape(DataType::Fp32, &[None, Some(2)], false, &[0; 16]), Some(vec![2, 2]));
        assert_eq!(shape(DataType::Fp32, &[None, Some(2)], false, &[0; 9]), None);
        assert_eq!(shape(DataType::Fp32, &[Some(2), None], true, &[0; 16]), Some(vec![1, 4]));
        assert_eq!(shape(DataType::Fp32, &[None, None], false, &[0; 16]), None);
        assert_eq!(shape(DataType::Fp32, &[Some(0), None], false, &[]), Some(vec![0, 0]));
    }

    #[test]
    fn a_string_is_the_body_itself() {
        let input = input(&expected(DataType::Bytes, &[None], 1, true), &Bytes::from_static(b"abc")).unwrap();
        assert_eq!(input.tensor.iter_strings().collect::<Vec<_>>(), [b"abc"]);
        assert_eq!(shape(DataType::Bytes, &[Some(2)], false, b"abc"), None);
    }

    #[test]
    fn several_inputs_need_a_header() {
        let two = expected(DataType::Fp32, &[Some(1)], 2, false);
        assert!(input(&two, &Bytes::from_static(&[0; 4])).is_err());
    }
}

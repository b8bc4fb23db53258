//! The best classes of an output instead of its numbers (contract 02 section 8).
//!
//! Knows numbers and labels; which output a client wants classified is the router's to say.

use crate::{
    error::Error,
    tensor::{DataType, Shape, Tensor, TensorSpec},
};
use std::{cmp::Ordering, fmt::Write, num::NonZeroUsize, sync::Arc};

/// Elements that are classified at most (contract 02 section 8).
const MOST: usize = 1_000_000;

pub use crate::call::Labels;

/// Refuses what cannot be classified, before the model runs.
///
/// # Errors
///
/// [`Error::InvalidTensor`] for types that have no order: booleans, strings and half types.
pub fn check(spec: &TensorSpec) -> Result<(), Error> {
    match spec.dtype {
        Some(DataType::Bool | DataType::Fp16 | DataType::Bf16 | DataType::Bytes) | None => {
            let text = format!("has datatype {}, expected an integer, FP32 or FP64 to classify", spec.dtype_name());
            Err(Error::tensor(Arc::clone(&spec.name), text))
        }
        Some(_) => Ok(()),
    }
}

/// The best `classes` of each row of `tensor` as strings `VALUE:INDEX` or `VALUE:INDEX:LABEL`, best first: a BYTES tensor
/// of shape `[k]`, or `[rows, k]` where the first dimension counts rows (`batches`), k being at most the number of classes.
///
/// Equal values: the lower index first. What is no number comes last.
///
/// # Errors
///
/// [`Error::InvalidTensor`] for more than a million elements, and as [`check`].
pub fn classify(
    name: &Arc<str>,
    tensor: &Tensor,
    classes: NonZeroUsize,
    batches: bool,
    labels: Option<&Labels>,
) -> Result<Tensor, Error> {
    let wrong = |text: String| Error::tensor(Arc::clone(name), text);
    let elements = tensor.shape().elements().unwrap_or(usize::MAX);
    if elements > MOST {
        return Err(wrong(format!("has {elements} elements, expected at most {MOST} to classify")));
    }
    let rows = batches.then(|| tensor.rows());
    // Not the elements by the rows, of which there may be none: such an answer has as many columns as any other.
    let width = match rows {
        Some(_) => tensor.shape().dims().iter().skip(1).product(),
        None => elements,
    };
    let k = classes.get().min(width);
    let shape = match rows {
        Some(rows) => Shape::new([rows, k]),
        None => Shape::new([k]),
    };
    macro_rules! integers {
        ($type:ty) => {{
            let values = values(tensor, <$type>::from_le_bytes);
            best(&values, width, k, |a, b| b.cmp(a), |out, value| write!(out, "{value}"), labels)
        }};
    }
    macro_rules! floats {
        ($type:ty) => {{
            let values = values(tensor, <$type>::from_le_bytes);
            // Descending, with what is no number behind everything.
            let order = |a: &$type, b: &$type| match (a.is_nan(), b.is_nan()) {
                (false, false) => b.partial_cmp(a).unwrap_or(Ordering::Equal),
                (a, b) => a.cmp(&b),
            };
            // As C++'s `to_string` writes it: clients split such texts and compare them.
            let write = |out: &mut String, value: &$type| match value.is_nan() {
                true => out.write_str("nan"),
                false => write!(out, "{value:.6}"),
            };
            best(&values, width, k, order, write, labels)
        }};
    }
    let strings = match tensor.dtype() {
        DataType::Uint8 => integers!(u8),
        DataType::Uint16 => integers!(u16),
        DataType::Uint32 => integers!(u32),
        DataType::Uint64 => integers!(u64),
        DataType::Int8 => integers!(i8),
        DataType::Int16 => integers!(i16),
        DataType::Int32 => integers!(i32),
        DataType::Int64 => integers!(i64),
        DataType::Fp32 => floats!(f32),
        DataType::Fp64 => floats!(f64),
        DataType::Bool | DataType::Fp16 | DataType::Bf16 | DataType::Bytes => {
            return Err(wrong(format!("has datatype {}, expected numbers to classify", tensor.dtype())));
        }
    };
    Tensor::strings(shape, strings).map_err(|error| wrong(error.to_string()))
}

fn values<T, const SIZE: usize>(tensor: &Tensor, value: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
    tensor.data().as_chunks().0.iter().map(|bytes| value(*bytes)).collect()
}

fn best<T>(
    values: &[T],
    width: usize,
    k: usize,
    order: impl Fn(&T, &T) -> Ordering,
    write: impl Fn(&mut String, &T) -> std::fmt::Result,
    labels: Option<&Labels>,
) -> Vec<String> {
    let mut strings = Vec::with_capacity(values.len().checked_div(width).unwrap_or(0) * k);
    let mut indices: Vec<usize> = Vec::with_capacity(width);
    for row in values.chunks(width.max(1)).filter(|_| k > 0) {
        indices.clear();
        indices.extend(0..row.len());
        let better = |a: &usize, b: &usize| order(&row[*a], &row[*b]).then(a.cmp(b));
        if k < row.len() {
            // Only the best are put in order: most classifiers have far more classes than anyone asks for.
            indices.select_nth_unstable_by(k, better);
            indices.truncate(k);
        }
        indices.sort_unstable_by(better);
        for index in &indices {
            let mut text = String::new();
            // Writing to a string cannot fail.
            let _ = write(&mut text, &row[*index]);
            let _ = write!(text, ":{index}");
            if let Some(label) = labels.and_then(|labels| labels.get(*index)) {
                let _ = write!(text, ":{label}");
            }
            strings.push(text);
        }
    }
    strings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn k(k: usize) -> NonZeroUsize {
        NonZeroUsize::new(k).unwrap()
    }

    fn texts(tensor: &Tensor) -> Vec<String> {
        tensor.iter_strings().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    fn of(dtype: DataType, shape: &[usize], values: Vec<f32>, classes: usize, batches: bool) -> Tensor {
        let tensor = Tensor::of(dtype, Shape::new(shape.iter().copied()), values).unwrap();
        classify(&"y".into(), &tensor, k(classes), batches, None).unwrap()
    }

    #[test]
    fn values_have_six_decimals_and_their_labels() {
        let tensor = Tensor::of(DataType::Fp32, Shape::new([1, 3]), vec![0.5_f32, 3.3, -1.0]).unwrap();
        let labels: Labels = ["dog".into(), "cat".into()].into();
        let found = classify(&"y".into(), &tensor, k(3), true, Some(&labels)).unwrap();
        assert_eq!(found.shape().dims(), [1, 3]);
        assert_eq!(texts(&found), ["3.300000:1:cat", "0.500000:0:dog", "-1.000000:2"]);
    }

    #[test]
    fn integers_have_plain_digits_and_k_is_clipped_to_the_classes() {
        let tensor = Tensor::of(DataType::Int64, Shape::new([2]), vec![7_i64, i64::MAX]).unwrap();
        let found = classify(&"y".into(), &tensor, k(9), false, None).unwrap();
        assert_eq!(found.shape().dims(), [2]);
        assert_eq!(texts(&found), ["9223372036854775807:1", "7:0"]);
    }

    #[test]
    fn rows_are_classified_apart_and_other_dimensions_are_flattened() {
        let found = of(DataType::Fp32, &[2, 2, 2], vec![1., 2., 3., 4., 8., 7., 6., 5.], 1, true);
        assert_eq!(found.shape().dims(), [2, 1]);
        assert_eq!(texts(&found), ["4.000000:3", "8.000000:0"]);
        let whole = of(DataType::Fp32, &[2, 2], vec![1., 2., 3., 4.], 2, false);
        assert_eq!((whole.shape().dims(), texts(&whole).len()), (&[2][..], 2));
    }

    #[test]
    fn ties_go_to_the_lower_index_and_nan_comes_last() {
        let found = of(DataType::Fp32, &[1, 4], vec![f32::NAN, 2.0, 2.0, f32::NEG_INFINITY], 4, true);
        assert_eq!(texts(&found), ["2.000000:1", "2.000000:2", "-inf:3", "nan:0"]);
    }

    #[test]
    fn an_output_without_elements_has_no_classes() {
        assert_eq!(of(DataType::Fp32, &[0, 3], vec![], 2, true).shape().dims(), [0, 2]);
        assert_eq!(of(DataType::Fp32, &[2, 0], vec![], 2, true).shape().dims(), [2, 0]);
    }

    #[test]
    fn what_has_no_order_is_refused_by_name() {
        for dtype in [DataType::Bool, DataType::Fp16, DataType::Bf16, DataType::Bytes] {
            let spec = TensorSpec { name: "y".into(), dtype: Some(dtype), dims: vec![None] };
            assert!(check(&spec).unwrap_err().to_string().contains("`y`"));
        }
        let large = Tensor::new(DataType::Uint8, Shape::new([MOST + 1]), vec![0; MOST + 1].into()).unwrap();
        assert!(classify(&"y".into(), &large, k(1), false, None).is_err());
    }

    proptest! {
        #[test]
        fn the_best_k_are_the_first_of_all_sorted(values in prop::collection::vec(-5_i32..5, 1..40), classes in 1_usize..50) {
            let tensor = Tensor::of(DataType::Int32, Shape::new([values.len()]), values.clone()).unwrap();
            let found = texts(&classify(&"y".into(), &tensor, k(classes), false, None).unwrap());
            let mut sorted: Vec<_> = values.iter().enumerate().collect();
            sorted.sort_by_key(|(index, value)| (std::cmp::Reverse(**value), *index));
            let expected: Vec<_> = sorted.iter().take(classes).map(|(index, value)| format!("{value}:{index}")).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

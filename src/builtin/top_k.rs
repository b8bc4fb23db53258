//! The best classes of the last axis: their numbers, indices and names.

use super::{Builtin, Fed, Pieces, files, floats, floats_fed, last_axis, spec, yielded};
use crate::{
    error::Error,
    tensor::{DataType, Shape, Signature, Tensor, Tensors},
};
use std::{cmp::Ordering, path::Path, sync::Arc};

/// `x`, FP32 `[…, n]`, to `values` FP32 and `indices` INT64 `[…, k]`, best first, and `labels` BYTES beside them if there
/// is a file of labels; k is at most n. Equal values: the lower index first. What is no number comes last.
///
/// A class that the file has no line for is named by its index.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    labels: Option<Vec<Arc<str>>>,
}

impl TopK {
    pub(super) fn open(k: usize, labels: Option<&Path>, folder: &Path) -> Result<Self, String> {
        let labels = labels.map(|path| files::lines(folder, path)).transpose()?;
        Ok(Self { k, labels })
    }
}

impl Builtin for TopK {
    fn signature(&self, fed: &Fed<'_>) -> Result<Signature, String> {
        let dims = floats_fed(fed, "x")?;
        let (last, rest) = dims.split_last().ok_or("`x` has no axis")?;
        let best = |name, dtype| {
            let k = last.map(|n| n.min(self.k));
            spec(name, dtype, rest.iter().copied().chain([k]))
        };
        let mut outputs = vec![best("values", DataType::Fp32), best("indices", DataType::Int64)];
        outputs.extend(self.labels.is_some().then(|| best("labels", DataType::Bytes)));
        Ok(Signature { inputs: vec![spec("x", DataType::Fp32, dims.iter().copied())], outputs })
    }

    fn begin(self: Arc<Self>, inputs: Tensors) -> Pieces {
        Box::new(move |_| self.run(&inputs).map(Some))
    }
}

impl TopK {
    fn run(&self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let x = &inputs[0];
        let (all, width) = (floats(x), last_axis(x));
        let k = self.k.min(width);
        let (mut values, mut indices) = (Vec::new(), Vec::new());
        let mut order: Vec<usize> = Vec::with_capacity(width);
        for row in all.chunks(width.max(1)).filter(|_| k > 0) {
            let better = |a: &usize, b: &usize| match (row[*a].is_nan(), row[*b].is_nan()) {
                (false, false) => row[*b].partial_cmp(&row[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b)),
                (one, other) => one.cmp(&other).then(a.cmp(b)),
            };
            order.clear();
            order.extend(0..row.len());
            if k < row.len() {
                order.select_nth_unstable_by(k, better);
                order.truncate(k);
            }
            order.sort_unstable_by(better);
            values.extend(order.iter().map(|index| row[*index]));
            indices.extend(order.iter().map(|index| *index as i64));
        }
        let (_, rest) = x.shape().dims().split_last().unwrap_or((&1, &[]));
        let shape = Shape::new(rest.iter().copied().chain([k]));
        let names = self.labels.as_ref().map(|labels| {
            let name = |index: &i64| match usize::try_from(*index).ok().and_then(|index| labels.get(index)) {
                Some(label) => label.to_string(),
                None => index.to_string(),
            };
            yielded(Tensor::strings(shape.clone(), indices.iter().map(name)))
        });
        let names = names.transpose()?;
        let mut outputs = Tensors::new();
        outputs.push(yielded(Tensor::of(DataType::Fp32, shape.clone(), values))?);
        outputs.push(yielded(Tensor::of(DataType::Int64, shape, indices))?);
        outputs.extend(names);
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::testing::{near, tensor};

    fn names(tensor: &Tensor) -> Vec<String> {
        tensor.iter_strings().map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
    }

    #[test]
    fn the_best_come_first_with_their_indices_and_names() {
        let labels = Some(vec!["cat".into(), "dog".into()]);
        let outputs = TopK { k: 2, labels }.run(&[tensor(&[2, 3], &[0.1, 0.7, 0.2, 5.0, f32::NAN, 5.0])]).unwrap();
        assert_eq!(outputs[0].shape().dims(), [2, 2]);
        near(&outputs[0], &[0.7, 0.2, 5.0, 5.0]);
        let indices: Vec<i64> = outputs[1].data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        assert_eq!(indices, [1, 2, 0, 2]);
        assert_eq!(names(&outputs[2]), ["dog", "2", "cat", "2"]);
    }

    #[test]
    fn there_are_no_more_than_there_are_classes() {
        let outputs = TopK { k: 9, labels: None }.run(&[tensor(&[1, 2], &[1.0, 2.0])]).unwrap();
        assert_eq!((outputs.len(), outputs[0].shape().dims()), (2, &[1, 2][..]));
        let none = TopK { k: 9, labels: None }.run(&[tensor(&[3, 0], &[])]).unwrap();
        assert_eq!(none[1].shape().dims(), [3, 0]);
    }
}

//! Inputs that a call may leave out, and what stands for them.

use crate::{
    call::NamedTensor,
    error::Error,
    tensor::{Shape, Signature, pad},
};
use bytes::Bytes;
use std::sync::Arc;

/// Elements that are made for whoever sends less than that; who sends more gets as many as that. So a few bytes cannot ask for
/// gigabytes by a shape that has a zero in it.
const ELEMENTS: usize = 1 << 16;

/// What stands for each input that a call leaves out, in the signature's order.
#[derive(Clone, Debug, Default)]
pub struct Absent(Vec<Option<Made>>);

/// What stands for an input: one element, everywhere.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// As tensors hold it; a string without its length.
    pub(super) element: Bytes,
    /// Each dimension: that of another input, by its place and axis, or a number.
    pub(super) dims: Vec<Result<(usize, usize), usize>>,
}

// === impl Absent ===

impl Absent {
    /// One for each input; `None`: a call must bring it.
    pub(super) fn new(made: Vec<Option<Made>>) -> Self {
        Self(if made.iter().any(Option::is_some) { made } else { Vec::new() })
    }

    /// Whether the input at this place may be left out.
    pub(super) fn allows(&self, place: usize) -> bool {
        self.0.get(place).is_some_and(Option::is_some)
    }

    /// The inputs of `signature` that may be left out.
    pub(super) fn names(&self, signature: &Signature) -> Vec<Arc<str>> {
        let inputs = signature.inputs.iter().zip(&self.0).filter(|(_, made)| made.is_some());
        inputs.map(|(spec, _)| Arc::clone(&spec.name)).collect()
    }

    /// Adds to `inputs`, which nobody has checked, what they leave out and may.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] for what would be much larger than all that was sent.
    pub(super) fn complete(&self, signature: &Signature, inputs: &mut Vec<NamedTensor>) -> Result<(), Error> {
        if self.0.is_empty() || inputs.len() >= signature.inputs.len() {
            return Ok(());
        }
        let sent: usize = inputs.iter().filter_map(|input| input.tensor.shape().elements()).sum();
        let there = inputs.len();
        for (made, spec) in self.0.iter().zip(&signature.inputs) {
            let Some(Made { element, dims }) = made else { continue };
            if inputs[..there].iter().any(|input| input.name == spec.name) {
                continue;
            }
            let dim = |dim: &Result<(usize, usize), usize>| match dim {
                Err(dim) => Some(*dim),
                Ok((place, axis)) => {
                    let name = &signature.inputs.get(*place)?.name;
                    let source = inputs[..there].iter().find(|input| input.name == *name)?;
                    source.tensor.shape().dims().get(*axis).copied()
                }
            };
            // What its shape depends on is missing or of another rank: the check says so.
            let (Some(dims), Some(dtype)) = (dims.iter().map(dim).collect::<Option<Vec<_>>>(), spec.dtype) else {
                continue;
            };
            let shape = Shape::new(dims);
            if shape.elements().is_none_or(|elements| elements > sent.max(ELEMENTS)) {
                let text = format!("is left out and would have shape {shape}, far more than what was sent");
                return Err(Error::tensor(Arc::clone(&spec.name), text));
            }
            let tensor = pad::filled(dtype, shape, element)?;
            inputs.push(NamedTensor { name: Arc::clone(&spec.name), tensor });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DataType, Tensor, TensorSpec};

    /// `ids` and their mask, [rows, seq], `kind`, [rows, 2], and `scale`, a scalar; all but the first may be left out.
    fn model() -> (Signature, Absent) {
        let spec = |name: &str, dtype, dims: &[Option<usize>]| TensorSpec {
            name: name.into(),
            dtype: Some(dtype),
            dims: dims.to_vec(),
        };
        let inputs = vec![
            spec("ids", DataType::Int64, &[None, None]),
            spec("mask", DataType::Int32, &[None, None]),
            spec("kind", DataType::Bytes, &[None, Some(2)]),
            spec("scale", DataType::Fp32, &[]),
        ];
        let made = |element: &[u8], dims| Some(Made { element: Bytes::copy_from_slice(element), dims });
        let absent = Absent::new(vec![
            None,
            made(&1_i32.to_le_bytes(), vec![Ok((0, 0)), Ok((0, 1))]),
            made(b"none", vec![Ok((0, 0)), Err(2)]),
            made(&2_f32.to_le_bytes(), Vec::new()),
        ]);
        (Signature { inputs, outputs: Vec::new() }, absent)
    }

    fn complete(mut inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
        let (signature, absent) = model();
        absent.complete(&signature, &mut inputs).map_err(|error| error.to_string())?;
        Ok(inputs)
    }

    fn ids(shape: &[usize]) -> NamedTensor {
        let shape = Shape::new(shape.iter().copied());
        let ids = vec![7_i64; shape.elements().unwrap()];
        NamedTensor { name: "ids".into(), tensor: Tensor::of(DataType::Int64, shape, ids).unwrap() }
    }

    #[test]
    fn what_is_left_out_is_made() {
        let made = complete(vec![ids(&[2, 3])]).unwrap();
        let names: Vec<_> = made.iter().map(|input| &*input.name).collect();
        assert_eq!(names, ["ids", "mask", "kind", "scale"]);
        assert_eq!(made[1].tensor, Tensor::of(DataType::Int32, [2, 3].into(), vec![1_i32; 6]).unwrap());
        assert_eq!(made[2].tensor, Tensor::strings([2, 2].into(), ["none"; 4]).unwrap());
        assert_eq!(made[3].tensor, Tensor::of(DataType::Fp32, Shape::default(), vec![2_f32]).unwrap());
        assert_eq!(complete(vec![ids(&[0, 3])]).unwrap()[2].tensor.shape().dims(), [0, 2]);
    }

    #[test]
    fn what_was_sent_is_kept() {
        let mask = Tensor::of(DataType::Int32, [1, 2].into(), vec![0_i32; 2]).unwrap();
        let sent = vec![NamedTensor { name: "mask".into(), tensor: mask.clone() }, ids(&[1, 2])];
        let made = complete(sent).unwrap();
        assert_eq!((made.len(), &made[0].tensor), (4, &mask));
    }

    #[test]
    fn what_nothing_can_be_made_of_is_left_to_the_check() {
        let names = |inputs| complete(inputs).unwrap().iter().map(|input| input.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(Vec::new()), ["scale"], "the shapes of the others are those of `ids`");
        assert_eq!(names(vec![ids(&[5])]), ["ids", "kind", "scale"]);
    }

    #[test]
    fn a_few_bytes_do_not_ask_for_gigabytes() {
        let error = complete(vec![ids(&[1 << 40, 0])]).unwrap_err();
        assert_eq!(
            error,
            "tensor `kind` is left out and would have shape [1099511627776, 2], far more than what was sent"
        );
        assert!(complete(vec![ids(&[usize::MAX, 0])]).is_err());
    }
}

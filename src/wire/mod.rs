//! Bytes to operations and replies to bytes: synchronous, no I/O.
//!
//! A codec knows one wire form and nothing of sockets, policy or models. Every decoder bounds what it
//! accepts by [`Settings`], never recurses on input, and answers malformed input with one error that
//! names what was wrong and what was expected.

pub mod framed;
pub mod json;
pub mod message;
pub mod problem;
pub mod proto;
mod raw;
mod reserved;
pub mod tfserving;
pub mod v1;
pub mod weight;

pub use reserved::{EMPTY_FINAL, FINAL, no_shared_memory, say_final};

use crate::{
    call::NamedTensor,
    error::Error,
    tensor::{DataType, Shape, Tensor},
};
use bytes::Bytes;
use std::sync::Arc;

/// Bounds and choices that all codecs share (contract 10 section 5, contract 00 section 6).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most tensors in one call, inputs and requested outputs each (`limits.size.tensors`).
    pub tensors: usize,
    /// Most dimensions of one tensor (`limits.size.rank`).
    pub rank: usize,
    /// Deepest nesting of JSON (`limits.size.json_depth`).
    pub json_depth: usize,
    /// What to print for NaN and the infinities (`json.non_finite`).
    pub non_finite: NonFinite,
    /// Whether FP16 and BF16 may be JSON numbers (`json.half: convert`).
    pub convert_half: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tensors: 256, rank: 16, json_depth: 100, non_finite: NonFinite::AsNull, convert_half: false }
    }
}

/// What to print for NaN and the infinities, which have no JSON form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// `null`; read back as NaN of a float tensor.
    #[default]
    AsNull,
    /// `NaN`, `Infinity`, `-Infinity`, as TensorFlow Serving does.
    AsToken,
    /// An error that suggests binary output.
    Refuse,
}

/// How the client wants outputs written; never leaves the front-end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// For outputs that are not named below: raw bytes if true, JSON if false.
    pub binary: bool,
    /// Wishes for single outputs.
    pub outputs: Vec<(Arc<str>, bool)>,
}

impl Wishes {
    /// Whether the output `name` is wanted as raw bytes.
    pub fn wants_binary(&self, name: &str) -> bool {
        self.outputs.iter().find(|(output, _)| &**output == name).map_or(self.binary, |(_, binary)| *binary)
    }

    /// Whether any output at all may be wanted as raw bytes.
    pub fn any(&self) -> bool {
        self.binary || self.outputs.iter().any(|(_, binary)| *binary)
    }

    /// Whether any of `names` is wanted as raw bytes.
    pub fn any_binary<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        (self.binary || !self.outputs.is_empty()) && names.any(|name| self.wants_binary(name))
    }
}

/// A tensor out of raw bytes, which it shares.
///
/// Any byte of a BOOL that is not 0 is true on the wire, but only 1 is to ONNX Runtime (contract 01
/// section 3.1): those few that differ are copied.
///
/// # Errors
///
/// [`Error::InvalidTensor`] if type, shape and bytes do not agree.
fn shared(name: Arc<str>, dtype: DataType, shape: Shape, data: Bytes) -> Result<NamedTensor, Error> {
    let data = match dtype {
        DataType::Bool if data.iter().any(|byte| *byte > 1) => data.iter().map(|byte| u8::from(*byte != 0)).collect(),
        _ => data,
    };
    match Tensor::new(dtype, shape, data) {
        Ok(tensor) => Ok(NamedTensor { name, tensor }),
        Err(error) => Err(Error::tensor(name, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_are_shared_and_bools_normalised() {
        let data = Bytes::from_static(&[0, 1, 2, 255]);
        let bools = shared("b".into(), DataType::Bool, [4].into(), data.clone()).unwrap();
        assert_eq!(&bools.tensor.data()[..], [0, 1, 1, 1]);
        let bytes = shared("u".into(), DataType::Uint8, [4].into(), data.clone()).unwrap();
        assert_eq!(bytes.tensor.data().as_ptr(), data.as_ptr());
        let error = shared("x".into(), DataType::Fp32, [2].into(), data).unwrap_err();
        assert_eq!(error.to_string(), "tensor `x` has 4 bytes, expected 8");
    }

    #[test]
    fn single_wishes_override_the_default() {
        let wishes = Wishes { binary: true, outputs: vec![("a".into(), false)] };
        assert!(!wishes.wants_binary("a") && wishes.wants_binary("b"));
        assert!(wishes.any_binary(["a", "b"].into_iter()));
        assert!(!wishes.any_binary(["a"].into_iter()));
    }
}

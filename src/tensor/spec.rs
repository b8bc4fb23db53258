//! What a model says about its inputs and outputs.
//!
//! Plain data, made by a back end and read by the router and the front-ends. The rules by which a
//! request is checked against it live in `model/signature.rs`.

use super::DataType;
use crate::error::Error;
use std::sync::Arc;

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the ONNX graph.
    pub name: Arc<str>,
    /// `None` for ONNX types that V2 cannot name; metadata calls them `INVALID` (contract 01 section 3.1).
    pub dtype: Option<DataType>,
    /// `None` where the dimension is free, `-1` on the wire.
    pub dims: Vec<Option<usize>>,
}

impl TensorSpec {
    /// The V2 name of the element type, `INVALID` if it has none.
    pub fn dtype_name(&self) -> &'static str {
        self.dtype.map_or("INVALID", DataType::name)
    }

    /// The element type, for whoever has to read or write elements.
    ///
    /// # Errors
    ///
    /// [`Error::Unimplemented`] for a type that V2 cannot name.
    pub fn known_dtype(&self) -> Result<DataType, Error> {
        self.dtype.ok_or_else(|| {
            let text = format!("the model's tensor `{}` has a type that the protocol cannot carry", self.name);
            Error::Unimplemented(text.into())
        })
    }

    /// The dimensions as V2 writes them, with `-1` for a free one.
    pub fn wire_dims(&self) -> impl ExactSizeIterator<Item = i64> + '_ {
        self.dims.iter().map(|dim| dim.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX)))
    }

    /// True if the first dimension is free: rows of several calls may be laid together along it.
    pub fn has_free_rows(&self) -> bool {
        self.dims.first() == Some(&None)
    }
}

/// All inputs and outputs of a model, in the order the model declares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Inputs that a request must bring.
    pub inputs: Vec<TensorSpec>,
    /// Outputs that a run yields.
    pub outputs: Vec<TensorSpec>,
}

/// What the axes of a model's inputs and outputs are called, as far as they have names: free axes of one name have one length
/// in each run. In the signature's order; whatever is not there has no name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AxisNames {
    /// Of each input, each axis.
    pub inputs: Vec<Vec<Option<Arc<str>>>>,
    /// Of each output, each axis.
    pub outputs: Vec<Vec<Option<Arc<str>>>>,
}

impl AxisNames {
    /// The name of an axis of the input at this place.
    pub fn input(&self, place: usize, axis: usize) -> Option<&Arc<str>> {
        self.inputs.get(place)?.get(axis)?.as_ref()
    }

    /// The name of an axis of the output at this place.
    pub fn output(&self, place: usize, axis: usize) -> Option<&Arc<str>> {
        self.outputs.get(place)?.get(axis)?.as_ref()
    }
}

impl Signature {
    /// True if every input and every output has a free first dimension, and there is an input.
    ///
    /// Only then can rows of several calls be run as one batch (architecture section 10).
    pub fn is_batchable(&self) -> bool {
        !self.inputs.is_empty() && self.inputs.iter().chain(&self.outputs).all(TensorSpec::has_free_rows)
    }
}

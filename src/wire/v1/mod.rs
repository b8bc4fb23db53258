//! The JSON of KServe V1 and TensorFlow Serving (contract 03), and of `POST /predict`, their plainest form.
//!
//! Requests name no types: the model's decide, so nothing can be decoded without its signature. Values are read in one
//! pass by the reader of V2's JSON, straight into the memory of the tensor; shapes are learnt on the way. The tokens
//! `NaN`, `Infinity` and `-Infinity` are numbers here and nowhere else (contract 00 section 6).
//!
//! Which route a body came by, and whether its sender may, is not known here.

mod column;
mod element;
mod examples;
mod names;
mod report;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use examples::{Task, decode_examples, encode_results};
pub use names::Names;
pub(in crate::wire) use report::METHOD;
#[cfg(test)]
pub(in crate::wire) use report::dtype_name;
pub use report::{SIGNATURE, encode_catalog, encode_metadata, encode_model, encode_status, version_status};
pub use request::{decode_object, decode_predict};
pub use response::{encode_object, encode_predict};

/// Tokens that are numbers here, and nowhere else in JSON.
const NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// How the tensors of a request are laid out, and so those of its answer (contract 03 sections 2 and 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `instances` and `predictions`: one value after the other, each for all tensors.
    Rows,
    /// `inputs` and `outputs`: one tensor after the other.
    Columns,
}

impl Form {
    /// The member of a request.
    const fn member(self) -> &'static str {
        match self {
            Self::Rows => "instances",
            Self::Columns => "inputs",
        }
    }
}

//! V2 JSON; numbers are parsed straight into the final buffer.
//!
//! Requests are read in one pass by a reader of our own: no tree is built, nothing recurses, and the
//! values that matter never pass through a double. The same code reads V2 REST bodies and
//! `sluicegate.v1` messages, which differ in a few names ([`Dialect`]).

mod data;
mod event;
mod generate;
mod input;
mod manage;
pub(super) mod numbers;
mod plain;
mod reader;
mod report;
mod repository;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use event::{KEEP_ALIVE, encode_done_event, encode_error_event, encode_output_event, event};
pub use generate::{decode_generate, encode_generate};
pub use manage::{decode_index, decode_load, decode_logging, decode_trace, decode_unload};
pub use report::{encode_error, encode_report};
pub use request::decode_request;
pub use response::{encode_infer, write_outputs, write_parameters, write_string};

pub(super) use crate::tensor::half;
pub(super) use data::BASE64;
pub(super) use reader::{Items, MEMBERS, Members, Reader, twice};
pub(super) use report::write_error_members;
pub(super) use response::{write_integer, write_list, write_non_finite, write_response};

use super::{Settings, Wishes};
use crate::{
    call::{InferRequest, ModelRef, NamedTensor, Parameters, RequestedOutput},
    error::Error,
};
use std::{sync::Arc, time::Duration};

/// Where the raw bytes of a tensor are announced, and which members a request has at its top level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// V2 REST: `parameters.binary_data_size`, `parameters.timeout` in microseconds, `parameters.priority`.
    V2,
    /// A `sluicegate.v1` message: `byte_length`, `model`, `version`, `timeout_ms`, `priority` at the top level.
    /// `{"b64": "…"}` is allowed as `data` for BYTES and half types (contract 07 section 2).
    Message,
}

/// A decoded request body of either dialect.
#[derive(Clone, Debug)]
pub struct Request {
    /// `model`, in messages only.
    pub model: Option<Arc<str>>,
    /// `version`, in messages only.
    pub version: Option<Arc<str>>,
    /// `id`; empty counts as absent.
    pub id: Option<Arc<str>>,
    /// Inputs in wire order.
    pub inputs: Vec<NamedTensor>,
    /// Requested outputs.
    pub outputs: Vec<RequestedOutput>,
    /// How outputs are to be written.
    pub wishes: Wishes,
    /// A wish for a deadline.
    pub timeout: Option<Duration>,
    /// 0: the model's default.
    pub priority: u32,
    /// Everything else below `parameters`.
    pub parameters: Parameters,
}

impl Request {
    /// The operation on `model`, and how its outputs are to be written.
    pub fn about(self, model: ModelRef) -> (InferRequest, Wishes) {
        let request = InferRequest {
            model,
            client_id: self.id,
            inputs: self.inputs.into(),
            outputs: self.outputs,
            timeout: self.timeout,
            priority: self.priority,
            parameters: self.parameters,
        };
        (request, self.wishes)
    }
}

/// Decodes a V2 REST body without a binary tail.
///
/// # Errors
///
/// As [`decode_request`].
pub fn decode_infer(body: &[u8], model: ModelRef, settings: &Settings) -> Result<(InferRequest, Wishes), Error> {
    decode_request(body, Dialect::V2, None, settings).map(|request| request.about(model))
}

//! V2 JSON; numbers are parsed straight into the final buffer.

use super::{Settings, Wishes};
use crate::{
    call::{CallId, InferRequest, InferResponse, ModelRef, NamedTensor, Parameters, Report},
    error::Error,
};
use bytes::Bytes;
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
    /// Names of requested outputs.
    pub outputs: Vec<Arc<str>>,
    /// How outputs are to be written.
    pub wishes: Wishes,
    /// A wish for a deadline.
    pub timeout: Option<Duration>,
    /// 0: the model's default.
    pub priority: u32,
    /// Everything else below `parameters`.
    pub parameters: Parameters,
}

/// Decodes a request. `tail` holds the raw tensors that follow the JSON, already cut off it and
/// without the header; each tensor takes its announced bytes in order (in messages, after padding to 8
/// counted from `tail_offset`, the offset of `tail` from the start of the frame).
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`], naming what was found and what was expected.
pub fn decode_request(
    json: &[u8],
    dialect: Dialect,
    tail: Option<(Bytes, usize)>,
    settings: &Settings,
) -> Result<Request, Error> {
    let _ = (json, dialect, tail, settings);
    unimplemented!()
}

/// Decodes a V2 REST body without a binary tail.
///
/// # Errors
///
/// As [`decode_request`].
pub fn decode_infer(body: &[u8], model: ModelRef, settings: &Settings) -> Result<(InferRequest, Wishes), Error> {
    let _ = (body, model, settings);
    unimplemented!()
}

/// Appends `outputs` as a JSON array. Those that `wishes` wants raw are announced (in the way of `dialect`) and
/// returned in order; the others are written as numbers.
///
/// # Errors
///
/// [`Error::InvalidTensor`] for what has no JSON form: half types, strings that are not UTF-8, non-finite numbers under
/// [`NonFinite::Refuse`](super::NonFinite::Refuse).
pub fn write_outputs(
    out: &mut Vec<u8>,
    outputs: &[NamedTensor],
    dialect: Dialect,
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Vec<Bytes>, Error> {
    let _ = (out, outputs, dialect, wishes, settings);
    unimplemented!()
}

/// Encodes a V2 REST response whose tensors are all JSON (contract 01 section 2.4).
///
/// # Errors
///
/// As [`write_outputs`].
pub fn encode_infer(response: &InferResponse, id: &CallId, settings: &Settings) -> Result<Bytes, Error> {
    let _ = (response, id, settings);
    unimplemented!()
}

/// Encodes the answer to a question as V2 REST does (contract 01 sections 1 and 2).
pub fn encode_report(report: &Report) -> Bytes {
    let _ = report;
    unimplemented!()
}

/// Encodes an error of a V2 route: `error`, `code`, `request_id`, `retryable` (architecture section 8).
pub fn encode_error(error: &Error, id: &CallId) -> Bytes {
    let _ = (error, id);
    unimplemented!()
}

/// Appends `text` as a JSON string with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    let _ = (out, text);
    unimplemented!()
}

/// Appends parameters as a JSON object.
pub fn write_parameters(out: &mut Vec<u8>, parameters: &Parameters) {
    let _ = (out, parameters);
    unimplemented!()
}

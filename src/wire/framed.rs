//! JSON header and raw tensors: the binary tensor extension of V2 REST (contract 02 section 1).

use super::{Settings, Wishes};
use crate::{
    call::{CallId, InferRequest, InferResponse, ModelRef},
    error::Error,
};
use bytes::Bytes;

/// A response as a JSON header and the raw tensors that follow it.
#[derive(Clone, Debug)]
pub struct Framed {
    /// The JSON part; its length goes into `inference-header-content-length`.
    pub header: Bytes,
    /// The raw tensors, in the order of the header.
    pub tensors: Vec<Bytes>,
}

/// Decodes a V2 REST body whose first `header` bytes are JSON and whose rest is raw tensors.
///
/// # Errors
///
/// As [`json::decode_request`](super::json::decode_request); also if `header` is beyond the body.
pub fn decode_infer(
    body: &Bytes,
    header: usize,
    model: ModelRef,
    settings: &Settings,
) -> Result<(InferRequest, Wishes), Error> {
    let _ = (body, header, model, settings);
    unimplemented!()
}

/// Encodes a V2 REST response with some outputs raw.
///
/// # Errors
///
/// As [`json::write_outputs`](super::json::write_outputs).
pub fn encode_infer(
    response: &InferResponse,
    id: &CallId,
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Framed, Error> {
    let _ = (response, id, wishes, settings);
    unimplemented!()
}

//! Generated protobuf types and their conversions.

use super::Settings;
use crate::{
    call::{InferRequest, InferResponse, ModelReport, ServerReport},
    error::Error,
};

/// The generated types of `proto/open_inference.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, missing_debug_implementations)]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// The file descriptors of `proto/open_inference.proto`, encoded, as gRPC reflection serves them.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference_descriptor.bin"));

/// Converts a decoded gRPC message (contract 01 section 4).
///
/// # Errors
///
/// [`Error::InvalidRequest`] or [`Error::InvalidTensor`], naming what was found and what was expected.
pub fn decode_infer(message: inference::ModelInferRequest, settings: &Settings) -> Result<InferRequest, Error> {
    let _ = (message, settings);
    unimplemented!()
}

/// Converts a response; `raw_output_contents` has one entry per output, always.
pub fn encode_infer(response: InferResponse) -> inference::ModelInferResponse {
    let _ = response;
    unimplemented!()
}

/// Converts model metadata.
pub fn encode_model(report: &ModelReport) -> inference::ModelMetadataResponse {
    let _ = report;
    unimplemented!()
}

/// Converts server metadata.
pub fn encode_server(report: &ServerReport) -> inference::ServerMetadataResponse {
    let _ = report;
    unimplemented!()
}

//! What V1 clients read of models: lists, readiness, states of versions, metadata (contract 03 sections 1, 5 and 6).
//!
//! `GET /v1/models` and `GET /v1/models/M` have three owners and one answer that each of them understands (contract 00
//! section 3).

use crate::{
    call::{CatalogEntry, ModelReport, VersionState, VersionsReport},
    tensor::{DataType, TensorSpec},
    wire::json::{write_integer, write_list, write_string},
};
use bytes::Bytes;

/// The one signature that a model has (contract 03 section 6).
pub const SIGNATURE: &str = "serving_default";
/// What that signature is for.
pub(in crate::wire) const METHOD: &str = "tensorflow/serving/predict";
/// Whose models they are.
const OWNER: &str = "sluicegate";

/// Encodes the answer to `GET /v1/models`: OpenAI's list, and the names that KServe's clients read.
pub fn encode_catalog(entries: &[CatalogEntry]) -> Bytes {
    let mut out = Vec::with_capacity(64 + entries.len() * 128);
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":");
    write_list(&mut out, entries, |out, entry| {
        out.push(b'{');
        write_object(out, &entry.name, entry.since);
        out.push(b'}');
    });
    out.extend_from_slice(b",\"models\":");
    write_list(&mut out, entries, |out, entry| write_string(out, &entry.name));
    out.push(b'}');
    out.into()
}

/// Encodes the answer to `GET /v1/models/M` about a model that is ready: OpenAI's object, KServe's readiness and
/// TensorFlow Serving's states, all in one.
pub fn encode_model(report: &VersionsReport) -> Bytes {
    let mut out = Vec::with_capacity(256 + report.versions.len() * 128);
    out.push(b'{');
    write_object(&mut out, &report.name, report.since);
    out.extend_from_slice(b",\"name\":");
    write_string(&mut out, &report.name);
    out.extend_from_slice(if report.ready { b",\"ready\":true," } else { b",\"ready\":false," });
    write_versions(&mut out, report);
    out.push(b'}');
    out.into()
}

/// Encodes the states of versions alone, as `GET /v1/models/M/versions/V` asks for them.
pub fn encode_status(report: &VersionsReport) -> Bytes {
    let mut out = Vec::with_capacity(64 + report.versions.len() * 128);
    out.push(b'{');
    write_versions(&mut out, report);
    out.push(b'}');
    out.into()
}

/// Encodes metadata. The signature really stands in two objects of the same name.
pub fn encode_metadata(report: &ModelReport) -> Bytes {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"model_spec\":{\"name\":");
    write_string(&mut out, &report.name);
    out.extend_from_slice(b",\"signature_name\":\"\",\"version\":");
    write_string(&mut out, &report.version);
    out.extend_from_slice(b"},\"metadata\":{\"signature_def\":{\"signature_def\":{");
    write_string(&mut out, SIGNATURE);
    out.extend_from_slice(b":{\"inputs\":");
    write_specs(&mut out, &report.signature.inputs);
    out.extend_from_slice(b",\"outputs\":");
    write_specs(&mut out, &report.signature.outputs);
    out.extend_from_slice(b",\"method_name\":");
    write_string(&mut out, METHOD);
    out.extend_from_slice(b"}}}}}");
    out.into()
}

/// The state of a version in TensorFlow Serving's words, and the code and text of what is wrong with it: one that could
/// not be loaded has come to its end.
pub fn version_status(state: VersionState, reason: &str) -> (&'static str, &'static str, &str) {
    match state {
        VersionState::Loading => ("LOADING", "OK", ""),
        VersionState::Ready => ("AVAILABLE", "OK", ""),
        VersionState::Unloading => ("UNLOADING", "OK", ""),
        VersionState::Unloaded => ("END", "OK", ""),
        VersionState::Failed => ("END", "INTERNAL", reason),
    }
}

/// The name of an element type in TensorFlow.
pub(in crate::wire) const fn dtype_name(dtype: Option<DataType>) -> &'static str {
    match dtype {
        None => "DT_INVALID",
        Some(DataType::Bool) => "DT_BOOL",
        Some(DataType::Uint8) => "DT_UINT8",
        Some(DataType::Uint16) => "DT_UINT16",
        Some(DataType::Uint32) => "DT_UINT32",
        Some(DataType::Uint64) => "DT_UINT64",
        Some(DataType::Int8) => "DT_INT8",
        Some(DataType::Int16) => "DT_INT16",
        Some(DataType::Int32) => "DT_INT32",
        Some(DataType::Int64) => "DT_INT64",
        Some(DataType::Fp16) => "DT_HALF",
        Some(DataType::Bf16) => "DT_BFLOAT16",
        Some(DataType::Fp32) => "DT_FLOAT",
        Some(DataType::Fp64) => "DT_DOUBLE",
        Some(DataType::Bytes) => "DT_STRING",
    }
}

fn write_object(out: &mut Vec<u8>, name: &str, since: u64) {
    out.extend_from_slice(b"\"id\":");
    write_string(out, name);
    out.extend_from_slice(b",\"object\":\"model\",\"created\":");
    write_integer(out, since);
    out.extend_from_slice(b",\"owned_by\":");
    write_string(out, OWNER);
}

fn write_versions(out: &mut Vec<u8>, report: &VersionsReport) {
    out.extend_from_slice(b"\"model_version_status\":");
    write_list(out, &report.versions, |out, (version, state, reason)| {
        let (state, code, text) = version_status(*state, reason);
        out.extend_from_slice(b"{\"version\":");
        write_string(out, version);
        out.extend_from_slice(b",\"state\":");
        write_string(out, state);
        out.extend_from_slice(b",\"status\":{\"error_code\":");
        write_string(out, code);
        out.extend_from_slice(b",\"error_message\":");
        write_string(out, text);
        out.extend_from_slice(b"}}");
    });
}

fn write_specs(out: &mut Vec<u8>, specs: &[TensorSpec]) {
    out.push(b'{');
    for (at, spec) in specs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_string(out, &spec.name);
        out.extend_from_slice(b":{\"dtype\":");
        write_string(out, dtype_name(spec.dtype));
        out.extend_from_slice(b",\"tensor_shape\":{\"dim\":");
        write_list(out, spec.wire_dims(), |out, dim| {
            // 64-bit integers are strings in the JSON of protobuf.
            out.extend_from_slice(b"{\"size\":\"");
            write_integer(out, dim);
            out.extend_from_slice(b"\",\"name\":\"\"}");
        });
        out.extend_from_slice(b",\"unknown_rank\":false},\"name\":");
        write_string(out, &format!("{}:0", spec.name));
        out.push(b'}');
    }
    out.push(b'}');
}

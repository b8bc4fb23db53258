//! Answers to questions, and errors, as V2 REST writes them.

use super::{
    repository::{write_index, write_logging, write_statistics, write_trace},
    response::{write_integer, write_list, write_string},
};
use crate::{
    call::{CallId, ModelReport, Report},
    error::Error,
    tensor::TensorSpec,
    wire::proto,
};
use bytes::Bytes;

/// Encodes the answer to a question as V2 REST does (contract 01 sections 1 and 2, contract 02).
pub fn encode_report(report: &Report) -> Bytes {
    let mut out = Vec::with_capacity(256);
    match report {
        Report::Index(entries) => write_index(&mut out, entries),
        Report::Statistics(reports) => write_statistics(&mut out, reports),
        Report::Trace(settings) => write_trace(&mut out, settings),
        Report::Logging(logging) => write_logging(&mut out, logging),
        Report::Config(config) => return proto::encode_config_json(config),
        report => write_object(&mut out, report),
    }
    out.into()
}

fn write_object(out: &mut Vec<u8>, report: &Report) {
    match report {
        Report::Caller(identity) => {
            out.extend_from_slice(b"{\"identity\":");
            write_string(out, identity.id());
            out.extend_from_slice(b",\"groups\":");
            write_list(out, identity.groups(), |out, group| write_string(out, group));
        }
        Report::Server(server) => {
            out.extend_from_slice(b"{\"name\":");
            write_string(out, server.name);
            out.extend_from_slice(b",\"version\":");
            write_string(out, server.version);
            out.extend_from_slice(b",\"extensions\":");
            write_list(out, server.extensions, |out, extension| write_string(out, extension));
        }
        Report::Catalog(models) => {
            out.extend_from_slice(b"{\"models\":");
            write_list(out, models, |out, model| write_string(out, &model.name));
        }
        Report::Models(models) => {
            out.extend_from_slice(b"{\"models\":");
            write_list(out, models, |out, model| write_string(out, model));
        }
        Report::Model(model) => write_model(out, model),
        Report::Ready { model, ready } => {
            out.extend_from_slice(b"{\"name\":");
            write_string(out, model);
            out.extend_from_slice(if *ready { b",\"ready\":true" } else { b",\"ready\":false" });
        }
        Report::Versions(report) => {
            out.extend_from_slice(b"{\"name\":");
            write_string(out, &report.name);
            out.extend_from_slice(if report.ready { b",\"ready\":true" } else { b",\"ready\":false" });
        }
        // As KServe answers; Triton's clients do not read it (contract 02 section 5).
        Report::Loaded(name) => write_done(out, name, b",\"load\":true"),
        Report::Unloaded(name) => write_done(out, name, b",\"unload\":true"),
        Report::Index(_)
        | Report::Statistics(_)
        | Report::Trace(_)
        | Report::Logging(_)
        | Report::Config(_)
        | Report::Metrics => return,
    }
    out.push(b'}');
}

fn write_done(out: &mut Vec<u8>, name: &str, done: &[u8]) {
    out.extend_from_slice(b"{\"name\":");
    write_string(out, name);
    out.extend_from_slice(done);
}

fn write_model(out: &mut Vec<u8>, model: &ModelReport) {
    out.extend_from_slice(b"{\"name\":");
    write_string(out, &model.name);
    out.extend_from_slice(b",\"versions\":");
    write_list(out, &model.versions, |out, version| write_string(out, version));
    out.extend_from_slice(b",\"platform\":");
    write_string(out, &model.platform);
    out.extend_from_slice(b",\"inputs\":");
    write_list(out, &model.signature.inputs, write_spec);
    out.extend_from_slice(b",\"outputs\":");
    write_list(out, &model.signature.outputs, write_spec);
}

fn write_spec(out: &mut Vec<u8>, spec: &TensorSpec) {
    out.extend_from_slice(b"{\"name\":");
    write_string(out, &spec.name);
    out.extend_from_slice(b",\"datatype\":");
    write_string(out, spec.dtype_name());
    out.extend_from_slice(b",\"shape\":");
    write_list(out, spec.wire_dims(), write_integer);
    out.push(b'}');
}

/// Encodes an error of a V2 route: `error`, `code`, `request_id`, `retryable` (architecture section 8).
///
/// `error` is a plain string: clients of this family read nothing else.
pub fn encode_error(error: &Error, id: &CallId) -> Bytes {
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    write_error_members(&mut out, error, id);
    out.push(b'}');
    out.into()
}

/// Appends the members that every JSON error has, without braces.
pub(in crate::wire) fn write_error_members(out: &mut Vec<u8>, error: &Error, id: &CallId) {
    let row = error.code().row();
    out.extend_from_slice(b"\"error\":");
    write_string(out, &error.to_string());
    out.extend_from_slice(b",\"code\":\"");
    out.extend_from_slice(row.name.as_bytes());
    out.extend_from_slice(b"\",\"request_id\":");
    write_id(out, id);
    out.extend_from_slice(if row.retry { b",\"retryable\":true" } else { b",\"retryable\":false" });
}

/// Appends a call id as a JSON string.
pub(in crate::wire) fn write_id(out: &mut Vec<u8>, id: &CallId) {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = match id {
        CallId::Given(id) => id,
        CallId::Made(uuid) => &*uuid.hyphenated().encode_lower(&mut buffer),
    };
    // Sane by construction: no character that JSON escapes.
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

//! What the server says (contract 06 C3).

use super::binary::{LENGTH, padding};
use crate::{
    call::{InferResponse, Timing},
    error::Error,
    wire::{
        Settings, Wishes,
        json::{self, Dialect},
    },
};
use bytes::Bytes;
use std::time::Duration;

/// Raw tensors below this size are copied behind the JSON: a piece of their own would cost more than the copy.
const SMALL: usize = 4096;

/// A message of the server, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// JSON.
    Text(Bytes),
    /// A binary frame, in pieces.
    Binary(Vec<Bytes>),
}

/// Writes `output`: the outputs of `response`, number `seq` of the request `id`.
///
/// # Errors
///
/// As [`json::write_outputs`].
pub fn output(
    id: &str,
    seq: u64,
    last: bool,
    response: &InferResponse,
    wishes: &Wishes,
    settings: &Settings,
) -> Result<Encoded, Error> {
    let binary = wishes.any_binary(response.outputs.iter().map(|output| &*output.name));
    let start = if binary { LENGTH } else { 0 };
    let mut out = Vec::with_capacity(start + estimate(response, wishes));
    out.resize(start, 0);
    out.extend_from_slice(b"{\"type\":\"output\",\"id\":");
    json::write_string(&mut out, id);
    out.extend_from_slice(b",\"seq\":");
    integer(&mut out, seq);
    out.extend_from_slice(if last { b",\"final\":true" } else { b",\"final\":false" });
    out.extend_from_slice(b",\"model\":");
    json::write_string(&mut out, &response.model.name);
    out.extend_from_slice(b",\"version\":");
    json::write_string(&mut out, &response.model.version);
    out.extend_from_slice(b",\"outputs\":");
    let tensors = json::write_outputs(&mut out, &response.outputs, Dialect::Message, wishes, settings)?;
    if !response.parameters.is_empty() {
        out.extend_from_slice(b",\"parameters\":");
        json::write_parameters(&mut out, &response.parameters);
    }
    out.push(b'}');
    if !binary {
        return Ok(Encoded::Text(out.into()));
    }
    let length = u32::try_from(out.len() - LENGTH).map_err(|_| Error::internal("a message beyond 4 GiB"))?;
    out[..LENGTH].copy_from_slice(&length.to_le_bytes());
    Ok(Encoded::Binary(frame(out, tensors)))
}

/// Lays tensors behind the JSON, each on a multiple of 8, in pieces that share the memory of large ones.
fn frame(mut piece: Vec<u8>, tensors: Vec<Bytes>) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(tensors.len() + 1);
    let mut at = piece.len();
    for tensor in tensors {
        // Before an empty one too: a view of nothing must still lie within the frame.
        let zeros = padding(at);
        piece.extend_from_slice(zeros);
        at += zeros.len() + tensor.len();
        if tensor.len() < SMALL {
            piece.extend_from_slice(&tensor);
        } else {
            if !piece.is_empty() {
                pieces.push(std::mem::take(&mut piece).into());
            }
            pieces.push(tensor);
        }
    }
    if !piece.is_empty() {
        pieces.push(piece.into());
    }
    pieces
}

/// Room for nearly every message, so that its text is not moved while it grows.
fn estimate(response: &InferResponse, wishes: &Wishes) -> usize {
    let outputs = response.outputs.iter().map(|output| {
        let data = output.tensor.data().len();
        // Three characters per byte is `0.123456789,` for four: the common longest.
        let data = if wishes.wants_binary(&output.name) { data.min(SMALL) } else { data * 3 };
        output.name.len() + 96 + data
    });
    192 + outputs.sum::<usize>()
}

/// Writes `done`: the request `id` is over without a last tensor.
pub fn done(id: &str, timing: Option<Timing>) -> Bytes {
    let mut out = about("done", Some(id));
    if let Some(timing) = timing {
        out.extend_from_slice(b",\"timing\":{\"queue_us\":");
        integer(&mut out, micros(timing.queue));
        out.extend_from_slice(b",\"compute_us\":");
        integer(&mut out, micros(timing.compute));
        out.push(b'}');
    }
    end(out)
}

/// Writes the `done` that ends a whole stream (contract 07 section 2): what was asked, and how much of it failed.
pub fn finished(requests: u64, errors: u64) -> Bytes {
    let mut out = about("done", None);
    out.extend_from_slice(b",\"requests\":");
    integer(&mut out, requests);
    out.extend_from_slice(b",\"errors\":");
    integer(&mut out, errors);
    end(out)
}

/// Writes `cancelled`.
pub fn cancelled(id: &str) -> Bytes {
    end(about("cancelled", Some(id)))
}

/// Writes `error` about the request `id`.
pub fn error(id: &str, error: &Error) -> Bytes {
    failure(Some(id), error)
}

/// Writes `error` about the session or stream itself.
pub fn server_error(error: &Error) -> Bytes {
    failure(None, error)
}

fn failure(id: Option<&str>, error: &Error) -> Bytes {
    let code = error.code().row();
    let mut out = about("error", id);
    out.extend_from_slice(b",\"code\":\"");
    out.extend_from_slice(code.name.as_bytes());
    out.extend_from_slice(b"\",\"message\":");
    json::write_string(&mut out, &error.to_string());
    out.extend_from_slice(if code.retry { b",\"retryable\":true" } else { b",\"retryable\":false" });
    if let Some(after) = error.retry_after() {
        out.extend_from_slice(b",\"retry_after_ms\":");
        // Rounded up: a client that comes a moment too early is refused once more.
        integer(&mut out, micros(after).div_ceil(1000));
    }
    end(out)
}

/// Writes `auth_required`.
pub fn auth_required(within: Duration) -> Bytes {
    deadline("auth_required", None, within)
}

/// Writes `goaway`.
pub fn goaway(reason: &str, within: Duration) -> Bytes {
    deadline("goaway", Some(reason), within)
}

fn deadline(kind: &str, reason: Option<&str>, within: Duration) -> Bytes {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.push(b'"');
    if let Some(reason) = reason {
        out.extend_from_slice(b",\"reason\":");
        json::write_string(&mut out, reason);
    }
    out.extend_from_slice(b",\"deadline_ms\":");
    integer(&mut out, micros(within) / 1000);
    end(out)
}

/// Writes `pong` with the `t` of the ping, as JSON.
pub fn pong(t: Option<&str>) -> Bytes {
    let Some(t) = t else { return Bytes::from_static(b"{\"type\":\"pong\"}") };
    let mut out = Vec::with_capacity(t.len() + 24);
    out.extend_from_slice(b"{\"type\":\"pong\",\"t\":");
    out.extend_from_slice(t.as_bytes());
    end(out)
}

fn about(kind: &str, id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"id\":");
    match id {
        Some(id) => json::write_string(&mut out, id),
        None => out.extend_from_slice(b"null"),
    }
    out
}

fn end(mut out: Vec<u8>) -> Bytes {
    out.push(b'}');
    out.into()
}

fn integer(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{ModelKey, NamedTensor},
        tensor::{DataType, Tensor},
    };
    use std::sync::Arc;

    fn response(outputs: Vec<NamedTensor>) -> InferResponse {
        InferResponse {
            model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
            client_id: None,
            outputs,
            parameters: Vec::new(),
            timing: Timing::default(),
        }
    }

    fn tensor(name: &str, values: Vec<f32>) -> NamedTensor {
        let shape = [1, values.len()].into();
        NamedTensor { name: name.into(), tensor: Tensor::of(DataType::Fp32, shape, values).unwrap() }
    }

    fn binary() -> Wishes {
        Wishes { binary: true, outputs: Vec::new() }
    }

    #[test]
    fn the_output_of_the_contract_as_text() {
        let response = response(vec![tensor("Y", vec![0.25, -1.5])]);
        let encoded = output("a1", 0, true, &response, &Wishes::default(), &Settings::default()).unwrap();
        let expected = concat!(
            r#"{"type":"output","id":"a1","seq":0,"final":true,"model":"m","version":"1","#,
            r#""outputs":[{"name":"Y","datatype":"FP32","shape":[1,2],"data":[0.25,-1.5]}]}"#
        );
        assert_eq!(encoded, Encoded::Text(Bytes::from_static(expected.as_bytes())));
    }

    #[test]
    fn the_output_of_the_contract_as_a_binary_frame() {
        let response = response(vec![tensor("Y", vec![0.25, -1.5])]);
        let Encoded::Binary(pieces) = output("a1", 0, true, &response, &binary(), &Settings::default()).unwrap() else {
            panic!("not binary")
        };
        let frame = pieces.concat();
        let json = concat!(
            r#"{"type":"output","id":"a1","seq":0,"final":true,"model":"m","version":"1","#,
            r#""outputs":[{"name":"Y","datatype":"FP32","shape":[1,2],"byte_length":8}]}"#
        );
        // Contract 06 C4 counts 147; the frame begins with what it has.
        assert_eq!(frame[..4], u32::try_from(json.len()).unwrap().to_le_bytes());
        assert_eq!(&frame[4..4 + json.len()], json.as_bytes());
        let at = (4 + json.len()).next_multiple_of(8);
        assert_eq!(frame[at..], [0, 0, 0x80, 0x3e, 0, 0, 0xc0, 0xbf]);
    }

    #[test]
    fn large_tensors_are_pieces_of_their_own_and_all_lie_on_eight() {
        let large = tensor("L", vec![1.0; 2001]);
        let response =
            response(vec![tensor("a", vec![1.0]), large.clone(), tensor("z", vec![]), tensor("b", vec![2.0])]);
        let Encoded::Binary(pieces) = output("i", 7, false, &response, &binary(), &Settings::default()).unwrap() else {
            panic!("not binary")
        };
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].as_ptr(), large.tensor.data().as_ptr(), "shared, not copied");
        let head = pieces[0].len();
        assert_eq!(head % 8, 0);
        assert_eq!(pieces[2].len(), padding(head + 8004).len() + 4);
    }

    #[test]
    fn errors_say_when_to_come_again() {
        let limited = Error::RateLimited { retry_after: Duration::from_micros(1500), cap: crate::error::Cap::Address };
        let expected = concat!(
            r#"{"type":"error","id":"a","code":"rate_limited","message":"rate limit reached: too many failed authentications from this address","#,
            r#""retryable":true,"retry_after_ms":2}"#
        );
        assert_eq!(error("a", &limited), expected);
        let expected = concat!(
            r#"{"type":"error","id":null,"code":"unauthenticated","message":"valid credentials are required","#,
            r#""retryable":false}"#
        );
        assert_eq!(server_error(&Error::Unauthenticated), expected);
    }

    #[test]
    fn the_short_messages() {
        assert_eq!(cancelled("a"), r#"{"type":"cancelled","id":"a"}"#);
        assert_eq!(done("a", None), r#"{"type":"done","id":"a"}"#);
        let timing = Timing { queue: Duration::from_micros(3), compute: Duration::from_micros(5) };
        assert_eq!(done("a", Some(timing)), r#"{"type":"done","id":"a","timing":{"queue_us":3,"compute_us":5}}"#);
        assert_eq!(finished(2, 0), r#"{"type":"done","id":null,"requests":2,"errors":0}"#);
        assert_eq!(auth_required(Duration::from_secs(30)), r#"{"type":"auth_required","deadline_ms":30000}"#);
        assert_eq!(goaway("draining", Duration::ZERO), r#"{"type":"goaway","reason":"draining","deadline_ms":0}"#);
        assert_eq!(pong(None), r#"{"type":"pong"}"#);
        assert_eq!(pong(Some("[1]")), r#"{"type":"pong","t":[1]}"#);
    }
}

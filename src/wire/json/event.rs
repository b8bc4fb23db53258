//! Server-sent events: their form, and those of `infer_stream` (contract 07 section 1).
//!
//! When they are sent, and what they mean for a connection, is the front-end's.

use super::{
    encode_infer,
    report::{encode_error, write_id},
    response::write_string,
};
use crate::{
    call::{CallId, InferResponse},
    error::Error,
    wire::Settings,
};
use bytes::Bytes;

/// Encodes a response as an event of `infer_stream`.
///
/// # Errors
///
/// As [`encode_infer`].
pub fn encode_output_event(response: &InferResponse, id: &CallId, settings: &Settings) -> Result<Bytes, Error> {
    let json = encode_infer(response, id, settings)?;
    Ok(event(Some("output"), &json))
}

/// The event that ends an `infer_stream`.
pub fn encode_done_event(client_id: Option<&str>, id: &CallId) -> Bytes {
    let mut json = b"{\"id\":".to_vec();
    match client_id {
        Some(id) => write_string(&mut json, id),
        None => write_id(&mut json, id),
    }
    json.push(b'}');
    event(Some("done"), &json)
}

/// An event: its name, if it has one, and one line of data (contract 07 section 1).
pub fn event(name: Option<&str>, data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 32);
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out.into()
}

/// What keeps a silent stream open: a comment.
pub const KEEP_ALIVE: &[u8] = b": k\n\n";

/// The event that ends an `infer_stream` which failed.
pub fn encode_error_event(error: &Error, id: &CallId) -> Bytes {
    event(Some("error"), &encode_error(error, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_with_a_blank_line() {
        assert_eq!(event(None, b"{}"), "data: {}\n\n");
        assert_eq!(encode_done_event(Some("r"), &CallId::make()), "event: done\ndata: {\"id\":\"r\"}\n\n");
        let error = encode_error_event(&Error::Cancelled, &CallId::from_client(Some("c")));
        assert!(error.starts_with(b"event: error\ndata: {\"error\":") && error.ends_with(b"}\n\n"));
    }

    #[test]
    fn data_is_one_line_whatever_it_says() {
        let id = CallId::make();
        let event = encode_done_event(Some("a\nb\r"), &id);
        assert_eq!(event.iter().filter(|byte| **byte == b'\n').count(), 3);
        assert!(!event.contains(&b'\r'));
    }
}

//! The messages of `sluicegate.v1` (contract 06 C3), as WebSocket and NDJSON carry them.
//!
//! What comes in is looked at twice: [`Envelope::peek`] finds what has to be known before there is a call, without
//! parsing tensors, and [`decode_infer`] reads the rest when the stack asks for it. Knows nothing of sockets, sessions
//! and close codes: what a fault means for the connection is the front-end's business.

mod binary;
mod encode;
mod envelope;
mod session;
mod skim;

pub use binary::Frame;
pub use encode::{Encoded, auth_required, cancelled, done, error, finished, goaway, output, pong, server_error};
pub use envelope::{Envelope, Kind, is_valid_id};
pub use session::{Auth, Hello, Limits, Want, auth, hello, welcome};

use super::{
    Settings, Wishes,
    json::{self, Dialect},
};
use crate::{
    call::{InferRequest, ModelRef},
    error::Error,
};
use bytes::Bytes;

/// Decodes an `infer` message. `tail` are the raw tensors behind the JSON, with their offset from the start of the
/// frame; `binary` is what the session wants of outputs if the message does not say.
///
/// # Errors
///
/// As [`json::decode_request`]; also if no model is named.
pub fn decode_infer(
    json: &[u8],
    tail: Option<(Bytes, usize)>,
    binary: Option<bool>,
    settings: &Settings,
) -> Result<(InferRequest, Wishes), Error> {
    let mut request = json::decode_request(json, Dialect::Message, tail, settings)?;
    let Some(name) = request.model.take() else {
        return Err(Error::invalid("the message has no `model`"));
    };
    let model = ModelRef { name, version: request.version.take() };
    let (request, mut wishes) = request.about(model);
    if let Some(binary) = binary {
        wishes.binary = binary;
    }
    Ok((request, wishes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_which_model_and_how_it_wants_its_outputs() {
        let json = br#"{"type":"infer","id":"a","model":"m","version":"2","timeout_ms":5,"inputs":[],
            "outputs":[{"name":"x","binary":false},{"name":"y"}]}"#;
        let (request, wishes) = decode_infer(json, None, Some(true), &Settings::default()).unwrap();
        assert_eq!(request.model, ModelRef { name: "m".into(), version: Some("2".into()) });
        assert_eq!(request.client_id.as_deref(), Some("a"));
        assert_eq!(request.timeout, Some(std::time::Duration::from_millis(5)));
        assert!(!wishes.wants_binary("x"), "what an output says wins over what the session wants");
        assert!(wishes.wants_binary("y"));
    }

    #[test]
    fn a_request_without_a_model_is_refused() {
        let error = decode_infer(br#"{"inputs":[]}"#, None, None, &Settings::default()).unwrap_err();
        assert_eq!(error.to_string(), "the message has no `model`");
    }
}

//! Problem details (RFC 9457, contract 10 section 3), for the gateway's own routes.

use crate::{call::CallId, error::Error};
use bytes::Bytes;

/// Encodes `error` as problem details about the path `instance`, with `error`, `code` and `request_id` beside.
pub fn encode(error: &Error, id: &CallId, instance: &str) -> Bytes {
    let _ = (error, id, instance);
    unimplemented!()
}

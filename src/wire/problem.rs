//! Problem details (RFC 9457, contract 10 section 3), for the gateway's own routes.
//!
//! It does not decide who gets them: that is a question of the route and of `Accept`.

use super::json;
use crate::{
    call::CallId,
    error::{Cap, Code, Error},
};
use bytes::Bytes;

/// What the rate-limit draft calls a quota that is used up.
const QUOTA_EXCEEDED: &[u8] = b"{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded";

/// Encodes `error` as problem details about the path `instance`, with `error`, `code`, `request_id` and `retryable`
/// beside. `status` is that of the response line: for some errors it is not the one of their code.
pub fn encode(error: &Error, status: u16, id: &CallId, instance: &str) -> Bytes {
    let code = error.code();
    let mut out = Vec::with_capacity(384);
    match error {
        Error::RateLimited { cap: Cap::Policy(_), .. } => out.extend_from_slice(QUOTA_EXCEEDED),
        _ => {
            // Relative, so that every deployment points at its own documentation.
            out.extend_from_slice(b"{\"type\":\"/docs#error-");
            out.extend_from_slice(code.name().as_bytes());
        }
    }
    out.extend_from_slice(b"\",\"title\":\"");
    out.extend_from_slice(title(code).as_bytes());
    out.extend_from_slice(b"\",\"status\":");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.extend_from_slice(b",\"detail\":");
    json::write_string(&mut out, &error.to_string());
    out.extend_from_slice(b",\"instance\":");
    json::write_string(&mut out, instance);
    if let Error::RateLimited { cap, .. } = error {
        out.extend_from_slice(b",\"violated-policies\":[");
        json::write_string(&mut out, cap.name());
        out.push(b']');
    }
    out.push(b',');
    json::write_error_members(&mut out, error, id);
    out.push(b'}');
    out.into()
}

/// Encodes problem details of an HTTP `status` that has no code of ours (414, 426, 431), about the path `instance`.
pub fn plain(status: u16, title: &str, detail: &str, id: &CallId, instance: &str) -> Bytes {
    let mut out = Vec::with_capacity(192 + detail.len() + instance.len());
    out.extend_from_slice(b"{\"type\":\"about:blank\",\"title\":");
    json::write_string(&mut out, title);
    out.extend_from_slice(b",\"status\":");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.extend_from_slice(b",\"detail\":");
    json::write_string(&mut out, detail);
    out.extend_from_slice(b",\"instance\":");
    json::write_string(&mut out, instance);
    out.extend_from_slice(b",\"request_id\":");
    json::write_string(&mut out, &id.to_string());
    out.push(b'}');
    out.into()
}

const fn title(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "Invalid argument",
        Code::Unauthenticated => "Not authenticated",
        Code::PermissionDenied => "Permission denied",
        Code::NotFound => "Not found",
        Code::MethodNotAllowed => "Method not allowed",
        Code::Conflict => "Conflict",
        Code::PayloadTooLarge => "Payload too large",
        Code::UnsupportedMediaType => "Unsupported media type",
        Code::Unprocessable => "Unprocessable",
        Code::RateLimited => "Rate limited",
        Code::Overloaded => "Overloaded",
        Code::NotReady => "Not ready",
        Code::DeadlineExceeded => "Deadline exceeded",
        Code::Cancelled => "Cancelled",
        Code::Unimplemented => "Not implemented",
        Code::Internal => "Internal error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_of_a_problem() {
        let id = CallId::Given("c-1".into());
        let error = Error::NoRoute("no such path".into());
        assert_eq!(
            std::str::from_utf8(&encode(&error, 404, &id, "/v1/ws/\"x")).unwrap(),
            concat!(
                r#"{"type":"/docs#error-not_found","title":"Not found","status":404,"detail":"no such path","#,
                r#""instance":"/v1/ws/\"x","error":"no such path","code":"not_found","request_id":"c-1","retryable":false}"#
            )
        );
    }

    #[test]
    fn every_code_has_its_own_type() {
        let titles: std::collections::HashSet<_> = Code::ALL.into_iter().map(title).collect();
        assert_eq!(titles.len(), Code::ALL.len());
    }
}

//! Problem details (RFC 9457, contract 10 section 3), for the gateway's own routes.
//!
//! It does not decide who gets them: that is a question of the route and of `Accept`.

use super::json;
use crate::{
    call::CallId,
    error::{Cap, Code, Error},
};
use bytes::Bytes;

/// What the rate-limit draft calls a quota that is used up, and its title.
const QUOTA_EXCEEDED: (&str, &str) =
    ("https://iana.org/assignments/http-problem-types#quota-exceeded", "Quota exceeded");
/// And what it calls a client that behaves as none should, which is what the address gate counts.
const ABNORMAL_USAGE: (&str, &str) =
    ("https://iana.org/assignments/http-problem-types#abnormal-usage-detected", "Abnormal usage detected");

/// Encodes `error` as problem details about the path `instance`, with `error`, `code`, `request_id` and `retryable`
/// beside. `status` is that of the response line: for some errors it is not the one of their code.
pub fn encode(error: &Error, status: u16, id: &CallId, instance: &str) -> Bytes {
    let code = error.code();
    let mut out = Vec::with_capacity(384);
    out.extend_from_slice(b"{\"type\":\"");
    let registered = match error {
        Error::RateLimited { cap: Cap::Policy(_), .. } => Some(QUOTA_EXCEEDED),
        Error::RateLimited { cap: Cap::Address, .. } => Some(ABNORMAL_USAGE),
        _ => None,
    };
    let title = match registered {
        Some((kind, title)) => {
            out.extend_from_slice(kind.as_bytes());
            title
        }
        None => {
            // Relative, so that every deployment points at its own documentation.
            out.extend_from_slice(b"/docs#error-");
            out.extend_from_slice(code.name().as_bytes());
            title(code)
        }
    };
    out.extend_from_slice(b"\",\"title\":\"");
    out.extend_from_slice(title.as_bytes());
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
    use crate::error::Allowance;
    use std::{sync::Arc, time::Duration};

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
    fn what_a_caller_used_up_has_the_type_of_the_draft_where_there_is_one() {
        let allowance =
            Allowance { name: "rows".into(), limit: 5, per: Duration::from_secs(1), burst: 5, unit: "rows" };
        let draft = "https://iana.org/assignments/http-problem-types";
        for (cap, kind, title, policy) in [
            (Cap::Policy(Arc::new(allowance)), format!("{draft}#quota-exceeded"), "Quota exceeded", "rows"),
            (Cap::Address, format!("{draft}#abnormal-usage-detected"), "Abnormal usage detected", "address"),
            (Cap::Calls, "/docs#error-rate_limited".into(), "Rate limited", "concurrency"),
        ] {
            let error = Error::RateLimited { retry_after: Duration::from_secs(1), cap };
            let body = encode(&error, 429, &CallId::Given("c-1".into()), "/v1/ws");
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["type"], &body["title"]), (&kind.into(), &title.into()), "{body}");
            assert_eq!((&body["violated-policies"][0], &body["status"]), (&policy.into(), &429.into()), "{body}");
        }
    }

    #[test]
    fn every_code_has_its_own_type() {
        let titles: std::collections::HashSet<_> = Code::ALL.into_iter().map(title).collect();
        assert_eq!(titles.len(), Code::ALL.len());
    }
}

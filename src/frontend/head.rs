//! What HTTP headers and gRPC metadata say about a call: its id and its credentials.

use crate::call::{CallId, Credentials};
use http::{HeaderMap, HeaderName, header::AUTHORIZATION};

/// The header that names a call (contract 00 section 5).
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header that carries an API key.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The client's id if it is sane; else a new one.
pub fn call_id(headers: &HeaderMap) -> CallId {
    CallId::from_client(headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()))
}

/// Claims in the headers: `authorization` first, then `x-api-key`. Never a cookie (contract 06 C1).
///
/// A header that is there but unreadable is a claim that proves nothing, not an absent one.
pub fn credentials(headers: &HeaderMap) -> Credentials {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let value = value.to_str().unwrap_or_default();
        return match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Credentials::Bearer(token.trim().into()),
            Some(_) => Credentials::ApiKey("".into()),
            None => Credentials::ApiKey(value.into()),
        };
    }
    match headers.get(API_KEY) {
        Some(value) => Credentials::ApiKey(value.to_str().unwrap_or_default().into()),
        None => Credentials::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn bearer_wins_over_a_key_and_a_cookie_is_nothing() {
        let both = headers(&[("authorization", "bearer t"), ("x-api-key", "k")]);
        assert!(matches!(credentials(&both), Credentials::Bearer(token) if &*token == "t"));
        let key = headers(&[("x-api-key", "k")]);
        assert!(matches!(credentials(&key), Credentials::ApiKey(token) if &*token == "k"));
        let raw = headers(&[("authorization", "k")]);
        assert!(matches!(credentials(&raw), Credentials::ApiKey(token) if &*token == "k"));
        assert!(matches!(credentials(&headers(&[("cookie", "x-api-key=k")])), Credentials::None));
        assert!(matches!(credentials(&headers(&[("authorization", "Basic eDp5")])), Credentials::ApiKey(_)));
    }
}

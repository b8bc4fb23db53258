//! What HTTP headers and gRPC metadata say about a call: its id, its credentials, and the form of its body.

use super::body::Coding;
use crate::{
    call::{CallId, Credentials, trace::TraceContext},
    error::Error,
};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that names a call (contract 00 section 5).
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header that carries an API key.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How many bytes at the start of a body are JSON (contract 02 section 1.1).
pub const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
/// Bytes of a header field besides its name and value, as HTTP/1.1 writes it.
const FIELD_REST: usize = 4;

/// What is asked of every head, found in one pass over its fields: a look-up by name hashes that name, and one request
/// would pay for a dozen of them. Of a field that is repeated, the first counts.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    headers: &'a HeaderMap,
    /// Bytes of all fields as HTTP/1.1 writes them.
    pub size: usize,
    /// `host`.
    pub host: Single<'a>,
    /// `content-type`.
    pub content_type: Option<&'a HeaderValue>,
    /// Whether there is a `content-encoding`.
    pub encoded: bool,
    /// Whether there is a `transfer-encoding` other than `chunked`, which nobody here undoes (RFC 9112 section 6.1).
    pub transfer: bool,
    /// Whether there is an `accept-encoding`.
    accepts: bool,
    /// Whether `accept` names problem details before anything else (contract 10 section 3).
    pub problem: bool,
    /// Whether there is an `origin`: a page is asking.
    pub origin: bool,
    /// [`JSON_LENGTH`].
    pub json_length: Single<'a>,
    /// Whether there is an `upgrade`.
    pub upgrade: bool,
    /// [`REQUEST_ID`].
    pub request_id: Option<&'a HeaderValue>,
    /// `grpc-encoding`.
    pub grpc_encoding: Option<&'a HeaderValue>,
    /// `grpc-timeout`.
    pub grpc_timeout: Option<&'a HeaderValue>,
    traceparent: Option<&'a HeaderValue>,
    authorization: Single<'a>,
    api_key: Single<'a>,
}

/// A field that may stand once.
#[derive(Clone, Copy, Debug, Default)]
pub enum Single<'a> {
    /// It is not there.
    #[default]
    Absent,
    /// Its value.
    Once(&'a HeaderValue),
    /// It is there more than once, and which of them another reader would take is anyone's guess.
    Repeated,
}

// === impl Fields ===

impl<'a> Fields<'a> {
    /// Those of `headers`.
    pub fn of(headers: &'a HeaderMap) -> Self {
        let mut fields = Self {
            headers,
            size: 0,
            host: Single::Absent,
            content_type: None,
            encoded: false,
            transfer: false,
            accepts: false,
            problem: false,
            origin: false,
            json_length: Single::Absent,
            upgrade: false,
            request_id: None,
            grpc_encoding: None,
            grpc_timeout: None,
            traceparent: None,
            authorization: Single::Absent,
            api_key: Single::Absent,
        };
        for (name, value) in headers {
            let name = name.as_str();
            fields.size += name.len() + value.len() + FIELD_REST;
            match name {
                "host" => fields.host.see(value),
                "content-type" => _ = fields.content_type.get_or_insert(value),
                "content-encoding" => fields.encoded = true,
                "transfer-encoding" => fields.transfer |= !value.as_bytes().eq_ignore_ascii_case(b"chunked"),
                "accept" => fields.problem |= is_problem(value),
                "accept-encoding" => fields.accepts = true,
                "origin" => fields.origin = true,
                "inference-header-content-length" => fields.json_length.see(value),
                "upgrade" => fields.upgrade = true,
                "x-request-id" => _ = fields.request_id.get_or_insert(value),
                "grpc-encoding" => _ = fields.grpc_encoding.get_or_insert(value),
                "grpc-timeout" => _ = fields.grpc_timeout.get_or_insert(value),
                "traceparent" => _ = fields.traceparent.get_or_insert(value),
                "authorization" => fields.authorization.see(value),
                "x-api-key" => fields.api_key.see(value),
                _ => {}
            }
        }
        fields
    }

    /// The client's id if it is sane; else a new one.
    pub fn call_id(&self) -> CallId {
        CallId::from_client(self.request_id.and_then(text))
    }

    /// Whose work the request is part of, if it says so as W3C has it.
    pub fn context(&self) -> Option<TraceContext> {
        TraceContext::parse(self.traceparent?.as_bytes())
    }

    /// The fields themselves.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The coding of the body, as [`Coding::of_request`] finds it.
    ///
    /// # Errors
    ///
    /// As [`Coding::of_request`].
    pub fn coding(&self) -> Result<Option<Coding>, Error> {
        if self.encoded { Coding::of_request(self.headers) } else { Ok(None) }
    }

    /// The coding that a response may have, as [`Coding::accepted`] finds it.
    pub fn accepted(&self) -> Option<Coding> {
        if self.accepts { Coding::accepted(self.headers) } else { None }
    }

    /// Claims in the headers: `authorization` first, then `x-api-key`. Never a cookie (contract 06 C1).
    ///
    /// A header that is there but unreadable, or there twice, is a claim that proves nothing, not an absent one.
    pub fn credentials(&self) -> Credentials {
        const BEARER: &str = "bearer ";
        if let Some(value) = self.authorization.claim() {
            return match value.split_at_checked(BEARER.len()) {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case(BEARER) => {
                    Credentials::Bearer(token.trim().into())
                }
                _ if value.contains(' ') => Credentials::ApiKey("".into()),
                _ => Credentials::ApiKey(value.into()),
            };
        }
        match self.api_key.claim() {
            Some(value) => Credentials::ApiKey(value.into()),
            None => Credentials::None,
        }
    }
}

fn is_problem(accept: &HeaderValue) -> bool {
    const PROBLEM: &[u8] = b"application/problem+json";
    let (first, rest) = accept.as_bytes().split_at(accept.len().min(PROBLEM.len()));
    first.eq_ignore_ascii_case(PROBLEM) && matches!(rest.trim_ascii_start(), [] | [b',' | b';', ..])
}

impl<'a> Single<'a> {
    /// The text of what somebody claims; empty, which is nobody's, if there is none that everybody would read alike.
    fn claim(self) -> Option<&'a str> {
        match self {
            Self::Absent => None,
            Self::Once(value) => Some(text(value).unwrap_or_default()),
            Self::Repeated => Some(""),
        }
    }

    fn see(&mut self, value: &'a HeaderValue) {
        *self = match self {
            Self::Absent => Self::Once(value),
            Self::Once(_) | Self::Repeated => Self::Repeated,
        };
    }
}

/// The text of a value, if it has no other characters than ASCII's. As `HeaderValue::to_str`, which looks at each byte to
/// find controls too; no value holds one.
fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok().filter(|text| text.is_ascii())
}

/// The client's id if it is sane; else a new one.
pub fn call_id(headers: &HeaderMap) -> CallId {
    Fields::of(headers).call_id()
}

/// Whose work a request is part of, as [`Fields::context`] finds it.
pub fn context(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::parse(headers.get("traceparent")?.as_bytes())
}

/// Claims in the headers, as [`Fields::credentials`] finds them.
pub fn credentials(headers: &HeaderMap) -> Credentials {
    Fields::of(headers).credentials()
}

#[cfg(test)]
mod tests {
    use super::*;
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
        for other in ["Basic eDp5", "bearer", "bea rer t"] {
            assert!(matches!(credentials(&headers(&[("authorization", other)])), Credentials::ApiKey(_)), "{other}");
        }
        for name in [http::header::AUTHORIZATION, API_KEY] {
            let mut twice = HeaderMap::new();
            twice.append(name.clone(), HeaderValue::from_static("k"));
            twice.append(name.clone(), HeaderValue::from_static("k"));
            assert!(matches!(credentials(&twice), Credentials::ApiKey(token) if token.is_empty()), "{name}");
        }
        let foreign = HeaderMap::from_iter([(API_KEY, HeaderValue::from_bytes(b"k\xfc").unwrap())]);
        assert!(matches!(credentials(&foreign), Credentials::ApiKey(token) if token.is_empty()));
    }
}

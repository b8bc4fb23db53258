//! The messages that open a session and renew its credentials (contract 06 C2).

use super::skim;
use crate::{error::Error, wire::Settings};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// `hello`.
#[derive(Debug, Deserialize)]
pub struct Hello {
    /// The version of the message protocol.
    pub protocol: u64,
    /// Credentials.
    pub auth: Option<Auth>,
    /// What the client wants.
    #[serde(default)]
    pub want: Want,
}

/// What a client wants of a session. It can only lower limits.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Want {
    /// Whether outputs come as raw bytes unless a request says otherwise.
    #[serde(default)]
    pub binary_outputs: bool,
    /// A lower first credit.
    pub default_credit: Option<u32>,
}

/// Credentials within a message.
#[derive(Deserialize)]
pub struct Auth {
    /// `bearer` or `api_key`.
    pub scheme: String,
    /// The secret.
    pub token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the value: credentials do not go to logs (contract 00 section 5).
        f.debug_struct("Auth").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// The limits that `welcome` tells (contract 10 section 5).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Bytes of a message.
    pub max_message_bytes: usize,
    /// Requests in flight.
    pub max_inflight: usize,
    /// Characters of an `id`.
    pub max_id_length: usize,
    /// The first credit of a request that streams.
    pub default_credit: u32,
    /// Milliseconds without a request in flight or a message.
    pub idle_timeout_ms: u128,
    /// Milliseconds between two pings.
    pub ping_interval_ms: u128,
    /// Bytes of unsent messages.
    pub max_send_buffer_bytes: usize,
}

impl Limits {
    /// The longest `id`.
    pub const ID: usize = super::envelope::ID;
}

/// Reads `hello`.
///
/// # Errors
///
/// [`Error::InvalidRequest`] if a member is missing or is something else than it should be, or beyond the limit on depth.
pub fn hello(json: &[u8], settings: &Settings) -> Result<Hello, Error> {
    check_depth(json, settings)?;
    serde_json::from_slice(json).map_err(|_| Error::invalid("the `hello` is malformed"))
}

/// Reads `auth`.
///
/// # Errors
///
/// As [`hello`].
pub fn auth(json: &[u8], settings: &Settings) -> Result<Auth, Error> {
    check_depth(json, settings)?;
    #[derive(Deserialize)]
    struct Message {
        auth: Auth,
    }
    match serde_json::from_slice::<Message>(json) {
        Ok(message) => Ok(message.auth),
        // serde's own text may quote the secret.
        Err(_) => Err(Error::invalid("the `auth` is malformed")),
    }
}

/// These are not read by our own reader, which counts as it goes.
fn check_depth(json: &[u8], settings: &Settings) -> Result<(), Error> {
    let limit = settings.json_depth;
    if skim::depth(json) > limit {
        return Err(Error::invalid(format!("JSON is deeper than {limit} levels")));
    }
    Ok(())
}

/// Writes `welcome`. `features` are those that are served, and no others.
pub fn welcome(session: &str, limits: &Limits, features: &[&str]) -> Bytes {
    #[derive(Serialize)]
    struct Welcome<'a> {
        r#type: &'a str,
        protocol: u64,
        session: &'a str,
        server: &'a str,
        limits: &'a Limits,
        features: &'a [&'a str],
    }
    let server = concat!("sluicegate/", env!("CARGO_PKG_VERSION"));
    let welcome = Welcome { r#type: "welcome", protocol: 1, session, server, limits, features };
    // Numbers and strings always have a form in JSON.
    serde_json::to_vec(&welcome).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_may_be_short() {
        let hello = hello(br#"{"type":"hello","protocol":1,"more":[]}"#, &Settings::default()).unwrap();
        assert!(hello.protocol == 1 && hello.auth.is_none() && !hello.want.binary_outputs);
        assert!(super::hello(br#"{"type":"hello"}"#, &Settings::default()).is_err());
    }

    #[test]
    fn a_secret_is_in_no_error_and_no_log() {
        let error = auth(br#"{"auth":{"scheme":1,"token":"secret"}}"#, &Settings::default()).unwrap_err();
        assert_eq!(error.to_string(), "the `auth` is malformed");
        let auth = auth(br#"{"auth":{"scheme":"bearer","token":"secret"}}"#, &Settings::default()).unwrap();
        assert!(!format!("{auth:?}").contains("secret"));
    }

    #[test]
    fn a_welcome_tells_the_limits() {
        let limits = Limits {
            max_message_bytes: 1,
            max_inflight: 2,
            max_id_length: Limits::ID,
            default_credit: 3,
            idle_timeout_ms: 4,
            ping_interval_ms: 5,
            max_send_buffer_bytes: 6,
        };
        let welcome = welcome("s_1", &limits, &["binary"]);
        let expected = concat!(
            r#"{"type":"welcome","protocol":1,"session":"s_1","server":"sluicegate/"#,
            env!("CARGO_PKG_VERSION"),
            r#"","limits":{"max_message_bytes":1,"max_inflight":2,"max_id_length":64,"default_credit":3,"#,
            r#""idle_timeout_ms":4,"ping_interval_ms":5,"max_send_buffer_bytes":6},"features":["binary"]}"#
        );
        assert_eq!(std::str::from_utf8(&welcome).unwrap(), expected);
    }
}

//! The compact form of a signed token (RFC 7515 section 7.1), taken apart. Nothing here is proven.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The longest token, in bytes: headers have 16 KiB in all, and every one that is verified is remembered.
const LONGEST: usize = 8 << 10;

/// A token whose parts are sound.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// How it says that it is signed.
    pub(super) algorithm: String,
    /// Which key it says that it is signed with.
    pub(super) kid: Option<String>,
    /// What it says.
    pub(super) claims: Map<String, Value>,
    /// The bytes that are signed.
    pub(super) signed: &'a [u8],
    /// The signature.
    pub(super) signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    // Extensions that a reader must understand (RFC 7515 section 4.1.11); this one understands none.
    crit: Option<Value>,
}

/// How tokens begin: every header begins with `{"`.
pub(super) const BEGINNING: &str = "ey";

/// Whether `credential` has the form of a token: cheap, and says nothing else.
pub(super) fn is_one(credential: &str) -> bool {
    credential.starts_with(BEGINNING)
        && credential.len() <= LONGEST
        && credential.bytes().filter(|b| *b == b'.').count() == 2
}

impl<'a> Token<'a> {
    /// Takes `text` apart; `None` if it is malformed or needs to be understood in a way that this reader does not know.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        Some(Self {
            algorithm: header.alg,
            kid: header.kid,
            claims: serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?,
            signed: signed.as_bytes(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// Whether it says that it is from `issuer`.
    pub(super) fn is_from(&self, issuer: &str) -> bool {
        self.claims.get("iss").and_then(Value::as_str) == Some(issuer)
    }
}

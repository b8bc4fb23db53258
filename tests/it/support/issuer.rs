//! Somebody who signs tokens, with a key of the day.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How tokens are proven in every gateway that has an issuer, beside [`KEY`](super::KEY).
pub const AUTH: &str = "{ api_keys: { file: keys.yaml }, jwt: [{ issuer: \"https://id.example\", audience: sluicegate, \
                        algorithms: [EdDSA], jwks: jwks.json, groups: groups }] }";

/// A key, and its name.
pub struct Signer {
    kid: String,
    key: Ed25519KeyPair,
}

impl Signer {
    pub fn new(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { kid: kid.into(), key: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap() }
    }

    /// A token for `web` that ends in `life`, with more claims.
    pub fn sign(&self, life: Duration, more: &Value) -> String {
        let exp = (SystemTime::now() + life).duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let mut claims = json!({ "iss": "https://id.example", "aud": "sluicegate", "sub": "web", "exp": exp });
        more.as_object().unwrap().iter().for_each(|(name, value)| claims[name] = value.clone());
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&json!({ "alg": "EdDSA", "kid": self.kid })), encode(&claims));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes())))
    }

    /// A token for `web` that lives long enough for any test.
    pub fn token(&self) -> String {
        self.sign(Duration::from_secs(3600), &json!({}))
    }
}

/// Makes the keys of `signers` those that count.
pub fn publish(folder: &Path, signers: &[&Signer]) {
    let key = |signer: &&Signer| {
        let x = URL_SAFE_NO_PAD.encode(signer.key.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": signer.kid, "x": x })
    };
    let set = json!({ "keys": signers.iter().map(key).collect::<Vec<_>>() });
    fs::write(folder.join("jwks.new"), set.to_string()).unwrap();
    fs::rename(folder.join("jwks.new"), folder.join("jwks.json")).unwrap();
}

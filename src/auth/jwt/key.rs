//! Keys that tokens are signed with, from JWK sets, PEM files and secrets, each pinned to its algorithms.

use super::KeysError;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    io::der::{self, Tag},
    signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm},
};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use untrusted::{Input, Reader};
use webpki::EndEntityCert;

/// Keys of one set that are looked at.
const KEYS: usize = 256;
/// The shortest modulus, in bytes (RFC 7518 section 3.3).
const MODULUS: usize = 256;

/// How a token may be signed (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the standard")]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// What an algorithm needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// All keys of an issuer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Key>);

/// A key, and what it is for.
#[derive(PartialEq, Eq)]
pub(super) struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    material: Material,
}

#[derive(PartialEq, Eq)]
enum Material {
    /// Of HMAC.
    Secret(Vec<u8>),
    /// Modulus and exponent.
    Components { n: Vec<u8>, e: Vec<u8> },
    /// As `ring` takes it: RSAPublicKey (RFC 8017 A.1.1), a point (SEC 1 section 2.3.3), or 32 bytes (RFC 8032).
    Public(Vec<u8>),
}

// === impl Algorithm ===

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];
    /// Their names, for messages.
    pub const NAMES: &str = "RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, HS384, HS512";

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Its `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Hs256 | Self::Hs384 | Self::Hs512 => Kind::Secret,
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => Kind::Rsa,
            Self::Es256 => Kind::P256,
            Self::Es384 => Kind::P384,
            Self::EdDsa => Kind::Ed25519,
        }
    }

    /// The shortest secret, in bytes: as long as the hash (RFC 7518 section 3.2).
    fn shortest(self) -> usize {
        self.hmac().map_or(0, |hmac| hmac.digest_algorithm().output_len())
    }

    fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Self::Hs256 => Some(hmac::HMAC_SHA256),
            Self::Hs384 => Some(hmac::HMAC_SHA384),
            Self::Hs512 => Some(hmac::HMAC_SHA512),
            _ => None,
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
            _ => None,
        }
    }

    fn public(self) -> Option<&'static dyn VerificationAlgorithm> {
        match self {
            Self::Es256 => Some(&signature::ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Some(&signature::ECDSA_P384_SHA384_FIXED),
            Self::EdDsa => Some(&signature::ED25519),
            other => other.rsa().map(|rsa| rsa as &dyn VerificationAlgorithm),
        }
    }
}

// === impl Key ===

impl Key {
    /// Whether `signature` is that of `message`, made with this key by `algorithm`.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.contains(&algorithm)
            && match &self.material {
                Material::Secret(secret) => algorithm
                    .hmac()
                    .is_some_and(|hmac| hmac::verify(&hmac::Key::new(hmac, secret), message, signature).is_ok()),
                Material::Components { n, e } => algorithm
                    .rsa()
                    .is_some_and(|rsa| RsaPublicKeyComponents { n, e }.verify(rsa, message, signature).is_ok()),
                Material::Public(key) => algorithm
                    .public()
                    .is_some_and(|public| UnparsedPublicKey::new(public, key).verify(message, signature).is_ok()),
            }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

// === impl KeySet ===

/// A member of a set (RFC 7517 section 4, RFC 7518 section 6).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl KeySet {
    /// Keys that may have made a signature by `algorithm`: those named `kid`, or all of them if the token names none.
    pub(super) fn candidates<'a>(
        &'a self,
        kid: Option<&'a str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| {
            key.algorithms.contains(&algorithm) && (kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid)
        })
    }

    /// Whether it has no key.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same set, if there is anything in it.
    ///
    /// # Errors
    ///
    /// If it has no key at all.
    pub(super) fn useful(self, algorithms: &[Algorithm]) -> Result<Self, KeysError> {
        match self.is_empty() {
            true => Err(KeysError(format!("it has no key for {}", names(algorithms)))),
            false => Ok(self),
        }
    }

    /// Reads a set for an issuer that signs by `algorithms`. Keys that it has no use for are left out, as RFC 7517 section 5
    /// says; secrets too, unless `secrets`.
    ///
    /// # Errors
    ///
    /// If it is no set. One that has nothing of use is one: whoever withdraws the last key means it.
    pub(super) fn parse(json: &[u8], algorithms: &[Algorithm], secrets: bool) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        // serde's own text may quote a secret.
        let set: Set = serde_json::from_slice(json)
            .map_err(|_| KeysError("it is no set of keys, expected `{\"keys\": [...]}` (RFC 7517)".into()))?;
        let keys = set.keys.into_iter().take(KEYS);
        let keys = keys.filter_map(|key| Self::key(serde_json::from_value(key).ok()?, algorithms, secrets));
        Ok(Self(keys.collect()))
    }

    fn key(jwk: Jwk, algorithms: &[Algorithm], secrets: bool) -> Option<Key> {
        let verifies = jwk.key_ops.is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
        if !verifies || jwk.r#use.is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let (kind, material) = match (&*jwk.kty, jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
                // RFC 7518 section 6.3.1.1 forbids leading zeros and some write one; `ring` takes none.
                let n = n[n.iter().take_while(|byte| **byte == 0).count()..].to_vec();
                (n.len() >= MODULUS).then_some((Kind::Rsa, Material::Components { n, e }))?
            }
            ("EC", Some("P-256")) => (Kind::P256, point(&bytes(&jwk.x)?, &bytes(&jwk.y)?, 32)?),
            ("EC", Some("P-384")) => (Kind::P384, point(&bytes(&jwk.x)?, &bytes(&jwk.y)?, 48)?),
            ("OKP", Some("Ed25519")) => {
                let key = bytes(&jwk.x).filter(|key| key.len() == 32)?;
                (Kind::Ed25519, Material::Public(key))
            }
            ("oct", _) if secrets => (Kind::Secret, Material::Secret(bytes(&jwk.k)?)),
            _ => return None,
        };
        let key = Key { kid: jwk.kid, algorithms: fitting(kind, algorithms, jwk.alg.as_deref()), material };
        usable(key)
    }

    /// Reads the one key of a file: a public key or certificate in PEM; for HS algorithms a secret, of which a last line
    /// break is no part.
    ///
    /// # Errors
    ///
    /// If it is something else, or of no use for `algorithms`.
    pub(super) fn of_one(contents: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeysError> {
        let is_pem = contents.trim_ascii_start().starts_with(b"-----BEGIN");
        let (kind, material) = if algorithms.iter().any(|algorithm| algorithm.kind() == Kind::Secret) {
            if is_pem {
                // The oldest trick: a public key that is taken for a secret is one that everybody has (RFC 8725 section 2.1).
                return Err(KeysError("it is a key in PEM, and HS algorithms need a secret".into()));
            }
            let secret = contents.strip_suffix(b"\n").unwrap_or(contents);
            let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
            (Kind::Secret, Material::Secret(secret.to_vec()))
        } else {
            public(contents).ok_or_else(|| {
                KeysError("it is no public key or certificate in PEM, with RSA, P-256, P-384 or Ed25519".into())
            })?
        };
        if algorithms.iter().any(|algorithm| algorithm.kind() != kind) {
            return Err(KeysError(format!("one key cannot be for each of {}", names(algorithms))));
        }
        let long = algorithms.iter().map(|algorithm| algorithm.shortest()).max().unwrap_or(0);
        match usable(Key { kid: None, algorithms: fitting(kind, algorithms, None), material }) {
            Some(key) if key.algorithms.len() == algorithms.len() => Ok(Self(vec![key])),
            _ => Err(KeysError(format!("the secret is shorter than {long} bytes (RFC 7518 section 3.2)"))),
        }
    }
}

/// Those of `algorithms` that a key of this kind is for, and that it says it is for.
fn fitting(kind: Kind, algorithms: &[Algorithm], said: Option<&str>) -> Vec<Algorithm> {
    let fits = |algorithm: &Algorithm| algorithm.kind() == kind && said.is_none_or(|said| said == algorithm.name());
    algorithms.iter().copied().filter(fits).collect()
}

/// A key without algorithms for which its secret is too short; `None` if nothing remains.
fn usable(mut key: Key) -> Option<Key> {
    if let Material::Secret(secret) = &key.material {
        key.algorithms.retain(|algorithm| secret.len() >= algorithm.shortest());
    }
    (!key.algorithms.is_empty()).then_some(key)
}

/// A point without compression (SEC 1 section 2.3.3).
fn point(x: &[u8], y: &[u8], length: usize) -> Option<Material> {
    (x.len() == length && y.len() == length).then(|| Material::Public([&[4], x, y].concat()))
}

/// The key of a PEM file, from its `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7).
fn public(pem: &[u8]) -> Option<(Kind, Material)> {
    let info = match SubjectPublicKeyInfoDer::from_pem_slice(pem) {
        Ok(info) => info,
        Err(_) => {
            let certificate = CertificateDer::from_pem_slice(pem).ok()?;
            EndEntityCert::try_from(&certificate).ok()?.subject_public_key_info()
        }
    };
    let mut info = Reader::new(Input::from(&info));
    let mut info = Reader::new(der::expect_tag_and_get_value(&mut info, Tag::Sequence).ok()?);
    let mut algorithm = Reader::new(der::expect_tag_and_get_value(&mut info, Tag::Sequence).ok()?);
    let key = der::bit_string_with_no_unused_bits(&mut info).ok()?.as_slice_less_safe().to_vec();
    let identifier = der::expect_tag_and_get_value(&mut algorithm, Tag::OID).ok()?;
    let kind = match identifier.as_slice_less_safe() {
        // 1.2.840.113549.1.1.1
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1] => Kind::Rsa,
        // 1.2.840.10045.2.1, with the curve behind it
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1] => {
            match der::expect_tag_and_get_value(&mut algorithm, Tag::OID).ok()?.as_slice_less_safe() {
                [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7] => Kind::P256,
                [0x2b, 0x81, 4, 0, 0x22] => Kind::P384,
                _ => return None,
            }
        }
        // 1.3.101.112
        [0x2b, 0x65, 0x70] => Kind::Ed25519,
        _ => return None,
    };
    Some((kind, Material::Public(key)))
}

fn names(algorithms: &[Algorithm]) -> String {
    algorithms.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(", ")
}

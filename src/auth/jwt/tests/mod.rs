//! Tokens that are good, and everything that could be wrong with them.
//!
//! `vectors.json` was made by PyJWT and the Python package `cryptography`: keys of each kind, as a set and as PEM files, and
//! the same claims signed by each algorithm.

mod fetching;

use super::*;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use std::time::UNIX_EPOCH;

const VECTORS: &str = include_str!("vectors.json");
const ISSUER: &str = "https://id.example";
/// 2023-11-14.
const NOW: u64 = 1_700_000_000;

fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn issuer(keys: Keys, algorithms: &[Algorithm]) -> Issuer {
    Issuer {
        issuer: ISSUER.into(),
        audience: vec!["sluicegate".into()],
        algorithms: algorithms.to_vec(),
        keys,
        identity: "sub".into(),
        prefix: "".into(),
        groups: Some("groups".into()),
        require: Vec::new(),
    }
}

fn tokens(issuer: Issuer) -> Result<Tokens, SetupError> {
    Tokens::new(&[issuer], Arc::default())
}

/// An issuer with its keys in a file of their own.
struct Desk {
    folder: tempfile::TempDir,
    tokens: Tokens,
}

impl Desk {
    fn with(signers: &[&Signer], change: impl FnOnce(&mut Issuer)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jwks.json");
        fs::write(&path, set(signers)).unwrap();
        let mut issuer = issuer(Keys::Set(path), &[Algorithm::EdDsa, Algorithm::Rs256]);
        change(&mut issuer);
        Self { folder, tokens: tokens(issuer).unwrap() }
    }

    fn new(signers: &[&Signer]) -> Self {
        Self::with(signers, |_| {})
    }

    fn rotate(&self, signers: &[&Signer]) {
        fs::write(self.folder.path().join("jwks.json"), set(signers)).unwrap();
        self.tokens.reload(0).unwrap();
    }

    fn id(&self, token: &str, now: u64) -> Option<String> {
        self.tokens.verify(token, at(now)).map(|identity| identity.id().to_string())
    }
}

/// Somebody who signs with Ed25519.
struct Signer {
    kid: &'static str,
    key: Ed25519KeyPair,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { kid, key: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap() }
    }

    fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "alg": "EdDSA", "use": "sig", "x": x })
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({ "alg": "EdDSA", "kid": self.kid }), claims)
    }

    fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": "sluicegate", "sub": "web", "exp": NOW + 100, "groups": ["mobile"] })
}

/// The claims with some of them changed; `null` takes one out.
fn claims_with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

#[test]
fn each_algorithm_verifies_what_others_have_signed() {
    let (vectors, folder) = (vectors(), tempfile::tempdir().unwrap());
    let path = folder.path().join("keys");
    for algorithm in Algorithm::ALL {
        let name = algorithm.name();
        let token = vectors["tokens"][name].as_str().unwrap();
        let (pem, in_set) = match name {
            "HS256" | "HS384" | "HS512" => (&vectors["secret"], false),
            "ES256" => (&vectors["pem"]["P-256"], true),
            "ES384" => (&vectors["pem"]["P-384"], true),
            "EdDSA" => (&vectors["pem"]["Ed25519"], true),
            _ => (&vectors["pem"]["RSA"], true),
        };
        fs::write(&path, pem.as_str().unwrap()).unwrap();
        let check = |keys: Keys| {
            let tokens = tokens(issuer(keys, &[algorithm])).unwrap();
            let found = tokens.verify(token, at(NOW)).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((&**found.id(), found.groups().len()), ("web", 2), "{name}");
            assert_eq!(found.until(), Some(at(4_102_444_800)));
            // One bit of the signature.
            let (head, signature) = token.rsplit_once('.').unwrap();
            let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
            bytes[10] ^= 1;
            let forged = format!("{head}.{}", URL_SAFE_NO_PAD.encode(bytes));
            assert!(tokens.verify(&forged, at(NOW)).is_none(), "{name}");
        };
        check(Keys::File(path.clone()));
        if in_set {
            fs::write(&path, vectors["set"].to_string()).unwrap();
            check(Keys::Set(path.clone()));
        }
    }
}

#[test]
fn an_algorithm_that_is_not_configured_is_not_taken() {
    let (vectors, folder) = (vectors(), tempfile::tempdir().unwrap());
    let path = folder.path().join("jwks.json");
    fs::write(&path, vectors["set"].to_string()).unwrap();
    let tokens = tokens(issuer(Keys::Set(path), &[Algorithm::Rs256])).unwrap();
    for algorithm in Algorithm::ALL {
        let token = vectors["tokens"][algorithm.name()].as_str().unwrap();
        assert_eq!(tokens.verify(token, at(NOW)).is_some(), algorithm == Algorithm::Rs256, "{algorithm:?}");
    }
}

/// Attack I1: none of them is accepted, whatever they have in common with a good one.
#[test]
fn a_corpus_of_bad_tokens() {
    let (ours, theirs) = (Signer::new("a"), Signer::new("a"));
    let desk = Desk::new(&[&ours]);
    assert_eq!(desk.id(&ours.sign(&claims()), NOW).as_deref(), Some("web"));
    let mut bad = Vec::new();
    for change in [
        json!({ "iss": null }),
        json!({ "iss": "https://id.example/" }),
        json!({ "iss": [ISSUER] }),
        json!({ "iss": 1 }),
        json!({ "aud": null }),
        json!({ "aud": "other" }),
        json!({ "aud": ["other"] }),
        json!({ "aud": [] }),
        json!({ "aud": ["sluicegate", 1] }),
        json!({ "aud": {} }),
        json!({ "aud": true }),
        json!({ "aud": "sluicegate " }),
        json!({ "exp": null }),
        json!({ "exp": NOW }),
        json!({ "exp": NOW - 1 }),
        json!({ "exp": format!("{}", NOW + 100) }),
        json!({ "exp": -1 }),
        json!({ "exp": 1e300 }),
        json!({ "exp": true }),
        json!({ "exp": [NOW + 100] }),
        json!({ "nbf": NOW + 31 }),
        json!({ "nbf": format!("{NOW}") }),
        json!({ "nbf": {} }),
        json!({ "nbf": -5 }),
        json!({ "sub": null }),
        json!({ "sub": "" }),
        json!({ "sub": "anonymous" }),
        json!({ "sub": ["web"] }),
        json!({ "sub": {} }),
        json!({ "sub": true }),
        json!({ "sub": "web\nadmin" }),
        json!({ "sub": "x".repeat(300) }),
    ] {
        bad.push(ours.sign(&claims_with(&change)));
    }
    // Signed by somebody else who calls the key the same.
    bad.push(theirs.sign(&claims()));
    for header in [
        json!({ "alg": "none" }),
        json!({ "alg": "None", "kid": "a" }),
        json!({ "alg": "", "kid": "a" }),
        json!({ "alg": "eddsa", "kid": "a" }),
        json!({ "alg": "HS256", "kid": "a" }),
        json!({ "alg": "RS256", "kid": "a" }),
        json!({ "alg": ["EdDSA"], "kid": "a" }),
        json!({ "kid": "a" }),
        json!({ "alg": "EdDSA", "kid": "b" }),
        json!({ "alg": "EdDSA", "kid": 1 }),
        json!({ "alg": "EdDSA", "kid": "a", "crit": ["b64"], "b64": false }),
        json!({ "alg": "EdDSA", "kid": "a", "crit": [] }),
    ] {
        bad.push(ours.sign_as(&header, &claims()));
        bad.push(format!("{}.", unsigned(&header, &claims())));
    }
    // Keys and places that a token brings along are not looked at.
    for header in [
        json!({ "alg": "EdDSA", "kid": "z", "jwk": theirs.jwk() }),
        json!({ "alg": "EdDSA", "kid": "z", "jku": "http://127.0.0.1:9/jwks" }),
        json!({ "alg": "EdDSA", "kid": "z", "x5u": "http://127.0.0.1:9/x" }),
    ] {
        bad.push(theirs.sign_as(&header, &claims()));
    }
    // The public key as a secret (RFC 8725 section 2.1).
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, ours.key.public_key().as_ref());
    let signed = unsigned(&json!({ "alg": "HS256", "kid": "a" }), &claims());
    let signature = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, signed.as_bytes()));
    bad.push(format!("{signed}.{signature}"));
    let good = ours.sign(&claims());
    let (head, signature) = good.rsplit_once('.').unwrap();
    bad.extend([
        format!("{head}."),
        format!("{head}.{signature}="),
        format!("{head}.{signature}.x"),
        format!(" {good}"),
        good.replacen('.', "", 1),
        "ey..".into(),
        "ey".into(),
        "eyJhbGciOiJub25lIn0.e30.".into(),
        format!("ey{}.e30.AA", "x".repeat(100_000)),
    ]);
    assert!(bad.len() >= 60, "{}", bad.len());
    for token in bad {
        assert_eq!(desk.id(&token, NOW), None, "{token}");
    }
}

#[test]
fn a_remembered_token_still_ends() {
    let signer = Signer::new("a");
    let desk = Desk::new(&[&signer]);
    let token = signer.sign(&claims());
    let first = desk.tokens.verify(&token, at(NOW)).unwrap();
    assert!(Arc::ptr_eq(&first, &desk.tokens.verify(&token, at(NOW + 99)).unwrap()), "verified once");
    assert_eq!(desk.id(&token, NOW + 100), None);
    assert_eq!(desk.id(&token, NOW + 1000), None);
}

#[test]
fn a_token_may_begin_a_little_later_and_end_in_a_fraction() {
    let signer = Signer::new("a");
    let desk = Desk::new(&[&signer]);
    assert!(desk.id(&signer.sign(&claims_with(&json!({ "nbf": NOW + 30 }))), NOW).is_some());
    let fraction = signer.sign(&claims_with(&json!({ "exp": 1_700_000_000.5 })));
    assert!(desk.id(&fraction, NOW).is_some() && desk.id(&fraction, NOW + 1).is_none());
}

#[test]
fn identity_groups_and_claims_are_found_where_they_are() {
    let signer = Signer::new("a");
    let desk = Desk::with(&[&signer], |issuer| {
        issuer.identity = "who.name".into();
        issuer.prefix = "acme/".into();
        issuer.groups = Some("realm_access.roles".into());
        issuer.require = vec!["tenant".into()];
    });
    let said = json!({
        "who": { "name": 17 }, "realm_access": { "roles": ["a", "", "b", 1] }, "tenant": "t", "flag": true,
        "list": ["x", "y"], "null": [null, [1]],
    });
    let found = desk.tokens.verify(&signer.sign(&claims_with(&said)), at(NOW)).unwrap();
    assert_eq!(&**found.id(), "acme/17");
    assert_eq!(found.groups(), ["a", "b"].map(Arc::<str>::from));
    let claims: Vec<_> = found.claims().iter().map(|(name, value)| format!("{name}={value}")).collect();
    for claim in ["flag=true", "list=x", "list=y", "realm_access.roles=a", "tenant=t", "who.name=17", "sub=web"] {
        assert!(claims.contains(&claim.to_owned()), "{claim} is not in {claims:?}");
    }
    assert!(!claims.iter().any(|claim| claim.starts_with("exp=") || claim.starts_with("iss=")), "{claims:?}");
    let without = signer.sign(&claims_with(&json!({ "who": { "name": "x" } })));
    assert_eq!(desk.id(&without, NOW), None, "`tenant` is required");
    let scope = Desk::with(&[&signer], |issuer| issuer.groups = Some("scope".into()));
    let found = scope.tokens.verify(&signer.sign(&claims_with(&json!({ "scope": "a b" }))), at(NOW)).unwrap();
    assert_eq!(found.groups(), ["a", "b"].map(Arc::<str>::from));
}

#[test]
fn a_token_with_a_thousand_claims_keeps_some() {
    let signer = Signer::new("a");
    let desk = Desk::new(&[&signer]);
    let many: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
    let found = desk.tokens.verify(&signer.sign(&claims_with(&json!({ "a": many }))), at(NOW)).unwrap();
    assert_eq!(found.claims().len(), 64);
}

#[test]
fn the_keys_of_the_day_are_the_ones_that_count() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let desk = Desk::new(&[&old]);
    let mut changes = desk.tokens.changes.subscribe();
    let (first, second) = (old.sign(&claims()), new.sign(&claims()));
    assert!(desk.id(&first, NOW).is_some() && desk.id(&second, NOW).is_none());
    desk.rotate(&[&old, &new]);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(desk.id(&first, NOW).is_some() && desk.id(&second, NOW).is_some());
    desk.rotate(&[&old, &new]);
    assert!(!changes.has_changed().unwrap(), "the same keys are no change");
    desk.rotate(&[&new]);
    assert!(desk.id(&first, NOW).is_none(), "also where its signature was remembered");
    assert!(desk.id(&second, NOW).is_some());
    fs::write(desk.folder.path().join("jwks.json"), "{}").unwrap();
    assert!(desk.tokens.reload(0).is_err());
    assert!(desk.id(&second, NOW).is_some(), "the old ones stay");
}

#[test]
fn a_token_without_a_name_for_its_key_is_tried_against_a_few() {
    let signers: Vec<_> = (0..6).map(|_| Signer::new("k")).collect();
    let desk = Desk::new(&signers.iter().collect::<Vec<_>>());
    let by = |at: usize| signers[at].sign_as(&json!({ "alg": "EdDSA" }), &claims());
    assert!(desk.id(&by(0), NOW).is_some() && desk.id(&by(TRIED - 1), NOW).is_some());
    assert!(desk.id(&by(TRIED), NOW).is_none());
}

#[test]
fn what_is_remembered_is_bounded() {
    let signer = Signer::new("a");
    let desk = Desk::new(&[&signer]);
    let token = |n: usize| signer.sign(&claims_with(&json!({ "jti": n, "exp": NOW + 100 + n as u64 % 2 })));
    for n in 0..REMEMBERED {
        assert!(desk.id(&token(n), NOW).is_some());
    }
    assert_eq!(desk.tokens.seen.len(), REMEMBERED);
    desk.id(&token(REMEMBERED), NOW).unwrap();
    assert!(desk.tokens.seen.len() < REMEMBERED);
    // What has ended goes first, and all of it.
    let mut n = REMEMBERED;
    while desk.tokens.seen.len() < REMEMBERED {
        n += 1;
        desk.id(&token(n), NOW).unwrap();
    }
    desk.id(&token(n * 2 + 1), NOW + 100).unwrap();
    assert!(desk.tokens.seen.iter().all(|seen| seen.until > at(NOW + 100)));
}

#[test]
fn a_token_proves_nothing_by_having_the_hash_of_another() {
    let signer = Signer::new("a");
    let desk = Desk::new(&[&signer]);
    let (good, other) = (signer.sign(&claims()), signer.sign(&claims_with(&json!({ "sub": "other" }))));
    assert!(desk.id(&good, NOW).is_some());
    let hash = |token: &str| desk.tokens.seen.hasher().hash_one(token);
    // As if all three had one hash.
    for text in [&other, &format!("{good}x")] {
        let (_, seen) = desk.tokens.seen.remove(&hash(&good)).expect("it is remembered");
        desk.tokens.seen.insert(hash(text), seen);
        assert_ne!(desk.id(text, NOW), desk.id(&good, NOW));
    }
    assert!(!format!("{:?}", desk.tokens).contains(&good));
}

#[test]
fn what_is_wrong_with_keys_is_said_and_no_key_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let vectors = vectors();
    let wrong = |contents: &str, is_set: bool, algorithms: &[Algorithm]| {
        fs::write(&path, contents).unwrap();
        let keys = if is_set { Keys::Set(path.clone()) } else { Keys::File(path.clone()) };
        let error = issuer(keys, algorithms).check().unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        error
    };
    let pem = |kind: &str| vectors["pem"][kind].as_str().unwrap().to_owned();
    let (hs, rs, es) = (Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256);
    assert!(wrong("hunter2", false, &[hs]).contains("shorter than 32 bytes"));
    assert!(wrong(&pem("RSA"), false, &[hs]).contains("HS algorithms need a secret"));
    assert!(wrong(&pem("RSA"), false, &[es]).contains("cannot be for each of ES256"));
    assert!(wrong(&pem("RSA"), false, &[rs, es]).contains("RS256, ES256"));
    assert!(wrong("hunter2", false, &[rs]).contains("no public key or certificate"));
    assert!(wrong("hunter2", true, &[rs]).contains("no set of keys"));
    assert!(wrong(r#"{"keys":[{"kty":"oct","k":"hunter2"}]}"#, true, &[rs]).contains("no key for RS256"));
    assert!(wrong(r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#, true, &[rs]).contains("no key for RS256"));
    assert!(wrong(&" ".repeat(300_000), true, &[rs]).contains("larger than 256 KiB"));
    let missing = issuer(Keys::Set(folder.path().join("missing")), &[rs]).check().unwrap_err();
    assert!(missing.to_string().contains("missing"));
}

#[test]
fn keys_of_a_set_are_for_what_they_say() {
    let signer = Signer::new("a");
    for change in [
        json!({ "use": "enc" }),
        json!({ "key_ops": ["sign"] }),
        json!({ "alg": "RS256" }),
        json!({ "kty": "EC" }),
        json!({ "crv": "X25519" }),
        json!({ "x": "AA" }),
    ] {
        let mut jwk = signer.jwk();
        change.as_object().unwrap().iter().for_each(|(name, value)| jwk[name] = value.clone());
        let set = json!({ "keys": [jwk, 17] }).to_string();
        assert!(KeySet::parse(set.as_bytes(), &[Algorithm::EdDsa], true).unwrap().is_empty(), "{change}");
    }
    let secret = json!({ "keys": [{ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32]) }] }).to_string();
    let parse = |secrets| KeySet::parse(secret.as_bytes(), &[Algorithm::Hs256], secrets).unwrap();
    assert!(!parse(true).is_empty());
    assert!(parse(false).is_empty(), "what is fetched is no secret");
}

#[test]
fn a_secret_is_not_formatted() {
    let set = KeySet::of_one(&[b'q'; 64], &[Algorithm::Hs256]).unwrap();
    assert!(!format!("{set:?}").contains("qqq") && !format!("{set:?}").contains("113, 113"));
}

//! `auth`, `grants` and TLS: what people write, and what is wrong with it.

use super::*;
use crate::{
    auth::jwt::{Algorithm, Keys},
    trust::Trust,
};

fn parse_in(folder: &Path, text: &str) -> Result<Config, Problems> {
    Config::parse(text, "test.yaml", folder, Overrides::default())
}

/// Files that are what they should be.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("server.pem", &made.cert.pem());
    write("server.key", &made.signing_key.serialize_pem());
    write("secret", &"s".repeat(32));
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../auth/jwt/tests/vectors.json")).unwrap();
    write("jwks.json", &vectors["set"].to_string());
    folder
}

fn issuer(keys: &str) -> String {
    format!("auth: {{ jwt: [{{ issuer: i, audience: a, {keys} }}] }}")
}

#[test]
fn issuers_are_read_with_their_keys() {
    let folder = folder();
    let one = |keys: &str| {
        let config = parse_in(folder.path(), &issuer(keys)).unwrap_or_else(|problems| panic!("{problems}"));
        config.auth.jwt.into_iter().next().unwrap()
    };
    let set = one("algorithms: [RS256, EdDSA], jwks: jwks.json, groups: g, require: [exp, tenant]");
    assert_eq!(set.algorithms, [Algorithm::Rs256, Algorithm::EdDsa]);
    assert_eq!(set.keys, Keys::Set(folder.path().join("jwks.json")));
    assert_eq!((&*set.identity, set.groups.as_deref(), set.require.len()), ("sub", Some("g"), 2));
    assert!(matches!(one("algorithms: [HS256], key: secret").keys, Keys::File(_)));
    assert!(matches!(one("algorithms: [ES256], key: server.pem").keys, Keys::File(_)));
    let url = one("algorithms: [RS256], jwks: \"https://id.example/jwks\", ca: server.pem, refresh: 1m");
    let Keys::Url { url, trust, refresh } = url.keys else { panic!("{url:?}") };
    assert_eq!(
        (url.host(), trust, refresh.as_secs()),
        (Some("id.example"), Trust::Only(folder.path().join("server.pem")), 60)
    );
    let two = "auth: { jwt: [{ issuer: i, audience: [a, b], algorithms: [HS256], key: secret }] }";
    assert_eq!(parse_in(folder.path(), two).unwrap().auth.jwt[0].audience.len(), 2);
}

#[test]
fn what_is_wrong_with_an_issuer_is_named() {
    let folder = folder();
    for (keys, problem) in [
        ("algorithms: [RS256]", "auth.jwt[0]: needs one of `jwks` and `key`"),
        ("algorithms: [RS256], jwks: jwks.json, key: secret", "auth.jwt[0]: needs one of `jwks` and `key`"),
        ("jwks: jwks.json", "auth.jwt[0].algorithms: is missing or empty, expected some of RS256"),
        (
            "algorithms: [none], jwks: jwks.json",
            "auth.jwt[0].algorithms[0]: `none` is not taken here, expected some of",
        ),
        ("algorithms: [ES512], jwks: jwks.json", "auth.jwt[0].algorithms[0]: `ES512` is not taken here"),
        ("algorithms: [HS512], key: secret", "auth.jwt[0]: PATH/secret: the secret is shorter than 64 bytes"),
        ("algorithms: [HS256], key: server.pem", "auth.jwt[0]: PATH/server.pem: it is a key in PEM, and HS"),
        ("algorithms: [RS256], key: server.pem", "auth.jwt[0]: PATH/server.pem: one key cannot be for each of RS256"),
        ("algorithms: [RS256], jwks: nowhere.json", "auth.jwt[0].jwks: PATH/nowhere.json: No such file"),
        ("algorithms: [HS256], jwks: jwks.json", "auth.jwt[0]: PATH/jwks.json: it has no key for HS256"),
        ("algorithms: [RS256], jwks: \"ftp://x/y\"", "auth.jwt[0].jwks: `ftp://x/y` is not a URL that can be fetched"),
        ("algorithms: [RS256], jwks: \"https://u:p@x/y\"", "auth.jwt[0].jwks: `https://u:p@x/y` is not a URL"),
        ("algorithms: [RS256], jwks: \"https:///y\"", "auth.jwt[0].jwks: `https:///y` is not a URL"),
        (
            "algorithms: [RS256], jwks: \"https://x/y\", refresh: 5s",
            "auth.jwt[0].refresh: 5s is below 30s, the least between two fetches",
        ),
        (
            "algorithms: [RS256], jwks: \"https://x/y\", ca: secret",
            "auth.jwt[0]: PATH/secret: it holds no certificate, expected PEM",
        ),
        (
            "algorithms: [RS256], jwks: jwks.json, ca: server.pem",
            "auth.jwt[0].ca: is of use only where `jwks` is a URL",
        ),
        ("algorithms: [RS256], jwks: jwks.json, identity: \"\"", "auth.jwt[0].identity: is empty"),
    ] {
        let problems = parse_in(folder.path(), &issuer(keys)).unwrap_err();
        assert_eq!(problems.list.len(), 1, "{keys}: {problems}");
        let path = folder.path().display().to_string();
        assert!(problems.to_string().replace(&path, "PATH").contains(problem), "{keys}: {problems}");
    }
    for text in [
        "auth: { jwt: [{ audience: a, algorithms: [HS256], key: secret }] }",
        "auth: { jwt: [{ issuer: i, algorithms: [HS256], key: secret }] }",
        "auth: { jwt: [{ issuer: i, audience: [], algorithms: [HS256], key: secret }] }",
        "auth: { jwt: [{ issuer: i, audience: [\"\"], algorithms: [HS256], key: secret }] }",
        "auth: { jwt: [{ issuer: i, audience: a, algorithms: [HS256], key: secret }, \
         { issuer: i, audience: b, algorithms: [HS256], key: secret }] }",
        "auth: { websocket: { tickets: 31s } }",
        "auth: { websocket: { tickets: 0s } }",
        "auth: { mtls: { identity: san_uri } }",
        "listen: [{ tls: { certificates: [{ certificate: server.pem, key: server.key }], clients: {} } }]",
        "admin: { tls: { certificates: [] } }",
    ] {
        let problems = parse_in(folder.path(), text).unwrap_err();
        assert_eq!(problems.list.len(), 1, "{text}: {problems}");
    }
}

#[test]
fn listeners_ask_for_certificates_as_they_are_told() {
    let folder = folder();
    let pair = "certificates: [{ certificate: server.pem, key: server.key }]";
    for (said, required) in [("", true), (", certificate: required", true), (", certificate: optional", false)] {
        let text = format!(
            "listen: [{{ tls: {{ {pair}, clients: {{ ca: server.pem{said} }} }} }}]\n\
             admin: {{ tls: {{ {pair} }} }}\nauth: {{ mtls: {{}} }}"
        );
        let config = parse_in(folder.path(), &text).unwrap_or_else(|problems| panic!("{problems}"));
        let tls = config.listen[0].tls.as_ref().unwrap();
        assert_eq!(tls.clients.as_ref().map(|clients| clients.required), Some(required));
        assert_eq!(tls.files().count(), 3);
        assert_eq!(config.admin.unwrap().tls.unwrap().certificates.len(), 1);
        assert_eq!(config.auth.mtls, Some(auth::certificate::Name::Uri));
    }
}

#[test]
fn any_method_opens_a_listener_to_others() {
    let folder = folder();
    let open = "listen: [{ address: \"0.0.0.0:0\" }]\n";
    assert!(parse_in(folder.path(), open).is_err());
    assert!(parse_in(folder.path(), &format!("{open}{}", issuer("algorithms: [HS256], key: secret"))).is_ok());
}

#[test]
fn keys_in_clear_text_are_a_warning() {
    let folder = folder();
    let warnings = |url: &str| {
        let text = issuer(&format!("algorithms: [RS256], jwks: \"{url}\""));
        parse_in(folder.path(), &text).unwrap().warnings().iter().filter(|text| text.contains("clear text")).count()
    };
    assert_eq!((warnings("http://id.example/jwks"), warnings("https://id.example/jwks")), (1, 0));
}

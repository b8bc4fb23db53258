//! Who somebody is, by whatever they prove it, and what they may do: the same on every surface.

use crate::support::{
    KEY, Running, Setup,
    authority::Authority,
    client::{Client, Failure, Request, http_request, http1},
    issuer::{self, Signer, publish},
};
use serde_json::{Value, json};
use sluicegate::call::Surface;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0; 4])
}

async fn infer(surface: Surface, running: &Running, key: Option<&str>, request: &Request) -> Result<(), Failure> {
    Client::connect(surface, running, key).await?.infer(request).await.map(drop)
}

async fn code(surface: Surface, running: &Running, key: Option<&str>) -> String {
    infer(surface, running, key, &double()).await.map_or_else(|failure| failure.code, |()| "ok".into())
}

/// A gateway that takes keys and tokens, and who signs them.
async fn with_issuer(grants: &str) -> (Running, Signer) {
    let signer = Signer::new("today");
    let setup = Setup::new().auth(issuer::AUTH).with_grants(grants);
    publish(setup.folder(), &[&signer]);
    (setup.start().await, signer)
}

const WEB: &str = "[{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"*\"] }]";

#[tokio::test]
async fn every_form_of_a_credential_counts_on_every_surface() {
    let (running, signer) = with_issuer(WEB).await;
    let (good, bad) = (signer.token(), Signer::new("today").token());
    let ended = signer.sign(Duration::ZERO, &json!({}));
    for surface in Surface::ALL {
        for (key, expected) in [
            (KEY, "ok"),
            (&*format!("x-api-key {KEY}"), "ok"),
            (&good, "ok"),
            // A token is no key.
            (&format!("x-api-key {good}"), "unauthenticated"),
            (&bad, "unauthenticated"),
            (&ended, "unauthenticated"),
            (&good[..good.len() - 2], "unauthenticated"),
            ("", "unauthenticated"),
            ("x-api-key ", "unauthenticated"),
        ] {
            assert_eq!(code(surface, &running, Some(key)).await, expected, "{surface:?} {key}");
        }
        assert_eq!(code(surface, &running, None).await, "unauthenticated", "{surface:?}");
    }
}

#[tokio::test]
async fn a_cookie_is_never_a_credential() {
    let (running, signer) = with_issuer(WEB).await;
    for cookie in
        [format!("authorization=Bearer {KEY}"), format!("x-api-key={KEY}"), format!("token={}", signer.token())]
    {
        let mut request = http_request(&running, "GET", "/v2/models/double", None, "");
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        assert_eq!(http1(&running, request).await.status(), 401);
    }
}

#[tokio::test]
async fn groups_and_claims_of_a_token_have_grants() {
    let (running, signer) = with_issuer(
        "[{ to: [\"group:mobile\"], intents: [infer], models: [\"double\"] }, \
          { to: [\"claim:tenant=acme\"], intents: [infer], models: [\"echo\"] }]",
    )
    .await;
    let hour = Duration::from_secs(3600);
    let echo =
        Request { data: crate::support::client::Data::Strings(vec!["a".into()]), ..Request::new("echo", &[1], vec![]) };
    for surface in Surface::ALL {
        for (claims, on_double, on_echo) in [
            (json!({ "groups": ["mobile"] }), "ok", "not_found"),
            (json!({ "tenant": "acme" }), "not_found", "ok"),
            (json!({ "tenant": ["x", "acme"], "groups": "mobile" }), "ok", "ok"),
        ] {
            let token = signer.sign(hour, &claims);
            for (request, expected) in [(&double(), on_double), (&echo, on_echo)] {
                let found = infer(surface, &running, Some(&token), request).await;
                let found = found.map_or_else(|failure| failure.code, |()| "ok".into());
                assert_eq!(found, expected, "{surface:?} {claims}");
            }
        }
        // Nothing is granted to it: it is known, and may do nothing.
        let nobody = code(surface, &running, Some(&signer.sign(hour, &json!({ "tenant": "other" })))).await;
        assert!(["permission_denied", "not_found"].contains(&&*nobody), "{surface:?} {nobody}");
    }
}

/// A listener that asks for certificates, its authority, and everything it needs.
async fn with_certificates(demand: &str, more: &str) -> (Running, Arc<Authority>) {
    let authority = Arc::new(Authority::new());
    let setup = Setup::new()
        .listen(&format!(
            "[{{ address: \"127.0.0.1:0\", tls: {{ certificates: [{{ certificate: server.pem, key: server.key }}], \
             clients: {{ ca: ca.pem, certificate: {demand} }} }} }}]"
        ))
        .auth(&format!("{{ mtls: {{ identity: san_uri }}{more} }}"))
        .with_grants(
            "[{ to: [\"identity:spiffe://a/web\", \"identity:web\"], intents: [infer, inspect], models: [\"*\"] }]",
        );
    authority.write(&setup.folder().join("ca.pem"));
    authority.server(&["localhost"]).write(setup.folder(), "server");
    (setup.start().await, authority)
}

#[tokio::test]
async fn a_certificate_says_who_somebody_is_on_every_surface() {
    let (running, authority) = with_certificates("optional", ", api_keys: { file: keys.yaml }").await;
    let as_client = async |uri: &str| {
        let shown = authority.client(uri, None);
        running.through(authority.tunnel(running.address, Some(shown)).await)
    };
    let (web, stranger) = (as_client("spiffe://a/web").await, as_client("spiffe://a/other").await);
    let nobody = running.through(authority.tunnel(running.address, None).await);
    for surface in Surface::ALL {
        assert_eq!(code(surface, &web, None).await, "ok", "{surface:?}");
        assert_eq!(code(surface, &stranger, Some(KEY)).await, "ok", "a key is sent, so it decides");
        assert_eq!(code(surface, &web, Some("sg_wrong")).await, "unauthenticated", "{surface:?}");
        assert_eq!(code(surface, &nobody, None).await, "unauthenticated", "{surface:?}");
        assert_eq!(code(surface, &nobody, Some(KEY)).await, "ok", "{surface:?}");
        let without_grant = code(surface, &stranger, None).await;
        assert!(["permission_denied", "not_found"].contains(&&*without_grant), "{surface:?} {without_grant}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_required_is_required() {
    let (running, authority) = with_certificates("required", "").await;
    let refused = async |authority: &Authority, shown| {
        let stream = authority.connect(running.address, "localhost", shown).await;
        match stream {
            Err(_) => true,
            // In TLS 1.3 a client learns it with the first bytes it reads.
            Ok(mut stream) => tokio::io::AsyncReadExt::read_u8(&mut stream).await.is_err(),
        }
    };
    assert!(refused(&authority, None).await);
    let ended = authority.client("spiffe://a/web", Some(SystemTime::now() - Duration::from_secs(5)));
    assert!(refused(&authority, Some(&ended)).await);
    let foreign = Authority::new().client("spiffe://a/web", None);
    assert!(refused(&authority, Some(&foreign)).await);
    let web = authority.client("spiffe://a/web", None);
    let web = running.through(authority.tunnel(running.address, Some(web)).await);
    assert_eq!(code(Surface::Rest, &web, None).await, "ok");
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let (running, authority) = with_certificates("required", "").await;
    let until = SystemTime::now() + Duration::from_secs(2);
    let web = authority.client("spiffe://a/web", Some(until));
    let web = running.through(authority.tunnel(running.address, Some(web)).await);
    let mut client = Client::connect(Surface::Grpc, &web, None).await.unwrap();
    client.infer(&double()).await.unwrap();
    // Certificates end with a whole second.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(client.infer(&double()).await.unwrap_err().code, "unauthenticated");
}

async fn admin(running: &Running, path: &str, key: Option<&str>) -> (u16, String) {
    let admin = running.at_admin();
    let response = http1(&admin, http_request(&admin, "GET", path, key, "")).await;
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    if response.status() == 401 {
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
    (response.status().as_u16(), kind)
}

#[tokio::test]
async fn the_admin_listener_is_for_who_may_manage() {
    let (running, signer) = with_issuer(
        "[{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"*\"] }, \
          { to: [\"group:operators\"], intents: [manage], models: [\"*\"] }]",
    )
    .await;
    let operator = signer.sign(Duration::from_secs(3600), &json!({ "groups": ["operators"] }));
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(admin(&running, path, None).await.0, 200, "{path}");
        assert_eq!(admin(&running, path, Some("wrong")).await.0, 200, "{path}");
    }
    for path in ["/", "/v2/models/double", "/config", "/metrics/"] {
        assert_eq!(admin(&running, path, None).await, (401, "application/problem+json".into()), "{path}");
        assert_eq!(admin(&running, path, Some("wrong")).await.0, 401, "{path}");
        assert_eq!(admin(&running, path, Some(KEY)).await.0, 403, "{path}");
        assert_eq!(admin(&running, path, Some(&operator)).await.0, 404, "{path}");
    }
    let open = Setup::new().start().await;
    assert_eq!(admin(&open, "/config", None).await.0, 404, "on loopback, before there are credentials");
}

#[tokio::test]
async fn what_is_hidden_and_what_is_absent_read_the_same() {
    let (running, _) =
        with_issuer("[{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"double\"] }]").await;
    for path in [
        "/v2/models/NAME",
        "/v2/models/NAME/ready",
        "/v2/models/NAME/config",
        "/v2/models/NAME/stats",
        "/v1/models/NAME",
    ] {
        let ask = async |name: &str| {
            let path = path.replace("NAME", name);
            let response = http1(&running, http_request(&running, "GET", &path, Some(KEY), "")).await;
            let mut body: Value = serde_json::from_slice(response.body()).unwrap();
            body["request_id"] = Value::Null;
            (response.status(), body.to_string().replace(name, "NAME"))
        };
        let (hidden, absent) = (ask("echo").await, ask("nobody").await);
        assert_eq!(hidden, absent, "{path}");
        assert_eq!(hidden.0, 404);
    }
}

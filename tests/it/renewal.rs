//! Credentials that change while they are used: rotated under load, revoked or expired within a session, and what browsers
//! trade for theirs.

use crate::support::{
    KEY, Running, Setup,
    authority::Authority,
    client::{Client, Ndjson, Request, Socket, grpc, http_request, http1, next_json, websocket},
    issuer::{self, Signer, publish},
    revoked_key,
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const WEB: &str = "[{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"*\"] }]";
const RENEW: &str = "limits: { websocket: { renew: 1s } }";

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0; 4])
}

async fn start(signers: &[&Signer]) -> Running {
    let setup = Setup::new().auth(issuer::AUTH).with_grants(WEB).yaml(RENEW);
    publish(setup.folder(), signers);
    setup.start().await
}

/// Callers that call until told to stop; how often they did. One that is refused panics.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(running: &Running, key: &str) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let caller = |surface| {
            let (running, key) = (running.clone(), key.to_owned());
            let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
            tokio::spawn(async move {
                let mut client = Client::connect(surface, &running, Some(&key)).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.infer(&double()).await;
                    answer.unwrap_or_else(|failure| panic!("{surface:?}: {failure:?}"));
                    calls.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        };
        let callers = Surface::ALL.into_iter().map(caller).collect();
        Self { stop, calls, callers }
    }

    async fn over(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.calls.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn keys_and_issuers_are_rotated_under_load_and_no_valid_call_fails() {
    let signers: Vec<_> = (0..4).map(|day| Signer::new(&format!("day{day}"))).collect();
    let running = start(&[&signers[0]]).await;
    let by_key = Load::start(&running, KEY);
    // Valid throughout: published before it is used, and withdrawn after.
    let steady = Load::start(&running, &signers[0].token());
    for pair in signers.windows(2) {
        publish(running.folder(), &[&signers[0], &pair[0], &pair[1]]);
        let seen = Instant::now();
        let token = pair[1].token();
        loop {
            let answer = http1(&running, http_request(&running, "GET", "/v2/models/double", Some(&token), "")).await;
            if answer.status() == 200 {
                break;
            }
            assert!(seen.elapsed() < Duration::from_secs(5), "a new key is taken within a second or so");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let today = Load::start(&running, &token);
        // The file of keys changes too, by the swap of a link as in a ConfigMap, and once it is broken.
        let folder = running.folder();
        let good = fs::read_to_string(folder.join("keys.yaml")).unwrap();
        fs::write(folder.join("keys.yaml"), "version: 1\nkeys: [broken]\n").unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        let data = format!("keys.{}", pair[1].token().len() + seen.elapsed().subsec_nanos() as usize);
        fs::write(folder.join(&data), good).unwrap();
        std::os::unix::fs::symlink(&data, folder.join("keys.link")).unwrap();
        fs::rename(folder.join("keys.link"), folder.join("keys.yaml")).unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(today.over().await > 0);
    }
    let calls = [by_key.over().await, steady.over().await];
    assert!(calls.iter().all(|calls| *calls > 100), "{calls:?}");
    // Withdrawn, a key of an issuer is worth nothing, also where its tokens were seen before.
    publish(running.folder(), &[&signers[3]]);
    ends(&running, &signers[0].token()).await;
    // The last one too: a set without keys is one.
    publish(running.folder(), &[]);
    ends(&running, &signers[3].token()).await;
}

/// Waits until a token is refused, which it has to be soon.
async fn ends(running: &Running, token: &str) {
    let withdrawn = Instant::now();
    while http1(running, http_request(running, "GET", "/v2/models/double", Some(token), "")).await.status() != 401 {
        assert!(withdrawn.elapsed() < Duration::from_secs(3));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is left of a WebSocket that nobody says anything on: the close code, and how long it took.
async fn left(socket: &mut Socket) -> (Vec<Value>, u16, Duration) {
    let (started, mut said) = (Instant::now(), Vec::new());
    loop {
        match tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("an end in time") {
            Some(Ok(Message::Text(text))) => said.push(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(Some(close)))) => return (said, close.code.into(), started.elapsed()),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_socket_whose_caller_is_revoked_is_asked_to_renew_and_then_closed() {
    let signer = Signer::new("a");
    let running = start(&[&signer]).await;
    let mut socket = websocket(&running, Some(KEY)).await.unwrap();
    let mut renewing = websocket(&running, Some(KEY)).await.unwrap();
    let mut other = websocket(&running, Some(&signer.token())).await.unwrap();
    revoked_key(&running);
    assert_eq!(next_json(&mut renewing).await.unwrap(), json!({ "type": "auth_required", "deadline_ms": 1000 }));
    let auth = json!({ "type": "auth", "auth": { "scheme": "bearer", "token": signer.token() } });
    renewing.send(Message::text(auth.to_string())).await.unwrap();
    let (said, code, took) = left(&mut socket).await;
    assert_eq!((said.len(), code), (1, 4401), "{said:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    for socket in [&mut renewing, &mut other] {
        socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        assert_eq!(next_json(socket).await.unwrap()["type"], "pong");
    }
}

#[tokio::test]
async fn a_socket_whose_token_has_expired_is_asked_to_renew_and_then_closed() {
    let signer = Signer::new("a");
    let running = start(&[&signer]).await;
    let token = signer.sign(Duration::from_millis(1500), &json!({}));
    let mut socket = websocket(&running, Some(&token)).await.unwrap();
    let (said, code, took) = left(&mut socket).await;
    assert_eq!((said[0]["type"].as_str(), code), (Some("auth_required"), 4401));
    assert!((Duration::from_millis(1500)..Duration::from_secs(4)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn streams_end_with_what_opened_them() {
    let signer = Signer::new("a");
    let running = start(&[&signer]).await;
    let token = signer.sign(Duration::from_millis(1500), &json!({}));

    let mut lines = Ndjson::open(&running, Some(&token)).await.unwrap();
    let (sender, messages) = tokio::sync::mpsc::channel::<inference::ModelInferRequest>(1);
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(messages));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut answers = grpc(&running).await.model_stream_infer(request).await.unwrap().into_inner();
    let started = Instant::now();
    let last = lines.next().await.unwrap();
    assert_eq!((&last["type"], &last["id"], &last["code"]), (&json!("error"), &Value::Null, &json!("unauthenticated")));
    assert!(lines.next().await.is_none());
    assert_eq!(lines.trailers.unwrap()["x-stream-status"], "unauthenticated");
    let status = tokio::time::timeout(Duration::from_secs(5), answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert!(started.elapsed() < Duration::from_secs(4));
    drop(sender);
}

async fn ticket(running: &Running, key: Option<&str>) -> Result<String, Value> {
    let response = http1(running, http_request(running, "POST", "/v1/ws/tickets", key, "")).await;
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    if response.status() == 200 {
        assert_eq!(
            (&body["expires_in"], &response.headers()["cache-control"]),
            (&json!(30), &"no-store".parse().unwrap())
        );
        return Ok(body["ticket"].as_str().unwrap().to_owned());
    }
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    Err(body)
}

async fn with_ticket(running: &Running, ticket: &str) -> Socket {
    let request = format!("ws://{}/v1/ws?ticket={ticket}", running.address).into_client_request().unwrap();
    let stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.expect("101, whatever the ticket").0
}

const HELLO: &str = r#"{"type":"hello","protocol":1}"#;

#[tokio::test]
async fn a_ticket_opens_one_socket_for_whoever_traded_for_it() {
    let signer = Signer::new("a");
    let running = start(&[&signer]).await;
    assert_eq!(ticket(&running, None).await.unwrap_err()["code"], "unauthenticated");
    assert_eq!(ticket(&running, Some("wrong")).await.unwrap_err()["status"], 401);
    for key in [KEY, &signer.token()] {
        let ticket = ticket(&running, Some(key)).await.unwrap();
        let mut socket = with_ticket(&running, &ticket).await;
        socket.send(Message::text(HELLO)).await.unwrap();
        assert_eq!(next_json(&mut socket).await.unwrap()["type"], "welcome");
        assert_eq!(left(&mut with_ticket(&running, &ticket).await).await.1, 4401, "once");
    }
    assert_eq!(left(&mut with_ticket(&running, "nonsense").await).await.1, 4401);
    assert_eq!(left(&mut with_ticket(&running, "").await).await.1, 4401);
    // It is worth what the key is worth that it was traded for.
    let early = ticket(&running, Some(KEY)).await.unwrap();
    let mut socket = with_ticket(&running, &ticket(&running, Some(KEY)).await.unwrap()).await;
    socket.send(Message::text(HELLO)).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "welcome");
    revoked_key(&running);
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "auth_required");
    assert_eq!(left(&mut with_ticket(&running, &early).await).await.1, 4401);
}

#[tokio::test]
async fn a_ticket_traded_for_a_certificate_opens_a_socket_without_one() {
    let authority = Arc::new(Authority::new());
    let setup = Setup::new()
        .listen(
            "[{ address: \"127.0.0.1:0\", tls: { certificates: [{ certificate: s.pem, key: s.key }], \
             clients: { ca: ca.pem, certificate: optional } } }]",
        )
        .auth("{ mtls: { identity: san_uri } }")
        .with_grants("[{ to: [\"identity:spiffe://a/web\"], intents: [inspect], models: [\"*\"] }]");
    authority.write(&setup.folder().join("ca.pem"));
    authority.server(&["localhost"]).write(setup.folder(), "s");
    let running = setup.start().await;
    let shown = authority.client("spiffe://a/web", None);
    let web = running.through(authority.tunnel(running.address, Some(shown)).await);
    let nobody = running.through(authority.tunnel(running.address, None).await);
    let ticket = ticket(&web, None).await.unwrap();
    let mut socket = with_ticket(&nobody, &ticket).await;
    socket.send(Message::text(HELLO)).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "welcome");
}

//! Secrets stay secret (attack I5): whatever carries one, and however it fails, it is in no log, no metric, no answer and no
//! `Debug`.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluicegate::{
    auth::{Authenticator, api_key},
    config::{Config, Overrides},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A key that is in the file, one that is not, and the secret that tokens are signed with.
const GOOD: &str = "sg_CANARYgoodAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const BAD: &str = "sg_CANARYbadAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const SECRET: &str = "CANARYsecret0123456789abcdef0123456789abcdef";

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn config(folder: &Path) -> String {
    let hash = api_key::hash(GOOD);
    fs::write(folder.join("secret"), SECRET).unwrap();
    fs::write(
        folder.join("keys.yaml"),
        format!("version: 1\nkeys:\n- {{ id: k_c, hash: \"{hash}\", identity: web }}\n"),
    )
    .unwrap();
    let config = folder.join("c.yaml");
    fs::write(
        &config,
        "version: 1\n\
         auth:\n  api_keys: { file: keys.yaml }\n  jwt: [{ issuer: i, audience: a, algorithms: [HS256], key: secret }]\n\
         grants: [{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"*\"] }]\n\
         limits: { address: { failures: 1000/s } }\n\
         telemetry: { log: { level: trace, format: json } }\n\
         drain: { delay: 1ms, timeout: 1s }\n",
    )
    .unwrap();
    config.to_str().unwrap().to_owned()
}

/// A token that is as good as the key.
fn token(exp: u64) -> String {
    let encode = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let claims = format!(r#"{{"iss":"i","aud":"a","sub":"web","exp":{exp}}}"#);
    let signed = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(&claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes())))
}

/// Says `request`, and hears what comes within a moment.
fn say(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(request).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The same over HTTP/2: one request for each of `fields`, as REST and as gRPC.
fn say_http2(address: &str, fields: &[(&'static str, String)]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut heard = String::new();
        for (name, value) in fields {
            for (method, path, kind) in [
                ("GET", "/v2/models/digits", "application/json"),
                ("POST", "/inference.GRPCInferenceService/ModelMetadata", "application/grpc"),
                ("POST", "/v2/stream", "application/x-ndjson"),
            ] {
                let request = http::Request::builder().method(method).uri(format!("http://{address}{path}"));
                let request = request.header("content-type", kind).header(*name, value.as_str());
                let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
                let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
                let body = body.collect().await.unwrap();
                let trailers = body.trailers().cloned();
                heard += &format!("{parts:?} {trailers:?} {:?}", body.to_bytes());
            }
        }
        heard
    })
}

/// A masked text frame (RFC 6455 section 5.2), whose mask is nothing.
fn frame(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    [&[0x81, 0x80 | 126], &length[..], &[0; 4], text.as_bytes()].concat()
}

#[test]
fn no_secret_is_in_any_log_metric_or_answer() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let log = folder.path().join("log");
    let out = folder.path().join("out");
    let arguments = ["serve", "--config", &config, "--models", "models", "--listen", "127.0.0.1:0", "--admin-listen"];
    let child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .stdin(Stdio::null())
        .args(arguments)
        .arg("127.0.0.1:0")
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut server = Server(child);
    let started = Instant::now();
    let banner = loop {
        let text = fs::read_to_string(&out).unwrap();
        if text.contains("/v2/stream") {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{}", fs::read_to_string(&log).unwrap());
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let address_of = |what: &str| {
        let line = banner.lines().find(|line| line.contains("://") && line.contains(what)).unwrap();
        line.trim().trim_start_matches("http://").split_whitespace().next().unwrap().to_owned()
    };
    let address = address_of("rest, grpc");

    let (fine, ended) = (token(4_102_444_800), token(1));
    let mut secrets: Vec<String> = [GOOD, BAD, SECRET, &fine, &ended].map(str::to_owned).to_vec();
    let mut heard = String::new();
    let head =
        |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{fields}\r\n");
    for secret in [GOOD, BAD, &fine, &ended, &format!("{fine}x"), "CANARYplain"] {
        let encoded = URL_SAFE_NO_PAD.encode(secret);
        for fields in [
            format!("authorization: Bearer {secret}\r\n"),
            format!("authorization: {secret}\r\n"),
            format!("authorization: Basic {}\r\n", STANDARD.encode(secret)),
            format!("x-api-key: {secret}\r\n"),
            format!("cookie: key={secret}\r\n"),
        ] {
            heard += &say(&address, head("GET /v2/models/digits", &fields).as_bytes());
            heard += &say(&address, head("GET /v2/models/nobody", &fields).as_bytes());
        }
        heard += &say(&address, head(&format!("GET /v2?api_key={secret}"), "").as_bytes());
        let fields = [("authorization", format!("Bearer {secret}")), ("x-api-key", secret.to_owned())];
        heard += &say_http2(&address, &fields);
        let upgrade = "upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n";
        let handshake = |target: &str, fields: &str| {
            format!("GET {target} HTTP/1.1\r\nhost: {address}\r\n{upgrade}{fields}\r\n").into_bytes()
        };
        let protocol = format!("sec-websocket-protocol: sluicegate.v1, sluicegate.bearer.{encoded}\r\n");
        heard += &say(&address, &handshake("/v1/ws", &protocol));
        heard += &say(&address, &handshake(&format!("/v1/ws?ticket={secret}"), ""));
        let hello = format!(r#"{{"type":"hello","protocol":1,"auth":{{"scheme":"bearer","token":"{secret}"}}}}"#);
        let broken = format!(r#"{{"type":"hello","protocol":1,"auth":{{"scheme":1,"token":"{secret}"}}}}"#);
        for text in [&hello, &broken] {
            heard += &say(&address, &[handshake("/v1/ws", ""), frame(text)].concat());
        }
        secrets.push(encoded);
        secrets.push(STANDARD.encode(secret));
    }
    assert!(heard.contains("HTTP/1.1 200") && heard.contains("HTTP/1.1 401") && heard.contains("welcome"), "{heard}");
    let answer = say(&address, head("POST /v1/ws/tickets", &format!("x-api-key: {GOOD}\r\n")).as_bytes());
    let ticket = answer.split("\"ticket\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let request =
        head(&format!("GET /v1/ws?ticket={ticket}"), "").replace("connection: close", "connection: Upgrade, close");
    heard += &say(&address, request.as_bytes());
    secrets.push(ticket);
    heard += &say(&address_of("/metrics /livez"), b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(heard.contains("sluicegate_calls_total"), "the metrics page was read");

    // A key in the place of its hash, which the server reads again while it runs.
    fs::write(
        folder.path().join("keys.yaml"),
        format!("version: 1\nkeys:\n- {{ id: k_c, hash: \"{BAD}\", identity: web }}\n"),
    )
    .unwrap();
    fs::write(folder.path().join("secret"), "CANARYshort").unwrap();
    let changed = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("64 hexadecimal digits") {
        assert!(changed.elapsed() < Duration::from_secs(5));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let _ = Command::new("kill").arg(server.0.id().to_string()).status();
    let _ = server.0.wait();

    let logged = fs::read_to_string(&log).unwrap() + &fs::read_to_string(&out).unwrap();
    assert!(logged.contains("unauthenticated") && logged.len() > 10_000, "{logged}");
    secrets.extend([
        "CANARY".to_owned(),
        URL_SAFE_NO_PAD.encode("sg_CANARY"),
        fine.rsplit('.').next().unwrap().to_owned(),
    ]);
    for secret in secrets {
        for (place, text) in [("log", &logged), ("answers", &heard)] {
            if let Some(at) = text.find(&secret) {
                let (from, to) = (text.floor_char_boundary(at.saturating_sub(300)), text.ceil_char_boundary(at + 100));
                panic!("`{secret}` is in the {place}: {}", &text[from..to]);
            }
        }
    }
}

#[test]
fn no_secret_is_in_debug() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path());
    let config = Config::load(Some(Path::new(&file)), Overrides::default()).unwrap();
    let authenticator = Authenticator::new(&config.auth).unwrap();
    let text = format!("{config:?} {authenticator:?}");
    assert!(text.contains("keys.yaml") && !text.contains("CANARY"), "{text}");
    // Bytes of it would be numbers.
    let bytes: Vec<_> = SECRET.as_bytes()[..6].iter().map(u8::to_string).collect();
    assert!(!text.contains(&bytes.join(", ")), "{text}");
}

//! Secrets that are looked for in everything that leaves the program.

use crate::{
    support::{
        KEY, Setup,
        client::{Ndjson, grpc, http_request, http1, next_json, websocket_upgrade},
    },
    traces::Collector,
};
use futures_util::SinkExt;
use serde_json::json;
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Message;

/// A key that is nobody's, a token that proves nothing, and a value of the environment.
const KEY_CANARY: &str = "sg_canary-canary-canary-canary-canary-canary0";
const TOKEN_CANARY: &str = "eyJhbGciOiJub25lIn0.canary-token-canary.x";
const VARIABLE: &str = "SLUICEGATE_TEST_CANARY";
const VALUE_CANARY: &str = "value-of-the-environment-canary";

fn assert_clean(what: &str, text: &str) {
    // As bytes of a dump too.
    for canary in [KEY, KEY_CANARY, TOKEN_CANARY, VALUE_CANARY] {
        assert!(!text.contains(canary), "{what} has {canary}:\n{text}");
        let dump: Vec<_> = canary.bytes().take(16).map(|byte| byte.to_string()).collect();
        assert!(!text.contains(&dump.join(", ")), "{what} has the bytes of {canary}");
    }
}

#[tokio::test]
async fn answers_metrics_traces_and_debug_have_no_secret() {
    let (collector, address) = Collector::start().await;
    let running = Setup::new()
        .with_key()
        .yaml(&format!(
            "telemetry: {{ metrics: {{ nv_view: true, by_identity: true }}, otlp: {{ endpoint: \"http://{address}\", sample: 1 }} }}"
        ))
        .start()
        .await;
    let body = json!({ "inputs": crate::support::double_tensor() }).to_string();
    let mut answers = String::new();
    for key in [KEY, KEY_CANARY, TOKEN_CANARY] {
        for path in ["/v2/models/double/infer", "/v2/models/none/infer", "/v2/nothing"] {
            let path = format!("{path}?token={TOKEN_CANARY}");
            let response = http1(&running, http_request(&running, "POST", &path, Some(key), body.clone())).await;
            answers.push_str(&format!("{response:?}"));
            answers.push_str(&String::from_utf8_lossy(response.body()));
        }
        match Ndjson::open(&running, Some(key)).await {
            Ok(mut stream) => {
                stream.send(&json!({ "type": "infer", "id": "a", "model": "none", "inputs": [] })).await;
                answers.push_str(&format!("{:?}", stream.next().await));
            }
            Err(failure) => answers.push_str(&format!("{failure:?}")),
        }
        let mut message = tonic::Request::new(sluicegate::wire::proto::inference::ModelReadyRequest::default());
        message.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        answers.push_str(&format!("{:?}", grpc(&running).await.model_ready(message).await));
        let mut socket = websocket_upgrade(&running, None).await.unwrap();
        let auth = json!({ "scheme": "bearer", "token": key });
        let hello = json!({ "type": "hello", "protocol": 1, "auth": auth }).to_string();
        socket.send(Message::text(hello)).await.unwrap();
        answers.push_str(&format!("{:?}", next_json(&mut socket).await));
    }
    running.until("traces are sent", |page| page.contains("sluicegate_traces_total{outcome=\"exported\"}")).await;
    assert_clean("an answer", &answers);
    assert_clean("the page", &running.metrics().await);
    let traces = collector.text();
    assert!(traces.contains("/v2/models/{model}/infer"));
    assert_clean("a trace", &traces);
    for credentials in
        [sluicegate::call::Credentials::ApiKey(KEY.into()), sluicegate::call::Credentials::Bearer(TOKEN_CANARY.into())]
    {
        assert_clean("Debug", &format!("{credentials:?} {credentials:#?}"));
    }
}

/// One exchange on a connection of its own.
fn exchange(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_log_at_its_finest_has_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("models")).unwrap();
    let config = format!(
        "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\nmodels: {{ directory: models }}\n\
         auth: {{ api_keys: {{ file: keys.yaml }} }}\ngrants: [{{ to: [\"identity:${{{VARIABLE}}}\"], intents: [infer], models: [\"*\"] }}]\n\
         telemetry: {{ log: {{ level: trace, format: json }} }}\n"
    );
    fs::write(at("keys.yaml"), "version: 1\nkeys: []\n").unwrap();
    fs::write(at("c.yaml"), &config).unwrap();
    let program = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env(VARIABLE, VALUE_CANARY).stdin(Stdio::null());
        command
    };
    let mut child = program()
        .args(["serve", "--config"])
        .arg(at("c.yaml"))
        .stdout(fs::File::create(at("out")).unwrap())
        .stderr(fs::File::create(at("log")).unwrap())
        .spawn()
        .unwrap();
    let until = |what: &str, condition: &dyn Fn(&str) -> bool| {
        let started = Instant::now();
        loop {
            let read = |name: &str| fs::read_to_string(at(name)).unwrap_or_default();
            let text = read("out") + &read("log");
            if condition(&text) {
                return text;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{what}\n{text}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    let banner = until("it serves", &|text| text.contains("Ctrl-C"));
    let address = banner.split("http://").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    for key in [KEY_CANARY, TOKEN_CANARY] {
        for header in ["authorization: Bearer ", "x-api-key: "] {
            let head = format!("host: x\r\n{header}{key}\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}");
            let answer = exchange(&address, &format!("POST /v2/models/m/infer?ticket={key} HTTP/1.1\r\n{head}"));
            assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
            assert_clean("an answer", &answer);
        }
    }
    // A WebSocket whose hello carries a token: the library below would write whole frames down at this level.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/v1/ws"), stream).await.unwrap();
        let auth = json!({ "scheme": "bearer", "token": TOKEN_CANARY });
        let hello = json!({ "type": "hello", "protocol": 1, "auth": auth }).to_string();
        socket.send(Message::text(hello)).await.unwrap();
        assert!(next_json(&mut socket).await.is_none(), "it is closed");
    });
    // A configuration that is wrong where the value stands: its problem is logged.
    fs::write(at("c.yaml"), config.replace("identity:${", "nobody:${")).unwrap();
    let log = until("the problem is told", &|text| text.contains("the old one stays"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(log.contains("\"code\":\"unauthenticated\"") && log.contains("DEBUG"), "{log}");
    assert_clean("the log", &log);
    let checked = program().args(["check", "--config"]).arg(at("c.yaml")).output().unwrap();
    assert_eq!(checked.status.code(), Some(2));
    let printed = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(printed.contains(&format!("${{{VARIABLE}}}")), "{printed}");
    assert_clean("what is printed", &printed);
}

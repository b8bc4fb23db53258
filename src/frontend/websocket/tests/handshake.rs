//! Handshakes, over real sockets.

use super::*;
use crate::{
    call::{Credentials, Identity, Inbound, Inspect, Operation, Reply, Report, Scope},
    error::{Error, Limit},
    frontend::testing::{Plan, Server, echo, status},
};

async fn known(call: Inbound) -> Result<Reply, Error> {
    match &call.sender {
        Credentials::Bearer(token) if &**token == "good" => {}
        Credentials::Bearer(token) if &**token == "idle" => return Err(Error::Forbidden { action: "do anything" }),
        Credentials::Bearer(token) if &**token == "full" => return Err(Error::Overloaded { limit: Limit::Calls }),
        _ => return Err(Error::Unauthenticated),
    }
    if call.head.intent == crate::call::Intent::Inspect {
        assert!(matches!(call.input.await, Ok(Operation::Inspect(Inspect::Session))));
        return Ok(Reply::Report(Report::Caller(Arc::new(Identity::proven("t", Vec::new(), Scope::Granted)))));
    }
    echo(call).await
}

fn head(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nupgrade: WebSocket\r\nconnection: keep-alive, Upgrade\r\n\
         sec-websocket-key: AQIDBAUGBwgJCgsMDQ4PEA==\r\nsec-websocket-version: 13\r\n{more}\r\n"
    )
}

/// The head of the answer.
async fn shake(server: &Server, request: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut stream = server.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    crate::frontend::testing::until(&mut stream, "\r\n\r\n").await.to_lowercase()
}

#[tokio::test]
async fn a_handshake_is_accepted_with_the_answer_to_its_key() {
    let server = Plan::default().start(echo);
    let answer = shake(&server, &head("/v1/ws", "")).await;
    assert_eq!(status(&answer), 101, "{answer}");
    assert!(answer.contains("sec-websocket-accept: c/0nmhhbztsrgr1cwl6tf4zjwpy=\r\n"), "{answer}");
    assert!(answer.contains("x-request-id: ") && !answer.contains("sec-websocket-protocol"), "{answer}");
    let offer = "sec-websocket-protocol: x\r\nsec-websocket-protocol: sluicegate.v1\r\nsec-websocket-extensions: permessage-deflate\r\n";
    let answer = shake(&server, &head("/v1/ws", offer)).await;
    assert!(answer.contains("sec-websocket-protocol: sluicegate.v1\r\n"), "{answer}");
    assert!(!answer.contains("sec-websocket-extensions"), "{answer}");
}

#[tokio::test]
async fn faulty_handshakes_are_refused_in_http() {
    let server = Plan::default().start(echo);
    let sound = head("/v1/ws", "");
    for (request, code) in [
        (sound.replace("GET ", "POST "), 405),
        (sound.replace("version: 13", "version: 8"), 426),
        (sound.replace("sec-websocket-version: 13\r\n", ""), 426),
        (sound.replace("AQIDBAUGBwgJCgsMDQ4PEA==", "AQID"), 400),
        (sound.replace("sec-websocket-key", "x"), 400),
        (head("/v1/ws", "sec-websocket-protocol: x, y\r\n"), 400),
        (head("/v1/ws", "origin: http://evil.example\r\n"), 403),
    ] {
        let answer = shake(&server, &request).await;
        assert_eq!(status(&answer), code, "{request} {answer}");
        assert!(answer.contains("content-type: application/problem+json\r\n"), "{answer}");
    }
    assert_eq!(status(&shake(&server, &head("/v1/wss", "")).await), 404);
    let answer = shake(&server, &sound.replace("version: 13", "version: 8")).await;
    assert!(answer.contains("sec-websocket-version: 13\r\n"), "{answer}");
    let own = format!("origin: http://localhost:{}\r\n", server.address.port());
    assert_eq!(status(&shake(&server, &head("/v1/ws", &own)).await), 101);
}

#[tokio::test]
async fn bad_credentials_in_a_header_are_refused_in_http() {
    let server = Plan::default().start(known);
    for (token, code) in [("good", 101), ("bad", 401), ("idle", 403), ("full", 503)] {
        let answer = shake(&server, &head("/v1/ws", &format!("authorization: Bearer {token}\r\n"))).await;
        assert_eq!(status(&answer), code, "{answer}");
    }
    let cookie = shake(&server, &head("/v1/ws", "cookie: authorization=good\r\n")).await;
    assert_eq!(status(&cookie), 101, "nobody: the first message may say who it is");
}

async fn client(server: &Server, headers: &[(&'static str, &'static str)]) -> WebSocketStream<tokio::net::TcpStream> {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let mut request = format!("ws://{}/v1/ws", server.address).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, http::HeaderValue::from_static(value));
    }
    tokio_tungstenite::client_async(request, server.connect().await).await.unwrap().0
}

async fn close_code(socket: &mut WebSocketStream<tokio::net::TcpStream>) -> Option<u16> {
    match socket.next().await {
        Some(Ok(Message::Close(Some(close)))) => Some(close.code.into()),
        _ => None,
    }
}

#[tokio::test]
async fn a_token_in_a_subprotocol_is_heard_and_never_answered() {
    let server = Plan::default().start(known);
    // `good`, `idle` and `nope` in base64url.
    let offer = |token| format!("sec-websocket-protocol: sluicegate.v1, sluicegate.bearer.{token}\r\n");
    let answer = shake(&server, &head("/v1/ws", &offer("Z29vZA"))).await;
    assert_eq!(status(&answer), 101, "{answer}");
    assert!(!answer.contains("bearer"), "{answer}");
    for (protocols, code) in [
        ("sluicegate.v1, sluicegate.bearer.bm9wZQ", Some(4401)),
        ("sluicegate.v1, sluicegate.bearer.aWRsZQ", Some(4403)),
        ("sluicegate.v1, sluicegate.bearer.!", Some(4401)),
    ] {
        let mut socket = client(&server, &[("sec-websocket-protocol", protocols)]).await;
        assert_eq!(close_code(&mut socket).await, code, "{protocols}");
    }
}

#[tokio::test]
async fn a_session_over_a_real_socket() {
    let server = Plan::default().start(echo);
    let mut socket = client(&server, &[("sec-websocket-protocol", "sluicegate.v1")]).await;
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    let welcome = socket.next().await.unwrap().unwrap().into_text().unwrap();
    let welcome: serde_json::Value = serde_json::from_str(&welcome).unwrap();
    let limits = serde_json::json!({
        "max_message_bytes": 16_777_216, "max_inflight": 64, "max_id_length": 64, "default_credit": 16,
        "idle_timeout_ms": 120_000, "ping_interval_ms": 20_000, "max_send_buffer_bytes": 1_048_576,
    });
    assert_eq!(welcome["limits"], limits);
    assert_eq!(welcome["features"], serde_json::json!(["binary", "stream", "cancel", "credit"]));
    socket.send(Message::text(request("a", "m", ""))).await.unwrap();
    assert!(socket.next().await.unwrap().unwrap().into_text().unwrap().contains(r#""id":"a","seq":0,"final":true"#));
    socket.send(Message::Ping("x".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("x".into()));
    socket.send(Message::text(r#"{"type":"bye"}"#)).await.unwrap();
    assert_eq!(close_code(&mut socket).await, Some(1000));
    assert!(socket.next().await.is_none());
}

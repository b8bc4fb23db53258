//! WebSocket over HTTP/2 streams (RFC 8441): the same handshake and the same session, in another dress.

use super::*;
use crate::{
    call::{Credentials, Identity, Inbound, Inspect, Operation, Reply, Report, Scope, Surface},
    error::Error,
    frontend::{
        Phase, Surfaces,
        testing::{Plan, Server, echo, get2, http2, silence, status},
    },
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{client::conn::http2::SendRequest, ext::Protocol};
use hyper_util::rt::TokioIo;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::time::Instant;

type Requests = SendRequest<Full<Bytes>>;
type Tunnel = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// A connection on which the server's SETTINGS have come.
async fn connect(server: &Server) -> Requests {
    let mut requests = http2(server.connect().await).await;
    get2(&mut requests, "/").await;
    requests
}

fn handshake(protocol: &'static str, path: &str, headers: &[(&str, &str)]) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::builder().method("CONNECT").uri(format!("http://a{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.extension(Protocol::from_static(protocol)).body(Full::default()).unwrap()
}

const SOUND: &[(&str, &str)] = &[("sec-websocket-version", "13"), ("sec-websocket-protocol", "sluicegate.v1")];

async fn open(requests: &mut Requests) -> Tunnel {
    let mut response = requests.send_request(handshake("websocket", "/v1/ws", SOUND)).await.unwrap();
    assert_eq!(response.status(), 200);
    let socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    WebSocketStream::from_raw_socket(socket, Role::Client, None).await
}

/// A session that was welcomed.
async fn welcomed(requests: &mut Requests) -> Tunnel {
    let mut socket = open(requests).await;
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    assert!(text(&mut socket).await.contains("welcome"));
    socket
}

async fn text(socket: &mut Tunnel) -> String {
    loop {
        if let Message::Text(text) = socket.next().await.unwrap().unwrap() {
            return text.to_string();
        }
    }
}

async fn close_code(socket: &mut Tunnel) -> Option<u16> {
    match socket.next().await {
        Some(Ok(Message::Close(Some(close)))) => Some(close.code.into()),
        _ => None,
    }
}

#[tokio::test]
async fn a_session_over_a_stream() {
    let server = Plan::default().start(echo);
    let mut requests = connect(&server).await;
    let mut response = requests.send_request(handshake("websocket", "/v1/ws", SOUND)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "sluicegate.v1");
    assert!(response.headers().contains_key("x-request-id"));
    for absent in ["sec-websocket-accept", "sec-websocket-extensions", "content-length", "upgrade", "connection"] {
        assert!(!response.headers().contains_key(absent), "{absent}");
    }
    let socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(socket, Role::Client, None).await;
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    assert!(text(&mut socket).await.contains("welcome"));
    socket.send(Message::text(request("a", "m", ""))).await.unwrap();
    assert!(text(&mut socket).await.contains(r#""id":"a","seq":0,"final":true"#));
    socket.send(Message::Ping("x".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("x".into()));
    // Larger than any piece, either way.
    let large = format!(r#"{{"type":"ping","t":"{}"}}"#, "x".repeat(300_000));
    socket.send(Message::text(large)).await.unwrap();
    assert_eq!(text(&mut socket).await.len(), 300_000 + r#"{"type":"pong","t":""}"#.len());
    // The connection still serves what it served before.
    assert_eq!(get2(&mut requests, "/").await.0, 200);
    socket.send(Message::text(r#"{"type":"bye"}"#)).await.unwrap();
    assert_eq!(close_code(&mut socket).await, Some(1000));
    assert!(socket.next().await.is_none());
    assert_eq!(get2(&mut requests, "/").await.0, 200);
}

#[tokio::test]
async fn several_sessions_share_a_connection() {
    let server = Plan::default().start(echo);
    let mut requests = connect(&server).await;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(welcomed(&mut requests).await);
    }
    for (index, socket) in sockets.iter_mut().enumerate() {
        socket.send(Message::text(request(&format!("n{index}"), "m", ""))).await.unwrap();
    }
    for (index, socket) in sockets.iter_mut().enumerate() {
        assert!(text(socket).await.contains(&format!(r#""id":"n{index}""#)));
    }
    assert_eq!(server.places.open(), 2, "one connection, and the place of the next");
}

#[tokio::test]
async fn faulty_handshakes_are_refused_in_http() {
    let server = Plan::default().start(echo);
    let mut requests = connect(&server).await;
    let version = ("sec-websocket-version", "13");
    let own = format!("http://localhost:{}", server.address.port());
    for (protocol, path, headers, code) in [
        ("connect-udp", "/v1/ws", SOUND, 501),
        ("WebSocket", "/v1/ws", SOUND, 501),
        ("websocket", "/v1/wss", SOUND, 404),
        ("websocket", "/v2", SOUND, 404),
        ("websocket", "/v1/ws", &[][..], 426),
        ("websocket", "/v1/ws", &[("sec-websocket-version", "8")], 426),
        ("websocket", "/v1/ws", &[version, ("sec-websocket-protocol", "x, y")], 400),
        ("websocket", "/v1/ws", &[version, ("origin", "http://evil.example")], 403),
        // Where a refusal could be read by nobody, it is said in a frame.
        ("websocket", "/v1/ws?ticket=t", SOUND, 200),
        // A refusal of gRPC is a 200, which would be a tunnel.
        ("websocket", "/v1/ws", &[("content-type", "application/grpc")], 426),
        // Neither a key nor its absence is a fault.
        ("websocket", "/v1/ws", &[version, ("sec-websocket-key", "x")], 200),
        ("websocket", "/v1/ws", &[version, ("origin", &own)], 200),
    ] {
        let response = requests.send_request(handshake(protocol, path, headers)).await.unwrap();
        assert_eq!(response.status(), code, "{protocol} {path} {headers:?}");
        if path == "/v1/ws" && code >= 400 {
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }
}

#[tokio::test]
async fn plain_connect_stays_refused() {
    let server = Plan::default().start(echo);
    let mut requests = connect(&server).await;
    let request = http::Request::builder().method("CONNECT").uri("a:80").body(Full::default()).unwrap();
    assert_eq!(requests.send_request(request).await.unwrap().status(), 405);
    let one = server.say("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status(&one), 405);
}

#[tokio::test]
async fn a_listener_without_websockets_does_not_announce_them() {
    let surfaces = Surfaces::NONE.with(Surface::Rest);
    let server = Plan { surfaces, ..Plan::default() }.start(echo);
    let mut requests = connect(&server).await;
    // The client itself knows that it must not.
    assert!(requests.send_request(handshake("websocket", "/v1/ws", SOUND)).await.is_err());
}

async fn known(call: Inbound) -> Result<Reply, Error> {
    match &call.sender {
        Credentials::Bearer(token) if &**token == "good" => {}
        Credentials::Bearer(token) if &**token == "idle" => return Err(Error::Forbidden { action: "do anything" }),
        _ => return Err(Error::Unauthenticated),
    }
    if call.head.intent == crate::call::Intent::Inspect {
        assert!(matches!(call.input.await, Ok(Operation::Inspect(Inspect::Session))));
        return Ok(Reply::Report(Report::Caller(Arc::new(Identity::proven("t", Vec::new(), Scope::Granted)))));
    }
    echo(call).await
}

#[tokio::test]
async fn callers_are_proven_as_over_http1() {
    let server = Plan::default().start(known);
    let mut requests = connect(&server).await;
    for (token, code) in [("good", 200), ("bad", 401), ("idle", 403)] {
        let authorization = format!("Bearer {token}");
        let headers = [SOUND, &[("authorization", authorization.as_str())]].concat();
        let response = requests.send_request(handshake("websocket", "/v1/ws", &headers)).await.unwrap();
        assert_eq!(response.status(), code, "{token}");
    }
    // `nope` in base64url.
    let headers =
        [("sec-websocket-version", "13"), ("sec-websocket-protocol", "sluicegate.v1, sluicegate.bearer.bm9wZQ")];
    let mut response = requests.send_request(handshake("websocket", "/v1/ws", &headers)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "sluicegate.v1");
    let socket = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(socket, Role::Client, None).await;
    assert_eq!(close_code(&mut socket).await, Some(4401));
    // And by the first message.
    let mut socket = open(&mut requests).await;
    let hello = r#"{"type":"hello","protocol":1,"auth":{"scheme":"bearer","token":"good"}}"#;
    socket.send(Message::text(hello)).await.unwrap();
    assert!(text(&mut socket).await.contains("welcome"));
}

#[tokio::test]
async fn a_tunnel_keeps_its_connection_from_being_idle() {
    let server = Plan::default().start(silence_but_callers);
    let mut requests = connect(&server).await;
    let mut socket = welcomed(&mut requests).await;
    socket.send(Message::text(request("a", "m", ""))).await.unwrap();
    tokio::time::pause();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(300) {
        assert!(matches!(socket.next().await, Some(Ok(Message::Ping(_)))));
    }
    drop(socket);
    let start = Instant::now();
    // The place of the next one stays taken.
    while server.places.open() > 1 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((85..=125).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

/// A stack that knows everybody and never infers.
async fn silence_but_callers(call: Inbound) -> Result<Reply, Error> {
    if call.head.intent == crate::call::Intent::Inspect { echo(call).await } else { silence(call).await }
}

#[tokio::test]
async fn a_drain_says_goaway_and_closes_the_session_then_the_connection() {
    let server = Plan::default().start(echo);
    let mut requests = connect(&server).await;
    let mut socket = welcomed(&mut requests).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    server.phase.send(Phase::Draining { deadline }).unwrap();
    assert!(text(&mut socket).await.starts_with(r#"{"type":"goaway""#));
    assert_eq!(close_code(&mut socket).await, Some(1012));
    drop((socket, requests));
    server.places.all_free().await;
}

#[tokio::test]
async fn a_reader_that_stalls_is_bounded_and_cut_off_and_its_neighbours_live() {
    let server = Plan::default().start(echo);
    let mut requests = connect(&server).await;
    let mut deaf = welcomed(&mut requests).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let (mut other, count) = (requests.clone(), Arc::clone(&answered));
    let others = tokio::spawn(async move {
        loop {
            get2(&mut other, "/").await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // Each is answered with as many bytes, which nobody reads.
    let ping = format!(r#"{{"type":"ping","t":"{}"}}"#, "x".repeat(16 * 1024));
    let mut said = 0;
    loop {
        // Stuck is what does not move while the same connection answers fifty others.
        let before = answered.load(Ordering::Relaxed);
        let stuck = async {
            while answered.load(Ordering::Relaxed) < before + 50 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            sent = deaf.send(Message::text(ping.clone())) => sent.unwrap(),
            () = stuck => break,
        }
        said += ping.len();
        assert!(said < 16 << 20, "what is not read is not produced");
    }
    others.abort();
    // The windows of the client and of the server, and what waits to be sent: each of them has its limit.
    assert!((1 << 20..5 << 20).contains(&said), "{said}");
    let mut lively = welcomed(&mut requests).await;
    lively.send(Message::text(request("a", "m", ""))).await.unwrap();
    assert!(text(&mut lively).await.contains(r#""id":"a""#));

    // 4430 after `write_stall`, five seconds for last words, and `write_stall` for what is left in the tunnel.
    tokio::time::pause();
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(75)).await;
    while let Some(Ok(_)) = deaf.next().await {}
    assert!(start.elapsed() < Duration::from_secs(80), "{:?}", start.elapsed());
    assert_eq!(get2(&mut requests, "/").await.0, 200);
}

#[tokio::test]
async fn what_is_left_in_a_tunnel_is_given_up() {
    let server = Plan::default().start(echo);
    let (requests, connection) = h2::client::handshake(server.connect().await).await.unwrap();
    tokio::spawn(connection);
    let mut requests = requests.ready().await.unwrap();
    let get = http::Request::get("http://a/").body(()).unwrap();
    requests.send_request(get, true).unwrap().0.await.unwrap();
    assert!(requests.is_extended_connect_protocol_enabled());
    let handshake =
        http::Request::builder().method("CONNECT").uri("http://a/v1/ws").header("sec-websocket-version", "13");
    let handshake = handshake.extension(h2::ext::Protocol::from_static("websocket")).body(()).unwrap();
    let (response, mut upstream) = requests.send_request(handshake, false).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    // Answers beyond any window: the session ends by itself, and its last words cannot leave.
    let hello = frame(r#"{"type":"hello","protocol":1}"#);
    let ping = frame(&format!(r#"{{"type":"ping","t":"{}"}}"#, "x".repeat(16 * 1024)));
    upstream.send_data([hello, ping.repeat(20)].concat().into(), false).unwrap();
    // Until the window is used up; it is never given back.
    let mut heard = 0;
    while heard < 65_535 {
        heard += response.body_mut().data().await.unwrap().unwrap().len();
    }
    tokio::time::pause();
    let start = Instant::now();
    let reason = std::future::poll_fn(|cx| upstream.poll_reset(cx)).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
    assert!((60..=75).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

/// A text, with a mask of zeros.
fn frame(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let mut frame = vec![0x81];
    match u8::try_from(length) {
        Ok(length @ ..126) => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame
}

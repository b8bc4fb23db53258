//! Connections: protocols told apart, timers, TLS, limits, drain.

use super::*;
use crate::{
    error::Error,
    frontend::{
        Settings,
        testing::{Plan, Server, echo, get2, http2, nobody, rest, silence, status, tardy, until},
        tls::{self, Pair, Speaks},
    },
};
use bytes::Bytes;
use http_body_util::Full;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::time::Instant as StdInstant;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

const GET: &[u8] = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn byte_by_byte(stream: &mut tokio::net::TcpStream, bytes: &[u8]) {
    stream.set_nodelay(true).unwrap();
    for byte in bytes {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn both_versions_are_told_apart_byte_by_byte() {
    let server = Plan::default().start(echo);
    let mut one = server.connect().await;
    byte_by_byte(&mut one, GET).await;
    assert!(until(&mut one, "{\"live\":true}").await.starts_with("HTTP/1.1 200 OK\r\n"));
    // The connection stays open for the next request.
    one.write_all(GET).await.unwrap();
    assert!(until(&mut one, "{\"live\":true}").await.starts_with("HTTP/1.1 200 OK\r\n"));

    let mut two = server.connect().await;
    byte_by_byte(&mut two, PREFACE).await;
    byte_by_byte(&mut two, &[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    let mut frame = [0; 9];
    two.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the first frame of a server is SETTINGS");

    let mut almost = server.connect().await;
    almost.write_all(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await.unwrap();
    assert_eq!(status(&rest(&mut almost).await), 400);
}

#[tokio::test]
async fn prior_knowledge_speaks_http2() {
    let server = Plan::default().start(echo);
    let mut client = http2(server.connect().await).await;
    let (status, body) = get2(&mut client, "/v2/health/ready").await;
    assert_eq!((status.as_u16(), &body[..]), (200, &b"{\"ready\":true}"[..]));
}

#[tokio::test]
async fn garbage_is_answered_once_and_closed() {
    let server = Plan::default().start(echo);
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"hello\r\n\r\n", &[0; 64], b"GET\r\n\r\n"] {
        let mut stream = server.connect().await;
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    }
    assert_eq!(server.calls.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(status(&server.ask("GET", "/").await), 200);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_ends_at_the_first_byte_timer() {
    let server = Plan::default().start(echo);
    let mut stream = server.connect().await;
    let start = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_ends_too() {
    let server = Plan::default().start(echo);
    let mut stream = server.connect().await;
    stream.write_all(&PREFACE[..20]).await.unwrap();
    let start = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_answered_with_408() {
    let server = Plan::default().start(echo);
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let start = Instant::now();
    let slow = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            let _ = stream.write_all(b"x").await;
        }
    };
    slow.await;
    assert_eq!(status(&rest(&mut stream).await), 408);
    assert!(start.elapsed() <= Duration::from_secs(13));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_alive_for_its_time_and_a_second_head_has_its_own() {
    let server = Plan::default().start(echo);
    let mut stream = server.connect().await;
    stream.write_all(GET).await.unwrap();
    until(&mut stream, "{\"live\":true}").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let start = Instant::now();
    stream.write_all(GET).await.unwrap();
    until(&mut stream, "{\"live\":true}").await;
    assert_eq!(rest(&mut stream).await, "");
    let waited = start.elapsed();
    assert!((90..=92).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_says_goodbye() {
    let server = Plan::default().start(echo);
    let mut client = http2(server.connect().await).await;
    get2(&mut client, "/").await;
    let start = Instant::now();
    let closed = async {
        while client.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    closed.await;
    assert!((89..=95).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_running_call_is_not_idle() {
    let server = Plan::default().start(silence);
    let mut stream = server.connect().await;
    stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(600), stream.read_u8()).await;
    assert!(waited.is_err(), "{waited:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_call() {
    let server = Plan::default().start(silence);
    let mut stream = server.connect().await;
    stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    while server.calls.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    server.places.all_open_but_one_closed().await;
}

fn certificate() -> (Tls, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let root = CertificateDer::from_pem_file(&certificate).unwrap();
    let settings = tls::Settings { certificates: vec![Pair { certificate, key }], clients: None };
    (Tls::new(settings, Speaks::Both).unwrap(), root)
}

async fn connect_tls(
    server: &Server,
    root: &CertificateDer<'static>,
    alpn: &[&[u8]],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::try_from("localhost").unwrap(), server.connect().await).await.unwrap()
}

#[tokio::test]
async fn tls_speaks_what_was_agreed() {
    let (tls, root) = certificate();
    let server = Plan { tls: Some(tls), ..Plan::default() }.start(echo);
    let two = connect_tls(&server, &root, &[b"h2", b"http/1.1"]).await;
    assert_eq!(two.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(get2(&mut http2(two).await, "/").await.0, 200);

    let mut one = connect_tls(&server, &root, &[b"http/1.1"]).await;
    one.write_all(GET).await.unwrap();
    assert!(until(&mut one, "{\"live\":true}").await.starts_with("HTTP/1.1 200"));

    let mut none = connect_tls(&server, &root, &[]).await;
    none.write_all(GET).await.unwrap();
    assert!(until(&mut none, "{\"live\":true}").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_flood_over_tls_is_told_to_calm_down() {
    let (tls, root) = certificate();
    let server = Plan { tls: Some(tls), ..Plan::default() }.start(echo);
    let mut stream = connect_tls(&server, &root, &[b"h2"]).await;
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    stream.write_all(&[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &ping.repeat(300)].concat()).await.unwrap();
    let mut all = Vec::new();
    // With an end of TLS, behind which nothing could have been cut off.
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.ends_with(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb]), "{all:?}");
    drop(stream);
    server.places.all_open_but_one_closed().await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_after_its_handshake_ends_at_the_first_byte_timer() {
    let (tls, root) = certificate();
    let server = Plan { tls: Some(tls), ..Plan::default() }.start(echo);
    for alpn in [&[][..], &[&b"http/1.1"[..]], &[b"h2"]] {
        let mut stream = connect_tls(&server, &root, alpn).await;
        let start = Instant::now();
        assert_eq!(rest(&mut stream).await, "");
        assert_eq!(start.elapsed().as_secs(), 10, "{alpn:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_handshake_ends_and_clear_text_on_a_tls_port_too() {
    let (tls, _) = certificate();
    let server = Plan { tls: Some(tls), ..Plan::default() }.start(echo);
    let start = Instant::now();
    assert_eq!(rest(&mut server.connect().await).await, "");
    assert_eq!(start.elapsed().as_secs(), 10);
    let clear = server.say(GET).await;
    assert!(!clear.starts_with("HTTP"), "{clear}");
}

#[tokio::test]
async fn beyond_the_total_nothing_is_accepted_until_a_place_is_free() {
    let mut settings = Settings::default();
    settings.connections.total = 1;
    let server = Plan { settings, ..Plan::default() }.start(echo);
    let mut first = server.connect().await;
    first.write_all(GET).await.unwrap();
    until(&mut first, "{\"live\":true}").await;
    let mut second = server.connect().await;
    second.write_all(GET).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(50), second.read_u8()).await;
    assert!(waiting.is_err());
    drop(first);
    assert!(until(&mut second, "{\"live\":true}").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn draining_closes_idle_connections_and_finishes_what_runs() {
    let server = Plan::default().start(tardy);
    let mut idle = server.connect().await;
    idle.write_all(GET).await.unwrap();
    until(&mut idle, "{\"live\":true}").await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /v2/models HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut two = http2(server.connect().await).await;
    let request = http::Request::get("http://a/v2/models").body(Full::<Bytes>::default()).unwrap();
    let running = two.send_request(request);
    while server.calls.load(std::sync::atomic::Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    let deadline = StdInstant::now() + Duration::from_secs(20);
    server.phase.send(Phase::Draining { deadline }).unwrap();
    assert_eq!(rest(&mut idle).await, "");
    let answer = rest(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(running.await.unwrap().status(), 200);
    drop(two);
    server.places.all_free().await;
}

#[tokio::test]
async fn stopping_answers_what_still_runs_with_not_ready() {
    let server = Plan::default().start(silence);
    let mut one = server.connect().await;
    one.write_all(b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut two = http2(server.connect().await).await;
    let request = http::Request::get("http://a/v2").body(Full::<Bytes>::default()).unwrap();
    let running = two.send_request(request);
    while server.calls.load(std::sync::atomic::Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    server.phase.send(Phase::Stopping).unwrap();
    let answer = rest(&mut one).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("not_ready"), "{answer}");
    assert_eq!(running.await.unwrap().status(), 503);
    server.places.all_free().await;
}

/// A stack whose answer is larger than any window or socket buffer.
async fn flood(_: crate::call::Inbound) -> Result<crate::call::Reply, Error> {
    let names = (0..200_000).map(|index| format!("model-with-a-long-name-{index:060}").into()).collect();
    Ok(crate::call::Reply::Report(crate::call::Report::Models(names)))
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_reader_stops_is_reset_and_its_neighbours_live() {
    let server = Plan::default().start(flood);
    let mut client = http2(server.connect().await).await;
    let request = http::Request::get("http://a/v2/models").body(Full::<Bytes>::default()).unwrap();
    let unread = client.send_request(request).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(get2(&mut client, "/").await.0, 200);
    }
    assert!(http_body_util::BodyExt::collect(unread.into_body()).await.is_err());
    assert_eq!(get2(&mut client, "/").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_cut_off() {
    let server = Plan::default().start(flood);
    let mut deaf = server.connect().await;
    deaf.write_all(b"GET /v2/models HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    // Never read: what the kernel takes is less than the answer.
    while server.calls.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    server.places.all_open_but_one_closed().await;
    assert!((30..=32).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_reply_that_a_reader_has_not_finished_survives_the_drain() {
    let (tls, root) = certificate();
    let clear = Plan::default().start(flood);
    let secret = Plan { tls: Some(tls), ..Plan::default() }.start(flood);
    let mut plain = clear.connect().await;
    half_read(&clear, &mut plain).await;
    let mut sealed = connect_tls(&secret, &root, &[b"http/1.1"]).await;
    half_read(&secret, &mut sealed).await;
}

/// Reads the beginning of a large answer, lets the server drain, and reads the rest.
async fn half_read(server: &Server, reader: &mut (impl AsyncReadExt + tokio::io::AsyncWrite + Unpin)) {
    reader.write_all(b"GET /v2/models HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = until(reader, "\r\n\r\n").await;
    let (_, length) = head.split_once("content-length: ").unwrap();
    let length: usize = length.lines().next().unwrap().parse().unwrap();
    server.phase.send(Phase::Draining { deadline: StdInstant::now() + Duration::from_secs(20) }).unwrap();
    // The drain has been heard of once the listener is closed.
    while tokio::net::TcpStream::connect(server.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(rest(reader).await.len(), length);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_and_steady_is_not_cut_off() {
    let mut settings = Settings::default();
    settings.timers.keep_alive = Duration::from_secs(2);
    settings.timers.write_stall = Duration::from_secs(5);
    let timers = settings.timers;
    let server = Plan { settings, ..Plan::default() }.start(flood);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // What the kernel has room for is no slowness of the reader.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut slow = socket.connect(server.address).await.unwrap();
    slow.write_all(b"GET /v2/models HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = until(&mut slow, "\r\n\r\n").await;
    let (_, length) = head.split_once("content-length: ").unwrap();
    let mut left: usize = length.lines().next().unwrap().parse().unwrap();
    let start = Instant::now();
    let mut piece = vec![0; 64 * 1024];
    while left > 0 {
        let read = slow.read(&mut piece).await.unwrap();
        assert!(read > 0, "{left} bytes are missing after {:?}", start.elapsed());
        left -= read;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() > timers.keep_alive + timers.write_stall, "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_upload_refused_early_is_answered_and_not_read() {
    let server = Plan::default().start(nobody);
    let head = "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n";
    let mut polite = server.connect().await;
    polite.write_all(format!("{head}expect: 100-continue\r\n\r\n").as_bytes()).await.unwrap();
    let answer = rest(&mut polite).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");

    // Who sends at once can still read the answer, although most of the body is never taken.
    let mut eager = server.connect().await;
    eager.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    eager.write_all(&vec![b'x'; 300_000]).await.unwrap();
    assert!(rest(&mut eager).await.starts_with("HTTP/1.1 401"));
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test]
async fn a_port_in_use_is_said_so() {
    let first = Listener::bind(anywhere(), Surfaces::ALL, None).unwrap();
    let error = Listener::bind(first.local(), Surfaces::ALL, None).unwrap_err().to_string();
    assert!(error.contains(&first.local().to_string()) && error.contains("in use"), "{error}");
    let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
    assert!(Listener::bind(foreign, Surfaces::ALL, None).unwrap_err().to_string().contains("no such address"));
}

#[tokio::test]
async fn places_are_waited_for_until_all_are_free() {
    let places = Places::new(Connections { total: 2, ..Connections::default() });
    let one = Arc::clone(&places.connections).acquire_owned().await.unwrap();
    assert_eq!(places.open(), 1);
    let mut waiting = std::pin::pin!(places.all_free());
    assert!(futures_util::FutureExt::now_or_never(waiting.as_mut()).is_none());
    drop(one);
    waiting.await;
    assert_eq!(places.open(), 0);
}

#[tokio::test]
async fn an_upload_that_is_taken_is_asked_for() {
    let server = Plan::default().start(echo);
    let mut stream = server.connect().await;
    let head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert_eq!(until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
}

#[tokio::test]
async fn header_fields_are_counted_on_http2_too() {
    let server = Plan::default().start(echo);
    let mut client = http2(server.connect().await).await;
    let mut request = http::Request::get("http://a/");
    for index in 0..101 {
        request = request.header(format!("x-{index}"), "y");
    }
    let response = client.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 431);
    assert_eq!(get2(&mut client, "/").await.0, 200);
}

#[tokio::test]
async fn a_listener_without_grpc_knows_none_of_its_methods() {
    let surfaces = Surfaces::NONE.with(crate::call::Surface::Rest);
    let server = Plan { surfaces, ..Plan::default() }.start(echo);
    let mut client = http2(server.connect().await).await;
    let request = http::Request::post("http://a/inference.GRPCInferenceService/ServerLive");
    let request = request.header("content-type", "application/grpc").body(Full::<Bytes>::default()).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &http::HeaderValue::from(12)));
}

#[test]
fn futures_of_requests_stay_small() {
    fn size<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }
    let size = size(crate::frontend::http::answer);
    assert!(size <= 16, "{size}");
}

impl Places {
    /// Until only the place that the acceptor holds for the next connection is taken.
    async fn all_open_but_one_closed(&self) {
        while self.open() > 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

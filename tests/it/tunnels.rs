//! WebSockets on HTTP/2 streams (RFC 8441), frame by frame: what the ends of a stream mean to its session (attack W12).

use crate::support::{
    Running, Setup,
    wire::{
        DATA, END_HEADERS, END_STREAM, Frame, HEADERS, RST_STREAM, SETTINGS, Wire, field, frame, head, reset, streams,
    },
};

/// `SETTINGS_ENABLE_CONNECT_PROTOCOL` with the value 1.
const CONNECT_PROTOCOL: [u8; 6] = [0, 8, 0, 0, 0, 1];
const HELLO: &str = r#"{"type":"hello","protocol":1}"#;

/// A handshake on `stream`.
fn open(stream: u32, flags: u8) -> Vec<u8> {
    let method = [&[0x02, 7], &b"CONNECT"[..]].concat();
    // Without the method, which is its first byte.
    let rest = head("GET", "/v1/ws")[1..].to_vec();
    let protocol = field(b":protocol", b"websocket");
    let head = [method, rest, protocol, field(b"sec-websocket-version", b"13")].concat();
    frame(HEADERS, END_HEADERS | flags, stream, &head)
}

/// A text message of the client, with a mask of zeros.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    let length = if text.len() < 126 { vec![0x80 | length[1]] } else { vec![0x80 | 126, length[0], length[1]] };
    [&[0x81], &length[..], &[0; 4], text.as_bytes()].concat()
}

/// A session on `stream` with `requests` that wait for the model `held`.
async fn busy(running: &Running, wire: &mut Wire, stream: u32, requests: usize) {
    wire.send([open(stream, 0), frame(DATA, 0, stream, &text(HELLO))].concat()).await;
    let answer = wire.expect(HEADERS).await;
    // `:status` 200, and the stream stays open.
    assert_eq!((answer.stream, answer.payload[0], answer.flags & END_STREAM), (stream, 0x88, 0));
    let welcome = wire.expect(DATA).await;
    assert!(String::from_utf8_lossy(&welcome.payload).contains(r#""type":"welcome""#));
    for index in 0..requests {
        let infer = format!(
            r#"{{"type":"infer","id":"r{index}","model":"held","inputs":[{{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}}]}}"#
        );
        // A message may lie in any number of DATA frames.
        for piece in text(&infer).chunks(50) {
            wire.send(frame(DATA, 0, stream, piece)).await;
        }
    }
    let line = format!("sluicegate_calls_in_flight{{surface=\"websocket\"}} {requests}");
    running.until("all requests are in flight", |metrics| metrics.lines().any(|found| found == line)).await;
}

async fn cancelled(running: &Running, calls: usize) {
    let line = format!("sluicegate_cancelled_total{{stage=\"queued\",surface=\"websocket\"}} {calls}");
    running.until("all requests were cancelled", |metrics| metrics.lines().any(|found| found == line)).await;
    let line = "sluicegate_connections{kind=\"websocket\"} 0";
    running.until("the session is over", |metrics| metrics.lines().any(|found| found == line)).await;
}

#[tokio::test]
async fn a_reset_or_an_end_of_the_stream_cancels_all_requests_of_its_socket() {
    let running = Setup::new().start().await;
    let holder = running.hold("held").await;
    let before = running.runs("held");
    let mut wire = Wire::open(&running).await;
    let settings = wire.expect(SETTINGS).await;
    assert!(settings.payload.chunks(6).any(|setting| setting == CONNECT_PROTOCOL), "{settings:?}");
    // As TCP's reset, in the middle of a message.
    busy(&running, &mut wire, 1, 3).await;
    wire.send([frame(DATA, 0, 1, &text(HELLO)[..9]), reset(1)].concat()).await;
    cancelled(&running, 3).await;
    // As TCP's end: ours follows.
    busy(&running, &mut wire, 3, 2).await;
    wire.send(frame(DATA, END_STREAM, 3, &[])).await;
    cancelled(&running, 5).await;
    ends(&mut wire, 3).await;
    wire.works(5).await;
    holder.release().await;
    assert_eq!(running.runs("held"), before, "nothing of them has run");
}

/// The server ends its half of `stream`, too.
async fn ends(wire: &mut Wire, stream: u32) -> Frame {
    loop {
        let frame = wire.next().await.expect("the connection lives on");
        let ends = frame.kind == RST_STREAM || frame.kind == DATA && frame.flags & END_STREAM != 0;
        if frame.stream == stream && ends {
            return frame;
        }
    }
}

#[tokio::test]
async fn a_handshake_that_ends_its_stream_is_a_session_that_is_over() {
    let running = Setup::new().start().await;
    let mut wire = Wire::open(&running).await;
    for stream in streams().take(5) {
        wire.send(open(stream, END_STREAM)).await;
        assert_eq!(wire.expect(HEADERS).await.stream, stream);
        ends(&mut wire, stream).await;
    }
    wire.works(99).await;
}

#[tokio::test]
async fn sessions_of_one_connection_end_with_it() {
    let running = Setup::new().start().await;
    let holder = running.hold("held").await;
    let mut wire = Wire::open(&running).await;
    busy(&running, &mut wire, 1, 2).await;
    drop(wire);
    cancelled(&running, 2).await;
    holder.release().await;
}

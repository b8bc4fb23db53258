//! NDJSON streams against a made-up stack, over HTTP/2 and HTTP/1.1.

use super::{codec::Protocol, link::Lines, rules};
use crate::frontend::{
    Body, Phase, Settings,
    body::Busy,
    duplex::{Session, fixture::Fixture},
    testing::{Plan, echo, nobody, rest, status, until},
};
use bytes::Bytes;
use http_body::Frame;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, sync::mpsc};

/// A client of one stream.
struct Client {
    fixture: Fixture,
    request: Option<mpsc::Sender<Frame<Bytes>>>,
    response: mpsc::Receiver<Frame<Bytes>>,
    read: String,
}

impl Client {
    fn with(settings: Settings, ordered: bool) -> Self {
        let fixture = Fixture::new(settings);
        let (request, body) = mpsc::channel(64);
        let rules = rules(&fixture.connection.frontend.settings, ordered);
        let frontend = &fixture.connection.frontend;
        let (link, response) =
            Lines::new(Body::Channel(body), frontend.settings.size.message, frontend.memory.for_arrivals());
        let codec = Protocol::new(Arc::clone(&fixture.connection), None);
        tokio::spawn(Session::new(Arc::clone(&fixture.connection), rules, fixture.speaker(None), codec, link).run());
        Self { fixture, request: Some(request), response, read: String::new() }
    }

    fn new() -> Self {
        Self::with(Settings::default(), false)
    }

    async fn say(&mut self, text: impl Into<String>) {
        let frame = Frame::data(Bytes::from(text.into()));
        self.request.as_ref().unwrap().send(frame).await.unwrap();
    }

    async fn infer(&mut self, id: &str, model: &str, more: &str) {
        self.say(line(id, model, more)).await;
    }

    fn half_close(&mut self) {
        self.request = None;
    }

    /// The next line; at the end, the trailer.
    async fn hear(&mut self) -> Result<String, Option<String>> {
        loop {
            if let Some((line, rest)) = self.read.split_once('\n') {
                let line = line.to_owned();
                self.read = rest.to_owned();
                return Ok(line);
            }
            let Some(frame) = self.response.recv().await else { return Err(None) };
            match frame.into_data() {
                Ok(data) => self.read.push_str(std::str::from_utf8(&data).unwrap()),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    return Err(Some(trailers["x-stream-status"].to_str().unwrap().to_owned()));
                }
            }
        }
    }

    async fn expect(&mut self, start: &str) {
        let line = self.hear().await.unwrap();
        assert!(line.starts_with(start), "{line}");
    }

    async fn ends(&mut self, last: &str, status: &str) {
        self.expect(last).await;
        assert_eq!(self.hear().await, Err(Some(status.to_owned())));
        assert_eq!(self.hear().await, Err(None));
    }

    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

fn line(id: &str, model: &str, more: &str) -> String {
    format!(
        r#"{{"type":"infer","id":"{id}","model":"{model}"{more},"inputs":[{{"name":"X","datatype":"FP32","shape":[1,2],"data":[1,2]}}]}}"#
    ) + "\n"
}

const OUTPUT: &str = r#"{"type":"output","id":"#;

#[tokio::test(start_paused = true)]
async fn lines_are_answered_and_counted() {
    let mut client = Client::new();
    client.infer("1", "echo", "").await;
    let expected = concat!(
        r#"{"type":"output","id":"1","seq":0,"final":true,"model":"echo","version":"1","#,
        r#""outputs":[{"name":"X","datatype":"FP32","shape":[1,2],"data":[1.0,2.0]}]}"#
    );
    assert_eq!(client.hear().await.unwrap(), expected);
    client.infer("2", "broken", "").await;
    client.expect(r#"{"type":"error","id":"2","code":"internal""#).await;
    client.half_close();
    client.ends(r#"{"type":"done","id":null,"requests":2,"errors":1}"#, "ok").await;
}

#[tokio::test(start_paused = true)]
async fn carriage_returns_blank_lines_and_a_missing_end_are_tolerated() {
    let mut client = Client::new();
    let (one, two) = (line("1", "echo", ""), line("2", "echo", ""));
    client.say(format!("\r\n{}\r\n \n\n{}", one.trim_end(), two.trim_end())).await;
    client.half_close();
    client.expect(&format!("{OUTPUT}\"1\"")).await;
    client.expect(&format!("{OUTPUT}\"2\"")).await;
    client.ends(r#"{"type":"done","id":null,"requests":2,"errors":0}"#, "ok").await;
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_finishes_what_runs() {
    let mut client = Client::new();
    client.infer("1", "wait", "").await;
    client.half_close();
    client.settle().await;
    client.fixture.stack.released.add_permits(1);
    client.expect(&format!("{OUTPUT}\"1\"")).await;
    client.ends(r#"{"type":"done","id":null"#, "ok").await;
}

#[tokio::test(start_paused = true)]
async fn answers_keep_the_order_of_requests_if_asked() {
    let mut client = Client::with(Settings::default(), true);
    client.infer("slow", "wait", "").await;
    client.infer("s", "steps", r#","stream":true,"parameters":{"steps":2}"#).await;
    client.infer("fast", "echo", "").await;
    client.infer("bad", "broken", "").await;
    client.settle().await;
    client.fixture.stack.released.add_permits(1);
    client.half_close();
    for start in [
        r#"{"type":"output","id":"slow","#,
        r#"{"type":"output","id":"s","seq":0,"final":false"#,
        r#"{"type":"output","id":"s","seq":1,"final":false"#,
        r#"{"type":"done","id":"s""#,
        r#"{"type":"output","id":"fast","#,
        r#"{"type":"error","id":"bad","#,
        r#"{"type":"done","id":null,"requests":4,"errors":1}"#,
    ] {
        client.expect(start).await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_lines_in_a_row_that_are_no_messages_end_the_stream() {
    let mut client = Client::new();
    for bad in ["nonsense\n", "{\"type\":\"hello\"}\n"] {
        client.say(bad).await;
        client.expect(r#"{"type":"error","id":null,"code":"invalid_argument""#).await;
    }
    client.infer("1", "echo", "").await;
    client.expect(OUTPUT).await;
    client.infer("w", "wait", "").await;
    for bad in ["[]\n", "{\n"] {
        client.say(bad).await;
        client.expect(r#"{"type":"error","id":null"#).await;
    }
    client.say("\"x\"\n").await;
    client.settle().await;
    client.fixture.stack.released.add_permits(1);
    client.expect(&format!("{OUTPUT}\"w\"")).await;
    client.ends(r#"{"type":"error","id":null,"code":"invalid_argument""#, "invalid_argument").await;
}

#[tokio::test(start_paused = true)]
async fn a_line_beyond_the_limit_ends_the_stream() {
    let mut settings = Settings::default();
    settings.size.message = 200;
    let mut client = Client::with(settings, false);
    client.infer("1", "echo", "").await;
    client.expect(OUTPUT).await;
    client.say("x".repeat(150)).await;
    client.say("x".repeat(150)).await;
    client.ends(r#"{"type":"error","id":null,"code":"payload_too_large""#, "payload_too_large").await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_refused_without_ending_the_first() {
    let mut client = Client::new();
    client.infer("1", "wait", "").await;
    client.infer("1", "echo", "").await;
    client.expect(r#"{"type":"error","id":null,"code":"conflict""#).await;
    client.fixture.stack.released.add_permits(1);
    client.expect(&format!("{OUTPUT}\"1\"")).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_stream_is_not_read() {
    let mut client = Client::new();
    for index in 0..70 {
        client.infer(&format!("{index}"), "wait", "").await;
    }
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 64);
    client.fixture.stack.released.add_permits(100);
    client.half_close();
    for _ in 0..70 {
        client.expect(OUTPUT).await;
    }
    client.ends(r#"{"type":"done","id":null,"requests":70,"errors":0}"#, "ok").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_stream_that_uses_credit_is_read_and_refuses() {
    let mut client = Client::new();
    client.infer("s", "steps", r#","stream":true,"credit":1,"parameters":{"steps":2}"#).await;
    client.expect(&format!("{OUTPUT}\"s\"")).await;
    for index in 0..63 {
        client.infer(&format!("{index}"), "never", "").await;
    }
    client.infer("more", "echo", "").await;
    client.expect(r#"{"type":"error","id":"more","code":"overloaded""#).await;
    client.say("{\"type\":\"credit\",\"id\":\"s\",\"add\":1}\n").await;
    client.expect(&format!("{OUTPUT}\"s\",\"seq\":1")).await;
    client.expect(r#"{"type":"done","id":"s""#).await;
    client.say("{\"type\":\"cancel\",\"id\":\"7\"}\n").await;
    client.expect(r#"{"type":"cancelled","id":"7"}"#).await;
}

#[tokio::test(start_paused = true)]
async fn binary_outputs_have_no_place_in_a_line() {
    let mut client = Client::new();
    client.infer("1", "echo", r#","binary_outputs":true"#).await;
    client.expect(r#"{"type":"error","id":"1","code":"invalid_argument""#).await;
    client.infer("1", "echo", r#","binary_outputs":false"#).await;
    client.expect(OUTPUT).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_blank_lines_and_ends_when_nobody_needs_it() {
    let mut client = Client::new();
    let start = tokio::time::Instant::now();
    for _ in 0..7 {
        assert_eq!(client.hear().await.unwrap(), "");
    }
    client.ends(r#"{"type":"error","id":null,"code":"deadline_exceeded""#, "deadline_exceeded").await;
    assert_eq!(start.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_stops_arriving_ends_the_stream() {
    let mut client = Client::new();
    client.say("{\"type\":").await;
    let start = tokio::time::Instant::now();
    client.ends(r#"{"type":"error","id":null,"code":"deadline_exceeded""#, "deadline_exceeded").await;
    assert_eq!(start.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_caller_ends_the_stream_after_what_runs() {
    let mut client = Client::new();
    client.infer("old", "wait", "").await;
    client.settle().await;
    client.fixture.stack.revoked.store(true, Ordering::SeqCst);
    client.infer("new", "echo", "").await;
    client.expect(r#"{"type":"error","id":"new","code":"unauthenticated""#).await;
    client.fixture.stack.released.add_permits(1);
    client.expect(&format!("{OUTPUT}\"old\"")).await;
    client.ends(r#"{"type":"error","id":null,"code":"unauthenticated""#, "unauthenticated").await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_caller_that_asks_for_nothing_more_is_told_too() {
    let mut client = Client::new();
    client.infer("old", "wait", "").await;
    client.settle().await;
    client.fixture.stack.revoked.store(true, Ordering::SeqCst);
    client.fixture.proofs.send_replace(());
    client.settle().await;
    client.infer("new", "echo", "").await;
    client.expect(r#"{"type":"error","id":"new","code":"unauthenticated""#).await;
    client.fixture.stack.released.add_permits(1);
    client.expect(&format!("{OUTPUT}\"old\"")).await;
    client.ends(r#"{"type":"error","id":null,"code":"unauthenticated""#, "unauthenticated").await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_says_why() {
    let mut client = Client::new();
    client.infer("a", "wait", "").await;
    client.settle().await;
    client.fixture.phase.send(Phase::Draining { deadline: std::time::Instant::now() }).unwrap();
    client.infer("b", "echo", "").await;
    client.expect(r#"{"type":"error","id":"b","code":"not_ready""#).await;
    client.fixture.stack.released.add_permits(1);
    client.expect(&format!("{OUTPUT}\"a\"")).await;
    client.ends(r#"{"type":"error","id":null,"code":"not_ready""#, "not_ready").await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_drain_cancels_the_rest_by_name() {
    let mut client = Client::new();
    client.infer("a", "never", "").await;
    client.settle().await;
    client.fixture.phase.send(Phase::Stopping).unwrap();
    client.expect(r#"{"type":"error","id":"a","code":"not_ready""#).await;
    client.ends(r#"{"type":"error","id":null,"code":"not_ready""#, "not_ready").await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_is_given_up_and_its_memory_is_bounded() {
    let mut client = Client::new();
    client.infer("s", "steps", r#","stream":true,"parameters":{"steps":100000}"#).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    let produced = client.fixture.produced();
    assert!(produced < 1500, "{produced}");
    assert_eq!(client.fixture.in_flight(), 1);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(client.fixture.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_cancels_everything() {
    let mut client = Client::new();
    client.infer("a", "never", "").await;
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 1);
    client.response.close();
    drop(client.response);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.fixture.stack.in_flight.load(Ordering::SeqCst), 0);
}

const HEAD: &str = "POST /v2/stream HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n";

#[tokio::test]
async fn http1_is_full_duplex_too() {
    let server = Plan::default().start(echo);
    let mut stream = server.connect().await;
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let head = format!("{HEAD}content-type: application/x-ndjson; charset=utf-8\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // The head of the response does not wait for a line.
    let answer = until(&mut stream, "\r\n\r\n").await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        answer.contains("content-type: application/x-ndjson\r\n") && answer.contains("trailer: x-stream-status\r\n")
    );
    for id in ["1", "2"] {
        stream.write_all(chunk(&line(id, "m", "")).as_bytes()).await.unwrap();
        until(&mut stream, &format!("{OUTPUT}\"{id}\"")).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let end = until(&mut stream, "x-stream-status: ok\r\n\r\n").await;
    assert!(end.contains(r#"{"type":"done","id":null,"requests":2,"errors":0}"#), "{end}");
    assert!(end.ends_with("x-stream-status: ok\r\n\r\n"), "{end}");
}

#[tokio::test]
async fn http2_answers_line_one_before_line_two_is_sent() {
    use http_body_util::BodyExt;
    let server = Plan::default().start(echo);
    let io = hyper_util::rt::TokioIo::new(server.connect().await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let (lines, body) = mpsc::channel(4);
    let request = http::Request::post("http://a/v2/stream?ordered=true").header("content-type", "application/x-ndjson");
    let response = sender.send_request(request.body(Body::Channel(body)).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    for id in ["1", "2"] {
        lines.send(Frame::data(Bytes::from(line(id, "m", "")))).await.unwrap();
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(data.starts_with(format!("{OUTPUT}\"{id}\"").as_bytes()));
    }
    drop(lines);
    let rest = body.collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["x-stream-status"], "ok");
    assert_eq!(rest.to_bytes(), "{\"type\":\"done\",\"id\":null,\"requests\":2,\"errors\":0}\n");
}

#[tokio::test]
async fn openings_are_refused_in_http() {
    let server = Plan::default().start(echo);
    let body = "content-length: 0\r\nconnection: close\r\n\r\n";
    for (request, code) in [
        (format!("GET /v2/stream HTTP/1.1\r\nhost: a\r\n{body}"), 405),
        (format!("POST /v2/stream HTTP/1.1\r\nhost: a\r\n{body}"), 415),
        (format!("POST /v2/stream HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{body}"), 415),
    ] {
        let mut stream = server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert_eq!(status(&answer), code, "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    let stranger = Plan::default().start(nobody);
    let answer = stranger.post("/v2/stream", "content-type: application/x-ndjson\r\n", "").await;
    assert_eq!(status(&answer), 401, "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
}

/// A line whose answer is no small work to write, and which is none to read.
fn large(id: &str) -> String {
    let (halves, data) = (75_000, "AAA8AAA8".repeat(25_000));
    format!(
        r#"{{"type":"infer","id":"{id}","model":"echo","inputs":[{{"name":"X","datatype":"FP16","shape":[{halves}],"data":{{"b64":"{data}"}}}}]}}"#
    ) + "\n"
}

#[tokio::test]
async fn a_long_line_is_written_elsewhere_and_keeps_its_place_if_asked() {
    for ordered in [false, true] {
        let mut client = Client::with(Settings::default(), ordered);
        let busy = Busy::begin().await;
        client.say(large("large")).await;
        client.infer("small", "echo", "").await;
        if !ordered {
            client.expect(&format!("{OUTPUT}\"small\"")).await;
        }
        client.settle().await;
        drop(busy);
        client.expect(&format!("{OUTPUT}\"large\"")).await;
        if ordered {
            client.expect(&format!("{OUTPUT}\"small\"")).await;
        }
        client.half_close();
        client.ends(r#"{"type":"done","id":null,"requests":2,"errors":0}"#, "ok").await;
    }
}

//! Bad input gets one clear error, and nothing else is lost.

use crate::support::{
    Running, Setup,
    client::{Client, Ndjson, Request, grpc, http_request, http1, next_json, status_failure, websocket},
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

const INFER: &str = "/v2/models/double/infer";

async fn post(running: &Running, body: impl Into<bytes::Bytes>) -> (u16, Value) {
    let response = http1(running, http_request(running, "POST", INFER, None, body)).await;
    let body = serde_json::from_slice(response.body()).unwrap_or_else(|_| panic!("{:?}", response.body()));
    (response.status().as_u16(), body)
}

async fn works(running: &Running) {
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, running, None).await.unwrap();
        client.infer(&Request::new("double", &[1, 4], vec![0.0; 4])).await.unwrap();
    }
}

#[tokio::test]
async fn malformed_json_is_invalid_whatever_is_wrong_with_it() {
    let running = Setup::new().start().await;
    let deep = format!("{{\"inputs\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let cases: &[&[u8]] = &[
        b"",
        b"{",
        b"null",
        b"[]",
        b"{\"inputs\":",
        b"{\"inputs\":{}}",
        b"{\"inputs\":[]}",
        b"{\"inputs\":[1]}",
        b"{\"inputs\":[{\"name\":\"x\"}]}",
        b"{\"inputs\":[],\"inputs\":[]}",
        b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[1,2,3,NaN]}]}",
        b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[1,2,[3,4]]}]}",
        b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,-4],\"data\":[1,2,3,4]}]}",
        b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4]}]}",
        b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[1,2,3]}]}",
        b"{\"inputs\":[{\"name\":\"\xff\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[1,2,3,4]}]}",
        b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1,4],\"data\":[1,2,3,4]}]} trailing",
        deep.as_bytes(),
    ];
    for case in cases {
        let (status, body) = post(&running, case.to_vec()).await;
        let shown = String::from_utf8_lossy(&case[..case.len().min(80)]);
        assert_eq!(status, 400, "{shown}: {body}");
        assert_eq!(body["code"], "invalid_argument", "{shown}");
        assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()), "{shown}");
        assert!(body["request_id"].is_string() && body["retryable"] == false, "{shown}");
    }
    works(&running).await;
}

#[tokio::test]
async fn a_body_at_the_limit_passes_and_one_byte_more_is_too_large() {
    let running = Setup::new().yaml("limits: { size: { body: 1KiB, message: 1KiB } }").start().await;
    let body = |length: usize| {
        let text = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4] }] });
        let mut text = text.to_string();
        text.extend(std::iter::repeat_n(' ', length - text.len()));
        text
    };
    assert_eq!(post(&running, body(1024)).await.0, 200);
    let (status, answer) = post(&running, body(1025)).await;
    assert_eq!((status, &answer["code"]), (413, &json!("payload_too_large")));

    // gRPC: the message, whatever tonic itself would call it.
    let big = inference::ModelInferRequest { model_name: "double".into(), id: "x".repeat(2000), ..Default::default() };
    let failure = status_failure(&grpc(&running).await.model_infer(big).await.unwrap_err());
    assert_eq!(failure.code, "payload_too_large");

    // WebSocket: close 1009.
    let mut socket = websocket(&running, None).await.unwrap();
    socket.send(Message::text("x".repeat(1025))).await.unwrap();
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(Some(frame)))) => {
                assert_eq!(u16::from(frame.code), 1009);
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    // NDJSON: an error line, then the end.
    let mut stream = Ndjson::open(&running, None).await.unwrap();
    stream.send_raw("x".repeat(3000)).await;
    assert_eq!(stream.next().await.unwrap()["code"], "payload_too_large");
    works(&running).await;
}

#[tokio::test]
async fn a_large_upload_is_refused_before_it_is_read() {
    let running = Setup::new().with_key().start().await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64];
    let length = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 401"), "no `100 Continue` for a stranger: {answer}");
}

#[tokio::test]
async fn trailer_fields_beyond_their_limit_are_431_which_has_no_code() {
    let running = Setup::new().start().await;
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}"#;
    // One beyond our limit; and beyond those of hyper, in number and in bytes.
    for (fields, value, status) in [(32, 1, 200), (33, 1, 431), (150, 1, 431), (20, 2000, 431)] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let trailers: String = (0..fields).map(|index| format!("x-{index}: {}\r\n", "y".repeat(value))).collect();
        let request = format!(
            "POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\
             connection: close\r\n\r\n{:x}\r\n{body}\r\n0\r\n{trailers}\r\n",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{fields} {value}: {answer}");
        if status == 431 {
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].is_string() && body["request_id"].is_string() && body["code"].is_null(), "{body}");
        }
    }
    works(&running).await;
}

#[tokio::test]
async fn garbage_on_the_port_ends_that_connection_only() {
    let running = Setup::new().start().await;
    for garbage in [
        &b"\x00\x01\x02\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"PRI * HTTP/2.1\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    works(&running).await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_said_so() {
    let running = Setup::new().start().await;
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/v2/nothing", 404),
        ("DELETE", "/v2", 405),
        ("GET", INFER, 405),
        ("POST", "/v2/health/ready", 405),
        ("GET", "/v2/models/..%2f..%2fetc/ready", 404),
        ("GET", "/v2/models/%2e%2e", 400),
        ("GET", "/v2/models/a%00b", 400),
        ("GET", "/v2/models/%ff", 400),
        ("GET", "/v2/repository/index", 405),
    ] {
        let response = http1(&running, http_request(&running, method, path, None, "")).await;
        let body = String::from_utf8_lossy(response.body()).into_owned();
        assert_eq!(response.status(), status, "{method} {path}: {body}");
        assert_eq!(response.headers()["content-type"], "application/json", "{method} {path}");
        assert_eq!(response.headers().contains_key("allow"), response.status() == 405, "{method} {path}");
        assert!(response.headers().contains_key("x-request-id"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_bad_line_or_message_names_its_id_and_the_session_lives_on() {
    let running = Setup::new().start().await;
    let bad = json!({ "type": "infer", "id": "b", "model": "double", "inputs": "none" });
    let good = json!({ "type": "infer", "id": "g", "model": "double",
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4] }] });

    let mut socket = websocket(&running, None).await.unwrap();
    socket.send(Message::text(bad.to_string())).await.unwrap();
    let message = next_json(&mut socket).await.unwrap();
    assert_eq!(
        (&message["type"], &message["id"], &message["code"]),
        (&json!("error"), &json!("b"), &json!("invalid_argument"))
    );
    socket.send(Message::text(good.to_string())).await.unwrap();
    assert_eq!(next_json(&mut socket).await.unwrap()["type"], "output");

    let mut stream = Ndjson::open(&running, None).await.unwrap();
    stream.send(&bad).await;
    let line = stream.next().await.unwrap();
    assert_eq!((&line["type"], &line["id"], &line["code"]), (&json!("error"), &json!("b"), &json!("invalid_argument")));
    stream.send_raw("not json\n").await;
    let line = stream.next().await.unwrap();
    assert_eq!((&line["type"], &line["id"]), (&json!("error"), &json!(null)));
    stream.send(&good).await;
    assert_eq!(stream.next().await.unwrap()["type"], "output");
}

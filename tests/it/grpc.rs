//! gRPC as it is on the wire: statuses, their details, the borders of messages, and how a connection says goodbye.

use crate::support::{
    KEY, Running, Setup,
    client::{Request, http_request, http1},
    until,
    wire::{self, Wire, field, frame, head},
};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use sluicegate::{
    error::Code,
    wire::proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse},
};
use std::time::Duration;
use tonic_types::StatusExt;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

fn request(model: &str) -> ModelInferRequest {
    Request { id: "r".into(), ..Request::new(model, &[1, 4], vec![0.0; 4]) }.proto()
}

/// A message with its prefix.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

/// One exchange in plain HTTP/2: the status, and all fields of head and trailers.
async fn exchange(running: &Running, path: &str, fields: &[(&str, &str)], body: Vec<u8>) -> (u16, HeaderMap) {
    let stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{}{path}", running.address)).header("te", "trailers");
    for (name, value) in [("content-type", "application/grpc")].iter().chain(fields) {
        request.headers_mut().unwrap().insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let mut fields = parts.headers;
    fields.extend(body.collect().await.unwrap().trailers().cloned().unwrap_or_default());
    (parts.status.as_u16(), fields)
}

/// What every refusal must be, whichever layer it comes from: a status in its own protocol, with all of its details.
/// Anything else would be taken for a broken server and retried.
async fn refused(running: &Running, path: &str, fields: &[(&str, &str)], body: Vec<u8>, code: &str) -> tonic::Status {
    let (http, fields) = exchange(running, path, fields, body).await;
    assert_eq!((http, &fields["content-type"]), (200, &"application/grpc".parse().unwrap()), "{code}: {fields:?}");
    assert_eq!(fields["error-code"], code, "{fields:?}");
    let row = Code::ALL.into_iter().find(|known| known.name() == code).unwrap().row();
    let status = tonic::Status::from_header_map(&fields).unwrap();
    // gRPC has a word of its own for a method that there is not.
    let number = if path == INFER { row.grpc } else { tonic::Code::Unimplemented as i32 };
    assert_eq!(status.code() as i32, number, "{status:?}");
    let said: tonic_types::Status = Message::decode(status.details()).unwrap();
    assert_eq!((said.code, &*said.message), (number, status.message()), "inside is what is outside");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), (&*code.to_uppercase(), "sluicegate"));
    assert_eq!(details.request_info().unwrap().request_id, fields["x-request-id"]);
    let waits = ["rate_limited", "overloaded", "not_ready"].contains(&code);
    assert_eq!(details.retry_info().is_some(), waits, "{code}");
    assert_eq!(fields.contains_key("grpc-retry-pushback-ms"), waits, "{code}");
    assert_eq!(details.bad_request().is_some(), code == "invalid_argument", "{code}");
    assert_eq!(details.quota_failure().is_some(), code == "rate_limited", "{code}");
    assert_eq!(details.resource_info().is_some(), code == "not_found", "{code}");
    assert!(details.debug_info().is_none());
    status
}

#[tokio::test]
async fn a_refusal_of_whatever_layer_is_http_200_and_a_status_with_its_details() {
    let double = || framed(&request("double"));
    let running = Setup::new().start().await;
    refused(&running, INFER, &[], framed(&request("nobody")), "not_found").await;
    refused(&running, "/inference.GRPCInferenceService/Nothing", &[], double(), "not_found").await;
    refused(&running, "/nothing.Nothing/Nothing", &[], double(), "not_found").await;
    refused(&running, INFER, &[], framed(&request("corrupt")), "not_ready").await;
    refused(&running, INFER, &[], framed(&request("fail")), "internal").await;
    refused(&running, INFER, &[], framed(&request("panic")), "internal").await;
    refused(&running, INFER, &[("grpc-timeout", "20m")], framed(&request("slow")), "deadline_exceeded").await;
    refused(&running, INFER, &[("grpc-timeout", "0n")], double(), "deadline_exceeded").await;
    refused(&running, INFER, &[("grpc-timeout", "123456789n")], double(), "invalid_argument").await;
    refused(&running, INFER, &[("grpc-encoding", "br")], double(), "unsupported_media_type").await;
    let wrong = ModelInferRequest { raw_input_contents: vec![], ..request("double") };
    let status = refused(&running, INFER, &[], framed(&wrong), "invalid_argument").await;
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "x");

    let running = Setup::new().with_key().start().await;
    refused(&running, INFER, &[], double(), "unauthenticated").await;
    let key = format!("Bearer {KEY}");
    let key = [("authorization", &*key)];
    let inspect = "[{ to: [\"identity:web\"], intents: [inspect], models: [\"*\"] }]";
    let running = Setup::new().with_key().with_grants(inspect).start().await;
    refused(&running, INFER, &key, double(), "permission_denied").await;
    let running = Setup::new().with_key().with_rate("1/day", 1).start().await;
    assert_eq!(exchange(&running, INFER, &key, double()).await.1["grpc-status"], "0");
    refused(&running, INFER, &key, double(), "rate_limited").await;

    let running = Setup::new().yaml("limits: { size: { body: 1KiB }, concurrency: { calls: 1 } }").start().await;
    let large = ModelInferRequest { id: "x".repeat(2000), ..request("double") };
    let status = refused(&running, INFER, &[], framed(&large), "payload_too_large").await;
    assert!(status.message().contains("1024"), "{status:?}");
    let holder = running.hold("held").await;
    refused(&running, INFER, &[], double(), "overloaded").await;
    holder.release().await;
    assert_eq!(exchange(&running, INFER, &[], double()).await.1["grpc-status"], "0");

    let running = Setup::new().listeners(&["grpc", "rest"]).start().await;
    let (http, fields) = exchange(&running.at(1), INFER, &[], double()).await;
    assert_eq!((http, &fields["grpc-status"]), (200, &"12".parse().unwrap()), "not served there");
}

#[tokio::test]
async fn a_message_of_any_script_is_percent_encoded_on_the_wire() {
    let running = Setup::new().start().await;
    let (_, fields) = exchange(&running, INFER, &[], framed(&request("模型%41\n"))).await;
    let message = fields["grpc-message"].to_str().expect("ASCII");
    assert!(message.contains("%E6%A8%A1%E5%9E%8B%2541%0A"), "{message}");
    let status = tonic::Status::from_header_map(&fields).unwrap();
    assert_eq!(status.message(), "model `模型%41\n` is unknown");
    let details = STANDARD_NO_PAD.decode(&fields["grpc-status-details-bin"]).unwrap();
    let said: tonic_types::Status = Message::decode(&*details).unwrap();
    assert_eq!(said.message, status.message());
}

#[tokio::test]
async fn what_is_no_grpc_is_told_so_in_http() {
    let running = Setup::new().start().await;
    let ask = |kind: &str| {
        let mut request = http_request(&running, "POST", INFER, None, framed(&request("double")));
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        request
    };
    assert_eq!(http1(&running, ask("application/grpc")).await.status(), 505, "HTTP/1.1 has no trailers for a status");
    assert_eq!(http1(&running, ask("application/grpc+proto")).await.status(), 505);
    for kind in ["application/json", "text/plain", "application/grp"] {
        assert_eq!(http1(&running, ask(kind)).await.status(), 415, "{kind}");
        let (status, fields) = exchange(&running, INFER, &[("content-type", kind)], framed(&request("double"))).await;
        assert_eq!((status, fields.get("grpc-status")), (415, None), "{kind}");
    }
    let (status, fields) =
        exchange(&running, INFER, &[("content-type", "application/grpc+json")], framed(&request("double"))).await;
    assert_eq!((status, &fields["grpc-status"]), (200, &"12".parse().unwrap()));
}

/// The head of an RPC on a stream.
fn opening(stream: u32, path: &str) -> Vec<u8> {
    let fields = [field(b"content-type", b"application/grpc"), field(b"te", b"trailers")].concat();
    frame(wire::HEADERS, wire::END_HEADERS, stream, &[head("POST", path), fields].concat())
}

/// The messages that a stream brings until it ends.
async fn messages<M: Message + Default>(wire: &mut Wire, streams: usize) -> Vec<(u32, Vec<M>)> {
    let (mut bodies, mut ended) = (std::collections::BTreeMap::<u32, Vec<u8>>::new(), 0);
    while ended < streams {
        let frame = wire.next().await.expect("the connection lives");
        if frame.kind == wire::DATA {
            bodies.entry(frame.stream).or_default().extend(&frame.payload);
        }
        let ends = [wire::DATA, wire::HEADERS].contains(&frame.kind) && frame.flags & wire::END_STREAM != 0;
        ended += usize::from(ends);
    }
    let split = |mut body: &[u8]| {
        let mut found = Vec::new();
        while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
            let (message, rest) = rest.split_at(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize);
            found.push(M::decode(message).unwrap());
            body = rest;
        }
        found
    };
    bodies.iter().map(|(stream, body)| (*stream, split(body))).collect()
}

#[tokio::test]
async fn a_message_may_be_cut_anywhere_and_several_may_come_in_one_frame() {
    let running = Setup::new().start().await;
    let mut connection = Wire::open(&running).await;
    let message = framed(&request("double"));
    let mut streams = wire::streams();
    // Cut in two at every byte, each on a stream of its own; then in pieces of a byte.
    for cut in 0..=message.len() {
        let stream = streams.next().unwrap();
        let (first, second) = message.split_at(cut);
        connection.send(opening(stream, INFER)).await;
        connection.send(frame(wire::DATA, 0, stream, first)).await;
        connection.send(frame(wire::DATA, wire::END_STREAM, stream, second)).await;
    }
    let crumbs = streams.next().unwrap();
    connection.send(opening(crumbs, INFER)).await;
    for (index, byte) in message.iter().enumerate() {
        let flags = if index + 1 == message.len() { wire::END_STREAM } else { 0 };
        connection.send(frame(wire::DATA, flags, crumbs, &[*byte])).await;
    }
    let count = message.len() + 2;
    let answers = messages::<ModelInferResponse>(&mut connection, count).await;
    assert_eq!(answers.len(), count);
    assert!(answers.iter().all(|(_, found)| found.len() == 1 && found[0].id == "r"), "{answers:?}");

    let stream = streams.next().unwrap();
    let three = [&*message, &message, &message].concat();
    let (two_and_a_half, rest) = three.split_at(message.len() * 5 / 2);
    connection.send(opening(stream, STREAM)).await;
    connection.send(frame(wire::DATA, 0, stream, two_and_a_half)).await;
    connection.send(frame(wire::DATA, wire::END_STREAM, stream, rest)).await;
    let answers = messages::<ModelStreamInferResponse>(&mut connection, 1).await;
    assert_eq!(answers[0].1.len(), 3, "{answers:?}");
    assert!(answers[0].1.iter().all(|answer| answer.error_message.is_empty()), "{answers:?}");
}

#[tokio::test]
async fn a_drain_says_goodbye_to_a_connection_and_loses_no_request() {
    let running = Setup::new().yaml("drain: { delay: 10ms, timeout: 10s }").start().await;
    let holder = running.hold("held").await;
    let mut connection = Wire::open(&running).await;
    let call = |stream: u32, model: &str| {
        [opening(stream, INFER), frame(wire::DATA, wire::END_STREAM, stream, &framed(&request(model)))].concat()
    };
    connection.send(call(1, "held")).await;
    running.until("the call waits", |metrics| metrics.contains("sluicegate_queue_depth{model=\"held\"} 1")).await;
    let before = running.runs("double");
    let drained = running.drain();
    let (mut frames, mut goodbyes, mut holder) = (Vec::new(), Vec::new(), Some(holder));
    while let Some(frame) = connection.next().await {
        match frame.kind {
            // The first says that no more should come, the second what came in time. A client that has not read either
            // yet sends on.
            wire::GOAWAY => {
                let number = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
                goodbyes.push((number(0), number(4)));
                connection.send(call([3, 5][goodbyes.len() - 1], "double")).await;
            }
            wire::PING if frame.flags & wire::ACK == 0 => {
                connection.send(self::frame(wire::PING, wire::ACK, 0, &frame.payload)).await;
                if let Some(holder) = holder.take() {
                    holder.release().await;
                }
            }
            _ => {}
        }
        frames.push(frame);
    }
    assert!(goodbyes.iter().all(|(_, error)| *error == 0), "{goodbyes:?}");
    let last = goodbyes.last().expect("a goodbye").0;
    let answered = |stream| frames.iter().any(|frame| frame.kind == wire::DATA && frame.stream == stream);
    assert!(answered(1), "what ran is answered: {frames:?}");
    // The others are answered, or did not run and may be sent again elsewhere.
    for stream in [3, 5] {
        assert_eq!(answered(stream), stream <= last, "{stream}: {goodbyes:?} {frames:?}");
    }
    let ran = [3, 5].into_iter().filter(|stream| answered(*stream)).count();
    assert_eq!(running.runs("double") - before, ran as u64);
    drained.over().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_while_it_runs_is_cancelled_and_not_failed() {
    let running = Setup::new().start().await;
    let before = running.runs("slow");
    let mut connection = Wire::open(&running).await;
    let body = frame(wire::DATA, wire::END_STREAM, 1, &framed(&request("slow")));
    connection.send([opening(1, INFER), body].concat()).await;
    until(|| running.runs("slow") > before, "it runs").await;
    connection.send(wire::reset(1)).await;
    running.until("it is cancelled", |metrics| metrics.contains("code=\"cancelled\"")).await;
    let page = running.metrics().await;
    let failures =
        page.lines().filter(|line| line.starts_with("sluicegate_run_failures_total{") && line.contains("slow"));
    assert!(failures.into_iter().all(|line| line.ends_with(" 0")) && !page.contains("code=\"internal\""), "{page}");
    // The connection and the model are as good as before.
    connection
        .send([opening(3, INFER), frame(wire::DATA, wire::END_STREAM, 3, &framed(&request("slow")))].concat())
        .await;
    let answers = tokio::time::timeout(Duration::from_secs(20), messages::<ModelInferResponse>(&mut connection, 1));
    assert_eq!(answers.await.unwrap()[0].1[0].id, "r");
}

//! gRPC-Web as pages speak it, over HTTP/1.1.

use super::*;
use crate::{
    frontend::{
        Settings,
        grpc::fixture::{framed, prefixed, request},
        testing::{Plan, Server, echo, nobody, status},
    },
    wire::proto::inference as pb,
};
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use proptest::prelude::*;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// One request on a connection of its own: the head of what comes, and its body.
async fn post(server: &Server, path: &str, headers: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = server.connect().await;
    let length = body.len();
    let head = format!("POST {path} HTTP/1.0\r\ncontent-length: {length}\r\nx-grpc-web: 1\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let body = all.split_off(end);
    (String::from_utf8(all).unwrap(), body)
}

/// The frames of a body: their first byte and what is in them.
fn frames(mut body: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let Some(([flag, length @ ..], rest)) = body.split_first_chunk::<5>() {
        let (data, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames.push((*flag, data));
        body = rest;
    }
    assert!(body.is_empty(), "{body:?}");
    frames
}

/// base64 of pieces that were padded one by one.
fn decode(text: &[u8]) -> Vec<u8> {
    text.chunks(4).flat_map(|group| BASE64_STANDARD.decode(group).unwrap()).collect()
}

#[tokio::test]
async fn a_page_is_answered_with_a_message_and_trailers_in_the_body() {
    let server = Plan::default().start(echo);
    for kind in ["application/grpc-web", "application/grpc-web+proto", "Application/gRPC-Web+proto; charset=utf-8"] {
        let headers = format!("content-type: {kind}\r\nx-request-id: call-9\r\n");
        let (head, body) = post(&server, INFER, &headers, &framed(&request())).await;
        assert_eq!(status(&head), 200, "{head}");
        assert!(head.contains("content-type: application/grpc-web+proto\r\n"), "{head}");
        assert!(head.contains("x-request-id: call-9\r\n"), "{head}");
        let [(0, message), (0x80, trailers)] = frames(&body)[..] else { panic!("{body:?}") };
        let answer = pb::ModelInferResponse::decode(message).unwrap();
        assert_eq!((&*answer.id, &answer.raw_output_contents[0][..]), ("r1", &[0; 8][..]));
        assert_eq!(trailers, b"grpc-status:0\r\n");
    }
}

#[tokio::test]
async fn text_is_read_with_padding_anywhere_and_written_piece_by_piece() {
    let server = Plan::default().start(echo);
    let whole = framed(&request());
    let pieces: String = whole.chunks(7).map(|piece| BASE64_STANDARD.encode(piece)).collect();
    assert!(pieces.trim_end_matches('=').contains('='), "a test of padding within");
    let unpadded = BASE64_STANDARD.encode(&whole);
    for (body, accept) in [
        (pieces.as_str(), ""),
        (unpadded.trim_end_matches('='), "accept: application/grpc-web-text\r\n"),
        (&pieces, "accept: */*\r\n"),
    ] {
        let headers = format!("content-type: application/grpc-web-text\r\n{accept}");
        let (head, body) = post(&server, INFER, &headers, body.as_bytes()).await;
        assert!(head.contains("content-type: application/grpc-web-text+proto\r\n"), "{head}");
        let body = decode(&body);
        let [(0, message), (0x80, _)] = frames(&body)[..] else { panic!("{body:?}") };
        assert_eq!(pb::ModelInferResponse::decode(message).unwrap().id, "r1");
    }
    // Who accepts the other family gets it.
    let headers = "content-type: application/grpc-web-text\r\naccept: application/grpc-web+proto\r\n";
    let (head, body) = post(&server, INFER, headers, pieces.as_bytes()).await;
    assert!(head.contains("content-type: application/grpc-web+proto\r\n"), "{head}");
    assert_eq!(frames(&body).len(), 2);
}

#[tokio::test]
async fn an_error_is_status_200_and_a_frame_of_trailers() {
    let server = Plan::default().start(echo);
    let refusing = Plan::default().start(nobody);
    let binary = "content-type: application/grpc-web+proto\r\n";
    let text = "content-type: application/grpc-web-text\r\n";
    let stream = "/inference.GRPCInferenceService/ModelStreamInfer";
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let message = framed(&request());
    // Two bytes each on the wire, and hundreds once decoded.
    let inflating = framed(&pb::ModelInferRequest { inputs: vec![Default::default(); 10_000], ..Default::default() });
    let deep = prefixed(&vec![0x7b; 1 << 20]);
    for (server, path, headers, body, code) in [
        (&server, "/inference.GRPCInferenceService/Nothing", binary, &message[..], 12),
        (&server, stream, binary, &message, 12),
        (&server, reflection, binary, &message, 12),
        (&refusing, INFER, binary, &message, 16),
        (&server, INFER, binary, b"\0\0\0\0\x02\xff\xff", 13),
        (&server, INFER, binary, &inflating, 3),
        (&server, INFER, binary, &deep, 3),
        (&server, INFER, text, &BASE64_STANDARD.encode(&inflating).into_bytes(), 3),
        (&server, INFER, text, b"AAAA*AAA", 13),
        (&server, INFER, text, b"AAAAA", 13),
        (&server, INFER, "content-type: application/grpc-web\r\ncontent-encoding: gzip\r\n", &message, 12),
        (&server, INFER, "content-type: application/grpc-web\r\ngrpc-timeout: soon\r\n", &message, 3),
    ] {
        let (head, mut body) = post(server, path, headers, body).await;
        assert_eq!(status(&head), 200, "{head}");
        assert!(!head.contains("grpc-status"), "{head}");
        if headers == text {
            body = decode(&body);
        }
        let [(0x80, trailers)] = frames(&body)[..] else { panic!("{body:?}") };
        let trailers = std::str::from_utf8(trailers).unwrap();
        assert!(trailers.contains(&format!("grpc-status:{code}\r\n")), "{path} {headers}: {trailers}");
        for name in ["grpc-message:", "grpc-status-details-bin:", "error-code:", "x-request-id:"] {
            assert!(trailers.contains(name), "{name}: {trailers}");
        }
    }
}

/// The vectors of contract 05 section 4.
#[tokio::test]
async fn the_frame_of_trailers_is_the_one_of_the_contract() {
    for (pairs, hex) in [
        (&[("grpc-status", "0"), ("grpc-message", "")][..], &b"\x80\0\0\0\x1egrpc-status:0\r\ngrpc-message:\r\n"[..]),
        (
            &[("grpc-status", "5"), ("grpc-message", "model not found")],
            b"\x80\0\0\0\x2dgrpc-status:5\r\ngrpc-message:model not found\r\n",
        ),
    ] {
        for family in [BINARY, TEXT] {
            let service = GrpcWebLayer::new().layer(service_fn(|_: http::Request<tonic::body::Body>| async {
                let mut response = Response::default();
                for (name, value) in pairs {
                    response.headers_mut().insert(*name, HeaderValue::from_static(value));
                }
                Ok::<_, Infallible>(with_trailers(response))
            }));
            let asked = http::Request::post("/a/b").header(CONTENT_TYPE, BINARY).header(ACCEPT, &family);
            let response = service.oneshot(asked.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.headers()[CONTENT_TYPE], family);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let expected = if family == TEXT { BASE64_STANDARD.encode(hex).into_bytes() } else { hex.to_vec() };
            assert_eq!(body, expected);
        }
    }
}

#[tokio::test]
async fn what_is_no_request_of_grpc_web_is_refused_in_http() {
    let server = Plan::default().start(echo);
    let (head, body) = post(&server, INFER, "content-type: application/grpc-web+thrift\r\n", b"").await;
    assert_eq!(status(&head), 415, "{head}");
    assert!(String::from_utf8(body).unwrap().contains("`application/grpc-web+thrift` is not supported"));
    let get = format!("GET {INFER} HTTP/1.0\r\ncontent-type: application/grpc-web\r\n\r\n");
    assert_eq!(status(&server.say(get).await), 405);
    let mut settings = Settings::default();
    settings.grpc.web = false;
    let off = Plan { settings, ..Plan::default() }.start(echo);
    let (head, body) = post(&off, INFER, "content-type: application/grpc-web\r\n", &framed(&request())).await;
    assert_eq!(status(&head), 501, "{head}");
    assert!(String::from_utf8(body).unwrap().contains("grpc.web"));
}

proptest! {
    #[test]
    fn text_decodes_however_it_was_flushed_and_cut(
        data in prop::collection::vec(any::<u8>(), 0..200),
        pieces in prop::collection::vec(1_usize..30, 1..20),
        cuts in prop::collection::vec(1_usize..20, 1..60),
    ) {
        let (mut text, mut rest, mut pieces) = (Vec::new(), &data[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
            text.extend(BASE64_STANDARD.encode(piece).into_bytes());
            rest = after;
        }
        let (mut rest, mut cuts, mut frames) = (&text[..], cuts.iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            frames.push(Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))));
            rest = after;
        }
        let text = Text::new(StreamBody::new(stream::iter(frames)));
        let found = futures_util::FutureExt::now_or_never(text.collect()).unwrap().unwrap().to_bytes();
        prop_assert_eq!(&found[..], &data[..]);
    }

    #[test]
    fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)))];
        let text = Text::new(StreamBody::new(stream::iter(frames)));
        let _ = futures_util::FutureExt::now_or_never(text.collect()).unwrap();
    }
}

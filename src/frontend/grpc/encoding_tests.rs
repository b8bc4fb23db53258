//! Compressed messages as clients send and read them.

use super::*;
use crate::{
    call::{Inbound, Operation, Reply},
    frontend::{
        Settings,
        grpc::fixture::{World, echoed, framed, request, world},
    },
    wire::proto::inference as pb,
};
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use std::io::Write;
use tonic::{Code, Status, codec::CompressionEncoding};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

async fn echo(call: Inbound) -> Result<Reply, Error> {
    let Operation::Infer(request) = call.input.await? else { return Err(Error::invalid("ask for an inference")) };
    Ok(echoed(request))
}

fn large(bytes: usize) -> pb::ModelInferRequest {
    let mut message = request();
    message.inputs[0].shape = vec![1, i64::try_from(bytes / 4).unwrap()];
    message.raw_input_contents = vec![Bytes::from(vec![0; bytes])];
    message
}

/// As [`large`], of bytes that a coding makes little of.
fn dense(bytes: usize) -> pb::ModelInferRequest {
    let mut word = 1_u32;
    let noise = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        word.to_le_bytes()
    });
    let mut message = large(bytes);
    message.raw_input_contents = vec![noise.flatten().take(bytes).collect::<Vec<_>>().into()];
    message
}

fn packed(message: &impl prost::Message, coding: &str) -> Vec<u8> {
    let data = message.encode_to_vec();
    let data = match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        }
        _ => zstd::encode_all(&data[..], 3).unwrap(),
    };
    with_flag(1, &data)
}

fn with_flag(flag: u8, data: &[u8]) -> Vec<u8> {
    let mut framed = vec![flag];
    framed.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    framed.extend(data);
    framed
}

async fn ask(world: &World, headers: &[(&str, &str)], body: &[u8]) -> (Status, http::HeaderMap) {
    let headers = world.raw(INFER, headers, body).await;
    (Status::from_header_map(&headers).unwrap(), headers)
}

#[tokio::test]
async fn tonic_reads_what_it_asked_for_in_the_encoding_that_it_sent() {
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let world = world(Settings::default(), echo);
        let mut client = world.client().await.send_compressed(encoding).accept_compressed(encoding);
        client = client.max_decoding_message_size(usize::MAX);
        // Small on the connection's thread, large on another.
        for bytes in [8, 4096, 1 << 20] {
            let message = dense(bytes);
            let sent = message.raw_input_contents[0].clone();
            let answer = client.model_infer(message).await.unwrap();
            let name = answer.metadata().get("grpc-encoding").unwrap().to_str().unwrap().to_owned();
            assert_eq!(name, if encoding == CompressionEncoding::Gzip { "gzip" } else { "zstd" });
            assert_eq!(answer.into_inner().raw_output_contents[0], sent);
        }
        assert_eq!(world.connection.frontend.memory.used(), 0);
    }
}

#[tokio::test]
async fn every_encoding_is_read_and_answered_in_kind_only_to_who_reads_it() {
    let world = world(Settings::default(), echo);
    for coding in ["gzip", "deflate", "zstd"] {
        let body = packed(&large(4096), coding);
        let (status, headers) = ask(&world, &[("grpc-encoding", coding)], &body).await;
        assert_eq!(status.code(), Code::Ok, "{coding}: {status:?}");
        assert!(!headers.contains_key("grpc-encoding"), "{coding}");
        let accept = ("grpc-accept-encoding", "identity, deflate,gzip , zstd");
        let (status, headers) = ask(&world, &[("grpc-encoding", coding), accept], &body).await;
        assert_eq!((status.code(), &headers["grpc-encoding"]), (Code::Ok, &HeaderValue::from_str(coding).unwrap()));
        // A message may go plainly whatever the stream's encoding is.
        let (status, _) = ask(&world, &[("grpc-encoding", coding)], &framed(&request())).await;
        assert_eq!(status.code(), Code::Ok, "{coding}: {status:?}");
    }
    let (_, headers) = ask(&world, &[("grpc-accept-encoding", "gzip")], &framed(&large(4096))).await;
    assert!(!headers.contains_key("grpc-encoding"), "who sends plainly is answered plainly");
}

#[tokio::test]
async fn what_is_not_compressed_as_it_says_is_internal_and_what_is_unknown_unimplemented() {
    let world = world(Settings::default(), echo);
    let good = packed(&request(), "gzip");
    for (headers, body, code, text) in [
        (&[("grpc-encoding", "br")][..], &good, Code::Unimplemented, "`br` is not supported, expected `gzip`"),
        (&[], &good, Code::Internal, "compressed-flag"),
        (&[("grpc-encoding", "identity")], &good, Code::Internal, "compressed-flag"),
        (&[("grpc-encoding", "gzip")], &with_flag(1, b"no gzip at all"), Code::Internal, "gzip"),
        (&[("grpc-encoding", "zstd")], &with_flag(1, b"no zstd at all"), Code::Internal, "zstd"),
        (&[("grpc-encoding", "gzip")], &with_flag(2, b"abc"), Code::Internal, "flag"),
        (&[("grpc-encoding", "gzip")], &good[..good.len() - 1].to_vec(), Code::Internal, "malformed"),
    ] {
        let (status, headers) = ask(&world, headers, body).await;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(text), "{text}: {status:?}");
        if code == Code::Unimplemented {
            assert_eq!(headers["grpc-accept-encoding"], "gzip,deflate,zstd,identity");
        }
    }
    assert_eq!(ask(&world, &[], &framed(&request())).await.0.code(), Code::Ok);
}

#[tokio::test]
async fn what_is_cut_off_behind_a_message_is_malformed_however_it_is_read() {
    let world = world(Settings::default(), echo);
    let whole = framed(&request());
    // Compressed messages have another reader, and may come plainly.
    for headers in [&[][..], &[("grpc-encoding", "gzip")]] {
        for cut in [1, 4, 5, 12] {
            let body = [&whole[..], &whole[..cut]].concat();
            let (status, _) = ask(&world, headers, &body).await;
            let text = format!("malformed gRPC message: it ends after {cut} bytes, its prefix included");
            assert_eq!((status.code(), status.message()), (Code::Internal, &*text), "{headers:?}");
        }
    }
    assert_eq!(ask(&world, &[], &whole).await.0.code(), Code::Ok);
}

#[tokio::test]
async fn a_compressed_message_takes_room_for_itself_and_what_it_becomes_and_no_more() {
    let body = packed(&dense(200_000), "gzip");
    assert!(body.len() > 150_000);
    let mut settings = Settings::default();
    settings.concurrency.memory = 550_000;
    let world = world(settings, echo);
    let (headers, answer) = world.whole(INFER, &[("grpc-encoding", "gzip")], &body).await;
    let status = Status::from_header_map(&headers).unwrap();
    assert_eq!((status.code(), answer.len() > 200_000), (Code::Ok, true), "{status:?}");
    assert_eq!(world.connection.frontend.memory.used(), 0);
}

#[tokio::test]
async fn a_bomb_is_cut_off_while_it_grows() {
    let mut settings = Settings::default();
    settings.size.body = 4 << 20;
    let world = world(settings, echo);
    for coding in ["gzip", "deflate", "zstd"] {
        // Beyond the limit on one message, and within it but beyond the ratio.
        for bytes in [8 << 20, 3 << 20] {
            let (status, _) = ask(&world, &[("grpc-encoding", coding)], &packed(&large(bytes), coding)).await;
            assert_eq!(status.code(), Code::ResourceExhausted, "{coding} {bytes}: {status:?}");
        }
        assert_eq!(world.connection.frontend.memory.used(), 0);
    }
    let (status, _) = ask(&world, &[("grpc-encoding", "gzip")], &with_flag(1, &vec![0; 5 << 20])).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("4194304"), "{status:?}");
}

proptest! {
    #[test]
    fn messages_are_found_however_they_are_cut(
        messages in prop::collection::vec((0_u8..2, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..4),
        cuts in prop::collection::vec(1_usize..20, 1..60),
    ) {
        let mut bytes: Vec<u8> = messages.iter().flat_map(|(flag, data)| with_flag(*flag, data)).collect();
        bytes.extend(&tail);
        let (mut rest, mut cuts, mut pieces) = (&bytes[..], cuts.iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            pieces.push(Ok::<_, Error>(Frame::data(Bytes::copy_from_slice(piece))));
            rest = after;
        }
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let each = |message: Message| -> BoxFuture<'static, Result<Message, Error>> {
            let data = message.data.iter().rev().copied().collect();
            Box::pin(async move { Ok(Message { flag: 1 - message.flag, data }) })
        };
        let body = Recoded::new(body, each, 40, Error::Cancelled);
        let found = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
        let mut expected: Vec<u8> = messages
            .iter()
            .flat_map(|(flag, data)| with_flag(1 - flag, &data.iter().rev().copied().collect::<Vec<_>>()))
            .collect();
        expected.extend(&tail);
        prop_assert_eq!(&found[..], &expected[..]);
    }
}

//! Messages that are much once they are decoded, however they come.

use super::*;
use crate::{
    call::{Inbound, Operation, Reply, Report},
    frontend::{
        Settings,
        body::Busy,
        grpc::fixture::{World, echoed, framed, prefixed, request, world},
    },
    wire::proto::inference::{self as pb, ModelInferRequest, model_infer_request::InferInputTensor},
};
use tonic::{Code, codec::CompressionEncoding};

const MIB: usize = 1 << 20;

async fn echo(call: Inbound) -> Result<Reply, Error> {
    let Operation::Infer(request) = call.input.await? else {
        // A stream is opened.
        return Ok(Reply::Report(Report::Models(Vec::new())));
    };
    Ok(echoed(request))
}

/// A front-end with so many bytes of memory.
fn with_memory(memory: usize) -> World {
    let mut settings = Settings::default();
    settings.concurrency.memory = memory;
    // Zeros are packed to next to nothing, which is another refusal.
    settings.size.inflate_ratio = 10_000;
    world(settings, echo)
}

/// A tensor of so many empty strings: two bytes each, and more than thirty once they are decoded.
fn strings(elements: usize) -> ModelInferRequest {
    let contents = pb::InferTensorContents { bytes_contents: vec![Bytes::new(); elements], ..Default::default() };
    let input = InferInputTensor {
        name: "X".into(),
        datatype: "BYTES".into(),
        shape: vec![i64::try_from(elements).unwrap()],
        contents: Some(contents),
        ..Default::default()
    };
    ModelInferRequest { model_name: "m".into(), id: "r2".into(), inputs: vec![input], ..Default::default() }
}

/// What is too much, and what is said of it with a megabyte of memory.
fn hostile() -> [(ModelInferRequest, Code, &'static str); 4] {
    let mut shape = request();
    shape.inputs[0].shape = vec![1; 100_000];
    let inputs = ModelInferRequest { inputs: vec![InferInputTensor::default(); 100_000], ..request() };
    let raw = ModelInferRequest { raw_input_contents: vec![Bytes::new(); 100_000], ..request() };
    [
        (inputs, Code::InvalidArgument, "the request has more than 256 inputs or outputs, expected at most 256"),
        (
            raw,
            Code::InvalidArgument,
            "the request has more than 256 entries in `raw_input_contents`, expected at most 256",
        ),
        (shape, Code::InvalidArgument, "tensor `X` has 100000 dimensions, expected at most 16"),
        (
            strings(40_000),
            Code::ResourceExhausted,
            "needs 2640671 bytes of memory, expected at most 1048576 (`limits.concurrency.memory`)",
        ),
    ]
}

#[tokio::test]
async fn what_is_too_much_once_decoded_is_refused_plain_and_compressed_and_the_connection_lives() {
    for coding in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let world = with_memory(MIB);
        let mut client = world.client().await;
        if let Some(coding) = coding {
            client = client.send_compressed(coding);
        }
        for (message, code, text) in hostile() {
            let status = client.model_infer(message).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, text), "{coding:?}");
            assert_eq!(client.model_infer(request()).await.unwrap().into_inner().id, "r1", "{coding:?} {text}");
        }
        assert_eq!(world.connection.frontend.memory.used(), 0);
    }
}

/// A million groups within each other, closed or not, alone and in a parameter.
fn deep() -> [Vec<u8>; 3] {
    let open = vec![0x7b; 1 << 20];
    let closed = [open.clone(), vec![0x7c; 1 << 20]].concat();
    let field = |number: u8, inner: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        [bytes, inner.to_vec()].concat()
    };
    let parameter = field(4, &field(2, &closed));
    [open, closed, parameter]
}

#[tokio::test]
async fn what_is_nested_too_deeply_is_invalid_and_the_stream_goes_on() {
    let world = with_memory(64 * MIB);
    let text = "the message is nested too deeply, expected at most 100 levels";
    for message in deep() {
        let infer = "/inference.GRPCInferenceService/ModelInfer";
        let status = Status::from_header_map(&world.raw(infer, &[], &prefixed(&message)).await).unwrap();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
        let body = [prefixed(&message), framed(&request())].concat();
        let stream = "/inference.GRPCInferenceService/ModelStreamInfer";
        let (headers, answers) = world.whole(stream, &[], &body).await;
        assert_eq!(Status::from_header_map(&headers).unwrap().code(), Code::Ok);
        let mut said = Vec::new();
        let mut answers = &answers[..];
        while let Some(([_, length @ ..], rest)) = answers.split_first_chunk::<5>() {
            let (answer, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            let answer = pb::ModelStreamInferResponse::decode(answer).unwrap();
            said.push((answer.infer_response.unwrap().id, answer.error_message));
            answers = rest;
        }
        said.sort();
        assert_eq!(said, [(String::new(), text.to_owned()), ("r1".to_owned(), String::new())]);
    }
    assert_eq!(world.connection.frontend.memory.used(), 0);
}

#[tokio::test]
async fn what_has_no_room_now_may_come_again() {
    let world = with_memory(MIB);
    let mut client = world.client().await;
    let held = world.connection.frontend.memory.reserve(MIB / 2).unwrap();
    let status = client.model_infer(strings(10_000)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "no room: memory"));
    drop(held);
    client.model_infer(strings(10_000)).await.unwrap();
}

#[tokio::test]
async fn a_message_of_a_stream_is_refused_by_its_id_and_the_stream_goes_on() {
    let world = with_memory(MIB);
    let mut client = world.client().await;
    let messages = hostile().into_iter().flat_map(|(message, ..)| [message, request()]);
    let answers = client.model_stream_infer(tokio_stream::iter(messages.collect::<Vec<_>>())).await.unwrap();
    let mut answers = answers.into_inner();
    let mut said = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        said.push((answer.infer_response.unwrap().id, answer.error_message));
    }
    // Calls run beside each other: a refusal need not wait for what came before it.
    for (message, _, text) in hostile() {
        assert!(said.contains(&(message.id, text.to_owned())), "{said:?}");
    }
    assert_eq!(said.iter().filter(|(id, error)| id == "r1" && error.is_empty()).count(), 4, "{said:?}");
    assert_eq!(world.connection.frontend.memory.used(), 0);
}

#[tokio::test]
async fn many_strings_pass_where_there_is_memory_for_them_and_are_decoded_off_the_lane() {
    let world = with_memory(64 * MIB);
    let answer = world.client().await.model_infer(strings(40_000)).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents[0].len(), 4 * 40_000);
    let parsed = |message: &ModelInferRequest| {
        parse(&world.connection, message.encode_to_vec().into(), |_, parsed: Parsed<ModelInferRequest>| {
            Decoding::Now(Ok(parsed.message))
        })
    };
    assert!(matches!(parsed(&strings(40_000)), Decoding::Later(_)));
    let raw = ModelInferRequest { raw_input_contents: vec![vec![0; 8 * MIB].into()], ..request() };
    for little in [&request(), &raw, &strings(1000)] {
        let Decoding::Now(Ok(message)) = parsed(little) else { panic!("decoded off the lane") };
        assert_eq!(message, *little);
    }
    assert_eq!(parsed(&strings(40_000)).wait().await.unwrap(), strings(40_000));
}

#[tokio::test]
async fn a_message_that_waits_for_its_parse_is_counted() {
    let world = with_memory(64 * MIB);
    let message = Bytes::from(strings(100_000).encode_to_vec());
    let length = message.len();
    let busy = Busy::begin().await;
    let then = |_: &Arc<Connection>, parsed: Parsed<ModelInferRequest>| Decoding::Now(Ok(parsed.length));
    let parsed = tokio::spawn(parse(&world.connection, message, then).wait());
    tokio::task::yield_now().await;
    assert_eq!(world.connection.frontend.memory.used(), length);
    drop(busy);
    assert_eq!(parsed.await.unwrap().unwrap(), length);
    assert_eq!(world.connection.frontend.memory.used(), 0);
}

#[test]
fn the_refusal_of_a_message_of_64_mib_allocates_next_to_nothing() {
    let world = with_memory(256 * MIB);
    let connection = &world.connection;
    // As empty inputs, requested outputs, raw contents, parameters.
    for piece in [*b"\x2a\0", *b"\x32\0", *b"\x3a\0", *b"\x22\0"] {
        let message = Bytes::from(piece.repeat(32 * MIB));
        let made = allocation_counter::measure(|| {
            let parsed = parse(connection, message, |_, _: Parsed<ModelInferRequest>| Decoding::Now(Ok(())));
            assert!(matches!(parsed, Decoding::Now(Err(Error::InvalidRequest(_)))));
        });
        assert!(made.bytes_total < 10_000, "{} bytes", made.bytes_total);
    }
    // As many empty strings of a tensor; as on a decoding thread.
    let strings = Bytes::from(b"\x42\0".repeat(4 * MIB));
    let within = |number: u8, inner: &[u8]| {
        let mut bytes = vec![number << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
        bytes
    };
    let message = Bytes::from(within(5, &within(5, &strings)));
    let made = allocation_counter::measure(|| {
        let settings = &connection.frontend.settings.wire;
        let weight = weigh::<ModelInferRequest>(&message, settings, |_| true).unwrap().unwrap();
        let decoded = decode::<ModelInferRequest>(connection, message, weight.bytes, None, true);
        assert!(matches!(decoded, Err(Error::NeverFits { .. })));
    });
    assert!(made.bytes_total < 10_000, "{} bytes", made.bytes_total);
    assert_eq!(connection.frontend.memory.used(), 0);
}

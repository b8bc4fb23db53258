//! What is read of a body, beside what tonic reads of it.

use super::{
    super::{arriving::Wait, fixture::world, parse::Whole, unary::one},
    *,
};
use crate::{
    frontend::{Connection, Settings},
    wire::proto::inference::ModelInferRequest,
};
use http_body::Frame;
use http_body_util::StreamBody;
use proptest::prelude::*;
use prost::Message;
use std::sync::Arc;
use tonic::codec::Streaming;

/// `limits.size.body` of these tests, bytes.
const LIMIT: usize = 300_000;

fn connection(memory: usize) -> Arc<Connection> {
    let mut settings = Settings::default();
    settings.size.body = LIMIT;
    settings.size.trailer_fields = 2;
    settings.concurrency.memory = memory;
    world(settings, |_| async { Err(Error::Cancelled) }).connection
}

type Frames = Vec<Result<Frame<Bytes>, Error>>;

fn arriving(
    frames: Frames,
    connection: &Arc<Connection>,
) -> Arriving<impl Body<Data = Bytes, Error = Error> + Unpin + Send + 'static> {
    Arriving::new(StreamBody::new(futures_util::stream::iter(frames)), Arc::clone(connection), Wait::Throughout)
}

fn copied(frames: &Frames) -> Frames {
    let copy = |frame: &Frame<Bytes>| match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
    };
    frames.iter().map(|frame| frame.as_ref().map(copy).map_err(Clone::clone)).collect()
}

fn at_once<T>(message: T) -> Decoding<T> {
    Decoding::Now(Ok(message))
}

/// What both readers say of `frames`, and how much memory is counted when they have.
fn read(frames: Frames, memory: usize) -> [(Result<Bytes, String>, usize); 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let connection = connection(memory);
        let used = || connection.frontend.memory.used();
        let text = |error: Error| format!("{error:?}");
        let theirs = arriving(copied(&frames), &connection);
        let theirs = Streaming::new_request(Whole, theirs, None, Some(LIMIT));
        let theirs = (one(theirs, LIMIT).await.map_err(text), used());
        let ours = Single::new(arriving(frames, &connection), LIMIT, at_once).await;
        [(ours.map_err(text), used()), theirs]
    })
}

fn message(bytes: usize) -> ModelInferRequest {
    let raw = if bytes == 0 { Vec::new() } else { vec![Bytes::from(vec![7; bytes])] };
    ModelInferRequest { model_name: "m".into(), raw_input_contents: raw, ..Default::default() }
}

fn prefixed(flag: u8, length: usize, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flag];
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// One part of a body: a message, or what is none.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let sound = prop_oneof![0..40_usize, Just(70_000), Just(200_000)].prop_map(|bytes| {
        let data = message(bytes).encode_to_vec();
        prefixed(0, data.len(), &data)
    });
    prop_oneof![
        6 => sound,
        1 => (0..4_u8, 0..12_usize, proptest::collection::vec(any::<u8>(), 0..12))
            .prop_map(|(flag, length, data)| prefixed(flag, length, &data)),
        1 => (LIMIT - 1..LIMIT + 2).prop_map(|length| prefixed(0, length, &[])),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
        1 => Just(prefixed(0, 0, &[])),
    ]
}

fn cut(mut bytes: Bytes, cuts: &[usize], end: usize) -> Frames {
    let mut frames = Frames::new();
    for length in cuts {
        frames.push(Ok(Frame::data(bytes.split_to(bytes.len().min(*length)))));
    }
    frames.push(Ok(Frame::data(bytes)));
    let field = |name: &str| (name.parse().unwrap(), http::HeaderValue::from_static("v"));
    match end {
        0 => frames.push(Ok(Frame::trailers([field("a")].into_iter().collect()))),
        1 => frames.push(Ok(Frame::trailers(["a", "b", "c"].map(field).into_iter().collect()))),
        2 => frames.push(Err(Error::Cancelled)),
        3 => frames.push(Err(Error::BodyStalled)),
        _ => {}
    }
    frames
}

proptest! {
    #[test]
    fn however_a_body_is_cut_the_message_or_the_error_is_the_one_of_tonic(
        parts in prop_oneof![
            4 => proptest::collection::vec(part(), 1..2),
            1 => proptest::collection::vec(part(), 0..4),
        ],
        less in prop_oneof![4 => Just(0_usize), 1 => 1..10_usize],
        cuts in proptest::collection::vec(prop_oneof![0..12_usize, Just(16_384), Just(70_000)], 0..12),
        end in 0..12_usize,
        memory in prop_oneof![4 => Just(1_usize << 30), 1 => Just(100_000)],
    ) {
        let mut bytes = parts.concat();
        bytes.truncate(bytes.len() - less.min(bytes.len()));
        let [ours, theirs] = read(cut(bytes.into(), &cuts, end), memory);
        prop_assert_eq!(ours, theirs);
    }
}

#[tokio::test]
async fn a_message_in_one_frame_is_a_slice_of_it() {
    let data = message(100).encode_to_vec();
    let frame = Bytes::from(prefixed(0, data.len(), &data));
    let range = frame.as_ptr_range();
    for frames in
        [vec![frame.clone()], vec![frame.slice(..3), frame.slice(3..)], vec![frame.slice(..5), frame.slice(5..)]]
    {
        let frames = frames.into_iter().map(|data| Ok(Frame::data(data))).collect();
        let read = Single::new(arriving(frames, &connection(1 << 20)), LIMIT, at_once).await.unwrap();
        let read = ModelInferRequest::decode(read).unwrap();
        assert!(range.contains(&read.raw_input_contents[0].as_ptr()));
    }
}

#[tokio::test]
async fn memory_follows_what_came_and_not_what_was_announced() {
    let mut messages = Messages::new(arriving(Vec::new(), &connection(1 << 20)), LIMIT);
    messages.rest = prefixed(0, LIMIT, &[7; 10]).into();
    assert!(messages.cut().unwrap().is_none());
    assert_eq!(messages.message.capacity(), FIRST);
    messages.rest = vec![7; FIRST].into();
    assert!(messages.cut().unwrap().is_none());
    assert_eq!(messages.message.capacity(), 2 * FIRST);
    messages.rest = vec![7; LIMIT - FIRST - 10].into();
    assert_eq!(messages.cut().unwrap().unwrap().len(), LIMIT);
}

#[tokio::test]
async fn what_counted_a_message_on_its_way_in_ends_before_it_is_decoded() {
    let connection = connection(1 << 20);
    let data = message(200_000).encode_to_vec();
    let frames = vec![Ok(Frame::data(Bytes::from(prefixed(0, data.len(), &data))))];
    let decode = |_: Bytes| at_once(connection.frontend.memory.used());
    assert_eq!(Single::new(arriving(frames, &connection), LIMIT, decode).await.unwrap(), 0);
}

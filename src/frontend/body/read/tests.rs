//! Reading bodies: limits, stalls, alignment.
use super::*;
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use proptest::prelude::*;
use std::io;

const LIMITS: Limits = Limits { body: 1 << 20, chunks: 8, trailer_fields: 2, stall: Duration::from_secs(15) };

fn memory() -> Memory {
    Memory::new(1 << 20)
}

type Item = Result<Frame<Bytes>, io::Error>;

fn streamed(items: impl Stream<Item = Item> + Unpin) -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
    StreamBody::new(items)
}

fn chunks(chunks: Vec<Vec<u8>>) -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
    streamed(stream::iter(chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk))))))
}

#[tokio::test]
async fn a_single_frame_is_not_copied() {
    let frame = Bytes::from(vec![7; 100]);
    let body = collect(http_body_util::Full::new(frame.clone()), 0, LIMITS, &memory()).await.unwrap();
    assert_eq!(body.as_ptr(), frame.as_ptr());
}

#[tokio::test]
async fn a_tail_lies_on_eight_however_it_came() {
    let whole = Bytes::from((0..=255).collect::<Vec<u8>>());
    for offset in 1..40 {
        for start in 0..8 {
            let frame = whole.slice(start..);
            let body = collect(http_body_util::Full::new(frame.clone()), offset, LIMITS, &memory()).await.unwrap();
            assert_eq!(body, frame);
            assert!(view::is_aligned(&body[offset..], 8), "{offset} {start}");
        }
    }
}

#[tokio::test]
async fn a_declared_length_beyond_the_limit_is_refused_unread() {
    let frame = Bytes::from(vec![0; LIMITS.body + 1]);
    let refused = collect(http_body_util::Full::new(frame), 0, LIMITS, &memory()).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge { limit } if limit == LIMITS.body as u64));
}

#[tokio::test]
async fn the_limit_holds_without_a_declared_length() {
    let at_limit = vec![vec![1; LIMITS.body / 2]; 2];
    assert_eq!(collect(chunks(at_limit.clone()), 0, LIMITS, &memory()).await.unwrap().len(), LIMITS.body);
    let beyond = [at_limit, vec![vec![1]]].concat();
    assert!(matches!(collect(chunks(beyond), 0, LIMITS, &memory()).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn memory_is_held_as_long_as_the_bytes_and_refused_when_it_is_used_up() {
    let memory = Memory::new(3 * FREE);
    let body = collect(chunks(vec![vec![1; FREE], vec![1; FREE]]), 0, LIMITS, &memory).await.unwrap();
    assert_eq!(memory.used(), 2 * FREE);
    let refused = collect(chunks(vec![vec![1; FREE], vec![1; FREE]]), 0, LIMITS, &memory).await;
    assert!(matches!(refused, Err(Error::Overloaded { limit: crate::error::Limit::Memory })));
    let small = collect(chunks(vec![vec![1; 8]; 4]), 0, LIMITS, &memory).await.unwrap();
    assert_eq!(small.len(), 32);
    drop(body);
    assert_eq!(memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_arriving_is_given_up() {
    let items = [Ok(Frame::data(Bytes::from_static(b"x")))];
    let stalled = streamed(Box::pin(futures_util::StreamExt::chain(stream::iter(items), stream::pending::<Item>())));
    let start = tokio::time::Instant::now();
    assert!(matches!(collect(stalled, 0, LIMITS, &memory()).await, Err(Error::BodyStalled)));
    assert_eq!(start.elapsed(), LIMITS.stall);
}

#[tokio::test]
async fn crumbs_are_counted_and_chunks_are_not() {
    assert!(collect(chunks(vec![vec![1]; 9]), 0, LIMITS, &memory()).await.is_ok());
    assert!(matches!(collect(chunks(vec![vec![1]; 10]), 0, LIMITS, &memory()).await, Err(Error::InvalidRequest(_))));
    assert!(collect(chunks(vec![vec![1; CRUMB]; 100]), 0, LIMITS, &memory()).await.is_ok());
}

#[tokio::test]
async fn who_goes_away_has_cancelled_and_who_sends_nonsense_is_told() {
    let gone = streamed(stream::iter([Err(io::ErrorKind::ConnectionReset.into())]));
    assert!(matches!(collect(gone, 0, LIMITS, &memory()).await, Err(Error::Cancelled)));
    let nonsense = streamed(stream::iter([Err(io::ErrorKind::InvalidInput.into())]));
    assert!(matches!(collect(nonsense, 0, LIMITS, &memory()).await, Err(Error::InvalidRequest(_))));
}

#[tokio::test]
async fn trailers_are_counted_and_otherwise_ignored() {
    let with = |fields: usize| {
        let trailers =
            (0..fields).map(|index| (format!("x-{index}").parse().unwrap(), http::HeaderValue::from_static("y")));
        let trailers: http::HeaderMap<http::HeaderValue> = trailers.collect();
        streamed(stream::iter([Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))]))
    };
    assert_eq!(collect(with(LIMITS.trailer_fields), 0, LIMITS, &memory()).await.unwrap(), "body");
    let beyond = collect(with(LIMITS.trailer_fields + 1), 0, LIMITS, &memory()).await;
    assert!(matches!(beyond, Err(Error::TrailersTooLarge)));
}

#[test]
fn realigning_keeps_the_bytes() {
    let body: Vec<u8> = (0..100).collect();
    for offset in 1..20 {
        let bytes = realigned(&body, offset);
        assert_eq!(bytes, body);
        assert!(view::is_aligned(&bytes[offset..], 8));
    }
}

proptest! {
    #[test]
    fn any_pieces_come_back_whole_and_aligned(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..8),
        offset in 0_usize..64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let memory = memory();
        let body = runtime.block_on(collect(chunks(pieces.clone()), offset, LIMITS, &memory)).unwrap();
        prop_assert_eq!(&body[..], &pieces.concat()[..]);
        if offset > 0 && offset < body.len() {
            prop_assert!(view::is_aligned(&body[offset..], 8));
        }
    }
}

//! What passes, however it comes, and how it ends.

use super::*;
use futures_util::FutureExt;
use proptest::prelude::*;
use std::{cell::Cell, future::poll_fn};

const ALLOWANCE: Allowance = Allowance { control_frames: 3, resets: 2, header_block: 1000, frame: 1 << 14 };

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Gives its pieces one at a time, and waits between two of them.
struct Pieces {
    pieces: Vec<Vec<u8>>,
    pause: bool,
}

impl Pieces {
    fn new(bytes: &[u8], cuts: &[usize]) -> Self {
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece.to_vec());
            rest = after;
        }
        pieces.reverse();
        Self { pieces, pause: false }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.pause = !self.pause;
        if self.pause {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop() {
            let taken = piece.len().min(buffer.remaining());
            buffer.put_slice(&piece[..taken]);
            if taken < piece.len() {
                self.pieces.push(piece.split_off(taken));
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads to the end, at most `room` bytes at a time: what passed, what ended it, and how often streams were reset.
fn read(guard: &mut Guard, mut stream: Pieces, room: usize) -> (Vec<u8>, Heard, usize) {
    let (mut passed, resets) = (Vec::new(), Cell::new(0));
    loop {
        let mut bytes = vec![0; room];
        let mut buffer = ReadBuf::new(&mut bytes);
        let polled = poll_fn(|cx| guard.poll_read(cx, &mut stream, &mut buffer, || resets.set(resets.get() + 1)));
        let Some(heard) = polled.now_or_never() else { continue };
        let heard = heard.unwrap();
        if buffer.filled().is_empty() {
            return (passed, heard, resets.get());
        }
        passed.extend_from_slice(buffer.filled());
    }
}

fn farewell(guard: &mut Guard) -> Vec<u8> {
    let mut said = Vec::new();
    // One byte at a time, as a slow socket takes them.
    while let Some(byte) = guard.farewell().map(|left| left[0]) {
        said.push(byte);
        guard.said(1);
    }
    said
}

fn ping() -> Vec<u8> {
    frame(kind::PING, 0, 0, &[7; 8])
}

#[test]
fn the_peer_hears_what_it_did() {
    let mut guard = Guard::new(ALLOWANCE);
    let bytes = [frame(kind::HEADERS, 5, 9, b"head"), ping(), ping(), ping(), ping()].concat();
    let (passed, heard, _) = read(&mut guard, Pieces::new(&bytes, &[bytes.len()]), 4096);
    assert_eq!((passed.len(), heard), (bytes.len() - ping().len(), Heard::Flood(Flood::Ping)));
    assert_eq!(farewell(&mut guard), frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 9, 0, 0, 0, 0xb]));
    assert_eq!(farewell(&mut guard), Vec::<u8>::new());
}

#[test]
fn nothing_is_said_without_a_flood_or_within_a_frame_or_twice() {
    let flooded = || {
        let mut guard = Guard::new(ALLOWANCE);
        read(&mut guard, Pieces::new(&ping().repeat(4), &[1000]), 4096);
        guard
    };
    assert_eq!(farewell(&mut Guard::new(ALLOWANCE)), Vec::<u8>::new());
    let data = frame(kind::DATA, 0, 1, b"data");
    let mut guard = flooded();
    guard.wrote([&data[..6], &data[6..]], data.len() - 1);
    assert_eq!(farewell(&mut guard), Vec::<u8>::new());
    let mut guard = flooded();
    guard.wrote([&data[..6], &data[6..], &data[..]], data.len());
    assert_eq!(farewell(&mut guard).len(), GOODBYE);
    let mut guard = flooded();
    let goaway = frame(kind::GOAWAY, 0, 0, &[0; 8]);
    guard.wrote([&goaway[..]], goaway.len());
    assert_eq!(farewell(&mut guard), Vec::<u8>::new());
}

#[test]
fn half_a_header_is_handed_on_when_the_peer_ends_there() {
    let bytes = [ping(), ping()[..5].to_vec()].concat();
    for cuts in [&[1][..], &[3, 4], &[bytes.len()]] {
        let (passed, heard, _) = read(&mut Guard::new(ALLOWANCE), Pieces::new(&bytes, cuts), 4096);
        assert_eq!((passed, heard), (bytes.clone(), Heard::Peer));
    }
}

#[test]
fn what_is_written_is_counted_however_it_is_taken() {
    let answer = [frame(kind::HEADERS, 4, 1, &[1; 30]), frame(kind::DATA, 1, 1, &[2; 300])].concat();
    for size in 1..answer.len() {
        let mut guard = Guard::new(ALLOWANCE);
        for piece in answer.chunks(size) {
            // A list of slices of which the socket takes a part.
            guard.wrote([&piece[..piece.len() / 2], &piece[piece.len() / 2..], &answer[..]], piece.len());
        }
        assert!(guard.sent.is_between(), "{size}");
        // One PING for each of the two frames.
        let (passed, ..) = read(&mut guard, Pieces::new(&ping().repeat(9), &[1000]), 4096);
        assert_eq!(passed.len(), ping().len() * (2 + 3), "{size}");
    }
}

proptest! {
    #[test]
    fn the_same_passes_however_it_comes(
        frames in proptest::collection::vec((0_u8..12, any::<u8>(), 0_usize..60), 0..40),
        cuts in proptest::collection::vec(1_usize..40, 1..60),
        room in 1_usize..50,
    ) {
        let bytes: Vec<u8> =
            frames.into_iter().flat_map(|(kind, flags, length)| frame(kind, flags, 1, &vec![kind; length])).collect();
        let mut whole = Guard::new(ALLOWANCE);
        let expected = read(&mut whole, Pieces::new(&bytes, &[bytes.len().max(1)]), bytes.len().max(1));
        prop_assert_eq!(&expected.0[..], &bytes[..expected.0.len()]);
        prop_assert!(expected.1 != Heard::Peer || expected.0.len() == bytes.len());
        let mut pieces = Guard::new(ALLOWANCE);
        prop_assert_eq!(read(&mut pieces, Pieces::new(&bytes, &cuts), room), expected);
        prop_assert_eq!(farewell(&mut pieces), farewell(&mut whole));
    }
}

//! Lines in a request's body, and lines in the body of its response.

use crate::{
    error::Error,
    frontend::{
        body::{Memory, Reservation},
        duplex::{Link, Outbox, Pipe, Received, Sending, Weigh, Why},
    },
};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc::Receiver;

/// Short lines are joined into frames of up to this size.
const JOINED: usize = 16 * 1024;

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outgoing {
    /// A line, without its end.
    Line(Bytes),
    /// What follows the last line.
    Trailers(HeaderMap),
}

impl Weigh for Outgoing {
    fn weight(&self) -> usize {
        match self {
            Self::Line(line) => line.len() + 1,
            Self::Trailers(_) => 0,
        }
    }
}

/// A line of the client, without its end; or the time that it took, if only its beginning has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A whole one.
    Whole(Bytes),
    /// More bytes of one that has no end yet.
    Part,
}

/// Both directions of one stream.
pub(super) struct Lines<B> {
    body: B,
    /// Received and not looked at.
    rest: Bytes,
    /// The beginning of a line whose end has not come.
    part: BytesMut,
    /// What `part` takes of the memory budget.
    reservation: Option<Reservation>,
    memory: Memory,
    ended: bool,
    limit: usize,
    pipe: Pipe<Frame<Bytes>>,
}

impl<B> Lines<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// A stream whose lines have at most `limit` bytes, counted against `memory` while they arrive, and where its
    /// response comes out.
    pub(super) fn new(body: B, limit: usize, memory: Memory) -> (Self, Receiver<Frame<Bytes>>) {
        let (pipe, receiver) = Pipe::new();
        let (rest, part) = (Bytes::new(), BytesMut::new());
        (Self { body, rest, part, reservation: None, memory, ended: false, limit, pipe }, receiver)
    }

    fn fail(&mut self, error: Error) -> Poll<Received<Line>> {
        (self.rest, self.part, self.reservation) = (Bytes::new(), BytesMut::new(), None);
        Poll::Ready(Received::Fault(Why::Error(error)))
    }

    fn too_large(&mut self) -> Poll<Received<Line>> {
        self.fail(Error::TooLarge { limit: self.limit as u64 })
    }

    /// The line that began in `part`, whole. Whoever takes it counts it.
    fn take_part(&mut self) -> Bytes {
        self.reservation = None;
        std::mem::take(&mut self.part).freeze()
    }

    /// The next line of what was received.
    fn line(&mut self) -> Option<Bytes> {
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let Some(end) = end else {
            if !self.rest.is_empty() {
                self.part.extend_from_slice(&std::mem::take(&mut self.rest));
            }
            return None;
        };
        let mut line = self.rest.split_to(end + 1);
        line.truncate(end);
        if self.part.is_empty() {
            return Some(line);
        }
        self.part.extend_from_slice(&line);
        Some(self.take_part())
    }
}

impl<B> Link for Lines<B>
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: fmt::Display,
{
    type Received = Line;
    type Frame = Outgoing;

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received<Line>> {
        loop {
            if let Some(line) = self.line() {
                if line.len() > self.limit {
                    return self.too_large();
                }
                return Poll::Ready(Received::Frame(Line::Whole(line)));
            }
            if self.part.len() > self.limit {
                return self.too_large();
            }
            if let Err(error) = self.memory.cover(&mut self.reservation, self.part.len()) {
                return self.fail(error);
            }
            if self.ended {
                if self.part.is_empty() {
                    return Poll::Ready(Received::Over);
                }
                let last = self.take_part();
                return Poll::Ready(Received::Frame(Line::Whole(last)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.ended = true,
                Some(Ok(frame)) => {
                    // Trailers say nothing.
                    let Ok(data) = frame.into_data() else { continue };
                    let ends = data.contains(&b'\n');
                    self.rest = data;
                    if !ends && !self.rest.is_empty() {
                        let _ = self.line();
                        let counted = self.memory.cover(&mut self.reservation, self.part.len());
                        if self.part.len() <= self.limit && counted.is_ok() {
                            return Poll::Ready(Received::Frame(Line::Part));
                        }
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a stream broke off");
                    return Poll::Ready(Received::Closed);
                }
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox<Outgoing>) -> Sending {
        self.pipe.poll_drain(cx, outbox, frame)
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<()> {
        self.pipe.close();
        Poll::Ready(())
    }
}

/// Takes one frame out of the outbox: a long line, several short ones, or the trailers.
fn frame(outbox: &mut Outbox<Outgoing>) -> Option<Frame<Bytes>> {
    let mut joined = BytesMut::new();
    loop {
        match outbox.front() {
            Some(Outgoing::Line(line)) if joined.is_empty() || joined.len() + line.len() < JOINED => {}
            Some(Outgoing::Trailers(_)) if joined.is_empty() => {
                let Some(Outgoing::Trailers(trailers)) = outbox.pop() else { return None };
                return Some(Frame::trailers(trailers));
            }
            Some(_) | None => break,
        }
        let Some(Outgoing::Line(line)) = outbox.pop() else { break };
        joined.reserve(line.len() + 1);
        joined.extend_from_slice(&line);
        joined.extend_from_slice(b"\n");
    }
    (!joined.is_empty()).then(|| Frame::data(joined.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn read(pieces: Vec<Vec<u8>>, limit: usize) -> Result<Vec<Bytes>, Error> {
        let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
        let (mut lines, _receiver) = Lines::new(StreamBody::new(stream::iter(frames)), limit, Memory::new(1 << 20));
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        let mut all = Vec::new();
        loop {
            match lines.poll_receive(&mut cx) {
                Poll::Ready(Received::Frame(Line::Whole(line))) => all.push(line),
                Poll::Ready(Received::Frame(Line::Part)) => {}
                Poll::Ready(Received::Over) => return Ok(all),
                Poll::Ready(Received::Fault(Why::Error(error))) => return Err(error),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_beyond_does_not() {
        assert!(read(vec![b"123\n1234\n123".to_vec()], 4).is_ok());
        for pieces in [vec![b"12345\n".to_vec()], vec![b"123".to_vec(), b"456".to_vec()], vec![b"123456".to_vec()]] {
            assert!(matches!(read(pieces, 4), Err(Error::TooLarge { limit: 4 })));
        }
    }

    #[test]
    fn a_long_line_is_counted_while_it_arrives() {
        let piece = || Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 50_000])));
        let memory = Memory::new(120_000);
        let body = StreamBody::new(stream::iter([piece(), piece(), piece()]));
        let (mut lines, _receiver) = Lines::new(body, 1 << 20, memory.clone());
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        for used in [0, 100_000] {
            assert!(matches!(lines.poll_receive(&mut cx), Poll::Ready(Received::Frame(Line::Part))));
            assert_eq!(memory.used(), used);
        }
        let refused = lines.poll_receive(&mut cx);
        assert!(matches!(refused, Poll::Ready(Received::Fault(Why::Error(Error::NeverFits { .. })))), "{refused:?}");
        assert_eq!(memory.used(), 0);
    }

    proptest! {
        #[test]
        fn lines_come_whole_however_they_are_cut(
            lines in proptest::collection::vec("[a-z\r]{0,30}", 0..10),
            cuts in proptest::collection::vec(1_usize..20, 1..50),
            ends in any::<bool>(),
        ) {
            let mut text = lines.join("\n");
            if ends && !lines.is_empty() {
                text.push('\n');
            }
            let expected: Vec<_> = text.split_terminator('\n').map(|line| Bytes::copy_from_slice(line.as_bytes())).collect();
            let (mut pieces, mut rest, mut cuts) = (Vec::new(), text.as_bytes(), cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, other) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                pieces.push(piece.to_vec());
                rest = other;
            }
            prop_assert_eq!(read(pieces, 1000).unwrap(), expected);
        }
    }
}

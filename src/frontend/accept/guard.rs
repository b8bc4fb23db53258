//! Reads and writes of an HTTP/2 connection under the eyes of its [`Account`].
//!
//! What hyper reads ends at the frame that is one too many, and always *between* two frames: the beginning of a header is
//! kept back until its end has come, so no part of a refused frame is ever handed on. To hyper that is a peer that has
//! closed its half. It lets go of all streams, flushes what it has begun to write, and shuts the socket down. There, and
//! only there, the last frame is ours: GOAWAY with ENHANCE_YOUR_CALM.
//!
//! That is sound, because what hyper has written ends where a frame ends (it flushes whole frames before it shuts down,
//! and [`Guard::farewell`] looks), because nothing of hyper's comes behind it, and because the stream that it names is
//! the highest that hyper can have heard of. hyper has no way to be asked for such a frame: its own abrupt goodbye always
//! says NO_ERROR.

use super::{
    flood::{Account, Allowance, Flood},
    frames::{Frames, HEADER, kind},
};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

/// ENHANCE_YOUR_CALM (RFC 9113 section 7).
const CALM: u32 = 0xb;
/// Bytes of a GOAWAY frame without debug data.
const GOODBYE: usize = HEADER + 8;

/// Looks at the frames of one connection, behind its preface.
#[derive(Debug)]
pub(super) struct Guard {
    account: Account,
    received: Frames,
    sent: Frames,
    /// A header that came in pieces, on its way to hyper.
    whole: Held<HEADER>,
    flood: Option<Flood>,
    goodbye: Option<Held<GOODBYE>>,
    /// The peer has closed its half within a header.
    ended: bool,
}

/// Bytes that leave one by one, or as many as fit.
#[derive(Debug)]
struct Held<const N: usize> {
    bytes: [u8; N],
    start: usize,
    end: usize,
}

/// What a read has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Bytes, or the end of the stream.
    Peer,
    /// Nothing any more: the peer has sent too much of this.
    Flood(Flood),
}

// === impl Guard ===

impl Guard {
    pub(super) fn new(allowance: Allowance) -> Self {
        Self {
            account: Account::new(allowance),
            received: Frames::default(),
            sent: Frames::default(),
            whole: Held { bytes: [0; HEADER], start: 0, end: 0 },
            flood: None,
            goodbye: None,
            ended: false,
        }
    }

    /// Reads what may pass. `took_back` is called if the peer resets streams.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut stream: impl AsyncRead + Unpin,
        buffer: &mut ReadBuf<'_>,
        took_back: impl Fn(),
    ) -> Poll<io::Result<Heard>> {
        loop {
            if self.whole.give(buffer) {
                return Poll::Ready(Ok(Heard::Peer));
            }
            if let Some(flood) = self.flood {
                return Poll::Ready(Ok(Heard::Flood(flood)));
            }
            if self.ended {
                return Poll::Ready(Ok(Heard::Peer));
            }
            if !self.received.part().is_empty() {
                // The rest of a header, by itself: it has to stand before what follows, and there may be no room.
                let mut rest = [0; HEADER];
                let missing = HEADER - self.received.part().len();
                let mut rest = ReadBuf::new(&mut rest[..missing]);
                ready!(Pin::new(&mut stream).poll_read(cx, &mut rest))?;
                self.complete(rest.filled(), &took_back);
                continue;
            }
            let before = buffer.filled().len();
            ready!(Pin::new(&mut stream).poll_read(cx, buffer))?;
            if buffer.filled().len() == before {
                return Poll::Ready(Ok(Heard::Peer));
            }
            let passed = self.look(&buffer.filled()[before..], &took_back);
            buffer.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(Heard::Peer));
            }
        }
    }

    /// How many of `bytes` may pass. No header has begun before them.
    fn look(&mut self, bytes: &[u8], took_back: &impl Fn()) -> usize {
        let mut at = 0;
        while let Some(header) = self.received.next(bytes, &mut at) {
            if let Err(flood) = self.account.received(header, Instant::now) {
                self.flood = Some(flood);
                return at - HEADER;
            }
            if header.kind == kind::RST_STREAM {
                took_back();
            }
        }
        bytes.len() - self.received.part().len()
    }

    /// More of a header that came in pieces.
    fn complete(&mut self, rest: &[u8], took_back: &impl Fn()) {
        self.whole = Held { bytes: [0; HEADER], start: 0, end: self.received.part().len() };
        self.whole.bytes[..self.whole.end].copy_from_slice(self.received.part());
        if rest.is_empty() {
            // Half a header: hyper may make of it what it likes.
            self.ended = true;
            return;
        }
        self.whole.bytes[self.whole.end..][..rest.len()].copy_from_slice(rest);
        let Some(header) = self.received.next(rest, &mut 0) else {
            self.whole.end = 0;
            return;
        };
        self.whole.end = HEADER;
        if let Err(flood) = self.account.received(header, Instant::now) {
            self.flood = Some(flood);
            self.whole.end = 0;
        } else if header.kind == kind::RST_STREAM {
            took_back();
        }
    }

    /// The socket took `written` bytes of `pieces`.
    pub(super) fn wrote<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>, mut written: usize) {
        for piece in pieces {
            let piece = &piece[..piece.len().min(written)];
            written -= piece.len();
            let mut at = 0;
            while let Some(header) = self.sent.next(piece, &mut at) {
                self.account.sent(header, Instant::now);
            }
        }
    }

    /// The rest of our last words, if there was a flood. Only when nothing of hyper's is left to be written.
    pub(super) fn farewell(&mut self) -> Option<&[u8]> {
        self.flood?;
        if self.goodbye.is_none() {
            // Nothing, if a GOAWAY was sent before: the peer knows, and a second one would have to know the first.
            let last = self.account.last_stream().filter(|_| self.sent.is_between());
            self.goodbye = Some(last.map_or_else(Held::nothing, goodbye));
        }
        self.goodbye.as_ref().map(Held::left).filter(|left| !left.is_empty())
    }

    /// The socket took `written` bytes of [`Guard::farewell`].
    pub(super) fn said(&mut self, written: usize) {
        if let Some(goodbye) = &mut self.goodbye {
            goodbye.start += written;
        }
    }
}

fn goodbye(last_stream: u32) -> Held<GOODBYE> {
    let mut bytes = [0; GOODBYE];
    bytes[2] = 8;
    bytes[3] = kind::GOAWAY;
    bytes[HEADER..HEADER + 4].copy_from_slice(&last_stream.to_be_bytes());
    bytes[HEADER + 4..].copy_from_slice(&CALM.to_be_bytes());
    Held { bytes, start: 0, end: GOODBYE }
}

/// The bytes of slices, as [`Guard::wrote`] takes them.
pub(super) fn pieces<'a>(slices: &'a [IoSlice<'_>]) -> impl Iterator<Item = &'a [u8]> {
    slices.iter().map(|slice| &**slice)
}

// === impl Held ===

impl<const N: usize> Held<N> {
    fn nothing() -> Self {
        Self { bytes: [0; N], start: 0, end: 0 }
    }

    fn left(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Gives what fits; false if there is nothing.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let given = self.left().len().min(buffer.remaining());
        buffer.put_slice(&self.bytes[self.start..self.start + given]);
        self.start += given;
        given > 0
    }
}

#[cfg(test)]
mod tests;

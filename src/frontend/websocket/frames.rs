//! What tungstenite does not count: fragments of a message, control frames, lengths spelled too long, what strangers
//! send, and the memory that large messages take while they arrive.
//!
//! A look at the headers of frames as they pass by, on their way from the socket to tungstenite, which alone decodes
//! them. It ends the stream *before* the frame that is too much, so that what came earlier is still heard.

use super::close;
use crate::frontend::body::{Memory, Reservation};
use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// The longest header: two bytes, a length of eight, a mask of four.
const HEADER: usize = 14;
/// The opcode of a close frame.
const CLOSE: u8 = 0x8;
/// What control frames are counted in.
const SECOND: Duration = Duration::from_secs(1);

/// The longest message before `welcome`, bytes: greetings and credentials are small.
const STRANGERS: u64 = 64 * 1024;
/// A request may follow `hello` at once (contract 06 C2): it is too much only if it still is when it is asked for.
const STRANGE: Violation = Violation { code: close::TOO_BIG, reason: "a message of more than 64 KiB before welcome" };
/// The codec says it by the `id` of the call, as long as the budget can be overdrawn for that.
const NO_MEMORY: Violation = Violation { code: close::NO_CAPACITY, reason: "no memory for the message" };

/// Whether a session was welcomed: its codec says so, and large messages may come.
#[derive(Clone, Debug, Default)]
pub(super) struct Welcomed(Arc<AtomicBool>);

/// Frames that may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Frames of one message (`limits.size.fragments`).
    pub(super) fragments: usize,
    /// Control frames per second (`limits.websocket.control_frames`).
    pub(super) control_frames: usize,
}

/// Why a frame did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// The close code that says so (contract 06 C7).
    pub(super) code: u16,
    /// The same in words.
    pub(super) reason: &'static str,
}

/// A socket whose incoming frames are counted.
#[derive(Debug)]
pub(super) struct Counted<S> {
    socket: S,
    counter: Counter,
    violation: Option<Violation>,
    /// What came behind a greeting and may not pass before it is answered.
    behind: Vec<u8>,
    memory: Memory,
    /// What the message that arrives takes of `memory`.
    reservation: Option<Reservation>,
}

#[derive(Debug)]
struct Counter {
    allowance: Allowance,
    welcomed: Welcomed,
    header: [u8; HEADER],
    have: usize,
    /// Bytes of payload before the next header.
    payload: u64,
    /// The payload is a message's, of which `declared` bytes were announced and `arrived` have come.
    is_data: bool,
    is_last: bool,
    declared: u64,
    arrived: u64,
    /// Messages ended since somebody asked.
    ended: bool,
    fragments: usize,
    controls: usize,
    /// When the present second began.
    since: Option<Instant>,
}

impl<S> Counted<S> {
    pub(super) fn new(socket: S, allowance: Allowance, memory: Memory, welcomed: Welcomed) -> Self {
        let counter = Counter {
            allowance,
            welcomed,
            header: [0; HEADER],
            have: 0,
            payload: 0,
            is_data: false,
            is_last: false,
            declared: 0,
            arrived: 0,
            ended: false,
            fragments: 0,
            controls: 0,
            since: None,
        };
        Self { socket, counter, violation: None, behind: Vec::new(), memory, reservation: None }
    }

    /// Counts the message that arrives against the budget. Once it is whole, the codec does.
    fn cover(&mut self) -> Result<(), Violation> {
        if std::mem::take(&mut self.counter.ended) {
            self.reservation = None;
        }
        let arrived = usize::try_from(self.counter.arrived).unwrap_or(usize::MAX);
        self.memory.cover(&mut self.reservation, arrived).map_err(|_| NO_MEMORY)
    }
}

impl Welcomed {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Counter {
    /// Looks at `bytes`; an error says how many of them may still pass.
    fn look(&mut self, bytes: &[u8]) -> Result<(), (usize, Violation)> {
        let mut at = 0;
        while at < bytes.len() {
            if self.payload > 0 {
                let skipped = self.payload.min((bytes.len() - at) as u64);
                self.payload -= skipped;
                if self.is_data {
                    self.arrived += skipped;
                    self.end();
                }
                // Not more than there are bytes.
                at += skipped as usize;
                continue;
            }
            let start = at - self.have.min(at);
            let length = self.length();
            while self.have < length && at < bytes.len() {
                self.header[self.have] = bytes[at];
                (self.have, at) = (self.have + 1, at + 1);
            }
            // The second byte may have told of more.
            if self.have >= 2 && self.have == self.length() {
                let earlier = self.have - (at - start);
                self.have = 0;
                if let Err(violation) = self.frame() {
                    if violation == STRANGE {
                        // To be looked at once more.
                        self.have = earlier;
                    }
                    return Err((start, violation));
                }
            }
        }
        Ok(())
    }

    /// The message is over, if its last byte was there.
    fn end(&mut self) {
        if self.is_last && self.payload == 0 {
            self.arrived = 0;
            self.ended = true;
        }
    }

    /// Bytes of the header, as far as is known.
    fn length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + extended + if self.header[1] & 0x80 == 0 { 0 } else { 4 }
    }

    /// A header is complete.
    fn frame(&mut self) -> Result<(), Violation> {
        let [first, second, rest @ ..] = self.header;
        let short = u64::from(second & 0x7f);
        let length = match short {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => rest[..8].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
            _ => short,
        };
        let minimal = match short {
            126 => length > 125,
            127 => length > u64::from(u16::MAX) && length >> 63 == 0,
            _ => true,
        };
        if !minimal {
            return Err(Violation { code: close::PROTOCOL, reason: "a length is not spelled in the shortest way" });
        }
        self.is_data = first & 0x08 == 0;
        if self.is_data {
            self.data(first, length)?;
        } else if first & 0x0f != CLOSE {
            // Which is the last that is heard, and has to be answered however many came before it.
            self.control()?;
        }
        self.payload = length;
        if self.is_data {
            self.end();
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), Violation> {
        let now = Instant::now();
        if self.since.is_none_or(|since| now >= since + SECOND) {
            (self.since, self.controls) = (Some(now), 0);
        }
        self.controls += 1;
        if self.controls > self.allowance.control_frames {
            return Err(Violation { code: close::POLICY, reason: "too many control frames" });
        }
        Ok(())
    }

    fn data(&mut self, first: u8, length: u64) -> Result<(), Violation> {
        let goes_on = first & 0x0f == 0;
        let declared = if goes_on { self.declared.saturating_add(length) } else { length };
        if declared > STRANGERS && !self.welcomed.get() {
            return Err(STRANGE);
        }
        self.declared = declared;
        self.is_last = first & 0x80 != 0;
        self.fragments = if goes_on { self.fragments + 1 } else { 1 };
        if self.fragments > self.allowance.fragments {
            return Err(Violation { code: close::TOO_BIG, reason: "a message in too many fragments" });
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.violation {
            Some(STRANGE) if this.counter.welcomed.get() => this.violation = None,
            Some(violation) => return Poll::Ready(Err(io::Error::other(violation))),
            None => {}
        }
        let before = buffer.filled().len();
        if this.behind.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        } else {
            let taken = this.behind.len().min(buffer.remaining());
            buffer.put_slice(&this.behind[..taken]);
            this.behind = this.behind.split_off(taken);
        }
        let looked = this.counter.look(&buffer.filled()[before..]);
        let result = looked.and_then(|()| this.cover().map_err(|violation| (0, violation)));
        if let Err((passed, violation)) = result {
            this.violation = Some(violation);
            if violation == STRANGE {
                this.behind.splice(..0, buffer.filled()[before + passed..].iter().copied());
            }
            buffer.set_filled(before + passed);
            if passed == 0 {
                return Poll::Ready(Err(io::Error::other(violation)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counter(fragments: usize, control_frames: usize) -> Counter {
        let welcomed = Welcomed::default();
        welcomed.set();
        Counted::new((), Allowance { fragments, control_frames }, Memory::new(usize::MAX), welcomed).counter
    }

    /// A masked frame.
    fn frame(first: u8, payload: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match payload {
            0..126 => frame.push(0x80 | payload as u8),
            126..65_536 => {
                frame.push(0x80 | 126);
                frame.extend((payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend([1, 2, 3, 4]);
        // Looks like headers of control frames, and must not be taken for them.
        frame.resize(frame.len() + payload, 0x89);
        frame
    }

    #[test]
    fn a_message_in_too_many_fragments_does_not_pass() {
        let mut counter = counter(3, 1);
        let message = [frame(0x01, 5), frame(0x00, 200), frame(0x80, 0)].concat();
        assert_eq!(counter.look(&message), Ok(()));
        assert_eq!(counter.look(&message), Ok(()));
        let more = [frame(0x01, 5), frame(0x00, 70_000), frame(0x00, 1)].concat();
        let endless = [more.clone(), frame(0x80, 1)].concat();
        let (passed, violation) = counter.look(&endless).unwrap_err();
        assert_eq!((passed, violation.code), (more.len(), 1009));
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_are_counted_by_the_second() {
        let mut counter = counter(1, 2);
        let two = [frame(0x89, 3), frame(0x8a, 0)].concat();
        assert_eq!(counter.look(&two), Ok(()));
        assert_eq!(counter.look(&frame(0x88, 2)), Ok(()));
        assert_eq!(counter.look(&frame(0x89, 0)).unwrap_err().1.code, 1008);
        tokio::time::advance(SECOND).await;
        assert_eq!(counter.look(&two), Ok(()));
    }

    #[test]
    fn a_length_must_be_spelled_in_the_shortest_way() {
        for header in [
            &[0x82, 0xfe, 0, 125][..],
            &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 255, 255],
            &[0x82, 0xff, 128, 0, 0, 0, 0, 1, 0, 0],
        ] {
            let header = [header, &[1, 2, 3, 4]].concat();
            assert_eq!(counter(1, 1).look(&header).unwrap_err().1.code, 1002, "{header:?}");
        }
        assert_eq!(counter(1, 1).look(&frame(0x82, 65_536)), Ok(()));
        assert_eq!(counter(1, 1).look(&frame(0x82, 126)), Ok(()));
    }

    #[tokio::test]
    async fn a_large_message_is_counted_while_it_arrives() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let (memory, welcomed) = (Memory::new(250_000), Welcomed::default());
        welcomed.set();
        let allowance = Allowance { fragments: 9, control_frames: 9 };
        let mut counted = Counted::new(far, allowance, memory.clone(), welcomed);
        let message = [frame(0x01, 100_000), frame(0x80, 100_000)].concat();
        for _ in 0..3 {
            near.write_all(&message).await.unwrap();
            let mut read = vec![0; message.len() - 1];
            counted.read_exact(&mut read).await.unwrap();
            assert_eq!(memory.used(), 199_999);
            counted.read_u8().await.unwrap();
            assert_eq!(memory.used(), 0);
        }
        near.write_all(&frame(0x82, 300_000)).await.unwrap();
        let error = counted.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.to_string(), NO_MEMORY.reason);
    }

    #[tokio::test]
    async fn what_is_large_passes_once_its_sender_is_welcome() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (hello, large) = (frame(0x81, 20), frame(0x82, 70_000));
        for cut in 0..=hello.len() + HEADER {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let welcomed = Welcomed::default();
            let allowance = Allowance { fragments: 1, control_frames: 0 };
            let mut counted = Counted::new(far, allowance, Memory::new(usize::MAX), welcomed.clone());
            let all = [&hello[..], &large].concat();
            near.write_all(&all[..cut]).await.unwrap();
            let mut read = vec![0; cut.min(hello.len())];
            counted.read_exact(&mut read).await.unwrap();
            near.write_all(&all[cut..]).await.unwrap();
            let mut more = vec![0; hello.len() - read.len()];
            counted.read_exact(&mut more).await.unwrap();
            welcomed.set();
            drop(near);
            let mut rest = Vec::new();
            counted.read_to_end(&mut rest).await.unwrap();
            assert_eq!([read, more, rest].concat(), all, "{cut}");
        }
    }

    #[tokio::test]
    async fn what_is_large_does_not_pass_before_welcome() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for message in [frame(0x82, 65_537), [frame(0x02, 40_000), frame(0x80, 30_000)].concat()] {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let allowance = Allowance { fragments: 9, control_frames: 0 };
            let mut counted = Counted::new(far, allowance, Memory::new(usize::MAX), Welcomed::default());
            near.write_all(&message).await.unwrap();
            let error = counted.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.to_string(), STRANGE.reason);
        }
    }

    proptest! {
        #[test]
        fn pieces_count_like_the_whole(cuts in proptest::collection::vec(1_usize..40, 1..200)) {
            let bytes = [frame(0x01, 130), frame(0x00, 3), frame(0x80, 70_000), frame(0x82, 0), frame(0x02, 1), frame(0x00, 9)].concat();
            let allowed = bytes.len();
            let bytes = [bytes, frame(0x00, 1), frame(0x80, 1)].concat();
            let mut counter = counter(3, 1);
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            let mut stopped = None;
            while at < bytes.len() && stopped.is_none() {
                let end = (at + cuts.next().unwrap()).min(bytes.len());
                if let Err((passed, violation)) = counter.look(&bytes[at..end]) {
                    prop_assert_eq!(violation.code, 1009);
                    stopped = Some(at + passed);
                }
                at = end;
            }
            // A header that came in pieces has passed in part: without its end it is nothing.
            let stopped = stopped.unwrap();
            prop_assert!((allowed + 7..allowed + 7 + HEADER).contains(&stopped), "{} {}", stopped, allowed);
        }

        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..10)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _guard = runtime.enter();
            let mut counter = counter(2, 2);
            for piece in pieces {
                if let Err((passed, _)) = counter.look(&piece) {
                    prop_assert!(passed <= piece.len());
                    break;
                }
            }
        }
    }
}

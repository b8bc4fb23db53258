//! A socket as hyper sees it: clear text or TLS, with what was read too early put back in front.
//!
//! It tells the connection's [`Activity`] what moves, keeps the connection's place as long as it lives (upgrades take
//! the socket with them), and closes so that the peer can still read our last words. On HTTP/2 a [`Guard`] looks at all
//! that passes.

use super::{
    Place,
    guard::{Guard, Heard, pieces},
    patience::Activity,
};
use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

/// Length of the HTTP/2 preface, which is as much as is ever read too early.
pub(super) const PREFACE: usize = 24;
/// Bytes that are rather copied than handed to the kernel piece by piece.
const SMALL: usize = 1024;
/// What is said to a head that took too long. Fixed bytes: there is no request to answer.
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// Closing while unread bytes are in the kernel makes it reset the connection, and the peer may lose the answer it was
/// just sent. So we read on for this long and this much before we let go.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 16 << 20;

/// A TCP stream that counts its writes.
#[derive(Debug)]
pub(super) struct Raw {
    stream: TcpStream,
    activity: Arc<Activity>,
}

/// Clear text or TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Raw),
    /// Boxed: a session is large, and connections without one should not pay for it.
    Tls(Box<TlsStream<Raw>>),
}

/// Bytes that were read to tell the protocol.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prefix {
    bytes: [u8; PREFACE],
    start: usize,
    end: usize,
}

#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    prefix: Prefix,
    activity: Arc<Activity>,
    /// Of HTTP/2 connections alone. Boxed: sockets of HTTP/1.1 and WebSockets should not pay for it.
    guard: Option<Box<Guard>>,
    ended: bool,
    closing: Closing,
    _place: Place,
}

#[derive(Debug)]
enum Closing {
    Not,
    Lingering { sleep: Pin<Box<Sleep>>, left: usize },
    Done,
}

// === impl Prefix ===

impl Prefix {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Reads once more behind what is there. False at the end of the stream.
    pub(super) async fn read(&mut self, stream: &mut Stream) -> io::Result<bool> {
        let mut buffer = ReadBuf::new(&mut self.bytes[self.end..]);
        std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buffer)).await?;
        let read = buffer.filled().len();
        self.end += read;
        Ok(read > 0)
    }
}

// === impl Socket ===

impl Socket {
    pub(super) fn new(stream: Stream, prefix: Prefix, activity: Arc<Activity>, place: Place) -> Self {
        Self { stream, prefix, activity, guard: None, ended: false, closing: Closing::Not, _place: place }
    }

    /// With an eye on all frames behind the prefix, which is the preface of HTTP/2.
    pub(super) fn guarded(self, guard: Guard) -> Self {
        Self { guard: Some(Box::new(guard)), ..self }
    }

    /// Says goodbye to a peer that has sent too much.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(guard) = &mut self.guard else { return Poll::Ready(Ok(())) };
        while let Some(left) = guard.farewell() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            guard.said(written);
        }
        Poll::Ready(Ok(()))
    }

    /// The kernel, or TLS, took what is in `written` of `pieces`.
    fn note<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = &'a [u8]>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let (Some(guard), Poll::Ready(Ok(written))) = (&mut self.guard, &written) {
            guard.wrote(pieces, *written);
        }
        written
    }

    /// Says 408 if the kernel takes it at once; there is no second try for who is this slow.
    fn say_late(&mut self, cx: &mut Context<'_>) {
        let stream = Pin::new(&mut self.stream);
        if let Poll::Ready(Ok(_)) = stream.poll_write(cx, LATE) {
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
    }

    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Closing::Lingering { sleep, left } = &mut self.closing else { return Poll::Ready(()) };
        let mut scrap = [0; 4096];
        while *left > 0 {
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return sleep.as_mut().poll(cx),
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *left = left.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.activity.is_late() {
            if !this.ended {
                this.ended = true;
                this.say_late(cx);
            }
            return Poll::Ready(Ok(()));
        }
        let early = this.prefix.bytes();
        if !early.is_empty() {
            let taken = early.len().min(buffer.remaining());
            buffer.put_slice(&early[..taken]);
            this.prefix.start += taken;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = match &mut this.guard {
            None => ready!(Pin::new(&mut this.stream).poll_read(cx, buffer)),
            Some(guard) => match ready!(guard.poll_read(cx, &mut this.stream, buffer, || this.activity.take_back())) {
                Ok(Heard::Flood(flood)) => {
                    tracing::debug!(?flood, "a peer sends too many frames");
                    // Not the peer's end: what it still sends is read and thrown away, so that it can read our goodbye.
                    this.activity.flood();
                    return Poll::Ready(Ok(()));
                }
                read => read.map(drop),
            },
        };
        if buffer.filled().len() > before {
            this.activity.hear();
        } else {
            this.ended = true;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note([bytes], written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.note(pieces(bytes), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Closing::Not = this.closing {
            ready!(this.poll_farewell(cx))?;
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.closing = if this.ended || this.activity.is_stopping() {
                Closing::Done
            } else {
                Closing::Lingering { sleep: Box::pin(sleep(LINGER)), left: LINGER_BYTES }
            };
        }
        ready!(this.linger(cx));
        this.closing = Closing::Done;
        Poll::Ready(Ok(()))
    }
}

// === impl Stream ===

/// Hands a method on to whichever stream it is.
macro_rules! either {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain(raw) => {
                let $stream = pin!(raw);
                $call
            }
            Stream::Tls(tls) => {
                let $stream = pin!(&mut **tls);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(raw) => raw.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

// === impl Raw ===

impl Raw {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(_) => self.activity.wrote(),
            Poll::Pending => self.activity.block(),
        }
        written
    }
}

impl AsyncRead for Raw {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Raw {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A small head and its small body in one piece: the kernel takes one buffer faster than a list of two.
        let mut whole = [0; SMALL];
        let mut length = 0;
        for piece in bytes {
            let Some(room) = whole.get_mut(length..length + piece.len()) else {
                let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
                return self.note(written);
            };
            room.copy_from_slice(piece);
            length += piece.len();
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, &whole[..length]);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! An HTTP/2 stream that has become a socket (RFC 8441): what hyper leaves to us of its life and its bounds.
//!
//! hyper copies each write into a queue and hands the rest to a task of its own, which writes as the peer's windows allow.
//! So writes are cut: what the queue holds is then bounded, however much a session would write at once. That task
//! outlives the session, because it still has its last bytes; a peer that gives no window would keep it for ever. So it
//! hears of the session's end ([`Over`]), and has `write_stall` from then (`stall`). And the connection is not idle while
//! it carries a tunnel. What the bytes mean is not known here.

use super::patience::InFlight;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// The most that is written at once. hyper keeps three such pieces, and h2 up to `http2.stream_buffer`.
const PIECE: usize = 16 * 1024;

/// What a tunnel holds of its connection until it is over.
#[derive(Debug)]
pub(crate) struct Hold {
    _request: InFlight,
    _over: oneshot::Sender<()>,
}

/// Resolves when the [`Hold`] of a tunnel is dropped.
pub(crate) type Over = oneshot::Receiver<()>;

/// The near end of a tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel<S> {
    stream: S,
    _hold: Hold,
}

impl Hold {
    /// A tunnel that counts as `request` of its connection.
    pub(crate) fn new(request: InFlight) -> (Self, Over) {
        let (over, heard) = oneshot::channel();
        (Self { _request: request, _over: over }, heard)
    }
}

impl<S> Tunnel<S> {
    /// `stream` is what hyper made of the request.
    pub(crate) fn new(stream: S, hold: Hold) -> Self {
        Self { stream, _hold: hold }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, &bytes[..bytes.len().min(PIECE)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

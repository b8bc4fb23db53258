//! The one message of a unary call, cut out of its body.
//!
//! tonic's `Streaming` says the same of the same bytes, and stays the reader of streams and of compressed messages. It
//! copies each frame into a buffer of its own, behind two boxes: of a small call that was a tenth.

use super::arriving::{Arriving, PREFIX};
use crate::error::Error;
use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use http_body::Body;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// What a buffer starts with, however long the message claims to be: memory follows the bytes that really came.
const FIRST: usize = 64 * 1024;

/// What a message is made into: at once, or off the lane where that is much work.
pub(super) enum Decoding<T> {
    Now(Result<T, Error>),
    Later(BoxFuture<'static, Result<T, Error>>),
}

/// Reads exactly one message, lets go of the body, and decodes: with [`parse`](super::parse::parse) in `decode`.
///
/// Resolves to what `decode` makes of it, or to [`Error::Unimplemented`] if there is no message or a second one, as
/// gRPC's status table has it; [`Error::TooLarge`], [`Error::MalformedMessage`], or what its body fails with.
pub(super) struct Single<B, D, T> {
    messages: Option<Messages<B>>,
    first: Option<Bytes>,
    decode: Option<D>,
    later: Option<BoxFuture<'static, Result<T, Error>>>,
}

impl<T> Decoding<T> {
    /// Waits for it.
    pub(super) async fn wait(self) -> Result<T, Error> {
        match self {
            Self::Now(result) => result,
            Self::Later(later) => later.await,
        }
    }
}

// Nothing in it is pinned by itself.
impl<B, D, T> Unpin for Single<B, D, T> {}

impl<B, D, T> Single<B, D, T> {
    /// The one message of `body`, of at most `limit` bytes; `decode` is run when it is there.
    pub(super) fn new(body: Arriving<B>, limit: usize, decode: D) -> Self {
        Self { messages: Some(Messages::new(body, limit)), first: None, decode: Some(decode), later: None }
    }
}

impl<B, D, T> Future for Single<B, D, T>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
    D: FnOnce(Bytes) -> Decoding<T>,
{
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        let this = self.get_mut();
        if let Some(later) = &mut this.later {
            return later.as_mut().poll(cx);
        }
        let messages = this.messages.as_mut().expect("a future is not polled after its end");
        loop {
            match (ready!(messages.poll_next(cx))?, this.first.take()) {
                (Some(first), None) => this.first = Some(first),
                (None, None) => return Poll::Ready(Err(count("no message"))),
                (Some(_), Some(_)) => return Poll::Ready(Err(count("more than one message"))),
                (None, Some(message)) => {
                    // What counted it on its way in ends here.
                    this.messages = None;
                    let decode = this.decode.take().expect("a message is decoded once");
                    return match decode(message) {
                        Decoding::Now(result) => Poll::Ready(result),
                        Decoding::Later(later) => this.later.insert(later).as_mut().poll(cx),
                    };
                }
            }
        }
    }
}

/// The error of a request that has `found` instead of one message.
pub(super) fn count(found: &str) -> Error {
    Error::Unimplemented(format!("the request has {found}, expected exactly one").into())
}

/// The error of a message that is none.
pub(super) fn malformed(reason: &dyn std::fmt::Display) -> Error {
    Error::MalformedMessage(format!("malformed gRPC message: {reason}").into())
}

/// The messages of a body, undecoded. One that came in one frame is a slice of it.
struct Messages<B> {
    body: Arriving<B>,
    /// The most bytes of one message.
    limit: usize,
    /// What came and is not looked at yet.
    rest: Bytes,
    prefix: [u8; PREFIX],
    /// Bytes of it that are there.
    prefixed: usize,
    /// Of the current message, once its prefix is there.
    length: Option<usize>,
    /// The current message as far as it came, if it came in several frames.
    message: Vec<u8>,
}

// === impl Messages ===

impl<B> Messages<B> {
    fn new(body: Arriving<B>, limit: usize) -> Self {
        let (rest, message) = (Bytes::new(), Vec::new());
        Self { body, limit, rest, prefix: [0; PREFIX], prefixed: 0, length: None, message }
    }

    /// The next message if it is there in full. If not, all that is there has been taken in.
    fn cut(&mut self) -> Result<Option<Bytes>, Error> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let taken = self.rest.len().min(PREFIX - self.prefixed);
                self.rest.copy_to_slice(&mut self.prefix[self.prefixed..self.prefixed + taken]);
                self.prefixed += taken;
                if self.prefixed < PREFIX {
                    return Ok(None);
                }
                *self.length.insert(self.announced()?)
            }
        };
        if self.message.is_empty() && self.rest.len() >= length {
            self.begin();
            return Ok(Some(self.rest.split_to(length)));
        }
        let came = self.rest.len().min(length - self.message.len());
        self.make_room(came, length);
        self.message.extend_from_slice(&self.rest[..came]);
        self.rest.advance(came);
        if self.message.len() < length {
            return Ok(None);
        }
        self.begin();
        Ok(Some(std::mem::take(&mut self.message).into()))
    }

    /// How long the message is to be, as its prefix says.
    fn announced(&self) -> Result<usize, Error> {
        let [flag, length @ ..] = self.prefix;
        match flag {
            0 => {}
            1 => {
                let text = "protocol error: received message with compressed-flag but no grpc-encoding was specified";
                return Err(malformed(&text));
            }
            flag => {
                return Err(malformed(&format_args!(
                    "protocol error: received message with invalid compression flag: {flag} (valid flags are 0 and 1), \
                     while sending request"
                )));
            }
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit { Err(Error::TooLarge { limit: self.limit as u64 }) } else { Ok(length) }
    }

    fn begin(&mut self) {
        (self.prefixed, self.length) = (0, None);
    }

    /// Twice what there was, or what is needed, and in the end exactly `length`.
    fn make_room(&mut self, more: usize, length: usize) {
        let needed = self.message.len() + more;
        if needed > self.message.capacity() {
            let room = needed.max(self.message.capacity() * 2).max(FIRST).min(length);
            self.message.reserve_exact(room - self.message.len());
        }
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Messages<B> {
    /// The next message; `None` at the end, or before trailers, which end a body wherever they come. That neither is within a
    /// message has been seen to.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            if let Some(message) = self.cut()? {
                return Poll::Ready(Ok(Some(message)));
            }
            // Most bodies are over with their message, which is cheaper to ask than what comes next.
            let frame = if self.body.is_end_stream() { None } else { ready!(Pin::new(&mut self.body).poll_frame(cx)?) };
            match frame.map(http_body::Frame::into_data) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(_)) | None => return Poll::Ready(Ok(None)),
            }
        }
    }
}

#[cfg(test)]
#[path = "single_tests.rs"]
mod tests;

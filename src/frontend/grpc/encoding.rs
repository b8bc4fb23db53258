//! Compressed messages: `grpc-encoding` of requests, and of the answers to them.
//!
//! tonic compresses too, on the thread that serves the connection and without regard to the memory budget: here a large
//! message goes to the decoding threads, and what a bomb would grow to is cut off while it grows.

use super::arriving::PREFIX;
use crate::{
    error::Error,
    frontend::{
        Body, Connection,
        body::{self, Coding},
        http::Response,
    },
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Names the encodings that its sender reads.
pub(super) const ACCEPT: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// What `grpc-accept-encoding` says of a message that was refused for its encoding.
pub(super) const ACCEPTED: HeaderValue = HeaderValue::from_static("gzip,deflate,zstd,identity");

/// Answers of up to so many bytes are not compressed: it would cost more time than it saves.
const WORTH_IT: usize = 1024;

/// The coding of a request's messages; none if they are as they are.
///
/// # Errors
///
/// [`Error::UnsupportedMedia`], which is rendered with `grpc-accept-encoding` (contract 05 section 1.1).
pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Coding>, Error> {
    named(headers.get(ENCODING))
}

/// The coding that `grpc-encoding` names.
///
/// # Errors
///
/// As [`of_request`].
pub(super) fn named(encoding: Option<&HeaderValue>) -> Result<Option<Coding>, Error> {
    match encoding.map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(name) => match Coding::parse(name) {
            Some(coding) => Ok(Some(coding)),
            None => Err(Error::UnsupportedMedia(
                format!(
                    "grpc-encoding `{}` is not supported, expected `gzip`, `deflate`, `zstd` or `identity`",
                    name.escape_ascii()
                )
                .into(),
            )),
        },
    }
}

/// The coding of the answers: that of the request, if its client reads it. Who sends plainly is answered plainly: what is
/// sent is mostly numbers, and every client says that it could read gzip.
pub(super) fn of_answers(headers: &HeaderMap) -> Option<Coding> {
    let coding = Coding::parse(headers.get(ENCODING)?.as_bytes())?;
    let mut names = headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    names.any(|name| Coding::parse(name.trim_ascii()) == Some(coding)).then_some(coding)
}

/// The messages of a request, inflated. Each may be as large as `limits.size.body` before and after.
pub(super) fn inflated<B>(
    body: B,
    coding: Coding,
    connection: Arc<Connection>,
) -> Recoded<B, impl FnMut(Message) -> BoxFuture<'static, Result<Message, Error>>>
where
    B: http_body::Body<Data = Bytes, Error = Error>,
{
    let limit = connection.frontend.settings.size.body;
    let each = move |message: Message| -> BoxFuture<'static, Result<Message, Error>> {
        let connection = Arc::clone(&connection);
        Box::pin(async move {
            if message.flag != 1 {
                return Ok(message);
            }
            // What counted it on its way in ends with its last byte.
            let _reservation = connection.frontend.memory.reserve_large(message.data.len())?;
            let data = body::inflate(message.data, coding, 0, Arc::clone(&connection)).await;
            let data = data.map_err(|error| match error {
                // No message at all, as gRPC's own table says it (contract 05 section 1.4).
                Error::InvalidRequest(reason) => Error::MalformedMessage(reason.to_string().into()),
                error => error,
            })?;
            Ok(Message { flag: 0, data })
        })
    };
    Recoded::new(body, each, limit, Error::TooLarge { limit: limit as u64 })
}

/// `response` with its messages compressed. What cannot be, or is too small, stays as it is.
pub(super) fn compressed(response: Response, coding: Coding) -> Response {
    if response.body().is_end_stream() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let each = move |message: Message| -> BoxFuture<'static, Result<Message, tonic::Status>> {
        Box::pin(async move {
            if message.flag != 0 || message.data.len() <= WORTH_IT {
                return Ok(message);
            }
            // Sent as it is if there is no room to compress it: an answer is worth more than its size.
            match body::compress(vec![message.data.clone()], coding).await {
                Ok(data) => Ok(Message { flag: 1, data }),
                Err(_) => Ok(message),
            }
        })
    };
    parts.headers.insert(ENCODING, coding.name());
    let too_large = tonic::Status::internal("a message is longer than its length can say");
    let body = Recoded::new(body, each, u32::MAX as usize, too_large);
    Response::from_parts(parts, Body::Grpc(tonic::body::Body::new(body)))
}

/// One message, without its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// 1 if it is compressed.
    flag: u8,
    data: Bytes,
}

/// A body each of whose messages is another one.
pub(super) struct Recoded<B: http_body::Body, F> {
    body: B,
    each: F,
    /// The most bytes of one message, and what is said beyond.
    limit: usize,
    too_large: Option<B::Error>,
    /// Of messages that are not there in full.
    rest: BytesMut,
    doing: Option<BoxFuture<'static, Result<Message, B::Error>>>,
    /// What follows the prefix that was handed over.
    data: Option<Bytes>,
}

// === impl Recoded ===

impl<B, F> Recoded<B, F>
where
    B: http_body::Body<Data = Bytes>,
    F: FnMut(Message) -> BoxFuture<'static, Result<Message, B::Error>>,
{
    fn new(body: B, each: F, limit: usize, too_large: B::Error) -> Self {
        Self { body, each, limit, too_large: Some(too_large), rest: BytesMut::new(), doing: None, data: None }
    }

    /// The next message that is there in full.
    fn next(&mut self) -> Result<Option<Message>, B::Error> {
        let Some(&[flag, a, b, c, d]) = self.rest.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.limit
            && let Some(too_large) = self.too_large.take()
        {
            return Err(too_large);
        }
        if self.rest.len() - PREFIX < length {
            return Ok(None);
        }
        self.rest.advance(PREFIX);
        Ok(Some(Message { flag, data: self.rest.split_to(length).freeze() }))
    }
}

impl<B, F> http_body::Body for Recoded<B, F>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Unpin,
    F: FnMut(Message) -> BoxFuture<'static, Result<Message, B::Error>> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        loop {
            if let Some(data) = this.data.take().filter(|data| !data.is_empty()) {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if let Some(doing) = &mut this.doing {
                let done = ready!(doing.as_mut().poll(cx));
                this.doing = None;
                return Poll::Ready(Some(done.map(|message| {
                    let mut prefix = [message.flag; PREFIX];
                    let length = u32::try_from(message.data.len()).unwrap_or(u32::MAX);
                    prefix[1..].copy_from_slice(&length.to_be_bytes());
                    this.data = Some(message.data);
                    Frame::data(Bytes::copy_from_slice(&prefix))
                })));
            }
            match this.next() {
                Ok(Some(message)) => {
                    this.doing = Some((this.each)(message));
                    continue;
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Whoever reads this finds that it is no whole message.
                None if !this.rest.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(this.rest.split().freeze()))));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
#[path = "encoding_tests.rs"]
mod tests;

//! Bodies: reading requests within a limit, writing responses of every kind.
//!
//! Knows frames and bytes, and nothing of what they mean: codecs do.

mod coding;
mod inputs;
mod memory;
mod read;
mod trailed;

#[cfg(test)]
pub(super) use crate::offload::Busy;
pub use crate::offload::{TEXT, is_small, offload, start_decoders};
pub use coding::{ACCEPTED, Coding, compress, inflate, read_coded};
pub use inputs::Counted;
pub use memory::{Memory, Reservation};
pub use read::read;
pub use trailed::Trailed;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// The body of a response.
#[derive(Debug, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All at once.
    Full(Bytes),
    /// A header and tensors, each a frame of its own.
    Frames(VecDeque<Bytes>),
    /// Frames that are there, then trailers.
    Trailed(Trailed),
    /// What tonic made.
    Grpc(tonic::body::Body),
    /// Pieces as they come; data frames, then at most one trailers frame.
    Channel(mpsc::Receiver<Frame<Bytes>>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Frames(frames) => {
                while let Some(bytes) = frames.pop_front() {
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Poll::Ready(None)
            }
            Self::Trailed(frames) => Poll::Ready(frames.next().map(Ok)),
            Self::Grpc(body) => Pin::new(body).poll_frame(cx),
            Self::Channel(frames) => frames.poll_recv(cx).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Frames(frames) => frames.iter().all(Bytes::is_empty),
            Self::Trailed(frames) => frames.is_over(),
            Self::Grpc(body) => body.is_end_stream(),
            // Only its end says that there are no trailers.
            Self::Channel(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Frames(frames) => SizeHint::with_exact(frames.iter().map(|bytes| bytes.len() as u64).sum()),
            Self::Grpc(body) => body.size_hint(),
            Self::Trailed(_) | Self::Channel(_) => SizeHint::default(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Full(bytes)
    }
}

impl From<tonic::body::Body> for Body {
    fn from(body: tonic::body::Body) -> Self {
        Self::Grpc(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn frames_are_sent_one_by_one_and_their_length_is_known() {
        let body = Body::Frames([Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")].into());
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(Body::Frames([Bytes::new()].into()).is_end_stream());
        assert_eq!(Body::from(Bytes::from_static(b"x")).collect().await.unwrap().to_bytes(), "x");
    }

    #[tokio::test]
    async fn frames_with_trailers_hold_their_memory_until_the_trailers_are_asked_for() {
        let memory = Memory::new(100);
        let trailers =
            || [(http::HeaderName::from_static("a"), http::HeaderValue::from_static("b"))].into_iter().collect();
        let frames = vec![Bytes::new(), Bytes::from_static(b"cd")];
        let trailed = Trailed::new(Bytes::from_static(b"ab"), frames, memory.reserve(4).ok(), trailers);
        let mut body = Body::Trailed(trailed);
        for data in ["ab", "cd"] {
            assert!(!body.is_end_stream() && body.size_hint().exact().is_none());
            assert_eq!(memory.used(), 4);
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), data);
        }
        assert!(body.frame().await.unwrap().unwrap().into_trailers().unwrap().contains_key("a"));
        assert!(body.is_end_stream() && body.frame().await.is_none());
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn a_channel_carries_data_and_then_trailers() {
        let (sender, receiver) = mpsc::channel(2);
        sender.send(Frame::data(Bytes::from_static(b"line\n"))).await.unwrap();
        let trailers = [(http::HeaderName::from_static("x-stream-status"), http::HeaderValue::from_static("ok"))];
        sender.send(Frame::trailers(trailers.into_iter().collect())).await.unwrap();
        drop(sender);
        let collected = Body::Channel(receiver).collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-stream-status"], "ok");
        assert_eq!(collected.to_bytes(), "line\n");
    }
}

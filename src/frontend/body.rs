//! Bodies: reading requests within a limit, writing responses of every kind.

use crate::{
    error::Error,
    frontend::{Connection, settings::Settings},
};
use bytes::Bytes;
use http_body::Frame;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
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
    /// What tonic made.
    Grpc(tonic::body::Body),
    /// Pieces as they come; data frames, then at most one trailers frame.
    Channel(mpsc::Receiver<Frame<Bytes>>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let _ = cx;
        unimplemented!()
    }
}

/// Bytes of bodies and outputs held by all connections (`limits.concurrency.memory`).
#[derive(Clone, Debug)]
pub struct Memory {
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// Reads the whole body of a request: within `limits.size.body`, the memory budget and `read_stall`.
///
/// The bytes lie on 8, `offset` bytes after their start (the length of a JSON header, so that the
/// first raw tensor behind it is aligned).
///
/// # Errors
///
/// [`Error::TooLarge`], [`Error::Overloaded`], [`Error::BodyStalled`], or [`Error::Cancelled`] if the client went away.
pub async fn read(body: hyper::body::Incoming, offset: usize, connection: Arc<Connection>) -> Result<Bytes, Error> {
    let _ = (body, offset, connection);
    unimplemented!()
}

/// Runs `decode` here if `size` is small, else on the decoding threads (`runtime.decode_threads`).
///
/// # Errors
///
/// Whatever `decode` answers.
pub async fn offload<T: Send + 'static>(
    size: usize,
    decode: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let _ = size;
    decode()
}

/// Never: a type that only keeps this file's imports honest until the bodies are written.
pub(crate) type _Unused = (Infallible, Settings);

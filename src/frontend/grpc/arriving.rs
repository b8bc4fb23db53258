//! The message on its way in: the stall timer and the memory budget between hyper and tonic.
//!
//! Sees bytes and not messages: tonic cuts them, and its limit on one message is set where it is asked to.

use crate::{
    call::Surface,
    error::Error,
    frontend::{Connection, body::Reservation},
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

/// Up to this many bytes are not counted, as in `frontend::body`.
const UNCOUNTED: usize = 64 * 1024;

/// How the text of an error begins that gRPC itself has a status for (contract 05 sections 1.2 and 1.4); see
/// [`status`](super::status).
pub(super) const MALFORMED: &str = "malformed gRPC message: ";

/// A request's body within `timers.read_stall` and `concurrency.memory`. It fails with our own [`Error`].
pub(super) struct Arriving<B> {
    body: B,
    connection: Arc<Connection>,
    received: usize,
    reservation: Option<Reservation>,
    /// Armed only while nothing comes: most messages arrive with their head.
    stall: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<B> Arriving<B> {
    pub(super) fn new(body: B, connection: Arc<Connection>) -> Self {
        Self { body, connection, received: 0, reservation: None, stall: None, waiting: false }
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let moment = || Instant::now() + self.connection.frontend.settings.timers.read_stall;
        let stall = match &mut self.stall {
            None => self.stall.insert(Box::pin(sleep_until(moment()))),
            Some(stall) => {
                if !self.waiting {
                    stall.as_mut().reset(moment());
                }
                stall
            }
        };
        self.waiting = true;
        stall.as_mut().poll(cx)
    }

    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.received += bytes;
        match &mut self.reservation {
            Some(reservation) => reservation.grow(bytes),
            None if self.received > UNCOUNTED => {
                self.reservation = Some(self.connection.frontend.memory.reserve(self.received)?);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl<B> Body for Arriving<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => return this.poll_stall(cx).map(|()| Some(Err(Error::BodyStalled))),
        };
        this.waiting = false;
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "a message broke off");
                return Poll::Ready(Some(Err(Error::Cancelled)));
            }
        };
        let checked = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => this.count(data.len()),
            (None, Some(fields)) if fields.len() > this.connection.frontend.settings.size.trailer_fields => {
                Err(Error::invalid("the request has too many trailer fields"))
            }
            (None, _) => Ok(()),
        };
        Poll::Ready(Some(checked.map(|()| frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.connection.frontend.metrics.bytes(Surface::Grpc, self.received as u64, 0);
    }
}

/// What tonic says about a message, in our words. `limit` is the one that tonic was given, in bytes.
pub(super) fn error(status: &Status, limit: usize) -> Error {
    let ours = std::error::Error::source(status).and_then(|source| source.downcast_ref::<Error>());
    match (ours, status.code()) {
        (Some(error), _) => error.clone(),
        // tonic says so of nothing else (contract 05 section 1.5).
        (None, tonic::Code::OutOfRange | tonic::Code::ResourceExhausted) => Error::TooLarge { limit: limit as u64 },
        (None, tonic::Code::Internal) => Error::invalid(format!("{MALFORMED}{}", status.message())),
        (None, _) => Error::Cancelled,
    }
}

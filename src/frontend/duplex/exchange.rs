//! A call in flight, as a future that yields what becomes of it, piece by piece.

use super::{Codec, Ticket};
use crate::{
    call::{Chunk, InferResponse, Reply, ReplyStream},
    error::Error,
};
use futures_util::{Stream, future::BoxFuture};
use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// A call in flight. It is handed back with each event, to be polled again or dropped.
pub(super) struct Exchange<C: Codec>(Option<Inner<C>>);

struct Inner<C: Codec> {
    tag: C::Tag,
    serial: u64,
    ticket: Arc<Ticket<C::Note>>,
    doing: Doing<C::Frame>,
}

enum Doing<F> {
    Asking(BoxFuture<'static, Result<Reply, Error>>),
    /// With the chunk, if there is one, that came before there was credit for it.
    Streaming(ReplyStream, Option<InferResponse>),
    /// Its outputs, the last ones if that is true, are written on another thread; with what comes after them.
    Encoding(BoxFuture<'static, Result<F, Error>>, bool, Box<Doing<F>>),
    Nothing,
}

/// What became of a call.
#[derive(Debug)]
pub(super) enum Event<F> {
    /// It was answered whole.
    Whole(InferResponse),
    /// It is going to be answered in pieces.
    Streams,
    /// A piece.
    Chunk(InferResponse),
    /// What came before is written, or has no form; true if it was the last.
    Encoded(Result<F, Error>, bool),
    /// There are no more pieces.
    Over,
    /// It failed.
    Failed(Error),
    /// It was taken back.
    Dropped,
}

impl<C: Codec> Exchange<C> {
    pub(super) fn new(
        tag: C::Tag,
        serial: u64,
        ticket: Arc<Ticket<C::Note>>,
        call: BoxFuture<'static, Result<Reply, Error>>,
    ) -> Self {
        Self(Some(Inner { tag, serial, ticket, doing: Doing::Asking(call) }))
    }

    /// Yields what `encoding` makes, of the last outputs if `last`, before anything else.
    pub(super) fn encoding(mut self, encoding: BoxFuture<'static, Result<C::Frame, Error>>, last: bool) -> Self {
        if let Some(inner) = &mut self.0 {
            let then = mem::replace(&mut inner.doing, Doing::Nothing);
            inner.doing = Doing::Encoding(encoding, last, Box::new(then));
        }
        self
    }

    /// The name of the call.
    pub(super) fn tag(&self) -> Option<&C::Tag> {
        self.0.as_ref().map(|inner| &inner.tag)
    }

    /// Tells this call from others that had the same name.
    pub(super) fn serial(&self) -> Option<u64> {
        self.0.as_ref().map(|inner| inner.serial)
    }
}

impl<C: Codec> Inner<C> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event<C::Frame>> {
        // Before any look at what may change meanwhile.
        self.ticket.register(cx.waker());
        if self.ticket.is_cancelled() {
            self.doing = Doing::Nothing;
            return Poll::Ready(Event::Dropped);
        }
        let event = match &mut self.doing {
            Doing::Asking(call) => match ready!(call.as_mut().poll(cx)) {
                Ok(Reply::Infer(response)) => Event::Whole(response),
                Ok(Reply::Stream(stream)) => {
                    self.doing = Doing::Streaming(stream, None);
                    return Poll::Ready(Event::Streams);
                }
                Ok(Reply::Report(_)) => Event::Failed(Error::internal("a report answers an inference")),
                Err(error) => Event::Failed(error),
            },
            Doing::Streaming(stream, ahead) => match Self::poll_stream(&self.ticket, stream, ahead, cx) {
                Poll::Ready(event @ Event::Chunk(_)) => return Poll::Ready(event),
                event => ready!(event),
            },
            Doing::Encoding(encoding, last, then) => {
                let event = Event::Encoded(ready!(encoding.as_mut().poll(cx)), *last);
                self.doing = mem::replace(&mut **then, Doing::Nothing);
                return Poll::Ready(event);
            }
            Doing::Nothing => Event::Dropped,
        };
        self.doing = Doing::Nothing;
        Poll::Ready(event)
    }

    /// Without credit the producer is asked once more: only so can the end be told from a pause. What comes then waits
    /// here, and meanwhile only the deadline is looked at.
    fn poll_stream(
        ticket: &Ticket<C::Note>,
        stream: &mut ReplyStream,
        ahead: &mut Option<InferResponse>,
        cx: &mut Context<'_>,
    ) -> Poll<Event<C::Frame>> {
        if ahead.is_none() {
            match ready!(Pin::new(&mut *stream).poll_next(cx)) {
                Some(Ok(Chunk::Tensors(response))) => *ahead = Some(response),
                Some(Err(error)) => return Poll::Ready(Event::Failed(error)),
                None => return Poll::Ready(Event::Over),
            }
        }
        if ticket.has_credit()
            && let Some(response) = ahead.take()
        {
            ticket.take_credit();
            return Poll::Ready(Event::Chunk(response));
        }
        stream.poll_late(cx).map(Event::Failed)
    }
}

impl<C: Codec> Future for Exchange<C> {
    type Output = (Self, Event<C::Frame>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let event = match &mut self.0 {
            Some(inner) => ready!(inner.poll(cx)),
            None => Event::Dropped,
        };
        Poll::Ready((Self(self.0.take()), event))
    }
}

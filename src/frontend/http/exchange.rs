//! One request until there is a response: what is polled, and what ends it early.

use super::{Asked, Response};
use crate::frontend::accept::{InFlight, Outgoing, Over, opened};
use futures_util::future::BoxFuture;
use http::Version;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::futures::OwnedNotified;

/// A request that is being answered.
pub(super) type Answering = BoxFuture<'static, Result<http::Response<Outgoing>, Infallible>>;

/// A request whose surface is known.
pub(super) struct Exchange {
    pub(super) asked: Asked,
    pub(super) in_flight: InFlight,
    /// The largest piece of a response, bytes.
    pub(super) piece: usize,
    /// The end of the tunnel that it may become.
    pub(super) over: Option<Over>,
}

// === impl Exchange ===

impl Exchange {
    /// Answered by `response`, or by `not_ready` when the process stops before.
    pub(super) fn answered_by(self, response: impl Future<Output = Response> + Send + 'static) -> Answering {
        let Self { asked, in_flight, piece, over } = self;
        let two = asked.version >= Version::HTTP_2;
        // Perhaps this very request. hyper looks for resets only while there is no answer, and a body that had come
        // whole would be answered: nothing is begun before hyper has looked (attack A13).
        let looked: Option<BoxFuture<'static, ()>> = match two && in_flight.activity().took_back() {
            true => Some(Box::pin(tokio::task::yield_now())),
            false => None,
        };
        let in_flight = Some(in_flight);
        Box::pin(Answered { response, asked, in_flight, piece, over, looked, two, begun: false, stopped: None })
    }
}

pin_project_lite::pin_project! {
    struct Answered<F> {
        #[pin]
        response: F,
        asked: Asked,
        in_flight: Option<InFlight>,
        piece: usize,
        over: Option<Over>,
        looked: Option<BoxFuture<'static, ()>>,
        // Over HTTP/2: polled by a task of its own.
        two: bool,
        begun: bool,
        // Only where the response is waited for.
        #[pin]
        stopped: Option<OwnedNotified>,
    }
}

impl<F: Future<Output = Response>> Future for Answered<F> {
    type Output = Result<http::Response<Outgoing>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(looked) = this.looked {
            ready!(looked.as_mut().poll(cx));
            *this.looked = None;
        }
        let activity = this.in_flight.as_ref().expect("a future is not polled after its end").activity();
        // The task of an HTTP/1.1 connection is woken when the process stops: looking is enough.
        let look = !*this.two || !*this.begun;
        *this.begun = true;
        let response = if look && activity.is_stopping() {
            this.asked.stopping()
        } else {
            match this.response.poll(cx) {
                Poll::Ready(response) => response,
                Poll::Pending if !*this.two => return Poll::Pending,
                Poll::Pending => {
                    if this.stopped.is_none() {
                        this.stopped.set(Some(activity.stopped()));
                    }
                    // Asked after there is somebody to be told.
                    if !activity.is_stopping()
                        && let Some(stopped) = this.stopped.as_pin_mut()
                    {
                        ready!(stopped.poll(cx));
                    }
                    this.asked.stopping()
                }
            }
        };
        if let Some(over) = this.over.take()
            && response.status().is_success()
        {
            opened(over);
        }
        let in_flight = this.in_flight.take().expect("a future is not polled after its end");
        Poll::Ready(Ok(this.asked.of_method(response).map(|body| Outgoing::new(body, *this.piece, in_flight))))
    }
}

//! The future of a layer that refuses a call, or keeps something until its reply is over.
//!
//! Knows nothing of what is kept: that is the layer's observer.

use crate::{
    call::{Observer, Reply, Watch},
    error::Error,
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

pin_project! {
    /// A call that was refused, or one that goes on below with a watch beside it.
    #[derive(Debug)]
    pub struct Guarded<F, O>
    where
        O: Observer,
    {
        #[pin]
        state: State<F, O>,
    }
}

pin_project! {
    #[project = Projected]
    #[derive(Debug)]
    enum State<F, O>
    where
        O: Observer,
    {
        // The error is gone once told.
        Refused { error: Option<Error> },
        // `inner` stands first, so that a dropped call lets go of its work before its guard. The watch is gone once the
        // reply has it.
        Below { #[pin] inner: F, watch: Option<Watch<O>> },
    }
}

impl<F, O: Observer> Guarded<F, O> {
    pub(super) fn refused(error: Error) -> Self {
        Self { state: State::Refused { error: Some(error) } }
    }

    pub(super) fn below(inner: F, watch: Option<Watch<O>>) -> Self {
        Self { state: State::Below { inner, watch } }
    }
}

impl<F, O> Future for Guarded<F, O>
where
    F: Future<Output = Result<Reply, Error>>,
    O: Observer + 'static,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Refused { error } => Poll::Ready(Err(error.take().unwrap_or(Error::Cancelled))),
            Projected::Below { inner, watch } => {
                let result = ready!(inner.poll(cx));
                Poll::Ready(match watch.take() {
                    Some(watch) => hand_over(result, watch),
                    None => result,
                })
            }
        }
    }
}

/// Gives `watch` to a reply, or tells it of the failure.
pub(super) fn hand_over<O>(result: Result<Reply, Error>, mut watch: Watch<O>) -> Result<Reply, Error>
where
    O: Observer + 'static,
{
    match result {
        Ok(reply) => Ok(reply.watched_by(watch)),
        Err(error) => {
            watch.failed(&error);
            Err(error)
        }
    }
}

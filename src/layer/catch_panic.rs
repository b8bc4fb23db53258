//! A panic is an internal error of one call, not a lost connection.
//!
//! Stands below `Trace` and `Metrics`, so that they count it like any other error. It does not know what panicked; panics
//! on inference threads are the scheduler's to catch.

use crate::{
    call::{Call, Reply},
    error::Error,
};
use pin_project_lite::pin_project;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};
use tower::{Layer, Service};

/// Makes [`CatchPanic`].
#[derive(Clone, Copy, Debug)]
pub struct CatchPanicLayer;

/// Turns a panic below into [`Error::Internal`].
#[derive(Clone, Debug)]
pub struct CatchPanic<S> {
    inner: S,
}

pin_project! {
    /// The future of [`CatchPanic`].
    #[derive(Debug)]
    pub struct Caught<F> {
        // Gone after a panic: what unwound half-way is not polled again.
        #[pin]
        inner: Option<F>,
        panic: Option<Error>,
    }
}

// === impl CatchPanic ===

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic { inner }
    }
}

impl<S, P, I> Service<Call<P, I>> for CatchPanic<S>
where
    S: Service<Call<P, I>, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Caught<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<P, I>) -> Self::Future {
        // Unwind safe: what the services below have of their own are handles, which no call changes.
        match catch_unwind(AssertUnwindSafe(|| self.inner.call(call))) {
            Ok(inner) => Caught { inner: Some(inner), panic: None },
            Err(panic) => Caught { inner: None, panic: Some(error(panic.as_ref())) },
        }
    }
}

// === impl Caught ===

impl<F> Future for Caught<F>
where
    F: Future<Output = Result<Reply, Error>>,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(this.panic.take().unwrap_or(Error::Cancelled)));
        };
        match catch_unwind(AssertUnwindSafe(|| inner.poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                // Let go of what the call held now, and survive a second panic of a destructor.
                let _ = catch_unwind(AssertUnwindSafe(|| this.inner.set(None)));
                Poll::Ready(Err(error(panic.as_ref())))
            }
        }
    }
}

/// The error for the log; clients read "internal error".
fn error(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown kind");
    Error::internal(format!("panic: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::fixture::{Below, Ears, decoded, infer, whole};
    use crate::{call::End, call::Watch};
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panic_while_polling_is_an_internal_error_of_this_call() {
        let below = Below::new(|_| async { panic!("secret") });
        let error = CatchPanicLayer.layer(below).oneshot(decoded("a", infer())).await.unwrap_err();
        assert_eq!(error.to_string(), "internal error");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "panic: secret");
    }

    #[tokio::test]
    async fn a_panic_before_there_is_a_future_is_the_same() {
        let below = Below::answering(|| panic!("{}", 1 + 1));
        let error = CatchPanicLayer.layer(below).oneshot(decoded("a", infer())).await.unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "panic: 2");
    }

    #[tokio::test]
    async fn what_the_call_held_is_let_go_at_once() {
        let ears = Ears::default();
        let held = ears.clone();
        let below = Below::new(move |_| {
            let watch = Watch::new(held.clone());
            async move {
                let _watch = watch;
                tokio::task::yield_now().await;
                panic!("late")
            }
        });
        let mut service = CatchPanicLayer.layer(below);
        let mut future = Box::pin(service.call(decoded("a", infer())));
        assert!(future.as_mut().await.is_err());
        assert_eq!(ears.heard(), [End::Abandoned]);
    }

    #[tokio::test]
    async fn other_answers_pass() {
        let below = Below::answering(|| Ok(whole()));
        assert!(CatchPanicLayer.layer(below).oneshot(decoded("a", infer())).await.is_ok());
    }
}

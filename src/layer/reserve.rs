//! Charges what only the body tells: calls to a model, rows, bytes, elements, compute time.
//!
//! Stands below [`authorize`](super::authorize), so that nobody is charged for, or hears of, a model that is not theirs.
//! What a call really came to is settled when it is over; the charge knows how.

use super::rate_limit::{Charged, Charging, go_on};
use crate::{
    call::{Decoded, Reply},
    error::Error,
    limit::{Ask, RateLimiter},
};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower::{Layer, Service};

/// Makes [`Reserve`].
#[derive(Debug)]
pub struct ReserveLayer<L = RateLimiter> {
    limiter: Arc<L>,
}

/// Refuses work beyond a quota.
#[derive(Debug)]
pub struct Reserve<S, L = RateLimiter> {
    inner: S,
    limiter: Arc<L>,
}

// === impl Reserve ===

impl<L> ReserveLayer<L> {
    /// Charges calls with `limiter`.
    pub const fn new(limiter: Arc<L>) -> Self {
        Self { limiter }
    }
}

impl<S, L> Layer<S> for ReserveLayer<L> {
    type Service = Reserve<S, L>;

    fn layer(&self, inner: S) -> Self::Service {
        Reserve { inner, limiter: Arc::clone(&self.limiter) }
    }
}

impl<S: Clone, L> Clone for Reserve<S, L> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), limiter: Arc::clone(&self.limiter) }
    }
}

impl<S, L> Service<Decoded> for Reserve<S, L>
where
    S: Service<Decoded, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
    L: Charging,
{
    type Response = Reply;
    type Error = Error;
    type Future = Charged<S::Future, L::Charge>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Decoded) -> Self::Future {
        let ask = Ask { identity: &call.sender, head: &call.head, operation: Some(&call.input) };
        go_on(self.limiter.charge(ask), &mut self.inner, call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::End,
        layer::fixture::{Below, Ears, decoded, infer, whole},
        limit::Outcome,
    };
    use tower::ServiceExt;

    /// Charges every call that it knows the body of.
    #[derive(Default)]
    struct Till(Ears);

    impl Charging for Till {
        type Charge = Ears;

        fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome<Ears> {
            assert!(ask.operation.is_some_and(|operation| operation.model().is_some()));
            Outcome::Charged(self.0.clone())
        }
    }

    #[tokio::test]
    async fn a_call_is_charged_with_its_body_known_and_the_charge_hears_the_end() {
        let till = Arc::new(Till::default());
        let service = ReserveLayer::new(Arc::clone(&till)).layer(Below::answering(|| Ok(whole())));
        service.oneshot(decoded("a", infer())).await.unwrap();
        assert_eq!(till.0.heard(), [End::Complete]);
    }
}

//! Charges a call to its identity before its body is read, and gives the charge back if we refuse the call later.
//!
//! Does not know policies or buckets, nor when a charge is given back: the [`Charge`] hears the end and decides
//! (contract 10 section 2). What only the body tells is charged by [`reserve`](super::reserve).

use super::Guarded;
use crate::{
    call::{Call, Identity, Observer, Reply, Watch},
    current::Current,
    error::Error,
    limit::{Ask, Charge, Outcome, RateLimiter},
};
use futures_util::future::{BoxFuture, Either};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower::{Layer, Service};

/// Something that charges calls; [`RateLimiter`], except in tests.
pub trait Charging: Send + Sync + 'static {
    /// What was charged; hears how the call ends.
    type Charge: Observer + 'static;

    /// Charges one call.
    fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome<Self::Charge>;
}

impl Charging for RateLimiter {
    type Charge = Charge;

    fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome<Charge> {
        RateLimiter::charge(self, ask)
    }
}

/// The future of a call that is charged. Boxed only where a limiter has to ask another process.
pub type Charged<F, C> = Either<Guarded<F, C>, BoxFuture<'static, Result<Reply, Error>>>;

/// One that may be exchanged for another while calls are made. A charge belongs to the one that made it.
impl<L: Charging> Charging for Current<L> {
    type Charge = L::Charge;

    fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome<Self::Charge> {
        self.with(|limiter| limiter.charge(ask))
    }
}

/// Makes [`RateLimit`].
#[derive(Debug)]
pub struct RateLimitLayer<L = RateLimiter> {
    limiter: Arc<L>,
}

/// Refuses calls of an identity that is over its rate.
#[derive(Debug)]
pub struct RateLimit<S, L = RateLimiter> {
    inner: S,
    limiter: Arc<L>,
}

// === impl RateLimit ===

impl<L> RateLimitLayer<L> {
    /// Charges calls with `limiter`.
    pub const fn new(limiter: Arc<L>) -> Self {
        Self { limiter }
    }
}

impl<S, L> Layer<S> for RateLimitLayer<L> {
    type Service = RateLimit<S, L>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, limiter: Arc::clone(&self.limiter) }
    }
}

impl<S: Clone, L> Clone for RateLimit<S, L> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), limiter: Arc::clone(&self.limiter) }
    }
}

impl<S, L, I> Service<Call<Arc<Identity>, I>> for RateLimit<S, L>
where
    S: Service<Call<Arc<Identity>, I>, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
    I: Send + 'static,
    L: Charging,
{
    type Response = Reply;
    type Error = Error;
    type Future = Charged<S::Future, L::Charge>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<Arc<Identity>, I>) -> Self::Future {
        let ask = Ask { identity: &call.sender, head: &call.head, operation: None };
        go_on(self.limiter.charge(ask), &mut self.inner, call)
    }
}

/// What becomes of `call`, given what came of charging it.
pub(super) fn go_on<S, C, P, I>(outcome: Outcome<C>, inner: &mut S, call: Call<P, I>) -> Charged<S::Future, C>
where
    S: Service<Call<P, I>, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
    C: Observer + 'static,
    Call<P, I>: Send + 'static,
{
    let below = match outcome {
        Outcome::Free => Guarded::below(inner.call(call), None),
        Outcome::Charged(charge) => {
            // Watched before it goes down: a panic below is an end too.
            let watch = Watch::new(charge);
            Guarded::below(inner.call(call), Some(watch))
        }
        Outcome::Refused(error) => Guarded::refused(error),
        Outcome::Later(decision) => {
            let mut inner = inner.clone();
            return Either::Right(Box::pin(async move {
                let watch = decision.await?.map(Watch::new);
                Guarded::below(inner.call(call), watch).await
            }));
        }
    };
    Either::Left(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::End,
        error::{Cap, Code, Limit},
        layer::fixture::{Below, Ears, chunk, decoded, infer, stream, streamed, whole},
    };
    use std::{sync::Mutex, time::Duration};
    use tower::ServiceExt;

    /// Refuses the identity `greedy`, charges all others but `free`.
    #[derive(Default)]
    struct Till(Ears);

    impl Charging for Till {
        type Charge = Ears;

        fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome<Ears> {
            assert!(ask.operation.is_none(), "the body is not known here");
            let refusal = || Error::RateLimited { retry_after: Duration::from_secs(3), cap: Cap::Calls };
            let charged = Ok(Some(self.0.clone()));
            match &**ask.identity.id() {
                "greedy" => Outcome::Refused(refusal()),
                "free" => Outcome::Free,
                "remote" => Outcome::Later(Box::pin(async { charged })),
                "remote and greedy" => Outcome::Later(Box::pin(async move { Err(refusal()) })),
                _ => Outcome::Charged(self.0.clone()),
            }
        }
    }

    fn service(below: Below) -> (RateLimit<Below, Till>, Ears) {
        let till = Till::default();
        let ears = till.0.clone();
        (RateLimitLayer::new(Arc::new(till)).layer(below), ears)
    }

    #[tokio::test]
    async fn over_the_rate_a_call_goes_no_further_and_hears_when_to_come_back() {
        let (service, _) = service(Below::answering(|| panic!("called")));
        let error = service.oneshot(decoded("greedy", infer())).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    }

    #[tokio::test]
    async fn a_charge_hears_how_the_call_ended() {
        let (served, ears) = service(Below::answering(|| Ok(whole())));
        served.oneshot(decoded("a", infer())).await.unwrap();
        assert_eq!(ears.heard(), [End::Complete]);

        let (refused, ears) = service(Below::answering(|| Err(Error::Overloaded { limit: Limit::Memory })));
        refused.oneshot(decoded("a", infer())).await.unwrap_err();
        assert_eq!(ears.heard(), [End::Failed(Code::Overloaded)]);

        let (mut dropped, ears) = service(Below::silent());
        drop(dropped.call(decoded("a", infer())));
        assert_eq!(ears.heard(), [End::Abandoned]);
    }

    #[tokio::test]
    async fn the_charge_of_a_stream_lasts_as_long_as_the_stream() {
        let (sender, reply) = stream();
        let reply = Mutex::new(Some(reply));
        let (service, ears) = service(Below::answering(move || Ok(reply.lock().unwrap().take().unwrap())));
        let mut stream = streamed(service.oneshot(decoded("a", infer())).await.unwrap());
        sender.send(Ok(chunk())).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        assert_eq!(ears.heard(), []);
        drop(stream);
        assert_eq!(ears.heard(), [End::Abandoned]);
    }

    #[tokio::test]
    async fn what_no_policy_matches_is_not_charged() {
        let (service, ears) = service(Below::answering(|| Ok(whole())));
        service.oneshot(decoded("free", infer())).await.unwrap();
        assert_eq!(ears.heard(), []);
    }

    #[tokio::test]
    async fn a_charge_that_is_decided_elsewhere_is_one_like_any_other() {
        let (remote, ears) = service(Below::answering(|| Ok(whole())));
        remote.oneshot(decoded("remote", infer())).await.unwrap();
        assert_eq!(ears.heard(), [End::Complete]);
        let (remote, _) = service(Below::answering(|| panic!("called")));
        let error = remote.oneshot(decoded("remote and greedy", infer())).await.unwrap_err();
        assert_eq!(error.code(), Code::RateLimited);
    }
}

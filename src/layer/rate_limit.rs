//! Charges a call to its identity, and gives the charge back if we refuse the call later.
//!
//! Does not know policies or buckets, nor when a charge is given back: the [`Charge`] hears the end and decides
//! (contract 10 section 2).

use super::Guarded;
use crate::{
    call::{Call, Facts, Identity, Intent, Observer, Reply, Watch},
    error::Error,
    limit::{Charge, RateLimiter},
};
use arc_swap::ArcSwap;
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower::{Layer, Service};

/// Something that charges calls; [`RateLimiter`], except in tests.
pub trait Charging: Send + Sync + 'static {
    /// What was charged; hears how the call ends.
    type Charge: Observer + 'static;

    /// Charges one call at `now`; `None` if no policy matches.
    ///
    /// # Errors
    ///
    /// How long until one would be accepted.
    fn charge(
        &self,
        identity: &Arc<Identity>,
        intent: Intent,
        facts: &Arc<Facts>,
        now: Instant,
    ) -> Result<Option<Self::Charge>, Duration>;
}

impl Charging for RateLimiter {
    type Charge = Charge;

    fn charge(
        &self,
        identity: &Arc<Identity>,
        intent: Intent,
        facts: &Arc<Facts>,
        now: Instant,
    ) -> Result<Option<Charge>, Duration> {
        RateLimiter::charge(self, identity, intent, facts, now)
    }
}

/// One that may be exchanged for another while calls are made. A charge belongs to the one that made it.
impl<L: Charging> Charging for ArcSwap<L> {
    type Charge = L::Charge;

    fn charge(
        &self,
        identity: &Arc<Identity>,
        intent: Intent,
        facts: &Arc<Facts>,
        now: Instant,
    ) -> Result<Option<Self::Charge>, Duration> {
        self.load().charge(identity, intent, facts, now)
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
    S: Service<Call<Arc<Identity>, I>, Response = Reply, Error = Error>,
    L: Charging,
{
    type Response = Reply;
    type Error = Error;
    type Future = Guarded<S::Future, L::Charge>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<Arc<Identity>, I>) -> Self::Future {
        let head = &call.head;
        match self.limiter.charge(&call.sender, head.intent, &head.facts, head.received) {
            Ok(charge) => Guarded::below(self.inner.call(call), charge.map(Watch::new)),
            Err(retry_after) => Guarded::refused(Error::RateLimited { retry_after }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::End,
        error::Code,
        layer::fixture::{Below, Ears, chunk, decoded, infer, stream, streamed, whole},
    };
    use std::sync::Mutex;
    use tower::ServiceExt;

    /// Refuses the identity `greedy`, charges all others but `free`.
    #[derive(Default)]
    struct Till(Ears);

    impl Charging for Till {
        type Charge = Ears;

        fn charge(
            &self,
            identity: &Arc<Identity>,
            _: Intent,
            _: &Arc<Facts>,
            _: Instant,
        ) -> Result<Option<Ears>, Duration> {
            match &**identity.id() {
                "greedy" => Err(Duration::from_secs(3)),
                "free" => Ok(None),
                _ => Ok(Some(self.0.clone())),
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

        let (refused, ears) = service(Below::answering(|| Err(Error::Overloaded { what: "memory" })));
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
}

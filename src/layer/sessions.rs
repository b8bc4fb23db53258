//! Bounds the WebSockets and streams that one identity has open (`limits.connections.per_identity`).
//!
//! The opening of each is a call of its own, [`Inspect::Session`]; its place is kept in the [`Facts`](crate::call::Facts)
//! of that call, which the session keeps for as long as it lives. What a session asks then is no business of this layer.

use super::{Guarded, per_identity::PerIdentity};
use crate::{
    call::{Decoded, Inspect, Observer, Operation, Place, Reply},
    error::{Cap, Error},
};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, Service};

/// A session ends when it ends: the least that the protocols can say (contract 10 section 2).
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Makes [`Sessions`].
#[derive(Clone, Debug)]
pub struct SessionsLayer {
    places: Option<Arc<PerIdentity>>,
}

/// Refuses an identity that has as many sessions as it may have.
#[derive(Clone, Debug)]
pub struct Sessions<S> {
    inner: S,
    places: Option<Arc<PerIdentity>>,
}

/// One place. Dropping it gives it back.
#[derive(Debug)]
struct Taken {
    places: Arc<PerIdentity>,
    identity: Arc<str>,
}

/// Nothing is watched: a place outlives its call.
#[derive(Debug)]
pub struct Nothing;

impl Observer for Nothing {}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.give_back(Arc::clone(&self.identity));
    }
}

impl SessionsLayer {
    /// At most `per_identity` sessions of one identity; `None`: any number.
    pub fn new(per_identity: Option<usize>) -> Self {
        Self { places: per_identity.map(|limit| Arc::new(PerIdentity::new(limit))) }
    }
}

impl<S> Layer<S> for SessionsLayer {
    type Service = Sessions<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Sessions { inner, places: self.places.clone() }
    }
}

impl<S> Service<Decoded> for Sessions<S>
where
    S: Service<Decoded, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Guarded<S::Future, Nothing>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Decoded) -> Self::Future {
        if let (Some(places), Operation::Inspect(Inspect::Session)) = (&self.places, &call.input) {
            let identity = call.sender.id();
            if !places.take(identity) {
                return Guarded::refused(Error::RateLimited { retry_after: RETRY_AFTER, cap: Cap::Sessions });
            }
            let taken = Taken { places: Arc::clone(places), identity: Arc::clone(identity) };
            // One call opens one session; a second place would be given back at once.
            let _ = call.head.facts.place.set(Place::new(taken));
        }
        Guarded::below(self.inner.call(call), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Code,
        layer::fixture::{Below, decoded, infer, inspect, whole},
    };
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_place_is_held_as_long_as_the_facts_and_by_openings_only() {
        let layer = SessionsLayer::new(Some(1));
        let service = || layer.layer(Below::answering(|| Ok(whole())));
        let opening = decoded("a", inspect(Inspect::Session));
        let facts = Arc::clone(&opening.head.facts);
        service().oneshot(opening).await.unwrap();
        for other in [infer(), inspect(Inspect::Caller)] {
            service().oneshot(decoded("a", other)).await.unwrap();
        }
        service().oneshot(decoded("b", inspect(Inspect::Session))).await.unwrap();
        let error = service().oneshot(decoded("a", inspect(Inspect::Session))).await.unwrap_err();
        assert!(matches!(error, Error::RateLimited { cap: Cap::Sessions, .. }));
        assert_eq!(error.code(), Code::RateLimited);
        drop(facts);
        assert!(layer.places.as_ref().unwrap().is_empty());
        service().oneshot(decoded("a", inspect(Inspect::Session))).await.unwrap();
    }

    #[tokio::test]
    async fn an_opening_that_fails_holds_nothing() {
        let layer = SessionsLayer::new(Some(1));
        let service = layer.layer(Below::answering(|| Err(Error::ShuttingDown)));
        service.oneshot(decoded("a", inspect(Inspect::Session))).await.unwrap_err();
        assert!(layer.places.as_ref().unwrap().is_empty());
    }
}

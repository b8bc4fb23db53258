//! Proves who is calling. Everything below works with an `Identity`.
//!
//! Does not know how a claim is proven, nor what the identity may do.

use crate::{
    auth::Authenticator,
    call::{Call, Credentials, Identity, Peer, Reply},
    error::Error,
};
use futures_util::future::{Either, Ready, ready};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower::{Layer, Service};

/// Something that proves claims; [`Authenticator`], except in tests.
pub trait Verify: Send + Sync + 'static {
    /// Proves `credentials` sent by `peer`, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Unauthenticated`] if they prove nothing.
    fn verify(&self, peer: &Peer, credentials: &Credentials) -> Result<Arc<Identity>, Error>;
}

impl Verify for Authenticator {
    fn verify(&self, peer: &Peer, credentials: &Credentials) -> Result<Arc<Identity>, Error> {
        Authenticator::verify(self, peer, credentials)
    }
}

/// Makes [`Authenticate`].
#[derive(Debug)]
pub struct AuthenticateLayer<V = Authenticator> {
    verifier: Arc<V>,
}

/// Turns `Call<Credentials, _>` into `Call<Arc<Identity>, _>`.
#[derive(Debug)]
pub struct Authenticate<S, V = Authenticator> {
    inner: S,
    verifier: Arc<V>,
}

// === impl Authenticate ===

impl<V> AuthenticateLayer<V> {
    /// Proves claims with `verifier`.
    pub const fn new(verifier: Arc<V>) -> Self {
        Self { verifier }
    }
}

impl<S, V> Layer<S> for AuthenticateLayer<V> {
    type Service = Authenticate<S, V>;

    fn layer(&self, inner: S) -> Self::Service {
        Authenticate { inner, verifier: Arc::clone(&self.verifier) }
    }
}

impl<S: Clone, V> Clone for Authenticate<S, V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), verifier: Arc::clone(&self.verifier) }
    }
}

impl<S, V, I> Service<Call<Credentials, I>> for Authenticate<S, V>
where
    S: Service<Call<Arc<Identity>, I>, Response = Reply, Error = Error>,
    V: Verify,
{
    type Response = Reply;
    type Error = Error;
    type Future = Either<S::Future, Ready<Result<Reply, Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<Credentials, I>) -> Self::Future {
        match self.verifier.verify(&call.head.peer, &call.sender) {
            Ok(identity) => {
                // Only this layer sets it, once per call, so it cannot be taken.
                let _ = call.head.facts.identity.set(Arc::clone(&identity));
                Either::Left(self.inner.call(call.identified(identity)))
            }
            Err(error) => Either::Right(ready(Err(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::fixture::{Below, identity, inbound, infer, whole};
    use tower::ServiceExt;

    struct Doorman;

    impl Verify for Doorman {
        fn verify(&self, _: &Peer, credentials: &Credentials) -> Result<Arc<Identity>, Error> {
            match credentials {
                Credentials::ApiKey(key) => Ok(identity(key)),
                _ => Err(Error::Unauthenticated),
            }
        }
    }

    #[tokio::test]
    async fn who_proves_nothing_goes_no_further() {
        let below = Below::answering(|| panic!("called"));
        let service = AuthenticateLayer::new(Arc::new(Doorman)).layer(below);
        assert!(matches!(service.oneshot(inbound(infer())).await, Err(Error::Unauthenticated)));
    }

    #[tokio::test]
    async fn a_proven_identity_is_a_fact_of_the_call() {
        let service = AuthenticateLayer::new(Arc::new(Doorman)).layer(Below::answering(|| Ok(whole())));
        let mut call = inbound(infer());
        call.sender = Credentials::ApiKey("web".into());
        let facts = Arc::clone(&call.head.facts);
        assert!(service.oneshot(call).await.is_ok());
        assert_eq!(&**facts.identity.get().unwrap().id(), "web");
    }
}

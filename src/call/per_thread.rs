//! A service that many calls share without a lock and without a clone for each.

use std::{
    cell::Cell,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use thread_local::ThreadLocal;
use tower::Service;

/// A service, and a clone of it on each thread that calls it. Cloning this is cloning an `Arc`.
///
/// A service is called through `&mut`: one that is shared takes a lock, and one that is cloned for each call takes two
/// atomic operations for each handle in it, which was a tenth of what the stack costs.
pub struct PerThread<S: Send>(Arc<Shared<S>>);

struct Shared<S: Send> {
    service: S,
    clones: ThreadLocal<Cell<Option<S>>>,
}

impl<S: Send> PerThread<S> {
    /// Shares `service`.
    pub fn new(service: S) -> Self {
        Self(Arc::new(Shared { service, clones: ThreadLocal::new() }))
    }
}

impl<S: Send> Clone for PerThread<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Clone + Send> PerThread<S> {
    /// Hands `work` the clone of this thread.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut S) -> T) -> T {
        let own = self.0.clones.get_or_default();
        // Taken out while it is used, so that a call from within a call, and one after a panic, find a new one.
        let mut service = own.take().unwrap_or_else(|| self.0.service.clone());
        let made = work(&mut service);
        own.set(Some(service));
        made
    }
}

impl<S, R> Service<R> for PerThread<S>
where
    S: Service<R> + Clone + Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.with(|service| service.poll_ready(cx))
    }

    fn call(&mut self, request: R) -> S::Future {
        self.with(|service| service.call(request))
    }
}

impl<S: Send> fmt::Debug for PerThread<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerThread")
    }
}

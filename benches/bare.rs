//! A gateway without layers: what a call cannot do without.

use futures_util::future::BoxFuture;
use sluicegate::{
    call::{Call, Gateway, Identity, Inbound, Reply},
    error::Error,
    model::Router,
};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower::Service;

/// A gateway whose calls are all from `identity`: their bodies are read, and `router` runs them.
pub(crate) fn gateway(router: Router, identity: Arc<Identity>) -> Gateway {
    Gateway::new(Bare { router, identity })
}

/// A stack without layers.
#[derive(Clone)]
struct Bare {
    router: Router,
    identity: Arc<Identity>,
}

impl Service<Inbound> for Bare {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Inbound) -> Self::Future {
        let (mut router, identity) = (self.router.clone(), Arc::clone(&self.identity));
        Box::pin(async move {
            let Call { mut head, input, .. } = call;
            head.deadline = head.received + Duration::from_secs(60);
            router.call(Call { head, sender: identity, input: input.await? }).await
        })
    }
}

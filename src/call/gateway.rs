//! The stack behind one pointer: what front-ends hold and clone.

use super::{Inbound, Reply};
use crate::error::Error;
use futures_util::future::BoxFuture;
use std::{fmt, sync::Arc};
use tower::Service;

/// The stack behind one pointer. Cloning it is cloning an `Arc`.
#[derive(Clone)]
pub struct Gateway(Arc<dyn Dispatch>);

trait Dispatch: Send + Sync {
    fn dispatch(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>>;
}

struct Erased<S>(S);

impl<S> Dispatch for Erased<S>
where
    S: Service<Inbound, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn dispatch(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>> {
        // A fresh clone per call, polled ready only now that there is a call.
        let mut stack = self.0.clone();
        Box::pin(async move {
            std::future::poll_fn(|cx| stack.poll_ready(cx)).await?;
            stack.call(call).await
        })
    }
}

impl Gateway {
    /// Erases the type of `stack`.
    pub fn new<S>(stack: S) -> Self
    where
        S: Service<Inbound, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        Self(Arc::new(Erased(stack)))
    }

    /// Sends `call` through the stack. Dropping the future cancels the call.
    ///
    /// # Errors
    ///
    /// Whatever a layer or the back end answers.
    pub fn call(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>> {
        self.0.dispatch(call)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway")
    }
}

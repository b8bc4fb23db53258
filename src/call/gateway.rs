//! The stack behind one pointer: what front-ends hold and clone.

use super::{Inbound, PerThread, Reply};
use crate::error::Error;
use futures_util::future::BoxFuture;
use std::{
    fmt,
    future::ready,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tower::Service;

/// The stack behind one pointer. Cloning it is cloning an `Arc`.
#[derive(Clone)]
pub struct Gateway(Arc<dyn Dispatch>);

trait Dispatch: Send + Sync {
    fn dispatch(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>>;
}

impl<S> Dispatch for PerThread<S>
where
    S: Service<Inbound, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn dispatch(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>> {
        self.with(|stack| -> BoxFuture<'static, _> {
            // Every layer is always ready (invariant 4), so there is nobody to wake.
            match stack.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => Box::pin(stack.call(call)),
                Poll::Ready(Err(error)) => Box::pin(ready(Err(error))),
                Poll::Pending => Box::pin(ready(Err(Error::internal("a layer waits before there is a call")))),
            }
        })
    }
}

impl Gateway {
    /// Erases the type of `stack`.
    pub fn new<S>(stack: S) -> Self
    where
        S: Service<Inbound, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(Arc::new(PerThread::new(stack)))
    }

    /// Sends `call` through the stack, at once as far as its body. Dropping the future cancels the call.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Call, CallId, Credentials, Head, Inspect, Intent, Operation, Peer, Pending, Report, Surface};
    use std::{
        collections::VecDeque,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    /// Ready as it is told, and counted.
    #[derive(Default)]
    struct Counted {
        ready: Arc<Mutex<VecDeque<Poll<()>>>>,
        made: Arc<AtomicUsize>,
    }

    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.made.fetch_add(1, Ordering::Relaxed);
            Self { ready: Arc::clone(&self.ready), made: Arc::clone(&self.made) }
        }
    }

    impl Service<Inbound> for Counted {
        type Response = Reply;
        type Error = Error;
        type Future = std::future::Ready<Result<Reply, Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            self.ready.lock().unwrap().pop_front().unwrap_or(Poll::Ready(())).map(Ok)
        }

        fn call(&mut self, _: Inbound) -> Self::Future {
            ready(Ok(Reply::Report(Report::Models(Vec::new()))))
        }
    }

    fn call() -> Inbound {
        let address = ([127, 0, 0, 1], 1).into();
        let peer = Arc::new(Peer::new(address, address));
        let head = Head::new(CallId::make(), Surface::Rest, Intent::Inspect, peer);
        Call { head, sender: Credentials::None, input: Pending::ready(Operation::Inspect(Inspect::Models)) }
    }

    #[tokio::test]
    async fn a_thread_has_one_clone_for_all_its_calls() {
        let stack = Counted::default();
        let made = Arc::clone(&stack.made);
        let gateway = Gateway::new(stack);
        for _ in 0..10 {
            gateway.call(call()).await.unwrap();
        }
        assert_eq!(made.load(Ordering::Relaxed), 1);
        std::thread::scope(|scope| scope.spawn(|| drop(gateway.call(call()))).join()).unwrap();
        assert_eq!(made.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_layer_that_waits_before_there_is_a_call_is_a_bug() {
        let stack = Counted::default();
        stack.ready.lock().unwrap().push_back(Poll::Pending);
        let gateway = Gateway::new(stack);
        assert!(matches!(gateway.call(call()).await, Err(Error::Internal(_))));
        assert!(gateway.call(call()).await.is_ok());
    }
}

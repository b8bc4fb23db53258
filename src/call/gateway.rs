//! The stack behind one pointer: what front-ends hold and clone.

use super::{Inbound, Reply};
use crate::error::Error;
use futures_util::future::BoxFuture;
use std::{
    cell::Cell,
    fmt,
    future::ready,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use thread_local::ThreadLocal;
use tower::Service;

/// The stack behind one pointer. Cloning it is cloning an `Arc`.
#[derive(Clone)]
pub struct Gateway(Arc<dyn Dispatch>);

trait Dispatch: Send + Sync {
    fn dispatch(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>>;
}

/// A stack, and a clone of it on each thread that calls it.
///
/// A service is called through `&mut`: one that is shared takes a lock, and one that is cloned for each call takes two
/// atomic operations for each handle in it, which was a tenth of what the stack costs.
struct Erased<S: Send> {
    stack: S,
    clones: ThreadLocal<Cell<Option<S>>>,
}

impl<S> Dispatch for Erased<S>
where
    S: Service<Inbound, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn dispatch(&self, call: Inbound) -> BoxFuture<'static, Result<Reply, Error>> {
        let own = self.clones.get_or_default();
        // Taken out while it is used, so that a call from within a call, and one after a panic, find a new one.
        let mut stack = own.take().unwrap_or_else(|| self.stack.clone());
        // Every layer is always ready (invariant 4), so there is nobody to wake.
        let reply: BoxFuture<'static, _> = match stack.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Box::pin(stack.call(call)),
            Poll::Ready(Err(error)) => Box::pin(ready(Err(error))),
            Poll::Pending => Box::pin(ready(Err(Error::internal("a layer waits before there is a call")))),
        };
        own.set(Some(stack));
        reply
    }
}

impl Gateway {
    /// Erases the type of `stack`.
    pub fn new<S>(stack: S) -> Self
    where
        S: Service<Inbound, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(Arc::new(Erased { stack, clones: ThreadLocal::new() }))
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

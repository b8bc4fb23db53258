//! Calls to send and services to send them to, for the tests of layers and of the stack.

use crate::{
    call::{
        Call, CallId, Chunk, Credentials, End, Head, Identity, Inbound, InferRequest, InferResponse, Inspect, Intent,
        ModelKey, ModelRef, Observer, Operation, Peer, Pending, Reply, ReplyStream, Report, Scope, ServerReport,
        Surface, Timing,
    },
    error::Error,
};
use futures_util::future::BoxFuture;
use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::sync::mpsc::Sender;
use tower::Service;

/// A service that answers every call, of whatever stage, with what its closure makes of the head.
#[derive(Clone)]
pub(crate) struct Below(Arc<dyn Fn(Head) -> BoxFuture<'static, Result<Reply, Error>> + Send + Sync>);

impl Below {
    pub(crate) fn new<F>(answer: impl Fn(Head) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Reply, Error>> + Send + 'static,
    {
        Self(Arc::new(move |head| Box::pin(answer(head))))
    }

    pub(crate) fn answering(answer: impl Fn() -> Result<Reply, Error> + Send + Sync + 'static) -> Self {
        Self::new(move |_| std::future::ready(answer()))
    }

    pub(crate) fn silent() -> Self {
        Self::new(|_| std::future::pending())
    }
}

impl<P, I> Service<Call<P, I>> for Below {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call<P, I>) -> Self::Future {
        (self.0)(call.head)
    }
}

/// Remembers the ends that it hears.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ears(Arc<Mutex<Vec<End>>>);

impl Ears {
    pub(crate) fn heard(&self) -> Vec<End> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Ears {
    fn end(&mut self, end: End) {
        self.0.lock().unwrap().push(end);
    }
}

pub(crate) fn head(intent: Intent) -> Head {
    let address = "127.0.0.1:40000".parse().unwrap();
    let peer = Peer::new(address, "127.0.0.1:8080".parse().unwrap());
    Head::new(CallId::make(), Surface::Rest, intent, Arc::new(peer))
}

pub(crate) fn inbound(operation: Operation) -> Inbound {
    let intent = if matches!(operation, Operation::Infer(_)) { Intent::Infer } else { Intent::Inspect };
    Call { head: head(intent), sender: Credentials::None, input: Pending::ready(operation) }
}

pub(crate) fn infer() -> Operation {
    Operation::Infer(InferRequest::new(ModelRef { name: "digits".into(), version: None }, Vec::new()))
}

pub(crate) fn identity(id: &str) -> Arc<Identity> {
    Arc::new(Identity::proven(id, Vec::new(), Scope::Granted))
}

/// A call of `identity` whose body is read.
pub(crate) fn decoded(id: &str, operation: Operation) -> crate::call::Decoded {
    let intent = if matches!(operation, Operation::Infer(_)) { Intent::Infer } else { Intent::Inspect };
    Call { head: head(intent), sender: identity(id), input: operation }
}

pub(crate) fn inspect(inspect: Inspect) -> Operation {
    Operation::Inspect(inspect)
}

pub(crate) fn whole() -> Reply {
    Reply::Report(Report::Server(ServerReport { name: "sluicegate", version: "0", extensions: &[] }))
}

pub(crate) fn stream() -> (Sender<Result<Chunk, Error>>, Reply) {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    (sender, Reply::Stream(ReplyStream::new(receiver)))
}

pub(crate) fn chunk() -> Chunk {
    Chunk::Tensors(InferResponse {
        model: key("digits"),
        client_id: None,
        outputs: Vec::new(),
        parameters: Vec::new(),
        timing: Timing::default(),
    })
}

pub(crate) fn key(name: &str) -> Arc<ModelKey> {
    Arc::new(ModelKey { name: name.into(), version: "1".into() })
}

/// The stream of `reply`.
pub(crate) fn streamed(reply: Reply) -> ReplyStream {
    match reply {
        Reply::Stream(stream) => stream,
        whole => panic!("expected a stream, found {whole:?}"),
    }
}

//! The service at the bottom of the stack: a decoded call goes to its model, a question is answered.
//!
//! Everything up to the submission happens in `call`; the future only waits for the answer. Dropping
//! it closes the job's channel, which is all that cancelling takes.

use super::{Model, Repository, raw, signature};
use crate::{
    call::{
        Call, Decoded, Head, Identity, InferRequest, InferResponse, Inspect, Operation, Reply, ReplyStream, Report,
        ServerReport,
    },
    error::{Error, Stage},
    schedule::{Answer, Job, ReplyTo},
};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};
use tower::Service;

/// Chunks that a stream's run may be ahead of its reader, and one place for its end.
const AHEAD: usize = 16;

/// What the server says of itself (contract 01 section 2.1): only what there is.
const SERVER: ServerReport = ServerReport {
    name: "sluicegate",
    version: env!("CARGO_PKG_VERSION"),
    extensions: &["binary_tensor_data", "parameters"],
};

/// Sends calls to their models. Cloning it is cloning an `Arc`.
#[derive(Clone, Debug)]
pub struct Router {
    repository: Arc<Repository>,
}

/// The answer of a model, or one that was there at once.
#[derive(Debug)]
pub struct Routed(Inner);

#[derive(Debug)]
enum Inner {
    Ready(Option<Result<Reply, Error>>),
    Waiting(Waiting),
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Receiver<Result<Answer, Error>>,
    /// Held until the answer is there: a model that is being replaced finishes what it has.
    model: Arc<Model>,
    client_id: Option<Arc<str>>,
    wanted: Vec<Arc<str>>,
    head: Head,
}

// === impl Router ===

impl Router {
    /// A router over the models of `repository`.
    pub fn new(repository: Arc<Repository>) -> Self {
        Self { repository }
    }

    fn infer(&self, head: Head, request: InferRequest) -> Result<Inner, Error> {
        let model = self.repository.resolve(&request.model)?;
        learn(&head, &model);
        signature::check_outputs(&model.signature, &request.outputs)?;
        let batches = model.scheduler.policy().enabled;
        let inputs = match request.raw {
            Some(bytes) => vec![raw::input(&model.signature, batches, &bytes)?],
            None => request.inputs,
        };
        let checked = signature::check(&model.signature, batches, inputs)?;
        let client_id = request.client_id.filter(|id| !id.is_empty());
        head.facts.reach(Stage::Queued);
        let job = |reply| Job {
            inputs: checked.inputs,
            rows: checked.rows,
            deadline: head.deadline,
            queued: Instant::now(),
            reply,
            facts: Arc::clone(&head.facts),
        };
        if model.decoupled {
            let (sender, receiver) = mpsc::channel(AHEAD);
            let key = Arc::clone(&model.key);
            let wanted = request.outputs;
            let frame = Box::new(move |outputs, timing| InferResponse {
                model: Arc::clone(&key),
                client_id: client_id.clone(),
                outputs: signature::select(outputs, &wanted),
                parameters: Vec::new(),
                timing,
            });
            model.scheduler.submit(job(ReplyTo::Stream { sender, frame, until: head.stream_deadline }))?;
            return Ok(Inner::ready(Reply::Stream(ReplyStream::new(receiver))));
        }
        let (sender, answer) = oneshot::channel();
        model.scheduler.submit(job(ReplyTo::Once(sender)))?;
        Ok(Inner::Waiting(Waiting { answer, model, client_id, wanted: request.outputs, head }))
    }

    fn inspect(&self, head: &Head, sender: Arc<Identity>, question: &Inspect) -> Result<Report, Error> {
        Ok(match question {
            Inspect::Caller => Report::Caller(sender),
            Inspect::Server => Report::Server(SERVER),
            Inspect::Models => Report::Models(self.repository.names()),
            Inspect::Model(wanted) => {
                let (model, report) = self.repository.report(wanted)?;
                learn(head, &model);
                Report::Model(report)
            }
            Inspect::Ready(wanted) => {
                Report::Ready { model: Arc::clone(&wanted.name), ready: self.repository.is_ready(wanted)? }
            }
        })
    }
}

impl Service<Decoded> for Router {
    type Response = Reply;
    type Error = Error;
    type Future = Routed;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Decoded) -> Routed {
        let Call { head, sender, input } = call;
        let inner = match input {
            Operation::Infer(request) => self.infer(head, request),
            Operation::Inspect(question) => {
                self.inspect(&head, sender, &question).map(|report| Inner::ready(Reply::Report(report)))
            }
        };
        Routed(inner.unwrap_or_else(|error| Inner::Ready(Some(Err(error)))))
    }
}

/// From here on the model's name comes from the repository and may be a label (invariant 9).
fn learn(head: &Head, model: &Model) {
    let _ = head.facts.model.set(Arc::clone(&model.key));
}

// === impl Routed ===

impl Inner {
    fn ready(reply: Reply) -> Self {
        Self::Ready(Some(Ok(reply)))
    }
}

impl Waiting {
    fn reply(&mut self, answer: Result<Result<Answer, Error>, oneshot::error::RecvError>) -> Result<Reply, Error> {
        let Answer { outputs, timing } = answer.unwrap_or_else(|_| Err(self.unanswered()))?;
        let _ = self.head.facts.timing.set(timing);
        Ok(Reply::Infer(InferResponse {
            model: Arc::clone(&self.model.key),
            client_id: self.client_id.take(),
            outputs: signature::select(outputs, &self.wanted),
            parameters: Vec::new(),
            timing,
        }))
    }

    /// A job that was dropped without an answer is late, or a bug.
    fn unanswered(&self) -> Error {
        if Instant::now() >= self.head.deadline {
            return Error::DeadlineExceeded { stage: self.head.facts.stage() };
        }
        Error::internal("a job was dropped without an answer")
    }
}

impl Future for Routed {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Ready(reply) => {
                let again = || Err(Error::internal("a finished call was polled again"));
                Poll::Ready(reply.take().unwrap_or_else(again))
            }
            Inner::Waiting(waiting) => {
                let answer = ready!(Pin::new(&mut waiting.answer).poll(cx));
                let reply = waiting.reply(answer);
                self.0 = Inner::Ready(None);
                Poll::Ready(reply)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{CallId, Intent, ModelRef, NamedTensor, Peer, Scope, Surface},
        model::{State, testing},
        schedule::testing::{self as jobs, Fault, Script},
    };
    use std::time::Duration;

    fn router(script: &Script) -> Router {
        let repository = Repository::default();
        repository.set(&"double".into(), &"1".into(), &State::Ready(testing::scripted(script)));
        Router::new(Arc::new(repository))
    }

    fn call(operation: Operation) -> Decoded {
        let address = ([127, 0, 0, 1], 1).into();
        let peer = Arc::new(Peer { address, local: address, tls: false });
        let mut head = Head::new(CallId::make(), Surface::Rest, Intent::Infer, peer);
        head.deadline = Instant::now() + Duration::from_secs(60);
        head.stream_deadline = head.deadline;
        let sender = Arc::new(Identity::proven("tester", Vec::new(), Scope::Everything));
        Call { head, sender, input: operation }
    }

    fn request(rows: usize) -> InferRequest {
        let input = NamedTensor { name: "x".into(), tensor: jobs::tensor(rows, 4, 1.5) };
        InferRequest::new(ModelRef { name: "double".into(), version: None }, vec![input])
    }

    #[tokio::test]
    async fn a_call_runs_its_model_and_says_which() {
        let mut request = request(2);
        request.client_id = Some("r-1".into());
        let call = call(Operation::Infer(request));
        let facts = Arc::clone(&call.head.facts);
        let Ok(Reply::Infer(response)) = router(&Script::default()).call(call).await else { panic!() };
        assert_eq!(response.model.to_string(), "double/1");
        assert_eq!(response.client_id.as_deref(), Some("r-1"));
        assert_eq!(&*response.outputs[0].name, "y");
        assert_eq!(jobs::mark(&response.outputs[0].tensor), 3.0);
        assert_eq!(facts.stage(), Stage::Running);
        assert_eq!(facts.model.get(), Some(&response.model));
        assert_eq!(facts.timing.get(), Some(&response.timing));
    }

    #[tokio::test]
    async fn a_bad_request_never_reaches_the_queue() {
        let script = Script::default();
        let mut router = router(&script);
        let mut bad = request(1);
        bad.inputs[0].name = "z".into();
        let error = router.call(call(Operation::Infer(bad))).await.unwrap_err();
        assert_eq!(error.to_string(), "input `z` is unknown, expected `x`");
        let mut bad = request(1);
        bad.outputs = vec!["z".into()];
        assert!(router.call(call(Operation::Infer(bad))).await.is_err());
        assert!(script.batches().is_empty());
    }

    #[tokio::test]
    async fn dropping_the_future_abandons_the_job() {
        let script = Script::default();
        let mut router = router(&script);
        let gate = script.close_gate();
        let first = router.call(call(Operation::Infer(request(1))));
        script.wait_for_runs(1);
        drop(router.call(call(Operation::Infer(request(2)))));
        let third = router.call(call(Operation::Infer(request(3))));
        drop(gate);
        first.await.unwrap();
        third.await.unwrap();
        assert_eq!(script.batches(), [1, 3]);
    }

    #[tokio::test]
    async fn a_decoupled_model_answers_with_a_stream() {
        let script = Script::default();
        script.set(Fault::Stream(3));
        let mut router = router(&script);
        let Ok(Reply::Stream(mut stream)) = router.call(call(Operation::Infer(request(1)))).await else { panic!() };
        let mut pieces = 0;
        while let Some(piece) = stream.next().await {
            piece.unwrap();
            pieces += 1;
        }
        assert_eq!(pieces, 3);
    }

    #[tokio::test]
    async fn a_stream_outlasts_the_deadline_of_a_whole_reply_and_ends_at_its_own() {
        let script = Script::default();
        script.set(Fault::Stream(usize::MAX));
        let mut router = router(&script);
        let mut call = call(Operation::Infer(request(1)));
        let begun = Instant::now();
        call.head.deadline = begun + Duration::from_millis(200);
        call.head.stream_deadline = begun + Duration::from_millis(600);
        let Ok(Reply::Stream(mut stream)) = router.call(call).await else { panic!() };
        let mut last = Duration::ZERO;
        let error = loop {
            match stream.next().await.expect("an endless stream is cut off, and says so") {
                Ok(_) => last = begun.elapsed(),
                Err(error) => break error,
            }
        };
        assert!(last > Duration::from_millis(200), "{last:?}");
        assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Streaming }), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(600));
    }

    #[tokio::test]
    async fn questions_are_answered() {
        let mut router = router(&Script::default());
        let mut ask = |question| router.call(call(Operation::Inspect(question)));
        let double = || ModelRef { name: "double".into(), version: None };
        let Ok(Reply::Report(Report::Models(names))) = ask(Inspect::Models).await else { panic!() };
        assert_eq!(names, ["double".into()]);
        let Ok(Reply::Report(Report::Model(report))) = ask(Inspect::Model(double())).await else { panic!() };
        assert_eq!(report.versions, ["1".into()]);
        let Ok(Reply::Report(Report::Ready { ready, .. })) = ask(Inspect::Ready(double())).await else { panic!() };
        assert!(ready);
        let Ok(Reply::Report(Report::Server(server))) = ask(Inspect::Server).await else { panic!() };
        assert_eq!(server.name, "sluicegate");
        let Ok(Reply::Report(Report::Caller(caller))) = ask(Inspect::Caller).await else { panic!() };
        assert_eq!(&**caller.id(), "tester");
        let unknown = ModelRef { name: "other".into(), version: None };
        assert!(matches!(ask(Inspect::Ready(unknown)).await, Err(Error::ModelNotFound { .. })));
    }
}

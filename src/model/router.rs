//! The service at the bottom of the stack: a decoded call goes to its model, a question is answered.
//!
//! Everything up to the submission happens in `call`; the future only waits for the answer. Dropping
//! it closes the job's channel, which is all that cancelling takes.

mod questions;

use super::{
    Model, Repository,
    cache::{self, Found},
    classify::classify,
    control::Control,
    ensemble,
    shadow::{Copied, Shadows},
    signature,
    traffic::Caller,
};
use crate::{
    call::{
        Cached, Call, Chunk, Decoded, Expected, Head, Identity, InferRequest, InferResponse, Inputs, Leaving, ModelKey,
        ModelRef, NamedTensor, Operation, Reply, ReplyStream, Report, RequestedOutput, Timing, Work,
    },
    error::{Error, Stage},
    schedule::{Answer, Company, Job, ReplyTo},
    telemetry::switches::Switches,
};
use futures_util::future::BoxFuture;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};
use tower::Service;

/// Chunks that a stream's run may be ahead of its reader, and one place for its end.
const AHEAD: usize = 16;

/// Sends calls to their models. Cloning it is cloning an `Arc`.
#[derive(Clone, Debug)]
pub struct Router(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    repository: Arc<Repository>,
    /// Absent where models cannot be changed by calls.
    control: Option<Control>,
    switches: Arc<Switches>,
    /// Absent where no calls are copied.
    shadows: Option<Shadows>,
}

/// The answer of a model, or one that was there at once.
#[derive(Debug)]
pub struct Routed(Inner);

enum Inner {
    Ready(Option<Result<Reply, Error>>),
    /// Inputs that the signature makes tensors of.
    Typing(BoxFuture<'static, Result<Vec<NamedTensor>, Error>>, Option<Box<Asked>>),
    Waiting(Waiting),
    /// The steps of an ensemble, or a run that answers others too.
    Shared(BoxFuture<'static, Result<Answer, Error>>, Option<Box<Asked>>),
    /// Something that takes its time elsewhere: the loader's.
    Elsewhere(BoxFuture<'static, Result<Report, Error>>),
}

/// Whether the model that was chosen for a call may run it.
type Fits<'a> = dyn Fn(&Model) -> Result<(), Error> + 'a;

/// An inference whose model is known.
#[derive(Debug)]
struct Asked {
    head: Head,
    model: Arc<Model>,
    client_id: Option<Arc<str>>,
    outputs: Vec<RequestedOutput>,
    priority: u32,
    /// Who asks, where answers are kept.
    asker: Option<Arc<str>>,
    /// A copy of the call, for a shadow.
    copied: Option<Box<Copied>>,
    /// What the steps of an ensemble need.
    within: Option<Box<Within>>,
}

/// Where the steps of an ensemble go, and in whose name.
#[derive(Debug)]
struct Within {
    router: Router,
    sender: Arc<Identity>,
    /// Ensembles around this one.
    depth: usize,
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Receiver<Result<Answer, Error>>,
    asked: Asked,
    answered: bool,
}

// === impl Router ===

impl Router {
    /// A router over the models of `repository`.
    pub fn new(repository: Arc<Repository>) -> Self {
        Self(Arc::new(Parts { repository, control: None, switches: Arc::default(), shadows: None }))
    }

    /// A router that also lets operators change models, through `control`, and the process's `switches`, and sends copies
    /// of calls to `shadows`.
    pub fn managed(
        repository: Arc<Repository>,
        control: Option<Control>,
        switches: Arc<Switches>,
        shadows: Option<Shadows>,
    ) -> Self {
        Self(Arc::new(Parts { repository, control, switches, shadows }))
    }

    /// The step of an ensemble: as a call of `sender`'s with this head, below `depth` ensembles, to a model that `fits`.
    pub(super) fn step(
        &self,
        head: Head,
        sender: &Arc<Identity>,
        request: InferRequest,
        depth: usize,
        fits: &Fits<'_>,
    ) -> Routed {
        if depth > ensemble::DEPTH {
            return Routed(Inner::Ready(Some(Err(Error::internal(
                "ensembles within ensembles, too many or in a circle",
            )))));
        }
        Routed::of(self.infer(head, sender, request, depth, fits))
    }

    /// A version of a model, if it takes calls.
    pub(super) fn model(&self, key: &ModelKey) -> Option<Arc<Model>> {
        let wanted = ModelRef { name: Arc::clone(&key.name), version: Some(Arc::clone(&key.version)) };
        self.0.repository.resolve(&wanted).ok()
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
        Routed::of(match input {
            Operation::Infer(request) => self.infer(head, &sender, request, 0, &|_| Ok(())),
            Operation::Inspect(question) => self.0.inspect(&head, sender, question),
            Operation::Manage(change) => self.0.manage(change),
        })
    }
}

impl Router {
    fn infer(
        &self,
        head: Head,
        sender: &Arc<Identity>,
        request: InferRequest,
        depth: usize,
        fits: &Fits<'_>,
    ) -> Result<Inner, Error> {
        let (model, aim) = self.0.repository.route(&Caller::new(sender, &head.facts, &request))?;
        fits(&model)?;
        learn(&head, &model);
        signature::check_outputs(&model.signature, &request.outputs)?;
        let client_id = request.client_id.filter(|id| !id.is_empty());
        let copied = aim.and_then(|aim| Some(Box::new(self.0.shadows.as_ref()?.copy(aim))));
        let (outputs, priority) = (request.outputs, request.priority);
        let within = || Box::new(Within { router: self.clone(), sender: Arc::clone(sender), depth });
        let within = model.ensemble.is_some().then(within);
        let asker = model.cache.is_some().then(|| Arc::clone(sender.id()));
        let asked = Asked { head, model, client_id, outputs, priority, asker, copied, within };
        match request.inputs {
            Inputs::Tensors(inputs) => asked.submit(inputs),
            Inputs::Untyped(inputs) => {
                let (signature, batches) = (Arc::clone(&asked.model.signature), asked.model.batches());
                let labels = Arc::clone(&asked.model.labels);
                let typing = inputs.read(Expected { signature, batches, labels });
                Ok(Inner::Typing(typing, Some(Box::new(asked))))
            }
        }
    }
}

/// From here on the model's name comes from the repository and may be a label (invariant 9).
fn learn(head: &Head, model: &Model) {
    let _ = head.facts.model.set(Arc::clone(&model.key));
}

// === impl Asked ===

impl Asked {
    /// Checks the inputs and hands them to the model's scheduler.
    fn submit(mut self, mut inputs: Vec<NamedTensor>) -> Result<Inner, Error> {
        if let Some(copied) = &mut self.copied {
            copied.inputs(&inputs);
        }
        let (within, asker) = (self.within.take(), self.asker.take());
        let Self { head, model, .. } = &self;
        model.absent.complete(&model.signature, &mut inputs)?;
        let checked = signature::check(&model.signature, model.batches(), inputs)?;
        head.facts.work.set(Work { rows: checked.rows as u64, ..Work::of(&checked.inputs) });
        head.facts.reach(Stage::Queued);
        let queued = Instant::now();
        head.facts.queued.set(queued);
        if let Some(trace) = head.facts.trace.get() {
            trace.note("decode", head.received, queued);
        }
        if let (Some(ensemble), Some(within)) = (&model.ensemble, within) {
            let Within { router, sender, depth } = *within;
            let run = ensemble::Run {
                router,
                head: head.clone(),
                sender,
                model: Arc::clone(model),
                place: ensemble.enter()?,
                rows: checked.rows,
                priority: self.priority,
                depth,
            };
            return Ok(Inner::Shared(Box::pin(ensemble::run(run, checked.inputs)), Some(Box::new(self))));
        }
        if let (Some(cache), Some(asker)) = (&model.cache, asker) {
            let (model, head) = (Arc::clone(model), head.clone());
            let asked = cache::Asked {
                model,
                head,
                asker,
                inputs: checked.inputs,
                rows: checked.rows,
                priority: self.priority,
            };
            return match cache.answer(asked)? {
                Found::Kept(answer) => self.reply(answer).map(Inner::reply),
                Found::Coming(answer) => Ok(Inner::Shared(answer, Some(Box::new(self)))),
            };
        }
        let job = |reply| Job {
            inputs: checked.inputs,
            rows: checked.rows,
            priority: self.priority,
            deadline: head.deadline,
            queued,
            reply,
            facts: Arc::clone(&head.facts),
            turn: 0,
            company: Company::default(),
            layout: None,
        };
        if model.decoupled {
            let (sender, receiver) = mpsc::channel::<Result<Chunk, Error>>(AHEAD);
            let (about, client_id, wanted) = (Arc::clone(model), self.client_id.clone(), self.outputs.clone());
            let frame = Box::new(move |found, timing| respond(&about, client_id.clone(), &wanted, found, timing));
            model.scheduler.submit(job(ReplyTo::Stream { sender, frame, until: head.stream_deadline }))?;
            let mut stream = ReplyStream::new(receiver);
            stream.observe(Box::new(Leaving(Arc::clone(&head.facts))));
            return Ok(Inner::reply(Reply::Stream(stream)));
        }
        let (sender, answer) = oneshot::channel();
        model.scheduler.submit(job(ReplyTo::Once(sender.into())))?;
        Ok(Inner::Waiting(Waiting { answer, asked: self, answered: false }))
    }
}

impl Asked {
    fn reply(&mut self, Answer { outputs, timing }: Answer) -> Result<Reply, Error> {
        let Self { head, model, client_id, outputs: wanted, copied, .. } = self;
        head.facts.timing.set(timing);
        // What did not run has no time that a copy could be held against.
        let ran = head.facts.cached().is_none_or(|cached| cached == Cached::Miss);
        if let Some(copied) = copied.take().filter(|_| ran) {
            copied.send(model, &outputs, timing);
        }
        respond(model, client_id.take(), wanted, outputs, timing).map(Reply::Infer)
    }
}

/// The outputs that were wanted, in the form that was wanted.
fn respond(
    model: &Model,
    client_id: Option<Arc<str>>,
    wanted: &[RequestedOutput],
    found: Vec<NamedTensor>,
    timing: Timing,
) -> Result<InferResponse, Error> {
    let mut outputs = signature::select(found, wanted);
    // Without wishes nothing is to be classified: the two lists run side by side.
    for (output, wish) in outputs.iter_mut().zip(wanted) {
        if let Some(classes) = wish.classes {
            let labels = model.labels_of(&output.name);
            output.tensor = classify(&output.name, &output.tensor, classes, model.batches(), labels)?;
        }
    }
    Ok(InferResponse { model: Arc::clone(&model.key), client_id, outputs, parameters: Vec::new(), timing })
}

// === impl Routed ===

impl Routed {
    fn of(inner: Result<Inner, Error>) -> Self {
        Self(inner.unwrap_or_else(|error| Inner::Ready(Some(Err(error)))))
    }
}

impl Inner {
    fn reply(reply: Reply) -> Self {
        Self::Ready(Some(Ok(reply)))
    }

    fn report(report: Report) -> Self {
        Self::reply(Reply::Report(report))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Typing(..) => "Typing",
            Self::Waiting(_) => "Waiting",
            Self::Shared(..) => "Shared",
            Self::Elsewhere(_) => "Elsewhere",
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        // First, so that the run that is ended finds nobody to answer.
        self.answer.close();
        self.asked.head.facts.interrupt.fire();
    }
}

impl Waiting {
    fn reply(&mut self, answer: Result<Result<Answer, Error>, oneshot::error::RecvError>) -> Result<Reply, Error> {
        self.answered = true;
        let answer = answer.unwrap_or_else(|_| Err(unanswered(&self.asked.head)))?;
        self.asked.reply(answer)
    }
}

/// A job that was dropped without an answer is late, or a bug.
pub(super) fn unanswered(head: &Head) -> Error {
    if Instant::now() >= head.deadline {
        return Error::DeadlineExceeded { stage: head.facts.stage() };
    }
    Error::internal("a job was dropped without an answer")
}

impl Future for Routed {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let result = match &mut self.0 {
                Inner::Ready(reply) => {
                    let again = || Err(Error::internal("a finished call was polled again"));
                    return Poll::Ready(reply.take().unwrap_or_else(again));
                }
                Inner::Typing(typing, asked) => {
                    let inputs = ready!(typing.as_mut().poll(cx));
                    let asked = asked.take().ok_or_else(|| Error::internal("a call was typed twice"));
                    match inputs.and_then(|inputs| asked?.submit(inputs)) {
                        Ok(inner) => {
                            self.0 = inner;
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
                Inner::Waiting(waiting) => {
                    let answer = ready!(Pin::new(&mut waiting.answer).poll(cx));
                    waiting.reply(answer)
                }
                Inner::Shared(answer, asked) => {
                    let answer = ready!(answer.as_mut().poll(cx));
                    let asked = asked.take().ok_or_else(|| Error::internal("a call was answered twice"));
                    answer.and_then(|answer| asked?.reply(answer))
                }
                Inner::Elsewhere(work) => ready!(work.as_mut().poll(cx)).map(Reply::Report),
            };
            self.0 = Inner::Ready(None);
            return Poll::Ready(result);
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;

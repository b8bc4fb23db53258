//! A connection whose stack does what a test's model names say.

use crate::{
    call::{
        Call, Chunk, Credentials, Facts, Gateway, Identity, Inbound, InferRequest, InferResponse, Inspect, ModelKey,
        Operation, Parameter, Peer, Readiness, Reply, ReplyStream, Report, Scope, Steering, Timing,
    },
    error::Error,
    frontend::{Connection, Frontend, Phase, Settings, Surfaces, Tickets, body::Memory, duplex::Speaker},
    limit::address::{self, AddressGate},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};
use tokio::sync::{Semaphore, mpsc, watch};

/// What a test sees of the stack, and tells it.
pub(in crate::frontend) struct Stack {
    /// Whether nobody in particular may do anything.
    pub(in crate::frontend) anonymous: AtomicBool,
    /// No credentials prove anything to calls any more.
    pub(in crate::frontend) revoked: AtomicBool,
    /// Calls of the model `wait` that may be answered.
    pub(in crate::frontend) released: Semaphore,
    /// Chunks that the model `steps` was asked for.
    pub(in crate::frontend) produced: AtomicUsize,
    /// Inferences in flight.
    pub(in crate::frontend) in_flight: AtomicUsize,
    /// Inferences that were begun.
    pub(in crate::frontend) begun: AtomicUsize,
}

/// A connection with its stack and its process.
pub(in crate::frontend) struct Fixture {
    pub(in crate::frontend) connection: Arc<Connection>,
    pub(in crate::frontend) stack: Arc<Stack>,
    pub(in crate::frontend) phase: watch::Sender<Phase>,
    pub(in crate::frontend) proofs: watch::Sender<()>,
}

struct InFlight(Arc<Stack>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fixture {
    pub(in crate::frontend) fn new(settings: Settings) -> Self {
        let stack = Arc::new(Stack {
            anonymous: AtomicBool::new(true),
            revoked: AtomicBool::new(false),
            released: Semaphore::new(0),
            produced: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
        });
        let answering = Arc::clone(&stack);
        let gateway = Gateway::new(tower::service_fn(move |call| answer(Arc::clone(&answering), call)));
        let (phase, watched) = watch::channel(Phase::Serving);
        let (proofs, doubted) = watch::channel(());
        let frontend = Frontend {
            gateway,
            memory: Memory::new(settings.concurrency.memory),
            tickets: Tickets::new(settings.websocket.tickets),
            proofs: doubted,
            steering: Steering::default(),
            settings,
            readiness: Readiness::default(),
            phase: watched,
            metrics: Arc::default(),
            addresses: Arc::new(AddressGate::new(address::Settings::default())),
        };
        let any = ([127, 0, 0, 1], 8080).into();
        let peer = Arc::new(Peer::new(any, any));
        let connection = Connection::new(Arc::new(frontend), peer, Surfaces::ALL);
        Self { connection: Arc::new(connection), stack, phase, proofs }
    }

    /// Somebody whom the stack has proven, until a time if there is one.
    pub(in crate::frontend) fn speaker(&self, until: Option<SystemTime>) -> Speaker {
        let facts = Facts::default();
        let identity = Identity::proven("t", Vec::new(), Scope::Granted).until_time(until);
        facts.identity.set(Arc::new(identity)).expect("these facts are new");
        Speaker::proven(Credentials::None, Arc::new(facts))
    }

    pub(in crate::frontend) fn in_flight(&self) -> usize {
        self.stack.in_flight.load(Ordering::SeqCst)
    }

    pub(in crate::frontend) fn produced(&self) -> usize {
        self.stack.produced.load(Ordering::SeqCst)
    }
}

/// `good` proves somebody, `idle` somebody without a grant, anything else nothing.
fn prove(stack: &Stack, sender: &Credentials) -> Result<(), Error> {
    match sender {
        Credentials::None if stack.anonymous.load(Ordering::SeqCst) => Ok(()),
        Credentials::Bearer(token) | Credentials::ApiKey(token) => match &**token {
            "good" => Ok(()),
            "idle" => Err(Error::Forbidden { action: "do anything" }),
            _ => Err(Error::Unauthenticated),
        },
        Credentials::None | Credentials::Certificate(_) => Err(Error::Unauthenticated),
    }
}

async fn answer(stack: Arc<Stack>, call: Inbound) -> Result<Reply, Error> {
    let Call { sender, input, .. } = call;
    prove(&stack, &sender)?;
    if stack.revoked.load(Ordering::SeqCst) && !matches!(&sender, Credentials::Bearer(token) if &**token == "good") {
        return Err(Error::Unauthenticated);
    }
    match input.await? {
        Operation::Inspect(Inspect::Caller | Inspect::Session) => {
            Ok(Reply::Report(Report::Caller(Arc::new(Identity::proven("t", Vec::new(), Scope::Granted)))))
        }
        Operation::Infer(request) => infer(stack, request).await,
        Operation::Inspect(_) | Operation::Manage(_) => Err(Error::internal("nobody asked that")),
    }
}

async fn infer(stack: Arc<Stack>, request: InferRequest) -> Result<Reply, Error> {
    stack.begun.fetch_add(1, Ordering::SeqCst);
    stack.in_flight.fetch_add(1, Ordering::SeqCst);
    let in_flight = InFlight(Arc::clone(&stack));
    let steps = match request.parameters.iter().find(|(name, _)| &**name == "steps") {
        Some((_, Parameter::Int(steps))) => usize::try_from(*steps).unwrap_or(0),
        _ => 1,
    };
    match &*request.model.name {
        "echo" => Ok(Reply::Infer(response(request))),
        "wait" => {
            stack.released.acquire().await.map_err(|_| Error::Cancelled)?.forget();
            Ok(Reply::Infer(response(request)))
        }
        "never" => std::future::pending().await,
        "broken" => Err(Error::backend("broken")),
        "steps" => {
            let (sender, receiver) = mpsc::channel(1);
            let response = response(request);
            tokio::spawn(async move {
                let _in_flight = in_flight;
                for _ in 0..steps {
                    let Ok(permit) = sender.reserve().await else { return };
                    stack.produced.fetch_add(1, Ordering::SeqCst);
                    permit.send(Ok(Chunk::Tensors(response.clone())));
                }
            });
            Ok(Reply::Stream(ReplyStream::new(receiver)))
        }
        _ => Err(Error::ModelNotFound { model: request.model.name, version: None }),
    }
}

fn response(request: InferRequest) -> InferResponse {
    InferResponse {
        model: Arc::new(ModelKey { name: request.model.name, version: "1".into() }),
        client_id: request.client_id,
        outputs: request.inputs.tensors().unwrap_or_default().to_vec(),
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

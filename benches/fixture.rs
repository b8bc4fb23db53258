//! A gateway over the fake back end on the thread that makes it: the real stack, router, scheduler and turn.
//!
//! Shared by the bench that times a call and the test that counts its allocations.

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use sluicegate::{
    auth::{self, Authenticator, Grants, grants},
    backend::fake::FakeOpen,
    call::{
        Call, CallId, Credentials, Gateway, Head, Identity, Inbound, InferRequest, Intent, ModelRef, NamedTensor,
        Operation, Peer, Pending, Reply, Surface,
        trace::{Record, Sink},
    },
    error::Error,
    layer::{admit::Slots, deadline},
    limit::{By, Policy, RateLimiter},
    model::{self, Loader, ModelSettings, Repository, Router},
    schedule::{
        Execution,
        turn::{LaneGuard, Lanes},
    },
    stack,
    telemetry::{Format, access_log::AccessLog, metrics::Metrics, traces::Tracer},
    tensor::{DataType, Shape, Tensor},
};
use std::{
    num::NonZeroU64,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};
use tower::Service;

const KEY: &str = "sg_bench-bench-bench-bench-bench-bench-bench0";

/// A lane with one model `double`, and the gateway to it. Everything is on: key, rate, grants, metrics, access log.
pub(crate) struct Fixture {
    pub(crate) runtime: Runtime,
    /// The whole stack.
    pub(crate) gateway: Gateway,
    /// Only what a call cannot do without: the body is read, the router runs it.
    pub(crate) bare: Gateway,
    peer: Arc<Peer>,
    _guard: LaneGuard,
}

/// Takes traces, if there were any.
struct Nowhere;

impl Sink for Nowhere {
    fn complete(&self, _: Record) {}
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

impl Fixture {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().event_interval(256).build().expect("a runtime");
        let (lanes, mut seats) = Lanes::new(1);
        let (guard, turns) = seats.remove(0).enter();
        runtime.spawn(turns);
        let folder = tempfile::tempdir().expect("a folder");
        let version = folder.path().join("models/double/1");
        std::fs::create_dir_all(&version).expect("the folder is ours");
        std::fs::write(version.join("model.onnx"), "").expect("the folder is ours");
        let settings = model::Settings {
            directories: vec![folder.path().join("models")],
            defaults: ModelSettings { execution: Execution::Turn, ..ModelSettings::default() },
            ..model::Settings::default()
        };
        let (repository, metrics) = (Arc::new(Repository::default()), Arc::new(Metrics::new()));
        let loader = Loader::new(
            settings,
            Arc::new(FakeOpen::new()),
            Arc::clone(&repository),
            Arc::clone(&metrics),
            Some(lanes),
        );
        let loaded = runtime.block_on(loader.load());
        assert_eq!((loaded.ok, &*loaded.failed), (1, &[][..]));

        let keys = folder.path().join("keys.yaml");
        let hash = auth::api_key::hash(KEY);
        let text =
            format!("version: 1\nkeys:\n  - {{ id: k_1, hash: \"{hash}\", identity: bench, intents: [infer] }}\n");
        std::fs::write(&keys, text).expect("the folder is ours");
        let settings = auth::Settings { keys: Some(keys), ..auth::Settings::default() };
        let plenty = NonZeroU64::new(1_000_000_000).expect("not zero");
        let policy = Policy {
            name: "plenty".into(),
            by: By::Identity,
            only: None,
            limit: plenty,
            per: Duration::from_secs(1),
            burst: plenty,
            intents: Policy::default_intents(),
        };
        let rule = grants::Rule {
            to: vec![grants::Grantee::parse("identity:bench").expect("a grantee")],
            intents: vec![Intent::Infer],
            models: vec!["d*".into()],
            versions: vec!["*".into()],
        };
        let authenticator = Arc::new(Authenticator::new(&settings).expect("the file is valid"));
        let (address, local) = (([127, 0, 0, 1], 50_000).into(), ([127, 0, 0, 1], 8080).into());
        let peer = Peer { address, local, tls: false };
        let identity = authenticator.verify(&peer, &Credentials::Bearer(KEY.into())).expect("the key is good");
        let router = Router::new(repository);
        let bare = Gateway::new(Bare { router: router.clone(), identity });
        let gateway = stack::build(stack::Parts {
            access_log: Some(AccessLog::start(std::io::sink(), Format::Json).expect("a thread")),
            // On, as where traces are wanted, and none of these calls is chosen: that has to cost nothing.
            tracer: Some(Tracer::sampling(0., Arc::new(Nowhere))),
            metrics,
            deadlines: deadline::Settings::default().into(),
            authenticator,
            limiter: Arc::new(ArcSwap::from_pointee(RateLimiter::new(vec![policy], Instant::now(), 1000))),
            slots: Arc::new(Slots::new(4096, 16, None)),
            grants: Arc::new(ArcSwap::from_pointee(Grants::new(vec![rule]))),
            router,
        });
        Self { runtime, gateway, bare, peer: Arc::new(peer), _guard: guard }
    }

    /// One call as a front-end makes it, names, credentials and tensor included; waits for its reply.
    pub(crate) async fn call(&self, gateway: &Gateway) {
        let call = Call {
            head: Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::clone(&self.peer)),
            sender: Credentials::Bearer(KEY.into()),
            // As a front-end does it: the body is decoded when it is polled.
            input: Pending::new(async {
                let mut data = Vec::with_capacity(16);
                (0..4).for_each(|_| data.extend_from_slice(&1_f32.to_le_bytes()));
                let tensor = Tensor::new(DataType::Fp32, Shape::new([1, 4]), data.into()).expect("it fits");
                let input = NamedTensor { name: "x".into(), tensor };
                let model = ModelRef { name: "double".into(), version: None };
                Ok(Operation::Infer(InferRequest::new(model, vec![input])))
            }),
        };
        let reply = gateway.call(call).await.expect("the call is good");
        let Reply::Infer(response) = reply else { panic!("an inference") };
        assert_eq!(response.outputs.len(), 1);
    }
}

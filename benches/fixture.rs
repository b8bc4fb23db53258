//! A gateway over the fake back end on the thread that makes it: the real stack, router, scheduler and turn.
//!
//! Shared by the bench that times a call and the test that counts its allocations.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sluicegate::{
    auth::{self, Authenticator, Grants, grants, jwt},
    backend::fake::FakeOpen,
    call::{
        Call, CallId, Credentials, Gateway, Head, InferRequest, Intent, ModelRef, NamedTensor, Operation, Peer,
        Pending, Reply, Surface,
        trace::{Record, Sink},
    },
    current::Current,
    error::{Code, Error},
    layer::{admit::Slots, deadline},
    limit::{By, Policy, RateLimiter, Unit},
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
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};

#[path = "bare.rs"]
mod bare;

const KEY: &str = "sg_bench-bench-bench-bench-bench-bench-bench0";

const SECRET: &str = "bench-bench-bench-bench-bench-bench-bench0";

/// Signed with [`SECRET`]: 800 bytes, of which most say nothing.
fn token() -> String {
    let encode = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let rest = "x".repeat(500);
    let claims = format!(r#"{{"iss":"bench","aud":"bench","sub":"bench","exp":4102444800,"rest":"{rest}"}}"#);
    let signed = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(&claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes())))
}

/// A lane with one model `double`, and the gateway to it. Everything is on: key, rate, grants, metrics, access log.
pub(crate) struct Fixture {
    pub(crate) runtime: Runtime,
    /// The whole stack.
    pub(crate) gateway: Gateway,
    /// Only what a call cannot do without: the body is read, the router runs it.
    pub(crate) bare: Gateway,
    /// The API key of the caller.
    pub(crate) key: Credentials,
    /// A token for the same identity, as long as those of issuers are.
    pub(crate) token: Credentials,
    /// The whole stack, for a caller who has used up its rate.
    pub(crate) limited: Gateway,
    /// The whole stack without a slot that is free.
    pub(crate) full: Gateway,
    peer: Arc<Peer>,
    _guard: LaneGuard,
}

/// Takes traces, if there were any.
struct Nowhere;

impl Sink for Nowhere {
    fn complete(&self, _: Record) {}
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
        let secret = folder.path().join("secret");
        std::fs::write(&secret, SECRET).expect("the folder is ours");
        let issuer = jwt::Issuer {
            issuer: "bench".into(),
            audience: vec!["bench".into()],
            algorithms: vec![jwt::Algorithm::Hs256],
            keys: jwt::Keys::File(secret),
            identity: "sub".into(),
            prefix: "".into(),
            groups: None,
            require: Vec::new(),
        };
        let settings = auth::Settings { keys: Some(keys), jwt: vec![issuer], ..auth::Settings::default() };
        let plenty = NonZeroU64::new(1_000_000_000).expect("not zero");
        let policy = Policy {
            name: "plenty".into(),
            by: By::Identity,
            only: None,
            models: Vec::new(),
            unit: Unit::Calls,
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
        let peer = Peer::new(address, local);
        let identity = authenticator.verify(&peer, &Credentials::Bearer(KEY.into())).expect("the key is good");
        let router = Router::new(repository);
        let bare = bare::gateway(router.clone(), identity);
        let access_log = AccessLog::start(std::io::sink(), Format::Json).expect("a thread");
        let build = |policy, slots| {
            stack::build(stack::Parts {
                access_log: Some(access_log.clone()),
                // On, as where traces are wanted, and none of these calls is chosen: that has to cost nothing.
                tracer: Some(Tracer::sampling(0., Arc::new(Nowhere))),
                metrics: Arc::clone(&metrics),
                deadlines: deadline::Settings::default().into(),
                authenticator: Arc::clone(&authenticator),
                limiter: Arc::new(Current::new(RateLimiter::new(vec![policy], Instant::now(), 1000))),
                slots: Arc::new(Slots::new(slots, 16, None)),
                sessions: None,
                grants: Arc::new(Current::new(Grants::new(vec![rule.clone()]))),
                router: router.clone(),
            })
        };
        let once = Policy {
            limit: NonZeroU64::MIN,
            per: Duration::from_secs(86_400),
            burst: NonZeroU64::MIN,
            ..policy.clone()
        };
        let (gateway, limited, full) = (build(policy.clone(), 4096), build(once, 4096), build(policy, 0));
        let (key, token) = (Credentials::Bearer(KEY.into()), Credentials::Bearer(token().into()));
        let fixture = Self { runtime, gateway, bare, key, token, limited, full, peer: Arc::new(peer), _guard: guard };
        fixture.runtime.block_on(fixture.call(&fixture.limited, &fixture.key));
        fixture
    }

    /// A call that is refused before its body is read, which would be of `size` bytes; its code.
    pub(crate) async fn refused(&self, gateway: &Gateway, size: usize) -> Code {
        let call = Call {
            head: Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::clone(&self.peer)),
            sender: Credentials::Bearer(KEY.into()),
            input: Pending::new(async move { Err(Error::internal(format!("{} bytes", vec![0_u8; size].len()))) }),
        };
        gateway.call(call).await.expect_err("the call is refused").code()
    }

    /// One call as a front-end makes it, names, credentials and tensor included; waits for its reply.
    pub(crate) async fn call(&self, gateway: &Gateway, sender: &Credentials) {
        let Credentials::Bearer(sender) = sender else { panic!("a bearer of something") };
        let call = Call {
            head: Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::clone(&self.peer)),
            // A front-end copies it out of the head.
            sender: Credentials::Bearer((**sender).into()),
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

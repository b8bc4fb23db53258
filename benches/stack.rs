//! A whole gateway call: nine layers, an API key, a rate, grants, metrics and the access log, over the fake back end.
//!
//! The model runs in turns of a lane, as a small one does. Bodies are decoded already, so that what is measured is the
//! stack and not a codec (see `codec.rs` for those).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::{
    auth::{self, Authenticator, Grants, grants},
    backend::fake::FakeOpen,
    call::{
        Call, CallId, Credentials, Gateway, Head, InferRequest, Intent, ModelRef, NamedTensor, Operation, Peer,
        Pending, Reply, Surface,
    },
    error::Error,
    layer::{admit::Slots, deadline},
    limit::{By, Policy, RateLimiter},
    model::{self, Loader, ModelSettings, Repository, Router},
    schedule::{Execution, turn::Lanes},
    stack,
    telemetry::{Format, access_log::AccessLog, metrics::Metrics},
    tensor::{DataType, Shape, Tensor},
};
use std::{
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

const KEY: &str = "sg_bench-bench-bench-bench-bench-bench-bench0";

/// Calls that become ready in one turn of a busy lane, as with 64 connections.
const TURN: usize = 64;

/// Loads the model `double` on this lane: the file is only there to be found, the fake opens anything.
async fn router(lanes: Lanes, metrics: &Arc<Metrics>) -> Router {
    let folder = tempfile::tempdir().expect("a folder for one file");
    let version = folder.path().join("double/1");
    std::fs::create_dir_all(&version).expect("the folder is ours");
    std::fs::write(version.join("model.onnx"), "").expect("the folder is ours");
    let settings = model::Settings {
        directories: vec![folder.path().to_owned()],
        defaults: ModelSettings { execution: Execution::Turn, ..ModelSettings::default() },
        ..model::Settings::default()
    };
    let repository = Arc::new(Repository::default());
    let opener = Arc::new(FakeOpen::new());
    let loaded = Loader::new(settings, opener, Arc::clone(&repository), Arc::clone(metrics), Some(lanes)).load().await;
    assert_eq!((loaded.ok, loaded.failed.len()), (1, 0), "{loaded:?}");
    Router::new(repository)
}

async fn gateway(lanes: Lanes) -> Gateway {
    let folder = tempfile::tempdir().expect("a folder for one file");
    let keys = folder.path().join("keys.yaml");
    let hash = auth::api_key::hash(KEY);
    let text = format!("version: 1\nkeys:\n  - {{ id: k_1, hash: \"{hash}\", identity: bench, intents: [infer] }}\n");
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
    let metrics = Arc::new(Metrics::new());
    let router = router(lanes, &metrics).await;
    stack::build(stack::Parts {
        access_log: Some(AccessLog::start(std::io::sink(), Format::Json).expect("a thread")),
        metrics,
        deadlines: deadline::Settings::default(),
        authenticator: Arc::new(Authenticator::new(&settings).expect("the file is valid")),
        limiter: Arc::new(RateLimiter::new(vec![policy], Instant::now(), 1000)),
        slots: Arc::new(Slots::new(4096, 16, None)),
        grants: Arc::new(Grants::new(vec![rule])),
        router,
    })
}

/// What every call of this bench has in common.
struct Caller {
    gateway: Gateway,
    peer: Arc<Peer>,
    key: Arc<str>,
    model: Arc<str>,
    input: NamedTensor,
}

impl Caller {
    fn new(gateway: Gateway) -> Self {
        let (address, local) = (([127, 0, 0, 1], 50_000).into(), ([127, 0, 0, 1], 8080).into());
        let tensor = Tensor::of(DataType::Fp32, Shape::new([1, 4]), vec![1_f32; 4]).expect("the length is right");
        Self {
            gateway,
            peer: Arc::new(Peer { address, local, tls: false }),
            key: KEY.into(),
            model: "double".into(),
            input: NamedTensor { name: "x".into(), tensor },
        }
    }

    fn call(&self) -> impl Future<Output = Result<Reply, Error>> + Send + 'static + use<> {
        let model = ModelRef { name: Arc::clone(&self.model), version: None };
        let request = InferRequest::new(model, vec![self.input.clone()]);
        self.gateway.call(Call {
            head: Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::clone(&self.peer)),
            sender: Credentials::Bearer(Arc::clone(&self.key)),
            input: Pending::ready(Operation::Infer(request)),
        })
    }
}

fn call(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (lanes, mut seats) = Lanes::new(1);
    let (_guard, turn) = seats.remove(0).enter();
    let caller = runtime.block_on(async {
        tokio::spawn(turn);
        Caller::new(gateway(lanes).await)
    });
    let mut group = criterion.benchmark_group("a whole call");
    group.bench_function("alone in its turn", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let begun = Instant::now();
                for _ in 0..count {
                    caller.call().await.expect("the call is good");
                }
                begun.elapsed()
            })
        });
    });
    group.throughput(Throughput::Elements(TURN as u64));
    group.bench_function("64 in a turn", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let begun = Instant::now();
                for _ in 0..count {
                    let calls: [_; TURN] = std::array::from_fn(|_| caller.call());
                    for reply in futures_util::future::join_all(calls).await {
                        reply.expect("the call is good");
                    }
                }
                begun.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, call);
criterion_main!(benches);

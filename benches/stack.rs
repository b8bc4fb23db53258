//! A whole gateway call: nine layers, an API key, a rate, grants, metrics and the access log, over the fake back end.
//!
//! Bodies are decoded already, so that what is measured is the stack and not a codec (see `codec.rs` for those).

use criterion::{Criterion, criterion_group, criterion_main};
use sluicegate::{
    auth::{self, Authenticator, Grants, grants},
    backend::{Backend, fake::Fake},
    call::{
        Call, CallId, Credentials, Decoded, Gateway, Head, InferRequest, InferResponse, Intent, ModelKey, ModelRef,
        NamedTensor, Operation, Peer, Pending, Reply, Surface, Timing,
    },
    error::Error,
    layer::{admit::Slots, deadline},
    limit::{By, Policy, RateLimiter},
    stack,
    telemetry::{Format, access_log::AccessLog, metrics::Metrics},
    tensor::{DataType, Shape, Tensor},
};
use std::{
    future::{Ready, ready},
    num::NonZeroU64,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower::Service;

const KEY: &str = "sg_bench-bench-bench-bench-bench-bench-bench0";

/// The least that a router does: it runs the one model there is, where it is called.
#[derive(Clone)]
struct Inline {
    model: Arc<ModelKey>,
    backend: Arc<Mutex<Fake>>,
}

impl Service<Decoded> for Inline {
    type Response = Reply;
    type Error = Error;
    type Future = Ready<Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Decoded) -> Self::Future {
        let Operation::Infer(request) = call.input else { return ready(Err(Error::invalid("an inference"))) };
        let _ = call.head.facts.model.set(Arc::clone(&self.model));
        let inputs: Vec<_> = request.inputs.into_iter().map(|input| input.tensor).collect();
        let mut backend = self.backend.lock().expect("the fake does not panic");
        let signature = Arc::clone(backend.signature());
        ready(backend.run(&inputs).map(|outputs| {
            let names = signature.outputs.iter().map(|spec| Arc::clone(&spec.name));
            let outputs = names.zip(outputs).map(|(name, tensor)| NamedTensor { name, tensor }).collect();
            Reply::Infer(InferResponse {
                model: Arc::clone(&self.model),
                client_id: request.client_id,
                outputs,
                parameters: Vec::new(),
                timing: Timing::default(),
            })
        }))
    }
}

fn gateway() -> Gateway {
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
    stack::build(stack::Parts {
        access_log: Some(AccessLog::start(std::io::sink(), Format::Json).expect("a thread")),
        metrics: Arc::new(Metrics::new()),
        deadlines: deadline::Settings::default(),
        authenticator: Arc::new(Authenticator::new(&settings).expect("the file is valid")),
        limiter: Arc::new(RateLimiter::new(vec![policy], Instant::now(), 1000)),
        slots: Arc::new(Slots::new(4096, 16, None)),
        grants: Arc::new(Grants::new(vec![rule])),
        router: Inline {
            model: Arc::new(ModelKey { name: "double".into(), version: "1".into() }),
            backend: Arc::new(Mutex::new(Fake::new())),
        },
    })
}

fn call(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let gateway = gateway();
    let peer =
        Arc::new(Peer { address: ([127, 0, 0, 1], 50_000).into(), local: ([127, 0, 0, 1], 8080).into(), tls: false });
    let key: Arc<str> = KEY.into();
    let (model, name): (Arc<str>, Arc<str>) = ("double".into(), "x".into());
    let tensor = Tensor::of(DataType::Fp32, Shape::new([1, 4]), vec![1_f32; 4]).expect("the length is right");
    criterion.bench_function("a whole call", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(async {
                let begun = Instant::now();
                for _ in 0..count {
                    let input = NamedTensor { name: Arc::clone(&name), tensor: tensor.clone() };
                    let model = ModelRef { name: Arc::clone(&model), version: None };
                    let operation = Operation::Infer(InferRequest::new(model, vec![input]));
                    let call = Call {
                        head: Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::clone(&peer)),
                        sender: Credentials::Bearer(Arc::clone(&key)),
                        input: Pending::ready(operation),
                    };
                    gateway.call(call).await.expect("the call is good");
                }
                begun.elapsed()
            })
        });
    });
}

criterion_group!(benches, call);
criterion_main!(benches);

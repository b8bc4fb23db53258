//! Steps run as calls of their own models, at once where they can, and none of them outlives the call.

use super::*;
use crate::{
    call::{Call, CallId, Decoded, Inspect, Intent, ModelRef, Operation, Peer, Report, Scope, Surface},
    model::{
        ModelSettings, Repository, State,
        ensemble::{self, IN_FLIGHT, Settings, Step, What},
        testing,
    },
    schedule::{
        Plan, Scheduler,
        testing::{self as jobs, Script},
    },
    tensor::Signature,
};
use std::path::Path;
use tower::Service;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn step(name: &str, inputs: Pairs<'_>, outputs: Pairs<'_>) -> Step {
    let named = |list: Pairs<'_>| list.iter().map(|(name, tensor)| ((*name).into(), (*tensor).into())).collect();
    let what = What::Model(ModelRef { name: name.into(), version: None });
    Step { what, inputs: named(inputs), outputs: named(outputs) }
}

/// Puts an ensemble of these steps beside its models.
fn add(repository: &Repository, name: &str, in_flight: usize, steps: Vec<Step>) {
    let settings = Settings { steps, in_flight, inputs: None, outputs: None };
    let opened = settings.open(Path::new("/nowhere")).unwrap();
    let graph = ensemble::bind(&settings, opened, &|wanted| repository.served(wanted)).unwrap();
    let key = Arc::new(crate::call::ModelKey { name: name.into(), version: "1".into() });
    let signature: Arc<Signature> = Arc::new(graph.signature.clone());
    let plan = Plan { key: Arc::clone(&key), signature: Arc::clone(&signature), ..jobs::plan() };
    let ensemble = Some(Arc::new(graph.finish(plan.metrics.clone())));
    let model = Model {
        key,
        signature,
        scheduler: Scheduler::on_threads(plan, Vec::new()).unwrap(),
        absent: crate::model::Absent::default(),
        ensemble,
        decoupled: false,
        settings: Arc::new(ModelSettings::default()),
        instances: 0,
        cache: None,
        labels: Arc::new([None]),
        since: std::time::SystemTime::now(),
        files: None,
    };
    repository.set(&name.into(), &"1".into(), &State::Ready(Arc::new(model)));
}

/// Doubles twice, or twice beside each other.
fn world(scripts: &[(&str, &Script)]) -> Arc<Repository> {
    let repository = Repository::default();
    for (name, script) in scripts {
        repository.set(&(*name).into(), &"1".into(), &State::Ready(testing::scripted_as(name, "1", script)));
    }
    Arc::new(repository)
}

fn call(model: &str, rows: usize) -> Decoded {
    let address = ([127, 0, 0, 1], 1).into();
    let mut head = Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::new(Peer::new(address, address)));
    head.deadline = Instant::now() + Duration::from_secs(60);
    let input = NamedTensor { name: "a".into(), tensor: jobs::tensor(rows, 4, 1.5) };
    let request = InferRequest::new(ModelRef { name: model.into(), version: None }, vec![input]);
    let sender = Arc::new(Identity::proven("tester", Vec::new(), Scope::Everything));
    Call { head, sender, input: Operation::Infer(request) }
}

const CHAIN: [(&str, Pairs<'_>, Pairs<'_>); 2] =
    [("one", &[("x", "a")], &[("y", "b")]), ("two", &[("x", "b")], &[("y", "c")])];

fn chain(repository: &Repository, in_flight: usize) {
    add(repository, "both", in_flight, CHAIN.iter().map(|(name, a, b)| step(name, a, b)).collect());
}

#[tokio::test]
async fn what_a_step_yields_feeds_the_next_and_all_are_counted() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    chain(&repository, IN_FLIGHT);
    let mut router = Router::new(Arc::clone(&repository));
    let call = call("both", 2);
    let facts = Arc::clone(&call.head.facts);
    let Ok(Reply::Infer(response)) = router.call(call).await else { panic!() };
    assert_eq!(response.model.to_string(), "both/1");
    assert_eq!(&*response.outputs[0].name, "c");
    assert_eq!(jobs::mark(&response.outputs[0].tensor), 6.0);
    assert_eq!((one.batches(), two.batches()), (vec![2], vec![2]));
    assert_eq!(facts.model.get().unwrap().to_string(), "both/1");
    assert_eq!(facts.timing.get(), Some(response.timing));
    for name in ["one", "two", "both"] {
        let model = repository.resolve(&ModelRef { name: name.into(), version: None }).unwrap();
        let statistics = model.statistics();
        assert_eq!((statistics.inferences, statistics.executions), (2, 1), "{name}");
        // The ensemble's own calls are counted above the router.
        assert_eq!(statistics.success.count, u64::from(name != "both"), "{name}");
    }
}

#[tokio::test]
async fn steps_that_do_not_wait_for_each_other_run_at_once() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    add(
        &repository,
        "both",
        1,
        vec![step("one", &[("x", "a")], &[("y", "b")]), step("two", &[("x", "a")], &[("y", "c")])],
    );
    let mut router = Router::new(repository);
    let (first, second) = (one.close_gate(), two.close_gate());
    let running = tokio::spawn(router.call(call("both", 1)));
    // Each waits at its gate, and the other has begun all the same.
    tokio::task::yield_now().await;
    one.wait_for_runs(1);
    two.wait_for_runs(1);
    drop((first, second));
    let Ok(Ok(Reply::Infer(response))) = running.await else { panic!() };
    assert_eq!(response.outputs.len(), 2);
}

#[tokio::test]
async fn beyond_so_many_calls_in_flight_the_next_is_refused() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    chain(&repository, 1);
    let mut router = Router::new(repository);
    let first = router.call(call("both", 1));
    let refused = router.call(call("both", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Overloaded);
    drop(first);
    router.call(call("both", 1)).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_dropped_takes_its_steps_out_of_their_queues() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    chain(&repository, IN_FLIGHT);
    let mut router = Router::new(repository);
    let gate = one.close_gate();
    let before = tokio::spawn(router.call(call("one", 1).renamed("one")));
    tokio::task::yield_now().await;
    one.wait_for_runs(1);
    let mut waiting = Box::pin(router.call(call("both", 2)));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(waiting);
    let after = router.call(call("one", 3).renamed("one"));
    drop(gate);
    before.await.unwrap().unwrap();
    after.await.unwrap();
    assert_eq!((one.batches(), two.batches()), (vec![1, 3], vec![]));
}

#[tokio::test]
async fn a_step_that_fails_ends_the_call_and_what_is_not_served_is_named_by_the_ensemble_alone() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    chain(&repository, IN_FLIGHT);
    one.fail_on(1.5);
    let mut router = Router::new(Arc::clone(&repository));
    assert!(matches!(router.call(call("both", 1)).await.unwrap_err(), Error::Backend(_)));
    assert!(two.batches().is_empty());
    repository.remove(&"two".into(), "1");
    let asked = Inspect::Ready(ModelRef { name: "both".into(), version: None });
    let mut question = call("both", 1);
    question.input = Operation::Inspect(asked);
    let Ok(Reply::Report(Report::Ready { ready, .. })) = router.call(question).await else { panic!() };
    assert!(!ready, "an ensemble is as ready as its models");
    one.fail_on(-1.0);
    let error = router.call(call("both", 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotReady);
    assert!(!error.to_string().contains("two"), "{error}");
}

#[tokio::test]
async fn ensembles_may_be_steps_and_a_circle_ends() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    chain(&repository, IN_FLIGHT);
    add(&repository, "outer", 1, vec![step("both", &[("a", "a")], &[("c", "d")])]);
    assert!(repository.contains(&ModelRef { name: "outer".into(), version: None }, "two", 0));
    let mut router = Router::new(Arc::clone(&repository));
    let Ok(Reply::Infer(response)) = router.call(call("outer", 1)).await else { panic!() };
    assert_eq!(jobs::mark(&response.outputs[0].tensor), 6.0);
    // Two loads at the same moment could make a circle that neither of them has seen.
    add(&repository, "both", 64, vec![step("outer", &[("a", "a")], &[("d", "c")])]);
    add(&repository, "outer", 64, vec![step("both", &[("a", "a")], &[("c", "d")])]);
    assert!(matches!(router.call(call("outer", 1)).await.unwrap_err(), Error::Internal(_)));
}

trait Renamed {
    fn renamed(self, model: &str) -> Self;
}

impl Renamed for Decoded {
    /// The same call of a model itself, whose input is `x`.
    fn renamed(mut self, model: &str) -> Self {
        let input = NamedTensor {
            name: "x".into(),
            tensor: match &self.input {
                Operation::Infer(request) => request.inputs.tensors().unwrap()[0].tensor.clone(),
                _ => panic!("an inference"),
            },
        };
        self.input = Operation::Infer(InferRequest::new(ModelRef { name: model.into(), version: None }, vec![input]));
        self
    }
}

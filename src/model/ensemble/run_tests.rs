//! Steps run as calls of their own models, at once where they can, and none of them outlives the call.

use super::*;
use crate::{
    call::{Call, CallId, Decoded, Inspect, Intent, ModelRef, Operation, Peer, Report, Scope, Surface, VersionState},
    model::{
        ModelSettings, Repository, State,
        ensemble::{self, IN_FLIGHT, Settings, Step, What},
        testing,
    },
    schedule::{
        Plan, Scheduler,
        testing::{self as jobs, Script},
    },
    tensor::{DataType, Signature, TensorSpec},
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
        memory: None,
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
    assert!(repository.contains(&ModelRef { name: "outer".into(), version: None }, "two"));
    let mut router = Router::new(Arc::clone(&repository));
    let Ok(Reply::Infer(response)) = router.call(call("outer", 1)).await else { panic!() };
    assert_eq!(jobs::mark(&response.outputs[0].tensor), 6.0);
    // Two loads at the same moment could make a circle that neither of them has seen.
    add(&repository, "both", 64, vec![step("outer", &[("a", "a")], &[("d", "c")])]);
    add(&repository, "outer", 64, vec![step("both", &[("a", "a")], &[("c", "d")])]);
    assert!(matches!(router.call(call("outer", 1)).await.unwrap_err(), Error::Internal(_)));
}

/// What the index, with and without `ready`, the question whether it is ready, and its versions say of `both`.
async fn told(repository: &Arc<Repository>) -> (Vec<String>, bool, bool, String) {
    let index = |ready| {
        let Report::Index(entries) = repository.index(Vec::new(), ready) else { panic!() };
        entries.into_iter().find(|entry| *entry.name == *"both")
    };
    let (state, reason) = index(false).map(|entry| (entry.state.unwrap(), entry.reason)).unwrap();
    let wanted = ModelRef { name: "both".into(), version: None };
    let versions = repository.versions(&wanted).unwrap();
    assert_eq!((versions.versions[0].1, &versions.versions[0].2), (state, &reason));
    assert_eq!(state == VersionState::Ready, versions.ready);
    let ready = repository.is_ready(&wanted).unwrap();
    (vec![format!("{state:?}")], index(true).is_some(), ready, reason.to_string())
}

#[tokio::test]
async fn a_model_that_does_not_fit_any_more_makes_the_ensemble_not_ready_and_blames_no_caller() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    chain(&repository, IN_FLIGHT);
    let mut router = Router::new(Arc::clone(&repository));
    let ready = || (vec!["Ready".to_owned()], true, true, String::new());
    assert_eq!(told(&repository).await, ready());
    let spec = |name: &str, dtype, width| TensorSpec { name: name.into(), dtype: Some(dtype), dims: vec![None, width] };
    let float = DataType::Fp32;
    for (input, output, reason) in [
        (spec("zz", float, None), spec("y", float, None), "nothing feeds its input `zz`"),
        (spec("x", DataType::Int64, None), spec("y", float, None), "its input `x` has datatype INT64, expected FP32"),
        (spec("x", float, Some(5)), spec("y", float, None), "its input `x` has shape [-1, 5], expected [-1, 4]"),
        (spec("x", float, None), spec("q", float, None), "it has no output `y`"),
    ] {
        let second = State::Ready(testing::shaped_as("two", "2", input, output));
        repository.set(&"two".into(), &"2".into(), &second);
        let expected = format!("not ready: step 2: its model was replaced by one that does not fit: {reason}");
        assert_eq!(told(&repository).await, (vec!["Failed".to_owned()], false, false, expected));
        let error = router.call(call("both", 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::NotReady, "{error}");
        assert!(error.to_string().contains("was replaced by one that does not fit"), "{error}");
        assert!(!error.to_string().contains("zz") && !error.to_string().contains("two"), "{error}");
    }
    // One that fits is as good as the one before, whatever else is the same.
    repository.set(&"two".into(), &"2".into(), &State::Ready(testing::scripted_as("two", "2", &two)));
    assert_eq!(told(&repository).await, ready());
    router.call(call("both", 1)).await.unwrap();
    repository.remove(&"two".into(), "1");
    repository.remove(&"two".into(), "2");
    let gone = "not ready: step 2: its model is not served".to_owned();
    assert_eq!(told(&repository).await, (vec!["Failed".to_owned()], false, false, gone));
}

#[tokio::test]
async fn an_ensemble_is_not_ready_where_one_within_it_is_not() {
    let (one, two) = (Script::default(), Script::default());
    let repository = world(&[("one", &one), ("two", &two)]);
    add(&repository, "inner", 1, CHAIN.iter().map(|(name, a, b)| step(name, a, b)).collect());
    add(&repository, "both", 1, vec![step("inner", &[("a", "a")], &[("c", "d")])]);
    assert!(told(&repository).await.2);
    repository.remove(&"one".into(), "1");
    let reason = told(&repository).await.3;
    assert_eq!(reason, "not ready: step 1: its model is not ready: step 1: its model is not served");
    let error = Router::new(repository).call(call("both", 1)).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().contains("inner")), (Code::NotReady, false), "{error}");
}

#[tokio::test]
async fn ensembles_that_are_run_in_more_ways_than_can_be_counted_are_walked_all_the_same() {
    let repository = world(&[("one", &Script::default())]);
    let names = ["one", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8"];
    for (depth, pair) in names.windows(2).enumerate() {
        let (input, output) = if depth == 0 { ("x", "y") } else { ("a", "t0") };
        let steps = (0..64).map(|at| step(pair[0], &[(input, "a")], &[(output, &format!("t{at}"))])).collect();
        add(&repository, pair[1], 1, steps);
    }
    let outermost = ModelRef { name: "e8".into(), version: None };
    assert!(repository.contains(&outermost, "one") && !repository.contains(&outermost, "two"));
    assert!(repository.is_ready(&outermost).unwrap());
    assert!(repository.versions(&outermost).unwrap().ready);
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

//! What calls are answered with, who shares with whom, and what becomes of those who wait together.

use super::*;
use crate::{
    call::{
        Cached, Call, CallId, Decoded, Facts, Head, Identity, InferRequest, Intent, ModelRef, Operation, Peer, Reply,
        Scope, Surface,
    },
    error::{Code, Error, Stage},
    model::{Model, Repository, Router, State as ModelState, testing},
    schedule::testing::{self as jobs, Script},
    telemetry::metrics::Metrics,
};
use tokio::task::JoinHandle;
use tower::Service;

pub(super) const SETTINGS: CacheSettings =
    CacheSettings { memory: 1 << 20, age: Duration::from_secs(600), scope: CacheScope::Identity };

/// A model that keeps answers, behind a router.
struct World {
    script: Script,
    cache: Arc<Cache>,
    model: Arc<Model>,
    router: Router,
}

impl World {
    fn new(settings: CacheSettings) -> Self {
        Self::hashed(settings, Hashing::keyed().unwrap())
    }

    fn hashed(settings: CacheSettings, hashing: Hashing) -> Self {
        let (script, cache) = (Script::default(), cache(settings, hashing));
        let model = testing::finish(jobs::plan_of(&script), &script, Some(Arc::clone(&cache)));
        let repository = Repository::default();
        repository.set(&"double".into(), &"1".into(), &ModelState::Ready(Arc::clone(&model)));
        Self { script, cache, model, router: Router::new(Arc::new(repository)) }
    }

    /// Asks for twice `mark`, in a call that `change` changes first.
    fn ask(&self, mark: f32, change: impl FnOnce(&mut Decoded)) -> (JoinHandle<Result<f32, Error>>, Arc<Facts>) {
        let input = NamedTensor { name: "x".into(), tensor: jobs::tensor(1, 4, mark) };
        let request = InferRequest::new(ModelRef { name: "double".into(), version: None }, vec![input]);
        let address = ([127, 0, 0, 1], 1).into();
        let mut head = Head::new(CallId::make(), Surface::Rest, Intent::Infer, Arc::new(Peer::new(address, address)));
        head.deadline = Instant::now() + Duration::from_secs(60);
        let sender = Arc::new(Identity::proven("a", Vec::new(), Scope::Everything));
        let mut call = Call { head, sender, input: Operation::Infer(request) };
        change(&mut call);
        let facts = Arc::clone(&call.head.facts);
        // What is asked for is under way when this returns.
        let routed = self.router.clone().call(call);
        let answered = async move {
            match routed.await? {
                Reply::Infer(response) => Ok(jobs::mark(&response.outputs[0].tensor)),
                reply => panic!("{reply:?}"),
            }
        };
        (tokio::spawn(answered), facts)
    }

    async fn run(&self, mark: f32, change: impl FnOnce(&mut Decoded)) -> (f32, Option<Cached>) {
        let (answer, facts) = self.ask(mark, change);
        (answer.await.unwrap().unwrap(), facts.cached())
    }

    /// Occupies the instance until the job is answered.
    fn occupy(&self) -> jobs::Receiver {
        let (job, receiver) = jobs::job(1, -1.0);
        let runs = self.script.batches().len();
        self.model.scheduler.submit(job).unwrap();
        self.script.wait_for_runs(runs + 1);
        receiver
    }
}

pub(super) fn cache(settings: CacheSettings, hashing: Hashing) -> Arc<Cache> {
    let (metrics, key) = (Metrics::new(), crate::call::ModelKey { name: "double".into(), version: "1".into() });
    let key = Arc::new(key);
    Cache::hashed(settings, metrics.cache(&key, &metrics.model(&key)), hashing)
}

fn by(id: &str) -> impl FnOnce(&mut Decoded) {
    let sender = Arc::new(Identity::proven(id, Vec::new(), Scope::Everything));
    move |call| call.sender = sender
}

fn nobody(_: &mut Decoded) {}

#[tokio::test]
async fn what_was_answered_is_answered_again_without_a_run() {
    let world = World::new(SETTINGS);
    assert_eq!(world.run(1.5, nobody).await, (3.0, Some(Cached::Miss)));
    let (answer, facts) = world.ask(1.5, nobody);
    assert_eq!((answer.await.unwrap().unwrap(), facts.cached()), (3.0, Some(Cached::Hit)));
    // As far as charges know it ran, for no time at all.
    assert_eq!((facts.stage(), facts.computed()), (Stage::Running, Duration::ZERO));
    assert_eq!(world.run(2.0, nobody).await.0, 4.0);
    assert_eq!(world.script.batches(), [1, 1]);
}

#[tokio::test]
async fn identities_share_answers_only_where_they_may() {
    for (scope, runs) in [(CacheScope::Identity, 2), (CacheScope::Model, 1)] {
        let world = World::new(CacheSettings { scope, ..SETTINGS });
        for _ in 0..2 {
            for id in ["a", "b"] {
                assert_eq!(world.run(1.5, by(id)).await.0, 3.0);
            }
        }
        assert_eq!(world.script.batches().len(), runs, "{scope:?}");
    }
}

#[tokio::test]
async fn identities_share_runs_only_where_they_may() {
    for (scope, runs) in [(CacheScope::Identity, 2), (CacheScope::Model, 1)] {
        let world = World::new(CacheSettings { scope, ..SETTINGS });
        let gate = world.script.close_gate();
        let held = world.occupy();
        let calls: Vec<_> = (0..8).map(|at| world.ask(1.5, by(if at % 2 == 0 { "a" } else { "b" }))).collect();
        assert_eq!(world.cache.state().flights.count(), (runs, 8));
        drop(gate);
        held.await.unwrap().unwrap();
        for (answer, facts) in calls {
            assert_eq!(answer.await.unwrap().unwrap(), 3.0);
            assert_ne!(facts.cached(), Some(Cached::Hit));
        }
        assert_eq!(world.script.batches().iter().sum::<usize>(), 1 + runs, "{scope:?}: rows");
        assert_eq!(world.cache.state().flights.count(), (0, 0));
    }
}

#[tokio::test]
async fn two_questions_with_one_hash_are_told_apart() {
    let world = World::hashed(SETTINGS, Hashing::Same);
    assert_eq!(world.run(1.0, nobody).await.0, 2.0);
    for _ in 0..2 {
        assert_eq!(world.run(2.0, nobody).await, (4.0, Some(Cached::Miss)));
    }
    assert_eq!(world.run(1.0, nobody).await, (2.0, Some(Cached::Hit)));
    assert_eq!(world.run(1.0, by("b")).await, (2.0, Some(Cached::Miss)));
    // While one is under way, too.
    let world = World::hashed(SETTINGS, Hashing::Same);
    let gate = world.script.close_gate();
    let _held = world.occupy();
    let calls: Vec<_> = [1.0, 2.0, 1.0, 3.0].into_iter().map(|mark| (mark, world.ask(mark, nobody).0)).collect();
    assert_eq!(world.cache.state().flights.count(), (3, 4));
    drop(gate);
    for (mark, answer) in calls {
        assert_eq!(answer.await.unwrap().unwrap(), mark * 2.0);
    }
    assert_eq!(world.cache.state().flights.count(), (0, 0));
}

#[tokio::test]
async fn who_leads_and_leaves_harms_nobody() {
    let world = World::new(SETTINGS);
    let gate = world.script.close_gate();
    let (leader, _) = world.ask(1.5, nobody);
    world.script.wait_for_runs(1);
    let (follower, facts) = world.ask(1.5, nobody);
    leader.abort();
    assert!(leader.await.is_err());
    drop(gate);
    assert_eq!((follower.await.unwrap().unwrap(), facts.cached()), (3.0, Some(Cached::Shared)));
    assert_eq!(world.script.batches(), [1], "the run went on");
    assert_eq!(world.run(1.5, nobody).await.1, Some(Cached::Hit));
}

#[tokio::test]
async fn when_the_last_one_has_left_nothing_runs_for_them() {
    let world = World::new(SETTINGS);
    let gate = world.script.close_gate();
    let held = world.occupy();
    let calls = [world.ask(1.5, nobody), world.ask(1.5, nobody)];
    for (call, _) in calls {
        call.abort();
        assert!(call.await.is_err());
    }
    assert_eq!(world.cache.state().flights.count(), (0, 0));
    let (next, facts) = world.ask(1.5, nobody);
    drop(gate);
    held.await.unwrap().unwrap();
    assert_eq!((next.await.unwrap().unwrap(), facts.cached()), (3.0, Some(Cached::Miss)));
    assert_eq!(world.script.batches(), [1, 1], "the one that was held and the last");
}

#[tokio::test]
async fn who_leads_and_is_late_harms_nobody() {
    let world = World::new(SETTINGS);
    let gate = world.script.close_gate();
    let held = world.occupy();
    let deadline = Instant::now() + Duration::from_millis(1);
    let (leader, late) = world.ask(1.5, |call| call.head.deadline = deadline);
    let (follower, facts) = world.ask(1.5, nobody);
    while Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    drop(gate);
    held.await.unwrap().unwrap();
    let error = leader.await.unwrap().unwrap_err();
    assert_eq!((error.code(), late.cached()), (Code::DeadlineExceeded, Some(Cached::Miss)));
    assert_eq!((follower.await.unwrap().unwrap(), facts.cached()), (3.0, Some(Cached::Miss)), "it leads now");
    assert_eq!(world.script.batches(), [1, 1]);
}

#[tokio::test]
async fn what_fails_is_told_to_all_and_not_kept() {
    let world = World::new(SETTINGS);
    world.script.fail_on(1.5);
    let gate = world.script.close_gate();
    let held = world.occupy();
    let calls: Vec<_> = (0..3).map(|_| world.ask(1.5, nobody)).collect();
    drop(gate);
    held.await.unwrap().unwrap();
    for (call, facts) in calls {
        assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Internal);
        assert_eq!(facts.stage(), Stage::Running, "what failed was the run");
    }
    assert_eq!(world.script.batches(), [1, 1], "once for all three");
    world.script.fail_on(9.0);
    assert_eq!(world.run(1.5, nobody).await, (3.0, Some(Cached::Miss)));
}

#[tokio::test]
async fn what_is_larger_than_the_bound_is_answered_and_not_kept() {
    let world = World::new(CacheSettings { memory: 1024, ..SETTINGS });
    for _ in 0..2 {
        assert_eq!(world.run(1.5, nobody).await, (3.0, Some(Cached::Miss)));
    }
    assert_eq!(world.cache.state().kept.bytes(), 0);
}

#[tokio::test]
async fn large_inputs_are_looked_for_elsewhere_and_found() {
    let world = World::new(CacheSettings { memory: 64 << 20, ..SETTINGS });
    let large = |call: &mut Decoded| {
        let input = NamedTensor { name: "x".into(), tensor: jobs::tensor(1 << 17, 4, 2.5) };
        let request = InferRequest::new(ModelRef { name: "double".into(), version: None }, vec![input]);
        call.input = Operation::Infer(request);
    };
    assert_eq!(world.run(0.0, large).await, (5.0, Some(Cached::Miss)));
    assert_eq!(world.run(0.0, large).await, (5.0, Some(Cached::Hit)));
}

#[test]
fn what_is_kept_holds_no_memory_but_its_own() {
    let cache = cache(SETTINGS, Hashing::keyed().unwrap());
    let body = jobs::tensor(1 << 10, 4, 1.0);
    let part = crate::tensor::batch::rows(&body, 0..1).unwrap();
    let question = Question { scope: None, inputs: [part.clone()].into() };
    let outputs = [NamedTensor { name: "y".into(), tensor: part.clone() }];
    let (_, entry) = cache.entry([0; 32], &question, &outputs).unwrap();
    for kept in [&entry.question.inputs[0], &entry.outputs[0].tensor] {
        assert_eq!(*kept, part);
        assert!(kept.data().is_unique(), "not a part of the body");
    }
}

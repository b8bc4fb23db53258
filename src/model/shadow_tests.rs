//! Copies of calls: whatever becomes of them, callers do not notice, and operators do.

use super::*;
use crate::{
    call::{
        Call, CallId, Decoded, Head, Identity, InferRequest, Intent, ModelRef, Operation, Peer, Reply, Scope, Surface,
    },
    model::{Repository, Router, Routing, State, Traffic, testing},
    schedule::testing::{self as jobs, Fault, Script},
};
use std::time::Duration;
use tower::Service;

struct World {
    router: Router,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    shadow: Script,
}

/// A model `m` that answers with version 1 and has version 2 as its shadow.
fn world(change: impl FnOnce(&mut Shadow)) -> World {
    let (repository, metrics, shadow) = (Arc::new(Repository::default()), Arc::new(Metrics::new()), Script::default());
    let name: Arc<str> = "m".into();
    repository.set(&name, &"1".into(), &State::Ready(testing::model("m", "1")));
    repository.set(&name, &"2".into(), &State::Ready(testing::scripted_as("m", "2", &shadow)));
    let mut settings = Shadow { to: "2".into(), ..Shadow::default() };
    change(&mut settings);
    let traffic = Traffic { shadow: Some(settings), ..Traffic::default() };
    repository.set_routing(&name, &Arc::new(Routing { traffic, ..Routing::default() })).unwrap();
    let shadows = Shadows::new(Arc::clone(&metrics));
    let router = Router::managed(Arc::clone(&repository), None, Arc::default(), Some(shadows));
    World { router, repository, metrics, shadow }
}

fn call(version: Option<&str>) -> Decoded {
    let address = ([127, 0, 0, 1], 1).into();
    let peer = Arc::new(Peer::new(address, address));
    let mut head = Head::new(CallId::make(), Surface::Rest, Intent::Infer, peer);
    head.deadline = Instant::now() + Duration::from_secs(60);
    let sender = Arc::new(Identity::proven("tester", Vec::new(), Scope::Everything));
    let model = ModelRef { name: "m".into(), version: version.map(Into::into) };
    let input = NamedTensor { name: "x".into(), tensor: jobs::tensor(1, 4, 1.5) };
    Call { head, sender, input: Operation::Infer(InferRequest::new(model, vec![input])) }
}

impl World {
    /// One call, which must be answered by version 1 whatever its copy does.
    async fn call(&mut self) {
        let Ok(Reply::Infer(response)) = self.router.call(call(None)).await else { panic!("no answer") };
        assert_eq!(&*response.model.version, "1");
        assert_eq!(jobs::mark(&response.outputs[0].tensor), 3.0);
    }

    /// Waits until so many copies have come to this end.
    async fn ended(&self, outcome: &str, count: usize) {
        let line =
            format!("sluicegate_shadow_calls_total{{model=\"m\",outcome=\"{outcome}\",version=\"2\"}} {count}\n");
        let begun = Instant::now();
        while !self.metrics.render().contains(&line) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{line}{}", self.metrics.render());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_copy_runs_and_what_differs_is_told() {
    let mut world = world(|_| {});
    world.call().await;
    world.ended("compared", 1).await;
    assert_eq!(world.shadow.batches(), [1]);
    let page = world.metrics.render();
    for line in [
        "sluicegate_shadow_difference_bucket{model=\"m\",version=\"2\",le=\"0\"} 1",
        "sluicegate_shadow_duration_seconds_count{model=\"m\",role=\"served\",version=\"2\"} 1",
        "sluicegate_shadow_duration_seconds_count{model=\"m\",role=\"shadow\",version=\"2\"} 1",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    // Who names a version is not copied: neither the shadow itself nor another.
    for version in ["1", "2"] {
        world.router.call(call(Some(version))).await.unwrap();
    }
    world.call().await;
    world.ended("compared", 2).await;
    assert_eq!(world.shadow.batches().len(), 3);
}

#[tokio::test]
async fn a_shadow_that_fails_or_panics_or_answers_with_streams_changes_nothing() {
    let mut failing = world(|_| {});
    failing.shadow.fail_on(1.5);
    failing.call().await;
    failing.ended("failed", 1).await;
    let mut panicking = world(|_| {});
    panicking.shadow.set(Fault::Panic);
    panicking.call().await;
    panicking.ended("failed", 1).await;
    let mut absent = world(|_| {});
    absent.repository.set(&"m".into(), &"2".into(), &State::Failed("bad".into()));
    absent.call().await;
    absent.ended("absent", 1).await;
}

#[tokio::test]
async fn copies_beyond_what_may_wait_are_dropped_and_nobody_waits() {
    let mut world = world(|shadow| shadow.queue = 3);
    let gate = world.shadow.close_gate();
    // The shadow does not answer at all: if anybody waited for it, this would never end.
    for _ in 0..10 {
        world.call().await;
    }
    world.ended("dropped", 7).await;
    drop(gate);
    world.ended("compared", 3).await;
    world.call().await;
    world.ended("compared", 4).await;
}

#[tokio::test]
async fn copies_that_would_hold_too_much_are_dropped() {
    // Input and output have 16 bytes each.
    let mut world = world(|shadow| shadow.memory = 2 * 32 + 31);
    let gate = world.shadow.close_gate();
    for _ in 0..4 {
        world.call().await;
    }
    world.ended("dropped", 2).await;
    drop(gate);
    world.ended("compared", 2).await;
}

#[tokio::test]
async fn a_copy_that_takes_too_long_is_given_up() {
    let mut world = world(|shadow| shadow.timeout = Duration::from_millis(20));
    let gate = world.shadow.close_gate();
    // Those that wait for their turn as well: nothing that they hold stays longer.
    for _ in 0..3 {
        world.call().await;
    }
    world.ended("failed", 3).await;
    // On a busy machine what runs in the background may not even begin by then.
    assert!(matches!(world.shadow.batches()[..], [] | [1]), "{:?}", world.shadow.batches());
    drop(gate);
}

#[tokio::test]
async fn a_version_that_goes_does_not_stay_for_its_copies() {
    let mut world = world(|_| {});
    let _gate = world.shadow.close_gate();
    for _ in 0..3 {
        world.call().await;
    }
    world.shadow.wait_for_runs(1);
    let model = world.repository.retire(&"m".into(), &"2".into()).unwrap();
    model.scheduler.close_background();
    // Their timeout is ten seconds, and the run does not end.
    let begun = Instant::now();
    while Arc::strong_count(&model) > 1 {
        assert!(begun.elapsed() < Duration::from_secs(5), "copies hold it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    world.ended("failed", 3).await;
    assert_eq!(world.shadow.batches(), [1]);
}

#[test]
fn the_share_that_is_copied_is_exact() {
    let mirror = Mirror::new(Shadow { share: 50_000, ..Shadow::default() });
    let copied = (0..100_000).filter(|_| mirror.wants_next()).count();
    assert!((4_950..=5_050).contains(&copied), "{copied}");
    let all = Mirror::new(Shadow::default());
    assert!((0..1000).all(|_| all.wants_next()));
}

#[test]
fn what_is_copied_has_nothing_to_do_with_who_answers() {
    let mirror = Mirror::new(Shadow { share: 50_000, ..Shadow::default() });
    let split = AtomicU64::new(0);
    let (mut copied, mut minor) = (0, 0);
    for _ in 0..100_000 {
        let is_minor = spread(&split, crate::model::traffic::GOLDEN, 100) >= 90;
        if mirror.wants_next() {
            copied += 1;
            minor += u32::from(is_minor);
        }
    }
    assert!((4_950..=5_050).contains(&copied), "{copied}");
    assert!((475..=525).contains(&minor), "{minor} of {copied}");
}

//! Loading directories of scripted models.

use super::*;
use crate::{
    call::ModelRef,
    error::Error,
    model::{
        Fill, Sample, SampleInput,
        testing::{Opener, directory},
    },
    schedule::{Execution, TurnSettings},
    tensor::DataType,
};
use std::{sync::atomic::Ordering, time::Duration};

/// What counts as fast in a debug build on a busy machine.
const LAX: TurnSettings = TurnSettings {
    run: Duration::from_millis(1),
    budget: Duration::from_secs(1),
    weights: 64,
    limit: Duration::from_secs(9),
};

struct World {
    loader: Loader,
    opener: Arc<Opener>,
    _directory: tempfile::TempDir,
}

fn world(files: &[(&str, &str)], lanes: Option<Lanes>, change: impl FnOnce(&mut Settings)) -> World {
    let directory = directory(files);
    let mut settings = Settings { directories: vec![directory.path().to_owned()], turn: LAX, ..Settings::default() };
    change(&mut settings);
    let opener = Arc::new(Opener::default());
    let shared: Arc<dyn Open> = opener.clone();
    let loader = Loader::new(settings, shared, Arc::default(), Arc::new(Metrics::new()), lanes);
    World { loader, opener, _directory: directory }
}

impl World {
    fn resolve(&self, name: &str) -> Result<Arc<Model>, Error> {
        self.loader.repository.resolve(&ModelRef { name: name.into(), version: None })
    }
}

#[tokio::test]
async fn a_corrupt_model_is_reported_and_the_rest_is_served() {
    let files = [("a/1/model.onnx", "ok"), ("b/1/model.onnx", "corrupt"), ("c/1/model.onnx", "panic"), ("d/1/x", "")];
    let world = world(&files, None, |_| {});
    let loaded = world.loader.load().await;
    assert_eq!(loaded.ok, 1);
    let failed: Vec<_> = loaded.failed.iter().map(|(what, _)| &**what).collect();
    assert_eq!(failed, ["b/1", "c/1", "d/1"]);
    assert_eq!(loaded.failed[0].1, "not a model: corrupt");
    assert!(world.resolve("a").is_ok());
    assert!(matches!(world.resolve("b"), Err(Error::ModelNotReady { state, .. }) if state.starts_with("not served")));
}

#[tokio::test]
async fn without_lanes_models_run_on_threads() {
    let world = world(&[("a/1/model.onnx", "ok")], None, |_| {});
    world.loader.load().await;
    let model = world.resolve("a").unwrap();
    assert_eq!(model.scheduler.execution(), Execution::Thread);
    assert!(model.scheduler.policy().enabled);
    assert_eq!(world.opener.opened.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_fast_model_runs_on_lanes_and_others_on_threads() {
    let (lanes, mut seats) = Lanes::new(1);
    let (_guard, task) = seats.remove(0).enter();
    tokio::spawn(task);
    let heavy = "x".repeat(65);
    let files = [
        ("fast/1/model.onnx", "ok"),
        ("heavy/1/model.onnx", &*heavy),
        ("slow/1/model.onnx", "slow"),
        ("stream/1/model.onnx", "stream"),
        ("strange/1/model.onnx", "fails"),
    ];
    let world = world(&files, Some(lanes), |_| {});
    let loaded = world.loader.load().await;
    assert_eq!((loaded.ok, loaded.failed.len()), (4, 1));
    let execution = |name: &str| world.resolve(name).unwrap().scheduler.execution();
    assert_eq!(execution("fast"), Execution::Turn);
    for name in ["slow", "stream", "strange"] {
        assert_eq!(execution(name), Execution::Thread, "{name}");
    }
    assert!(world.resolve("stream").unwrap().decoupled);
    assert!(!world.resolve("stream").unwrap().scheduler.policy().enabled);
}

#[tokio::test]
async fn outputs_that_do_not_follow_the_rows_switch_batching_off() {
    let files = [("a/1/model.onnx", "extra")];
    let auto = world(&files, None, |_| {});
    auto.loader.load().await;
    assert!(!auto.resolve("a").unwrap().scheduler.policy().enabled);
    let forced = world(&files, None, |settings| settings.defaults.batching.enabled = Some(true));
    let loaded = forced.loader.load().await;
    assert!(loaded.failed[0].1.contains("output `y`"), "{loaded:?}");
}

#[tokio::test]
async fn instances_are_as_many_as_configured() {
    let world = world(&[("a/1/model.onnx", "ok")], None, |settings| settings.defaults.instances = Some(3));
    world.loader.load().await;
    assert_eq!(world.opener.opened.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn what_was_measured_is_not_warmed_up_again_and_what_was_not_is() {
    let world = world(&[("a/1/model.onnx", "ok")], None, |settings| settings.defaults.instances = Some(2));
    world.loader.load().await;
    let runs: Vec<_> = world.opener.scripts.lock().unwrap().iter().map(|script| script.batches().len()).collect();
    let alone = Opener::default();
    let mut backend = alone.open(&world._directory.path().join("a/1/model.onnx"), &Default::default()).unwrap();
    crate::model::measure::measure(&mut *backend, 1, &LAX);
    let warm = alone.scripts.lock().unwrap()[0].batches().len();
    // One row is measured as an instance is warmed up; then more rows are, whether outputs follow them, and whether each of
    // two is answered as alone.
    let single = world.opener.scripts.lock().unwrap()[0].batches().iter().filter(|rows| **rows == 1).count();
    assert_eq!((single, runs[1]), (warm + 2, warm), "{runs:?}");
}

/// A sample of `rows` rows.
fn sample(rows: usize, runs: usize, fill: Fill) -> Vec<Sample> {
    let input = SampleInput { name: "x".into(), dtype: DataType::Fp32, dims: vec![rows, 4], fill, given: None };
    vec![Sample { name: "seven".into(), inputs: vec![input], outputs: Vec::new(), runs }]
}

#[tokio::test]
async fn every_instance_runs_the_samples_before_the_model_is_ready() {
    let (lanes, mut seats) = Lanes::new(1);
    let (_guard, task) = seats.remove(0).enter();
    tokio::spawn(task);
    for lanes in [None, Some(lanes)] {
        let world = world(&[("a/1/model.onnx", "ok")], lanes, |settings| {
            settings.defaults.instances = Some(3);
            settings.defaults.samples = sample(7, 2, Fill::Random);
        });
        world.loader.load().await;
        assert!(world.resolve("a").is_ok());
        let scripts = world.opener.scripts.lock().unwrap().clone();
        assert!(scripts.len() >= 2, "an instance for the lane, and its spare");
        for script in scripts {
            assert_eq!(script.batches().into_iter().filter(|rows| *rows == 7).count(), 2);
        }
    }
}

#[tokio::test]
async fn a_sample_that_fails_or_does_not_fit_fails_the_load() {
    let reason = async |content: &str, rows: usize, change: fn(&mut Settings)| {
        let world = world(&[("a/1/model.onnx", content)], None, |settings| {
            settings.defaults.samples = sample(rows, 1, Fill::Zeros);
            change(settings);
        });
        world.loader.load().await.failed.pop().map(|(_, reason)| reason)
    };
    assert_eq!(reason("ok", 1, |_| {}).await, None);
    let failed = reason("fails", 1, |_| {}).await.unwrap();
    assert!(failed.starts_with("warm-up sample `seven` failed: "), "{failed}");
    let unfit = reason("ok", 1, |settings| settings.defaults.samples[0].inputs[0].dims[1] = 5).await.unwrap();
    assert_eq!(unfit, "warm-up sample `seven`: tensor `x` has shape [1, 5], expected [-1, 4]");
}

#[tokio::test]
async fn a_model_may_have_another_file_and_batches_of_one_row() {
    let world = world(&[("a/1/net.onnx", "ok"), ("b/1/model.onnx", "ok")], None, |settings| {
        settings.defaults.file = "net.onnx".into();
        settings.defaults.batching.enabled = Some(true);
        settings.defaults.batching.max_rows = 1;
    });
    let loaded = world.loader.load().await;
    let failed: Vec<_> = loaded.failed.iter().map(|(what, reason)| format!("{what}: {reason}")).collect();
    assert_eq!(failed, ["b/1: `b/1/net.onnx` is not there"]);
    let model = world.resolve("a").unwrap();
    assert!(model.batches(), "the first dimension counts rows");
    let config = model.config();
    assert_eq!((config.max_rows, &*config.file), (Some(1), "net.onnx"));
}

#[tokio::test]
async fn turns_without_lanes_are_refused() {
    let world = world(&[("a/1/model.onnx", "ok")], None, |settings| settings.defaults.execution = Execution::Turn);
    let loaded = world.loader.load().await;
    assert_eq!(loaded.failed[0].1, "`execution: turn` needs `runtime.kind: lanes`");
}

#[test]
fn the_number_of_rows_says_what_a_batch_costs_only_if_rows_are_alike() {
    let is_even = |dtype: DataType, dims: &[Option<usize>]| {
        let spec = crate::tensor::TensorSpec { name: "x".into(), dtype: Some(dtype), dims: dims.to_vec() };
        crate::model::decision::is_even(&crate::tensor::Signature { inputs: vec![spec], outputs: Vec::new() })
    };
    assert!(is_even(DataType::Fp32, &[None, Some(4)]) && is_even(DataType::Fp32, &[None]));
    assert!(!is_even(DataType::Fp32, &[None, None]), "free in length");
    assert!(!is_even(DataType::Bytes, &[None, Some(1)]), "strings are of any length");
}

#[tokio::test]
async fn answers_in_order_are_not_for_lanes() {
    let (lanes, mut seats) = Lanes::new(1);
    let (_guard, task) = seats.remove(0).enter();
    tokio::spawn(task);
    let files = [("a/1/model.onnx", "ok")];
    let ordered = world(&files, Some(lanes.clone()), |settings| settings.defaults.batching.preserve_order = true);
    ordered.loader.load().await;
    assert_eq!(ordered.resolve("a").unwrap().scheduler.execution(), Execution::Thread);
    let forced = world(&files, Some(lanes), |settings| {
        settings.defaults.batching.preserve_order = true;
        settings.defaults.execution = Execution::Turn;
    });
    let loaded = forced.loader.load().await;
    assert!(loaded.failed[0].1.starts_with("`batching.preserve_order` is not for `execution: turn`"), "{loaded:?}");
}

#[tokio::test]
async fn closing_the_repository_ends_all_threads() {
    let world = world(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok")], None, |_| {});
    world.loader.load().await;
    let model = world.resolve("a").unwrap();
    assert!(world.loader.repository.close(std::time::Instant::now() + Duration::from_secs(10)));
    assert!(!model.scheduler.is_ready());
}

#[tokio::test]
async fn a_model_that_does_not_fit_into_the_memory_is_refused_and_says_so() {
    let files = [("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok")];
    let budget = crate::model::budget::Budget::new(1, Some(3));
    let world = world(&files, None, |settings| settings.budget = Arc::clone(&budget));
    let loaded = world.loader.load().await;
    assert_eq!((loaded.ok, loaded.failed.len()), (1, 1));
    let (what, reason) = &loaded.failed[0];
    assert!(what == "b/1" && reason.contains("(`models.memory`) are left"), "{what}: {reason}");
    assert_eq!(world.opener.opened.load(Ordering::Relaxed), 1, "it is not even opened");
    // What goes makes room, once its thread has ended.
    world.loader.repository.remove(&"a".into(), "1");
    let all = ModelKey { name: "all".into(), version: "1".into() };
    while budget.take(&all, 0, 3).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let b = crate::call::ModelRef { name: "b".into(), version: None };
    let request = LoadRequest { model: b, config: None, files: Vec::new() };
    assert_eq!(world.loader.load_one(request).await.ok, 1);
}

#[tokio::test]
async fn an_instance_in_the_background_is_made_only_if_there_is_memory_for_it() {
    for (bytes, fits) in [(3, false), (4, true)] {
        let budget = crate::model::budget::Budget::new(1, Some(bytes));
        let world = world(&[("a/1/model.onnx", "ok")], None, |settings| settings.budget = Arc::clone(&budget));
        assert_eq!(world.loader.load().await.ok, 1);
        let opened = world.opener.opened.load(Ordering::Relaxed);
        let model = world.loader.repository.resolve(&ModelRef { name: "a".into(), version: None }).unwrap();
        let (job, answer) = crate::schedule::testing::job(1, 1.0);
        model.scheduler.submit_background(job).unwrap();
        while fits && world.opener.opened.load(Ordering::Relaxed) == opened || !fits && !budget.refuses(&model.key) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if fits {
            answer.await.unwrap().unwrap();
        }
        assert_eq!(world.opener.opened.load(Ordering::Relaxed), opened + usize::from(fits));
        let other = ModelKey { name: "b".into(), version: "1".into() };
        assert_eq!(budget.take(&other, 0, 1).is_err(), fits, "what it takes is kept for it");
        drop(model);
        world.loader.repository.remove(&"a".into(), "1");
        while budget.take(&other, 0, bytes).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn what_a_call_names_is_short_wherever_it_is_told() {
    let world = world(&[], None, |_| {});
    let name = "x".repeat(200_000);
    let model = ModelRef { name: name.as_str().into(), version: None };
    let loaded = world.loader.load_one(LoadRequest { model, config: None, files: Vec::new() }).await;
    assert!(loaded.failed[0].1.starts_with("a model's name has"), "{:?}", loaded.failed[0].1);
    let crate::call::Report::Index(entries) = world.loader.repository.index(Vec::new(), false) else { panic!() };
    assert!(entries.is_empty(), "and not in the index");
    assert!(!world.loader.metrics.render().contains("xxxx"), "nor on the page of metrics");
    assert_eq!(short("äö", 3), "ä");
}

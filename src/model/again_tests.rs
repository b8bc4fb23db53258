//! What is missing at first and comes later, over scripted models on disk.

use super::*;
use crate::model::Repository;
use crate::{
    backend::{Backend, Open, OpenError, SessionSettings},
    call::{LoadRequest, ModelRef, VersionState},
    error::Error,
    model::{
        Model, ModelSettings, Reader, Settings,
        budget::Budget,
        control::Control,
        ensemble,
        testing::{Opener, directory},
    },
    telemetry::metrics::Metrics,
    tensor::{DataType, Shape, Signature, Tensor, TensorSpec, Tensors},
};
use std::{path::Path, sync::atomic::Ordering, time::Duration};

struct World {
    control: Control,
    loader: Arc<Loader>,
    opener: Arc<Wides>,
    directory: tempfile::TempDir,
}

fn reference(name: &str) -> ModelRef {
    ModelRef { name: name.into(), version: None }
}

/// A model of so many numbers in a row of `x`, and of `y`, all zero: its file is `TAKES>YIELDS`.
struct Wide(Arc<Signature>);

impl Backend for Wide {
    fn signature(&self) -> &Arc<Signature> {
        &self.0
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let (rows, width) = (inputs[0].shape().dims()[0], self.0.outputs[0].dims[1].unwrap());
        let zeros = Tensor::of(DataType::Fp32, Shape::new([rows, width]), vec![0_f32; rows * width]);
        Ok([zeros.unwrap()].into_iter().collect())
    }
}

/// Opens those, and what [`Opener`] does.
#[derive(Debug, Default)]
struct Wides(Opener);

impl Open for Wides {
    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let text = std::fs::read_to_string(path).unwrap();
        let Some((takes, yields)) = text.split_once('>') else { return self.0.open(path, settings) };
        let spec = |name: &str, width: &str| TensorSpec {
            name: name.into(),
            dtype: Some(DataType::Fp32),
            dims: vec![None, width.parse().ok()],
        };
        Ok(Box::new(Wide(Arc::new(Signature { inputs: vec![spec("x", takes)], outputs: vec![spec("y", yields)] }))))
    }
}

/// A `model.yaml` is `LABEL=VERSION`, or names the models that are the ensemble's steps, one after the other. `memory` is for models
/// together.
fn world(files: &[(&str, &str)], memory: Option<u64>) -> World {
    let directory = directory(files);
    let reader = Reader::new(|source, defaults| {
        let Ok(file) = std::fs::read_to_string(source.folder.join("model.yaml")) else { return Ok(defaults.clone()) };
        if let Some((label, version)) = file.split_once('=') {
            let labels = [(label.into(), version.into())].into();
            let routing = Arc::new(crate::model::Routing { labels, ..Default::default() });
            return Ok(ModelSettings { routing, ..defaults.clone() });
        }
        // The steps of an ensemble have its names, those of a model the model's.
        let [takes, yields] = if file.starts_with("outer") { ["in", "out"] } else { ["x", "y"] };
        let last = file.split('>').count() - 1;
        let step = |(at, name): (usize, &str)| {
            let tensor = |at: usize| match at {
                0 => "in".into(),
                at if at > last => "out".into(),
                at => format!("t{at}").into(),
            };
            let what = ensemble::What::Model(reference(name));
            let (inputs, outputs) = (vec![(takes.into(), tensor(at))], vec![(yields.into(), tensor(at + 1))]);
            ensemble::Step { what, inputs, outputs }
        };
        let steps = file.split('>').enumerate().map(step).collect();
        let graph = ensemble::Settings { steps, in_flight: 1, inputs: None, outputs: None };
        Ok(ModelSettings { ensemble: Some(Arc::new(graph)), ..defaults.clone() })
    });
    let settings = Settings {
        directories: vec![directory.path().to_owned()],
        reader: Some(reader),
        budget: Budget::new(1, memory),
        ..Settings::default()
    };
    let repository: Arc<Repository> = Arc::default();
    let opener = Arc::new(Wides::default());
    let loader =
        Arc::new(Loader::new(settings, opener.clone(), Arc::clone(&repository), Arc::new(Metrics::new()), None));
    let (control, orders) = Control::new();
    tokio::spawn(orders.obey(Arc::clone(&loader), repository));
    tokio::spawn(Arc::clone(&loader).load_what_fits());
    World { control, loader, opener, directory }
}

impl World {
    async fn load(&self, model: &str) -> Result<(), Error> {
        self.load_version(model, None).await
    }

    async fn load_version(&self, model: &str, version: Option<&str>) -> Result<(), Error> {
        let model = ModelRef { name: model.into(), version: version.map(Into::into) };
        self.control.load(LoadRequest { model, config: None, files: Vec::new() }).await
    }

    fn model(&self, name: &str) -> Option<Arc<Model>> {
        self.loader.repository.resolve(&reference(name)).ok()
    }

    fn state(&self, name: &str) -> VersionState {
        self.loader.repository.versions(&reference(name)).unwrap().versions[0].1
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if is_so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never was");
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

#[tokio::test]
async fn an_ensemble_is_served_once_its_models_are_however_deep() {
    let world = world(&[("a/model.yaml", "outer1"), ("outer1/model.yaml", "m"), ("n/1/model.onnx", "ok")], None);
    let loaded = world.loader.load().await;
    assert_eq!((loaded.ok, loaded.failed.len()), (1, 2), "{loaded:?}");
    world.write("m/1/model.onnx", "ok");
    world.load("m").await.unwrap();
    assert!(world.model("outer1").is_some() && world.model("a").is_some());
    // It goes on by itself: nobody has loaded it, and nothing of it is loaded again for another model's sake.
    let before = world.model("a").unwrap();
    world.load("n").await.unwrap();
    world.load("m").await.unwrap();
    assert!(Arc::ptr_eq(&before, &world.model("a").unwrap()));
}

#[tokio::test]
async fn an_ensemble_that_was_unloaded_stays_so() {
    let world = world(&[("a/model.yaml", "m")], None);
    assert!(world.load("a").await.is_err());
    world.control.unload(reference("a")).await.unwrap();
    world.write("m/1/model.onnx", "ok");
    world.load("m").await.unwrap();
    assert_eq!(world.state("a"), VersionState::Unloaded);
    world.load("a").await.unwrap();
    assert_eq!(world.state("a"), VersionState::Ready);
}

#[tokio::test]
async fn an_ensemble_whose_model_takes_something_else_now_takes_that_too() {
    let world = world(&[("a/model.yaml", "m"), ("m/1/model.onnx", "ok")], None);
    world.loader.load().await;
    let before = world.model("a").unwrap();
    assert!(before.batches());
    // Its outputs do not follow its rows, so that calls run one by one.
    world.write("m/1/model.onnx", "extra");
    world.load("m").await.unwrap();
    assert!(!world.model("a").unwrap().batches());
    assert!(!Arc::ptr_eq(&before, &world.model("a").unwrap()));
}

#[tokio::test]
async fn an_ensemble_two_of_whose_models_change_one_after_the_other_runs_both_of_them() {
    let files = [("a/model.yaml", "m>n"), ("m/1/model.onnx", "4>64"), ("n/1/model.onnx", "64>2")];
    let world = world(&files, None);
    world.loader.load().await;
    assert_eq!(world.state("a"), VersionState::Ready);
    let before = world.model("a").unwrap();
    world.write("m/1/model.onnx", "4>128");
    world.load("m").await.unwrap();
    assert_eq!(world.state("a"), VersionState::Failed, "the second does not take what the first yields");
    world.write("n/1/model.onnx", "128>2");
    world.load("n").await.unwrap();
    assert_eq!(world.state("a"), VersionState::Ready);
    let now = world.model("a").unwrap();
    assert_eq!(now.signature, before.signature, "and callers see nothing of it");
    assert!(!Arc::ptr_eq(&before, &now));
}

#[tokio::test]
async fn an_ensemble_that_is_put_together_again_reads_no_file() {
    let files = [("a/model.yaml", "m"), ("a/labels.txt", "cat\n"), ("m/1/model.onnx", "4>2")];
    let world = world(&files, None);
    world.loader.load().await;
    world.write("a/labels.txt", "dog\n");
    world.write("m/1/model.onnx", "4>3");
    world.load("m").await.unwrap();
    let now = world.model("a").unwrap();
    assert_eq!(now.signature.outputs[0].dims, [None, Some(3)]);
    assert_eq!(now.labels[0].as_deref(), Some(&["cat".into()][..]), "as it was loaded");
    world.load("a").await.unwrap();
    assert_eq!(world.model("a").unwrap().labels[0].as_deref(), Some(&["dog".into()][..]));
}

#[tokio::test]
async fn a_model_for_which_there_was_no_memory_is_loaded_when_there_is() {
    // Each counts as its two bytes.
    let files = [("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok"), ("c/1/model.onnx", "ok")];
    let world = world(&files, Some(4));
    let loaded = world.loader.load().await;
    assert_eq!((loaded.ok, loaded.failed.len()), (2, 1), "{loaded:?}");
    assert!(loaded.failed[0].1.contains("`models.memory`"), "{loaded:?}");
    let left_out = loaded.failed[0].0.trim_end_matches("/1").to_owned();
    assert_eq!(world.state(&left_out), VersionState::Failed);
    let served = ["a", "b", "c"].into_iter().find(|name| **name != *left_out).unwrap();
    world.control.unload(reference(served)).await.unwrap();
    world.until(|world| world.model(&left_out).is_some()).await;
    // And one that nobody wants any more is not.
    assert!(world.load(served).await.unwrap_err().to_string().contains("`models.memory`"));
    world.control.unload(reference(served)).await.unwrap();
    world.control.unload(reference(&left_out)).await.unwrap();
    world.until(|world| world.state(&left_out) == VersionState::Unloaded).await;
    assert_eq!(world.state(served), VersionState::Unloaded);
}

/// `m` is served, what is to replace it is `held`, and there is memory for that as soon as `a` is unloaded.
async fn replaced_by_held() -> World {
    let world = world(&[("m/1/model.onnx", "ok"), ("a/1/model.onnx", "stream")], Some(8));
    world.loader.load().await;
    world.write("m/1/model.onnx", "held");
    assert!(world.load("m").await.unwrap_err().to_string().contains("`models.memory`"));
    world.opener.0.holds.store(true, Ordering::Relaxed);
    world.control.unload(reference("a")).await.unwrap();
    world.until(|world| world.opener.0.held.load(Ordering::Relaxed) > 0).await;
    world
}

#[tokio::test]
async fn what_is_being_loaded_again_is_not_unloaded_meanwhile() {
    let world = replaced_by_held().await;
    let before = world.model("m").unwrap();
    let refused = world.control.unload(reference("m")).await.unwrap_err();
    assert!(matches!(refused, crate::error::Error::Conflict(_)), "{refused}");
    world.opener.0.holds.store(false, Ordering::Relaxed);
    world.until(|world| world.model("m").is_some_and(|now| !Arc::ptr_eq(&before, &now))).await;
    drop(before);
    while world.control.unload(reference("m")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.until(|world| world.state("m") == VersionState::Unloaded).await;
}

#[tokio::test]
async fn what_is_gone_while_it_is_loaded_again_does_not_come_back() {
    let world = replaced_by_held().await;
    let gone = super::super::picture::Change { name: "m".into(), before: None, now: None };
    let (loader, repository) = (Arc::clone(&world.loader), Arc::clone(&world.loader.repository));
    let following = tokio::spawn(async move { super::super::watch::follow(&loader, &repository, gone).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.opener.0.holds.store(false, Ordering::Relaxed);
    following.await.unwrap();
    world.until(|world| world.loader.repository.versions(&reference("m")).is_err()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.model("m").is_none());
}

#[tokio::test]
async fn what_is_loaded_again_does_not_put_old_rules_over_newer_ones() {
    let files = [("m/1/model.onnx", "ok"), ("a/1/model.onnx", "slow")];
    let world = world(&files, Some(8));
    world.loader.load().await;
    world.write("m/2/model.onnx", "stream");
    world.write("m/model.yaml", "x=2");
    assert!(world.load("m").await.unwrap_err().to_string().contains("`models.memory`"));
    world.write("m/model.yaml", "x=1");
    world.load_version("m", Some("1")).await.unwrap();
    let label = |world: &World| world.loader.repository.routing("m").unwrap().labels.get("x").cloned();
    assert_eq!(label(&world).as_deref(), Some("1"));
    world.control.unload(reference("a")).await.unwrap();
    world.until(|world| world.model("m").is_some_and(|model| &*model.key.version == "2")).await;
    world.until(|world| world.loader.repository.serving("m").len() == 1).await;
    assert_eq!(label(&world).as_deref(), Some("1"));
}

#[tokio::test]
async fn an_ensemble_follows_its_model_to_another_version_when_one_is_unloaded() {
    let files = [("a/model.yaml", "m"), ("m/1/model.onnx", "extra"), ("m/2/model.onnx", "ok")];
    let world = world(&files, None);
    world.load_version("m", Some("1")).await.unwrap();
    world.load_version("m", Some("2")).await.unwrap();
    world.load("a").await.unwrap();
    assert!(world.model("a").unwrap().batches());
    let version = ModelRef { name: "m".into(), version: Some("2".into()) };
    world.control.unload(version).await.unwrap();
    assert!(!world.model("a").unwrap().batches(), "it is made of version 1 now");
}

#[tokio::test]
async fn an_ensemble_that_is_unloaded_is_waited_for_no_more() {
    let world = world(&[("a/model.yaml", "m"), ("m/1/model.onnx", "ok"), ("b/model.yaml", "nobody")], None);
    world.loader.load().await;
    world.control.unload(reference("a")).await.unwrap();
    world.control.unload(reference("b")).await.unwrap();
    assert!(lock(&world.loader.waiting.ensembles).is_empty(), "nor is what it is made of kept");
}

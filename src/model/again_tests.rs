//! What is missing at first and comes later, over scripted models on disk.

use super::*;
use crate::model::Repository;
use crate::{
    call::{LoadRequest, ModelRef, VersionState},
    model::{
        Model, ModelSettings, Reader, Settings,
        budget::Budget,
        control::Control,
        ensemble,
        testing::{Opener, directory},
    },
    telemetry::metrics::Metrics,
};
use std::time::Duration;

struct World {
    control: Control,
    loader: Arc<Loader>,
    directory: tempfile::TempDir,
}

fn reference(name: &str) -> ModelRef {
    ModelRef { name: name.into(), version: None }
}

/// A `model.yaml` names the model that is the ensemble's one step. `memory` is for models together.
fn world(files: &[(&str, &str)], memory: Option<u64>) -> World {
    let directory = directory(files);
    let reader = Reader::new(|source, defaults| {
        let Ok(file) = std::fs::read_to_string(source.folder.join("model.yaml")) else { return Ok(defaults.clone()) };
        let named = |name: &str, tensor: &str| vec![(name.into(), tensor.into())];
        let what = ensemble::What::Model(reference(&file));
        // The steps of an ensemble have its names, those of a model the model's.
        let [takes, yields] = if file.starts_with("outer") { ["in", "out"] } else { ["x", "y"] };
        let steps = vec![ensemble::Step { what, inputs: named(takes, "in"), outputs: named(yields, "out") }];
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
    let opener = Arc::new(Opener::default());
    let loader = Arc::new(Loader::new(settings, opener, Arc::clone(&repository), Arc::new(Metrics::new()), None));
    let (control, orders) = Control::new();
    tokio::spawn(orders.obey(Arc::clone(&loader), repository));
    tokio::spawn(Arc::clone(&loader).load_what_fits());
    World { control, loader, directory }
}

impl World {
    async fn load(&self, model: &str) -> Result<(), crate::error::Error> {
        self.control.load(LoadRequest { model: reference(model), config: None, files: Vec::new() }).await
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

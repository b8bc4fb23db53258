//! Models that follow their folders: scripted models on disk, and looks every few milliseconds.

use super::*;
use crate::{
    call::{ModelRef, Report, VersionState},
    model::{
        ModelSettings, Reader, Routing, Settings as Models, VersionPolicy,
        testing::{Opener, directory},
    },
    telemetry::metrics::Metrics,
};
use std::{fs, sync::atomic::Ordering};
use tempfile::TempDir;

struct World {
    repository: Arc<Repository>,
    opener: Arc<Opener>,
    metrics: Arc<Metrics>,
    directory: TempDir,
    _watcher: tokio::task::JoinHandle<()>,
}

/// `model.yaml` is `VERSIONS [LABEL=VERSION ...]`: how many of the latest versions are served, and labels.
fn read(text: &str, defaults: &ModelSettings) -> Result<ModelSettings, String> {
    let mut words = text.split_whitespace();
    let latest = words.next().unwrap_or("1").parse().map_err(|_| "no number".to_owned())?;
    let labels = words.filter_map(|word| word.split_once('=')).map(|(label, version)| (label.into(), version.into()));
    let routing = Arc::new(Routing { labels: labels.collect(), ..Routing::default() });
    Ok(ModelSettings { versions: VersionPolicy::Latest(latest), routing, ..defaults.clone() })
}

async fn world(files: &[(&str, &str)]) -> World {
    settling(files, Duration::from_millis(30)).await
}

async fn settling(files: &[(&str, &str)], settle: Duration) -> World {
    let directory = directory(files);
    let settings = Models {
        directories: vec![directory.path().to_owned()],
        reader: Some(Reader::new(|source, defaults| {
            read(&fs::read_to_string(source.folder.join("model.yaml")).unwrap_or_default(), defaults)
        })),
        ..Models::default()
    };
    let (repository, metrics) = (Arc::new(Repository::default()), Arc::new(Metrics::new()));
    let opener = Arc::new(Opener::default());
    let loader = Loader::new(settings, opener.clone(), Arc::clone(&repository), Arc::clone(&metrics), None);
    let loader = Arc::new(loader);
    let look = Settings { every: Duration::from_millis(10), settle };
    let watcher = Watcher::new(look, Arc::clone(&loader), Arc::clone(&repository)).await;
    loader.load().await;
    let watcher = tokio::spawn(watcher.run());
    World { repository, opener, metrics, directory, _watcher: watcher }
}

impl World {
    /// Puts a file there at once, as whoever publishes models should.
    fn write(&self, path: &str, content: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let hidden = self.directory.path().join(".new");
        fs::write(&hidden, content).unwrap();
        fs::rename(hidden, path).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.directory.path().join(path)).unwrap();
    }

    /// `VERSION STATE REASON` of each entry in the index.
    fn index(&self) -> Vec<String> {
        let Report::Index(entries) = self.repository.index(Vec::new(), false) else { panic!() };
        let entry = |entry: crate::call::IndexEntry| {
            let version = entry.version.unwrap();
            let state = if entry.state == Some(VersionState::Ready) { "ready" } else { "not ready" };
            format!("{}/{version} {state} {}", entry.name, entry.reason).trim_end().to_owned()
        };
        entries.into_iter().map(entry).collect()
    }

    async fn until(&self, expected: &[&str]) {
        let begun = Instant::now();
        while self.index() != expected {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?} instead of {expected:?}", self.index());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn resolve(&self, version: Option<&str>) -> String {
        let wanted = ModelRef { name: "m".into(), version: version.map(Into::into) };
        self.repository.resolve(&wanted).map_or_else(|error| error.to_string(), |model| model.key.version.to_string())
    }
}

#[tokio::test]
async fn a_new_version_takes_over_and_the_old_one_finishes_its_calls() {
    let world = world(&[("m/1/model.onnx", "ok")]).await;
    assert_eq!(world.index(), ["m/1 ready"]);
    let called = world.repository.resolve(&ModelRef { name: "m".into(), version: None }).unwrap();
    world.write("m/2/model.onnx", "ok");
    world.until(&["m/2 ready", "m/1 not ready unloading"]).await;
    assert!(called.scheduler.is_ready(), "a call that began with it ends with it");
    drop(called);
    world.until(&["m/2 ready", "m/1 not ready unloaded"]).await;
    // What is not on disk any more is not in the index either, nor on the page of metrics.
    world.remove("m/1");
    world.until(&["m/2 ready"]).await;
    assert!(!world.metrics.render().contains("version=\"1\""));
}

#[tokio::test]
async fn a_load_that_fails_changes_nothing_but_its_own_entry() {
    let world = world(&[("m/1/model.onnx", "ok"), ("m/model.yaml", "1 stable=1")]).await;
    world.write("m/model.yaml", "1 stable=2");
    world.write("m/2/model.onnx", "corrupt");
    world.until(&["m/2 not ready not served: loading it failed: not a model: corrupt", "m/1 ready"]).await;
    assert_eq!((&*world.resolve(None), &*world.resolve(Some("stable"))), ("1", "1"));
    assert!(world.metrics.render().contains("sluicegate_model_loads_total{model=\"m\",outcome=\"failed\"} 1"));
    // Mended, it takes over, label and all.
    world.write("m/2/model.onnx", "ok");
    world.until(&["m/2 ready", "m/1 not ready unloaded"]).await;
    assert_eq!((&*world.resolve(None), &*world.resolve(Some("stable"))), ("2", "2"));
}

#[tokio::test]
async fn a_version_whose_new_file_is_bad_goes_on_and_says_so() {
    let world = world(&[("m/1/model.onnx", "ok")]).await;
    world.write("m/1/model.onnx", "corrupt");
    world.until(&["m/1 ready goes on as it was loaded before: not a model: corrupt"]).await;
    world.write("m/1/model.onnx", "ok");
    world.until(&["m/1 ready"]).await;
}

#[tokio::test]
async fn what_is_copied_file_by_file_is_loaded_once_it_is_whole_and_no_error_is_told() {
    // Longer than even a busy machine pauses between two lines of this test.
    let world = settling(&[("m/1/model.onnx", "ok")], Duration::from_secs(3)).await;
    let opened = world.opener.opened.load(Ordering::Relaxed);
    world.write("m/2/model.onnx", "needs weights.bin");
    world.write("m/2/tokenizer.json", "{}");
    // It has been seen by then, and is left alone: looks are 10 ms apart.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.index(), ["m/1 ready"]);
    }
    let mut growing = fs::File::create(world.directory.path().join("m/2/weights.bin")).unwrap();
    for _ in 0..5 {
        std::io::Write::write_all(&mut growing, b"weights").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(world.index(), ["m/1 ready"]);
    }
    world.until(&["m/2 ready", "m/1 not ready unloaded"]).await;
    assert_eq!(world.opener.opened.load(Ordering::Relaxed), opened + 1, "once, and not by halves");
    assert!(!world.metrics.render().contains("outcome=\"failed\""));
}

#[tokio::test]
async fn what_settles_by_halves_is_refused_and_loaded_when_it_is_whole() {
    let world = world(&[("m/1/model.onnx", "ok")]).await;
    world.write("m/2/model.onnx", "needs weights.bin");
    let refused = "m/2 not ready not served: loading it failed: keeps weights in what cannot be found";
    world.until(&[refused, "m/1 ready"]).await;
    world.write("m/2/weights.bin", "weights");
    world.until(&["m/2 ready", "m/1 not ready unloaded"]).await;
}

#[tokio::test]
async fn models_come_and_go_with_their_folders() {
    let world = world(&[("m/1/model.onnx", "ok")]).await;
    world.write("n/7/model.onnx", "ok");
    world.until(&["m/1 ready", "n/7 ready"]).await;
    world.remove("m");
    world.until(&["n/7 ready"]).await;
    assert_eq!(world.resolve(None), "model `m` is unknown");
}

#[tokio::test]
async fn what_a_model_says_of_its_versions_holds_at_once_and_opens_nothing_again() {
    let files = [("m/1/model.onnx", "ok"), ("m/2/model.onnx", "ok"), ("m/model.yaml", "2 stable=1 canary=2")];
    let world = world(&files).await;
    let opened = world.opener.opened.load(Ordering::Relaxed);
    assert_eq!((&*world.resolve(Some("stable")), &*world.resolve(Some("canary"))), ("1", "2"));
    world.write("m/model.yaml", "2 stable=2 old=1");
    let begun = Instant::now();
    while world.resolve(Some("stable")) != "2" {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((&*world.resolve(Some("old")), &*world.resolve(None)), ("1", "2"), "all of it at once");
    assert!(world.resolve(Some("canary")).contains("unknown"));
    assert_eq!(world.opener.opened.load(Ordering::Relaxed), opened);
    // A label of a version that is not there moves nothing.
    world.write("m/model.yaml", "2 stable=9");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.resolve(Some("stable")), "2");
    let reason = "label `stable` is version 9, which is not served: it is not there, or not among `versions`";
    world.until(&[&format!("m/2 ready {reason}"), &format!("m/1 ready {reason}")]).await;
    world.write("m/model.yaml", "2 stable=1");
    world.until(&["m/2 ready", "m/1 ready"]).await;
}

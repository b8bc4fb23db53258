//! Models that follow their folders: scripted models on disk, and looks every few milliseconds.

use super::*;
use crate::{
    call::{ModelRef, Report, VersionState},
    model::{
        ModelSettings, Reader, Routing, Settings as Models, Shadow, Traffic, VersionPolicy,
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
    loader: Arc<Loader>,
    _watcher: Option<tokio::task::JoinHandle<()>>,
}

/// `model.yaml` is `VERSIONS [LABEL=VERSION ...] [VERSION:WEIGHT ...] [~VERSION] [panic]`: how many of the latest versions
/// are served, labels, a split and a shadow.
fn read(text: &str, defaults: &ModelSettings) -> Result<ModelSettings, String> {
    let mut words = text.split_whitespace();
    let latest = words.next().unwrap_or("1").parse().map_err(|_| "no number".to_owned())?;
    let (mut labels, mut traffic) = (std::collections::BTreeMap::new(), Traffic::default());
    for word in words {
        if let Some((label, version)) = word.split_once('=') {
            labels.insert(label.into(), version.into());
        } else if let Some((version, weight)) = word.split_once(':') {
            traffic.split.push((version.into(), weight.parse().unwrap()));
        } else if let Some(version) = word.strip_prefix('~') {
            traffic.shadow = Some(Shadow { to: version.into(), ..Shadow::default() });
        } else {
            panic!("a bug in what reads it");
        }
    }
    let routing = Arc::new(Routing { labels, traffic });
    Ok(ModelSettings { versions: VersionPolicy::Latest(latest), routing, ..defaults.clone() })
}

async fn world(files: &[(&str, &str)]) -> World {
    settling(files, Duration::from_millis(30)).await
}

async fn settling(files: &[(&str, &str)], settle: Duration) -> World {
    let world = still(files).await;
    let look = Settings { every: Duration::from_millis(10), settle };
    let watcher = Watcher::new(look, Arc::clone(&world.loader), Arc::clone(&world.repository)).await;
    World { _watcher: Some(tokio::spawn(watcher.run())), ..world }
}

/// Loaded, and followed by nobody: see [`World::follow`].
async fn still(files: &[(&str, &str)]) -> World {
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
    loader.load().await;
    World { repository, opener, metrics, directory, loader, _watcher: None }
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

    /// Changes files of `m` and follows, as if all that had been seen at once.
    async fn follow(&self, change: impl FnOnce(&Self)) {
        self.begin_to_follow(change).await.await;
    }

    async fn begin_to_follow(&self, change: impl FnOnce(&Self)) -> impl Future<Output = ()> + Send + 'static {
        let before = self.loader.pictures().await.unwrap().remove("m").map(Result::unwrap);
        change(self);
        let now = self.loader.pictures().await.unwrap().remove("m").map(Result::unwrap);
        let (loader, repository) = (Arc::clone(&self.loader), Arc::clone(&self.repository));
        async move { follow(&loader, &repository, Change { name: "m".into(), before, now }).await }
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

#[tokio::test]
async fn new_versions_and_the_rules_that_keep_them_small_come_together() {
    for (rules, usual) in [("9 1:90 2:5 3:5", "1"), ("9 ~3", "2")] {
        let world = still(&[("m/1/model.onnx", "ok"), ("m/model.yaml", "9")]).await;
        world.opener.holds.store(true, Ordering::Relaxed);
        let following = world.begin_to_follow(|world| {
            world.write("m/model.yaml", rules);
            world.write("m/2/model.onnx", "ok");
            world.write("m/3/model.onnx", "held");
        });
        let following = tokio::spawn(following.await);
        while world.opener.held.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // 2 is ready by now, and would be the highest.
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(world.resolve(None), "1", "{rules}");
        }
        world.opener.holds.store(false, Ordering::Relaxed);
        following.await.unwrap();
        assert_eq!(world.index(), ["m/3 ready", "m/2 ready", "m/1 ready"], "{rules}");
        assert_eq!(world.resolve(None), usual, "{rules}");
    }
}

#[tokio::test]
async fn a_canary_whose_sibling_fails_takes_no_calls_that_its_rules_would_not_give_it() {
    let world = still(&[("m/1/model.onnx", "ok"), ("m/model.yaml", "9")]).await;
    let publish = |world: &World| {
        world.write("m/model.yaml", "9 1:90 2:5 3:5");
        world.write("m/2/model.onnx", "ok");
        world.write("m/3/model.onnx", "corrupt");
    };
    world.follow(publish).await;
    assert_eq!(world.resolve(None), "1");
    let why = "its new rules of traffic are not in force, because not all of the model can be loaded, and without them \
               it would get calls that they keep from it";
    let failed = |version: &str, why: &str| format!("m/{version} not ready not served: loading it failed: {why}");
    assert_eq!(world.index(), [failed("3", "not a model: corrupt"), failed("2", why), "m/1 ready".to_owned()]);
    world.follow(|world| world.write("m/3/model.onnx", "ok")).await;
    assert_eq!(world.index(), ["m/3 ready", "m/2 ready", "m/1 ready"]);
    assert_eq!(world.resolve(None), "1");
}

#[tokio::test]
async fn versions_to_which_the_rules_send_calls_stay_until_the_new_rules_hold() {
    let files = [("m/3/model.onnx", "ok"), ("m/4/model.onnx", "ok"), ("m/model.yaml", "9 3:1 4:2")];
    let world = still(&files).await;
    let replace = |world: &World| {
        world.remove("m/3");
        world.remove("m/4");
        world.write("m/model.yaml", "9 5:1 6:2");
        world.write("m/5/model.onnx", "ok");
        world.write("m/6/model.onnx", "corrupt");
    };
    world.follow(replace).await;
    // Where the old rules send nothing to it, what is ready may be called by its number.
    assert_eq!((&*world.resolve(None), &*world.resolve(Some("5"))), ("4", "5"));
    world.follow(|world| world.write("m/6/model.onnx", "ok")).await;
    world.until(&["m/6 ready", "m/5 ready"]).await;
    assert_eq!(world.resolve(None), "6");
}

#[tokio::test]
async fn what_cannot_be_read_for_a_moment_is_not_gone() {
    let world = world(&[("m/1/model.onnx", "ok"), ("n/1/model.onnx", "ok")]).await;
    let (folder, away) = (world.directory.path().join("m"), world.directory.path().join(".m"));
    // A link to itself: an error like that of storage that is away, for whoever may read everything too.
    for what in [folder.clone(), folder.join("1")] {
        fs::rename(&what, &away).unwrap();
        std::os::unix::fs::symlink(&what, &what).unwrap();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(world.index(), ["m/1 ready", "n/1 ready"], "{}", what.display());
        }
        fs::remove_file(&what).unwrap();
        fs::rename(&away, &what).unwrap();
    }
    world.write("n/2/model.onnx", "ok");
    world.until(&["m/1 ready", "n/2 ready", "n/1 not ready unloaded"]).await;
    world.remove("m");
    world.until(&["n/2 ready", "n/1 not ready unloaded"]).await;
}

#[tokio::test]
async fn a_model_that_is_gone_takes_its_bad_folders_out_of_the_index() {
    let world = still(&[("m/1/model.onnx", "ok"), ("m/007/model.onnx", "ok")]).await;
    assert_eq!(world.index().len(), 2);
    world.follow(|world| world.remove("m")).await;
    world.until(&[]).await;
}

#[tokio::test]
async fn a_bug_while_a_model_is_looked_for_takes_nothing_away() {
    let world = still(&[("m/1/model.onnx", "ok"), ("m/2/model.onnx", "ok"), ("m/model.yaml", "9")]).await;
    world.follow(|world| world.write("m/model.yaml", "9 panic")).await;
    assert_eq!(world.index(), ["m/2 ready", "m/1 ready"]);
}

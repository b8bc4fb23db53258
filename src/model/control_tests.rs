//! Loading and unloading while calls come, over scripted models on disk.

use super::*;
use crate::{
    call::{IndexEntry, Report},
    model::{
        Load, ModelSettings, Reader, Settings, VersionPolicy,
        testing::{Opener, directory},
    },
    telemetry::metrics::Metrics,
};
use std::{
    fs,
    path::Path,
    sync::{Mutex, mpsc as blocking},
};
use tempfile::TempDir;

struct World {
    control: Control,
    repository: Arc<Repository>,
    metrics: Arc<Metrics>,
    directory: TempDir,
    /// Dropped, it lets loads go on whose configuration is `held`.
    held: blocking::Sender<()>,
}

/// Nothing is loaded at first.
fn world(files: &[(&str, &str)]) -> World {
    let directory = directory(files);
    let (held, until) = blocking::channel();
    let until = Mutex::new(until);
    let settings = Settings {
        directories: vec![directory.path().to_owned()],
        load: Load::None,
        // What a call brings says how many versions it wants.
        reader: Some(Reader::new(move |source, defaults| {
            if source.config == Some("held") {
                let _ = until.lock().unwrap().recv();
                return Ok(defaults.clone());
            }
            if source.config == Some("panic") {
                panic!("a bug in what reads it");
            }
            // And the label that is the version 9, which is never there.
            if source.config == Some("label") {
                let labels = [("x".into(), "9".into())].into();
                let routing = Arc::new(crate::model::Routing { labels, ..Default::default() });
                return Ok(ModelSettings { versions: VersionPolicy::All, routing, ..defaults.clone() });
            }
            let latest = source.config.map_or(Ok(1), str::parse).map_err(|_| "no number".to_owned())?;
            Ok(ModelSettings { versions: VersionPolicy::Latest(latest), ..defaults.clone() })
        })),
        ..Settings::default()
    };
    let (repository, metrics) = (Arc::new(Repository::default()), Arc::new(Metrics::new()));
    let opener = Arc::new(Opener::default());
    let loader = Loader::new(settings, opener, Arc::clone(&repository), Arc::clone(&metrics), None);
    let (control, orders) = Control::new();
    tokio::spawn(orders.obey(Arc::new(loader), Arc::clone(&repository)));
    World { control, repository, metrics, directory, held }
}

impl World {
    async fn load(&self, model: &str, config: Option<&str>, files: &[(&str, &str)]) -> Result<(), Error> {
        let files = files.iter().map(|(path, text)| ((*path).into(), text.to_string().into())).collect();
        self.control.load(LoadRequest { model: reference(model), config: config.map(Into::into), files }).await
    }

    async fn unload(&self, model: &str) -> Result<(), Error> {
        self.control.unload(reference(model)).await
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn state(&self, name: &str) -> Vec<(String, VersionState)> {
        let Ok(report) = self.repository.versions(&reference(name)) else { return Vec::new() };
        report.versions.iter().map(|(version, state, _)| (version.to_string(), *state)).collect()
    }
}

/// `NAME` or `NAME/VERSION`.
fn reference(text: &str) -> ModelRef {
    match text.split_once('/') {
        Some((name, version)) => ModelRef { name: name.into(), version: Some(version.into()) },
        None => ModelRef { name: text.into(), version: None },
    }
}

#[tokio::test]
async fn a_model_is_loaded_when_a_call_says_so() {
    let world = world(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok")]);
    assert_eq!(world.state("a"), []);
    world.load("a", None, &[]).await.unwrap();
    assert_eq!(world.state("a"), [("1".to_owned(), VersionState::Ready)]);
    assert_eq!(world.state("b"), []);
}

#[tokio::test]
async fn the_index_has_what_was_never_loaded_by_name_only() {
    let world = world(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok"), ("notes/x", "")]);
    world.load("a", None, &[]).await.unwrap();
    let Report::Index(entries) = world.repository.index(world.control.names().await.unwrap(), false) else { panic!() };
    let entry = |name: &str, version: Option<&str>, state| {
        let (name, version) = (name.into(), version.map(Into::into));
        IndexEntry { name, version, state, labels: Vec::new(), reason: "".into() }
    };
    let expected = [entry("a", Some("1"), Some(VersionState::Ready)), entry("b", None, None)];
    assert_eq!(entries, expected);
    let Report::Index(ready) = world.repository.index(Vec::new(), true) else { panic!() };
    assert_eq!(ready, expected[..1]);
}

#[tokio::test]
async fn a_question_waits_for_no_order() {
    let names: Vec<_> = (0..=AT_ONCE).map(|number| format!("m{number}")).collect();
    let files: Vec<_> = names.iter().map(|name| format!("{name}/1/model.onnx")).collect();
    let world = world(&files.iter().map(|path| (&**path, "ok")).collect::<Vec<_>>());
    let request =
        |name: &String| LoadRequest { model: reference(name), config: Some("held".into()), files: Vec::new() };
    let loads: Vec<_> = names.iter().map(|name| tokio::spawn(world.control.load(request(name)))).collect();
    let asked = [world.control.names(), world.control.names()];
    let answers = tokio::time::timeout(Duration::from_secs(10), futures_util::future::join_all(asked)).await;
    for answer in answers.expect("it is answered while all that is done at once is being done") {
        assert_eq!(answer.unwrap().len(), names.len());
    }
    assert!(loads.iter().all(|load| !load.is_finished()));
    drop(world.held);
    for load in loads {
        load.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_bad_model_is_refused_with_its_reason_and_nothing_else_changes() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    world.load("a", None, &[]).await.unwrap();
    let before = world.repository.resolve(&reference("a")).unwrap();
    world.write("a/1/model.onnx", "broken");
    let refused = world.load("a", None, &[]).await.unwrap_err();
    assert_eq!(refused.to_string(), "model `a` cannot be loaded: not a model: broken");
    let after = world.repository.resolve(&reference("a")).unwrap();
    assert!(Arc::ptr_eq(&before, &after), "the old one answers all the while");
    world.write("new/1/model.onnx", "broken");
    assert!(world.load("new", None, &[]).await.is_err());
    assert_eq!(world.state("new"), [("1".to_owned(), VersionState::Failed)]);
}

#[tokio::test]
async fn a_load_of_several_versions_is_done_as_a_whole_or_not_at_all() {
    let world = world(&[("a/1/model.onnx", "ok"), ("a/2/model.onnx", "ok"), ("a/007/model.onnx", "ok")]);
    world.load("a", Some("2"), &[]).await.unwrap();
    let now = || ["a/1", "a/2"].map(|version| world.repository.resolve(&reference(version)).unwrap());
    let before = now();
    let is_as_before = || before.iter().zip(&now()).all(|(before, now)| Arc::ptr_eq(before, now));
    // What is wrong with the request as a whole is found before anything is opened.
    world.write("a/3/model.onnx", "ok");
    let refused = world.load("a", Some("label"), &[]).await.unwrap_err();
    assert!(refused.to_string().contains("label `x` is version 9, which is not served"), "{refused}");
    assert!(is_as_before() && world.state("a").len() == 2, "{:?}", world.state("a"));
    // One of three is bad.
    world.write("a/2/model.onnx", "broken");
    let refused = world.load("a", Some("3"), &[]).await.unwrap_err().to_string();
    let expected = "model `a` cannot be loaded: version 2: not a model: broken";
    assert_eq!(refused, expected);
    assert!(is_as_before());
    assert_eq!(world.state("a")[0], ("3".to_owned(), VersionState::Failed));
    let Report::Index(entries) = world.repository.index(Vec::new(), false) else { panic!() };
    let reason = |version: &str| {
        entries.iter().find(|entry| entry.version.as_deref() == Some(version)).map(|entry| &*entry.reason)
    };
    assert_eq!(reason("2"), Some("goes on as it was loaded before: not a model: broken"));
    assert!(reason("1").unwrap().ends_with("another version of the same load cannot be loaded"));
    assert!(reason("007").unwrap().starts_with("is no version"));
    world.write("a/2/model.onnx", "ok");
    world.load("a", Some("3"), &[]).await.unwrap();
    assert_eq!(world.repository.serving("a").len(), 3);
    assert!(!is_as_before());
}

#[tokio::test]
async fn what_is_being_loaded_at_the_start_is_neither_loaded_nor_unloaded_by_a_call() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    world.repository.begin(&"a".into(), &"1".into());
    assert!(matches!(world.unload("a").await, Err(Error::Conflict(_))));
    assert!(matches!(world.load("a", None, &[]).await, Err(Error::Conflict(_))));
    assert_eq!(world.state("a"), [("1".to_owned(), VersionState::Loading)]);
}

#[tokio::test]
async fn a_model_whose_files_a_call_brought_is_not_unknown() {
    let world = world(&[]);
    world.load("new", Some("1"), &[("1/model.onnx", "ok")]).await.unwrap();
    let refused = world.load("new", None, &[]).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict(_)), "{refused}");
    assert!(refused.to_string().contains("load it with its files again"), "{refused}");
}

#[tokio::test]
async fn of_models_that_only_calls_know_nothing_stays() {
    let world = world(&[]);
    let two = [("1/model.onnx", "ok"), ("2/model.onnx", "broken")];
    for (name, config, files) in [
        ("thought of 0", None, &[][..]),
        ("thought-of-1", None, &two[..1]),
        ("thought-of-2", Some("1"), &[("x", "ok")]),
        ("thought-of-3", Some("1"), &two[1..]),
        ("thought-of-4", Some("many"), &two[..1]),
        ("thought-of-5", Some("2"), &two),
    ] {
        assert!(world.load(name, config, files).await.is_err(), "{name}");
    }
    world.load("thought-of-6", Some("1"), &[("1/model.onnx", "ok")]).await.unwrap();
    assert!(world.metrics.render().contains("thought-of-6"));
    world.unload("thought-of-6").await.unwrap();
    wait(|| world.state("thought-of-6").is_empty()).await;
    let Report::Index(entries) = world.repository.index(Vec::new(), false) else { panic!() };
    assert_eq!(entries, []);
    wait(|| !world.metrics.render().contains("thought")).await;
    assert!(world.metrics.render().contains(r#"sluicegate_model_loads_total{model="",outcome="failed"}"#));
    // Of what was there before, what there is to say is said as ever.
    world.write("a/1/model.onnx", "ok");
    world.load("a", None, &[]).await.unwrap();
    assert!(world.load("a", Some("1"), &[("1/model.onnx", "broken")]).await.is_err());
    assert!(world.load("a", Some("1"), &[("7/model.onnx", "broken")]).await.is_err());
    assert_eq!(world.state("a"), [("1".to_owned(), VersionState::Ready)]);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    for name in ["nobody", "a/2", "a/x", "../a", ".."] {
        let error = world.load(name, None, &[]).await.unwrap_err();
        let expected = if name.contains("..") { "a model's name has" } else { "unknown" };
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    assert!(matches!(world.unload("a").await, Err(Error::ModelNotFound { .. })), "it was never loaded");
}

#[tokio::test]
async fn a_new_version_takes_over_and_the_old_one_goes() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    world.load("a", None, &[]).await.unwrap();
    world.write("a/2/model.onnx", "ok");
    world.load("a", None, &[]).await.unwrap();
    assert_eq!(&*world.repository.resolve(&reference("a")).unwrap().key.version, "2");
    wait(|| world.state("a")[1].1 == VersionState::Unloaded).await;
    assert!(matches!(world.repository.resolve(&reference("a/1")), Err(Error::ModelNotFound { .. })));
}

#[tokio::test]
async fn one_version_alone_is_loaded_and_unloaded() {
    let world = world(&[("a/1/model.onnx", "ok"), ("a/2/model.onnx", "ok")]);
    world.load("a/1", None, &[]).await.unwrap();
    assert_eq!(world.state("a"), [("1".to_owned(), VersionState::Ready)]);
    world.load("a/2", None, &[]).await.unwrap();
    assert_eq!(world.repository.serving("a"), [Arc::from("2"), Arc::from("1")]);
    world.unload("a/2").await.unwrap();
    assert_eq!(world.repository.serving("a"), [Arc::from("1")]);
}

#[tokio::test]
async fn a_model_that_is_unloaded_finishes_its_calls_first() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    world.load("a", None, &[]).await.unwrap();
    let memory =
        |world: &World| world.metrics.render().contains("sluicegate_model_memory_bytes{model=\"a\",version=\"1\"}");
    assert!(memory(&world));
    let call = world.repository.resolve(&reference("a")).unwrap();
    world.unload("a").await.unwrap();
    assert_eq!(world.state("a"), [("1".to_owned(), VersionState::Unloading)]);
    assert!(matches!(world.repository.resolve(&reference("a")), Err(Error::ModelNotReady { .. })));
    assert!(call.scheduler.is_ready());
    assert!(memory(&world));
    drop(call);
    wait(|| world.state("a") == [("1".to_owned(), VersionState::Unloaded)]).await;
    wait(|| !memory(&world)).await;
    assert!(matches!(world.repository.resolve(&reference("a")), Err(Error::ModelNotFound { .. })));
    world.unload("a").await.unwrap();
    world.load("a", None, &[]).await.unwrap();
    assert!(world.metrics.render().contains(r#"sluicegate_model_state{model="a",state="ready",version="1"} 1"#));
}

#[tokio::test]
async fn a_call_may_bring_the_configuration() {
    let world = world(&[("a/1/model.onnx", "ok"), ("a/2/model.onnx", "ok"), ("a/3/model.onnx", "ok")]);
    world.load("a", Some("2"), &[]).await.unwrap();
    assert_eq!(world.repository.serving("a"), [Arc::from("3"), Arc::from("2")]);
    let error = world.load("a", Some("many"), &[]).await.unwrap_err();
    assert!(error.to_string().contains("no number"), "{error}");
    assert_eq!(world.repository.serving("a"), [Arc::from("3"), Arc::from("2")]);
}

#[tokio::test]
async fn a_call_may_bring_the_files_and_they_stay_inside() {
    let world = world(&[("a/1/model.onnx", "corrupt")]);
    world.load("a", Some("1"), &[("7/model.onnx", "ok")]).await.unwrap();
    assert_eq!(world.repository.serving("a"), [Arc::from("7")]);
    world.load("new", Some("1"), &[("1/model.onnx", "ok")]).await.unwrap();
    let folder = world.repository.resolve(&reference("new")).unwrap().files.as_ref().unwrap().path().to_owned();
    assert!(folder.join("1/model.onnx").exists());
    for path in ["model.onnx", "../1/model.onnx", "1/../x", "1/.hidden", "0/model.onnx", "1/a/b", "x/model.onnx", "1/"]
    {
        let error = world.load("b", Some("1"), &[(path, "ok")]).await.unwrap_err();
        assert!(error.to_string().contains("file"), "{path}: {error}");
    }
    let error = world.load("b", None, &[("1/model.onnx", "ok")]).await.unwrap_err();
    assert!(error.to_string().contains("`config`"), "{error}");
    world.unload("new").await.unwrap();
    wait(|| !Path::new(&folder).exists()).await;
}

#[tokio::test]
async fn a_second_order_for_the_same_model_is_a_conflict() {
    let world = world(&[("a/1/model.onnx", "ok"), ("b/1/model.onnx", "ok")]);
    let held = LoadRequest { model: reference("a"), config: Some("held".into()), files: Vec::new() };
    let first = tokio::spawn(world.control.load(held));
    tokio::task::yield_now().await;
    for second in [world.load("a", None, &[]).await, world.unload("a").await] {
        assert!(matches!(second, Err(Error::Conflict(_))), "{second:?}");
    }
    world.load("b", None, &[]).await.unwrap();
    drop(world.held);
    first.await.unwrap().unwrap();
}

/// Waits for something that happens elsewhere soon.
async fn wait(done: impl Fn() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < until, "it does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_unload_waits_for_no_load() {
    let names: Vec<_> = (0..=AT_ONCE).map(|number| format!("m{number}")).collect();
    let files: Vec<_> = names.iter().chain([&"a".to_owned()]).map(|name| format!("{name}/1/model.onnx")).collect();
    let world = world(&files.iter().map(|path| (&**path, "ok")).collect::<Vec<_>>());
    world.load("a", None, &[]).await.unwrap();
    let request =
        |name: &String| LoadRequest { model: reference(name), config: Some("held".into()), files: Vec::new() };
    let loads: Vec<_> = names.iter().map(|name| tokio::spawn(world.control.load(request(name)))).collect();
    let unloaded = tokio::time::timeout(Duration::from_secs(10), world.unload("a")).await;
    unloaded.expect("it is done while all that is loaded at once is being loaded").unwrap();
    assert!(loads.iter().all(|load| !load.is_finished()));
    drop(world.held);
    for load in loads {
        load.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_version_that_is_unloaded_twice_is_unloaded_when_the_calls_of_both_have_ended() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    let is = |state| world.state("a") == [("1".to_owned(), state)];
    world.load("a", None, &[]).await.unwrap();
    let first = world.repository.resolve(&reference("a")).unwrap();
    world.unload("a").await.unwrap();
    world.load("a", None, &[]).await.unwrap();
    let second = world.repository.resolve(&reference("a")).unwrap();
    world.unload("a").await.unwrap();
    drop(first);
    tokio::time::sleep(LOOK * 5).await;
    assert!(is(VersionState::Unloading), "its own calls have not");
    drop(second);
    wait(|| is(VersionState::Unloaded)).await;
}

#[tokio::test]
async fn a_fault_of_the_server_is_not_told_as_the_callers() {
    let world = world(&[("a/1/model.onnx", "ok")]);
    world.load("a", None, &[]).await.unwrap();
    let error = world.load("a", Some("panic"), &[]).await.unwrap_err();
    assert!(matches!(error, Error::Internal(_)), "{error}");
    assert_eq!(world.state("a"), [("1".to_owned(), VersionState::Ready)]);
}

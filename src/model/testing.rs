//! What the tests of this module share: models over scripted back ends, and an opener of files that
//! are scripts.
//!
//! A file's text says what becomes of it: `ok`, `slow`, `corrupt`, `panic`, `stream`, `extra`, `fails`, `held`.

use super::{Cache, Model, ModelSettings};
use crate::{
    backend::{Backend, Open, OpenError, SessionSettings},
    schedule::{
        Plan, Scheduler,
        testing::{self, Fault, Script},
    },
    tensor::{Signature, TensorSpec},
};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

pub(super) fn model(name: &str, version: &str) -> Arc<Model> {
    let mut plan = testing::plan();
    plan.key = Arc::new(crate::call::ModelKey { name: name.into(), version: version.into() });
    finish(plan, &Script::default(), None)
}

pub(super) fn scripted(script: &Script) -> Arc<Model> {
    finish(testing::plan_of(script), script, None)
}

/// A version under a script.
pub(super) fn scripted_as(name: &str, version: &str, script: &Script) -> Arc<Model> {
    let mut plan = testing::plan_of(script);
    plan.key = Arc::new(crate::call::ModelKey { name: name.into(), version: version.into() });
    finish(plan, script, None)
}

/// A version that takes `input` and yields `output`, under a script that knows nothing of that.
pub(super) fn shaped_as(name: &str, version: &str, input: TensorSpec, output: TensorSpec) -> Arc<Model> {
    let mut plan = testing::plan();
    plan.key = Arc::new(crate::call::ModelKey { name: name.into(), version: version.into() });
    plan.signature = Arc::new(Signature { inputs: vec![input], outputs: vec![output] });
    finish(plan, &Script::default(), None)
}

/// A version that runs by this plan, over a script, and keeps its answers here.
pub(super) fn finish(plan: Plan, script: &Script, cache: Option<Arc<Cache>>) -> Arc<Model> {
    let backend = testing::backend(script);
    Arc::new(Model {
        key: Arc::clone(&plan.key),
        signature: Arc::clone(&plan.signature),
        decoupled: backend.is_decoupled(),
        settings: Arc::new(ModelSettings { platform: "test".into(), ..ModelSettings::default() }),
        instances: 1,
        cache,
        absent: crate::model::Absent::default(),
        labels: Arc::new([None]),
        since: SystemTime::now(),
        files: None,
        ensemble: None,
        memory: None,
        scheduler: Scheduler::on_threads(plan, vec![backend]).unwrap(),
    })
}

/// Opens files that say what to do.
#[derive(Debug, Default)]
pub(super) struct Opener {
    pub(super) opened: AtomicUsize,
    /// One of each instance, in the order they were opened.
    pub(super) scripts: Mutex<Vec<Script>>,
    /// While it is set, opening a `held` file does not end.
    pub(super) holds: AtomicBool,
    /// Files that somebody has begun to open and that are held.
    pub(super) held: AtomicUsize,
}

impl Open for Opener {
    fn open(&self, path: &Path, _: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let script = Script::default();
        match &*std::fs::read_to_string(path).unwrap() {
            "ok" => {}
            "held" => {
                self.held.fetch_add(1, Ordering::Relaxed);
                while self.holds.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
            "slow" => script.take(Duration::from_millis(2)),
            "stream" => script.set(Fault::Stream(1)),
            // As a model does that keeps its weights outside.
            text if text.starts_with("needs ") => {
                let weights = path.with_file_name(&text[6..]);
                std::fs::metadata(weights)
                    .map_err(|_| OpenError("keeps weights in what cannot be found".to_owned()))?;
            }
            "extra" => script.set(Fault::ExtraRow),
            "fails" => script.fail_on(0.0),
            "panic" => script.set(Fault::Panic),
            other => return Err(OpenError(format!("not a model: {other}"))),
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.scripts.lock().unwrap().push(script.clone());
        Ok(testing::backend(&script))
    }
}

/// A repository of models on disk, `(path, content)` each.
pub(super) fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    directory
}

//! Models from the start on: loaded, waited for where they are required, and followed where they may change.

use crate::{
    call::{ModelRef, Readiness},
    model::{
        Loaded, Loader, Repository,
        watch::{Settings, Watcher},
    },
};
use futures_util::FutureExt;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// Looking which models there are may take this long before calls are taken without knowing it.
const SCAN: Duration = Duration::from_secs(5);

/// Loads all models, tells what came of it, and follows their folders as `settings` say. `scanned` is dropped when it is
/// known which models there are. Its name, if it ends though it
/// should not.
pub(super) async fn serve(
    loader: Arc<Loader>,
    models: Arc<Repository>,
    settings: Option<Settings>,
    required: Vec<Arc<str>>,
    ready: Readiness,
    tell: watch::Sender<Option<Arc<Loaded>>>,
    scanned: oneshot::Sender<()>,
) -> Option<&'static str> {
    let watcher = match settings {
        Some(settings) => Some(Watcher::new(settings, Arc::clone(&loader), Arc::clone(&models)).await),
        None => None,
    };
    let loaded = loader.load_telling(scanned).await;
    let mut missing = pin!(await_required(&required, &models, &ready));
    // Before anybody hears of it: whoever waits for models looks at readiness next.
    let is_over = (&mut missing).now_or_never().is_some();
    tell.send_replace(Some(Arc::new(loaded)));
    let missing = async {
        if !is_over {
            missing.await;
        }
    };
    let follow = async {
        match watcher {
            Some(watcher) => watcher.run().await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(missing, follow, loader.load_what_fits());
    Some("the watcher of models")
}

/// Waits until it is known which models there are, and not for ever: a caller hears that a model is not ready, and not that
/// there is none, from the first call on.
pub(super) async fn known(scanned: oneshot::Receiver<()>) {
    if timeout(SCAN, scanned).await.is_err() {
        tracing::warn!("looking for models takes long; calls are taken meanwhile");
    }
}

/// Says that the server is ready once every model that it needs is (contract 01 section 1): a model that cannot be loaded
/// is reported and not waited for, unless it is required. A required one may come later, where models may change.
async fn await_required(required: &[Arc<str>], models: &Repository, ready: &Readiness) {
    let mut changes = ready.changes();
    let mut told = false;
    let is_missing = |name: &&Arc<str>| {
        let wanted = ModelRef { name: Arc::clone(name), version: None };
        !models.is_ready(&wanted).unwrap_or(false)
    };
    loop {
        let missing: Vec<_> = required.iter().filter(is_missing).cloned().collect();
        let Some(name) = missing.first() else { break };
        ready.set_missing(missing.clone());
        if !told {
            tracing::error!(model = %name, "not ready: a required model is not loaded");
            told = true;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
    ready.set_loaded(true);
}

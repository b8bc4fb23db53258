//! Models that follow their folders while the server runs (`models.control: watch`).
//!
//! Each model whose folder has changed and been still for a while is loaded anew as far as it has changed: new versions
//! take over, old ones finish the calls that they have, and a load that fails changes nothing but its own entry in the
//! index. What a folder looks like is `picture`'s to see; how a version is loaded is the loader's.

use super::{
    Loader, Repository, State,
    control::retire,
    picture::{Change, Pictures, Settling},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};

/// Models that are loaded at once: each may read gigabytes.
const AT_ONCE: usize = 4;

/// Looks are at least so far apart, whatever happens.
const PAUSE: Duration = Duration::from_millis(5);

/// How folders are looked at (`models.watch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often.
    pub every: Duration,
    /// How long a folder must have been the same before it is loaded.
    pub settle: Duration,
}

/// Follows the folders of models.
#[derive(Debug)]
pub struct Watcher {
    settings: Settings,
    loader: Arc<Loader>,
    repository: Arc<Repository>,
    /// How the folders were before the models in them were loaded.
    first: Pictures,
}

impl Watcher {
    /// Looks at the folders before anything is loaded from them: what changes from now on is loaded again.
    pub async fn new(settings: Settings, loader: Arc<Loader>, repository: Arc<Repository>) -> Self {
        let first = loader.pictures().await.unwrap_or_else(|error| {
            tracing::error!(error, "models cannot be looked for");
            Pictures::new()
        });
        Self { settings, loader, repository, first }
    }

    /// Follows them for ever. To be run on the control runtime, once everything was loaded for the first time.
    pub async fn run(self) {
        let Self { settings, loader, repository, first } = self;
        let mut settling = Settling::new(settings.settle, first, Instant::now());
        let (mut waiting, mut working) = (Vec::new(), JoinSet::<Arc<str>>::new());
        let (mut unreadable, mut unknown) = (None, BTreeMap::new());
        loop {
            let soon = settling.due().map(|due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = sleep(soon.unwrap_or(settings.every).min(settings.every).max(PAUSE)) => {}
                Some(done) = working.join_next() => {
                    if let Ok(name) = done {
                        settling.done(&name);
                    }
                }
            }
            match loader.pictures().await {
                Ok(found) => {
                    unreadable = None;
                    let now: BTreeMap<_, _> = found
                        .iter()
                        .filter_map(|(name, picture)| Some((Arc::clone(name), picture.clone().err()?)))
                        .collect();
                    for (model, error) in now.iter().filter(|(name, error)| unknown.get(*name) != Some(*error)) {
                        tracing::error!(%model, error, "the model's folder cannot be read, what is served of it stays");
                    }
                    unknown = now;
                    waiting.extend(settling.see(found, Instant::now()));
                }
                // Nothing is known then, so nothing changes: storage that is away for a moment takes no model with it.
                Err(error) => {
                    if unreadable.as_ref() != Some(&error) {
                        tracing::error!(error, "models cannot be looked for, those that are served stay");
                    }
                    unreadable = Some(error);
                }
            }
            while working.len() < AT_ONCE && !waiting.is_empty() {
                let (change, loader, repository) = (waiting.remove(0), Arc::clone(&loader), Arc::clone(&repository));
                working.spawn(async move {
                    let name = Arc::clone(&change.name);
                    // Its own task, so that a panic is that of one model, which is then looked at again.
                    if tokio::spawn(async move { follow(&loader, &repository, change).await }).await.is_err() {
                        tracing::error!(model = %name, "following a model's folder panicked");
                    }
                    name
                });
            }
        }
    }
}

/// Does what a change of a model's folder asks for, when nobody else does anything with the model.
pub(super) async fn follow(loader: &Arc<Loader>, repository: &Arc<Repository>, change: Change) {
    let Change { name, before, now } = change;
    let _turn = loader.busy.wait(&name).await;
    let Some(now) = now else {
        tracing::info!(model = %name, "the model's folder is gone");
        loader.waiting.take_gone(&name);
        clear(loader, repository, &name, |_| true);
        // Nor are folders in it that should have been versions.
        return repository.refuse(Some(&name), Vec::new());
    };
    tracing::info!(model = %name, "the model's folder has changed");
    let same: Vec<String> = before.iter().flat_map(|before| now.unchanged(before)).map(|it| it.to_string()).collect();
    let kept: HashMap<_, _> = repository
        .states()
        .into_iter()
        .filter_map(|(of, version, state)| match state {
            State::Ready(model) if of == name && same.iter().any(|same| **same == *version) => {
                Some((version, Arc::clone(&model.settings)))
            }
            _ => None,
        })
        .collect();
    let loaded = loader.renew(&name, kept).await;
    let serves = |version: &Arc<str>| repository.is_serving(&name, version);
    loader.waiting.take_gone(&name);
    if loaded.is_whole(&name) {
        clear(loader, repository, &name, |version| !now.has(version));
        for version in repository.serving(&name).iter().filter(|version| !loaded.versions.contains(version)) {
            retire(loader, repository, &name, version, false);
        }
    } else if loaded.old_rules {
        // Calls go by rules that may know only what has no folder any more: it goes when the new ones are in force.
        let gone = repository.serving(&name).into_iter().filter(|version| !now.has(version));
        loader.waiting.set_gone(&name, gone.collect());
    } else if loaded.versions.iter().any(serves) {
        // What failed may have been meant to take over from what is served; only what has no folder any more must go.
        clear(loader, repository, &name, |version| !now.has(version));
    }
}

/// Takes the versions of a model out of service that are `gone` from disk, and forgets them.
fn clear(loader: &Arc<Loader>, repository: &Arc<Repository>, name: &Arc<str>, gone: impl Fn(&str) -> bool) {
    for (of, version, state) in repository.states() {
        if of != *name || !gone(&version) {
            continue;
        }
        match state {
            State::Ready(_) => retire(loader, repository, name, &version, true),
            State::Loading | State::Failed(_) | State::Unloaded => loader.forget(name, &version),
            // Whoever retires it forgets it.
            State::Unloading(_) => {}
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;

//! Loading and unloading while the server runs, by calls of intent `manage` (contract 02 section 5).
//!
//! A [`Control`] is what the router holds: it hands orders to the loader, which runs on the control runtime, and waits for
//! what comes of them. One thing at a time is done with a model; a second order for it is a conflict. Questions wait for no
//! order: whoever loads a large model wants to see how far it is. What a load is made of is the loader's; who may order one
//! was decided above.

use super::{Loader, Repository, State, busy::Turn, forget::known, scan};
use crate::{
    call::{LoadRequest, ModelKey, ModelRef, VersionState},
    error::{Error, Limit},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// Orders of each kind that wait for the loader, and questions; beyond it they are refused.
const WAITING: usize = 64;
/// Loads that are carried out at once: each may read gigabytes.
const AT_ONCE: usize = 4;
/// How often a model that is being unloaded is looked at: its calls are answered one by one, and nobody tells.
const LOOK: Duration = Duration::from_millis(20);

/// Hands orders to the loader. Cloning it is cloning a handle.
#[derive(Clone, Debug)]
pub struct Control {
    loads: mpsc::Sender<Order<LoadRequest>>,
    unloads: mpsc::Sender<Order<ModelRef>>,
    questions: mpsc::Sender<Question>,
}

/// Where the loader takes orders from.
#[derive(Debug)]
pub struct Orders {
    loads: mpsc::Receiver<Order<LoadRequest>>,
    unloads: mpsc::Receiver<Order<ModelRef>>,
    questions: mpsc::Receiver<Question>,
}

#[derive(Debug)]
struct Order<T> {
    what: T,
    done: oneshot::Sender<Result<(), Error>>,
}

/// Who wants to hear which models could be loaded.
type Question = oneshot::Sender<Vec<Arc<str>>>;

// === impl Control ===

impl Control {
    /// A handle, and what the loader reads: see [`Orders::obey`].
    pub fn new() -> (Self, Orders) {
        let (loads, to_load) = mpsc::channel(WAITING);
        let (unloads, to_unload) = mpsc::channel(WAITING);
        let (questions, asked) = mpsc::channel(WAITING);
        (Self { loads, unloads, questions }, Orders { loads: to_load, unloads: to_unload, questions: asked })
    }

    /// Loads a model, or loads it again; over when it takes calls. That has no deadline, and neither has its turn among the
    /// others: opening a large model takes what it takes, and neither a thread nor ONNX Runtime can be ended from outside. Who
    /// waits for it has the deadline of the call, and the order goes on without it.
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`], [`Error::Conflict`], [`Error::Overloaded`], or [`Error::InvalidRequest`] with what is
    /// wrong with the model. [`Error::Internal`] if that could not be found out.
    pub fn load(&self, request: LoadRequest) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        order(&self.loads, request)
    }

    /// Takes a model, or one version of it, out of service; over when it takes no more calls. Waits for no load.
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`], [`Error::Conflict`] or [`Error::Overloaded`].
    pub fn unload(&self, model: ModelRef) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        order(&self.unloads, model)
    }

    /// Names of the models that could be loaded.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`].
    pub fn names(&self) -> impl Future<Output = Result<Vec<Arc<str>>, Error>> + Send + use<> {
        let (question, answer) = oneshot::channel();
        let sent = self.questions.try_send(question);
        async move {
            sent.map_err(|_| Error::Overloaded { limit: Limit::Questions })?;
            answer.await.map_err(|_| Error::ShuttingDown)
        }
    }
}

fn order<T>(orders: &mpsc::Sender<Order<T>>, what: T) -> impl Future<Output = Result<(), Error>> + Send + use<T> {
    let (done, answer) = oneshot::channel();
    let sent = orders.try_send(Order { what, done }).is_ok();
    async move {
        if !sent {
            return Err(Error::Overloaded { limit: Limit::Orders });
        }
        // An order that began is carried out, whoever still waits for it.
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }
}

// === impl Orders ===

impl Orders {
    /// Carries out orders, and answers questions, until no handle is left. To be run on the control runtime.
    pub async fn obey(self, loader: Arc<Loader>, repository: Arc<Repository>) {
        let Self { loads, unloads, questions } = self;
        tokio::join!(
            carry_out_loads(loads, &loader, &repository),
            carry_out_unloads(unloads, &loader, &repository),
            answer(questions, &loader)
        );
    }
}

async fn carry_out_loads(
    mut orders: mpsc::Receiver<Order<LoadRequest>>,
    loader: &Arc<Loader>,
    repository: &Arc<Repository>,
) {
    let mut working = JoinSet::new();
    while let Some(Order { what, done }) = orders.recv().await {
        while working.len() >= AT_ONCE {
            // A panic in one order is its own: its caller finds its channel closed.
            drop(working.join_next().await);
        }
        let (loader, repository) = (Arc::clone(loader), Arc::clone(repository));
        working.spawn(async move {
            // A caller that has gone does not want to know.
            let _ = done.send(load(&loader, &repository, what).await);
        });
        while working.try_join_next().is_some() {}
    }
}

/// Each at once: it takes no time, and makes room.
async fn carry_out_unloads(
    mut orders: mpsc::Receiver<Order<ModelRef>>,
    loader: &Arc<Loader>,
    repository: &Arc<Repository>,
) {
    while let Some(Order { what, done }) = orders.recv().await {
        // A caller that has gone does not want to know.
        let _ = done.send(unload(loader, repository, &what));
    }
}

/// One look at the disk at a time, for all who asked before it began.
async fn answer(mut questions: mpsc::Receiver<Question>, loader: &Loader) {
    while let Some(first) = questions.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = questions.try_recv() {
            waiting.push(next);
        }
        let names = loader.names().await;
        for question in waiting {
            // A caller that has gone does not want to know.
            let _ = question.send(names.clone());
        }
    }
}

async fn load(loader: &Arc<Loader>, repository: &Arc<Repository>, request: LoadRequest) -> Result<(), Error> {
    let name = Arc::clone(&request.model.name);
    let version = request.model.version.clone();
    let _turn = take(loader, repository, &name)?;
    let has_folder = request.files.is_empty() && scan::check_name(&name).is_ok();
    let before = known(repository, &name);
    let loaded = loader.load_one(request).await;
    if let Some(fault) = loaded.fault {
        return Err(Error::internal(format!("model `{name}` cannot be loaded: {fault}")));
    }
    if let Some((what, reason)) = loaded.failed.first() {
        let after = known(repository, &name);
        let has_several = after.len() > 1;
        if !has_folder {
            // What its caller thought of: no folder was looked at.
            repository.refuse(Some(&name), Vec::new());
            loader.forget_brought(&name, after.iter().filter(|version| !before.contains(version)));
        }
        let which = what.strip_prefix(&*name).and_then(|rest| rest.strip_prefix('/')).filter(|_| has_several);
        let which = which.map_or(String::new(), |which| format!("version {which}: "));
        return Err(Error::invalid(format!("model `{name}` cannot be loaded: {which}{reason}")));
    }
    if loaded.versions.is_empty() {
        if brought(repository, &name) {
            return Err(Error::Conflict(
                format!(
                    "model `{name}` is served from the files that a call brought, and has no folder to be loaded from: \
                     load it with its files again"
                )
                .into(),
            ));
        }
        return Err(Error::ModelNotFound { model: name, version });
    }
    if version.is_none() {
        // A load by name says what is served from now on.
        let gone = repository.serving(&name).into_iter().filter(|version| !loaded.versions.contains(version));
        gone.for_each(|version| retire(loader, repository, &name, &version, false));
    }
    Ok(())
}

/// Takes a model that nothing is being done with, at the start either.
fn take(loader: &Loader, repository: &Repository, name: &Arc<str>) -> Result<Turn, Error> {
    let turn = loader.busy.take(name).ok_or_else(|| conflict(name))?;
    let wanted = ModelRef { name: Arc::clone(name), version: None };
    let is_loading = |(_, state, _): &(_, VersionState, _)| *state == VersionState::Loading;
    match repository.versions(&wanted) {
        Ok(report) if report.versions.iter().any(is_loading) => Err(conflict(name)),
        Ok(_) | Err(_) => Ok(turn),
    }
}

/// Whether a model is served whose files a call brought.
fn brought(repository: &Repository, name: &Arc<str>) -> bool {
    let wanted = ModelRef { name: Arc::clone(name), version: None };
    repository.ready(Some(&wanted)).is_ok_and(|models| models.iter().any(|model| model.files.is_some()))
}

fn conflict(name: &str) -> Error {
    Error::Conflict(format!("model `{name}` is being loaded or unloaded already").into())
}

fn unload(loader: &Arc<Loader>, repository: &Arc<Repository>, model: &ModelRef) -> Result<(), Error> {
    let _turn = loader.busy.take(&model.name).ok_or_else(|| conflict(&model.name))?;
    let versions = repository.versions(model)?.versions;
    // No call loads it: what loads it would put it in service when it was told that it is not.
    if versions.iter().any(|(_, state, _)| *state == VersionState::Loading) {
        return Err(conflict(&model.name));
    }
    // What a label means may change under an order that names it: only versions are unloaded.
    if model.version.as_ref().is_some_and(|wanted| versions.iter().all(|(version, ..)| version != wanted)) {
        return Err(Error::ModelNotFound { model: Arc::clone(&model.name), version: model.version.clone() });
    }
    for (version, state, _) in versions {
        match state {
            // An ensemble whose models are gone is there all the same.
            _ if repository.is_serving(&model.name, &version) => {
                retire(loader, repository, &model.name, &version, false);
            }
            // It is out of service already; from now on because that is wanted.
            VersionState::Failed => {
                let key = ModelKey { name: Arc::clone(&model.name), version: Arc::clone(&version) };
                loader.waiting.forget(&key);
                repository.set(&model.name, &version, &State::Unloaded);
            }
            VersionState::Ready | VersionState::Loading | VersionState::Unloading | VersionState::Unloaded => {}
        }
    }
    Ok(())
}

/// Takes a version out of service now; its instances go when its last call is answered. `gone` if it is not even on disk:
/// then it is forgotten, and so is one whose files a call brought. Nobody waits for what it may have become, and ensembles are put
/// together again without it.
pub(super) fn retire(
    loader: &Arc<Loader>,
    repository: &Arc<Repository>,
    name: &Arc<str>,
    version: &Arc<str>,
    gone: bool,
) {
    let Some(model) = repository.retire(name, version) else { return };
    // Copies hold it as calls do, and nobody waits for them.
    model.scheduler.close_background();
    loader.says(name, version, "unloading");
    let is_brought = model.files.is_some();
    loader.waiting.forget(&model.key);
    loader.assemble_again([Arc::clone(name)].into());
    let (loader, repository) = (Arc::clone(loader), Arc::clone(repository));
    let (name, version) = (Arc::clone(name), Arc::clone(version));
    // Calls hold the model until they are answered, and each has a deadline.
    tokio::spawn(async move {
        while Arc::strong_count(&model) > 1 {
            tokio::time::sleep(LOOK).await;
        }
        let which = Arc::downgrade(&model);
        drop(model);
        if repository.retired(&name, &version, &which) {
            tracing::info!(model = %name, %version, "model unloaded");
            match gone {
                _ if is_brought => loader.forget_brought(&name, [&version]),
                true => loader.forget(&name, &version),
                false => loader.says(&name, &version, "unloaded"),
            }
        }
    });
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

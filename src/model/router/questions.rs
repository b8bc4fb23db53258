//! Questions, and changes that are asked for: nothing of this runs a model.

use super::{Inner, Parts, learn};
use crate::{
    call::{Head, Identity, Inspect, Manage, Report, ServerReport, UnloadRequest},
    error::Error,
};
use std::sync::Arc;

/// Names of the V2 extensions (contract 02): only those that there are.
const EXTENSIONS: &[&str] = &[
    "binary_tensor_data",
    "classification",
    "parameters",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
    "trace",
    "logging",
];

/// What the server says of itself (contract 01 section 2.1).
const SERVER: ServerReport =
    ServerReport { name: "sluicegate", version: env!("CARGO_PKG_VERSION"), extensions: EXTENSIONS };

impl Parts {
    pub(super) fn inspect(&self, head: &Head, sender: Arc<Identity>, question: Inspect) -> Result<Inner, Error> {
        let repository = &self.repository;
        Ok(Inner::report(match question {
            Inspect::Caller | Inspect::Session => Report::Caller(sender),
            Inspect::Server => Report::Server(SERVER),
            Inspect::Models => Report::Models(repository.names()),
            Inspect::Catalog => Report::Catalog(repository.catalog()),
            Inspect::Model(wanted) => {
                let (model, report) = repository.report(&wanted)?;
                learn(head, &model);
                Report::Model(report)
            }
            Inspect::Ready(wanted) => {
                let ready = repository.is_ready(&wanted)?;
                Report::Ready { model: wanted.name, ready }
            }
            Inspect::Versions(wanted) => Report::Versions(repository.versions(&wanted)?),
            Inspect::Config(wanted) => {
                let model = repository.resolve(&wanted)?;
                learn(head, &model);
                Report::Config(Box::new(model.config()))
            }
            Inspect::Statistics(wanted) => {
                let models = repository.ready(wanted.as_ref())?;
                Report::Statistics(models.iter().map(|model| model.statistics()).collect())
            }
            Inspect::Index { ready } => match &self.control {
                // What was never loaded is on disk only, and whoever reads disks is elsewhere.
                Some(control) if !ready => {
                    let (repository, names) = (Arc::clone(repository), control.names());
                    return Ok(Inner::Elsewhere(Box::pin(async move { Ok(repository.index(names.await?, false)) })));
                }
                _ => repository.index(Vec::new(), ready),
            },
            Inspect::Trace(model) => {
                if let Some(model) = &model {
                    repository.resolve(model)?;
                }
                Report::Trace(self.switches.trace(model.as_ref().map(|model| &*model.name)))
            }
            Inspect::Logging => Report::Logging(self.switches.logging()),
            Inspect::Metrics => Report::Metrics,
        }))
    }

    pub(super) fn manage(&self, change: Manage) -> Result<Inner, Error> {
        let control = || {
            self.control.as_ref().ok_or_else(|| {
                let text = "nothing can be changed over this API: `models.control` is not `explicit`";
                Error::Unimplemented(text.into())
            })
        };
        Ok(match change {
            // Whoever comes this far may change what there is to change.
            Manage::Nothing => Inner::report(Report::Server(SERVER)),
            Manage::Load(request) => {
                let (name, loading) = (Arc::clone(&request.model.name), control()?.load(request));
                Inner::Elsewhere(Box::pin(async move { loading.await.map(|()| Report::Loaded(name)) }))
            }
            Manage::Unload(UnloadRequest { model, dependents }) => {
                let control = control()?;
                let found = self.repository.resolve(&model).ok().filter(|_| dependents);
                if found.is_some_and(|found| found.ensemble.is_some()) {
                    // Others may need its models, and each has its own grants.
                    let text = "`unload_dependents` of an ensemble: its models are unloaded by calls of their own";
                    return Err(Error::Unimplemented(text.into()));
                }
                let (name, unloading) = (Arc::clone(&model.name), control.unload(model));
                Inner::Elsewhere(Box::pin(async move { unloading.await.map(|()| Report::Unloaded(name)) }))
            }
            Manage::Trace(change) => {
                control()?;
                if let Some(model) = &change.model {
                    self.repository.resolve(model)?;
                }
                Inner::report(Report::Trace(self.switches.change_trace(&change)?))
            }
            Manage::Logging(change) => {
                control()?;
                Inner::report(Report::Logging(self.switches.change_logging(&change)?))
            }
        })
    }
}

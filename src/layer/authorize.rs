//! May this identity do this to this model?
//!
//! Asks by what was decoded, never by what the head announced: an operation cannot hide behind another's intent. It does
//! not know whether the model exists, so who may not see it hears the same as of one that does not.

use crate::{
    auth::grants::Grants,
    call::{Decoded, Identity, Inspect, Intent, ModelRef, Operation, Reply, Report},
    current::Current,
    error::Error,
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower::{Layer, Service};

/// Something that knows grants; [`Grants`], except in tests.
pub trait Permit: Send + Sync + 'static {
    /// May `identity` do `intent` with `model`?
    ///
    /// # Errors
    ///
    /// [`Error::ModelNotFound`] if it may do nothing with it, [`Error::Forbidden`] if it may do something else.
    fn check(&self, identity: &Identity, intent: Intent, model: Option<&ModelRef>) -> Result<(), Error>;

    /// May `identity` know that the model `name` exists?
    fn may_see(&self, identity: &Identity, name: &str) -> bool;

    /// May `identity` do anything at all?
    fn any(&self, identity: &Identity) -> bool;
}

impl Permit for Grants {
    fn check(&self, identity: &Identity, intent: Intent, model: Option<&ModelRef>) -> Result<(), Error> {
        Grants::check(self, identity, intent, model)
    }

    fn may_see(&self, identity: &Identity, name: &str) -> bool {
        Grants::may_see(self, identity, name)
    }

    fn any(&self, identity: &Identity) -> bool {
        Grants::any(self, identity)
    }
}

/// Grants that may be exchanged for others while calls are made.
impl<G: Permit> Permit for Current<G> {
    fn check(&self, identity: &Identity, intent: Intent, model: Option<&ModelRef>) -> Result<(), Error> {
        self.with(|grants| grants.check(identity, intent, model))
    }

    fn may_see(&self, identity: &Identity, name: &str) -> bool {
        self.with(|grants| grants.may_see(identity, name))
    }

    fn any(&self, identity: &Identity) -> bool {
        self.with(|grants| grants.any(identity))
    }
}

/// Makes [`Authorize`].
#[derive(Debug)]
pub struct AuthorizeLayer<G = Grants> {
    grants: Arc<G>,
}

/// Refuses what is not granted, and leaves out of a list of models what its reader may not see.
#[derive(Debug)]
pub struct Authorize<S, G = Grants> {
    inner: S,
    grants: Arc<G>,
}

pin_project! {
    /// The future of [`Authorize`].
    #[derive(Debug)]
    pub struct Authorized<F, G> {
        #[pin]
        state: State<F, G>,
    }
}

pin_project! {
    #[project = Projected]
    #[derive(Debug)]
    enum State<F, G> {
        // The error is gone once told.
        Refused { error: Option<Error> },
        // `reader` is who reads the list, if the reply is a list of models.
        Below { #[pin] inner: F, reader: Option<(Arc<G>, Arc<Identity>)> },
    }
}

// === impl Authorize ===

impl<G> AuthorizeLayer<G> {
    /// Asks `grants`.
    pub const fn new(grants: Arc<G>) -> Self {
        Self { grants }
    }
}

impl<S, G> Layer<S> for AuthorizeLayer<G> {
    type Service = Authorize<S, G>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorize { inner, grants: Arc::clone(&self.grants) }
    }
}

impl<S: Clone, G> Clone for Authorize<S, G> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), grants: Arc::clone(&self.grants) }
    }
}

impl<S, G: Permit> Authorize<S, G> {
    fn check(&self, identity: &Identity, operation: &Operation) -> Result<(), Error> {
        let (intent, model) = match operation {
            Operation::Infer(request) => (Intent::Infer, Some(&request.model)),
            Operation::Inspect(Inspect::Metrics) => (Intent::Metrics, None),
            Operation::Inspect(question) => (Intent::Inspect, question.model()),
            Operation::Manage(change) => (Intent::Manage, change.model()),
        };
        match operation {
            // Nothing of these is private to anyone who may do something here; lists of models are cut below.
            Operation::Inspect(
                Inspect::Caller | Inspect::Session | Inspect::Server | Inspect::Models | Inspect::Catalog,
            ) => match self.grants.any(identity) {
                true => Ok(()),
                false => Err(Error::Forbidden { action: "use this server" }),
            },
            _ => self.grants.check(identity, intent, model),
        }
    }
}

impl<S, G> Service<Decoded> for Authorize<S, G>
where
    S: Service<Decoded, Response = Reply, Error = Error>,
    G: Permit,
{
    type Response = Reply;
    type Error = Error;
    type Future = Authorized<S::Future, G>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Decoded) -> Self::Future {
        if let Err(error) = self.check(&call.sender, &call.input) {
            return Authorized { state: State::Refused { error: Some(error) } };
        }
        let lists = matches!(
            call.input,
            Operation::Inspect(Inspect::Models | Inspect::Catalog | Inspect::Index { .. } | Inspect::Statistics(None))
        );
        let reader = lists.then(|| (Arc::clone(&self.grants), Arc::clone(&call.sender)));
        Authorized { state: State::Below { inner: self.inner.call(call), reader } }
    }
}

// === impl Authorized ===

impl<F, G> Future for Authorized<F, G>
where
    F: Future<Output = Result<Reply, Error>>,
    G: Permit,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Refused { error } => Poll::Ready(Err(error.take().unwrap_or(Error::Cancelled))),
            Projected::Below { inner, reader } => {
                let mut result = ready!(inner.poll(cx));
                if let (Ok(Reply::Report(report)), Some((grants, identity))) = (&mut result, reader) {
                    // What a model has done is more than that there is one.
                    let looks_inside = matches!(report, Report::Statistics(_));
                    report.retain_models(|name| match looks_inside {
                        true => {
                            let model = ModelRef { name: name.into(), version: None };
                            grants.check(identity, Intent::Inspect, Some(&model)).is_ok()
                        }
                        false => grants.may_see(identity, name),
                    });
                    if let Report::Index(entries) = report {
                        entries.retain(|entry| {
                            entry.is_known(|version| {
                                let model =
                                    ModelRef { name: Arc::clone(&entry.name), version: Some(Arc::clone(version)) };
                                let found = grants.check(identity, Intent::Inspect, Some(&model));
                                !matches!(found, Err(Error::ModelNotFound { .. }))
                            })
                        });
                    }
                }
                Poll::Ready(result)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Code,
        layer::fixture::{Below, decoded, infer, inspect, whole},
    };
    use tower::ServiceExt;

    /// `web` may infer with `digits` and nothing else; nobody else may do anything.
    struct Book;

    impl Permit for Book {
        fn check(&self, identity: &Identity, intent: Intent, model: Option<&ModelRef>) -> Result<(), Error> {
            let model = model.unwrap();
            match (self.may_see(identity, &model.name), intent) {
                (true, Intent::Infer) => Ok(()),
                (true, _) => Err(Error::Forbidden { action: "inspect this model" }),
                (false, _) => Err(Error::ModelNotFound { model: model.name.clone(), version: None }),
            }
        }

        fn may_see(&self, identity: &Identity, name: &str) -> bool {
            self.any(identity) && name == "digits"
        }

        fn any(&self, identity: &Identity) -> bool {
            &**identity.id() == "web"
        }
    }

    async fn answer(id: &str, operation: Operation, below: Below) -> Result<Reply, Error> {
        AuthorizeLayer::new(Arc::new(Book)).layer(below).oneshot(decoded(id, operation)).await
    }

    async fn code(id: &str, operation: Operation) -> Option<Code> {
        answer(id, operation, Below::answering(|| Ok(whole()))).await.err().map(|error| error.code())
    }

    #[tokio::test]
    async fn what_is_granted_passes_and_nothing_else() {
        let digits = || ModelRef { name: "digits".into(), version: None };
        let other = || ModelRef { name: "other".into(), version: None };
        assert_eq!(code("web", infer()).await, None);
        assert_eq!(code("web", inspect(Inspect::Model(digits()))).await, Some(Code::PermissionDenied));
        assert_eq!(code("web", inspect(Inspect::Ready(other()))).await, Some(Code::NotFound));
        assert_eq!(code("stranger", infer()).await, Some(Code::NotFound));
    }

    #[tokio::test]
    async fn who_has_any_grant_may_ask_about_itself_and_the_server() {
        for question in [Inspect::Caller, Inspect::Session, Inspect::Server, Inspect::Models, Inspect::Catalog] {
            assert_eq!(code("web", inspect(question.clone())).await, None);
            assert_eq!(code("stranger", inspect(question)).await, Some(Code::PermissionDenied));
        }
    }

    #[tokio::test]
    async fn the_operation_decides_and_not_the_announced_intent() {
        let mut call = decoded("web", inspect(Inspect::Model(ModelRef { name: "digits".into(), version: None })));
        call.head.intent = Intent::Infer;
        let service = AuthorizeLayer::new(Arc::new(Book)).layer(Below::answering(|| Ok(whole())));
        assert_eq!(service.oneshot(call).await.unwrap_err().code(), Code::PermissionDenied);
    }

    #[tokio::test]
    async fn a_list_names_only_what_its_reader_may_see() {
        let below = Below::answering(|| Ok(Reply::Report(Report::Models(vec!["digits".into(), "secret".into()]))));
        let Ok(Reply::Report(Report::Models(names))) = answer("web", inspect(Inspect::Models), below).await else {
            panic!("expected a list");
        };
        assert_eq!(names, [Arc::from("digits")]);
    }

    #[tokio::test]
    async fn the_index_names_only_versions_that_its_reader_may_call() {
        use crate::{
            auth::grants::{Grantee, Rule},
            call::{IndexEntry, VersionState},
        };
        let rule = Rule {
            to: vec![Grantee::Identity("web".into())],
            intents: vec![Intent::Inspect],
            models: vec!["digits".into()],
            versions: vec!["stable".into()],
        };
        let entry = |version: &str, labels: &[&str]| IndexEntry {
            name: "digits".into(),
            version: Some(version.into()),
            state: Some(VersionState::Ready),
            labels: labels.iter().map(|label| (*label).into()).collect(),
            reason: "".into(),
        };
        let entries = vec![entry("3", &["canary"]), entry("2", &[]), entry("1", &["stable"])];
        let below = Below::answering(move || Ok(Reply::Report(Report::Index(entries.clone()))));
        let layer = AuthorizeLayer::new(Arc::new(Grants::new(vec![rule])));
        let call = decoded("web", inspect(Inspect::Index { ready: false }));
        let Ok(Reply::Report(Report::Index(entries))) = layer.layer(below).oneshot(call).await else { panic!() };
        let versions: Vec<_> = entries.iter().filter_map(|entry| entry.version.as_deref()).collect();
        assert_eq!(versions, ["1"]);
    }
}

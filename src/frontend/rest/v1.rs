//! KServe V1, TensorFlow Serving's REST, and `POST /predict` (contract 03).
//!
//! Paths become questions and runs here, and answers become bodies; what stands in bodies is `wire::v1`'s. Bodies are read
//! whatever their `content-type` says, except for an event in structured mode, of which they are only a part.

use super::render;
pub(super) use crate::wire::v1::Task;
use crate::{
    call::{
        CallId, Expected, InferRequest, InferResponse, Inputs, Inspect, Intent, Labels, ModelRef, NamedTensor,
        Operation, Pending, Reply, Report, Surface, Untyped, VersionState, VersionsReport,
    },
    error::Error,
    frontend::{
        Connection, Frontend,
        body::{self, Counted},
        head::Fields,
        http::Response,
        settings::Predict,
    },
    wire::v1::{self, Form},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use std::sync::{Arc, OnceLock};

/// Types of an event in structured mode begin with this (contract 03 section 9).
const EVENT: &str = "application/cloudevents";

/// What a path of V1 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// `GET /v1/models`
    List,
    /// `GET /v1/models/M`
    Model(ModelRef),
    /// `GET /v1/models/M/versions/V`
    Status(ModelRef),
    /// `GET /v1/models/M[/versions/V]/metadata`
    Metadata(ModelRef),
    /// `POST /v1/models/M[/versions/V]:VERB`
    Run(ModelRef, Verb),
    /// `/predict`, if there is such a thing
    Plain,
}

/// What a model is to do with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Predict,
    Examples(Task),
}

/// How the answer is to be written: known when the request is made, or when its body was read.
pub(super) enum Wanted {
    List,
    Model,
    Status,
    Metadata,
    Predictions(Arc<OnceLock<Form>>),
    Results(Task, Arc<OnceLock<Option<Labels>>>),
    /// With the names of `rest.predict`.
    Plain,
}

// === impl Ask ===

impl Ask {
    /// The call that it is: its intent, its body, and how its answer is to be written.
    ///
    /// # Errors
    ///
    /// [`Error::NoRoute`] and [`Error::MethodNotAllowed`] for `/predict`, which is there only by configuration.
    pub(super) fn call(
        self,
        connection: &Arc<Connection>,
        method: &Method,
        fields: &Fields<'_>,
        body: Incoming,
    ) -> Result<(Intent, Pending, Wanted), Error> {
        let inspect = |question, wanted| (Intent::Inspect, Pending::ready(Operation::Inspect(question)), wanted);
        Ok(match self {
            Self::List => inspect(Inspect::Catalog, Wanted::List),
            Self::Model(model) => inspect(Inspect::Versions(model), Wanted::Model),
            Self::Status(model) => inspect(Inspect::Versions(model), Wanted::Status),
            Self::Metadata(model) => inspect(Inspect::Model(model), Wanted::Metadata),
            Self::Run(model, Verb::Predict) => {
                let form = Arc::new(OnceLock::new());
                let found = Arc::clone(&form);
                let pending = pending(connection, fields, body, model, move |body, expected, frontend| {
                    let (tensors, form) = v1::decode_predict(body, expected, &frontend.settings.wire)?;
                    // Set once: a body is decoded once.
                    let _ = found.set(form);
                    Ok(tensors)
                });
                (Intent::Infer, pending, Wanted::Predictions(form))
            }
            Self::Run(model, Verb::Examples(task)) => {
                let labels = Arc::new(OnceLock::new());
                let found = Arc::clone(&labels);
                let pending = pending(connection, fields, body, model, move |body, expected, frontend| {
                    let (tensors, labels) = v1::decode_examples(body, expected, task, &frontend.settings.wire)?;
                    let _ = found.set(labels);
                    Ok(tensors)
                });
                (Intent::Infer, pending, Wanted::Results(task, labels))
            }
            Self::Plain => {
                let Some(Predict { model, .. }) = &connection.frontend.settings.rest.predict else {
                    return Err(Error::NoRoute("this path is unknown".into()));
                };
                if method != Method::POST {
                    return Err(Error::MethodNotAllowed { allow: "POST" });
                }
                let pending = pending(connection, fields, body, model.clone(), |body, expected, frontend| {
                    let names = frontend.settings.rest.names();
                    v1::decode_object(body, expected, names, &frontend.settings.wire)
                });
                (Intent::Infer, pending, Wanted::Plain)
            }
        })
    }
}

/// A body that will be read when the stack has decided that it may be, and decoded when its model is known.
fn pending<D>(connection: &Arc<Connection>, fields: &Fields<'_>, body: Incoming, model: ModelRef, decode: D) -> Pending
where
    D: FnOnce(&[u8], &Expected, &Frontend) -> Result<Vec<NamedTensor>, Error> + Send + 'static,
{
    // Looked at now, told later: who may not call is not told what else was wrong.
    let coding = check(fields).and_then(|()| fields.coding());
    let connection = Arc::clone(connection);
    Pending::new(async move {
        let bytes = body::read_coded(body, coding?, 0, Arc::clone(&connection)).await?;
        connection.frontend.metrics.body_received(Surface::Rest, bytes.len() as u64);
        let (counted, memory) = (Counted::of(&bytes), connection.frontend.memory.clone());
        let inputs = Untyped::later(move |expected| {
            let size = bytes.len();
            body::offload(size, move || decode(&bytes, &expected, &connection.frontend))
        });
        memory.hold_inputs(InferRequest::new(model, Inputs::Untyped(inputs)), counted).map(Operation::Infer)
    })
}

/// Refuses what could be read and would be misunderstood. No other type changes anything.
fn check(fields: &Fields<'_>) -> Result<(), Error> {
    let kind = fields.content_type.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.get(..EVENT.len()) {
        Some(start) if start.eq_ignore_ascii_case(EVENT) => {
            Err(Error::UnsupportedMedia("events in structured mode are not read, expected the bare body".into()))
        }
        _ => Ok(()),
    }
}

// === impl Wanted ===

impl Wanted {
    /// The answer, as it was wanted.
    ///
    /// # Errors
    ///
    /// What has no form in this protocol, models that stream, and a model that is known and not ready.
    pub(super) async fn render(self, reply: Reply, id: &CallId, frontend: &Arc<Frontend>) -> Result<Response, Error> {
        if let Reply::Report(report) = &reply {
            let body = self.report(report)?;
            frontend.metrics.body_sent(Surface::Rest, body.len() as u64);
            return Ok(render::json(StatusCode::OK, body, id));
        }
        let response = render::whole(reply).await?;
        render::outputs(response, id, frontend, move |response, _, frontend| self.infer(response, frontend)).await
    }

    fn infer(self, response: &InferResponse, frontend: &Frontend) -> Result<Bytes, Error> {
        let (outputs, settings) = (&response.outputs, &frontend.settings.wire);
        match self {
            Self::Predictions(form) => {
                let form = form.get().copied().ok_or_else(mismatch)?;
                v1::encode_predict(outputs, form, settings)
            }
            Self::Results(task, labels) => {
                let labels = labels.get().ok_or_else(mismatch)?;
                v1::encode_results(outputs, task, labels.as_ref(), settings)
            }
            Self::Plain => v1::encode_object(outputs, frontend.settings.rest.names(), settings),
            Self::List | Self::Model | Self::Status | Self::Metadata => Err(mismatch()),
        }
    }

    fn report(&self, report: &Report) -> Result<Bytes, Error> {
        match (self, report) {
            (Self::List, Report::Catalog(entries)) => Ok(v1::encode_catalog(entries)),
            // KServe's client wants to hear this, and neither 404 nor a 200 that says no (contract 03 section 1).
            (Self::Model, Report::Versions(report)) if !report.ready => Err(not_ready(report)),
            (Self::Model, Report::Versions(report)) => Ok(v1::encode_model(report)),
            (Self::Status, Report::Versions(report)) => Ok(v1::encode_status(report)),
            (Self::Metadata, Report::Model(report)) => Ok(v1::encode_metadata(report)),
            _ => Err(mismatch()),
        }
    }
}

/// Why no version takes calls, by the one that is nearest to it.
fn not_ready(report: &VersionsReport) -> Error {
    let has = |wanted| report.versions.iter().any(|(_, state, _)| *state == wanted);
    let state = if has(VersionState::Loading) {
        "loading"
    } else if has(VersionState::Unloading) {
        "unloading"
    } else if has(VersionState::Failed) {
        "not served: loading it failed"
    } else if has(VersionState::Ready) {
        "not ready"
    } else {
        // Known by name only, as everywhere else.
        return Error::ModelNotFound { model: Arc::clone(&report.name), version: None };
    };
    Error::ModelNotReady { model: Arc::clone(&report.name), state }
}

fn mismatch() -> Error {
    Error::internal("another question was answered")
}

#[cfg(test)]
mod tests {
    use super::{super::route, *};
    use crate::error::Code;
    use http::{HeaderValue, header::CONTENT_TYPE};

    fn named(name: &str) -> ModelRef {
        ModelRef { name: name.into(), version: None }
    }

    fn versioned(name: &str, version: &str) -> ModelRef {
        ModelRef { name: name.into(), version: Some(version.into()) }
    }

    fn find(method: &Method, path: &str) -> Result<route::Route, Code> {
        route::find(method, path).map(|(route, _)| route).map_err(|miss| miss.error.code())
    }

    fn post(path: &str) -> Result<route::Route, Code> {
        find(&Method::POST, path)
    }

    fn get(path: &str) -> Result<route::Route, Code> {
        find(&Method::GET, path)
    }

    #[test]
    fn a_verb_follows_the_last_colon_of_the_last_segment() {
        let run = |model: ModelRef| Ok(Ask::Run(model, Verb::Predict).into());
        assert_eq!(post("/v1/models/m:predict"), run(named("m")));
        assert_eq!(post("/v1/models/m%3Apredict"), run(named("m")));
        assert_eq!(post("/v1/models/m%3apredict"), run(named("m")));
        assert_eq!(post("/v1/models/a.b_c-d.v2:predict"), run(named("a.b_c-d.v2")));
        assert_eq!(post("/v1/models/a:b:predict"), run(named("a:b")));
        assert_eq!(post("/v1/models/org%2Fname:predict"), run(named("org/name")));
        assert_eq!(post("/v1/models/m/versions/3:predict"), run(versioned("m", "3")));
        assert_eq!(post("/v1/models/m/labels/stable:predict"), run(ModelRef::labelled("m", "stable")));
        let task = |task| Ok(Ask::Run(named("m"), Verb::Examples(task)).into());
        assert_eq!(post("/v1/models/m:classify"), task(Task::Classify));
        assert_eq!(post("/v1/models/m:regress"), task(Task::Regress));
    }

    #[test]
    fn what_is_no_verb_is_no_route() {
        for path in [
            "/v1/models/m:unknown",
            "/v1/models/m:Predict",
            "/v1/models/m:",
            "/v1/models/:predict",
            "/v1/models/m/versions:predict",
            "/v1/models/m/labels/:predict",
            "/v1/models/m/x/y/z:predict",
        ] {
            assert_eq!(post(path), Err(Code::NotFound), "{path}");
        }
        assert_eq!(post("/v1/models/m:explain"), Err(Code::Unimplemented));
        assert_eq!(get("/v1/models/m:explain"), Err(Code::MethodNotAllowed));
        assert_eq!(get("/v1/models/m:predict"), Err(Code::MethodNotAllowed));
    }

    #[test]
    fn questions_have_paths_of_their_own() {
        assert_eq!(get("/v1/models"), Ok(Ask::List.into()));
        assert_eq!(get("/v1/models/m"), Ok(Ask::Model(named("m")).into()));
        assert_eq!(get("/v1/models/org/name"), Ok(Ask::Model(named("org/name")).into()));
        assert_eq!(get("/v1/models/org%2Fname"), Ok(Ask::Model(named("org/name")).into()));
        assert_eq!(get("/v1/models/m/versions/1"), Ok(Ask::Status(versioned("m", "1")).into()));
        assert_eq!(get("/v1/models/m/labels/stable"), Ok(Ask::Status(ModelRef::labelled("m", "stable")).into()));
        assert_eq!(get("/v1/models/m/metadata"), Ok(Ask::Metadata(named("m")).into()));
        assert_eq!(get("/v1/models/m/versions/1/metadata"), Ok(Ask::Metadata(versioned("m", "1")).into()));
        for path in ["/v1/models/", "/v1/models/m/", "/v1/models/m/versions/"] {
            assert_eq!(get(path), Err(Code::NotFound), "{path}");
        }
        for path in ["/v1/models", "/v1/models/m", "/v1/models/m/metadata"] {
            assert_eq!(post(path), Err(Code::MethodNotAllowed), "{path}");
            assert_eq!(find(&Method::DELETE, path), Err(Code::MethodNotAllowed), "{path}");
        }
    }

    #[test]
    fn only_what_would_be_misunderstood_is_refused_unread() {
        let check = |kind: &'static str| {
            let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            check(&Fields::of(&headers)).map_err(|error| error.code())
        };
        for kind in ["", "text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "???"] {
            assert_eq!(check(kind), Ok(()), "{kind}");
        }
        for kind in ["application/cloudevents+json", "Application/CloudEvents-batch+json; charset=utf-8"] {
            assert_eq!(check(kind), Err(Code::UnsupportedMediaType), "{kind}");
        }
    }

    #[test]
    fn the_most_hopeful_version_says_why_none_is_ready() {
        let report = |states: &[VersionState]| VersionsReport {
            name: "m".into(),
            ready: false,
            since: 0,
            versions: states.iter().map(|state| ("1".into(), *state, "".into())).collect(),
        };
        let said = |states: &[VersionState]| not_ready(&report(states)).to_string();
        assert_eq!(said(&[VersionState::Failed, VersionState::Loading]), "model `m` is loading");
        assert_eq!(said(&[VersionState::Failed]), "model `m` is not served: loading it failed");
        assert_eq!(said(&[VersionState::Unloaded]), "model `m` is unknown");
    }
}

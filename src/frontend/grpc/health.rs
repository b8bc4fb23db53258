//! Standard health: `grpc.health.v1`, driven by the readiness value (contract 05 section 2).
//!
//! Asks for no credentials and counts no calls, because probes cannot send any. Knows nothing of models: a name like
//! `model:digits` is asked through the stack, as the anonymous caller.

use super::{
    Request, head,
    leash::Leash,
    refuse,
    status::{self, of_service},
    unary::{answer, read, stream_of},
};
use crate::{
    call::{
        Call, CallId, Credentials, Head, Inspect, Intent, ModelRef, Operation, Pending, Reply, Report, Route, Surface,
    },
    error::{Code, Error},
    frontend::{Connection, http::Response},
    wire::weight::Weighed,
};
use futures_util::{Stream, stream::unfold};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;
use tonic::Status;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

/// The service's name.
pub(super) const SERVICE: &str = "grpc.health.v1.Health";
/// How often a watcher looks without being told of a change: grants, which hide models, tell nobody.
const POLL: Duration = Duration::from_secs(5);
/// Watches of one connection: they ask for no credentials, and each keeps the server busy for as long as it likes.
const WATCHES: usize = 16;
/// The longest life of a watch. Clients open another.
const LIFETIME: Duration = Duration::from_secs(3600);

/// The methods of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Check,
    Watch,
    List,
}

/// The request of `List`, which tonic-health does not have yet.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthListRequest {}

impl Weighed for HealthListRequest {}

impl Weighed for HealthCheckRequest {}

/// The answer of `List`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthListResponse {
    #[prost(map = "string, message", tag = "1")]
    pub(super) statuses: HashMap<String, HealthCheckResponse>,
}

// === impl Method ===

impl Method {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "Check" => Some(Self::Check),
            "Watch" => Some(Self::Watch),
            "List" => Some(Self::List),
            _ => None,
        }
    }
}

/// Answers one health request.
pub(super) async fn serve(connection: Arc<Connection>, id: CallId, method: Method, request: Request) -> Response {
    let timeout = match head::timeout(request.headers()) {
        Ok(timeout) => timeout,
        Err(error) => return refuse(&id, &error),
    };
    if method == Method::List {
        return match read::<HealthListRequest>(&connection, request).await {
            Ok(_) => answer(&connection, &id, &list(&connection)),
            Err(error) => refuse(&id, &error),
        };
    }
    let subject = match read::<HealthCheckRequest>(&connection, request).await {
        Ok(message) => Subject::parse(&message.service),
        Err(error) => return refuse(&id, &error),
    };
    if method == Method::Watch {
        if let Err(error) = connection.gate() {
            return refuse(&id, &error);
        }
        let Some(place) = Place::take(&connection) else { return too_many(&id) };
        let leash = Leash::new(&connection, Some(timeout.map_or(LIFETIME, |timeout| timeout.min(LIFETIME))));
        return stream_of(&id, watch(place, id.clone(), subject, leash));
    }
    match (subject.status(&connection).await, subject) {
        (ServingStatus::ServiceUnknown, Subject::Unknown(service)) => unknown(&id, &service),
        (ServingStatus::ServiceUnknown, Subject::Model(model)) => {
            refuse(&id, &Error::ModelNotFound { model, version: None })
        }
        (status, _) => answer(&connection, &id, &response(status)),
    }
}

/// A name that is no model's is nothing that an [`Error`] knows: only this service has such names.
fn unknown(id: &CallId, service: &str) -> Response {
    let shown: String = service.chars().take(128).collect();
    let text = format!("service `{shown}` is unknown");
    of_service(Code::NotFound, &text, id, |details| {
        details.set_resource_info("service", shown, "", text.as_str());
    })
    .into_http()
}

/// gRPC's own word for it: the calls of the connection have room.
fn too_many(id: &CallId) -> Response {
    let text = format!("the connection has {WATCHES} watches, expected no more");
    of_service(Code::RateLimited, &text, id, |details| {
        details.add_quota_failure_violation("connection", text.as_str());
    })
    .into_http()
}

/// One of the watches that a connection may have.
struct Place(Arc<Connection>);

// === impl Place ===

impl Place {
    fn take(connection: &Arc<Connection>) -> Option<Self> {
        // Counted before it is compared: two that come at once cannot both be the last.
        let place = Self(Arc::clone(connection));
        (connection.watches.fetch_add(1, Ordering::Relaxed) < WATCHES).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn list(connection: &Connection) -> HealthListResponse {
    let status = response(overall(connection));
    HealthListResponse { statuses: ["", super::INFERENCE].map(|name| (name.to_owned(), status)).into() }
}

fn overall(connection: &Connection) -> ServingStatus {
    if connection.frontend.readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// What a health request asks about.
#[derive(Clone, Debug)]
enum Subject {
    /// The whole server; `inference.GRPCInferenceService` is the same.
    Server,
    Model(Arc<str>),
    Unknown(Arc<str>),
}

// === impl Subject ===

impl Subject {
    fn parse(service: &str) -> Self {
        match service {
            "" | super::INFERENCE => Self::Server,
            service => match service.strip_prefix("model:") {
                Some(model) if !model.is_empty() => Self::Model(model.into()),
                _ => Self::Unknown(service.into()),
            },
        }
    }

    async fn status(&self, connection: &Connection) -> ServingStatus {
        match self {
            Self::Server => overall(connection),
            Self::Unknown(_) => ServingStatus::ServiceUnknown,
            Self::Model(name) => model(connection, Arc::clone(name)).await,
        }
    }
}

async fn model(connection: &Connection, name: Arc<str>) -> ServingStatus {
    let head =
        Head::new(CallId::make(), Surface::Grpc, Intent::Inspect, Arc::clone(&connection.peer)).at(Route::GrpcHealth);
    let question = Inspect::Ready(ModelRef { name, version: None });
    let input = Pending::ready(Operation::Inspect(question));
    match connection.frontend.gateway.call(Call { head, sender: Credentials::None, input }).await {
        Ok(Reply::Report(Report::Ready { ready: true, .. })) if connection.frontend.readiness.is_ready() => {
            ServingStatus::Serving
        }
        Ok(_) | Err(Error::ModelNotReady { .. } | Error::ShuttingDown) => ServingStatus::NotServing,
        Err(Error::ModelNotFound { .. } | Error::Unauthenticated | Error::Forbidden { .. }) => {
            ServingStatus::ServiceUnknown
        }
        // Busy is not gone: a probe must not take an overloaded server out.
        Err(Error::Overloaded { .. } | Error::RateLimited { .. }) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    }
}

struct Watching {
    place: Place,
    id: CallId,
    subject: Subject,
    leash: Leash,
    changes: watch::Receiver<()>,
    last: Option<ServingStatus>,
    /// Why the stream ends, once the last change is said.
    end: Option<Error>,
    over: bool,
}

/// The state at once, then only changes (contract 05 section 2), until the server drains.
fn watch(
    place: Place,
    id: CallId,
    subject: Subject,
    leash: Leash,
) -> impl Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static {
    let changes = place.0.frontend.readiness.changes();
    let watching = Watching { place, id, subject, leash, changes, last: None, end: None, over: false };
    unfold(watching, |mut watching| async move {
        let item = watching.next().await?;
        Some((item, watching))
    })
}

// === impl Watching ===

impl Watching {
    async fn next(&mut self) -> Option<Result<HealthCheckResponse, Status>> {
        while !self.over {
            // Before looking: a change after it is another one.
            self.changes.mark_unchanged();
            let now = self.subject.status(&self.place.0).await;
            if self.last.replace(now) != Some(now) {
                return Some(Ok(response(now)));
            }
            if let Some(error) = &self.end {
                self.over = true;
                return Some(Err(status::status(error, &self.id)));
            }
            tokio::select! {
                // Once more around: NOT_SERVING is said before the end.
                error = self.leash.pulled() => self.end = Some(error),
                Ok(()) = self.changes.changed() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
        None
    }
}

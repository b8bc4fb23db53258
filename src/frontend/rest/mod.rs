//! REST: a route becomes a call, a reply becomes a response.
//!
//! Routes are matched by `route`, bodies are `infer`'s, responses `render`'s.

mod generate;
mod infer;
mod page;
mod render;
mod repository;
mod route;
mod sse;
#[cfg(test)]
mod tests;
mod v1;

pub(crate) use render::retry_after;
pub(super) use render::{error, id_value, plain};

use super::{
    Connection,
    head::{self, Fields},
    http::Response,
    quota,
};
use crate::{
    call::{
        self, Call, CallId, Credentials, Head, Inspect, Intent, Operation, Pending, Steered, Surface,
        trace::TraceContext,
    },
    error::Error,
    telemetry::metrics::page::Format,
    wire::Wishes,
};
use futures_util::future::{BoxFuture, Either};
use http::{
    HeaderName, HeaderValue, Request, StatusCode, Version,
    header::{ACCEPT, UPGRADE},
};
use hyper::body::Incoming;
use render::Voice;
use route::{Family, Probe, Route, SharedMemory};
use std::{
    future::Ready,
    sync::{Arc, OnceLock},
};

/// What is kept of a request's head while its call runs.
struct Asked {
    id: CallId,
    label: call::Route,
    context: Option<TraceContext>,
    steered: Option<Steered>,
    voice: Voice,
    sender: Credentials,
    form: Form,
}

/// How a reply is written.
enum Form {
    /// As V2 does.
    V2,
    /// As a plain object.
    Generate,
    /// As an answer about memory that there is not, to whoever may ask.
    SharedMemory(SharedMemory),
    /// As V1 does.
    V1(v1::Wanted),
    /// As a ticket that stands for these.
    Ticket(Credentials),
    /// As the page of metrics, in this format.
    Metrics(Format),
}

/// Answers one request of this surface, of which the head is borrowed: it need not live as long as the call.
pub fn serve(
    connection: Arc<Connection>,
    request: &Request<()>,
    fields: &Fields<'_>,
    body: Incoming,
) -> impl Future<Output = Response> + Send + use<> {
    // Long streams are rare: their future is boxed, and that of every call stays small.
    type Rare = Either<Ready<Response>, BoxFuture<'static, Response>>;
    let now = |response| Either::Left(Rare::Left(std::future::ready(response)));
    let id = fields.call_id();
    let (route, label) = match route::find(request.method(), request.uri().path()) {
        Ok((route, label)) => (Ok(route), label),
        Err(miss) => (Err(miss), call::Route::Other),
    };
    match route {
        Ok(Route::Infer(model)) => {
            let wishes = Arc::new(OnceLock::new());
            let pending = infer::pending(&connection, fields, body, model, Arc::clone(&wishes));
            let asked = Asked::of(&connection, id, label, request, fields);
            Either::Right(call(connection, asked, Intent::Infer, pending, Some(wishes)))
        }
        Ok(Route::Inspect(inspect)) => {
            let asked = Asked::of(&connection, id, label, request, fields);
            let pending = Pending::ready(Operation::Inspect(inspect));
            Either::Right(call(connection, asked, Intent::Inspect, pending, None))
        }
        Ok(Route::InferStream(model)) => {
            let pending = infer::pending_of_events(&connection, fields, body, model);
            let asked = Asked::of(&connection, id, label, request, fields);
            Either::Left(Rare::Right(Box::pin(sse::serve(connection, asked, pending, sse::Dialect::Infer))))
        }
        Ok(Route::Generate(model, streams)) => {
            let pending = generate::pending(&connection, fields, body, model);
            let asked = Asked { form: Form::Generate, ..Asked::of(&connection, id, label, request, fields) };
            if streams {
                Either::Left(Rare::Right(Box::pin(sse::serve(connection, asked, pending, sse::Dialect::Generate))))
            } else {
                Either::Right(call(connection, asked, Intent::Infer, pending, None))
            }
        }
        Ok(Route::Change(change)) => {
            let asked = Asked::of(&connection, id, label, request, fields);
            let intent = change.intent();
            let pending = repository::pending(&connection, fields, body, change);
            Either::Right(call(connection, asked, intent, pending, None))
        }
        Ok(Route::SharedMemory(question)) => {
            let asked =
                Asked { form: Form::SharedMemory(question), ..Asked::of(&connection, id, label, request, fields) };
            let pending = Pending::ready(Operation::Inspect(Inspect::Server));
            Either::Right(call(connection, asked, Intent::Inspect, pending, None))
        }
        Ok(Route::Ticket) if connection.surfaces.has(Surface::WebSocket) => {
            let asked = Asked::of(&connection, id, label, request, fields);
            let form = Form::Ticket(connection.portable(&asked.sender));
            // Its errors are problem details, whatever is accepted: there are no clients of anyone else's.
            let asked = Asked { form, voice: asked.voice.in_problems(request), ..asked };
            let pending = Pending::ready(Operation::Inspect(Inspect::Caller));
            Either::Right(call(connection, asked, Intent::Inspect, pending, None))
        }
        Ok(Route::Metrics) if !connection.frontend.settings.rest.metrics => {
            let error = Error::NoRoute("metrics are not served on this address".into());
            now(Voice::of(request, fields).error(&error, &id))
        }
        Ok(Route::Metrics) => {
            let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let form = Form::Metrics(Format::accepted(&accept.collect::<Vec<_>>()));
            let asked = Asked { form, ..Asked::of(&connection, id, label, request, fields) };
            let pending = Pending::ready(Operation::Inspect(Inspect::Metrics));
            Either::Right(call(connection, asked, Intent::Metrics, pending, None))
        }
        Ok(Route::V1(ask)) => match ask.call(&connection, request.method(), fields, body) {
            Ok((intent, pending, wanted)) => {
                let asked = Asked { form: Form::V1(wanted), ..Asked::of(&connection, id, label, request, fields) };
                Either::Right(call(connection, asked, intent, pending, None))
            }
            Err(error) => now(Voice::of(request, fields).error(&error, &id)),
        },
        Ok(Route::Probe(probe)) => now(answer_probe(probe, &connection, &id)),
        Ok(Route::Page(page)) => now(page.answer(&id)),
        Ok(Route::WebSocketOnly) if connection.surfaces.has(Surface::WebSocket) => now(not_upgraded(request, &id)),
        // Neither an upgrade nor a ticket would help.
        Ok(Route::WebSocketOnly | Route::Ticket) => {
            now(refuse(request, &Error::NoRoute("this is not served on this address".into())))
        }
        Err(miss) => now(Voice::of(request, fields).miss(miss.family, &miss.error, &id, request.uri().path())),
    }
}

fn not_upgraded(request: &Request<()>, id: &CallId) -> Response {
    if request.version() < Version::HTTP_11 {
        // Contract 06 A1: HTTP/1.0 has no upgrade that could be asked for.
        let error = Error::invalid("a WebSocket handshake needs HTTP/1.1");
        return render::family_error(Family::Problem, &error, id, request.version(), request.uri().path());
    }
    let text = "this path speaks WebSocket only, expected a request to upgrade";
    upgrade_required(request, id, text, (UPGRADE, HeaderValue::from_static("websocket")))
}

/// 426, which has no code (contract 00 section 2), with the header that says to what.
pub(super) fn upgrade_required<B>(
    request: &Request<B>,
    id: &CallId,
    text: &str,
    (name, value): (HeaderName, HeaderValue),
) -> Response {
    let status = StatusCode::UPGRADE_REQUIRED;
    let mut response = render::problem(status, "Upgrade required", text, id, request.uri().path());
    response.headers_mut().insert(name, value);
    response
}

/// Refuses a request before any surface has looked at it, in the form of its route's family.
pub(super) fn refuse<B>(request: &Request<B>, error: &Error) -> Response {
    let path = request.uri().path();
    render::family_error(Family::of(path), error, &head::call_id(request.headers()), request.version(), path)
}

async fn call(
    connection: Arc<Connection>,
    asked: Asked,
    intent: Intent,
    input: Pending,
    wishes: Option<Arc<OnceLock<Wishes>>>,
) -> Response {
    let Asked { id, label, context, steered, voice, sender, form } = asked;
    if let Err(error) = connection.gate() {
        return voice.error(&error, &id);
    }
    let head = Head::new(id.clone(), Surface::Rest, intent, Arc::clone(&connection.peer)).at(label);
    let head = head.part_of(context).steered(steered);
    let facts = Arc::clone(&head.facts);
    let reply = connection.frontend.gateway.call(Call { head, sender, input }).await;
    let answered = reply.is_ok();
    let rendered = match (reply, form) {
        (Ok(_), Form::SharedMemory(question)) => {
            question.answer().map(|body| render::json(StatusCode::OK, bytes::Bytes::from_static(body), &id))
        }
        (Ok(_), Form::Metrics(format)) => Box::pin(render::metrics(format, &id, &connection.frontend)).await,
        (Ok(reply), Form::Generate) => Box::pin(generate::reply(reply, &id, &connection.frontend)).await,
        // Boxed, so that calls of V2 do not carry the room for this.
        (Ok(reply), Form::V1(wanted)) => Box::pin(wanted.render(reply, &id, &connection.frontend)).await,
        (Ok(_), Form::Ticket(credentials)) => {
            let tickets = &connection.frontend.tickets;
            tickets.trade(credentials).map(|ticket| render::ticket(&ticket, tickets.age(), &id))
        }
        (Ok(reply), Form::V2) => {
            let wishes = wishes.as_ref().and_then(|wishes| wishes.get());
            render::reply(reply, &id, wishes, &connection.frontend).await
        }
        (Err(error), _) => Err(error),
    };
    if answered {
        connection.frontend.encoded(Surface::Rest, &facts);
    }
    match rendered {
        Ok(mut response) => {
            quota::insert(response.headers_mut(), &facts, None);
            if let Some(timing) = facts.timing.get() {
                render::server_timing(response.headers_mut(), timing);
            }
            response
        }
        Err(error) => {
            connection.observe(&error);
            if answered {
                connection.no_room(&error);
            }
            let mut response = voice.error(&error, &id);
            quota::insert(response.headers_mut(), &facts, Some(&error));
            response
        }
    }
}

/// Probes take no slot and need no credentials (contract 00 section 3); they read one value.
fn answer_probe(probe: Probe, connection: &Connection, id: &CallId) -> Response {
    let readiness = &connection.frontend.readiness;
    let (good, body) = match probe {
        Probe::Root => (readiness.is_live(), &br#"{"status":"alive"}"#[..]),
        Probe::Live => (readiness.is_live(), &br#"{"live":true}"#[..]),
        Probe::Ready => (readiness.is_ready(), &br#"{"ready":true}"#[..]),
    };
    if good {
        render::json(StatusCode::OK, bytes::Bytes::from_static(body), id)
    } else {
        let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, readiness.reason(), id);
        render::retry_after(response.headers_mut(), std::time::Duration::from_secs(1), true);
        response
    }
}

/// HTTP/1 says when it ends a connection; HTTP/2 has no such header.
fn closes(version: Version) -> bool {
    version < Version::HTTP_2
}

impl Asked {
    fn of(connection: &Connection, id: CallId, label: call::Route, request: &Request<()>, fields: &Fields<'_>) -> Self {
        Self {
            id,
            label,
            context: fields.context(),
            steered: connection.steered(request.headers()),
            voice: Voice::of(request, fields),
            sender: fields.credentials(),
            form: Form::V2,
        }
    }
}

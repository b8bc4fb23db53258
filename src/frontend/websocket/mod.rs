//! WebSocket: the handshake, and the session that follows it (contract 06).
//!
//! The handshake is a call ("who am I?") before it is answered. Everything after `101`, or after `200` on an HTTP/2 stream
//! (RFC 8441), is a session of the duplex loop; nothing here knows what its messages mean.

mod close;
mod codec;
mod frames;
mod link;
mod offer;
#[cfg(test)]
mod tests;

use self::{
    codec::{Caller, Protocol},
    frames::Welcomed,
    link::Socket,
    offer::{PROTOCOL, Protocols},
};
use super::{
    Body, Connection, Phase, Settings,
    accept::{Hold, Tunnel},
    duplex::{Beyond, Order, Rules, Session, Speaker},
    head,
    http::{Request, Response},
    rest,
};
use crate::{
    call::{Call, Credentials, Head, Inspect, Intent, Operation, Pending, Route, Surface, trace::TraceContext},
    error::Error,
};
use http::{
    HeaderValue, Method, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;

/// Where the sockets are (contract 06 C).
const PATH: &str = "/v1/ws";

/// Answers one request of this surface: a request to upgrade over HTTP/1.1, or over HTTP/2 an extended CONNECT, with what
/// its tunnel holds of the connection.
///
/// A refusal is ordinary HTTP with problem details; only what a browser could not read as one comes after `101`.
pub(super) async fn serve(connection: Arc<Connection>, mut request: Request, hold: Option<Hold>) -> Response {
    let offer = match check(&connection, &request) {
        Ok(offer) => offer,
        Err(refusal) => return *refusal,
    };
    let id = head::call_id(request.headers());
    let context = head::context(request.headers());
    let steered = connection.steered(request.headers());
    let call_head = Head::new(id.clone(), Surface::WebSocket, Intent::Inspect, Arc::clone(&connection.peer));
    let call_head = call_head.at(Route::WebSocket).part_of(context);
    // Out of the head before anything can write it down.
    let ticket = offer::take_ticket(&mut request);
    let (speaker, caller) = match who(&connection, call_head, &request, ticket, offer.protocols.token).await {
        Ok(found) => found,
        Err(error) => {
            connection.observe(&error);
            return rest::refuse(&request, &error);
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(open(connection, speaker.steered(steered), caller, context, upgrade, hold));

    let mut response = Response::new(Body::Empty);
    if let Some(accept) = offer.accept {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    let headers = response.headers_mut();
    if offer.protocols.ours {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    headers.insert(head::REQUEST_ID, rest::id_value(&id));
    response
}

/// A handshake that is sound.
#[derive(Debug)]
struct Offer {
    /// The answer to its key; `None` over HTTP/2, which has no keys.
    accept: Option<HeaderValue>,
    protocols: Protocols,
}

/// Refuses handshakes that are faulty whoever sends them (contract 06 A1).
fn check(connection: &Connection, request: &Request) -> Result<Offer, Box<Response>> {
    let refuse = |error: &Error| Box::new(rest::refuse(request, error));
    let (path, headers) = (request.uri().path(), request.headers());
    if path != PATH {
        return Err(refuse(&Error::NoRoute(format!("no WebSocket at `{path}`, expected `{PATH}`").into())));
    }
    if let Err(error) = connection.gate() {
        return Err(refuse(&error));
    }
    let tunnel = request.method() == Method::CONNECT;
    if !tunnel && request.method() != Method::GET {
        return Err(refuse(&Error::MethodNotAllowed { allow: "GET" }));
    }
    if !offer::is_version_13(headers) {
        let (text, version) = ("`sec-websocket-version` is not 13, expected 13", HeaderValue::from_static("13"));
        let id = head::call_id(headers);
        return Err(Box::new(rest::upgrade_required(request, &id, text, (SEC_WEBSOCKET_VERSION, version))));
    }
    let accept = offer::accept(headers).filter(|_| !tunnel);
    if accept.is_none() && !tunnel {
        return Err(refuse(&Error::invalid("`sec-websocket-key` is not one key of 16 bytes in base64")));
    }
    let Ok(protocols) = offer::protocols(headers) else {
        return Err(refuse(&Error::invalid(format!("no offered subprotocol is spoken here, expected `{PROTOCOL}`"))));
    };
    if !offer::is_origin_allowed(headers, &connection.peer, &connection.frontend.settings.websocket) {
        connection.frontend.metrics.refused("origin");
        return Err(refuse(&Error::Forbidden { action: "open a WebSocket from this origin" }));
    }
    if *connection.frontend.phase.borrow() != Phase::Serving {
        return Err(refuse(&Error::ShuttingDown));
    }
    Ok(Offer { accept, protocols })
}

/// Asks the stack who is calling, by the first kind of credentials that is there (contract 06 C1).
///
/// # Errors
///
/// What the client can be told in HTTP.
async fn who(
    connection: &Connection,
    head: Head,
    request: &Request,
    ticket: Option<String>,
    token: Option<Credentials>,
) -> Result<(Speaker, Caller), Error> {
    let settings = &connection.frontend.settings.websocket;
    let ask = async |sender: Credentials| {
        let facts = Arc::clone(&head.facts);
        let input = Pending::ready(Operation::Inspect(Inspect::Session));
        connection.frontend.gateway.call(Call { head, sender: sender.clone(), input }).await?;
        Ok(Speaker::proven(sender, facts))
    };
    let claimed = head::credentials(request.headers());
    if !matches!(claimed, Credentials::None) {
        return ask(claimed).await.map(|speaker| (speaker, Caller::Proven));
    }
    let in_sight = match (ticket, token) {
        (Some(ticket), _) => Some(connection.frontend.tickets.redeem(&ticket)),
        (None, Some(token)) => Some(settings.subprotocol_token.then_some(token)),
        (None, None) => None,
    };
    if let Some(claimed) = in_sight {
        let found = match claimed {
            Some(credentials) => ask(credentials).await,
            None => Err(Error::Unauthenticated),
        };
        return match found {
            Ok(speaker) => Ok((speaker, Caller::Proven)),
            // A browser cannot tell a refusal in HTTP from a broken network.
            Err(error @ (Error::Unauthenticated | Error::Forbidden { .. })) => {
                connection.observe(&error);
                Ok((Speaker::unknown(), Caller::Refused(error)))
            }
            Err(error) => Err(error),
        };
    }
    match ask(Credentials::None).await {
        Ok(speaker) => Ok((speaker, Caller::Anonymous(Ok(())))),
        // Its first message may say who it is.
        Err(error @ (Error::Unauthenticated | Error::Forbidden { .. })) if settings.first_message => {
            Ok((Speaker::unknown(), Caller::Anonymous(Err(error))))
        }
        Err(error) => Err(error),
    }
}

async fn open(
    connection: Arc<Connection>,
    speaker: Speaker,
    caller: Caller,
    context: Option<TraceContext>,
    upgrade: OnUpgrade,
    hold: Option<Hold>,
) {
    let socket = match upgrade.await {
        Ok(socket) => TokioIo::new(socket),
        Err(error) => return tracing::debug!(%error, "a handshake was not completed"),
    };
    match hold {
        Some(hold) => session(connection, speaker, caller, context, Tunnel::new(socket, hold)).await,
        None => session(connection, speaker, caller, context, socket).await,
    }
}

/// Runs a session over a socket whose handshake is over.
async fn session<S>(
    connection: Arc<Connection>,
    speaker: Speaker,
    caller: Caller,
    context: Option<TraceContext>,
    socket: S,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    let settings = &connection.frontend.settings;
    let rules = rules(settings);
    let welcomed = Welcomed::default();
    let link = Socket::new(socket, settings, connection.frontend.memory.for_arrivals(), welcomed.clone()).await;
    let codec = Protocol::new(Arc::clone(&connection), caller, context, welcomed);
    Session::new(connection, rules, speaker, codec, link).run().await;
}

fn rules(settings: &Settings) -> Rules {
    Rules {
        surface: Surface::WebSocket,
        route: Route::WebSocket,
        in_flight: settings.concurrency.per_socket,
        beyond: Beyond::Refuse,
        order: Order::Any,
        send_messages: settings.websocket.send_messages,
        send_bytes: settings.websocket.send_buffer,
        write_stall: settings.timers.write_stall,
        patient: false,
    }
}

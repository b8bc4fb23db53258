//! One caller of each surface.
//!
//! Each is made with the bytes of its request and sends the same ones each time. What surfaces have in common ends here:
//! a caller that shares a connection with others shares it with those of its own surface.

pub(super) mod grpc;
pub(super) mod http1;
mod local;
mod messages;
mod ndjson;
mod websocket;

use super::source::Target;
use crate::call::Timing;
pub(super) use local::Local;
use std::fmt;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server said no; the code as it said it.
    Refused(String),
    /// The connection is of no more use.
    Broken(String),
}

/// A whole answer, as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The body, message or line.
    pub(super) body: Vec<u8>,
    /// How much of the body is JSON, where raw tensors follow.
    pub(super) json: Option<usize>,
}

/// One caller with a request.
pub(super) enum Client {
    Rest(http1::Caller),
    Grpc(grpc::Unary),
    GrpcStream(grpc::Streaming),
    Messages(messages::Caller),
    Local(Local),
}

// === impl Failure ===

impl Failure {
    /// The word that it is counted under.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Refused(code) => code,
            Self::Broken(_) => "connection",
        }
    }

    /// A connection that failed.
    pub(super) fn broken(error: impl fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code) => write!(f, "refused: {code}"),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}

// === impl Client ===

impl Client {
    /// Sends the request once and waits for the end of its answer, which `kept` gets where it is wanted. How long the
    /// request waited and ran, where the answer tells.
    ///
    /// # Errors
    ///
    /// [`Failure`]; after [`Failure::Broken`] see [`Client::mend`].
    pub(super) async fn exchange(&mut self, kept: Option<&mut Kept>) -> Result<Option<Timing>, Failure> {
        match self {
            Self::Rest(caller) => caller.exchange(kept).await.map(|()| None),
            Self::Grpc(caller) => caller.exchange(kept).await.map(|()| None),
            Self::GrpcStream(caller) => caller.exchange(kept).await.map(|()| None),
            Self::Messages(caller) => caller.exchange(kept).await.map(|()| None),
            Self::Local(caller) => caller.exchange().await.map(Some),
        }
    }

    /// Connects anew after the connection broke; false if that cannot be done for one caller alone.
    pub(super) async fn mend(&mut self) -> bool {
        match self {
            Self::Rest(caller) => caller.mend().await,
            Self::Grpc(_) | Self::GrpcStream(_) | Self::Messages(_) | Self::Local(_) => false,
        }
    }
}

/// So many callers of `target`, over so many connections.
///
/// # Errors
///
/// [`Failure`] of the first connection that cannot be made.
pub(super) async fn connect(target: &Target, callers: usize, connections: usize) -> Result<Vec<Client>, Failure> {
    use super::arguments::Surface;
    let connections = connections.clamp(1, callers);
    // Callers of each connection: they differ by one at most.
    let shares = (0..connections).map(|index| callers / connections + usize::from(index < callers % connections));
    let mut clients = Vec::with_capacity(callers);
    for share in shares {
        let first = clients.len();
        let numbers = first..first + share;
        match target.surface() {
            Surface::Rest | Surface::RestBinary => {
                for caller in numbers {
                    clients.push(Client::Rest(http1::Caller::connect(target, caller).await?));
                }
            }
            Surface::Grpc => {
                let connection = grpc::Connection::open(&target.server().address).await?;
                for caller in numbers {
                    clients.push(Client::Grpc(grpc::Unary::infer(&connection, target, caller)?));
                }
            }
            Surface::GrpcStream => {
                let connection = grpc::Connection::open(&target.server().address).await?;
                for caller in numbers {
                    clients.push(Client::GrpcStream(grpc::Streaming::open(&connection, target, caller).await?));
                }
            }
            Surface::Websocket => {
                let socket = websocket::Socket::open(target).await?;
                clients.extend(messages::callers(socket, target, numbers, "").into_iter().map(Client::Messages));
            }
            Surface::Ndjson => {
                let stream = ndjson::Stream::open(target).await?;
                clients.extend(messages::callers(stream, target, numbers, "\n").into_iter().map(Client::Messages));
            }
        }
    }
    Ok(clients)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_what_they_are() {
        assert_eq!(Failure::Refused("overloaded".into()).code(), "overloaded");
        assert_eq!(Failure::broken("reset by peer").code(), "connection");
        assert_eq!(Failure::broken("reset by peer").to_string(), "reset by peer");
    }
}

//! Acceptors, connection limits, the address gate, drain.
//!
//! [`Listener::accept`] runs on the control runtime and deals sockets out; [`serve`] runs on the lane that got one,
//! for the life of the connection. What a request means is `http`'s.

mod connection;
mod flood;
mod frames;
mod guard;
mod patience;
mod socket;
mod stall;
mod tunnel;

pub use connection::serve;
pub(super) use patience::InFlight;
pub(super) use stall::{Outgoing, opened};
pub(super) use tunnel::{Hold, Over, Tunnel};

use super::{Phase, Surfaces, settings::Connections, tls::Tls};
use crate::{
    limit::address::{AddressGate, AddressSlot},
    telemetry::metrics::{Gauge, Metrics},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fmt, io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

/// Connections that the kernel keeps for us until they are accepted; it cuts the number to its own maximum.
const BACKLOG: i32 = 4096;
/// After an error that will not go away by itself (no file descriptors, say) the acceptor waits this long, then longer.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such wait.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A bound address that takes connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    local: SocketAddr,
    surfaces: Surfaces,
    tls: Option<Tls>,
}

/// Why an address cannot be listened on, in words for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindError(String);

/// Places for connections and TLS handshakes (`limits.connections`), shared by all listeners.
#[derive(Clone, Debug)]
pub struct Places {
    connections: Arc<Semaphore>,
    total: usize,
    handshakes: Arc<Semaphore>,
}

/// A connection on its way to a lane.
#[derive(Debug)]
pub struct Accepted {
    stream: TcpStream,
    remote: SocketAddr,
    local: SocketAddr,
    surfaces: Surfaces,
    tls: Option<(Tls, Arc<Semaphore>)>,
    place: Place,
}

/// What a connection holds until its socket is closed, upgraded or not.
#[derive(Debug)]
struct Place {
    _connection: OwnedSemaphorePermit,
    _address: AddressSlot,
    gauge: Gauge,
}

// === impl Listener ===

impl Listener {
    /// Binds `address` (port 0 works). Must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the address and what to do, for a port in use above all.
    pub fn bind(address: SocketAddr, surfaces: Surfaces, tls: Option<Tls>) -> Result<Self, BindError> {
        let socket = open(address).map_err(|error| BindError::new(address, &error))?;
        let local = socket.local_addr().map_err(|error| BindError::new(address, &error))?;
        Ok(Self { socket, local, surfaces, tls })
    }

    /// Where it listens, with the port that was found for port 0.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// How it speaks TLS, if it does.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Accepts until draining begins, then closes the listener. Each connection goes to `deal`.
    ///
    /// While all places are taken nothing is accepted: the kernel's backlog is the queue.
    pub async fn accept(
        self,
        places: Places,
        addresses: Arc<AddressGate>,
        metrics: Arc<Metrics>,
        mut phase: watch::Receiver<Phase>,
        mut deal: impl FnMut(Accepted),
    ) {
        let mut pause = FIRST_PAUSE;
        let mut ended = std::pin::pin!(async move {
            // An error means that nobody is left who could say it: the process ends.
            let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
        });
        loop {
            let accepted = async {
                let place = Arc::clone(&places.connections).acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((self.socket.accept().await?, place))
            };
            let accepted = tokio::select! {
                biased;
                () = &mut ended => return,
                accepted = accepted => accepted,
            };
            match accepted.and_then(|((stream, remote), place)| Ok((stream.into_std()?, remote, place))) {
                Ok((stream, remote, place)) => {
                    pause = FIRST_PAUSE;
                    let Some(slot) = addresses.connect(remote.ip()) else {
                        metrics.refused("limit");
                        continue;
                    };
                    let place = Place { _connection: place, _address: slot, gauge: metrics.connection_opened() };
                    let tls = self.tls.clone().map(|tls| (tls, Arc::clone(&places.handshakes)));
                    // The address that was connected to, which is not ours if we listen on all.
                    let local = stream.local_addr().unwrap_or(self.local);
                    deal(Accepted { stream, remote, local, surfaces: self.surfaces, tls, place });
                }
                Err(error) if is_peers(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, address = %self.local, "cannot accept connections");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Errors of one connection that ended before it was accepted; the next one is not concerned.
fn is_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

// === impl BindError ===

impl BindError {
    fn new(address: SocketAddr, error: &io::Error) -> Self {
        Self(match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!(
                    "cannot listen on `{address}`: the port is in use; stop the other program or choose another port"
                )
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("cannot listen on `{address}`: this machine has no such address")
            }
            io::ErrorKind::PermissionDenied => {
                format!("cannot listen on `{address}`: not permitted; ports below 1024 need a privilege")
            }
            _ => format!("cannot listen on `{address}`: {error}"),
        })
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BindError {}

// === impl Places ===

impl Places {
    /// As many places as `limits` says.
    pub fn new(limits: Connections) -> Self {
        let total = limits.total.clamp(1, Semaphore::MAX_PERMITS);
        let handshakes = limits.handshakes.clamp(1, Semaphore::MAX_PERMITS);
        Self { connections: Arc::new(Semaphore::new(total)), total, handshakes: Arc::new(Semaphore::new(handshakes)) }
    }

    /// Connections that are open, WebSockets included. A listener that waits for the next one counts as one.
    pub fn open(&self) -> usize {
        self.total - self.connections.available_permits()
    }

    /// Returns when no connection is open any more. Call it when the listeners are closed.
    pub async fn all_free(&self) {
        let all = u32::try_from(self.total).unwrap_or(u32::MAX);
        // Closed never: nobody closes this semaphore.
        let _ = self.connections.acquire_many(all).await;
    }
}

#[cfg(test)]
mod tests;

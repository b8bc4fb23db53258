//! Bytes on sockets: makes calls, renders replies and errors.
//!
//! A front-end owns bytes and nothing else: identity, limits, deadlines and metrics of calls are the
//! stack's. It may not name `layer`, `model` or `schedule`.

pub mod accept;
pub mod body;
pub mod duplex;
mod forwarded;
pub mod grpc;
pub mod h2_stream;
pub mod head;
pub mod http;
mod quota;
pub mod rest;
pub mod settings;
#[cfg(test)]
pub(crate) mod testing;
mod ticket;
pub mod tls;
pub mod websocket;

pub use body::Body;
pub use settings::Settings;
pub use ticket::Tickets;

use crate::{
    call::{Credentials, Facts, Gateway, Peer, Readiness, Steered, Steering, Surface},
    error::{Error, Limit},
    limit::address::{AddressGate, Network},
    telemetry::metrics::Metrics,
};
use ::http::{HeaderMap, HeaderValue};
use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};
use tokio::sync::watch;

/// What all connections of all lanes share.
#[derive(Debug)]
pub struct Frontend {
    /// The stack.
    pub gateway: Gateway,
    /// Limits and choices.
    pub settings: Settings,
    /// What probes answer.
    pub readiness: Readiness,
    /// How far the process is on its way out.
    pub phase: watch::Receiver<Phase>,
    /// Bytes, connections and sessions are counted here; calls are counted in the stack.
    pub metrics: Arc<Metrics>,
    /// What strangers may cost.
    pub addresses: Arc<AddressGate>,
    /// Bytes of bodies and outputs held (`limits.concurrency.memory`).
    pub memory: body::Memory,
    /// What browsers traded their credentials for.
    pub tickets: Tickets,
    /// Changes when somebody who is known may not be any more: a key was revoked, an issuer has other keys.
    pub proofs: watch::Receiver<()>,
    /// Which headers decide to which version of a model a call goes.
    pub steering: Steering,
}

impl Frontend {
    /// The same with other settings, for connections from now on. What all connections share stays as it is.
    #[must_use]
    pub fn with_settings(&self, settings: Settings) -> Self {
        Self {
            gateway: self.gateway.clone(),
            settings,
            readiness: self.readiness.clone(),
            phase: self.phase.clone(),
            metrics: Arc::clone(&self.metrics),
            addresses: Arc::clone(&self.addresses),
            memory: self.memory.clone(),
            tickets: self.tickets.clone(),
            proofs: self.proofs.clone(),
            steering: self.steering.clone(),
        }
    }

    /// The whole reply of a call was written for its client, from the moment when it was over: counted, and noted if the
    /// call is traced.
    pub fn encoded(&self, surface: Surface, facts: &Facts) {
        let (begun, over) = (facts.over(), Instant::now());
        self.metrics.encoded(surface, over.saturating_duration_since(begun));
        if let Some(trace) = facts.trace.get() {
            trace.note("encode", begun, over);
        }
    }
}

/// How far the process is on its way out (contract 07 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Taking connections and calls. Readiness may be false already (`drain.delay`).
    Serving,
    /// Listeners are closed. Finish what runs, refuse what is new with `not_ready`, say goodbye.
    Draining {
        /// When the rest will be cancelled.
        deadline: std::time::Instant,
    },
    /// Cancel the rest with `not_ready` and close.
    Stopping,
}

/// One connection, shared by all its requests and messages; of one that a proxy makes for its clients, what is one client's.
#[derive(Debug)]
pub struct Connection {
    /// What all connections share.
    pub frontend: Arc<Frontend>,
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// What this listener serves.
    pub surfaces: Surfaces,
    /// Whose `x-forwarded-for` is believed here.
    proxies: Arc<[Network]>,
    /// Health watches that are open on it.
    watches: Arc<AtomicUsize>,
}

impl Connection {
    /// A connection on which nothing was asked yet.
    pub fn new(frontend: Arc<Frontend>, peer: Arc<Peer>, surfaces: Surfaces) -> Self {
        Self { frontend, peer, surfaces, proxies: Arc::default(), watches: Arc::default() }
    }

    /// The same on a listener that believes these proxies (`listen.*.trusted_proxies`).
    #[must_use]
    pub fn behind(self, proxies: Arc<[Network]>) -> Self {
        Self { proxies, ..self }
    }

    /// Asks the address gate, and counts refusals. Called for each HTTP request and handshake, before there is a call.
    ///
    /// # Errors
    ///
    /// [`Error::RateLimited`] if too many authentications from this address failed.
    pub fn gate(&self) -> Result<(), Error> {
        let checked = self.frontend.addresses.check(self.peer.address.ip());
        checked.inspect_err(|_| self.frontend.metrics.refused("address"))
    }

    /// Headers of a request that decide to which version of a model its calls go.
    fn steered(&self, headers: &HeaderMap) -> Option<Steered> {
        self.frontend.steering.of(|name| headers.get(name).map(HeaderValue::as_bytes))
    }

    /// `sent`, as it has to be written down to prove the same on another connection.
    fn portable(&self, sent: &Credentials) -> Credentials {
        match (sent, &self.peer.certificate) {
            (Credentials::None, Some(certificate)) => Credentials::Certificate(Arc::clone(certificate)),
            _ => sent.clone(),
        }
    }

    /// Tells the address gate about an error that is about to be rendered.
    pub fn observe(&self, error: &Error) {
        if matches!(error, Error::Unauthenticated) {
            self.frontend.addresses.failed(self.peer.address.ip());
        }
    }

    /// Counts a refusal for lack of room that no call was: before there was one, or when its answer had none.
    pub fn no_room(&self, error: &Error) {
        match error {
            Error::Overloaded { limit } => self.frontend.metrics.overloaded(*limit),
            Error::NeverFits { .. } => self.frontend.metrics.overloaded(Limit::Memory),
            _ => {}
        }
    }
}

/// Which surfaces a listener serves; what it does not serve is 404, for gRPC 12 (contract 00 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surfaces(u8);

impl Surfaces {
    /// All of them.
    pub const ALL: Self = Self(0b1111);
    /// None of them.
    pub const NONE: Self = Self(0);

    /// These and `surface`.
    #[must_use]
    pub const fn with(self, surface: Surface) -> Self {
        Self(self.0 | 1 << surface as u8)
    }

    /// Their names, in the order of [`Surface::ALL`].
    pub fn names(self) -> Vec<&'static str> {
        Surface::ALL.into_iter().filter(|surface| self.has(*surface)).map(Surface::name).collect()
    }

    /// Whether `surface` is among them.
    pub const fn has(self, surface: Surface) -> bool {
        self.0 & 1 << surface as u8 != 0
    }
}

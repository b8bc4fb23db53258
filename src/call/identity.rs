//! Who is calling: claims as sent, and claims that were proven.

use super::Intent;
use std::{net::SocketAddr, sync::Arc, time::SystemTime};

/// The identity of everyone who proves nothing and is let in all the same.
pub const ANONYMOUS: &str = "anonymous";

/// Claims, as sent. Nothing here is proven.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing was sent. The certificate of the connection counts then, if there is one (contract 06 C1).
    #[default]
    None,
    /// A key from `x-api-key`, or a raw `authorization` value.
    ApiKey(Arc<str>),
    /// A token from `authorization: Bearer`; may be an API key too.
    Bearer(Arc<str>),
    /// A client certificate, verified by the listener that it was shown to.
    Certificate(Arc<Certificate>),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the value: credentials do not go to logs (contract 00 section 5).
        f.write_str(match self {
            Self::None => "None",
            Self::ApiKey(_) => "ApiKey(..)",
            Self::Bearer(_) => "Bearer(..)",
            Self::Certificate(_) => "Certificate(..)",
        })
    }
}

/// What a verified client certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// URIs among its alternative names (RFC 5280 section 4.2.1.6).
    pub uris: Vec<Arc<str>>,
    /// Host names among its alternative names.
    pub hosts: Vec<Arc<str>>,
    /// Its subject as RFC 4514 writes it; `None` if it is empty or has no such form.
    pub subject: Option<Arc<str>>,
    /// When it stops being valid. Connections may outlive it.
    pub until: SystemTime,
}

/// A proven claim. Only `auth` makes one.
#[derive(Clone, Debug)]
pub struct Identity {
    id: Arc<str>,
    groups: Vec<Arc<str>>,
    claims: Vec<(Arc<str>, Arc<str>)>,
    scope: Scope,
    until: Option<SystemTime>,
}

/// What the proof itself allows, before grants are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Whatever the grants say.
    Granted,
    /// Whatever the grants say, and only these intents and model patterns (`keys.yaml`).
    Narrowed {
        /// Intents the key is for; `None` for all.
        intents: Option<Vec<Intent>>,
        /// Patterns of model names the key is for; `None` for all.
        models: Option<Vec<Arc<str>>>,
    },
    /// Everything: the anonymous caller of a loopback listener while no method is configured (decision 8).
    Everything,
}

impl Identity {
    /// A proven identity with its groups and the scope of its proof.
    pub(crate) fn proven(id: impl Into<Arc<str>>, groups: Vec<Arc<str>>, scope: Scope) -> Self {
        Self { id: id.into(), groups, claims: Vec::new(), scope, until: None }
    }

    /// The same, with what else its proof says of it: names and values.
    #[must_use]
    pub(crate) fn with_claims(self, claims: Vec<(Arc<str>, Arc<str>)>) -> Self {
        Self { claims, ..self }
    }

    /// The same, whose proof ends at a known time.
    #[must_use]
    pub(crate) fn until_time(self, until: Option<SystemTime>) -> Self {
        Self { until, ..self }
    }

    /// The name, as grants and logs write it.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Whether nothing tells it from others.
    pub fn is_anonymous(&self) -> bool {
        &*self.id == ANONYMOUS
    }

    /// Names of the groups it belongs to.
    pub fn groups(&self) -> &[Arc<str>] {
        &self.groups
    }

    /// What else its proof says of it: names and values; a name may be there several times.
    pub fn claims(&self) -> &[(Arc<str>, Arc<str>)] {
        &self.claims
    }

    /// What the proof itself allows.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// When its proof will have ended, as far as is known now. It may be revoked earlier.
    pub fn until(&self) -> Option<SystemTime> {
        self.until
    }
}

/// The other end of a connection. Shared by all its calls.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// Where it arrived.
    pub local: SocketAddr,
    /// True if TLS ends here.
    pub tls: bool,
    /// The client certificate that it showed, verified.
    pub certificate: Option<Arc<Certificate>>,
}

impl Peer {
    /// Somebody at `address` who has connected to `local` in clear text.
    pub const fn new(address: SocketAddr, local: SocketAddr) -> Self {
        Self { address, local, tls: false, certificate: None }
    }

    /// True if it arrived on a loopback address; `auth.anonymous: loopback` asks this.
    pub fn is_loopback(&self) -> bool {
        self.local.ip().to_canonical().is_loopback()
    }
}

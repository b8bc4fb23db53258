//! Who is calling: claims as sent, and claims that were proven.

use super::Intent;
use std::{net::SocketAddr, sync::Arc};

/// Claims, as sent. Nothing here is proven.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing was sent.
    #[default]
    None,
    /// A key from `x-api-key`, or a raw `authorization` value.
    ApiKey(Arc<str>),
    /// A token from `authorization: Bearer`; may be an API key too.
    Bearer(Arc<str>),
    /// The name in a verified client certificate.
    Certificate(Arc<str>),
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

/// A proven claim. Only `auth` makes one.
#[derive(Clone, Debug)]
pub struct Identity {
    id: Arc<str>,
    groups: Vec<Arc<str>>,
    scope: Scope,
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
        Self { id: id.into(), groups, scope }
    }

    /// The name, as grants and logs write it.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Names of the groups it belongs to.
    pub fn groups(&self) -> &[Arc<str>] {
        &self.groups
    }

    /// What the proof itself allows.
    pub fn scope(&self) -> &Scope {
        &self.scope
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
}

impl Peer {
    /// True if it arrived on a loopback address; `auth.anonymous: loopback` asks this.
    pub fn is_loopback(&self) -> bool {
        self.local.ip().to_canonical().is_loopback()
    }
}

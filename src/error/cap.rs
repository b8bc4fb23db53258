//! What a caller has used up: its own rate or quota, never the server's room.

use std::{fmt, sync::Arc, time::Duration};

const CONCURRENCY: &str = "concurrency";
const ADDRESS: &str = "address";

/// What a caller ran into. Two words, because it travels in every [`Error::RateLimited`](super::Error::RateLimited).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cap {
    /// A policy of `limits.rate`.
    Policy(Arc<Allowance>),
    /// Calls in flight of one identity (`limits.concurrency.per_identity`).
    Calls,
    /// WebSockets and streams of one identity (`limits.connections.per_identity`).
    Sessions,
    /// The address gate (`limits.address`), before there is a call.
    Address,
}

/// What a policy allows, for those whom it refuses and for headers (contract 10 sections 1 and 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The policy's name, from the configuration.
    pub name: Box<str>,
    /// Units in each `per`.
    pub limit: u64,
    /// The period of `limit`.
    pub per: Duration,
    /// Units that may be there at once.
    pub burst: u64,
    /// What is counted: `calls`, `rows` and so on.
    pub unit: &'static str,
}

impl Cap {
    /// The names of limits that are no policies, so that no policy can have them.
    pub const BUILT_IN: [&str; 2] = [CONCURRENCY, ADDRESS];

    /// The word for metric labels and for clients: a policy's name, or that of the limit.
    pub fn name(&self) -> &str {
        match self {
            Self::Policy(allowance) => &allowance.name,
            Self::Calls | Self::Sessions => CONCURRENCY,
            Self::Address => ADDRESS,
        }
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(allowance) => allowance.fmt(f),
            Self::Calls => f.write_str("as many calls in flight as one identity may have"),
            Self::Sessions => f.write_str("as many WebSockets and streams as one identity may have"),
            Self::Address => f.write_str("too many failed authentications from this address"),
        }
    }
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {} allows {} {} per {} s", self.name, self.limit, self.unit, self.per.as_secs_f64())
    }
}

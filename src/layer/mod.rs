//! The layers of the stack, one file each. What every layer promises:
//!
//! - It is **always ready** and decides in `call`. `poll_ready` only forwards; nothing is reserved between it and `call`,
//!   because wherever readiness is polled before there is a call, idle connections would hoard what was reserved.
//! - Cloning it is cheap: settings, and at most one `Arc`. State is behind that.
//! - It answers errors as values; only front-ends render them.
//! - It does not box. Only [`decode`] waits for a client, so only its future is boxed, and those of [`rate_limit`]
//!   and [`admit`] where a limit is shared with other processes; the others are a few words beside the future of the layer below.
//! - What must last as long as a reply that streams is an [`Observer`](crate::call::Observer) in a
//!   [`Watch`](crate::call::Watch), made before the call goes down. The reply carries it to its end.
//!
//! A layer knows nothing of the others, and nothing of protocols, models or schedulers. Their order stands in
//! [`stack`](crate::stack).

pub mod admit;
pub mod authenticate;
pub mod authorize;
pub mod catch_panic;
pub mod deadline;
pub mod decode;
pub mod metrics;
pub mod rate_limit;
pub mod reserve;
pub mod sessions;
pub mod trace;

mod alarm;
mod guarded;
mod per_identity;
mod pool;

/// The atomics of this module, so that a model checker can put others in their place.
mod sync {
    pub(super) use std::sync::atomic::{AtomicUsize, Ordering};
}

#[cfg(test)]
pub(crate) mod fixture;

pub use admit::AdmitLayer;
pub use authenticate::AuthenticateLayer;
pub use authorize::AuthorizeLayer;
pub use catch_panic::CatchPanicLayer;
pub use deadline::DeadlineLayer;
pub use decode::DecodeLayer;
pub use guarded::Guarded;
pub use metrics::MetricsLayer;
pub use rate_limit::RateLimitLayer;
pub use reserve::ReserveLayer;
pub use sessions::SessionsLayer;
pub use trace::TraceLayer;

//! THE tower stack, outermost to innermost, in one function.
//!
//! Knows the order of the layers and why it is that one; what each does stands in [`layer`](crate::layer), what runs below
//! is the router's. The tests here are the specification of the order.

use crate::{
    auth::{Authenticator, grants::Grants},
    call::{Decoded, Gateway, Reply},
    error::Error,
    layer::{
        AdmitLayer, AuthenticateLayer, AuthorizeLayer, CatchPanicLayer, DeadlineLayer, DecodeLayer, MetricsLayer,
        RateLimitLayer, ReserveLayer, SessionsLayer, TraceLayer, admit::Slots, authenticate::Verify, authorize::Permit,
        deadline, rate_limit::Charging,
    },
    limit::RateLimiter,
    telemetry::{access_log::AccessLog, metrics::Metrics, traces::Tracer},
};
use std::sync::Arc;
use tower::{Service, ServiceBuilder};

/// What the stack is built of.
#[derive(Debug)]
pub struct Parts<R, V = Authenticator, L = RateLimiter, G = Grants> {
    /// Where calls are written down, if they are.
    pub access_log: Option<AccessLog>,
    /// Which calls are traced, if any.
    pub tracer: Option<Tracer>,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
    /// `limits.deadline`.
    pub deadlines: deadline::Shared,
    /// Proves who is calling.
    pub authenticator: Arc<V>,
    /// Charges calls.
    pub limiter: Arc<L>,
    /// Slots for calls in flight.
    pub slots: Arc<Slots>,
    /// `limits.connections.per_identity`.
    pub sessions: Option<usize>,
    /// Says who may do what.
    pub grants: Arc<G>,
    /// Resolves the model and runs it; see [`model`](crate::model).
    pub router: R,
}

/// Builds the gateway. Read it from the top: calls go down, replies come up.
pub fn build<R, V, L, G>(parts: Parts<R, V, L, G>) -> Gateway
where
    R: Service<Decoded, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    R::Future: Send,
    V: Verify,
    L: Charging,
    G: Permit,
{
    let stack = ServiceBuilder::new()
        // Sees everything below, refusals and dropped calls included.
        .layer(TraceLayer::new(parts.access_log, parts.tracer))
        .layer(MetricsLayer::new(parts.metrics))
        // A panic below becomes an Internal error that the layers above still count.
        .layer(CatchPanicLayer)
        // The clock covers everything a client can make slow, its body included.
        .layer(DeadlineLayer::new(parts.deadlines))
        // Inbound -> Identified: from here on we know who.
        .layer(AuthenticateLayer::new(parts.authenticator))
        // Needs to know who; costs nothing, so it comes before anything that does.
        .layer(RateLimitLayer::new(Arc::clone(&parts.limiter)))
        // A slot until the reply is over. Before Decode, so that it bounds bodies too.
        .layer(AdmitLayer::new(parts.slots))
        // Identified -> Decoded: the only layer that waits for the client's body.
        .layer(DecodeLayer)
        // May this identity do this to this model? Needs the decoded name.
        .layer(AuthorizeLayer::new(parts.grants))
        // A place for a session that is opened; the session keeps it.
        .layer(SessionsLayer::new(parts.sessions))
        // What only the body tells: the model, rows, bytes. Settled when the call is over.
        .layer(ReserveLayer::new(parts.limiter))
        // Resolves the model, checks the inputs, hands over to its scheduler.
        .service(parts.router);
    Gateway::new(stack)
}

#[cfg(test)]
mod tests;

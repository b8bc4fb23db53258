//! Every metric family, once, with its help text (contract 09 section 3).

use crate::call::{End, Intent, ModelKey, Surface};
use std::{sync::Arc, time::Duration};

/// All metric families of the process, with handles that are resolved once and not per call.
#[derive(Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// Registers all families.
    pub fn new() -> Self {
        Self::default()
    }

    /// The page of `/metrics`, Prometheus text 0.0.4.
    pub fn render(&self) -> String {
        unimplemented!()
    }

    /// A call has begun.
    pub fn call_started(&self, surface: Surface, intent: Intent) {
        let _ = (surface, intent);
    }

    /// A call is over, in reply, in error or abandoned. `model` only as the repository knows it.
    pub fn call_ended(
        &self,
        surface: Surface,
        intent: Intent,
        model: Option<&Arc<ModelKey>>,
        end: End,
        took: Duration,
    ) {
        let _ = (surface, intent, model, end, took);
    }

    /// A chunk of a stream passed by; `first` with the time since the call began.
    pub fn chunk(&self, surface: Surface, model: Option<&Arc<ModelKey>>, first: Option<Duration>) {
        let _ = (surface, model, first);
    }

    /// Handles for one model version, to be kept by its scheduler.
    pub fn model(&self, model: &ModelKey) -> ModelMetrics {
        let _ = model;
        ModelMetrics {}
    }

    /// A connection was opened on `surface`-less transport level; the guard closes it when dropped.
    pub fn connection_opened(&self) -> Gauge {
        Gauge {}
    }

    /// A connection or request was refused before there was a call, for `reason`.
    pub fn refused(&self, reason: &'static str) {
        let _ = reason;
    }

    /// A message-oriented session (WebSocket, NDJSON stream, gRPC stream) was opened; the guard closes it when dropped.
    pub fn session_opened(&self, surface: Surface) -> Gauge {
        let _ = surface;
        Gauge {}
    }

    /// Body bytes read and written by a front-end.
    pub fn bytes(&self, surface: Surface, received: u64, sent: u64) {
        let _ = (surface, received, sent);
    }
}

/// Lowers its gauge when dropped.
#[derive(Debug)]
pub struct Gauge {}

/// Handles of one model version.
#[derive(Clone, Debug)]
pub struct ModelMetrics {}

impl ModelMetrics {
    /// A batch ran: `rows` of `jobs` jobs in `took`.
    pub fn ran(&self, jobs: usize, rows: usize, took: Duration) {
        let _ = (jobs, rows, took);
    }

    /// A job waited this long before its run began.
    pub fn waited(&self, queued: Duration) {
        let _ = queued;
    }

    /// The number of jobs in the queue has changed by `delta`.
    pub fn queue_changed(&self, delta: i64) {
        let _ = delta;
    }

    /// A run failed or panicked.
    pub fn failed(&self) {}
}

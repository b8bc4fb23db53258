//! What of the server is full: its own room, never a caller's rate or quota.

use std::fmt;

/// The limit that a call ran into, named by [`Error::Overloaded`](super::Error::Overloaded) and by
/// `sluicegate_overloaded_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Calls in flight (`limits.concurrency.calls`).
    Calls,
    /// Calls in flight that only look (`limits.concurrency.inspect`).
    Inspect,
    /// Calls in flight of one WebSocket (`limits.concurrency.per_socket`).
    Session,
    /// Calls in flight of one ensemble (`in_flight` of its `model.yaml`).
    Ensemble,
    /// Bytes of bodies, inputs and outputs (`limits.concurrency.memory`).
    Memory,
    /// What waits for the decoding threads.
    Decoding,
    /// Works in pieces that are under way on threads.
    Pieces,
    /// What waits for a model (`batching.max_queue`).
    Queue,
    /// The time that a queue takes (`limits.concurrency.queue_delay`).
    QueueDelay,
    /// The time that one call may take in a queue (`batching.timeout`).
    QueueTimeout,
    /// Limits that several processes share, while what they share is away (`limits.shared`).
    Shared,
    /// Tickets for WebSockets that nobody has used yet.
    Tickets,
    /// Questions to the loader of models that wait.
    Questions,
    /// Loads and unloads that wait.
    Orders,
    /// Models with trace settings of their own.
    TraceSettings,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Calls,
        Self::Inspect,
        Self::Session,
        Self::Ensemble,
        Self::Memory,
        Self::Decoding,
        Self::Pieces,
        Self::Queue,
        Self::QueueDelay,
        Self::QueueTimeout,
        Self::Shared,
        Self::Tickets,
        Self::Questions,
        Self::Orders,
        Self::TraceSettings,
    ];

    /// The word for metric labels.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The word for metric labels, and what callers read.
    const fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::Calls => ("calls", "calls in flight"),
            Self::Inspect => ("inspect", "inspect calls in flight"),
            Self::Session => ("socket", "calls in flight of this session"),
            Self::Ensemble => ("ensemble", "calls in flight of the ensemble"),
            Self::Memory => ("memory", "memory"),
            Self::Decoding => ("decoding", "decoding threads"),
            Self::Pieces => ("pieces", "work on threads"),
            Self::Queue => ("queue", "queue of the model"),
            Self::QueueDelay => ("queue_delay", "queue delay"),
            Self::QueueTimeout => ("queue_timeout", "queue timeout"),
            Self::Shared => ("shared_limits", "shared limits"),
            Self::Tickets => ("tickets", "tickets"),
            Self::Questions => ("loader_questions", "questions to the loader"),
            Self::Orders => ("loader_orders", "orders to the loader"),
            Self::TraceSettings => ("trace_settings", "models with trace settings"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_has_a_label_and_a_text_of_its_own() {
        let labels: HashSet<_> = Limit::ALL.map(Limit::name).into();
        let texts: HashSet<_> = Limit::ALL.map(|limit| limit.to_string()).into();
        assert_eq!((labels.len(), texts.len()), (Limit::ALL.len(), Limit::ALL.len()));
        let is_label = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(labels.into_iter().all(is_label));
    }
}

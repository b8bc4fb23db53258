//! What schedulers report of one model.

use super::families::Families;
use prometheus::{Histogram, IntCounter, IntGauge};
use std::time::Duration;

/// Handles of one model version. Its series exist, at zero, from the moment the handles are made.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    queue_wait: Histogram,
    queue_depth: IntGauge,
    run: Histogram,
    run_failures: IntCounter,
    batch_size: Histogram,
}

impl ModelMetrics {
    pub(super) fn new(families: &Families, name: &str) -> Self {
        let labels = [name];
        Self {
            queue_wait: families.queue_wait.with_label_values(&labels),
            queue_depth: families.queue_depth.with_label_values(&labels),
            run: families.run.with_label_values(&labels),
            run_failures: families.run_failures.with_label_values(&labels),
            batch_size: families.batch_size.with_label_values(&labels),
        }
    }

    /// A batch ran: `rows` of `jobs` jobs in `took`.
    pub fn ran(&self, _jobs: usize, rows: usize, took: Duration) {
        self.batch_size.observe(rows as f64);
        self.run.observe(took.as_secs_f64());
    }

    /// A job waited this long before its run began.
    pub fn waited(&self, queued: Duration) {
        self.queue_wait.observe(queued.as_secs_f64());
    }

    /// The number of jobs in the queue has changed by `delta`.
    pub fn queue_changed(&self, delta: i64) {
        self.queue_depth.add(delta);
    }

    /// A run failed or panicked.
    pub fn failed(&self) {
        self.run_failures.inc();
    }
}

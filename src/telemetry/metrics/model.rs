//! What schedulers report of one model.

use super::families::Families;
use crate::telemetry::statistics::{Spent, Statistics};
use prometheus::{Histogram, IntCounter, IntGauge};
use std::{sync::Arc, time::Duration};

/// Handles of one model version. Its series exist, at zero, from the moment the handles are made.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    queue_wait: Histogram,
    queue_depth: IntGauge,
    run: Histogram,
    run_failures: IntCounter,
    batch_size: Histogram,
    elements: IntCounter,
    padding: IntCounter,
    statistics: Arc<Statistics>,
}

impl ModelMetrics {
    pub(super) fn new(families: &Families, name: &str, statistics: Arc<Statistics>) -> Self {
        let labels = [name];
        Self {
            queue_wait: families.queue_wait.with_label_values(&labels),
            queue_depth: families.queue_depth.with_label_values(&labels),
            run: families.run.with_label_values(&labels),
            run_failures: families.run_failures.with_label_values(&labels),
            batch_size: families.batch_size.with_label_values(&labels),
            elements: families.batch_elements.with_label_values(&[name, "input"]),
            padding: families.batch_elements.with_label_values(&[name, "padding"]),
            statistics,
        }
    }

    /// A batch ran: `rows` of `jobs` jobs, which had waited `queued` together.
    pub fn ran(&self, jobs: usize, rows: usize, queued: Duration, spent: Spent) {
        self.batch_size.observe(rows as f64);
        self.run.observe((spent.input + spent.infer).as_secs_f64());
        self.statistics.ran(jobs, rows, queued, spent);
    }

    /// A batch of a model whose inputs are filled up had so many elements of callers, and so many that filled up.
    pub fn laid(&self, elements: usize, padding: usize) {
        self.elements.inc_by(elements as u64);
        self.padding.inc_by(padding as u64);
    }

    /// What this version has done so far.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// A job waited this long before its run began.
    pub fn waited(&self, queued: Duration) {
        self.queue_wait.observe(queued.as_secs_f64());
    }

    /// The number of jobs in the queue has changed by `delta`.
    pub fn queue_changed(&self, delta: i64) {
        self.queue_depth.add(delta);
        self.statistics.queue_changed(delta);
    }

    /// A run failed or panicked.
    pub fn failed(&self) {
        self.run_failures.inc();
    }
}

//! What schedulers report of one model.

use super::{families::Families, histogram::Histogram};
use crate::{
    call::ModelKey,
    telemetry::statistics::{Spent, Statistics},
};
use prometheus::{Gauge, GaugeVec, IntCounter, IntGauge};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// Sizes of batches whose cost is told: powers of two, up to 65,536 rows.
pub(super) const SIZES: usize = 17;

/// Why instances are replaced.
const REASONS: [&str; 2] = ["panic", "hang"];
/// Why models leave the lanes.
const MOVED: [&str; 2] = ["budget", "limit"];

/// Handles of one model version. Its series exist, at zero, from the moment the handles are made.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    queue_wait: Histogram,
    queue_depth: IntGauge,
    run: Histogram,
    run_failures: IntCounter,
    /// After a panic, and after a run that did not end.
    replaced: [IntCounter; 2],
    moved: [IntCounter; 2],
    given_up: IntGauge,
    batch_size: Histogram,
    elements: IntCounter,
    padding: IntCounter,
    batch_cost: Arc<BatchCost>,
    pub(super) statistics: Arc<Statistics>,
}

/// The learnt costs of one version. Made when first told: few models see all sizes.
#[derive(Debug)]
struct BatchCost {
    family: GaugeVec,
    key: Arc<ModelKey>,
    sizes: [OnceLock<Gauge>; SIZES],
}

impl ModelMetrics {
    pub(super) fn new(families: &Families, key: &Arc<ModelKey>, statistics: Arc<Statistics>) -> Self {
        let labels = [&*key.name];
        Self {
            queue_wait: families.queue_wait.with_label_values(&labels),
            queue_depth: families.queue_depth.with_label_values(&labels),
            run: families.run.with_label_values(&labels),
            run_failures: families.run_failures.with_label_values(&labels),
            replaced: REASONS.map(|reason| families.replaced.with_label_values(&[&*key.name, reason])),
            given_up: families.given_up.with_label_values(&labels),
            moved: MOVED.map(|reason| families.moved.with_label_values(&[&*key.name, reason])),
            batch_size: families.batch_size.with_label_values(&labels),
            elements: families.batch_elements.with_label_values(&[&*key.name, "input"]),
            padding: families.batch_elements.with_label_values(&[&*key.name, "padding"]),
            batch_cost: Arc::new(BatchCost {
                family: families.batch_cost.clone(),
                key: Arc::clone(key),
                sizes: Default::default(),
            }),
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

    /// A batch of `rows` rows, which is a power of two, is taken to cost `cost` from now on.
    pub fn batch_cost(&self, rows: usize, cost: Duration) {
        let BatchCost { family, key, sizes } = &*self.batch_cost;
        let Some(size) = sizes.get(rows.max(1).ilog2() as usize) else { return };
        let gauge = || family.with_label_values(&[&*key.name, &*key.version, &rows.to_string()]);
        size.get_or_init(gauge).set(cost.as_secs_f64());
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

    /// The number of runs that were given up and go on has changed by `delta`.
    pub fn given_up(&self, delta: i64) {
        self.given_up.add(delta);
    }

    /// The model runs on threads from now on, for `reason`: `budget` or `limit`.
    pub fn moved(&self, reason: &'static str) {
        if let Some(at) = MOVED.iter().position(|known| *known == reason) {
            self.moved[at].inc();
        }
    }

    /// An instance is replaced, for `reason`: `panic` or `hang`.
    pub fn replaced(&self, reason: &'static str) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.replaced[at].inc();
        }
    }
}

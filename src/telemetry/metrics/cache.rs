//! What the caches of answers do, of those models that have one.

use super::{Metrics, ModelMetrics};
use crate::{
    call::{Cached, ModelKey},
    telemetry::statistics::Statistics,
};
use prometheus::{IntCounter, IntGauge};
use std::{sync::Arc, time::Duration};

/// Why entries go before their time, or at it.
const REASONS: [&str; 2] = ["memory", "age"];

/// Handles of the cache of one model version. Its series exist, at zero, from the moment they are made.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    /// By [`Cached`].
    calls: [IntCounter; Cached::ALL.len()],
    bytes: IntGauge,
    evictions: [IntCounter; 2],
    statistics: Arc<Statistics>,
}

impl Metrics {
    /// Handles for the cache of the version with this key, whose other handles are `model`.
    pub fn cache(&self, key: &ModelKey, model: &ModelMetrics) -> CacheMetrics {
        let families = &self.families;
        let statistics = Arc::clone(&model.statistics);
        statistics.has_cache();
        CacheMetrics {
            calls: Cached::ALL.map(|cached| families.cache_calls.with_label_values(&[&*key.name, cached.name()])),
            bytes: families.cache_bytes.with_label_values(&[&*key.name, &*key.version]),
            evictions: REASONS.map(|reason| families.cache_evictions.with_label_values(&[&*key.name, reason])),
            statistics,
        }
    }
}

impl CacheMetrics {
    /// There was no answer for a call, which was found out in `looked`.
    pub fn missed(&self, looked: Duration) {
        self.calls[Cached::Miss as usize].inc();
        self.statistics.missed(looked);
    }

    /// A call was answered without a run of its own, after `waited` and with `looked` spent on looking.
    pub fn spared(&self, cached: Cached, waited: Duration, looked: Duration) {
        self.calls[cached as usize].inc();
        self.statistics.spared(waited, looked);
    }

    /// Entries that had `before` bytes have `after`; so many went because they were too old, and for want of room.
    pub fn changed(&self, before: usize, after: usize, aged: usize, squeezed: usize) {
        let bytes = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        if before != after {
            // Several loads of one version may be there at once, until the calls of the first are over.
            self.bytes.add(bytes(after) - bytes(before));
        }
        for (counter, count) in self.evictions.iter().zip([squeezed, aged]) {
            counter.inc_by(count as u64);
        }
    }
}

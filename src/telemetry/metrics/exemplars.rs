//! One traced call per series of `sluicegate_call_duration_seconds`: where to look when a bucket is too full.
//!
//! Only traced calls come here, and only OpenMetrics can say it (contract 09 section 1).

use crate::call::trace::TraceId;
use foldhash::{HashMap, HashMapExt};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The family that has them.
const FAMILY: &str = "sluicegate_call_duration_seconds";

/// The last traced call of each surface and route. As many as there are routes, at most.
#[derive(Debug)]
pub(super) struct Exemplars(Mutex<HashMap<[&'static str; 2], Exemplar>>);

/// A call that stands for others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    pub(super) trace: TraceId,
    /// Seconds.
    pub(super) value: f64,
    /// Since 1970.
    pub(super) at: Duration,
}

impl Default for Exemplars {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl Exemplars {
    /// The call of `trace` took so long, at this surface and route.
    pub(super) fn keep(&self, series: [&'static str; 2], trace: TraceId, took: Duration) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let exemplar = Exemplar { trace, value: took.as_secs_f64(), at };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(series, exemplar);
    }

    /// That of the series of `family` with these labels.
    pub(super) fn of(&self, family: &str, labels: &[(&str, &str)]) -> Option<Exemplar> {
        let label = |wanted| labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        let (surface, route) = (label("surface")?, label("route")?);
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().find(|([kept, at], _)| (*kept, *at) == (surface, route))?;
        (family == FAMILY).then_some(*found.1)
    }
}

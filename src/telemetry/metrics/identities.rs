//! Calls by identity (`telemetry.metrics.by_identity`), for those who bill or want to know who is loud.
//!
//! Off unless asked for, and bounded: names of identities come from keys and tokens, of which there may be many (contract
//! 09 section 3).

use super::{ENDS, index};
use crate::call::End;
use dashmap::DashMap;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use std::{array, sync::Arc};

/// Identities that have series of their own; all further ones share those of [`OTHERS`].
const MOST: usize = 1000;
/// What the others are called. Somebody of this very name is counted among them.
const OTHERS: &str = "(others)";

#[derive(Debug)]
pub(super) struct Identities {
    family: IntCounterVec,
    known: DashMap<Arc<str>, [Option<IntCounter>; ENDS]>,
}

impl Identities {
    pub(super) fn register(registry: &Registry) -> Self {
        let options = Opts::new("sluicegate_identity_calls_total", "Calls that are over, by who made them.");
        let family = super::families::add(registry, IntCounterVec::new(options, &["identity", "code"]));
        Self { family, known: DashMap::new() }
    }

    pub(super) fn count(&self, identity: &Arc<str>, end: End) {
        let count = |name: &str, known: &mut [Option<IntCounter>; ENDS]| {
            known[index(end)].get_or_insert_with(|| self.family.with_label_values(&[name, end.name()])).inc();
        };
        if let Some(mut known) = self.known.get_mut(identity) {
            return count(identity, &mut known);
        }
        // Two lanes may both find room for one more: the bound is there to hold memory, not to be exact.
        let name = if self.known.len() < MOST { Arc::clone(identity) } else { Arc::from(OTHERS) };
        count(&name, &mut self.known.entry(Arc::clone(&name)).or_insert_with(|| array::from_fn(|_| None)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_every_call_is_counted() {
        let registry = Registry::new();
        let identities = Identities::register(&registry);
        for number in 0..3 * MOST {
            identities.count(&format!("user-{number}").into(), End::Complete);
        }
        identities.count(&"user-0".into(), End::Complete);
        let series = registry.gather().remove(0);
        assert_eq!(series.get_metric().len(), MOST + 1);
        let all: f64 = series.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum();
        assert_eq!(all, (3 * MOST + 1) as f64);
    }
}

//! What comes of copies of calls, and of versions that are there no longer.

use super::{Metrics, model::SIZES};
use crate::call::{ModelKey, Timing};

/// Who ran a call that was copied: its version, and the shadow.
const ROLES: [&str; 2] = ["served", "shadow"];

/// How answers differ besides in numbers.
const KINDS: [&str; 4] = ["outputs", "class", "text", "infinite"];

/// What became of a copy of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowEnd {
    /// It ran, and its outputs were held against what the caller was told.
    Compared,
    /// It could not be run, or its run failed or took too long.
    Failed,
    /// There was no room for it.
    Dropped,
    /// The version that was to be tried is not served.
    Absent,
}

/// How far the answers to a call and to its copy are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShadowDifference {
    /// The largest distance of two numbers that stand in the same place; infinite where only one is finite; `None` without
    /// numbers.
    pub largest: Option<f64>,
    /// Whether some output has another name, type or shape.
    pub outputs: bool,
    /// Whether some row of a classifier's output has another best class.
    pub class: bool,
    /// Whether some strings differ.
    pub text: bool,
}

impl ShadowEnd {
    const ALL: [Self; 4] = [Self::Compared, Self::Failed, Self::Dropped, Self::Absent];

    const fn name(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
            Self::Absent => "absent",
        }
    }
}

impl Metrics {
    /// A copy of a call of `model` for its `version` has come to its end.
    pub fn shadow_ended(&self, model: &str, version: &str, end: ShadowEnd) {
        self.families.shadow_calls.with_label_values(&[model, version, end.name()]).inc();
    }

    /// A call took as long as `served` says, and its copy as `shadow` says: waiting and running.
    pub fn shadow_took(&self, model: &ModelKey, served: Timing, shadow: Timing) {
        for (role, timing) in ROLES.into_iter().zip([served, shadow]) {
            let took = (timing.queue + timing.compute).as_secs_f64();
            self.families.shadow_duration.with_label_values(&[&*model.name, &*model.version, role]).observe(took);
        }
    }

    /// The answer to a copy of a call differs so far from the one that its caller has.
    pub fn shadow_differs(&self, model: &ModelKey, difference: &ShadowDifference) {
        let labels = [&*model.name, &*model.version];
        // What is infinite would hide every other value in the sum.
        let finite = difference.largest.filter(|largest| largest.is_finite());
        if let Some(largest) = finite {
            self.families.shadow_difference.with_label_values(&labels).observe(largest);
        }
        let numbers = difference.largest.is_some() && finite.is_none();
        let found = [difference.outputs, difference.class, difference.text, numbers];
        for (kind, _) in KINDS.into_iter().zip(found).filter(|(_, differs)| *differs) {
            self.families.shadow_disagreements.with_label_values(&[labels[0], labels[1], kind]).inc();
        }
    }

    /// A load of a version has come to its end.
    pub fn model_load_ended(&self, model: &str, ok: bool) {
        self.families.model_loads.with_label_values(&[model, if ok { "ok" } else { "failed" }]).inc();
    }

    /// A version is nowhere any more, not even on disk. Versions only go up: without an end to their series the page would
    /// grow with every one that ever was.
    pub fn model_gone(&self, model: &ModelKey) {
        let labels = [&*model.name, &*model.version];
        for state in super::STATES {
            // There is nothing to remove of a state that it never was in.
            let _ = self.families.model_state.remove_label_values(&[labels[0], labels[1], state]);
        }
        self.model_memory(model, None);
        let _ = self.families.cache_bytes.remove_label_values(&labels);
        self.families.shadow_difference.remove_label_values(&labels);
        let with = |last: &str| [labels[0], labels[1], last].map(str::to_owned);
        for size in 0..SIZES {
            let _ = self.families.batch_cost.remove_label_values(&with(&(1_usize << size).to_string()));
        }
        for end in ShadowEnd::ALL {
            let _ = self.families.shadow_calls.remove_label_values(&with(end.name()));
        }
        for role in ROLES {
            self.families.shadow_duration.remove_label_values(&[labels[0], labels[1], role]);
        }
        for kind in KINDS {
            let _ = self.families.shadow_disagreements.remove_label_values(&with(kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, time::Duration};

    #[test]
    fn differences_are_counted_by_kind_and_infinite_ones_apart() {
        let (metrics, key) = (Metrics::new(), ModelKey { name: "m".into(), version: "5".into() });
        let near = ShadowDifference { largest: Some(0.25), class: true, ..ShadowDifference::default() };
        metrics.shadow_differs(&key, &near);
        metrics.shadow_differs(&key, &ShadowDifference { largest: Some(f64::INFINITY), ..ShadowDifference::default() });
        metrics.shadow_ended("m", "5", ShadowEnd::Compared);
        let page = metrics.render();
        for line in [
            r#"sluicegate_shadow_difference_sum{model="m",version="5"} 0.25"#,
            r#"sluicegate_shadow_difference_count{model="m",version="5"} 1"#,
            r#"sluicegate_shadow_disagreements_total{kind="class",model="m",version="5"} 1"#,
            r#"sluicegate_shadow_disagreements_total{kind="infinite",model="m",version="5"} 1"#,
            r#"sluicegate_shadow_calls_total{model="m",outcome="compared",version="5"} 1"#,
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn a_version_that_is_gone_has_no_series() {
        let (metrics, key) = (Metrics::new(), ModelKey { name: "m".into(), version: "5".into() });
        metrics.model_state(&key, "ready");
        metrics.model_loaded(&key, std::time::Duration::ZERO);
        metrics.model_memory(&key, Some(1));
        let own = metrics.model(&Arc::new(key.clone()));
        for size in 0..SIZES {
            own.batch_cost(1 << size, Duration::from_millis(1));
        }
        for end in ShadowEnd::ALL {
            metrics.shadow_ended("m", "5", end);
        }
        metrics.shadow_took(&key, Timing::default(), Timing::default());
        let differs = |largest| ShadowDifference { largest: Some(largest), outputs: true, class: true, text: true };
        for largest in [1.0, f64::INFINITY] {
            metrics.shadow_differs(&key, &differs(largest));
        }
        assert!(metrics.render().lines().filter(|line| line.contains("version=\"5\"")).count() > SIZES + 10);
        metrics.model_gone(&key);
        assert!(!metrics.render().contains("version=\"5\""));
    }
}

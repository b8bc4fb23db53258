//! Series of models that are known no more.
//!
//! Names of models are labels as long as they are those of the repository. One that came with the files of a call is whatever
//! its caller thought of: when the model goes, what bears its name goes too.

use super::{Metrics, families::Families, histogram::HistogramVec};
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use std::collections::HashMap;

/// The label that has the name of a model.
const MODEL: &str = "model";

/// A family whose series can be taken out of the page one by one.
trait Series: Collector {
    /// Takes out the one that has these labels.
    fn take_out(&self, labels: &HashMap<&str, &str>);

    /// Takes out all that bear the name of this model.
    fn forget(&self, model: &str) {
        for series in self.collect().iter().flat_map(|family| family.get_metric()) {
            let labels: HashMap<_, _> = series.get_label().iter().map(|label| (label.name(), label.value())).collect();
            if labels.get(MODEL) == Some(&model) {
                self.take_out(&labels);
            }
        }
    }
}

impl<T: MetricVecBuilder> Series for MetricVec<T> {
    fn take_out(&self, labels: &HashMap<&str, &str>) {
        // One that is gone already need not go.
        let _ = self.remove(labels);
    }
}

impl Series for HistogramVec {
    fn take_out(&self, labels: &HashMap<&str, &str>) {
        let names = self.desc()[0].variable_labels.clone();
        let values: Vec<_> = names.iter().map(|name| labels.get(&**name).copied().unwrap_or_default()).collect();
        self.remove_label_values(&values);
    }
}

// === impl Families ===

impl Families {
    /// All that have the label.
    fn of_models(&self) -> [&dyn Series; 23] {
        [
            &self.calls,
            &self.first_chunk,
            &self.queue_wait,
            &self.queue_depth,
            &self.run,
            &self.run_failures,
            &self.replaced,
            &self.moved,
            &self.given_up,
            &self.batch_size,
            &self.batch_elements,
            &self.batch_cost,
            &self.model_state,
            &self.model_load,
            &self.model_memory,
            &self.model_loads,
            &self.cache_calls,
            &self.cache_bytes,
            &self.cache_evictions,
            &self.shadow_calls,
            &self.shadow_duration,
            &self.shadow_difference,
            &self.shadow_disagreements,
        ]
    }
}

// === impl Metrics ===

impl Metrics {
    /// A model is nowhere any more that only calls knew. What was counted of its loads is counted under no name from now on.
    pub fn model_unknown(&self, model: &str) {
        let families = &self.families;
        for outcome in ["ok", "failed"] {
            let loads = families.model_loads.with_label_values(&[model, outcome]).get();
            if loads > 0 {
                families.model_loads.with_label_values(&["", outcome]).inc_by(loads);
            }
        }
        families.of_models().iter().for_each(|family| family.forget(model));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::ModelKey, telemetry::metrics::Format};
    use std::{sync::Arc, time::Duration};

    #[test]
    fn every_family_that_has_names_of_models_forgets_one_and_keeps_the_others() {
        let metrics = Metrics::new();
        for name in ["gone", "other"] {
            let key = Arc::new(ModelKey { name: name.into(), version: "1".into() });
            metrics.model(&key).batch_cost(1, Duration::from_millis(1));
            metrics.model_state(&key, "ready");
            metrics.model_loaded(&key, Duration::from_secs(1));
            metrics.model_memory(&key, Some(7));
            metrics.model_load_ended(name, false);
        }
        let series = |name: &str| {
            let (page, label) = (metrics.page(Format::Text), format!(r#"model="{name}""#));
            page.lines().filter(|line| line.contains(&label)).count()
        };
        let before = series("other");
        assert_eq!(series("gone"), before);
        metrics.model_unknown("gone");
        assert_eq!((series("gone"), series("other")), (0, before));
        assert!(metrics.page(Format::Text).contains(r#"sluicegate_model_loads_total{model="",outcome="failed"} 1"#));
        // The table says of each whether it has the label.
        let labels = include_str!("families.rs").matches(r#""model""#).count();
        assert_eq!(metrics.families.of_models().len(), labels);
    }
}

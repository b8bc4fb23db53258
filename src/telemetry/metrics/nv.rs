//! Triton's families (`telemetry.metrics.nv_view`), so that dashboards and alerts made for it find what they look for
//! (contract 09 section 2).
//!
//! Nothing is counted here: the page reads the same counters that the statistics calls read, in microseconds. A model's
//! series are there, at zero, from its loading on, and gone once it is unloaded.

use super::{
    PerModel,
    page::{Kind, Page},
    process::field,
};
use crate::telemetry::statistics::Reason;
use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

/// What has to be known of the last page to write the next.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Busy and all time of the processors, in ticks, at the last page.
    processors: Mutex<(f64, f64)>,
}

/// Families with one sample for each model: name, help, and where the number is, in nanoseconds where it is a duration.
type Column = (&'static str, &'static str, fn(&Row<'_>) -> u64);

const COUNTERS: &[Column] = &[
    ("nv_inference_request_success", "Requests that were answered.", |row| row.report.success.count),
    ("nv_inference_count", "Inferences performed, batch elements counted one by one.", |row| row.report.inferences),
    ("nv_inference_exec_count", "Runs of the model.", |row| row.report.executions),
    ("nv_inference_request_duration_us", "Requests from end to end, in microseconds together.", |row| {
        row.report.success.nanos / 1000
    }),
    ("nv_inference_queue_duration_us", "Waiting, in microseconds together.", |row| row.report.queue.nanos / 1000),
    ("nv_inference_compute_input_duration_us", "Laying inputs together, in microseconds together.", |row| {
        row.report.compute_input.nanos / 1000
    }),
    ("nv_inference_compute_infer_duration_us", "Runs, in microseconds together.", |row| {
        row.report.compute_infer.nanos / 1000
    }),
    ("nv_inference_compute_output_duration_us", "Cutting outputs apart, in microseconds together.", |row| {
        row.report.compute_output.nanos / 1000
    }),
];

/// The same of those models that keep answers. Triton has these families only where there is a cache.
const CACHE: &[Column] = &[
    ("nv_cache_num_hits_per_model", "Requests that were answered without a run of their own.", |row| {
        row.report.cache_hit.count
    }),
    ("nv_cache_num_misses_per_model", "Requests that there was no answer for.", |row| row.report.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Finding answers, in microseconds together.", |row| {
        row.report.cache_hit.nanos / 1000
    }),
    ("nv_cache_miss_duration_per_model", "Looking for answers in vain, in microseconds together.", |row| {
        row.report.cache_miss.nanos / 1000
    }),
];

/// A model version that is loaded.
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    about: &'a PerModel,
    report: crate::call::StatisticsReport,
}

impl View {
    pub(super) fn render<'a>(&self, page: &mut Page, models: impl Iterator<Item = &'a PerModel>) {
        let mut latest: BTreeMap<(&str, &str), &PerModel> = BTreeMap::new();
        for about in models {
            let Some(key) = &about.key else { continue };
            // Only this table knows it any more: the model is unloaded.
            if Arc::strong_count(key) <= 1 {
                continue;
            }
            let kept = latest.entry((&key.name, &key.version)).or_insert(about);
            if kept.serial < about.serial {
                *kept = about;
            }
        }
        let rows = latest.into_iter().filter_map(|((name, version), about)| {
            let report = about.statistics.report(about.key.as_ref()?);
            Some(Row { name, version, about, report })
        });
        let rows: Vec<Row<'_>> = rows.collect();
        if !rows.is_empty() {
            models_of(page, &rows);
        }
        self.host(page);
    }

    /// The whole host, as Triton has it; absent where there is no `/proc`.
    fn host(&self, page: &mut Page) {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        if let Some((busy, all)) = processors(&stat) {
            let mut last = self.processors.lock().unwrap_or_else(PoisonError::into_inner);
            let (busy_before, all_before) = std::mem::replace(&mut *last, (busy, all));
            let passed = all - all_before;
            let share = if passed > 0. { ((busy - busy_before) / passed).clamp(0., 1.) } else { 0. };
            page.family("nv_cpu_utilization", Kind::Gauge, "Share of the processors in use since the last page.");
            page.sample("", &[], share);
        }
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        if let (Some(total), Some(free)) = (field(&memory, "MemTotal:"), field(&memory, "MemAvailable:")) {
            page.family("nv_cpu_memory_total_bytes", Kind::Gauge, "Memory of the host.");
            page.sample("", &[], total * 1024.);
            page.family("nv_cpu_memory_used_bytes", Kind::Gauge, "Memory of the host that is in use.");
            page.sample("", &[], (total - free) * 1024.);
        }
    }
}

fn models_of(page: &mut Page, rows: &[Row<'_>]) {
    let mut columns = |columns: &[Column], rows: &[&Row<'_>]| {
        for (name, help, value) in columns.iter().filter(|_| !rows.is_empty()) {
            page.family(name, Kind::BareCounter, help);
            for row in rows {
                page.sample("", &row.labels(), value(row) as f64);
            }
        }
    };
    columns(COUNTERS, &rows.iter().collect::<Vec<_>>());
    columns(CACHE, &rows.iter().filter(|row| row.about.statistics.keeps_answers()).collect::<Vec<_>>());
    page.family("nv_inference_request_failure", Kind::BareCounter, "Requests that failed, by why.");
    for row in rows {
        for reason in Reason::ALL {
            let [model, version] = row.labels();
            let failures = row.about.statistics.failures(reason);
            page.sample("", &[model, version, ("reason", reason.name())], failures as f64);
        }
    }
    page.family("nv_inference_pending_request_count", Kind::Gauge, "Requests that wait for an instance.");
    for row in rows {
        page.sample("", &row.labels(), row.about.statistics.pending() as f64);
    }
    page.family("nv_model_load_duration_secs", Kind::Gauge, "How long the model took to load, in seconds.");
    for row in rows {
        page.sample("", &row.labels(), row.about.load.load(Ordering::Relaxed) as f64 / 1e6);
    }
}

impl Row<'_> {
    fn labels(&self) -> [(&str, &str); 2] {
        [("model", self.name), ("version", self.version)]
    }
}

/// Ticks that the processors were busy, and all, since the host started: the first line of `/proc/stat` (proc(5)).
fn processors(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_ascii_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    // User, nice, system, idle, waiting, and what interrupts and other guests took.
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: f64 = ticks.iter().sum();
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_work() {
        let stat = "cpu  10 5 5 70 10 0 0 0 3 0\ncpu0 1 1 1 1\n";
        assert_eq!(processors(stat), Some((20., 100.)));
        assert_eq!(processors("intr 1"), None);
    }
}

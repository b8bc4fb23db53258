//! What was measured, as a table and as JSON.

use super::{Lengths, arguments::Arguments, inquire::Stages, measure::Recorder, pace::Pace};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// Quantiles that are told, each with its name.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// All runs of a bench.
#[derive(Debug)]
pub(super) struct Report {
    model: String,
    pace: Pace,
    lengths: Lengths,
    /// Each source by name, with the outputs of its first answer.
    sources: Vec<(String, String)>,
    pub(super) runs: Vec<Run>,
}

/// Who was asked, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// What the source is called.
    pub(super) name: &'a str,
    /// Its place among the sources.
    pub(super) source: usize,
    pub(super) callers: usize,
    /// From 1.
    pub(super) round: usize,
    /// Of each request.
    pub(super) rows: usize,
}

/// One source, asked by so many callers, in one round.
#[derive(Debug)]
pub(super) struct Run {
    name: String,
    pub(super) source: usize,
    callers: usize,
    round: usize,
    rows: usize,
    /// Answers per second.
    rate: f64,
    pub(super) answers: u64,
    /// Nobody was left to ask at the end.
    pub(super) deserted: bool,
    unsent: u64,
    errors: BTreeMap<String, u64>,
    latency: Quantiles,
    queue: Option<Stage>,
    run: Option<Stage>,
    requests_per_run: Option<f64>,
}

/// Microseconds at each of [`QUANTILES`].
type Quantiles = [f64; QUANTILES.len()];

/// How long a stage took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Of each request.
    Each(Quantiles),
    /// The mean of all.
    Mean(f64),
}

/// The medians of the first source over those of the second, with so many callers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Comparison {
    callers: usize,
    rate: f64,
    p50: f64,
    p99: f64,
}

// === impl Run ===

impl Run {
    /// What `recorder` has counted in `length`, and what the server says of its stages in that time.
    pub(super) fn new(asked: Asked<'_>, recorder: &Recorder, stages: Option<Stages>, length: Duration) -> Self {
        let (queue, run) = match (recorder.stages(), stages) {
            (Some((queue, run)), _) => (Some(Stage::Each(quantiles(queue))), Some(Stage::Each(quantiles(run)))),
            (None, Some(stages)) => (Some(Stage::Mean(micros(stages.queue))), Some(Stage::Mean(micros(stages.run)))),
            (None, None) => (None, None),
        };
        Self {
            name: asked.name.to_owned(),
            source: asked.source,
            callers: asked.callers,
            round: asked.round,
            rows: asked.rows,
            rate: recorder.in_time() as f64 / length.as_secs_f64(),
            answers: recorder.answers(),
            deserted: recorder.is_deserted(),
            unsent: recorder.unsent_count(),
            errors: recorder.errors().clone(),
            latency: quantiles(recorder.latency()),
            queue,
            run,
            requests_per_run: stages.map(|stages| stages.requests_per_run),
        }
    }

    fn rows_per_second(&self) -> f64 {
        self.rate * self.rows as f64
    }

    fn errors_text(&self) -> String {
        let mut words: Vec<_> = self.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
        if self.deserted {
            words.push("all callers lost".to_owned());
        }
        if self.unsent > 0 {
            words.push(format!("unsent {}", self.unsent));
        }
        if words.is_empty() { "0".to_owned() } else { words.join(", ") }
    }

    fn json(&self) -> Value {
        json!({
            "source": self.name,
            "callers": self.callers,
            "round": self.round,
            "rows_per_request": self.rows,
            "requests_per_second": rounded(self.rate),
            "rows_per_second": rounded(self.rows_per_second()),
            "answers": self.answers,
            "unsent": self.unsent,
            "errors": self.errors,
            "latency_us": named(&self.latency),
            "queue_us": self.queue.map(Stage::json),
            "run_us": self.run.map(Stage::json),
            "requests_per_run": self.requests_per_run.map(rounded),
        })
    }
}

impl Stage {
    /// One number: the median where each request tells, else the mean.
    fn text(self) -> String {
        match self {
            Self::Each(quantiles) => time(quantiles[0]),
            Self::Mean(mean) => format!("~{}", time(mean)),
        }
    }

    fn json(self) -> Value {
        match self {
            Self::Each(quantiles) => Value::Object(named(&quantiles)),
            Self::Mean(mean) => json!({ "mean": rounded(mean) }),
        }
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    // The largest value itself, not the end of its bucket.
    QUANTILES.map(|(_, quantile)| histogram.value_at_quantile(quantile).min(histogram.max()) as f64 / 1e3)
}

fn named(quantiles: &Quantiles) -> Map<String, Value> {
    QUANTILES.iter().zip(quantiles).map(|((name, _), value)| ((*name).to_owned(), json!(rounded(*value)))).collect()
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Microseconds as people read them: three digits and a unit.
fn time(micros: f64) -> String {
    let (value, unit) = match micros {
        micros if micros < 999.5 => (micros, "µs"),
        micros if micros < 999_500.0 => (micros / 1e3, "ms"),
        micros => (micros / 1e6, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// A number with thousands apart.
fn thousands(value: f64) -> String {
    let digits = if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    let (whole, fraction) = digits.split_once('.').map_or((&*digits, String::new()), |(w, f)| (w, format!(".{f}")));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + &fraction
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

// === impl Report ===

impl Report {
    pub(super) fn new(arguments: &Arguments, sources: Vec<(String, String)>, runs: Vec<Run>) -> Self {
        let model = match &arguments.model_version {
            Some(version) => format!("{}/{version}", arguments.model),
            None => arguments.model.clone(),
        };
        let lengths = Lengths { warmup: arguments.warmup.0, measured: arguments.duration.0 };
        Self { model, pace: arguments.pace(), lengths, sources, runs }
    }

    /// How requests followed each other, in words.
    fn pace(&self) -> String {
        match self.pace {
            Pace::Closed => "closed loop".to_owned(),
            Pace::Open(rate) => format!("open loop, {} requests/s due", thousands(rate.per_second())),
        }
    }

    /// One ratio for each number of callers, where two sources were measured.
    fn comparisons(&self) -> Vec<Comparison> {
        if self.sources.len() != 2 {
            return Vec::new();
        }
        let mut callers: Vec<_> = self.runs.iter().map(|run| run.callers).collect();
        callers.dedup();
        let ratio = |callers: usize, value: &dyn Fn(&Run) -> f64| {
            let of = |source| {
                let runs = self.runs.iter().filter(|run| run.callers == callers && run.source == source);
                median(runs.map(value).collect())
            };
            of(0).zip(of(1)).map(|(first, second)| first / second).filter(|ratio| ratio.is_finite())
        };
        let compare = |callers| {
            Some(Comparison {
                callers,
                rate: ratio(callers, &|run| run.rate)?,
                p50: ratio(callers, &|run| run.latency[0])?,
                p99: ratio(callers, &|run| run.latency[3])?,
            })
        };
        callers.into_iter().filter_map(compare).collect()
    }

    /// A table for people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let Lengths { warmup, measured } = self.lengths;
        let _ = writeln!(text, "{}: {}, {measured:?} after {warmup:?} of warm-up", self.model, self.pace());
        for (name, outputs) in &self.sources {
            let _ = writeln!(text, "{name}: answers {outputs}");
        }
        let mut lines = vec![["source", "callers", "round", "requests/s", "rows/s"].map(str::to_owned).to_vec()];
        lines[0].extend(QUANTILES.iter().map(|(name, _)| (*name).to_owned()));
        lines[0].extend(["queue", "run", "per run", "errors"].map(str::to_owned));
        for run in &self.runs {
            let nothing = || "-".to_owned();
            let mut line = vec![
                run.name.clone(),
                run.callers.to_string(),
                run.round.to_string(),
                thousands(run.rate),
                thousands(run.rows_per_second()),
            ];
            line.extend(run.latency.iter().map(|micros| time(*micros)));
            line.push(run.queue.map_or_else(nothing, Stage::text));
            line.push(run.run.map_or_else(nothing, Stage::text));
            line.push(run.requests_per_run.map_or_else(nothing, |requests| format!("{requests:.1}")));
            line.push(run.errors_text());
            lines.push(line);
        }
        text.push('\n');
        align(&mut text, &lines);
        if self.runs.iter().any(|run| matches!(run.queue, Some(Stage::Mean(_)))) {
            text.push_str("\n~ is a mean, which the server's statistics tell\n");
        }
        let comparisons = self.comparisons();
        if let ([(first, _), (second, _)], false) = (&*self.sources, comparisons.is_empty()) {
            let _ = writeln!(text, "\nratio of the medians, {first} over {second}");
            for Comparison { callers, rate, p50, p99 } in comparisons {
                let _ = writeln!(text, "{callers} callers: requests/s {rate:.2}, p50 {p50:.2}, p99 {p99:.2}");
            }
        }
        text
    }

    /// The same for programs; times are microseconds.
    pub(super) fn json(&self) -> String {
        let ratios = self.comparisons().into_iter().map(|Comparison { callers, rate, p50, p99 }| {
            json!({ "callers": callers, "requests_per_second": rounded(rate), "p50": rounded(p50), "p99": rounded(p99) })
        });
        let sources = self.sources.iter().map(|(name, outputs)| json!({ "name": name, "outputs": outputs }));
        let report = json!({
            "sluicegate": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "requests_per_second_due": match self.pace { Pace::Closed => None, Pace::Open(rate) => Some(rate.per_second()) },
            "warmup_s": self.lengths.warmup.as_secs_f64(),
            "duration_s": self.lengths.measured.as_secs_f64(),
            "sources": sources.collect::<Vec<_>>(),
            "runs": self.runs.iter().map(Run::json).collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}

/// Writes `lines` as columns: the first and the last to the left, the others to the right.
fn align(text: &mut String, lines: &[Vec<String>]) {
    let columns = lines.first().map_or(0, Vec::len);
    let widths: Vec<_> = (0..columns)
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:width$}"),
                last if last + 1 == columns => write!(text, "  {cell}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;

//! The text of the page: Prometheus text 0.0.4 and OpenMetrics 1.0 (contract 09 section 1).
//!
//! They differ in what counters are called, in exemplars, in units and in the last line. prometheus writes only the first;
//! one writer of both keeps them from saying different things.

use super::exemplars::{Exemplar, Exemplars};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use std::fmt::Write;

/// How the page is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    #[default]
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// What a family is, as far as its samples are written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its name ends in `_total`.
    Counter,
    /// One whose name does not, as Triton's: OpenMetrics has such a name only for what it knows nothing of.
    BareCounter,
    Gauge,
    Histogram,
}

/// A page that is being written.
#[derive(Debug)]
pub(super) struct Page {
    text: String,
    format: Format,
    family: String,
}

// === impl Format ===

impl Format {
    /// What a reader that sends `accept` takes: the one of higher weight, text if it takes neither or says nothing.
    pub fn accepted(accept: &[&str]) -> Self {
        let (mut text, mut open) = (0_f32, 0_f32);
        for range in accept.iter().flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut weight, mut version) = (1_f32, None);
            for part in parts {
                match part.split_once('=') {
                    Some(("q", value)) => weight = value.trim().parse().unwrap_or(0.),
                    Some(("version", value)) => version = Some(value.trim_matches('"')),
                    _ => {}
                }
            }
            match (&*kind, version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open = open.max(weight),
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => text = text.max(weight),
                _ => {}
            }
        }
        if open > text { Self::OpenMetrics } else { Self::Text }
    }

    /// The content type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

// === impl Page ===

impl Page {
    pub(super) fn new(format: Format) -> Self {
        Self { text: String::with_capacity(16 * 1024), format, family: String::new() }
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// Announces the family whose samples follow.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.family.clear();
        self.family.push_str(name);
        let open = self.format == Format::OpenMetrics;
        let announced = if open && kind == Kind::Counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
        let word = match kind {
            Kind::BareCounter if open => "unknown",
            Kind::Counter | Kind::BareCounter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string cannot fail, here and below.
        let _ = write!(self.text, "# HELP {announced} ");
        // In help a quote is itself; of OpenMetrics too, where it may be escaped.
        escape(&mut self.text, help, false);
        let _ = write!(self.text, "\n# TYPE {announced} {word}\n");
        let unit = ["_seconds", "_bytes"].into_iter().find(|unit| announced.ends_with(unit));
        if let (true, Some(unit)) = (open, unit) {
            let _ = writeln!(self.text, "# UNIT {announced} {}", &unit[1..]);
        }
    }

    /// A sample of the family announced last, whose name may have a `suffix`.
    pub(super) fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(&self.family);
        self.text.push_str(suffix);
        for (place, (name, value)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{name}=\"", if place == 0 { '{' } else { ',' });
            escape(&mut self.text, value, true);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.text.push(' ');
        self.number(value);
        self.text.push('\n');
    }

    /// Families that prometheus gathered.
    pub(super) fn families(&mut self, gathered: &[MetricFamily], exemplars: &Exemplars) {
        let is_taken = |name: &str| gathered.iter().any(|family| family.name() == name);
        for family in gathered {
            let kind = match family.get_field_type() {
                // Without its ending it would be another family: OpenMetrics then has it as what it knows nothing of.
                MetricType::COUNTER if family.name().strip_suffix("_total").is_some_and(is_taken) => Kind::BareCounter,
                MetricType::COUNTER => Kind::Counter,
                MetricType::HISTOGRAM => Kind::Histogram,
                MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => Kind::Gauge,
            };
            self.family(family.name(), kind, family.help());
            for metric in family.get_metric() {
                let labels: Vec<_> = metric.get_label().iter().map(pair).collect();
                match kind {
                    Kind::Histogram => self.histogram(metric, &labels, exemplars),
                    Kind::Counter | Kind::BareCounter => self.sample("", &labels, metric.get_counter().get_value()),
                    Kind::Gauge => self.sample("", &labels, metric.get_gauge().get_value()),
                }
            }
        }
    }

    fn histogram(&mut self, metric: &Metric, labels: &[(&str, &str)], exemplars: &Exemplars) {
        let histogram = metric.get_histogram();
        let (count, sum) = (histogram.get_sample_count(), histogram.get_sample_sum());
        let mut exemplar = match self.format {
            Format::OpenMetrics => exemplars.of(&self.family, labels),
            Format::Text => None,
        };
        let bounds = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
        for (bound, below) in bounds.filter(|(bound, _)| bound.is_finite()).chain([(f64::INFINITY, count)]) {
            let mut le = String::new();
            number(&mut le, bound, self.format == Format::OpenMetrics);
            let own: Vec<_> = labels.iter().copied().chain([("le", &*le)]).collect();
            self.sample("_bucket", &own, below as f64);
            if let Some(found) = exemplar.take_if(|exemplar| exemplar.value <= bound) {
                self.attach(&found);
            }
        }
        self.sample("_sum", labels, sum);
        self.sample("_count", labels, count as f64);
    }

    /// Puts an exemplar behind the sample written last.
    fn attach(&mut self, exemplar: &Exemplar) {
        let _ = self.text.pop();
        let Exemplar { trace, value, at } = exemplar;
        let _ = writeln!(self.text, " # {{trace_id=\"{trace}\"}} {value} {}.{:03}", at.as_secs(), at.subsec_millis());
    }

    fn number(&mut self, value: f64) {
        number(&mut self.text, value, false);
    }
}

fn pair(label: &LabelPair) -> (&str, &str) {
    (label.name(), label.value())
}

/// As Go prints it. Where `canonical`, a whole number has its `.0`, as OpenMetrics has bounds.
fn number(text: &mut String, value: f64, canonical: bool) {
    let _ = match value {
        value if value.is_nan() => text.write_str("NaN"),
        f64::INFINITY => text.write_str("+Inf"),
        f64::NEG_INFINITY => text.write_str("-Inf"),
        value if canonical => write!(text, "{value:?}"),
        value => write!(text, "{value}"),
    };
}

fn escape(text: &mut String, value: &str, quotes: bool) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Prometheus 3 sends, with and without protobuf.
    const SCRAPE: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

    #[test]
    fn the_format_of_more_weight_is_taken_and_text_where_nothing_is_said() {
        for (accept, format) in [
            (&[SCRAPE][..], Format::OpenMetrics),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["text/plain", "application/openmetrics-text;q=0.9"], Format::Text),
            (&["application/openmetrics-text; version=2.0.0, */*;q=0.1"], Format::Text),
            (&["application/openmetrics-text;q=0"], Format::Text),
            (&["application/json"], Format::Text),
            (&["*/*"], Format::Text),
            (&[], Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn names_of_triton_stay_bare_in_both_formats() {
        for (format, kind) in [(Format::Text, "counter"), (Format::OpenMetrics, "unknown")] {
            let mut page = Page::new(format);
            page.family("nv_inference_count", Kind::BareCounter, "Inferences.");
            page.sample("", &[("model", "a\"b\\c\n")], 3.);
            let text = page.finish();
            assert!(text.contains(&format!("# TYPE nv_inference_count {kind}\n")), "{text}");
            assert!(text.contains("nv_inference_count{model=\"a\\\"b\\\\c\\n\"} 3\n"), "{text}");
            assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
        }
    }

    #[test]
    fn numbers_are_those_of_go() {
        let written = |value| {
            let mut text = String::new();
            number(&mut text, value, false);
            text
        };
        assert_eq!([written(f64::NAN), written(f64::INFINITY), written(f64::NEG_INFINITY)], ["NaN", "+Inf", "-Inf"]);
        assert_eq!([written(640.), written(0.0025), written(1e21)], ["640", "0.0025", "1000000000000000000000"]);
    }
}

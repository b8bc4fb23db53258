//! Traces over OTLP (`telemetry.otlp`): which calls are traced, and how what was noted of them gets to a collector.
//!
//! A lane decides by a number and hands complete traces to a bounded queue; it never waits. One task on the control
//! runtime takes them out in batches, and what the collector does not take in time is dropped and counted. What is noted,
//! and where, is the matter of [`call::trace`](crate::call::trace).

use super::metrics::Metrics;
use crate::call::{
    End, Head, random,
    trace::{Record, Sink, Span, Trace},
};
use futures_util::FutureExt;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{Link, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _, SpanLinks},
};
use std::{
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{sync::mpsc, time::timeout};

/// Traces that wait for the exporter: some seconds of a busy server that samples one call in a hundred.
const QUEUE: usize = 2048;
/// Traces that go out together.
const BATCH: usize = 256;
/// How long a trace may wait for others.
const EVERY: Duration = Duration::from_secs(1);
/// How long the collector has for a batch.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `telemetry.otlp`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the collector takes OTLP over gRPC, without TLS: `http://collector:4317`.
    pub endpoint: Arc<str>,
    /// Share of the calls that are traced, from 0 to 1, of those that come without a context of their own. Who sends
    /// one has decided.
    pub sample: f64,
}

/// Why traces cannot be sent.
#[derive(Debug)]
pub struct TraceError(String);

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TraceError {}

/// Decides which calls are traced. Cloning it is cloning an `Arc`.
#[derive(Clone)]
pub struct Tracer {
    sink: Arc<dyn Sink>,
    /// A call is traced if a random number is below this.
    below: u64,
}

/// The lanes' end of the queue.
struct Queue {
    sender: mpsc::Sender<Record>,
    metrics: Arc<Metrics>,
}

/// The other end.
#[derive(Debug)]
pub struct Exporter {
    receiver: mpsc::Receiver<Record>,
    spans: SpanExporter,
    metrics: Arc<Metrics>,
    clock: (Instant, SystemTime),
}

// === impl Tracer ===

impl Tracer {
    /// A tracer, and what sends its traces. Must be called on a tokio runtime, which will hold the connection; nothing is
    /// connected yet.
    ///
    /// # Errors
    ///
    /// If the endpoint is none.
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<(Self, Exporter), TraceError> {
        let builder = SpanExporter::builder().with_tonic().with_endpoint(&*settings.endpoint).with_timeout(TIMEOUT);
        let mut spans = builder.build().map_err(|error| TraceError(format!("`telemetry.otlp.endpoint`: {error}")))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        spans.set_resource(&Resource::builder().with_service_name("sluicegate").with_attribute(version).build());
        let (sender, receiver) = mpsc::channel(QUEUE);
        let queue = Queue { sender, metrics: Arc::clone(&metrics) };
        let clock = (Instant::now(), SystemTime::now());
        Ok((Self::sampling(settings.sample, Arc::new(queue)), Exporter { receiver, spans, metrics, clock }))
    }

    /// A tracer of a share of the calls, which hands their traces to `sink`.
    pub fn sampling(share: f64, sink: Arc<dyn Sink>) -> Self {
        // The cast saturates: all of them is the largest number.
        Self { sink, below: (share * u64::MAX as f64) as u64 }
    }

    /// Begins the trace of the call with this head, if it is one of those that are traced.
    pub fn begin(&self, head: &Head) {
        let traced = match head.facts.context.get() {
            Some(context) => context.sampled,
            None => self.below > 0 && random() <= self.below,
        };
        if traced {
            // A call enters the stack once.
            let _ = head.facts.trace.set(Box::new(Trace::of(head, Arc::clone(&self.sink))));
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("below", &self.below).finish_non_exhaustive()
    }
}

// === impl Queue, Exporter ===

impl Sink for Queue {
    fn complete(&self, record: Record) {
        if self.sender.try_send(record).is_err() {
            self.metrics.traces("dropped", 1);
        }
    }
}

impl Exporter {
    /// Sends traces until the last tracer is gone or `stop` is over, and then what is left.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop.fuse());
        let mut records = Vec::with_capacity(BATCH);
        let mut said = false;
        loop {
            let found = tokio::select! {
                found = self.receiver.recv_many(&mut records, BATCH) => found,
                () = &mut stop => {
                    // What is in the queue still comes out of it.
                    self.receiver.close();
                    continue;
                }
            };
            if found == 0 {
                return;
            }
            // Few calls are traced: waiting a little makes few messages of them.
            let full =
                async { while records.len() < BATCH && self.receiver.recv_many(&mut records, BATCH).await > 0 {} };
            tokio::select! {
                _ = timeout(EVERY, full) => {}
                () = &mut stop => self.receiver.close(),
            }
            let traces = records.len() as u64;
            let spans = records.drain(..).flat_map(|record| self.spans_of(&record)).collect();
            let sent = timeout(TIMEOUT, self.spans.export(spans)).await;
            let failed = match sent {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the collector did not answer in time".to_owned()),
            };
            self.metrics.traces(if failed.is_none() { "exported" } else { "failed" }, traces);
            match failed {
                // Once per outage: a collector that is away for a day is one fact.
                Some(error) if !said => {
                    said = true;
                    tracing::warn!(%error, traces, "traces cannot be sent");
                }
                Some(_) => {}
                None if said => {
                    said = false;
                    tracing::info!("traces can be sent again");
                }
                None => {}
            }
        }
    }

    /// The spans of one call: its own first.
    fn spans_of(&self, record: &Record) -> Vec<SpanData> {
        let mut attributes = vec![
            KeyValue::new("sluicegate.call_id", record.call.to_string()),
            KeyValue::new("sluicegate.surface", record.surface.name()),
            KeyValue::new("sluicegate.intent", record.intent.name()),
            KeyValue::new("sluicegate.code", record.end.name()),
        ];
        if let Some(model) = &record.model {
            attributes.push(KeyValue::new("sluicegate.model", Arc::clone(&model.name)));
            attributes.push(KeyValue::new("sluicegate.version", Arc::clone(&model.version)));
        }
        let status = match record.end {
            End::Complete => Status::Unset,
            end => Status::error(end.name()),
        };
        let own = SpanData {
            span_context: context(record.trace, record.span),
            parent_span_id: record.parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.bytes())),
            parent_span_is_remote: record.parent.is_some() && !record.step,
            span_kind: if record.step { SpanKind::Internal } else { SpanKind::Server },
            name: if record.step { "step" } else { record.route.name() }.into(),
            start_time: self.wall(record.begun),
            end_time: self.wall(record.over),
            attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("sluicegate").build(),
        };
        let parts = record.spans.iter().map(|span| self.part(&own, record, span));
        let parts: Vec<_> = parts.collect();
        [own].into_iter().chain(parts).collect()
    }

    fn part(&self, call: &SpanData, record: &Record, span: &Span) -> SpanData {
        let mut links = SpanLinks::default();
        links.links.extend(span.links.iter().map(|(trace, span)| Link::with_context(context(*trace, *span))));
        let number =
            |(name, value): &(&'static str, u64)| KeyValue::new(*name, i64::try_from(*value).unwrap_or(i64::MAX));
        SpanData {
            span_context: context(record.trace, span.id),
            parent_span_id: SpanId::from_bytes(span.parent.unwrap_or(record.span).bytes()),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: self.wall(span.begun),
            end_time: self.wall(span.over),
            attributes: span.numbers.iter().map(number).collect(),
            status: Status::Unset,
            links,
            ..call.clone()
        }
    }

    /// The time of day at a moment of the clock that calls are timed by.
    fn wall(&self, moment: Instant) -> SystemTime {
        let (instant, wall) = self.clock;
        match moment.checked_duration_since(instant) {
            Some(later) => wall + later,
            None => wall - instant.saturating_duration_since(moment),
        }
    }
}

fn context(trace: crate::call::trace::TraceId, span: crate::call::trace::SpanId) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(trace.bytes()), SpanId::from_bytes(span.bytes()));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Intent, trace::TraceContext},
        layer::fixture::head,
    };

    struct Nowhere;

    impl Sink for Nowhere {
        fn complete(&self, _: Record) {}
    }

    fn share(sample: f64, context: Option<&str>) -> f64 {
        let tracer = Tracer::sampling(sample, Arc::new(Nowhere));
        let traced = (0..10_000).filter(|_| {
            let head = head(Intent::Infer).part_of(context.and_then(|text| TraceContext::parse(text.as_bytes())));
            tracer.begin(&head);
            head.facts.trace.get().is_some()
        });
        traced.count() as f64 / 10_000.
    }

    #[test]
    fn a_share_of_the_calls_is_traced_and_who_brings_a_context_has_decided() {
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let not = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!([share(0., None), share(1., None)], [0., 1.]);
        assert!((0.07..0.13).contains(&share(0.1, None)));
        assert_eq!([share(0., Some(sampled)), share(1., Some(not))], [1., 0.]);
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_does_not_wait() {
        let metrics = Arc::new(Metrics::new());
        let settings = Settings { endpoint: "http://127.0.0.1:9".into(), sample: 1. };
        let (tracer, exporter) = Tracer::new(&settings, Arc::clone(&metrics)).unwrap();
        for _ in 0..QUEUE + 7 {
            tracer.begin(&head(Intent::Infer));
        }
        assert!(metrics.render().contains("sluicegate_traces_total{outcome=\"dropped\"} 7\n"));
        drop(exporter);
    }
}

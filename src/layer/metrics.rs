//! Counts every call: refused, failed and abandoned ones too, and streams at their end.
//!
//! Does not know names or labels of metrics; [`Metrics`] does. Bytes and connections
//! are counted by front-ends, batches by schedulers.

use super::guarded::hand_over;
use crate::{
    call::{Call, Chunk, End, Facts, Intent, Observer, Reply, Route, Surface, Watch},
    error::{Code, Error, Stage},
    telemetry::metrics::Metrics,
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};
use tower::{Layer, Service};

/// Makes [`Measure`].
#[derive(Clone, Debug)]
pub struct MetricsLayer {
    metrics: Arc<Metrics>,
}

/// Counts calls into [`Metrics`].
#[derive(Clone, Debug)]
pub struct Measure<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

/// What is measured of one call until it is over.
#[derive(Debug)]
pub struct Measurement {
    metrics: Arc<Metrics>,
    facts: Arc<Facts>,
    received: Instant,
    surface: Surface,
    route: Route,
    intent: Intent,
    streaming: bool,
}

pin_project! {
    /// The future of [`Measure`].
    #[derive(Debug)]
    pub struct Measured<F> {
        #[pin]
        inner: F,
        watch: Option<Watch<Measurement>>,
    }
}

// === impl Measure ===

impl MetricsLayer {
    /// Counts into `metrics`.
    pub const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Measure<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Measure { inner, metrics: Arc::clone(&self.metrics) }
    }
}

impl<S, P, I> Service<Call<P, I>> for Measure<S>
where
    S: Service<Call<P, I>, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Measured<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<P, I>) -> Self::Future {
        let head = &call.head;
        self.metrics.call_started(head.surface, head.intent);
        let watch = Watch::new(Measurement {
            metrics: Arc::clone(&self.metrics),
            facts: Arc::clone(&head.facts),
            received: head.received,
            surface: head.surface,
            route: head.route,
            intent: head.intent,
            streaming: false,
        });
        Measured { inner: self.inner.call(call), watch: Some(watch) }
    }
}

// === impl Measured ===

impl<F> Future for Measured<F>
where
    F: Future<Output = Result<Reply, Error>>,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let Some(watch) = this.watch.take() else { return Poll::Ready(result) };
        if let (Err(error), Some(measurement)) = (&result, watch.observer()) {
            measurement.metrics.call_refused(error);
        }
        Poll::Ready(hand_over(result, watch))
    }
}

// === impl Measurement ===

impl Observer for Measurement {
    fn chunk(&mut self, _: &Chunk) {
        let first = (!self.streaming).then(|| self.received.elapsed());
        if first.is_some() {
            self.streaming = true;
            self.facts.reach(Stage::Streaming);
        }
        self.metrics.chunk(self.surface, self.facts.model.get(), first);
    }

    fn end(&mut self, end: End) {
        if matches!(end, End::Abandoned | End::Failed(Code::Cancelled)) {
            self.metrics.cancelled(self.surface, self.facts.stage());
        }
        let took = self.facts.over().saturating_duration_since(self.received);
        self.metrics.call_ended(self.surface, self.route, self.intent, &self.facts, end, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::Head,
        error::Limit,
        layer::fixture::{Below, chunk, decoded, infer, key, stream, streamed, whole},
    };
    use std::sync::Mutex;
    use tower::ServiceExt;

    fn service(below: Below) -> (Measure<Below>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        (MetricsLayer::new(Arc::clone(&metrics)).layer(below), metrics)
    }

    #[track_caller]
    fn assert_line(metrics: &Metrics, line: &str) {
        let page = metrics.render();
        assert!(page.lines().any(|found| found == line), "no `{line}` in\n{page}");
    }

    #[tokio::test]
    async fn a_served_call_is_counted_under_the_model_that_the_repository_knows() {
        let (service, metrics) = service(Below::new(|head: Head| async move {
            head.facts.model.set(key("digits")).unwrap();
            Ok(whole())
        }));
        service.oneshot(decoded("a", infer())).await.unwrap();
        assert_line(&metrics, r#"sluicegate_calls_total{code="ok",model="digits",route="other",surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_call_duration_seconds_count{route="other",surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_calls_in_flight{surface="rest"} 0"#);
    }

    #[tokio::test]
    async fn a_refused_call_is_counted_with_its_code_and_its_limit() {
        let (service, metrics) = service(Below::answering(|| Err(Error::Overloaded { limit: Limit::Calls })));
        service.oneshot(decoded("a", infer())).await.unwrap_err();
        assert_line(&metrics, r#"sluicegate_calls_total{code="overloaded",model="",route="other",surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_overloaded_total{limit="calls"} 1"#);
    }

    #[tokio::test]
    async fn a_dropped_call_is_counted_as_cancelled_with_its_stage() {
        let (mut service, metrics) = service(Below::silent());
        let call = decoded("a", infer());
        call.head.facts.reach(Stage::Queued);
        let future = service.call(call);
        assert_line(&metrics, r#"sluicegate_calls_in_flight{surface="rest"} 1"#);
        drop(future);
        assert_line(&metrics, r#"sluicegate_calls_in_flight{surface="rest"} 0"#);
        assert_line(&metrics, r#"sluicegate_calls_total{code="cancelled",model="",route="other",surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_cancelled_total{stage="queued",surface="rest"} 1"#);
    }

    #[tokio::test]
    async fn a_stream_is_in_flight_until_its_end_and_its_first_chunk_is_timed() {
        let (sender, reply) = stream();
        let reply = Mutex::new(Some(reply));
        let (service, metrics) = service(Below::answering(move || Ok(reply.lock().unwrap().take().unwrap())));
        let mut stream = streamed(service.oneshot(decoded("a", infer())).await.unwrap());
        for _ in 0..2 {
            sender.send(Ok(chunk())).await.unwrap();
            assert!(stream.next().await.unwrap().is_ok());
        }
        assert_line(&metrics, r#"sluicegate_calls_in_flight{surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_time_to_first_chunk_seconds_count{model="",surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_chunks_total{surface="rest"} 2"#);
        drop(stream);
        assert_line(&metrics, r#"sluicegate_cancelled_total{stage="streaming",surface="rest"} 1"#);
        assert_line(&metrics, r#"sluicegate_calls_in_flight{surface="rest"} 0"#);
    }
}

//! The outermost layer: a span per call, the access log, the traces of those that are chosen, and the causes of failures that only the log may read.
//!
//! Does not make call ids (front-ends do, or take the client's) and does not know how logs are written. With the span
//! disabled and the access log off, a call passes with no more than a check of a static.

use super::guarded::hand_over;
use crate::{
    call::{Call, CallId, Chunk, End, Facts, Observer, Reply, Surface, Watch},
    error::Error,
    telemetry::{
        access_log::{AccessLog, Line},
        traces::Tracer,
    },
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower::{Layer, Service};
use tracing::Span;

/// Makes [`Trace`].
#[derive(Clone, Debug)]
pub struct TraceLayer {
    access_log: Option<AccessLog>,
    tracer: Option<Tracer>,
}

/// Names the call in logs, from its first layer to the end of its reply.
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
    access_log: Option<AccessLog>,
    tracer: Option<Tracer>,
}

/// What lasts as long as the call: its span, and its line in the access log.
#[derive(Debug)]
pub struct Record {
    line: Option<Line>,
    /// Of a call that is traced.
    facts: Option<Arc<Facts>>,
    // Only held: the span is over when the reply is.
    _span: Span,
}

/// Logs why a stream failed: what clients are not told is told here or nowhere.
#[derive(Debug)]
struct Causes {
    id: CallId,
    surface: Surface,
}

pin_project! {
    /// The future of [`Trace`].
    #[derive(Debug)]
    pub struct Traced<F> {
        #[pin]
        inner: F,
        span: Span,
        id: CallId,
        surface: Surface,
        watch: Option<Watch<Record>>,
    }
}

// === impl Trace ===

impl TraceLayer {
    /// Writes one line per call to `access_log`, if there is one, and traces those calls that `tracer` chooses.
    pub const fn new(access_log: Option<AccessLog>, tracer: Option<Tracer>) -> Self {
        Self { access_log, tracer }
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace { inner, access_log: self.access_log.clone(), tracer: self.tracer.clone() }
    }
}

impl<S, P, I> Service<Call<P, I>> for Trace<S>
where
    S: Service<Call<P, I>, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Traced<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call<P, I>) -> Self::Future {
        let head = &call.head;
        let span = tracing::debug_span!(
            "call",
            call_id = %head.id,
            surface = head.surface.name(),
            intent = head.intent.name(),
        );
        let line = self.access_log.as_ref().map(|log| log.begin(head));
        if let Some(tracer) = &self.tracer {
            tracer.begin(head);
        }
        let facts = head.facts.trace.get().map(|_| Arc::clone(&head.facts));
        let watched = line.is_some() || facts.is_some() || !span.is_disabled();
        let watch = watched.then(|| Watch::new(Record { line, facts, _span: span.clone() }));
        let (id, surface) = (head.id.clone(), head.surface);
        let inner = span.in_scope(|| self.inner.call(call));
        Traced { inner, span, id, surface, watch }
    }
}

// === impl Traced ===

impl<F> Future for Traced<F>
where
    F: Future<Output = Result<Reply, Error>>,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut result = ready!(this.span.in_scope(|| this.inner.poll(cx)));
        match &mut result {
            Ok(Reply::Stream(stream)) => {
                stream.observe(Box::new(Causes { id: this.id.clone(), surface: *this.surface }));
            }
            Ok(_) => {}
            Err(error) => log_cause(this.id, *this.surface, error),
        }
        Poll::Ready(match this.watch.take() {
            Some(watch) => hand_over(result, watch),
            None => result,
        })
    }
}

/// One line for a failure whose cause clients do not read; the others are their own explanation.
fn log_cause(id: &CallId, surface: Surface, error: &Error) {
    if let Error::Backend(cause) | Error::Internal(cause) = error {
        tracing::error!(call_id = %id, surface = surface.name(), %cause, "call failed");
    }
}

// === impl Causes, Record ===

impl Observer for Causes {
    fn failed(&mut self, error: &Error) {
        log_cause(&self.id, self.surface, error);
    }
}

impl Observer for Record {
    fn chunk(&mut self, _: &Chunk) {
        if let Some(trace) = self.facts.as_ref().and_then(|facts| facts.trace.get()) {
            trace.chunk();
        }
    }

    fn end(&mut self, end: End) {
        if let Some(facts) = &self.facts
            && let Some(trace) = facts.trace.get()
        {
            trace.end(end, facts.over(), facts.model.get());
        }
        if let Some(line) = &mut self.line {
            line.end(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::fixture::{Below, chunk, decoded, infer, stream, streamed, whole},
        telemetry::{Format, access_log::tests::Page},
    };
    use std::{sync::Mutex, time::Duration};
    use tower::ServiceExt;

    fn service(below: Below) -> (Trace<Below>, AccessLog, Page) {
        let page = Page::default();
        let log = AccessLog::start(page.clone(), Format::Json).unwrap();
        (TraceLayer::new(Some(log.clone()), None).layer(below), log, page)
    }

    fn lines(log: &AccessLog, page: &Page) -> Vec<serde_json::Value> {
        assert!(log.flush(Duration::from_secs(10)));
        page.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn served_refused_and_dropped_calls_each_have_a_line() {
        let (served, log, page) = service(Below::answering(|| Ok(whole())));
        served.oneshot(decoded("a", infer())).await.unwrap();
        assert_eq!(lines(&log, &page)[0]["code"], "ok");

        let (refused, log, page) = service(Below::answering(|| Err(Error::Unauthenticated)));
        refused.oneshot(decoded("a", infer())).await.unwrap_err();
        assert_eq!(lines(&log, &page)[0]["code"], "unauthenticated");

        let (mut dropped, log, page) = service(Below::silent());
        drop(dropped.call(decoded("a", infer())));
        assert_eq!(lines(&log, &page)[0]["code"], "cancelled");
    }

    #[tokio::test]
    async fn the_line_of_a_stream_is_written_at_its_end() {
        let (sender, reply) = stream();
        let reply = Mutex::new(Some(reply));
        let (service, log, page) = service(Below::answering(move || Ok(reply.lock().unwrap().take().unwrap())));
        let mut stream = streamed(service.oneshot(decoded("a", infer())).await.unwrap());
        sender.send(Ok(chunk())).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        assert_eq!(lines(&log, &page), [] as [serde_json::Value; 0]);
        drop(sender);
        assert!(stream.next().await.is_none());
        assert_eq!(lines(&log, &page)[0]["code"], "ok");
    }

    #[tokio::test]
    async fn without_log_and_span_nothing_is_kept_for_the_end() {
        let mut service = TraceLayer::new(None, None).layer(Below::silent());
        assert!(service.call(decoded("a", infer())).watch.is_none());
    }

    /// What is logged from now on, on this thread.
    fn listening() -> (Page, tracing::subscriber::DefaultGuard) {
        let page = Page::default();
        let writer = page.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        (page, tracing::subscriber::set_default(subscriber))
    }

    #[tokio::test]
    async fn the_cause_that_ends_a_stream_is_logged_once_with_the_call_id() {
        let (page, _guard) = listening();
        let (sender, reply) = stream();
        let reply = Mutex::new(Some(reply));
        let below = Below::answering(move || Ok(reply.lock().unwrap().take().unwrap()));
        let (service, log, _) = service(below);
        let call = decoded("a", infer());
        let id = call.head.id.to_string();
        let mut stream = streamed(service.oneshot(call).await.unwrap());
        sender.send(Err(Error::backend("node 7 failed"))).await.unwrap();
        assert!(stream.next().await.unwrap().is_err());
        drop(stream);
        assert!(log.flush(Duration::from_secs(10)));
        let text = page.text();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!((&lines[0]["call_id"], &lines[0]["cause"]), (&id.into(), &"node 7 failed".into()));
    }

    #[tokio::test]
    async fn the_cause_of_a_failure_is_logged_with_the_call_id() {
        let (page, _guard) = listening();
        let below = Below::answering(|| Err(Error::backend("node 7 failed")));
        let call = decoded("a", infer());
        let id = call.head.id.to_string();
        TraceLayer::new(None, None).layer(below).oneshot(call).await.unwrap_err();
        let line: serde_json::Value = serde_json::from_str(page.text().lines().next().unwrap()).unwrap();
        assert_eq!(line["call_id"], id);
        assert_eq!(line["cause"], "node 7 failed");
        assert_eq!(line["level"], "ERROR");
    }
}

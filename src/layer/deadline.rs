//! No call without a deadline.
//!
//! The clock covers everything that a client can make slow, its body included. The layer does not know where the time
//! goes: [`Facts::stage`](crate::call::Facts::stage) tells it, for the error.

use super::alarm::Alarm;
use crate::{
    call::{Call, Facts, Head, Reply},
    current::Current,
    error::{Error, Stage},
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower::{Layer, Service};

/// `limits.deadline` (contract 10 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For a whole reply, if the client asks for nothing.
    pub default: Duration,
    /// For a reply that streams, if the client asks for nothing.
    pub stream: Duration,
    /// The most that a client may ask for.
    pub max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { default: Duration::from_secs(60), stream: Duration::from_secs(600), max: Duration::from_secs(600) }
    }
}

/// Settings that may change while calls are made. Cloning it is cloning an `Arc`.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Current<Settings>>);

impl From<Settings> for Shared {
    fn from(settings: Settings) -> Self {
        Self(Arc::new(Current::new(settings)))
    }
}

impl Shared {
    /// From the next call on, these.
    pub fn set(&self, settings: Settings) {
        self.0.set(settings);
    }
}

/// Makes [`Deadline`].
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    settings: Shared,
}

/// Sets the deadline of a call and keeps it.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    settings: Shared,
}

pin_project! {
    /// The future of [`Deadline`].
    #[derive(Debug)]
    pub struct Timed<F> {
        // None if the time was up before there was anything to do.
        #[pin]
        inner: Option<F>,
        stream_deadline: Instant,
        facts: Arc<Facts>,
        // Armed at the first `Pending`: a call that is answered at once never touches it.
        alarm: Alarm,
    }
}

// === impl Deadline ===

impl DeadlineLayer {
    /// Keeps deadlines as `settings` say.
    pub fn new(settings: impl Into<Shared>) -> Self {
        Self { settings: settings.into() }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, settings: self.settings.clone() }
    }
}

impl<S, P, I> Service<Call<P, I>> for Deadline<S>
where
    S: Service<Call<P, I>, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Timed<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call<P, I>) -> Self::Future {
        let Settings { default, stream, max } = self.settings.0.with(|settings| **settings);
        let wish = call.head.timeout;
        let received = call.head.received;
        call.head.deadline = received + wish.unwrap_or(default).min(max);
        call.head.stream_deadline = received + wish.unwrap_or(stream).min(max);
        let Head { deadline, stream_deadline, .. } = call.head;
        let alarm = Alarm::at(deadline);
        let facts = Arc::clone(&call.head.facts);
        // A wish for no time at all is answered without work: whether the reply would be ready at once is luck.
        let inner = (deadline > received).then(|| self.inner.call(call));
        Timed { inner, stream_deadline, facts, alarm }
    }
}

// === impl Timed ===

impl<F> Future for Timed<F>
where
    F: Future<Output = Result<Reply, Error>>,
{
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            return Poll::Ready(Err(Error::DeadlineExceeded { stage: Stage::Received }));
        };
        if let Poll::Ready(mut result) = inner.poll(cx) {
            if let Ok(Reply::Stream(stream)) = &mut result {
                stream.set_deadline(*this.stream_deadline);
            }
            return Poll::Ready(result);
        }
        let facts = this.facts;
        this.alarm.poll(cx).map(|()| Err(Error::DeadlineExceeded { stage: facts.stage() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Decoded, End, Watch},
        error::Code,
        layer::fixture::{Below, Ears, chunk, decoded, infer, stream, streamed, whole},
    };
    use std::sync::Mutex;
    use tower::ServiceExt;

    const SETTINGS: Settings =
        Settings { default: Duration::from_secs(60), stream: Duration::from_secs(600), max: Duration::from_secs(600) };

    fn call(timeout: Option<Duration>) -> Decoded {
        let mut call = decoded("a", infer());
        call.head.timeout = timeout;
        call
    }

    /// For a whole reply, and for one that streams.
    fn deadlines_seen(timeout: Option<Duration>) -> (Duration, Duration) {
        let seen: Arc<Mutex<Option<Head>>> = Arc::default();
        let keep = Arc::clone(&seen);
        let below = Below::new(move |head| {
            *keep.lock().unwrap() = Some(head);
            std::future::ready(Ok(whole()))
        });
        drop(DeadlineLayer::new(SETTINGS).layer(below).call(call(timeout)));
        let head = seen.lock().unwrap().take().unwrap();
        (head.deadline - head.received, head.stream_deadline - head.received)
    }

    #[test]
    fn the_wish_counts_up_to_the_maximum_and_the_default_where_there_is_none() {
        assert_eq!(deadlines_seen(None), (SETTINGS.default, SETTINGS.stream));
        assert_eq!(deadlines_seen(Some(Duration::from_secs(90))), (Duration::from_secs(90), Duration::from_secs(90)));
        assert_eq!(deadlines_seen(Some(Duration::MAX)), (SETTINGS.max, SETTINGS.max));
    }

    #[tokio::test]
    async fn a_millisecond_is_kept() {
        let error = DeadlineLayer::new(SETTINGS)
            .layer(Below::silent())
            .oneshot(call(Some(Duration::from_millis(1))))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn no_time_at_all_is_refused_without_work() {
        let below = Below::answering(|| panic!("called"));
        let error = DeadlineLayer::new(SETTINGS).layer(below).oneshot(call(Some(Duration::ZERO))).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_says_where_the_time_ran_out_and_the_work_is_dropped() {
        let ears = Ears::default();
        let held = ears.clone();
        let below = Below::new(move |head: Head| {
            let watch = Watch::new(held.clone());
            async move {
                let _watch = watch;
                head.facts.reach(Stage::Queued);
                std::future::pending().await
            }
        });
        let error = DeadlineLayer::new(SETTINGS).layer(below).oneshot(call(None)).await.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Queued }), "{error}");
        assert_eq!(ears.heard(), [End::Abandoned]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_its_own_longer_time_unless_the_client_asked_for_less() {
        for (wish, expected) in [(None, SETTINGS.stream), (Some(Duration::from_secs(5)), Duration::from_secs(5))] {
            let (sender, reply) = stream();
            let reply = Arc::new(Mutex::new(Some(reply)));
            let below = Below::answering(move || Ok(reply.lock().unwrap().take().unwrap()));
            let begun = tokio::time::Instant::now();
            let mut call = call(wish);
            call.head.received = begun.into_std();
            let reply = DeadlineLayer::new(SETTINGS).layer(below).oneshot(call).await.unwrap();
            let mut stream = streamed(reply);
            sender.send(Ok(chunk())).await.unwrap();
            assert!(stream.next().await.unwrap().is_ok());
            let error = stream.next().await.unwrap().unwrap_err();
            assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Streaming }));
            assert_eq!(begun.elapsed().as_secs_f64().round(), expected.as_secs_f64());
        }
    }
}

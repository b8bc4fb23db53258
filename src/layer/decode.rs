//! The only layer that waits for the client's body.
//!
//! Does not know how bodies are read or what they look like: a [`Pending`](crate::call::Pending) is a future. Above it no
//! byte of a body has been asked for; below it everything is protocol-neutral.

use crate::{
    call::{Call, Decoded, Head, Identified, Operation, PerThread, Reply},
    error::{Error, Stage},
};
use futures_util::future::BoxFuture;
use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tower::{Layer, Service};

/// Makes [`Decode`].
#[derive(Clone, Copy, Debug)]
pub struct DecodeLayer;

/// Turns `Identified` into `Decoded`.
#[derive(Clone, Debug)]
pub struct Decode<S: Send> {
    // Kept by each call until its body is there.
    inner: PerThread<S>,
}

// === impl Decode ===

impl<S: Send> Layer<S> for DecodeLayer {
    type Service = Decode<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Decode { inner: PerThread::new(inner) }
    }
}

impl<S> Service<Identified> for Decode<S>
where
    S: Service<Decoded, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Service::<Decoded>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, call: Identified) -> Self::Future {
        let mut inner = self.inner.clone();
        Box::pin(async move {
            let Call { mut head, sender, input } = call;
            head.facts.reach(Stage::Reading);
            let operation = input.await?;
            match shorter_limit(&head, &operation) {
                None => inner.call(Call { head, sender, input: operation }).await,
                Some(wished) => {
                    head.deadline = head.deadline.min(wished);
                    head.stream_deadline = head.stream_deadline.min(wished);
                    let Head { deadline, stream_deadline, .. } = head;
                    let facts = std::sync::Arc::clone(&head.facts);
                    let below = inner.call(Call { head, sender, input: operation });
                    // Boxed: few calls bring such a wish, and a timer would weigh on the future of all.
                    let mut reply = Box::pin(tokio::time::timeout_at(deadline.into(), below))
                        .await
                        .map_err(|_| Error::DeadlineExceeded { stage: facts.stage() })??;
                    if let Reply::Stream(stream) = &mut reply {
                        stream.set_deadline(stream_deadline);
                    }
                    Ok(reply)
                }
            }
        })
    }
}

/// The deadline that the body asks for, if it is earlier than one of those that hold. Like every wish it counts from the
/// moment when the head was known, so that the same number means the same in a header and in a body.
fn shorter_limit(head: &Head, operation: &Operation) -> Option<Instant> {
    let wish: Duration = match operation {
        // Zero counts as not given (contract 02 section 3).
        Operation::Infer(request) => request.timeout.filter(|wish| !wish.is_zero())?,
        Operation::Inspect(_) | Operation::Manage(_) => return None,
    };
    head.received.checked_add(wish).filter(|wished| *wished < head.deadline.max(head.stream_deadline))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        call::{Intent, Pending},
        error::Code,
        layer::fixture::{Below, head, identity, infer, stream, streamed, whole},
    };
    use futures_util::FutureExt;
    use std::sync::{Arc, Mutex};
    use tower::ServiceExt;

    fn call(input: Pending) -> Identified {
        let mut head = head(Intent::Infer);
        head.deadline = head.received + Duration::from_secs(60);
        head.stream_deadline = head.received + Duration::from_secs(600);
        Call { head, sender: identity("a"), input }
    }

    fn with_timeout(timeout: Duration) -> Pending {
        let Operation::Infer(mut request) = infer() else { unreachable!() };
        request.timeout = Some(timeout);
        Pending::ready(Operation::Infer(request))
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_goes_no_further() {
        let service = DecodeLayer.layer(Below::answering(|| panic!("called")));
        let error = service.oneshot(call(Pending::new(async { Err(Error::TooLarge { limit: 8 }) }))).await.unwrap_err();
        assert_eq!(error.code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn the_stage_is_reading_while_the_body_is_awaited() {
        let call = call(Pending::new(std::future::pending()));
        let facts = Arc::clone(&call.head.facts);
        let mut service = DecodeLayer.layer(Below::silent());
        let mut future = service.call(call);
        assert_eq!(facts.stage(), Stage::Received);
        assert!((&mut future).now_or_never().is_none());
        assert_eq!(facts.stage(), Stage::Reading);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_in_the_body_shortens_the_deadline_with_the_same_error() {
        let below = Below::new(|head: Head| async move {
            assert_eq!(head.deadline - head.received, Duration::from_secs(2));
            assert_eq!(head.stream_deadline, head.deadline);
            head.facts.reach(Stage::Queued);
            std::future::pending().await
        });
        let error = DecodeLayer.layer(below).oneshot(call(with_timeout(Duration::from_secs(2)))).await.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Queued }), "{error}");
    }

    #[tokio::test]
    async fn a_timeout_in_the_body_never_lengthens_the_deadline() {
        for wish in [Duration::ZERO, Duration::from_secs(61), Duration::MAX] {
            let below = Below::new(|head: Head| async move {
                assert_eq!(head.deadline - head.received, Duration::from_secs(60));
                Ok(whole())
            });
            assert!(DecodeLayer.layer(below).oneshot(call(with_timeout(wish))).await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_timeout_in_the_body_between_the_two_shortens_only_a_stream() {
        let below = Below::new(|head: Head| async move {
            assert_eq!(head.deadline - head.received, Duration::from_secs(60));
            assert_eq!(head.stream_deadline - head.received, Duration::from_secs(120));
            Ok(whole())
        });
        assert!(DecodeLayer.layer(below).oneshot(call(with_timeout(Duration::from_secs(120)))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_in_the_body_ends_a_stream_whatever_longer_one_is_set_above() {
        let (_sender, reply) = stream();
        let reply = Mutex::new(Some(reply));
        let below = Below::answering(move || Ok(reply.lock().unwrap().take().unwrap()));
        let begun = tokio::time::Instant::now();
        let reply = DecodeLayer.layer(below).oneshot(call(with_timeout(Duration::from_secs(2)))).await.unwrap();
        let mut stream = streamed(reply);
        stream.set_deadline((begun + Duration::from_secs(600)).into_std());
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(begun.elapsed().as_secs_f64().round(), 2.0);
    }
}

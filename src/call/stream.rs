//! A reply that arrives in pieces: a channel, a deadline and observers.
//!
//! The concrete channel is deliberate: all streams come from a scheduler, so there is one
//! `poll_next` and not one per layer.

use super::{
    Chunk,
    watch::{End, Observer},
};
use crate::error::{Error, Stage};
use futures_util::Stream;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, Sleep},
};

/// A reply that arrives in pieces. Dropping it cancels the work behind it.
///
/// The sending side ends a stream by dropping its half; an `Err` is the last item.
pub struct ReplyStream {
    source: Receiver<Result<Chunk, Error>>,
    deadline: Option<Pin<Box<Sleep>>>,
    observers: Vec<Box<dyn Observer>>,
    over: bool,
}

impl ReplyStream {
    /// A stream over what `source` receives.
    pub fn new(source: Receiver<Result<Chunk, Error>>) -> Self {
        Self { source, deadline: None, observers: Vec::new(), over: false }
    }

    /// Ends the stream with [`Error::DeadlineExceeded`] at `deadline`, or earlier if an earlier one was set before:
    /// the wish in a body and the `Deadline` layer's own both end here, and the sooner of them counts.
    pub fn set_deadline(&mut self, deadline: std::time::Instant) {
        let deadline = Instant::from_std(deadline);
        if self.deadline.as_ref().is_none_or(|sleep| deadline < sleep.deadline()) {
            self.deadline = Some(Box::pin(tokio::time::sleep_until(deadline)));
        }
    }

    /// Adds someone who hears every chunk from now on, and the end.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observers.push(observer);
    }

    /// The next piece; `None` after the last one, and after an error.
    pub async fn next(&mut self) -> Option<Result<Chunk, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Waits for the next piece and keeps it for nobody: true if there was one more.
    ///
    /// Unary surfaces call it after their one chunk, to tell an ended stream from a longer one.
    pub async fn has_more(&mut self) -> Result<bool, Error> {
        match self.next().await {
            None => Ok(false),
            Some(Ok(_)) => Ok(true),
            Some(Err(error)) => Err(error),
        }
    }

    /// Looks at the deadline alone, for whoever may not take a piece now: the source is not polled.
    ///
    /// Ready with the error that ends the stream once the deadline has passed.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let late = !self.over && self.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
        if !late {
            return Poll::Pending;
        }
        let error = Error::DeadlineExceeded { stage: Stage::Streaming };
        self.fail(&error);
        Poll::Ready(error)
    }

    fn fail(&mut self, error: &Error) {
        self.finish(|observer| observer.failed(error));
    }

    fn finish(&mut self, tell: impl Fn(&mut dyn Observer)) {
        self.over = true;
        self.source.close();
        for mut observer in self.observers.drain(..) {
            tell(&mut *observer);
        }
    }
}

impl Stream for ReplyStream {
    type Item = Result<Chunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        match this.source.poll_recv(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                for observer in &mut this.observers {
                    observer.chunk(&chunk);
                }
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.fail(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.finish(|observer| observer.end(End::Complete));
                Poll::Ready(None)
            }
            Poll::Pending => {
                let late = this.deadline.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
                if !late {
                    return Poll::Pending;
                }
                let error = Error::DeadlineExceeded { stage: Stage::Streaming };
                this.fail(&error);
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        self.finish(|observer| observer.end(End::Abandoned));
    }
}

impl fmt::Debug for ReplyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream").field("over", &self.over).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Watch;
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    #[derive(Clone, Default)]
    struct Ears(Arc<Mutex<Vec<End>>>);

    impl Observer for Ears {
        fn end(&mut self, end: End) {
            self.0.lock().unwrap().push(end);
        }
    }

    fn stream() -> (tokio::sync::mpsc::Sender<Result<Chunk, Error>>, ReplyStream, Ears) {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let mut stream = ReplyStream::new(receiver);
        let ears = Ears::default();
        stream.observe(Box::new(Watch::new(ears.clone())));
        (sender, stream, ears)
    }

    #[tokio::test]
    async fn a_stream_ends_complete_failed_or_abandoned_and_says_so_once() {
        let (sender, mut complete, ears) = stream();
        drop(sender);
        assert!(complete.next().await.is_none());
        drop(complete);
        assert_eq!(*ears.0.lock().unwrap(), [End::Complete]);

        let (sender, mut failed, ears) = stream();
        sender.send(Err(Error::Cancelled)).await.unwrap();
        assert!(failed.next().await.unwrap().is_err());
        assert!(failed.next().await.is_none());
        drop(failed);
        assert_eq!(*ears.0.lock().unwrap(), [End::Failed(crate::error::Code::Cancelled)]);

        let (sender, abandoned, ears) = stream();
        drop(abandoned);
        assert!(sender.is_closed());
        assert_eq!(*ears.0.lock().unwrap(), [End::Abandoned]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_silent_stream() {
        let (_sender, mut late, _) = stream();
        late.set_deadline(Instant::now().into_std() + Duration::from_secs(1));
        let error = late.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), crate::error::Code::DeadlineExceeded);
        assert!(late.next().await.is_none());
    }
}

//! The way to a response body that hyper reads: one frame waits there, the others in the session.

use super::{Outbox, Sending, Weigh};
use futures_util::future::BoxFuture;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

/// Frames that hyper has not taken yet. More than one, so that hyper and the session need not take turns.
const DEPTH: usize = 2;

/// The way to a response body.
pub(in crate::frontend) struct Pipe<T> {
    sender: Option<Sender<T>>,
    /// Waits for room; made only when there is none.
    room: Option<BoxFuture<'static, bool>>,
    /// Waits for the other end to go away.
    gone: Option<BoxFuture<'static, ()>>,
}

/// Nobody reads the body any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone;

impl<T: Send + 'static> Pipe<T> {
    /// A pipe, and where its frames come out.
    pub(in crate::frontend) fn new() -> (Self, Receiver<T>) {
        let (sender, receiver) = channel(DEPTH);
        (Self { sender: Some(sender), room: None, gone: None }, receiver)
    }

    /// Sends what `frame` makes if there is room.
    fn poll_send(&mut self, cx: &mut Context<'_>, frame: impl FnOnce() -> Option<T>) -> Poll<Result<(), Gone>> {
        let Some(sender) = &self.sender else { return Poll::Ready(Err(Gone)) };
        loop {
            if let Some(room) = &mut self.room {
                let open = std::task::ready!(room.as_mut().poll(cx));
                self.room = None;
                if !open {
                    return Poll::Ready(Err(Gone));
                }
            }
            match sender.try_reserve() {
                Ok(permit) => {
                    if let Some(frame) = frame() {
                        permit.send(frame);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(TrySendError::Closed(())) => return Poll::Ready(Err(Gone)),
                Err(TrySendError::Full(())) => {
                    // Only this session sends: the room it has seen is still there when it sends.
                    let sender = sender.clone();
                    self.room = Some(Box::pin(async move { sender.reserve().await.is_ok() }));
                }
            }
        }
    }

    /// Sends what `take` makes of `outbox`, until that is empty or hyper takes no more.
    pub(in crate::frontend) fn poll_drain<F: Weigh>(
        &mut self,
        cx: &mut Context<'_>,
        outbox: &mut Outbox<F>,
        take: impl Fn(&mut Outbox<F>) -> Option<T>,
    ) -> Sending {
        let mut blocked = Sending::Blocked;
        loop {
            if self.poll_gone(cx).is_ready() {
                return Sending::Gone;
            }
            if outbox.is_empty() {
                return Sending::Done;
            }
            match self.poll_send(cx, || take(outbox)) {
                Poll::Pending => return blocked,
                Poll::Ready(Err(_)) => return Sending::Gone,
                Poll::Ready(Ok(())) => blocked = Sending::Some,
            }
        }
    }

    /// Ready once nobody reads the body any more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(sender) = &self.sender else { return Poll::Ready(()) };
        let gone = self.gone.get_or_insert_with(|| {
            let sender = sender.clone();
            Box::pin(async move { sender.closed().await })
        });
        gone.as_mut().poll(cx)
    }

    /// Ends the body after what was sent.
    pub(in crate::frontend) fn close(&mut self) {
        (self.sender, self.room, self.gone) = (None, None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_full_pipe_waits_and_a_dropped_one_is_gone() {
        let (mut pipe, mut receiver) = Pipe::new();
        for frame in 0..DEPTH {
            assert_eq!(poll_fn(|cx| pipe.poll_send(cx, || Some(frame))).await, Ok(()));
        }
        let full =
            poll_fn(|cx| Poll::Ready(pipe.poll_send(cx, || Some(9)).is_pending() && pipe.poll_gone(cx).is_pending()));
        assert!(full.await);
        assert_eq!(receiver.recv().await, Some(0));
        assert_eq!(poll_fn(|cx| pipe.poll_send(cx, || Some(2))).await, Ok(()));
        drop(receiver);
        poll_fn(|cx| pipe.poll_gone(cx)).await;
        assert_eq!(poll_fn(|cx| pipe.poll_send(cx, || Some(3))).await, Err(Gone));
    }

    #[tokio::test]
    async fn a_closed_pipe_ends_after_what_was_sent() {
        let (mut pipe, mut receiver) = Pipe::new();
        assert_eq!(poll_fn(|cx| pipe.poll_send(cx, || Some(1))).await, Ok(()));
        assert!(poll_fn(|cx| Poll::Ready(pipe.poll_gone(cx))).await.is_pending());
        pipe.close();
        assert_eq!((receiver.recv().await, receiver.recv().await), (Some(1), None));
    }
}

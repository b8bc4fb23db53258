//! What waits to be sent: bounded in messages and in bytes (contract 10 section 5).

use std::collections::VecDeque;
use tokio::time::Instant;

/// Anything whose bytes can be counted.
pub(in crate::frontend) trait Weigh {
    /// Bytes that it holds.
    fn weight(&self) -> usize;
}

/// What waits to be sent.
#[derive(Debug)]
pub(in crate::frontend) struct Outbox<F> {
    frames: VecDeque<F>,
    bytes: usize,
    /// Frames and bytes that may wait.
    most: (usize, usize),
    /// Bytes that were ever put in.
    total: u64,
    /// Frames that were ever put in.
    pushed: u64,
    /// The present, as of the session's last turn.
    now: Instant,
}

impl<F: Weigh> Outbox<F> {
    /// Room for `messages` and `bytes`, and at least for one message.
    pub(super) fn new(messages: usize, bytes: usize) -> Self {
        Self { frames: VecDeque::new(), bytes: 0, most: (messages, bytes), total: 0, pushed: 0, now: Instant::now() }
    }

    /// Puts `frame` at the end. Whoever produces much asks [`Outbox::is_full`] first.
    pub(in crate::frontend) fn push(&mut self, frame: F) {
        let weight = frame.weight();
        self.bytes += weight;
        self.total += weight as u64;
        self.pushed += 1;
        self.frames.push_back(frame);
    }

    /// The frame that leaves next.
    pub(in crate::frontend) fn front(&self) -> Option<&F> {
        self.frames.front()
    }

    /// Takes out the frame that leaves next.
    pub(in crate::frontend) fn pop(&mut self) -> Option<F> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.weight();
        if self.frames.is_empty() {
            // Idle sessions are many: a burst leaves no memory behind.
            self.frames = VecDeque::new();
        }
        Some(frame)
    }

    /// Whether nothing waits.
    pub(in crate::frontend) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether outputs have to wait. One message always fits.
    pub(super) fn is_full(&self) -> bool {
        let (messages, bytes) = self.most;
        self.frames.len() >= messages || (self.bytes >= bytes && !self.frames.is_empty())
    }

    /// Whether even short answers to what is read have to wait: a peer that talks and never reads is not read either.
    pub(super) fn is_overfull(&self) -> bool {
        let (messages, bytes) = self.most;
        self.frames.len() >= messages.saturating_mul(2) || self.bytes >= bytes.saturating_mul(2)
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.bytes = 0;
    }

    /// Bytes that were ever put in.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Frames that were ever put in.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// The present, as of the session's last turn.
    pub(in crate::frontend) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    #[tokio::test]
    async fn messages_and_bytes_are_bounded_and_one_always_fits() {
        let mut outbox = Outbox::new(2, 10);
        assert!(!outbox.is_full());
        outbox.push(100);
        assert!(outbox.is_full() && outbox.is_overfull());
        assert_eq!(outbox.pop(), Some(100));
        outbox.push(1);
        assert!(!outbox.is_full());
        outbox.push(1);
        assert!(outbox.is_full() && !outbox.is_overfull());
        assert_eq!((outbox.total(), outbox.pushed()), (102, 3));
    }
}

//! A message that asks for something, on its way into the loop.

use crate::call::{Credentials, Pending, trace::TraceContext};
use crate::error::Error;
use futures_util::task::AtomicWaker;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
    time::Duration,
};

use super::Why;

/// What a message asks for.
#[derive(Debug)]
pub(in crate::frontend) enum Ask<T, N> {
    /// Nothing, or nothing more.
    Nothing,
    /// A call.
    Call(Opened<T, N>),
    /// A call that is wrong before it is one.
    Refuse(T, N, Error),
    /// A message about a call that is wrong: the call, if it is in flight, ends with this.
    Fail(T, N, Error),
    /// To end a call.
    Cancel(T),
    /// More chunks of a call.
    Credit(T, u32),
    /// To speak for somebody from now on. Nothing is read until they are known.
    Prove(Credentials),
    /// To end the session once what runs has finished.
    Finish(Why),
}

/// A message that is a call.
#[derive(Debug)]
pub(in crate::frontend) struct Opened<T, N> {
    /// Its name within the session.
    pub(in crate::frontend) tag: T,
    /// What the loop, the body and the encoder share.
    pub(in crate::frontend) ticket: Arc<Ticket<N>>,
    /// Whether the reply may come in pieces.
    pub(in crate::frontend) streams: bool,
    /// Whether its client said how many pieces it takes.
    pub(in crate::frontend) credited: bool,
    /// The client's wish for a deadline.
    pub(in crate::frontend) timeout: Option<Duration>,
    /// Whose work it is part of, if the message says so.
    pub(in crate::frontend) context: Option<TraceContext>,
    /// Bytes of the message.
    pub(in crate::frontend) size: usize,
    /// Its body.
    pub(in crate::frontend) input: Pending,
}

/// How many chunks of a reply may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::frontend) enum Credit {
    /// So many.
    Chunks(u32),
    /// As many as there are.
    Unlimited,
}

const UNLIMITED: u64 = u64::MAX;

/// What the loop, a call's body and the encoder share: one allocation per call.
#[derive(Debug)]
pub(in crate::frontend) struct Ticket<N> {
    /// What the request says about its answers.
    pub(in crate::frontend) note: N,
    cancelled: AtomicBool,
    credit: AtomicU64,
    waker: AtomicWaker,
}

impl<N> Ticket<N> {
    /// A ticket for a call that has not begun.
    pub(in crate::frontend) fn new(note: N, credit: Credit) -> Arc<Self> {
        let credit = match credit {
            Credit::Chunks(chunks) => u64::from(chunks),
            Credit::Unlimited => UNLIMITED,
        };
        Arc::new(Self {
            note,
            cancelled: AtomicBool::new(false),
            credit: AtomicU64::new(credit),
            waker: AtomicWaker::new(),
        })
    }

    /// Ends the call as soon as its exchange is polled.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Allows `more` chunks.
    pub(super) fn allow(&self, more: u32) {
        // Only the session's own task changes it: no other write can come in between.
        let credit = self.credit.load(Ordering::Acquire);
        if credit != UNLIMITED {
            self.credit.store(credit.saturating_add(u64::from(more)).min(UNLIMITED - 1), Ordering::Release);
            self.waker.wake();
        }
    }

    pub(super) fn has_credit(&self) -> bool {
        self.credit.load(Ordering::Acquire) > 0
    }

    pub(super) fn take_credit(&self) {
        let credit = self.credit.load(Ordering::Acquire);
        if credit != UNLIMITED {
            self.credit.store(credit.saturating_sub(1), Ordering::Release);
        }
    }

    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

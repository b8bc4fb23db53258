//! A job: a call's work in the scheduler, and the way back to its caller.
//!
//! Dropping is cancelling: a caller that has gone is noticed by its closed channel and nobody needs
//! to tell the scheduler. A job knows no model and no wire; its outputs are named by the signature.

use super::{Extent, Layout, callers::Held, order::Place};
use crate::{
    call::{Chunk, Facts, InferResponse, NamedTensor, Timing},
    error::Error,
    tensor::Tensors,
};
use std::{fmt, sync::Arc, time::Instant};
use tokio::sync::{mpsc, oneshot};

/// A call's work, checked against the signature of the model that runs it.
#[derive(Debug)]
pub struct Job {
    /// Inputs in the signature's order.
    pub inputs: Tensors,
    /// How many rows it brings to a batch; 1 where the model does not batch.
    pub rows: usize,
    /// Who goes first: what the request asked for until it is queued, then its level (see [`Priorities`]).
    ///
    /// [`Priorities`]: super::Priorities
    pub priority: u32,
    /// When it must have begun to run: an answer that is whole is of no use after it.
    pub deadline: Instant,
    /// When it was submitted.
    pub queued: Instant,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// Hears how far the call has come, and knows who sent it.
    pub facts: Arc<Facts>,
    /// Its place in the fair order; the queue's own.
    pub turn: u64,
    /// Whether others may run with it; the scheduler's own.
    pub company: Company,
    /// How it is laid together with jobs of other shapes; the scheduler's own.
    pub layout: Option<Arc<Layout>>,
}

/// Whether others may run with a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Company {
    /// They may.
    #[default]
    Any,
    /// A run that it was in had to be ended: it runs alone, and not for long, because it may be the one that does not end.
    Hurried,
    /// It was not done soon: it runs alone, behind all others of all levels, for as long as runs may take.
    Alone,
}

/// What a run yields for one job.
#[derive(Debug)]
pub struct Answer {
    /// All outputs, named, in the order of the signature.
    pub outputs: Vec<NamedTensor>,
    /// How long the job waited and its batch ran.
    pub timing: Timing,
}

/// Makes a response of the outputs of one step of a stream, or says why they make none.
pub type Frame = Box<dyn Fn(Vec<NamedTensor>, Timing) -> Result<InferResponse, Error> + Send>;

/// Several callers who wait for the same answer, as one. Dropping it unheard tells them that there is none.
pub trait Audience: Send {
    /// True once none of them waits any more.
    fn is_gone(&self) -> bool;
    /// Tells all of them. Called on whatever thread the job ran on, so it must not wait.
    fn hear(self: Box<Self>, answer: Result<Answer, Error>);
}

/// Who waits for one answer.
pub enum Hearer {
    /// A caller.
    One(oneshot::Sender<Result<Answer, Error>>),
    /// Callers who sent the same.
    Many(Box<dyn Audience>),
}

/// Where the answer of a job goes.
pub enum ReplyTo {
    /// One answer.
    Once(Hearer),
    /// One answer, not before those of the places before its own (`batching.preserve_order`).
    InOrder(Hearer, Place),
    /// What it is is kept elsewhere while the job runs, and may be taken from it there.
    Held(Held),
    /// Any number of answers; the end is told by dropping the sender.
    Stream {
        /// The caller's stream; empty when the job is submitted, with room for at least two
        /// items: one place is kept for an error at the end.
        sender: mpsc::Sender<Result<Chunk, Error>>,
        /// Makes a chunk of each step's outputs.
        frame: Frame,
        /// When the run ends at the latest, however little was sent: streams last longer than [`Job::deadline`].
        until: Instant,
    },
}

// === impl Job ===

impl Job {
    /// True once the caller has dropped its end. Nobody needs to tell us.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_abandoned()
    }

    /// True if rows of both may lie in one batch: the types and inner dimensions of all inputs agree, as far as the
    /// layout does not make up for them. False of a job that runs alone and any other, itself too: whoever forms batches
    /// takes the first job as it is, and asks this of those that are to join it.
    pub fn is_compatible(&self, other: &Self) -> bool {
        if self.company != Company::Any || other.company != Company::Any {
            return false;
        }
        if let Some(layout) = &self.layout {
            return layout.joins(&self.inputs, &other.inputs);
        }
        self.inputs.len() == other.inputs.len()
            && self.inputs.iter().zip(&other.inputs).all(|(a, b)| {
                a.dtype() == b.dtype()
                    && a.shape().rank() == b.shape().rank()
                    && a.shape().dims().get(1..) == b.shape().dims().get(1..)
            })
    }

    /// How much it brings to a batch.
    pub(super) fn extent(&self) -> Extent {
        match self.layout.as_deref().and_then(Layout::ragged) {
            Some(ragged) => Extent { rows: self.rows, size: ragged.elements(&self.inputs) },
            None => Extent::of_rows(self.rows),
        }
    }

    /// Bytes of its inputs.
    pub(super) fn bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.data().len()).sum()
    }

    /// Answers with the outputs of a whole run. Its inputs are let go of before anybody hears: who counts the outputs against
    /// a memory budget does not find the inputs there still, or not, by chance.
    pub fn succeed(self, outputs: Vec<NamedTensor>, timing: Timing) {
        let Self { inputs, reply, facts, .. } = self;
        drop(inputs);
        reply.succeed(outputs, timing, &facts);
    }

    /// Answers with an error. A stream whose channel is full ends without it: its reader is
    /// stalled, and its deadline or its front-end says so.
    pub fn fail(self, error: Error) {
        self.reply.fail(error);
    }

    /// The job as it was before it ran; nothing if it has been answered meanwhile.
    pub(super) fn released(self) -> Option<Self> {
        match self.reply {
            ReplyTo::Held(held) => held.take().map(|reply| Self { reply, ..self }),
            reply => Some(Self { reply, ..self }),
        }
    }

    /// Has its answer wait for its turn at `place`; a stream has none.
    pub(super) fn in_order(mut self, place: impl FnOnce() -> Place) -> Self {
        if let ReplyTo::Once(hearer) = self.reply {
            self.reply = ReplyTo::InOrder(hearer, place());
        }
        self
    }
}

// === impl Hearer ===

impl Hearer {
    /// True once nobody waits any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Many(audience) => audience.is_gone(),
        }
    }

    pub(super) fn hear(self, answer: Result<Answer, Error>) {
        match self {
            // A caller that has gone does not want to know; the send then fails, and that is fine.
            Self::One(sender) => drop(sender.send(answer)),
            Self::Many(audience) => audience.hear(answer),
        }
    }
}

impl From<oneshot::Sender<Result<Answer, Error>>> for Hearer {
    fn from(sender: oneshot::Sender<Result<Answer, Error>>) -> Self {
        Self::One(sender)
    }
}

impl fmt::Debug for Hearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::Many(_) => "Many",
        })
    }
}

// === impl ReplyTo ===

impl ReplyTo {
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::Once(hearer) | Self::InOrder(hearer, _) => hearer.is_gone(),
            Self::Held(held) => held.is_abandoned(),
            Self::Stream { sender, .. } => sender.is_closed(),
        }
    }

    fn succeed(self, outputs: Vec<NamedTensor>, timing: Timing, facts: &Facts) {
        match self {
            Self::Once(hearer) => hearer.hear(Ok(Answer { outputs, timing })),
            Self::InOrder(hearer, place) => place.answer(hearer, Ok(Answer { outputs, timing })),
            Self::Held(held) => {
                if let Some(reply) = held.take() {
                    reply.succeed(outputs, timing, facts);
                }
            }
            Self::Stream { sender, frame, .. } => {
                facts.timing.set(timing);
                // A caller that has gone does not want to know.
                drop(sender.try_send(frame(outputs, timing).map(Chunk::Tensors)));
            }
        }
    }

    pub(super) fn fail(self, error: Error) {
        match self {
            Self::Once(hearer) => hearer.hear(Err(error)),
            Self::InOrder(hearer, place) => place.answer(hearer, Err(error)),
            Self::Held(held) => {
                if let Some(reply) = held.take() {
                    reply.fail(error);
                }
            }
            Self::Stream { sender, .. } => drop(sender.try_send(Err(error))),
        }
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Once(_) => "Once",
            Self::InOrder(..) => "InOrder",
            Self::Held(_) => "Held",
            Self::Stream { .. } => "Stream",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing;

    #[test]
    fn dropping_the_receiver_abandons_the_job() {
        let (job, receiver) = testing::job(1, 0.0);
        assert!(!job.is_abandoned());
        drop(receiver);
        assert!(job.is_abandoned());
    }

    #[test]
    fn jobs_of_other_inner_shapes_are_not_compatible() {
        let (one, _a) = testing::job(1, 0.0);
        let (more, _b) = testing::job(7, 0.0);
        assert!(one.is_compatible(&more));
        let (mut wide, _c) = testing::job(1, 0.0);
        wide.inputs = [testing::tensor(1, 5, 0.0)].into();
        assert!(!one.is_compatible(&wide));
    }

    #[test]
    fn a_job_stays_small_enough_to_be_moved() {
        assert!(size_of::<Job>() <= 200, "{}", size_of::<Job>());
    }
}

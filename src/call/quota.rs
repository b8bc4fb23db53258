//! What a call costs, and what its limiters say of what is left: for policies, and for headers (contract 10 section 1).

use super::InferResponse;
use crate::{error::Allowance, tensor::Tensor};
use smallvec::SmallVec;
use std::{sync::Arc, time::Duration};

/// What a call brings or takes away, in the units that quotas count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows of its batch; 1 where the model does not batch.
    pub rows: u64,
    /// Bytes of tensors.
    pub bytes: u64,
    /// Elements of tensors.
    pub elements: u64,
}

/// One policy that a call was charged by, or refused by, as it stood just after.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The policy.
    pub allowance: Arc<Allowance>,
    /// Whose quota it is: a salted hash, the same for as long as the process lives.
    pub partition: u64,
    /// Units that are left.
    pub left: u64,
    /// Units that the call was charged; none if it was refused.
    pub charged: u64,
    /// How long until more are left; zero if there will never be more.
    pub more_in: Duration,
}

/// The quotas of a call. Two policies are usual; more spill to the heap.
pub type Quotas = SmallVec<[Quota; 2]>;

impl Quota {
    /// The same after the charge was given back. A part of a unit stays a part of one, so the next comes when it would have.
    #[must_use]
    pub fn given_back(&self) -> Self {
        let left = self.left.saturating_add(self.charged).min(self.allowance.burst);
        let more_in = if left == self.allowance.burst { Duration::ZERO } else { self.more_in };
        Self { left, charged: 0, more_in, allowance: Arc::clone(&self.allowance), ..*self }
    }

    /// How much of what may be left is left, 0 to 1.
    pub fn share(&self) -> f64 {
        self.left as f64 / self.allowance.burst as f64
    }
}

impl Work {
    /// What `tensors` amount to. Rows are those of the first one's first dimension.
    pub fn of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let mut work = Self::default();
        for tensor in tensors {
            if work.rows == 0 {
                work.rows = tensor.shape().dims().first().map_or(1, |rows| wide(*rows)).max(1);
            }
            work.add_tensor(tensor);
        }
        work.rows = work.rows.max(1);
        work
    }

    /// Adds the outputs of an answer.
    pub fn add_outputs(&mut self, response: &InferResponse) {
        response.outputs.iter().for_each(|output| self.add_tensor(&output.tensor));
    }

    fn add_tensor(&mut self, tensor: &Tensor) {
        self.bytes = self.bytes.saturating_add(wide(tensor.data().len()));
        self.elements = self.elements.saturating_add(wide(tensor.shape().elements().unwrap_or(usize::MAX)));
    }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

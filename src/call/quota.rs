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

/// One policy that a call was charged by, as it stood just after.
#[derive(Clone, Debug)]
pub struct Quota {
    /// The policy.
    pub allowance: Arc<Allowance>,
    /// Whose quota it is: a salted hash, the same for as long as the process lives.
    pub partition: u64,
    /// Units that are left.
    pub left: u64,
    /// Until when nothing is charged any more.
    pub full_in: Duration,
}

/// The quotas of a call. Two policies are usual; more spill to the heap.
pub type Quotas = SmallVec<[Quota; 2]>;

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

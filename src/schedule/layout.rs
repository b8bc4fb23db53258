//! How jobs of different shapes are laid together: filled up, or one behind the other.

use super::{Job, Padding, Ragged, padding::Lengths};
use crate::{error::Error, tensor::Tensors};

/// How the jobs of a model are laid together where not simply by their rows.
#[derive(Debug)]
pub enum Layout {
    /// Filled up to one shape, and cut back.
    Padded(Padding),
    /// One behind the other, and cut apart.
    Ragged(Ragged),
}

/// Inputs of several jobs, laid together.
#[derive(Debug)]
pub(super) struct Laid {
    /// As a run takes them.
    pub(super) inputs: Tensors,
    /// How many rows its outputs should have.
    pub(super) rows: usize,
    /// How long they are along each axis of the layout.
    pub(super) lengths: Lengths,
}

// === impl Layout ===

impl Layout {
    /// What is filled up, if anything is.
    pub fn padding(&self) -> Option<&Padding> {
        match self {
            Self::Padded(padding) => Some(padding),
            Self::Ragged(_) => None,
        }
    }

    /// What is laid one behind the other, if anything is.
    pub fn ragged(&self) -> Option<&Ragged> {
        match self {
            Self::Padded(_) => None,
            Self::Ragged(ragged) => Some(ragged),
        }
    }

    /// Holds a job's inputs, which have been checked against the signature, to what is taken for granted of them.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] with what was found and what was expected.
    pub(super) fn check(&self, job: &Job) -> Result<(), Error> {
        match self {
            Self::Padded(padding) => padding.check(job),
            Self::Ragged(ragged) => ragged.check(job),
        }
    }

    /// True if rows of both may lie in one batch. Symmetric, and true of a job and itself.
    pub(super) fn joins(&self, a: &Tensors, b: &Tensors) -> bool {
        match self {
            Self::Padded(padding) => padding.joins(a, b),
            Self::Ragged(ragged) => ragged.joins(a, b),
        }
    }

    /// True if a run takes other inputs than a job with these brings, even if it runs alone.
    pub(super) fn changes(&self, inputs: &Tensors) -> bool {
        match self {
            Self::Padded(padding) => padding.fills(inputs),
            Self::Ragged(_) => true,
        }
    }

    /// Lays inputs of several jobs together.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if they do not [join](Layout::joins).
    pub(super) fn lay(&self, jobs: &[&Tensors]) -> Result<Laid, Error> {
        match self {
            Self::Padded(padding) => padding.lay(jobs),
            Self::Ragged(ragged) => ragged.lay(jobs),
        }
    }

    /// The inputs of one job as a run takes them.
    ///
    /// # Errors
    ///
    /// As for several: none of inputs that were checked.
    pub fn alone(&self, inputs: Tensors) -> Result<Tensors, Error> {
        if self.changes(&inputs) { Ok(self.lay(&[&inputs])?.inputs) } else { Ok(inputs) }
    }

    /// Why `outputs` cannot be cut apart, if they cannot.
    pub(super) fn misfit(&self, laid: &Laid, outputs: &Tensors) -> Option<String> {
        match self {
            Self::Padded(padding) => padding.misfit(laid, outputs),
            Self::Ragged(ragged) => ragged.misfit(laid, outputs),
        }
    }
}

//! Rows of different lengths one behind the other, without padding: how that is done, what says where each row is, and how
//! it is undone.
//!
//! To its callers such a model has an axis of rows and one of lengths, as any other has: `[rows, length, ...]`. The model
//! itself has one axis for both, and inputs that say where rows begin or how long they are. No caller sends those: only who
//! lays a batch knows. A [`Ragged`] knows which input and which output is which. When a batch is formed is the queue's
//! business.

use super::{Job, layout::Laid, padding::Lengths};
use crate::{
    call::RaggedReport,
    error::Error,
    tensor::{DataType, Marks, Tensor, TensorSpec, Tensors, batch},
};
use smallvec::SmallVec;
use std::{ops::Range, sync::Arc};

/// How the jobs of one model are laid one behind the other.
#[derive(Clone, Debug)]
pub struct Ragged {
    /// What the axes are called along which rows lie one behind the other. Inputs of one axis have rows of one length in a
    /// job.
    pub axes: Vec<Arc<str>>,
    /// Inputs that calls bring, in their order.
    pub inputs: Vec<RaggedInput>,
    /// Inputs that a run takes, in the model's order.
    pub run: Vec<Source>,
    /// For each output, the axis along which it has an element for each of the inputs', if there is one; else it has a row
    /// for each of theirs.
    pub outputs: Vec<Option<usize>>,
    /// Most elements of a batch of several jobs, along all axes.
    pub max_elements: usize,
}

/// An input that calls bring.
#[derive(Clone, Debug)]
pub struct RaggedInput {
    /// Its name.
    pub name: Arc<str>,
    /// Which of [`Ragged::axes`] its rows lie along; `None`: it has one row for each row of the others, as in any batch.
    pub axis: Option<usize>,
}

/// Where an input of a run comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From the jobs: it is the input at this place.
    Sent(usize),
    /// It is made of the lengths.
    Made(Made),
}

/// An input that says where rows are.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its name.
    pub name: Arc<str>,
    /// Which of [`Ragged::axes`] it is about.
    pub axis: usize,
    /// What it says.
    pub what: Marks,
    /// Its type, one of [`Marks::TYPES`].
    pub dtype: DataType,
}

// === impl Ragged ===

impl Ragged {
    /// Holds a job's inputs, which have been checked against the signature, to what is taken for granted: inputs of one
    /// axis have rows of one length, and what says where they are can be written.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] with what was found and what was expected.
    pub(super) fn check(&self, job: &Job) -> Result<(), Error> {
        let mut lengths: SmallVec<[Option<(usize, usize)>; 2]> = SmallVec::from_elem(None, self.axes.len());
        for (place, (input, tensor)) in self.inputs.iter().zip(&job.inputs).enumerate() {
            let Some(axis) = input.axis else { continue };
            let length = length(tensor);
            let (first, expected) = *lengths[axis].get_or_insert((place, length));
            if length != expected {
                let of = &self.inputs[first].name;
                let text = format!("has rows of {length} elements, expected {expected} as in tensor `{of}`");
                return Err(Error::tensor(Arc::clone(&input.name), text));
            }
            let most = self.most(axis);
            if job.rows.checked_mul(length).is_none_or(|elements| elements > most) {
                let text = format!("has shape {}, expected at most {most} elements in all rows", tensor.shape());
                return Err(Error::tensor(Arc::clone(&input.name), text));
            }
        }
        Ok(())
    }

    /// The most elements along an axis that can be said where they are.
    fn most(&self, axis: usize) -> usize {
        let made = self.made().filter(|made| made.axis == axis);
        made.map(|made| Marks::most(made.dtype)).min().unwrap_or(usize::MAX)
    }

    /// True if rows of both may lie in one batch, whatever their lengths. Symmetric, and true of a job and itself.
    pub(super) fn joins(&self, a: &Tensors, b: &Tensors) -> bool {
        a.len() == b.len()
            && self.inputs.iter().zip(a.iter().zip(b)).all(|(input, (a, b))| {
                let inner = if input.axis.is_some() { 2 } else { 1 };
                a.dtype() == b.dtype()
                    && a.shape().rank() == b.shape().rank()
                    && a.shape().dims().get(inner..) == b.shape().dims().get(inner..)
            })
    }

    /// Elements along all axes together.
    pub(super) fn elements(&self, inputs: &Tensors) -> usize {
        let rows = inputs.first().map_or(0, Tensor::rows);
        self.lengths(inputs).iter().fold(0, |all, length| rows.saturating_mul(*length).saturating_add(all))
    }

    /// How long rows are along each axis.
    fn lengths(&self, inputs: &Tensors) -> Lengths {
        let mut lengths = Lengths::from_elem(0, self.axes.len());
        for (input, tensor) in self.inputs.iter().zip(inputs) {
            input.axis.iter().for_each(|axis| lengths[*axis] = length(tensor));
        }
        lengths
    }

    /// Lays inputs of several jobs one behind the other, each byte once, and makes what says where their rows are. Those of
    /// a single job are shared.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if they do not [join](Ragged::joins).
    pub(super) fn lay(&self, jobs: &[&Tensors]) -> Result<Laid, Error> {
        let job_rows: SmallVec<[(usize, Lengths); 64]> =
            jobs.iter().map(|inputs| (inputs.first().map_or(0, Tensor::rows), self.lengths(inputs))).collect();
        let together = |source: &Source| match source {
            Source::Made(made) => {
                let each = |(rows, lengths): &(usize, Lengths)| std::iter::repeat_n(lengths[made.axis], *rows);
                made.what.of(job_rows.iter().flat_map(each), made.dtype)
            }
            Source::Sent(place) => {
                let part = |inputs: &&Tensors| {
                    let tensor = inputs.get(*place)?;
                    Some(if self.inputs.get(*place)?.axis.is_some() { batch::merge(tensor) } else { tensor.clone() })
                };
                let parts = jobs.iter().map(part).collect::<Option<SmallVec<[Tensor; 64]>>>();
                let parts = parts.ok_or_else(|| Error::internal("a job without all its inputs"))?;
                match parts.as_slice() {
                    [only] => Ok(only.clone()),
                    parts => batch::gather(&parts.iter().collect::<SmallVec<[&Tensor; 64]>>()),
                }
            }
        };
        let inputs = self.run.iter().map(together).collect::<Result<_, _>>()?;
        let mut all = Lengths::from_elem(0, self.axes.len());
        for (rows, lengths) in &job_rows {
            all.iter_mut().zip(lengths).for_each(|(all, length)| *all += rows * length);
        }
        Ok(Laid { inputs, rows: job_rows.iter().map(|(rows, _)| rows).sum(), lengths: all })
    }

    /// What it is, for those who ask how the model is configured; `outputs` are the model's.
    pub fn report(&self, outputs: &[TensorSpec]) -> RaggedReport {
        let input = |axis: usize| {
            let inputs = self.inputs.iter().find(|input| input.axis == Some(axis));
            inputs.map_or_else(|| Arc::clone(&self.axes[axis]), |input| Arc::clone(&input.name))
        };
        let ragged = self.inputs.iter().filter(|input| input.axis.is_some());
        let made = self.made().map(|made| (Arc::clone(&made.name), made.what, made.dtype, input(made.axis)));
        let cut = outputs.iter().zip(&self.outputs);
        RaggedReport {
            inputs: ragged.map(|input| Arc::clone(&input.name)).collect(),
            made: made.collect(),
            outputs: cut.filter_map(|(spec, axis)| Some((Arc::clone(&spec.name), input((*axis)?)))).collect(),
        }
    }

    /// Inputs that no call sends.
    pub fn made(&self) -> impl Iterator<Item = &Made> {
        self.run.iter().filter_map(|source| match source {
            Source::Made(made) => Some(made),
            Source::Sent(_) => None,
        })
    }

    /// One job's inputs as a run takes them.
    ///
    /// # Errors
    ///
    /// As for several: none of inputs that were checked.
    pub fn alone(&self, inputs: &Tensors) -> Result<Tensors, Error> {
        Ok(self.lay(&[inputs])?.inputs)
    }

    /// Runs on one job's inputs by `run`, and finds the first output that could not be cut apart, if there is one.
    ///
    /// # Errors
    ///
    /// That of the run.
    pub fn stray(
        &self,
        inputs: &Tensors,
        run: impl FnOnce(&Tensors) -> Result<Tensors, Error>,
    ) -> Result<Option<usize>, Error> {
        let laid = self.lay(&[inputs])?;
        Ok(self.misplaced(&laid, &run(&laid.inputs)?))
    }

    /// How many elements an output of this place should have along its first axis.
    fn expected(&self, at: usize, laid: &Laid) -> usize {
        self.outputs.get(at).copied().flatten().map_or(laid.rows, |axis| laid.lengths[axis])
    }

    fn misplaced(&self, laid: &Laid, outputs: &Tensors) -> Option<usize> {
        let fits = |at: usize, output: &Tensor| output.shape().dims().first() == Some(&self.expected(at, laid));
        outputs.iter().enumerate().position(|(at, output)| !fits(at, output))
    }

    /// Why `outputs` cannot be cut apart, if they cannot.
    pub(super) fn misfit(&self, laid: &Laid, outputs: &Tensors) -> Option<String> {
        let at = self.misplaced(laid, outputs)?;
        let (found, expected) = (outputs[at].shape(), self.expected(at, laid));
        let each = match self.outputs.get(at).copied().flatten() {
            Some(axis) => format!("one for each element along `{}`", self.axes[axis]),
            None => "one for each row of the inputs".to_owned(),
        };
        Some(format!("output {at} has shape {found}, expected {expected} in its first dimension, {each}"))
    }
}

/// Cuts the outputs of a batch apart, job by job in their order.
#[derive(Debug)]
pub(super) struct Cuts<'a> {
    ragged: &'a Ragged,
    /// How long the rows of the job are.
    lengths: Lengths,
    rows: Range<usize>,
    elements: SmallVec<[Range<usize>; 2]>,
}

impl<'a> Cuts<'a> {
    pub(super) fn new(ragged: &'a Ragged) -> Self {
        let (lengths, elements) =
            (Lengths::from_elem(0, ragged.axes.len()), SmallVec::from_elem(0..0, ragged.axes.len()));
        Self { ragged, lengths, rows: 0..0, elements }
    }

    /// Goes on to the next job.
    pub(super) fn next(&mut self, inputs: &Tensors) {
        let rows = inputs.first().map_or(0, Tensor::rows);
        self.lengths = self.ragged.lengths(inputs);
        self.rows = self.rows.end..self.rows.end + rows;
        for (range, length) in self.elements.iter_mut().zip(&self.lengths) {
            *range = range.end..range.end + rows * length;
        }
    }

    /// The job's part of the output at this place, as it would be alone. `cut` takes a range of the first axis.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the output is smaller than that.
    pub(super) fn part(
        &self,
        at: usize,
        output: &Tensor,
        cut: impl FnOnce(&Tensor, Range<usize>) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        match self.ragged.outputs.get(at).copied().flatten() {
            None => cut(output, self.rows.clone()),
            Some(axis) => {
                let part = cut(output, self.elements[axis].clone())?;
                batch::split(&part, self.rows.len(), self.lengths[axis])
            }
        }
    }
}

/// The length of a tensor's rows, as its callers count it.
fn length(tensor: &Tensor) -> usize {
    tensor.shape().dims().get(1).copied().unwrap_or_default()
}

#[cfg(test)]
#[path = "ragged_tests.rs"]
mod tests;

//! Which jobs may be laid together though their shapes differ, and how that is done and undone.
//!
//! A model's free axes have names; axes of one name have one length in a call. The [`Padding`] of a model says which of them
//! are filled up to the longest of a batch, with what, and which outputs have such an axis and are cut back. It also
//! fills up rows, for models that take a fixed number of them. When a batch is formed is the queue's business.

use super::{Job, layout::Laid};
use crate::{
    error::Error,
    tensor::{Shape, Tensor, Tensors, pad},
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes that are added to a job that is filled up by itself and brings less than that; one that brings more gets as many as
/// that. So many rows of next to nothing cannot ask for gigabytes. All that callers may hold at once by default
/// (`limits.concurrency.memory`).
const ADDED: usize = 256 << 20;

/// The length of each axis that is filled up, in the order of [`Padding::axes`].
pub type Lengths = SmallVec<[usize; 2]>;

/// How the jobs of one model are laid together.
#[derive(Debug)]
pub struct Padding {
    /// Names of the axes that are filled up.
    pub axes: Vec<Arc<str>>,
    /// What is done to each input, in the signature's order.
    pub inputs: Vec<PaddedInput>,
    /// For each output, its axes that are cut back: where they are, and which of [`Padding::axes`] they are.
    pub outputs: Vec<Vec<(usize, usize)>>,
    /// How different the lengths of one batch may be.
    pub reach: Reach,
    /// The rows that every run has; `None`: as many as there are.
    pub rows: Option<usize>,
    /// Elements along the axes that may be added for two jobs to run together; see [`Padding::set_worth`].
    worth: AtomicUsize,
}

/// What is done to an input.
#[derive(Clone, Debug)]
pub struct PaddedInput {
    /// Its name.
    pub name: Arc<str>,
    /// Its axes that are filled up: where they are, and which of [`Padding::axes`] they are.
    pub axes: Vec<(usize, usize)>,
    /// The element that fills, as tensors hold it; a string without its length.
    pub element: Bytes,
}

/// How different the lengths of one batch may be (`batching.pad`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As much as costs less than the run that is saved.
    Worth,
    /// The longer at most so many hundredths of the shorter.
    Ratio(u32),
    /// All that are filled up to the same of these, ascending; each run has such a length, alone or not.
    Lengths(Vec<usize>),
}

// === impl Reach ===

/// As `batching.pad` has it.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worth => f.write_str("auto"),
            Self::Ratio(hundredths) => write!(f, "{{ ratio: {}.{:02} }}", hundredths / 100, hundredths % 100),
            Self::Lengths(lengths) => write!(f, "{{ lengths: {lengths:?} }}"),
        }
    }
}

// === impl Padding ===

impl Padding {
    /// A padding that fills up nothing yet. `reach` of [`Reach::Worth`] is nothing until it is told what that is.
    pub fn new(reach: Reach) -> Self {
        Self {
            axes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            reach,
            rows: None,
            worth: AtomicUsize::new(0),
        }
    }

    /// Says how many elements (the product of the lengths of all axes, over both jobs) may be added so that two jobs run
    /// together: about as many as cost what a run costs by itself.
    pub fn set_worth(&self, elements: usize) {
        self.worth.store(elements, Ordering::Relaxed);
    }

    /// See [`Padding::set_worth`].
    pub fn worth(&self) -> usize {
        self.worth.load(Ordering::Relaxed)
    }

    /// Holds a job's inputs, which have been checked against the signature, to what padding takes for granted: axes of
    /// one name have one length, there are no more rows than a run has, and what it is filled up with is not far more than
    /// what it brings.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTensor`] with what was found and what was expected.
    pub(super) fn check(&self, job: &Job) -> Result<(), Error> {
        let mut lengths: SmallVec<[Option<(usize, usize)>; 2]> = SmallVec::from_elem(None, self.axes.len());
        for (place, (input, tensor)) in self.inputs.iter().zip(&job.inputs).enumerate() {
            for (axis, name) in &input.axes {
                let length = tensor.shape().dims()[*axis];
                let (first, expected) = *lengths[*name].get_or_insert((place, length));
                if length != expected {
                    let (axis, of) = (&self.axes[*name], &self.inputs[first].name);
                    let text = format!("has {length} along `{axis}`, expected {expected} as in tensor `{of}`");
                    return Err(Error::tensor(Arc::clone(&input.name), text));
                }
            }
        }
        match (self.rows, self.inputs.first()) {
            (Some(rows), Some(input)) if job.rows > rows => {
                let text = format!("has {} rows, expected at most {rows}", job.rows);
                Err(Error::tensor(Arc::clone(&input.name), text))
            }
            _ if self.fills(&job.inputs) => self.check_growth(&job.inputs),
            _ => Ok(()),
        }
    }

    /// Refuses inputs that would be filled up along axes, by themselves, with far more than they are. What has none may have
    /// its rows, whatever they come to: how large a row is may be the model's own.
    fn check_growth(&self, inputs: &Tensors) -> Result<(), Error> {
        let most = inputs.iter().map(|tensor| tensor.data().len()).sum::<usize>().max(ADDED);
        let mut lengths = self.lengths(inputs);
        self.fill(&mut lengths);
        let mut added = 0_usize;
        for (input, tensor) in self.inputs.iter().zip(inputs).filter(|(input, _)| !input.axes.is_empty()) {
            let shape = Self::shape(input, tensor, self.rows.unwrap_or(tensor.rows()), &lengths);
            let sent = tensor.shape().elements().unwrap_or_default();
            let size = tensor.dtype().size().unwrap_or(4 + input.element.len());
            let more = shape.elements().and_then(|elements| elements.saturating_sub(sent).checked_mul(size));
            added = added.saturating_add(more.unwrap_or(usize::MAX));
            if added > most {
                let found = tensor.shape();
                let text = format!("has shape {found} and would be filled up to {shape}, far more than what was sent");
                return Err(Error::tensor(Arc::clone(&input.name), text));
            }
        }
        Ok(())
    }

    /// Makes lengths those of a run.
    fn fill(&self, lengths: &mut Lengths) {
        if let Reach::Lengths(steps) = &self.reach {
            lengths.iter_mut().for_each(|length| *length = step(steps, *length).unwrap_or(*length));
        }
    }

    /// The shape of an input in a run of `rows` and `lengths`, all else as in `part`.
    fn shape(input: &PaddedInput, part: &Tensor, rows: usize, lengths: &Lengths) -> Shape {
        let mut dims: SmallVec<[usize; 4]> = part.shape().dims().into();
        if let Some(first) = dims.first_mut() {
            *first = rows;
        }
        input.axes.iter().for_each(|(axis, name)| dims[*axis] = lengths[*name]);
        Shape::from(dims)
    }

    /// True if rows of both may lie in one batch. Symmetric, and true of a job and itself.
    pub(super) fn joins(&self, a: &Tensors, b: &Tensors) -> bool {
        let alike = a.len() == b.len()
            && self.inputs.iter().zip(a.iter().zip(b)).all(|(input, (a, b))| {
                let (one, other) = (a.shape().dims(), b.shape().dims());
                let is_padded = |at: usize| input.axes.iter().any(|(axis, _)| *axis == at);
                a.dtype() == b.dtype()
                    && one.len() == other.len()
                    && (1..one.len()).all(|at| one[at] == other[at] || is_padded(at))
            });
        if !alike {
            return false;
        }
        let (one, other) = (self.lengths(a), self.lengths(b));
        // What has no length has no element to be told from those that fill up.
        one == other
            || (!one.contains(&0) && !other.contains(&0) && self.reaches(&one, &other, [a, b].map(|job| job[0].rows())))
    }

    fn reaches(&self, one: &Lengths, other: &Lengths, rows: [usize; 2]) -> bool {
        let mut pairs = one.iter().zip(other);
        match &self.reach {
            Reach::Worth => {
                let volume = |lengths: &mut dyn Iterator<Item = usize>| lengths.fold(1_usize, usize::saturating_mul);
                let both = volume(&mut pairs.map(|(a, b)| *a.max(b)));
                let each = [one, other].map(|lengths| volume(&mut lengths.iter().copied()));
                // Where a run has its rows whatever comes, a row more or less costs nothing.
                let rows = if self.rows.is_some() { [1, 1] } else { rows };
                let added = [0, 1].map(|job| (both - each[job]).saturating_mul(rows[job]));
                added[0].saturating_add(added[1]) <= self.worth()
            }
            Reach::Ratio(hundredths) => pairs.all(|(a, b)| {
                let (longer, shorter) = (*a.max(b) as u128, *a.min(b) as u128);
                longer * 100 <= shorter * u128::from(*hundredths)
            }),
            Reach::Lengths(steps) => {
                pairs.all(|(a, b)| a == b || step(steps, *a).is_some_and(|to| step(steps, *b) == Some(to)))
            }
        }
    }

    /// The length of each axis in these inputs.
    fn lengths(&self, inputs: &Tensors) -> Lengths {
        let mut lengths = Lengths::from_elem(0, self.axes.len());
        for (input, tensor) in self.inputs.iter().zip(inputs) {
            input.axes.iter().for_each(|(axis, name)| lengths[*name] = tensor.shape().dims()[*axis]);
        }
        lengths
    }

    /// True if a job with these inputs is filled up even when it runs alone.
    pub(super) fn fills(&self, inputs: &Tensors) -> bool {
        let rows = inputs.first().map_or(0, Tensor::rows);
        if self.rows.is_some_and(|all| all != rows) {
            return true;
        }
        let Reach::Lengths(steps) = &self.reach else { return false };
        self.lengths(inputs).iter().any(|length| step(steps, *length).is_some_and(|to| to != *length))
    }

    /// Lays inputs of several jobs together.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if they do not [join](Padding::joins).
    pub(super) fn lay(&self, jobs: &[&Tensors]) -> Result<Laid, Error> {
        let mut lengths = Lengths::from_elem(0, self.axes.len());
        let mut rows = 0;
        for inputs in jobs {
            rows += inputs.first().map_or(0, Tensor::rows);
            for (longest, length) in lengths.iter_mut().zip(self.lengths(inputs)) {
                *longest = length.max(*longest);
            }
        }
        self.fill(&mut lengths);
        let rows = self.rows.unwrap_or(rows);
        let together = |(at, input): (usize, &PaddedInput)| {
            let parts = jobs.iter().map(|inputs| inputs.get(at)).collect::<Option<SmallVec<[&Tensor; 64]>>>();
            let parts = parts.ok_or_else(|| Error::internal("a job without all its inputs"))?;
            let first = parts.first().ok_or_else(|| Error::internal("a batch without jobs"))?;
            pad::lay(&parts, &Self::shape(input, first, rows, &lengths), &input.element)
        };
        let inputs = self.inputs.iter().enumerate().map(together).collect::<Result<_, _>>()?;
        Ok(Laid { inputs, rows, lengths })
    }

    /// Elements of the inputs that are filled up.
    pub(super) fn elements(&self, inputs: &Tensors) -> usize {
        let padded = self.inputs.iter().zip(inputs).filter(|(input, _)| self.rows.is_some() || !input.axes.is_empty());
        padded.map(|(_, tensor)| tensor.shape().elements().unwrap_or_default()).sum()
    }

    /// Why `outputs` cannot be cut back, if they cannot: their rows and axes are not those of the inputs.
    pub(super) fn misfit(&self, laid: &Laid, outputs: &Tensors) -> Option<String> {
        self.outputs.iter().zip(outputs).enumerate().find_map(|(at, (axes, output))| {
            let dims = output.shape().dims();
            let follows = dims.first() == Some(&laid.rows)
                && axes.iter().all(|(axis, name)| dims.get(*axis) == Some(&laid.lengths[*name]));
            (!follows).then(|| format!("output {at} has shape {}, which is not that of the inputs", output.shape()))
        })
    }

    /// The rows `range` of the output `at`, cut back to what a job of these inputs would have had alone; `None` if nothing
    /// but its rows is to be cut.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the output is smaller than that.
    pub(super) fn cut_back(
        &self,
        at: usize,
        output: &Tensor,
        range: Range<usize>,
        inputs: &Tensors,
    ) -> Result<Option<Tensor>, Error> {
        let axes = self.outputs.get(at).map_or(&[][..], Vec::as_slice);
        if axes.is_empty() {
            return Ok(None);
        }
        let lengths = self.lengths(inputs);
        let mut inner: SmallVec<[usize; 4]> = output.shape().dims().iter().skip(1).copied().collect();
        let mut cut = false;
        for (axis, name) in axes {
            let dim = inner.get_mut(*axis - 1).ok_or_else(|| Error::internal("an output of another rank"))?;
            cut |= *dim != lengths[*name];
            *dim = lengths[*name];
        }
        if cut { pad::corner(output, range, &inner).map(Some) } else { Ok(None) }
    }
}

/// The first of `steps` that a length fits into; none for what has no length, which stays so.
fn step(steps: &[usize], length: usize) -> Option<usize> {
    let step = steps.get(steps.partition_point(|step| *step < length)).copied();
    step.filter(|_| length > 0)
}

#[cfg(test)]
#[path = "padding_tests.rs"]
mod tests;

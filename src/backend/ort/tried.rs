//! Instances of models that are tried in a process of their own: one that is there, and one that is here and has run there
//! first whatever it runs before it is ready.

use super::{
    probe::{Candidate, is_exhausted},
    sums::Digest,
    trial::Trial,
};
use crate::{
    backend::{Backend, OpenError},
    error::Error,
    tensor::{AxisNames, Signature, Tensor, Tensors},
};
use std::{
    fmt,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

/// A process that tries a file, or what it died of.
enum Process {
    /// There is none just now.
    None,
    Running(Trial),
    Dead(String),
}

/// An instance in a process of its own.
pub(super) struct Rehearsal {
    candidate: Candidate,
    process: Process,
    signature: Arc<Signature>,
    names: AxisNames,
}

/// An instance here, of a file that was tried.
pub(super) struct Tried {
    inner: Box<dyn Backend>,
    /// `None`: it is ready.
    guard: Option<Guard>,
}

/// Lets nothing be run here that was not run in a process of its own.
struct Guard {
    /// What is tried, for all instances that share what was opened.
    shared: Arc<Mutex<(Candidate, Process)>>,
    /// What was let through last. It is held, so that it is known again by where it lies.
    last: Option<Tensors>,
}

// === impl Process ===

impl Process {
    /// Runs it there on `inputs`.
    fn run(&mut self, candidate: &Candidate, inputs: &[Tensor], digest: Digest) -> Result<Tensors, Error> {
        let ran = match self {
            Self::Running(trial) => trial.run(inputs),
            Self::Dead(reason) => Err(reason.clone()),
            Self::None => Err("it was not tried".to_owned()),
        };
        match ran {
            Ok(Ok(outputs)) => {
                candidate.ran(digest);
                Ok(outputs)
            }
            Ok(Err(reason)) => {
                // An error there is one here, unless it is for the limit of memory, which is not ours.
                if !is_exhausted(&reason) {
                    candidate.ran(digest);
                }
                Err(Error::backend(reason))
            }
            Err(reason) => {
                *self = Self::Dead(reason.clone());
                Err(Error::backend(reason))
            }
        }
    }

    /// Ends it.
    fn end(&mut self, candidate: &Candidate) -> Result<(), OpenError> {
        let ended = match std::mem::replace(self, Self::None) {
            Self::None => return Ok(()),
            Self::Running(trial) => trial.end(),
            Self::Dead(reason) => Err(reason),
        };
        ended.map_err(|reason| candidate.refuse(&reason))
    }
}

// === impl Rehearsal ===

impl Rehearsal {
    pub(super) fn new(candidate: Candidate, trial: Trial, signature: Arc<Signature>, names: AxisNames) -> Self {
        Self { candidate, process: Process::Running(trial), signature, names }
    }
}

impl Backend for Rehearsal {
    fn signature(&self) -> &Arc<Signature> {
        &self.signature
    }

    fn axis_names(&self) -> AxisNames {
        self.names.clone()
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        self.process.run(&self.candidate, inputs, digest(inputs))
    }

    fn ready(&mut self) -> Result<(), OpenError> {
        self.process.end(&self.candidate)?;
        self.candidate.passes();
        tracing::debug!(model = %self.candidate.path.display(), "tried in a process of its own");
        Ok(())
    }
}

// === impl Tried ===

impl Tried {
    pub(super) fn new(inner: Box<dyn Backend>, candidate: Candidate) -> Self {
        let shared = Arc::new(Mutex::new((candidate, Process::None)));
        Self { inner, guard: Some(Guard { shared, last: None }) }
    }
}

// === impl Guard ===

impl Guard {
    /// Has `inputs` run in a process of its own, if they were not before.
    fn pass(&mut self, inputs: &[Tensor]) -> Result<(), Error> {
        if self.last.as_ref().is_some_and(|last| is_same(last, inputs)) {
            return Ok(());
        }
        let digest = digest(inputs);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (candidate, process) = &mut *shared;
        if !candidate.has_run(&digest) {
            if matches!(process, Process::None) {
                *process = candidate.start().map_or_else(Process::Dead, |(trial, ..)| Process::Running(trial));
            }
            process.run(candidate, inputs, digest)?;
        }
        self.last = Some(inputs.iter().cloned().collect());
        Ok(())
    }
}

impl Backend for Tried {
    fn signature(&self) -> &Arc<Signature> {
        self.inner.signature()
    }

    fn axis_names(&self) -> AxisNames {
        self.inner.axis_names()
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        if let Some(guard) = &mut self.guard {
            guard.pass(inputs)?;
        }
        self.inner.run(inputs)
    }

    fn interruptible(&mut self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        self.inner.interruptible()
    }

    fn is_decoupled(&self) -> bool {
        self.inner.is_decoupled()
    }

    fn stream(&mut self, inputs: &[Tensor], emit: &mut dyn FnMut(Tensors) -> ControlFlow<()>) -> Result<(), Error> {
        if let Some(guard) = &mut self.guard {
            guard.pass(inputs)?;
        }
        self.inner.stream(inputs, emit)
    }

    fn weight_bytes(&self) -> u64 {
        self.inner.weight_bytes()
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.inner.memory_bytes()
    }

    fn grows_with_values(&self) -> bool {
        self.inner.grows_with_values()
    }

    fn another(&self) -> Option<Result<Box<dyn Backend>, OpenError>> {
        let another = self.inner.another()?;
        let guard = self.guard.as_ref().map(|guard| Guard { shared: Arc::clone(&guard.shared), last: None });
        Some(another.map(|inner| Box::new(Self { inner, guard }) as Box<dyn Backend>))
    }

    fn ready(&mut self) -> Result<(), OpenError> {
        self.inner.ready()?;
        let Some(guard) = self.guard.take() else { return Ok(()) };
        let mut shared = guard.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (candidate, process) = &mut *shared;
        process.end(candidate)?;
        candidate.keep();
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}

/// Whether these are the very same tensors: of one type and shape, over the same bytes.
fn is_same(last: &[Tensor], inputs: &[Tensor]) -> bool {
    let is_same = |(one, other): (&Tensor, &Tensor)| {
        let lies = |tensor: &Tensor| (tensor.data().as_ptr(), tensor.data().len());
        one.dtype() == other.dtype() && one.shape() == other.shape() && lies(one) == lies(other)
    };
    last.len() == inputs.len() && last.iter().zip(inputs).all(is_same)
}

/// Of all that a run sees of its inputs.
fn digest(inputs: &[Tensor]) -> Digest {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for tensor in inputs {
        let dims = tensor.shape().dims();
        context.update(tensor.dtype().name().as_bytes());
        context.update(&(dims.len() as u64).to_le_bytes());
        dims.iter().for_each(|dim| context.update(&(*dim as u64).to_le_bytes()));
        context.update(&(tensor.data().len() as u64).to_le_bytes());
        context.update(tensor.data());
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

//! Instances of models that are tried in a process of their own: one that is there, and one that is here and has run there
//! first whatever it runs before it is ready.

use super::{
    probe::{Candidate, REMEMBERED, is_exhausted},
    sums::Digest,
    trial::Trial,
};
use crate::{
    backend::{Backend, OpenError},
    error::Error,
    tensor::{AxisNames, Signature, Tensor, Tensors},
};
use std::{
    collections::HashSet,
    fmt,
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

/// A process that tries a file, or what it died of.
enum Process {
    /// There is none just now.
    None,
    /// What it was run on is worth something once it has ended well: it may die later of what a run before did.
    Running(Trial, HashSet<Digest>),
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
        let (trial, runs) = match self {
            Self::Running(trial, runs) => (trial, runs),
            Self::Dead(reason) => return Err(Error::backend(reason.clone())),
            Self::None => return Err(Error::backend("it was not tried".to_owned())),
        };
        match trial.run(inputs) {
            Ok(ran) => {
                // An error there is one here, unless it is for the limit of memory, which is not ours.
                if ran.as_ref().err().is_none_or(|reason| !is_exhausted(reason)) && runs.len() < REMEMBERED {
                    runs.insert(digest);
                }
                ran.map_err(Error::backend)
            }
            Err(reason) => {
                candidate.fails();
                *self = Self::Dead(reason.clone());
                Err(Error::backend(reason))
            }
        }
    }

    /// Whether this one was run on it.
    fn has_run(&self, inputs: &Digest) -> bool {
        matches!(self, Self::Running(_, runs) if runs.contains(inputs))
    }

    /// Ends it.
    fn end(&mut self, candidate: &Candidate) -> Result<(), OpenError> {
        let ended = match std::mem::replace(self, Self::None) {
            Self::None => return Ok(()),
            Self::Running(trial, runs) => trial.end().map(|()| candidate.ran(runs)),
            Self::Dead(reason) => Err(reason),
        };
        ended.map_err(|reason| candidate.failed(&reason))
    }
}

// === impl Rehearsal ===

impl Rehearsal {
    pub(super) fn new(candidate: Candidate, trial: Trial, signature: Arc<Signature>, names: AxisNames) -> Self {
        Self { candidate, process: Process::Running(trial, HashSet::new()), signature, names }
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
        if !candidate.has_run(&digest) && !process.has_run(&digest) {
            if matches!(process, Process::None) {
                *process = match candidate.start() {
                    Ok((trial, ..)) => Process::Running(trial, HashSet::new()),
                    Err(reason) => Process::Dead(reason),
                };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{
            Open, SessionSettings,
            fake::Fake,
            ort::{
                Runtime,
                probe::{Probed, Settings, When},
                trial::{encode, serve},
            },
        },
        tensor::DataType,
    };
    use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

    /// A program that says what a process says that opens a file and runs it on this many rows, and then dies.
    fn program(folder: &Path, runs: &[Tensor]) -> std::path::PathBuf {
        let requests: Vec<u8> = runs.iter().flat_map(|run| encode(std::slice::from_ref(run))).collect();
        let mut replies = Vec::new();
        serve(&mut Fake::new(), &*requests, &mut replies).unwrap();
        fs::write(folder.join("replies"), replies).unwrap();
        let program = folder.join("program");
        let script =
            format!("#!/bin/sh\ncat {}\nhead -c 1 > /dev/null\nkill -11 $$\n", folder.join("replies").display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        program
    }

    #[test]
    fn what_went_well_before_a_process_died_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let input = Tensor::of(DataType::Fp32, [1, 4].into(), vec![1_f32; 4]).unwrap();
        let program = program(folder.path(), std::slice::from_ref(&input));
        let settings = Settings { when: When::Auto, timeout: Duration::from_secs(60), memory: None, program };
        let probed = Probed::new(Runtime::load(None).unwrap(), settings);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/good/echo_fp32/1/model.onnx");
        for time in ["first", "second"] {
            // Another test that starts a program just now has the script open for writing until that program runs.
            let mut rehearsal = loop {
                match probed.rehearse(&path, &SessionSettings::default()) {
                    Err(error) if error.0.contains("Text file busy") => {}
                    rehearsal => {
                        break rehearsal.unwrap().unwrap_or_else(|| panic!("it was not tried the {time} time"));
                    }
                }
            };
            let inputs = std::slice::from_ref(&input);
            rehearsal.run(inputs).unwrap();
            assert!(rehearsal.run(inputs).is_err());
            let refused = rehearsal.ready().unwrap_err().0;
            assert!(refused.contains("was ended by signal 11"), "{refused}");
        }
    }
}

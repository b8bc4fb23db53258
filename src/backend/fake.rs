//! A deterministic back end for tests and benches: slow, failing, panicking or streaming on demand.
//!
//! Doubles numbers of type FP32 and echoes everything else. Nothing in the inputs changes what it does; tests change
//! it through a [`FakeControl`], which all instances of one fake share. It never touches a file.

#[cfg(test)]
mod tests;

use super::{Backend, Open, OpenError, SessionSettings};
use crate::{
    error::Error,
    tensor::{DataType, Signature, Tensor, TensorSpec, Tensors},
};
use std::{
    collections::HashMap,
    fmt,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Batches whose rows are remembered; later ones are only counted.
const REMEMBERED: usize = 4096;

/// What a run of a fake does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers at once.
    #[default]
    Answer,
    /// Answers after this time.
    Slow(Duration),
    /// Fails with [`Error::Backend`].
    Fail,
    /// Panics.
    Panic,
    /// Waits until [`FakeControl::release`], then answers.
    Block,
    /// The same, and does not end when it is told to.
    Defy,
}

/// A deterministic back end. A clone is another instance under the same control.
#[derive(Clone, Debug)]
pub struct Fake {
    signature: Arc<Signature>,
    control: FakeControl,
    stream: Option<(usize, Duration)>,
    stop: Ender,
}

/// Ends runs; made once, so that a run allocates nothing for it.
#[derive(Clone)]
struct Ender(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Ender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ender")
    }
}

/// Changes what a fake does while it is in use, and tells what it did. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct FakeControl(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    behaviour: Behaviour,
    started: u64,
    finished: u64,
    emitted: u64,
    batches: Vec<usize>,
    interrupted: u64,
}

/// Opens fakes for any path, by the model's name in it: `NAME/VERSION/model.onnx`.
#[derive(Debug, Default)]
pub struct FakeOpen {
    models: HashMap<String, Result<Fake, OpenError>>,
    opened: Mutex<Vec<String>>,
}

// === impl Fake ===

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// `x`, FP32 [-1, 4], to `y`, FP32 [-1, 4]: twice the numbers that go in.
    pub fn new() -> Self {
        let dims = [None, Some(4)];
        Self::of(vec![spec("x", DataType::Fp32, dims)], vec![spec("y", DataType::Fp32, dims)])
    }

    /// `x`, BYTES [-1], to `y`, BYTES [-1]: the strings that go in.
    pub fn echo_bytes() -> Self {
        Self::of(vec![spec("x", DataType::Bytes, [None])], vec![spec("y", DataType::Bytes, [None])])
    }

    /// Any signature. Each output is the input at its place (the last one, if there are more outputs than inputs),
    /// doubled if it is FP32, and must be declared with that input's type.
    pub fn with_signature(signature: Signature) -> Self {
        let control = FakeControl::default();
        let ended = control.clone();
        let stop = Ender(Arc::new(move || ended.interrupt()));
        Self { signature: Arc::new(signature), control, stream: None, stop }
    }

    /// Answers after `delay`.
    #[must_use]
    pub fn slow(self, delay: Duration) -> Self {
        self.behaving(Behaviour::Slow(delay))
    }

    /// Fails every run.
    #[must_use]
    pub fn failing(self) -> Self {
        self.behaving(Behaviour::Fail)
    }

    /// Panics in every run.
    #[must_use]
    pub fn panicking(self) -> Self {
        self.behaving(Behaviour::Panic)
    }

    /// Waits in every run until it is released.
    #[must_use]
    pub fn blocking(self) -> Self {
        self.behaving(Behaviour::Block)
    }

    /// Answers `n` times per run, with `every` between two answers: a decoupled model.
    #[must_use]
    pub fn streaming(mut self, n: usize, every: Duration) -> Self {
        self.stream = Some((n, every));
        self
    }

    /// The handle by which tests steer and watch this fake and its clones.
    pub fn control(&self) -> FakeControl {
        self.control.clone()
    }

    fn of(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Self {
        Self::with_signature(Signature { inputs, outputs })
    }

    fn behaving(self, behaviour: Behaviour) -> Self {
        self.control.set(behaviour);
        self
    }

    fn outputs(&self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let output = |(index, spec): (usize, &TensorSpec)| {
            let input = inputs.get(index).or(inputs.last()).ok_or_else(|| Error::backend("a fake without inputs"))?;
            if spec.dtype != Some(input.dtype()) {
                return Err(Error::backend(format!("output `{}` differs in type from its input", spec.name)));
            }
            if input.dtype() == DataType::Fp32 { doubled(input) } else { Ok(input.clone()) }
        };
        self.signature.outputs.iter().enumerate().map(output).collect()
    }
}

impl Backend for Fake {
    fn signature(&self) -> &Arc<Signature> {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        self.control.start(inputs.first().map_or(0, Tensor::rows))?;
        let outputs = self.outputs(inputs);
        self.control.finish();
        outputs
    }

    fn interruptible(&mut self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        Some(Arc::clone(&self.stop.0))
    }

    fn is_decoupled(&self) -> bool {
        self.stream.is_some()
    }

    fn stream(&mut self, inputs: &[Tensor], emit: &mut dyn FnMut(Tensors) -> ControlFlow<()>) -> Result<(), Error> {
        let (n, every) = self.stream.unwrap_or((1, Duration::ZERO));
        self.control.start(inputs.first().map_or(0, Tensor::rows))?;
        for index in 0..n {
            if index > 0 {
                self.control.pause(every)?;
            }
            if emit(self.outputs(inputs)?).is_break() {
                break;
            }
            self.control.lock().emitted += 1;
        }
        self.control.finish();
        Ok(())
    }
}

// === impl FakeControl ===

impl FakeControl {
    /// What runs do from now on. Runs that wait already stop waiting if this is no waiting behaviour.
    pub fn set(&self, behaviour: Behaviour) {
        self.lock().behaviour = behaviour;
        self.0.changed.notify_all();
    }

    /// Every run waits until [`release`](Self::release).
    pub fn block(&self) {
        self.set(Behaviour::Block);
    }

    /// Every run waits until [`release`](Self::release), whoever tells it to end.
    pub fn defy(&self) {
        self.set(Behaviour::Defy);
    }

    /// Lets waiting runs answer, and later ones answer at once.
    pub fn release(&self) {
        self.set(Behaviour::Answer);
    }

    /// Runs that have begun.
    pub fn started(&self) -> u64 {
        self.lock().started
    }

    /// Runs that have come to an answer; those that failed or panicked do not count.
    pub fn finished(&self) -> u64 {
        self.lock().finished
    }

    /// Runs that were ended before they came to an answer.
    pub fn interrupted(&self) -> u64 {
        self.lock().interrupted
    }

    /// Answers of streaming runs that were taken.
    pub fn emitted(&self) -> u64 {
        self.lock().emitted
    }

    /// Rows of each run's first input, in order; of the first 4,096 runs.
    pub fn batches(&self) -> Vec<usize> {
        self.lock().batches.clone()
    }

    /// Waits until `n` runs have begun; false if that takes longer than `patience`. Blocks the thread.
    pub fn wait_started(&self, n: u64, patience: Duration) -> bool {
        let wait = self.0.changed.wait_timeout_while(self.lock(), patience, |state| state.started < n);
        wait.unwrap_or_else(PoisonError::into_inner).0.started >= n
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock holds plain counters: nothing in them can be half done.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a run in, and does what it is to do before it answers.
    fn start(&self, rows: usize) -> Result<(), Error> {
        let mut state = self.lock();
        state.started += 1;
        if state.batches.len() < REMEMBERED {
            if state.batches.capacity() == 0 {
                // At once, so that benches do not measure it growing.
                state.batches.reserve_exact(REMEMBERED);
            }
            state.batches.push(rows);
        }
        let behaviour = state.behaviour;
        match behaviour {
            Behaviour::Answer => {}
            Behaviour::Fail => return Err(Error::backend("the fake fails, as told")),
            Behaviour::Panic => {
                drop(state);
                self.0.changed.notify_all();
                panic!("the fake panics, as told");
            }
            Behaviour::Slow(delay) => {
                self.0.changed.notify_all();
                return self.wait(state, delay, |state| state.behaviour == behaviour);
            }
            Behaviour::Defy => {
                self.0.changed.notify_all();
                let waiting = |state: &mut State| state.behaviour == Behaviour::Defy;
                drop(self.0.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner));
            }
            Behaviour::Block => {
                self.0.changed.notify_all();
                return self.wait(state, Duration::from_secs(86_400), |state| state.behaviour == Behaviour::Block);
            }
        }
        Ok(())
    }

    /// Waits for `time` while `still`; an error if the run is ended meanwhile.
    fn wait(
        &self,
        state: MutexGuard<'_, State>,
        time: Duration,
        mut still: impl FnMut(&State) -> bool,
    ) -> Result<(), Error> {
        let before = state.interrupted;
        let waiting = |state: &mut State| state.interrupted == before && still(state);
        let waited = self.0.changed.wait_timeout_while(state, time, waiting).unwrap_or_else(PoisonError::into_inner);
        if waited.0.interrupted == before { Ok(()) } else { Err(Error::backend("the fake was interrupted")) }
    }

    fn interrupt(&self) {
        self.lock().interrupted += 1;
        self.0.changed.notify_all();
    }

    fn finish(&self) {
        self.lock().finished += 1;
        self.0.changed.notify_all();
    }

    /// Waits for `time` without the CPU; a change of behaviour does not cut it short.
    fn pause(&self, time: Duration) -> Result<(), Error> {
        self.wait(self.lock(), time, |_| true)
    }
}

// === impl FakeOpen ===

impl FakeOpen {
    /// Opens [`Fake::new`] for every name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a clone of `fake` for this name.
    #[must_use]
    pub fn with(mut self, name: &str, fake: Fake) -> Self {
        self.models.insert(name.to_owned(), Ok(fake));
        self
    }

    /// Refuses this name for this reason.
    #[must_use]
    pub fn refusing(mut self, name: &str, reason: &str) -> Self {
        self.models.insert(name.to_owned(), Err(OpenError(reason.to_owned())));
        self
    }

    /// The names that were opened, one for each instance, in order.
    pub fn opened(&self) -> Vec<String> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Open for FakeOpen {
    fn open(&self, path: &Path, _settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let name = path.ancestors().nth(2).and_then(Path::file_name);
        let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let fake = self.models.get(&name).cloned().unwrap_or_else(|| Ok(Fake::new()))?;
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        Ok(Box::new(fake))
    }
}

fn spec<const N: usize>(name: &str, dtype: DataType, dims: [Option<usize>; N]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Some(dtype), dims: dims.to_vec() }
}

fn doubled(input: &Tensor) -> Result<Tensor, Error> {
    let mut doubled = Vec::with_capacity(input.data().len());
    for bytes in input.data().chunks_exact(4) {
        let value = 2.0 * bytemuck::pod_read_unaligned::<f32>(bytes);
        doubled.extend_from_slice(&value.to_le_bytes());
    }
    Tensor::new(DataType::Fp32, input.shape().clone(), doubled.into()).map_err(|error| Error::Internal(Arc::new(error)))
}

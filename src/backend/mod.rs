//! What runs a model: blocking, exclusive, one thread at a time.
//!
//! A back end knows tensors and nothing of calls, queues or names on the wire.

pub mod fake;
pub mod ort;
mod settings;

pub use settings::{Arena, Optimization, Provider, ProviderKind, SessionOptions, SessionSettings};

use crate::{
    error::Error,
    tensor::{AxisNames, Signature, Tensor, Tensors},
};
use std::{fmt, ops::ControlFlow, path::Path, sync::Arc};

/// A model instance. Blocking and exclusive by design: it is one thread's at a time, whatever it shares with
/// others, and a long run has no place on a lane.
pub trait Backend: Send + 'static {
    /// Inputs and outputs of the model.
    fn signature(&self) -> &Arc<Signature>;

    /// What the axes of inputs and outputs are called, as far as that is known.
    fn axis_names(&self) -> AxisNames {
        AxisNames::default()
    }

    /// Runs the model once. `inputs` are in the signature's order, checked against it; the result
    /// is in the order of the signature's outputs.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] if the run failed; what the inputs caused may be [`Error::InvalidRequest`].
    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error>;

    /// Makes ready for one run that can be ended early, from another thread, by calling what is returned; the run then fails.
    /// `None` where runs cannot be ended. What is returned must not be called once that run is over.
    fn interruptible(&mut self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        None
    }

    /// True if one run yields any number of answers: [`Backend::stream`] is called instead of
    /// [`Backend::run`], one job at a time, never batched.
    fn is_decoupled(&self) -> bool {
        false
    }

    /// Runs the model once and hands each answer to `emit`, until done or told to stop.
    ///
    /// # Errors
    ///
    /// As [`Backend::run`].
    fn stream(&mut self, inputs: &[Tensor], emit: &mut dyn FnMut(Tensors) -> ControlFlow<()>) -> Result<(), Error> {
        let outputs = self.run(inputs)?;
        let _ = emit(outputs);
        Ok(())
    }

    /// Bytes of weights, as far as known: the size of the model's files. 0 if unknown.
    fn weight_bytes(&self) -> u64 {
        0
    }

    /// Bytes of memory that it holds now, with what it shares; `None` if it cannot tell.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Another instance that shares this one's weights, as [`SessionSettings::sharers`] has announced; `None` where instances
    /// share nothing and each has to be opened.
    fn another(&self) -> Option<Result<Box<dyn Backend>, OpenError>> {
        None
    }

    /// True if its work may grow with the values of inputs and not only with how many there are: one run says nothing of the
    /// next then.
    fn grows_with_values(&self) -> bool {
        false
    }

    /// Told once, when all is run that is run before the model is ready: what comes from now on are calls.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: what the model did to the process that it was tried in, for which it must not be served.
    fn ready(&mut self) -> Result<(), OpenError> {
        Ok(())
    }

    /// What the runtime made of the settings, a sentence each, for operators.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

impl fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("signature", self.signature()).finish_non_exhaustive()
    }
}

/// Makes instances of models out of their files.
pub trait Open: Send + Sync + fmt::Debug {
    /// Opens one instance of the model file at `path`.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says in plain words, for operators, what is wrong with the file.
    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError>;

    /// An instance in a process of its own, on which all that is going to be run before the model is ready is to be run first,
    /// and which is told when that is over ([`Backend::ready`]); `None` where that is not wanted, or was done before.
    ///
    /// # Errors
    ///
    /// As [`Open::open`].
    fn rehearse(&self, path: &Path, settings: &SessionSettings) -> Result<Option<Box<dyn Backend>>, OpenError> {
        let _ = (path, settings);
        Ok(None)
    }

    /// Bytes of weights that an instance of the model file at `path` will hold, without opening it; `None` if it is not known.
    fn weight_bytes(&self, path: &Path) -> Option<u64> {
        let _ = path;
        None
    }
}

/// Why a model cannot be opened. For logs, `check` and readiness; clients never read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError(pub String);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OpenError {}

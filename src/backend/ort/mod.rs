//! ONNX Runtime: the library, its environment, and how sessions are made.
//!
//! The only module that names the `ort` crate. It knows files and tensors, and nothing of model names, versions or
//! queues.

mod files;
mod library;
pub mod probe;
mod protobuf;
mod session;
#[cfg(test)]
mod tests;
mod values;

pub use library::LoadError;
pub use values::disable_telemetry;

use super::{Backend, Open, OpenError, SessionSettings};
use ort::{
    environment::Environment,
    logging::LogLevel,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::GraphOptimizationLevel},
};
use session::OrtBackend;
use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// ONNX Runtime's own switch for its telemetry; read when its environment is made.
const TELEMETRY_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// The library and its environment are one per process, whoever asks for them; neither is ever given up.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// A loaded ONNX Runtime, which opens models. Cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    environment: Environment,
    library: library::Library,
    /// The CPU's memory, where all inputs lie.
    memory: MemoryInfo<'static>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("library", &self.0.library).finish_non_exhaustive()
    }
}

// === impl Runtime ===

impl Runtime {
    /// Loads ONNX Runtime: from `explicit` (`--onnxruntime`), else from where architecture decision 6 says.
    ///
    /// There is one in a process: a second call returns the first one's.
    ///
    /// # Errors
    ///
    /// [`LoadError`] if there is none, it is too old, or another one than `explicit` is loaded already.
    pub fn load(explicit: Option<&Path>) -> Result<Self, LoadError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(runtime), None) = (&*loaded, explicit) {
            return Ok(runtime.clone());
        }
        let library = library::find(explicit)?;
        if let Some(runtime) = &*loaded {
            if runtime.0.library.path == library.path {
                return Ok(runtime.clone());
            }
            let in_use = runtime.0.library.path.display();
            return Err(LoadError(vec![format!("`{}`, but `{in_use}` is in use already", library.path.display())]));
        }
        let path = library.path.display().to_string();
        let runtime =
            Self::start(library).map_err(|reason| LoadError(vec![format!("`{path}` does not start: {reason}")]))?;
        Ok(loaded.insert(runtime).clone())
    }

    /// The version of the library: `1.32.0`.
    pub fn version(&self) -> &str {
        &self.0.library.version
    }

    /// The library that was loaded; a bare name if the system found it.
    pub fn library(&self) -> &Path {
        &self.0.library.path
    }

    fn start(library: library::Library) -> Result<Self, String> {
        // Telemetry off (decision 7): the variable keeps its client from being made at all, the flag is the second
        // switch, for libraries that do not know it. The flag alone leaves a thread of that client running.
        if std::env::var_os(TELEMETRY_VARIABLE).is_none_or(|value| value != "1") {
            tracing::warn!(
                variable = TELEMETRY_VARIABLE,
                "onnx runtime starts without the variable that disables telemetry"
            );
        }
        let environment = ort::init_from(&library.path)
            .map_err(|error| error.to_string())?
            .with_name("sluicegate")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|error| error.to_string())?;
        // Making it with a logger of ours sets the most talkative level, each message of which costs a call.
        environment.set_log_level(LogLevel::Warning);
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(Inner { environment, library, memory })))
    }

    fn memory(&self) -> &MemoryInfo<'static> {
        &self.0.memory
    }

    fn session(&self, path: &Path, settings: &SessionSettings) -> Result<Session, String> {
        let mut builder = Session::builder(&self.0.environment)
            .map_err(|error| error.to_string())?
            .with_intra_threads(settings.threads.max(1))
            .map_err(|error| error.to_string())?
            .with_inter_threads(1)
            .map_err(|error| error.to_string())?
            // Spinning threads take the cores that sockets need (architecture section 10).
            .with_intra_op_spinning(false)
            .map_err(|error| error.to_string())?
            // A plan of memory is kept for every shape that ever came in: clients choose shapes, so it would grow without
            // bound. It gains nothing either: looking it up costs a small model 5 % of its run.
            .with_memory_pattern(false)
            .map_err(|error| error.to_string())?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|error| error.to_string())?;
        builder.commit_from_file(path).map_err(|error| error.to_string())
    }
}

impl Open for Runtime {
    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        // Before ONNX Runtime opens anything. A file that is swapped between this and the next line is in the hands of
        // someone who may write the models.
        let weight_bytes = files::check(path)?;
        let session = self
            .session(path, settings)
            .map_err(|reason| OpenError(format!("`{}` cannot be loaded: {reason}", path.display())))?;
        Ok(Box::new(OrtBackend::new(session, self.clone(), weight_bytes)?))
    }
}

/// ONNX Runtime's messages, into our log.
fn log(level: LogLevel, _category: &str, session: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose => tracing::trace!(session, location, message, "onnx runtime says"),
        LogLevel::Info => tracing::debug!(session, location, message, "onnx runtime says"),
        LogLevel::Warning => tracing::warn!(session, location, message, "onnx runtime says"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(session, location, message, "onnx runtime says"),
    }
}

//! ONNX Runtime: the library, its environment, and how sessions are made.
//!
//! The only module that names the `ort` crate. It knows files and tensors, and nothing of model names, versions or
//! queues.

mod builder;
mod files;
mod growth;
mod library;
pub mod optimized;
mod pages;
pub mod probe;
mod protobuf;
mod session;
mod sums;
#[cfg(test)]
mod tests;
mod trial;
mod tried;
mod values;
mod words;

pub use library::LoadError;
pub use trial::serve;
pub use values::disable_telemetry;
pub use words::settings as settings_of_words;

use super::{Backend, Open, OpenError, ProviderKind, SessionSettings};
use builder::Built;
use files::Files;
use optimized::{Entry, Graph};
use ort::{
    environment::Environment,
    logging::LogLevel,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{Session, builder::SessionBuilder},
};
use pages::Pages;
use session::{Opened, OrtBackend};
use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use sums::Digests;

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
    /// The CPU's arena, of which each session has its own.
    arena: MemoryInfo<'static>,
    /// By ONNX Runtime's names.
    providers: Vec<String>,
    /// Of files that were read to know them.
    digests: Arc<Digests>,
    pages: Pages,
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

    /// From now on has the system lay models that are opened in huge pages, where it has them: shortly afterwards, and at hardly any cost of
    /// memory. Elsewhere than on Linux nothing happens.
    pub fn use_huge_pages(&self) {
        self.0.pages.want();
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
        values::return_large_blocks();
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
        let arena = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)
            .map_err(|error| error.to_string())?;
        let providers = values::available_providers().map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(Inner {
            environment,
            library,
            memory,
            arena,
            providers,
            digests: Arc::default(),
            pages: Pages::default(),
        })))
    }

    fn memory(&self) -> &MemoryInfo<'static> {
        &self.0.memory
    }

    fn builder(&self) -> Result<SessionBuilder, ort::Error> {
        Session::builder(&self.0.environment)
    }

    /// The execution providers that the library has, by the words of configurations, and by its own where there are none.
    pub fn providers(&self) -> Vec<String> {
        let known = |name: &String| {
            ProviderKind::ALL.into_iter().find(|kind| values::name(*kind).to_bytes() == name.as_bytes())
        };
        let all = self.0.providers.iter();
        all.map(|name| known(name).map_or_else(|| name.clone(), |kind| kind.name().to_owned())).collect()
    }

    /// Opens a model, with what is kept of it in `entry`.
    fn open_kept(
        &self,
        path: &Path,
        settings: &SessionSettings,
        entry: Option<&Entry<'_>>,
    ) -> Result<Box<dyn Backend>, OpenError> {
        // Before ONNX Runtime opens anything. A file that is swapped between this and the next line is in the hands of
        // someone who may write the models.
        let files = files::find(path)?;
        self.verify(path, &files)?;
        let refuse = |reason| OpenError(format!("`{}` cannot be loaded: {reason}", path.display()));
        let (built, note) = match entry {
            None => (builder::build(self, path, &files, settings, Graph::Optimize), None),
            Some(entry) => match self.reopen(entry, settings) {
                Some(built) => (Ok(built), Some("its graph was optimised before and is read from the cache")),
                None => (self.keep(path, &files, settings, entry), None),
            },
        };
        let built = built.map_err(refuse)?;
        for reason in &built.passed_over {
            tracing::warn!(model = %path.display(), reason, uses = %built.providers[0], "another provider is used");
        }
        let opened = Opened::new(built, self.clone(), &files, settings, note)?;
        self.0.pages.changed();
        Ok(Box::new(OrtBackend::of(Arc::new(opened))?))
    }

    /// Holds a model's files against the list of checksums beside it, if there is one.
    fn verify(&self, path: &Path, files: &Files) -> Result<(), OpenError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        if folder.join(sums::LIST).symlink_metadata().is_err() {
            return Ok(());
        }
        let verified = self.0.digests.verify(folder, &files.paths);
        verified.map_err(|reason| OpenError(format!("`{}` is not what was published: {reason}", path.display())))
    }

    /// What is kept in `entry`, if it is there and can be used.
    fn reopen(&self, entry: &Entry<'_>, settings: &SessionSettings) -> Option<Built> {
        let path = entry.find()?;
        let files = files::find(&path).map_err(|error| error.0);
        let built = files.and_then(|files| builder::build(self, &path, &files, settings, Graph::Optimized));
        built.inspect_err(|reason| entry.discard(reason)).ok()
    }

    /// Optimises the model at `path`, and keeps what comes of it in `entry` if that can be.
    fn keep(&self, path: &Path, files: &Files, settings: &SessionSettings, entry: &Entry<'_>) -> Result<Built, String> {
        let build = |graph: Graph<'_>| builder::build(self, path, files, settings, graph);
        let Some(unfinished) = entry.begin() else { return build(Graph::Optimize) };
        match build(Graph::Keep(&unfinished)) {
            Ok(built) => {
                unfinished.finish();
                Ok(built)
            }
            // Whether the model is at fault or its writing is known without the latter.
            Err(reason) => {
                let built = build(Graph::Optimize)?;
                entry.not_kept(&reason);
                Ok(built)
            }
        }
    }

    fn has(&self, kind: ProviderKind) -> bool {
        self.0.providers.iter().any(|name| name.as_bytes() == values::name(kind).to_bytes())
    }
}

impl Open for Runtime {
    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        self.open_kept(path, settings, None)
    }

    fn weight_bytes(&self, path: &Path) -> Option<u64> {
        files::check(path).ok()
    }
}

/// ONNX Runtime's messages, into our log.
fn log(level: LogLevel, _category: &str, session: &str, location: &str, message: &str) {
    match level {
        // That what is kept is meant for machines like this one is what its name says.
        LogLevel::Warning if message.starts_with("Serializing optimized model") => {
            tracing::debug!(session, location, message, "onnx runtime says");
        }
        LogLevel::Verbose => tracing::trace!(session, location, message, "onnx runtime says"),
        LogLevel::Info => tracing::debug!(session, location, message, "onnx runtime says"),
        LogLevel::Warning => tracing::warn!(session, location, message, "onnx runtime says"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(session, location, message, "onnx runtime says"),
    }
}

//! Tries model files in a process of its own before ONNX Runtime opens them in this one.
//!
//! ONNX Runtime is a large library that parses what strangers have written. Most of what is wrong with a file becomes an
//! error; some of it divides by zero, runs out of stack or takes all memory, and ends the process that it happens in. That
//! process is a short-lived child here: this program with a hidden subcommand, which opens the file, and runs it on what it is
//! sent. It has none of our sockets, next to none of our environment, and limits of time and memory; whatever it dies of is the
//! reason why the file is refused.
//!
//! The loader does all that it does to a model with an instance in the child first ([`Open::rehearse`]). What it then runs
//! here before the model is ready was run there: whatever was not, because a clock has decided otherwise, is sent to a child
//! first. A file that passes may still end the server later, by what callers send: what the child tells is that loading does
//! not.

use super::{
    Runtime,
    files::{self, Files},
    optimized::{self, Cache, Entry},
    sums::{self, Digest, identity},
    trial::Trial,
    tried::{Rehearsal, Tried},
    words::words,
};
use crate::backend::{Backend, Open, OpenError, SessionSettings};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Exit status of a child that has written to standard output why the file cannot be loaded.
pub const REFUSED: u8 = 3;

/// The hidden subcommand.
pub const COMMAND: &str = "probe";

/// Files that are remembered as tried; beyond it all are forgotten, and tried again.
pub(super) const REMEMBERED: usize = 4096;

/// What a file may take in the child besides four times its own size, where nothing is configured, bytes. The library, its
/// threads and what folding constants takes of any model seen fit into a quarter of it.
const ROOM: u64 = 2 << 30;

/// When files are tried (`models.probe`), and within which limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which files.
    pub when: When,
    /// How long one may take (`models.probe_timeout`).
    pub timeout: Duration,
    /// What one may take of memory, bytes (`models.probe_memory`); `None`: by its size.
    pub memory: Option<u64>,
    /// The program that tries them: this one.
    pub program: PathBuf,
}

/// Which files are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// What was not tried before in this process: other files, or the same ones changed.
    #[default]
    Auto,
    /// Each file each time that it is opened.
    Always,
}

/// Opens models as [`Runtime`] does, once they have been tried.
#[derive(Debug)]
pub struct Probed(Arc<Probe>);

/// What all that is tried is tried with.
#[derive(Debug)]
pub(super) struct Probe {
    runtime: Runtime,
    cache: Option<Cache>,
    settings: Settings,
    passed: Mutex<HashMap<File, Passed>>,
}

/// The files of a model, and how they are opened.
type File = (Vec<sums::Identity>, Vec<String>);

/// What has passed of a file.
#[derive(Debug, Default)]
struct Passed {
    /// What it was run on.
    runs: HashSet<Digest>,
    /// It was tried, and was not opened since: where each opening is tried, this one was.
    is_fresh: bool,
}

/// A file that may have been tried.
#[derive(Debug)]
pub(super) struct Candidate {
    probe: Arc<Probe>,
    pub(super) path: PathBuf,
    file: File,
    memory: u64,
    /// Where it is kept what was run before it was optimised.
    kept: Option<PathBuf>,
}

/// Opens models as [`Runtime`] does, with what is kept of them.
#[derive(Debug)]
struct Kept {
    runtime: Runtime,
    cache: Cache,
}

// === impl Settings ===

impl Settings {
    /// The program that is running, by a name that stays its own when another version is installed in its place.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn this_program() -> io::Result<PathBuf> {
        if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
    }
}

// === impl Probed ===

impl Probed {
    /// Opens with `runtime` what was tried as `settings` say.
    pub fn new(runtime: Runtime, settings: Settings) -> Self {
        Self::keeping(runtime, settings, None)
    }

    fn keeping(runtime: Runtime, settings: Settings, cache: Option<Cache>) -> Self {
        Self(Arc::new(Probe { runtime, cache, settings, passed: Mutex::default() }))
    }
}

impl Open for Probed {
    fn rehearse(&self, path: &Path, settings: &SessionSettings) -> Result<Option<Box<dyn Backend>>, OpenError> {
        let found = files::find(path)?;
        self.0.runtime.verify(path, &found)?;
        let candidate = self.0.candidate(path, &found, settings)?;
        if candidate.is_known() {
            return Ok(None);
        }
        let (trial, signature, names) = candidate.start().map_err(|reason| candidate.failed(&reason))?;
        Ok(Some(Box::new(Rehearsal::new(candidate, trial, signature, names))))
    }

    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let found = files::find(path)?;
        self.0.runtime.verify(path, &found)?;
        let candidate = self.0.candidate(path, &found, settings)?;
        if !candidate.is_known() {
            let began = Instant::now();
            // Ended before it is opened here: there may not be memory for both.
            let tried = candidate.start().and_then(|(trial, ..)| trial.end());
            tried.map_err(|reason| candidate.failed(&reason))?;
            candidate.passes();
            tracing::debug!(model = %path.display(), took = ?began.elapsed(), "tried in a process of its own");
        }
        candidate.opened();
        let entry = self.0.entry(&found, settings);
        let inner = self.0.runtime.open_kept(path, settings, entry.as_ref())?;
        // What was tried is what was opened; whatever was written in between has left its time.
        if identities(path, &files::find(path)?)? != candidate.file.0 {
            return Err(candidate.refuse("was changed while it was loaded"));
        }
        Ok(Box::new(Tried::new(inner, candidate)))
    }

    fn weight_bytes(&self, path: &Path) -> Option<u64> {
        self.0.runtime.weight_bytes(path)
    }
}

fn identities(path: &Path, found: &Files) -> Result<Vec<sums::Identity>, OpenError> {
    let identities = found.paths.iter().map(|path| identity(path)).collect::<io::Result<Vec<_>>>();
    identities.map_err(|error| OpenError(format!("`{}` cannot be opened: {error}", path.display())))
}

// === impl Probe ===

impl Probe {
    fn entry(&self, found: &Files, settings: &SessionSettings) -> Option<Entry<'_>> {
        self.cache.as_ref()?.entry(found, settings, true)
    }

    fn candidate(
        self: &Arc<Self>,
        path: &Path,
        found: &Files,
        settings: &SessionSettings,
    ) -> Result<Candidate, OpenError> {
        let file = (identities(path, found)?, words(settings));
        let memory = self.settings.memory.unwrap_or_else(|| found.bytes.saturating_mul(4).saturating_add(ROOM));
        let entry = self.entry(found, settings);
        let kept = entry.as_ref().map(Entry::runs_file);
        let candidate = Candidate { probe: Arc::clone(self), path: path.to_owned(), file, memory, kept };
        // What is kept is kept because it was tried: the same bytes, in the same way, by the same library, on what stands there.
        if self.settings.when == When::Auto
            && !candidate.is_known()
            && let Some(runs) = entry.filter(|entry| entry.find().is_some()).and_then(|entry| entry.runs())
        {
            candidate.with(|passed| *passed = Passed { runs, is_fresh: false });
        }
        Ok(candidate)
    }
}

// === impl Candidate ===

impl Candidate {
    /// Has a process open it.
    pub(super) fn start(&self) -> Result<(Trial, Arc<crate::tensor::Signature>, crate::tensor::AxisNames), String> {
        let Probe { settings, runtime, .. } = &*self.probe;
        Trial::start(settings, runtime.library(), &self.path, self.memory, &self.file.1)
    }

    /// What is said of it when a process has died of it, which is remembered.
    pub(super) fn failed(&self, reason: &str) -> OpenError {
        self.fails();
        self.refuse(reason)
    }

    fn refuse(&self, reason: &str) -> OpenError {
        OpenError(format!("`{}` {reason}", self.path.display()))
    }

    /// Whether a process has opened it, and need not again.
    fn is_known(&self) -> bool {
        let passed = self.probe.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let when = self.probe.settings.when;
        passed.get(&self.file).is_some_and(|passed| passed.is_fresh || when == When::Auto)
    }

    /// Whether it was run on this.
    pub(super) fn has_run(&self, inputs: &Digest) -> bool {
        let passed = self.probe.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.get(&self.file).is_some_and(|passed| passed.runs.contains(inputs))
    }

    /// It was run on these, by a process that has ended well.
    pub(super) fn ran(&self, inputs: HashSet<Digest>) {
        self.with(|passed| {
            if passed.runs.len().saturating_add(inputs.len()) > REMEMBERED {
                passed.runs.clear();
            }
            passed.runs.extend(inputs);
        });
    }

    /// A process has died of it: whatever went well before, it is tried from the start when it is opened again.
    pub(super) fn fails(&self) {
        self.probe.passed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.file);
        if let Some(path) = &self.kept {
            // Where it cannot be removed it was not written by us, or is not there.
            let _ = fs::remove_file(path);
        }
    }

    /// A process has opened it, and has ended well.
    pub(super) fn passes(&self) {
        self.with(|passed| passed.is_fresh = true);
    }

    fn opened(&self) {
        let mut passed = self.probe.passed.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was forgotten meanwhile is not known for having been opened.
        if let Some(passed) = passed.get_mut(&self.file) {
            passed.is_fresh = false;
        }
    }

    /// Writes down what it was run on, if what comes of optimising it is kept.
    pub(super) fn keep(&self) {
        let Some(path) = &self.kept else { return };
        self.with(|passed| optimized::keep_runs(path, &passed.runs));
    }

    fn with(&self, change: impl FnOnce(&mut Passed)) {
        let mut passed = self.probe.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.len() >= REMEMBERED && !passed.contains_key(&self.file) {
            passed.clear();
        }
        change(passed.entry(self.file.clone()).or_default());
    }
}

impl Open for Kept {
    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let entry = self.cache.entry(&files::find(path)?, settings, false);
        self.runtime.open_kept(path, settings, entry.as_ref())
    }

    fn weight_bytes(&self, path: &Path) -> Option<u64> {
        self.runtime.weight_bytes(path)
    }
}

/// `runtime` as models are to be opened with it: files are tried first where `probe` says how, and what comes of optimising them
/// is kept where `kept` says where.
pub fn opener(runtime: Runtime, probe: Option<Settings>, kept: Option<optimized::Settings>) -> Arc<dyn Open> {
    let digests = Arc::clone(&runtime.0.digests);
    let cache = kept.map(|settings| Cache::new(settings, runtime.version(), digests));
    match (probe, cache) {
        (Some(settings), cache) => Arc::new(Probed::keeping(runtime, settings, cache)),
        (None, Some(cache)) => Arc::new(Kept { runtime, cache }),
        (None, None) => Arc::new(runtime),
    }
}

/// What an exit status says of the file.
pub(super) fn judge(status: ExitStatus, memory: u64, said: impl FnOnce() -> String) -> Result<(), String> {
    let tried = "the process that tried it";
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) if code == i32::from(REFUSED) => {
            let mut reason = said();
            if is_exhausted(&reason) {
                reason.push_str(&format!(" ({tried} may take {} MiB, see `models.probe_memory`)", memory >> 20));
            }
            // It begins with the path, as all that an opener says.
            Err(match reason.split_once("` ") {
                Some((_, rest)) if reason.starts_with('`') => rest.to_owned(),
                _ => format!("cannot be loaded: {reason}"),
            })
        }
        (_, Some(signal)) => {
            let what = match signal {
                4 => ", an illegal instruction",
                6 => ", it aborted",
                7 | 10 => ", a bus error",
                8 => ", a division that has no result",
                9 => ", most likely for lack of memory",
                11 => ", memory that is not there: its stack was at its end, or it is damaged",
                _ => "",
            };
            Err(format!("cannot be loaded: {tried} was ended by signal {signal}{what}"))
        }
        _ => Err(format!("cannot be loaded: {tried} ended with {status}")),
    }
}

/// Whether an error is that there is no more memory. A run that fails for anything else is no fault of the file: it was run on
/// zeros. This one would take the memory of the server.
pub fn is_exhausted(reason: &str) -> bool {
    /// What allocators and ONNX Runtime say.
    const EXHAUSTED: &[&str] = &["bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory"];
    EXHAUSTED.iter().any(|text| reason.contains(text))
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;

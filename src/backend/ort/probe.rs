//! Tries model files in a process of its own before ONNX Runtime opens them in this one.
//!
//! ONNX Runtime is a large library that parses what strangers have written. Most of what is wrong with a file becomes an
//! error; some of it divides by zero, runs out of stack or takes all memory, and ends the process that it happens in. That
//! process is a short-lived child here: this program with a hidden subcommand, which opens the file, runs it once on made-up
//! inputs, and says by its exit status what came of it. It has none of our sockets, next to none of our environment, and
//! limits of time and memory; whatever it dies of is the reason why the file is refused. A file that passes may still end
//! the server later, by what callers send: what the child tells is that loading does not.

use super::{
    Runtime,
    files::{self, Files},
    optimized::{self, Cache},
    sums::{self, identity},
    words::words,
};
use crate::backend::{Backend, Open, OpenError, SessionSettings};
use std::{
    collections::HashSet,
    ffi::OsString,
    io::{self, Read},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Exit status of a child that has written to standard output why the file cannot be loaded.
pub const REFUSED: u8 = 3;

/// The hidden subcommand.
pub const COMMAND: &str = "probe";

/// What of our environment a child is given: how its library finds others, and which devices there are.
const VARIABLES: &[&str] =
    &["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];

/// Bytes that are read of what a child says, and characters that are kept.
const SAID: u64 = 64 * 1024;
const KEPT: usize = 1000;

/// How often a child is looked at: the standard library has no wait that ends.
const LOOK: Duration = Duration::from_millis(2);

/// Files that are remembered as tried; beyond it all are forgotten, and tried again.
const REMEMBERED: usize = 4096;

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
pub struct Probed {
    runtime: Runtime,
    cache: Option<Cache>,
    settings: Settings,
    /// Files, and how they were opened.
    passed: Mutex<HashSet<(Vec<sums::Identity>, Vec<String>)>>,
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
        Self { runtime, cache: None, settings, passed: Mutex::default() }
    }

    fn probe(&self, path: &Path, found: &Files, settings: &SessionSettings) -> Result<(), OpenError> {
        let refuse = |reason: String| OpenError(format!("`{}` {reason}", path.display()));
        let identities = found.paths.iter().map(|path| identity(path)).collect::<io::Result<Vec<_>>>();
        let identities = identities.map_err(|error| refuse(format!("cannot be opened: {error}")))?;
        let tried = (identities, words(settings));
        let passed = || self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.settings.when == When::Auto && passed().contains(&tried) {
            return Ok(());
        }
        let memory = self.settings.memory.unwrap_or_else(|| found.bytes.saturating_mul(4).saturating_add(ROOM));
        let began = Instant::now();
        try_out(&self.settings, self.runtime.library(), path, memory, &tried.1).map_err(refuse)?;
        tracing::debug!(model = %path.display(), took = ?began.elapsed(), "tried in a process of its own");
        let mut passed = passed();
        if passed.len() >= REMEMBERED {
            passed.clear();
        }
        passed.insert(tried);
        Ok(())
    }
}

impl Open for Probed {
    fn open(&self, path: &Path, settings: &SessionSettings) -> Result<Box<dyn Backend>, OpenError> {
        let found = files::find(path)?;
        self.runtime.verify(path, &found)?;
        let entry = self.cache.as_ref().and_then(|cache| cache.entry(&found, settings, true));
        // What is kept is kept because it was tried: the same bytes, in the same way, by the same library.
        let is_known = self.settings.when == When::Auto && entry.as_ref().is_some_and(|entry| entry.find().is_some());
        if !is_known {
            self.probe(path, &found, settings)?;
        }
        self.runtime.open_kept(path, settings, entry.as_ref())
    }

    fn weight_bytes(&self, path: &Path) -> Option<u64> {
        self.runtime.weight_bytes(path)
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
        (Some(settings), cache) => Arc::new(Probed { cache, ..Probed::new(runtime, settings) }),
        (None, Some(cache)) => Arc::new(Kept { runtime, cache }),
        (None, None) => Arc::new(runtime),
    }
}

/// Has a child open the file at `path`, as `words` say, and run it once.
///
/// # Errors
///
/// In plain words: what the child said, what it died of, or which limit it ran into.
fn try_out(settings: &Settings, library: &Path, path: &Path, memory: u64, words: &[String]) -> Result<(), String> {
    let option = |name: &str, value: OsString| [OsString::from(name), value];
    let mut command = Command::new(&settings.program);
    command
        .arg(COMMAND)
        .args(option("--onnxruntime", library.into()))
        .args(option("--memory", memory.to_string().into()))
        .args(words.iter().flat_map(|word| option("--session", word.into())))
        .arg("--")
        .arg(path)
        .env_clear()
        .envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot be tried (`models.probe`): {error}"))?;
    let (said, complaint) = (hear(child.stdout.take()), hear(child.stderr.take()));
    let ended = wait(&mut child, settings.timeout);
    if let Ok(complaint) = complaint.recv_timeout(LOOK)
        && !complaint.is_empty()
    {
        tracing::debug!(model = %path.display(), complaint, "the process that tried the model says");
    }
    let Some(status) = ended.map_err(|error| format!("cannot be tried (`models.probe`): {error}"))? else {
        let limit = settings.timeout;
        return Err(format!("cannot be loaded: it was not loaded and run within {limit:?} (`models.probe_timeout`)"));
    };
    // It has ended, so what it said is there; unless something that it started holds the other end.
    judge(status, memory, || said.recv_timeout(Duration::from_secs(1)).unwrap_or_default())
}

/// What an exit status says of the file.
fn judge(status: ExitStatus, memory: u64, said: impl FnOnce() -> String) -> Result<(), String> {
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

/// What comes out of a pipe, up to a limit, as one line of text; what is beyond it is read and dropped, so that the writer
/// does not wait.
fn hear(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, heard) = mpsc::channel();
    let read = move || {
        let Some(mut pipe) = pipe else { return };
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(SAID).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
        let _ = sender.send(text.take(KEPT).collect());
        let _ = io::copy(&mut pipe, &mut io::sink());
    };
    // Without a thread nothing is heard, and the status alone has to say it.
    drop(thread::Builder::new().name("probe".to_owned()).spawn(read));
    heard
}

/// Waits for a child, and ends it when its time is up: `None` then. Blocks.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        let ended = child.try_wait();
        match ended {
            Ok(Some(status)) => return Ok(Some(status)),
            Ok(None) if began.elapsed() < timeout => thread::park_timeout(LOOK),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                // Nothing may stay of it, whatever went wrong.
                let _ = child.wait();
                return ended;
            }
        }
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;

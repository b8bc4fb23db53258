//! Optimised graphs on disk (`models.optimized_cache`): a model that was optimised once is opened without doing it again.
//!
//! An entry is a folder whose name says what was optimised, how, by which library and on which kind of processor; in it are the
//! graph as ONNX Runtime wrote it, its external weights if the model has some, and their checksums. It is written under
//! another name and put in its place in one piece. One that is damaged is made anew, and where nothing can be written models
//! are opened as they are: a cache never keeps a model from being served.
//!
//! What lies there is run as if it were the model, so nobody else may write it. The checksums find damage, not malice: whoever
//! may write an entry may write its checksums too.

use super::{
    files::{self, Files},
    sums::{self, Digests, LIST},
};
use crate::backend::{Optimization, SessionSettings};
use std::{
    collections::HashSet,
    fmt::Debug,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

/// The graph in an entry, and the weights outside it.
const GRAPH: &str = "model.onnx";
const WEIGHTS: &str = "weights.bin";

/// The file in an entry with the digests of what the model was run on, before it was written and since, in a process of its
/// own (`models.probe`); one a line.
const RUNS: &str = "tried";

/// Most of those, bytes.
const MOST_RUNS: u64 = 1 << 20;

/// How what is being written is called until it is there, and after how long somebody must have died of it.
const UNFINISHED: &str = ".new-";
const ABANDONED: Duration = Duration::from_secs(3600);

/// Begins what is hashed for the name of an entry; another one if entries change.
const FORM: &str = "sluicegate optimized model 1";

/// Where optimised graphs are kept (`models.optimized_cache`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A folder that only this user may write. It is made if it is not there.
    pub folder: PathBuf,
    /// What all entries may take together, bytes; the least recently used goes first.
    pub size: u64,
}

/// Optimised graphs in a folder.
#[derive(Debug)]
pub(super) struct Cache {
    settings: Settings,
    /// The library's version and the processor, as entries are told apart by them.
    machine: [String; 2],
    digests: Arc<Digests>,
}

/// The place of one graph.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    cache: &'a Cache,
    path: PathBuf,
    /// Whether its weights lie outside it, as the model's do.
    is_external: bool,
}

/// An entry that is being written.
#[derive(Debug)]
pub(super) struct Unfinished<'a> {
    entry: &'a Entry<'a>,
    folder: TempDir,
}

/// How a session treats the graph of its file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Graph<'a> {
    /// Optimises it as configured.
    Optimize,
    /// Does that, and writes what comes of it.
    Keep(&'a Unfinished<'a>),
    /// Takes it as it is: it was optimised before.
    Optimized,
}

// === impl Cache ===

impl Cache {
    /// Graphs of the library of this `version`, kept as `settings` say.
    pub(super) fn new(settings: Settings, version: &str, digests: Arc<Digests>) -> Self {
        Self { settings, machine: [version.to_owned(), processor()], digests }
    }

    /// The place of what comes of `files` with `settings`; `is_tried`: it is written only after a process of its own has tried the
    /// files (`models.probe`).
    ///
    /// `None` where nothing is kept: where nothing is optimised, where more than the CPU may run the model (what other providers
    /// compile cannot be written, or is kept by themselves), and where the folder cannot be trusted, which the log says.
    pub(super) fn entry(&self, files: &Files, settings: &SessionSettings, is_tried: bool) -> Option<Entry<'_>> {
        if !settings.is_cpu_only() || settings.options.optimization == Optimization::Disabled {
            return None;
        }
        let path = &self.settings.folder;
        let made = if path.exists() { Ok(()) } else { DirBuilder::new().recursive(true).mode(0o700).create(path) };
        let is_ours = made.map_err(|error| format!("cannot be made: {error}")).and_then(|()| trusted(path));
        if let Err(reason) = is_ours {
            tracing::warn!(folder = %path.display(), reason, "optimised models are not kept (`models.optimized_cache`)");
            return None;
        }
        let mut hashed = Hashed::new();
        hashed.add(FORM);
        self.machine.iter().for_each(|text| hashed.add(text));
        hashed.add(if is_tried { "tried" } else { "not tried" });
        hashed.add_debug(&settings.options);
        for file in &files.paths {
            // What cannot be read is refused when it is opened.
            hashed.add(&sums::hex(&self.digests.of(file).ok()?));
        }
        Some(Entry { cache: self, path: path.join(hashed.finish()), is_external: files.paths.len() > 1 })
    }

    /// Removes what was used longest ago until the rest is within the size, and what was begun and never finished.
    fn bound(&self) -> io::Result<()> {
        let (mut entries, mut total) = (Vec::new(), 0);
        for found in fs::read_dir(&self.settings.folder)? {
            let found = found?;
            let (name, path) = (found.file_name(), found.path());
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED) {
                let age = found.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
                if matches!(age, Ok(Ok(age)) if age > ABANDONED) {
                    let _ = fs::remove_dir_all(path);
                }
            } else if name.len() == 64 && name.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                let bytes = bytes(&path);
                total += bytes;
                let used = fs::metadata(path.join(LIST)).and_then(|data| data.modified());
                entries.push((used.unwrap_or(SystemTime::UNIX_EPOCH), bytes, path));
            }
        }
        entries.sort();
        for (_, bytes, path) in entries {
            if total <= self.settings.size {
                break;
            }
            tracing::debug!(entry = %path.display(), "an optimised model makes room for others");
            fs::remove_dir_all(path)?;
            total -= bytes;
        }
        Ok(())
    }
}

// === impl Entry ===

impl Entry<'_> {
    /// The graph, if it is there and whole. What is damaged is removed, and the log says so.
    pub(super) fn find(&self) -> Option<PathBuf> {
        if !self.path.exists() {
            return None;
        }
        let graph = self.path.join(GRAPH);
        let whole = trusted(&self.path)
            .and_then(|()| self.cache.digests.verify(&self.path, std::slice::from_ref(&graph)))
            // Small weights stay in the graph, whatever was asked for; those outside must be there.
            .and_then(|()| files::check(&graph).map_err(|error| error.0));
        if let Err(reason) = whole {
            self.discard(&reason);
            return None;
        }
        // For the order in which entries go. Where nothing may be written it stays as it was.
        let _ = File::open(self.path.join(LIST)).and_then(|list| list.set_modified(SystemTime::now()));
        Some(graph)
    }

    /// Where it is written what the model was run on.
    pub(super) fn runs_file(&self) -> PathBuf {
        self.path.join(RUNS)
    }

    /// What the model was run on, if that was written.
    pub(super) fn runs(&self) -> Option<HashSet<sums::Digest>> {
        let mut text = String::new();
        File::open(self.runs_file()).ok()?.take(MOST_RUNS).read_to_string(&mut text).ok()?;
        text.lines().map(sums::digest).collect()
    }

    /// Removes it, because it is of no use.
    pub(super) fn discard(&self, reason: &str) {
        let entry = self.path.display();
        tracing::warn!(%entry, reason, "an optimised model is damaged and is made anew");
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%entry, %error, "a damaged optimised model cannot be removed");
        }
    }

    /// A place to write it.
    pub(super) fn begin(&self) -> Option<Unfinished<'_>> {
        let mut builder = tempfile::Builder::new();
        // Whatever the mask says.
        builder.prefix(UNFINISHED).permissions(fs::Permissions::from_mode(0o700));
        match builder.tempdir_in(&self.cache.settings.folder) {
            Ok(folder) => Some(Unfinished { entry: self, folder }),
            Err(error) => {
                self.not_kept(&error);
                None
            }
        }
    }

    pub(super) fn not_kept(&self, error: &dyn std::fmt::Display) {
        let folder = self.cache.settings.folder.display();
        tracing::warn!(%folder, %error, "an optimised model cannot be kept (`models.optimized_cache`)");
    }
}

// === impl Unfinished ===

impl Unfinished<'_> {
    /// Where ONNX Runtime writes the graph, and the name of the file beside it for weights, if they lie outside.
    pub(super) fn target(&self) -> (PathBuf, Option<&'static str>) {
        (self.folder.path().join(GRAPH), self.entry.is_external.then_some(WEIGHTS))
    }

    /// Puts what was written in its place. Where that fails the model is served all the same, and the log says why.
    pub(super) fn finish(self) {
        let entry = self.entry;
        if let Err(error) = self.publish().and_then(|()| entry.cache.bound()) {
            entry.not_kept(&error);
        }
    }

    fn publish(self) -> io::Result<()> {
        let folder = self.folder.path();
        let mut list = format!("# {FORM}, ONNX Runtime {}\n", self.entry.cache.machine[0]);
        for found in fs::read_dir(folder)? {
            let found = found?;
            File::open(found.path())?.sync_all()?;
            let digest = self.entry.cache.digests.of(&found.path())?;
            list.push_str(&format!("{}  {}\n", sums::hex(&digest), found.file_name().to_string_lossy()));
        }
        let mut file = File::create(folder.join(LIST))?;
        file.write_all(list.as_bytes())?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        let (size, most) = (bytes(folder), self.entry.cache.settings.size);
        if size > most {
            return Err(io::Error::other(format!("it takes {size} bytes, and `size` is {most}")));
        }
        match fs::rename(folder, &self.entry.path) {
            // Another process was faster. What it wrote is the same; if not, whoever reads it finds that.
            Err(_) if self.entry.path.exists() => Ok(()),
            renamed => {
                renamed?;
                // Nothing is left by that name to be removed.
                let _ = self.folder.keep();
                File::open(&self.entry.cache.settings.folder)?.sync_all()
            }
        }
    }
}

/// Writes what a model was run on to `path` in its entry, if that is there. Where it cannot be written, it is run on that again.
pub(super) fn keep_runs(path: &Path, runs: &HashSet<sums::Digest>) {
    let write = || -> io::Result<()> {
        let folder = path.parent().filter(|folder| folder.is_dir()).ok_or(io::ErrorKind::NotFound)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        for run in runs {
            writeln!(file, "{}", sums::hex(run))?;
        }
        file.persist(path)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!(path = %path.display(), %error, "what a model was run on is not kept");
    }
}

/// Hashes texts one after the other, so that no two lists of them are the same bytes.
struct Hashed(ring::digest::Context);

impl Hashed {
    fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    fn add(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    fn add_debug(&mut self, value: &dyn Debug) {
        self.add(&format!("{value:?}"));
    }

    fn finish(self) -> String {
        let mut digest = sums::Digest::default();
        digest.copy_from_slice(self.0.finish().as_ref());
        sums::hex(&digest)
    }
}

/// Whether nobody but this user and root can change what is at `path`.
fn trusted(path: &Path) -> Result<(), String> {
    let data = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    let owner = data.uid();
    if !data.is_dir() {
        Err("is not a folder".to_owned())
    } else if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Err(format!("belongs to another user, {owner}"))
    } else if data.mode() & 0o022 != 0 {
        Err(format!("may be written by others: its mode is {:o}, expected 700", data.mode() & 0o7777))
    } else {
        Ok(())
    }
}

/// Bytes of the files in a folder.
fn bytes(folder: &Path) -> u64 {
    let Ok(files) = fs::read_dir(folder) else { return 0 };
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|data| data.len()).sum()
}

/// What ONNX Runtime's choices of layouts and kernels may depend on: the architecture and, where the system tells them, the
/// model and the features of the processor.
fn processor() -> String {
    const TOLD: &[&str] = &[
        "vendor_id",
        "cpu family",
        "model",
        "stepping",
        "flags", // x86
        "CPU implementer",
        "CPU architecture",
        "CPU variant",
        "CPU part",
        "Features", // Arm
    ];
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // The first of them: a blank line ends it.
    let first = told.lines().take_while(|line| !line.is_empty());
    let lines = first.filter(|line| line.split_once(':').is_some_and(|(key, _)| TOLD.contains(&key.trim())));
    lines.fold(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH), |text, line| text + "\n" + line)
}

#[cfg(test)]
#[path = "optimized_tests.rs"]
mod tests;

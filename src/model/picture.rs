//! What the folders of models look like, to see that they have changed and that they are still.
//!
//! Files are looked at every few seconds instead of waiting to be told, for the reasons that `app::reload` gives. A look
//! compares what each file *is* (device, inode, size, times) and follows links to files, so a link that is swapped is a
//! change like any other; no file is read. Links to folders are followed where they stand for a model or a version, and
//! looked at, not through, below: they may lead anywhere.

use super::{
    Settings,
    scan::{check_name, children, folder_of, is_folder, number, says_something},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Folders within folders that are looked at.
const DEPTH: usize = 8;
/// Files and folders of one model that are looked at.
const MOST: usize = 10_000;

/// All models of the directories, by name, or why it is not known now, in plain words, what there is of one.
pub(super) type Pictures = BTreeMap<Arc<str>, Result<Picture, String>>;

/// A model's folder, as far as a change of it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Picture {
    /// What the model says of itself.
    said: u64,
    /// What else lies beside its versions: names of classes, samples.
    beside: u64,
    /// Its versions.
    versions: BTreeMap<u64, u64>,
}

/// What is known of each model, and since when.
#[derive(Debug)]
pub(super) struct Settling {
    settle: Duration,
    seen: HashMap<Arc<str>, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// How it was when it was loaded last; `None`: not there.
    taken: Option<Picture>,
    /// How it was at the last look, since when.
    last: (Option<Picture>, Instant),
    /// Somebody loads it.
    busy: bool,
}

/// A model that has changed and is still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) name: Arc<str>,
    /// How it was when it was loaded last.
    pub(super) before: Option<Picture>,
    /// How it is.
    pub(super) now: Option<Picture>,
}

/// Looks at all models in the directories of `settings` that may be loaded. Of two with one name the one counts that does for
/// those who load them.
///
/// # Errors
///
/// In plain words: a directory that cannot be read, of which nothing is known then; that it is empty would be something.
pub(super) fn take(settings: &Settings) -> Result<Pictures, String> {
    let mut pictures = Pictures::new();
    for directory in &settings.directories {
        let folders = children(directory).map_err(|error| format!("`{}`: {error}", directory.display()))?;
        for (name, _) in
            folders.into_iter().filter(|(name, _)| settings.load.includes(name) && check_name(name).is_ok())
        {
            if pictures.contains_key(&*name) {
                continue;
            }
            // A file of that name cannot be a model's folder, whatever is wrong with it: it is passed over.
            let picture = folder_of(settings, &name).and_then(|path| path.map(|path| Picture::of(&path)).transpose());
            match picture {
                Ok(None) => {}
                Ok(Some(picture)) => drop(pictures.insert(name.into(), Ok(picture))),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => drop(pictures.insert(name.into(), Err(error.to_string()))),
            }
        }
    }
    Ok(pictures)
}

// === impl Picture ===

impl Picture {
    /// The folder of a model at `path`.
    ///
    /// # Errors
    ///
    /// What keeps it from being known how it is, if only for a moment.
    fn of(path: &Path) -> io::Result<Self> {
        let mut left = MOST;
        let (mut said, mut beside, mut versions) = (DefaultHasher::new(), DefaultHasher::new(), BTreeMap::new());
        for (name, path) in children(path)? {
            match number(&name) {
                Some(version) if is_folder(&path)? => {
                    let mut hasher = DefaultHasher::new();
                    // It may be a link itself.
                    name.hash(&mut hasher);
                    lasting(within(&path, DEPTH, &mut left, &mut hasher), &mut hasher)?;
                    versions.insert(version, hasher.finish());
                }
                _ if super::scan::SPECS.contains(&&*name) => look(&name, &path, 0, &mut left, &mut said)?,
                _ => look(&name, &path, DEPTH, &mut left, &mut beside)?,
            }
        }
        // It may be an ensemble.
        if versions.is_empty() && says_something(path)? {
            versions.insert(1, 0);
        }
        Ok(Self { said: said.finish(), beside: beside.finish(), versions })
    }

    /// Versions whose files are the same in `before`.
    pub(super) fn unchanged(&self, before: &Self) -> impl Iterator<Item = u64> {
        let same = self.beside == before.beside;
        self.versions
            .iter()
            .filter(move |(version, files)| same && before.versions.get(version) == Some(files))
            .map(|(version, _)| *version)
    }

    /// Whether there is a folder of this version.
    pub(super) fn has(&self, version: &str) -> bool {
        number(version).is_some_and(|version| self.versions.contains_key(&version))
    }
}

fn look(name: &str, path: &Path, depth: usize, left: &mut usize, hasher: &mut DefaultHasher) -> io::Result<()> {
    let Some(fewer) = left.checked_sub(1) else { return Ok(()) };
    *left = fewer;
    name.hash(hasher);
    let looked = fs::metadata(path).and_then(|found| {
        if found.is_dir() {
            // Where it leads is all that is looked at. As Kubernetes mounts volumes that changes with what is in them.
            if path.is_symlink() {
                fs::canonicalize(path).ok().hash(hasher);
                return Ok(());
            }
            return within(path, depth, left, hasher);
        }
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        (found.dev(), found.ino(), found.size(), times).hash(hasher);
        Ok(())
    });
    lasting(looked, hasher)
}

/// Takes an error for what is there if it says something of that, and not of the storage or of this process: a link that leads
/// nowhere or in a circle, or what others may not read. It may be in a model's folder for ever, and must not keep the rest of
/// it from being looked at.
fn lasting(looked: io::Result<()>, hasher: &mut DefaultHasher) -> io::Result<()> {
    let is_lasting = |error: &io::Error| {
        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory)
            || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
    };
    match looked {
        Err(error) if is_lasting(&error) => {
            false.hash(hasher);
            Ok(())
        }
        looked => looked,
    }
}

/// Looks at what is in a folder, and not at the folder's own times: files that are hidden change them too.
fn within(path: &Path, depth: usize, left: &mut usize, hasher: &mut DefaultHasher) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else { return Ok(()) };
    let children = children(path)?;
    children.len().hash(hasher);
    children.iter().try_for_each(|(name, path)| look(name, path, depth, left, hasher))
}

// === impl Settling ===

impl Settling {
    /// From `taken` on, which is loaded; a change is one once it has been there for `settle`.
    pub(super) fn new(settle: Duration, taken: Pictures, now: Instant) -> Self {
        let seen = taken.into_iter().filter_map(|(name, picture)| {
            let picture = picture.ok()?;
            let last = (Some(picture.clone()), now);
            Some((name, Seen { taken: Some(picture), last, busy: false }))
        });
        Self { settle, seen: seen.collect() }
    }

    /// Takes in what a look at `now` has found, and says what is to be loaded or unloaded now. It is held for done, until
    /// the next change, and for busy until [`Settling::done`].
    pub(super) fn see(&mut self, mut found: Pictures, now: Instant) -> Vec<Change> {
        for name in self.seen.keys().filter(|name| !found.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.look(&name, None, now);
        }
        while let Some((name, picture)) = found.pop_first() {
            match picture {
                Ok(picture) => self.look(&name, Some(picture), now),
                // It is held for what it was, and for still only when that can be seen.
                Err(_) => drop(self.seen.get_mut(&name).map(|seen| seen.last.1 = now)),
            }
        }
        let mut changes = Vec::new();
        for (name, seen) in &mut self.seen {
            let still = now.saturating_duration_since(seen.last.1) >= self.settle;
            if still && !seen.busy && seen.last.0 != seen.taken {
                let before = std::mem::replace(&mut seen.taken, seen.last.0.clone());
                seen.busy = true;
                changes.push(Change { name: Arc::clone(name), before, now: seen.taken.clone() });
            }
        }
        changes.sort_by(|a, b| a.name.cmp(&b.name));
        changes
    }

    fn look(&mut self, name: &Arc<str>, picture: Option<Picture>, now: Instant) {
        match self.seen.get_mut(name) {
            Some(seen) if seen.last.0 == picture => {}
            Some(seen) => seen.last = (picture, now),
            None => {
                let seen = Seen { taken: None, last: (picture, now), busy: false };
                self.seen.insert(Arc::clone(name), seen);
            }
        }
    }

    /// What was to be done about a change of `name` is done.
    pub(super) fn done(&mut self, name: &str) {
        if let Some(seen) = self.seen.get_mut(name) {
            seen.busy = false;
        }
        self.seen.retain(|_, seen| seen.busy || seen.taken.is_some() || seen.last.0.is_some());
    }

    /// When something that has changed may have become still.
    pub(super) fn due(&self) -> Option<Instant> {
        let waiting = self.seen.values().filter(|seen| !seen.busy && seen.last.0 != seen.taken);
        waiting.map(|seen| seen.last.1 + self.settle).min()
    }
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;

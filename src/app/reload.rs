//! Files that are read again when they change: one loop for keys, certificates and whatever else may change while the
//! process runs.
//!
//! Files are looked at every half second instead of waiting to be told. A notice from the system would have to be asked
//! for on folders (a Kubernetes ConfigMap is swapped as a link to one), never comes from many network file systems, and may
//! get lost when too much happens; a look costs two microseconds a file and is the same everywhere. It follows links and
//! compares what a file *is* (device, inode, size, times), and contents only if that changed or is too young to be sure of.
//!
//! Knows files and when to look at them; what they mean is known to whoever reads them.

use crate::telemetry::metrics::Metrics;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt, fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How often files are looked at: a revoked key must fail within a second (contract 06 C1).
pub(super) const EVERY: Duration = Duration::from_millis(500);
/// A file that changed less than this before it was looked at may change again without showing it: file systems keep
/// times in steps, of two seconds at worst (FAT).
const YOUNG: Duration = Duration::from_secs(3);
/// Of larger files only the first so many bytes are compared, besides everything else.
const MOST: u64 = 64 << 20;

/// Some files, and what they were when they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Files {
    seen: HashMap<PathBuf, Seen>,
}

/// What a file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Not there, or not readable.
    Nothing,
    File {
        stamp: Stamp,
        /// Whether a change can no longer hide behind `stamp`.
        settled: bool,
        digest: [u8; 32],
    },
}

/// What the system says of a file. Another inode is another file even if it looks the same; the time of its last change of
/// any kind cannot be set by those who copy files with their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What is read again when its files change.
pub(super) struct Source {
    what: &'static str,
    files: Files,
    read: Box<dyn FnMut() -> Result<(), String> + Send>,
    is_good: bool,
}

/// Everything that is read again when its files change.
#[derive(Debug, Default)]
pub(super) struct Reloader {
    sources: Vec<Source>,
}

// === impl Files ===

impl Files {
    /// These files as they are now.
    pub(super) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut files = Self::default();
        files.watch(paths);
        files
    }

    /// From now on these files; what is known of those that were watched before is kept.
    pub(super) fn watch(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        let mut known = std::mem::take(&mut self.seen);
        for path in paths {
            let seen = known.remove(&path);
            if let Entry::Vacant(place) = self.seen.entry(path) {
                let now = seen.unwrap_or_else(|| Seen::look(place.key(), None));
                place.insert(now);
            }
        }
    }

    /// Whether any of them is another one, or says something else, than when this was asked last. Coming, going and
    /// becoming unreadable are changes too.
    ///
    /// Read them after asking: what changes in between is then seen the next time.
    pub(super) fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.seen {
            let now = Seen::look(path, Some(seen));
            changed |= !now.says_the_same(seen);
            *seen = now;
        }
        changed
    }
}

impl Seen {
    fn look(path: &Path, before: Option<&Self>) -> Self {
        let Ok(stamp) = Stamp::of(path) else { return Self::Nothing };
        if let Some(seen @ Self::File { stamp: old, settled: true, .. }) = before
            && *old == stamp
        {
            return *seen;
        }
        match digest(path) {
            Ok(digest) => Self::File { stamp, settled: stamp.is_settled(SystemTime::now()), digest },
            Err(_) => Self::Nothing,
        }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing) => true,
            (Self::File { digest, .. }, Self::File { digest: other, .. }) => digest == other,
            (Self::Nothing, Self::File { .. }) | (Self::File { .. }, Self::Nothing) => false,
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let last = u64::try_from(self.modified.0.max(self.changed.0)).unwrap_or_default();
        Duration::from_secs(last) + YOUNG < now
    }
}

fn digest(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hash, mut piece) = (fs::File::open(path)?.take(MOST), Sha256::new(), [0; 8192]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&piece[..read]),
        }
    }
}

// === impl Reloader ===

impl Reloader {
    /// Calls `read` whenever one of `paths` has changed since this call; `what` says what it reads, in log messages.
    ///
    /// An error of `read` is its own words for operators: it must leave in force what was, and is told once per change.
    pub(super) fn add(
        &mut self,
        what: &'static str,
        paths: impl IntoIterator<Item = PathBuf>,
        read: impl FnMut() -> Result<(), String> + Send + 'static,
    ) {
        self.sources.push(Source { what, files: Files::new(paths), read: Box::new(read), is_good: true });
    }

    /// Looks once; see [`Reloader::run`].
    fn look(&mut self, metrics: &Metrics) {
        let mut looked = false;
        for source in &mut self.sources {
            if !source.files.changed() {
                continue;
            }
            looked = true;
            let read = (source.read)();
            source.is_good = read.is_ok();
            match read {
                Ok(()) => tracing::info!(what = source.what, "read again"),
                Err(error) => {
                    tracing::error!(what = source.what, error, "cannot be read again, what was before stays");
                }
            }
        }
        if looked {
            metrics.config_reloaded(self.sources.iter().all(|source| source.is_good));
        }
    }

    /// Looks again and again, until dropped. `sluicegate_config_reload_success` is 1 while nothing of it is broken.
    ///
    /// Reads files, so it runs on the control runtime and not on a lane.
    pub(super) async fn run(mut self, metrics: Arc<Metrics>) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.look(&metrics);
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("what", &self.what).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::fs::symlink,
        sync::atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn what_is_written_moved_or_removed_is_seen_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        let mut files = Files::new([path.clone()]);
        assert!(!files.changed(), "a file that is not there does not change");
        for contents in ["one", "two", "six"] {
            // As long and as old as far as a clock of steps can tell.
            fs::write(&path, contents).unwrap();
            assert!(files.changed() && !files.changed(), "{contents}");
        }
        fs::write(&other, "new").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(files.changed() && !files.changed());
        fs::remove_file(&path).unwrap();
        assert!(files.changed() && !files.changed());
    }

    #[test]
    fn the_same_contents_are_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "one").unwrap();
        let mut files = Files::new([path.clone()]);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "one").unwrap();
        assert!(!files.changed());
    }

    /// A ConfigMap's `a` is a link to `..data/a`, and `..data` one to a folder that is replaced as a whole.
    #[test]
    fn a_config_map_is_swapped_as_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, contents) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a"), contents).unwrap();
        }
        symlink("v1", at("..data")).unwrap();
        symlink("..data/a", at("a")).unwrap();
        let mut files = Files::new([at("a")]);
        assert!(!files.changed());
        symlink("v2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert!(files.changed() && !files.changed());
    }

    #[test]
    fn only_a_file_that_is_old_is_known_by_its_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "one").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        let now = SystemTime::now();
        assert!(!stamp.is_settled(now) && stamp.is_settled(now + YOUNG + Duration::from_secs(1)));
    }

    #[test]
    fn files_that_are_watched_anew_keep_what_is_known_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        fs::write(&one, "one").unwrap();
        let mut files = Files::new([one.clone()]);
        fs::write(&one, "new").unwrap();
        files.watch([one, two.clone()]);
        assert!(files.changed(), "the change before is not forgotten");
        fs::write(&two, "two").unwrap();
        assert!(files.changed());
    }

    #[test]
    fn the_gauge_is_one_while_nothing_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let (metrics, reads) = (Metrics::new(), Arc::new(AtomicUsize::new(0)));
        let paths = ["good", "bad"].map(|name| folder.path().join(name));
        let mut reloader = Reloader::default();
        for path in &paths {
            let (path, reads) = (path.clone(), Arc::clone(&reads));
            reloader.add("test", [path.clone()], move || {
                reads.fetch_add(1, Ordering::Relaxed);
                let text = fs::read_to_string(&path).unwrap_or_default();
                if text == "broken" { Err("it is broken".into()) } else { Ok(()) }
            });
        }
        let gauge = |metrics: &Metrics| {
            let page = metrics.render();
            page.contains("sluicegate_config_reload_success 1")
        };
        reloader.look(&metrics);
        assert!(gauge(&metrics) && reads.load(Ordering::Relaxed) == 0);
        fs::write(&paths[1], "broken").unwrap();
        reloader.look(&metrics);
        assert!(!gauge(&metrics));
        // Another source that is well does not hide it.
        fs::write(&paths[0], "fine").unwrap();
        reloader.look(&metrics);
        assert!(!gauge(&metrics) && reads.load(Ordering::Relaxed) == 2);
        fs::write(&paths[1], "fine").unwrap();
        reloader.look(&metrics);
        assert!(gauge(&metrics));
    }
}

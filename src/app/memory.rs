//! How much memory there is for models, where nobody says.
//!
//! A container's limit counts as well as the machine's memory: what is beyond it ends the process without a word. Only Linux
//! tells; elsewhere nothing is limited.

use std::{fs, path::Path};

/// The share of all memory that models may have, in percent (architecture section 11): the rest is for calls and the system.
const PERCENT: u64 = 80;

/// Bytes for models: a share of what the machine has or the container may have, whichever is less; `None` if neither is known.
pub(super) fn share() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit(Path::new("/sys/fs/cgroup"), &groups).into_iter().chain(machine());
    limits.min().map(|bytes| bytes / 100 * PERCENT)
}

/// All memory of the machine.
fn machine() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least that any group allows which this process is in: `root` is where they are mounted, `groups` what
/// `/proc/self/cgroup` says. Version 2 has one line, `0::/PATH`; version 1 one for each kind of resource.
fn limit(root: &Path, groups: &str) -> Option<u64> {
    let read = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kinds), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mount, file) = match kinds {
            "" => (root.to_owned(), "memory.max"),
            kinds if kinds.split(',').any(|kind| kind == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // Each group is bound by those above it. Within a container the path may be the host's, and lead nowhere here: then
        // the root is the container's own.
        let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|path| mount.join(path));
        least = folders.filter_map(|folder| read(&folder, file)).chain(least).min();
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where groups are mounted, with these files in it.
    fn mounted(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = mounted(&[("pod/memory.max", "1000\n"), ("pod/box/memory.max", "max\n"), ("memory.max", "5000\n")]);
        assert_eq!(limit(root.path(), "0::/pod/box\n"), Some(1000));
        assert_eq!(limit(root.path(), "0::/\n"), Some(5000));
    }

    #[test]
    fn within_a_container_the_root_counts() {
        let root = mounted(&[("memory.max", "4096\n")]);
        assert_eq!(limit(root.path(), "0::/../../elsewhere\n"), Some(4096));
    }

    #[test]
    fn the_first_version_has_a_folder_for_memory() {
        let root = mounted(&[("memory/docker/1/memory.limit_in_bytes", "2048\n"), ("cpu/docker/1/memory.max", "1\n")]);
        assert_eq!(limit(root.path(), "4:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n"), Some(2048));
    }

    #[test]
    fn without_limits_there_are_none() {
        assert_eq!(limit(mounted(&[("memory.max", "max\n")]).path(), "0::/\n"), None);
        assert_eq!(limit(Path::new("/nowhere"), "0::/a\nnonsense\n"), None);
        #[cfg(target_os = "linux")]
        assert!(share().is_some_and(|bytes| bytes > 1 << 20));
    }
}

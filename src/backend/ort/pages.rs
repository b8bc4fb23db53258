//! Weights in huge pages.
//!
//! A run reads all weights of a model, and in pages of 4 KiB a good part of that is looking for them: more so where something
//! else runs between two runs, and in virtual machines, where each look is two. The C library takes memory for weights as it
//! takes any other, so nothing lies in huge pages where the system gives them only to those who ask. So the server looks at its
//! memory when models have been loaded, and has the system move what lies close together (madvise(2), `MADV_COLLAPSE`, Linux
//! 6.1): only pieces of which every page is in use already, so that it takes no more memory than before.
//!
//! Asking for huge pages beforehand would take more: of a heap that is used here and there each piece would be 2 MiB.

use super::values;
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Mappings that are smaller are not looked at: weights of so little are in the cache, and are found there.
const LEAST: usize = 4 << 20;

/// After a load, before memory is looked at: others may follow, and whoever waits for the model comes first.
const QUIET: Duration = Duration::from_millis(300);

/// Bytes of an entry of `/proc/self/pagemap`, and the bit that says that the page is there (proc_pid_pagemap(5)).
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;

/// Looks at the memory of this process after models have been loaded, where that is wanted.
#[derive(Debug, Default)]
pub(super) struct Pages {
    is_wanted: AtomicBool,
    /// Somebody is about to look.
    is_due: Arc<AtomicBool>,
}

// === impl Pages ===

impl Pages {
    pub(super) fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
    }

    /// A model was loaded.
    pub(super) fn changed(&self) {
        if !self.is_wanted.load(Ordering::Relaxed) || self.is_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_due = Arc::clone(&self.is_due);
        let look = move || {
            thread::park_timeout(QUIET);
            // What is loaded from now on is looked at again.
            is_due.store(false, Ordering::Release);
            match gather() {
                Ok(bytes) => tracing::debug!(bytes, "memory lies in huge pages"),
                Err(error) => tracing::debug!(%error, "memory stays in small pages"),
            }
        };
        if thread::Builder::new().name("huge-pages".to_owned()).spawn(look).is_err() {
            self.is_due.store(false, Ordering::Release);
        }
    }
}

/// Has the system lay what is whole in huge pages, where it has any. Bytes that lie in them now.
fn gather() -> io::Result<usize> {
    const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage";
    let mode = fs::read_to_string(format!("{FOLDER}/enabled"))?;
    if mode.contains("[never]") {
        return Err(io::Error::other("the system gives no huge pages"));
    }
    let huge: usize =
        fs::read_to_string(format!("{FOLDER}/hpage_pmd_size"))?.trim().parse().map_err(io::Error::other)?;
    let (small, pages) = (rustix::param::page_size(), File::open("/proc/self/pagemap")?);
    let mut entries = vec![0; huge / small * ENTRY];
    let mut is_whole = |at: usize| {
        let read = pages.read_exact_at(&mut entries, (at / small * ENTRY) as u64);
        let mut all = entries.chunks_exact(ENTRY).filter_map(|entry| entry.try_into().ok()).map(u64::from_ne_bytes);
        read.is_ok() && all.all(|entry| entry & PRESENT != 0)
    };
    let mut gathered = 0;
    for mapping in mappings(File::open("/proc/self/maps")?)? {
        for piece in whole(mapping, huge, &mut is_whole) {
            match values::collapse(&piece) {
                Ok(()) => gathered += piece.len(),
                // Somebody holds a page of it just now; the next may do.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(gathered)
}

/// Where memory that belongs to no file and has no name is mapped, to be read and written, as `/proc/self/maps` tells.
fn mappings(maps: impl Read) -> io::Result<Vec<Range<usize>>> {
    let mut found = Vec::new();
    for line in BufReader::new(maps).lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let [Some(range), Some("rw-p"), Some(_), Some(_), Some("0"), None] = std::array::from_fn(|_| words.next())
        else {
            continue;
        };
        let address = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((Some(start), Some(end))) = range.split_once('-').map(|(start, end)| (address(start), address(end)))
        else {
            continue;
        };
        if end.saturating_sub(start) >= LEAST {
            found.push(start..end);
        }
    }
    Ok(found)
}

/// The pieces of a mapping that huge pages fit on, and of which every small page is there; those that touch are one.
fn whole(mapping: Range<usize>, huge: usize, mut is_whole: impl FnMut(usize) -> bool) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let first = mapping.start.next_multiple_of(huge);
    for at in (first..mapping.end).step_by(huge).filter(|at| mapping.end - at >= huge) {
        if !is_whole(at) {
            continue;
        }
        match pieces.last_mut() {
            Some(last) if last.end == at => last.end = at + huge,
            _ => pieces.push(at..at + huge),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_memory_of_no_file_and_no_name_is_looked_at() {
        let maps = "\
            7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n\
            7f0000400000-7f00007ff000 rw-p 00000000 00:00 0 \n\
            7f0001000000-7f0002000000 r--p 00000000 00:00 0 \n\
            7f0002000000-7f0003000000 rw-s 00000000 00:01 7 \n\
            7f0003000000-7f0004000000 rw-p 00000000 08:01 99                         /lib/x.so\n\
            7f0004000000-7f0005000000 rw-p 00000000 00:00 0                          [heap]\n\
            7f0006000000-7f0007000000 rw-p 00000000 00:00 0\n\
            nonsense\n";
        let found = mappings(maps.as_bytes()).unwrap();
        assert_eq!(found, [0x7f00_0000_0000..0x7f00_0040_0000, 0x7f00_0600_0000..0x7f00_0700_0000]);
    }

    #[test]
    fn only_pieces_that_are_whole_and_on_which_a_huge_page_fits_are_moved() {
        let absent = [16, 40];
        let asked = |mapping: Range<usize>| whole(mapping, 8, |at| !absent.contains(&at));
        assert_eq!(asked(0..64), [0..16, 24..40, 48..64]);
        assert_eq!(asked(1..63), [8..16, 24..40, 48..56]);
        assert!(asked(1..15).is_empty() && asked(9..16).is_empty());
    }

    #[test]
    fn memory_is_what_it_was_and_lies_in_huge_pages_where_the_system_has_them() {
        let bytes: Vec<u8> = (0..64 << 20).map(|at: usize| (at / 4096) as u8).collect();
        let Ok(gathered) = gather() else { return };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at / 4096) as u8));
        // Some pieces may be busy, and one at each end may not fit.
        let smaps = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = smaps.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
        let kib: usize = line.split_ascii_whitespace().next().unwrap().parse().unwrap();
        assert!(gathered == 0 || kib > 0, "{gathered} bytes, {kib} KiB");
    }
}

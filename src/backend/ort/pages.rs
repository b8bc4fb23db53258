//! Weights in huge pages.
//!
//! A run reads all weights of a model, and in pages of 4 KiB a good part of that is looking for them: more so where something
//! else runs between two runs, and in virtual machines, where each look is two. The C library takes memory for weights as it
//! takes any other, so nothing lies in huge pages where the system gives them only to those who ask. So the server looks at its
//! memory when models have been loaded, and has the system move what lies close together (madvise(2), `MADV_COLLAPSE`, Linux
//! 6.1): only pieces of which every page is in use already, so that it takes hardly more memory than before.
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
            match File::open("/proc/self/maps").and_then(mappings).and_then(|mappings| gather(&mappings)) {
                Ok(bytes) => tracing::debug!(bytes, "what is dense in memory was moved into huge pages"),
                Err(error) => tracing::debug!(%error, "memory stays in small pages"),
            }
        };
        if thread::Builder::new().name("huge-pages".to_owned()).spawn(look).is_err() {
            self.is_due.store(false, Ordering::Release);
        }
    }
}

/// Has the system move what is whole in these mappings into huge pages. Bytes that lie in them now.
///
/// # Errors
///
/// The system's, where it has no huge pages or refuses each of them.
fn gather(mappings: &[Range<usize>]) -> io::Result<usize> {
    const FOLDER: &str = "/sys/kernel/mm/transparent_hugepage";
    let mode = fs::read_to_string(format!("{FOLDER}/enabled"))?;
    if mode.contains("[never]") {
        return Err(io::Error::other("the system gives no huge pages"));
    }
    let huge: usize =
        fs::read_to_string(format!("{FOLDER}/hpage_pmd_size"))?.trim().parse().map_err(io::Error::other)?;
    let (small, pages) = (rustix::param::page_size(), File::open("/proc/self/pagemap")?);
    if huge <= small {
        return Err(io::Error::other("huge pages are no larger than others"));
    }
    let mut entries = vec![0; huge / small * ENTRY];
    let mut is_whole = |at: usize| {
        let read = pages.read_exact_at(&mut entries, (at / small * ENTRY) as u64);
        let mut all = entries.chunks_exact(ENTRY).filter_map(|entry| entry.try_into().ok()).map(u64::from_ne_bytes);
        read.is_ok() && all.all(|entry| entry & PRESENT != 0)
    };
    let (mut gathered, mut refused) = (0, None);
    for mapping in mappings {
        for piece in fits(mapping, huge) {
            if !is_whole(piece.start) {
                continue;
            }
            match values::collapse(&piece) {
                Ok(()) => gathered += piece.len(),
                Err(error) => refused = Some(error),
            }
        }
    }
    // Some are busy, or gone before they are asked for; if all are refused, the system says why.
    refused.filter(|_| gathered == 0).map_or(Ok(gathered), Err)
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

/// The pieces of a mapping on which a huge page fits.
fn fits(mapping: &Range<usize>, huge: usize) -> impl Iterator<Item = Range<usize>> {
    let (first, end) = (mapping.start.next_multiple_of(huge), mapping.end);
    (first..end).step_by(huge).map(move |at| at..at + huge).filter(move |piece| piece.end <= end)
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
    fn only_pieces_on_which_a_huge_page_fits_are_moved() {
        let asked = |mapping: Range<usize>| fits(&mapping, 8).collect::<Vec<_>>();
        assert_eq!(asked(0..24), [0..8, 8..16, 16..24]);
        assert_eq!(asked(1..31), [8..16, 16..24]);
        assert!(asked(1..15).is_empty() && asked(9..16).is_empty());
    }

    #[test]
    fn what_is_moved_says_what_it_said() {
        let bytes: Vec<u8> = (0..16 << 20).map(|at: usize| (at / 4096) as u8).collect();
        let start = bytes.as_ptr().addr();
        let gathered = gather(std::slice::from_ref(&(start..start + bytes.len())));
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at / 4096) as u8));
        // Where the system has huge pages at all, some were to be had.
        assert!(gathered.is_err() || gathered.is_ok_and(|bytes| bytes >= 2 << 20));
    }
}

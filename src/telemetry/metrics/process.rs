//! The standard `process_*` families, read from `/proc` when the page is asked for. Absent where there is no `/proc`.
//!
//! Written here rather than taken from the `process` feature of prometheus, which brings libc and a parser of all of
//! `/proc` for seven numbers.

use super::page::{Kind, Page};
use std::{fs, sync::OnceLock};

/// Clock ticks per second in `/proc`: fixed by Linux towards programs (`USER_HZ`), whatever the kernel's own is.
const TICKS: f64 = 100.0;

/// Appends the families to `page`; each is left out if it cannot be read.
pub(super) fn render(page: &mut Page) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let mut family = |name: &str, kind: Kind, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            page.family(name, kind, help);
            page.sample("", &[], value);
        }
    };
    family("process_cpu_seconds_total", Kind::Counter, "User and system time.", cpu_seconds(&stat));
    family("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", bytes(&status, "VmRSS:"));
    family("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory.", bytes(&status, "VmSize:"));
    family("process_threads", Kind::Gauge, "Threads.", field(&status, "Threads:"));
    family("process_open_fds", Kind::Gauge, "Open file descriptors.", open_fds());
    family("process_max_fds", Kind::Gauge, "File descriptors that may be open.", field(&limits, "Max open files"));
    family("process_start_time_seconds", Kind::Gauge, "Start of the process, since 1970.", start_time(&stat));
}

/// Field `number` of `/proc/self/stat`, counted from 1 as in proc(5). The second is a name that may hold anything.
fn ticks(stat: &str, number: usize) -> Option<f64> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((ticks(stat, 14)? + ticks(stat, 15)?) / TICKS)
}

/// Does not change, so it is read once.
fn start_time(stat: &str) -> Option<f64> {
    static BOOT: OnceLock<Option<f64>> = OnceLock::new();
    let boot = BOOT.get_or_init(|| field(&fs::read_to_string("/proc/stat").ok()?, "btime "));
    Some((*boot)? + ticks(stat, 22)? / TICKS)
}

/// The first number after `key` on the line that begins with it.
pub(super) fn field(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// `/proc/self/status` counts in units of 1,024 bytes.
fn bytes(status: &str, key: &str) -> Option<f64> {
    Some(field(status, key)? * 1024.0)
}

fn open_fds() -> Option<f64> {
    // Without the one that reads the folder.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_nothing() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 1200 8 9";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(ticks(stat, 22), Some(1200.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn sizes_are_bytes_and_an_unlimited_number_of_files_is_left_out() {
        assert_eq!(bytes("VmPeak:\t 9 kB\nVmRSS:\t    2 kB\n", "VmRSS:"), Some(2048.0));
        assert_eq!(field("Max open files            1024    4096    files\n", "Max open files"), Some(1024.0));
        assert_eq!(field("Max open files            unlimited", "Max open files"), None);
    }
}

//! Whether this process takes memory in huge pages.

/// Takes it in small ones where huge ones are for those who ask for them (`madvise`). To be called before anything else.
///
/// There nobody asks but the allocator of the program, and touching 64 KiB of a heap of its own then costs 2 MiB: 22 MiB of a
/// server of three models, which is no faster for it (`benches/README.md`, "Huge pages"). Where huge pages are given to
/// everybody, or the C library asks for them because its tunables say so, it is the machine's owner who wants them, and the
/// weights of models gain by them.
pub fn leave() {
    #[cfg(target_os = "linux")]
    {
        let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        if mode.contains("[madvise]") && !are_wanted(&std::env::var("GLIBC_TUNABLES").unwrap_or_default()) {
            // A no costs memory and nothing else.
            let _ = rustix::thread::disable_transparent_huge_pages(true);
        }
    }
}

/// Whether these tunables of glibc (`NAME=VALUE`, with colons between them) have its blocks in huge pages.
#[cfg(target_os = "linux")]
fn are_wanted(tunables: &str) -> bool {
    let of_malloc = |tunable: &str| tunable.strip_prefix("glibc.malloc.hugetlb=").map(|value| value != "0");
    // The last one that is said counts.
    tunables.split(':').filter_map(of_malloc).next_back().unwrap_or(false)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::are_wanted;

    #[test]
    fn tunables_say_whether_huge_pages_are_wanted() {
        for wanted in ["glibc.malloc.hugetlb=1", "glibc.malloc.check=0:glibc.malloc.hugetlb=2"] {
            assert!(are_wanted(wanted), "{wanted}");
        }
        for other in
            ["", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0", "glibc.malloc.check=1"]
        {
            assert!(!are_wanted(other), "{other}");
        }
    }
}

//! The `sluicegate` program: arguments in, exit status out. Everything else is in the library.

use clap::Parser;
use sluicegate::cli::Cli;
use std::process::ExitCode;

/// A call makes some twenty small allocations, the front-end's included, and frees them on the same lane.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    leave_huge_pages();
    // Before any thread exists: official builds of ONNX Runtime send usage data unless told not to
    // (architecture decision 7).
    // If there were threads already it says no, and the environment of ONNX Runtime is still told.
    let _ = sluicegate::backend::ort::disable_telemetry();
    Cli::parse().run()
}

/// Takes memory in small pages where huge ones are for those who ask for them (`madvise`).
///
/// There nobody asks but the allocator, and touching 64 KiB of a heap of its own then costs 2 MiB: 22 MiB of a server of three
/// models, which is no faster for it (`benches/README.md`). Where huge pages are given to everybody, or the C library asks for
/// them because its tunables say so, it is the machine's owner who wants them, and the weights of models gain by them.
fn leave_huge_pages() {
    #[cfg(target_os = "linux")]
    {
        let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let is_wanted = std::env::var("GLIBC_TUNABLES").is_ok_and(|tunables| tunables.contains("glibc.malloc.hugetlb"));
        if mode.contains("[madvise]") && !is_wanted {
            // A no costs memory and nothing else.
            let _ = rustix::thread::disable_transparent_huge_pages(true);
        }
    }
}

//! The `sluicegate` program: arguments in, exit status out. Everything else is in the library.

use clap::Parser;
use sluicegate::cli::Cli;
use std::process::ExitCode;

/// A call makes some twenty small allocations, the front-end's included, and frees them on the same lane.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before any thread exists: official builds of ONNX Runtime send usage data unless told not to
    // (architecture decision 7).
    // If there were threads already it says no, and the environment of ONNX Runtime is still told.
    let _ = sluicegate::backend::ort::disable_telemetry();
    Cli::parse().run()
}

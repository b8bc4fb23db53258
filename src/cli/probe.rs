//! The hidden command that tries one model file, in a process that may die of it: see [`crate::backend::ort::probe`].

use crate::{
    backend::{
        Open,
        ort::{
            Runtime,
            probe::{REFUSED, is_exhausted},
            serve, settings_of_words,
        },
    },
    model,
};
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{io::Write, path::PathBuf};

#[derive(Debug, Args)]
pub(super) struct Probe {
    /// ONNX Runtime's shared library
    #[arg(long)]
    onnxruntime: PathBuf,
    /// Bytes of memory
    #[arg(long)]
    memory: u64,
    /// The process that wants it tried
    #[arg(long)]
    parent: u32,
    /// How it is opened, one word of it: see [`crate::backend::ort::settings_of_words`]
    #[arg(long)]
    session: Vec<String>,
    /// The model file
    file: PathBuf,
}

impl Probe {
    /// Opens the file, runs it once on zeros, and then on what comes in. Does not return: on the usual way out, destructors of a library
    /// that a file has damaged would run, and what they do is no matter of loading.
    pub(super) fn run(&self) -> ! {
        bound(self.parent);
        let tried = || -> Result<(), String> {
            let runtime = Runtime::load(Some(&self.onnxruntime)).map_err(|error| error.to_string())?;
            // Now, so that the library is no part of it.
            limit(Resource::Data, data().saturating_add(self.memory));
            let settings = settings_of_words(&self.session)?;
            let mut backend = runtime.open(&self.file, &settings).map_err(|error| error.to_string())?;
            // What zeros do to a model that wants other inputs is no error, as at warm-up.
            let ran = model::run_on_zeros(&mut *backend).map_err(|error| model::reason(&error));
            match ran {
                Err(reason) if is_exhausted(&reason) => return Err(format!("it cannot be run: {reason}")),
                _ => {}
            }
            // Pipes that are gone have nobody at the other end to be told.
            let _ = serve(&mut *backend, std::io::stdin().lock(), std::io::stdout().lock());
            Ok(())
        };
        let status = match std::panic::catch_unwind(tried) {
            Ok(Ok(())) => 0,
            Ok(Err(reason)) => refused(&reason),
            Err(_) => refused("opening it panicked"),
        };
        signal_hook::low_level::exit(i32::from(status))
    }
}

/// What holds from the start. Each limit is one that there may not be on every system: without it the parent's are left.
fn bound(parent: u32) {
    limit(Resource::Core, 0);
    limit(Resource::Fsize, 0);
    // A parent that is gone cannot end it when its time is up.
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        // One that was gone before sends none.
        let now = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
        if now != i32::try_from(parent).ok() {
            signal_hook::low_level::exit(i32::from(REFUSED));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    // Where memory runs out all the same, this process goes and not the server.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

fn limit(resource: Resource, most: u64) {
    let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
}

/// Bytes that are mapped for writing now, used or not, which is what [`Resource::Data`] counts: allocators reserve a good part
/// of a GiB.
fn data() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0_u64) << 10
}

fn refused(reason: &str) -> u8 {
    let mut output = std::io::stdout();
    let _ = output.write_all(reason.as_bytes()).and_then(|()| output.flush());
    REFUSED
}

//! The same program without the stack: front-ends, router, scheduler and ONNX Runtime as they are served, and nothing between.
//!
//! `without_stack CONFIG KEY`: serves as the configuration says, all callers as whom the API key names. What the layers cost of
//! the whole is the difference to `sluicegate serve --config CONFIG`; `table.py --stack` builds it and measures that. Files are
//! not tried before they are loaded.

#[path = "bare.rs"]
mod bare;

use sluicegate::{
    app::{self, App, Parts},
    backend::{
        Open,
        ort::{Runtime, disable_telemetry},
    },
    call::{Credentials, Gateway, Peer},
    config::{Config, Overrides},
};
use std::{
    convert::Infallible,
    error::Error,
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static KEY: OnceLock<String> = OnceLock::new();

fn build(parts: Parts) -> Gateway {
    let address = ([127, 0, 0, 1], 0).into();
    let key = Credentials::Bearer(KEY.get().map_or("", |key| key).into());
    let identity =
        parts.authenticator.verify(&Peer::new(address, address), &key).expect("a key of the configuration's");
    bare::gateway(parts.router, identity)
}

fn serve(config: &str) -> Result<Infallible, Box<dyn Error>> {
    let config =
        Config::load(Some(Path::new(config)), Overrides::default()).map_err(|problems| problems.to_string())?;
    let runtime = Runtime::load(config.runtime.onnxruntime.as_deref())?;
    runtime.use_huge_pages();
    let opener: Arc<dyn Open> = Arc::new(runtime);
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let _app: App = app::start_built(config, opener, build).await?;
        std::future::pending().await
    })
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(config), Some(key), None) =
        (arguments.next(), arguments.next().filter(|key| !key.starts_with('-')), arguments.next())
    else {
        // As `cargo bench` starts it, with options and a filter of names.
        println!("without_stack CONFIG KEY: see benches/table.py --stack");
        return ExitCode::SUCCESS;
    };
    let _ = disable_telemetry();
    KEY.get_or_init(|| key);
    match serve(&config) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

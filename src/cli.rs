//! The command line: what the flags are, and what each command prints.
//!
//! A flag wins over its variable `SLUICEGATE_<FLAG>`, which wins over the file, which wins over defaults.
//! Exit status: 0 all is well, 2 the configuration or a model is wrong, 1 anything else.

use crate::{
    app,
    auth::api_key,
    backend::ort::Runtime,
    config::{self, Config, Overrides, Problems},
    model::describe::describe,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::SystemTime,
};

/// Exit status for a wrong configuration or model.
const WRONG: u8 = 2;

/// Serve ONNX models over REST, gRPC, WebSocket and HTTP/2 streams on one port.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", disable_version_flag = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print the version, and that of the ONNX Runtime it loads
    #[arg(short = 'V', long)]
    version: bool,
    /// ONNX Runtime's shared library, for --version
    #[arg(long, env = "SLUICEGATE_ONNXRUNTIME", hide = true)]
    onnxruntime: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models until told to stop
    Serve(Serve),
    /// Explain the configuration and every model; exit 2 if something is wrong
    Check(Check),
    /// Make API keys
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file (YAML)
    #[arg(long, env = "SLUICEGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of models: NAME/VERSION/model.onnx
    #[arg(long, env = "SLUICEGATE_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// Address to listen on, with all surfaces; may be repeated; port 0 works
    #[arg(long, env = "SLUICEGATE_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    listen: Vec<SocketAddr>,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, env = "SLUICEGATE_ADMIN_LISTEN", value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,
    /// ONNX Runtime's shared library
    #[arg(long, env = "SLUICEGATE_ONNXRUNTIME", value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Form of log lines; by default pretty on a terminal, else json
    #[arg(long, env = "SLUICEGATE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
struct Check {
    /// Configuration file (YAML)
    #[arg(long, env = "SLUICEGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of models: NAME/VERSION/model.onnx
    #[arg(long, env = "SLUICEGATE_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// ONNX Runtime's shared library
    #[arg(long, env = "SLUICEGATE_ONNXRUNTIME", value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Make a key: prints it once, and the entry for keys.yaml
    New {
        /// Identity that the key proves
        #[arg(long)]
        identity: String,
        /// Groups of that identity; may be repeated
        #[arg(long = "group")]
        groups: Vec<String>,
    },
    /// Read a key from standard input and print its hash for keys.yaml
    Hash,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Pretty,
    Json,
}

// === impl Cli ===

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        if self.version {
            return version(self.onnxruntime.as_deref());
        }
        match self.command {
            Some(Command::Serve(arguments)) => serve(&arguments),
            Some(Command::Check(arguments)) => check(&arguments),
            Some(Command::Keys { command: Keys::New { identity, groups } }) => new_key(&identity, &groups),
            Some(Command::Keys { command: Keys::Hash }) => hash_key(),
            None => ExitCode::FAILURE,
        }
    }
}

fn version(library: Option<&Path>) -> ExitCode {
    let runtime = match Runtime::load(library) {
        Ok(runtime) => format!("ONNX Runtime {}", runtime.version()),
        Err(error) => {
            eprintln!("{error}");
            "no ONNX Runtime".into()
        }
    };
    println!("sluicegate {} ({runtime})", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

fn serve(arguments: &Serve) -> ExitCode {
    let overrides = Overrides {
        listen: arguments.listen.clone(),
        models: arguments.models.clone(),
        admin_listen: arguments.admin_listen,
        onnxruntime: arguments.onnxruntime.clone(),
        log_format: arguments.log_format.map(|format| match format {
            LogFormat::Pretty => config::LogFormat::Pretty,
            LogFormat::Json => config::LogFormat::Json,
        }),
    };
    let config = match Config::load(arguments.config.as_deref(), overrides) {
        Ok(config) => config,
        Err(problems) => return wrong(&problems),
    };
    let runtime = match Runtime::load(config.runtime.onnxruntime.as_deref()) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let engine = format!("ONNX Runtime {}", runtime.version());
    match app::run(config, Arc::new(runtime), &engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Prints what would be served and every problem with it.
fn check(arguments: &Check) -> ExitCode {
    let overrides = Overrides {
        models: arguments.models.clone(),
        onnxruntime: arguments.onnxruntime.clone(),
        ..Overrides::default()
    };
    let config = match Config::load(arguments.config.as_deref(), overrides) {
        Ok(config) => config,
        Err(problems) => return wrong(&problems),
    };
    let runtime = match Runtime::load(config.runtime.onnxruntime.as_deref()) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    explain(&config, &runtime);
    let descriptions = describe(&app::model_settings(&config), &runtime);
    let mut problems = 0;
    for description in &descriptions {
        println!("\n{}", description.what);
        for line in &description.lines {
            println!("  {line}");
        }
        if let Some(problem) = &description.problem {
            problems += 1;
            println!("  problem: {problem}");
        }
    }
    for warning in config.warnings() {
        println!("\nwarning: {warning}");
    }
    match (problems, descriptions.len()) {
        (0, 0) => {
            println!("\nno models: expected NAME/VERSION/model.onnx");
            ExitCode::from(WRONG)
        }
        (0, models) => {
            println!("\n{models} to serve, no problems");
            ExitCode::SUCCESS
        }
        (problems, all) => {
            println!("\n{problems} of {all} cannot be served; the rest would be");
            ExitCode::from(WRONG)
        }
    }
}

fn explain(config: &Config, runtime: &Runtime) {
    let library = runtime.library();
    let here = std::env::current_dir().ok();
    let shown = here.as_deref().and_then(|here| library.strip_prefix(here).ok()).unwrap_or(library);
    println!("ONNX Runtime {} from {}", runtime.version(), shown.display());
    for listen in &config.listen {
        let surfaces: Vec<_> = crate::call::Surface::ALL
            .into_iter()
            .filter(|surface| listen.surfaces.has(*surface))
            .map(crate::call::Surface::name)
            .collect();
        let tls = if listen.tls.is_some() { "TLS" } else { "clear text" };
        println!("listens on {} ({tls}): {}", listen.address, surfaces.join(", "));
    }
    match &config.admin {
        Some(admin) => println!("metrics and probes on {}", admin.address),
        None => println!("no admin listener"),
    }
    match (config.auth.has_method(), config.grants.len()) {
        (false, 0) => println!("callers: anonymous ones on loopback may do everything"),
        (_, grants) => println!("callers: as {grants} grants say"),
    }
    match config.rates.len() {
        0 => println!("rates: none"),
        rates => println!("rates: {rates}"),
    }
    let folders: Vec<_> = config.models.directories.iter().map(|folder| folder.display().to_string()).collect();
    println!("models from {}", folders.join(", "));
}

fn new_key(identity: &str, groups: &[String]) -> ExitCode {
    let key = match api_key::generate() {
        Ok(key) => key,
        Err(error) => return failed(&error),
    };
    println!("{}", key.key);
    println!("\nThis is the only time it is shown. Put this below `keys:` in keys.yaml:\n");
    println!("{}", key.entry(identity, groups, SystemTime::now()));
    ExitCode::SUCCESS
}

fn hash_key() -> ExitCode {
    let mut key = String::new();
    if let Err(error) = io::stdin().read_line(&mut key) {
        return failed(&error);
    }
    match key.trim() {
        "" => failed(&"no key on standard input"),
        key => {
            println!("{}", api_key::hash(key));
            ExitCode::SUCCESS
        }
    }
}

fn wrong(problems: &Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(WRONG)
}

fn failed(error: &dyn fmt::Display) -> ExitCode {
    eprintln!("sluicegate: {error}");
    ExitCode::FAILURE
}

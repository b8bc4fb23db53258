//! The command line: what the flags are, and what each command prints.
//!
//! A flag wins over its variable `SLUICEGATE_<FLAG>`, which wins over the file, which wins over defaults.
//! Exit status: 0 all is well, 2 the configuration or a model is wrong, 1 anything else.

use crate::{
    app,
    auth::api_key,
    backend::ort::Runtime,
    config::{Config, Overrides},
    model,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{
    io::{self, BufRead, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
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
            return version(self.onnxruntime);
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

fn version(library: Option<PathBuf>) -> ExitCode {
    let runtime = match Runtime::load(library.as_deref()) {
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
            LogFormat::Pretty => LogForm::Pretty,
            LogFormat::Json => LogForm::Json,
        }),
    };
    let config = match Config::load(arguments.config.as_deref(), &overrides) {
        Ok(config) => config,
        Err(problems) => return wrong(&problems),
    };
    let runtime = match Runtime::load(config.runtime.onnxruntime.as_deref()) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match app::run(config, Arc::new(runtime)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

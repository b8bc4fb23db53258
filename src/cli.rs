//! The command line: what the flags are, and what each command prints.
//!
//! A flag wins over its variable `SLUICEGATE_<FLAG>`, which wins over the file, which wins over defaults.
//! Exit status: 0 all is well, 2 the configuration or a model is wrong, 1 anything else.

mod keys;
mod probe;

use crate::{
    app,
    auth::Anonymous,
    backend::{
        Open,
        ort::{
            Runtime,
            probe::{self as probing, COMMAND},
        },
    },
    bench,
    config::{self, Config, Overrides, Problems},
    frontend::tls::Speaks,
    model::describe::{Description, describe},
    tensor::{DataType, Signature},
    wire,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use keys::Keys;
use probe::Probe;
use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
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
    /// Measure a running server, or the engine in this process
    Bench(Box<bench::Arguments>),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Make, list and revoke API keys
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Try one model file, and say by the exit status what came of it
    #[command(name = COMMAND, hide = true)]
    Probe(Probe),
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
            Some(Command::Bench(arguments)) => measure(&arguments),
            Some(Command::Schema) => {
                println!("{:#}", config::schema());
                ExitCode::SUCCESS
            }
            Some(Command::Keys { command }) => command.run(),
            Some(Command::Probe(probe)) => probe.run(),
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

/// The configuration and the ONNX Runtime that it names; what is wrong with either is printed.
fn load(file: Option<&Path>, overrides: Overrides) -> Result<(Config, Runtime), ExitCode> {
    let config = Config::load(file, overrides).map_err(|problems| wrong(&problems))?;
    let runtime = Runtime::load(config.runtime.onnxruntime.as_deref()).map_err(|error| failed(&error))?;
    Ok((config, runtime))
}

/// What opens models: the runtime, which has files tried first as `models.probe` says, and keeps what comes of optimising them
/// as `models.optimized_cache` does.
fn opener(config: &Config, runtime: Runtime) -> io::Result<Arc<dyn Open>> {
    let probe = app::probe_settings(config, probing::Settings::this_program()?);
    Ok(probing::opener(runtime, probe, app::optimized_settings(config)))
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
    let (config, runtime) = match load(arguments.config.as_deref(), overrides) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    if config.runtime.huge_pages == config::HugePages::Auto {
        runtime.use_huge_pages();
    }
    let version = runtime.version().to_owned();
    let opener = match opener(&config, runtime) {
        Ok(opener) => opener,
        Err(error) => return failed(&error),
    };
    let status = match app::run(config, opener, &version) {
        Ok(()) => 0,
        Err(error) => {
            failed(&error);
            1
        }
    };
    // A model that was being loaded still is, on a thread of its own that nothing can stop. On the usual way out the
    // destructors of ONNX Runtime would take its memory from under that thread.
    let _ = io::stdout().flush();
    // What a build that counts (`make pgo`) has counted is written on that way; it loads nothing when it ends.
    #[cfg(profile)]
    std::process::exit(status);
    #[cfg(not(profile))]
    signal_hook::low_level::exit(status)
}

/// Prints what would be served and every problem with it.
fn check(arguments: &Check) -> ExitCode {
    let overrides = Overrides {
        models: arguments.models.clone(),
        onnxruntime: arguments.onnxruntime.clone(),
        ..Overrides::default()
    };
    let (config, runtime) = match load(arguments.config.as_deref(), overrides) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let opener = match opener(&config, runtime.clone()) {
        Ok(opener) => opener,
        Err(error) => return failed(&error),
    };
    let mut text = String::new();
    let wrong = explain(&mut text, &config, &runtime, opener).unwrap_or(true);
    print(&text);
    if wrong { ExitCode::from(WRONG) } else { ExitCode::SUCCESS }
}

fn measure(arguments: &bench::Arguments) -> ExitCode {
    match bench::run(arguments) {
        Ok(outcome) => {
            print(&outcome.text);
            if outcome.answered { ExitCode::SUCCESS } else { failed(&"a run had no answer at all") }
        }
        Err(error) => failed(&error),
    }
}

/// Standard output may be a pipe whose reader has enough: that is no error.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Says in plain words what would be served, and with which problems. True if there are any.
fn explain(text: &mut String, config: &Config, runtime: &Runtime, opener: Arc<dyn Open>) -> Result<bool, fmt::Error> {
    let library = runtime.library();
    let here = std::env::current_dir().ok();
    let shown = here.as_deref().and_then(|here| library.strip_prefix(here).ok()).unwrap_or(library);
    writeln!(text, "ONNX Runtime {} from {}", runtime.version(), shown.display())?;
    writeln!(text, "providers: {}", runtime.providers().join(", "))?;
    let mut problems = 0;
    for listen in &config.listen {
        let tls = if listen.tls.is_some() { "TLS" } else { "clear text" };
        writeln!(text, "listens on {} ({tls}): {}", listen.address, listen.surfaces.names().join(", "))?;
        if let Err(error) = app::tls(listen.tls.as_ref(), Speaks::Both) {
            problems += 1;
            writeln!(text, "  problem: {error}")?;
        }
    }
    match &config.admin {
        Some(admin) => {
            let tls = if admin.tls.is_some() { "TLS" } else { "clear text" };
            writeln!(text, "metrics and probes on {} ({tls})", admin.address)?;
            if let Err(error) = app::tls(admin.tls.as_ref(), Speaks::Http1) {
                problems += 1;
                writeln!(text, "  problem: {error}")?;
            }
        }
        None => writeln!(text, "no admin listener")?,
    }
    match (config.auth.has_method(), config.grants.len()) {
        (false, 0) if config.auth.anonymous == Anonymous::Loopback => {
            writeln!(text, "callers: anonymous ones on loopback may do everything")?;
        }
        (false, _) if config.auth.anonymous == Anonymous::Never => writeln!(text, "callers: none")?,
        (_, 0) => writeln!(text, "callers: nobody may do anything, there are no grants")?,
        (_, grants) => writeln!(text, "callers: as {grants} grants say")?,
    }
    match config.rates.len() {
        0 => writeln!(text, "rates: none")?,
        rates => writeln!(text, "rates: {rates}")?,
    }
    let settings = app::model_settings(config);
    let memory = settings.budget.memory().map(|bytes| format!(", {} MiB of memory for them", bytes >> 20));
    let cores = match settings.budget.cores() {
        1 => "1 core".to_owned(),
        cores => format!("{cores} cores"),
    };
    writeln!(text, "models on threads share {cores}{}", memory.unwrap_or_default())?;
    let folders: Vec<_> = config.models.directories.iter().map(|folder| folder.display().to_string()).collect();
    writeln!(text, "models from {}", folders.join(", "))?;
    let descriptions = describe(&settings, opener, app::lane_count(config));
    for description in &descriptions {
        writeln!(text, "\n{}", printable(&description.what))?;
        for line in &description.lines {
            writeln!(text, "  {}", printable(line))?;
        }
        let (wire, body) = (&config.frontend.wire, config.frontend.size.body);
        for warning in description.signature.iter().flat_map(|signature| uncallable(wire, body, signature)) {
            writeln!(text, "  warning: {}", printable(&warning))?;
        }
        if let Some(problem) = &description.problem {
            problems += 1;
            writeln!(text, "  problem: {}", printable(problem))?;
        }
    }
    for name in missing(config, &descriptions) {
        problems += 1;
        writeln!(text, "\n{}", printable(name))?;
        writeln!(text, "  problem: is listed in `models.required` and would not be served: the server is never ready")?;
    }
    if let Some(problem) = predicted(config, &descriptions) {
        problems += 1;
        writeln!(text, "\nrest.predict.model\n  problem: {problem}")?;
    }
    for warning in config.warnings() {
        writeln!(text, "\nwarning: {warning}")?;
    }
    let models = descriptions.len();
    match problems {
        0 if models == 0 => {
            writeln!(text, "\nno models: expected NAME/VERSION/model.onnx")?;
            return Ok(true);
        }
        0 => writeln!(text, "\n{models} to serve, no problems")?,
        1 => writeln!(text, "\n1 problem; what has none would be served")?,
        problems => writeln!(text, "\n{problems} problems; what has none would be served")?,
    }
    Ok(problems > 0)
}

/// Why nobody could call a model with this signature though it would be served.
fn uncallable(wire: &wire::Settings, body: usize, signature: &Signature) -> Vec<String> {
    let mut warnings = Vec::new();
    if signature.inputs.len() > wire.tensors {
        let (count, most) = (signature.inputs.len(), wire.tensors);
        warnings.push(format!("has {count} inputs, and a call may have {most} (`limits.size.tensors`)"));
    }
    for spec in &signature.inputs {
        if spec.dims.len() > wire.rank {
            let (rank, most) = (spec.dims.len(), wire.rank);
            let text = format!("has {rank} dimensions, and a call may have {most} (`limits.size.rank`)");
            warnings.push(format!("input `{}` {text}", spec.name));
        }
        // What is free may be nothing; of a text its length alone is four bytes.
        let least = spec.dims.iter().try_fold(1, |product: usize, dim| product.checked_mul(dim.unwrap_or(1)));
        let size = spec.dtype.and_then(DataType::size).unwrap_or(4);
        let bytes =
            least.and_then(|elements| elements.checked_mul(size)).and_then(|bytes| bytes.checked_add(spec.name.len()));
        if bytes.is_none_or(|bytes| bytes > body) {
            warnings.push(format!("input `{}` is larger than a call may be (`limits.size.body`)", spec.name));
        }
    }
    warnings
}

/// Required models that would not be served, as far as is known: a load call may still bring them.
fn missing<'a>(config: &'a Config, descriptions: &[Description]) -> Vec<&'a str> {
    let is_served = |name: &str| {
        let of_it = |what: &str| what.rsplit_once('/').is_some_and(|(model, _)| model == name);
        descriptions.iter().any(|found| found.problem.is_none() && of_it(&found.what))
    };
    let may_come = config.models.control == config::Control::Explicit;
    let required = config.models.required.iter().map(|name| &**name);
    required.filter(|name| !may_come && !is_served(name)).collect()
}

/// What is wrong with the model behind `POST /predict`, as far as is known: a load call may still bring it.
fn predicted(config: &Config, descriptions: &[Description]) -> Option<String> {
    let model = &config.frontend.rest.predict.as_ref()?.model;
    let is_it = |what: &str| match (what.rsplit_once('/'), &model.version) {
        (Some((name, version)), Some(wanted)) => name == &*model.name && version == &**wanted,
        (Some((name, _)), None) => name == &*model.name,
        (None, _) => false,
    };
    let found = descriptions.iter().any(|found| is_it(&found.what));
    let may_come = config.models.control == config::Control::Explicit;
    (!found && !may_come).then(|| match &model.version {
        Some(version) => format!("no version {version} of a model `{}` would be served", model.name),
        None => format!("no model `{}` would be served", model.name),
    })
}

/// A line with names in it that come from files: what a terminal would obey is written out.
fn printable(line: &str) -> Cow<'_, str> {
    if !line.contains(char::is_control) {
        return line.into();
    }
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    line.chars().map(shown).collect()
}

fn wrong(problems: &Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(WRONG)
}

fn failed(error: &dyn fmt::Display) -> ExitCode {
    eprintln!("sluicegate: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TensorSpec;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(printable("input `x`: FP32"), "input `x`: FP32");
        assert_eq!(printable("a\n\u{1b}[31mb"), "a\\n\\u{1b}[31mb");
    }

    #[test]
    fn inputs_that_no_call_could_bring_are_told() {
        let told = |dims: Vec<Option<usize>>, count: usize| {
            let spec = TensorSpec { name: "x".into(), dtype: Some(DataType::Fp32), dims };
            uncallable(
                &wire::Settings::default(),
                64 << 20,
                &Signature { inputs: vec![spec; count], outputs: Vec::new() },
            )
        };
        assert_eq!(told(vec![None, Some(4)], 1), [""; 0]);
        assert_eq!(
            told(vec![None; 17], 1),
            ["input `x` has 17 dimensions, and a call may have 16 (`limits.size.rank`)"]
        );
        assert_eq!(told(vec![Some(1 << 31)], 1), ["input `x` is larger than a call may be (`limits.size.body`)"]);
        assert_eq!(told(vec![None], 300), ["has 300 inputs, and a call may have 256 (`limits.size.tensors`)"]);
    }
}

//! What may be asked for on the command line.

use super::{
    address::Address,
    pace::{Pace, Rate},
};
use crate::{
    config::units::{Delay, Span},
    model::Fill,
};
use clap::{Args, ValueEnum};
use std::{num::NonZeroUsize, path::PathBuf, str::FromStr, sync::Arc};

/// The arguments of `sluicegate bench`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Server to ask: http://HOST:PORT
    #[arg(value_name = "URL", required_unless_present = "engine", conflicts_with = "engine")]
    pub(super) url: Option<Address>,
    /// Another server, asked in turns with the first; prints the ratios of the medians
    #[arg(long, value_name = "URL", conflicts_with = "engine")]
    pub(super) against: Option<Address>,
    /// Run the model in this process: no server, no protocol, the scheduler alone
    #[arg(long)]
    pub(super) engine: bool,
    /// With --engine: the session alone, run after run, without the scheduler
    #[arg(long, requires = "engine", conflicts_with_all = ["url", "concurrency", "rate"])]
    pub(super) bare: bool,
    /// Model to run
    #[arg(long, value_name = "NAME")]
    pub(super) model: String,
    /// Version of the model; by default the server chooses
    #[arg(long, value_name = "VERSION")]
    pub(super) model_version: Option<String>,
    /// How to ask
    #[arg(long, value_enum, default_value_t = Surface::Rest, conflicts_with = "engine")]
    pub(super) surface: Surface,
    /// Callers at the same time; several numbers are measured one after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1")]
    pub(super) concurrency: Vec<NonZeroUsize>,
    /// Connections that callers share on gRPC, WebSocket and NDJSON; by default 8, or more for many callers
    #[arg(long, value_name = "N", conflicts_with = "engine")]
    pub(super) connections: Option<NonZeroUsize>,
    /// Requests per second to send, answered or not (open loop); by default as fast as answers come (closed loop)
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<Rate>,
    /// Never sleep between answers: takes a core of its own, and spares a server on this machine the waking of it
    #[arg(long, conflicts_with = "engine")]
    pub(super) spin: bool,
    /// Time before measuring begins
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(super) warmup: Delay,
    /// Time of each measurement
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(super) duration: Span,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) rounds: NonZeroUsize,
    /// Rows of each request, where the first dimension is free
    #[arg(long, value_name = "N", default_value = "1", conflicts_with = "data")]
    pub(super) rows: NonZeroUsize,
    /// Shape of an input, for what its model leaves free; may be repeated
    #[arg(long = "shape", value_name = "INPUT:N,…", conflicts_with = "data")]
    pub(super) shapes: Vec<NamedShape>,
    /// What inputs are filled with; strings are empty either way
    #[arg(long, value_enum, default_value_t = Filling::Random, conflicts_with = "data")]
    pub(super) fill: Filling,
    /// A V2 request as JSON, instead of inputs that are made up; of several, callers take one each, in turns
    #[arg(long, value_name = "FILE")]
    pub(super) data: Vec<PathBuf>,
    /// API key
    #[arg(long, env = "SLUICEGATE_KEY", hide_env_values = true, value_name = "KEY")]
    pub(super) key: Option<Key>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
    /// With --engine: configuration file (YAML)
    #[arg(long, env = "SLUICEGATE_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// With --engine: folder of models: NAME/VERSION/model.onnx
    #[arg(long, env = "SLUICEGATE_MODELS", value_name = "DIR")]
    pub(super) models: Option<PathBuf>,
    /// With --engine: ONNX Runtime's shared library
    #[arg(long, env = "SLUICEGATE_ONNXRUNTIME", value_name = "PATH")]
    pub(super) onnxruntime: Option<PathBuf>,
}

/// A way to ask a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Surface {
    /// V2 over HTTP/1.1, tensors as JSON
    Rest,
    /// V2 over HTTP/1.1, tensors as raw bytes
    RestBinary,
    /// ModelInfer
    Grpc,
    /// ModelStreamInfer, one request at a time on each stream
    GrpcStream,
    /// Messages on WebSockets
    Websocket,
    /// Lines of JSON on HTTP/2 streams
    Ndjson,
}

/// What inputs are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Filling {
    /// Fractions from 0 to 1, integers of 0 or 1: the same each time
    Random,
    /// Zeros
    Zeros,
}

/// The shape of one input: `image:1,64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedShape {
    pub(super) input: Arc<str>,
    pub(super) dims: Vec<usize>,
}

/// A secret, which `Debug` does not show.
#[derive(Clone)]
pub(super) struct Key(Box<str>);

// === impl Arguments ===

impl Arguments {
    pub(super) fn pace(&self) -> Pace {
        self.rate.map_or(Pace::Closed, Pace::Open)
    }
}

// === impl Surface ===

impl Surface {
    /// The word used on the command line and in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::RestBinary => "rest-binary",
            Self::Grpc => "grpc",
            Self::GrpcStream => "grpc-stream",
            Self::Websocket => "websocket",
            Self::Ndjson => "ndjson",
        }
    }

    /// Whether a server that speaks it answers questions about models over gRPC.
    pub(super) const fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::GrpcStream)
    }

    /// Connections for so many callers, unless it was said.
    pub(super) fn connections(self, callers: usize) -> usize {
        match self {
            // An HTTP/1.1 connection carries one request at a time.
            Self::Rest | Self::RestBinary => callers,
            // A server takes so many requests at a time of each socket, 64 unless configured otherwise.
            Self::Grpc | Self::GrpcStream | Self::Websocket | Self::Ndjson => callers.min(8).max(callers.div_ceil(32)),
        }
    }
}

// === impl Filling ===

impl From<Filling> for Fill {
    fn from(filling: Filling) -> Self {
        match filling {
            Filling::Random => Self::Random,
            Filling::Zeros => Self::Zeros,
        }
    }
}

// === impl NamedShape ===

impl FromStr for NamedShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // From the right: names of graphs may hold colons (`x:0`).
        let (input, dims) = text.rsplit_once(':').ok_or("expected INPUT:N,…, as in `image:1,64`")?;
        let number = |dim: &str| dim.trim().parse().map_err(|_| format!("`{dim}` is no dimension"));
        let dims = dims.split(',').filter(|dim| !dim.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Self { input: input.into(), dims })
    }
}

// === impl Key ===

impl Key {
    /// What `authorization` says.
    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            key if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Self(key.into())),
            _ => Err("expected one word of ASCII characters".into()),
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::time::Duration;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parsed(line: &str) -> Result<Arguments, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn a_sweep_is_written_with_commas() {
        let line = "http://127.0.0.1:1 --model m --concurrency 1,8,64 --warmup 0s --duration 200ms --shape x:0:2,4";
        let arguments = parsed(line).unwrap();
        let concurrency: Vec<_> = arguments.concurrency.iter().map(|callers| callers.get()).collect();
        assert_eq!(concurrency, [1, 8, 64]);
        assert_eq!((arguments.warmup.0, arguments.duration.0), (Duration::ZERO, Duration::from_millis(200)));
        assert_eq!(arguments.shapes, [NamedShape { input: "x:0".into(), dims: vec![2, 4] }]);
        assert_eq!((arguments.surface, arguments.pace()), (Surface::Rest, Pace::Closed));
        let open = parsed("http://127.0.0.1:1 --model m --surface grpc-stream --rate 2.5").unwrap();
        assert_eq!((open.surface, open.pace()), (Surface::GrpcStream, Pace::Open("2.5".parse().unwrap())));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (line, says) in [
            ("--model m", "<URL>"),
            ("http://a:1", "--model"),
            ("http://a:1 --model m --engine", "--engine"),
            ("http://a:1 --model m --bare", "--bare"),
            ("--bare --model m", "--engine"),
            ("--engine --bare --model m --rate 5", "--rate"),
            ("http://a:1 --model m --concurrency 0", "0"),
            ("http://a:1 --model m --rate 0", "--rate"),
            ("http://a:1 --model m --duration 5", "--duration"),
            ("http://a:1 --model m --shape x", "INPUT:N"),
            ("http://a:1 --model m --shape x:a", "no dimension"),
            ("http://a:1 --model m --data f --rows 2", "--rows"),
            ("http://a:1 --model m --surface smoke", "websocket"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn a_scalar_has_no_dimensions() {
        assert_eq!("x:".parse(), Ok(NamedShape { input: "x".into(), dims: Vec::new() }));
    }

    #[test]
    fn a_key_is_never_shown() {
        let key: Key = "sg_secret".parse().unwrap();
        assert_eq!((format!("{key:?}"), key.authorization()), ("Key".into(), "Bearer sg_secret".into()));
        assert!("a b".parse::<Key>().is_err() && "".parse::<Key>().is_err());
    }

    #[test]
    fn connections_are_shared_where_they_can_be() {
        assert_eq!(Surface::Rest.connections(64), 64);
        assert_eq!([1, 8, 64, 1024].map(|callers| Surface::Grpc.connections(callers)), [1, 8, 8, 32]);
    }
}

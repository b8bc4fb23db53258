//! Limits and choices of the front-ends: contract 10 section 5, with its defaults.
//!
//! Every default of a dependency that differs per surface is set from here (architecture section 11).

use crate::{
    call::ModelRef,
    wire::{self, v1::Names},
};
use http::{HeaderName, HeaderValue};
use std::time::Duration;

/// Limits and choices of all front-ends.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Sizes (`limits.size`).
    pub size: Size,
    /// Connections (`limits.connections`).
    pub connections: Connections,
    /// Calls in flight per session, and memory (`limits.concurrency`).
    pub concurrency: Concurrency,
    /// Timers (`limits.timers`).
    pub timers: Timers,
    /// HTTP/2 (`limits.http2`).
    pub http2: Http2,
    /// WebSocket (`limits.websocket`, `auth.websocket`).
    pub websocket: WebSocket,
    /// Codecs.
    pub wire: wire::Settings,
    /// gRPC (`grpc`).
    pub grpc: Grpc,
    /// REST (`rest`).
    pub rest: Rest,
    /// Which pages may call (`cors`).
    pub cors: Cors,
}

/// Sizes, in bytes unless said otherwise (`limits.size`).
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// A REST body or a gRPC message, and the same after decompression.
    pub body: usize,
    /// A WebSocket message or frame, an NDJSON line.
    pub message: usize,
    /// Fragments of one WebSocket message (a number).
    pub fragments: usize,
    /// Chunks of one HTTP/1.1 body (a number).
    pub chunks: usize,
    /// The request line of HTTP/1.1.
    pub request_line: usize,
    /// All headers of a request.
    pub headers: usize,
    /// Header fields (a number).
    pub header_fields: usize,
    /// Trailer fields (a number).
    pub trailer_fields: usize,
    /// Bytes that one compressed byte may become (a number).
    pub inflate_ratio: usize,
}

/// Connections, as numbers (`limits.connections`).
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Open at once.
    pub total: usize,
    /// Open at once from one address.
    pub per_address: usize,
    /// TLS handshakes at once.
    pub handshakes: usize,
}

/// Calls in flight per session, and memory (`limits.concurrency`).
#[derive(Clone, Copy, Debug)]
pub struct Concurrency {
    /// Calls in flight on one WebSocket or NDJSON stream.
    pub per_socket: usize,
    /// Calls in flight on one gRPC stream.
    pub per_grpc_stream: usize,
    /// Bytes of bodies and outputs held.
    pub memory: usize,
}

/// Timers (`limits.timers`).
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// Until the first byte of a connection.
    pub first_byte: Duration,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For a whole header.
    pub header: Duration,
    /// Between two bytes of a body.
    pub read_stall: Duration,
    /// Without progress of a reader.
    pub write_stall: Duration,
    /// Idle between two requests.
    pub keep_alive: Duration,
    /// Silence on an SSE or NDJSON reply before a comment or blank line.
    pub stream_ping: Duration,
}

/// HTTP/2 (`limits.http2`).
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Concurrent streams of a connection.
    pub streams: u32,
    /// Receive window of a stream, bytes.
    pub stream_window: u32,
    /// Receive window of a connection, bytes.
    pub connection_window: u32,
    /// Largest frame received, bytes.
    pub frame: u32,
    /// Unsent output per stream, bytes.
    pub stream_buffer: usize,
    /// Unsent output per connection, bytes.
    pub connection_buffer: usize,
    /// Resets per connection in 10 s, the client's and those it provokes, each.
    pub resets: usize,
    /// PING, SETTINGS, PRIORITY, empty frames and needless WINDOW_UPDATE per connection and second, each.
    pub control_frames: usize,
    /// Own PING interval.
    pub ping: Duration,
    /// Time for the answer.
    pub ping_timeout: Duration,
    /// How old a connection may become before its client is told to open another one, give or take a tenth; `None`: any age.
    pub max_age: Option<Duration>,
}

/// WebSocket (`limits.websocket`, `auth.websocket`).
#[derive(Clone, Debug)]
pub struct WebSocket {
    /// Time for `hello`.
    pub hello: Duration,
    /// Without a request in flight or a message.
    pub idle: Duration,
    /// Ping interval; dead after two without an answer.
    pub ping: Duration,
    /// Time to renew credentials.
    pub renew: Duration,
    /// Bytes of unsent messages per socket.
    pub send_buffer: usize,
    /// Unsent messages per socket (a number).
    pub send_messages: usize,
    /// Read buffer per socket, bytes.
    pub read_buffer: usize,
    /// Control frames per second.
    pub control_frames: usize,
    /// First credit of a streaming request, in `output` messages.
    pub credit: u32,
    /// How long a ticket may be used after it was made (contract 06 C1 item 2).
    pub tickets: Duration,
    /// Whether a subprotocol may carry a token (contract 06 C1 item 3).
    pub subprotocol_token: bool,
    /// Whether `hello` may carry a token (contract 06 C1 item 4).
    pub first_message: bool,
    /// Origins allowed besides the listener's own.
    pub origins: Vec<String>,
}

/// REST (`rest`).
#[derive(Clone, Debug)]
pub struct Rest {
    /// Responses of more bytes are compressed for clients that take it; absent: none are.
    pub compress_above: Option<usize>,
    /// Whether `GET /metrics` is served here too (`telemetry.metrics.on_api`).
    pub metrics: bool,
    /// `POST /predict`; absent: there is no such path.
    pub predict: Option<Predict>,
}

/// The model behind `POST /predict`, and what its clients call its tensors (`rest.predict`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predict {
    /// Which model.
    pub model: ModelRef,
    /// What it calls inputs and outputs.
    pub names: Names,
}

impl Rest {
    /// What clients of `POST /predict` call its tensors.
    pub fn names(&self) -> &Names {
        static NONE: Names = Names { inputs: Vec::new(), outputs: Vec::new() };
        self.predict.as_ref().map_or(&NONE, |predict| &predict.names)
    }
}

impl Default for Rest {
    fn default() -> Self {
        Self { compress_above: Some(KIB), metrics: false, predict: None }
    }
}

/// Which pages may call over REST and gRPC-Web (`cors`).
#[derive(Clone, Debug)]
pub struct Cors {
    /// Where they come from.
    pub origins: Origins,
    /// Request headers that they may send besides those that every client of ours sends.
    pub headers: Vec<HeaderName>,
    /// Whether browsers may send what they keep for us.
    pub credentials: bool,
    /// How long a browser may remember the answer.
    pub max_age: Duration,
}

/// Where pages come from.
#[derive(Clone, Debug)]
pub enum Origins {
    /// Anywhere.
    Any,
    /// Only there. None: pages of other origins may not call.
    Listed(Vec<HeaderValue>),
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            origins: Origins::Listed(Vec::new()),
            headers: Vec::new(),
            credentials: false,
            max_age: Duration::from_secs(600),
        }
    }
}

/// gRPC (`grpc`).
#[derive(Clone, Copy, Debug)]
pub struct Grpc {
    /// Where reflection is served.
    pub reflection: Reflection,
    /// Whether outputs come back typed where inputs came typed; else always raw.
    pub mirror: bool,
    /// Whether gRPC-Web is served.
    pub web: bool,
}

impl Default for Grpc {
    fn default() -> Self {
        Self { reflection: Reflection::default(), mirror: false, web: true }
    }
}

/// Where reflection is served (`grpc.reflection`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reflection {
    /// On loopback listeners, for calls that were not forwarded.
    #[default]
    Loopback,
    /// On all.
    Always,
    /// On none.
    Never,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

impl Default for Size {
    fn default() -> Self {
        Self {
            body: 64 * MIB,
            message: 16 * MIB,
            fragments: 1024,
            chunks: 65_536,
            request_line: 8 * KIB,
            headers: 16 * KIB,
            header_fields: 100,
            trailer_fields: 32,
            inflate_ratio: 100,
        }
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self { total: 10_000, per_address: 256, handshakes: 256 }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { per_socket: 64, per_grpc_stream: 256, memory: 256 * MIB }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            read_stall: Duration::from_secs(15),
            write_stall: Duration::from_secs(30),
            keep_alive: Duration::from_secs(90),
            stream_ping: Duration::from_secs(15),
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            streams: 256,
            stream_window: 1 << 20,
            connection_window: 2 << 20,
            frame: 64 << 10,
            stream_buffer: 128 * KIB,
            connection_buffer: 2 * MIB,
            resets: 100,
            control_frames: 100,
            ping: Duration::from_secs(60),
            ping_timeout: Duration::from_secs(20),
            max_age: None,
        }
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            ping: Duration::from_secs(20),
            renew: Duration::from_secs(30),
            send_buffer: MIB,
            send_messages: 64,
            read_buffer: 4 * KIB,
            control_frames: 10,
            credit: 16,
            tickets: Duration::from_secs(30),
            subprotocol_token: true,
            first_message: true,
            origins: Vec::new(),
        }
    }
}

//! `limits`, as people write them. Each key is explained in contract 10 section 5; an absent one is off.

use crate::{
    config::units::{Number, Rate, Size, Span},
    frontend::settings,
    limit::address,
    wire,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, num::NonZeroU64, path::PathBuf, time::Duration};

/// Shorthand for the structs of this file: public fields, serde, defaults, no unknown keys.
macro_rules! keys {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[expect(missing_docs, reason = "the keys are explained in contract 10 section 5")]
        pub struct $name { $(pub $field: $type),* }
    };
}

keys! {
    /// All limits.
    Limits {
        size: Sizes, connections: Connections, address: Address, buckets: Number, concurrency: Concurrency,
        deadline: Deadline, timers: Timers, http2: Http2, websocket: WebSocket, rate: Vec<Policy>,
        weights: BTreeMap<String, Number>, shared: Option<Shared>,
    }
}

keys! {
    /// Sizes.
    Sizes {
        body: Size, message: Size, fragments: Number, chunks: Number, request_line: Size, headers: Size,
        header_fields: Number, trailer_fields: Number, inflate_ratio: Number, tensors: Number, rank: Number,
        json_depth: Number,
    }
}

keys! {
    /// Connections.
    Connections { total: Number, per_address: Number, handshakes: Number, per_identity: Option<Number> }
}

keys! {
    /// The address gate.
    Address { failures: Rate, entries: Number, exempt: Vec<String> }
}

keys! {
    /// Calls in flight, and memory.
    Concurrency {
        calls: Number, inspect: Number, per_identity: Option<Number>, per_socket: Number, per_grpc_stream: Number,
        memory: Size, queue_delay: Option<Span>,
    }
}

keys! {
    /// Deadlines.
    Deadline { default: Span, stream: Span, max: Span }
}

keys! {
    /// Timers.
    Timers {
        first_byte: Span, handshake: Span, header: Span, read_stall: Span, write_stall: Span, keep_alive: Span,
        stream_ping: Span,
    }
}

keys! {
    /// HTTP/2.
    Http2 {
        streams: Number, stream_window: Size, connection_window: Size, frame: Size, stream_buffer: Size,
        connection_buffer: Size, resets: Rate, control_frames: Rate, ping: Span, ping_timeout: Span,
        max_age: Option<Span>,
    }
}

keys! {
    /// WebSocket.
    WebSocket {
        hello: Span, idle: Span, ping: Span, renew: Span, send_buffer: Size, send_messages: Number, read_buffer: Size,
        control_frames: Rate, credit: Number,
    }
}

/// One rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Policy {
    pub name: String,
    pub by: PolicyBy,
    #[serde(rename = "match")]
    pub only: Option<String>,
    pub models: Option<Vec<String>>,
    pub unit: PolicyUnit,
    pub limit: Option<Rate>,
    pub burst: Option<Number>,
    pub intents: Option<Vec<String>>,
}

/// Where limits are kept that several processes share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in docs/limits.md")]
pub struct Shared {
    pub redis: Redis,
    pub ca: Option<PathBuf>,
    pub when_away: WhenAway,
    pub share: f64,
    pub lease: Span,
}

/// An address, or a file that holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "see above")]
pub enum Redis {
    Url(String),
    File { file: PathBuf },
}

/// What happens while they are away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `limit::redis::WhenAway`")]
pub enum WhenAway {
    #[default]
    Share,
    Refuse,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            redis: Redis::File { file: PathBuf::new() },
            ca: None,
            when_away: WhenAway::default(),
            share: 0.25,
            lease: Span(Duration::from_secs(10)),
        }
    }
}

/// Whose calls a rate counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "see `limit::By`")]
pub enum PolicyBy {
    #[default]
    #[serde(rename = "identity")]
    Identity,
    #[serde(rename = "group")]
    Group,
    #[serde(rename = "model")]
    Model,
    #[serde(rename = "identity+model")]
    IdentityAndModel,
}

/// What a rate counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `limit::Unit`; tokens come with what makes them")]
pub enum PolicyUnit {
    #[default]
    Calls,
    Rows,
    Bytes,
    Elements,
    Tokens,
    ComputeMs,
}

// === defaults: those of the settings ===

/// `count` in each `seconds`.
fn rate(count: usize, seconds: u64) -> Rate {
    let count = u64::try_from(count).ok().and_then(NonZeroU64::new).expect("defaults are small and not zero");
    Rate { count, per: Duration::from_secs(seconds) }
}

fn small(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size: Sizes::default(),
            connections: Connections::default(),
            address: Address::default(),
            buckets: Number(100_000),
            concurrency: Concurrency::default(),
            deadline: Deadline::default(),
            timers: Timers::default(),
            http2: Http2::default(),
            websocket: WebSocket::default(),
            rate: Vec::new(),
            weights: BTreeMap::new(),
            shared: None,
        }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        let (size, wire) = (settings::Size::default(), wire::Settings::default());
        Self {
            body: Size(size.body),
            message: Size(size.message),
            fragments: Number(size.fragments),
            chunks: Number(size.chunks),
            request_line: Size(size.request_line),
            headers: Size(size.headers),
            header_fields: Number(size.header_fields),
            trailer_fields: Number(size.trailer_fields),
            inflate_ratio: Number(size.inflate_ratio),
            tensors: Number(wire.tensors),
            rank: Number(wire.rank),
            json_depth: Number(wire.json_depth),
        }
    }
}

impl Default for Connections {
    fn default() -> Self {
        let (connections, calls) = (settings::Connections::default(), crate::config::Concurrency::default());
        Self {
            total: Number(connections.total),
            per_address: Number(connections.per_address),
            handshakes: Number(connections.handshakes),
            per_identity: calls.sessions.map(Number),
        }
    }
}

impl Default for Address {
    fn default() -> Self {
        let address = address::Settings::default();
        Self {
            failures: Rate { count: address.failures, per: address.per },
            entries: Number(address.entries),
            exempt: address.exempt.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        let (calls, frontend) = (crate::config::Concurrency::default(), settings::Concurrency::default());
        Self {
            calls: Number(calls.calls),
            inspect: Number(calls.inspect),
            per_identity: calls.per_identity.map(Number),
            per_socket: Number(frontend.per_socket),
            per_grpc_stream: Number(frontend.per_grpc_stream),
            memory: Size(frontend.memory),
            queue_delay: calls.queue_delay.map(Span),
        }
    }
}

impl Default for Deadline {
    fn default() -> Self {
        let deadline = crate::config::Deadline::default();
        Self { default: Span(deadline.default), stream: Span(deadline.stream), max: Span(deadline.max) }
    }
}

impl Default for Timers {
    fn default() -> Self {
        let timers = settings::Timers::default();
        Self {
            first_byte: Span(timers.first_byte),
            handshake: Span(timers.handshake),
            header: Span(timers.header),
            read_stall: Span(timers.read_stall),
            write_stall: Span(timers.write_stall),
            keep_alive: Span(timers.keep_alive),
            stream_ping: Span(timers.stream_ping),
        }
    }
}

impl Default for Http2 {
    fn default() -> Self {
        let http2 = settings::Http2::default();
        Self {
            streams: Number(small(http2.streams)),
            stream_window: Size(small(http2.stream_window)),
            connection_window: Size(small(http2.connection_window)),
            frame: Size(small(http2.frame)),
            stream_buffer: Size(http2.stream_buffer),
            connection_buffer: Size(http2.connection_buffer),
            resets: rate(http2.resets, 10),
            control_frames: rate(http2.control_frames, 1),
            ping: Span(http2.ping),
            ping_timeout: Span(http2.ping_timeout),
            max_age: http2.max_age.map(Span),
        }
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        let websocket = settings::WebSocket::default();
        Self {
            hello: Span(websocket.hello),
            idle: Span(websocket.idle),
            ping: Span(websocket.ping),
            renew: Span(websocket.renew),
            send_buffer: Size(websocket.send_buffer),
            send_messages: Number(websocket.send_messages),
            read_buffer: Size(websocket.read_buffer),
            control_frames: rate(websocket.control_frames, 1),
            credit: Number(small(websocket.credit)),
        }
    }
}

//! `limits`: into the settings of the modules that keep them.

use crate::{
    call::Intent,
    config::{
        Concurrency, Deadline, Listen, Problems, raw,
        units::{Number, Rate, Size, Span},
    },
    error::Cap,
    frontend::settings,
    limit::{By, Policy, Unit, address, redis},
    trust::Trust,
    wire,
};
use std::{
    collections::HashSet,
    fs,
    num::{NonZeroU32, NonZeroU64},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    time::Duration,
};

/// What HTTP/2 allows for its windows and frames (RFC 9113 sections 6.5.2 and 6.9.1).
const WINDOW: RangeInclusive<usize> = 1..=(1 << 31) - 1;
const FRAME: RangeInclusive<usize> = (1 << 14)..=(1 << 24) - 1;
/// Our own scan comes before serde_json's limit of 128, which stays as the second line.
const JSON_DEPTH: usize = 127;
/// Leases that can be renewed in time, and that do not outlive whoever waits for them.
const LEASE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// The least time between two signs of life: each is a packet, and for many peers together work.
const PING: Duration = Duration::from_secs(1);
/// The least age at which a connection may be called old: a client that comes again needs some round trips for it.
const YOUNGEST: Duration = Duration::from_secs(1);
/// Bytes in the name of a policy.
const LONGEST_NAME: usize = 64;
/// The largest share of a full queue: more would leave others with nothing.
const HEAVIEST: u32 = 1000;

pub(super) fn frontend(raw: &raw::Limits, problems: &mut Problems) -> settings::Settings {
    let (size, timers, http2, websocket) = (&raw.size, &raw.timers, &raw.http2, &raw.websocket);
    settings::Settings {
        size: settings::Size {
            body: size.body.0,
            message: size.message.0,
            fragments: size.fragments.0,
            chunks: size.chunks.0,
            request_line: size.request_line.0,
            headers: size.headers.0,
            header_fields: fields("limits.size.header_fields", size.header_fields, problems),
            trailer_fields: fields("limits.size.trailer_fields", size.trailer_fields, problems),
            inflate_ratio: size.inflate_ratio.0,
        },
        connections: settings::Connections {
            total: raw.connections.total.0,
            per_address: raw.connections.per_address.0,
            handshakes: raw.connections.handshakes.0,
        },
        concurrency: settings::Concurrency {
            per_socket: raw.concurrency.per_socket.0,
            per_grpc_stream: raw.concurrency.per_grpc_stream.0,
            memory: raw.concurrency.memory.0,
        },
        timers: settings::Timers {
            first_byte: timers.first_byte.0,
            handshake: timers.handshake.0,
            header: timers.header.0,
            read_stall: timers.read_stall.0,
            write_stall: timers.write_stall.0,
            keep_alive: timers.keep_alive.0,
            stream_ping: at_least("limits.timers.stream_ping", timers.stream_ping, PING, problems),
        },
        http2: settings::Http2 {
            streams: small("limits.http2.streams", http2.streams, problems),
            stream_window: bytes("limits.http2.stream_window", http2.stream_window, WINDOW, problems),
            connection_window: bytes("limits.http2.connection_window", http2.connection_window, WINDOW, problems),
            frame: bytes("limits.http2.frame", http2.frame, FRAME, problems),
            stream_buffer: http2.stream_buffer.0,
            connection_buffer: http2.connection_buffer.0,
            resets: per("limits.http2.resets", http2.resets, 10, problems),
            control_frames: per("limits.http2.control_frames", http2.control_frames, 1, problems),
            ping: at_least("limits.http2.ping", http2.ping, PING, problems),
            ping_timeout: http2.ping_timeout.0,
            max_age: http2.max_age.map(|age| at_least("limits.http2.max_age", age, YOUNGEST, problems)),
        },
        websocket: settings::WebSocket {
            hello: websocket.hello.0,
            idle: websocket.idle.0,
            ping: at_least("limits.websocket.ping", websocket.ping, PING, problems),
            renew: websocket.renew.0,
            send_buffer: websocket.send_buffer.0,
            send_messages: websocket.send_messages.0,
            read_buffer: websocket.read_buffer.0,
            control_frames: per("limits.websocket.control_frames", websocket.control_frames, 1, problems),
            credit: small("limits.websocket.credit", websocket.credit, problems),
            ..settings::WebSocket::default()
        },
        wire: wire::Settings {
            tensors: size.tensors.0,
            rank: size.rank.0,
            json_depth: size.json_depth.0,
            ..wire::Settings::default()
        },
        grpc: settings::Grpc::default(),
        rest: settings::Rest::default(),
        cors: settings::Cors::default(),
    }
}

/// Networks, such as `10.0.0.0/8`.
pub(super) fn networks(path: &str, raw: &[String], problems: &mut Problems) -> Vec<address::Network> {
    let mut networks = Vec::new();
    for (at, text) in raw.iter().enumerate() {
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(problem) => problems.push(format!("{path}[{at}]"), problem),
        }
    }
    networks
}

/// The address gate, which never counts what comes from `listeners`' own proxies (contract 10 section 5).
pub(super) fn addresses(raw: &raw::Limits, listeners: &[Listen], problems: &mut Problems) -> address::Settings {
    let mut exempt = networks("limits.address.exempt", &raw.address.exempt, problems);
    exempt.extend(listeners.iter().flat_map(|listen| &listen.trusted_proxies));
    address::Settings {
        failures: raw.address.failures.count,
        per: raw.address.failures.per,
        connections: raw.connections.per_address.0,
        entries: raw.address.entries.0,
        exempt,
    }
}

/// The name of a policy, which clients read in headers and operators in metrics.
fn name<'a>(path: &str, name: &'a str, names: &mut HashSet<&'a str>, problems: &mut Problems) {
    let fits = |letter: char| matches!(letter, ' '..='~') && !matches!(letter, '"' | '\'' | '\\');
    if name.is_empty() {
        problems.missing(path, "is missing");
    } else if name.len() > LONGEST_NAME || !name.chars().all(fits) {
        let text = format!(
            "`{}` is not a name of a policy, expected at most {LONGEST_NAME} printable ASCII characters without quotes \
             and backslashes",
            name.escape_debug()
        );
        problems.push(path, text);
    } else if Cap::BUILT_IN.contains(&name) {
        problems.push(path, format!("`{name}` is the name of a limit that is built in, expected another"));
    } else if !names.insert(name) {
        problems.push(path, format!("`{name}` is there twice"));
    }
}

pub(super) fn rates(raw: &[raw::Policy], problems: &mut Problems) -> Vec<Policy> {
    let mut names = HashSet::new();
    let mut policies = Vec::new();
    for (at, raw) in raw.iter().enumerate() {
        let path = format!("limits.rate[{at}]");
        name(&format!("{path}.name"), &raw.name, &mut names, problems);
        let by = match raw.by {
            raw::PolicyBy::Identity => By::Identity,
            raw::PolicyBy::Group => By::Group,
            raw::PolicyBy::Model => By::Model,
            raw::PolicyBy::IdentityAndModel => By::IdentityAndModel,
        };
        let unit = match raw.unit {
            raw::PolicyUnit::Calls => Unit::Calls,
            raw::PolicyUnit::Rows => Unit::Rows,
            raw::PolicyUnit::Bytes => Unit::Bytes,
            raw::PolicyUnit::Elements => Unit::Elements,
            raw::PolicyUnit::ComputeMs => Unit::ComputeMs,
            // Nothing here generates text yet. Accepting it would be a limit that never refuses.
            raw::PolicyUnit::Tokens => {
                problems.push(format!("{path}.unit"), "`tokens` is not available in this version");
                Unit::Calls
            }
        };
        if raw.models.as_ref().is_some_and(Vec::is_empty) {
            problems
                .missing(format!("{path}.models"), "the list is empty, so this counts nothing; leave it out for all");
        }
        let intents = match &raw.intents {
            Some(names) => {
                let named = super::auth::intents(&format!("{path}.intents"), names, problems);
                // In one order: written in another, the policy is the same and keeps what it counted.
                Intent::ALL.into_iter().filter(|intent| named.contains(intent)).collect()
            }
            None => Policy::default_intents(),
        };
        let Some(limit) = raw.limit else {
            problems.missing(format!("{path}.limit"), "is missing, expected a rate such as 100/s");
            continue;
        };
        let burst = raw.burst.and_then(|burst| NonZeroU64::new(u64::try_from(burst.0).ok()?)).unwrap_or(limit.count);
        policies.push(Policy {
            name: raw.name.as_str().into(),
            by,
            only: raw.only.as_deref().map(Into::into),
            models: raw.models.iter().flatten().map(|pattern| pattern.as_str().into()).collect(),
            unit,
            limit: limit.count,
            per: limit.per,
            burst,
            intents,
        });
    }
    policies
}

/// `inspect` slots are besides those for `calls`, so neither bounds the other.
pub(super) fn concurrency(raw: &raw::Limits) -> Concurrency {
    let concurrency = &raw.concurrency;
    Concurrency {
        calls: concurrency.calls.0,
        inspect: concurrency.inspect.0,
        per_identity: concurrency.per_identity.map(|number| number.0),
        sessions: raw.connections.per_identity.map(|number| number.0),
        queue_delay: concurrency.queue_delay.map(|span| span.0),
    }
}

/// `limits.shared`; relative paths start at `folder`.
pub(super) fn shared(raw: &raw::Limits, folder: &Path, problems: &mut Problems) -> Option<redis::Settings> {
    const PATH: &str = "limits.shared";
    let shared = raw.shared.as_ref()?;
    if !(shared.share > 0. && shared.share <= 1.) {
        problems.push(
            format!("{PATH}.share"),
            format!("{} is not a share, expected more than 0 and at most 1", shared.share),
        );
    }
    let (path, url) = match &shared.redis {
        raw::Redis::Url(url) => (format!("{PATH}.redis"), url.clone()),
        raw::Redis::File { file } => {
            let path = format!("{PATH}.redis.file");
            let before = problems.found();
            let place = super::file(&path, file, folder, problems);
            if problems.found() > before {
                return None;
            }
            match fs::read_to_string(&place) {
                Ok(text) => (path, text.trim().to_owned()),
                Err(error) => {
                    problems.push(path, format!("{}: {error}", place.display()));
                    return None;
                }
            }
        }
    };
    let when_away = match shared.when_away {
        raw::WhenAway::Share => redis::WhenAway::Share(shared.share),
        raw::WhenAway::Refuse => redis::WhenAway::Refuse,
    };
    if !LEASE.contains(&shared.lease.0) {
        let (least, most) = LEASE.into_inner();
        let text = format!("{} is not between {} and {}", shared.lease, Span(least), Span(most));
        problems.push(format!("{PATH}.lease"), text);
    }
    let trust = match &shared.ca {
        Some(ca) => {
            let before = problems.found();
            let ca = super::file(&format!("{PATH}.ca"), ca, folder, problems);
            if problems.found() > before {
                return None;
            }
            Trust::Only(ca)
        }
        None => Trust::System,
    };
    let settings = redis::Settings { url: redis::Secret(url.into()), trust, when_away, lease: shared.lease.0 };
    if let Err(problem) = settings.check() {
        // Not the address: it may hold a password.
        problems.push(
            path,
            format!("is no address of a Redis, expected redis://HOST:PORT, or rediss://HOST:PORT over TLS: {problem}"),
        );
    }
    Some(settings)
}

pub(super) fn weights(raw: &raw::Limits, problems: &mut Problems) -> Vec<(Arc<str>, NonZeroU32)> {
    let mut weights = Vec::new();
    for (group, weight) in &raw.weights {
        match u32::try_from(weight.0).ok().filter(|weight| *weight <= HEAVIEST).and_then(NonZeroU32::new) {
            Some(weight) => weights.push((group.as_str().into(), weight)),
            None => problems.push(format!("limits.weights.{group}"), format!("{weight} is above {HEAVIEST}")),
        }
    }
    weights
}

pub(super) fn deadline(raw: &raw::Deadline, problems: &mut Problems) -> Deadline {
    for (key, value) in [("default", raw.default), ("stream", raw.stream)] {
        if value > raw.max {
            let text = format!("{value} is above limits.deadline.max ({})", raw.max);
            problems.push(format!("limits.deadline.{key}"), text);
        }
    }
    Deadline { default: raw.default.0, stream: raw.stream.0, max: raw.max.0 }
}

/// What one limit demands of another.
pub(super) fn check(raw: &raw::Limits, problems: &mut Problems) {
    let largest = raw.size.body.max(raw.size.message);
    if largest > raw.concurrency.memory {
        let text = format!("{} has no room for one body or message of {largest}", raw.concurrency.memory);
        problems.push("limits.concurrency.memory", text);
    }
    if raw.size.json_depth.0 > JSON_DEPTH {
        let text = format!("{} is above {JSON_DEPTH}", raw.size.json_depth);
        problems.push("limits.size.json_depth", text);
    }
}

/// Most fields of a head: room for so many is made for each request.
const FIELDS: usize = 10_000;

fn fields(path: &str, Number(number): Number, problems: &mut Problems) -> usize {
    if number > FIELDS {
        problems.push(path, format!("{number} is above {FIELDS}"));
    }
    number.min(FIELDS)
}

/// A time that costs somebody something each time that it is over.
fn at_least(path: &str, span: Span, least: Duration, problems: &mut Problems) -> Duration {
    if span.0 < least {
        problems.push(path, format!("{span} is below {}", Span(least)));
    }
    span.0
}

fn small(path: &str, Number(number): Number, problems: &mut Problems) -> u32 {
    u32::try_from(number).unwrap_or_else(|_| {
        problems.push(path, format!("{number} is above {}", u32::MAX));
        u32::MAX
    })
}

fn bytes(path: &str, size: Size, allowed: RangeInclusive<usize>, problems: &mut Problems) -> u32 {
    if !allowed.contains(&size.0) {
        let (least, most) = allowed.clone().into_inner();
        problems.push(path, format!("{size} is not between {} and {}, as HTTP/2 demands", Size(least), Size(most)));
    }
    u32::try_from(size.0.min(*allowed.end())).expect("within 31 bits")
}

/// The count of a rate whose period is fixed.
fn per(path: &str, rate: Rate, seconds: u64, problems: &mut Problems) -> usize {
    let expected = Duration::from_secs(seconds);
    if rate.per != expected {
        let instead = Rate { per: expected, ..rate };
        problems.push(path, format!("{rate} has another period than this limit; write it as {instead}"));
    }
    usize::try_from(rate.count.get()).unwrap_or(usize::MAX)
}

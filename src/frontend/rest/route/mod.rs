//! The routes of REST: paths, methods, and whose error body a path has (contract 00 section 3).
//!
//! Paths are split on raw `/` and each segment is percent-decoded once; what could be read in two ways is refused. No
//! authorisation happens here, and no model name is checked.

mod table;

pub(super) use table::{Operation, Row, TABLE, VERSION};

use super::v1::Ask;
use crate::{
    call::{self, Inspect, ModelRef},
    error::Error,
};
use http::Method;
use smallvec::SmallVec;
use std::borrow::Cow;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Answered from the readiness, outside the stack.
    Probe(Probe),
    /// A call that is all path.
    Inspect(Inspect),
    /// A run; the body is still to be read.
    Infer(ModelRef),
    /// A run whose reply is a stream of events.
    InferStream(ModelRef),
    /// A run in plain objects; as a stream of events or not.
    Generate(ModelRef, bool),
    /// A call that its body completes.
    Change(Change),
    /// What clients ask of memory that there is not.
    SharedMemory(SharedMemory),
    /// `GET /metrics`, where it is configured.
    Metrics,
    /// A path of KServe V1, of TensorFlow Serving, or of their plainest form.
    V1(Ask),
    /// Fixed bytes, outside the stack.
    Page(Page),
    /// `POST /v1/ws/tickets`: credentials are traded for a ticket.
    Ticket,
    /// A path that speaks WebSocket, asked without an upgrade.
    WebSocketOnly,
}

/// What people read about this surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `GET /openapi.json`
    OpenApi,
    /// `GET /docs`
    Docs,
}

/// What a body is about (contract 02 sections 5 and 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// `POST /v2/repository/index`
    Index,
    /// `POST /v2/repository/models/M/load`
    Load(ModelRef),
    /// `POST /v2/repository/models/M/unload`
    Unload(ModelRef),
    /// `POST /v2[/models/M]/trace/setting`
    Trace(Option<ModelRef>),
    /// `POST /v2/logging`
    Logging,
}

/// What is asked of shared memory (contract 02 section 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SharedMemory {
    Status,
    Register,
    Unregister,
}

/// What a probe asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// `GET /`
    Root,
    /// `GET /v2/health/live`
    Live,
    /// `GET /v2/health/ready`
    Ready,
}

/// Whose error body a path has (contract 10 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `{"error": "text", …}`: V2, V1, and everything unknown.
    Text,
    /// `{"error": {…}}`
    OpenAi,
    /// Problem details.
    Problem,
}

/// Why there is no route.
#[derive(Clone, Debug)]
pub(super) struct Miss {
    pub(super) error: Error,
    pub(super) family: Family,
}

/// What is known of a path that is not in the table.
enum Other {
    /// Never served: the method it would have, and why.
    Never(&'static str, &'static str),
    /// Comes with a later version; the method it will have.
    Later(&'static str),
    /// A method of gRPC, asked with another content type.
    Grpc,
    /// An id of OpenAI's, which may have slashes that not all clients escape.
    Id(String),
    /// See [`Route::WebSocketOnly`].
    WebSocket,
}

type Segments<'a> = SmallVec<[Cow<'a, str>; 8]>;

/// The route of `method` and `path`, and its label.
pub(super) fn find(method: &Method, path: &str) -> Result<(Route, call::Route), Miss> {
    let miss = |error| Miss { error, family: Family::of(path) };
    let not_allowed = |allow| miss(Error::MethodNotAllowed { allow });
    let decoded = split(path).map_err(miss)?;
    let mut segments: SmallVec<[&str; 8]> = decoded.iter().map(|segment| &**segment).collect();
    // A verb of V1 follows the last colon of the last segment (contract 00 section 3).
    if let ["v1", "models", .., last] = &mut segments[..]
        && let Some(colon) = last.rfind(':')
    {
        let (name, verb) = last.split_at(colon);
        *last = name;
        segments.push(verb);
    }
    let Some((row, label, found)) = table::look_up(&segments) else {
        // Of these, those that become calls are about one model of V1.
        return other(method, &segments).map(|route| (route, call::Route::V1Model)).map_err(miss);
    };
    let route = match (row.get, row.post) {
        (Some(operation), _) if *method == Method::GET => Ok((operation.route)(&found)),
        (_, Some(operation)) if *method == Method::POST || row.configured => Ok((operation.route)(&found)),
        (Some(operation), _) if *method == Method::HEAD => match (operation.route)(&found) {
            route @ (Route::Probe(_) | Route::Page(_)) => Ok(route),
            _ => Err(not_allowed(row.methods())),
        },
        _ => Err(not_allowed(row.methods())),
    };
    route.map(|route| (route, label))
}

impl Row {
    /// What `allow` says.
    fn methods(&self) -> &'static str {
        match (self.get, self.post) {
            (Some(_), Some(_)) => "GET, POST",
            (None, _) => "POST",
            (_, None) => "GET",
        }
    }
}

/// What is not in the table is refused in its own way, but for two.
fn other(method: &Method, segments: &[&str]) -> Result<Route, Error> {
    let other = match segments {
        ["v1", "ws"] => Other::WebSocket,
        ["v1", "models", .., ":explain"] => Other::Never("POST", "models of this server explain nothing"),
        ["v1", "models", id @ ..] if !id.iter().any(|part| part.is_empty() || part.starts_with(':')) => {
            Other::Id(id.join("/"))
        }
        ["v1", rest @ ..] | ["openai", "v1", rest @ ..] => match rest {
            ["chat", "completions"] | ["completions" | "embeddings"] => Other::Later("POST"),
            ["models", ..] if segments[0] == "openai" => Other::Later("GET"),
            _ => return Err(unknown()),
        },
        // The repository has one name, which is none: others are told so.
        ["v2", "repository", _, "index"] | ["v2", "repository", _, "models", _, "load" | "unload"] => {
            Other::Never("POST", "there is one repository here, and it has no name: leave it out of the path")
        }
        [service, _] if ["inference.", "grpc.", "tensorflow."].iter().any(|package| service.starts_with(package)) => {
            Other::Grpc
        }
        _ => return Err(unknown()),
    };
    match other {
        Other::WebSocket if *method == Method::GET => Ok(Route::WebSocketOnly),
        Other::Id(id) if *method == Method::GET => Ok(Ask::Model(named(&id, None)).into()),
        Other::Later(allow) if allow == method.as_str() => {
            Err(Error::Unimplemented("this route is not part of this version".into()))
        }
        Other::Never(allow, why) if allow == method.as_str() => Err(Error::Unimplemented(why.into())),
        Other::WebSocket | Other::Id(_) => Err(Error::MethodNotAllowed { allow: "GET" }),
        Other::Later(allow) | Other::Never(allow, _) => Err(Error::MethodNotAllowed { allow }),
        Other::Grpc => {
            Err(Error::UnsupportedMedia("this path speaks gRPC, expected `content-type: application/grpc`".into()))
        }
    }
}

fn unknown() -> Error {
    Error::NoRoute("this path is unknown".into())
}

fn named(model: &str, version: Option<&str>) -> ModelRef {
    ModelRef { name: model.into(), version: version.map(Into::into) }
}

/// The decoded segments of `path` without its leading slash.
fn split(path: &str) -> Result<Segments<'_>, Error> {
    let Some(path) = path.strip_prefix('/') else { return Err(Error::invalid("the path does not begin with `/`")) };
    let mut segments = Segments::new();
    let mut rest = path;
    loop {
        // By bytes: a search for a character costs more before it begins than the few letters of a segment.
        let end = rest.bytes().position(|byte| byte == b'/');
        let (segment, more) = end.map_or((rest, None), |end| (&rest[..end], Some(&rest[end + 1..])));
        if segment.is_empty() && more.is_some() {
            return Err(Error::invalid("the path has an empty segment"));
        }
        segments.push(decode(segment)?);
        match more {
            Some(more) => rest = more,
            None => return Ok(segments),
        }
    }
}

/// Percent-decodes one segment, once.
fn decode(segment: &str) -> Result<Cow<'_, str>, Error> {
    // A NUL comes by an escape only: a URI has none.
    let decoded = if segment.bytes().any(|byte| byte == b'%') {
        let text = unescape(segment)?;
        if text.contains('\0') {
            return Err(Error::invalid("the path has a NUL character"));
        }
        Cow::Owned(text)
    } else {
        Cow::Borrowed(segment)
    };
    match &*decoded {
        "." | ".." => Err(Error::invalid("the path has a segment that is `.` or `..`")),
        _ => Ok(decoded),
    }
}

fn unescape(segment: &str) -> Result<String, Error> {
    let broken = || Error::invalid("the path has a broken percent escape");
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (rest.next().and_then(digit), rest.next().and_then(digit));
        let (Some(high), Some(low)) = (high, low) else { return Err(broken()) };
        bytes.push(high << 4 | low);
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("the path is not UTF-8"))
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

// === impl Route, Family ===

impl From<Inspect> for Route {
    fn from(inspect: Inspect) -> Self {
        Self::Inspect(inspect)
    }
}

impl From<Ask> for Route {
    fn from(ask: Ask) -> Self {
        Self::V1(ask)
    }
}

impl From<Change> for Route {
    fn from(change: Change) -> Self {
        Self::Change(change)
    }
}

impl Family {
    /// By prefix (contract 00 section 3).
    pub(super) fn of(path: &str) -> Self {
        let under = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
        };
        if under("/v1/models") {
            Self::Text
        } else if under("/v1/ws") || path == "/v2/stream" {
            Self::Problem
        } else if under("/v1/") || under("/openai") {
            Self::OpenAi
        } else {
            Self::Text
        }
    }
}

#[cfg(test)]
mod tests;

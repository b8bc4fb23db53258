//! The route table of REST: paths, methods, and whose error body a path has (contract 00 section 3).
//!
//! Paths are split on raw `/` and each segment is percent-decoded once; what could be read in two ways is refused. No
//! authorisation happens here, and no model name is checked.

use super::v1::Ask;
use crate::{
    call::{Inspect, ModelRef},
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
    /// A path of KServe V1, of TensorFlow Serving, or of their plainest form.
    V1(Ask),
    /// A path that speaks WebSocket, asked without an upgrade.
    WebSocketOnly,
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

/// What the table knows of a path, whatever the method.
pub(super) enum Entry {
    Get(Route),
    Probe(Probe),
    Post(Route),
    /// One to look, one to change.
    Both(Route, Route),
    /// There only by configuration, so what is there says which methods it has.
    Any(Route),
    /// Known and never served: the method it would have, and why.
    Never(&'static str, &'static str),
    /// Comes with a later version; the methods it will have.
    Later(&'static str),
    /// A method of gRPC, asked with another content type.
    Grpc,
}

type Segments<'a> = SmallVec<[Cow<'a, str>; 8]>;

/// The route of `method` and `path`.
pub(super) fn find(method: &Method, path: &str) -> Result<Route, Miss> {
    let miss = |error| Miss { error, family: Family::of(path) };
    let segments = split(path).map_err(miss)?;
    let segments: SmallVec<[&str; 8]> = segments.iter().map(|segment| &**segment).collect();
    let Some(entry) = entry(&segments) else {
        return Err(miss(Error::NoRoute("this path is unknown".into())));
    };
    let not_allowed = |allow| miss(Error::MethodNotAllowed { allow });
    match entry {
        Entry::Probe(probe) if *method == Method::GET || *method == Method::HEAD => Ok(Route::Probe(probe)),
        Entry::Get(route) if *method == Method::GET => Ok(route),
        Entry::Post(route) if *method == Method::POST => Ok(route),
        Entry::Both(get, _) if *method == Method::GET => Ok(get),
        Entry::Both(_, post) if *method == Method::POST => Ok(post),
        Entry::Any(route) => Ok(route),
        Entry::Never(allow, why) if allow == method.as_str() => Err(miss(Error::Unimplemented(why.into()))),
        Entry::Later(allow) if allow.split(", ").any(|one| one == method.as_str()) => {
            Err(miss(Error::Unimplemented("this route is not part of this version".into())))
        }
        Entry::Probe(_) | Entry::Get(_) => Err(not_allowed("GET")),
        Entry::Post(_) => Err(not_allowed("POST")),
        Entry::Both(..) => Err(not_allowed("GET, POST")),
        Entry::Later(allow) | Entry::Never(allow, _) => Err(not_allowed(allow)),
        Entry::Grpc => Err(miss(Error::UnsupportedMedia(
            "this path speaks gRPC, expected `content-type: application/grpc`".into(),
        ))),
    }
}

/// Hot routes first: a `match` over slices is tried from the top.
fn entry(path: &[&str]) -> Option<Entry> {
    use Entry::{Any, Both, Get, Later, Post, Probe as AProbe};
    Some(match path {
        ["v2", "models", model, "infer"] => Post(Route::Infer(named(model, None))),
        ["v2", "models", model, "versions", version, "infer"] => Post(Route::Infer(named(model, Some(version)))),
        [""] => AProbe(Probe::Root),
        ["v2", "health", "live"] => AProbe(Probe::Live),
        ["v2", "health", "ready"] => AProbe(Probe::Ready),
        ["v2"] | ["v2", ""] => Get(Inspect::Server.into()),
        ["v2", "models"] => Get(Inspect::Models.into()),
        // No model has this name (contract 02 section 6).
        ["v2", "models", "stats"] => Get(Inspect::Statistics(None).into()),
        ["v2", "models", model] if !model.is_empty() => Get(Inspect::Model(named(model, None)).into()),
        ["v2", "models", model, "ready"] => Get(Inspect::Ready(named(model, None)).into()),
        ["v2", "models", model, "versions", version] if !version.is_empty() => {
            Get(Inspect::Model(named(model, Some(version))).into())
        }
        ["v2", "models", model, "versions", version, "ready"] => {
            Get(Inspect::Ready(named(model, Some(version))).into())
        }
        ["v2", "models", model, "versions", version, rest @ ..] => about(&named(model, Some(version)), rest)?,
        ["v2", "models", model, rest @ ..] => about(&named(model, None), rest)?,
        ["v2", "logging"] => Both(Inspect::Logging.into(), Change::Logging.into()),
        ["v2", "trace", "setting"] => Both(Inspect::Trace(None).into(), Change::Trace(None).into()),
        ["v2", "repository", rest @ ..] => repository(rest)?,
        ["v2", "systemsharedmemory" | "cudasharedmemory", rest @ ..] => match rest {
            ["status"] | ["region", _, "status"] => Get(Route::SharedMemory(SharedMemory::Status)),
            ["region", _, "register"] => Post(Route::SharedMemory(SharedMemory::Register)),
            ["unregister"] | ["region", _, "unregister"] => Post(Route::SharedMemory(SharedMemory::Unregister)),
            _ => return None,
        },
        ["v1", "ws"] => Get(Route::WebSocketOnly),
        ["v1", "ws", "tickets"] => Later("POST"),
        ["v1", "models", rest @ ..] => Ask::entry(rest)?,
        ["predict"] => Any(Ask::Plain.into()),
        ["v1", rest @ ..] | ["openai", "v1", rest @ ..] => match rest {
            ["chat", "completions"] | ["completions" | "embeddings"] => Later("POST"),
            ["models", ..] => Later("GET"),
            _ => return None,
        },
        ["metrics" | "docs" | "openapi.json"] => Later("GET"),
        [service, _] if ["inference.", "grpc.", "tensorflow."].iter().any(|package| service.starts_with(package)) => {
            Entry::Grpc
        }
        _ => return None,
    })
}

/// What is below a model, beside what is asked of every model.
fn about(model: &ModelRef, rest: &[&str]) -> Option<Entry> {
    let model = || model.clone();
    match rest {
        ["config"] => Some(Entry::Get(Inspect::Config(model()).into())),
        ["stats"] => Some(Entry::Get(Inspect::Statistics(Some(model())).into())),
        ["trace", "setting"] => {
            Some(Entry::Both(Inspect::Trace(Some(model())).into(), Change::Trace(Some(model())).into()))
        }
        ["generate"] => Some(Entry::Post(Route::Generate(model(), false))),
        ["generate_stream"] => Some(Entry::Post(Route::Generate(model(), true))),
        ["infer_stream"] => Some(Entry::Post(Route::InferStream(model()))),
        _ => None,
    }
}

/// What is below the repository. It has one name, which is none: others are told so.
fn repository(rest: &[&str]) -> Option<Entry> {
    let change = |model: &str, version: Option<&str>, verb: &str| {
        let model = named(model, version);
        Entry::Post(if verb == "load" { Change::Load(model).into() } else { Change::Unload(model).into() })
    };
    match rest {
        ["index"] => Some(Entry::Post(Change::Index.into())),
        ["models", model, verb @ ("load" | "unload")] => Some(change(model, None, verb)),
        ["models", model, "versions", version, verb @ ("load" | "unload")] => Some(change(model, Some(version), verb)),
        [_, "index"] | [_, "models", _, "load" | "unload"] => Some(Entry::Later("POST")),
        _ => None,
    }
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
mod tests {
    use super::*;
    use crate::error::Code;
    use proptest::prelude::*;

    fn code(method: &Method, path: &str) -> Code {
        find(method, path).unwrap_err().error.code()
    }

    #[test]
    fn models_and_versions_are_taken_from_the_path() {
        let infer = |path| find(&Method::POST, path).unwrap();
        assert_eq!(infer("/v2/models/m/infer"), Route::Infer(named("m", None)));
        assert_eq!(infer("/v2/models/m/versions/3/infer"), Route::Infer(named("m", Some("3"))));
        assert_eq!(infer("/v2/models/org%2Fname/infer"), Route::Infer(named("org/name", None)));
        assert_eq!(infer("/v2/models/%C3%BC/infer"), Route::Infer(named("ü", None)));
        let get = |path| find(&Method::GET, path).unwrap();
        assert_eq!(get("/v2/models/ready/ready"), Route::Inspect(Inspect::Ready(named("ready", None))));
        assert_eq!(get("/v2/models/m/versions/1"), Route::Inspect(Inspect::Model(named("m", Some("1")))));
        assert_eq!(get("/v2"), get("/v2/"));
        assert_eq!(get("/%76%32"), get("/v2"));
    }

    #[test]
    fn probes_take_head_and_nothing_else() {
        for path in ["/", "/v2/health/live", "/v2/health/ready"] {
            assert!(matches!(find(&Method::HEAD, path), Ok(Route::Probe(_))));
            assert!(matches!(find(&Method::POST, path).unwrap_err().error, Error::MethodNotAllowed { allow: "GET" }));
        }
        assert!(matches!(find(&Method::HEAD, "/v2").unwrap_err().error, Error::MethodNotAllowed { allow: "GET" }));
    }

    #[test]
    fn what_comes_later_says_so_and_knows_its_methods() {
        let post = ["/v2/repository/r/index", "/v1/chat/completions"];
        for path in post {
            assert_eq!(code(&Method::POST, path), Code::Unimplemented, "{path}");
            assert_eq!(code(&Method::GET, path), Code::MethodNotAllowed, "{path}");
        }
        let get = ["/openai/v1/models", "/metrics"];
        for path in get {
            assert_eq!(code(&Method::GET, path), Code::Unimplemented, "{path}");
        }
    }

    #[test]
    fn one_path_may_look_and_change() {
        let found = |method: &Method, path: &str| find(method, path).unwrap();
        assert_eq!(found(&Method::GET, "/v2/models/stats"), Inspect::Statistics(None).into());
        let one = named("m", Some("1"));
        assert_eq!(found(&Method::GET, "/v2/models/m/versions/1/stats"), Inspect::Statistics(Some(one.clone())).into());
        assert_eq!(found(&Method::GET, "/v2/models/m/config"), Inspect::Config(named("m", None)).into());
        assert_eq!(found(&Method::GET, "/v2/logging"), Inspect::Logging.into());
        assert_eq!(found(&Method::POST, "/v2/logging"), Change::Logging.into());
        assert_eq!(found(&Method::POST, "/v2/models/m/trace/setting"), Change::Trace(Some(named("m", None))).into());
        assert_eq!(found(&Method::POST, "/v2/repository/index"), Change::Index.into());
        assert_eq!(found(&Method::POST, "/v2/repository/models/m/load"), Change::Load(named("m", None)).into());
        assert_eq!(found(&Method::POST, "/v2/repository/models/m/versions/1/unload"), Change::Unload(one).into());
        assert_eq!(code(&Method::GET, "/v2/repository/index"), Code::MethodNotAllowed);
        assert_eq!(code(&Method::DELETE, "/v2/logging"), Code::MethodNotAllowed);
    }

    #[test]
    fn the_unknown_is_not_found_in_its_family() {
        let family = |path| {
            let miss = find(&Method::GET, path).unwrap_err();
            assert_eq!(miss.error.code(), Code::NotFound, "{path}");
            miss.family
        };
        assert_eq!(family("/nope"), Family::Text);
        assert_eq!(family("/v2/models/m/nope"), Family::Text);
        assert_eq!(family("/v2/models/"), Family::Text);
        assert_eq!(family("/v1/nope"), Family::OpenAi);
        assert_eq!(family("/openai/nope"), Family::OpenAi);
        assert_eq!(family("/v1/ws/nope"), Family::Problem);
        assert_eq!(Family::of("/v1/models/m"), Family::Text);
        assert_eq!(Family::of("/v1/wsx"), Family::OpenAi);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let odd = [
            "//v2",
            "/v2//models",
            "/v2/models/../x",
            "/v2/models/%2e%2E",
            "/v2/./models",
            "/v2/models/a%00b",
            "/v2/models/%",
            "/v2/models/%4",
            "/v2/models/%zz",
            "/v2/models/%c0%af",
            "/v2/models/%ff",
            "*",
        ];
        for path in odd {
            assert_eq!(code(&Method::GET, path), Code::InvalidArgument, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_and_escaping_changes_nothing(path in "(/[a-zA-Z0-9._%:-]{0,6}){0,7}", name in "\\PC{1,12}") {
            let _ = find(&Method::GET, &path);
            let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let found = find(&Method::POST, &format!("/v2/models/{escaped}/infer"));
            if name == "." || name == ".." {
                prop_assert!(found.is_err());
            } else {
                prop_assert_eq!(found.unwrap(), Route::Infer(named(&name, None)));
            }
        }
    }
}

//! The protocol-neutral vocabulary: a call, its stages, its reply.
//!
//! Knows no I/O. A call is refined on its way down the stack: [`Inbound`] (nothing proven, body not
//! read), [`Identified`] (sender proven), [`Decoded`] (body decoded). The stages are types, so a
//! stack that charges a rate before it knows who calls does not compile.

mod cached;
mod gateway;
mod identity;
mod inputs;
mod interrupt;
mod manage;
mod operation;
pub mod pattern;
mod per_thread;
mod quota;
mod readiness;
mod reply;
mod report;
mod route;
mod said;
mod steering;
mod stream;
pub mod trace;
mod watch;

pub use cached::Cached;
pub use gateway::Gateway;
pub use identity::{ANONYMOUS, Certificate, Credentials, Identity, Peer, Scope};
pub use inputs::{Expected, Inputs, Labels, Untyped};
pub use interrupt::{Armed, Interrupt, Leaving, Stop};
pub use manage::{LoadRequest, LoggingChange, Manage, NewValues, TraceChange, UnloadRequest};
pub use operation::{
    InferRequest, Inspect, ModelKey, ModelRef, NamedTensor, Operation, Parameter, Parameters, RequestedOutput,
};
pub use per_thread::PerThread;
pub use quota::{Quota, Quotas, Work};
pub use readiness::{Readiness, Turning};
pub use reply::{Chunk, InferResponse, Reply, Timing};
pub use report::{
    BatchReport, CatalogEntry, ConfigReport, ImageFormat, IndexEntry, Logging, ModelReport, Notes, RaggedReport,
    Report, ServedVersions, ServerReport, StatisticsReport, StepReport, Tally, VersionState, VersionsReport,
};
pub use route::Route;
pub use said::Said;
pub use steering::{MOST_HEADERS, Steered, Steering};
pub use stream::ReplyStream;
pub use watch::{End, Observer, Watch};

use crate::error::{Error, Stage};
use futures_util::future::BoxFuture;
use std::{
    any::Any,
    cell::Cell,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};
use trace::TraceContext;
use uuid::Uuid;

/// One unit of work, whatever wire it came in on.
///
/// `P` is what is known of the sender, `I` what is known of the work. The stack refines both; the
/// three aliases are the only forms in use.
#[derive(Debug)]
pub struct Call<P, I> {
    /// Known before the body, and needed all the way down.
    pub head: Head,
    /// Who sent it.
    pub sender: P,
    /// What it asks for.
    pub input: I,
}

/// Just off the wire: nothing is proven and the body is not read.
pub type Inbound = Call<Credentials, Pending>;
/// We know who sent it. The body is still not read.
pub type Identified = Call<Arc<Identity>, Pending>;
/// We know who, and we know what.
pub type Decoded = Call<Arc<Identity>, Operation>;

impl<P, I> Call<P, I> {
    /// The same call, sent by `sender`.
    pub fn identified<Q>(self, sender: Q) -> Call<Q, I> {
        Call { head: self.head, sender, input: self.input }
    }
}

/// The body, not yet read. Only the `Decode` layer polls it.
///
/// A newtype rather than an alias of the boxed future: with the alias, generic async code over it
/// fails with "`Send` is not general enough".
pub struct Pending(BoxFuture<'static, Result<Operation, Error>>);

impl Pending {
    /// A body that `read` would read and decode.
    pub fn new(read: impl Future<Output = Result<Operation, Error>> + Send + 'static) -> Self {
        Self(Box::pin(read))
    }

    /// A body that needs no reading: probes, and requests that are all path.
    pub fn ready(operation: Operation) -> Self {
        Self::new(std::future::ready(Ok(operation)))
    }
}

impl Future for Pending {
    type Output = Result<Operation, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

/// What is known before the body, and needed all the way down.
#[derive(Clone, Debug)]
pub struct Head {
    /// Names this call in logs, errors and answers.
    pub id: CallId,
    /// For labels and logs only.
    pub surface: Surface,
    /// Where it came in; for labels and logs only.
    pub route: Route,
    /// The kind of operation.
    pub intent: Intent,
    /// Shared by all calls of one connection.
    pub peer: Arc<Peer>,
    /// When the head was known.
    pub received: Instant,
    /// The client's wish, as its protocol's header says it; the `Deadline` layer caps it.
    pub timeout: Option<Duration>,
    /// Never absent: until the `Deadline` layer has set it, it is `received` itself.
    pub deadline: Instant,
    /// Until when a reply that streams may last; set beside `deadline`, which its run must only have begun by.
    pub stream_deadline: Instant,
    /// What the stack learns on the way down, for those who report on the way up.
    pub facts: Arc<Facts>,
}

impl Head {
    /// The head of a call that was received now.
    pub fn new(id: CallId, surface: Surface, intent: Intent, peer: Arc<Peer>) -> Self {
        let received = Instant::now();
        let (deadline, stream_deadline) = (received, received);
        let (route, facts) = (Route::Other, Arc::default());
        Self { id, surface, route, intent, peer, received, timeout: None, deadline, stream_deadline, facts }
    }

    /// The same head, of a call that came in at `route`.
    #[must_use]
    pub fn at(mut self, route: Route) -> Self {
        self.route = route;
        self
    }

    /// The same head, of a call that is part of what `context` names.
    #[must_use]
    pub fn part_of(self, context: Option<TraceContext>) -> Self {
        if let Some(context) = context {
            // The first to say so is right; nobody else has seen this head.
            let _ = self.facts.context.set(context);
        }
        self
    }

    /// The same head, of a call that came with these headers.
    #[must_use]
    pub fn steered(self, headers: Option<Steered>) -> Self {
        if let Some(headers) = headers {
            // Nobody else has seen this head.
            let _ = self.facts.steered.set(headers);
        }
        self
    }

    /// The same head with the client's wish for a deadline.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }
}

/// A protocol as a client sees it. Behaviour below the front-end never depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surface {
    /// Plain HTTP requests, server-sent events included.
    Rest,
    /// gRPC, gRPC-Web included.
    Grpc,
    /// `sluicegate.v1` messages.
    WebSocket,
    /// NDJSON lines of one HTTP request.
    H2Stream,
}

impl Surface {
    /// Every surface.
    pub const ALL: [Self; 4] = [Self::Rest, Self::Grpc, Self::WebSocket, Self::H2Stream];

    /// The word used in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
            Self::WebSocket => "websocket",
            Self::H2Stream => "h2_stream",
        }
    }
}

/// The kind of an operation, known before the body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Run a model once.
    Infer,
    /// Generate text.
    Generate,
    /// Look at something.
    Inspect,
    /// Change something.
    Manage,
    /// Read metrics through an API listener.
    Metrics,
}

impl Intent {
    /// Every intent.
    pub const ALL: [Self; 5] = [Self::Infer, Self::Generate, Self::Inspect, Self::Manage, Self::Metrics];

    /// The word used in configuration, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Generate => "generate",
            Self::Inspect => "inspect",
            Self::Manage => "manage",
            Self::Metrics => "metrics",
        }
    }

    /// The intent with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|intent| intent.name() == name)
    }
}

/// A place that is given back when it is dropped, whatever it is a place in.
pub struct Place(#[expect(dead_code, reason = "only held")] Box<dyn Any + Send + Sync>);

impl Place {
    /// Holds `guard`.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

/// What the stack learns on the way down, and how far the call has come. Not a map: everything
/// that may be learnt has a name and a type.
#[derive(Debug, Default)]
pub struct Facts {
    /// Set by `Authenticate`.
    pub identity: OnceLock<Arc<Identity>>,
    /// Set once the repository knows the model, so that labels stay few (invariant 9).
    pub model: OnceLock<Arc<ModelKey>>,
    /// Set by the router when a run is over, in reply or in error.
    pub timing: Said<Timing, 2>,
    /// Set by the router with the inputs as the model takes them.
    pub work: Said<Work, 3>,
    /// Set by `RateLimit`: what is left of what a call is charged before its body is read.
    pub quotas: OnceLock<Quotas>,
    /// Set by `Reserve`: the same of what it is charged once its body is known.
    pub reserved: OnceLock<Quotas>,
    /// Set by either of them: what is left of the policy that refused the call.
    pub exhausted: OnceLock<Quota>,
    returned: AtomicBool,
    /// Set by `Sessions`: what the session that this call opens holds, for as long as it keeps these facts.
    pub place: OnceLock<Place>,
    /// Set by `Admit`: the sender's share of a full queue; 0 stands for 1.
    share: AtomicU32,
    /// Ends the run of a caller that has gone.
    pub interrupt: Interrupt,
    running: Said<Instant, 2>,
    /// Set by the router when the decoded call is handed to its model's scheduler.
    pub queued: Said<Instant, 2>,
    /// Set by the front-end, if the client said whose work the call is part of.
    pub context: OnceLock<TraceContext>,
    /// Set by the front-end: headers that may decide to which version of a model the call goes.
    steered: OnceLock<Steered>,
    /// Set by `Trace`, if the call is traced.
    pub trace: OnceLock<Box<trace::Trace>>,
    over: Said<Instant, 2>,
    cached: AtomicU8,
    stage: AtomicU8,
}

impl Facts {
    /// Those of a call that is a part of the call with the facts `whole`: the same caller, with the same share and headers.
    /// Whether it is traced is for whoever makes it.
    pub fn part_of(whole: &Self) -> Self {
        let facts = Self { identity: whole.identity.clone(), steered: whole.steered.clone(), ..Self::default() };
        facts.set_share(whole.share());
        facts
    }

    /// How far the call has come.
    pub fn stage(&self) -> Stage {
        Stage::from_u8(self.stage.load(Ordering::Acquire))
    }

    /// Says that the call has come to `stage`. It never goes back.
    pub fn reach(&self, stage: Stage) {
        // Asked first: a locked operation takes as long as twenty others.
        if self.stage.load(Ordering::Acquire) < stage as u8 {
            self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        }
    }

    /// How many times as much as others its sender gets of a full queue, 1 or more.
    pub fn share(&self) -> u32 {
        self.share.load(Ordering::Relaxed).max(1)
    }

    /// Gives its sender that share.
    pub fn set_share(&self, share: u32) {
        self.share.store(share, Ordering::Relaxed);
    }

    /// What its model's cache had for the call; `None` where answers are not kept.
    pub fn cached(&self) -> Option<Cached> {
        Cached::ALL.get(usize::from(self.cached.load(Ordering::Relaxed)).wrapping_sub(1)).copied()
    }

    /// Says what its model's cache has for the call. A call that waited for another's run may still have to run.
    pub fn set_cached(&self, cached: Cached) {
        self.cached.store(cached as u8 + 1, Ordering::Relaxed);
    }

    /// The headers of the call that were kept.
    pub fn steered(&self) -> Option<Steered> {
        self.steered.get().cloned()
    }

    /// The value of a header of the call that was kept, by its name in lower case.
    pub fn steering(&self, name: &str) -> Option<&str> {
        self.steered.get()?.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }

    /// Says that what the call was charged was given back.
    pub fn give_back(&self) {
        self.returned.store(true, Ordering::Relaxed);
    }

    /// Whether what the call was charged was given back.
    pub fn is_given_back(&self) -> bool {
        self.returned.load(Ordering::Relaxed)
    }

    /// Says that the call runs since `started`.
    pub fn run_since(&self, started: Instant) {
        self.running.set(started);
        self.reach(Stage::Running);
    }

    /// How long its run took, or has taken so far: of the whole batch, as `timing` has it.
    pub fn computed(&self) -> Duration {
        match (self.timing.get(), self.running.get()) {
            (Some(timing), _) => timing.compute,
            (None, Some(started)) => started.elapsed(),
            (None, None) => Duration::ZERO,
        }
    }

    /// When the exchange was over, which is when this is first asked: all who report it say the same, and the clock is
    /// read once.
    pub fn over(&self) -> Instant {
        self.over.get().unwrap_or_else(|| {
            let now = Instant::now();
            self.over.set(now);
            now
        })
    }
}

/// 64 bits that differ from call to call, for names and for chance. Not a secret.
pub fn random() -> u64 {
    thread_local! {
        // Seeded from the operating system, differently for each thread.
        static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
    }
    // SplitMix64: a counter that is mixed until it looks random.
    let state = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The name of a call (contract 00 section 5, `x-request-id`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CallId {
    /// Made here: a UUIDv7, so that ids sort by time.
    Made(Uuid),
    /// Brought by the client, 1 to 128 characters of `A-Za-z0-9._-`.
    Given(Arc<str>),
}

impl CallId {
    /// A new id: the time in milliseconds, and 74 bits that differ from call to call. Not a secret.
    pub fn make() -> Self {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&random().to_le_bytes());
        bytes[8..].copy_from_slice(&random().to_le_bytes()[..2]);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self::Made(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid())
    }

    /// The client's id if it is sane; else a new one.
    pub fn from_client(id: Option<&str>) -> Self {
        match id {
            Some(id) if Self::is_sane(id) => Self::Given(id.into()),
            _ => Self::make(),
        }
    }

    fn is_sane(id: &str) -> bool {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made(uuid) => fmt::Display::fmt(uuid, f),
            Self::Given(id) => f.write_str(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_through_every_layer_stays_small() {
        assert!(size_of::<Inbound>() <= 152, "{}", size_of::<Inbound>());
        assert!(size_of::<Result<Reply, Error>>() <= 136, "{}", size_of::<Result<Reply, Error>>());
    }

    #[test]
    fn only_sane_ids_are_taken_over() {
        assert_eq!(CallId::from_client(Some("a-1._B")).to_string(), "a-1._B");
        let long = "x".repeat(129);
        for insane in [None, Some(""), Some("a b"), Some("a\n"), Some("ü"), Some(&*long)] {
            assert!(matches!(CallId::from_client(insane), CallId::Made(_)), "{insane:?}");
        }
    }

    #[test]
    fn made_ids_are_version_7_and_never_the_same() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| CallId::make()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| matches!(id, CallId::Made(uuid) if uuid.get_version_num() == 7)));
        let other = std::thread::spawn(CallId::make).join().unwrap();
        assert!(!ids.contains(&other));
    }

    #[test]
    fn a_stage_never_goes_back() {
        let facts = Facts::default();
        facts.reach(Stage::Running);
        facts.reach(Stage::Queued);
        assert_eq!(facts.stage(), Stage::Running);
    }
}

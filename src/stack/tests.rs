//! The order of the layers, as sentences.

use super::*;
use crate::{
    call::{
        Call, Chunk, Credentials, End, Facts, Head, Identity, Inbound, Intent, ModelRef, Observer, Operation, Peer,
        Pending, ReplyStream,
    },
    error::{Cap, Code, Stage},
    layer::{
        admit::Slot,
        fixture::{Below, chunk, head, identity, infer, stream, streamed, whole},
    },
    limit::{Ask, Outcome},
    telemetry::{Format, access_log::tests::Page},
};
use futures_util::FutureExt;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc::Sender;

/// Proves every API key to be the identity of that name.
struct Doorman;

impl Verify for Doorman {
    fn verify(&self, _: &Peer, credentials: &Credentials) -> Result<Arc<Identity>, Error> {
        match credentials {
            Credentials::ApiKey(key) => Ok(identity(key)),
            _ => Err(Error::Unauthenticated),
        }
    }
}

/// Grants everything to everyone but `nobody`.
struct Book;

impl Permit for Book {
    fn check(&self, identity: &Identity, _: Intent, model: Option<&ModelRef>) -> Result<(), Error> {
        let model = model.unwrap();
        if self.any(identity) {
            return Ok(());
        }
        Err(Error::ModelNotFound { model: model.name.clone(), version: None })
    }

    fn may_see(&self, identity: &Identity, _: &str) -> bool {
        self.any(identity)
    }

    fn any(&self, identity: &Identity) -> bool {
        &**identity.id() != "nobody"
    }
}

/// One call of a budget, given back as contract 10 section 2 says.
struct Coin {
    purse: Arc<Mutex<usize>>,
    facts: Arc<Facts>,
}

struct Till {
    purse: Arc<Mutex<usize>>,
}

impl Charging for Till {
    type Charge = Coin;

    fn charge(self: &Arc<Self>, ask: Ask<'_>) -> Outcome<Coin> {
        // The greedy one is over a quota that needs the body.
        if ask.operation.is_some() && &**ask.identity.id() != "greedy" {
            return Outcome::Free;
        }
        let mut left = self.purse.lock().unwrap();
        let refused = ask.operation.is_some() || *left == 0;
        if refused {
            return Outcome::Refused(Error::RateLimited { retry_after: Duration::from_secs(1), cap: Cap::Calls });
        }
        *left -= 1;
        Outcome::Charged(Coin { purse: Arc::clone(&self.purse), facts: Arc::clone(&ask.head.facts) })
    }
}

impl Observer for Coin {
    fn end(&mut self, end: End) {
        let back = match end {
            End::Complete => false,
            End::Failed(Code::Overloaded | Code::NotReady | Code::RateLimited) => true,
            End::Failed(Code::DeadlineExceeded) | End::Abandoned => self.facts.stage() < Stage::Running,
            End::Failed(_) => false,
        };
        *self.purse.lock().unwrap() += usize::from(back);
    }
}

/// The whole stack with 100 calls to spend and two slots, and everything that can be seen of it from outside.
struct Built {
    gateway: Gateway,
    metrics: Arc<Metrics>,
    slots: Arc<Slots>,
    purse: Arc<Mutex<usize>>,
    body_polls: Arc<AtomicUsize>,
}

fn built(router: Below) -> Built {
    built_with(router, None)
}

fn built_with(router: Below, access_log: Option<AccessLog>) -> Built {
    let metrics = Arc::new(Metrics::new());
    let slots = Arc::new(Slots::new(2, 1, None));
    let purse = Arc::new(Mutex::new(100));
    let gateway = build(Parts {
        access_log,
        tracer: None,
        metrics: Arc::clone(&metrics),
        deadlines: deadline::Settings::default().into(),
        authenticator: Arc::new(Doorman),
        limiter: Arc::new(Till { purse: Arc::clone(&purse) }),
        slots: Arc::clone(&slots),
        sessions: None,
        grants: Arc::new(Book),
        router,
    });
    Built { gateway, metrics, slots, purse, body_polls: Arc::default() }
}

impl Built {
    /// A call of `key` whose body counts how often it is polled.
    fn call(&self, key: &str) -> Inbound {
        let polls = Arc::clone(&self.body_polls);
        self.call_with(key, async move {
            polls.fetch_add(1, Ordering::SeqCst);
            Ok(infer())
        })
    }

    fn call_with(&self, key: &str, body: impl Future<Output = Result<Operation, Error>> + Send + 'static) -> Inbound {
        Call { head: head(Intent::Infer), sender: Credentials::ApiKey(key.into()), input: Pending::new(body) }
    }

    async fn code(&self, call: Inbound) -> Option<Code> {
        self.gateway.call(call).await.err().map(|error| error.code())
    }

    fn left(&self) -> usize {
        *self.purse.lock().unwrap()
    }

    fn polled(&self) -> usize {
        self.body_polls.load(Ordering::SeqCst)
    }

    fn counted(&self, code: &str) -> bool {
        let line = format!(r#"sluicegate_calls_total{{code="{code}",model="",route="other",surface="rest"}} 1"#);
        self.metrics.render().lines().any(|found| found == line)
    }
}

/// A router that answers once with a stream.
fn streaming() -> (Sender<Result<Chunk, Error>>, Below) {
    let (sender, reply) = stream();
    let reply = Mutex::new(Some(reply));
    (sender, Below::answering(move || Ok(reply.lock().unwrap().take().unwrap())))
}

async fn first(stream: &mut ReplyStream, sender: &Sender<Result<Chunk, Error>>) {
    sender.send(Ok(chunk())).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
}

#[tokio::test]
async fn a_good_call_comes_through() {
    let built = built(Below::answering(|| Ok(whole())));
    assert_eq!(built.code(built.call("web")).await, None);
    assert_eq!((built.left(), built.polled(), built.slots.in_use()), (99, 1, (0, 0)));
    assert!(built.counted("ok"));
}

#[tokio::test]
async fn an_unauthenticated_call_spends_no_rate() {
    let built = built(Below::answering(|| panic!("called")));
    let mut call = built.call("web");
    call.sender = Credentials::None;
    assert_eq!(built.code(call).await, Some(Code::Unauthenticated));
    assert_eq!(built.left(), 100);
}

#[tokio::test]
async fn a_rate_limited_call_takes_no_slot() {
    let built = built(Below::silent());
    let held = [built.gateway.call(built.call("web")), built.gateway.call(built.call("web"))];
    let mut held = held.map(Box::pin);
    for call in &mut held {
        assert!(call.now_or_never().is_none());
    }
    *built.purse.lock().unwrap() = 0;
    // Every slot is taken, and still the caller hears of its rate: it was not asked to compete for one.
    assert_eq!(built.code(built.call("web")).await, Some(Code::RateLimited));
    assert_eq!(built.slots.in_use().0, 2);
}

/// Both slots there are.
fn taken(slots: &Arc<Slots>) -> [Outcome<Slot>; 2] {
    let taken = [(); 2].map(|()| slots.acquire(&identity("a"), Intent::Infer));
    assert!(taken.iter().all(|slot| matches!(slot, Outcome::Charged(_))));
    taken
}

#[tokio::test]
async fn a_refused_calls_body_is_not_polled() {
    let built = built(Below::silent());
    let mut stranger = built.call("web");
    stranger.sender = Credentials::None;
    assert_eq!(built.code(stranger).await, Some(Code::Unauthenticated));

    let _slots = taken(&built.slots);
    assert_eq!(built.code(built.call("web")).await, Some(Code::Overloaded));

    *built.purse.lock().unwrap() = 0;
    assert_eq!(built.code(built.call("web")).await, Some(Code::RateLimited));
    assert_eq!(built.polled(), 0);
}

#[tokio::test]
async fn an_overloaded_call_gets_its_charge_back() {
    let built = built(Below::answering(|| Ok(whole())));
    let _slots = taken(&built.slots);
    assert_eq!(built.code(built.call("web")).await, Some(Code::Overloaded));
    assert_eq!(built.left(), 100);
}

#[tokio::test]
async fn a_forbidden_call_stays_charged_and_gives_its_slot_back() {
    let built = built(Below::answering(|| panic!("called")));
    assert_eq!(built.code(built.call("nobody")).await, Some(Code::NotFound));
    assert_eq!((built.left(), built.polled(), built.slots.in_use()), (99, 1, (0, 0)));
}

#[tokio::test]
async fn a_call_over_a_quota_of_its_body_gets_its_charge_and_its_slot_back() {
    let built = built(Below::answering(|| panic!("called")));
    assert_eq!(built.code(built.call("greedy")).await, Some(Code::RateLimited));
    assert_eq!((built.left(), built.polled(), built.slots.in_use()), (100, 1, (0, 0)));
}

#[tokio::test]
async fn a_dropped_call_is_counted_as_abandoned_and_lets_go_of_everything() {
    let built = built(Below::silent());
    let mut call = Box::pin(built.gateway.call(built.call("web")));
    assert!((&mut call).now_or_never().is_none());
    assert_eq!((built.left(), built.slots.in_use().0), (99, 1));
    drop(call);
    assert!(built.counted("cancelled"));
    assert_eq!((built.left(), built.slots.in_use().0), (100, 0));
}

#[tokio::test]
async fn a_slot_returns_when_the_client_drops_a_stream_half_way() {
    let (sender, router) = streaming();
    let built = built(router);
    let mut stream = streamed(built.gateway.call(built.call("web")).await.unwrap());
    first(&mut stream, &sender).await;
    assert_eq!(built.slots.in_use().0, 1);
    drop(stream);
    assert_eq!(built.slots.in_use().0, 0);
    assert!(sender.is_closed());
    assert!(built.counted("cancelled"));
    assert_eq!(built.left(), 99, "it ran, so it stays charged");
}

#[tokio::test]
async fn a_panic_below_is_counted_as_internal() {
    let built = built(Below::new(|_| async { panic!("below") }));
    assert_eq!(built.code(built.call("web")).await, Some(Code::Internal));
    assert!(built.counted("internal"));
    assert_eq!(built.slots.in_use().0, 0);
}

#[tokio::test]
async fn a_panic_of_a_decoder_is_counted_as_internal() {
    let built = built(Below::silent());
    assert_eq!(built.code(built.call_with("web", async { panic!("body") })).await, Some(Code::Internal));
    assert_eq!(built.slots.in_use().0, 0);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_covers_a_slow_body_and_says_so() {
    let built = built(Below::answering(|| panic!("called")));
    let call = built.call_with("web", std::future::pending());
    let error = built.gateway.call(call).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Reading }), "{error}");
    assert!(built.counted("deadline_exceeded"));
    assert_eq!((built.left(), built.slots.in_use().0), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_stream_frees_its_slot() {
    let (sender, router) = streaming();
    let built = built(router);
    let mut call = built.call("web");
    call.head.timeout = Some(Duration::from_secs(3));
    let mut stream = streamed(built.gateway.call(call).await.unwrap());
    first(&mut stream, &sender).await;
    assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(built.slots.in_use().0, 0);
    assert!(built.counted("deadline_exceeded"));
}

#[tokio::test]
async fn metrics_see_refusals() {
    let built = built(Below::silent());
    let mut call = built.call("web");
    call.sender = Credentials::None;
    built.code(call).await;
    *built.purse.lock().unwrap() = 0;
    built.code(built.call("web")).await;
    assert!(built.counted("unauthenticated") && built.counted("rate_limited"));
}

#[tokio::test]
async fn the_access_log_names_who_was_refused_and_why() {
    let page = Page::default();
    let log = AccessLog::start(page.clone(), Format::Json).unwrap();
    let built = built_with(Below::silent(), Some(log.clone()));
    built.code(built.call("nobody")).await;
    assert!(log.flush(Duration::from_secs(10)));
    let line: serde_json::Value = serde_json::from_str(&page.text()).unwrap();
    assert_eq!((&line["identity"], &line["code"]), (&"nobody".into(), &"not_found".into()));
    assert_eq!(line["stage"], "reading");
}

#[tokio::test]
async fn readiness_holds_nothing() {
    let built = built(Below::answering(|| Ok(whole())));
    // As many idle clients as one likes: each holds a handle, none has sent a call on its way.
    let idle: Vec<_> = (0..1000).map(|_| built.gateway.clone()).collect();
    assert_eq!((built.slots.in_use(), built.left(), built.polled()), ((0, 0), 100, 0));
    assert_eq!(built.code(built.call("web")).await, None);
    drop(idle);
    assert_eq!(built.left(), 99);
}

#[tokio::test]
async fn a_call_is_on_its_way_when_it_is_made_and_its_body_when_it_is_waited_for() {
    let built = built(Below::answering(|| Ok(whole())));
    let made = built.gateway.call(built.call("web"));
    assert_eq!((built.slots.in_use(), built.left(), built.polled()), ((1, 0), 99, 0));
    drop(made);
    assert_eq!((built.slots.in_use(), built.left(), built.polled()), ((0, 0), 100, 0));
    let made = built.gateway.call(built.call("web"));
    made.await.unwrap();
    assert_eq!((built.slots.in_use(), built.left(), built.polled()), ((0, 0), 99, 1));
}

#[tokio::test]
async fn unknown_models_add_no_series() {
    let built = built(Below::new(|head: Head| async move {
        Err(Error::ModelNotFound { model: head.id.to_string().into(), version: None })
    }));
    assert_eq!(built.code(built.call("web")).await, Some(Code::NotFound));
    let lines = built.metrics.render().lines().count();
    for _ in 0..10_000 {
        *built.purse.lock().unwrap() = 100;
        assert_eq!(built.code(built.call("web")).await, Some(Code::NotFound));
    }
    assert_eq!(built.metrics.render().lines().count(), lines);
}

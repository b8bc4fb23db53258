//! One budget for two gateways on one Redis, which is killed and comes back, as gateways are.

use crate::support::{
    KEY, Running, Setup,
    authority::Authority,
    client::{Client, Data, Request},
};
use sluicegate::call::Surface;
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Runtime,
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
};

/// A call that waits for Redis waits 50 ms and no longer: one test at a time, so that the others do not keep it busy.
static ALONE: Mutex<()> = Mutex::const_new(());

/// There is nothing left, or nobody could be asked in time whether there is.
const REFUSED: &str = "rate_limited|overloaded";

/// A Redis of the test's own.
struct Redis {
    port: u16,
    server: Child,
    /// How it is started.
    arguments: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Redis {
    /// `None`, loudly, where there is none.
    async fn start() -> Option<Self> {
        Self::start_with(|port| vec!["--port".into(), port.to_string()]).await
    }

    async fn start_with(arguments: impl FnOnce(u16) -> Vec<String>) -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: shared limits are NOT tested, because `redis-server` is not installed");
            return None;
        }
        let alone = ALONE.lock().await;
        // Free now; nobody else of these tests takes a port without asking the system.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = arguments(port);
        Some(Self { port, server: Self::spawn(port, &arguments), arguments, _alone: alone })
    }

    fn spawn(port: u16, arguments: &[String]) -> Child {
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(arguments)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "redis-server does not listen");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        server
    }

    fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// On the same port, and with nothing in it.
    fn restart(&mut self) {
        self.server = Self::spawn(self.port, &self.arguments);
    }

    /// A gateway that shares `rate` with the others.
    async fn gateway(&self, rate: &str, when_away: &str) -> Running {
        self.limited(&format!("rate: [{rate}]"), when_away, "10s").await
    }

    /// A gateway that shares `limits` with the others.
    async fn limited(&self, limits: &str, when_away: &str, lease: &str) -> Running {
        let port = self.port;
        let shared = format!("redis: \"redis://127.0.0.1:{port}\", when_away: {when_away}, lease: {lease}");
        let yaml = format!("limits: {{ shared: {{ {shared} }}, {limits} }}");
        let running = Setup::new().with_key().yaml(&yaml).start().await;
        is_up(&running, true).await;
        running
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

async fn is_up(running: &Running, up: bool) {
    let line = format!("sluicegate_shared_limits_up {}", u8::from(up));
    running.until("the gateway knows", |page| page.lines().any(|found| found == line)).await;
}

/// Whether one more call passes; a refusal has to be of this code, or of one of several.
async fn passes(running: &Running, surface: Surface, refused: &str) -> bool {
    serves(running, surface, "double", refused).await
}

/// The same for a call to `model`.
async fn serves(running: &Running, surface: Surface, model: &str, refused: &str) -> bool {
    let mut client = Client::connect(surface, running, Some(KEY)).await.unwrap();
    match client.infer(&Request::new(model, &[1, 4], vec![0.0; 4])).await {
        Ok(_) => true,
        Err(failure) => {
            assert!(refused.split('|').any(|code| code == failure.code), "{failure:?}");
            false
        }
    }
}

/// How many of `calls` calls pass, made by eight at once to both gateways in turn, over all surfaces.
async fn spend(gateways: &[Running; 2], calls: usize) -> usize {
    let callers = (0..8).map(|caller| {
        let gateways = gateways.clone();
        tokio::spawn(async move {
            let mut passed = 0;
            for call in 0..calls / 8 {
                let (gateway, surface) = (&gateways[(caller + call) % 2], Surface::ALL[(caller / 2 + call) % 4]);
                passed += usize::from(passes(gateway, surface, REFUSED).await);
            }
            passed
        })
    });
    let mut passed = 0;
    for caller in callers.collect::<Vec<_>>() {
        passed += caller.await.unwrap();
    }
    passed
}

#[tokio::test]
async fn two_gateways_spend_one_budget_to_the_last_unit() {
    let Some(redis) = Redis::start().await else { return };
    let rate = "{ name: calls, limit: 100/day }";
    // Not `share`: a call that waits for too long would then be granted beside the budget.
    let gateways = [redis.gateway(rate, "refuse").await, redis.gateway(rate, "refuse").await];
    let mut passed = spend(&gateways, 240).await;
    assert!(passed <= 100, "{passed} of 100");
    assert!(passed >= 80, "{passed}: little may lie unused");
    // What one has drawn and does not use comes back to the other.
    let started = Instant::now();
    while passed < 100 && started.elapsed() < Duration::from_secs(20) {
        passed += usize::from(passes(&gateways[0], Surface::Rest, REFUSED).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(passed + spend(&gateways, 80).await, 100);
}

#[tokio::test]
async fn what_one_gateway_refuses_itself_is_given_back_to_both() {
    let Some(redis) = Redis::start().await else { return };
    let rate = "{ name: calls, limit: 3/day }, { name: rows, unit: rows, limit: 1/day, models: [echo] }";
    let gateways = [redis.gateway(rate, "share").await, redis.gateway(rate, "share").await];
    let strings = |at: usize| {
        let gateway = gateways[at % 2].clone();
        async move {
            let data = Data::Strings(vec!["a".into()]);
            let request = Request { data, shape: vec![1], ..Request::new("echo", &[1], Vec::new()) };
            Client::connect(Surface::Grpc, &gateway, Some(KEY)).await.unwrap().infer(&request).await
        }
    };
    strings(0).await.unwrap();
    // The rows are gone, so each of these gives its unit of `calls` back.
    for at in 0..10 {
        assert!(strings(at).await.unwrap_err().message.contains("rows"));
    }
    let (started, mut passed) = (Instant::now(), 0);
    while passed < 2 {
        assert!(started.elapsed() < Duration::from_secs(20), "{passed} of the two that are left");
        passed += usize::from(passes(&gateways[passed], Surface::Rest, "rate_limited").await);
    }
    assert!(!passes(&gateways[0], Surface::Rest, "rate_limited").await);
}

#[tokio::test]
async fn a_redis_that_dies_and_comes_back_empty_forgets_no_more_than_is_known() {
    let Some(mut redis) = Redis::start().await else { return };
    let rate = "{ name: calls, limit: 40/day }";
    let gateways = [redis.gateway(rate, "share").await, redis.gateway(rate, "share").await];
    let mut passed = spend(&gateways, 16).await;
    assert_eq!(passed, 16);

    redis.kill();
    for gateway in &gateways {
        is_up(gateway, false).await;
    }
    // A quarter of the limit for each by itself, and what it had drawn.
    let away = spend(&gateways, 120).await;
    assert!((2..=24).contains(&away), "{away} while Redis was away");
    passed += away;

    redis.restart();
    for gateway in &gateways {
        is_up(gateway, true).await;
    }
    passed += spend(&gateways, 120).await;
    assert!(passed <= 40, "{passed} of 40, although Redis came back with nothing in it");
}

#[tokio::test]
async fn a_gateway_that_is_to_refuse_without_redis_says_that_it_is_overloaded() {
    let Some(mut redis) = Redis::start().await else { return };
    let gateway = redis.gateway("{ name: calls, limit: 40/day }", "refuse").await;
    assert!(passes(&gateway, Surface::Grpc, "").await);
    redis.kill();
    is_up(&gateway, false).await;
    // What was drawn before may still be used.
    let mut refused = 0;
    for _ in 0..20 {
        refused += usize::from(!passes(&gateway, Surface::Rest, "overloaded").await);
    }
    assert!(refused >= 10, "{refused}");
    redis.restart();
    is_up(&gateway, true).await;
    assert!(passes(&gateway, Surface::WebSocket, "").await);
}

/// Calls at once of the one identity, over all gateways.
const FOUR: &str = "concurrency: { per_identity: 4 }";

/// For longer than this no call is in flight without a slot: it waits for 50 ms at most.
const DECIDED: Duration = Duration::from_millis(80);

/// A call that is in flight until its gateway lets runs of `held` end.
async fn held(running: &Running) -> JoinHandle<()> {
    holding(running, 1).await.remove(0)
}

/// So many at once.
async fn holding(running: &Running, calls: usize) -> Vec<JoinHandle<()>> {
    let before = in_flight(running).await;
    running.block("held");
    let refusals = Arc::new(AtomicUsize::new(0));
    let call = |_| {
        let (gateway, refusals) = (running.clone(), Arc::clone(&refusals));
        tokio::spawn(async move {
            while !serves(&gateway, Surface::Rest, "held", REFUSED).await {
                refusals.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let handles = (0..calls).map(call).collect();
    loop {
        until(running, "the calls are in flight", before + calls).await;
        let refused = refusals.load(Ordering::Relaxed);
        tokio::time::sleep(DECIDED).await;
        if in_flight(running).await == before + calls && refusals.load(Ordering::Relaxed) == refused {
            return handles;
        }
    }
}

/// Lets the held calls of this gateway end.
async fn finish(running: &Running, calls: Vec<JoinHandle<()>>) {
    running.release("held");
    for call in calls {
        call.await.unwrap();
    }
    until(running, "they are over", 0).await;
}

async fn in_flight(running: &Running) -> usize {
    flying(&running.metrics().await)
}

async fn until(running: &Running, what: &str, calls: usize) {
    running.until(what, |page| flying(page) == calls).await;
}

/// Calls in flight of all surfaces.
fn flying(page: &str) -> usize {
    let values = page.lines().filter_map(|line| line.strip_prefix("sluicegate_calls_in_flight{"));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Waits until one more call passes.
async fn passes_soon(running: &Running, refused: &str) -> Duration {
    let started = Instant::now();
    while !passes(running, Surface::Grpc, refused).await {
        assert!(started.elapsed() < Duration::from_secs(20), "nothing comes free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn calls_in_flight_of_two_gateways_are_counted_together() {
    let Some(redis) = Redis::start().await else { return };
    let gateways = [redis.limited(FOUR, "refuse", "2s").await, redis.limited(FOUR, "refuse", "2s").await];
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        one.push(held(&gateways[0]).await);
        two.push(held(&gateways[1]).await);
    }
    // For longer than a lease lasts: they are renewed.
    for _ in 0..13 {
        for (gateway, surface) in gateways.iter().zip([Surface::Grpc, Surface::WebSocket]) {
            assert!(!passes(gateway, surface, REFUSED).await, "a fifth");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    finish(&gateways[1], two).await;
    // Free at once where they were, and soon where they were not.
    assert!(passes(&gateways[1], Surface::Rest, "").await);
    passes_soon(&gateways[0], REFUSED).await;
    finish(&gateways[0], one).await;
}

#[tokio::test]
async fn all_slots_are_had_by_whoever_calls() {
    let Some(redis) = Redis::start().await else { return };
    let many = "concurrency: { per_identity: 40 }";
    let gateways = [redis.limited(many, "refuse", "10s").await, redis.limited(many, "refuse", "10s").await];
    let calls = holding(&gateways[0], 40).await;
    assert!(!passes(&gateways[0], Surface::Rest, REFUSED).await);
    assert!(!passes(&gateways[1], Surface::Rest, REFUSED).await);
    finish(&gateways[0], calls).await;
    passes_soon(&gateways[1], REFUSED).await;
}

#[test]
fn slots_of_a_gateway_that_died_are_free_when_its_leases_have_expired() {
    let mine = Runtime::new().unwrap();
    let Some(redis) = mine.block_on(Redis::start()) else { return };
    let dies = Runtime::new().unwrap();
    let survivor = mine.block_on(redis.limited(FOUR, "refuse", "2s"));
    let dead = dies.block_on(redis.limited(FOUR, "refuse", "2s"));
    let calls = dies.block_on(holding(&dead, 4));
    assert!(!mine.block_on(passes(&survivor, Surface::Rest, REFUSED)));
    // All its tasks end where they are, and tell nobody.
    dies.shutdown_background();
    assert!(!mine.block_on(passes(&survivor, Surface::Rest, REFUSED)), "they are its own for a while");
    let waited = mine.block_on(passes_soon(&survivor, REFUSED));
    assert!(waited < Duration::from_secs(5), "{waited:?} for a lease of two seconds");
    drop((calls, dead));
}

#[tokio::test]
async fn without_redis_each_gateway_has_its_share_of_the_slots_and_then_they_are_shared_again() {
    let Some(mut redis) = Redis::start().await else { return };
    let gateways = [redis.limited(FOUR, "share", "10s").await, redis.limited(FOUR, "share", "10s").await];
    let calls = holding(&gateways[0], 3).await;
    redis.kill();
    for gateway in &gateways {
        is_up(gateway, false).await;
    }
    // A quarter of four is one, which the first has used up.
    assert!(!passes(&gateways[0], Surface::Rest, "rate_limited").await);
    let other = held(&gateways[1]).await;
    assert!(!passes(&gateways[1], Surface::Rest, "rate_limited").await);

    // It comes back with nothing in it, and hears of all four before it grants more.
    redis.restart();
    for gateway in &gateways {
        is_up(gateway, true).await;
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(2500) {
        for gateway in &gateways {
            assert!(!passes(gateway, Surface::Rest, "rate_limited").await, "after {:?}", started.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    finish(&gateways[0], calls).await;
    passes_soon(&gateways[1], REFUSED).await;
    finish(&gateways[1], vec![other]).await;
    finish(&gateways[0], holding(&gateways[0], 4).await).await;
}

#[tokio::test]
async fn a_gateway_that_is_to_refuse_without_redis_gives_only_the_slots_that_it_has_leased() {
    let Some(mut redis) = Redis::start().await else { return };
    let gateway = redis.limited(FOUR, "refuse", "10s").await;
    let call = held(&gateway).await;
    redis.kill();
    is_up(&gateway, false).await;
    assert!(!passes(&gateway, Surface::Rest, "overloaded").await);
    finish(&gateway, vec![call]).await;
    assert!(passes(&gateway, Surface::Rest, "").await, "its lease is good for ten seconds");
    redis.restart();
    is_up(&gateway, true).await;
    passes_soon(&gateway, REFUSED).await;
    // Free and shared again, all four.
    finish(&gateway, holding(&gateway, 4).await).await;
}

#[tokio::test]
async fn limits_are_shared_over_tls_with_whom_the_authority_vouches_for() {
    const SECRET: &str = "open-sesame";
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let path = |name: &str| folder.path().join(name).display().to_string();
    authority.write(&folder.path().join("ca.pem"));
    Authority::new().write(&folder.path().join("other.pem"));
    authority.server(&["127.0.0.1"]).write(folder.path(), "server");
    let arguments = [
        ["--port", "0"],
        ["--tls-cert-file", &path("server.pem")],
        ["--tls-key-file", &path("server.key")],
        ["--tls-ca-cert-file", &path("ca.pem")],
        ["--tls-auth-clients", "no"],
        ["--requirepass", SECRET],
    ];
    let arguments = arguments.concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let listening = |port: u16| [vec!["--tls-port".to_owned(), port.to_string()], arguments].concat();
    let Some(mut redis) = Redis::start_with(listening).await else { return };
    let gateway = async |url: String, ca: Option<&str>| {
        let ca = ca.map(|ca| format!(", ca: \"{}\"", path(ca))).unwrap_or_default();
        let shared = format!("shared: {{ redis: \"{url}\", when_away: refuse{ca} }}");
        let yaml = format!("limits: {{ {shared}, rate: [{{ name: calls, limit: 4/day }}] }}");
        Setup::new().with_key().yaml(&yaml).start().await
    };
    let port = redis.port;
    let url = |scheme: &str| format!("{scheme}://:{SECRET}@127.0.0.1:{port}");
    let gateways = [gateway(url("rediss"), Some("ca.pem")).await, gateway(url("valkeys"), Some("ca.pem")).await];
    for gateway in &gateways {
        is_up(gateway, true).await;
    }
    assert!(passes(&gateways[0], Surface::Rest, REFUSED).await && passes(&gateways[1], Surface::Grpc, REFUSED).await);
    redis.kill();
    is_up(&gateways[0], false).await;
    redis.restart();
    is_up(&gateways[0], true).await;
    // Nobody who is to be trusted, and no TLS at all.
    for stranger in [
        gateway(url("rediss"), Some("other.pem")).await,
        gateway(url("rediss"), None).await,
        gateway(url("redis"), None).await,
        gateway(format!("rediss://:{SECRET}@localhost:{port}"), Some("ca.pem")).await,
    ] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        is_up(&stranger, false).await;
        assert!(!passes(&stranger, Surface::Rest, "overloaded").await);
    }
}

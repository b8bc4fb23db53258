//! One budget for two gateways on one Redis, which is killed and comes back.

use crate::support::{
    KEY, Running, Setup,
    client::{Client, Data, Request},
};
use sluicegate::call::Surface;
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A Redis of the test's own.
struct Redis {
    port: u16,
    server: Child,
}

impl Redis {
    /// `None`, loudly, where there is none.
    fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: shared limits are NOT tested, because `redis-server` is not installed");
            return None;
        }
        // Free now; nobody else of these tests takes a port without asking the system.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { port, server: Self::spawn(port) })
    }

    fn spawn(port: u16) -> Child {
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
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
        self.server = Self::spawn(self.port);
    }

    /// A gateway that shares `rate` with the others.
    async fn gateway(&self, rate: &str, when_away: &str) -> Running {
        let port = self.port;
        let yaml = format!(
            "limits: {{ shared: {{ redis: \"redis://127.0.0.1:{port}\", when_away: {when_away} }}, rate: [{rate}] }}"
        );
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

/// Whether one more call passes; a refusal has to be of this code.
async fn passes(running: &Running, surface: Surface, refused: &str) -> bool {
    let mut client = Client::connect(surface, running, Some(KEY)).await.unwrap();
    match client.infer(&Request::new("double", &[1, 4], vec![0.0; 4])).await {
        Ok(_) => true,
        Err(failure) => {
            assert_eq!(failure.code, refused, "{failure:?}");
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
                passed += usize::from(passes(gateway, surface, "rate_limited").await);
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
    let Some(redis) = Redis::start() else { return };
    let rate = "{ name: calls, limit: 100/day }";
    let gateways = [redis.gateway(rate, "share").await, redis.gateway(rate, "share").await];
    let mut passed = spend(&gateways, 240).await;
    assert!(passed <= 100, "{passed} of 100");
    assert!(passed >= 80, "{passed}: little may lie unused");
    // What one has drawn and does not use comes back to the other.
    let started = Instant::now();
    while passed < 100 && started.elapsed() < Duration::from_secs(20) {
        passed += usize::from(passes(&gateways[0], Surface::Rest, "rate_limited").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(passed + spend(&gateways, 80).await, 100);
}

#[tokio::test]
async fn what_one_gateway_refuses_itself_is_given_back_to_both() {
    let Some(redis) = Redis::start() else { return };
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
    let Some(mut redis) = Redis::start() else { return };
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
    let Some(mut redis) = Redis::start() else { return };
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

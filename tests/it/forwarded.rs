//! Calls that a proxy passes on (`listen.*.trusted_proxies`, attack I7): each is its client's, on every way that it may come.

use crate::support::{
    KEY, Running, Setup,
    client::{Client, Failure, Request, http_request, http1},
    ways::{Caller, Said, Way, every_way},
};
use sluicegate::call::Surface;

const WRONG: &str = "sg_0000000000000000000000000000000000000000000";
const TRUSTING: &str = "[{ address: \"127.0.0.1:0\", trusted_proxies: [127.0.0.0/8, 10.0.0.0/8] }]";
/// Two failures are forgiven, and none in the time of a test.
const GATE: &str = "limits: { address: { failures: 2/h, exempt: [] } }";

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0, 2.0, 3.0, 4.0])
}

async fn ask(way: Way, running: &Running, key: Option<&str>) -> Result<(), Said> {
    Caller::open(way, running, key).await?.ask(&double()).await
}

/// The code within what was said.
fn is(said: Result<(), Said>, code: &str) -> bool {
    said.is_err_and(|said| said.text.contains(code))
}

async fn failures_are_counted_for_the_client(way: Way) {
    let running = Setup::new().listen(TRUSTING).with_key().yaml(GATE).start().await;
    let thief = running.forwarded_for("203.0.113.1");
    // What a client says of itself stands before what the proxies say of it, and is not looked at.
    let disguised = running.forwarded_for("203.0.113.2, 203.0.113.1, 10.0.0.9");
    let honest = running.forwarded_for("203.0.113.2");
    assert!(is(ask(way, &thief, Some(WRONG)).await, "unauthenticated"));
    assert!(is(ask(way, &disguised, Some(WRONG)).await, "unauthenticated"));
    for shut_out in [&thief, &disguised] {
        let said = ask(way, shut_out, Some(KEY)).await;
        assert!(is(said.clone(), "rate_limited"), "{said:?}");
    }
    ask(way, &honest, Some(KEY)).await.expect("another client of the same proxy is not concerned");
    ask(way, &running, Some(KEY)).await.expect("nor is the proxy");
}

async fn nobody_is_believed_who_is_not_trusted(way: Way) {
    let running = Setup::new().with_key().yaml(GATE).start().await;
    for client in ["203.0.113.1", "203.0.113.2"] {
        assert!(is(ask(way, &running.forwarded_for(client), Some(WRONG)).await, "unauthenticated"));
    }
    for client in [&running, &running.forwarded_for("203.0.113.3")] {
        assert!(is(ask(way, client, Some(KEY)).await, "rate_limited"));
    }
}

every_way! {
    failures_are_counted_for_the_client: failures_are_counted_for_the_client,
    nobody_is_believed_who_is_not_trusted: nobody_is_believed_who_is_not_trusted,
}

async fn infer(surface: Surface, running: &Running) -> Result<(), Failure> {
    Client::connect(surface, running, None).await?.infer(&double()).await.map(drop)
}

#[tokio::test]
async fn a_call_that_was_forwarded_to_a_loopback_listener_is_not_that_of_its_anonymous_caller() {
    let running = Setup::new().start().await;
    let trusting = Setup::new().listen(TRUSTING).start().await;
    for surface in Surface::ALL {
        infer(surface, &running).await.expect("the caller on this machine may do everything");
        for forwarded in [&running, &trusting] {
            // Not even one that comes from this machine, as its proxy says.
            for client in ["203.0.113.1", "127.0.0.1", "unknown"] {
                let failure = infer(surface, &forwarded.forwarded_for(client)).await.unwrap_err();
                assert_eq!(failure.code, "unauthenticated", "{surface:?} for {client}");
            }
        }
    }
}

#[tokio::test]
async fn whatever_only_proxies_say_is_enough_to_be_forwarded() {
    let running = Setup::new().start().await;
    for name in ["forwarded", "via", "x-real-ip", "x-forwarded-proto"] {
        let mut request = http_request(&running, "GET", "/v2/models/double", None, "");
        request.headers_mut().insert(name, "a".parse().unwrap());
        assert_eq!(http1(&running, request).await.status(), 401, "{name}");
    }
}

#[tokio::test]
async fn operators_on_the_admin_listener_are_not_those_who_are_forwarded_to_it() {
    let running = Setup::new().start().await.at_admin();
    let status = async |running: &Running, path| {
        http1(running, http_request(running, "GET", path, None, "")).await.status().as_u16()
    };
    let forwarded = running.forwarded_for("203.0.113.1");
    assert_eq!((status(&running, "/other").await, status(&forwarded, "/other").await), (404, 401));
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(status(&forwarded, path).await, 200, "{path}");
    }
}

//! HTTP/2 connections that have become old (`limits.http2.max_age`).

use crate::frontend::{
    Settings,
    testing::{Plan, Server, echo, get2, http2, tardy},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

fn aging(age: Duration) -> Plan {
    let mut settings = Settings::default();
    settings.http2.max_age = Some(age);
    Plan { settings, ..Plan::default() }
}

/// How long the connection takes new requests, one each 100 ms.
async fn lifetime(client: &mut SendRequest<Full<Bytes>>) -> Duration {
    let start = Instant::now();
    while client.ready().await.is_ok() && !client.is_closed() {
        let request = http::Request::get("http://a/v2/health/live").body(Full::default()).unwrap();
        // One that crosses the goodbye did not run and may be sent again: no other may fail.
        if let Err(error) = client.send_request(request).await {
            assert!(error.is_canceled() || error.is_closed(), "{error:?}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_ends_at_its_age_and_not_all_at_once() {
    let server = aging(10 * MINUTE).start(echo);
    let mut ages = Vec::new();
    for _ in 0..8 {
        let mut client = http2(server.connect().await).await;
        ages.push(lifetime(&mut client).await);
    }
    for age in &ages {
        assert!((539..=662).contains(&age.as_secs()), "{ages:?}");
    }
    let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    assert!(*most - *least > Duration::from_secs(1), "{ages:?}");
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_a_connection_becomes_old_is_finished() {
    // Answers take a second.
    let server = aging(Duration::from_millis(500)).start(tardy);
    let mut client = http2(server.connect().await).await;
    let request = http::Request::get("http://a/v2/models").body(Full::<Bytes>::default()).unwrap();
    let running = client.send_request(request);
    begun(&server, 1).await;
    assert_eq!(running.await.unwrap().status(), 200);
    server.places.all_open_but_one_closed().await;
    assert!(client.ready().await.is_err(), "nothing new is taken");
}

#[tokio::test(start_paused = true)]
async fn without_the_limit_and_over_http1_connections_do_not_age() {
    let server = Plan::default().start(echo);
    let mut client = http2(server.connect().await).await;
    for _ in 0..60 {
        tokio::time::sleep(MINUTE).await;
        assert_eq!(get2(&mut client, "/v2/health/live").await.0, 200);
    }
    let server = aging(MINUTE).start(echo);
    let mut stream = server.connect().await;
    for _ in 0..10 {
        server.ask_on(&mut stream, "/v2/health/live").await;
        tokio::time::sleep(MINUTE).await;
    }
}

async fn begun(server: &Server, calls: usize) {
    while server.calls.load(Ordering::Relaxed) < calls {
        tokio::task::yield_now().await;
    }
}

impl Server {
    /// Asks on a connection that stays open; panics unless it is answered.
    async fn ask_on(&self, stream: &mut tokio::net::TcpStream, path: &str) {
        use tokio::io::AsyncWriteExt;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = crate::frontend::testing::until(stream, "true}").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

//! Old HTTP/2 connections (`limits.http2.max_age`): clients of gRPC come again, and nothing of theirs is lost.

use crate::support::{
    Running, Setup,
    client::{Client, GrpcClient, Request},
    ways::{Caller, Way},
    wire::{ACK, GOAWAY, PING, Wire, frame, get},
};
use hyper_util::rt::TokioIo;
use sluicegate::call::Surface;
use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

const AGING: &str = "limits: { http2: { max_age: 1s } }";
/// Longer than any connection of [`AGING`] is young.
const OLD: Duration = Duration::from_millis(1_300);

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0, 2.0, 3.0, 4.0])
}

/// A channel to the gateway that counts the connections it opens.
async fn counted(running: &Running) -> (Channel, Arc<AtomicUsize>) {
    let (address, opened) = (running.address, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&opened);
    let connect = tower::service_fn(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    (endpoint.connect_with_connector(connect).await.unwrap(), opened)
}

#[tokio::test]
async fn a_grpc_client_comes_again_on_another_connection_and_what_fails_did_not_run() {
    let running = Setup::new().yaml(AGING).start().await;
    let before = running.runs("double");
    let (channel, opened) = counted(&running).await;
    let mut client = GrpcClient::new(channel);
    let (begun, mut answered) = (Instant::now(), 0);
    while opened.load(Ordering::Relaxed) < 3 {
        match client.model_infer(double().proto()).await {
            Ok(_) => answered += 1,
            // tonic does not repeat what it had not sent when the goodbye came, as other clients of gRPC do.
            Err(status) => assert!(status.code() == tonic::Code::Cancelled && status.source().is_some(), "{status:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the client stays where it is");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(running.runs("double") - before, answered);
}

async fn streams_outlive_the_age(way: Way) {
    let running = Setup::new().yaml(AGING).start().await;
    let mut caller = Caller::open(way, &running, None).await.unwrap();
    caller.ask(&double()).await.unwrap();
    tokio::time::sleep(OLD).await;
    for _ in 0..3 {
        caller.ask(&double()).await.unwrap();
    }
}

#[tokio::test]
async fn a_grpc_stream_goes_on_when_its_connection_is_old() {
    streams_outlive_the_age(Way::GrpcStream).await;
}

#[tokio::test]
async fn an_ndjson_stream_goes_on_when_its_connection_is_old() {
    streams_outlive_the_age(Way::Ndjson).await;
}

#[tokio::test]
async fn a_grpc_call_that_runs_is_finished() {
    let running = Setup::new().yaml(AGING).start().await;
    let holder = running.hold("held").await;
    let call = {
        let running = running.clone();
        tokio::spawn(async move {
            let mut client = Client::connect(Surface::Grpc, &running, None).await.unwrap();
            client.infer(&Request::new("held", &[1, 4], vec![0.0; 4])).await
        })
    };
    tokio::time::sleep(OLD).await;
    holder.release().await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_goodbye_names_no_error_and_every_stream_that_came_before_it() {
    let running = Setup::new().yaml(AGING).start().await;
    let mut wire = Wire::open(&running).await;
    wire.works(1).await;
    // A warning first, behind which what is on its way still counts (RFC 9113 section 6.8).
    let warning = wire.expect(GOAWAY).await;
    assert_eq!(warning.payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    wire.send(get(3, "/")).await;
    let ping = loop {
        let next = wire.next().await.expect("a PING");
        if next.kind == PING {
            break next;
        }
    };
    wire.send(frame(PING, ACK, 0, &ping.payload)).await;
    assert_eq!(wire.end().await.goodbye, Some((3, 0)));
}

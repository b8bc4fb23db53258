//! Overload is answered, never buffered without bound and never mistaken for readiness.

use crate::support::{
    KEY, Setup,
    client::{Client, Request, http_request, http1, websocket},
};
use sluicegate::call::Surface;

fn double() -> Request {
    Request::new("double", &[1, 4], vec![0.0; 4])
}

#[tokio::test]
async fn a_thousand_idle_sockets_take_no_slot() {
    let running =
        Setup::new().yaml("limits: { concurrency: { calls: 2 }, connections: { per_address: 2000 } }").start().await;
    let mut sockets = Vec::new();
    for _ in 0..1000 {
        sockets.push(websocket(&running, None).await.unwrap());
    }
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        client.infer(&double()).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_what_was_queued_is_answered() {
    let running = Setup::new().yaml("models: { defaults: { batching: { max_queue: 3 } } }").start().await;
    let holder = running.hold("held").await;
    let request = Request::new("held", &[1, 4], vec![0.0; 4]);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let (running, request) = (running.clone(), request.clone());
        waiting.push(tokio::spawn(async move {
            let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
            client.infer(&request).await
        }));
    }
    running.until("the queue overflowed", |metrics| metrics.contains("code=\"overloaded\"")).await;
    holder.release().await;
    let mut refused = 0;
    for call in waiting {
        match call.await.unwrap() {
            Ok(_) => {}
            Err(failure) => {
                assert_eq!(failure.code, "overloaded");
                refused += 1;
            }
        }
    }
    assert!((1..=6).contains(&refused), "{refused} of 8 were refused by a queue of 3");
}

#[tokio::test]
async fn operators_can_look_while_every_slot_is_taken() {
    let running = Setup::new().yaml("limits: { concurrency: { calls: 1 } }").start().await;
    let holder = running.hold("slow").await;
    let response = http1(&running, http_request(&running, "GET", "/v2/models/double", None, "")).await;
    assert_eq!(response.status(), 200);
    let response = http1(&running, http_request(&running, "GET", "/v2/health/ready", None, "")).await;
    assert_eq!(response.status(), 200);
    holder.release().await;
}

#[tokio::test]
async fn our_own_refusal_is_not_charged() {
    let running =
        Setup::new().with_key().with_rate("2/day", 2).yaml("limits: { concurrency: { calls: 1 } }").start().await;
    // The holder itself is the first of two charges.
    let holder = running.hold_with("slow", Some(KEY)).await;
    let mut client = Client::connect(Surface::Rest, &running, Some(KEY)).await.unwrap();
    for _ in 0..5 {
        assert_eq!(client.infer(&double()).await.unwrap_err().code, "overloaded");
    }
    holder.release().await;
    client.infer(&double()).await.unwrap();
    assert_eq!(client.infer(&double()).await.unwrap_err().code, "rate_limited");
}

#[tokio::test]
async fn batches_form_by_themselves_under_load() {
    let running = Setup::new().start().await;
    let holder = running.hold("held").await;
    let before = running.runs("held");
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let running = running.clone();
        waiting.push(tokio::spawn(async move {
            let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
            client.infer(&Request::new("held", &[1, 4], vec![1.0; 4])).await.unwrap()
        }));
    }
    running.until("all eight wait", |metrics| metrics.contains("sluicegate_queue_depth{model=\"held\"} 8")).await;
    holder.release().await;
    for call in waiting {
        call.await.unwrap();
    }
    assert_eq!(running.runs("held"), before + 1, "eight waiting jobs of one row are one batch");
}

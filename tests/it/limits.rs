//! Rates and quotas, sessions and slow queues, as clients of every surface meet them.

use crate::support::{
    KEY, Setup,
    client::{Client, Ndjson, Request, grpc, http_request, http1, websocket, websocket_upgrade},
};
use futures_util::SinkExt;
use sluicegate::call::Surface;
use std::time::Duration;

fn rows(count: usize) -> Request {
    Request::new("double", &[count, 4], vec![0.0; count * 4])
}

fn body() -> &'static str {
    r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[0,0,0,0]}]}"#
}

#[tokio::test]
async fn a_quota_of_rows_counts_rows_on_every_surface() {
    for surface in Surface::ALL {
        let running =
            Setup::new().with_key().yaml("limits: { rate: [{ name: rows, unit: rows, limit: 10/day }] }").start().await;
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        for _ in 0..2 {
            client.infer(&rows(4)).await.unwrap();
        }
        let failure = client.infer(&rows(4)).await.unwrap_err();
        assert_eq!(failure.code, "rate_limited", "{surface:?}");
        assert!(failure.message.contains("rows"), "{failure:?}");
        assert!(failure.retry_after.unwrap() > Duration::from_secs(3600), "{failure:?}");
        client.infer(&rows(2)).await.unwrap();
        running.until("it is counted", |page| page.contains("rate_limited_total{policy=\"rows\"} 1")).await;
    }
}

#[tokio::test]
async fn all_surfaces_spend_one_budget() {
    let running = Setup::new()
        .with_key()
        .yaml("limits: { rate: [{ name: calls, limit: 4/day }, { name: rows, unit: rows, limit: 100/day }] }")
        .start()
        .await;
    for surface in Surface::ALL {
        Client::connect(surface, &running, Some(KEY)).await.unwrap().infer(&rows(1)).await.unwrap();
    }
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, Some(KEY)).await.unwrap();
        assert_eq!(client.infer(&rows(1)).await.unwrap_err().code, "rate_limited", "{surface:?}");
    }
}

#[tokio::test]
async fn where_one_policy_refuses_none_charges() {
    let running = Setup::new()
        .with_key()
        .yaml("limits: { rate: [{ name: calls, limit: 5/day }, { name: rows, unit: rows, limit: 3/day }] }")
        .start()
        .await;
    let mut client = Client::connect(Surface::Rest, &running, Some(KEY)).await.unwrap();
    client.infer(&rows(2)).await.unwrap();
    // These would take four calls and more rows than there are; neither is charged.
    for _ in 0..4 {
        assert!(client.infer(&rows(2)).await.unwrap_err().message.contains("rows"));
    }
    client.infer(&rows(1)).await.unwrap();
}

#[tokio::test]
async fn a_policy_counts_the_models_that_it_names() {
    let running = Setup::new()
        .with_key()
        .yaml("limits: { rate: [{ name: m, by: \"identity+model\", limit: 1/day, models: [\"d*\", slow] }] }")
        .start()
        .await;
    let mut client = Client::connect(Surface::Grpc, &running, Some(KEY)).await.unwrap();
    for model in ["double", "slow"] {
        let request = Request { model: model.into(), ..rows(1) };
        client.infer(&request).await.unwrap();
        assert_eq!(client.infer(&request).await.unwrap_err().code, "rate_limited", "{model}");
    }
    for _ in 0..3 {
        client.infer(&Request { model: "held".into(), ..rows(1) }).await.unwrap();
    }
}

/// The values of a header field's parameter, in the order of its members.
fn parameters(field: &str, name: &str) -> Vec<u64> {
    let parameter = |part: &str| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    field.split([',', ';']).filter_map(parameter).collect()
}

#[tokio::test]
async fn headers_say_what_is_left_and_when_to_come_again() {
    let yaml = "limits: { rate: [{ name: wide, limit: 100/day }, { name: tight, unit: rows, limit: 3/10s }] }";
    let running = Setup::new().with_key().yaml(yaml).start().await;
    let ask = || http_request(&running, "POST", "/v2/models/double/infer", Some(KEY), body());
    for left in [2, 1, 0] {
        let response = http1(&running, ask()).await;
        assert_eq!(response.status(), 200);
        let (policy, limit) = (&response.headers()["ratelimit-policy"], &response.headers()["ratelimit"]);
        let (policy, limit) = (policy.to_str().unwrap(), limit.to_str().unwrap());
        assert!(policy.starts_with("\"tight\";q=3;w=10;qu=\"rows\";pk=:"), "{policy}");
        assert!(policy.contains(", \"wide\";q=100;w=86400;pk=:"), "{policy}");
        assert!(limit.starts_with("\"tight\";r="), "the most constrained comes first: {limit}");
        // Time passes, and gives units back.
        assert!(parameters(limit, "r")[0] >= left && parameters(limit, "t")[0] <= 10, "{limit}");
    }
    let refused = loop {
        let response = http1(&running, ask()).await;
        if response.status() != 200 {
            break response;
        }
    };
    assert_eq!(refused.status(), 429);
    let limit = refused.headers()["ratelimit"].to_str().unwrap();
    assert!(limit.starts_with("\"tight\";r=0;t="), "{limit}");
    let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!(parameters(limit, "t"), [after]);

    let stranger = http1(&running, http_request(&running, "POST", "/v2/models/double/infer", None, body())).await;
    assert_eq!(stranger.status(), 401);
    assert!(!stranger.headers().contains_key("ratelimit"));
}

#[tokio::test]
async fn a_refusal_says_what_is_left_and_a_success_when_there_is_more() {
    let yaml = "limits: { rate: [{ name: rows, unit: rows, limit: 10/day }] }";
    let running = Setup::new().with_key().yaml(yaml).start().await;
    let ask = |rows: usize| {
        let data = vec!["0"; rows * 4].join(",");
        let body = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{rows},4],"data":[{data}]}}]}}"#);
        http_request(&running, "POST", "/v2/models/double/infer", Some(KEY), body)
    };
    // A row comes back in a tenth of a day, and the three that are wanting in three tenths.
    for (rows, status, tenths) in [(8, 200, 1), (5, 429, 3)] {
        let response = http1(&running, ask(rows)).await;
        assert_eq!(response.status(), status);
        let limit = response.headers()["ratelimit"].to_str().unwrap();
        assert_eq!(parameters(limit, "r"), [2], "{limit}");
        let after = parameters(limit, "t")[0];
        assert!((tenths * 8640 - 600..=tenths * 8640).contains(&after), "{limit}");
    }
}

#[tokio::test]
async fn what_a_refused_call_gets_back_is_said_to_be_left() {
    let yaml = "limits: { rate: [{ name: calls, limit: 10/day }], concurrency: { per_identity: 1 } }";
    let running = Setup::new().with_key().yaml(yaml).start().await;
    let holder = running.hold_with("held", Some(KEY)).await;
    let ask = http_request(&running, "POST", "/v2/models/double/infer", Some(KEY), body());
    let refused = http1(&running, ask).await;
    assert_eq!(refused.status(), 429);
    let limit = refused.headers()["ratelimit"].to_str().unwrap();
    assert_eq!(parameters(limit, "r"), [9], "one is in flight: {limit}");
    holder.release().await;
}

#[tokio::test]
async fn grpc_says_the_same_in_metadata_and_details() {
    use tonic_types::StatusExt;
    let running = Setup::new().with_key().yaml("limits: { rate: [{ name: per-key, limit: 1/day }] }").start().await;
    let mut client = grpc(&running).await;
    let ask = || {
        let mut message = tonic::Request::new(Request::new("double", &[1, 4], vec![0.0; 4]).proto());
        message.metadata_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
        message
    };
    let response = client.model_infer(ask()).await.unwrap();
    assert!(response.metadata().get("ratelimit").unwrap().to_str().unwrap().starts_with("\"per-key\";r=0;t="));
    let status = client.model_infer(ask()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.metadata().get("ratelimit").unwrap().to_str().unwrap().starts_with("\"per-key\";r=0;t="));
    assert_eq!(status.get_details_error_info().unwrap().metadata["policy"], "per-key");
    let violations = status.get_details_quota_failure().unwrap().violations;
    assert_eq!((violations.len(), violations[0].subject.as_str()), (1, "per-key"));
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::from_secs(3600));
}

#[tokio::test]
async fn problem_details_name_the_policy() {
    let running = Setup::new().with_key().with_rate("1/day", 1).start().await;
    for expected in [200, 429] {
        let mut request = http_request(&running, "POST", "/v2/models/double/infer", Some(KEY), body());
        request.headers_mut().insert("accept", "application/problem+json".parse().unwrap());
        let response = http1(&running, request).await;
        assert_eq!(response.status(), expected);
        if expected == 429 {
            let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
            assert_eq!(problem["violated-policies"], serde_json::json!(["per-identity"]));
            assert_eq!((&problem["code"], &problem["status"]), (&"rate_limited".into(), &429.into()));
        }
    }
}

#[tokio::test]
async fn an_identity_has_so_many_sessions_of_whatever_kind() {
    let running = Setup::new().with_key().yaml("limits: { connections: { per_identity: 1 } }").start().await;
    let mut first = websocket(&running, Some(KEY)).await.unwrap();
    let refused = websocket_upgrade(&running, Some(KEY)).await.unwrap_err();
    assert_eq!((&*refused.code, refused.retry_after), ("rate_limited", Some(Duration::from_secs(1))));
    assert_eq!(Ndjson::open(&running, Some(KEY)).await.err().unwrap().code, "rate_limited");
    // What is no session is none of this limit's business.
    Client::connect(Surface::Rest, &running, Some(KEY)).await.unwrap().infer(&rows(1)).await.unwrap();
    first.close(None).await.unwrap();
    drop(first);
    running.until("the session is over", |page| page.contains("sluicegate_connections{kind=\"websocket\"} 0")).await;
    let started = std::time::Instant::now();
    let stream = loop {
        match Ndjson::open(&running, Some(KEY)).await {
            Ok(stream) => break stream,
            Err(failure) => assert!(started.elapsed() < Duration::from_secs(20), "{failure:?}"),
        }
    };
    assert_eq!(websocket_upgrade(&running, Some(KEY)).await.unwrap_err().code, "rate_limited");
    drop(stream);
}

#[tokio::test]
async fn beyond_its_sessions_who_comes_in_hello_is_closed_with_4429() {
    use futures_util::StreamExt;
    use tokio_tungstenite::tungstenite::Message;
    let running = Setup::new().with_key().yaml("limits: { connections: { per_identity: 1 } }").start().await;
    let _first = websocket(&running, Some(KEY)).await.unwrap();
    let mut second = websocket_upgrade(&running, None).await.unwrap();
    let hello = format!(r#"{{"type":"hello","protocol":1,"auth":{{"scheme":"bearer","token":"{KEY}"}}}}"#);
    second.send(Message::text(hello)).await.unwrap();
    loop {
        match second.next().await.expect("a close").unwrap() {
            Message::Close(Some(frame)) => break assert_eq!(u16::from(frame.code), 4429),
            Message::Close(None) => panic!("a close without a code"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_queue_that_stays_too_long_sheds_and_says_which_limit_it_was() {
    let running = Setup::new().yaml("limits: { concurrency: { queue_delay: 10ms } }").start().await;
    let holder = running.hold("held").await;
    let request = Request { model: "held".into(), ..rows(1) };
    let waiting = {
        let (running, request) = (running.clone(), request.clone());
        tokio::spawn(async move { Client::connect(Surface::Rest, &running, None).await.unwrap().infer(&request).await })
    };
    running.until("one waits", |page| page.contains("sluicegate_queue_depth{model=\"held\"} 1")).await;
    // A hundred milliseconds above the target; an interval is no moment.
    tokio::time::sleep(Duration::from_millis(150)).await;
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let failure = client.infer(&request).await.unwrap_err();
        assert_eq!((&*failure.code, &*failure.message), ("overloaded", "no room: queue delay"), "{surface:?}");
    }
    running.until("it is counted", |page| page.contains("overloaded_total{limit=\"queue_delay\"} 4")).await;
    holder.release().await;
    waiting.await.unwrap().unwrap();
    Client::connect(Surface::Rest, &running, None).await.unwrap().infer(&request).await.unwrap();
}

#[tokio::test]
async fn a_call_that_waited_for_too_long_is_refused_and_says_so() {
    let yaml = "models: { defaults: { batching: { timeout: 400ms } } }";
    let running = Setup::new().yaml(yaml).start().await;
    let holder = running.hold("held").await;
    let request = Request { model: "held".into(), ..rows(1) };
    let waiting: Vec<_> = Surface::ALL
        .into_iter()
        .map(|surface| {
            let (running, request) = (running.clone(), request.clone());
            tokio::spawn(async move { Client::connect(surface, &running, None).await.unwrap().infer(&request).await })
        })
        .collect();
    running.until("all wait", |page| page.contains("sluicegate_queue_depth{model=\"held\"} 4")).await;
    tokio::time::sleep(Duration::from_millis(450)).await;
    holder.release().await;
    for call in waiting {
        let failure = call.await.unwrap().unwrap_err();
        assert_eq!((&*failure.code, &*failure.message), ("overloaded", "no room: queue timeout"));
    }
    running.until("it is counted", |page| page.contains("overloaded_total{limit=\"queue_timeout\"} 4")).await;
    // Nobody waits now, and so nobody waits for too long.
    Client::connect(Surface::Rest, &running, None).await.unwrap().infer(&request).await.unwrap();
}

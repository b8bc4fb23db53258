//! How sessions end, and what keeps them alive.

use super::*;
use crate::{error::Error, frontend::Phase};
use std::{sync::atomic::Ordering, time::Duration};

#[tokio::test(start_paused = true)]
async fn who_says_goodbye_gets_the_rest_first() {
    let mut client = Client::new().await;
    client.infer("a", "wait", "").await;
    client.say(r#"{"type":"bye"}"#).await;
    client.infer("b", "echo", "").await;
    client.error("b", "invalid_argument").await;
    client.fixture.stack.released.add_permits(1);
    client.output("a").await;
    client.closed(1000).await;
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_is_answered() {
    let mut client = Client::new().await;
    client.infer("a", "never", "").await;
    client.socket.close(None).await.unwrap();
    assert_eq!(client.hear().await, Heard::End);
    client.session.await.unwrap();
    assert_eq!(client.fixture.stack.in_flight.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn hello_has_its_time() {
    let mut client = Client::silent(Settings::default(), Caller::Proven).await;
    let start = tokio::time::Instant::now();
    client.say(r#"{"type":"ping"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"pong"}"#);
    client.closed(4408).await;
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn an_idle_socket_is_pinged_and_closed() {
    let mut client = Client::new().await;
    let start = tokio::time::Instant::now();
    let mut pings = 0;
    let reason = loop {
        match client.hear().await {
            Heard::Ping => pings += 1,
            Heard::Close(1000, reason) => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((reason.as_str(), pings, start.elapsed().as_secs()), ("idle", 5, 120));
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_keeps_a_socket_open() {
    let mut client = Client::new().await;
    client.infer("a", "wait", "").await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(300) {
        assert_eq!(client.hear().await, Heard::Ping);
    }
    client.fixture.stack.released.add_permits(1);
    client.output("a").await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_dropped_after_two_intervals() {
    let client = Client::new().await;
    let start = tokio::time::Instant::now();
    // Nobody reads the socket, so nobody answers.
    client.session.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 40);
    drop(client.socket);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_cut_off_and_costs_no_more_than_its_buffer() {
    let mut settings = Settings::default();
    settings.websocket.send_buffer = 8 * 1024;
    let mut client = Client::with(settings).await;
    client.infer("s", "steps", r#","stream":true,"credit":100000,"parameters":{"steps":100000}"#).await;
    let start = tokio::time::Instant::now();
    client.session.await.unwrap();
    // 64 KiB are in the socket in memory.
    assert!(client.fixture.stack.produced.load(Ordering::SeqCst) < 1000);
    assert!((30..=36).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_talks_is_not_read_for_ever() {
    let mut client = Client::new().await;
    let ping = r#"{"type":"ping","t":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}"#;
    let mut said = 0;
    while let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(1), client.socket.send(Message::text(ping))).await {
        said += 1;
    }
    assert!(said < 5000, "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_refuses_what_is_new() {
    let mut client = Client::new().await;
    client.infer("a", "wait", "").await;
    client.settle().await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    client.fixture.phase.send(Phase::Draining { deadline }).unwrap();
    let goaway = client.text().await;
    assert!(goaway.starts_with(r#"{"type":"goaway","reason":"draining","deadline_ms":"#), "{goaway}");
    client.infer("b", "echo", "").await;
    client.error("b", "not_ready").await;
    client.fixture.stack.released.add_permits(1);
    client.output("a").await;
    client.closed(1012).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_drain_cancels_the_rest_by_name() {
    let mut client = Client::new().await;
    client.infer("a", "never", "").await;
    client.infer("b", "never", "").await;
    client.settle().await;
    client.fixture.phase.send(Phase::Stopping).unwrap();
    client.error("a", "not_ready").await;
    client.error("b", "not_ready").await;
    client.closed(1012).await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_caller_is_asked_to_renew() {
    let mut client = Client::new().await;
    client.infer("old", "wait", "").await;
    client.settle().await;
    client.fixture.stack.revoked.store(true, Ordering::SeqCst);
    client.infer("new", "echo", "").await;
    client.error("new", "unauthenticated").await;
    assert_eq!(client.text().await, r#"{"type":"auth_required","deadline_ms":30000}"#);
    client.fixture.stack.released.add_permits(1);
    client.output("old").await;
    client.say(r#"{"type":"auth","auth":{"scheme":"bearer","token":"good"}}"#).await;
    client.infer("again", "echo", "").await;
    client.output("again").await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    client.infer("later", "echo", "").await;
    while client.hear().await == Heard::Ping {}
}

#[tokio::test(start_paused = true)]
async fn who_does_not_renew_in_time_or_well_is_closed() {
    for renewal in [None, Some(r#"{"type":"auth","auth":{"scheme":"bearer","token":"bad"}}"#)] {
        let mut client = Client::new().await;
        client.fixture.stack.revoked.store(true, Ordering::SeqCst);
        client.infer("a", "echo", "").await;
        client.error("a", "unauthenticated").await;
        client.text().await;
        match renewal {
            Some(renewal) => client.say(renewal).await,
            None => assert_eq!(client.hear().await, Heard::Ping),
        }
        client.closed(4401).await;
    }
}

const AUTH_REQUIRED: &str = r#"{"type":"auth_required","deadline_ms":30000}"#;

#[tokio::test(start_paused = true)]
async fn who_is_revoked_is_asked_to_renew_without_having_asked_for_anything() {
    let mut client = Client::new().await;
    client.fixture.proofs.send_replace(());
    client.settle().await;
    client.infer("still", "echo", "").await;
    client.output("still").await;
    client.fixture.stack.revoked.store(true, Ordering::SeqCst);
    client.fixture.proofs.send_replace(());
    let start = tokio::time::Instant::now();
    assert_eq!(client.text().await, AUTH_REQUIRED);
    assert_eq!(client.hear().await, Heard::Ping);
    client.closed(4401).await;
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_session_does_not_outlive_what_it_was_opened_with() {
    let fixture = Fixture::new(Settings::default());
    let until = std::time::SystemTime::now() + Duration::from_secs(5);
    let speaker = fixture.speaker(Some(until));
    fixture.stack.revoked.store(true, Ordering::SeqCst);
    let mut client = Client::speaking(fixture, speaker, Caller::Proven).await;
    let start = tokio::time::Instant::now();
    client.say(r#"{"type":"hello","protocol":1}"#).await;
    assert!(client.text().await.contains("welcome"));
    assert_eq!(client.text().await, AUTH_REQUIRED);
    assert!((4..=5).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    client.say(r#"{"type":"auth","auth":{"scheme":"bearer","token":"good"}}"#).await;
    client.infer("a", "echo", "").await;
    client.output("a").await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_to_renew_what_was_never_proven() {
    let mut client = Client::silent(Settings::default(), Caller::Anonymous(Err(Error::Unauthenticated))).await;
    client.fixture.stack.revoked.store(true, Ordering::SeqCst);
    client.fixture.proofs.send_replace(());
    client.settle().await;
    client.say(r#"{"type":"ping"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"pong"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_caller_is_closed() {
    let refused = || Caller::Anonymous(Err(Error::Unauthenticated));
    for (caller, auth, code) in [
        (refused(), "", 4401),
        (refused(), r#","auth":{"scheme":"bearer","token":"bad"}"#, 4401),
        (refused(), r#","auth":{"scheme":"other","token":"good"}"#, 4401),
        (refused(), r#","auth":{"scheme":"bearer","token":"idle"}"#, 4403),
        (Caller::Anonymous(Err(Error::Forbidden { action: "x" })), "", 4403),
        (Caller::Anonymous(Ok(())), r#","auth":{"scheme":"bearer","token":"bad"}"#, 4401),
    ] {
        let mut client = Client::silent(Settings::default(), caller).await;
        client.say(&format!(r#"{{"type":"hello","protocol":1{auth}}}"#)).await;
        client.closed(code).await;
    }
    for (error, code) in [(Error::Unauthenticated, 4401), (Error::Forbidden { action: "x" }, 4403)] {
        Client::silent(Settings::default(), Caller::Refused(error)).await.closed(code).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_message_may_say_who_speaks() {
    for auth in [r#"{"scheme":"bearer","token":"good"}"#, r#"{"scheme":"api_key","token":"good"}"#] {
        let mut client = Client::silent(Settings::default(), Caller::Anonymous(Err(Error::Unauthenticated))).await;
        client.fixture.stack.anonymous.store(false, Ordering::SeqCst);
        client.say(&format!(r#"{{"type":"hello","protocol":1,"auth":{auth}}}"#)).await;
        assert!(client.text().await.contains("welcome"));
        client.infer("a", "echo", "").await;
        client.output("a").await;
    }
}

#[tokio::test(start_paused = true)]
async fn first_messages_can_be_switched_off() {
    let mut settings = Settings::default();
    settings.websocket.first_message = false;
    let mut client = Client::silent(settings, Caller::Anonymous(Ok(()))).await;
    client.say(r#"{"type":"hello","protocol":1,"auth":{"scheme":"bearer","token":"good"}}"#).await;
    client.closed(4401).await;
}

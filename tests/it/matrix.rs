//! The policy matrix: whatever may happen to a call, on every way that a call may come. Each cell is a test, and
//! docs/policy.md is what the cells say: `SLUICEGATE_WRITE_POLICY=1 cargo test --test it matrix` writes it anew.

use crate::support::{
    KEY, Setup,
    client::Request,
    keys_file,
    ways::{Caller, Said, Way, every_way},
};
use std::{fmt::Write, fs, path::PathBuf, time::Duration};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    NoCredential,
    BadCredential,
    Expired,
    Revoked,
    NotAllowed,
    OverRate,
    OverConcurrency,
    Overloaded,
    PastDeadline,
    Cancelled,
    TooLarge,
    Malformed,
    Draining,
}

impl Event {
    const ALL: [Self; 13] = [
        Self::NoCredential,
        Self::BadCredential,
        Self::Expired,
        Self::Revoked,
        Self::NotAllowed,
        Self::OverRate,
        Self::OverConcurrency,
        Self::Overloaded,
        Self::PastDeadline,
        Self::Cancelled,
        Self::TooLarge,
        Self::Malformed,
        Self::Draining,
    ];

    /// Its row, and the code that it has on every surface.
    const fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::NoCredential => ("no credential", "unauthenticated"),
            Self::BadCredential => ("a bad credential", "unauthenticated"),
            Self::Expired => ("an expired credential", "unauthenticated"),
            Self::Revoked => ("revoked in mid-stream", "unauthenticated"),
            Self::NotAllowed => ("not allowed", "permission_denied"),
            Self::OverRate => ("over its rate", "rate_limited"),
            Self::OverConcurrency => ("over its concurrency", "rate_limited"),
            Self::Overloaded => ("no slot is free", "overloaded"),
            Self::PastDeadline => ("past its deadline", "deadline_exceeded"),
            Self::Cancelled => ("the caller leaves", "cancelled"),
            Self::TooLarge => ("too large", "payload_too_large"),
            Self::Malformed => ("malformed", "invalid_argument"),
            Self::Draining => ("the drain is over", "not_ready"),
        }
    }

    /// The closing of a WebSocket that stands for the code (the close itself has no room for it).
    const fn closing(self) -> Option<&'static str> {
        match self {
            Self::NoCredential | Self::BadCredential | Self::Expired | Self::Revoked => Some("close 4401"),
            Self::TooLarge => Some("close 1009"),
            _ => None,
        }
    }

    /// Makes it happen to a call that comes this way; what the caller hears.
    async fn happens(self, way: Way) -> Said {
        let only_key = |more: &str| Setup::new().with_key().yaml(more);
        match self {
            Self::NoCredential => refused(way, only_key(""), None, &double()).await,
            Self::BadCredential => refused(way, only_key(""), Some(WRONG), &double()).await,
            Self::Expired => {
                let setup = Setup::new().auth("{ api_keys: { file: old.yaml } }");
                let old = keys_file(", expires: \"2020-01-02T00:00:00Z\"");
                fs::write(setup.folder().join("old.yaml"), old).unwrap();
                refused(way, setup, Some(KEY), &double()).await
            }
            Self::Revoked => {
                let running = only_key("").start().await;
                let mut caller = Caller::open(way, &running, Some(KEY)).await.unwrap();
                caller.ask(&double()).await.unwrap();
                running.revoke_keys().await;
                caller.ask(&double()).await.unwrap_err()
            }
            Self::NotAllowed => {
                let grants = "[{ to: [\"identity:web\"], intents: [inspect], models: [\"*\"] }]";
                refused(way, only_key("").with_grants(grants), Some(KEY), &double()).await
            }
            Self::OverRate => {
                let running = only_key("").with_rate("1/day", 1).start().await;
                let mut caller = Caller::open(way, &running, Some(KEY)).await.unwrap();
                caller.ask(&double()).await.unwrap();
                again(way, caller, &running).await.ask(&double()).await.unwrap_err()
            }
            Self::OverConcurrency | Self::Overloaded => {
                let (setup, key) = match self {
                    Self::OverConcurrency => (only_key("limits: { concurrency: { per_identity: 1 } }"), Some(KEY)),
                    _ => (Setup::new().yaml("limits: { concurrency: { calls: 1 } }"), None),
                };
                let running = setup.start().await;
                let mut caller = Caller::open(way, &running, key).await.unwrap();
                let holder = running.hold_with("held", key).await;
                let said = caller.ask(&double()).await.unwrap_err();
                holder.release().await;
                again(way, caller, &running).await.ask(&double()).await.unwrap();
                said
            }
            Self::PastDeadline => {
                let late = Request { timeout: Some(Duration::from_millis(1)), model: "slow".into(), ..double() };
                refused(way, Setup::new(), None, &late).await
            }
            Self::Cancelled => {
                let running = Setup::new().start().await;
                let holder = running.hold("held").await;
                let before = running.runs("held");
                let mut caller = Caller::open(way, &running, None).await.unwrap();
                let waiting = tokio::time::timeout(Duration::from_millis(200), caller.ask(&held())).await;
                assert!(waiting.is_err(), "{waiting:?}");
                drop(caller);
                running.until("it was counted", |metrics| metrics.contains("code=\"cancelled\"")).await;
                holder.release().await;
                Caller::open(Way::Rest, &running, None).await.unwrap().ask(&held()).await.unwrap();
                assert_eq!(running.runs("held"), before + 1, "only who stayed has run");
                Said { text: "never runs, `cancelled`".into(), retry: false }
            }
            Self::TooLarge => {
                let setup = Setup::new().yaml("limits: { size: { body: 2KiB, message: 2KiB } }");
                refused(way, setup, None, &Request::new("double", &[300, 4], vec![0.5; 1200])).await
            }
            Self::Malformed => {
                let running = Setup::new().start().await;
                let mut caller = Caller::open(way, &running, None).await.unwrap();
                let said = caller.mumble().await.unwrap_err();
                again(way, caller, &running).await.ask(&double()).await.unwrap();
                said
            }
            Self::Draining => {
                let running = Setup::new().yaml("drain: { delay: 10ms, timeout: 300ms }").start().await;
                let holder = running.hold("held").await;
                let mut caller = Caller::open(way, &running, None).await.unwrap();
                let call = tokio::spawn(async move { caller.ask(&held()).await });
                let waits = "sluicegate_queue_depth{model=\"held\"} 1";
                running.until("the call waits", |metrics| metrics.contains(waits)).await;
                running.drain().over().await;
                let said = call.await.unwrap().unwrap_err();
                holder.release_unanswered();
                said
            }
        }
    }
}

const WRONG: &str = "sg_0000000000000000000000000000000000000000000";

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0, -2.5, 0.1, 16.0])
}

fn held() -> Request {
    Request::new("held", &[1, 4], vec![0.0; 4])
}

async fn refused(way: Way, setup: Setup, key: Option<&str>, request: &Request) -> Said {
    let running = setup.start().await;
    match Caller::open(way, &running, key).await {
        Ok(mut caller) => caller.ask(request).await.unwrap_err(),
        Err(said) => said,
    }
}

/// The same caller, which an error has not shut out. The stream that wanted its errors as statuses is over with the first.
async fn again(way: Way, caller: Caller, running: &crate::support::Running) -> Caller {
    match (way, &caller) {
        (Way::GrpcStream, Caller::GrpcStream { key, .. }) => {
            let key = key.clone();
            drop(caller);
            Caller::open(way, running, key.as_deref()).await.unwrap()
        }
        _ => caller,
    }
}

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md")
}

/// What the page has in a cell.
fn written(event: Event, way: Way) -> String {
    let text = fs::read_to_string(page()).expect("docs/policy.md");
    let row = text.lines().find(|line| line.starts_with(&format!("| {} |", event.name().0)));
    let row = row.unwrap_or_else(|| panic!("docs/policy.md has no row `{}`", event.name().0));
    let column = Way::ALL.iter().position(|other| *other == way).unwrap();
    row.split('|').nth(column + 2).expect("a column").trim().to_owned()
}

async fn cell(event: Event, way: Way) {
    let said = event.happens(way).await;
    let closes = way == Way::WebSocket && event.closing() == Some(&said.text);
    assert!(closes || said.text.contains(event.name().1), "{event:?} {way:?}: {said:?}");
    if std::env::var_os("SLUICEGATE_WRITE_POLICY").is_none() {
        assert_eq!(written(event, way), said.to_string(), "{event:?} {way:?}: docs/policy.md says something else");
    }
}

every_way! {
    no_credential: |way| cell(Event::NoCredential, way),
    a_bad_credential: |way| cell(Event::BadCredential, way),
    an_expired_credential: |way| cell(Event::Expired, way),
    revoked_in_mid_stream: |way| cell(Event::Revoked, way),
    not_allowed: |way| cell(Event::NotAllowed, way),
    over_its_rate: |way| cell(Event::OverRate, way),
    over_its_concurrency: |way| cell(Event::OverConcurrency, way),
    no_slot_is_free: |way| cell(Event::Overloaded, way),
    past_its_deadline: |way| cell(Event::PastDeadline, way),
    the_caller_leaves: |way| cell(Event::Cancelled, way),
    too_large: |way| cell(Event::TooLarge, way),
    malformed: |way| cell(Event::Malformed, way),
    the_drain_is_over: |way| cell(Event::Draining, way),
}

const HEAD: &str = "# What happens to a call

Whatever may happen to a call, and what its caller hears, on every way in. A status of HTTP or gRPC stands before the code, which is
the same word everywhere; *retry* says that the caller is told when to come again (`retry-after`, `RetryInfo`, `retry_after_ms`). On
a WebSocket and in an NDJSON stream an error is a message, and everything else goes on; a socket closes only where the table says so.
The gRPC stream here asked for statuses (`triton_grpc_error`), which end it; without that its errors are texts within.

This page is written by the tests, one for each cell: `tests/it/matrix.rs`.

";

#[tokio::test]
async fn the_page_is_what_the_cells_say() {
    if std::env::var_os("SLUICEGATE_WRITE_POLICY").is_none() {
        assert!(fs::read_to_string(page()).unwrap().starts_with(HEAD));
        let rows = fs::read_to_string(page()).unwrap().lines().filter(|line| line.starts_with('|')).count();
        assert_eq!(rows, Event::ALL.len() + 2, "a row for each event, and no other");
        return;
    }
    let mut text =
        format!("{HEAD}| |{}\n|---|", Way::ALL.iter().map(|way| format!(" {} |", way.name())).collect::<String>());
    text.push_str(&"---|".repeat(Way::ALL.len()));
    for event in Event::ALL {
        write!(text, "\n| {} |", event.name().0).unwrap();
        for way in Way::ALL {
            write!(text, " {} |", event.happens(way).await).unwrap();
        }
    }
    fs::write(page(), text + "\n").unwrap();
}

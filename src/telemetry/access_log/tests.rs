//! What a line says, and that nobody waits for it.

use super::*;
use crate::{
    call::{Cached, Identity, ModelKey, Scope, Timing},
    error::Stage,
};
use std::sync::mpsc::{Receiver, sync_channel};

/// Something to write to, and to read afterwards.
#[derive(Clone, Default)]
pub(crate) struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

fn head() -> Head {
    let peer = Peer::new("[::1]:9".parse().unwrap(), "[::1]:8080".parse().unwrap());
    Head::new(CallId::Given("abc-1".into()), Surface::WebSocket, Intent::Infer, Arc::new(peer))
}

fn known(head: &Head) {
    let facts = &head.facts;
    facts.identity.set(Arc::new(Identity::proven("we\"b\n", Vec::new(), Scope::Granted))).unwrap();
    facts.model.set(Arc::new(ModelKey { name: "digits".into(), version: "3".into() })).unwrap();
    facts.timing.set(Timing { queue: Duration::from_micros(7), compute: Duration::from_micros(40) });
    facts.set_cached(Cached::Shared);
    facts.reach(Stage::Running);
}

fn logged(format: Format, write: impl FnOnce(&AccessLog)) -> String {
    let page = Page::default();
    let log = AccessLog::start(page.clone(), format).unwrap();
    write(&log);
    assert!(log.flush(PATIENCE));
    page.text()
}

#[test]
fn a_client_of_ipv4_is_that_on_a_socket_of_ipv6_too() {
    let address: std::net::SocketAddr = "[::ffff:203.0.113.7]:9".parse().unwrap();
    let head = Head { peer: Arc::new(Peer::new(address, address)), ..head() };
    let json = logged(Format::Json, |log| log.begin(&head).end(End::Complete));
    assert!(json.ends_with(",\"peer\":\"203.0.113.7:9\"}\n"), "{json}");
}

#[test]
fn a_client_whose_port_no_proxy_told_has_none() {
    for address in ["203.0.113.7:0", "[2001:db8::7]:0"] {
        let address: std::net::SocketAddr = address.parse().unwrap();
        let head = || Head { peer: Arc::new(Peer::new(address, address)), ..head() };
        let json = logged(Format::Json, |log| log.begin(&head()).end(End::Complete));
        assert!(json.ends_with(&format!(",\"peer\":\"{}\"}}\n", address.ip())), "{json}");
        let pretty = logged(Format::Pretty, |log| log.begin(&head()).end(End::Complete));
        assert!(pretty.contains(&format!(" peer={} call_id=", address.ip())), "{pretty}");
    }
}

#[test]
fn a_line_says_everything_that_is_known_of_the_call() {
    let text = logged(Format::Json, |log| {
        let head = head();
        known(&head);
        log.begin(&head).end(End::Complete);
    });
    let line: serde_json::Value = serde_json::from_str(text.strip_suffix('\n').unwrap()).unwrap();
    for (key, value) in [
        ("target", "sluicegate::access"),
        ("level", "INFO"),
        ("call_id", "abc-1"),
        ("surface", "websocket"),
        ("intent", "infer"),
        ("identity", "we\"b\n"),
        ("model", "digits"),
        ("version", "3"),
        ("code", "ok"),
        ("cache", "shared"),
        ("stage", "running"),
        ("peer", "[::1]:9"),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!((line["queue_us"].as_u64(), line["run_us"].as_u64()), (Some(7), Some(40)));
    assert!(line["took_us"].is_u64());
}

#[test]
fn what_is_not_known_is_left_out() {
    let text = logged(Format::Json, |log| log.begin(&head()).end(End::Abandoned));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["code"], "cancelled");
    for absent in ["identity", "model", "version", "queue_us", "run_us", "cache"] {
        assert!(line.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn a_line_for_people_is_one_line() {
    let text = logged(Format::Pretty, |log| {
        let head = head();
        known(&head);
        log.begin(&head).end(End::Failed(crate::error::Code::Internal));
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("CALL internal websocket infer digits/3 took"), "{text}");
    assert!(text.contains(" cache=shared while running identity=we\"b\\n peer=[::1]:9 call_id=abc-1"), "{text}");
}

#[test]
fn lines_keep_their_order_and_an_end_is_written_once() {
    let text = logged(Format::Json, |log| {
        for id in 0..3000 {
            let mut head = head();
            head.id = CallId::Given(id.to_string().into());
            let mut line = log.begin(&head);
            line.end(End::Complete);
            line.end(End::Abandoned);
        }
    });
    for (expected, line) in text.lines().enumerate() {
        assert!(line.contains(&format!("\"call_id\":\"{expected}\"")), "{line}");
    }
    assert_eq!(text.lines().count(), 3000);
}

/// Blocks in its first write until it is told to go on.
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_is_stuck_costs_lines_and_not_calls() {
    let (go, gate) = sync_channel(0);
    let log = AccessLog::start(Stuck(gate), Format::Json).unwrap();
    let head = head();
    // More than a buffer holds twice over: what the writer took before it got stuck, and what waits behind it.
    for _ in 0..2 * FULL / 150 {
        log.begin(&head).end(End::Complete);
    }
    assert!(log.dropped() > 0);
    assert!(!log.flush(Duration::from_millis(1)));
    drop(go);
    assert!(log.flush(PATIENCE));
}

#[test]
fn the_writer_ends_with_the_last_handle() {
    let page = Page::default();
    let log = AccessLog::start(page.clone(), Format::Json).unwrap();
    let state = Arc::downgrade(&log.0.state);
    log.begin(&head()).end(End::Complete);
    drop(log);
    let patience = Instant::now() + PATIENCE;
    while state.upgrade().is_some() && Instant::now() < patience {
        thread::yield_now();
    }
    assert!(state.upgrade().is_none());
    assert_eq!(page.text().lines().count(), 1);
}

#[test]
fn lines_of_several_threads_are_not_mixed() {
    let text = logged(Format::Json, |log| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| log.begin(&head()).end(End::Complete)));
            }
        });
    });
    assert_eq!(text.lines().count(), 2000);
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn a_line_is_stamped_with_the_time_of_day() {
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let text = logged(Format::Json, |log| log.begin(&head()).end(End::Complete));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    let stamp = line["timestamp"].as_str().unwrap();
    let (second, fraction) = stamp.split_once('.').unwrap();
    let near = (before..before + 60).any(|at| {
        let mut expected = String::new();
        line::write_second(at, &mut expected);
        expected == second
    });
    assert!(near && fraction.len() == 7 && fraction.ends_with('Z'), "{stamp}");
}

#[test]
fn timestamps_know_leap_years() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_399, "2000-02-28T23:59:59"),
        (951_782_400, "2000-02-29T00:00:00"),
        (1_709_251_200, "2024-03-01T00:00:00"),
        (4_107_542_400, "2100-03-01T00:00:00"),
        (1_767_225_599, "2025-12-31T23:59:59"),
    ] {
        let mut text = String::new();
        line::write_second(seconds, &mut text);
        assert_eq!(text, expected);
    }
}

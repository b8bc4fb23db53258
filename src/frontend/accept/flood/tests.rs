//! What is too much, and what is not.

use super::*;
use proptest::prelude::*;

const ALLOWANCE: Allowance = Allowance { control_frames: 3, resets: 2, header_block: 100, frame: 1 << 16 };
const PRIORITY: u8 = 2;
/// A type of frame that RFC 9113 does not know.
const EXTENSION: u8 = 0x10;

fn frame(kind: u8, length: u32, flags: u8) -> Header {
    Header { length, kind, flags, stream: 1 }
}

fn account() -> Account {
    Account::new(ALLOWANCE)
}

impl Account {
    fn hears(&mut self, frame: Header) -> Result<(), Flood> {
        self.received(frame, Instant::now)
    }

    fn says(&mut self, frame: Header) {
        self.sent(frame, Instant::now);
    }

    /// As many of `frame` as pass, one after the other.
    fn passes(&mut self, frame: Header) -> (u32, Flood) {
        for count in 0..1_000 {
            if let Err(flood) = self.hears(frame) {
                return (count, flood);
            }
        }
        panic!("there is no end to {frame:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_kind_has_its_second() {
    for (header, flood) in [
        (frame(kind::PING, 8, 0), Flood::Ping),
        (frame(kind::PING, 8, 1), Flood::Ping),
        (frame(kind::SETTINGS, 6, 0), Flood::Settings),
        (frame(kind::SETTINGS, 0, 1), Flood::Settings),
        (frame(kind::WINDOW_UPDATE, 4, 0), Flood::WindowUpdate),
        (frame(kind::DATA, 0, 0), Flood::Empty),
        (frame(kind::HEADERS, 0, 4), Flood::Empty),
        (frame(kind::CONTINUATION, 0, 1), Flood::Empty),
        (frame(PRIORITY, 5, 0), Flood::Idle),
        (frame(kind::GOAWAY, 8, 0), Flood::Idle),
        (frame(EXTENSION, 0, 0), Flood::Idle),
    ] {
        let mut account = account();
        assert_eq!(account.passes(header), (3, flood), "{header:?}");
        tokio::time::advance(SECOND).await;
        assert_eq!(account.passes(header), (3, flood), "{header:?}");
        // One kind takes nothing from another.
        let other = if header.kind == kind::PING { kind::SETTINGS } else { kind::PING };
        assert_eq!(account.hears(frame(other, 8, 0)), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_nobody_is_ever_cut() {
    let mut account = account();
    for _ in 0..100 {
        for _ in 0..ALLOWANCE.control_frames {
            assert_eq!(account.hears(frame(kind::PING, 8, 0)), Ok(()));
        }
        tokio::time::advance(SECOND).await;
    }
}

#[test]
fn what_carries_something_or_ends_something_is_no_flood() {
    let mut account = account();
    for _ in 0..1_000 {
        for header in [
            frame(kind::HEADERS, 50, 4),
            frame(kind::DATA, 1, 0),
            frame(kind::DATA, 0, 1),
            frame(kind::HEADERS, 50, 5),
            frame(kind::HEADERS, 0, 5),
        ] {
            assert_eq!(account.hears(header), Ok(()), "{header:?}");
        }
    }
}

#[test]
fn what_answers_ours_is_no_flood() {
    let mut account = account();
    for _ in 0..1_000 {
        account.says(frame(kind::PING, 8, 0));
        assert_eq!(account.hears(frame(kind::PING, 8, 1)), Ok(()));
        account.says(frame(kind::SETTINGS, 6, 0));
        assert_eq!(account.hears(frame(kind::SETTINGS, 0, 1)), Ok(()));
        account.says(frame(kind::DATA, 10, 0));
        assert_eq!(account.hears(frame(kind::PING, 8, 0)), Ok(()));
        for _ in 0..WINDOWS {
            assert_eq!(account.hears(frame(kind::WINDOW_UPDATE, 4, 0)), Ok(()));
        }
    }
    // Our acknowledgements are no questions.
    account.says(frame(kind::PING, 8, 1));
    account.says(frame(kind::SETTINGS, 0, 1));
    assert_eq!(account.passes(frame(kind::PING, 8, 1)).0, ALLOWANCE.control_frames);
    assert_eq!(account.passes(frame(kind::SETTINGS, 0, 1)).0, ALLOWANCE.control_frames);
}

#[test]
fn a_window_may_be_given_back_in_pieces() {
    let mut account = account();
    account.says(frame(kind::DATA, 16 * 1024, 0));
    for _ in 0..WINDOWS * 16 {
        assert_eq!(account.hears(frame(kind::WINDOW_UPDATE, 4, 0)), Ok(()));
    }
    assert_eq!(account.passes(frame(kind::WINDOW_UPDATE, 4, 0)), (WINDOWS + 3, Flood::WindowUpdate));
    // And a request may come with larger windows for its answer.
    for _ in 0..1_000 {
        assert_eq!(account.hears(frame(kind::HEADERS, 50, 5)), Ok(()));
        assert_eq!(account.hears(frame(kind::WINDOW_UPDATE, 4, 0)), Ok(()));
    }
}

#[test]
fn what_may_be_owed_is_bounded() {
    let mut account = account();
    for _ in 0..1_000 {
        account.says(frame(kind::DATA, (1 << 24) - 1, 0));
    }
    assert_eq!((account.free_updates, account.free_pings), (UPDATES, ALLOWANCE.control_frames));
}

#[tokio::test(start_paused = true)]
async fn resets_are_made_up_for_by_completed_streams() {
    let reset = frame(kind::RST_STREAM, 4, 0);
    let mut account = account();
    assert_eq!(account.passes(reset), (2, Flood::Reset));
    let mut account = self::account();
    for _ in 0..5 {
        account.says(frame(kind::DATA, 3, 1));
    }
    assert_eq!(account.passes(reset), (5, Flood::Reset));
    // Those are used up.
    tokio::time::advance(RESETS).await;
    assert_eq!(account.passes(reset), (2, Flood::Reset));
    // What was completed long ago counts, up to a bound.
    for _ in 0..1_000 {
        account.says(frame(kind::HEADERS, 3, 5));
    }
    tokio::time::advance(RESETS).await;
    assert_eq!(account.passes(reset), (EARLIER * ALLOWANCE.resets, Flood::Reset));
}

#[test]
fn resets_that_the_peer_provokes_are_counted_by_themselves() {
    let mut account = account();
    let reset = frame(kind::RST_STREAM, 4, 0);
    for _ in 0..ALLOWANCE.resets {
        account.says(reset);
        assert_eq!(account.hears(reset), Ok(()));
    }
    account.says(reset);
    assert_eq!(account.hears(frame(kind::DATA, 1, 0)), Err(Flood::Provoked));

    // Who is answered before it has sent its whole body has completed, whatever h2 says to the rest of the body.
    let mut account = self::account();
    for _ in 0..1_000 {
        account.says(frame(kind::DATA, 9, 1));
        account.says(reset);
        assert_eq!(account.hears(frame(kind::HEADERS, 9, 4)), Ok(()));
    }
}

#[test]
fn a_header_block_is_bounded_as_a_whole() {
    let mut account = account();
    assert_eq!(account.hears(frame(kind::HEADERS, 100, 4)), Ok(()));
    assert_eq!(account.hears(frame(kind::HEADERS, 101, 4)), Err(Flood::HeaderBlock));
    assert_eq!(account.hears(frame(kind::HEADERS, 60, 0)), Ok(()));
    assert_eq!(account.hears(frame(kind::CONTINUATION, 40, 0)), Ok(()));
    assert_eq!(account.hears(frame(kind::CONTINUATION, 1, 4)), Err(Flood::HeaderBlock));
    // What no frame may be is h2's to refuse.
    assert_eq!(account.hears(frame(kind::HEADERS, ALLOWANCE.frame + 1, 4)), Ok(()));
}

#[test]
fn the_last_stream_is_the_highest_that_passed_until_it_has_been_named() {
    let mut account = account();
    assert_eq!(account.last_stream(), Some(0));
    let opens = |stream, length| Header { stream, ..frame(kind::HEADERS, length, 4) };
    for (stream, length) in [(1, 10), (5, 10), (3, 10), (7, 101)] {
        let _ = account.hears(opens(stream, length));
    }
    assert_eq!(account.last_stream(), Some(5));
    account.says(frame(kind::GOAWAY, 8, 0));
    assert_eq!(account.last_stream(), None);
}

proptest! {
    /// Whatever comes: no panic, and no kind of frame without an end.
    #[test]
    fn every_flood_ends(header in (any::<u8>(), 0..=ALLOWANCE.frame, any::<u8>())) {
        let (kind, length, flags) = header;
        let header = frame(kind, length, flags);
        let mut account = account();
        let passed = (0..500).take_while(|_| account.hears(header).is_ok()).count();
        // What costs more than a few bytes each is bounded elsewhere: by flow control, streams and calls.
        let carries = matches!(kind, kind::DATA | kind::HEADERS) && (length > 0 || flags & 1 != 0);
        prop_assert!(passed < 500 || carries, "{header:?}");
    }
}

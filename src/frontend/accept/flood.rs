//! What a peer may cost by frames alone, on one HTTP/2 connection (contract 10 section 5, attacks A13 to A17).
//!
//! hyper answers or ignores PING, SETTINGS, PRIORITY, WINDOW_UPDATE and RST_STREAM by itself, as often as they come, and
//! tells nobody. So they are counted here, by the headers of the frames of both directions. h2 bounds some of it by
//! itself, by number and not by time: resets of streams that nobody has accepted yet, its own resets, frames of one header
//! block, header lists once they are decoded, DATA that is empty or tiny. That stays the second line.
//!
//! A frame that answers one of ours is no flood: acknowledgements, updates of windows for what we sent, and PINGs that
//! measure how fast our answers arrive (some gRPC clients send one with every answer, to estimate the bandwidth).
//!
//! No bytes and no sockets here. The clock is asked only when something is counted that well-behaved peers hardly send.

use super::frames::{Header, kind};
use std::time::Duration;
use tokio::time::Instant;

/// What control frames are counted in.
const SECOND: Duration = Duration::from_secs(1);
/// What resets are counted in.
const RESETS: Duration = Duration::from_secs(10);
/// As many times `resets` may be made up for by streams that were completed earlier than in the last [`RESETS`].
const EARLIER: u32 = 10;
/// A peer may give back as little of its window at once as this. Others wait for half of it.
const UPDATE: u32 = 1024;
/// The windows of its stream and of the connection.
const WINDOWS: u32 = 2;
/// Updates that may be owed to us: what a peer with large windows gives back in small pieces, and no more.
const UPDATES: u32 = 1 << 16;

/// Frames that may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Of each kind of control frame, per second (`limits.http2.control_frames`).
    pub(super) control_frames: u32,
    /// The peer's, and those it provokes, per 10 s unless more streams completed (`limits.http2.resets`).
    pub(super) resets: u32,
    /// Bytes of one header block on the wire.
    pub(super) header_block: u32,
    /// Bytes of one frame (`limits.http2.frame`).
    pub(super) frame: u32,
}

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flood {
    /// PING, and acknowledgements of PINGs that were never sent.
    Ping,
    /// SETTINGS, likewise.
    Settings,
    /// WINDOW_UPDATE for which nothing was sent.
    WindowUpdate,
    /// DATA, HEADERS and CONTINUATION that carry nothing and end nothing.
    Empty,
    /// PRIORITY, and all that has no meaning for a server: GOAWAY, frames of extensions.
    Idle,
    /// Streams that the peer reset.
    Reset,
    /// Streams that the peer made us reset.
    Provoked,
    /// Bytes of one header block.
    HeaderBlock,
}

/// The account of one connection.
#[derive(Debug)]
pub(super) struct Account {
    allowance: Allowance,
    pings: Frequency,
    settings: Frequency,
    updates: Frequency,
    empty: Frequency,
    idle: Frequency,
    /// PINGs of ours that are not acknowledged.
    own_pings: u32,
    own_settings: u32,
    /// PINGs and window updates that what we sent allows for.
    free_pings: u32,
    free_updates: u32,
    resets: Resets,
    provoked: Resets,
    provoked_too_much: bool,
    /// Bytes of the header block that arrives.
    block: u32,
    /// The highest stream that the peer has opened.
    last_stream: u32,
    going_away: bool,
}

/// How often something happens within a second.
#[derive(Debug, Default)]
struct Frequency {
    count: u32,
    since: Option<Instant>,
}

/// Resets, and completed streams that make up for them.
#[derive(Debug, Default)]
struct Resets {
    count: u32,
    completed: u32,
    since: Option<Instant>,
}

// === impl Account ===

impl Account {
    pub(super) fn new(allowance: Allowance) -> Self {
        Self {
            allowance,
            pings: Frequency::default(),
            settings: Frequency::default(),
            updates: Frequency::default(),
            empty: Frequency::default(),
            idle: Frequency::default(),
            own_pings: 0,
            own_settings: 0,
            free_pings: 0,
            free_updates: 0,
            resets: Resets::default(),
            provoked: Resets::default(),
            provoked_too_much: false,
            block: 0,
            last_stream: 0,
            going_away: false,
        }
    }

    /// A frame of the peer has begun.
    ///
    /// # Errors
    ///
    /// If it is the one too many.
    pub(super) fn received(&mut self, frame: Header, now: fn() -> Instant) -> Result<(), Flood> {
        if self.provoked_too_much {
            return Err(Flood::Provoked);
        }
        if frame.length > self.allowance.frame {
            // h2 ends the connection on such a header, with an error of its own (RFC 9113 section 4.2).
            return Ok(());
        }
        let most = self.allowance.control_frames;
        let within = |within: bool, flood: Flood| if within { Ok(()) } else { Err(flood) };
        match frame.kind {
            kind::DATA if frame.length > 0 || frame.ends_stream() => Ok(()),
            kind::DATA => within(self.empty.count(most, now), Flood::Empty),
            kind::HEADERS | kind::CONTINUATION => self.header_block(frame, now),
            kind::RST_STREAM => within(self.resets.count(self.allowance.resets, now), Flood::Reset),
            kind::SETTINGS if frame.is_ack() && take(&mut self.own_settings) => Ok(()),
            kind::SETTINGS => within(self.settings.count(most, now), Flood::Settings),
            kind::PING if frame.is_ack() && take(&mut self.own_pings) => Ok(()),
            kind::PING if !frame.is_ack() && take(&mut self.free_pings) => Ok(()),
            kind::PING => within(self.pings.count(most, now), Flood::Ping),
            kind::WINDOW_UPDATE if take(&mut self.free_updates) => Ok(()),
            kind::WINDOW_UPDATE => within(self.updates.count(most, now), Flood::WindowUpdate),
            _ => within(self.idle.count(most, now), Flood::Idle),
        }
    }

    fn header_block(&mut self, frame: Header, now: fn() -> Instant) -> Result<(), Flood> {
        let begins = frame.kind == kind::HEADERS;
        self.block = if begins { frame.length } else { self.block.saturating_add(frame.length) };
        if self.block > self.allowance.header_block {
            return Err(Flood::HeaderBlock);
        }
        let ends_stream = begins && frame.ends_stream();
        if frame.length == 0 && !ends_stream && !self.empty.count(self.allowance.control_frames, now) {
            return Err(Flood::Empty);
        }
        if begins {
            self.last_stream = self.last_stream.max(frame.stream);
            // A request may come with larger windows for its answer, which are cheap beside it.
            self.allow_updates(1);
        }
        Ok(())
    }

    /// A frame of ours has begun.
    pub(super) fn sent(&mut self, frame: Header, now: fn() -> Instant) {
        match frame.kind {
            kind::DATA | kind::HEADERS => {
                self.free_pings = (self.free_pings + 1).min(self.allowance.control_frames);
                if frame.kind == kind::DATA && frame.length > 0 {
                    self.allow_updates(1 + frame.length / UPDATE);
                }
                if frame.ends_stream() {
                    self.resets.complete();
                    self.provoked.complete();
                }
            }
            // Said at the next frame of the peer: only there can its stream of bytes be cut.
            kind::RST_STREAM => self.provoked_too_much |= !self.provoked.count(self.allowance.resets, now),
            kind::SETTINGS if !frame.is_ack() => self.own_settings += 1,
            kind::PING if !frame.is_ack() => self.own_pings += 1,
            kind::GOAWAY => self.going_away = true,
            _ => {}
        }
    }

    fn allow_updates(&mut self, pieces: u32) {
        self.free_updates = (self.free_updates + WINDOWS * pieces).min(UPDATES);
    }

    /// The highest stream that may have been acted on, unless a GOAWAY has named one already: no later one may name a
    /// higher one (RFC 9113 section 6.8).
    pub(super) fn last_stream(&self) -> Option<u32> {
        (!self.going_away).then_some(self.last_stream)
    }
}

/// Takes one, if there is one.
fn take(from: &mut u32) -> bool {
    let is_there = *from > 0;
    *from -= u32::from(is_there);
    is_there
}

// === impl Frequency, Resets ===

impl Frequency {
    /// Counts one more; false if that is more than `most` in a second.
    fn count(&mut self, most: u32, now: fn() -> Instant) -> bool {
        self.count += 1;
        // The first of a second, or the first beyond its limit, which may be the first of the next second.
        if self.count == 1 || self.count > most {
            let now = now();
            if self.since.is_some_and(|since| now < since + SECOND) {
                return self.count <= most;
            }
            (self.count, self.since) = (1, Some(now));
        }
        true
    }
}

impl Resets {
    fn complete(&mut self) {
        self.completed = self.completed.saturating_add(1);
    }

    /// Counts one more; false if that is more than `most` in 10 s and more than streams completed.
    fn count(&mut self, most: u32, now: fn() -> Instant) -> bool {
        // Resets are rare enough for the clock.
        let now = now();
        if self.since.is_none_or(|since| now >= since + RESETS) {
            let made_up_for = self.count.saturating_sub(most);
            let left = self.completed.saturating_sub(made_up_for);
            *self = Self { count: 0, completed: left.min(EARLIER.saturating_mul(most)), since: Some(now) };
        }
        self.count = self.count.saturating_add(1);
        self.count <= most || self.count <= self.completed
    }
}

#[cfg(test)]
mod tests;

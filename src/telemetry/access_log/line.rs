//! The text of a line.
//!
//! JSON is written piece by piece and not through `format!`, because it is made on a lane, once per call. The form for
//! people takes the easy way.

use super::Entry;
use crate::{
    call::{CallId, End},
    telemetry::Format,
};
use std::{
    fmt::{self, Write as _},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

/// The same moment on both clocks is read again after this long, so that the log follows a wall clock that is set.
const TRUSTED: Duration = Duration::from_secs(1);

/// Text that grows at its end.
pub(super) struct Text<'a>(pub(super) &'a mut Vec<u8>);

/// Turns the clock that calls are timed by into the time of day. One per buffer.
#[derive(Debug)]
pub(super) struct Clock {
    instant: Instant,
    /// The same moment, since 1970.
    wall: Duration,
    /// The second whose text is kept.
    second: u64,
    text: String,
}

// === impl Entry ===

impl Entry {
    pub(super) fn write(&self, format: Format, end: End, now: Instant, clock: &mut Clock, text: Text<'_>) {
        match format {
            // Writing into memory cannot fail.
            Format::Pretty => drop(self.write_pretty(end, now, clock, text.0)),
            Format::Auto | Format::Json => self.write_json(end, now, clock, text),
        }
    }

    fn write_json(&self, end: End, now: Instant, clock: &mut Clock, mut text: Text<'_>) {
        let (second, micros) = clock.time_of(now);
        text.raw("{\"timestamp\":\"").raw(second).micros(micros);
        text.raw("Z\",\"level\":\"INFO\",\"target\":\"sluicegate::access\",\"message\":\"call\",\"call_id\":\"");
        // Sane by construction: no character that JSON escapes.
        match &self.id {
            CallId::Made(uuid) => text.raw(uuid.hyphenated().encode_lower(&mut [0; 36])),
            CallId::Given(id) => text.raw(id),
        };
        text.raw("\",\"surface\":\"").raw(self.surface.name()).raw("\",\"route\":\"").raw(self.route.name());
        text.raw("\",\"intent\":\"").raw(self.intent.name());
        text.raw("\",\"code\":\"").raw(end.name()).raw("\"");
        if let Some(identity) = self.facts.identity.get() {
            text.raw(",\"identity\":").string(identity.id());
        }
        if let Some(model) = self.facts.model.get() {
            text.raw(",\"model\":").string(&model.name).raw(",\"version\":").string(&model.version);
        }
        if let Some(timing) = self.facts.timing.get() {
            text.raw(",\"queue_us\":").duration(timing.queue).raw(",\"run_us\":").duration(timing.compute);
        }
        if let Some(cached) = self.facts.cached() {
            text.raw(",\"cache\":\"").raw(cached.name()).raw("\"");
        }
        if let Some(trace) = self.facts.trace.get() {
            // Few calls are traced, so this one may take the long way.
            text.raw(",\"trace_id\":").string(&trace.id().to_string());
        }
        text.raw(",\"took_us\":").duration(now.saturating_duration_since(self.received));
        text.raw(",\"stage\":\"").raw(self.facts.stage().name());
        text.raw("\",\"peer\":\"").address(self.peer.address).raw("\"}\n");
    }

    fn write_pretty(&self, end: End, now: Instant, clock: &mut Clock, text: &mut Vec<u8>) -> std::io::Result<()> {
        let (second, micros) = clock.time_of(now);
        Text(text).raw(second).micros(micros);
        let (code, surface, intent) = (end.name(), self.surface.name(), self.intent.name());
        write!(text, "Z  CALL {code} {surface} {intent}")?;
        if let Some(model) = self.facts.model.get() {
            write!(text, " {}/{}", Escaped(&model.name), Escaped(&model.version))?;
        }
        write!(text, " took {:.1?}", now.saturating_duration_since(self.received))?;
        if let Some(timing) = self.facts.timing.get() {
            write!(text, " (queue {:.1?}, run {:.1?})", timing.queue, timing.compute)?;
        }
        if let Some(cached) = self.facts.cached() {
            write!(text, " cache={}", cached.name())?;
        }
        if end != End::Complete {
            write!(text, " while {}", self.facts.stage().name())?;
        }
        if let Some(identity) = self.facts.identity.get() {
            write!(text, " identity={}", Escaped(identity.id()))?;
        }
        if let Some(trace) = self.facts.trace.get() {
            write!(text, " trace_id={}", trace.id())?;
        }
        text.extend_from_slice(b" peer=");
        Text(text).address(self.peer.address);
        writeln!(text, " call_id={}", self.id)
    }
}

// === impl Text ===

impl Text<'_> {
    fn raw(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.raw(itoa::Buffer::new().format(number))
    }

    /// A JSON string. Names of models and identities hardly ever need an escape.
    fn string(&mut self, text: &str) -> &mut Self {
        if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            return self.raw("\"").raw(text).raw("\"");
        }
        // Writing into memory cannot fail.
        let _ = serde_json::to_writer(&mut *self.0, text);
        self
    }

    /// Whole microseconds.
    fn duration(&mut self, duration: Duration) -> &mut Self {
        self.number(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    /// The fraction of a second.
    fn micros(&mut self, micros: u32) -> &mut Self {
        let mut digits = *b".000000";
        let mut rest = micros;
        for digit in digits[1..].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        self.0.extend_from_slice(&digits);
        self
    }

    /// Without a port if it has none: a proxy rarely says it.
    fn address(&mut self, address: SocketAddr) -> &mut Self {
        // As the address gate sees it: one client is one text, whichever socket it came by.
        match address.ip().to_canonical() {
            ip if address.port() == 0 => {
                // Writing into memory cannot fail.
                let _ = write!(self.0, "{ip}");
                self
            }
            IpAddr::V4(ip) => {
                // In one piece: there is one for each call.
                let (mut digits, mut length) = ([0; 15], 0);
                let mut put = |digit| {
                    digits[length] = digit;
                    length += 1;
                };
                for (at, octet) in ip.octets().into_iter().enumerate() {
                    if at > 0 {
                        put(b'.');
                    }
                    if octet >= 100 {
                        put(b'0' + octet / 100);
                    }
                    if octet >= 10 {
                        put(b'0' + octet / 10 % 10);
                    }
                    put(b'0' + octet % 10);
                }
                self.0.extend_from_slice(&digits[..length]);
                self.raw(":").number(u64::from(address.port()))
            }
            IpAddr::V6(_) => {
                // Writing into memory cannot fail.
                let _ = write!(self.0, "{address}");
                self
            }
        }
    }
}

/// A name in a line for people: control characters must not reach a terminal or break the line.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

// === impl Clock ===

impl Clock {
    pub(super) fn new() -> Self {
        let (instant, wall) = moment();
        Self { instant, wall, second: u64::MAX, text: String::with_capacity(20) }
    }

    /// The second that `now` lies in, as RFC 3339 writes it in UTC, without fraction and zone; and the microseconds of
    /// the fraction.
    fn time_of(&mut self, now: Instant) -> (&str, u32) {
        let since = match now.checked_duration_since(self.instant) {
            Some(later) if later <= TRUSTED => self.wall + later,
            Some(_) => {
                (self.instant, self.wall) = moment();
                self.before(now)
            }
            None => self.before(now),
        };
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            self.text.clear();
            write_second(self.second, &mut self.text);
        }
        (&self.text, since.subsec_micros())
    }

    /// The time of day at a moment that is not after ours.
    fn before(&self, now: Instant) -> Duration {
        self.wall.saturating_sub(self.instant.saturating_duration_since(now))
    }
}

/// This moment on both clocks.
fn moment() -> (Instant, Duration) {
    (Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn write_second(second: u64, text: &mut String) {
    let (year, month, day) = date(second / 86_400);
    let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
    // Writing into memory cannot fail.
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
}

/// Year, month and day of the day `days` after 1970-01-01, in the Gregorian calendar. Years begin in March here, so that
/// the leap day is the last day of one and months have a regular pattern: 153 days in five.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01 to 1970-01-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

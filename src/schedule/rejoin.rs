//! Waiting for callers who were just answered.
//!
//! Whoever calls in a loop calls again as soon as it has its answer. So when a run ends, those that it answered are on their
//! way back, and those who came meanwhile wait. To run these at once splits the callers into halves that run by turns for
//! ever, each run paying anew for what it costs whatever it has. If that is much, it is better to wait for a moment, and to run
//! all of them together.
//!
//! How long is bounded by what is saved: the time of two runs less that of one. It ends earlier when all are back, or when
//! those who came back before had all been back for long. Callers who do not come back soon are not waited for
//! again: each disappointment costs twice the trust that a success wins, and without trust it is tried ever more rarely. A caller who is
//! alone is answered alone, so there is nobody to wait for.
//!
//! A pure state machine like the queue: time is an argument.

use super::Cost;
use std::time::{Duration, Instant};

/// Below this there is nothing to gain: to wake a thread once more costs a good part of it.
const LEAST: Duration = Duration::from_micros(200);

/// Nobody is waited for longer: whoever calls in a loop is back by then, and whoever is far away is not worth a silent machine.
const MOST: Duration = Duration::from_millis(10);

/// Trust is bounded, so that it can be lost. It is counted in what a success wins that takes no time.
const TRUST: f32 = 8.;

/// What a time of waiting costs, as a multiple of itself. Others may come while it lasts, and be taken for those who are waited
/// for: so whoever comes back must do it well before what is saved has gone by.
const COSTS: f32 = 1.25;

/// What it costs if they do not come.
const LOST: f32 = 2.;

/// Runs after which it is tried again without trust, at first and at last.
const PAUSE: (u32, u32) = (16, 1024);

/// What is known of those who come back.
#[derive(Debug)]
pub(super) struct Rejoin {
    /// Those who are expected after the last run; absent: nobody is waited for.
    expected: Option<Expected>,
    trust: f32,
    /// Runs since it was tried, and how many of them make it worth another try where there is no trust.
    untried: u32,
    pause: u32,
    /// How long after a run all were back, on average; absent: not known.
    usual: Option<Duration>,
}

/// Who is expected.
#[derive(Clone, Copy, Debug)]
struct Expected {
    /// When the last run ended.
    since: Instant,
    /// The rows of those whom it answered, and of those who waited at its end.
    rows: usize,
    /// Rows that wait now, as far as they were told.
    here: usize,
    /// Absent: nobody waits for them yet.
    wait: Option<Wait>,
}

/// That a batch waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    /// What it may win.
    saved: Duration,
    /// What a run of all who are expected takes at most.
    busy: Duration,
}

// === impl Rejoin ===

impl Default for Rejoin {
    fn default() -> Self {
        Self { expected: None, trust: 1., untried: 0, pause: PAUSE.0, usual: None }
    }
}

impl Rejoin {
    /// A run ended at `over`, before anybody was answered, that had so many rows; so many had come meanwhile.
    pub(super) fn ran(&mut self, over: Instant, answered: usize, waiting: usize) {
        self.untried = self.untried.saturating_add(1);
        let rows = answered.saturating_add(waiting);
        let is_tried = self.trust > 0. || self.untried >= self.pause;
        self.expected = (rows > 1 && is_tried).then_some(Expected { since: over, rows, here: 0, wait: None });
    }

    /// Until when a batch should wait for those who are expected; `None`: it need not. It has `here` rows and may have `room`,
    /// and the first of its deadlines is `urgent`.
    pub(super) fn until(
        &mut self,
        (here, room): (usize, usize),
        urgent: Instant,
        cost: &Cost,
        now: Instant,
    ) -> Option<Instant> {
        let expected = self.expected.as_mut()?;
        expected.rows = expected.rows.min(room);
        expected.here = here;
        if expected.is_complete() {
            return self.end(true, now);
        }
        let wait = match expected.wait {
            Some(wait) => wait,
            None => {
                let parts = [here, expected.rows - here, expected.rows].map(|rows| cost.estimate(rows));
                let ([Some(first), Some(rest), Some(all)], Some(busy)) = (parts, cost.at_most(expected.rows)) else {
                    return self.give_up();
                };
                let saved = (first + rest).saturating_sub(all).min(MOST);
                if saved < LEAST {
                    return self.give_up();
                }
                let patience = self.usual.map_or(saved, |usual| saved.min(usual * 2));
                Wait { until: expected.since + patience, saved, busy }
            }
        };
        let is_new = expected.wait.replace(wait).is_none();
        // Nobody is made late who would be in time now.
        if urgent.checked_sub(wait.busy).is_none_or(|latest| latest <= now) || (is_new && wait.until <= now) {
            return self.give_up();
        }
        if now < wait.until { Some(wait.until) } else { self.end(false, now) }
    }

    /// A job has come that may run with those who wait. False if it changes nothing: others are still waited for.
    pub(super) fn came(&mut self, rows: usize, deadline: Instant) -> bool {
        let Some(expected) = &mut self.expected else { return true };
        let Some(wait) = expected.wait else { return true };
        expected.here = expected.here.saturating_add(rows);
        expected.is_complete() || deadline.saturating_duration_since(wait.until) <= wait.busy
    }

    /// Nobody is there who could wait: whoever comes next asks anew.
    pub(super) fn left(&mut self) {
        if let Some(expected) = &mut self.expected {
            expected.wait = None;
        }
    }

    /// Nobody is waited for any more, whether they came or not.
    pub(super) fn give_up(&mut self) -> Option<Instant> {
        self.expected = None;
        None
    }

    /// The wait is over: all came, or too few did.
    fn end(&mut self, is_complete: bool, now: Instant) -> Option<Instant> {
        let expected = self.expected.take()?;
        let saved = expected.wait?.saved.as_secs_f32();
        let took = now.saturating_duration_since(expected.since);
        self.untried = 0;
        if is_complete {
            self.usual = Some(self.usual.map_or(took, |usual| (usual * 3 + took) / 4));
            self.trust = (self.trust.max(0.) + 1. - COSTS * took.as_secs_f32() / saved).min(TRUST);
            self.pause = PAUSE.0;
        } else {
            // If they are only slower than they were, the next ones have all the time there is.
            self.usual = None;
            self.trust = (self.trust - LOST).max(-LOST);
        }
        if self.trust <= 0. {
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        None
    }
}

// === impl Expected ===

impl Expected {
    fn is_complete(&self) -> bool {
        self.here >= self.rows
    }
}

#[cfg(test)]
#[path = "rejoin_tests.rs"]
mod tests;

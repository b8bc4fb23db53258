//! Waiting for callers who were just answered.
//!
//! Whoever calls in a loop calls again as soon as it has its answer. So when a run ends, those that it answered are on their
//! way back, and those who came meanwhile wait. To run these at once splits the callers into halves that run by turns for
//! ever, each run paying anew for what it costs whatever it has. If that is much, it is better to wait for a moment, and to run
//! all of them together.
//!
//! How long is bounded by what is saved: the time of two runs less that of one. It ends earlier when all are back, or after
//! twice the time that callers took before. Callers who do not come back soon are not waited for again: a disappointment costs
//! at least twice the trust that a success wins, and without trust it is tried ever more rarely. A caller who is alone is
//! answered alone, so there is nobody to wait for.
//!
//! A pure state machine like the queue: time is an argument.

use super::Cost;
use std::time::{Duration, Instant};

/// Below this nobody waits: to fall asleep and be woken takes some tens of it, and what runs cost is not known so well.
const MIN_SAVING: Duration = Duration::from_micros(200);

/// Nobody is waited for longer: a caller in a loop on the same network is back by then, and one who is far away is not worth a
/// machine that stands still.
const MAX_WAIT: Duration = Duration::from_millis(10);

/// Trust is bounded, so that it can be lost. It is counted in what a success wins that takes no time.
const TRUST: f32 = 8.;

/// What a time of waiting costs, as a multiple of itself. Others may come while it lasts, and be taken for those who are waited
/// for: so whoever comes back must do it well before what is saved has gone by.
const COSTS: f32 = 1.25;

/// What it costs if they do not come.
const LOST: f32 = 2.;

/// Runs after which it is tried again without trust, at first and at last; it doubles with each disappointment.
const PAUSE: (u32, u32) = (32, 1024);

/// What is known of those who come back.
#[derive(Debug)]
pub(super) struct Rejoin {
    /// Those who are expected after the last run; absent: nobody is waited for.
    expected: Option<Expected>,
    trust: f32,
    /// Runs since it was tried.
    untried: u32,
    /// How many of them make it worth another try without trust.
    pause: u32,
    /// How long after a run all were back, on average; absent: not known.
    usual: Option<Duration>,
}

/// Who is expected.
#[derive(Clone, Copy, Debug)]
struct Expected {
    /// When the last run ended.
    since: Instant,
    /// Those whom it answered, and those who waited at its end; and their rows.
    jobs: usize,
    rows: usize,
    /// Those who wait now, and those who have left since somebody looked.
    here: usize,
    /// Absent: nobody waits for them yet.
    wait: Option<Wait>,
}

/// That a batch waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    /// What it wins if they come.
    saved: Duration,
    /// What a run of all who are expected takes at most.
    busy: Duration,
}

/// A batch that may run now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here {
    pub(super) jobs: usize,
    pub(super) rows: usize,
    /// Most rows that it may have.
    pub(super) room: usize,
    /// The first of its deadlines.
    pub(super) urgent: Instant,
}

// === impl Rejoin ===

impl Default for Rejoin {
    fn default() -> Self {
        Self { expected: None, trust: 1., untried: 0, pause: PAUSE.0 / 2, usual: None }
    }
}

impl Rejoin {
    /// A run ended at `over`, before anybody was answered. It had so many jobs and rows, and so many had come meanwhile.
    pub(super) fn ran(&mut self, over: Instant, answered: (usize, usize), waiting: (usize, usize)) {
        self.untried = self.untried.saturating_add(1);
        let jobs = answered.0.saturating_add(waiting.0);
        let rows = answered.1.saturating_add(waiting.1);
        let is_tried = self.trust > 0. || self.untried >= self.pause;
        // Who is alone may be expected, and nobody waits for that.
        self.expected = (jobs > 1 && is_tried).then_some(Expected { since: over, jobs, rows, here: 0, wait: None });
    }

    /// Until when a batch should wait for those who are expected; `None`: it need not, and they are expected no more.
    pub(super) fn until(&mut self, here: Here, cost: &Cost, now: Instant) -> Option<Instant> {
        let due = self.due(here, cost, now);
        if due.is_none() {
            self.give_up();
        }
        due
    }

    fn due(&mut self, here: Here, cost: &Cost, now: Instant) -> Option<Instant> {
        let expected = self.expected.as_mut()?;
        expected.here = here.jobs;
        let took = now.saturating_duration_since(expected.since);
        let is_complete = expected.is_complete() || here.rows >= here.room;
        let wait = match expected.wait {
            Some(wait) if is_complete => return self.learn(wait, true, took),
            Some(wait) => wait,
            None if is_complete => return None,
            None => {
                let all = expected.rows.max(here.rows + 1).min(here.room);
                let [first, rest, together] = [here.rows, all - here.rows, all].map(|rows| cost.estimate(rows));
                let saved = (first? + rest?).saturating_sub(together?);
                let patience = self.usual.map_or(saved, |usual| saved.min(usual * 2)).min(MAX_WAIT);
                let until = expected.since + patience;
                if saved < MIN_SAVING {
                    return None;
                }
                if until <= now {
                    // To answer them took longer than they did before: it is not known how long they take.
                    self.usual = None;
                    return None;
                }
                Wait { until, saved, busy: cost.at_most(all)? }
            }
        };
        let is_new = expected.wait.replace(wait).is_none();
        // Nobody is made late who would be in time now.
        let due = here.urgent.checked_sub(wait.busy).map_or(now, |latest| latest.min(wait.until));
        match now < due {
            true => Some(due),
            false if is_new => None,
            false => self.learn(wait, false, took),
        }
    }

    /// Whether a batch waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.expected.is_some_and(|expected| expected.wait.is_some())
    }

    /// A job has come that may run with those who wait. False if it changes nothing: others are still waited for.
    pub(super) fn came(&mut self, deadline: Instant) -> bool {
        let Some(expected) = &mut self.expected else { return true };
        let Some(wait) = expected.wait else { return true };
        expected.here = expected.here.saturating_add(1);
        expected.is_complete() || deadline.saturating_duration_since(wait.until) <= wait.busy
    }

    /// Nobody waits any more: whoever comes next asks anew.
    pub(super) fn forget_wait(&mut self) {
        if let Some(expected) = &mut self.expected {
            expected.wait = None;
        }
    }

    /// Nobody is expected any more.
    pub(super) fn give_up(&mut self) {
        self.expected = None;
    }

    /// A wait is over, so long after the run: all came, or too few did. There is nothing to wait for then.
    fn learn(&mut self, wait: Wait, is_complete: bool, took: Duration) -> Option<Instant> {
        self.untried = 0;
        if is_complete {
            self.usual = Some(self.usual.map_or(took, |usual| (usual * 3 + took) / 4));
            let won = 1. - COSTS * took.as_secs_f32() / wait.saved.as_secs_f32();
            self.trust = (self.trust + won).clamp(0., TRUST);
            self.pause = PAUSE.0 / 2;
        } else {
            // If they are only slower than they were, the next ones have all the time there is.
            self.usual = None;
            self.trust = (self.trust - LOST).max(0.);
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
        self.here >= self.jobs
    }
}

#[cfg(test)]
#[path = "rejoin_tests.rs"]
mod tests;

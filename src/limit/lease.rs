//! Units of a shared quota that this process has drawn and decides on alone.
//!
//! A lease is drawn from where the quota is kept (see [`redis`](super::redis)) a little ahead of need, so that nearly every
//! call is decided here and at once. What is not used soon is returned. This file knows no connection: it says what is to
//! be asked for, and hears what was granted.

use super::gcra::nanos;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// How long units may lie here unused: until then other processes cannot have them.
pub(super) const KEPT: Duration = Duration::from_secs(1);
/// How long it is believed that nothing is to be had: a caller who does not stop costs ten questions a second.
const DRY: Duration = Duration::from_millis(100);

/// One key's units, and what is known of its quota.
#[derive(Debug)]
pub(super) struct Lease {
    /// What the quota is kept under.
    pub(super) key: Box<str>,
    state: Mutex<State>,
    /// Told when a draw was answered, or has failed.
    pub(super) answered: Notify,
}

#[derive(Debug, Default)]
struct State {
    units: u64,
    /// Until when they may be used.
    expires: u64,
    /// The theoretical arrival time of the whole quota, in this process's nanoseconds.
    tat: u64,
    /// Which incarnation of the key that is of; see [`redis`](super::redis).
    born: u64,
    /// Used since the last draw: what the next one is sized by.
    used: u64,
    drawing: bool,
    dry: Dry,
    /// Used without having been drawn: told with the next draw.
    debt: u64,
}

/// What was last not to be had.
#[derive(Clone, Copy, Debug, Default)]
struct Dry {
    /// So many units, or more.
    units: u64,
    /// Until then, as was said.
    until: u64,
    /// It is not asked again before then: others may give something back meanwhile.
    asked_again: u64,
}

/// What came of taking units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// They were there. The whole quota's theoretical arrival time, and the units that are left here.
    Taken { tat: u64, left: u64 },
    /// They are not to be had for so long.
    Dry(Duration),
    /// Somebody has to ask.
    Ask,
}

/// What is to be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Draw {
    /// Units without which somebody waits; none where it is drawn ahead.
    pub(super) need: u64,
    /// Units that are welcome.
    pub(super) want: u64,
    /// Units that were used already.
    pub(super) debt: u64,
    /// Units that are given back, which were charged until `until`.
    pub(super) back: u64,
    pub(super) until: u64,
    /// What this process last knew of the theoretical arrival time, for a server that has forgotten it.
    pub(super) tat: u64,
    /// Which incarnation of the key that was known of.
    pub(super) seen: u64,
}

impl Lease {
    pub(super) fn new(key: Box<str>) -> Self {
        Self { key, state: Mutex::default(), answered: Notify::new() }
    }

    /// Takes `units`, and says what is to be asked for: because they are not there, or because little is left.
    ///
    /// `burst` bounds what is drawn ahead: one sixteenth of it.
    pub(super) fn take(&self, units: u64, burst: u64, now: u64) -> (Take, Option<Draw>) {
        let mut state = self.lock();
        let back = state.expire(now);
        let ahead = state.used.max(units).min(burst / 16);
        if state.units >= units {
            state.units -= units;
            state.used = state.used.saturating_add(units);
            let low = state.units < ahead / 2 && !state.drawing && now >= state.dry.asked_again;
            let draw = (low || back > 0).then(|| state.draw(0, if low { ahead } else { 0 }, back));
            return (Take::Taken { tat: state.tat, left: state.units }, draw);
        }
        if units >= state.dry.units && now < state.dry.asked_again {
            let draw = (back > 0).then(|| state.draw(0, 0, back));
            return (Take::Dry(Duration::from_nanos(state.dry.until - now)), draw);
        }
        let draw = (!state.drawing || back > 0).then(|| {
            let need = units - state.units;
            state.draw(need, need.max(ahead), back)
        });
        (Take::Ask, draw)
    }

    /// What is to be asked for so that `units` come back which were charged until `until`.
    pub(super) fn give_back(&self, units: u64, until: u64) -> Draw {
        let mut state = self.lock();
        state.dry = Dry::default();
        Draw { back: units, until, tat: state.tat, seen: state.born, ..Draw::default() }
    }

    /// Puts `units` back that nobody else is to hear of: they were taken a moment ago.
    pub(super) fn put_back(&self, units: u64) {
        let mut state = self.lock();
        state.units = state.units.saturating_add(units);
        state.used = state.used.saturating_sub(units);
    }

    /// `units` were used without having been drawn.
    pub(super) fn owe(&self, units: u64) {
        let mut state = self.lock();
        state.debt = state.debt.saturating_add(units);
    }

    /// `units` that were owed were not used after all.
    pub(super) fn forgive(&self, units: u64) {
        let mut state = self.lock();
        state.debt = state.debt.saturating_sub(units);
    }

    /// Returns what has lain here for too long.
    pub(super) fn tidy(&self, now: u64) -> Option<Draw> {
        let mut state = self.lock();
        let back = state.expire(now);
        (back > 0).then(|| state.draw(0, 0, back))
    }

    /// Returns all that lies here, and tells what is owed.
    pub(super) fn clear(&self) -> Option<Draw> {
        let mut state = self.lock();
        let back = std::mem::take(&mut state.units);
        (back > 0 || state.debt > 0).then(|| state.draw(0, 0, back))
    }

    /// A draw was answered: `granted` units, with the theoretical arrival time that it left, and how long until what was
    /// needed is there, if it was not.
    pub(super) fn granted(&self, draw: Draw, granted: u64, ahead: Duration, wait: Duration, born: u64, now: u64) {
        let mut state = self.lock();
        if draw.draws() {
            state.drawing = false;
            state.used = 0;
        }
        (state.tat, state.born) = (now.saturating_add(nanos(ahead)), born);
        if granted > 0 {
            state.units = state.units.saturating_add(granted);
            state.expires = now.saturating_add(nanos(KEPT));
            state.dry = Dry::default();
        } else if draw.need > 0 {
            let until = now.saturating_add(nanos(wait).max(1));
            state.dry = Dry { units: draw.need, until, asked_again: until.min(now.saturating_add(nanos(DRY))) };
        }
        drop(state);
        self.answered.notify_waiters();
    }

    /// A draw was not answered. It may have been granted all the same: then those units are lost, not had twice.
    pub(super) fn failed(&self, draw: Draw) {
        let mut state = self.lock();
        if draw.draws() {
            state.drawing = false;
        }
        state.debt = state.debt.saturating_add(draw.debt);
        drop(state);
        self.answered.notify_waiters();
    }

    /// The whole quota's theoretical arrival time, as far as it is known, and the units that are left here.
    pub(super) fn left(&self) -> (u64, u64) {
        let state = self.lock();
        (state.tat, state.units)
    }

    /// Whether a draw is on its way.
    pub(super) fn is_drawing(&self) -> bool {
        self.lock().drawing
    }

    /// From when on forgetting it loses nothing.
    pub(super) fn idle_from(&self) -> u64 {
        let state = self.lock();
        if state.debt > 0 || state.units > 0 || state.drawing { u64::MAX } else { state.tat }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers only, each of them right by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out what has lain here for too long.
    fn expire(&mut self, now: u64) -> u64 {
        if self.units > 0 && now >= self.expires { std::mem::take(&mut self.units) } else { 0 }
    }

    fn draw(&mut self, need: u64, want: u64, back: u64) -> Draw {
        self.drawing |= need > 0 || want > 0;
        let debt = std::mem::take(&mut self.debt);
        Draw { need, want, debt, back, until: self.tat, tat: self.tat, seen: self.born }
    }
}

impl Draw {
    /// Whether it asks for units, and does not only tell.
    const fn draws(self) -> bool {
        self.need > 0 || self.want > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn lease() -> Lease {
        Lease::new("k".into())
    }

    fn grant(lease: &Lease, draw: Draw, units: u64, now: u64) {
        lease.granted(draw, units, Duration::from_secs(9), Duration::from_secs(3), 1, now);
    }

    #[test]
    fn what_is_not_there_is_asked_for_once_and_then_decided_here() {
        let lease = lease();
        let (take, draw) = lease.take(1, 160, 0);
        assert_eq!(take, Take::Ask);
        assert_eq!(lease.take(1, 160, 0), (Take::Ask, None), "it is on its way");
        grant(&lease, draw.unwrap(), 4, 0);
        for left in [3, 2, 1, 0] {
            let (take, _) = lease.take(1, 160, 0);
            assert_eq!(take, Take::Taken { tat: 9 * SECOND, left });
        }
    }

    #[test]
    fn what_is_not_to_be_had_is_refused_without_asking_and_less_is_asked_for() {
        let lease = lease();
        let (_, draw) = lease.take(5, 160, 0);
        grant(&lease, draw.unwrap(), 0, 0);
        assert_eq!(lease.take(5, 160, SECOND / 20), (Take::Dry(Duration::from_millis(2950)), None));
        assert!(matches!(lease.take(1, 160, SECOND / 20), (Take::Ask, Some(_))));
        assert_eq!(lease.take(5, 160, SECOND / 5), (Take::Ask, None), "and less is on its way already");
    }

    #[test]
    fn what_is_cleared_is_returned_at_once_with_what_is_owed() {
        let lease = lease();
        let (_, draw) = lease.take(1, 160, 0);
        grant(&lease, draw.unwrap(), 4, 0);
        lease.owe(7);
        let told = lease.clear().unwrap();
        assert_eq!((told.back, told.debt, told.draws()), (4, 7, false));
        assert_eq!((lease.left().1, lease.clear()), (0, None));
    }

    #[test]
    fn what_lies_unused_is_returned_and_cannot_be_used() {
        let lease = lease();
        let (_, draw) = lease.take(1, 160, 0);
        grant(&lease, draw.unwrap(), 4, 0);
        assert_eq!(lease.tidy(SECOND / 2), None);
        assert_eq!(lease.idle_from(), u64::MAX);
        let back = lease.tidy(SECOND).unwrap();
        assert_eq!((back.back, back.until, back.draws()), (4, 9 * SECOND, false));
        assert_eq!(lease.take(1, 160, SECOND).0, Take::Ask);
    }

    #[test]
    fn what_was_used_without_asking_is_told_once_and_again_if_nobody_heard() {
        let lease = lease();
        lease.owe(7);
        lease.forgive(2);
        let (_, draw) = lease.take(1, 160, 0);
        let draw = draw.unwrap();
        assert_eq!(draw.debt, 5);
        lease.failed(draw);
        let (_, draw) = lease.take(1, 160, 0);
        assert_eq!(draw.unwrap().debt, 5);
    }

    #[test]
    fn the_more_is_used_the_more_is_drawn_ahead_up_to_a_sixteenth_of_the_burst() {
        let lease = lease();
        let (_, draw) = lease.take(1, 1600, 0);
        grant(&lease, draw.unwrap(), 150, 0);
        let wants: Vec<u64> = (0..150).filter_map(|_| lease.take(1, 1600, 0).1).map(|draw| draw.want).collect();
        assert_eq!(wants.len(), 1, "one at a time");
        assert!(wants[0] > 50 && wants[0] <= 100, "{wants:?}");
    }
}

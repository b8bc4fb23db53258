//! Slots of a number that several processes share: what this process has leased, and how many of them are taken.
//!
//! A lease says how many slots this process may hand out until it expires. It is asked for with all that it is to be, not
//! with a difference, so an answer that is lost, or a question that is put twice, hands nothing out twice. This file knows
//! no connection and no clock: it says what is to be asked for, and hears what was granted. Times are nanoseconds since
//! the start of the process.

use super::{gcra::nanos, table::Entry};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// How long slots may lie here unused: until then other processes cannot have them.
const KEPT: Duration = Duration::from_millis(500);
/// How long it is believed that no more are to be had: a caller who does not stop costs ten questions a second.
const FULL: Duration = Duration::from_millis(100);
/// Of so many slots one is leased ahead of need.
const AHEAD: u32 = 16;

/// What is known of one identity's slots.
#[derive(Debug, Default)]
pub(super) struct SlotLease {
    state: Mutex<State>,
    /// Told when a request was answered, or has failed.
    pub(super) answered: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Slots that may be in use at once, until `expires`.
    leased: u32,
    expires: u64,
    /// Slots that the server counts for this process until then: those, or as many as were in use.
    told: u32,
    /// The connection over which they were granted; see [`Request::epoch`].
    epoch: u64,
    /// Slots in use, with those that the fall-back gave.
    taken: u32,
    /// Calls that wait for a slot.
    waiting: u32,
    /// The most that were taken since `since`.
    peak: u32,
    since: u64,
    asking: bool,
    /// When it was last asked, and with which number.
    asked: u64,
    number: u64,
    /// No more are to be had before then.
    full: u64,
}

/// What came of taking a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    Taken,
    /// None is to be had, as was said a moment ago.
    Full,
    /// Somebody has to ask.
    Ask,
}

/// What a lease is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Slots in use: they count, whether there is room for them or not.
    pub(super) held: u32,
    /// Slots in all.
    pub(super) want: u32,
    /// When it was made.
    pub(super) at: u64,
    /// Later ones have a higher number, those of a later lease of the same process too: microseconds since start.
    pub(super) number: u64,
    /// The connection that was there when it was made. What was granted over an earlier one is not relied on: the server
    /// may have come back without its data.
    pub(super) epoch: u64,
}

/// A call that waits for a slot.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a SlotLease);

impl SlotLease {
    /// Takes a slot of `limit`, and says what is to be asked for: because none is free, or because few are left.
    pub(super) fn take(&self, limit: u32, now: u64, epoch: u64) -> (Take, Option<Request>) {
        let mut state = self.lock();
        state.expire(now, epoch);
        let ahead = state.ahead(limit);
        if state.taken < state.leased {
            state.take();
            let low = state.leased - state.taken < ahead.div_ceil(2) && state.leased < limit;
            let want = (state.taken + ahead).min(limit);
            let request = (low && !state.asking && now >= state.full).then(|| state.request(want, now, epoch));
            return (Take::Taken, request);
        }
        if state.taken >= limit || now < state.full {
            return (Take::Full, None);
        }
        let want = state.taken.saturating_add(state.waiting.max(1)).saturating_add(ahead).min(limit);
        (Take::Ask, (!state.asking).then(|| state.request(want, now, epoch)))
    }

    /// Takes a slot without asking if fewer than `most` are taken.
    pub(super) fn take_unasked(&self, most: u32) -> bool {
        let mut state = self.lock();
        let free = state.taken < most;
        if free {
            state.take();
        }
        free
    }

    /// Gives one slot back.
    pub(super) fn give_back(&self) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(1);
    }

    /// Counts a call that waits, so that one question asks for all of them.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.lock().waiting += 1;
        Waiting(self)
    }

    /// What is to be told now: that the lease is still needed, that some of it is not, or that more is in use.
    /// `grows`: leases may be kept as they are; otherwise only what is in use is told.
    pub(super) fn tend(&self, limit: u32, ttl: Duration, now: u64, epoch: u64, grows: bool) -> Option<Request> {
        let mut state = self.lock();
        state.expire(now, epoch);
        if state.asking || (state.told == 0 && state.taken == 0) {
            return None;
        }
        let mut want = if grows { state.leased.max(state.taken) } else { state.taken };
        if now.saturating_sub(state.since) >= nanos(KEPT) {
            let used = state.peak.saturating_add(state.peak.min(limit / AHEAD));
            want = want.min(used).max(state.taken);
            (state.peak, state.since) = (state.taken, now);
        }
        let due = now.saturating_sub(state.asked) >= nanos(ttl) / 3;
        (due || want != state.told || epoch != state.epoch).then(|| state.request(want, now, epoch))
    }

    /// A request was answered: the lease is of `granted` slots, for `ttl` since it was asked for. More may be in use: they
    /// count, and nothing is handed out before enough of them have ended.
    pub(super) fn granted(&self, request: Request, granted: u32, ttl: Duration, now: u64) {
        let mut state = self.lock();
        state.asking = false;
        (state.leased, state.told, state.epoch) = (granted, granted.max(request.held), request.epoch);
        // The server counts from when it heard, which is later.
        state.expires = request.at.saturating_add(nanos(ttl));
        state.full = if granted < request.want { now.saturating_add(nanos(FULL)) } else { 0 };
        drop(state);
        self.answered.notify_waiters();
    }

    /// A request was not answered. If it was heard all the same, more is kept for this process than it knows, until the
    /// next request or until that expires.
    pub(super) fn failed(&self) {
        self.lock().asking = false;
        self.answered.notify_waiters();
    }

    /// Whether a request is on its way.
    pub(super) fn is_asking(&self) -> bool {
        self.lock().asking
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers only, each of them right by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry for SlotLease {
    fn idle_from(&self) -> u64 {
        let state = self.lock();
        if state.told > 0 || state.taken > 0 || state.asking { u64::MAX } else { state.full }
    }
}

impl State {
    /// Forgets a lease that is over. What is taken stays taken: it is told with the next request.
    fn expire(&mut self, now: u64, epoch: u64) {
        if now >= self.expires {
            (self.leased, self.told) = (0, 0);
        }
        if epoch != self.epoch {
            self.leased = 0;
        }
    }

    fn take(&mut self) {
        self.taken += 1;
        self.peak = self.peak.max(self.taken);
    }

    /// Slots that are leased ahead of need: as many as are in use, up to a part of all.
    fn ahead(&self, limit: u32) -> u32 {
        self.taken.min(limit / AHEAD)
    }

    fn request(&mut self, want: u32, now: u64, epoch: u64) -> Request {
        self.asking = true;
        (self.asked, self.number) = (now, (now / 1000).max(self.number + 1));
        let want = want.max(self.taken);
        // Less counts from now on, more once it is granted.
        self.leased = self.leased.min(want);
        Request { held: self.taken, want, at: now, number: self.number, epoch }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[cfg(test)]
#[path = "slot_lease_tests.rs"]
mod tests;

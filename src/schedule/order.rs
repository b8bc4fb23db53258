//! Answers in the order in which their jobs were taken (`batching.preserve_order`), whichever instance is done first.
//!
//! An answer that is early is kept until those before it are given. Nobody waits for that: the instance goes on with its
//! next batch, and whoever gives the answer that was missing gives those after it too. Bounded by the calls in flight: each
//! answer that is kept has a caller, whose deadline does not depend on it.

use super::{Answer, job::Hearer};
use crate::error::Error;
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

type Result = std::result::Result<Answer, Error>;

/// Where answers wait for those before them.
#[derive(Debug, Default)]
pub(super) struct Order(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Places so far.
    taken: u64,
    /// The place whose answer is given next; `kept` begins with it.
    next: u64,
    kept: VecDeque<Kept>,
    /// Somebody gives answers now, and will give what is added.
    is_giving: bool,
}

/// What has become of a place.
#[derive(Debug, Default)]
enum Kept {
    /// Its job runs.
    #[default]
    Missing,
    /// Nobody waits for its answer, or there was none.
    Nothing,
    Answer(Hearer, Box<Result>),
}

/// A place in the order. Dropping it gives the place up.
#[derive(Debug)]
pub struct Place {
    order: Arc<Order>,
    number: u64,
}

/// Says that nobody gives answers any more, a waker's panic included.
struct Giving<'a>(&'a Order);

// === impl Order ===

impl Order {
    /// The place behind all that were taken.
    pub(super) fn place(self: &Arc<Self>) -> Place {
        let mut state = self.lock();
        state.kept.push_back(Kept::Missing);
        state.taken += 1;
        Place { order: Arc::clone(self), number: state.taken - 1 }
    }

    fn settle(&self, number: u64, kept: Kept) {
        let mut state = self.lock();
        match state.kept_at(number) {
            Some(place) => *place = kept,
            None => {
                drop(state);
                return kept.give();
            }
        }
        self.give(state);
    }

    /// Gives the answers that wait for none before them.
    fn give<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if mem::replace(&mut state.is_giving, true) {
            return;
        }
        let giving = Giving(self);
        while !matches!(state.kept.front(), None | Some(Kept::Missing)) {
            let kept = state.kept.pop_front();
            state.next += 1;
            // Not under the lock: an answer wakes its caller, and that may be any code.
            drop(state);
            if let Some(kept) = kept {
                kept.give();
            }
            state = self.lock();
        }
        // Under the lock: what is added from now on finds nobody who gives it.
        state.is_giving = false;
        drop(state);
        mem::forget(giving);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// What has become of a place, unless those behind it may be given already.
    fn kept_at(&mut self, number: u64) -> Option<&mut Kept> {
        let index = usize::try_from(number.checked_sub(self.next)?).ok()?;
        self.kept.get_mut(index)
    }
}

// === impl Kept ===

impl Kept {
    fn give(self) {
        if let Self::Answer(hearer, answer) = self {
            hearer.hear(*answer);
        }
    }
}

// === impl Place ===

impl Place {
    /// Answers once all before it are answered.
    pub(super) fn answer(self, hearer: Hearer, answer: Result) {
        // For a caller that has gone it need not be kept in memory.
        let kept = if hearer.is_gone() { Kept::Nothing } else { Kept::Answer(hearer, Box::new(answer)) };
        self.order.settle(self.number, kept);
        // Dropping it finds the place settled: its number is below the next, or what is kept there is no longer missing.
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let is_missing = matches!(self.order.lock().kept_at(self.number), Some(Kept::Missing));
        if is_missing {
            self.order.settle(self.number, Kept::Nothing);
        }
    }
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        self.0.lock().is_giving = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Timing;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    fn answer() -> Result {
        Ok(Answer { outputs: Vec::new(), timing: Timing { queue: Duration::ZERO, compute: Duration::ZERO } })
    }

    #[test]
    fn an_early_answer_waits_for_those_before_it() {
        let order = Arc::new(Order::default());
        let (places, callers): (Vec<_>, Vec<_>) = (0..3).map(|_| (order.place(), oneshot::channel())).unzip();
        let (senders, mut receivers): (Vec<_>, Vec<_>) = callers.into_iter().unzip();
        let mut jobs: Vec<_> = places.into_iter().zip(senders).map(Some).collect();
        let mut give = |index: usize| {
            let (place, sender) = jobs[index].take().unwrap();
            place.answer(sender.into(), answer());
        };
        give(2);
        give(1);
        assert!(receivers[1].try_recv().is_err() && receivers[2].try_recv().is_err());
        give(0);
        assert!(receivers.iter_mut().all(|receiver| receiver.try_recv().is_ok()));
        assert!(order.lock().kept.is_empty());
    }

    #[test]
    fn a_place_that_is_given_up_holds_nobody_back() {
        let order = Arc::new(Order::default());
        let (first, second) = (order.place(), order.place());
        let (sender, mut receiver) = oneshot::channel();
        second.answer(sender.into(), answer());
        assert!(receiver.try_recv().is_err());
        drop(first);
        assert!(receiver.try_recv().is_ok());
    }

    proptest! {
        #[test]
        fn every_answer_is_given_once_and_none_before_an_earlier_one(
            order_of_ends in Just((0..12_usize).collect::<Vec<_>>()).prop_shuffle(),
            given_up in prop::collection::vec(any::<bool>(), 12),
            gone in prop::collection::vec(any::<bool>(), 12),
        ) {
            let order = Arc::new(Order::default());
            let mut jobs = Vec::new();
            let mut receivers = Vec::new();
            for gone in gone {
                let (sender, receiver) = oneshot::channel();
                jobs.push(Some((order.place(), sender)));
                receivers.push((!gone).then_some(receiver));
            }
            let mut over = [false; 12];
            for index in order_of_ends {
                let (place, sender) = jobs[index].take().unwrap();
                if given_up[index] { drop((place, sender)) } else { place.answer(sender.into(), answer()) }
                over[index] = true;
                let given = over.iter().take_while(|over| **over).count();
                for (at, receiver) in receivers.iter_mut().enumerate() {
                    let Some(waiting) = receiver else { continue };
                    match waiting.try_recv() {
                        Ok(_) => {
                            prop_assert!(at < given);
                            *receiver = None;
                        }
                        Err(oneshot::error::TryRecvError::Closed) => prop_assert!(over[at] && given_up[at]),
                        Err(oneshot::error::TryRecvError::Empty) => prop_assert!(at >= given),
                    }
                }
            }
            prop_assert!(order.lock().kept.is_empty());
        }
    }
}

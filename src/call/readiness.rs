//! One readiness value for every probe of every protocol.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};
use tokio::sync::watch;

/// Whether the server is live and takes work. Cloning shares the value.
///
/// Probes read it outside the stack (architecture section 3, invariant 3). It starts as loading.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: AtomicU8,
    /// Carries nothing: whoever hears of a change asks again.
    changes: watch::Sender<()>,
    /// Required models that are not there though all that is there was loaded.
    missing: Mutex<Vec<Arc<str>>>,
}

const LOADED: u8 = 1;
const DRAINING: u8 = 2;
const BROKEN: u8 = 4;
/// An event loop does not turn, and has not for so long that the process is better started anew.
const STALLED: u8 = 8;
const DEAD: u8 = 16;

/// How event loops turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turning {
    /// All of them do.
    Fine,
    /// One does not, and its connections are not answered.
    Stalled,
    /// One has not for very long.
    Dead,
}

impl Readiness {
    /// True once models are loaded and until draining starts (contract 01 section 1).
    pub fn is_ready(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == LOADED
    }

    /// False after an unrecoverable fault, and while an event loop has not turned for very long.
    pub fn is_live(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & (BROKEN | DEAD) == 0
    }

    /// Why [`Readiness::is_ready`] is false, for people.
    pub fn reason(&self) -> &'static str {
        match self.0.state.load(Ordering::Acquire) {
            state if state & BROKEN != 0 => "the server is broken",
            state if state & DRAINING != 0 => "the server is draining",
            state if state & STALLED != 0 => "the server is stalled: a lane does not turn",
            LOADED => "the server is ready",
            _ => "models are loading",
        }
    }

    /// The same for operators, who may know the names of models.
    pub fn reason_in_full(&self) -> Cow<'static, str> {
        let missing = self.0.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.state.load(Ordering::Acquire) != 0 || missing.is_empty() {
            return self.reason().into();
        }
        format!("required models are not loaded: {}", missing.join(", ")).into()
    }

    /// Names the models that are waited for though what there was has been loaded.
    pub fn set_missing(&self, names: Vec<Arc<str>>) {
        *self.0.missing.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Says whether everything that readiness waits for is loaded.
    pub fn set_loaded(&self, loaded: bool) {
        if loaded {
            self.0.state.fetch_or(LOADED, Ordering::AcqRel);
        } else {
            self.0.state.fetch_and(!LOADED, Ordering::AcqRel);
        }
        self.changed();
    }

    /// Says that draining has begun. There is no way back.
    pub fn set_draining(&self) {
        self.0.state.fetch_or(DRAINING, Ordering::AcqRel);
        self.changed();
    }

    /// True once draining has begun.
    pub fn is_draining(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & DRAINING != 0
    }

    /// Says that the server cannot recover. There is no way back.
    pub fn set_broken(&self) {
        self.0.state.fetch_or(BROKEN, Ordering::AcqRel);
        self.changed();
    }

    /// Says how event loops turn; they may turn again.
    pub fn set_turning(&self, turning: Turning) {
        let now = match turning {
            Turning::Fine => 0,
            Turning::Stalled => STALLED,
            Turning::Dead => STALLED | DEAD,
        };
        let before = self.0.state.load(Ordering::Acquire) & (STALLED | DEAD);
        if now != before {
            // There is one who says so.
            self.0.state.fetch_or(now, Ordering::AcqRel);
            self.0.state.fetch_and(!((STALLED | DEAD) & !now), Ordering::AcqRel);
            self.changed();
        }
    }

    /// Says that something about readiness has changed: this value, or a model.
    pub fn changed(&self) {
        self.0.changes.send_replace(());
    }

    /// Hears of every change from now on; of several at once, once.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_hears_of_each_change() {
        let readiness = Readiness::default();
        let mut changes = readiness.changes();
        for change in [|it: &Readiness| it.set_loaded(true), Readiness::changed, Readiness::set_draining] {
            assert!(!changes.has_changed().unwrap());
            change(&readiness);
            assert!(changes.has_changed().unwrap());
            changes.mark_unchanged();
        }
    }

    #[test]
    fn what_is_waited_for_is_named_to_operators_alone() {
        let readiness = Readiness::default();
        assert_eq!(readiness.reason_in_full(), "models are loading");
        readiness.set_missing(vec!["a".into(), "b".into()]);
        assert_eq!(readiness.reason_in_full(), "required models are not loaded: a, b");
        assert_eq!(readiness.reason(), "models are loading", "anybody may ask for this one");
        readiness.set_draining();
        assert_eq!(readiness.reason_in_full(), "the server is draining");
    }

    #[test]
    fn a_lane_that_stands_still_ends_readiness_and_later_life_until_it_turns_again() {
        let readiness = Readiness::default();
        readiness.set_loaded(true);
        let mut changes = readiness.changes();
        readiness.set_turning(Turning::Fine);
        assert!(!changes.has_changed().unwrap());
        for (turning, ready, live) in
            [(Turning::Stalled, false, true), (Turning::Dead, false, false), (Turning::Fine, true, true)]
        {
            readiness.set_turning(turning);
            assert_eq!((readiness.is_ready(), readiness.is_live()), (ready, live), "{turning:?}");
            assert!(changes.has_changed().unwrap());
            changes.mark_unchanged();
        }
    }

    #[test]
    fn draining_ends_readiness_and_not_life() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready());
        readiness.set_loaded(true);
        assert!(readiness.is_ready());
        readiness.set_draining();
        assert!(!readiness.is_ready() && readiness.is_live());
        readiness.set_broken();
        assert!(!readiness.is_live());
    }
}

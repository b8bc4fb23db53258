//! Answers that are kept for those who ask the same (`cache` in `model.yaml`).
//!
//! Each version that is loaded has a cache of its own, which goes with it: what another version answered, or the same one
//! before it was loaded again, is not there to be found. A call comes here once it is checked and completed, behind every
//! layer, so one that is answered from here is admitted, charged and authorised like any other. What is kept are the model's
//! outputs as it yields them; which of them are wanted, and in what form, is decided for each call.
//!
//! `question` says which calls are the same, `kept` holds the answers, `flight` lets equal calls that come together share one
//! run, `ask` is a call's way through. One lock guards the maps of a version; nothing is copied, hashed, compared or freed
//! under it, and nobody waits with it.

mod ask;
mod flight;
mod kept;
mod question;

pub(super) use ask::{Asked, Found};

use crate::{call::NamedTensor, telemetry::metrics::CacheMetrics};
use flight::{Claim, Flights, Joined, Lead, Ticket};
use kept::{Entry, Gone, Kept};
use question::{Hash, Hashing, Question};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How a model keeps answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Most bytes of inputs and outputs that are kept, and of what it takes to keep them. A version's own.
    pub memory: usize,
    /// How long an answer is given after the run that made it.
    pub age: Duration,
    /// Among whom answers are shared.
    pub scope: CacheScope,
}

/// Among whom answers are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheScope {
    /// The calls of one identity. How fast a call is answered tells nobody what others asked.
    #[default]
    Identity,
    /// All who may call the model.
    Model,
}

/// What one version of a model has answered.
pub(super) struct Cache {
    settings: CacheSettings,
    hashing: Hashing,
    metrics: CacheMetrics,
    state: Mutex<State>,
}

struct State {
    kept: Kept,
    flights: Flights,
}

/// What there is for a call.
#[derive(Debug)]
enum Entered {
    /// The answer.
    Kept(Arc<Entry>),
    /// The answer of another call's run, soon.
    Coming(Ticket),
    /// Nothing: it is to run.
    Lead(Lead),
}

// === impl Cache ===

impl Cache {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// For operators, in plain words: the system has no randomness to give.
    pub(super) fn new(settings: CacheSettings, metrics: CacheMetrics) -> Result<Arc<Self>, String> {
        let hashing = Hashing::keyed().ok_or("the system gives no random numbers for the key of its cache")?;
        Ok(Self::hashed(settings, metrics, hashing))
    }

    fn hashed(settings: CacheSettings, metrics: CacheMetrics, hashing: Hashing) -> Arc<Self> {
        let kept = Kept::new(settings.memory, settings.age);
        let state = Mutex::new(State { kept, flights: Flights::default() });
        Arc::new(Self { settings, hashing, metrics, state })
    }

    /// Lets go of what is too old. To be called every now and then.
    pub(super) fn tend(&self, now: Instant) {
        let mut state = self.state();
        let before = state.kept.bytes();
        state.kept.sweep(now);
        let gone = self.tell(&mut state, before);
        drop(state);
        drop(gone);
    }

    /// Looks for an answer: hashes, compares, and blocks for as long as that takes.
    fn enter(self: &Arc<Self>, question: Question, claim: Claim) -> Entered {
        let hash = self.hashing.hash(&question);
        let mut state = self.state();
        let before = state.kept.bytes();
        if let Some(entry) = state.kept.get(&hash, Instant::now()) {
            drop(state);
            return if entry.question == question { Entered::Kept(entry) } else { self.apart(question, claim) };
        }
        let gone = self.tell(&mut state, before);
        let joined = match state.flights.join(self, hash, claim) {
            Joined::Not => Err(state.flights.begin(self, Some(hash), question, claim)),
            joined => Ok((joined, question)),
        };
        drop(state);
        drop(gone);
        match joined {
            Err(lead) => Entered::Lead(lead),
            Ok((Joined::Here(ticket, theirs), question)) if *theirs == question => Entered::Coming(ticket),
            // What place it may have taken is given back.
            Ok((_, question)) => self.apart(question, claim),
        }
    }

    /// Has a call run by itself.
    fn apart(self: &Arc<Self>, question: Question, claim: Claim) -> Entered {
        Entered::Lead(self.state().flights.begin(self, None, question, claim))
    }

    /// What is kept of an answer: in memory of its own, so that it counts as what it holds. `None` if it is too large.
    fn entry(&self, hash: Hash, question: &Question, outputs: &[NamedTensor]) -> Option<(Hash, Arc<Entry>)> {
        if kept::size(question, outputs) > self.settings.memory {
            return None;
        }
        let output = |NamedTensor { name, tensor }: &NamedTensor| NamedTensor {
            name: Arc::clone(name),
            tensor: question::compact(tensor),
        };
        let outputs = outputs.iter().map(output).collect();
        Some((hash, Arc::new(Entry { question: question.compact(), outputs, made: Instant::now() })))
    }

    fn keep(&self, state: &mut State, hash: Hash, entry: Arc<Entry>) -> Gone {
        let (before, now) = (state.kept.bytes(), entry.made);
        state.kept.put(hash, entry, now);
        self.tell(state, before)
    }

    /// Counts what has become of entries since there were `before` bytes. What went is the caller's to drop, without the
    /// lock.
    fn tell(&self, state: &mut State, before: usize) -> Gone {
        let gone = state.kept.take_gone();
        self.metrics.changed(before, state.kept.bytes(), gone.aged, gone.squeezed);
        gone
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let before = self.state().kept.bytes();
        self.metrics.changed(before, 0, 0, 0);
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is kept: it is callers' private data.
        f.debug_struct("Cache").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

//! One run for all equal calls that come while it is under way (single flight).
//!
//! One of them leads: the job is its own, with its deadline and its place in the queue. All of them, the leader too, wait
//! for what becomes of it. Whoever leaves is taken off the list; only when the last one has left is the run ended. If the
//! job comes to nothing for a reason that is the leader's alone, because it was late or there was no room for it, the leader
//! hears so and the one with most time left, of those of the highest priority, leads from there on, with a job of its own.
//!
//! Nothing here waits. How many wait together is bounded by the calls in flight: each is one that was admitted.

use super::{
    Cache,
    question::{Hash, Question},
};
use crate::{
    call::Facts,
    error::{Error, Stage},
    schedule::{Answer, Audience},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::sync::oneshot;

/// What a call that waits brings, besides what it asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// Its level of priority, 1 first.
    pub(super) level: u32,
    pub(super) deadline: Instant,
}

/// What came of looking for a flight.
#[derive(Debug)]
pub(super) enum Joined {
    /// There is none.
    Not,
    /// There is one whose job stands behind where this call may stand.
    Behind,
    /// A place in it, and what it asks: the hash says no more than that it may be the same.
    Here(Ticket, Arc<Question>),
}

/// What is told to one that waits.
#[derive(Debug)]
pub(super) enum Told {
    Answer(Result<Answer, Error>),
    /// It is the one that leads now.
    Lead(Lead),
}

/// What a flight is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// Those who ask the same find it.
    Shared(Hash),
    /// Nobody finds it, and its answer is not kept: another question has the same hash, or there was nobody to make one.
    Own(u64),
}

/// All flights of a cache.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: HashMap<Name, Flight>,
    /// Numbers of flights and of those who wait, so that nobody is taken for another.
    next: u64,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    question: Arc<Question>,
    /// The level of priority of whoever leads: that of the best of all.
    level: u32,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiter>,
    /// The job that is under way; `None`: somebody has been told to lead and is about to.
    job: Option<Job>,
}

#[derive(Debug)]
struct Waiter {
    claim: Claim,
    sender: oneshot::Sender<Told>,
}

#[derive(Debug)]
struct Job {
    /// Of the call that leads: they end its run.
    facts: Arc<Facts>,
    gone: Arc<AtomicBool>,
}

/// The right and the duty to have the model run for a flight. Dropping it hands it on.
#[derive(Debug)]
pub(super) struct Lead {
    place: Place,
    question: Arc<Question>,
    is_over: bool,
}

/// A place among those who wait. Dropping it is leaving.
#[derive(Debug)]
pub(super) struct Ticket {
    place: Place,
    waiter: u64,
    receiver: oneshot::Receiver<Told>,
    is_over: bool,
}

/// A flight of a cache.
#[derive(Clone, Debug)]
struct Place {
    cache: Arc<Cache>,
    name: Name,
    number: u64,
}

/// All who wait, to the scheduler.
struct All {
    place: Place,
    leader: u64,
    /// There until it is heard what becomes of it.
    question: Option<Arc<Question>>,
    gone: Arc<AtomicBool>,
}

/// Whether an error says something about the call that led, and nothing about what it asked.
fn is_the_leaders(error: &Error) -> bool {
    match error {
        Error::DeadlineExceeded { stage } => *stage <= Stage::Queued,
        Error::Overloaded { .. } | Error::Cancelled => true,
        _ => false,
    }
}

/// What is left of an answer that was given away.
const NOBODY: Result<Answer, Error> = Err(Error::Cancelled);

/// The same answer, whose outputs are shared and not copied.
fn again(answer: &Result<Answer, Error>) -> Result<Answer, Error> {
    let answer = answer.as_ref().map_err(Clone::clone)?;
    Ok(Answer { outputs: answer.outputs.clone(), timing: answer.timing })
}

// === impl Flights ===

impl Flights {
    /// A place in the flight under `hash`, if there is one.
    pub(super) fn join(&mut self, cache: &Arc<Cache>, hash: Hash, claim: Claim) -> Joined {
        let name = Name::Shared(hash);
        let Some(flight) = self.flights.get(&name) else { return Joined::Not };
        if claim.level < flight.level {
            return Joined::Behind;
        }
        let (number, question) = (flight.number, Arc::clone(&flight.question));
        let ticket = self.wait(Place { cache: Arc::clone(cache), name, number }, claim);
        ticket.map_or(Joined::Not, |ticket| Joined::Here(ticket, question))
    }

    /// A new flight. Without a hash nobody else finds it.
    pub(super) fn begin(&mut self, cache: &Arc<Cache>, hash: Option<Hash>, question: Question, claim: Claim) -> Lead {
        let number = self.number();
        let name = hash.map_or(Name::Own(number), Name::Shared);
        let question = Arc::new(question);
        let (level, waiting) = (claim.level, BTreeMap::new());
        let flight = Flight { number, question: Arc::clone(&question), level, waiting, job: None };
        self.flights.insert(name, flight);
        Lead { place: Place { cache: Arc::clone(cache), name, number }, question, is_over: false }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn find(&mut self, place: &Place) -> Option<&mut Flight> {
        self.flights.get_mut(&place.name).filter(|flight| flight.number == place.number)
    }

    fn take(&mut self, place: &Place) -> Option<Flight> {
        self.find(place)?;
        self.flights.remove(&place.name)
    }

    fn wait(&mut self, place: Place, claim: Claim) -> Option<Ticket> {
        let (sender, receiver) = oneshot::channel();
        let waiter = self.number();
        self.find(&place)?.waiting.insert(waiter, Waiter { claim, sender });
        Some(Ticket { place, waiter, receiver, is_over: false })
    }

    /// Whoever is to lead next, taken off the list; the flight is over if there is nobody.
    fn next_leader(&mut self, place: &Place) -> Option<Waiter> {
        let flight = self.find(place)?;
        flight.job = None;
        // Each that leads and fails is taken off the list, so this comes to an end.
        let best = |(_, waiter): &(&u64, &Waiter)| (Reverse(waiter.claim.level), waiter.claim.deadline);
        let next = flight.waiting.iter().max_by_key(best).map(|(number, _)| *number);
        let next = next.and_then(|number| flight.waiting.remove(&number));
        match &next {
            Some(next) => flight.level = next.claim.level,
            None => drop(self.flights.remove(&place.name)),
        }
        next
    }

    /// How many there are, and how many wait in them.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.flights.len(), self.flights.values().map(|flight| flight.waiting.len()).sum())
    }
}

// === impl Place ===

impl Place {
    /// Has somebody else lead.
    fn hand_on(&self, question: Arc<Question>) {
        let next = self.cache.state().flights.next_leader(self);
        let Some(Waiter { sender, .. }) = next else { return };
        let lead = Lead { place: self.clone(), question, is_over: false };
        // Whoever has left meanwhile drops it, which hands it on again.
        drop(sender.send(Told::Lead(lead)));
    }
}

// === impl Lead ===

impl Lead {
    /// What the model is to run on.
    pub(super) fn question(&self) -> &Question {
        &self.question
    }

    /// Has the job of the call with these facts be the flight's: a place for that call, and all who wait as the one whom the
    /// job answers. Dropping the job unanswered hands the lead on.
    pub(super) fn take(mut self, facts: &Arc<Facts>, claim: Claim) -> Result<(Ticket, Box<dyn Audience>), Error> {
        let gone = Arc::new(AtomicBool::new(false));
        let mut state = self.place.cache.state();
        let ticket = state.flights.wait(self.place.clone(), claim);
        if let Some(flight) = state.flights.find(&self.place) {
            flight.job = Some(Job { facts: Arc::clone(facts), gone: Arc::clone(&gone) });
        }
        drop(state);
        // Nobody ends a flight whose lead is in somebody's hands.
        let ticket = ticket.ok_or_else(|| Error::internal("a flight ended before it began"))?;
        self.is_over = true;
        let (place, question) = (self.place.clone(), Arc::clone(&self.question));
        let all = All { place, leader: ticket.waiter, question: Some(question), gone };
        Ok((ticket, Box::new(all)))
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.is_over {
            self.place.hand_on(Arc::clone(&self.question));
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits for what becomes of the flight. `None`: its job was dropped without an answer while this call led.
    pub(super) async fn told(&mut self) -> Option<Told> {
        let told = (&mut self.receiver).await.ok();
        self.is_over = true;
        told
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.place.cache.state();
        let Some(flight) = state.flights.find(&self.place) else { return };
        flight.waiting.remove(&self.waiter);
        // Somebody who is about to lead is none of those on the list, and finds the flight there.
        let job = match &flight.job {
            Some(_) if flight.waiting.is_empty() => state.flights.take(&self.place).and_then(|flight| flight.job),
            _ => None,
        };
        drop(state);
        if let Some(Job { facts, gone }) = job {
            // First, so that the run that is ended finds nobody to answer.
            gone.store(true, Ordering::Release);
            facts.interrupt.fire();
        }
    }
}

// === impl All ===

impl All {
    /// Takes the leader off the list.
    fn leader(&self) -> Option<Waiter> {
        self.place.cache.state().flights.find(&self.place)?.waiting.remove(&self.leader)
    }
}

impl Audience for All {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn hear(mut self: Box<Self>, mut answer: Result<Answer, Error>) {
        let Some(question) = self.question.take() else { return };
        if let Err(error) = &answer
            && is_the_leaders(error)
        {
            if let Some(leader) = self.leader() {
                drop(leader.sender.send(Told::Answer(answer)));
            }
            return self.place.hand_on(question);
        }
        let cache = &self.place.cache;
        let entry = match (&answer, self.place.name) {
            (Ok(answer), Name::Shared(hash)) => cache.entry(hash, &question, &answer.outputs),
            _ => None,
        };
        // At once: who comes from now on finds the answer, and nobody between the two.
        let mut state = cache.state();
        let waiting = state.flights.take(&self.place).map(|flight| flight.waiting);
        let gone = entry.map(|(hash, entry)| cache.keep(&mut state, hash, entry));
        drop(state);
        drop(gone);
        // Before anybody hears, as a job lets go of its inputs.
        drop(question);
        let mut waiting = waiting.into_iter().flat_map(BTreeMap::into_values).peekable();
        while let Some(Waiter { sender, .. }) = waiting.next() {
            let answer = if waiting.peek().is_none() { std::mem::replace(&mut answer, NOBODY) } else { again(&answer) };
            // Who has left meanwhile does not want to know.
            drop(sender.send(Told::Answer(answer)));
        }
    }
}

impl Drop for All {
    fn drop(&mut self) {
        if let Some(question) = self.question.take() {
            // Its receiver hears that there is nothing to hear.
            drop(self.leader());
            self.place.hand_on(question);
        }
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;

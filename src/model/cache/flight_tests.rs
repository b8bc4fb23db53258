//! Who leads, who waits and who hears what, whatever happens in whatever order.

use super::*;
use crate::{
    call::{NamedTensor, Timing},
    model::cache::{
        Entered,
        question::Hashing,
        tests::{SETTINGS, cache},
    },
    schedule::testing as jobs,
};
use futures_util::FutureExt;
use proptest::prelude::*;
use std::time::Duration;

fn question(mark: f32) -> Question {
    Question { scope: None, inputs: [jobs::tensor(1, 4, mark)].into() }
}

fn claim(level: u32, seconds: u64) -> Claim {
    Claim { level, deadline: Instant::now() + Duration::from_secs(seconds) }
}

fn answer() -> Answer {
    let outputs = vec![NamedTensor { name: "y".into(), tensor: jobs::tensor(1, 4, 2.0) }];
    Answer { outputs, timing: Timing { queue: Duration::ZERO, compute: Duration::ZERO } }
}

fn begin(cache: &Arc<Cache>, claim: Claim) -> (Ticket, Box<dyn Audience>, Arc<Facts>) {
    let Entered::Lead(lead) = cache.enter(question(1.0), claim) else { panic!("there is a flight or an answer") };
    let facts = Arc::new(Facts::default());
    let (ticket, all) = lead.take(&facts, claim).unwrap();
    (ticket, all, facts)
}

fn join(cache: &Arc<Cache>, claim: Claim) -> Ticket {
    let Entered::Coming(ticket) = cache.enter(question(1.0), claim) else { panic!("there is no flight to join") };
    ticket
}

fn told(ticket: &mut Ticket) -> Option<Option<Told>> {
    ticket.told().now_or_never()
}

#[test]
fn who_is_refused_hands_on_to_the_one_with_most_time_left() {
    let cache = cache(SETTINGS, Hashing::Same);
    let (mut leader, all, _) = begin(&cache, claim(1, 1));
    let (mut short, mut long) = (join(&cache, claim(1, 2)), join(&cache, claim(1, 3)));
    // As a scheduler drops what it refuses.
    drop(all);
    assert!(matches!(told(&mut leader), Some(None)), "it has its refusal already");
    let Some(Some(Told::Lead(lead))) = told(&mut long) else { panic!("not told to lead") };
    assert!(told(&mut short).is_none());
    let (mut long, all) = lead.take(&Arc::default(), claim(1, 3)).unwrap();
    all.hear(Ok(answer()));
    for ticket in [&mut short, &mut long] {
        assert!(matches!(told(ticket), Some(Some(Told::Answer(Ok(_))))));
    }
}

#[test]
fn what_was_asked_is_gone_when_the_answer_is_heard() {
    let cache = cache(SETTINGS, Hashing::Same);
    let mut asked = question(1.0);
    let last = jobs::Last::of(&mut asked.inputs);
    let Entered::Lead(lead) = cache.enter(asked, claim(1, 1)) else { panic!("there is a flight or an answer") };
    let (mut leader, all) = lead.take(&Arc::default(), claim(1, 1)).unwrap();
    let mut told = Box::pin(leader.told());
    let (last, _) = last.hears(&mut told);
    all.hear(Ok(answer()));
    assert_eq!(last.were_there(), Some(false));
    assert!(matches!(told.now_or_never(), Some(Some(Told::Answer(Ok(_))))));
}

#[test]
fn who_may_go_first_does_not_wait_behind_others() {
    let cache = cache(SETTINGS, Hashing::Same);
    let (mut leader, all, _) = begin(&cache, claim(2, 1));
    let mut low = join(&cache, claim(3, 9));
    let mut same = join(&cache, claim(2, 1));
    let Entered::Lead(ahead) = cache.enter(question(1.0), claim(1, 1)) else { panic!("it waits behind others") };
    assert_eq!(cache.state().flights.count(), (2, 3));
    all.hear(Err(Error::Overloaded { limit: crate::error::Limit::Queue }));
    assert!(matches!(told(&mut leader), Some(Some(Told::Answer(Err(Error::Overloaded { .. }))))));
    assert!(matches!(told(&mut same), Some(Some(Told::Lead(_)))), "it ranks above who has more time");
    assert!(matches!(told(&mut low), Some(Some(Told::Lead(_)))), "the other has dropped it");
    drop(ahead);
    assert_eq!(cache.state().flights.count(), (0, 0));
}

#[test]
fn a_run_is_ended_when_the_last_one_leaves_and_not_before() {
    let cache = cache(SETTINGS, Hashing::Same);
    let (leader, all, facts) = begin(&cache, claim(1, 1));
    let stopped = Arc::new(AtomicBool::new(false));
    let stop: crate::call::Stop = {
        let stopped = Arc::clone(&stopped);
        Arc::new(move || stopped.store(true, Ordering::Release))
    };
    let _armed = facts.interrupt.arm(&stop).unwrap();
    let follower = join(&cache, claim(1, 1));
    drop(leader);
    assert!(!all.is_gone() && !stopped.load(Ordering::Acquire));
    drop(follower);
    assert!(all.is_gone() && stopped.load(Ordering::Acquire));
    // Who comes now has no part in it.
    let (_next, others, _) = begin(&cache, claim(1, 1));
    all.hear(Err(Error::Cancelled));
    assert!(!others.is_gone());
}

#[test]
fn an_answer_that_comes_after_all_have_left_is_kept() {
    let cache = cache(SETTINGS, Hashing::Same);
    let (leader, all, _) = begin(&cache, claim(1, 1));
    drop(leader);
    all.hear(Ok(answer()));
    assert!(matches!(cache.enter(question(1.0), claim(1, 1)), Entered::Kept(_)));
}

#[derive(Clone, Debug)]
enum Act {
    Enter(u32, u64),
    Leave(usize),
    Answer,
    Fail,
    Late,
    Refuse,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1_u32..3, 1_u64..5).prop_map(|(level, seconds)| Act::Enter(level, seconds)),
        3 => any::<usize>().prop_map(Act::Leave),
        1 => Just(Act::Fail),
        1 => Just(Act::Answer),
        2 => Just(Act::Late),
        2 => Just(Act::Refuse),
    ]
}

/// Calls that wait, and jobs that are under way: what a router and a scheduler would hold.
#[derive(Default)]
struct Calls {
    waiting: Vec<(Ticket, Claim)>,
    jobs: Vec<Box<dyn Audience>>,
    answered: usize,
    failed: usize,
}

impl Calls {
    /// Has everybody hear what there is to hear, and those lead who are to. How many were told to lead.
    fn settle(&mut self) -> usize {
        let mut leads = 0;
        let mut at = 0;
        while at < self.waiting.len() {
            match told(&mut self.waiting[at].0) {
                None => at += 1,
                Some(Some(Told::Lead(lead))) => {
                    let claim = self.waiting[at].1;
                    let (ticket, all) = lead.take(&Arc::default(), claim).unwrap();
                    self.waiting[at].0 = ticket;
                    self.jobs.push(all);
                    leads += 1;
                }
                Some(heard) => {
                    self.waiting.swap_remove(at);
                    match heard {
                        Some(Told::Answer(Ok(_))) => self.answered += 1,
                        _ => self.failed += 1,
                    }
                }
            }
        }
        leads
    }
}

proptest! {
    /// Each call hears one thing or leaves; somebody leads for as long as anybody waits; one job at a time is everybody's.
    #[test]
    fn nobody_is_forgotten(acts in prop::collection::vec(act(), 1..80)) {
        let cache = cache(crate::model::CacheSettings { memory: 1, ..SETTINGS }, Hashing::Same);
        let mut calls = Calls::default();
        let (mut entered, mut left) = (0, 0);
        for act in acts {
            match act {
                Act::Enter(level, seconds) => {
                    entered += 1;
                    let claim = claim(level, seconds);
                    let ticket = match cache.enter(question(1.0), claim) {
                        Entered::Coming(ticket) => ticket,
                        Entered::Lead(lead) => {
                            let (ticket, all) = lead.take(&Arc::default(), claim).unwrap();
                            calls.jobs.push(all);
                            ticket
                        }
                        Entered::Kept(_) => panic!("nothing is kept"),
                    };
                    calls.waiting.push((ticket, claim));
                }
                Act::Leave(at) if !calls.waiting.is_empty() => {
                    left += 1;
                    calls.waiting.swap_remove(at % calls.waiting.len());
                }
                Act::Leave(_) => {}
                Act::Answer => calls.jobs.pop().into_iter().for_each(|all| all.hear(Ok(answer()))),
                Act::Fail => calls.jobs.pop().into_iter().for_each(|all| all.hear(Err(Error::backend("no")))),
                Act::Late => {
                    let late = || Err(Error::DeadlineExceeded { stage: Stage::Queued });
                    calls.jobs.pop().into_iter().for_each(|all| all.hear(late()));
                }
                Act::Refuse => drop(calls.jobs.pop()),
            }
            calls.settle();
            calls.jobs.retain(|all| !all.is_gone());
            let (flights, waiting) = cache.state().flights.count();
            prop_assert_eq!(flights, calls.jobs.len());
            prop_assert_eq!(waiting, calls.waiting.len());
            prop_assert_eq!(entered, left + calls.answered + calls.failed + waiting);
        }
        while let Some(all) = calls.jobs.pop() {
            all.hear(Ok(answer()));
        }
        calls.settle();
        prop_assert!(calls.waiting.is_empty());
        prop_assert_eq!(cache.state().flights.count(), (0, 0));
    }
}

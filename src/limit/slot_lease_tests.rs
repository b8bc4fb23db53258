//! Leases of several processes over one server that may be slow, lose what it is told, and outlive the processes.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const MILLISECOND: u64 = 1_000_000;
const TTL: Duration = Duration::from_secs(10);

/// The first connection.
const FIRST: u64 = 1;

/// What the script in `shared_slots.rs` does, by the server's clock.
#[derive(Default)]
struct Server(BTreeMap<usize, (u32, u64, u64)>);

impl Server {
    fn answer(&mut self, holder: usize, limit: u32, request: Request, now: u64) -> u32 {
        self.0.retain(|other, (_, expires, _)| *other == holder || *expires > now);
        if let Some((slots, _, latest)) = self.0.get(&holder)
            && *latest > request.number
        {
            return *slots;
        }
        let others: u32 = self.0.iter().filter(|(other, _)| **other != holder).map(|(_, (slots, ..))| slots).sum();
        let granted = request.want.min(limit.saturating_sub(others));
        match granted.max(request.held) {
            0 => _ = self.0.remove(&holder),
            counted => _ = self.0.insert(holder, (counted, now + nanos(TTL), request.number)),
        }
        granted
    }
}

/// Takes a slot, and asks a server for one if need be.
fn take(lease: &SlotLease, holder: usize, server: &mut Server, limit: u32, now: u64) -> Take {
    let (take, request) = lease.take(limit, now, FIRST);
    if let Some(request) = request {
        let granted = server.answer(holder, limit, request, now);
        lease.granted(request, granted, TTL, now);
    }
    if take == Take::Ask { lease.take(limit, now, FIRST).0 } else { take }
}

fn tend(lease: &SlotLease, holder: usize, server: &mut Server, limit: u32, now: u64) {
    if let Some(request) = lease.tend(limit, TTL, now, FIRST, true) {
        let granted = server.answer(holder, limit, request, now);
        lease.granted(request, granted, TTL, now);
    }
}

#[test]
fn two_processes_have_four_slots_together_and_one_that_is_idle_goes_to_the_other() {
    let (mut server, one, two) = (Server::default(), SlotLease::default(), SlotLease::default());
    for (lease, holder) in [(&one, 1), (&two, 2), (&one, 1), (&two, 2)] {
        assert_eq!(take(lease, holder, &mut server, 4, 0), Take::Taken);
    }
    assert_eq!(take(&one, 1, &mut server, 4, 0), Take::Full);
    assert_eq!(take(&two, 2, &mut server, 4, 0), Take::Full);
    two.give_back();
    assert_eq!(take(&one, 1, &mut server, 4, 200 * MILLISECOND), Take::Full, "it is the other's for a moment");
    for now in [600, 1200] {
        tend(&two, 2, &mut server, 4, now * MILLISECOND);
    }
    assert_eq!(take(&one, 1, &mut server, 4, 1300 * MILLISECOND), Take::Taken);
    assert_eq!(take(&two, 2, &mut server, 4, 1300 * MILLISECOND), Take::Full);
}

#[test]
fn a_slot_that_is_leased_is_taken_again_without_asking() {
    let (mut server, lease) = (Server::default(), SlotLease::default());
    assert_eq!(take(&lease, 1, &mut server, 4, 0), Take::Taken);
    for _ in 0..9 {
        lease.give_back();
        assert_eq!(lease.take(4, MILLISECOND, FIRST), (Take::Taken, None));
    }
}

#[test]
fn one_question_asks_for_all_that_wait_and_a_sixteenth_of_the_limit_is_leased_ahead() {
    let lease = SlotLease::default();
    let waiting: Vec<_> = (0..5).map(|_| lease.wait()).collect();
    let request = lease.take(160, 0, FIRST).1.unwrap();
    assert_eq!((request.held, request.want), (0, 5));
    assert_eq!(lease.take(160, 0, FIRST), (Take::Ask, None), "it is on its way");
    drop(waiting);
    lease.granted(request, 5, TTL, 0);
    let requests: Vec<_> = (0..5).filter_map(|_| lease.take(160, 0, FIRST).1).collect();
    assert_eq!(requests.len(), 1, "one at a time: {requests:?}");
    assert!(requests[0].want > 5 && requests[0].want <= 5 + 160 / AHEAD, "{requests:?}");
}

#[test]
fn a_lease_is_renewed_in_time_and_one_that_is_over_hands_out_nothing() {
    let (mut server, lease) = (Server::default(), SlotLease::default());
    let start = MILLISECOND;
    assert_eq!(take(&lease, 1, &mut server, 4, start), Take::Taken);
    let third = start + nanos(TTL) / 3;
    assert!(lease.tend(4, TTL, third - 1, FIRST, true).is_none());
    let renewal = lease.tend(4, TTL, third, FIRST, true).unwrap();
    assert_eq!((renewal.held, renewal.want), (1, 1));
    lease.failed();
    lease.give_back();
    assert_eq!(lease.take(4, start + nanos(TTL) - 1, FIRST).0, Take::Taken);
    lease.give_back();
    assert_eq!(lease.take(4, start + nanos(TTL), FIRST).0, Take::Ask);
}

#[test]
fn calls_that_outlive_their_lease_count_as_soon_as_they_are_heard_of() {
    let (mut server, one, two) = (Server::default(), SlotLease::default(), SlotLease::default());
    for _ in 0..3 {
        assert_eq!(take(&one, 1, &mut server, 4, 0), Take::Taken);
    }
    // The first is not heard of for longer than its lease, so the other has all four.
    let late = nanos(TTL) + MILLISECOND;
    for _ in 0..4 {
        assert_eq!(take(&two, 2, &mut server, 4, late), Take::Taken);
    }
    tend(&one, 1, &mut server, 4, late);
    assert_eq!(server.0.values().map(|(slots, ..)| slots).sum::<u32>(), 7);
    let later = late + nanos(FULL);
    for _ in 0..3 {
        two.give_back();
    }
    tend(&two, 2, &mut server, 4, later + nanos(KEPT));
    tend(&two, 2, &mut server, 4, later + 2 * nanos(KEPT));
    assert_eq!(take(&one, 1, &mut server, 4, later + 2 * nanos(KEPT)), Take::Full, "three and one are four");
}

#[test]
fn over_a_new_connection_only_what_is_in_use_is_told_and_no_lease_is_relied_on() {
    let (mut server, lease) = (Server::default(), SlotLease::default());
    for _ in 0..3 {
        assert_eq!(take(&lease, 1, &mut server, 4, 0), Take::Taken);
    }
    lease.give_back();
    assert_eq!(lease.tend(4, TTL, MILLISECOND, FIRST, false).unwrap().want, 2);
    lease.failed();
    let told = lease.tend(4, TTL, MILLISECOND, FIRST + 1, false).unwrap();
    assert_eq!((told.held, told.want, told.epoch), (2, 2, FIRST + 1));
    lease.granted(told, 2, TTL, MILLISECOND);
    assert_eq!(lease.take(4, MILLISECOND, FIRST + 1).0, Take::Ask);
}

#[test]
fn the_fall_back_counts_what_is_in_use_already() {
    let (mut server, lease) = (Server::default(), SlotLease::default());
    assert_eq!(take(&lease, 1, &mut server, 4, 0), Take::Taken);
    assert!(!lease.take_unasked(1));
    assert!(lease.take_unasked(2));
    assert!(!lease.take_unasked(2));
    let told = lease.tend(4, TTL, MILLISECOND, FIRST, true).unwrap();
    assert_eq!((told.held, told.want), (2, 2), "and is told");
}

#[test]
fn what_is_asked_late_on_a_connection_that_was_given_up_changes_nothing() {
    let (mut server, lease) = (Server::default(), SlotLease::default());
    assert_eq!(take(&lease, 1, &mut server, 4, 0), Take::Taken);
    let slow = lease.tend(4, TTL, 4000 * MILLISECOND, FIRST, true).unwrap();
    lease.failed();
    assert_eq!(take(&lease, 1, &mut server, 4, 4000 * MILLISECOND), Take::Taken);
    assert_eq!(server.answer(1, 4, slow, 5000 * MILLISECOND), 2);
    assert_eq!(server.0[&1].0, 2);
}

/// What happens next to one of the processes, or to the time.
#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    End(usize),
    Tend(usize),
    /// The server hears what was asked, and the answer is on its way.
    Hear(usize),
    /// The answer arrives.
    Answer(usize),
    /// The question is lost, or its answer; the server may yet hear it.
    Lose(usize),
    /// The server hears what was lost.
    HearLost(usize),
    Crash(usize),
    Pass(u64),
}

/// A process, and what travels between it and the server.
#[derive(Default)]
struct Process {
    lease: SlotLease,
    /// Its name changes with each life.
    life: usize,
    asked: Option<Request>,
    answered: Option<(Request, u32)>,
    lost: Vec<(usize, Request)>,
}

const PROCESSES: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = 0..PROCESSES;
    let step = prop_oneof![
        8 => one.clone().prop_map(Step::Take),
        6 => one.clone().prop_map(Step::End),
        6 => one.clone().prop_map(Step::Tend),
        8 => one.clone().prop_map(Step::Hear),
        8 => one.clone().prop_map(Step::Answer),
        1 => one.clone().prop_map(Step::Lose),
        1 => one.clone().prop_map(Step::HearLost),
        1 => one.prop_map(Step::Crash),
        2 => (0..900_u64).prop_map(Step::Pass),
        2 => (0..12_000_u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..600)
}

proptest! {
    /// Calls of a process whose lease has run out end with it here: that such calls are counted again is a test above.
    #[test]
    fn never_more_slots_are_in_use_than_the_limit(limit in prop_oneof![3 => 1_u32..5, 1 => 16_u32..40], steps in steps()) {
        let mut server = Server::default();
        let mut processes: Vec<Process> = (0..PROCESSES).map(|_| Process::default()).collect();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Take(at) => {
                    let process = &mut processes[at];
                    if let (_, Some(request)) = process.lease.take(limit, now, FIRST) {
                        process.asked = Some(request);
                    }
                }
                Step::End(at) => processes[at].lease.give_back(),
                Step::Tend(at) => {
                    let process = &mut processes[at];
                    if let Some(request) = process.lease.tend(limit, TTL, now, FIRST, true) {
                        process.asked = Some(request);
                    }
                }
                Step::Hear(at) => {
                    let process = &mut processes[at];
                    if let Some(request) = process.asked.take() {
                        let granted = server.answer(process.life * PROCESSES + at, limit, request, now);
                        process.answered = Some((request, granted));
                    }
                }
                Step::Answer(at) => {
                    let process = &mut processes[at];
                    if let Some((request, granted)) = process.answered.take() {
                        process.lease.granted(request, granted, TTL, now);
                    }
                }
                Step::Lose(at) => {
                    let process = &mut processes[at];
                    if let Some(request) = process.asked.take() {
                        process.lost.push((process.life * PROCESSES + at, request));
                        process.lease.failed();
                    } else if process.answered.take().is_some() {
                        process.lease.failed();
                    }
                }
                Step::HearLost(at) => {
                    if let Some((holder, request)) = processes[at].lost.pop() {
                        server.answer(holder, limit, request, now);
                    }
                }
                Step::Crash(at) => {
                    let Process { life, lost, .. } = std::mem::take(&mut processes[at]);
                    processes[at] = Process { life: life + 1, lost, ..Process::default() };
                }
                Step::Pass(milliseconds) => {
                    now += milliseconds * MILLISECOND;
                    for process in &processes {
                        let mut state = process.lease.lock();
                        if now >= state.expires {
                            (state.taken, state.peak) = (0, 0);
                        }
                    }
                }
            }
            let states = || processes.iter().map(|process| process.lease.lock());
            let taken: u32 = states().map(|state| state.taken).sum();
            let leased: u32 = states().filter(|state| now < state.expires).map(|state| state.leased).sum();
            prop_assert!(taken <= limit && leased <= limit, "{} taken, {} leased of {}", taken, leased, limit);
        }
    }

    /// What the first test cannot see: that slots are had at all, and are free again.
    #[test]
    fn every_slot_can_be_had_and_comes_back(limit in 1_u32..100, rounds in 1..4_u64) {
        let (mut server, one, two) = (Server::default(), SlotLease::default(), SlotLease::default());
        for round in 0..rounds {
            let now = round * 60_000 * MILLISECOND;
            let (lease, holder) = if round % 2 == 0 { (&one, 1) } else { (&two, 2) };
            for _ in 0..limit {
                prop_assert_eq!(take(lease, holder, &mut server, limit, now), Take::Taken);
            }
            prop_assert_eq!(take(lease, holder, &mut server, limit, now), Take::Full);
            (0..limit).for_each(|_| lease.give_back());
            for later in [600, 1200, 1800] {
                tend(lease, holder, &mut server, limit, now + later * MILLISECOND);
            }
            prop_assert!(server.0.is_empty(), "everything was given back");
        }
    }
}

//! What happens between the moments: jobs and instances that come while others go.

use super::super::{GIVEN_UP, Plan, Pool};
use super::*;
use crate::{
    backend::{OpenError, fake::Fake},
    schedule::{
        BatchPolicy,
        testing::{self, Script},
    },
    telemetry::access_log::tests::Page,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// What is logged of an instance that cannot be opened, the first one or a later one.
fn not_opened(first: bool) -> String {
    let page = Page::default();
    let writer = page.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
    let reopen = Arc::new(|| Err(OpenError("no memory".to_owned())));
    let pool = Pool::new(Arc::new(Plan { reopen, ..testing::plan() }));
    {
        let mut state = pool.shared.lock();
        // It is not tried again.
        (state.expects, state.closed) = (first, true);
    }
    assert!(tracing::subscriber::with_default(subscriber, || pool.shared.reopen()).is_none());
    let line: serde_json::Value = serde_json::from_str(&page.text()).unwrap();
    assert_eq!((&line["model"], &line["error"]), (&"double/1".into(), &"no memory".into()), "{line}");
    line["message"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_not_opened_was_there_before_or_was_not() {
    assert_eq!(not_opened(true), "first instance not opened");
    assert_eq!(not_opened(false), "instance not rebuilt");
}

#[test]
fn whoever_waits_is_not_failed_for_the_last_instance_where_another_has_come() {
    let script = Script::default();
    let pool = Pool::new(Arc::new(testing::plan_of(&script)));
    pool.shared.alive.fetch_add(1, Ordering::AcqRel);
    let (job, mut receiver) = testing::job(1, 1.0);
    pool.submit(job).unwrap();
    // Nobody is alive for a moment, in which the queue cannot be emptied.
    let state = pool.shared.lock();
    let shared = Arc::clone(&pool.shared);
    let loser = std::thread::spawn(move || shared.lose());
    while pool.is_ready() {
        std::thread::yield_now();
    }
    pool.shared.alive.fetch_add(1, Ordering::AcqRel);
    drop(state);
    loser.join().unwrap();
    assert!(receiver.try_recv().is_err());
    pool.adopt(testing::backend(&script)).unwrap();
    assert!(receiver.blocking_recv().unwrap().is_ok());
}

#[test]
fn an_instance_for_which_there_was_no_thread_is_made_at_the_next_look() {
    let script = Script::default();
    let pool = Pool::new(Arc::new(Plan { run_limit: Some(PATIENCE), ..testing::plan_of(&script) }));
    {
        // As it is when a run goes on that was given up, and its replacement has no thread.
        let mut state = pool.shared.lock();
        assert!(state.give_up());
        state.owed += 1;
    }
    assert!(!pool.is_ready());
    pool.tend(Instant::now());
    while !pool.is_ready() {
        std::thread::yield_now();
    }
    pool.tend(Instant::now());
    assert_eq!((script.opened(), pool.shared.lock().owed), (1, 0));
    pool.close();
    assert!(pool.wait_closed(Instant::now() + PATIENCE));
}

#[test]
fn beside_too_many_runs_that_go_on_only_what_had_no_thread_is_made_at_a_look() {
    let pool = Pool::new(Arc::new(testing::plan()));
    let mut state = pool.shared.lock();
    for _ in 0..GIVEN_UP {
        assert!(state.give_up());
    }
    assert!(!state.give_up() && !state.repay());
    // There was no thread for one of the first.
    state.owed += 1;
    assert!(state.repay() && !state.repay());
    assert_eq!(state.owed, 1);
    // More have ended than are owed.
    state.given_up = 0;
    assert!(state.repay());
}

#[test]
fn a_job_that_comes_again_wakes_an_instance_that_sleeps() {
    let fake = Fake::new();
    let control = fake.control();
    let pool = Pool::new(Arc::new(testing::plan()));
    pool.adopt(Box::new(fake)).unwrap();
    while pool.shared.lock().asleep == 0 {
        std::thread::yield_now();
    }
    let (job, receiver) = testing::job(1, 1.0);
    pool.shared.again(Job { company: Company::Alone, ..job });
    assert!(control.wait_started(1, PATIENCE));
    assert!(receiver.blocking_recv().unwrap().is_ok());
}

#[test]
fn a_pool_that_closes_refuses_nobody_for_the_time_that_others_would_have_waited() {
    let policy = BatchPolicy { max_delay: Duration::from_secs(3600), ..testing::plan().policy };
    let pool = Pool::new(Arc::new(Plan { policy, ..testing::plan() }));
    pool.adopt(Box::new(Fake::new())).unwrap();
    let now = Instant::now();
    let (first, first_answer) = testing::job_at(1, 1.0, now, Duration::from_secs(7200));
    let (mut other, other_answer) = testing::job_at(1, 2.0, now, Duration::from_secs(600));
    other.inputs = [testing::tensor(1, 5, 2.0)].into();
    pool.submit(first).unwrap();
    pool.submit(other).unwrap();
    pool.close();
    for answer in [first_answer, other_answer] {
        assert!(answer.blocking_recv().unwrap().is_ok());
    }
    assert!(pool.wait_closed(Instant::now() + PATIENCE));
}

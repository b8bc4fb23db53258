//! Threads and their queue, over scripted back ends.

use super::*;
use crate::schedule::{
    Company,
    testing::{self, Fault, Script},
};
use std::time::Duration;

fn pool(script: &Script) -> Pool {
    let pool = Pool::new(Arc::new(testing::plan_of(script)));
    pool.adopt(testing::backend(script)).unwrap();
    pool
}

#[test]
fn a_job_is_run_and_answered() {
    let script = Script::default();
    let pool = pool(&script);
    let (job, receiver) = testing::job(2, 3.0);
    pool.submit(job).unwrap();
    let answer = receiver.blocking_recv().unwrap().unwrap();
    assert_eq!(testing::mark(&answer.outputs[0].tensor), 6.0);
}

#[test]
fn jobs_that_come_during_a_run_become_one_batch() {
    let script = Script::default();
    let pool = pool(&script);
    let gate = script.close_gate();
    let (first, _first) = testing::job(1, 0.0);
    pool.submit(first).unwrap();
    script.wait_for_runs(1);
    let receivers: Vec<_> = (0..5)
        .map(|mark| {
            let (job, receiver) = testing::job(1, mark as f32);
            pool.submit(job).unwrap();
            receiver
        })
        .collect();
    drop(gate);
    for receiver in receivers {
        receiver.blocking_recv().unwrap().unwrap();
    }
    assert_eq!(script.batches(), [1, 5]);
}

#[test]
fn a_full_queue_is_overload() {
    let script = Script::default();
    let pool = pool(&script);
    let gate = script.close_gate();
    let (first, _first) = testing::job(1, 0.0);
    pool.submit(first).unwrap();
    script.wait_for_runs(1);
    let waiting: Vec<_> = (0..testing::MAX_QUEUE)
        .map(|_| {
            let (job, receiver) = testing::job(1, 0.0);
            pool.submit(job).unwrap();
            receiver
        })
        .collect();
    let (job, _receiver) = testing::job(1, 0.0);
    assert!(matches!(pool.submit(job), Err(Error::Overloaded { limit: crate::error::Limit::Queue })));
    drop(gate);
    drop(waiting);
}

#[test]
fn after_a_panic_another_instance_takes_over() {
    let script = Script::default();
    let pool = pool(&script);
    script.set(Fault::Panic);
    let (job, receiver) = testing::job(1, 0.0);
    pool.submit(job).unwrap();
    assert!(matches!(receiver.blocking_recv().unwrap(), Err(Error::Internal(_))));
    script.set(Fault::None);
    // Rebuilding takes a moment, in which the model is not ready; nothing worse is answered.
    loop {
        let (job, receiver) = testing::job(1, 1.0);
        match pool.submit(job).and_then(|()| receiver.blocking_recv().unwrap()) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, Error::ModelNotReady { .. }), "{error:?}"),
        }
    }
    assert_eq!(script.opened(), 2);
}

#[test]
fn closing_runs_what_is_queued_and_ends_the_threads() {
    let script = Script::default();
    let pool = pool(&script);
    let gate = script.close_gate();
    let receivers: Vec<_> = (0..3)
        .map(|_| {
            let (job, receiver) = testing::job(1, 0.0);
            pool.submit(job).unwrap();
            receiver
        })
        .collect();
    pool.close();
    let (job, _receiver) = testing::job(1, 0.0);
    assert!(matches!(pool.submit(job), Err(Error::ModelNotReady { state: "unloading", .. })));
    drop(gate);
    for receiver in receivers {
        assert!(receiver.blocking_recv().unwrap().is_ok());
    }
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
    assert!(!pool.is_ready());
}

#[test]
fn a_stream_is_sent_piece_by_piece_and_ends() {
    let script = Script::default();
    script.set(Fault::Stream(5));
    let pool = pool(&script);
    // Room for one piece and the end: the thread waits for its reader.
    let (job, mut receiver) = testing::stream_job(2);
    pool.submit(job).unwrap();
    let mut pieces = 0;
    while let Some(piece) = receiver.blocking_recv() {
        piece.unwrap();
        pieces += 1;
    }
    assert_eq!(pieces, 5);
}

#[test]
fn a_stream_that_is_cut_off_says_so_even_if_nobody_read_it() {
    let script = Script::default();
    script.set(Fault::Stream(usize::MAX));
    let pool = pool(&script);
    let (job, mut receiver) = testing::stream_job_lasting(2, Duration::from_millis(20));
    pool.submit(job).unwrap();
    pool.close();
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
    assert!(receiver.blocking_recv().unwrap().is_ok());
    assert!(matches!(receiver.blocking_recv(), Some(Err(Error::DeadlineExceeded { .. }))));
    assert!(receiver.blocking_recv().is_none());
}

#[test]
fn a_dropped_stream_stops_its_run() {
    let script = Script::default();
    script.set(Fault::Stream(usize::MAX));
    let pool = pool(&script);
    let (job, mut receiver) = testing::stream_job(2);
    pool.submit(job).unwrap();
    receiver.blocking_recv().unwrap().unwrap();
    drop(receiver);
    pool.close();
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
}

#[test]
fn a_thread_that_dies_of_a_panic_of_ours_is_counted_out() {
    struct Bad;
    impl std::task::Wake for Bad {
        fn wake(self: Arc<Self>) {
            panic!("as the test says");
        }
    }
    let script = Script::default();
    let pool = pool(&script);
    let gate = script.close_gate();
    let (job, mut receiver) = testing::job(1, 1.0);
    pool.submit(job).unwrap();
    let waker = Arc::new(Bad).into();
    // Answering wakes whoever waits, outside of what guards the back end.
    assert!(std::pin::Pin::new(&mut receiver).poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    drop(gate);
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
    assert!(!pool.is_ready());
}

/// A pool whose runs may take a minute.
fn limited(script: &Script) -> Pool {
    let plan = Plan { run_limit: Some(Duration::from_secs(60)), ..testing::plan_of(script) };
    let pool = Pool::new(Arc::new(plan));
    pool.adopt(testing::backend(script)).unwrap();
    pool
}

/// Lets the time pass in which a run should have ended.
fn give_up(pool: &Pool) {
    for seconds in [100, 200] {
        pool.tend(Instant::now() + Duration::from_secs(seconds));
    }
}

#[test]
fn an_instance_whose_run_does_not_end_is_replaced_and_who_waits_for_it_hears_at_once() {
    let script = Script::default();
    let pool = limited(&script);
    let gate = script.close_gate();
    let (hangs, hanging) = testing::job(1, 1.0);
    pool.submit(hangs).unwrap();
    script.wait_for_runs(1);
    let (waits, waiting) = testing::job(1, 2.0);
    pool.submit(waits).unwrap();
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    pool.tend(later(59));
    pool.tend(later(61));
    assert!(pool.is_ready(), "it has been told to end, and may");
    pool.tend(later(72));
    // Who waited for the only instance there was hears so.
    assert!(matches!(waiting.blocking_recv().unwrap(), Err(Error::ModelNotReady { .. })));
    while !pool.is_ready() {
        std::thread::yield_now();
    }
    assert_eq!(script.opened(), 2);
    assert!(matches!(hanging.blocking_recv().unwrap(), Err(Error::Internal(_))), "its run still goes on");
    // It returns after all: the thread serves no more.
    drop(gate);
    let (next, receiver) = testing::job(1, 3.0);
    pool.submit(next).unwrap();
    assert_eq!(testing::mark(&receiver.blocking_recv().unwrap().unwrap().outputs[0].tensor), 6.0);
    pool.close();
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
    assert!(!pool.is_ready());
}

#[test]
fn another_instance_serves_while_one_hangs() {
    let script = Script::default();
    let pool = limited(&script);
    pool.adopt(testing::backend(&script)).unwrap();
    let gate = script.close_gate();
    let (hangs, _hanging) = testing::job(1, 1.0);
    pool.submit(hangs).unwrap();
    script.wait_for_runs(1);
    give_up(&pool);
    assert!(pool.is_ready());
    while script.opened() < 3 {
        std::thread::yield_now();
    }
    drop(gate);
    let (next, receiver) = testing::job(1, 3.0);
    pool.submit(next).unwrap();
    assert!(receiver.blocking_recv().unwrap().is_ok());
}

#[test]
fn a_closed_pool_does_not_wait_for_a_run_that_was_given_up() {
    let script = Script::default();
    let pool = limited(&script);
    let _gate = script.close_gate();
    let (hangs, _hanging) = testing::job(1, 1.0);
    pool.submit(hangs).unwrap();
    script.wait_for_runs(1);
    pool.close();
    assert!(!pool.wait_closed(Instant::now() + Duration::from_millis(20)));
    give_up(&pool);
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
}

#[test]
fn answers_are_in_order_however_fast_another_instance_is() {
    let (slow, fast) = (Script::default(), Script::default());
    let mut plan = testing::plan();
    plan.policy = crate::schedule::BatchPolicy { enabled: false, preserve_order: true, ..plan.policy };
    let pool = Pool::new(Arc::new(plan));
    let call = |mark: f32| {
        let (job, receiver) = testing::job(1, mark);
        pool.submit(job).unwrap();
        receiver
    };
    pool.adopt(testing::backend(&slow)).unwrap();
    let gate = slow.close_gate();
    let first = call(1.0);
    slow.wait_for_runs(1);
    pool.adopt(testing::backend(&fast)).unwrap();
    let mut second = call(2.0);
    fast.wait_for_runs(1);
    let third = call(3.0);
    // The second is over: its instance has gone on.
    fast.wait_for_runs(2);
    assert!(second.try_recv().is_err());
    drop(gate);
    for (receiver, mark) in [(first, 2.0), (second, 4.0), (third, 6.0)] {
        let answer = receiver.blocking_recv().unwrap().unwrap();
        assert_eq!(testing::mark(&answer.outputs[0].tensor), mark);
    }
}

#[test]
fn a_run_that_is_given_up_does_not_hold_back_the_answers_behind_it() {
    let script = Script::default();
    let mut plan = Plan { run_limit: Some(Duration::from_secs(60)), ..testing::plan_of(&script) };
    plan.policy = crate::schedule::BatchPolicy { enabled: false, preserve_order: true, ..plan.policy };
    let pool = Pool::new(Arc::new(plan));
    pool.adopt(testing::backend(&script)).unwrap();
    let gate = script.close_gate();
    let (hangs, hanging) = testing::job(1, 1.0);
    pool.submit(hangs).unwrap();
    script.wait_for_runs(1);
    let other = Script::default();
    pool.adopt(testing::backend(&other)).unwrap();
    let (next, mut receiver) = testing::job(1, 2.0);
    pool.submit(next).unwrap();
    other.wait_for_runs(1);
    let (third, _third) = testing::job(1, 3.0);
    pool.submit(third).unwrap();
    // The second is over: its instance has gone on.
    other.wait_for_runs(2);
    assert!(receiver.try_recv().is_err());
    give_up(&pool);
    assert_eq!(testing::mark(&receiver.blocking_recv().unwrap().unwrap().outputs[0].tensor), 4.0);
    assert!(matches!(hanging.blocking_recv().unwrap(), Err(Error::Internal(_))));
    drop(gate);
}

#[test]
fn a_stream_whose_run_is_given_up_ends_with_an_error_even_if_nobody_read_it() {
    let script = Script::default();
    script.set(Fault::Stream(usize::MAX));
    let pool = limited(&script);
    let (job, mut receiver) = testing::stream_job(2);
    pool.submit(job).unwrap();
    // One piece is in the channel, and the place behind it is kept for the end.
    while receiver.is_empty() {
        std::thread::yield_now();
    }
    give_up(&pool);
    assert!(receiver.blocking_recv().unwrap().is_ok());
    assert!(matches!(receiver.blocking_recv(), Some(Err(Error::Internal(_)))));
    assert!(receiver.blocking_recv().is_none());
}

#[test]
fn beyond_some_runs_that_go_on_no_instance_is_made_until_one_of_them_ends() {
    let (script, metrics) = (Script::default(), crate::telemetry::metrics::Metrics::new());
    let mut plan = Plan { run_limit: Some(Duration::from_secs(60)), ..testing::plan_of(&script) };
    plan.metrics = metrics.model(&plan.key);
    let pool = Pool::new(Arc::new(plan));
    pool.adopt(testing::backend(&script)).unwrap();
    let gate = script.close_gate();
    for run in 1..=GIVEN_UP + 1 {
        assert!(pool.is_ready());
        let (hangs, hanging) = testing::job(1, 1.0);
        pool.submit(hangs).unwrap();
        script.wait_for_runs(run);
        give_up(&pool);
        assert!(matches!(hanging.blocking_recv().unwrap(), Err(Error::Internal(_))));
        while run <= GIVEN_UP && !pool.is_ready() {
            std::thread::yield_now();
        }
    }
    assert!(!pool.is_ready());
    assert_eq!(script.opened(), GIVEN_UP + 1);
    let given_up = |count| format!("sluicegate_runs_given_up{{model=\"double\"}} {count}\n");
    assert!(metrics.render().contains(&given_up(GIVEN_UP + 1)), "{}", metrics.render());
    let (job, _receiver) = testing::job(1, 1.0);
    let refused = pool.submit(job).unwrap_err();
    assert!(matches!(refused, Error::ModelNotReady { state: "stuck in runs that do not end", .. }), "{refused}");
    drop(gate);
    while !pool.is_ready() {
        std::thread::yield_now();
    }
    let (next, receiver) = testing::job(1, 3.0);
    pool.submit(next).unwrap();
    assert!(receiver.blocking_recv().unwrap().is_ok());
    pool.close();
    assert!(pool.wait_closed(Instant::now() + Duration::from_secs(10)));
}

#[test]
fn a_hurried_job_that_is_not_done_soon_runs_again_behind_the_others() {
    let (fake, plan) = (crate::backend::fake::Fake::new(), testing::plan());
    let control = fake.control();
    let pool = Pool::new(Arc::new(Plan { run_limit: Some(Duration::from_secs(800)), ..plan }));
    control.block();
    pool.adopt(Box::new(fake)).unwrap();
    let (mut hurried, mut late) = testing::job(1, 1.0);
    hurried.company = Company::Hurried;
    pool.submit(hurried).unwrap();
    assert!(control.wait_started(1, Duration::from_secs(60)));
    let (other, receiver) = testing::job(2, 2.0);
    pool.submit(other).unwrap();
    pool.tend(Instant::now() + Duration::from_secs(50));
    assert_eq!(control.interrupted(), 0);
    pool.tend(Instant::now() + Duration::from_secs(200));
    // The other one runs, and blocks too: it has all its time.
    assert!(control.wait_started(2, Duration::from_secs(60)));
    pool.tend(Instant::now() + Duration::from_secs(200));
    assert_eq!((control.interrupted(), late.try_recv().is_err()), (1, true));
    control.release();
    assert!(receiver.blocking_recv().unwrap().is_ok() && late.blocking_recv().unwrap().is_ok());
    assert_eq!(control.batches(), [1, 2, 1]);
}

#[test]
fn what_batches_cost_is_learnt_from_running_them_and_told() {
    let (script, metrics) = (Script::default(), crate::telemetry::metrics::Metrics::new());
    script.take(Duration::from_millis(2));
    let mut plan = testing::plan_of(&script);
    plan.metrics = metrics.model(&plan.key);
    let cost = Arc::clone(&plan.cost);
    let pool = Pool::new(Arc::new(plan));
    pool.adopt(testing::backend(&script)).unwrap();
    for _ in 0..3 {
        let (job, receiver) = testing::job(3, 1.0);
        pool.submit(job).unwrap();
        receiver.blocking_recv().unwrap().unwrap();
    }
    assert!(cost.estimate(3).unwrap() >= Duration::from_millis(2));
    // A run that fails says nothing about what one costs that does not.
    script.fail_on(9.0);
    let (job, receiver) = testing::job(32, 9.0);
    pool.submit(job).unwrap();
    assert!(receiver.blocking_recv().unwrap().is_err());
    let page = metrics.render();
    let series: Vec<_> = page.lines().filter(|line| line.starts_with("sluicegate_batch_cost_seconds{")).collect();
    assert_eq!(series.len(), 1, "{page}");
    assert!(series[0].starts_with("sluicegate_batch_cost_seconds{model=\"double\",rows=\"2\",version=\"1\"} 0.00"));
}

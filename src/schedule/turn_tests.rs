//! Turns on real single-threaded runtimes.

use super::*;
use crate::schedule::{
    Extent, Scheduler,
    testing::{self, Fault, Script},
};
use std::future::Future;
use tokio::sync::oneshot;

const BUDGET: Duration = Duration::from_secs(60);

/// Runs `test` on a lane of its own.
fn on_a_lane<F: Future<Output = ()>>(test: impl FnOnce(Lanes) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (lanes, mut seats) = Lanes::new(1);
    runtime.block_on(async {
        let (_guard, task) = seats.remove(0).enter();
        tokio::spawn(task);
        test(lanes).await;
    });
}

async fn scheduler(script: &Script, lanes: &Lanes, budget: Duration) -> Arc<Scheduler> {
    let instances = (0..lanes.count()).map(|_| testing::backend(script)).collect();
    let spare = testing::backend(&script.spare());
    let plan = testing::plan_of(script);
    Arc::new(Scheduler::on_lanes(plan, lanes, Extent::of_rows(64), budget, instances, spare).await.unwrap())
}

async fn call(scheduler: &Scheduler, rows: usize) -> Result<testing::Answer, Error> {
    let (job, receiver) = testing::job(rows, 1.0);
    scheduler.submit(job)?;
    receiver.await.unwrap()
}

#[test]
fn what_became_ready_in_one_turn_runs_as_one_batch() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        let connections: Vec<_> = (0..64)
            .map(|_| {
                let scheduler = Arc::clone(&scheduler);
                tokio::spawn(async move { call(&scheduler, 1).await.unwrap() })
            })
            .collect();
        for connection in connections {
            connection.await.unwrap();
        }
        assert_eq!(script.batches(), [64]);
    });
}

#[test]
fn calls_that_answers_lead_to_run_in_the_next_turn() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        let connections: Vec<_> = (0..8)
            .map(|_| {
                let scheduler = Arc::clone(&scheduler);
                tokio::spawn(async move {
                    for _ in 0..3 {
                        call(&scheduler, 1).await.unwrap();
                    }
                })
            })
            .collect();
        for connection in connections {
            connection.await.unwrap();
        }
        assert_eq!(script.batches(), [8, 8, 8]);
    });
}

#[test]
fn more_than_a_batch_takes_several_turns() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        let receivers: Vec<_> = (0..3)
            .map(|_| {
                let (job, receiver) = testing::job(40, 1.0);
                scheduler.submit(job).unwrap();
                receiver
            })
            .collect();
        for receiver in receivers {
            receiver.await.unwrap().unwrap();
        }
        assert_eq!(script.batches(), [40, 40, 40]);
    });
}

#[test]
fn a_job_beyond_the_cap_runs_on_a_thread() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        call(&scheduler, 65).await.unwrap();
        assert!(script.batches().is_empty());
        assert_eq!(script.spare().batches(), [65]);
    });
}

#[test]
fn the_jobs_of_a_failed_batch_run_on_a_thread() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        script.fail_on(1.0);
        let calls = std::iter::repeat_with(|| call(&scheduler, 1)).take(3);
        for answer in futures_util::future::join_all(calls).await {
            answer.unwrap();
        }
        assert_eq!(script.batches(), [3]);
        assert_eq!(script.spare().batches().iter().sum::<usize>(), 3);
    });
}

#[test]
fn a_thread_that_is_no_lane_uses_the_models_threads() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        let (job, receiver) = testing::job(1, 1.0);
        std::thread::spawn(move || scheduler.submit(job).map(|()| scheduler)).join().unwrap().unwrap();
        receiver.await.unwrap().unwrap();
        assert_eq!(script.spare().batches(), [1]);
    });
}

#[test]
fn a_model_that_overruns_its_budget_moves_to_threads() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, Duration::ZERO).await;
        assert_eq!(scheduler.execution(), crate::schedule::Execution::Turn);
        while scheduler.execution() == crate::schedule::Execution::Turn {
            call(&scheduler, 1).await.unwrap();
        }
        assert!(script.batches().len() <= OVERRUNS as usize);
        call(&scheduler, 1).await.unwrap();
        assert_eq!(script.spare().batches(), [1]);
    });
}

#[test]
fn after_a_panic_the_lane_gets_a_new_instance() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        script.set(Fault::Panic);
        assert!(matches!(call(&scheduler, 1).await, Err(Error::Internal(_))));
        script.set(Fault::None);
        assert!(scheduler.is_ready());
        let runs = script.batches().len();
        // Until the new instance is there, the model's threads answer.
        while script.batches().len() == runs {
            call(&scheduler, 1).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(script.opened(), 2);
    });
}

#[test]
fn a_dropped_scheduler_leaves_its_lanes() {
    on_a_lane(|lanes| async move {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        let (job, receiver) = testing::job(1, 1.0);
        scheduler.submit(job).unwrap();
        drop(scheduler);
        // What was accepted is still answered, by the lane or by the thread.
        let answer = receiver.await.unwrap();
        assert!(answer.is_ok() || matches!(answer, Err(Error::ModelNotReady { .. })), "{answer:?}");
        while LANE.with_borrow(|lane| !lane.as_ref().unwrap().entries.is_empty()) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn every_lane_gets_its_own_instance() {
    let (lanes, seats) = Lanes::new(3);
    let threads: Vec<_> = seats
        .into_iter()
        .map(|seat| {
            let (stop, stopped) = oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (_guard, task) = seat.enter();
                    tokio::spawn(task);
                    stopped.await.ok();
                });
            });
            (stop, thread)
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let script = Script::default();
        let scheduler = scheduler(&script, &lanes, BUDGET).await;
        assert_eq!(scheduler.turn.as_ref().unwrap().alive.load(Ordering::Acquire), 3);
    });
    for (stop, thread) in threads {
        stop.send(()).unwrap();
        thread.join().unwrap();
    }
}

#[test]
fn a_lane_that_ends_answers_what_is_queued() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (lanes, mut seats) = Lanes::new(1);
    runtime.block_on(async {
        let (guard, task) = seats.remove(0).enter();
        tokio::spawn(task);
        let scheduler = scheduler(&Script::default(), &lanes, BUDGET).await;
        let (job, receiver) = testing::job(1, 1.0);
        scheduler.submit(job).unwrap();
        drop(guard);
        assert!(matches!(receiver.await.unwrap(), Err(Error::ShuttingDown)));
    });
}

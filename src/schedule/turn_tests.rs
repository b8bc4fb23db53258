//! Turns on real single-threaded runtimes.

use super::*;
use crate::{
    backend::fake::{Fake, FakeControl},
    schedule::{
        BatchPolicy, Execution, Extent, Plan, Scheduler,
        testing::{self, Fault, Script},
    },
};
use std::future::Future;
use tokio::sync::oneshot;

const BUDGET: Duration = Duration::from_secs(60);

/// Beyond what any test takes: who looks says that it is over.
const LIMIT: Duration = Duration::from_secs(600);

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
    let settings = TurnSettings { budget, limit: LIMIT, ..TurnSettings::default() };
    Arc::new(Scheduler::on_lanes(plan, lanes, Extent::of_rows(64), &settings, instances, spare).await.unwrap())
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
        receiver.await.unwrap().unwrap();
        while LANE.with_borrow(|lane| !lane.as_ref().unwrap().entries.is_empty()) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_closed_scheduler_runs_what_waits_on_a_lane_and_takes_no_more() {
    on_a_lane(|lanes| async move {
        // For company they would wait for longer than the test.
        let policy = BatchPolicy { max_delay: Duration::from_secs(600), ..testing::plan().policy };
        let (scheduler, _lane, spare) = fakes(&lanes, policy).await;
        let (job, receiver) = testing::job_at(1, 1.0, Instant::now(), Duration::from_secs(3600));
        scheduler.submit(job).unwrap();
        tokio::task::yield_now().await;
        scheduler.close();
        assert!(matches!(call(&scheduler, 1).await, Err(Error::ModelNotReady { state: "unloading", .. })));
        receiver.await.unwrap().unwrap();
        assert_eq!(spare.batches(), [1]);
        assert!(testing::closed(scheduler, BUDGET).await);
    });
}

#[test]
fn a_lane_that_does_not_turn_keeps_nobody_from_waiting_for_the_threads() {
    on_a_lane(|lanes| async move {
        let scheduler = scheduler(&Script::default(), &lanes, BUDGET).await;
        scheduler.close();
        // On the lane itself, which has no turn meanwhile.
        assert!(scheduler.wait_closed(Instant::now() + BUDGET));
    });
}

#[test]
fn a_pass_ends_by_the_budget_that_is_set() {
    on_a_lane(|lanes| async move {
        for (budget, together) in [(BUDGET, true), (Duration::from_micros(1), false)] {
            let scripts = [Script::default(), Script::default()];
            scripts[0].take(Duration::from_millis(1));
            let schedulers =
                [scheduler(&scripts[0], &lanes, budget).await, scheduler(&scripts[1], &lanes, budget).await];
            let ((first, heard), (second, _heard)) = (testing::job(1, 1.0), testing::job(1, 1.0));
            let after = scripts[1].clone();
            let connection = tokio::spawn(async move {
                heard.await.unwrap().unwrap();
                after.batches().len()
            });
            // It waits before the lane has its turn.
            tokio::task::yield_now().await;
            schedulers[0].submit(first).unwrap();
            schedulers[1].submit(second).unwrap();
            assert_eq!(connection.await.unwrap(), usize::from(together), "{budget:?}");
        }
    });
}

#[test]
fn a_batch_of_long_rows_is_held_to_the_budget() {
    on_a_lane(|lanes| async move {
        let (lane, spare) = (Fake::new(), Fake::new());
        let control = lane.control();
        let plan = Plan { policy: BatchPolicy { even: false, ..testing::plan().policy }, ..testing::plan() };
        plan.cost.seed(1, Duration::from_secs(1));
        let settings = TurnSettings { budget: BUDGET, limit: LIMIT, ..TurnSettings::default() };
        let lane: Vec<Box<dyn Backend>> = vec![Box::new(lane)];
        let room = Extent::of_rows(64);
        let scheduler = Scheduler::on_lanes(plan, &lanes, room, &settings, lane, Box::new(spare)).await.unwrap();
        // What is known is that 16 bytes take a second.
        let receivers: Vec<_> = (0..6)
            .map(|_| {
                let (mut job, receiver) = testing::job(1, 1.0);
                job.inputs = [testing::tensor(1, 76, 1.0)].into();
                scheduler.submit(job).unwrap();
                receiver
            })
            .collect();
        for receiver in receivers {
            receiver.await.unwrap().unwrap();
        }
        assert_eq!(control.batches()[0], 3, "19 seconds each, within a minute");
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

/// A scheduler over one fake on the lane and one on a thread.
async fn fakes(lanes: &Lanes, policy: BatchPolicy) -> (Arc<Scheduler>, FakeControl, FakeControl) {
    let (lane, spare) = (Fake::new(), Fake::new());
    let controls = (lane.control(), spare.control());
    let settings = TurnSettings { budget: BUDGET, limit: LIMIT, ..TurnSettings::default() };
    let plan = Plan { policy, ..testing::plan() };
    let room = Extent::of_rows(64);
    let scheduler =
        Scheduler::on_lanes(plan, lanes, room, &settings, vec![Box::new(lane)], Box::new(spare)).await.unwrap();
    (Arc::new(scheduler), controls.0, controls.1)
}

/// Looks at the lanes, as if the limit were over, once `begun`.
fn look_when(lanes: &Lanes, begun: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    let lanes = lanes.clone();
    std::thread::spawn(move || {
        begun();
        lanes.look(Instant::now());
        lanes.look(Instant::now() + LIMIT * 2);
    })
}

#[test]
fn a_run_that_holds_a_lane_is_ended_and_its_jobs_run_again_on_threads() {
    on_a_lane(|lanes| async move {
        let (scheduler, lane, spare) = fakes(&lanes, testing::plan().policy).await;
        lane.block();
        let blocked = lane.clone();
        let looker = look_when(&lanes, move || assert!(blocked.wait_started(1, BUDGET)));
        let calls: Vec<_> = (0..3)
            .map(|mark| {
                let (job, receiver) = testing::job(2, mark as f32);
                scheduler.submit(job).unwrap();
                receiver
            })
            .collect();
        for (mark, call) in calls.into_iter().enumerate() {
            let answer = call.await.unwrap().unwrap();
            assert_eq!(testing::mark(&answer.outputs[0].tensor), 2.0 * mark as f32);
        }
        looker.join().unwrap();
        assert_eq!((lane.batches(), lane.interrupted()), (vec![6], 1));
        assert_eq!(spare.batches(), [2, 2, 2], "one of them may be the one that does not end");
        assert_eq!((scheduler.execution(), scheduler.is_ready()), (Execution::Thread, true));
        call(&scheduler, 1).await.unwrap();
        assert_eq!((lane.started(), spare.started()), (1, 4));
    });
}

#[test]
fn a_run_that_does_not_end_when_told_to_still_moves_its_model() {
    on_a_lane(|lanes| async move {
        let (scheduler, lane, spare) = fakes(&lanes, testing::plan().policy).await;
        lane.defy();
        let (blocked, key) = (lane.clone(), "double/1");
        let (looked, moved) = (lanes.clone(), Arc::clone(&scheduler));
        let looker = look_when(&lanes, move || assert!(blocked.wait_started(1, BUDGET)));
        let releaser = std::thread::spawn(move || {
            while moved.execution() == Execution::Turn {
                std::thread::yield_now();
            }
            let still = looked.still(Instant::now() + LIMIT).next().unwrap();
            assert!(still >= LIMIT && looked.runs(0).as_deref() == Some(key), "{still:?} {:?}", looked.runs(0));
            // From any other thread it is served.
            let (job, receiver) = testing::job(1, 1.0);
            moved.submit(job).unwrap();
            receiver.blocking_recv().unwrap().unwrap();
            lane.release();
        });
        // It was answered by the lane after all: it came to an end.
        call(&scheduler, 1).await.unwrap();
        looker.join().unwrap();
        releaser.join().unwrap();
        assert_eq!((spare.started(), lanes.runs(0)), (1, None));
    });
}

#[test]
fn a_job_that_is_longer_than_what_was_measured_is_for_threads_until_it_is_known() {
    on_a_lane(|lanes| async move {
        for policy in [
            BatchPolicy { even: false, ..testing::plan().policy },
            BatchPolicy { enabled: false, ..testing::plan().policy },
        ] {
            let (lane, spare) = (Fake::new(), Fake::new());
            let controls = (lane.control(), spare.control());
            let plan = Plan { policy, ..testing::plan() };
            plan.cost.seed(1, Duration::from_micros(1));
            let settings = TurnSettings { budget: BUDGET, limit: LIMIT, ..TurnSettings::default() };
            let (lane, spare): (Vec<Box<dyn Backend>>, _) = (vec![Box::new(lane)], Box::new(spare));
            let scheduler =
                Scheduler::on_lanes(plan, &lanes, Extent::of_rows(64), &settings, lane, spare).await.unwrap();
            let run = async |width: usize| {
                let (mut job, receiver) = testing::job(1, 1.0);
                job.inputs = [testing::tensor(1, width, 1.0)].into();
                scheduler.submit(job).unwrap();
                receiver.await.unwrap().unwrap();
                (controls.0.started(), controls.1.started())
            };
            assert_eq!(run(4).await, (1, 0));
            assert_eq!(run(16).await, (2, 0));
            assert_eq!(run(4000).await, (2, 1));
            // It was short, as is known now.
            assert_eq!(run(4000).await, (3, 1));
        }
    });
}

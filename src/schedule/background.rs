//! Threads for what nobody waits for.
//!
//! On Linux they have the policy `SCHED_IDLE` (sched(7)): they run where a core would stand still otherwise, and whoever wakes up
//! runs before them. Threads that they start, those within an ONNX Runtime session among them, are of the same kind.

use super::{BatchPolicy, Plan, instance::Pool};
use crate::error::Error;
use std::sync::Arc;

impl Pool {
    /// One thread of the lowest priority with an instance of its own, which is made there: jobs may wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the system gives no thread.
    pub(super) fn in_background(plan: &Plan) -> Result<Self, Error> {
        let reopen = Arc::clone(&plan.another);
        // Nobody comes back for the next copy.
        let policy = BatchPolicy { rejoin: false, ..plan.policy };
        let pool = Self::new(Arc::new(Plan { background: true, reopen, policy, ..plan.clone() }));
        pool.expect_one()?;
        Ok(pool)
    }
}

/// Lowers this thread, and those that it will start, for good.
pub(crate) fn lower_priority() {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, unix};
        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let lowered = unix::set_thread_priority_and_policy(unix::thread_native_id(), ThreadPriority::Min, policy);
        if let Err(error) = lowered {
            tracing::warn!(%error, "copies of calls run with the priority of calls");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::OpenError,
        schedule::{
            Scheduler,
            testing::{self, Script},
        },
    };
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::{Duration, Instant},
    };

    /// A model whose calls do as the first script says, and what runs in the background as the second.
    fn model(calls: &Script, copies: &Script) -> Scheduler {
        let copies = copies.clone();
        let plan = Plan { another: Arc::new(move || Ok(testing::backend(&copies))), ..testing::plan_of(calls) };
        Scheduler::on_threads(plan, vec![testing::backend(calls)]).unwrap()
    }

    #[test]
    fn no_call_waits_for_what_runs_in_the_background_nor_that_for_a_call() {
        let (calls, copies) = (Script::default(), Script::default());
        let model = model(&calls, &copies);
        assert_eq!(copies.opened(), 0, "nobody has asked for it");
        for (held, other) in [(&calls, false), (&copies, true)] {
            let gate = held.close_gate();
            let (job, held_up) = testing::job(1, 1.0);
            if other { model.submit_background(job) } else { model.submit(job) }.unwrap();
            held.wait_for_runs(1);
            let (job, answered) = testing::job(1, 2.0);
            if other { model.submit(job) } else { model.submit_background(job) }.unwrap();
            assert_eq!(testing::mark(&answered.blocking_recv().unwrap().unwrap().outputs[0].tensor), 4.0);
            drop(gate);
            held_up.blocking_recv().unwrap().unwrap();
            held.forget_runs();
        }
        assert_eq!(copies.opened(), 1);
    }

    #[test]
    fn what_it_takes_in_the_background_says_nothing_of_the_model() {
        let (calls, copies) = (Script::default(), Script::default());
        let model = model(&calls, &copies);
        for submit in [Scheduler::submit_background, Scheduler::submit] {
            let (job, answer) = testing::job(1, 1.0);
            submit(&model, job).unwrap();
            answer.blocking_recv().unwrap().unwrap();
            let known = model.plan.cost.estimate(1).is_some();
            assert_eq!(known, calls.batches().len() == 1);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn its_thread_and_those_that_it_starts_have_what_others_leave() {
        // proc(5): the 41st field is the policy, and `SCHED_IDLE` is 5; the second, in parentheses, may have blanks.
        fn policy() -> String {
            let line = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = line.rsplit_once(") ").unwrap();
            fields.split(' ').nth(41 - 3).unwrap().to_owned()
        }
        let (seen, script) = (Arc::new(Mutex::new(Vec::new())), Script::default());
        let told = Arc::clone(&seen);
        let another = move || {
            let started = std::thread::spawn(policy).join().unwrap();
            told.lock().unwrap().extend([policy(), started]);
            Ok(testing::backend(&Script::default()))
        };
        let plan = Plan { another: Arc::new(another), ..testing::plan_of(&script) };
        let model = Scheduler::on_threads(plan, vec![testing::backend(&script)]).unwrap();
        let (job, answer) = testing::job(1, 1.0);
        model.submit_background(job).unwrap();
        answer.blocking_recv().unwrap().unwrap();
        assert_eq!(*seen.lock().unwrap(), ["5", "5"]);
        assert_eq!(policy(), "0");
    }

    #[test]
    fn jobs_wait_while_its_instance_is_made_and_made_again() {
        let (let_go, wait) = mpsc::channel::<()>();
        let (wait, tried, script) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)), Script::default());
        let tries = Arc::clone(&tried);
        let another = move || {
            if tries.fetch_add(1, Ordering::AcqRel) == 0 {
                wait.lock().unwrap().recv().unwrap();
                return Err(OpenError("no memory yet".to_owned()));
            }
            Ok(testing::backend(&Script::default()))
        };
        let plan = Plan { another: Arc::new(another), ..testing::plan_of(&script) };
        let model = Scheduler::on_threads(plan, vec![testing::backend(&script)]).unwrap();
        let (job, answer) = testing::job(1, 1.0);
        model.submit_background(job).unwrap();
        let_go.send(()).unwrap();
        answer.blocking_recv().unwrap().unwrap();
        assert_eq!(tried.load(Ordering::Acquire), 2);
        assert_eq!(script.batches(), [0; 0]);
    }

    #[test]
    fn a_model_that_is_closed_runs_what_it_has_and_takes_no_more() {
        let (calls, copies) = (Script::default(), Script::default());
        let model = model(&calls, &copies);
        let gate = copies.close_gate();
        let (job, answer) = testing::job(1, 1.0);
        model.submit_background(job).unwrap();
        copies.wait_for_runs(1);
        model.close();
        assert!(model.wait_closed(Instant::now() + Duration::from_secs(2)), "nobody waits for what runs still");
        let (late, _) = testing::job(1, 1.0);
        let refused = model.submit_background(late).unwrap_err();
        assert!(matches!(refused, Error::ModelNotReady { state: "unloading", .. }), "{refused:?}");
        drop(gate);
        answer.blocking_recv().unwrap().unwrap();
        assert!(model.wait_closed(Instant::now() + Duration::from_secs(60)));
    }
}

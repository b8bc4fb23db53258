//! What becomes of the jobs of a batch.

use super::*;
use crate::{
    backend::fake::Fake,
    schedule::{
        testing::{self, Fault, Script},
        watch::{Finding, Watched},
    },
    telemetry::metrics::Metrics,
};

fn run_jobs(script: &Script, rows: &[usize]) -> (Ran, Vec<testing::Receiver>) {
    let plan = testing::plan();
    let mut backend = testing::backend(script);
    let mut receivers = Vec::new();
    let mut jobs = Vec::new();
    for (mark, rows) in rows.iter().enumerate() {
        let (job, receiver) = testing::job(*rows, mark as f32 + 1.0);
        jobs.push(job);
        receivers.push(receiver);
    }
    let ran = run(&mut *backend, &mut jobs, &plan, None);
    assert!(jobs.is_empty());
    (ran, receivers)
}

#[test]
fn each_job_gets_its_own_rows_of_the_batch() {
    let script = Script::default();
    let (ran, receivers) = run_jobs(&script, &[1, 3, 2]);
    assert!(matches!(ran, Ran::Sound(_)));
    assert_eq!(script.batches(), [6]);
    for (mut receiver, (rows, mark)) in receivers.into_iter().zip([(1, 1.0), (3, 2.0), (2, 3.0)]) {
        let answer = receiver.try_recv().unwrap().unwrap();
        assert_eq!(&*answer.outputs[0].name, "y");
        assert_eq!(answer.outputs[0].tensor.shape().dims(), [rows, 4]);
        assert_eq!(testing::mark(&answer.outputs[0].tensor), mark * 2.0);
    }
}

#[test]
fn inputs_are_gone_when_the_answer_is_heard() {
    let plan = testing::plan();
    let script = Script::default();
    for rows in [&[2][..], &[1, 3]] {
        let (mut jobs, mut waiting) = (Vec::new(), Vec::new());
        for rows in rows {
            let (mut job, receiver) = testing::job(*rows, 1.0);
            let last = testing::Last::of(&mut job.inputs);
            waiting.push(last.hears(receiver));
            jobs.push(job);
        }
        run(&mut *testing::backend(&script), &mut jobs, &plan, None);
        for (last, mut receiver) in waiting {
            assert!(receiver.try_recv().unwrap().is_ok());
            assert_eq!(last.were_there(), Some(false));
        }
    }
}

#[test]
fn one_bad_job_does_not_fail_its_batch() {
    let script = Script::default();
    script.fail_on(2.0);
    let (ran, mut receivers) = run_jobs(&script, &[1, 1, 1]);
    assert!(matches!(ran, Ran::Sound(_)));
    assert_eq!(script.batches(), [3, 1, 1, 1]);
    assert!(receivers[0].try_recv().unwrap().is_ok());
    assert!(matches!(receivers[1].try_recv().unwrap(), Err(Error::Backend(_))));
    assert!(receivers[2].try_recv().unwrap().is_ok());
}

#[test]
fn the_time_of_a_batch_that_failed_is_that_of_all_its_runs() {
    let script = Script::default();
    script.fail_on(2.0);
    script.take(Duration::from_millis(5));
    let (ran, _receivers) = run_jobs(&script, &[1, 1, 1]);
    let Ran::Sound(took) = ran else { panic!("{ran:?}") };
    assert!(took >= Duration::from_millis(20), "four runs of 5 ms: {took:?}");
}

#[test]
fn a_job_waits_once_however_often_it_runs() {
    let (script, metrics) = (Script::default(), Metrics::new());
    script.fail_on(2.0);
    let mut plan = testing::plan();
    plan.metrics = metrics.model(&plan.key);
    let (mut jobs, _receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| testing::job(1, 2.0)).unzip();
    run(&mut *testing::backend(&script), &mut jobs, &plan, None);
    let page = metrics.render();
    assert!(page.contains("sluicegate_queue_wait_seconds_count{model=\"double\"} 3"), "{page}");
}

#[test]
fn outputs_that_do_not_follow_the_rows_are_never_cut_apart() {
    let script = Script::default();
    script.set(Fault::ExtraRow);
    let (_, mut receivers) = run_jobs(&script, &[1, 1]);
    assert_eq!(script.batches(), [2, 1, 1]);
    let answer = receivers[1].try_recv().unwrap().unwrap();
    assert_eq!(testing::mark(&answer.outputs[0].tensor), 4.0);
}

#[test]
fn a_panic_answers_the_whole_batch_as_internal() {
    let script = Script::default();
    script.set(Fault::Panic);
    let (ran, receivers) = run_jobs(&script, &[1, 1]);
    assert_eq!(ran, Ran::Panicked);
    for mut receiver in receivers {
        assert!(matches!(receiver.try_recv().unwrap(), Err(Error::Internal(_))));
    }
}

#[test]
fn a_job_of_a_batch_whose_caller_leaves_is_discarded_and_ends_no_run() {
    let (script, plan) = (Script::default(), testing::plan());
    let (leaving, gone) = testing::job(1, 1.0);
    let (staying, mut receiver) = testing::job(1, 2.0);
    leaving.facts.interrupt.fire();
    drop(gone);
    let ran = run(&mut *testing::backend(&script), &mut vec![leaving, staying], &plan, None);
    assert!(matches!(ran, Ran::Sound(_)));
    assert_eq!(script.batches(), [2]);
    assert_eq!(testing::mark(&receiver.try_recv().unwrap().unwrap().outputs[0].tensor), 4.0);
}

#[test]
fn a_job_alone_whose_caller_left_in_the_last_moment_does_not_run() {
    let plan = testing::plan();
    let (job, _receiver) = testing::job(1, 1.0);
    job.facts.interrupt.fire();
    let fake = Fake::new();
    let control = fake.control();
    let ran = run(&mut fake.clone(), &mut vec![job], &plan, None);
    assert_eq!((ran, control.started()), (Ran::Sound(Duration::ZERO), 0));
}

#[test]
fn a_small_part_of_a_large_output_is_a_copy() {
    let large = testing::tensor(64, 64, 1.0);
    let shares = |part: &Tensor| large.data().as_ptr_range().contains(&part.data().as_ptr());
    assert!(!shares(&cut(&large, 3..4).unwrap()));
    assert!(shares(&cut(&large, 0..8).unwrap()));
    let small = testing::tensor(64, 1, 1.0);
    assert!(small.data().as_ptr_range().contains(&cut(&small, 3..4).unwrap().data().as_ptr()));
}

/// Twice what goes in, unless that has a mark: then it runs until it is told to end.
struct Endless {
    signature: Arc<crate::tensor::Signature>,
    mark: f32,
    ended: Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>,
    begun: std::sync::mpsc::Sender<usize>,
}

impl Backend for Endless {
    fn signature(&self) -> &Arc<crate::tensor::Signature> {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        if !inputs[0].try_elements::<f32>().unwrap().contains(&self.mark) {
            return Ok([inputs[0].clone()].into());
        }
        self.begun.send(inputs[0].rows()).unwrap();
        let ended = self.ended.1.wait_while(self.ended.0.lock().unwrap(), |ended| !*ended).unwrap();
        drop(ended);
        Err(Error::backend("ended"))
    }

    fn interruptible(&mut self) -> Option<crate::call::Stop> {
        *self.ended.0.lock().unwrap() = false;
        let ended = Arc::clone(&self.ended);
        Some(Arc::new(move || {
            *ended.0.lock().unwrap() = true;
            ended.1.notify_all();
        }))
    }
}

#[test]
fn those_of_a_batch_with_one_that_does_not_end_are_answered_before_it_has_all_its_time() {
    let (limit, watch) = (Duration::from_secs(800), Arc::new(Watch::default()));
    let plan = Plan { run_limit: Some(limit), ..testing::plan() };
    let (begun, runs) = std::sync::mpsc::channel();
    let backend = Endless { signature: testing::signature(), mark: 2.0, ended: Arc::default(), begun };
    let mut backend = Watched::new(Box::new(backend), Arc::clone(&watch));
    let (mut jobs, mut receivers): (Vec<_>, Vec<_>) = (1..=3).map(|mark| testing::job(1, mark as f32)).unzip();
    let looked = Arc::clone(&watch);
    let thread = std::thread::spawn(move || run(&mut backend, &mut jobs, &plan, Some(&watch)));
    let look = |after: Duration| looked.look(Instant::now() + after, limit);
    assert_eq!((runs.recv().unwrap(), look(limit / 2)), (3, Finding::Fine));
    assert_eq!(look(limit * 2), Finding::Ended);
    // Alone, and not for long, because others wait.
    assert_eq!((runs.recv().unwrap(), look(limit / 2)), (1, Finding::Ended));
    // With all its time, when they have been answered.
    assert_eq!((runs.recv().unwrap(), look(limit / 2)), (1, Finding::Fine));
    assert!([0, 2].into_iter().all(|at| receivers[at].try_recv().unwrap().is_ok()));
    assert!(receivers[1].try_recv().is_err());
    assert_eq!(look(limit * 2), Finding::Ended);
    assert!(matches!(thread.join().unwrap(), Ran::Sound(_)));
    assert!(matches!(receivers[1].try_recv().unwrap(), Err(Error::Backend(_))));
}

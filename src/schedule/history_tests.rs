//! Any history of calls, leavers, failures and swaps, through real schedulers over fakes: on lanes and on threads.

use super::*;
use crate::{
    backend::{
        Backend,
        fake::{Behaviour, Fake, FakeControl},
    },
    schedule::testing::{Answer, Receiver},
    tensor::{DataType, Tensor, Tensors},
};
use proptest::prelude::*;
use tokio::time::timeout;

/// Instances on threads, where there are no lanes.
const INSTANCES: usize = 2;

/// Rows of a call that is larger than a batch may be: more than all others of a history have together, so that a batch of so
/// many is this one alone.
const LARGE: usize = 1000;

/// Far longer than anything takes; a job that is not answered by then is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    /// Somebody calls; with no time left if they are late.
    Call { rows: usize, bits: u32, priority: u32, is_late: bool },
    /// Who called as the so-manieth leaves.
    Leave(usize),
    /// From now on runs do this.
    Behave(Behaviour),
    /// Another scheduler takes over, as when a version is loaded anew.
    Swap,
    /// Everybody has a turn.
    Turn,
}

/// How the scheduler is made.
#[derive(Clone, Copy, Debug)]
struct Setup {
    on_lanes: bool,
    policy: BatchPolicy,
}

/// A call, and what may become of it.
struct Call {
    inputs: Tensors,
    is_late: bool,
    receiver: Option<Receiver>,
}

fn event() -> impl Strategy<Value = Event> {
    let behaviour = prop_oneof![
        3 => Just(Behaviour::Answer),
        2 => Just(Behaviour::Slow(Duration::from_micros(300))),
        1 => Just(Behaviour::Fail),
        1 => Just(Behaviour::Panic),
    ];
    prop_oneof![
        12 => (prop_oneof![12 => 1..9_usize, 1 => Just(LARGE)], any::<u32>(), 0..4_u32, prop::bool::weighted(0.1))
            .prop_map(|(rows, bits, priority, is_late)| Event::Call { rows, bits, priority, is_late }),
        1 => (0..64_usize).prop_map(Event::Leave),
        1 => behaviour.prop_map(Event::Behave),
        1 => Just(Event::Swap),
        4 => Just(Event::Turn),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let sizes = prop::collection::vec(1..9_usize, 0..3);
    (any::<bool>(), any::<bool>(), 0..3_u64, sizes, any::<bool>(), any::<bool>(), 1..3_u32).prop_map(
        |(on_lanes, enabled, max_delay, preferred, preserve_order, delays, levels)| Setup {
            on_lanes,
            policy: BatchPolicy {
                enabled,
                max_rows: 8,
                max_delay: Duration::from_millis(max_delay),
                rejoin: max_delay == 0,
                max_queue: 32,
                priorities: Priorities::new(levels, None),
                preferred: Preferred::new(preferred),
                // Only to send some behind the others: who is refused for time depends on this machine's.
                timeout: delays.then_some(Duration::from_micros(200)),
                when_late: WhenLate::Delay,
                preserve_order: preserve_order && !on_lanes,
                ..BatchPolicy::default()
            },
        },
    )
}

fn plan(policy: BatchPolicy, fake: &Fake) -> Plan {
    let fake = fake.clone();
    let reopen: Reopen = Arc::new(move || Ok(Box::new(fake.clone())));
    Plan { policy, another: Arc::clone(&reopen), reopen, ..testing::plan() }
}

async fn scheduler(setup: Setup, lanes: &turn::Lanes) -> (Scheduler, FakeControl) {
    let fake = Fake::new();
    let instance = || -> Box<dyn Backend> { Box::new(fake.clone()) };
    let plan = plan(setup.policy, &fake);
    let turns = crate::schedule::TurnSettings { budget: PATIENCE, limit: PATIENCE, ..Default::default() };
    let scheduler = if setup.on_lanes {
        Scheduler::on_lanes(plan, lanes, setup.policy.room(), &turns, vec![instance()], instance()).await.unwrap()
    } else {
        Scheduler::on_threads(plan, std::iter::repeat_with(instance).take(INSTANCES).collect()).unwrap()
    };
    (scheduler, fake.control())
}

fn job(call: &mut Call, rows: usize, priority: u32) -> Job {
    let now = Instant::now();
    let (mut job, receiver) = testing::job_at(rows, 0., now, if call.is_late { Duration::ZERO } else { PATIENCE });
    job.inputs.clone_from(&call.inputs);
    job.priority = priority;
    call.receiver = Some(receiver);
    job
}

/// Rows that are all different, of any bits.
fn inputs(rows: usize, bits: u32) -> Tensors {
    let element = |at: u32| f32::from_bits(bits.wrapping_add(at.wrapping_mul(0x9e37_79b9)));
    let values: Vec<f32> = (0..4 * rows as u32).map(element).collect();
    [Tensor::of(DataType::Fp32, [rows, 4].into(), values).unwrap()].into()
}

/// What must hold of one answer.
fn check(call: &Call, answer: Result<Answer, Error>, was_broken: bool) -> Result<(), TestCaseError> {
    match answer {
        Ok(answer) => {
            prop_assert!(!call.is_late, "answered after its deadline");
            let alone = Fake::new().run(&call.inputs).unwrap();
            prop_assert_eq!(answer.outputs.len(), 1);
            let tensor = &answer.outputs[0].tensor;
            prop_assert_eq!((tensor.shape(), tensor.data()), (alone[0].shape(), alone[0].data()));
        }
        Err(Error::DeadlineExceeded { .. }) => prop_assert!(call.is_late),
        Err(Error::Overloaded { .. }) => {}
        // A swap is no reason: what is queued still runs.
        Err(Error::Backend(_) | Error::Internal(_) | Error::ModelNotReady { .. }) => prop_assert!(was_broken),
        Err(error) => return Err(TestCaseError::fail(format!("{error:?}"))),
    }
    Ok(())
}

async fn play(setup: Setup, lanes: turn::Lanes, events: Vec<Event>) -> Result<(), TestCaseError> {
    let (mut current, control) = scheduler(setup, &lanes).await;
    let mut controls = vec![control];
    let mut calls: Vec<Call> = Vec::new();
    let mut was_broken = false;
    for event in events {
        match event {
            Event::Call { rows, bits, priority, is_late } => {
                let mut call = Call { inputs: inputs(rows, bits), is_late, receiver: None };
                if let Err(refused) = current.submit(job(&mut call, rows, priority)) {
                    check(&call, Err(refused), was_broken)?;
                    call.receiver = None;
                }
                calls.push(call);
            }
            Event::Leave(which) => drop(calls.get_mut(which).and_then(|call| call.receiver.take())),
            Event::Behave(behaviour) => {
                was_broken |= matches!(behaviour, Behaviour::Fail | Behaviour::Panic);
                controls.last().unwrap().set(behaviour);
            }
            Event::Swap => {
                let (next, control) = scheduler(setup, &lanes).await;
                drop(std::mem::replace(&mut current, next));
                controls.push(control);
            }
            Event::Turn => tokio::task::yield_now().await,
        }
    }
    controls.iter().for_each(FakeControl::release);
    for (number, call) in calls.iter_mut().enumerate() {
        let Some(receiver) = call.receiver.take() else { continue };
        let Ok(Ok(answer)) = timeout(PATIENCE, receiver).await else {
            return Err(TestCaseError::fail(format!("call {number} was lost")));
        };
        check(call, answer, was_broken)?;
    }
    current.close();
    // Not here: the lane has its turns meanwhile.
    prop_assert!(testing::closed(Arc::new(current), PATIENCE).await);
    let mut ran = controls.iter().flat_map(FakeControl::batches);
    prop_assert!(ran.all(|rows| rows <= setup.policy.max_rows || rows == LARGE));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_call_has_one_answer_and_that_of_a_run_alone(setup in setup(), events in prop::collection::vec(event(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (lanes, mut seats) = turn::Lanes::new(1);
        runtime.block_on(async {
            let (_guard, task) = seats.remove(0).enter();
            tokio::spawn(task);
            play(setup, lanes, events).await
        })?;
    }
}

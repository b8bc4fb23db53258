//! What the tests of this module share: jobs, and a back end that does as a script says.
//!
//! Its model takes `x` and yields `y`, both FP32 `[-1, 4]`, with `y = 2x`.

pub(crate) use super::Answer;
use super::{BatchPolicy, Company, Job, Plan, ReplyTo, Scheduler};
use crate::{
    backend::Backend,
    call::{Chunk, InferResponse, ModelKey},
    error::Error,
    telemetry::metrics::Metrics,
    tensor::{DataType, Signature, Tensor, TensorSpec, Tensors},
};
use std::{
    ops::ControlFlow,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, Weak},
    task::{Context, Wake},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

pub(crate) const MAX_QUEUE: usize = 64;

pub(crate) type Receiver = oneshot::Receiver<Result<Answer, Error>>;

/// What a scripted back end does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Fault {
    #[default]
    None,
    Panic,
    /// One output row more than there are input rows, whenever there is more than one.
    ExtraRow,
    /// The rows in reverse.
    Reversed,
    /// Decoupled: so many answers.
    Stream(usize),
}

#[derive(Debug, Default)]
struct Acts {
    fault: Fault,
    fail_on: Option<f32>,
    batches: Vec<usize>,
    opened: usize,
    closed: bool,
    took: Duration,
}

/// Tells the back ends that were made with it what to do, and hears what they did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    acts: Arc<(Mutex<Acts>, Condvar)>,
    spare: Arc<Mutex<Option<Script>>>,
}

/// While it lives, runs wait.
pub(crate) struct Gate(Script);

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.acts().closed = false;
        self.0.acts.1.notify_all();
    }
}

impl Script {
    fn acts(&self) -> MutexGuard<'_, Acts> {
        self.acts.0.lock().unwrap()
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.acts().fault = fault;
    }

    /// Fails every run with this mark among its rows.
    pub(crate) fn fail_on(&self, mark: f32) {
        self.acts().fail_on = Some(mark);
    }

    /// Every run takes this long.
    pub(crate) fn take(&self, took: Duration) {
        self.acts().took = took;
    }

    /// Rows of every run so far.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.acts().batches.clone()
    }

    pub(crate) fn forget_runs(&self) {
        self.acts().batches.clear();
    }

    pub(crate) fn opened(&self) -> usize {
        self.acts().opened
    }

    pub(crate) fn close_gate(&self) -> Gate {
        self.acts().closed = true;
        Gate(self.clone())
    }

    pub(crate) fn wait_for_runs(&self, runs: usize) {
        let mut acts = self.acts();
        while acts.batches.len() < runs {
            acts = self.acts.1.wait(acts).unwrap();
        }
    }

    /// The script of the instance that a turn model has on a thread.
    pub(crate) fn spare(&self) -> Script {
        self.spare.lock().unwrap().get_or_insert_default().clone()
    }
}

#[derive(Debug)]
struct Scripted {
    script: Script,
    signature: Arc<Signature>,
    decoupled: bool,
}

impl Backend for Scripted {
    fn signature(&self) -> &Arc<Signature> {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<Tensors, Error> {
        let rows = inputs[0].rows();
        let mut acts = self.script.acts();
        acts.batches.push(rows);
        self.script.acts.1.notify_all();
        while acts.closed {
            acts = self.script.acts.1.wait(acts).unwrap();
        }
        let (fault, fail_on, took) = (acts.fault, acts.fail_on, acts.took);
        drop(acts);
        let until = Instant::now() + took;
        while Instant::now() < until {
            std::thread::park_timeout(until - Instant::now());
        }
        assert!(fault != Fault::Panic, "as the script says");
        let values: Vec<f32> =
            inputs[0].data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        if values.iter().any(|value| Some(*value) == fail_on) {
            return Err(Error::backend("as the script says"));
        }
        let mut values: Vec<f32> = values.iter().map(|value| value * 2.0).collect();
        if fault == Fault::Reversed {
            values = values.chunks(4).rev().flatten().copied().collect();
        }
        let extra = usize::from(fault == Fault::ExtraRow && rows > 1);
        values.resize(values.len() + extra * 4, 0.0);
        Ok([Tensor::of(DataType::Fp32, [rows + extra, 4].into(), values).unwrap()].into())
    }

    fn is_decoupled(&self) -> bool {
        self.decoupled
    }

    fn stream(&mut self, inputs: &[Tensor], emit: &mut dyn FnMut(Tensors) -> ControlFlow<()>) -> Result<(), Error> {
        let Fault::Stream(count) = self.script.acts().fault else { panic!("not decoupled") };
        for _ in 0..count {
            if emit([inputs[0].clone()].into()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

pub(crate) fn backend(script: &Script) -> Box<dyn Backend> {
    let decoupled = {
        let mut acts = script.acts();
        acts.opened += 1;
        matches!(acts.fault, Fault::Stream(_))
    };
    Box::new(Scripted { script: script.clone(), signature: signature(), decoupled })
}

pub(crate) fn signature() -> Arc<Signature> {
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: Some(DataType::Fp32), dims: vec![None, Some(4)] };
    Arc::new(Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] })
}

pub(crate) fn plan() -> Plan {
    plan_of(&Script::default())
}

pub(crate) fn plan_of(script: &Script) -> Plan {
    let key = Arc::new(ModelKey { name: "double".into(), version: "1".into() });
    let decoupled = matches!(script.acts().fault, Fault::Stream(_));
    let (script, beside) = (script.clone(), script.clone());
    Plan {
        metrics: Metrics::new().model(&key),
        key,
        signature: signature(),
        policy: BatchPolicy { enabled: !decoupled, max_queue: MAX_QUEUE, ..BatchPolicy::default() },
        layout: None,
        run_limit: None,
        cost: Arc::default(),
        reopen: Arc::new(move || Ok(backend(&script))),
        another: Arc::new(move || Ok(backend(&beside))),
        background: false,
    }
}

/// Waits on a thread until the threads of a scheduler have ended: the lane that asks has its turns meanwhile.
pub(crate) async fn closed(scheduler: Arc<Scheduler>, patience: Duration) -> bool {
    let (done, ended) = oneshot::channel();
    std::thread::spawn(move || done.send(scheduler.wait_closed(Instant::now() + patience)));
    ended.await.unwrap()
}

pub(crate) fn tensor(rows: usize, width: usize, mark: f32) -> Tensor {
    Tensor::of(DataType::Fp32, [rows, width].into(), vec![mark; rows * width]).unwrap()
}

/// The first element.
pub(crate) fn mark(tensor: &Tensor) -> f32 {
    f32::from_le_bytes(tensor.data()[..4].try_into().unwrap())
}

/// Looks whether inputs are there still when somebody is woken.
pub(crate) struct Last {
    inputs: Weak<()>,
    were_there: Mutex<Option<bool>>,
}

impl Last {
    /// These, and what is cloned of them.
    pub(crate) fn of(inputs: &mut Tensors) -> Arc<Self> {
        let kept = Arc::new(());
        let weak = Arc::downgrade(&kept);
        inputs.iter_mut().for_each(|input| input.keep_with(Arc::clone(&kept)));
        Arc::new(Self { inputs: weak, were_there: Mutex::new(None) })
    }

    /// Waits for what `future` yields.
    pub(crate) fn hears<F: Future + Unpin>(self: Arc<Self>, mut future: F) -> (Arc<Self>, F) {
        let waker = Arc::clone(&self).into();
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
        (self, future)
    }

    /// Whether they were, if anybody was woken.
    pub(crate) fn were_there(&self) -> Option<bool> {
        *self.were_there.lock().unwrap()
    }
}

impl Wake for Last {
    fn wake(self: Arc<Self>) {
        *self.were_there.lock().unwrap() = Some(self.inputs.strong_count() > 0);
    }
}

pub(crate) fn job(rows: usize, mark: f32) -> (Job, Receiver) {
    job_at(rows, mark, Instant::now(), Duration::from_secs(60))
}

pub(crate) fn job_at(rows: usize, mark: f32, now: Instant, patience: Duration) -> (Job, Receiver) {
    let (sender, receiver) = oneshot::channel();
    (job_to(rows, mark, now, patience, ReplyTo::Once(sender.into())), receiver)
}

/// One that brings `inputs`, of a model that takes them laid out so.
pub(crate) fn job_of(inputs: Tensors, layout: Option<Arc<super::Layout>>) -> (Job, Receiver) {
    let (job, receiver) = job(inputs[0].rows(), 0.0);
    (Job { inputs, layout, ..job }, receiver)
}

pub(crate) fn stream_job(capacity: usize) -> (Job, mpsc::Receiver<Result<Chunk, Error>>) {
    stream_job_lasting(capacity, Duration::from_secs(60))
}

pub(crate) fn stream_job_lasting(capacity: usize, lasting: Duration) -> (Job, mpsc::Receiver<Result<Chunk, Error>>) {
    let (sender, receiver) = mpsc::channel(capacity);
    let frame = Box::new(|outputs, timing| {
        Ok(InferResponse {
            model: Arc::new(ModelKey { name: "double".into(), version: "1".into() }),
            client_id: None,
            outputs,
            parameters: Vec::new(),
            timing,
        })
    });
    let (now, patience) = (Instant::now(), Duration::from_secs(60));
    let reply = ReplyTo::Stream { sender, frame, until: now + lasting };
    (job_to(1, 1.0, now, patience, reply), receiver)
}

fn job_to(rows: usize, mark: f32, now: Instant, patience: Duration, reply: ReplyTo) -> Job {
    Job {
        inputs: [tensor(rows, 4, mark)].into(),
        rows,
        priority: 0,
        deadline: now + patience,
        queued: now,
        reply,
        facts: Arc::default(),
        turn: 0,
        company: Company::default(),
        layout: None,
    }
}

//! A version that is tried on copies of calls: run after the caller was answered, and compared with what it was told.
//!
//! Copies wait in no queue that a caller waits in: a bounded number is held, in calls and in bytes, as few as the
//! model says run at once, and what is too much is dropped and counted. They run in the background
//! ([`Scheduler::submit_background`](crate::schedule::Scheduler::submit_background)), have no sender and are charged to nobody;
//! whatever becomes of them, the caller never knows.

use super::{
    Model, Shadow,
    compare::compare,
    signature,
    traffic::{PLASTIC, spread},
};
use crate::{
    call::{Facts, NamedTensor, Timing},
    error::Error,
    schedule::{Answer, Company, Job, ReplyTo, lower_priority},
    telemetry::metrics::{Metrics, ShadowEnd},
};
use futures_util::future::BoxFuture;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout_at,
};

/// What counts calls that are copied.
const MILLION: u64 = 1_000_000;

/// How long copies are collected while calls come in. To wake a thread for each takes the kernel microseconds of its
/// caller's core, and where there is but one the thread runs before the caller's answer is written.
const COLLECTED: Duration = Duration::from_millis(10);

/// How often a copy that waits or runs looks whether its version is still there: nobody stays for it.
const LOOK: Duration = Duration::from_millis(50);

/// Copies of all models that wait to be taken up; each model has fewer.
const MOST: usize = 16_384;

/// Runs copies of calls. Cloning it is cloning handles.
#[derive(Clone, Debug)]
pub struct Shadows {
    copies: mpsc::Sender<BoxFuture<'static, ()>>,
    metrics: Arc<Metrics>,
}

/// What one model's shadow is held to.
#[derive(Debug)]
pub(super) struct Mirror {
    settings: Shadow,
    turns: AtomicU64,
    /// Copies that wait or run.
    waiting: AtomicUsize,
    /// Bytes that they hold.
    held: AtomicUsize,
    running: Arc<Semaphore>,
}

/// Where a copy of a call is to go.
#[derive(Debug)]
pub(super) struct Aim {
    pub(super) mirror: Arc<Mirror>,
    /// Absent while that version is not served.
    pub(super) target: Option<Arc<Model>>,
}

/// A copy of a call that is not answered yet.
#[derive(Debug)]
pub(super) struct Copied {
    aim: Aim,
    shadows: Shadows,
    inputs: Vec<NamedTensor>,
}

/// A place among the copies that are held. Dropping it gives it back.
struct Place {
    mirror: Arc<Mirror>,
    bytes: usize,
}

/// What the caller was told, and how long that took.
struct Told {
    outputs: Vec<NamedTensor>,
    timing: Timing,
}

// === impl Shadows ===

impl Shadows {
    /// Starts the thread that copies are handed out and compared on, of the lowest priority as those that run them, and reports
    /// to `metrics`. Without a thread all copies are dropped, and counted as such.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (copies, waiting) = mpsc::channel(MOST);
        let hand_out = move || {
            lower_priority();
            match runtime::Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime.block_on(take_up(waiting)),
                Err(error) => tracing::error!(%error, "no runtime for copies of calls"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("shadows".to_owned()).spawn(hand_out) {
            tracing::error!(%error, "no thread for copies of calls");
        }
        Self { copies, metrics }
    }

    /// A copy of a call, to be sent once the call is answered.
    pub(super) fn copy(&self, aim: Aim) -> Copied {
        Copied { aim, shadows: self.clone(), inputs: Vec::new() }
    }
}

// === impl Mirror ===

impl Mirror {
    pub(super) fn new(settings: Shadow) -> Self {
        let running = Arc::new(Semaphore::new(settings.in_flight.min(Semaphore::MAX_PERMITS)));
        let (turns, waiting, held) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Self { settings, turns, waiting, held, running }
    }

    /// The version that is tried.
    pub(super) fn target(&self) -> &str {
        &self.settings.to
    }

    /// Whether the next call is one that is copied.
    pub(super) fn wants_next(&self) -> bool {
        spread(&self.turns, PLASTIC, MILLION) < u64::from(self.settings.share)
    }

    fn enter(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        let within = |counter: &AtomicUsize, more: usize, most: usize| {
            let grown = |used: usize| used.checked_add(more).filter(|used| *used <= most);
            counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
        };
        if !within(&self.waiting, 1, self.settings.queue) {
            return None;
        }
        if !within(&self.held, bytes, self.settings.memory) {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place { mirror: Arc::clone(self), bytes })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.mirror.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.mirror.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

// === impl Copied ===

impl Copied {
    /// Keeps the inputs, as the call has them.
    pub(super) fn inputs(&mut self, inputs: &[NamedTensor]) {
        self.inputs = inputs.to_vec();
    }

    /// Sends the copy of a call of `model` that was answered with `outputs`, if there is room. Never waits.
    pub(super) fn send(self, model: &Model, outputs: &[NamedTensor], timing: Timing) {
        let Self { aim: Aim { mirror, target }, shadows: Shadows { copies, metrics }, inputs } = self;
        let ended = |end| metrics.shadow_ended(&model.key.name, &mirror.settings.to, end);
        let Some(target) = target else { return ended(ShadowEnd::Absent) };
        let bytes = inputs.iter().chain(outputs).map(|named| named.tensor.data().len()).sum();
        let Some(place) = mirror.enter(bytes) else { return ended(ShadowEnd::Dropped) };
        let told = Told { outputs: outputs.to_vec(), timing };
        let (running, counted) = (Arc::clone(&mirror.running), Arc::clone(&metrics));
        let deadline = Instant::now() + mirror.settings.timeout;
        let work = async move {
            if let Ok(Ok(_turn)) = timeout_at(deadline.into(), running.acquire_owned()).await {
                try_out(&target, inputs, told, deadline, &counted).await;
            } else {
                counted.shadow_ended(&target.key.name, &target.key.version, ShadowEnd::Failed);
            }
            drop(place);
        };
        if copies.try_send(Box::pin(work)).is_err() {
            ended(ShadowEnd::Dropped);
        }
    }
}

/// Runs copies as they come, until nobody can send one any more.
async fn take_up(mut waiting: mpsc::Receiver<BoxFuture<'static, ()>>) {
    let mut taken = Vec::new();
    // Only the first one after a pause wakes it.
    while waiting.recv_many(&mut taken, MOST).await > 0 {
        taken.drain(..).for_each(|copy| drop(tokio::spawn(copy)));
        tokio::time::sleep(COLLECTED).await;
    }
}

async fn try_out(target: &Arc<Model>, inputs: Vec<NamedTensor>, told: Told, deadline: Instant, metrics: &Arc<Metrics>) {
    let key = &target.key;
    let ended = |end| metrics.shadow_ended(&key.name, &key.version, end);
    let Answer { outputs, timing } = match run(target, inputs, deadline).await {
        Ok(answer) => answer,
        Err(error) => {
            let cause = super::workshop::reason(&error);
            tracing::debug!(model = %key, cause, "a copy of a call failed");
            return ended(ShadowEnd::Failed);
        }
    };
    metrics.shadow_took(key, told.timing, timing);
    let difference = compare(&told.outputs, &outputs);
    metrics.shadow_differs(key, &difference);
    ended(ShadowEnd::Compared);
}

/// Runs a copy as a call would be run, until `deadline` at the latest.
async fn run(target: &Arc<Model>, mut inputs: Vec<NamedTensor>, deadline: Instant) -> Result<Answer, Error> {
    target.absent.complete(&target.signature, &mut inputs)?;
    let checked = signature::check(&target.signature, target.batches(), inputs)?;
    if target.ensemble.is_some() {
        return Err(Error::Unimplemented("an ensemble cannot be a shadow".into()));
    }
    if target.decoupled {
        return Err(Error::Unimplemented("a version that answers with streams cannot be a shadow".into()));
    }
    let facts = Arc::new(Facts::default());
    let (sender, answer) = oneshot::channel();
    let job = Job {
        inputs: checked.inputs,
        rows: checked.rows,
        // Among copies there is no order but that of coming.
        priority: 0,
        deadline,
        queued: Instant::now(),
        reply: ReplyTo::Once(sender.into()),
        facts: Arc::clone(&facts),
        turn: 0,
        company: Company::default(),
        layout: None,
    };
    target.scheduler.submit_background(job)?;
    let gone = || Err(Error::ModelNotReady { model: Arc::clone(&target.key.name), state: "unloading" });
    let mut answer = answer;
    let told = loop {
        match timeout_at(deadline.min(Instant::now() + LOOK).into(), &mut answer).await {
            Ok(Ok(told)) => break told,
            Ok(Err(_)) => break gone(),
            Err(_) if target.scheduler.is_background_closed() => break gone(),
            Err(_) if Instant::now() >= deadline => {
                break Err(Error::DeadlineExceeded { stage: crate::error::Stage::Running });
            }
            Err(_) => {}
        }
    };
    if told.is_err() {
        // One that waits leaves the queue with its receiver, one that runs is told to end.
        facts.interrupt.fire();
    }
    told
}

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod tests;

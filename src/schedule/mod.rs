//! Bounded submission of jobs to instances.
//!
//! A [`Scheduler`] serves one version of one model. Small models run on the lanes ([`turn`]), all
//! others on threads of their own (`instance`); both take what to run from the same pure queue
//! (`queue`) and run it the same way. It knows jobs and back ends, and nothing of names on the
//! wire, of identities or of files: whoever loads models hands over a [`Plan`] and the instances.

mod background;
mod callers;
#[cfg(test)]
mod copies_tests;
mod cost;
mod delay;
mod extent;
mod fair;
mod instance;
mod job;
mod lanes;
mod late;
mod layout;
mod order;
pub mod padding;
mod pulse;
mod queue;
pub mod ragged;
mod rejoin;
mod run;
mod size;
#[cfg(test)]
pub(crate) mod testing;
pub mod turn;
mod watch;

pub(crate) use background::lower_priority;
pub use callers::Held;
pub use cost::Cost;
pub use extent::Extent;
pub use job::{Answer, Audience, Company, Frame, Hearer, Job, ReplyTo};
pub use layout::Layout;
pub use order::Place;
pub use padding::Padding;
pub use queue::{BatchQueue, Verdict};
pub use ragged::Ragged;
pub use size::{PREFERRED, Preferred};

use crate::{
    backend::{Backend, OpenError},
    call::ModelKey,
    error::{Error, Limit},
    telemetry::{metrics::ModelMetrics, statistics::Statistics},
    tensor::Signature,
};
use instance::Pool;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// How jobs become batches (`models.defaults.batching`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Whether rows of several calls may run together.
    pub enabled: bool,
    /// Most rows of a batch; a single job that is larger runs alone.
    pub max_rows: usize,
    /// Most elements of ragged inputs in a batch, beyond which a single job runs alone too; `None`: the model has no such
    /// inputs, and what its batches cost goes with their rows.
    pub max_elements: Option<usize>,
    /// How long the oldest job may be kept waiting for others while an instance is idle.
    pub max_delay: Duration,
    /// Whether a batch may wait for a moment for those whom the run before it answered, where that is worth it. Not on lanes,
    /// whose runs are short.
    pub rejoin: bool,
    /// Most jobs that wait; beyond it they are refused. On lanes: on each lane.
    pub max_queue: usize,
    /// How long jobs may wait before new ones are refused (`limits.concurrency.queue_delay`); absent: as long as their
    /// deadlines let them.
    pub queue_delay: Option<Duration>,
    /// Who goes first among those that wait.
    pub priorities: Priorities,
    /// Rows that a batch should rather have than others: it leaves as soon as it has so many, and with no more than the
    /// largest of these that fits.
    pub preferred: Preferred,
    /// How long a job may wait before [`BatchPolicy::when_late`] says what becomes of it; absent: as long as its deadline
    /// lets it.
    pub timeout: Option<Duration>,
    /// What becomes of a job that has waited for longer.
    pub when_late: WhenLate,
    /// Whether answers are given in the order in which jobs were taken. Not for lanes, of which each takes for itself.
    pub preserve_order: bool,
    /// Whether all rows of all calls have one shape, so that what a batch costs depends on its rows alone. Where it does
    /// not, batches are never made smaller to save time.
    pub even: bool,
}

/// What becomes of a job that waited for longer than [`BatchPolicy::timeout`] (Triton's `timeout_action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenLate {
    /// It is refused.
    #[default]
    Reject,
    /// It goes behind all others of its level of priority, within its deadline.
    Delay,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            max_rows: 64,
            max_elements: None,
            max_delay: Duration::ZERO,
            rejoin: false,
            max_queue: 1024,
            queue_delay: None,
            priorities: Priorities::default(),
            preferred: Preferred::default(),
            timeout: None,
            when_late: WhenLate::default(),
            preserve_order: false,
            even: true,
        }
    }
}

/// The levels of priority of a model: 1 goes first (`batching.priorities`, contract 02 section 3).
///
/// One level, the default, is the order of arrival: whoever may call a model must not overtake others for the asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priorities {
    levels: u32,
    default: u32,
}

impl Default for Priorities {
    fn default() -> Self {
        Self::new(1, None)
    }
}

impl Priorities {
    /// `levels` levels, at least one. Who asks for none has `default`, within them, or the lowest.
    pub fn new(levels: u32, default: Option<u32>) -> Self {
        let levels = levels.max(1);
        Self { levels, default: default.unwrap_or(levels).clamp(1, levels) }
    }

    /// How many there are.
    pub const fn levels(self) -> u32 {
        self.levels
    }

    /// The level of a request that asks for `wanted`: 0, and what there is not, is the default, as for Triton.
    pub const fn level(self, wanted: u32) -> u32 {
        if wanted == 0 || wanted > self.levels { self.default } else { wanted }
    }
}

/// Where a model runs (`models.defaults.execution`, architecture decision 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Execution {
    /// On the lanes if its measured run is short enough; else on threads.
    #[default]
    Auto,
    /// On the lanes.
    Turn,
    /// On threads of its own.
    Thread,
}

impl Execution {
    /// The word used in configuration and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Turn => "turn",
            Self::Thread => "thread",
        }
    }
}

/// What a lane may spend on a model (`runtime.turn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnSettings {
    /// A model whose single run takes longer than this does not run on lanes.
    pub run: Duration,
    /// A batch on a lane is kept below this.
    pub budget: Duration,
    /// A model with more bytes of weights than this does not run on lanes.
    pub weights: u64,
    /// A run that holds a lane for longer than this is told to end, and its model runs on threads from then on.
    pub limit: Duration,
}

impl Default for TurnSettings {
    fn default() -> Self {
        Self {
            run: Duration::from_micros(50),
            budget: Duration::from_micros(200),
            weights: 16 << 20,
            limit: Duration::from_millis(100),
        }
    }
}

/// Makes one more instance of a model, off the lanes.
pub type Reopen = Arc<dyn Fn() -> Result<Box<dyn Backend>, OpenError> + Send + Sync>;

/// What stays the same for as long as a version of a model is served.
#[derive(Clone)]
pub struct Plan {
    /// The model and its version.
    pub key: Arc<ModelKey>,
    /// Its inputs and outputs.
    pub signature: Arc<Signature>,
    /// How jobs become batches.
    pub policy: BatchPolicy,
    /// Its metric handles.
    pub metrics: ModelMetrics,
    /// How jobs of different shapes are laid together; `None`: only those of one shape are.
    pub layout: Option<Arc<Layout>>,
    /// How long a run on a thread may take before it is ended, and as long again, ten seconds at most, before its instance is
    /// replaced; `None`: for ever.
    pub run_limit: Option<Duration>,
    /// What its batches cost, on whatever instance.
    pub cost: Arc<Cost>,
    /// Makes an instance in the place of one that broke.
    pub reopen: Reopen,
    /// Makes an instance beside all others, for which memory is to be had first.
    pub another: Reopen,
    /// Jobs are nobody's: they run on threads of the lowest priority, and what they take says nothing of the model.
    pub background: bool,
}

/// Takes jobs for one version of one model. Dropping it stops its instances, off this thread,
/// after they have run what is queued.
pub struct Scheduler {
    plan: Arc<Plan>,
    /// Every model has threads: those of a turn model run what lanes must not (see [`turn`]).
    pool: Arc<Pool>,
    turn: Option<Arc<turn::Turn>>,
    /// What nobody waits for, from the first such job on; `None` if there was no thread for it, or the model was closed before.
    background: OnceLock<Option<Pool>>,
}

// === impl Scheduler ===

impl Scheduler {
    /// Runs every job on threads, one for each of `instances`.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if the system gives no thread.
    pub fn on_threads(plan: Plan, instances: Vec<Box<dyn Backend>>) -> Result<Self, Error> {
        let plan = Arc::new(plan);
        let pool = Arc::new(Pool::new(Arc::clone(&plan)));
        for instance in instances {
            pool.adopt(instance)?;
        }
        Ok(Self { plan, pool, turn: None, background: OnceLock::new() })
    }

    /// Runs jobs on the lanes, in batches of at most `room` that should take no longer than the budget of `settings`. `spare`
    /// runs, on a thread, the jobs that are larger than that.
    ///
    /// `on_lanes` holds one instance for each lane. Ready once the last lane has its own.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`] if a lane does not answer in time or the system gives no thread.
    pub async fn on_lanes(
        plan: Plan,
        lanes: &turn::Lanes,
        room: Extent,
        settings: &TurnSettings,
        on_lanes: Vec<Box<dyn Backend>>,
        spare: Box<dyn Backend>,
    ) -> Result<Self, Error> {
        let mut scheduler = Self::on_threads(plan, vec![spare])?;
        let before = scheduler.plan.policy;
        let max_elements = before.max_elements.map(|most| most.min(room.size));
        let policy = BatchPolicy { max_rows: room.rows, max_elements, ..before };
        let turn = turn::Turn::new(&scheduler.plan, &scheduler.pool, lanes, policy, settings);
        // Stored first: if installing fails half-way, dropping the scheduler takes it off again.
        scheduler.turn = Some(Arc::clone(&turn));
        lanes.install(&turn, on_lanes).await?;
        Ok(scheduler)
    }

    /// Takes a job or refuses it; never waits.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] if the queue is full, [`Error::ModelNotReady`] if no instance is left
    /// or the model is being unloaded; [`Error::InvalidTensor`] for inputs that cannot be filled up because they
    /// contradict each other.
    pub fn submit(&self, job: Job) -> Result<(), Error> {
        let job = self.laid_out(job)?;
        match &self.turn {
            Some(turn) => turn.submit(job),
            None => self.pool.submit(job),
        }
    }

    /// Takes a job that no caller waits for, or refuses it; never waits. It runs on an instance of its own, which the first such
    /// job has made, on a thread that has what processor time others leave: no call waits for it or behind it.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::submit`].
    pub fn submit_background(&self, job: Job) -> Result<(), Error> {
        let job = self.laid_out(job)?;
        let start = || {
            let told = |error: &Error| {
                tracing::error!(model = %self.plan.key, %error, "no instance for what runs in the background");
            };
            Pool::in_background(&self.plan).inspect_err(told).ok()
        };
        match self.background.get_or_init(start) {
            Some(pool) => pool.submit(job),
            None => Err(self.plan.not_ready("closed")),
        }
    }

    fn laid_out(&self, mut job: Job) -> Result<Job, Error> {
        if let Some(layout) = &self.plan.layout {
            layout.check(&job)?;
            job.layout = Some(Arc::clone(layout));
        }
        Ok(job)
    }

    /// Where jobs run that nobody waits for, if there was one.
    fn background(&self) -> Option<&Pool> {
        self.background.get().and_then(Option::as_ref)
    }

    /// Ends runs that take longer than the model's limit, and replaces instances whose runs do not end. To be called every
    /// now and then; never waits for a run.
    pub fn tend(&self, now: Instant) {
        self.pool.tend(now);
        if let Some(pool) = self.background() {
            pool.tend(now);
        }
    }

    /// True if there is an instance that would run a job now or later.
    pub fn is_ready(&self) -> bool {
        self.pool.is_ready() || self.turn.as_ref().is_some_and(|turn| turn.is_ready())
    }

    /// Where jobs run now: [`Execution::Turn`] or [`Execution::Thread`].
    pub fn execution(&self) -> Execution {
        match &self.turn {
            Some(turn) if !turn.has_moved() => Execution::Turn,
            _ => Execution::Thread,
        }
    }

    /// How jobs become batches.
    pub fn policy(&self) -> &BatchPolicy {
        &self.plan.policy
    }

    /// How rows of different lengths are laid one behind the other, if they are.
    pub fn ragged(&self) -> Option<&Ragged> {
        self.plan.layout.as_deref().and_then(Layout::ragged)
    }

    /// What this version of the model has done.
    pub fn statistics(&self) -> &Statistics {
        self.plan.metrics.statistics()
    }

    /// Takes no more jobs; what is queued still runs: on threads, what waits on lanes too.
    pub fn close(&self) {
        match &self.turn {
            Some(turn) => turn.close(),
            None => self.pool.close(),
        }
        self.close_background();
    }

    /// Takes no more jobs that nobody waits for. Whoever sent those that wait or run should end them.
    pub fn close_background(&self) {
        // None from now on, if nobody had asked for it.
        if let Some(pool) = self.background.get_or_init(|| None) {
            pool.close();
        }
    }

    /// Whether jobs that nobody waits for are taken no more.
    pub fn is_background_closed(&self) -> bool {
        self.background.get().is_some_and(|pool| pool.as_ref().is_none_or(Pool::is_closed))
    }

    /// Waits until every inference thread has ended, until `deadline` at the latest. True if so, but for what nobody waits for. What waits on a lane that does
    /// not turn for a second is not waited for.
    ///
    /// Blocks: not for lanes. To be used after [`Scheduler::close`], before the process ends.
    pub fn wait_closed(&self, deadline: Instant) -> bool {
        if let Some(turn) = &self.turn {
            turn.wait_left(deadline);
        }
        let closed = self.pool.wait_closed(deadline);
        if let Some(pool) = self.background() {
            // Waited for and not counted: on a busy machine it may not even get to the end of its thread.
            pool.wait_closed(deadline);
        }
        closed
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("model", &self.plan.key).finish_non_exhaustive()
    }
}

// === impl Plan ===

impl Plan {
    pub(crate) fn not_ready(&self, state: &'static str) -> Error {
        Error::ModelNotReady { model: Arc::clone(&self.key.name), state }
    }

    /// Opens one more instance; a panic of the opener is an error like any other.
    fn open_again(&self) -> Result<Box<dyn Backend>, String> {
        match catch_unwind(AssertUnwindSafe(|| (self.reopen)())) {
            Ok(Ok(instance)) => Ok(instance),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("opening the model panicked".to_owned()),
        }
    }

    /// A batch of this size ran for `took`.
    fn learn(&self, jobs: &[Job], extent: Extent, took: Duration) {
        if let Some(cost) = self.cost.by_bytes() {
            cost.observe(jobs.iter().map(Job::bytes).sum(), took);
        }
        if self.background {
            return;
        }
        let size = self.cost.observe(extent.size, took);
        if let Some(cost) = self.cost.estimate(size) {
            self.metrics.batch_cost(size, cost);
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("key", &self.key).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// What is refused for when a queue is full.
const QUEUE_FULL: Error = Error::Overloaded { limit: Limit::Queue };
/// What is refused for when a queue stays too long.
const QUEUE_SLOW: Error = Error::Overloaded { limit: Limit::QueueDelay };
/// What is refused for when it waited for too long ([`BatchPolicy::timeout`]).
const QUEUE_TIMEOUT: Error = Error::Overloaded { limit: Limit::QueueTimeout };

#[cfg(test)]
#[path = "history_tests.rs"]
mod history;

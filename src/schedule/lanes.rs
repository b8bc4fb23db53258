//! The way from the loader to the lanes: bounded channels of orders, each order acknowledged.
//!
//! Also what is done on behalf of a lane and off it: freeing an instance, and making a new one
//! after a panic. What a lane does with its instances is `turn`'s business.

use super::{
    instance::{Pool, dispose},
    pulse::{Moved, Pulse},
    turn::Turn,
};
use crate::{backend::Backend, error::Error};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Orders on their way to a lane.
const ORDERS: usize = 16;

/// How long a lane may take to accept an instance: it does so between two turns.
const INSTALL: Duration = Duration::from_secs(10);

/// First and longest pause between two attempts to rebuild an instance.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A handle to all lanes, for those who install models on them.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lanes: Vec<(mpsc::Sender<Order>, Arc<Pulse>)>,
    /// The models that run on lanes, to be found by what a lane says that it runs.
    turns: Mutex<Vec<Weak<Turn>>>,
}

/// A lane's place in the handle, to be taken on the lane's own thread.
#[derive(Debug)]
pub struct Seat {
    pub(super) index: usize,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) pulse: Arc<Pulse>,
}

#[derive(Debug)]
pub(super) enum Order {
    /// Own this instance; a second one for the same model replaces a lost one.
    Install { turn: Arc<Turn>, instance: Box<dyn Backend>, done: Option<oneshot::Sender<()>> },
    /// Let go of what was closed or has moved.
    Sweep,
}

/// Keeps the threads of a model from ending while a lane has it: what waits there goes to them when the lane lets go of it.
/// Dropping the last one closes them.
#[derive(Debug)]
pub(super) struct Hold(Arc<Pool>);

/// The holds of all lanes on one model.
#[derive(Debug)]
pub(super) struct Holds(Mutex<Option<Arc<Hold>>>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.close();
    }
}

// === impl Holds ===

impl Holds {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self(Mutex::new(Some(Arc::new(Hold(pool)))))
    }

    /// One for a lane; none once this is over.
    pub(super) fn another(&self) -> Option<Arc<Hold>> {
        self.lock().clone()
    }

    /// From now on only those count that lanes have.
    pub(super) fn end(&self) {
        let own = self.lock().take();
        // Not under the lock: it may close the threads.
        drop(own);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Hold>>> {
        // Nothing that can panic runs under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Lanes ===

impl Lanes {
    /// A handle to `count` lanes, and a seat for each of them.
    pub fn new(count: usize) -> (Self, Vec<Seat>) {
        let (lanes, seats): (Vec<_>, Vec<_>) = (0..count)
            .map(|index| {
                let (sender, orders) = mpsc::channel(ORDERS);
                let pulse = Arc::new(Pulse::new(Instant::now()));
                ((sender, Arc::clone(&pulse)), Seat { index, orders, pulse })
            })
            .unzip();
        (Self(Arc::new(Shared { lanes, turns: Mutex::default() })), seats)
    }

    /// Tells runs to end that hold a lane for longer than they may, and moves their models to threads. To be called every few
    /// hundredths of a second, from a thread that is no lane; never waits for a run.
    pub fn look(&self, now: Instant) {
        for (_, pulse) in &self.0.lanes {
            if let Some(turn) = pulse.look(now).and_then(|id| self.turn(id)) {
                turn.move_to_threads(Moved::Limit);
            }
        }
    }

    /// For how long each lane has not turned.
    pub fn still(&self, now: Instant) -> impl Iterator<Item = Duration> + '_ {
        self.0.lanes.iter().map(move |(_, pulse)| pulse.still(now))
    }

    /// What the lane `index` runs now: `NAME/VERSION`.
    pub fn runs(&self, index: usize) -> Option<String> {
        let id = self.0.lanes.get(index)?.1.runs()?;
        self.turn(id).map(|turn| turn.plan().key.to_string())
    }

    fn turn(&self, id: u64) -> Option<Arc<Turn>> {
        self.turns().iter().filter_map(Weak::upgrade).find(|turn| turn.id() == id)
    }

    fn turns(&self) -> MutexGuard<'_, Vec<Weak<Turn>>> {
        // Nothing that can panic runs under it.
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lanes there are.
    pub fn count(&self) -> usize {
        self.0.lanes.len()
    }

    /// Hands each lane its instance and waits until all have accepted.
    pub(super) async fn install(&self, turn: &Arc<Turn>, instances: Vec<Box<dyn Backend>>) -> Result<(), Error> {
        if instances.len() != self.count() {
            return Err(Error::internal(format!("{} instances for {} lanes", instances.len(), self.count())));
        }
        {
            let mut turns = self.turns();
            turns.retain(|turn| turn.strong_count() > 0);
            turns.push(Arc::downgrade(turn));
        }
        let silent = || Error::internal("a lane accepts no instance");
        let mut accepted = Vec::with_capacity(instances.len());
        for ((lane, _), instance) in self.0.lanes.iter().zip(instances) {
            let (done, receiver) = oneshot::channel();
            let order = Order::Install { turn: Arc::clone(turn), instance, done: Some(done) };
            timeout(INSTALL, lane.send(order)).await.map_err(|_| silent())?.map_err(|_| silent())?;
            accepted.push(receiver);
        }
        for receiver in accepted {
            timeout(INSTALL, receiver).await.map_err(|_| silent())?.map_err(|_| silent())?;
        }
        Ok(())
    }

    /// Tells all lanes to look what they may let go of.
    pub(super) fn sweep(&self) {
        for (lane, _) in &self.0.lanes {
            // A full channel is as good: the lane sweeps after each batch of orders.
            drop(lane.try_send(Order::Sweep));
        }
    }
}

// === impl Seat ===

impl Seat {
    /// By which the lane tells others that it turns.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }
}

/// Drops an instance on a thread of its own: freeing a session can take long.
pub(super) fn reap(instance: Box<dyn Backend>) {
    let name = String::from("reaper");
    // If there is no thread to be had, the instance was dropped with the closure, here: slow, not wrong.
    drop(std::thread::Builder::new().name(name).spawn(move || dispose(Some(instance))));
}

/// Replaces an instance that panicked, off the lane, and gives the new one to the lane.
pub(super) fn rebuild(turn: Arc<Turn>, lane: usize, broken: Box<dyn Backend>) {
    let name = format!("rebuild-{}", turn.plan().key.name);
    let spawned = std::thread::Builder::new().name(name).spawn(move || {
        dispose(Some(broken));
        turn.plan().metrics.replaced("panic");
        let mut pause = RETRY.0;
        while turn.is_wanted() {
            match turn.plan().open_again() {
                Ok(instance) => {
                    if let Some((lane, _)) = turn.lanes().0.lanes.get(lane) {
                        let order = Order::Install { turn: Arc::clone(&turn), instance, done: None };
                        // Fails only if the lane is gone, and then nobody wants it.
                        drop(lane.blocking_send(order));
                    }
                    return;
                }
                Err(error) => tracing::error!(model = %turn.plan().key, error, "instance not rebuilt"),
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(RETRY.1);
        }
    });
    if let Err(error) = spawned {
        // The model's threads serve this lane's calls from now on.
        tracing::error!(%error, "no thread to rebuild an instance");
    }
}

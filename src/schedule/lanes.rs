//! The way from the loader to the lanes: bounded channels of orders, each order acknowledged.
//!
//! Also what is done on behalf of a lane and off it: freeing an instance, and making a new one
//! after a panic. What a lane does with its instances is `turn`'s business.

use super::{
    instance::{dispose, reopen},
    turn::Turn,
};
use crate::{backend::Backend, error::Error};
use std::{sync::Arc, time::Duration};
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
pub struct Lanes(Arc<[mpsc::Sender<Order>]>);

/// A lane's place in the handle, to be taken on the lane's own thread.
#[derive(Debug)]
pub struct Seat {
    pub(super) index: usize,
    pub(super) orders: mpsc::Receiver<Order>,
}

#[derive(Debug)]
pub(super) enum Order {
    /// Own this instance; a second one for the same model replaces a lost one.
    Install { turn: Arc<Turn>, instance: Box<dyn Backend>, done: Option<oneshot::Sender<()>> },
    /// Let go of what was closed or has moved.
    Sweep,
}

// === impl Lanes ===

impl Lanes {
    /// A handle to `count` lanes, and a seat for each of them.
    pub fn new(count: usize) -> (Self, Vec<Seat>) {
        let (senders, seats): (Vec<_>, Vec<_>) = (0..count)
            .map(|index| {
                let (sender, orders) = mpsc::channel(ORDERS);
                (sender, Seat { index, orders })
            })
            .unzip();
        (Self(senders.into()), seats)
    }

    /// How many lanes there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Hands each lane its instance and waits until all have accepted.
    pub(super) async fn install(&self, turn: &Arc<Turn>, instances: Vec<Box<dyn Backend>>) -> Result<(), Error> {
        if instances.len() != self.count() {
            return Err(Error::internal(format!("{} instances for {} lanes", instances.len(), self.count())));
        }
        let silent = || Error::internal("a lane accepts no instance");
        let mut accepted = Vec::with_capacity(instances.len());
        for (lane, instance) in self.0.iter().zip(instances) {
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
        for lane in self.0.iter() {
            // A full channel is as good: the lane sweeps after each batch of orders.
            drop(lane.try_send(Order::Sweep));
        }
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
            match reopen(turn.plan()) {
                Ok(instance) => {
                    if let Some(lane) = turn.lanes().0.get(lane) {
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

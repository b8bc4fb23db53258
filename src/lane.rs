//! Lanes: single-threaded runtimes, each with its own connections and no work stealing.
//!
//! A connection stays on the lane it was dealt to, with its TLS, parsing and encoding. The runs of
//! small models happen on the lane too (`schedule::turn`); those of large ones on threads of their own.
//! Lanes know nothing of listeners: the control runtime deals sockets to them.

use crate::{
    frontend::{
        Frontend,
        accept::{self, Accepted},
    },
    schedule::turn,
};
use std::{
    fmt, io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    runtime::{self, Runtime},
    sync::{Notify, mpsc},
};

/// Sockets that wait for one lane. Beyond it the next lane is tried, then the socket is closed.
const DEALT: usize = 1024;

/// Polls between two looks at the sockets. tokio's default of 61 cuts the turn of 64 ready connections in two: p99/p50
/// was 1.6 to 1.8, and 1.3 at this value (architecture section 10).
const EVENT_INTERVAL: u32 = 256;

/// How often an idle lane looks at its clock.
///
/// tokio's timer wakes its own driver (a write to an eventfd, and an event in the next poll) whenever a timer is armed
/// that is earlier than all others. Each call arms its deadline and drops it again, so without an earlier timer every
/// call pays for that: one system call in four, measured with 64 connections. With this one armed, only deadlines below
/// it do.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// What runs connections (`runtime.kind`, `runtime.lanes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settings {
    /// This many single-threaded runtimes.
    Lanes(NonZeroUsize),
    /// One runtime of this many threads that steal work from each other. There are no turns.
    WorkStealing(NonZeroUsize),
}

/// A socket on its way to a lane.
struct Deal {
    accepted: Accepted,
    frontend: Arc<Frontend>,
}

/// What runs connections. Dropping it stops everything on it.
pub struct Lanes {
    kind: Kind,
}

enum Kind {
    Lanes { lanes: Vec<Lane>, turns: turn::Lanes, next: AtomicUsize, broken: Arc<Notify> },
    WorkStealing(Option<Runtime>),
}

/// One lane: where to send it sockets, and its thread.
struct Lane {
    dealer: Option<mpsc::Sender<Deal>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// If the system gives no thread or no event loop.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let kind = match settings {
            Settings::Lanes(count) => {
                let (turns, seats) = turn::Lanes::new(count.get());
                let broken = Arc::new(Notify::new());
                let lanes = seats.into_iter().enumerate().map(|(index, seat)| Lane::start(index, seat, &broken));
                Kind::Lanes { lanes: lanes.collect::<io::Result<_>>()?, turns, next: AtomicUsize::new(0), broken }
            }
            Settings::WorkStealing(threads) => {
                let runtime = runtime::Builder::new_multi_thread()
                    .worker_threads(threads.get())
                    .thread_name("worker")
                    .enable_all()
                    .build()?;
                Kind::WorkStealing(Some(runtime))
            }
        };
        Ok(Self { kind })
    }

    /// Where models may run in turns; `None` where there are no lanes.
    pub fn turns(&self) -> Option<turn::Lanes> {
        match &self.kind {
            Kind::Lanes { turns, .. } => Some(turns.clone()),
            Kind::WorkStealing(_) => None,
        }
    }

    /// Waits until a lane has lost the task that runs its models. It has closed its connections then.
    pub async fn broken(&self) {
        match &self.kind {
            Kind::Lanes { broken, .. } => broken.notified().await,
            Kind::WorkStealing(_) => std::future::pending().await,
        }
    }

    /// Deals a socket to the next lane, round robin: SO_REUSEPORT would hash, and may put all of three long-lived
    /// connections on one lane. A socket that no lane has room for is closed.
    pub fn deal(&self, accepted: Accepted, frontend: &Arc<Frontend>) {
        let mut deal = Deal { accepted, frontend: Arc::clone(frontend) };
        match &self.kind {
            Kind::Lanes { lanes, next, .. } => {
                let first = next.fetch_add(1, Ordering::Relaxed);
                for offset in 0..lanes.len() {
                    let Some(dealer) = &lanes[(first + offset) % lanes.len()].dealer else { continue };
                    match dealer.try_send(deal) {
                        Ok(()) => return,
                        Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                            deal = back
                        }
                    }
                }
                tracing::warn!("no lane has room for a connection");
            }
            Kind::WorkStealing(Some(runtime)) => {
                runtime.spawn(accept::serve(deal.accepted, deal.frontend));
            }
            Kind::WorkStealing(None) => {}
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Lanes { lanes, .. } => {
                // All are told before any is waited for.
                lanes.iter_mut().for_each(|lane| lane.dealer = None);
                for thread in lanes.iter_mut().filter_map(|lane| lane.thread.take()) {
                    if thread.join().is_err() {
                        tracing::error!("a lane panicked");
                    }
                }
            }
            Kind::WorkStealing(runtime) => {
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
            }
        }
    }
}

impl Lane {
    fn start(index: usize, seat: turn::Seat, broken: &Arc<Notify>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
        let (dealer, mut deals) = mpsc::channel::<Deal>(DEALT);
        let broken = Arc::clone(broken);
        let run = move || {
            let (_guard, turns) = seat.enter();
            runtime.block_on(async {
                let turns = tokio::spawn(turns);
                tokio::spawn(async {
                    loop {
                        tokio::time::sleep(HEARTBEAT).await;
                    }
                });
                let deal = async {
                    while let Some(deal) = deals.recv().await {
                        tokio::spawn(accept::serve(deal.accepted, deal.frontend));
                    }
                };
                tokio::select! {
                    () = deal => {}
                    ended = turns => {
                        tracing::error!(lane = index, error = ?ended.err(), "the task that runs models ended");
                        broken.notify_one();
                    }
                }
            });
            // Dropping the runtime here, on its own thread, drops every connection that is left.
        };
        let thread = thread::Builder::new().name(format!("lane-{index}")).spawn(run)?;
        Ok(Self { dealer: Some(dealer), thread: Some(thread) })
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Lanes { lanes, .. } => write!(f, "Lanes({})", lanes.len()),
            Kind::WorkStealing(_) => f.write_str("WorkStealing"),
        }
    }
}

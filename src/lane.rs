//! Lanes: single-threaded runtimes, each with its own connections and no work stealing.
//!
//! A connection stays on the lane it was dealt to, with its TLS, parsing and encoding. The runs of
//! small models happen on the lane too (`schedule::turn`); those of large ones on threads of their own.
//! Lanes know nothing of listeners: the control runtime deals sockets to them.

use crate::{
    call::{Readiness, Turning},
    frontend::{
        Frontend,
        accept::{self, Accepted},
    },
    schedule::turn,
    telemetry::metrics::Metrics,
};
use std::{
    fmt, io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
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

/// How often somebody looks at all lanes: a run that holds one is noticed so much later than it might be.
const LOOK: Duration = Duration::from_millis(50);

/// How long lanes have to end when they are dropped. One that runs a model which does not end never would.
const END: Duration = Duration::from_secs(1);

/// When a lane that does not turn is told (`runtime.stall`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// After this the server is not ready.
    pub unready: Duration,
    /// After this it is not live.
    pub dead: Duration,
}

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
    Lanes { lanes: Vec<Lane>, turns: turn::Lanes, next: AtomicUsize, broken: Arc<Notify>, watch: Option<Watch> },
    WorkStealing(Option<Runtime>),
}

/// One lane: where to send it sockets, and its thread.
struct Lane {
    dealer: Option<mpsc::Sender<Deal>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A thread that looks at all lanes until this is dropped.
struct Watch {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Lanes {
    /// Starts the threads. `readiness` and `metrics` hear of lanes that do not turn.
    ///
    /// # Errors
    ///
    /// If the system gives no thread or no event loop.
    pub fn start(settings: Settings, stall: Stall, readiness: &Readiness, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let kind = match settings {
            Settings::Lanes(count) => {
                let (turns, seats) = turn::Lanes::new(count.get());
                let broken = Arc::new(Notify::new());
                let lanes = seats.into_iter().enumerate().map(|(index, seat)| Lane::start(index, seat, &broken));
                let lanes = lanes.collect::<io::Result<_>>()?;
                let watch = Some(Watch::start(turns.clone(), stall, readiness.clone(), Arc::clone(metrics))?);
                Kind::Lanes { lanes, turns, next: AtomicUsize::new(0), broken, watch }
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

    /// The lanes that have not turned for a second, and what they run.
    pub fn stalled(&self) -> Vec<String> {
        let Kind::Lanes { turns, .. } = &self.kind else { return Vec::new() };
        let still = turns.still(Instant::now()).enumerate().filter(|(_, still)| *still >= END);
        still
            .map(|(lane, _)| match turns.runs(lane) {
                Some(model) => format!("lane {lane}, which runs `{model}`"),
                None => format!("lane {lane}"),
            })
            .collect()
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
            Kind::Lanes { lanes, watch, .. } => {
                // All are told before any is waited for.
                lanes.iter_mut().for_each(|lane| lane.dealer = None);
                let deadline = Instant::now() + END;
                for (index, lane) in lanes.iter_mut().enumerate() {
                    let Some(thread) = lane.thread.take() else { continue };
                    while !thread.is_finished() && Instant::now() < deadline {
                        thread::park_timeout(Duration::from_millis(1));
                    }
                    if !thread.is_finished() {
                        tracing::error!(lane = index, "a lane does not end, it is left to itself");
                    } else if thread.join().is_err() {
                        tracing::error!("a lane panicked");
                    }
                }
                drop(watch.take());
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
        let pulse = seat.pulse();
        let run = move || {
            let (_guard, turns) = seat.enter();
            runtime.block_on(async {
                let turns = tokio::spawn(turns);
                tokio::spawn(async move {
                    loop {
                        pulse.beat(Instant::now());
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

impl Watch {
    fn start(turns: turn::Lanes, stall: Stall, readiness: Readiness, metrics: Arc<Metrics>) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        // The page has its series from the first look at it on.
        turns.still(Instant::now()).enumerate().for_each(|(lane, still)| metrics.lane_still(lane, still));
        let look = move || {
            let mut before = Turning::Fine;
            while !until.load(Ordering::Acquire) {
                thread::park_timeout(LOOK);
                let now = Instant::now();
                turns.look(now);
                let mut longest = (0, Duration::ZERO);
                for (lane, still) in turns.still(now).enumerate() {
                    metrics.lane_still(lane, still);
                    if still > longest.1 {
                        longest = (lane, still);
                    }
                }
                let turning = stall.turning(longest.1);
                if turning != before {
                    tell(turning, longest.0, &turns);
                    readiness.set_turning(turning);
                    before = turning;
                }
            }
        };
        let thread = thread::Builder::new().name("lane-watch".to_owned()).spawn(look)?;
        Ok(Self { over, thread })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

impl Stall {
    fn turning(self, still: Duration) -> Turning {
        match still {
            still if still >= self.dead => Turning::Dead,
            still if still >= self.unready => Turning::Stalled,
            _ => Turning::Fine,
        }
    }
}

fn tell(turning: Turning, lane: usize, turns: &turn::Lanes) {
    match turning {
        Turning::Fine => tracing::warn!("all lanes turn again"),
        Turning::Stalled | Turning::Dead => {
            let model = turns.runs(lane);
            tracing::error!(lane, model, ?turning, "a lane does not turn: its connections are not answered");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_told_of_when_it_has_not_turned_for_long() {
        let seconds = Duration::from_secs;
        let stall = Stall { unready: seconds(3), dead: seconds(60) };
        for (still, turning) in [
            (seconds(0), Turning::Fine),
            (seconds(2), Turning::Fine),
            (seconds(3), Turning::Stalled),
            (seconds(59), Turning::Stalled),
            (seconds(60), Turning::Dead),
        ] {
            assert_eq!(stall.turning(still), turning, "{still:?}");
        }
    }
}

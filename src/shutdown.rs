//! Signal, not ready, drain, stop: one procedure for all surfaces (contract 07 section 5).
//!
//! Knows the steps and their times. What each step means on a socket is the front-ends' matter; they
//! watch the [`Phase`].

use crate::{call::Readiness, frontend::Phase};
use std::{io, pin::pin, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::Instant,
};

/// After [`Phase::Stopping`], how long connections have to write their last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// After the timeout, how long the whole process has to end. With the default timeout of 25 s it is gone before Kubernetes'
/// grace of 30 s is.
const GRACE: Duration = Duration::from_secs(4);

/// After a second signal, how long.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Times of a drain (`drain`), both counted from the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long to keep accepting after readiness has turned false.
    pub delay: Duration,
    /// When whatever still runs is cancelled.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { delay: Duration::from_secs(5), timeout: Duration::from_secs(25) }
    }
}

/// Runs the whole procedure. Listeners close by themselves when the phase is no longer [`Phase::Serving`].
///
/// `all_closed` is polled from then on, and is over when no connection is open; the procedure is over with it, or
/// when everything was told to stop and had time for its last words.
pub async fn drain(
    settings: Settings,
    readiness: &Readiness,
    phase: &watch::Sender<Phase>,
    all_closed: impl Future<Output = ()>,
) {
    let started = Instant::now();
    let deadline = started + settings.timeout.max(settings.delay);
    readiness.set_draining();
    tracing::info!(delay = ?settings.delay, timeout = ?settings.timeout, "draining");
    tokio::time::sleep_until(started + settings.delay).await;
    phase.send_replace(Phase::Draining { deadline: deadline.into_std() });
    let mut all_closed = pin!(all_closed);
    if tokio::time::timeout_at(deadline, all_closed.as_mut()).await.is_ok() {
        return;
    }
    tracing::warn!("drain timeout: cancelling what still runs");
    phase.send_replace(Phase::Stopping);
    // Whoever does not manage is cut: the process must end within the grace of its platform.
    let _ = tokio::time::timeout(LAST_WORDS, all_closed).await;
}

/// Ends the process, whatever still runs on whatever thread: some time after the drain's timeout, or at once when a signal
/// comes. To be called when a drain begins.
///
/// A thread of its own waits for that: the control runtime may be waiting for what does not end.
///
/// # Errors
///
/// If the system gives no thread, or no signal.
pub fn insist(settings: Settings) -> io::Result<()> {
    let (tell, heard) = std::sync::mpsc::sync_channel(1);
    let wait = move || {
        let began = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let signals = runtime.block_on(async { Signals::install() })?;
            Ok((runtime, signals))
        };
        let (runtime, mut signals) = match began() {
            Ok(began) => began,
            Err(error) => return drop(tell.send(Err(error))),
        };
        drop(tell.send(Ok(())));
        runtime.block_on(async move {
            let late = tokio::time::sleep(settings.timeout.max(settings.delay) + GRACE);
            tokio::select! {
                signal = signals.next() => {
                    tokio::time::sleep(AT_ONCE).await;
                    tracing::warn!(signal, "the process ends although something still runs");
                }
                () = late => tracing::error!("drain timeout: the process ends although something still runs"),
            }
        });
        // Not `exit`: its handlers are those of libraries that may be at work.
        signal_hook::low_level::exit(1);
    };
    std::thread::Builder::new().name("insist".to_owned()).spawn(wait)?;
    // From now on no signal is lost.
    heard.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that waits for signals ended")))
}

/// SIGTERM and SIGINT, heard from when this is made: one that comes while nobody waits is kept for who waits next.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the system, which would end the process. Must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the handlers cannot be installed.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of either, and names it. Dropping the future loses none.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future;

    fn parts() -> (Readiness, watch::Sender<Phase>) {
        let readiness = Readiness::default();
        readiness.set_loaded(true);
        (readiness, watch::Sender::new(Phase::Serving))
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_server_leaves_as_soon_as_load_balancers_had_their_time() {
        let (readiness, phase) = parts();
        let started = Instant::now();
        let mut watch = phase.subscribe();
        let closing = tokio::spawn(async move {
            watch.wait_for(|phase| matches!(phase, Phase::Draining { .. })).await.unwrap();
            started.elapsed().as_secs()
        });
        drain(Settings::default(), &readiness, &phase, future::ready(())).await;
        assert!(!readiness.is_ready() && readiness.is_live());
        assert_eq!((started.elapsed().as_secs(), closing.await.unwrap()), (5, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_may_finish_until_the_timeout() {
        let (readiness, phase) = parts();
        let started = Instant::now();
        drain(Settings::default(), &readiness, &phase, tokio::time::sleep(Duration::from_secs(12))).await;
        assert_eq!(started.elapsed().as_secs(), 12, "seven seconds after the listeners closed");
        assert_ne!(*phase.borrow(), Phase::Stopping);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_finish_is_told_to_stop_at_the_timeout() {
        let (readiness, phase) = parts();
        let mut watch = phase.subscribe();
        let started = Instant::now();
        let stopping = tokio::spawn(async move {
            watch.wait_for(|phase| *phase == Phase::Stopping).await.unwrap();
            started.elapsed().as_secs()
        });
        drain(Settings::default(), &readiness, &phase, future::pending()).await;
        assert_eq!(stopping.await.unwrap(), 25);
    }
}

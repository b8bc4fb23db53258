//! Signal, not ready, drain, stop: one procedure for all surfaces (contract 07 section 5).
//!
//! Knows the steps and their times. What each step means on a socket is the front-ends' matter; they
//! watch the [`Phase`].

use crate::{call::Readiness, frontend::Phase};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// After [`Phase::Stopping`], how long connections have to write their last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

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

/// Counts what is still open. Cloning shares the count.
#[derive(Clone, Debug, Default)]
pub struct Open(Arc<OpenInner>);

#[derive(Debug, Default)]
struct OpenInner {
    count: AtomicUsize,
    empty: Notify,
}

impl Open {
    /// Counts one until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> OpenGuard {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        OpenGuard(self.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Waits until there is none.
    pub async fn empty(&self) {
        loop {
            let notified = self.0.empty.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One open thing. Made by [`Open::enter`].
#[derive(Debug)]
pub struct OpenGuard(Open);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        if self.0.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.0.empty.notify_waiters();
        }
    }
}

/// Runs the whole procedure; returns when nothing is open, or everything was told to stop.
///
/// `close_listeners` is called between the delay and the drain.
pub async fn drain(
    settings: Settings,
    readiness: &Readiness,
    phase: &watch::Sender<Phase>,
    open: &Open,
    close_listeners: impl FnOnce(),
) {
    let started = Instant::now();
    let deadline = started + settings.timeout.max(settings.delay);
    readiness.set_draining();
    tracing::info!(delay = ?settings.delay, timeout = ?settings.timeout, open = open.count(), "draining");
    tokio::time::sleep_until(started + settings.delay).await;
    close_listeners();
    phase.send_replace(Phase::Draining { deadline: deadline.into_std() });
    if tokio::time::timeout_at(deadline, open.empty()).await.is_err() {
        tracing::warn!(open = open.count(), "drain timeout: cancelling what still runs");
        phase.send_replace(Phase::Stopping);
        // Whoever does not manage is cut: the process must end within the grace of its platform.
        let _ = tokio::time::timeout(LAST_WORDS, open.empty()).await;
    }
    phase.send_replace(Phase::Stopping);
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
///
/// If the handlers cannot be installed.
pub async fn signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn parts() -> (Readiness, watch::Sender<Phase>, Open) {
        let readiness = Readiness::default();
        readiness.set_loaded(true);
        (readiness, watch::Sender::new(Phase::Serving), Open::default())
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_close_after_the_delay_and_an_idle_server_leaves_at_once() {
        let (readiness, phase, open) = parts();
        let closed = AtomicBool::new(false);
        let started = Instant::now();
        drain(Settings::default(), &readiness, &phase, &open, || closed.store(true, Ordering::Relaxed)).await;
        assert!(closed.load(Ordering::Relaxed) && !readiness.is_ready() && readiness.is_live());
        assert_eq!(started.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_may_finish_until_the_timeout() {
        let (readiness, phase, open) = parts();
        let guard = open.enter();
        let started = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(12)).await;
            drop(guard);
        });
        drain(Settings::default(), &readiness, &phase, &open, || {}).await;
        assert_eq!(started.elapsed().as_secs(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_finish_is_told_to_stop_at_the_timeout() {
        let (readiness, phase, open) = parts();
        let _guard = open.enter();
        let mut watch = phase.subscribe();
        let stopping = tokio::spawn(async move {
            let started = Instant::now();
            watch.wait_for(|phase| *phase == Phase::Stopping).await.unwrap();
            started.elapsed().as_secs()
        });
        drain(Settings::default(), &readiness, &phase, &open, || {}).await;
        assert_eq!(stopping.await.unwrap(), 25);
    }
}

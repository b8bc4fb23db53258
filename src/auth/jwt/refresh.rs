//! Keys that are fetched: now and then, and when a token names one that is not known yet.

use super::{KeySet, Keys, KeysError, Known, Tokens, fetch};
use futures_util::future::join_all;
use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

/// The least time between two fetches of one set: strangers can ask for them (attack I2). A shorter `refresh`, which the
/// configuration does not take, makes it shorter.
const GAP: Duration = Duration::from_secs(30);

/// The wish for another look at the keys.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    asked: Notify,
    /// Whether the last fetch failed, so that a failure is told once.
    failed: AtomicBool,
}

impl Refresh {
    /// Asks for a fetch as soon as there may be one. Asking twice is asking once.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }
}

impl Tokens {
    /// Fetches every set that is to be fetched, once: a server that starts should know its callers. It takes 5 s at most, and
    /// what fails is told and tried again by [`Tokens::keep_fetching`].
    pub async fn fetch(&self) {
        join_all(self.issuers.iter().map(|known| self.fetch_of(known))).await;
    }

    /// Fetches for as long as it is polled. Old keys stay until there are new ones.
    pub async fn keep_fetching(&self) -> Infallible {
        join_all(self.issuers.iter().map(|known| self.keep_fetching_of(known))).await;
        // Nothing has to be fetched.
        std::future::pending().await
    }

    async fn keep_fetching_of(&self, known: &Known) {
        let Keys::Url { refresh, .. } = known.settings.keys else { return };
        let gap = GAP.min(refresh);
        loop {
            let now = Instant::now();
            // What failed is tried again as soon as it may be.
            let next = now + if known.refresh.failed.load(Ordering::Relaxed) { gap } else { refresh };
            sleep_until(now + gap).await;
            // Over time and asked for are the same to us.
            let _ = timeout_at(next, known.refresh.asked.notified()).await;
            self.fetch_of(known).await;
        }
    }

    async fn fetch_of(&self, known: &Known) {
        let Keys::Url { url, trust, .. } = &known.settings.keys else { return };
        let fetched = fetch::get(url, trust).await;
        // A secret that is fetched is none.
        let keys = fetched.and_then(|json| KeySet::parse(&json, &known.settings.algorithms, false));
        let issuer = &*known.settings.issuer;
        match keys.map(|keys| self.take(known, keys)) {
            Ok(changed) => {
                let recovered = known.refresh.failed.swap(false, Ordering::Relaxed);
                if changed || recovered {
                    tracing::info!(issuer, "keys were fetched");
                }
            }
            Err(KeysError(error)) => {
                if !known.refresh.failed.swap(true, Ordering::Relaxed) {
                    tracing::error!(issuer, %url, error, "keys cannot be fetched, the old ones stay");
                }
            }
        }
    }
}

//! Reading the configuration again while the gateway runs, and applying the part of it that may change.
//!
//! Read, checked as a whole, and only then applied: a file with any error changes nothing. What needs a restart is named
//! and left as it is. Does not know keys and certificates, whose files are read again by those who use them.

use super::reload::{EVERY, Files, Reloader};
use crate::{
    auth::{Authenticator, grants::Grants, jwt::Tokens},
    config::{Changes, Config},
    current::Current,
    frontend::Frontend,
    layer::deadline,
    limit::{RateLimiter, redis},
    telemetry::{metrics::Metrics, switches::Switches},
};
use arc_swap::ArcSwap;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// What may change while the gateway runs.
#[derive(Debug)]
pub(super) struct Live {
    config: Mutex<Config>,
    /// Of connections from now on; those that are open keep the one that they began with.
    pub(super) frontend: Arc<ArcSwap<Frontend>>,
    pub(super) grants: Arc<Current<Grants>>,
    pub(super) limiter: Arc<Current<RateLimiter>>,
    pub(super) deadlines: deadline::Shared,
    pub(super) switches: Arc<Switches>,
    pub(super) metrics: Arc<Metrics>,
}

impl Live {
    pub(super) fn new(
        config: Config,
        frontend: Frontend,
        (grants, limiter): (Arc<Current<Grants>>, Arc<Current<RateLimiter>>),
        deadlines: deadline::Shared,
        switches: Arc<Switches>,
    ) -> Self {
        let (metrics, frontend) = (Arc::clone(&frontend.metrics), Arc::new(ArcSwap::from_pointee(frontend)));
        Self { config: Mutex::new(config), frontend, grants, limiter, deadlines, switches, metrics }
    }

    /// Reads the file again and applies what may change.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it; nothing was changed then.
    pub(super) fn reload(&self) -> Result<Changes, String> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(source) = config.source.clone() else { return Ok(Changes::default()) };
        let newer = Config::load(Some(&source.path), source.overrides).map_err(|problems| problems.to_string())?;
        let changes = config.written.changes(&newer.written);
        self.apply(&config, &newer);
        // What needs a restart is compared with what is in use until there was one, and so is named each time.
        let applied = Config {
            grants: newer.grants,
            rates: newer.rates,
            deadline: newer.deadline,
            frontend: newer.frontend,
            ..config.clone()
        };
        let log = crate::config::Log { level: newer.telemetry.log.level, ..config.telemetry.log };
        *config = Config { written: config.written.with(&newer.written, &changes.live), ..applied };
        config.telemetry.log = log;
        Ok(changes)
    }

    fn apply(&self, old: &Config, new: &Config) {
        // Policies that stay keep what was counted: saving the file must not hand out a new burst.
        if old.rates != new.rates {
            let before = self.limiter.get();
            self.limiter.set(before.renewed(new.rates.clone(), old.buckets));
        }
        self.grants.set(Grants::new(new.grants.clone()));
        self.deadlines.set(super::settings::deadlines(&new.deadline));
        let before = self.frontend.load();
        self.frontend.store(Arc::new(before.with_settings(new.frontend.clone())));
        // Only if the file changed it: operators may have set another by a call meanwhile.
        if old.telemetry.log.level != new.telemetry.log.level {
            self.switches.set_level(&super::settings::log(&new.telemetry).level);
        }
    }

    /// Reloads on SIGHUP and whenever the file's contents have changed and stayed so for a moment, for ever: half a file
    /// that is being written may be valid, and an empty one is.
    ///
    /// # Errors
    ///
    /// If the signal cannot be heard.
    pub(super) async fn follow(self: Arc<Self>) -> io::Result<()> {
        let path = self.config.lock().unwrap_or_else(PoisonError::into_inner).source.clone().map(|source| source.path);
        let mut hangup = signal(SignalKind::hangup())?;
        let mut file = Files::new(path);
        let mut pending = false;
        loop {
            let asked = tokio::select! {
                asked = asked(&mut hangup) => asked,
                () = tokio::time::sleep(EVERY) => false,
            };
            let changed = file.changed();
            if asked || (pending && !changed) {
                pending = false;
                self.say(self.reload());
            } else {
                pending |= changed;
            }
        }
    }

    fn say(&self, reloaded: Result<Changes, String>) {
        self.metrics.config_file_reloaded(reloaded.is_ok());
        match reloaded {
            Ok(Changes { live, fixed }) => {
                match live.is_empty() {
                    true => tracing::info!("the configuration was read again, there is nothing to apply"),
                    false => tracing::info!(changed = live.join(", "), "the configuration was read again"),
                }
                if !fixed.is_empty() {
                    tracing::warn!(keys = fixed.join(", "), "changed in the configuration, and needs a restart");
                }
            }
            Err(problems) => {
                tracing::error!(%problems, "the configuration cannot be read again, the old one stays");
            }
        }
    }
}

/// What is shared with other processes; the link to them ends with its last user.
///
/// # Errors
///
/// If the settings name no Redis.
pub(super) fn share(settings: &redis::Settings, metrics: &Arc<Metrics>) -> Result<redis::Shared, String> {
    let (shared, link) = redis::Shared::new(settings, Instant::now())?;
    tokio::spawn(watch_shared(link.presence(), Arc::clone(metrics)));
    tokio::spawn(link.serve());
    Ok(shared)
}

/// Tells the metrics whether shared limits are there.
async fn watch_shared(mut presence: watch::Receiver<bool>, metrics: Arc<Metrics>) {
    loop {
        metrics.shared_limits(*presence.borrow_and_update());
        if presence.changed().await.is_err() {
            return;
        }
    }
}

async fn asked(hangup: &mut Signal) -> bool {
    hangup.recv().await.is_some()
}

/// What callers prove themselves by may change while they call.
pub(super) fn reload_credentials(reloader: &mut Reloader, authenticator: &Arc<Authenticator>) {
    if let Some(path) = authenticator.key_file() {
        let (path, authenticator) = (path.to_owned(), Arc::clone(authenticator));
        reloader.add("keys", [path], move || authenticator.reload_keys().map_err(|error| error.to_string()));
    }
    for (place, path) in authenticator.tokens().into_iter().flat_map(Tokens::files) {
        let (path, authenticator) = (path.to_owned(), Arc::clone(authenticator));
        reloader.add("keys of an issuer", [path], move || match authenticator.tokens() {
            Some(tokens) => tokens.reload(place).map_err(|error| error.to_string()),
            None => Ok(()),
        });
    }
}

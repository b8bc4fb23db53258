//! The composition root: a configuration becomes lanes, models, the stack and listeners; then it runs until drained.
//!
//! Everything is made here and handed down; no other module reaches for a global.

use crate::{
    admin::Admin,
    auth::{Authenticator, grants::Grants},
    backend::Open,
    call::Readiness,
    config::{Config, Listen},
    frontend::{
        Frontend, Phase,
        accept::{Listener, Places},
        body,
        tls::Tls,
    },
    lane::Lanes,
    layer::admit::Slots,
    limit::{RateLimiter, address::AddressGate},
    model::{loader::Loader, router::Router},
    shutdown, stack,
    telemetry::{access_log::AccessLog, metrics::Metrics},
};
use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// How often the file of keys is looked at: a revoked key must fail within a second (contract 06 C1).
const KEYS_EVERY: Duration = Duration::from_millis(500);
/// How often idle rate buckets and addresses are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A gateway that serves. Dropping it stops it at once.
#[derive(Debug)]
pub struct App {
    addresses: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    readiness: Readiness,
    phase: watch::Sender<Phase>,
    places: Places,
    drain: shutdown::Settings,
    loader: Arc<Loader>,
    /// Acceptors, the admin listener, sweeps: they end with this.
    tasks: JoinSet<()>,
    /// Last, so that connections live until the tasks are gone.
    _lanes: Arc<Lanes>,
}

/// Why a gateway cannot start, in words for operators.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl StartError {
    fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Starts a gateway on the current runtime, which becomes its control runtime. Models load in the background; see
/// [`App::loaded`].
///
/// # Errors
///
/// [`StartError`] for a port in use, an unreadable file of keys or certificates, or a system that gives no thread.
pub async fn start(config: Config, opener: Arc<dyn Open>) -> Result<App, StartError> {
    let readiness = Readiness::default();
    let metrics = Arc::new(Metrics::new());
    let phase = watch::Sender::new(Phase::Serving);
    let places = Places::new(config.frontend.connections);
    let addresses = Arc::new(AddressGate::new(config.addresses.clone()));

    // Ports first: a second instance should fail before it loads a gigabyte of models.
    let listeners = config.listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let admin = match &config.admin {
        Some(admin) => Some(bind_admin(admin.address).await?),
        None => None,
    };

    let authenticator = Arc::new(Authenticator::new(&config.auth).map_err(StartError::new)?);
    let limiter = Arc::new(RateLimiter::new(config.rates.clone(), Instant::now(), config.buckets));
    let slots = &config.concurrency;
    let access_log = match config.access_log {
        true => Some(AccessLog::start(std::io::stderr(), config.log.format).map_err(StartError::new)?),
        false => None,
    };
    body::start_decoders(config.runtime.decode_threads);
    let lanes = Arc::new(Lanes::start(config.runtime.lanes).map_err(StartError::new)?);
    let loader = Loader::start(config.models.clone(), opener, lanes.turns(), Arc::clone(&metrics));
    let gateway = stack::build(stack::Parts {
        access_log,
        metrics: Arc::clone(&metrics),
        deadlines: config.deadline,
        authenticator: Arc::clone(&authenticator),
        limiter: Arc::clone(&limiter),
        slots: Arc::new(Slots::new(slots.calls, slots.inspect, slots.per_identity)),
        grants: Arc::new(Grants::new(config.grants.clone())),
        router: Router::new(loader.repository()),
    });
    let frontend = Arc::new(Frontend {
        gateway,
        readiness: readiness.clone(),
        phase: phase.subscribe(),
        metrics: Arc::clone(&metrics),
        addresses: Arc::clone(&addresses),
        memory: body::Memory::new(config.frontend.concurrency.memory),
        settings: config.frontend,
    });

    let mut tasks = JoinSet::new();
    let bound = listeners.iter().map(Listener::local).collect();
    for listener in listeners {
        let (lanes, frontend) = (Arc::clone(&lanes), Arc::clone(&frontend));
        tasks.spawn(listener.accept(
            places.clone(),
            Arc::clone(&addresses),
            Arc::clone(&metrics),
            phase.subscribe(),
            move |accepted| lanes.deal(accepted, &frontend),
        ));
    }
    let admin_address = admin.as_ref().and_then(|listener| listener.local_addr().ok());
    if let Some(listener) = admin {
        tasks.spawn(Admin { readiness: readiness.clone(), metrics: Arc::clone(&metrics) }.serve(listener));
    }
    tasks.spawn(reload_keys(authenticator, metrics));
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            limiter.sweep(Instant::now());
            addresses.sweep();
        }
    });
    Ok(App {
        addresses: bound,
        admin: admin_address,
        readiness,
        phase,
        places,
        drain: config.drain,
        loader,
        tasks,
        _lanes: lanes,
    })
}

fn bind(listen: &Listen) -> Result<Listener, StartError> {
    let tls = match &listen.tls {
        Some(tls) => Some(Tls::from_files(&tls.certificate, &tls.key).map_err(StartError::new)?),
        None => None,
    };
    Listener::bind(listen.address, listen.surfaces, tls).map_err(StartError::new)
}

async fn bind_admin(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| StartError(format!("cannot listen on `{address}` (`admin.address`): {error}")))
}

/// Re-reads the file of keys when it changes. A broken file changes nothing, and is said once per change.
async fn reload_keys(authenticator: Arc<Authenticator>, metrics: Arc<Metrics>) {
    loop {
        tokio::time::sleep(KEYS_EVERY).await;
        match authenticator.reload_if_changed() {
            Ok(false) => {}
            Ok(true) => {
                metrics.config_reloaded(true);
                tracing::info!("keys were read again");
            }
            Err(error) => {
                metrics.config_reloaded(false);
                tracing::error!(%error, "keys cannot be read again, the old ones stay");
            }
        }
    }
}

impl App {
    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }
}

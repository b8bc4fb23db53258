//! The composition root: a configuration becomes lanes, models, the stack and listeners; then it runs until drained.
//!
//! Everything is made here and handed down; no other module reaches for a global.

mod banner;
mod listeners;
mod live;
mod memory;
mod models;
mod reload;
mod settings;

pub use listeners::tls;
pub use settings::{lane_count, models as model_settings, optimized as optimized_settings, probe as probe_settings};

use crate::{
    admin::Admin,
    auth::{Authenticator, grants::Grants},
    backend::Open,
    call::{Gateway, Readiness},
    config::{self, Config, Listen},
    current::Current,
    frontend::{
        Frontend, Phase, Surfaces, Tickets,
        accept::{Listener, Places},
        body,
        tls::Tls,
    },
    lane::Lanes,
    layer::{admit::Slots, deadline},
    limit::{
        RateLimiter,
        address::AddressGate,
        shared_slots::{SharedSlots, TEND_EVERY},
    },
    model::{self, Loaded, Loader, Repository, Router, Shadows, control::Control},
    shutdown, stack,
    telemetry::{
        self,
        access_log::AccessLog,
        metrics::Metrics,
        switches::Switches,
        traces::{Exporter, Tracer},
    },
};
use futures_util::FutureExt;
use listeners::{bind, bind_admin};
use live::{Live, reload_credentials};
use reload::Reloader;
use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
};

/// How long inference threads have to end once nobody waits for them any more.
const THREADS_END: Duration = Duration::from_millis(500);
/// The last traces have this long to be sent.
const TRACES_END: Duration = Duration::from_secs(2);
/// The access log's last lines have this long to be written.
const LOG_END: Duration = Duration::from_secs(1);
/// How often idle rate buckets and addresses are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// The same where what lies unused is to be returned to others.
const SWEEP_SHARED_EVERY: Duration = Duration::from_secs(1);

/// A gateway that serves. Dropping it stops it at once.
#[derive(Debug)]
pub struct App {
    bound: Vec<Bound>,
    admin: Option<SocketAddr>,
    admin_tls: bool,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    phase: watch::Sender<Phase>,
    places: Places,
    drain: shutdown::Settings,
    repository: Arc<Repository>,
    access_log: Option<AccessLog>,
    /// What stops the sending of traces, and its end.
    traces: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
    loaded: watch::Receiver<Option<Arc<Loaded>>>,
    /// Acceptors, the admin listener, the loader, sweeps: they end with this. Each says its name if it should not end.
    tasks: tokio::sync::Mutex<JoinSet<Option<&'static str>>>,
    /// After the tasks, so that nobody deals to lanes that are gone.
    lanes: Arc<Lanes>,
}

/// Makes the gateway of its parts; [`stack::build`] is the one that is served.
pub type Build = fn(Parts) -> Gateway;

/// What the gateway is made of; settings that a reload changes are seen by each call as they are then.
pub type Parts = stack::Parts<Router, Authenticator, Current<RateLimiter>, Current<Grants>>;

/// A listener as it came to be.
#[derive(Clone, Copy, Debug)]
struct Bound {
    address: SocketAddr,
    tls: bool,
    surfaces: Surfaces,
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
    start_built(config, opener, stack::build).await
}

/// The same with a gateway of another `build`, as a bench has that leaves the layers out.
///
/// # Errors
///
/// As [`start`].
pub async fn start_built(config: Config, opener: Arc<dyn Open>, build: Build) -> Result<App, StartError> {
    start_with(config, opener, Switches::default(), build).await
}

async fn start_with(
    config: Config,
    opener: Arc<dyn Open>,
    switches: Switches,
    build: Build,
) -> Result<App, StartError> {
    let readiness = Readiness::default();
    let metrics = Arc::new(Metrics::with(config.telemetry.metrics));
    let switches = Arc::new(switches);
    let phase = watch::Sender::new(Phase::Serving);
    let places = Places::new(config.frontend.connections);
    let addresses = Arc::new(AddressGate::new(config.addresses.clone()));

    // Ports first: a second instance should fail before it loads a gigabyte of models.
    let listeners = config.listen.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    let admin = match &config.admin {
        Some(admin) => Some(bind_admin(admin).await?),
        None => None,
    };

    let authenticator = Arc::new(Authenticator::new(&config.auth).map_err(StartError::new)?);
    if let Some(tokens) = authenticator.tokens() {
        tokens.fetch().await;
    }
    let shared = config.shared.as_ref().map(|settings| live::share(settings, &metrics));
    let shared = shared.transpose().map_err(StartError::new)?;
    let limiter = RateLimiter::new(config.rates.clone(), Instant::now(), config.buckets);
    let (limiter, sweep_every) = match &shared {
        Some(shared) => (limiter.sharing(shared.clone()), SWEEP_SHARED_EVERY),
        None => (limiter, SWEEP_EVERY),
    };
    let limiter = Arc::new(Current::new(limiter));
    let grants = Arc::new(Current::new(Grants::new(config.grants.clone())));
    let deadlines = deadline::Shared::from(settings::deadlines(&config.deadline));
    let calls = config.concurrency;
    let shared_slots = match (&shared, calls.per_identity) {
        (Some(shared), Some(limit)) => {
            Some(Arc::new(SharedSlots::new(limit, config.buckets, shared.clone()).map_err(StartError::new)?))
        }
        (None, _) | (_, None) => None,
    };
    let slots = Slots::new(calls.calls, calls.inspect, calls.per_identity).with_weights(config.weights.iter().cloned());
    let slots = match &shared_slots {
        Some(shared) => slots.sharing(Arc::clone(shared)),
        None => slots,
    };
    let access_log = match config.telemetry.access_log {
        true => {
            let out = std::io::stderr();
            let format = settings::log(&config.telemetry).format.for_output(&out);
            Some(AccessLog::start(out, format).map_err(StartError::new)?)
        }
        false => None,
    };
    let (tracer, exporter) = tracing_calls(&config, &metrics)?.unzip();
    body::start_decoders(config.runtime.decode_threads);
    let lanes = Lanes::start(settings::lanes(&config.runtime), config.runtime.stall, &readiness, &metrics);
    let lanes = Arc::new(lanes.map_err(StartError::new)?);
    let repository = Arc::new(Repository::new(readiness.clone()));
    let loader = Arc::new(Loader::new(
        settings::models(&config),
        opener,
        Arc::clone(&repository),
        Arc::clone(&metrics),
        lanes.turns(),
    ));
    let (control, orders) = match config.models.control {
        config::Control::Explicit => {
            let (control, orders) = Control::new();
            (Some(control), Some(orders))
        }
        config::Control::Fixed | config::Control::Watch(_) => (None, None),
    };
    let gateway = build(stack::Parts {
        access_log: access_log.clone(),
        tracer,
        metrics: Arc::clone(&metrics),
        deadlines: deadlines.clone(),
        authenticator: Arc::clone(&authenticator),
        limiter: Arc::clone(&limiter),
        slots: Arc::new(slots),
        sessions: calls.sessions,
        grants: Arc::clone(&grants),
        router: Router::managed(
            Arc::clone(&repository),
            control,
            Arc::clone(&switches),
            Some(Shadows::new(Arc::clone(&metrics))),
        ),
    });
    let frontend = Frontend {
        gateway,
        readiness: readiness.clone(),
        phase: phase.subscribe(),
        metrics: Arc::clone(&metrics),
        addresses: Arc::clone(&addresses),
        memory: body::Memory::new(config.frontend.concurrency.memory),
        tickets: Tickets::new(config.frontend.websocket.tickets),
        proofs: authenticator.changes(),
        steering: repository.steering().clone(),
        settings: config.frontend.clone(),
    };
    let (required, control, drain) = (config.models.required.clone(), config.models.control, config.drain);
    let listen = config.listen.clone();
    let live = Live::new(config, frontend, (grants, Arc::clone(&limiter)), deadlines, switches);
    let live = Arc::new(live);

    let mut tasks = JoinSet::new();
    let admin_tls = admin.as_ref().and_then(|(_, tls)| tls.clone());
    let has_admin_tls = admin_tls.is_some();
    let tls_in_use: Vec<Tls> = listeners.iter().filter_map(Listener::tls).cloned().chain(admin_tls).collect();
    let bind = |(listener, listen): (&Listener, &Listen)| Bound {
        address: listener.local(),
        tls: listener.tls().is_some(),
        surfaces: listen.surfaces,
    };
    let bound = listeners.iter().zip(&listen).map(bind).collect();
    let admin_address = admin.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
    if let Some((listener, tls)) = admin {
        let admin = Admin {
            readiness: readiness.clone(),
            metrics: Arc::clone(&metrics),
            repository: Arc::clone(&repository),
            frontend: Arc::clone(&live.frontend),
        };
        tasks.spawn(admin.serve(listener, tls).map(|()| Some("the admin listener")));
    }
    let deals = Arc::clone(&live.frontend);
    let gate = Arc::clone(&addresses);
    let mut reloader = Reloader::default();
    reload_credentials(&mut reloader, &authenticator);
    for tls in tls_in_use {
        let files: Vec<_> = tls.settings().files().map(Path::to_owned).collect();
        reloader.add("certificates", files, move || tls.reload().map_err(|error| error.to_string()));
    }
    tasks.spawn(async move {
        match authenticator.tokens() {
            Some(tokens) => match tokens.keep_fetching().await {},
            None => None,
        }
    });
    tasks.spawn(reloader.run(Arc::clone(&metrics)).map(|()| Some("the reader of changed files")));
    tasks.spawn(async move {
        let error = live.follow().await.err();
        tracing::error!(?error, "the configuration is not read again");
        None
    });
    // Not one of the tasks: it ends after them, when everything that was traced is told.
    let traces = exporter.map(|exporter| {
        let (stop, stopped) = oneshot::channel::<()>();
        (stop, tokio::spawn(exporter.run(stopped.map(|_| ()))))
    });
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(sweep_every).await;
            limiter.get().sweep(Instant::now());
            addresses.sweep();
        }
    });
    if let Some(slots) = shared_slots {
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(TEND_EVERY).await;
                slots.tend();
            }
        });
    }
    if let Some(orders) = orders {
        // Ends with the stack, whose router holds the other end.
        let obeying = orders.obey(Arc::clone(&loader), Arc::clone(&repository));
        tasks.spawn(obeying.map(|()| Some("the loader")));
    }
    tasks.spawn(model::tend(Arc::clone(&repository)).map(|never| match never {}));
    let (tell, loaded) = watch::channel(None);
    let watch = match control {
        config::Control::Watch(settings) => Some(settings),
        config::Control::Fixed | config::Control::Explicit => None,
    };
    let (scanning, scanned) = oneshot::channel();
    tasks.spawn(models::serve(loader, Arc::clone(&repository), watch, required, readiness.clone(), tell, scanning));
    models::known(scanned).await;
    for listener in listeners {
        let (lanes, frontend) = (Arc::clone(&lanes), Arc::clone(&deals));
        let accept = listener.accept(
            places.clone(),
            Arc::clone(&gate),
            Arc::clone(&metrics),
            phase.subscribe(),
            move |accepted| lanes.deal(accepted, &frontend.load_full()),
        );
        tasks.spawn(accept.map(|_| Some("a listener")));
    }
    Ok(App {
        bound,
        admin: admin_address,
        admin_tls: has_admin_tls,
        metrics,
        readiness,
        phase,
        places,
        drain: shutdown::Settings { delay: drain.delay, timeout: drain.timeout },
        repository,
        access_log,
        traces: Mutex::new(traces),
        loaded,
        tasks: tokio::sync::Mutex::new(tasks),
        lanes,
    })
}

/// Serves until SIGTERM or SIGINT, then drains; a second signal stops at once. Prints a banner to standard output.
///
/// This thread becomes the control runtime.
///
/// # Errors
///
/// As [`start`], and, after the drain, if something ended without which the gateway cannot serve.
pub fn run(config: Config, opener: Arc<dyn Open>, ort_version: &str) -> Result<(), StartError> {
    let log = settings::log(&config.telemetry);
    let set_level = telemetry::start_logs(&log).map_err(StartError::new)?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::new)?;
    let result = control.block_on(async {
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        // Before anything is started: whatever it waits for, a signal is a drain and not the system's sudden end.
        let mut signals = shutdown::Signals::install().map_err(StartError::new)?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), ort_version, "starting");
        let secured = config.auth.has_method();
        let app = start_with(config, opener, Switches::new(&log.level, set_level), stack::build).await?;
        app.metrics.build_info(ort_version);
        let banner = async {
            let loaded = app.loaded().await;
            banner::print(&app, &loaded, ort_version, secured);
            std::future::pending::<Infallible>().await
        };
        let broken = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            what = app.broken() => {
                app.readiness().set_broken();
                tracing::error!(what, "stopping: the gateway is broken");
                Err(StartError(format!("stopped, because the gateway is broken: {what}")))
            }
            never = banner => match never {},
        };
        // Whatever holds this thread or another up from now on, the process ends.
        shutdown::insist(app.drain).map_err(StartError::new)?;
        let left = tokio::select! {
            left = app.drain() => left,
            _ = signals.next() => {
                tracing::warn!("second signal: stopping at once");
                Vec::new()
            }
        };
        match left.as_slice() {
            [] => broken,
            left => broken.and(Err(StartError(format!("stopped while this had not ended: {}", left.join(", "))))),
        }
    });
    // What still runs on this runtime has nobody to answer to.
    control.shutdown_background();
    result
}

/// What traces calls and what sends the traces, if the configuration asks for it.
fn tracing_calls(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<(Tracer, Exporter)>, StartError> {
    let tracer = config.telemetry.otlp.as_ref().map(|settings| Tracer::new(settings, Arc::clone(metrics)));
    tracer.transpose().map_err(StartError::new)
}

impl App {
    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|bound| bound.address).collect()
    }

    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// What probes answer.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// The models.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Waits until every model was loaded or has failed, and says which.
    pub async fn loaded(&self) -> Arc<Loaded> {
        let mut loaded = self.loaded.clone();
        match loaded.wait_for(Option::is_some).await {
            Ok(loaded) => loaded.clone().unwrap_or_default(),
            // The loader's task panicked: nothing was loaded.
            Err(_) => Arc::default(),
        }
    }

    /// Waits until something has ended that should not while the gateway serves, and says what. Not for a gateway that
    /// drains, where listeners do end.
    pub async fn broken(&self) -> String {
        let tasks = async {
            let mut tasks = self.tasks.lock().await;
            loop {
                match tasks.join_next().await {
                    Some(Ok(None)) => {}
                    Some(Ok(Some(name))) => break format!("{name} ended"),
                    Some(Err(error)) => break error.to_string(),
                    None => break "all tasks ended".to_owned(),
                }
            }
        };
        tokio::select! {
            what = tasks => what,
            () = self.lanes.broken() => "a lane cannot run models any more".to_owned(),
        }
    }

    /// Drains as contract 07 section 5 says; over when no connection is open or the time is up. Returns what has not ended, in
    /// words for operators.
    pub async fn drain(&self) -> Vec<String> {
        shutdown::drain(self.drain, &self.readiness, &self.phase, self.places.all_free()).await;
        let repository = Arc::clone(&self.repository);
        let (done, ended) = oneshot::channel();
        // Waiting for threads blocks, so a thread does it.
        let waiting = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
            let _ = done.send(repository.close(Instant::now() + THREADS_END));
        });
        let mut left = self.lanes.stalled();
        if waiting.is_ok() && !ended.await.unwrap_or(false) {
            left.push("a run on a thread".to_owned());
        }
        if !left.is_empty() {
            tracing::warn!(left = left.join(", "), "a run did not end; the process ends without it");
        }
        let traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, ended)) = traces {
            drop(stop);
            let _ = tokio::time::timeout(TRACES_END, ended).await;
        }
        if let Some(log) = &self.access_log {
            log.flush(LOG_END);
        }
        left
    }
}

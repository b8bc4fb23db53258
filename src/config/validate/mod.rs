//! From what people wrote to what the program sees; whatever is wrong is reported with its path, all of it.

mod auth;
mod ensemble;
mod limits;
mod models;
mod session;
mod traffic;

pub(super) use models::{OUTSIDE, is_inside, is_plain, model, model_defaults};
pub(crate) use traffic::routing;

use super::{Admin, Amount, Config, Drain, Listen, Overrides, Problems, Runtime, Telemetry, Written, raw};
use crate::{
    auth as authentication,
    call::{ModelRef, Surface},
    frontend::{Settings, Surfaces, settings},
    lane::Stall,
    schedule::TurnSettings,
    telemetry::{metrics, traces},
    wire,
};
use http::{HeaderName, HeaderValue};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Turns the raw configuration into the real one. What it returns is only to be used if no problem was found.
pub(super) fn config(
    raw: &raw::Config,
    folder: &Path,
    writes_directory: bool,
    overrides: Overrides,
    problems: &mut Problems,
) -> Config {
    if raw.version != 1 {
        problems.push("version", format!("{} is not known, expected 1", raw.version));
    }
    let auth = auth::authentication(&raw.auth, folder, problems);
    auth::check_mtls(raw, problems);
    let mut models = models::models(&raw.models, if writes_directory { folder } else { Path::new("") }, problems);
    models.directories = overrides.models.map_or(models.directories, |directory| vec![directory]);
    let admin = raw.admin.as_ref().and_then(|admin| {
        let tls = admin.tls.as_ref().map(|tls| auth::tls("admin", tls, folder, problems));
        address("admin.address", &admin.address, problems).map(|address| Admin { address, tls })
    });
    // The address that a flag says, with the certificates that only the file can.
    let admin = match overrides.admin_listen {
        Some(address) => Some(Admin { address, tls: admin.and_then(|admin| admin.tls) }),
        None => admin,
    };
    let mut runtime = runtime(&raw.runtime, folder, problems);
    runtime.onnxruntime = overrides.onnxruntime.or(runtime.onnxruntime);
    let mut log = raw.telemetry.log;
    log.format = overrides.log_format.unwrap_or(log.format);
    let admin_path = if overrides.admin_listen.is_some() { "--admin-listen" } else { "admin.address" };
    let admin_at = admin.as_ref().map(|admin| (admin_path, admin.address));
    let listen = listeners(&raw.listen, &overrides.listen, admin_at, folder, &auth, problems);
    let addresses = limits::addresses(&raw.limits, &listen, problems);
    let config = Config {
        listen,
        admin,
        auth,
        grants: raw.grants.iter().enumerate().map(|(at, grant)| auth::rule(at, grant, problems)).collect(),
        frontend: frontend(raw, problems),
        addresses,
        rates: limits::rates(&raw.limits.rate, problems),
        shared: limits::shared(&raw.limits, folder, problems),
        weights: limits::weights(&raw.limits, problems),
        buckets: raw.limits.buckets.0,
        concurrency: limits::concurrency(&raw.limits),
        deadline: limits::deadline(&raw.limits.deadline, problems),
        models,
        runtime,
        telemetry: Telemetry {
            log,
            access_log: raw.telemetry.access_log.enabled,
            metrics: metrics::Settings {
                nv_view: raw.telemetry.metrics.nv_view,
                by_identity: raw.telemetry.metrics.by_identity,
            },
            otlp: raw.telemetry.otlp.as_ref().map(|otlp| self::otlp(otlp, problems)),
        },
        drain: Drain { delay: raw.drain.delay.0, timeout: raw.drain.timeout.0 },
        written: Written::of(raw),
        source: None,
    };
    limits::check(&raw.limits, problems);
    models::check(raw, problems);
    if raw.runtime.turn.run > raw.runtime.turn.budget {
        let (run, budget) = (raw.runtime.turn.run, raw.runtime.turn.budget);
        problems.push("runtime.turn.run", format!("{run} is above runtime.turn.budget ({budget})"));
    }
    if raw.runtime.turn.budget > raw.runtime.turn.limit {
        let (budget, limit) = (raw.runtime.turn.budget, raw.runtime.turn.limit);
        problems.push("runtime.turn.limit", format!("{limit} is below runtime.turn.budget ({budget})"));
    }
    if raw.runtime.stall.unready > raw.runtime.stall.dead {
        let (unready, dead) = (raw.runtime.stall.unready, raw.runtime.stall.dead);
        problems.push("runtime.stall.unready", format!("{unready} is above runtime.stall.dead ({dead})"));
    }
    if raw.drain.delay > raw.drain.timeout {
        let (delay, timeout) = (raw.drain.delay, raw.drain.timeout);
        problems.push("drain.delay", format!("{delay} is above drain.timeout ({timeout})"));
    }
    config
}

fn listeners(
    raw: &[raw::Listen],
    flags: &[SocketAddr],
    admin: Option<(&str, SocketAddr)>,
    folder: &Path,
    auth: &authentication::Settings,
    problems: &mut Problems,
) -> Vec<Listen> {
    if raw.is_empty() && flags.is_empty() {
        problems.missing("listen", "the list is empty, expected one listener at least");
    }
    let mut listeners = Vec::new();
    for (at, listen) in raw.iter().enumerate() {
        let path = format!("listen[{at}]");
        let found = address(&format!("{path}.address"), &listen.address, problems);
        let surfaces = surfaces(&format!("{path}.surfaces"), &listen.surfaces, problems);
        let tls = listen.tls.as_ref().map(|tls| auth::tls(&path, tls, folder, problems));
        let trusted_proxies = limits::networks(&format!("{path}.trusted_proxies"), &listen.trusted_proxies, problems);
        if let Some(address) = found {
            listeners.push((format!("{path}.address"), Listen { address, surfaces, tls, trusted_proxies }));
        }
    }
    if !flags.is_empty() {
        let listen = |address: &SocketAddr| Listen {
            address: *address,
            surfaces: Surfaces::ALL,
            tls: None,
            trusted_proxies: Vec::new(),
        };
        listeners = flags.iter().map(|address| ("--listen".to_owned(), listen(address))).collect();
    }
    for (at, (path, Listen { address, .. })) in listeners.iter().enumerate() {
        let earlier = listeners[..at].iter().map(|(path, earlier)| (&**path, earlier.address));
        if let Some((other, found)) = admin.into_iter().chain(earlier).find(|(_, found)| collide(*found, *address)) {
            problems.push(path, format!("{address} cannot be listened on beside {found} (`{other}`)"));
        }
        let is_open = !address.ip().to_canonical().is_loopback();
        if is_open && !auth.has_method() && auth.anonymous == authentication::Anonymous::Loopback {
            problems.push(
                path,
                format!(
                    "{address} can be reached from other machines, and nothing is configured by which callers prove \
                     who they are; configure `auth.api_keys`, `auth.jwt` or `auth.mtls`, or write `auth.anonymous: always` to let everyone in \
                     with the grants of `anonymous`"
                ),
            );
        }
    }
    listeners.into_iter().map(|(_, listen)| listen).collect()
}

/// Whether the system gives only one of two addresses: they are the same, or one of them is every address of a port. `[::]` is
/// every IPv4 address too.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    let (ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (ip == other_ip || covers(ip, other_ip) || covers(other_ip, ip))
}

fn address(path: &str, text: &str, problems: &mut Problems) -> Option<SocketAddr> {
    let address = text.parse();
    if address.is_err() {
        problems.push(path, format!("`{text}` is not an address and port; write 127.0.0.1:8080 or [::]:8080"));
    }
    address.ok()
}

fn surfaces(path: &str, names: &[String], problems: &mut Problems) -> Surfaces {
    if names.is_empty() {
        problems.missing(path, "the list is empty, expected one surface at least");
    }
    names.iter().enumerate().fold(Surfaces::NONE, |surfaces, (at, name)| {
        match Surface::ALL.into_iter().find(|surface| surface.name() == name) {
            Some(surface) => surfaces.with(surface),
            None => {
                let names = Surface::ALL.map(Surface::name).join(", ");
                problems.push(format!("{path}[{at}]"), format!("`{name}` is not a surface, expected one of {names}"));
                surfaces
            }
        }
    })
}

/// A file that must be there, from the folder of the configuration.
fn file(path: &str, name: &Path, folder: &Path, problems: &mut Problems) -> PathBuf {
    let place = folder.join(name);
    if name.as_os_str().is_empty() {
        problems.missing(path, "is missing, expected the path of a file");
    } else {
        match fs::metadata(&place) {
            Ok(found) if found.is_file() => {}
            Ok(_) => problems.push(path, format!("{} is not a file", place.display())),
            Err(error) => problems.push(path, format!("{}: {error}", place.display())),
        }
    }
    place
}

fn frontend(raw: &raw::Config, problems: &mut Problems) -> Settings {
    let mut settings = limits::frontend(&raw.limits, problems);
    settings.websocket.tickets = raw.auth.websocket.tickets.0;
    settings.websocket.subprotocol_token = raw.auth.websocket.subprotocol;
    settings.websocket.first_message = raw.auth.websocket.first_message;
    settings.websocket.origins.clone_from(&raw.auth.websocket.origins);
    origins("auth.websocket.origins", &raw.auth.websocket.origins, problems);
    settings.cors = cors(&raw.cors, problems);
    settings.rest.metrics = raw.telemetry.metrics.on_api;
    settings.rest.compress_above = raw.rest.compression.enabled.then_some(raw.rest.compression.above.0);
    settings.grpc.web = raw.grpc.web;
    settings.grpc.mirror = raw.grpc.output_contents == raw::OutputContents::Mirror;
    settings.grpc.reflection = match raw.grpc.reflection {
        raw::Reflection::Loopback => settings::Reflection::Loopback,
        raw::Reflection::Always => settings::Reflection::Always,
        raw::Reflection::Never => settings::Reflection::Never,
    };
    settings.rest.predict = raw.rest.predict.as_ref().map(|predict| self::predict(predict, problems));
    settings.wire.non_finite = match raw.json.non_finite {
        raw::NonFinite::AsNull => wire::NonFinite::AsNull,
        raw::NonFinite::AsToken => wire::NonFinite::AsToken,
        raw::NonFinite::Refuse => wire::NonFinite::Refuse,
    };
    settings.wire.convert_half = raw.json.half == raw::Half::Convert;
    settings
}

/// Browsers send scheme, host and port, and nothing behind them.
fn origins(path: &str, origins: &[String], problems: &mut Problems) {
    for (at, origin) in origins.iter().enumerate() {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        if origin.contains('*') {
            let text = format!(
                "`{origin}` has a `*`, which stands for nothing here; name every origin, as https://app.example"
            );
            problems.push(format!("{path}[{at}]"), text);
        } else if host.is_empty() || host.contains('/') || HeaderValue::from_str(origin).is_err() {
            let text = format!("`{origin}` is not an origin; write https://app.example or https://app.example:8443");
            problems.push(format!("{path}[{at}]"), text);
        }
    }
}

fn cors(raw: &raw::Cors, problems: &mut Problems) -> settings::Cors {
    let any = raw.origins.iter().any(|origin| origin == "*");
    if any && raw.origins.len() > 1 {
        problems.push("cors.origins", "`*` is every origin; write it alone");
    }
    if any && raw.credentials {
        let text = "credentials may not be allowed to every origin (`cors.origins: [\"*\"]`); name the origins";
        problems.push("cors.credentials", text);
    }
    if !any {
        origins("cors.origins", &raw.origins, problems);
    }
    let mut headers = Vec::new();
    for (at, name) in raw.headers.iter().enumerate() {
        match HeaderName::try_from(name.as_str()) {
            Ok(name) => headers.push(name),
            Err(_) => problems.push(format!("cors.headers[{at}]"), format!("`{name}` is not the name of a header")),
        }
    }
    settings::Cors {
        origins: match any {
            true => settings::Origins::Any,
            false => {
                let values = raw.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
                settings::Origins::Listed(values.collect())
            }
        },
        headers,
        credentials: raw.credentials,
        max_age: raw.max_age.0,
    }
}

/// `rest.predict`. Whether there is such a model with such tensors is known when it is asked: models come and go.
fn predict(raw: &raw::Predict, problems: &mut Problems) -> settings::Predict {
    const PATH: &str = "rest.predict";
    if raw.model.is_empty() {
        problems.missing(format!("{PATH}.model"), "is missing or empty, expected the name of a model");
    }
    let mut pairs = |key: &str, names: &BTreeMap<String, String>| {
        let mut pairs: Vec<(Arc<str>, Arc<str>)> = Vec::with_capacity(names.len());
        for (theirs, ours) in names {
            if let Some((other, _)) = pairs.iter().find(|(_, known)| **known == **ours) {
                let text = format!("`{ours}` has another name already (`{other}`), expected one");
                problems.push(format!("{PATH}.{key}.{theirs}"), text);
            }
            pairs.push((theirs.as_str().into(), ours.as_str().into()));
        }
        pairs
    };
    let names = wire::v1::Names { inputs: pairs("inputs", &raw.inputs), outputs: pairs("outputs", &raw.outputs) };
    let version = raw.version.map(|version| version.to_string().into());
    settings::Predict { model: ModelRef { name: raw.model.as_str().into(), version }, names }
}

/// `telemetry.otlp`. Whether anybody is there is known when traces are sent: collectors come and go.
fn otlp(raw: &raw::Otlp, problems: &mut Problems) -> traces::Settings {
    let uri = raw.endpoint.parse::<http::Uri>().ok();
    let authority = uri.as_ref().and_then(http::Uri::authority);
    let is_plain = uri.as_ref().is_some_and(|uri| uri.scheme_str() == Some("http"));
    if !is_plain || authority.is_none_or(|authority| authority.as_str().contains('@')) {
        let text = "is not `http://HOST:PORT`: traces go to a collector nearby, without TLS; what it wants to be sent \
                    as headers stands in the variable `OTEL_EXPORTER_OTLP_HEADERS`";
        problems.push("telemetry.otlp.endpoint", text);
    }
    if !(0.0..=1.0).contains(&raw.sample) {
        problems.push("telemetry.otlp.sample", format!("{} is no share, expected a number from 0 to 1", raw.sample));
    }
    traces::Settings { endpoint: raw.endpoint.as_str().into(), sample: raw.sample }
}

/// Says so if an amount is larger than anything that could be meant.
fn at_most(path: &str, amount: Amount, most: usize, problems: &mut Problems) {
    if let Amount::Exactly(count) = amount
        && count > most
    {
        problems.push(path, format!("{count} is above {most}"));
    }
}

/// Most threads of a kind: an order of magnitude above any machine, and what a system still gives.
const THREADS: usize = 1024;

fn runtime(raw: &raw::Runtime, folder: &Path, problems: &mut Problems) -> Runtime {
    for (key, amount) in [
        ("lanes", raw.lanes),
        ("inference_cores", raw.inference_cores),
        ("decode_threads", Amount::Exactly(raw.decode_threads.0)),
    ] {
        at_most(&format!("runtime.{key}"), amount, THREADS, problems);
    }
    Runtime {
        kind: raw.kind,
        lanes: raw.lanes,
        inference_cores: raw.inference_cores,
        decode_threads: raw.decode_threads.0,
        turn: TurnSettings {
            run: raw.turn.run.0,
            budget: raw.turn.budget.0,
            weights: raw.turn.weights.0 as u64,
            limit: raw.turn.limit.0,
        },
        stall: Stall { unready: raw.stall.unready.0, dead: raw.stall.dead.0 },
        onnxruntime: raw.onnxruntime.as_ref().map(|path| folder.join(path)),
        huge_pages: raw.huge_pages,
    }
}

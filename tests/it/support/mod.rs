//! Starts gateways on free ports, with the fake back end, and stops them again.

pub mod authority;
pub mod client;
pub mod issuer;
mod ndjson;
pub mod scripts;
pub mod ways;
pub mod wire;

use client::{Client, Request};
use sluicegate::{
    app::{self, App},
    backend::{
        Open,
        fake::{Behaviour, Fake, FakeControl, FakeOpen},
        ort::Runtime,
    },
    call::Surface,
    config::{Config, Overrides},
};
use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// The key of identity `web` in every gateway that has keys.
pub const KEY: &str = "sg_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Models that every gateway serves: name, and what the fake does.
const MODELS: &[&str] = &["double", "echo", "slow", "fail", "panic", "held", "stream", "corrupt"];

/// What to start.
pub struct Setup {
    folder: TempDir,
    listen: String,
    yaml: String,
    rate: String,
    grants: Option<String>,
    auth: Option<String>,
}

/// A gateway that runs. Cloning shares it; the last one stops it.
#[derive(Clone)]
pub struct Running {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// What a proxy in front of it would say of whose its calls are.
    pub forwarded_for: Option<&'static str>,
    inner: Arc<Inner>,
}

struct Inner {
    app: App,
    folder: TempDir,
    controls: Vec<(&'static str, FakeControl)>,
}

impl Setup {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            listen: "[{ address: \"127.0.0.1:0\" }]".into(),
            yaml: String::new(),
            rate: String::new(),
            grants: None,
            auth: None,
        }
    }

    /// Top-level keys, as YAML; each may be given once, so `limits` with a rate is merged here.
    pub fn yaml(mut self, yaml: &str) -> Self {
        self.yaml.push_str(yaml);
        self.yaml.push('\n');
        self
    }

    /// A listener for each list of surfaces, instead of one for all.
    pub fn listeners(mut self, surfaces: &[&str]) -> Self {
        let listener = |list: &&str| format!("{{ address: \"127.0.0.1:0\", surfaces: [{list}] }}");
        self.listen = format!("[{}]", surfaces.iter().map(listener).collect::<Vec<_>>().join(", "));
        self
    }

    /// Requires [`KEY`], which may do everything unless grants are given.
    pub fn with_key(self) -> Self {
        self.auth("{ api_keys: { file: keys.yaml } }")
    }

    /// Callers prove themselves as this says. Paths start at [`Setup::folder`].
    pub fn auth(mut self, yaml: &str) -> Self {
        self.auth = Some(yaml.into());
        self
    }

    /// Listeners, as YAML.
    pub fn listen(mut self, yaml: &str) -> Self {
        self.listen = yaml.into();
        self
    }

    /// Where the configuration will be.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn with_grants(mut self, grants: &str) -> Self {
        self.grants = Some(grants.into());
        self
    }

    pub fn with_rate(mut self, limit: &str, burst: u32) -> Self {
        self.rate =
            format!("rate: [{{ name: per-identity, by: identity, unit: calls, limit: {limit}, burst: {burst} }}]");
        self
    }

    fn document(&self) -> String {
        let mut text = format!("version: 1\nlisten: {}\n", self.listen);
        if !self.yaml.contains("admin:") {
            text.push_str("admin: { address: \"127.0.0.1:0\" }\n");
        }
        let mut yaml = self.yaml.clone();
        if !self.rate.is_empty() {
            yaml = match yaml.strip_prefix("limits: {") {
                Some(rest) => format!("limits: {{ {}, {rest}", self.rate),
                None => format!("limits: {{ {} }}\n{yaml}", self.rate),
            };
        }
        text.push_str(&yaml);
        if let Some(auth) = &self.auth {
            writeln!(text, "auth: {auth}").unwrap();
            let everything = "[{ to: [\"identity:web\"], intents: [infer, inspect], models: [\"*\"] }]";
            writeln!(text, "grants: {}", self.grants.as_deref().unwrap_or(everything)).unwrap();
        }
        text
    }

    /// Starts it with the fakes.
    pub async fn start(self) -> Running {
        let mut opener = FakeOpen::new().refusing("corrupt", "not a model");
        let mut controls = Vec::new();
        let models = self.folder.path().join("models");
        for name in MODELS {
            let version = models.join(name).join("1");
            fs::create_dir_all(&version).unwrap();
            fs::write(version.join("model.onnx"), b"").unwrap();
            let fake = match *name {
                "echo" => Fake::echo_bytes(),
                "stream" => Fake::new().streaming(3, Duration::from_millis(5)),
                _ => Fake::new(),
            };
            // What blocks must not block a lane; `double` and `echo` run wherever the loader puts them.
            if matches!(*name, "held" | "slow") {
                fs::write(models.join(name).join("model.yaml"), "execution: thread\n").unwrap();
            }
            if *name != "corrupt" {
                controls.push((*name, fake.control()));
                opener = opener.with(name, fake);
            }
        }
        let misbehave = controls.clone();
        let running = self.start_with(&models, Arc::new(opener), controls).await;
        // Only now: warm-up runs must succeed.
        for (name, control) in misbehave {
            match name {
                "slow" => control.set(Behaviour::Slow(Duration::from_millis(300))),
                "fail" => control.set(Behaviour::Fail),
                "panic" => control.set(Behaviour::Panic),
                _ => {}
            }
        }
        running
    }

    /// Starts it over a folder of real models, with the real runtime.
    pub async fn start_over(self, folder: &str) -> Running {
        let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        self.start_with(&models, Arc::new(runtime), Vec::new()).await
    }

    /// Starts it over a folder of models, and waits until all are loaded.
    pub async fn start_with(
        self,
        models: &Path,
        opener: Arc<dyn Open>,
        controls: Vec<(&'static str, FakeControl)>,
    ) -> Running {
        let running = self.begin_with(models, opener, controls).await;
        running.loaded().await;
        running
    }

    /// The same while the models are still being loaded.
    pub async fn begin_with(
        self,
        models: &Path,
        opener: Arc<dyn Open>,
        controls: Vec<(&'static str, FakeControl)>,
    ) -> Running {
        let file = self.folder.path().join("sluicegate.yaml");
        fs::write(&file, self.document()).unwrap();
        write_keys(self.folder.path(), false);
        let overrides = Overrides { models: Some(models.to_owned()), ..Overrides::default() };
        let config = Config::load(Some(&file), overrides).unwrap_or_else(|problems| panic!("{problems}"));
        let app = app::start(config, opener).await.unwrap_or_else(|error| panic!("{error}"));
        Running {
            address: app.addresses()[0],
            admin: app.admin_address().expect("an admin listener"),
            forwarded_for: None,
            inner: Arc::new(Inner { app, folder: self.folder, controls }),
        }
    }
}

/// A file with [`KEY`], and `more` about it.
pub fn keys_file(more: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(KEY).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    format!(
        "version: 1\nkeys:\n  - {{ id: k_test, hash: \"sha256:{hash}\", identity: web, created: \"2020-01-01T00:00:00Z\"{more} }}\n"
    )
}

fn write_keys(folder: &Path, revoked: bool) {
    let text = keys_file(if revoked { ", revoked: \"2020-01-01T00:00:00Z\"" } else { "" });
    // Renamed into place: the gateway may read at any moment.
    fs::write(folder.join("keys.new"), text).unwrap();
    fs::rename(folder.join("keys.new"), folder.join("keys.yaml")).unwrap();
}

/// Revokes [`KEY`], and waits for nothing.
pub fn revoked_key(running: &Running) {
    write_keys(running.folder(), true);
}

impl Running {
    /// Waits until loading is over.
    pub async fn loaded(&self) {
        self.inner.app.loaded().await;
    }

    pub fn control(&self, model: &str) -> &FakeControl {
        &self.inner.controls.iter().find(|(name, _)| *name == model).expect("a model of this test").1
    }

    /// Makes every run of `model` block from now on.
    pub fn block(&self, model: &str) {
        self.control(model).block();
    }

    /// Lets runs of `model` answer again.
    pub fn release(&self, model: &str) {
        self.control(model).release();
    }

    /// How often a run of the model was ended early.
    pub fn interrupted(&self, model: &str) -> u64 {
        self.control(model).interrupted()
    }

    /// How often the model has run, warm-up included.
    pub fn runs(&self, model: &str) -> u64 {
        self.control(model).started()
    }

    /// Occupies the one instance of `model`: its run blocks until the holder is released.
    pub async fn hold(&self, model: &str) -> Holder {
        self.hold_with(model, None).await
    }

    pub async fn hold_with(&self, model: &str, key: Option<&str>) -> Holder {
        let control = self.control(model).clone();
        let before = control.started();
        control.block();
        let (running, request, key) =
            (self.clone(), Request::new(model, &[1, 4], vec![0.0; 4]), key.map(str::to_owned));
        let call = tokio::spawn(async move {
            let mut client = Client::connect(Surface::Rest, &running, key.as_deref()).await.unwrap();
            client.infer(&request).await
        });
        until(|| control.started() > before, "the holder runs").await;
        Holder { control, call }
    }

    /// The same gateway, asked on its listener at this place.
    pub fn at(&self, place: usize) -> Self {
        Self { address: self.inner.app.addresses()[place], ..self.clone() }
    }

    /// The same gateway, asked on its admin listener.
    pub fn at_admin(&self) -> Self {
        Self { address: self.admin, ..self.clone() }
    }

    /// The same gateway, whose calls say that they were forwarded, for this client.
    pub fn forwarded_for(&self, client: &'static str) -> Self {
        Self { forwarded_for: Some(client), ..self.clone() }
    }

    /// The headers that calls have beside their own: what a proxy adds, and the credential of who has `key`.
    pub fn headers(&self, key: Option<&str>) -> Vec<(http::HeaderName, String)> {
        let forwarded =
            self.forwarded_for.map(|client| (http::HeaderName::from_static("x-forwarded-for"), client.to_owned()));
        forwarded.into_iter().chain(key.map(client::credential)).collect()
    }

    /// The metrics page.
    pub async fn metrics(&self) -> String {
        let running = self.at_admin();
        let request = client::http_request(&running, "GET", "/metrics", None, "");
        let response = client::http1(&running, request).await;
        assert_eq!(response.status(), 200);
        String::from_utf8(response.into_body().to_vec()).unwrap()
    }

    /// Waits until the metrics page satisfies `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let started = std::time::Instant::now();
        loop {
            let page = self.metrics().await;
            if condition(&page) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{what}; the metrics were\n{page}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where its configuration is.
    pub fn folder(&self) -> &Path {
        self.inner.folder.path()
    }

    /// The same gateway, asked at another address.
    pub fn through(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// The same gateway, whose admin listener is asked at another address.
    pub fn admin_through(&self, admin: SocketAddr) -> Self {
        Self { admin, ..self.clone() }
    }

    /// Writes the configuration anew, as `change` makes it of the old one, in the way of editors.
    pub fn rewrite(&self, change: impl Fn(&str) -> String) {
        let file = self.inner.folder.path().join("sluicegate.yaml");
        let text = change(&fs::read_to_string(&file).unwrap());
        fs::write(file.with_extension("new"), text).unwrap();
        fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// Revokes [`KEY`] and waits until the file was read again.
    pub async fn revoke_keys(&self) {
        write_keys(self.inner.folder.path(), true);
        // The contract gives one second (06 C1); wait for it rather than for a signal that users do not have.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }

    /// Starts the drain, as SIGTERM does.
    pub fn drain(&self) -> Drained {
        let inner = Arc::clone(&self.inner);
        Drained(tokio::spawn(async move { drop(inner.app.drain().await) }))
    }
}

/// A drain that has begun.
pub struct Drained(JoinHandle<()>);

impl Drained {
    /// Waits until it is over.
    pub async fn over(self) {
        tokio::time::timeout(Duration::from_secs(5), self.0).await.expect("the drain is over in time").unwrap();
    }
}

/// Keeps an instance busy.
pub struct Holder {
    control: FakeControl,
    call: JoinHandle<Result<client::Answer, client::Failure>>,
}

impl Holder {
    /// Lets the run end, and waits for its answer.
    pub async fn release(self) {
        self.control.release();
        self.call.await.unwrap().unwrap();
    }

    /// Lets the run end; nobody waits for its answer any more.
    pub fn release_unanswered(self) {
        self.control.release();
    }
}

/// Waits for a condition, at most 20 s.
pub async fn until(condition: impl Fn() -> bool, what: &str) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The input of `double`, as JSON.
pub fn double_tensor() -> serde_json::Value {
    serde_json::json!([{ "name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0] }])
}

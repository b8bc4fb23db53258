//! What people write, as serde reads it (architecture section 11).
//!
//! Unknown keys are refused, defaults stand on the structs and come from the settings that they end up in, so that
//! there is one source of each number. Nothing is checked here beyond types and units.

mod auth;
mod cache;
mod choice;
pub mod ensemble;
mod limits;
mod models;
mod pad;
mod traffic;

pub use auth::{
    Anonymous, ApiKeys, Auth, AuthWebSocket, Certificate, CertificateName, Clients, Demand, Jwt, Mtls, Tls,
};
pub use cache::{Cache, Keep, Scope};
pub use choice::{Amount, Limit, Load, Memory, Names, Paths, Provider, Switch, Version, Versions, Warmup, Word};
pub use limits::{
    Address, Concurrency, Connections, Deadline, Http2, Limits, Policy, PolicyBy, PolicyUnit, Redis, Shared, Sizes,
    Timers, WebSocket, WhenAway,
};
pub use models::{
    Arena, Batching, Control, Execution, Input, Mode, ModelDefaults, ModelFile, Models, Optimization, OptimizedCache,
    Probe, Ragged, Session, Watch, WhenLate,
};
pub use pad::{Pad, Rows};
pub use traffic::{Shadow, Traffic};

use super::{
    source::Shaped,
    units::{Number, Size, Span},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Config {
    pub version: u32,
    pub listen: Vec<Listen>,
    /// `null` switches the listener off.
    pub admin: Option<Admin>,
    pub auth: Auth,
    pub grants: Vec<Grant>,
    pub limits: Limits,
    pub models: Models,
    pub runtime: Runtime,
    pub cors: Cors,
    pub rest: Rest,
    pub grpc: Grpc,
    pub json: Json,
    pub telemetry: Telemetry,
    pub drain: Drain,
}

/// One API listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Listen {
    pub address: String,
    pub surfaces: Vec<String>,
    pub tls: Option<Tls>,
    pub trusted_proxies: Vec<String>,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Admin {
    pub address: String,
    pub tls: Option<Tls>,
}

/// One grant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Grant {
    pub to: Vec<String>,
    pub intents: Vec<String>,
    pub models: Vec<String>,
    pub versions: Vec<String>,
}

/// Threads and ONNX Runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Runtime {
    pub kind: super::Kind,
    pub lanes: Amount,
    pub inference_cores: Amount,
    pub decode_threads: Number,
    pub turn: Turn,
    pub stall: Stall,
    pub huge_pages: super::HugePages,
    pub onnxruntime: Option<PathBuf>,
}

/// What may run on a lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Turn {
    pub run: Span,
    pub budget: Span,
    pub weights: Size,
    pub limit: Span,
}

/// When a lane that does not turn is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Stall {
    pub unready: Span,
    pub dead: Span,
}

/// Which pages may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Cors {
    pub origins: Vec<String>,
    pub headers: Vec<String>,
    pub credentials: bool,
    pub max_age: Span,
}

/// REST.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Rest {
    pub compression: Compression,
    pub predict: Option<Predict>,
}

/// `POST /predict`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Predict {
    pub model: String,
    pub version: Option<u64>,
    /// From the client's names to the model's.
    pub inputs: BTreeMap<String, String>,
    /// From the client's names to the model's.
    pub outputs: BTreeMap<String, String>,
}

/// Responses that are compressed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Compression {
    pub enabled: bool,
    pub above: Size,
}

/// gRPC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Grpc {
    pub reflection: Reflection,
    pub output_contents: OutputContents,
    pub web: bool,
}

/// How outputs are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `frontend::settings::Grpc`")]
pub enum OutputContents {
    #[default]
    Raw,
    Mirror,
}

/// Where reflection is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `frontend::settings::Reflection`")]
pub enum Reflection {
    #[default]
    Loopback,
    Always,
    Never,
}

/// JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Json {
    pub non_finite: NonFinite,
    pub half: Half,
}

/// What to print for NaN and the infinities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `wire::NonFinite`")]
pub enum NonFinite {
    #[default]
    AsNull,
    AsToken,
    Refuse,
}

/// Whether 16-bit floats may be JSON numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `wire::Settings::convert_half`")]
pub enum Half {
    #[default]
    Refuse,
    Convert,
}

/// What is told about calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Telemetry {
    pub metrics: Metrics,
    pub log: super::Log,
    pub access_log: AccessLog,
    pub otlp: Option<Otlp>,
}

/// What is counted besides, and where it is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Metrics {
    pub on_api: bool,
    pub nv_view: bool,
    pub by_identity: bool,
}

/// Where traces go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Otlp {
    pub endpoint: String,
    pub sample: f64,
}

/// One line per call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct AccessLog {
    pub enabled: bool,
}

/// The graceful stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Drain {
    pub delay: Span,
    pub timeout: Span,
}

// === every key ===

impl Shaped for Config {
    fn example() -> Self {
        let tls = Tls { certificates: vec![Certificate::default()], clients: Some(Clients::default()) };
        let path = || Some(PathBuf::default());
        let jwt =
            Jwt { jwks: Some(String::new()), ca: path(), key: path(), groups: Some(String::new()), ..Jwt::default() };
        Self {
            listen: vec![Listen { tls: Some(tls.clone()), ..Listen::default() }],
            admin: Some(Admin { tls: Some(tls), ..Admin::default() }),
            auth: Auth {
                api_keys: Some(ApiKeys::default()),
                jwt: vec![jwt],
                mtls: Some(Mtls::default()),
                ..Auth::default()
            },
            grants: vec![Grant::default()],
            limits: Limits {
                rate: vec![Policy::default()],
                shared: Some(Shared { ca: path(), ..Shared::default() }),
                ..Limits::default()
            },
            models: Models {
                probe_memory: Some(Size(4 << 30)),
                optimized_cache: Some(OptimizedCache::default()),
                // A map by default, but a word or a list will do.
                defaults: ModelDefaults {
                    versions: Versions::All,
                    cache: Cache::On(Keep::default()),
                    traffic: Some(Traffic::example()),
                    ..ModelDefaults::default()
                },
                ..Models::default()
            },
            telemetry: Telemetry { otlp: Some(Otlp::default()), ..Telemetry::default() },
            rest: Rest { predict: Some(Predict { version: Some(1), ..Predict::default() }), ..Rest::default() },
            ..Self::default()
        }
    }
}

impl Traffic {
    fn example() -> Self {
        let shadow = Shadow { to: Some(Version(1)), ..Shadow::default() };
        let (header, sticky) = (Some(String::new()), Some(String::new()));
        Self { split: BTreeMap::new(), header, sticky, shadow: Some(shadow) }
    }
}

impl Shaped for ModelFile {
    fn example() -> Self {
        let cache = Cache::On(Keep::default());
        Self { versions: Versions::All, cache, traffic: Some(Traffic::example()), ..Self::default() }
    }
}

// === defaults (architecture section 11) ===

impl Default for Config {
    fn default() -> Self {
        Self {
            version: 1,
            listen: vec![Listen::default()],
            admin: Some(Admin::default()),
            auth: Auth::default(),
            grants: Vec::new(),
            limits: Limits::default(),
            models: Models::default(),
            runtime: Runtime::default(),
            cors: Cors::default(),
            rest: Rest::default(),
            grpc: Grpc::default(),
            json: Json::default(),
            telemetry: Telemetry::default(),
            drain: Drain::default(),
        }
    }
}

impl Default for Cors {
    fn default() -> Self {
        let cors = crate::frontend::settings::Cors::default();
        Self { origins: Vec::new(), headers: Vec::new(), credentials: cors.credentials, max_age: Span(cors.max_age) }
    }
}

impl Default for Compression {
    fn default() -> Self {
        let rest = crate::frontend::settings::Rest::default();
        Self { enabled: rest.compress_above.is_some(), above: Size(rest.compress_above.unwrap_or_default()) }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        let grpc = crate::frontend::settings::Grpc::default();
        Self { reflection: Reflection::default(), output_contents: OutputContents::default(), web: grpc.web }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let surfaces = crate::call::Surface::ALL.map(|surface| surface.name().to_owned()).to_vec();
        Self { address: "127.0.0.1:8080".to_owned(), surfaces, tls: None, trusted_proxies: Vec::new() }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: "127.0.0.1:9464".to_owned(), tls: None }
    }
}

impl Default for Grant {
    fn default() -> Self {
        Self { to: Vec::new(), intents: Vec::new(), models: Vec::new(), versions: vec!["*".to_owned()] }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            kind: super::Kind::default(),
            lanes: Amount::Auto,
            inference_cores: Amount::Auto,
            decode_threads: Number(1),
            turn: Turn::default(),
            stall: Stall::default(),
            huge_pages: super::HugePages::Auto,
            onnxruntime: None,
        }
    }
}

impl Default for Turn {
    fn default() -> Self {
        use std::time::Duration;
        Self {
            run: Span(Duration::from_micros(50)),
            budget: Span(Duration::from_micros(200)),
            weights: Size(16 << 20),
            limit: Span(Duration::from_millis(100)),
        }
    }
}

impl Default for Stall {
    fn default() -> Self {
        use std::time::Duration;
        Self { unready: Span(Duration::from_secs(3)), dead: Span(Duration::from_secs(60)) }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Drain {
    fn default() -> Self {
        use std::time::Duration;
        Self { delay: Span(Duration::from_secs(5)), timeout: Span(Duration::from_secs(25)) }
    }
}

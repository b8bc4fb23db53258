//! Who may call: `auth`, and TLS, by which callers prove it too.

use super::Names;
use crate::config::units::Span;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// TLS of one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Tls {
    pub certificates: Vec<Certificate>,
    pub clients: Option<Clients>,
}

/// Whose certificates are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Clients {
    pub ca: PathBuf,
    pub certificate: Demand,
}

/// Whether a client certificate has to be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `frontend::tls::Clients`")]
pub enum Demand {
    #[default]
    Required,
    Optional,
}

/// A certificate chain with its key, both PEM files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How callers prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Auth {
    pub anonymous: Anonymous,
    pub api_keys: Option<ApiKeys>,
    pub jwt: Vec<Jwt>,
    pub mtls: Option<Mtls>,
    pub websocket: AuthWebSocket,
}

/// What callers without credentials are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `auth::Anonymous`")]
pub enum Anonymous {
    #[default]
    Loopback,
    Always,
    Never,
}

/// API keys from a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct ApiKeys {
    pub file: PathBuf,
}

/// Tokens of one issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Jwt {
    pub issuer: String,
    pub audience: Names,
    pub algorithms: Vec<String>,
    /// A URL or a path.
    pub jwks: Option<String>,
    pub ca: Option<PathBuf>,
    pub refresh: Span,
    pub key: Option<PathBuf>,
    pub identity: String,
    pub prefix: String,
    pub groups: Option<String>,
    pub require: Vec<String>,
}

/// Client certificates as a proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct Mtls {
    pub identity: CertificateName,
}

/// Which of a certificate's names is an identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "see `auth::certificate::Name`")]
pub enum CertificateName {
    #[default]
    SanUri,
    SanDns,
    Subject,
}

/// What browsers may do instead of sending a header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are explained in config/sluicegate.full.yaml")]
pub struct AuthWebSocket {
    pub tickets: Span,
    pub subprotocol: bool,
    pub first_message: bool,
    pub origins: Vec<String>,
}

// === defaults ===

impl Default for Jwt {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: Names::default(),
            algorithms: Vec::new(),
            jwks: None,
            ca: None,
            refresh: Span(std::time::Duration::from_secs(300)),
            key: None,
            identity: "sub".to_owned(),
            prefix: String::new(),
            groups: None,
            require: vec!["exp".to_owned()],
        }
    }
}

impl Default for AuthWebSocket {
    fn default() -> Self {
        let settings = crate::frontend::settings::WebSocket::default();
        Self {
            tickets: Span(settings.tickets),
            subprotocol: settings.subprotocol_token,
            first_message: settings.first_message,
            origins: settings.origins,
        }
    }
}

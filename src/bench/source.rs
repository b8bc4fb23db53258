//! What is measured: a server, asked on one surface, or a model in this process.

use super::{
    BenchError,
    address::Address,
    arguments::{Arguments, Surface},
    check,
    client::{self, Client, Kept, Local},
    input::Payload,
    inquire::{self, Tally},
};
use crate::{call::ModelRef, model::Model, tensor::Tensors};
use bytes::Bytes;
use std::{fmt::Write, sync::Arc};

/// What answers.
pub(super) enum Source {
    Server(Box<Target>),
    Engine(Engine),
}

/// Whom to ask, about what, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) model: ModelRef,
    /// What `authorization` says.
    pub(super) authorization: Option<String>,
}

/// A server, and the requests that it is asked again and again: each caller has one of them.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    server: Server,
    surface: Surface,
    connections: Option<usize>,
    /// Each with its head and body over HTTP/1.1; one at least.
    requests: Vec<(Payload, Bytes)>,
}

/// A model in this process.
pub(super) struct Engine {
    pub(super) model: Arc<Model>,
    /// Of each request, in the signature's order; one at least.
    pub(super) inputs: Vec<Tensors>,
    /// Rows that they bring to a batch.
    pub(super) rows: usize,
}

// === impl Source ===

impl Source {
    /// The server at `address`; asks it for the model's metadata unless `--data` brings a request.
    ///
    /// # Errors
    ///
    /// [`BenchError`] if nobody answers, the model is unknown there, or its inputs cannot be made up.
    pub(super) async fn server(address: &Address, arguments: &Arguments) -> Result<Self, BenchError> {
        let surface = arguments.surface;
        let server = Server {
            address: address.clone(),
            model: named(arguments),
            authorization: arguments.key.as_ref().map(|key| key.authorization()),
        };
        let payloads = Payload::all(arguments, async || {
            let signature = inquire::signature(&server, surface.is_grpc()).await;
            signature.map_err(|error| BenchError(format!("{address}: no metadata of `{}`: {error}", arguments.model)))
        });
        let written = |payload: Payload| {
            let request = match surface {
                Surface::Rest => rest(&server, &payload.json()?, None),
                Surface::RestBinary => {
                    let (body, json) = payload.binary()?;
                    rest(&server, &body, Some(json))
                }
                Surface::Grpc | Surface::GrpcStream | Surface::Websocket | Surface::Ndjson => Bytes::new(),
            };
            Ok((payload, request))
        };
        let requests = payloads.await?.into_iter().map(written).collect::<Result<_, BenchError>>()?;
        Ok(Self::Server(Box::new(Target {
            name: format!("{address} {}", surface.name()),
            server,
            surface,
            connections: arguments.connections.map(|connections| connections.get()),
            requests,
        })))
    }

    /// What it is called in reports.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Server(target) => &target.name,
            Self::Engine(_) => "engine",
        }
    }

    /// Rows of each request.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Server(target) => target.payload(0).rows(),
            Self::Engine(engine) => engine.rows,
        }
    }

    /// So many callers, connected.
    ///
    /// # Errors
    ///
    /// [`BenchError`] if a connection cannot be made.
    pub(super) async fn connect(&self, callers: usize) -> Result<Vec<Client>, BenchError> {
        match self {
            Self::Server(target) => {
                let connections = target.connections.unwrap_or_else(|| target.surface.connections(callers));
                let clients = client::connect(target, callers, connections).await;
                clients.map_err(|failure| BenchError(format!("{}: {failure}", target.name)))
            }
            Self::Engine(engine) => {
                let inputs = engine.inputs.iter().cycle().take(callers);
                let local = |inputs: &Tensors| Local::new(Arc::clone(&engine.model), inputs.clone(), engine.rows);
                Ok(inputs.map(|inputs| Client::Local(local(inputs))).collect())
            }
        }
    }

    /// Asks once and checks the answer as a whole; says which outputs came.
    ///
    /// # Errors
    ///
    /// [`BenchError`] if it is refused or not what the surface promises.
    pub(super) async fn first(&self) -> Result<String, BenchError> {
        let wrong = |error: &dyn std::fmt::Display| BenchError(format!("{}: {error}", self.name()));
        let mut clients = self.connect(1).await?;
        let client = clients.first_mut().ok_or_else(|| wrong(&"no caller"))?;
        let mut kept = Kept::default();
        client.exchange(Some(&mut kept)).await.map_err(|failure| wrong(&failure))?;
        match self {
            Self::Server(target) => check::answer(target.surface, &kept).map_err(|error| wrong(&error)),
            Self::Engine(engine) => {
                let outputs = engine.model.signature.outputs.iter().map(|spec| format!("`{}`", spec.name));
                Ok(outputs.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// What the model has done so far, if the server tells.
    pub(super) async fn tally(&self) -> Option<Tally> {
        match self {
            Self::Server(target) => {
                let tally = inquire::tally(&target.server, target.surface.is_grpc());
                tokio::time::timeout(super::measure::PATIENCE, tally).await.ok().flatten()
            }
            Self::Engine(engine) => Some(Tally::from(&engine.model.statistics())),
        }
    }
}

/// The model that `arguments` name.
pub(super) fn named(arguments: &Arguments) -> ModelRef {
    ModelRef { name: arguments.model.as_str().into(), version: arguments.model_version.as_deref().map(Into::into) }
}

// === impl Target ===

impl Target {
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn model(&self) -> &ModelRef {
        &self.server.model
    }

    pub(super) fn surface(&self) -> Surface {
        self.surface
    }

    /// What the caller of this number asks.
    pub(super) fn payload(&self, caller: usize) -> &Payload {
        &self.requests[caller % self.requests.len()].0
    }

    /// Its head and body over HTTP/1.1.
    pub(super) fn rest_request(&self, caller: usize) -> Bytes {
        self.requests[caller % self.requests.len()].1.clone()
    }
}

// === impl Server ===

impl Server {
    /// The path of the model, or of something below it (`/stats`).
    pub(super) fn path(&self, below: &str) -> String {
        let version = self.model.version.as_ref();
        let version = version.map_or(String::new(), |version| format!("/versions/{}", escaped(version)));
        format!("/v2/models/{}{version}{below}", escaped(&self.model.name))
    }

    /// The head of a request over HTTP/1.1, but for the line that ends it.
    pub(super) fn head(&self, method: &str, path: &str) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address.authority());
        if let Some(authorization) = &self.authorization {
            let _ = write!(head, "authorization: {authorization}\r\n");
        }
        head
    }
}

/// A whole request to infer; `json` is how much of its body is JSON, where raw tensors follow.
fn rest(server: &Server, body: &[u8], json: Option<usize>) -> Bytes {
    let mut head = server.head("POST", &server.path("/infer"));
    let _ = match json {
        None => write!(head, "content-type: application/json\r\n"),
        Some(json) => {
            write!(head, "content-type: application/octet-stream\r\ninference-header-content-length: {json}\r\n")
        }
    };
    let _ = write!(head, "content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat().into()
}

/// One segment of a path.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: Option<&str>) -> Server {
        Server {
            address: "http://127.0.0.1:9".parse().unwrap(),
            model: ModelRef { name: "a b".into(), version: version.map(Into::into) },
            authorization: Some("Bearer k".into()),
        }
    }

    #[test]
    fn a_request_is_written_once_and_whole() {
        let request = rest(&server(None), b"{}", None);
        assert_eq!(
            std::str::from_utf8(&request).unwrap(),
            "POST /v2/models/a%20b/infer HTTP/1.1\r\nhost: 127.0.0.1:9\r\nauthorization: Bearer k\r\n\
             content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        );
        let binary = rest(&server(Some("3")), b"{}1234", Some(2));
        let text = String::from_utf8_lossy(&binary);
        assert!(text.starts_with("POST /v2/models/a%20b/versions/3/infer "), "{text}");
        assert!(text.contains("inference-header-content-length: 2\r\ncontent-length: 6\r\n"), "{text}");
    }
}

//! A server on a free port over a stack that a test makes up, and clients that say exactly what they are told.

use super::{
    Connection, Frontend, Phase, Settings, Surfaces, Tickets,
    accept::{Listener, Places, serve},
    body::Memory,
    tls::Tls,
};
use crate::{
    call::{
        Gateway, Inbound, InferResponse, Inspect, ModelKey, Operation, Peer, Readiness, Reply, Report, Steering, Timing,
    },
    error::Error,
    limit::address::{self, AddressGate},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

/// A server that runs until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) places: Places,
    pub(super) readiness: Readiness,
    /// Calls that reached the stack.
    pub(super) calls: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

/// What to start.
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) surfaces: Surfaces,
    pub(super) tls: Option<Tls>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { settings: Settings::default(), surfaces: Surfaces::ALL, tls: None }
    }
}

impl Plan {
    /// Starts a server whose calls are answered by `stack`.
    pub(super) fn start<F>(self, stack: fn(Inbound) -> F) -> Server
    where
        F: Future<Output = Result<Reply, Error>> + Send + 'static,
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let gateway = Gateway::new(tower::service_fn(move |call: Inbound| {
            counted.fetch_add(1, Ordering::Relaxed);
            stack(call)
        }));
        let readiness = Readiness::default();
        readiness.set_loaded(true);
        let (phase, watched) = watch::channel(Phase::Serving);
        let places = Places::new(self.settings.connections);
        let frontend = Arc::new(Frontend {
            gateway,
            memory: Memory::new(self.settings.concurrency.memory),
            tickets: Tickets::new(self.settings.websocket.tickets),
            proofs: watch::channel(()).1,
            steering: Steering::default(),
            settings: self.settings,
            readiness: readiness.clone(),
            phase: watched.clone(),
            metrics: Arc::default(),
            addresses: Arc::new(AddressGate::new(address::Settings::default())),
        });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(any, self.surfaces, self.tls).unwrap();
        let address = listener.local();
        let (addresses, metrics) = (Arc::clone(&frontend.addresses), Arc::clone(&frontend.metrics));
        let accepting = tokio::spawn(listener.accept(places.clone(), addresses, metrics, watched, move |accepted| {
            tokio::spawn(serve(accepted, Arc::clone(&frontend)));
        }));
        Server { address, phase, places, readiness, calls, accepting }
    }
}

impl Server {
    /// Opens a connection.
    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `request` as it is and returns everything until the server ends the connection.
    pub(super) async fn say(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        rest(&mut stream).await
    }

    /// One HTTP/1.1 request on a connection of its own, without a body.
    pub(super) async fn ask(&self, method: &str, path: &str) -> String {
        self.say(format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await
    }

    /// One HTTP/1.1 request on a connection of its own, with a body.
    pub(super) async fn post(&self, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}");
        self.say(format!("{head}\r\n{body}")).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Everything until the end of the connection, however it ends.
pub(super) async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until `end` has come, and returns what came.
pub(super) async fn until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(end) {
        match stream.read_u8().await {
            Ok(byte) => all.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The status of an HTTP/1.1 response; 0 if it is none.
pub(super) fn status(response: &str) -> u16 {
    response.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// An HTTP/2 client over an open stream.
pub(super) async fn http2<S>(stream: S) -> hyper::client::conn::http2::SendRequest<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a GET over HTTP/2; its status and body.
pub(super) async fn get2(
    client: &mut hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    path: &str,
) -> (http::StatusCode, Bytes) {
    let request = http::Request::get(format!("http://a{path}")).body(Full::default()).unwrap();
    let response = client.send_request(request).await.unwrap();
    (response.status(), response.into_body().collect().await.unwrap().to_bytes())
}

/// A connection that nobody opened, over a stack that knows nobody.
pub(crate) fn connection() -> Connection {
    let settings = Settings::default();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let frontend = Frontend {
        gateway: Gateway::new(tower::service_fn(nobody)),
        memory: Memory::new(settings.concurrency.memory),
        tickets: Tickets::new(settings.websocket.tickets),
        proofs: watch::channel(()).1,
        steering: Steering::default(),
        settings,
        readiness: Readiness::default(),
        phase: watch::channel(Phase::Serving).1,
        metrics: Arc::default(),
        addresses: Arc::new(AddressGate::new(address::Settings::default())),
    };
    let peer = Peer::new(address, address);
    Connection::new(Arc::new(frontend), Arc::new(peer), Surfaces::ALL)
}

/// A stack that reads bodies, names one model and echoes tensors.
pub(super) async fn echo(call: Inbound) -> Result<Reply, Error> {
    match call.input.await? {
        Operation::Infer(request) => Ok(Reply::Infer(InferResponse {
            model: Arc::new(ModelKey { name: request.model.name, version: "1".into() }),
            client_id: request.client_id,
            outputs: request.inputs.tensors().unwrap_or_default().to_vec(),
            parameters: Vec::new(),
            timing: Timing::default(),
        })),
        Operation::Inspect(Inspect::Ready(model)) => {
            let ready = &*model.name == "m";
            Ok(Reply::Report(Report::Ready { model: model.name, ready }))
        }
        Operation::Inspect(_) | Operation::Manage(_) => Ok(Reply::Report(Report::Models(vec!["m".into()]))),
    }
}

/// A stack that knows nobody and reads nothing.
pub(super) async fn nobody(_: Inbound) -> Result<Reply, Error> {
    Err(Error::Unauthenticated)
}

/// A stack that never answers.
pub(super) async fn silence(call: Inbound) -> Result<Reply, Error> {
    let _ = call;
    std::future::pending().await
}

/// A stack whose answer comes after a second.
pub(super) async fn tardy(call: Inbound) -> Result<Reply, Error> {
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    echo(call).await
}

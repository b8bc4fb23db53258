//! A gateway that is a closure, behind a connection in memory: what the tests of this surface share.

use super::serve;
use crate::{
    call::{Gateway, Inbound, InferRequest, InferResponse, ModelKey, Peer, Readiness, Reply, Steering, Timing},
    error::Error,
    frontend::{Connection, Frontend, Phase, Settings, Surfaces, Tickets, body::Memory},
    limit::address::{self, AddressGate},
    telemetry::metrics::Metrics,
    wire::proto::inference::{self as pb, grpc_inference_service_client::GrpcInferenceServiceClient},
};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};

/// An inference of `m` with eight bytes.
pub(super) fn request() -> pb::ModelInferRequest {
    let input = pb::model_infer_request::InferInputTensor {
        name: "X".into(),
        datatype: "FP32".into(),
        shape: vec![1, 2],
        ..Default::default()
    };
    pb::ModelInferRequest {
        model_name: "m".into(),
        id: "r1".into(),
        inputs: vec![input],
        raw_input_contents: vec![bytes::Bytes::from_static(&[0; 8])],
        ..Default::default()
    }
}

/// The answer of a model `m` that yields what it takes.
pub(super) fn echoed(request: InferRequest) -> Reply {
    Reply::Infer(InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: request.client_id,
        outputs: request.inputs.tensors().unwrap_or_default().to_vec(),
        parameters: Vec::new(),
        timing: Timing::default(),
    })
}

/// `message` with its prefix.
pub(super) fn framed(message: &impl Message) -> Vec<u8> {
    prefixed(&message.encode_to_vec())
}

/// A message of these bytes, behind its prefix.
pub(super) fn prefixed(body: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    framed.extend(body);
    framed
}

/// A front-end, and the phase that it sees.
pub(super) struct World {
    pub(super) connection: Arc<Connection>,
    pub(super) phase: watch::Sender<Phase>,
}

/// A front-end whose stack is `answer`.
pub(super) fn world<F, R>(settings: Settings, answer: F) -> World
where
    F: Fn(Inbound) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Reply, Error>> + Send + 'static,
{
    let readiness = Readiness::default();
    readiness.set_loaded(true);
    let (sender, phase) = watch::channel(Phase::Serving);
    let memory = Memory::new(settings.concurrency.memory);
    let frontend = Frontend {
        gateway: Gateway::new(tower::service_fn(answer)),
        tickets: Tickets::new(settings.websocket.tickets),
        proofs: watch::channel(()).1,
        steering: Steering::default(),
        settings,
        readiness,
        phase,
        metrics: Arc::new(Metrics::new()),
        addresses: Arc::new(AddressGate::new(address::Settings::default())),
        memory,
    };
    let peer = Peer::new(([127, 0, 0, 1], 50_000).into(), ([127, 0, 0, 1], 80).into());
    let connection = Connection::new(Arc::new(frontend), Arc::new(peer), Surfaces::ALL);
    World { connection: Arc::new(connection), phase: sender }
}

impl World {
    /// The same front-end, seen from elsewhere.
    pub(super) fn at(&self, peer: Peer, surfaces: Surfaces) -> Self {
        let frontend = Arc::clone(&self.connection.frontend);
        let connection = Arc::new(Connection::new(frontend, Arc::new(peer), surfaces));
        Self { connection, phase: self.phase.clone() }
    }

    /// The near end of a new HTTP/2 connection.
    pub(super) fn connect(&self) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 20);
        let connection = Arc::clone(&self.connection);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let connection = Arc::clone(&connection);
                async move { Ok::<_, Infallible>(serve(connection, request).await) }
            });
            let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(far), service);
            let _ = served.await;
        });
        near
    }

    /// A channel as clients of tonic have it.
    pub(super) async fn channel(&self) -> Channel {
        let mut near = Some(TokioIo::new(self.connect()));
        let connector = tower::service_fn(move |_: Uri| std::future::ready(near.take().ok_or("one connection")));
        Endpoint::from_static("http://test").connect_with_connector(connector).await.unwrap()
    }

    pub(super) async fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel().await).max_encoding_message_size(usize::MAX)
    }

    /// Sends `body` in a request with these headers, and gives back those that come, trailers merged.
    pub(super) async fn raw(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> http::HeaderMap {
        self.whole(path, headers, body).await.0
    }

    /// The same, and the body that comes.
    pub(super) async fn whole(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (http::HeaderMap, bytes::Bytes) {
        use http_body_util::BodyExt;
        let io = TokioIo::new(self.connect());
        let (mut sender, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(driver);
        let mut request = http::Request::post(format!("http://test{path}")).header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        let body = http_body_util::Full::new(bytes::Bytes::copy_from_slice(body));
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut all = response.headers().clone();
        let body = response.into_body().collect().await.unwrap();
        if let Some(trailers) = body.trailers() {
            all.extend(trailers.clone());
        }
        (all, body.to_bytes())
    }
}

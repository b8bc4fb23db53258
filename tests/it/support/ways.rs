//! Seven ways to ask for the same inference, and what each says when it is refused, in its own words.

use super::{
    Running,
    client::{self, GrpcClient, Ndjson, Request, Socket, http_request, http1, status_failure, websocket_upgrade},
};
use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use serde_json::{Value, json};
use sluicegate::wire::proto::inference::{ModelInferRequest, ModelStreamInferResponse};
use std::{fmt, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Rest,
    Grpc,
    GrpcStream,
    GrpcWeb,
    WebSocket,
    Ndjson,
    Sse,
}

/// One test for each way in, in a module of this name: `test` is called with the [`Way`].
macro_rules! every_way {
    ($($name:ident: $test:expr,)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn rest() {
                ($test)($crate::support::ways::Way::Rest).await;
            }
            #[tokio::test]
            async fn grpc() {
                ($test)($crate::support::ways::Way::Grpc).await;
            }
            #[tokio::test]
            async fn grpc_stream() {
                ($test)($crate::support::ways::Way::GrpcStream).await;
            }
            #[tokio::test]
            async fn grpc_web() {
                ($test)($crate::support::ways::Way::GrpcWeb).await;
            }
            #[tokio::test]
            async fn websocket() {
                ($test)($crate::support::ways::Way::WebSocket).await;
            }
            #[tokio::test]
            async fn ndjson() {
                ($test)($crate::support::ways::Way::Ndjson).await;
            }
            #[tokio::test]
            async fn sse() {
                ($test)($crate::support::ways::Way::Sse).await;
            }
        }
    )*};
}
pub(crate) use every_way;

/// What a refusal looks like to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Status and code, or how a socket closes.
    pub text: String,
    /// Whether the caller is told when to come again.
    pub retry: bool,
}

/// Somebody who asks, with what stays open between two questions.
pub enum Caller {
    Rest {
        running: Running,
        key: Option<String>,
        path: &'static str,
    },
    Grpc {
        client: GrpcClient,
        running: Running,
        key: Option<String>,
    },
    GrpcStream {
        messages: mpsc::Sender<ModelInferRequest>,
        answers: Box<tonic::Streaming<ModelStreamInferResponse>>,
        key: Option<String>,
    },
    GrpcWeb {
        running: Running,
        key: Option<String>,
    },
    WebSocket {
        socket: Box<Socket>,
    },
    Ndjson {
        stream: Box<Ndjson>,
    },
}

impl Way {
    pub const ALL: [Self; 7] =
        [Self::Rest, Self::Grpc, Self::GrpcStream, Self::GrpcWeb, Self::WebSocket, Self::Ndjson, Self::Sse];

    /// The heading of its column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rest => "REST",
            Self::Grpc => "gRPC",
            Self::GrpcStream => "gRPC stream",
            Self::GrpcWeb => "gRPC-Web",
            Self::WebSocket => "WebSocket message",
            Self::Ndjson => "NDJSON line",
            Self::Sse => "SSE",
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_str(if self.retry { ", retry" } else { "" })
    }
}

fn said(text: impl Into<String>, retry: bool) -> Said {
    Said { text: text.into(), retry }
}

impl Caller {
    /// Opens what has to be open; that may be refused already.
    pub async fn open(way: Way, running: &Running, key: Option<&str>) -> Result<Self, Said> {
        let (running, key) = (running.clone(), key.map(str::to_owned));
        Ok(match way {
            Way::Rest => Self::Rest { running, key, path: "infer" },
            Way::Sse => Self::Rest { running, key, path: "infer_stream" },
            Way::Grpc => Self::Grpc { client: client::grpc(&running).await, running, key },
            Way::GrpcWeb => Self::GrpcWeb { running, key },
            Way::GrpcStream => grpc_stream(&running, key.as_deref()).await?,
            Way::WebSocket => websocket(&running, key.as_deref()).await?,
            Way::Ndjson => {
                let opened = Ndjson::open(&running, key.as_deref()).await;
                let stream = opened
                    .map_err(|failure| said(format!("not opened: {}", failure.code), failure.retry_after.is_some()))?;
                Self::Ndjson { stream: Box::new(stream) }
            }
        })
    }

    /// One question and its end.
    pub async fn ask(&mut self, request: &Request) -> Result<(), Said> {
        match self {
            Self::Rest { running, key, path } => {
                let path = format!("/v2/models/{}/{path}", request.model);
                let body = request.json_v2().to_string();
                rest(&http1(running, http_request(running, "POST", &path, key.as_deref(), body)).await)
            }
            Self::Grpc { client, running, key } => {
                let sent = running.grpc(request.proto(), key.as_deref());
                client.model_infer(sent).await.map(drop).map_err(|status| grpc_said(&status))
            }
            Self::GrpcStream { messages, answers, .. } => {
                // Fails where the stream has ended: its status says why.
                let _ = messages.send(request.proto()).await;
                match answers.message().await {
                    Ok(Some(answer)) if answer.error_message.is_empty() => Ok(()),
                    Ok(other) => panic!("neither an answer nor a status: {other:?}"),
                    Err(status) => Err(grpc_said(&status)),
                }
            }
            Self::GrpcWeb { running, key } => grpc_web(running, key.as_deref(), request).await,
            Self::WebSocket { socket } => {
                if socket.send(Message::text(request.json_message().to_string())).await.is_err() {
                    return Err(said("closed", false));
                }
                socket_says(socket).await
            }
            Self::Ndjson { stream } => {
                // Fails where the stream has ended: its last lines say why.
                stream.offer(&request.json_message()).await;
                message_says(&stream.next().await.expect("a line before the end"))
            }
        }
    }

    /// A question that is no question of this surface.
    pub async fn mumble(&mut self) -> Result<(), Said> {
        match self {
            Self::Rest { running, key, path } => {
                let path = format!("/v2/models/double/{path}");
                rest(&http1(running, http_request(running, "POST", &path, key.as_deref(), "{\"inputs\":7}")).await)
            }
            Self::WebSocket { socket } => {
                socket.send(Message::text(r#"{"type":"infer","id":"t1","model":"double","inputs":7}"#)).await.unwrap();
                socket_says(socket).await
            }
            Self::Ndjson { stream } => {
                stream.send(&json!({ "type": "infer", "id": "t1", "model": "double", "inputs": 7 })).await;
                message_says(&stream.next().await.expect("a line before the end"))
            }
            // A message that is a message, with a tensor that is none.
            Self::Grpc { .. } | Self::GrpcStream { .. } | Self::GrpcWeb { .. } => {
                let shape = [1, 5];
                self.ask(&Request::new("double", &shape, vec![0.0; 4])).await
            }
        }
    }
}

fn rest(response: &http::Response<bytes::Bytes>) -> Result<(), Said> {
    let retry = response.headers().contains_key("retry-after");
    let status = response.status().as_u16();
    let text = std::str::from_utf8(response.body()).expect("text");
    if let Some((_, error)) = text.split_once("event: error\ndata: ") {
        let error: Value = serde_json::from_str(error.lines().next().unwrap()).expect("JSON");
        return Err(said(format!("event `{}`", error["code"].as_str().unwrap()), false));
    }
    if status == 200 {
        return Ok(());
    }
    let body: Value = serde_json::from_str(text).expect("JSON");
    Err(said(format!("{status} `{}`", body["code"].as_str().expect("a code")), retry))
}

fn grpc_said(status: &tonic::Status) -> Said {
    let failure = status_failure(status);
    said(format!("{} `{}`", i32::from(status.code()), failure.code), failure.retry_after.is_some())
}

async fn grpc_stream(running: &Running, key: Option<&str>) -> Result<Caller, Said> {
    let (messages, sent) = mpsc::channel(4);
    let mut request = running.grpc(ReceiverStream::new(sent), key);
    // Errors are statuses, which have codes; otherwise they are texts within the stream.
    request.metadata_mut().insert("triton_grpc_error", "true".parse().unwrap());
    let mut client = client::grpc(running).await;
    let answers = client.model_stream_infer(request).await.map_err(|status| grpc_said(&status))?.into_inner();
    Ok(Caller::GrpcStream { messages, answers: Box::new(answers), key: key.map(str::to_owned) })
}

async fn grpc_web(running: &Running, key: Option<&str>, request: &Request) -> Result<(), Said> {
    let message = request.proto().encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let path = "/inference.GRPCInferenceService/ModelInfer";
    let mut request = http_request(running, "POST", path, key, body);
    request.headers_mut().insert("content-type", "application/grpc-web+proto".parse().unwrap());
    let response = http1(running, request).await;
    assert_eq!(response.status(), 200);
    let mut rest = &response.body()[..];
    while let Some(([flag, length @ ..], after)) = rest.split_first_chunk::<5>() {
        let (frame, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        if *flag == 0x80 {
            let trailers = std::str::from_utf8(frame).unwrap().lines().map(|line| line.split_once(':').unwrap());
            let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.trim().parse().unwrap()));
            let trailers: http::HeaderMap = trailers.collect();
            let status = tonic::Status::from_header_map(&trailers).expect("a status");
            return if status.code() == tonic::Code::Ok { Ok(()) } else { Err(grpc_said(&status)) };
        }
        rest = after;
    }
    // Without a body its head has them.
    Err(grpc_said(&tonic::Status::from_header_map(response.headers()).expect("a status")))
}

async fn websocket(running: &Running, key: Option<&str>) -> Result<Caller, Said> {
    let mut socket = websocket_upgrade(running, key)
        .await
        .map_err(|failure| said(format!("not opened: {}", failure.code), failure.retry_after.is_some()))?;
    socket.send(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    match tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("a message in time") {
        Some(Ok(Message::Text(text))) => {
            let welcome: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(welcome["type"], "welcome", "{welcome}");
            Ok(Caller::WebSocket { socket: Box::new(socket) })
        }
        Some(Ok(Message::Close(Some(frame)))) => Err(said(format!("close {}", u16::from(frame.code)), false)),
        other => panic!("{other:?}"),
    }
}

async fn socket_says(socket: &mut Socket) -> Result<(), Said> {
    loop {
        match tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("a message in time") {
            Some(Ok(Message::Text(text))) => {
                let message: Value = serde_json::from_str(&text).expect("JSON");
                if message["id"] == "t1" {
                    return message_says(&message);
                }
            }
            Some(Ok(Message::Close(Some(frame)))) => {
                return Err(said(format!("close {}", u16::from(frame.code)), false));
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn message_says(message: &Value) -> Result<(), Said> {
    match message["type"].as_str() {
        Some("output") => Ok(()),
        Some("error") => {
            let code = message["code"].as_str().unwrap();
            Err(said(format!("`{code}`"), message["retry_after_ms"].is_u64()))
        }
        _ => panic!("not a terminal message: {message}"),
    }
}

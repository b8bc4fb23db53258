//! There is one door: whatever route or method there is goes through the stack, but for those that are named here.
//!
//! The lists come from the server itself: the OpenAPI document is made of its route table, and reflection tells its
//! services.

use crate::support::{
    KEY, Running, Setup,
    client::{http_request, http1},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_types::FileDescriptorProto;
use serde_json::Value;
use std::collections::BTreeSet;
use tokio_stream::StreamExt;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// Outside, over REST: probes and pages (invariant 3).
const REST: [&str; 5] = ["/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"];
/// Outside, over gRPC: probes, health and reflection (invariant 3). Health's newest method, `List`, is not in the description
/// that reflection has.
const GRPC: [&str; 6] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
];

/// A door, and what comes of knocking.
#[derive(Clone, Debug)]
enum Door {
    Rest(String, String),
    Grpc(String),
}

impl Door {
    async fn all(running: &Running) -> Vec<Self> {
        let mut doors = routes(running).await;
        doors.extend(methods(running).await);
        doors
    }

    fn is_outside(&self) -> bool {
        match self {
            Self::Rest(_, path) => REST.contains(&&**path),
            Self::Grpc(path) => GRPC.contains(&&**path),
        }
    }

    const fn surface(&self) -> &'static str {
        match self {
            Self::Rest(..) => "rest",
            Self::Grpc(_) => "grpc",
        }
    }

    /// The code of the refusal, or `ok`.
    async fn knock(&self, running: &Running, key: Option<&str>) -> String {
        match self {
            Self::Rest(method, path) => {
                let response = http1(running, http_request(running, method, path, key, "{}")).await;
                if response.status().is_success() {
                    return "ok".into();
                }
                let body: Value = serde_json::from_slice(response.body()).unwrap();
                body["code"].as_str().unwrap().into()
            }
            Self::Grpc(path) => call(running, path, key).await,
        }
    }
}

/// Every method of every path that the OpenAPI document describes.
async fn routes(running: &Running) -> Vec<Door> {
    let response = http1(running, http_request(running, "GET", "/openapi.json", None, "")).await;
    let document: Value = serde_json::from_slice(response.body()).unwrap();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{model}", "double").replace("{version}", "1");
        let path = path.replace("{label}", "stable").replace("{region}", "r");
        for method in methods.as_object().unwrap().keys() {
            routes.push(Door::Rest(method.to_uppercase(), path.clone()));
        }
    }
    routes
}

/// Every method of every service that reflection lists.
async fn methods(running: &Running) -> Vec<Door> {
    let mut services = Vec::new();
    for answer in reflect(running, vec![MessageRequest::ListServices(String::new())]).await {
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
        services.extend(list.service.into_iter().map(|service| service.name));
    }
    let questions = services.iter().cloned().map(MessageRequest::FileContainingSymbol).collect();
    let mut methods = BTreeSet::new();
    for answer in reflect(running, questions).await {
        let MessageResponse::FileDescriptorResponse(found) = answer else { panic!("{answer:?}") };
        for file in found.file_descriptor_proto {
            let file: FileDescriptorProto = prost::Message::decode(&file[..]).unwrap();
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
            }
        }
    }
    assert_eq!(methods.iter().map(|path| path.split('/').nth(1)).collect::<BTreeSet<_>>().len(), services.len());
    methods.into_iter().map(Door::Grpc).collect()
}

async fn reflect(running: &Running, questions: Vec<MessageRequest>) -> Vec<MessageResponse> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
    let mut client = ServerReflectionClient::new(channel.connect().await.unwrap());
    let asked = questions
        .into_iter()
        .map(|question| ServerReflectionRequest { host: String::new(), message_request: Some(question) });
    let answers = client.server_reflection_info(tokio_stream::iter(asked.collect::<Vec<_>>())).await.unwrap();
    answers.into_inner().map(|answer| answer.unwrap().message_response.unwrap()).collect().await
}

/// One empty message, which every method takes for one.
async fn call(running: &Running, path: &str, key: Option<&str>) -> String {
    let stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{}{path}", running.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let body = Full::new(Bytes::from_static(&[0; 5]));
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let mut fields = response.headers().clone();
    let mut body = response.into_body();
    // A stream that stays open has let somebody in.
    while !fields.contains_key("grpc-status") {
        let frame = tokio::time::timeout(std::time::Duration::from_millis(500), body.frame()).await;
        match frame {
            Ok(Some(frame)) => {
                if let Ok(trailers) = frame.unwrap().into_trailers() {
                    fields.extend(trailers);
                }
            }
            Ok(None) | Err(_) => break,
        }
    }
    connection.abort();
    match fields.get("error-code") {
        Some(code) => code.to_str().unwrap().to_owned(),
        None => "ok".into(),
    }
}

fn setup() -> Setup {
    Setup::new().with_key().yaml(
        "rest: { predict: { model: double } }\nmodels: { control: explicit, load: all }\n\
         telemetry: { metrics: { on_api: true } }",
    )
}

/// How many calls of a surface ended with a code.
async fn counted(running: &Running, surface: &str, code: &str) -> u64 {
    let page = running.metrics().await;
    let lines = page.lines().filter(|line| {
        line.starts_with("sluicegate_calls_total{")
            && line.contains(&format!("surface=\"{surface}\""))
            && line.contains(&format!("code=\"{code}\""))
    });
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn who_is_unknown_is_let_in_nowhere_and_counted_everywhere() {
    let running = setup().start().await;
    let (mut inside, mut outside) = (0, 0);
    for door in Door::all(&running).await {
        let before = counted(&running, door.surface(), "unauthenticated").await;
        let code = door.knock(&running, None).await;
        let counted = counted(&running, door.surface(), "unauthenticated").await - before;
        if door.is_outside() {
            assert_eq!((&*code, counted), ("ok", 0), "{door:?}");
            outside += 1;
        } else {
            assert_eq!((&*code, counted), ("unauthenticated", 1), "{door:?}");
            inside += 1;
        }
    }
    assert_eq!(outside, REST.len() + GRPC.len(), "each exception is one");
    assert!(inside > 70, "{inside} doors");
}

#[tokio::test]
async fn who_has_used_up_a_limit_is_let_in_nowhere() {
    let policy =
        "{ name: all, by: identity, unit: calls, limit: 1/day, burst: 1, intents: [infer, inspect, manage, metrics] }";
    let running = setup().yaml(&format!("limits: {{ rate: [{policy}] }}")).start().await;
    let first = Door::Rest("GET".into(), "/v2".into());
    assert_eq!(first.knock(&running, Some(KEY)).await, "ok");
    for door in Door::all(&running).await {
        let expected = if door.is_outside() { "ok" } else { "rate_limited" };
        assert_eq!(door.knock(&running, Some(KEY)).await, expected, "{door:?}");
    }
}

#[tokio::test]
async fn who_may_do_nothing_finds_nothing() {
    let running =
        setup().with_grants("[{ to: [\"identity:nobody\"], intents: [infer], models: [\"*\"] }]").start().await;
    for door in Door::all(&running).await {
        let code = door.knock(&running, Some(KEY)).await;
        if door.is_outside() {
            assert_eq!(code, "ok", "{door:?}");
        } else {
            // What names a model is not found, so that nobody learns which models there are; or the empty message says
            // nothing that could be looked for.
            let refused = ["permission_denied", "not_found", "invalid_argument"];
            assert!(refused.contains(&&*code), "{door:?}: {code}");
        }
    }
}

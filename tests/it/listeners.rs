//! Listeners of their own for some surfaces: what one does not serve is not there (contract 00 section 4).

use crate::support::{
    Running, Setup,
    client::{Client, Ndjson, Request, grpc, http_request, http1, websocket_upgrade},
};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use sluicegate::{call::Surface, wire::proto::inference};
use tokio::net::TcpStream;

fn double() -> Request {
    Request::new("double", &[1, 4], vec![1.0; 4])
}

/// As `config/triton-ports.yaml` has them.
async fn triton() -> (Running, Running) {
    let running = Setup::new().listeners(&["rest, websocket, h2_stream", "grpc"]).start().await;
    (running.at(0), running.at(1))
}

/// One HTTP/2 request with prior knowledge: its status and headers.
async fn http2(running: &Running, method: &str, path: &str, kind: &str) -> http::Response<bytes::Bytes> {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", running.address))
        .header("content-type", kind)
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    http::Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

fn code(response: &http::Response<bytes::Bytes>) -> String {
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    body["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_surface_is_served_where_it_is_configured() {
    let (http, rpc) = triton().await;
    for (surface, running) in
        [(Surface::Rest, &http), (Surface::WebSocket, &http), (Surface::H2Stream, &http), (Surface::Grpc, &rpc)]
    {
        let mut client = Client::connect(surface, running, None).await.unwrap();
        client.infer(&double()).await.unwrap();
    }
    // The same model, and the same counters, whatever the port.
    let page = http.metrics().await;
    for surface in Surface::ALL {
        let series = format!("surface=\"{}\"", surface.name());
        assert!(page.lines().any(|line| line.starts_with("sluicegate_calls_total{") && line.contains(&series)));
    }
}

#[tokio::test]
async fn grpc_on_a_listener_without_it_is_unimplemented() {
    let (http, _) = triton().await;
    let mut client = grpc(&http).await;
    let status = client.server_live(inference::ServerLiveRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented, "{status:?}");
    assert_eq!(status.message(), "grpc is not served on this address");
    let status = client.model_infer(inference::ModelInferRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    // On HTTP/1.1 there are no trailers that could say so: never 200 (contract 00 section 4).
    let mut request = http_request(&http, "POST", "/inference.GRPCInferenceService/ServerLive", None, "");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    assert_eq!(http1(&http, request).await.status(), 505);
    // gRPC-Web has its trailers in the body or, as here, all in the head.
    let response = http2(&http, "POST", "/inference.GRPCInferenceService/ServerLive", "application/grpc-web").await;
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"12".parse().unwrap()));
}

#[tokio::test]
async fn whatever_is_not_grpc_is_not_found_on_a_listener_for_grpc() {
    let (_, rpc) = triton().await;
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v2"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/double"),
        ("POST", "/v2/models/double/infer"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/stream"),
        ("GET", "/v1/ws"),
    ] {
        let response = http2(&rpc, method, path, "application/json").await;
        assert_eq!((response.status().as_u16(), &*code(&response)), (404, "not_found"), "{method} {path}");
        let response = http1(&rpc, http_request(&rpc, method, path, None, "")).await;
        assert_eq!(response.status(), 404, "{method} {path}");
    }
    let refused = websocket_upgrade(&rpc, None).await.expect_err("no upgrade");
    assert_eq!(refused.code, "not_found");
    let refused = Ndjson::open(&rpc, None).await.err().expect("no stream");
    assert_eq!(refused.code, "not_found");
}

#[tokio::test]
async fn a_listener_for_rest_alone_has_no_streams_and_no_sockets() {
    let running = Setup::new().listeners(&["rest"]).start().await;
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    client.infer(&double()).await.unwrap();
    assert_eq!(websocket_upgrade(&running, None).await.expect_err("no upgrade").code, "not_found");
    assert_eq!(Ndjson::open(&running, None).await.err().expect("no stream").code, "not_found");
    // Not 426: an upgrade would not help.
    let response = http1(&running, http_request(&running, "GET", "/v1/ws", None, "")).await;
    assert_eq!((response.status().as_u16(), &*code(&response)), (404, "not_found"));
}

#[tokio::test]
async fn the_admin_listener_has_metrics_and_probes_and_nothing_else() {
    let (http, rpc) = triton().await;
    let admin = http.at_admin();
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(http1(&admin, http_request(&admin, "GET", path, None, "")).await.status(), 200, "{path}");
        assert_eq!(http1(&rpc, http_request(&rpc, "GET", path, None, "")).await.status(), 404, "{path}");
        let response = http1(&http, http_request(&http, "GET", path, None, "")).await;
        assert!(!response.status().is_success(), "{path}");
    }
    for path in ["/", "/v2/models", "/v2/models/double/infer", "/v2/health/live"] {
        assert_eq!(http1(&admin, http_request(&admin, "GET", path, None, "")).await.status(), 404, "{path}");
    }
}

//! Where several protocols claim the same thing: a path, a port, the member `error`. Each client must find its own.

use crate::support::{
    KEY, Running, Setup,
    client::{Client, Request, http_request, http1, websocket},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sluicegate::call::Surface;

async fn ask(running: &Running, method: &str, path: &str, body: &'static str) -> (u16, HeaderMap, Value) {
    let (parts, body) = http1(running, http_request(running, method, path, None, body)).await.into_parts();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

const ROW: &str = r#"{"instances":[[1,2,3,4]]}"#;
const INFER: &str = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}"#;

#[tokio::test]
async fn the_error_is_text_or_an_object_or_a_problem_by_the_family_of_the_path() {
    let running = Setup::new().start().await;
    for (method, path, body, status) in [
        ("GET", "/v2/nothing", "", 404),
        ("GET", "/v2/models/nobody", "", 404),
        ("POST", "/v2/models/double/infer", "{", 400),
        ("POST", "/v2/repository/models/double/load", "", 501),
        ("GET", "/v1/models/nobody", "", 404),
        ("POST", "/v1/models/nobody:predict", ROW, 404),
        ("POST", "/v1/models/double:predict", "{", 400),
        ("POST", "/v1/models/double:nothing", ROW, 404),
        ("DELETE", "/v1/models/double", "", 405),
        ("GET", "/nothing", "", 404),
    ] {
        let (found, headers, error) = ask(&running, method, path, body).await;
        assert_eq!((found, &headers["content-type"]), (status, &"application/json".parse().unwrap()), "{path}");
        assert!(error["error"].is_string(), "{path}: {error}");
        assert_eq!(error["request_id"], headers["x-request-id"].to_str().unwrap(), "{path}");
        assert!(error["code"].is_string() && error["retryable"].is_boolean(), "{path}: {error}");
        assert_eq!(headers.contains_key("allow"), status == 405, "{path}");
    }
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/completions", 501),
        ("POST", "/openai/v1/embeddings", 501),
        ("GET", "/openai/v1/models", 501),
        ("GET", "/v1/completions", 405),
    ] {
        let (found, headers, error) = ask(&running, method, path, "{}").await;
        assert_eq!((found, &headers["content-type"]), (status, &"application/json".parse().unwrap()), "{path}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string(), "{path}: {error}");
    }
    let (status, headers, problem) = ask(&running, "GET", "/v1/ws", "").await;
    assert_eq!((status, &headers["content-type"]), (426, &"application/problem+json".parse().unwrap()));
    assert_eq!(problem["status"], 426, "{problem}");
    let keyed = Setup::new().with_key().start().await;
    let mut request = http_request(&keyed, "POST", "/v2/stream", None, "");
    request.headers_mut().insert("content-type", "application/x-ndjson".parse().unwrap());
    let response = http1(&keyed, request).await;
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!((&problem["status"], &problem["code"]), (&json!(401), &json!("unauthenticated")), "{problem}");
}

#[tokio::test]
async fn paths_are_taken_apart_before_they_are_decoded_and_queries_change_nothing() {
    let running = Setup::new().start().await;
    let code = async |method: &str, path: &str, body| {
        let (status, _, error) = ask(&running, method, path, body).await;
        (status, error["error"].as_str().unwrap_or_default().to_owned())
    };
    for path in ["/v2/models/double/infer", "/v2/models/%64ouble/infer", "/v2/models/double/infer?x=/v2/health/live"] {
        assert_eq!(code("POST", path, INFER).await.0, 200, "{path}");
    }
    assert_eq!(code("GET", "/v1/models/double?model=nobody", "").await.0, 200);
    // One name, with a slash in it, and no folder further up; decoded once.
    let (status, text) = code("POST", "/v2/models/org%2Fname/infer", INFER).await;
    assert_eq!((status, &*text), (404, "model `org/name` is unknown"));
    let (_, text) = code("POST", "/v2/models/%2564ouble/infer", INFER).await;
    assert_eq!(text, "model `%64ouble` is unknown");
    assert_eq!(code("POST", "/v2/models/org/name/infer", INFER).await.1, "this path is unknown");
    for path in ["/v1/models/org%2Fname", "/v1/models/org/name"] {
        let (status, text) = code("GET", path, "").await;
        assert_eq!((status, &*text), (404, "model `org/name` is unknown"), "{path}: however the client writes it");
    }
    for path in ["/v2/models/a%00b", "/v2/models/..", "/v2/models/%2e%2E", "/v2/models/%2e/ready", "/v2/models/%zz"] {
        // hyper's client would take no dots out of a path, and neither does the server.
        assert_eq!(code("GET", path, "").await.0, 400, "{path}");
    }
    // Any text is a version, and it is found as it is written or not at all.
    for version in ["9", "latest", "1.0", "%31%30"] {
        let (status, text) = code("POST", &format!("/v2/models/double/versions/{version}/infer"), INFER).await;
        assert_eq!(status, 404);
        assert_eq!(text, format!("version `{}` of model `double` is unknown", version.replace("%31%30", "10")));
    }
    assert_eq!(code("POST", "/v2/models/double/versions/%31/infer", INFER).await.0, 200);
}

#[tokio::test]
async fn one_port_tells_its_protocols_apart() {
    let running = Setup::new().start().await;
    // The same path, asked by three content types over HTTP/1.1: gRPC-Web, gRPC, neither.
    let path = "/inference.GRPCInferenceService/ServerLive";
    for (kind, status) in [("application/grpc-web+proto", 200), ("application/grpc", 505), ("application/json", 415)] {
        let mut request = http_request(&running, "POST", path, None, Bytes::from_static(&[0; 5]));
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        let response = http1(&running, request).await;
        assert_eq!(response.status(), status, "{kind}");
        if status == 200 {
            assert!(response.body().starts_with(&[0, 0, 0, 0, 2, 8, 1, 0x80]), "{:?}", response.body());
        }
    }
    // The content type comes before the path, and the upgrade before the path too.
    let mut request = http_request(&running, "POST", "/v2/stream", None, Bytes::from_static(&[0; 5]));
    request.headers_mut().insert("content-type", "application/grpc-web".parse().unwrap());
    let response = http1(&running, request).await;
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    assert!(websocket(&running, None).await.is_ok());
    // HTTP/2 with prior knowledge on the same port.
    let stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("http://{}/v2/health/live", running.address));
    let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), r#"{"live":true}"#);
    // And every surface, as its clients are.
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        client.infer(&Request::new("double", &[1, 4], vec![0.0; 4])).await.unwrap();
    }
}

#[tokio::test]
async fn an_id_that_is_sane_is_kept_and_another_is_made_anew() {
    let running = Setup::new().start().await;
    let ask = async |id: &str| {
        let mut request = http_request(&running, "GET", "/v2/models/nobody", None, "");
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        // A trace context, right or wrong, is never an error.
        request.headers_mut().insert("traceparent", "00-nonsense".parse().unwrap());
        let response = http1(&running, request).await;
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!((response.status().as_u16(), &body["request_id"]), (404, &json!(id)));
        id
    };
    let longest = "x".repeat(128);
    for sane in ["a", "A.b_c-9", &longest] {
        assert_eq!(ask(sane).await, sane);
    }
    for other in ["", "a b", "a/b", &"x".repeat(129)] {
        let made = ask(other).await;
        assert!(made.len() == 36 && made.as_bytes()[14] == b'7', "a UUID of version 7: {made}");
    }
}

#[tokio::test]
async fn a_key_is_a_bearer_token_or_a_header_of_its_own() {
    let running = Setup::new().with_key().start().await;
    let ask = async |name: &'static str, value: &str| {
        let mut request = http_request(&running, "GET", "/v2/models/double", None, "");
        request.headers_mut().insert(name, value.parse().unwrap());
        let response = http1(&running, request).await;
        (response.status().as_u16(), response.headers().contains_key("www-authenticate"))
    };
    for (name, value) in [("authorization", format!("Bearer {KEY}")), ("x-api-key", KEY.to_owned())] {
        assert_eq!(ask(name, &value).await, (200, false), "{name}");
    }
    assert_eq!(ask("cookie", &format!("key={KEY}")).await, (401, true));
}

//! REST and dispatch over real sockets.

use crate::{
    call::Surface,
    frontend::{
        Settings, Surfaces,
        testing::{Plan, Server, echo, get2, http2, nobody, status},
    },
};

const INFER: &str = r#"{"id":"r","inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2]}]}"#;

fn server() -> Server {
    Plan::default().start(echo)
}

fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn header<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    response.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn probes_answer_without_the_stack() {
    let server = server();
    assert_eq!(body(&server.ask("GET", "/").await), r#"{"status":"alive"}"#);
    assert_eq!(body(&server.ask("GET", "/v2/health/ready").await), r#"{"ready":true}"#);
    let head = server.ask("HEAD", "/v2/health/ready").await;
    assert!(head.starts_with("HTTP/1.1 200") && body(&head).is_empty(), "{head}");
    assert_eq!(header(&head, "content-length"), Some("14"));
    server.readiness.set_draining();
    let refused = server.ask("GET", "/v2/health/ready").await;
    assert_eq!(status(&refused), 503);
    assert!(body(&refused).starts_with(r#"{"error":"the server is draining","request_id":"#), "{refused}");
    assert!(header(&refused, "retry-after").is_some());
    assert_eq!(status(&server.ask("GET", "/v2/health/live").await), 200);
    assert_eq!(server.calls.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn head_probes_have_no_body_over_http2() {
    let server = server();
    let mut client = http2(server.connect().await).await;
    let request = http::Request::head("http://a/v2/health/live").body(Default::default()).unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], "13");
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[tokio::test]
async fn every_answer_carries_the_call_id_and_the_exact_content_type() {
    let server = server();
    let answer =
        server.say("GET /v2/models HTTP/1.1\r\nhost: a\r\nx-request-id: my-1\r\nconnection: close\r\n\r\n").await;
    assert_eq!(header(&answer, "x-request-id"), Some("my-1"));
    assert_eq!(header(&answer, "content-type"), Some("application/json"));
    assert_eq!(header(&answer, "server"), None);
    assert_eq!(body(&answer), r#"{"models":["m"]}"#);
    for path in ["/nope", "/v2/models/m/config", "/v2/health/live"] {
        let answer = server.ask("GET", path).await;
        assert_eq!(header(&answer, "x-request-id").map(str::len), Some(36), "{answer}");
    }
}

#[tokio::test]
async fn unknown_paths_wrong_methods_and_later_routes_have_their_own_status() {
    let server = server();
    let unknown = server.ask("GET", "/nope").await;
    assert_eq!(status(&unknown), 404);
    assert!(body(&unknown).contains(r#""code":"not_found""#), "{unknown}");
    let wrong = server.ask("DELETE", "/v2/models/m/infer").await;
    assert_eq!((status(&wrong), header(&wrong, "allow")), (405, Some("POST")));
    let later = server.post("/v2/repository/other/index", "", "{}").await;
    assert_eq!(status(&later), 501);
    let open_ai = server.post("/v1/chat/completions", "", "{}").await;
    assert_eq!(status(&open_ai), 501);
    assert!(body(&open_ai).starts_with(r#"{"error":{"message":""#), "{open_ai}");
    let web_socket = server.ask("GET", "/v1/ws").await;
    assert_eq!((status(&web_socket), header(&web_socket, "upgrade")), (426, Some("websocket")));
    assert_eq!(server.calls.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_model_that_is_not_ready_is_503() {
    let server = server();
    assert_eq!(body(&server.ask("GET", "/v2/models/m/ready").await), r#"{"name":"m","ready":true}"#);
    let other = server.ask("GET", "/v2/models/other/ready").await;
    assert_eq!(status(&other), 503, "{other}");
    assert!(header(&other, "retry-after").is_some());
}

#[tokio::test]
async fn infer_answers_in_json_whole_or_in_chunks() {
    let server = server();
    let answer = server.post("/v2/models/m/infer", "", INFER).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(body(&answer).contains(r#""model_name":"m""#) && body(&answer).contains(r#""id":"r""#));
    assert_eq!(header(&answer, "content-length"), Some(&*body(&answer).len().to_string()));

    let (first, second) = INFER.split_at(20);
    let chunked = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    let chunked = server.say(chunked).await;
    assert_eq!(body(&chunked), body(&answer));
}

#[tokio::test]
async fn infer_answers_in_binary_if_asked() {
    let server = server();
    let header_text = r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}}],"parameters":{"binary_data_output":true}}"#;
    let tail = "\0\0\u{0}\u{3f}\0\0\0\u{40}";
    let lengths = format!("inference-header-content-length: {}\r\n", header_text.len());
    let answer = server.post("/v2/models/m/infer", &lengths, &format!("{header_text}{tail}")).await;
    assert_eq!(header(&answer, "content-type"), Some("application/octet-stream"), "{answer}");
    let json: usize = header(&answer, "inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(&body(&answer).as_bytes()[json..], tail.as_bytes());
    assert_eq!(header(&answer, "content-length"), Some(&*(json + 8).to_string()));
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_said() {
    let mut settings = Settings::default();
    settings.size.body = 100;
    let server = Plan { settings, ..Plan::default() }.start(echo);
    let path = "/v2/models/m/infer";
    let large = server.post(path, "", &"x".repeat(101)).await;
    assert_eq!((status(&large), header(&large, "connection")), (413, Some("close")), "{large}");
    assert!(header(&large, "retry-after").is_none());
    assert_eq!(status(&server.post(path, "", "{").await), 400);
    assert_eq!(status(&server.post(path, "content-type: text/xml\r\n", INFER).await), 415);
    let gzip = server.post(path, "content-encoding: br\r\n", INFER).await;
    assert_eq!((status(&gzip), header(&gzip, "accept-encoding")), (415, Some("gzip, deflate, zstd")));
    assert_eq!(status(&server.post(path, "inference-header-content-length: -1\r\n", INFER).await), 400);
    let broken = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n");
    assert_eq!(status(&server.say(broken).await), 400);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_408_and_the_end() {
    let server = server();
    let head = "POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{";
    let answer = server.say(head).await;
    assert_eq!((status(&answer), header(&answer, "connection")), (408, Some("close")), "{answer}");
}

#[tokio::test]
async fn who_is_unknown_is_told_how_to_introduce_himself() {
    let server = Plan::default().start(nobody);
    let answer = server.ask("GET", "/v2/models").await;
    assert_eq!(status(&answer), 401);
    assert!(header(&answer, "www-authenticate").unwrap().starts_with("Bearer"));
    assert!(body(&answer).contains(r#""code":"unauthenticated""#));
}

#[tokio::test]
async fn unsound_heads_are_refused_before_any_surface() {
    let server = server();
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(9000));
    assert_eq!(status(&server.say(long).await), 414);
    let wide = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(17_000));
    assert_eq!(status(&server.say(wide).await), 431);
    let huge = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(30_000));
    assert_eq!(status(&server.say(huge).await), 431);
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(100));
    assert_eq!(status(&server.say(many).await), 431);
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n",
        "GET /v1/ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ] {
        assert_eq!(status(&server.say(head).await), 400, "{head}");
    }
    let connect = server.say("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status(&connect), 405);
}

#[tokio::test(start_paused = true)]
async fn two_lengths_never_make_two_requests() {
    let server = server();
    let second = "GET /v2/models HTTP/1.1\r\nhost: a\r\n\r\n";
    for framing in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 60\r\n\r\n0\r\n\r\n",
        "content-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        "content-length: +1\r\n\r\nx",
        "content-length: 1, 2\r\n\r\nx",
        "content-length: -1\r\n\r\n",
        "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "x: a\r\n folded\r\n\r\n",
        "x: a\0b\r\n\r\n",
    ] {
        let answer = server.say(format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\n{framing}{second}")).await;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{framing:?}: {answer}");
        assert!(!answer.contains("models"), "{framing:?}: {answer}");
    }
}

#[tokio::test]
async fn grpc_needs_http2_and_its_own_content_type() {
    let server = server();
    let path = "/inference.GRPCInferenceService/ServerLive";
    assert_eq!(status(&server.post(path, "content-type: application/grpc\r\n", "").await), 505);
    for kind in ["", "content-type: text/plain\r\n", "content-type: application/json\r\n"] {
        let answer = server.post(path, kind, "{}").await;
        assert_eq!(status(&answer), 415, "{answer}");
        assert!(answer.contains("expected `content-type: application/grpc`"), "{answer}");
    }
}

#[tokio::test]
async fn what_a_listener_does_not_serve_is_not_found() {
    let surfaces = Surfaces::NONE.with(Surface::Grpc);
    let server = Plan { surfaces, ..Plan::default() }.start(echo);
    assert_eq!(status(&server.ask("GET", "/v2/models").await), 404);
    assert_eq!(status(&server.post("/v2/stream", "", "").await), 404);
    let surfaces = Surfaces::NONE.with(Surface::Rest);
    let server = Plan { surfaces, ..Plan::default() }.start(echo);
    let mut client = http2(server.connect().await).await;
    let request = http::Request::post("http://a/inference.GRPCInferenceService/ServerLive")
        .header("content-type", "application/grpc")
        .body(Default::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &http::HeaderValue::from(12)));
    assert_eq!(get2(&mut client, "/v2/models").await.0, 200);
}

#[tokio::test]
async fn who_names_problem_details_first_gets_them_on_every_route() {
    let server = server();
    let large = "x".repeat(200);
    for (path, code) in [("/v2/models/m/infer", 400), ("/v1/models/m:explain", 501), ("/v2/nothing", 404)] {
        for accept in ["application/problem+json", "Application/Problem+JSON;q=1, application/json"] {
            let answer = server.post(path, &format!("accept: {accept}\r\n"), &large).await;
            assert_eq!(status(&answer), code, "{answer}");
            assert_eq!(header(&answer, "content-type"), Some("application/problem+json"), "{answer}");
            let problem: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
            assert_eq!((&problem["status"], &problem["instance"]), (&code.into(), &path.into()), "{problem}");
            assert!(problem["error"].is_string() && problem["detail"].is_string(), "{problem}");
        }
        for accept in ["application/json, application/problem+json", "*/*", "application/problem+jsonx"] {
            let answer = server.post(path, &format!("accept: {accept}\r\n"), &large).await;
            assert_eq!(header(&answer, "content-type"), Some("application/json"), "{answer}");
        }
    }
}

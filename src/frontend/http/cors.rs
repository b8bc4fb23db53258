//! Which pages may call, over REST and gRPC-Web (`cors`, contract 05 section 4).
//!
//! What browsers ask and what they are told is tower-http's; which names are told is ours. A page of another origin can
//! send a request whatever is said here: it may not read the answer. WebSockets have their own check, because browsers
//! ask nothing before them.

use super::{Request, Response, Target};
use crate::frontend::{
    Connection, grpc,
    head::Fields,
    settings::{Cors, Origins},
};
use futures_util::FutureExt;
use http::{HeaderName, Method, header};
use std::{convert::Infallible, sync::Arc};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Request headers that clients of ours send (contract 05 section 4, contract 00 section 5).
const SENT: [HeaderName; 17] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("inference-header-content-length"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-accept-content-transfer-encoding"),
    HeaderName::from_static("x-accept-response-streaming"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-user-agent"),
    HeaderName::from_static("idempotency-key"),
];
/// Response headers that pages may read.
const READ: [HeaderName; 10] = [
    header::RETRY_AFTER,
    HeaderName::from_static("error-code"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-status-details-bin"),
    HeaderName::from_static("inference-header-content-length"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("server-timing"),
    HeaderName::from_static("x-request-id"),
];

/// Whether requests of pages are answered with regard to where they come from. The other surfaces have their own checks.
pub(super) fn concerns(connection: &Connection, target: Target) -> bool {
    matches!(target, Target::Rest | Target::GrpcWeb)
        && match &connection.frontend.settings.cors.origins {
            Origins::Any => true,
            Origins::Listed(origins) => !origins.is_empty(),
        }
}

/// Answers what browsers ask beforehand, and tells them who may read what the surface says.
pub(super) async fn serve(connection: Arc<Connection>, target: Target, request: Request) -> Response {
    let layer = layer(&connection.frontend.settings.cors);
    let service = layer.layer(service_fn(move |request: Request| {
        let connection = Arc::clone(&connection);
        let answer = if target == Target::GrpcWeb {
            grpc::serve_web(connection, request).boxed()
        } else {
            let (parts, body) = request.into_parts();
            let request = http::Request::from_parts(parts, ());
            super::serve_rest(connection, &request, &Fields::of(request.headers()), body)
        };
        answer.map(Ok::<_, Infallible>)
    }));
    match service.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

fn layer(settings: &Cors) -> CorsLayer {
    let origins = match &settings.origins {
        Origins::Any => AllowOrigin::any(),
        Origins::Listed(origins) => AllowOrigin::list(origins.clone()),
    };
    let sent = SENT.into_iter().chain(settings.headers.iter().cloned()).collect::<Vec<_>>();
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::OPTIONS])
        .allow_headers(sent)
        .expose_headers(READ)
        .allow_credentials(settings.credentials)
        .max_age(settings.max_age)
}

#[cfg(test)]
mod tests {
    use crate::frontend::{
        Settings,
        settings::{Cors, Origins},
        testing::{Plan, Server, echo, status},
    };
    use http::HeaderValue;

    fn server(origins: Origins) -> Server {
        let cors = Cors { origins, credentials: true, ..Cors::default() };
        Plan { settings: Settings { cors, ..Settings::default() }, ..Plan::default() }.start(echo)
    }

    fn listed() -> Origins {
        Origins::Listed(vec![HeaderValue::from_static("https://app.example")])
    }

    fn ask(method: &str, path: &str, headers: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n")
    }

    const PREFLIGHT: &str = "access-control-request-method: POST\r\naccess-control-request-headers: x-grpc-web\r\n";

    #[tokio::test]
    async fn a_listed_origin_is_told_what_it_may_send_and_read() {
        let server = server(listed());
        let headers = format!("origin: https://app.example\r\n{PREFLIGHT}");
        let answer = server.say(ask("OPTIONS", "/inference.GRPCInferenceService/ModelInfer", &headers)).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains("access-control-allow-origin: https://app.example\r\n"), "{answer}");
        assert!(answer.contains("access-control-max-age: 600\r\n"), "{answer}");
        let allowed = answer.lines().find(|line| line.starts_with("access-control-allow-headers")).unwrap();
        for name in ["content-type", "x-grpc-web", "x-user-agent", "grpc-timeout", "authorization", "x-request-id"] {
            assert!(allowed.contains(name), "{name}: {allowed}");
        }
        let answer = server.say(ask("GET", "/v2/models", "origin: https://app.example\r\n")).await;
        let exposed = answer.lines().find(|line| line.starts_with("access-control-expose-headers")).unwrap();
        for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"] {
            assert!(exposed.contains(name), "{name}: {exposed}");
        }
        assert!(answer.contains("access-control-allow-credentials: true\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn another_origin_is_told_nothing() {
        let answer = server(listed()).say(ask("GET", "/v2/models", "origin: https://other.example\r\n")).await;
        assert_eq!(status(&answer), 200);
        assert!(!answer.contains("access-control-allow-origin"), "{answer}");
    }

    #[tokio::test]
    async fn without_configuration_nothing_is_said_and_options_is_no_method() {
        let server = Plan::default().start(echo);
        let headers = format!("origin: https://app.example\r\n{PREFLIGHT}");
        let answer = server.say(ask("OPTIONS", "/v2/models", &headers)).await;
        assert_eq!(status(&answer), 405, "{answer}");
        assert!(!answer.contains("access-control"), "{answer}");
    }
}

//! What is answered beside the stack: probes, health and reflection.

use super::{
    fixture::{World, world},
    status::metadata,
    tests::{plain, server},
};
use crate::{
    call::Peer,
    error::Error,
    frontend::{Phase, Settings, Surfaces, settings::Reflection},
    wire::proto::inference as pb,
};
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

#[tokio::test]
async fn probes_are_answered_beside_the_stack() {
    let world = world(Settings::default(), |_| async { Err(Error::Unauthenticated) });
    let mut client = world.client().await;
    assert!(client.server_live(pb::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(pb::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    world.connection.frontend.readiness.set_draining();
    assert!(client.server_live(pb::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(!client.server_ready(pb::ServerReadyRequest {}).await.unwrap().into_inner().ready);
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_few_watches_and_none_lasts_for_ever() {
    let world = plain();
    let mut health = HealthClient::new(world.channel().await);
    let start = tokio::time::Instant::now();
    let mut watches = Vec::new();
    for _ in 0..16 {
        watches.push(health.watch(check("")).await.unwrap().into_inner());
    }
    assert_eq!(health.watch(check("")).await.unwrap_err().code(), Code::ResourceExhausted);
    let mut last = watches.pop().unwrap();
    assert!(last.message().await.unwrap().is_some());
    assert_eq!(last.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(start.elapsed().as_secs(), 3600);
    drop((last, watches));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(health.watch(check("")).await.is_ok());
}

fn check(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn health_knows_the_server_its_service_and_visible_models() {
    let world = plain();
    let mut health = HealthClient::new(world.channel().await);
    for service in ["", "inference.GRPCInferenceService", "model:m"] {
        assert_eq!(health.check(check(service)).await.unwrap().into_inner().status, 1, "{service}");
    }
    for service in ["model:hidden", "model:", "nothing"] {
        assert_eq!(health.check(check(service)).await.unwrap_err().code(), Code::NotFound, "{service}");
    }
    world.connection.frontend.readiness.set_draining();
    for service in ["", "inference.GRPCInferenceService", "model:m"] {
        assert_eq!(health.check(check(service)).await.unwrap().into_inner().status, 2, "{service}");
    }
}

#[tokio::test]
async fn health_lists_its_names() {
    let world = plain();
    let mut client = tonic::client::Grpc::new(world.channel().await);
    client.ready().await.unwrap();
    let codec =
        tonic_prost::ProstCodec::<super::health::HealthListRequest, super::health::HealthListResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/List");
    let list = client.unary(Request::new(super::health::HealthListRequest {}), path, codec).await.unwrap().into_inner();
    let mut names: Vec<_> = list.statuses.iter().map(|(name, status)| (name.as_str(), status.status)).collect();
    names.sort_unstable();
    assert_eq!(names, [("", 1), ("inference.GRPCInferenceService", 1)]);
}

#[tokio::test]
async fn a_watcher_hears_the_state_then_changes_then_the_end() {
    let world = plain();
    let mut health = HealthClient::new(world.channel().await);
    let mut watch = health.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 1);
    world.connection.frontend.readiness.set_draining();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 2);
    world.phase.send_replace(Phase::Draining { deadline: std::time::Instant::now() });
    let end = watch.next().await.unwrap().unwrap_err();
    assert_eq!((end.code(), metadata(&end, "error-code")), (Code::Unavailable, Some("not_ready")));
}

#[tokio::test]
async fn a_watcher_of_an_unknown_name_is_told_and_stays() {
    let world = plain();
    let mut health = HealthClient::new(world.channel().await);
    let mut watch = health.watch(check("nothing")).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 3);
    assert!(tokio::time::timeout(Duration::from_millis(50), watch.next()).await.is_err());
}

#[tokio::test]
async fn reflection_goes_on_after_an_unknown_symbol_in_both_versions() {
    let world = plain();
    let ask = |symbol: &str| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::FileContainingSymbol(symbol.into())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(world.channel().await);
    let questions = tokio_stream::iter([ask("inference.Nothing"), ask("inference.ModelInferRequest")]);
    let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
    let mut kinds = Vec::new();
    while let Some(answer) = answers.next().await {
        kinds.push(answer.unwrap().message_response.unwrap());
    }
    use v1::server_reflection_response::MessageResponse as Kind;
    assert!(
        matches!(&kinds[..], [Kind::ErrorResponse(error), Kind::FileDescriptorResponse(_)] if error.error_code == 5)
    );

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(world.channel().await);
    let question = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::once(question)).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().is_ok());
}

#[tokio::test]
async fn reflection_is_for_loopback_unless_told_otherwise() {
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let outside = |world: &World| {
        let local = ([192, 0, 2, 1], 80).into();
        world.at(Peer { local, ..Peer::clone(&world.connection.peer) }, Surfaces::ALL)
    };
    for (reflection, inside_code, outside_code) in [
        (Reflection::Loopback, Code::Ok, Code::Unimplemented),
        (Reflection::Always, Code::Ok, Code::Ok),
        (Reflection::Never, Code::Unimplemented, Code::Unimplemented),
    ] {
        let mut settings = Settings::default();
        settings.grpc.reflection = reflection;
        let world = world(settings, server);
        for (world, code) in [(outside(&world), outside_code), (world, inside_code)] {
            let status = Status::from_header_map(&world.raw(path, &[], &[]).await).unwrap();
            assert_eq!(status.code(), code, "{reflection:?}");
        }
    }
}

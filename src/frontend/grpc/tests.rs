//! The surface as clients see it, over a connection in memory and a gateway that is a closure.

use super::{
    arriving::{Arriving, Wait},
    fixture::{World, framed, request, world},
    status::metadata,
};
use crate::{
    call::{
        Chunk, Credentials, Identity, Inbound, InferResponse, Inspect, Intent, ModelKey, NamedTensor, Operation, Peer,
        Reply, ReplyStream, Report, Scope, ServerReport, Surface, Timing,
    },
    error::Error,
    frontend::{Phase, Settings, Surfaces, settings::Reflection},
    tensor::{DataType, Shape, Tensor},
    wire::proto::inference as pb,
};
use prost::Message;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

fn response(client_id: Option<Arc<str>>) -> InferResponse {
    let data = bytes::Bytes::from_static(&[0, 0, 128, 62, 0, 0, 192, 191]);
    let tensor = Tensor::new(DataType::Fp32, Shape::new([1, 2]), data).unwrap();
    InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id,
        outputs: vec![NamedTensor { name: "Y".into(), tensor }],
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

/// A stack that reads the message and answers what a server would.
async fn server(call: Inbound) -> Result<Reply, Error> {
    assert_eq!(call.head.surface, Surface::Grpc);
    match call.input.await? {
        Operation::Infer(request) => {
            assert_eq!(call.head.intent, Intent::Infer);
            Ok(Reply::Infer(response(request.client_id)))
        }
        Operation::Inspect(Inspect::Ready(model)) => match &*model.name {
            "m" => Ok(Reply::Report(Report::Ready { model: model.name, ready: true })),
            _ => Err(Error::ModelNotFound { model: model.name, version: model.version }),
        },
        Operation::Inspect(Inspect::Server | Inspect::Caller | Inspect::Session) => {
            let report = ServerReport { name: "sluicegate", version: "0", extensions: &[] };
            Ok(Reply::Report(Report::Server(report)))
        }
        Operation::Inspect(question) => Err(Error::invalid(format!("{question:?}"))),
        Operation::Manage(change) => Err(Error::invalid(format!("{change:?}"))),
    }
}

fn plain() -> World {
    world(Settings::default(), server)
}

async fn raw_status(world: &World, headers: &[(&str, &str)], body: &[u8]) -> Status {
    Status::from_header_map(&world.raw(INFER, headers, body).await).unwrap()
}

#[tokio::test]
async fn an_inference_is_answered_with_raw_outputs_and_the_call_id() {
    let mut message = Request::new(request());
    message.metadata_mut().insert("x-request-id", "call-7".parse().unwrap());
    let answer = plain().client().await.model_infer(message).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "call-7");
    let answer = answer.into_inner();
    assert_eq!((&*answer.model_name, &*answer.model_version, &*answer.id), ("m", "1", "r1"));
    assert_eq!(answer.raw_output_contents[0], &[0, 0, 128, 62, 0, 0, 192, 191][..]);
}

#[tokio::test]
async fn outputs_mirror_the_form_of_inputs_where_that_is_configured() {
    let mut typed = request();
    typed.raw_input_contents.clear();
    typed.inputs[0].contents = Some(pb::InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() });
    for (mirror, message, is_typed) in
        [(false, typed.clone(), false), (true, typed.clone(), true), (true, request(), false)]
    {
        let mut settings = Settings::default();
        settings.grpc.mirror = mirror;
        let world = world(settings, server);
        let once = world.client().await.model_infer(message.clone()).await.unwrap().into_inner();
        let stream = world.client().await.model_stream_infer(tokio_stream::iter([message])).await.unwrap();
        let streamed = stream.into_inner().next().await.unwrap().unwrap().infer_response.unwrap();
        for answer in [once, streamed] {
            assert_eq!(answer.raw_output_contents.is_empty(), is_typed);
            let contents = answer.outputs[0].contents.clone().map(|contents| contents.fp32_contents);
            assert_eq!(contents, is_typed.then(|| vec![0.25, -1.5]));
        }
    }
}

#[tokio::test]
async fn questions_about_server_and_models_are_calls() {
    let mut client = plain().client().await;
    let ready = |name: &str| pb::ModelReadyRequest { name: name.into(), version: String::new() };
    assert!(client.model_ready(ready("m")).await.unwrap().into_inner().ready);
    assert_eq!(client.model_ready(ready("n")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.model_ready(ready("")).await.unwrap_err().code(), Code::InvalidArgument);
    let metadata = client.server_metadata(pb::ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(metadata.name, "sluicegate");
    let question = pb::ModelMetadataRequest { name: "m".into(), version: "2".into() };
    let asked = client.model_metadata(question).await.unwrap_err();
    assert!(asked.message().contains("Model(") && asked.message().contains("\"2\""), "{asked:?}");
}

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

#[tokio::test]
async fn claims_and_the_wish_for_a_deadline_reach_the_stack() {
    let world = world(Settings::default(), |call: Inbound| async move {
        assert_eq!(call.head.timeout, Some(Duration::from_millis(250)));
        assert!(matches!(&call.sender, Credentials::Bearer(token) if &**token == "t"));
        Err(Error::DeadlineExceeded { stage: crate::error::Stage::Queued })
    });
    let mut message = Request::new(request());
    message.metadata_mut().insert("grpc-timeout", "250m".parse().unwrap());
    message.metadata_mut().insert("authorization", "Bearer t".parse().unwrap());
    let status = world.client().await.model_infer(message).await.unwrap_err();
    assert_eq!((status.code(), metadata(&status, "error-code")), (Code::DeadlineExceeded, Some("deadline_exceeded")));
}

#[tokio::test]
async fn a_refused_call_is_not_read() {
    let world = world(Settings::default(), |_| async { Err(Error::Unauthenticated) });
    // The message is garbage and incomplete, which only reading it would tell.
    let headers = world.raw(INFER, &[("x-request-id", "call-8")], &[9, 9, 9]).await;
    assert_eq!(headers["grpc-status"], "16");
    assert_eq!(headers["x-request-id"], "call-8");
    let status = Status::from_header_map(&headers).unwrap();
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "UNAUTHENTICATED");
}

#[tokio::test]
async fn exactly_one_message_is_expected() {
    let world = plain();
    let (none, one) = (Vec::new(), framed(&request()));
    let two = [one.clone(), one.clone()].concat();
    assert_eq!(raw_status(&world, &[], &one).await.code(), Code::Ok);
    for (body, found) in [(none, "no message"), (two, "more than one message")] {
        let status = raw_status(&world, &[], &body).await;
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().contains(found), "{status:?}");
    }
}

#[tokio::test]
async fn a_message_at_the_limit_passes_and_one_byte_more_is_too_large() {
    let mut message = request();
    message.id = "x".repeat(5 << 20);
    let size = message.encoded_len();
    for (limit, expected) in [(size, Code::Ok), (size - 1, Code::ResourceExhausted)] {
        let mut settings = Settings::default();
        settings.size.body = limit;
        let world = world(settings, server);
        let mut client = world.client().await.max_decoding_message_size(usize::MAX);
        match client.model_infer(message.clone()).await {
            Ok(_) => assert_eq!(expected, Code::Ok),
            Err(status) => {
                assert_eq!(status.code(), expected, "{status:?}");
                assert_eq!(metadata(&status, "error-code"), Some("payload_too_large"));
                assert!(status.message().contains(&limit.to_string()), "{status:?}");
            }
        }
        assert_eq!(world.connection.frontend.memory.used(), 0);
        // The connection lives on.
        client.model_infer(request()).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_beyond_the_memory_budget_is_too_large() {
    let mut settings = Settings::default();
    settings.concurrency.memory = 100_000;
    let mut message = request();
    message.id = "x".repeat(200_000);
    let status = world(settings, server).client().await.model_infer(message).await.unwrap_err();
    let code = metadata(&status, "error-code");
    assert_eq!((status.code(), code), (Code::ResourceExhausted, Some("payload_too_large")));
    assert!(status.get_details_retry_info().is_none());
}

#[tokio::test]
async fn the_files_of_a_load_are_counted_for_as_long_as_it_takes() {
    let world = world(Settings::default(), |call: Inbound| async move {
        let operation = call.input.await?;
        assert!(matches!(operation, Operation::Manage(_)));
        std::future::pending::<()>().await;
        drop(operation);
        Err(Error::Cancelled)
    });
    let choice = pb::model_repository_parameter::ParameterChoice::BytesParam(vec![0; 200_000].into());
    let parameters = [("file:1/m".to_owned(), pb::ModelRepositoryParameter { parameter_choice: Some(choice) })].into();
    let load = pb::RepositoryModelLoadRequest { model_name: "m".into(), parameters, ..Default::default() };
    let mut client = world.client().await;
    let loading = tokio::spawn(async move { client.repository_model_load(load).await });
    let memory = &world.connection.frontend.memory;
    let counted = async |bytes: usize| {
        while memory.used() != bytes {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted(200_000)).await.expect("the file and nothing else");
    loading.abort();
    tokio::time::timeout(Duration::from_secs(10), counted(0)).await.expect("what nobody waits for is let go of");
}

#[tokio::test]
async fn what_is_no_message_is_internal_with_a_reason() {
    let world = plain();
    let truncated = framed(&request())[..12].to_vec();
    for body in [&[0, 0, 0, 0, 1, 0xff][..], &[1, 0, 0, 0, 0], &[7, 0, 0, 0, 0], &truncated] {
        let status = raw_status(&world, &[], body).await;
        assert_eq!(status.code(), Code::Internal, "{body:?}");
        assert!(status.message().starts_with("malformed gRPC message: "), "{status:?}");
        assert_eq!(metadata(&status, "error-code"), Some("invalid_argument"));
    }
}

#[tokio::test]
async fn what_the_head_says_wrong_is_refused_before_there_is_a_call() {
    let world = world(Settings::default(), |_| async { panic!("no call") });
    let body = framed(&request());
    for (header, code) in [
        (("grpc-timeout", "1s"), Code::InvalidArgument),
        (("grpc-encoding", "br"), Code::Unimplemented),
        (("content-type", "application/grpc+json"), Code::Unimplemented),
    ] {
        let headers = world.raw(INFER, &[header], &body).await;
        assert_eq!(Status::from_header_map(&headers).unwrap().code(), code, "{header:?}");
        assert!(headers.contains_key("x-request-id"));
        assert_eq!(headers.get("grpc-accept-encoding").is_some(), headers["error-code"] == "unsupported_media_type");
    }
}

#[tokio::test]
async fn unknown_methods_are_unimplemented_and_named() {
    let world = plain();
    for (path, code) in [
        ("/inference.GRPCInferenceService/Nothing", "not_found"),
        ("/nothing.Nothing/Nothing", "not_found"),
        ("/grpc.health.v1.Health/Nothing", "not_found"),
        ("/", "not_found"),
    ] {
        let headers = world.raw(path, &[], &[]).await;
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!((status.code(), &headers["error-code"]), (Code::Unimplemented, &code.parse().unwrap()), "{path}");
        let named = path.rsplit('/').next().unwrap();
        assert!(status.message().contains(named), "{status:?}");
    }
}

#[tokio::test]
async fn a_stream_of_one_chunk_is_an_answer_and_any_other_is_not() {
    for n in 0..3 {
        let world = world(Settings::default(), move |_| async move {
            let (sender, receiver) = mpsc::channel(4);
            for _ in 0..n {
                sender.try_send(Ok(Chunk::Tensors(response(None)))).unwrap();
            }
            Ok(Reply::Stream(ReplyStream::new(receiver)))
        });
        match (n, world.client().await.model_infer(request()).await) {
            (1, Ok(answer)) => assert_eq!(answer.into_inner().outputs.len(), 1),
            (0 | 2, Err(status)) => assert_eq!(status.code(), Code::Unimplemented),
            (_, other) => panic!("{n}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stops_arriving_is_given_up() {
    let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(1);
    sender.send(bytes::Bytes::from_static(&[0, 0, 0])).await.unwrap();
    let body = http_body_util::StreamBody::new(futures_util::stream::poll_fn(move |cx| {
        receiver.poll_recv(cx).map(|data| data.map(|data| Ok(http_body::Frame::data(data))))
    }));
    let world = plain();
    let arriving = Arriving::new(body, Arc::clone(&world.connection), Wait::Throughout);
    let begun = tokio::time::Instant::now();
    let error = http_body_util::BodyExt::collect(arriving).await.unwrap_err();
    assert!(matches!(error, Error::BodyStalled), "{error:?}");
    assert_eq!(begun.elapsed().as_secs(), world.connection.frontend.settings.timers.read_stall.as_secs());
    drop(sender);
}

#[tokio::test]
async fn strangers_who_fail_too_often_meet_the_gate() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let world = world(Settings::default(), move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Err(Error::Unauthenticated) }
    });
    let peer = Peer { address: ([192, 0, 2, 1], 50_000).into(), ..Peer::clone(&world.connection.peer) };
    let far = world.at(peer, Surfaces::ALL);
    let mut client = far.client().await;
    let mut last = Code::Unauthenticated;
    for _ in 0..100 {
        last = client.model_infer(request()).await.unwrap_err().code();
        if last == Code::ResourceExhausted {
            break;
        }
    }
    assert_eq!(last, Code::ResourceExhausted);
    assert!(calls.load(Ordering::Relaxed) < 100);
    let page = world.connection.frontend.metrics.render();
    assert!(page.contains("rate_limited_total{policy=\"address\"} 1\n"), "{page}");
    // Probes are no calls, and nobody's credentials.
    assert!(client.server_live(pb::ServerLiveRequest {}).await.is_ok());
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
    let status = health.watch(check("")).await.unwrap_err();
    assert_eq!((status.code(), metadata(&status, "error-code")), (Code::ResourceExhausted, Some("rate_limited")));
    assert_eq!(status.get_details_quota_failure().unwrap().violations[0].subject, "connection");
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
        let status = health.check(check(service)).await.unwrap_err();
        assert_eq!((status.code(), metadata(&status, "error-code")), (Code::NotFound, Some("not_found")), "{service}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NOT_FOUND");
        assert!(details.request_info().is_some() && details.resource_info().is_some(), "{service}");
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

#[tokio::test(start_paused = true)]
async fn a_watcher_hears_of_a_change_when_it_comes() {
    let world = plain();
    let mut health = HealthClient::new(world.channel().await);
    let mut watch = health.watch(check("")).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 1);
    let before = tokio::time::Instant::now();
    for loaded in [false, true, false] {
        world.connection.frontend.readiness.set_loaded(loaded);
        assert_eq!(watch.next().await.unwrap().unwrap().status, if loaded { 1 } else { 2 });
    }
    assert!(before.elapsed() < Duration::from_secs(1), "it was told, and did not look by itself");
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

#[tokio::test]
async fn a_report_that_nobody_asked_for_is_internal() {
    let world = world(Settings::default(), |_| async {
        let identity = Identity::proven("a", Vec::new(), Scope::Everything);
        Ok(Reply::Report(Report::Caller(Arc::new(identity))))
    });
    let status = world.client().await.model_infer(request()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
}

//! What the router answers, and whom it lets run.

use super::*;
use crate::{
    call::{CallId, Inspect, Intent, ModelRef, NamedTensor, Peer, Scope, Surface},
    model::{State, testing},
    schedule::testing::{self as jobs, Fault, Script},
};
use std::time::Duration;

fn router(script: &Script) -> Router {
    let repository = Repository::default();
    repository.set(&"double".into(), &"1".into(), &State::Ready(testing::scripted(script)));
    Router::new(Arc::new(repository))
}

fn call(operation: Operation) -> Decoded {
    let address = ([127, 0, 0, 1], 1).into();
    let peer = Arc::new(Peer::new(address, address));
    let mut head = Head::new(CallId::make(), Surface::Rest, Intent::Infer, peer);
    head.deadline = Instant::now() + Duration::from_secs(60);
    head.stream_deadline = head.deadline;
    let sender = Arc::new(Identity::proven("tester", Vec::new(), Scope::Everything));
    Call { head, sender, input: operation }
}

fn request(rows: usize) -> InferRequest {
    let input = NamedTensor { name: "x".into(), tensor: jobs::tensor(rows, 4, 1.5) };
    InferRequest::new(ModelRef { name: "double".into(), version: None }, vec![input])
}

#[tokio::test]
async fn a_call_runs_its_model_and_says_which() {
    let mut request = request(2);
    request.client_id = Some("r-1".into());
    let call = call(Operation::Infer(request));
    let facts = Arc::clone(&call.head.facts);
    let Ok(Reply::Infer(response)) = router(&Script::default()).call(call).await else { panic!() };
    assert_eq!(response.model.to_string(), "double/1");
    assert_eq!(response.client_id.as_deref(), Some("r-1"));
    assert_eq!(&*response.outputs[0].name, "y");
    assert_eq!(jobs::mark(&response.outputs[0].tensor), 3.0);
    assert_eq!(facts.stage(), Stage::Running);
    assert_eq!(facts.model.get(), Some(&response.model));
    assert_eq!(facts.timing.get(), Some(response.timing));
}

#[tokio::test]
async fn a_bad_request_never_reaches_the_queue() {
    let script = Script::default();
    let mut router = router(&script);
    let mut bad = request(1);
    let Inputs::Tensors(inputs) = &mut bad.inputs else { panic!() };
    inputs[0].name = "z".into();
    let error = router.call(call(Operation::Infer(bad))).await.unwrap_err();
    assert_eq!(error.to_string(), "input `z` is unknown, expected `x`");
    let mut bad = request(1);
    bad.outputs = vec!["z".into()];
    assert!(router.call(call(Operation::Infer(bad))).await.is_err());
    assert!(script.batches().is_empty());
}

#[tokio::test]
async fn dropping_the_future_abandons_the_job() {
    let script = Script::default();
    let mut router = router(&script);
    let gate = script.close_gate();
    let first = router.call(call(Operation::Infer(request(1))));
    script.wait_for_runs(1);
    drop(router.call(call(Operation::Infer(request(2)))));
    let third = router.call(call(Operation::Infer(request(3))));
    drop(gate);
    first.await.unwrap();
    third.await.unwrap();
    assert_eq!(script.batches(), [1, 3]);
}

#[tokio::test]
async fn a_decoupled_model_answers_with_a_stream() {
    let script = Script::default();
    script.set(Fault::Stream(3));
    let mut router = router(&script);
    let Ok(Reply::Stream(mut stream)) = router.call(call(Operation::Infer(request(1)))).await else { panic!() };
    let mut pieces = 0;
    while let Some(piece) = stream.next().await {
        piece.unwrap();
        pieces += 1;
    }
    assert_eq!(pieces, 3);
}

#[tokio::test]
async fn a_stream_outlasts_the_deadline_of_a_whole_reply_and_ends_at_its_own() {
    let script = Script::default();
    script.set(Fault::Stream(usize::MAX));
    let mut router = router(&script);
    let mut call = call(Operation::Infer(request(1)));
    let begun = Instant::now();
    call.head.deadline = begun + Duration::from_millis(200);
    call.head.stream_deadline = begun + Duration::from_millis(600);
    let Ok(Reply::Stream(mut stream)) = router.call(call).await else { panic!() };
    let mut last = Duration::ZERO;
    let error = loop {
        match stream.next().await.expect("an endless stream is cut off, and says so") {
            Ok(_) => last = begun.elapsed(),
            Err(error) => break error,
        }
    };
    assert!(last > Duration::from_millis(200), "{last:?}");
    assert!(matches!(error, Error::DeadlineExceeded { stage: Stage::Streaming }), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(600));
}

#[tokio::test]
async fn questions_are_answered() {
    let mut router = router(&Script::default());
    let mut ask = |question| router.call(call(Operation::Inspect(question)));
    let double = || ModelRef { name: "double".into(), version: None };
    let Ok(Reply::Report(Report::Models(names))) = ask(Inspect::Models).await else { panic!() };
    assert_eq!(names, [Arc::from("double")]);
    let Ok(Reply::Report(Report::Model(report))) = ask(Inspect::Model(double())).await else { panic!() };
    assert_eq!(report.versions, [Arc::from("1")]);
    let Ok(Reply::Report(Report::Ready { ready, .. })) = ask(Inspect::Ready(double())).await else { panic!() };
    assert!(ready);
    let Ok(Reply::Report(Report::Server(server))) = ask(Inspect::Server).await else { panic!() };
    assert_eq!(server.name, "sluicegate");
    let Ok(Reply::Report(Report::Caller(caller))) = ask(Inspect::Caller).await else { panic!() };
    assert_eq!(&**caller.id(), "tester");
    let unknown = ModelRef { name: "other".into(), version: None };
    assert!(matches!(ask(Inspect::Ready(unknown)).await, Err(Error::ModelNotFound { .. })));
}

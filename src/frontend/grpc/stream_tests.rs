//! `ModelStreamInfer` against a made-up stack.

use super::{super::fixture::World, *};
use crate::frontend::{Phase, Settings, body::Busy, duplex::fixture::Fixture};
use crate::wire::proto::inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor};
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

/// A client of one stream.
struct Client {
    fixture: Fixture,
    requests: Option<mpsc::Sender<ModelInferRequest>>,
    answers: Streaming<ModelStreamInferResponse>,
}

/// Opens a stream with `metadata`.
async fn open(fixture: Fixture, metadata: &[(&'static str, &'static str)]) -> Result<Client, (Fixture, Status)> {
    let (phase, _) = tokio::sync::watch::channel(Phase::Serving);
    let world = World { connection: Arc::clone(&fixture.connection), phase };
    let (requests, receiver) = mpsc::channel(1024);
    let mut request = Request::new(ReceiverStream::new(receiver));
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    match world.client().await.model_stream_infer(request).await {
        Ok(answers) => Ok(Client { fixture, requests: Some(requests), answers: answers.into_inner() }),
        Err(status) => Err((fixture, status)),
    }
}

async fn client() -> Client {
    match open(Fixture::new(Settings::default()), &[]).await {
        Ok(client) => client,
        Err((_, status)) => panic!("{status}"),
    }
}

fn request(id: &str, model: &str, parameters: &[(&str, ParameterChoice)]) -> ModelInferRequest {
    let parameter = |(name, choice): &(&str, ParameterChoice)| {
        ((*name).to_owned(), InferParameter { parameter_choice: Some(choice.clone()) })
    };
    ModelInferRequest {
        id: id.to_owned(),
        model_name: model.to_owned(),
        parameters: parameters.iter().map(parameter).collect(),
        inputs: vec![InferInputTensor {
            name: "X".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 2],
            contents: Some(InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

impl Client {
    async fn say(&self, id: &str, model: &str, parameters: &[(&str, ParameterChoice)]) {
        self.requests.as_ref().unwrap().send(request(id, model, parameters)).await.unwrap();
    }

    /// The next answer: its id, its error, whether it is the last one, and how many outputs it has.
    async fn hear(&mut self) -> (String, String, Option<bool>, usize) {
        let answer = self.answers.message().await.unwrap().unwrap();
        let response = answer.infer_response.unwrap();
        let last =
            response.parameters.get(FINAL).map(|last| last.parameter_choice == Some(ParameterChoice::BoolParam(true)));
        (response.id, answer.error_message, last, response.outputs.len())
    }

    async fn ends(&mut self) -> Option<Code> {
        match self.answers.message().await {
            Ok(None) => None,
            Ok(Some(answer)) => panic!("{answer:?}"),
            Err(status) => Some(status.code()),
        }
    }

    async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
}

fn answer(id: &str) -> (String, String, Option<bool>, usize) {
    (id.to_owned(), String::new(), Some(true), 1)
}

#[tokio::test(start_paused = true)]
async fn whole_answers_keep_the_order_of_requests_and_streams_do_not_wait() {
    let mut client = client().await;
    client.say("slow", "wait", &[]).await;
    client.say("fast", "echo", &[]).await;
    client.say("", "broken", &[]).await;
    client.say("", "steps", &[("steps", ParameterChoice::Int64Param(2))]).await;
    for _ in 0..2 {
        assert_eq!(client.hear().await, (String::new(), String::new(), Some(false), 1));
    }
    client.fixture.stack.released.add_permits(1);
    assert_eq!(client.hear().await, answer("slow"));
    assert_eq!(client.hear().await, answer("fast"));
    assert_eq!(client.hear().await, (String::new(), "inference failed".to_owned(), None, 0));
    client.requests = None;
    assert_eq!(client.ends().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_finishes_what_runs() {
    let mut client = client().await;
    client.say("a", "wait", &[]).await;
    client.requests = None;
    client.settle().await;
    client.fixture.stack.released.add_permits(1);
    assert_eq!(client.hear().await, answer("a"));
    assert_eq!(client.ends().await, None);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_message_is_in_band() {
    let mut client = client().await;
    client.say("a", "nobody", &[]).await;
    assert_eq!(client.hear().await, ("a".to_owned(), "model `nobody` is unknown".to_owned(), None, 0));
    client.requests.as_ref().unwrap().send(ModelInferRequest { id: "b".into(), ..Default::default() }).await.unwrap();
    let (id, error, _, _) = client.hear().await;
    assert!(id == "b" && !error.is_empty());
    client.say("c", "echo", &[]).await;
    assert_eq!(client.hear().await, answer("c"));
}

#[tokio::test(start_paused = true)]
async fn an_empty_last_response_is_sent_if_asked_for() {
    let mut client = client().await;
    let wanted = [("steps", ParameterChoice::Int64Param(1)), (EMPTY_FINAL, ParameterChoice::BoolParam(true))];
    client.say("a", "steps", &wanted).await;
    assert_eq!(client.hear().await, ("a".to_owned(), String::new(), Some(false), 1));
    assert_eq!(client.hear().await, ("a".to_owned(), String::new(), Some(true), 0));
}

#[tokio::test(start_paused = true)]
async fn a_strict_stream_ends_with_its_first_failure() {
    let Ok(mut client) = open(Fixture::new(Settings::default()), &[("triton_grpc_error", "true")]).await else {
        panic!("refused")
    };
    client.say("a", "echo", &[]).await;
    assert_eq!(client.hear().await, answer("a"));
    client.say("w", "never", &[]).await;
    client.say("b", "nobody", &[]).await;
    client.settle().await;
    // Behind a request that never ends the failure would wait for its turn for ever.
    let mut other = open(Fixture::new(Settings::default()), &[("triton_grpc_error", "true")]).await.ok().unwrap();
    other.say("b", "nobody", &[]).await;
    assert_eq!(other.ends().await, Some(Code::NotFound));
}

#[tokio::test(start_paused = true)]
async fn strangers_get_a_status_and_no_stream() {
    let fixture = Fixture::new(Settings::default());
    fixture.stack.anonymous.store(false, Ordering::SeqCst);
    let Err((fixture, status)) = open(fixture, &[]).await else { panic!("opened") };
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(open(fixture, &[("authorization", "Bearer good")]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_caller_ends_the_stream_after_what_runs() {
    let mut client = client().await;
    client.say("old", "wait", &[]).await;
    client.settle().await;
    client.fixture.stack.revoked.store(true, Ordering::SeqCst);
    client.say("new", "echo", &[]).await;
    client.settle().await;
    client.fixture.stack.released.add_permits(1);
    assert_eq!(client.hear().await, answer("old"));
    let (id, error, _, _) = client.hear().await;
    assert_eq!((&*id, &*error), ("new", "valid credentials are required"));
    assert_eq!(client.ends().await, Some(Code::Unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn a_full_stream_is_not_read() {
    let mut settings = Settings::default();
    settings.concurrency.per_grpc_stream = 4;
    let Ok(mut client) = open(Fixture::new(settings), &[]).await else { panic!("refused") };
    for index in 0..9 {
        client.say(&index.to_string(), "wait", &[]).await;
    }
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 4);
    client.fixture.stack.released.add_permits(9);
    for index in 0..9 {
        assert_eq!(client.hear().await, answer(&index.to_string()));
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_cancels_everything() {
    let client = client().await;
    client.say("a", "never", &[]).await;
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 1);
    let Client { fixture, requests, answers } = client;
    drop((requests, answers));
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_the_rpc_ends_the_stream() {
    let Ok(mut client) = open(Fixture::new(Settings::default()), &[("grpc-timeout", "3S")]).await else {
        panic!("refused")
    };
    let start = Instant::now();
    client.say("a", "echo", &[]).await;
    assert_eq!(client.hear().await, answer("a"));
    assert_eq!(client.ends().await, Some(Code::DeadlineExceeded));
    assert_eq!(start.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_ends_the_stream() {
    let mut client = client().await;
    client.say("a", "wait", &[]).await;
    client.settle().await;
    client.fixture.phase.send(Phase::Draining { deadline: std::time::Instant::now() }).unwrap();
    client.say("b", "echo", &[]).await;
    let (id, error, _, _) = client.hear().await;
    assert_eq!((&*id, &*error), ("b", "the server is shutting down"));
    client.fixture.stack.released.add_permits(1);
    assert_eq!(client.hear().await, answer("a"));
    assert_eq!(client.ends().await, Some(Code::Unavailable));
}

/// `model` with typed numbers: small as a message and large as a tensor, or large as a message.
fn typed(id: &str, model: &str, contents: InferTensorContents) -> ModelInferRequest {
    let mut request = request(id, model, &[]);
    let (datatype, length) = match contents.int64_contents.len() {
        0 => ("FP32", contents.fp32_contents.len()),
        length => ("INT64", length),
    };
    request.inputs[0].datatype = datatype.into();
    request.inputs[0].shape = vec![i64::try_from(length).unwrap()];
    request.inputs[0].contents = Some(contents);
    request
}

#[tokio::test]
async fn large_typed_contents_are_made_and_read_elsewhere_and_keep_the_order_of_requests() {
    let mut settings = Settings::default();
    settings.grpc.mirror = true;
    let Ok(mut client) = open(Fixture::new(settings), &[]).await else { panic!("refused") };
    let written = InferTensorContents { int64_contents: vec![7; 40_000], ..Default::default() };
    let busy = Busy::begin().await;
    client.requests.as_ref().unwrap().send(typed("large", "echo", written)).await.unwrap();
    client.say("next", "echo", &[]).await;
    client.say("", "steps", &[]).await;
    // A stream of its own does not wait, and shows that the lane does not either.
    let step = (String::new(), String::new(), Some(false), 1);
    assert_eq!(client.hear().await, step);
    drop(busy);
    assert_eq!(client.hear().await, answer("large"));
    assert_eq!(client.hear().await, answer("next"));
    // What is parsed elsewhere is waited for by the messages behind it, and by nobody else.
    let read = InferTensorContents { fp32_contents: vec![7.0; 70_000], ..Default::default() };
    let busy = Busy::begin().await;
    client.requests.as_ref().unwrap().send(typed("large", "echo", read)).await.unwrap();
    client.say("next", "echo", &[]).await;
    client.say("", "steps", &[]).await;
    drop(busy);
    let mut heard = [client.hear().await, client.hear().await, client.hear().await].to_vec();
    heard.retain(|heard| *heard != step);
    assert_eq!(heard, [answer("large"), answer("next")]);
    client.requests = None;
    assert_eq!(client.ends().await, None);
}

//! Events over real sockets, from stacks that stream, fail and keep silent.

use super::*;
use crate::{
    call::{Inbound, ModelKey, NamedTensor, Operation, Timing},
    frontend::body::Busy,
    frontend::testing::{Plan, Server, http2, status, until},
    tensor::{DataType, Shape, Tensor},
};
use http_body_util::BodyExt;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncWriteExt;

const BODY: &str = r#"{"id":"r-1","inputs":[]}"#;

fn response(number: f32, client_id: Option<Arc<str>>) -> InferResponse {
    let tensor = Tensor::of(DataType::Fp32, Shape::new([1]), vec![number]).unwrap();
    InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id,
        outputs: vec![NamedTensor { name: "y".into(), tensor }],
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

/// Does as the model's name says.
async fn stack(call: Inbound) -> Result<Reply, Error> {
    let Operation::Infer(request) = call.input.await? else { return Err(Error::Cancelled) };
    let id = request.client_id;
    let (sender, receiver) = mpsc::channel(8);
    match &*request.model.name {
        "whole" => return Ok(Reply::Infer(response(0.5, id))),
        "missing" => return Err(Error::ModelNotFound { model: request.model.name, version: None }),
        "two" => {
            for number in [1.0, 2.0] {
                sender.try_send(Ok(Chunk::Tensors(response(number, id.clone())))).unwrap();
            }
        }
        "broken" => {
            sender.try_send(Ok(Chunk::Tensors(response(1.0, id)))).unwrap();
            sender.try_send(Err(Error::backend("node 7"))).unwrap();
        }
        "large" => {
            for number in [0.25, 0.5, 0.75] {
                let mut response = response(number, id.clone());
                let tensor = Tensor::of(DataType::Fp32, Shape::new([40_000]), vec![number; 40_000]).unwrap();
                response.outputs[0].tensor = tensor;
                sender.try_send(Ok(Chunk::Tensors(response))).unwrap();
            }
        }
        "nothing" => {}
        // Its sender lives as long as the task that waits for the end of the reader.
        name @ ("endless" | "watched") => {
            let watched = name == "watched";
            tokio::spawn(async move {
                sender.send(Ok(Chunk::Tensors(response(1.0, None)))).await.unwrap();
                sender.closed().await;
                if watched {
                    ABANDONED.store(true, Ordering::SeqCst);
                }
            });
        }
        other => panic!("{other}"),
    }
    Ok(Reply::Stream(ReplyStream::new(receiver)))
}

/// Set when nobody reads the stream of `watched` any more; one test uses it.
static ABANDONED: AtomicBool = AtomicBool::new(false);

fn server() -> Server {
    Plan::default().start(stack)
}

/// The body of a chunked response, put together.
fn body(response: &str) -> String {
    let (head, rest) = response.split_once("\r\n\r\n").unwrap();
    if !head.contains("transfer-encoding: chunked") {
        return rest.to_owned();
    }
    rest.split("\r\n").skip(1).step_by(2).collect()
}

#[tokio::test]
async fn a_whole_reply_is_one_output_and_the_end() {
    let answer = server().post("/v2/models/whole/infer_stream", "accept: text/event-stream\r\n", BODY).await;
    assert_eq!(status(&answer), 200, "{answer}");
    for header in ["content-type: text/event-stream", "cache-control: no-cache, no-transform", "x-accel-buffering: no"]
    {
        assert!(answer.contains(&format!("{header}\r\n")), "{answer}");
    }
    assert!(!answer.contains("content-length"), "{answer}");
    let expected = "event: output\ndata: {\"id\":\"r-1\",\"model_name\":\"m\",\"model_version\":\"1\",\
        \"parameters\":{\"triton_final_response\":true},\
        \"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1],\"data\":[0.5]}]}\n\n\
        event: done\ndata: {\"id\":\"r-1\"}\n\n";
    assert_eq!(body(&answer), expected);
}

#[tokio::test]
async fn each_chunk_is_an_output() {
    let events = body(&server().post("/v2/models/two/infer_stream", "", BODY).await);
    assert_eq!(events.matches("event: output\n").count(), 2, "{events}");
    assert_eq!(events.matches(r#""triton_final_response":false"#).count(), 2, "{events}");
    assert!(events.ends_with("event: done\ndata: {\"id\":\"r-1\"}\n\n"), "{events}");
    let none = body(&server().post("/v2/models/nothing/infer_stream", "", BODY).await);
    assert!(none.starts_with("event: done\n"), "{none}");
}

#[tokio::test]
async fn generated_streams_have_plain_events_and_no_last_one() {
    let answer = server().post("/v2/models/two/generate_stream", "", r#"{"text":"x"}"#).await;
    assert!(answer.contains("content-type: text/event-stream; charset=utf-8\r\n"), "{answer}");
    let expected = "data: {\"model_name\":\"m\",\"model_version\":\"1\",\"y\":1.0}\n\n\
        data: {\"model_name\":\"m\",\"model_version\":\"1\",\"y\":2.0}\n\n";
    assert_eq!(body(&answer), expected);
    let whole = server().post("/v2/models/whole/generate", "", r#"{"id":"g","text":"x"}"#).await;
    assert_eq!(body(&whole), r#"{"id":"g","model_name":"m","model_version":"1","y":0.5}"#);
    let several = server().post("/v2/models/two/generate", "", "{}").await;
    assert_eq!(status(&several), 501, "{several}");
}

#[tokio::test]
async fn an_early_failure_has_its_status_and_a_late_one_is_an_event() {
    for path in ["infer_stream", "generate_stream"] {
        let early = server().post(&format!("/v2/models/missing/{path}"), "", BODY).await;
        assert_eq!(status(&early), 404, "{early}");
        assert!(early.contains("content-type: application/json\r\n"), "{early}");
    }
    let late = server().post("/v2/models/broken/infer_stream", "x-request-id: c-1\r\n", BODY).await;
    assert_eq!(status(&late), 200);
    let last = "event: error\ndata: {\"error\":\"inference failed\",\"code\":\"internal\",\"request_id\":\"c-1\",\
        \"retryable\":false}\n\n";
    assert!(body(&late).ends_with(last), "{late}");
    let generated = body(&server().post("/v2/models/broken/generate_stream", "", "{}").await);
    assert!(generated.contains("\n\ndata: {\"error\":\"inference failed\""), "{generated}");
}

#[tokio::test]
async fn events_cannot_carry_raw_tensors() {
    let wish = r#"{"inputs":[],"parameters":{"binary_data_output":true}}"#;
    let refused = server().post("/v2/models/whole/infer_stream", "", wish).await;
    assert_eq!(status(&refused), 400, "{refused}");
}

#[tokio::test]
async fn a_coding_that_is_not_read_is_refused_with_those_that_are() {
    for path in ["infer_stream", "generate_stream", "infer", "generate"] {
        let refused = server().post(&format!("/v2/models/whole/{path}"), "content-encoding: br\r\n", BODY).await;
        assert_eq!(status(&refused), 415, "{refused}");
        assert!(refused.contains("accept-encoding: gzip, deflate, zstd\r\n"), "{refused}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_work() {
    let server = server();
    let mut stream = server.connect().await;
    let head = format!(
        "POST /v2/models/watched/infer_stream HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(until(&mut stream, "\n\n\r\n").await.contains("event: output"));
    drop(stream);
    let waiting = async {
        while !ABANDONED.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.expect("the reply is dropped with its reader");
}

#[tokio::test]
async fn events_come_over_http2_and_a_stop_is_one_of_them() {
    let server = server();
    let mut client = http2(server.connect().await).await;
    let request = http::Request::post("http://a/v2/models/endless/generate_stream").body("{}".into()).unwrap();
    let mut body = client.send_request(request).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: {\"model_name\""), "{first:?}");
    server.phase.send_replace(Phase::Stopping);
    let last = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(last.starts_with(b"data: {\"error\":\"the server is shutting down\""), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments() {
    let server = server();
    let mut stream = server.connect().await;
    let head = "POST /v2/models/endless/generate_stream HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(head.as_bytes()).await.unwrap();
    let text = until(&mut stream, ": k\n\n").await;
    assert!(text.ends_with(": k\n\n"), "{text}");
}

#[tokio::test]
async fn large_events_are_written_elsewhere_and_in_their_order() {
    for path in ["infer_stream", "generate_stream"] {
        let server = server();
        let busy = Busy::begin().await;
        let [large, other] = ["large", "two"].map(|model| format!("/v2/models/{model}/{path}"));
        let mut large = std::pin::pin!(server.post(&large, "", BODY));
        let other = server.post(&other, "", BODY);
        tokio::select! {
            biased;
            answer = &mut large => panic!("{}", &answer[..200]),
            other = other => assert_eq!(status(&other), 200),
        }
        drop(busy);
        let events = body(&large.await);
        let places: Vec<_> = ["[0.25,", "[0.5,", "[0.75,"].iter().map(|first| events.find(first)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
    }
}

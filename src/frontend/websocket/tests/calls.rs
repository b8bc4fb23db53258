//! What becomes of requests.

use super::*;
use std::{collections::HashMap, sync::atomic::Ordering};

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_by_its_id() {
    let mut client = Client::new().await;
    client.infer("a1", "echo", "").await;
    let expected = concat!(
        r#"{"type":"output","id":"a1","seq":0,"final":true,"model":"echo","version":"1","#,
        r#""outputs":[{"name":"X","datatype":"FP32","shape":[1,2],"data":[1.0,2.0]}]}"#
    );
    assert_eq!(client.text().await, expected);
}

#[tokio::test(start_paused = true)]
async fn requests_may_follow_hello_without_waiting() {
    let mut client = Client::silent(Settings::default(), Caller::Anonymous(Ok(()))).await;
    client.say(r#"{"type":"hello","protocol":1,"auth":{"scheme":"bearer","token":"good"}}"#).await;
    client.infer("a", "echo", "").await;
    assert!(client.text().await.contains("welcome"));
    client.output("a").await;
}

#[tokio::test(start_paused = true)]
async fn answers_come_as_they_are_ready() {
    let mut client = Client::new().await;
    client.infer("slow", "wait", "").await;
    client.infer("fast", "echo", "").await;
    client.output("fast").await;
    client.fixture.stack.released.add_permits(1);
    client.output("slow").await;
}

const RAW: &str = r#"{"type":"infer","id":"b","model":"echo","inputs":[{"name":"X","datatype":"FP32","shape":[1,2],"byte_length":8}]"#;

#[tokio::test(start_paused = true)]
async fn tensors_go_both_ways_as_raw_bytes() {
    let mut client = Client::new().await;
    let tensor = [0, 0, 0x80, 0x3e, 0, 0, 0xc0, 0xbf];
    client.send(binary(&format!("{RAW},\"binary_outputs\":true}}"), &tensor)).await;
    let Heard::Binary(frame) = client.hear().await else { panic!("not binary") };
    let length = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
    let json = std::str::from_utf8(&frame[4..4 + length]).unwrap();
    assert!(json.ends_with(r#""outputs":[{"name":"X","datatype":"FP32","shape":[1,2],"byte_length":8}]}"#), "{json}");
    let at = (4 + length).next_multiple_of(8);
    assert_eq!(frame[at..], tensor);

    client.send(binary(&format!("{RAW}}}"), &tensor)).await;
    assert!(client.text().await.ends_with(r#""data":[0.25,-1.5]}]}"#));
}

#[tokio::test(start_paused = true)]
async fn an_empty_tensor_goes_both_ways_too() {
    let mut client = Client::new().await;
    let json = r#"{"type":"infer","id":"b","model":"echo","binary_outputs":true,"inputs":[{"name":"X","datatype":"FP32","shape":[0,2],"byte_length":0}]}"#;
    let mut frame = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(json.as_bytes());
    client.send(frame).await;
    let Heard::Binary(answer) = client.hear().await else { panic!("not binary") };
    assert_eq!(answer.len() % 8, 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_may_want_binary_outputs_and_a_request_refuse_them() {
    let mut client = Client::silent(Settings::default(), Caller::Proven).await;
    client.say(r#"{"type":"hello","protocol":1,"want":{"binary_outputs":true}}"#).await;
    client.text().await;
    client.infer("a", "echo", "").await;
    assert!(matches!(client.hear().await, Heard::Binary(_)));
    client.infer("b", "echo", r#","binary_outputs":false"#).await;
    assert!(matches!(client.hear().await, Heard::Text(_)));
    client.infer("c", "echo", r#","outputs":[{"name":"X","binary":false}]"#).await;
    assert!(matches!(client.hear().await, Heard::Text(_)));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_request_leaves_the_socket_open() {
    let mut client = Client::new().await;
    for (message, code) in [
        (request("e", "nobody", ""), "not_found"),
        (request("e", "broken", ""), "internal"),
        (request("e", "echo", r#","stream":1"#), "invalid_argument"),
        (request("e", "echo", r#","input_stream":true"#), "unimplemented"),
        (request("e", "echo", r#","priority":"x""#), "invalid_argument"),
        (r#"{"type":"infer","id":"e","model":"echo","inputs":[{]}"#.replace("{]", "{}]"), "invalid_argument"),
        (r#"{"type":"infer","id":"e","inputs":[]}"#.to_owned(), "invalid_argument"),
        (r#"{"type":"input","id":"e","seq":0,"inputs":[]}"#.to_owned(), "unimplemented"),
        (r#"{"type":"credit","id":"e","add":0}"#.to_owned(), "invalid_argument"),
    ] {
        client.say(&message).await;
        client.error("e", code).await;
    }
    client.infer("e", "echo", "").await;
    client.output("e").await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_request_is_dropped_and_its_id_is_free() {
    let mut client = Client::new().await;
    client.infer("a", "never", "").await;
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 1);
    client.say(r#"{"type":"cancel","id":"a"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"cancelled","id":"a"}"#);
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 0);
    client.infer("a", "echo", "").await;
    client.output("a").await;
    // Too late, and unknown: ignored.
    client.say(r#"{"type":"cancel","id":"a"}"#).await;
    client.say(r#"{"type":"ping","t":[1]}"#).await;
    assert_eq!(client.text().await, r#"{"type":"pong","t":[1]}"#);
}

#[tokio::test(start_paused = true)]
async fn a_request_cancelled_in_the_same_breath_is_cancelled_once() {
    let mut client = Client::new().await;
    client.socket.feed(Message::text(request("a", "never", ""))).await.unwrap();
    client.socket.feed(Message::text(r#"{"type":"cancel","id":"a"}"#)).await.unwrap();
    client.infer("a", "echo", "").await;
    assert_eq!(client.text().await, r#"{"type":"cancelled","id":"a"}"#);
    client.output("a").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_socket_refuses_and_still_listens() {
    let mut client = Client::new().await;
    for index in 0..64 {
        client.infer(&format!("n{index}"), "never", "").await;
    }
    client.infer("more", "echo", "").await;
    let refusal = client.text().await;
    assert!(
        refusal.contains(r#""id":"more","code":"overloaded""#) && refusal.contains(r#""retryable":true"#),
        "{refusal}"
    );
    client.say(r#"{"type":"cancel","id":"n7"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"cancelled","id":"n7"}"#);
    client.infer("more", "echo", "").await;
    client.output("more").await;
}

#[tokio::test]
async fn a_thousand_requests_at_once_are_each_answered_once() {
    let mut settings = Settings::default();
    settings.concurrency.per_socket = 1000;
    let mut client = Client::with(settings).await;
    let mut answers = HashMap::new();
    for index in 0..1000 {
        let model = ["wait", "echo", "broken", "steps"][index % 4];
        let shape = format!(
            r#"{{"type":"infer","id":"{index}","model":"{model}","stream":true,"inputs":[{{"name":"X","datatype":"INT32","shape":[1],"data":[{index}]}}]}}"#
        );
        client.socket.feed(Message::text(shape)).await.unwrap();
        if index % 50 == 49 {
            client.socket.flush().await.unwrap();
            // Reading in between: neither side may wait for the other for ever.
            while let Ok(heard) = tokio::time::timeout(std::time::Duration::from_millis(1), client.hear()).await {
                note(&mut answers, heard);
            }
        }
    }
    client.fixture.stack.released.add_permits(1000);
    while answers.values().filter(|ends| **ends > 0).count() < 1000 {
        let heard = client.hear().await;
        note(&mut answers, heard);
    }
    client.settle().await;
    assert!(answers.values().all(|ends| *ends == 1));
}

/// Counts terminal messages by id, and checks that outputs are those of their request.
fn note(answers: &mut HashMap<String, usize>, heard: Heard) {
    let Heard::Text(text) = heard else { panic!("{heard:?}") };
    let message: serde_json::Value = serde_json::from_str(&text).unwrap();
    let id = message["id"].as_str().unwrap().to_owned();
    let is_output = message["type"] == "output";
    if is_output {
        assert_eq!(message["outputs"][0]["data"][0].to_string(), id);
    }
    let ends = answers.entry(id).or_default();
    *ends += usize::from(!is_output || message["final"] == true);
}

#[tokio::test(start_paused = true)]
async fn a_producer_without_credit_is_not_asked_and_others_go_on() {
    let mut client = Client::new().await;
    client.infer("s", "steps", r#","stream":true,"credit":2,"parameters":{"steps":6}"#).await;
    for seq in 0..2 {
        let text = client.text().await;
        assert!(text.starts_with(&format!(r#"{{"type":"output","id":"s","seq":{seq},"final":false,"#)), "{text}");
    }
    client.settle().await;
    // One more waits for credit, and one in the producer's own channel.
    assert_eq!(client.fixture.produced(), 4);
    client.infer("u", "echo", r#","credit":0"#).await;
    client.output("u").await;
    client.say(r#"{"type":"credit","id":"s","add":9}"#).await;
    for seq in 2..6 {
        assert!(client.text().await.contains(&format!(r#""seq":{seq}"#)));
    }
    assert_eq!(client.text().await, r#"{"type":"done","id":"s"}"#);
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_end_needs_no_credit() {
    let mut client = Client::new().await;
    client.infer("s", "steps", r#","stream":true,"credit":2,"parameters":{"steps":2}"#).await;
    client.text().await;
    client.text().await;
    assert_eq!(client.text().await, r#"{"type":"done","id":"s"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_session_gives_sixteen_to_begin_with() {
    let mut client = Client::new().await;
    client.infer("s", "steps", r#","stream":true,"parameters":{"steps":40}"#).await;
    for _ in 0..16 {
        client.text().await;
    }
    client.settle().await;
    assert_eq!(client.fixture.produced(), 18);
    client.say(r#"{"type":"cancel","id":"s"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"cancelled","id":"s"}"#);
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_stream_takes_one_piece_and_no_more() {
    let mut client = Client::new().await;
    client.infer("one", "steps", "").await;
    client.output("one").await;
    client.infer("two", "steps", r#","parameters":{"steps":2}"#).await;
    client.error("two", "unimplemented").await;
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_cancels_everything() {
    let mut client = Client::new().await;
    client.infer("a", "never", "").await;
    client.infer("s", "steps", r#","stream":true,"parameters":{"steps":400}"#).await;
    client.settle().await;
    assert_eq!(client.fixture.in_flight(), 2);
    drop(client.socket);
    client.session.await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(client.fixture.stack.in_flight.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn large_outputs_come_in_fragments_and_whole() {
    let mut client = Client::new().await;
    let values = 100_000;
    let json = format!(
        r#"{{"type":"infer","id":"b","model":"echo","binary_outputs":true,"inputs":[{{"name":"X","datatype":"UINT8","shape":[{values}],"byte_length":{values}}}]}}"#
    );
    let tensor: Vec<u8> = (0..values).map(|index| index as u8).collect();
    client.send(binary(&json, &tensor)).await;
    let Heard::Binary(frame) = client.hear().await else { panic!("not binary") };
    assert_eq!(frame[frame.len() - values..], tensor);
    assert_eq!(client.fixture.connection.frontend.memory.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_memory_has_no_room_for_is_refused_by_its_id() {
    let zeros = vec!["0"; 50_000].join(",");
    let large = format!(
        r#"{{"type":"infer","id":"a","model":"echo","inputs":[{{"name":"X","datatype":"UINT8","shape":[50000],"data":[{zeros}]}}]}}"#
    );
    // Now, and ever.
    for (budget, held, code) in [(1 << 20, 1_000_000, "overloaded"), (1, 0, "payload_too_large")] {
        let mut settings = Settings::default();
        settings.concurrency.memory = budget;
        let mut client = Client::with(settings).await;
        let held = client.fixture.connection.frontend.memory.reserve(held).unwrap();
        client.say(&large).await;
        client.error("a", code).await;
        client.infer("b", "echo", "").await;
        client.output("b").await;
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn messages_are_counted_and_what_keeps_a_session_going_is_not() {
    let mut settings = Settings::default();
    settings.concurrency.per_socket = 1;
    let mut client = Client::with(settings).await;
    client.say(r#"{"type":"ping"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"pong"}"#);
    client.infer("a", "never", "").await;
    client.infer("b", "echo", "").await;
    client.error("b", "overloaded").await;
    client.say(r#"{"type":"cancel","id":"a"}"#).await;
    client.text().await;
    let page = client.fixture.connection.frontend.metrics.render();
    for line in [
        r#"stream_messages_total{direction="in",surface="websocket"} 3"#,
        r#"stream_messages_total{direction="out",surface="websocket"} 2"#,
        r#"overloaded_total{limit="socket"} 1"#,
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
}

//! Outputs that are long as text: written off the lane, and still in their place.

use super::*;
use crate::frontend::body::Busy;

/// Enough that its text is no small work.
const VALUES: usize = 150_000;

impl Client {
    /// Asks for a large tensor back. It comes as raw bytes, so that only the answer is long as text.
    async fn ask(&mut self, id: &str, model: &str, more: &str) {
        let json = format!(
            r#"{{"type":"infer","id":"{id}","model":"{model}"{more},"inputs":[{{"name":"X","datatype":"UINT8","shape":[{VALUES}],"byte_length":{VALUES}}}]}}"#
        );
        self.send(binary(&json, &[7; VALUES])).await;
    }

    /// The next message is output `seq` of `id`, whole.
    async fn large(&mut self, id: &str, seq: usize, last: bool) {
        let text = self.text().await;
        let start = format!(r#"{{"type":"output","id":"{id}","seq":{seq},"final":{last},"#);
        assert!(text.starts_with(&start), "{}", &text[..100]);
        assert_eq!(text.matches('7').count(), VALUES);
    }
}

#[tokio::test]
async fn others_are_answered_while_a_large_output_is_written_elsewhere() {
    let mut client = Client::new().await;
    let busy = Busy::begin().await;
    client.ask("large", "echo", "").await;
    client.ask("raw", "echo", r#","binary_outputs":true"#).await;
    assert!(matches!(client.hear().await, Heard::Binary(_)), "what is only shared is no work");
    client.infer("small", "echo", "").await;
    client.output("small").await;
    drop(busy);
    client.large("large", 0, true).await;
    assert_eq!(client.fixture.connection.frontend.memory.used(), 0);
}

#[tokio::test]
async fn large_pieces_of_a_stream_keep_their_order() {
    let mut client = Client::new().await;
    client.ask("s", "steps", r#","stream":true,"parameters":{"steps":5}"#).await;
    client.ask("t", "steps", "").await;
    let mut seen = 0;
    for _ in 0..7 {
        let text = client.text().await;
        if text.starts_with(r#"{"type":"output","id":"s""#) {
            assert!(text.contains(&format!(r#""seq":{seen},"final":false"#)), "{}", &text[..100]);
            seen += 1;
        } else if text.starts_with(r#"{"type":"done""#) {
            assert_eq!((&*text, seen), (r#"{"type":"done","id":"s"}"#, 5));
        } else {
            assert!(text.starts_with(r#"{"type":"output","id":"t","seq":0,"final":true"#), "{}", &text[..100]);
        }
    }
    assert_eq!(seen, 5);
}

#[tokio::test]
async fn a_call_is_taken_back_while_its_output_is_written() {
    let mut client = Client::new().await;
    let busy = Busy::begin().await;
    client.ask("a", "echo", "").await;
    // It is answered as soon as it is seen: what was asked before is with the decoding thread by then.
    client.infer("b", "echo", "").await;
    client.output("b").await;
    client.say(r#"{"type":"cancel","id":"a"}"#).await;
    assert_eq!(client.text().await, r#"{"type":"cancelled","id":"a"}"#);
    // The name is free again, and nothing of the first call comes.
    client.ask("a", "never", "").await;
    drop(busy);
    client.ask("c", "echo", "").await;
    client.large("c", 0, true).await;
}

#[tokio::test]
async fn a_session_that_ends_waits_for_what_is_being_written() {
    let mut client = Client::new().await;
    let busy = Busy::begin().await;
    client.ask("a", "echo", "").await;
    client.say(r#"{"type":"bye"}"#).await;
    client.settle().await;
    drop(busy);
    client.large("a", 0, true).await;
    client.closed(1000).await;
}

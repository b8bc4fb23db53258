//! Faults of the client, and the close codes that name them (contract 06 A3, A4 and C7).

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(start_paused = true)]
async fn what_is_no_message_closes_the_socket() {
    for message in [
        "",
        "hello",
        "[]",
        "{}",
        r#"{"type":"shout"}"#,
        r#"{"type":"infer","model":"m","inputs":[]}"#,
        r#"{"type":"infer","id":"a b"}"#,
        r#"{"type":"cancel"}"#,
        r#"{"type":"auth","auth":7}"#,
        r#"{"type":"infer","id":"a","inputs":["#,
    ] {
        let mut client = Client::new().await;
        client.say(message).await;
        let reason = client.closed(4400).await;
        assert!(!reason.is_empty(), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_binary_layout_closes_the_socket() {
    let json = r#"{"type":"infer","id":"a","model":"echo","inputs":[{"name":"X","datatype":"UINT8","shape":[1],"byte_length":1}]}"#;
    let mut sound = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    sound.extend_from_slice(json.as_bytes());
    sound.resize(sound.len().next_multiple_of(8), 0);
    sound.push(7);
    let mut client = Client::new().await;
    client.send(sound.clone()).await;
    client.output("a").await;
    let (short, long) = (sound[..sound.len() - 1].to_vec(), [&sound[..], &[0]].concat());
    for frame in [vec![], vec![1, 0, 0], vec![255, 255, 255, 255, b'{'], short, long] {
        let mut client = Client::new().await;
        client.send(frame).await;
        client.closed(4400).await;
    }
}

#[tokio::test(start_paused = true)]
async fn faults_of_a_session_have_codes_of_their_own() {
    let hello = r#"{"type":"hello","protocol":1}"#;
    for (messages, code) in [
        (&[hello][..], 4429),
        (
            &[
                r#"{"type":"infer","id":"a","model":"never","inputs":[]}"#,
                r#"{"type":"infer","id":"a","model":"echo","inputs":[]}"#,
            ],
            4409,
        ),
    ] {
        let mut client = Client::new().await;
        for message in messages {
            client.say(message).await;
        }
        let stack = Arc::clone(&client.fixture.stack);
        client.closed(code).await;
        assert_eq!(stack.in_flight.load(std::sync::atomic::Ordering::SeqCst), 0);
    }
    for (message, code) in [
        (r#"{"type":"infer","id":"a","model":"echo","inputs":[]}"#, 4401),
        (r#"{"type":"bye"}"#, 4401),
        (r#"{"type":"hello","protocol":2}"#, 4400),
        (r#"{"type":"hello"}"#, 4400),
    ] {
        let mut client = Client::silent(Settings::default(), Caller::Proven).await;
        client.say(message).await;
        client.closed(code).await;
    }
}

/// Sends `bytes` as they are, and returns the code of the close frame that answers them.
pub(super) async fn answer(settings: Settings, bytes: &[u8]) -> u16 {
    let mut client = Client::silent(settings, Caller::Proven).await;
    let socket = client.socket.get_mut();
    socket.write_all(bytes).await.unwrap();
    // Read to the end, as a client does; the server closes first.
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[0], 0x88, "{answer:?}");
    client.session.await.unwrap();
    if answer[1] == 0 { 1005 } else { u16::from_be_bytes([answer[2], answer[3]]) }
}

/// A masked frame, with a mask of zeros.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

#[tokio::test(start_paused = true)]
async fn faults_against_the_protocol_are_1002() {
    for (name, bytes) in [
        ("unmasked", vec![0x81, 2, b'{', b'}']),
        ("reserved opcode", frame(0x83, b"")),
        ("reserved control opcode", frame(0x8b, b"")),
        ("rsv1", frame(0xc1, b"{}")),
        ("fragmented control frame", frame(0x09, b"")),
        ("long control frame", [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0][..], &[0; 126]].concat()),
        ("continuation of nothing", frame(0x80, b"x")),
        ("interleaved messages", [frame(0x01, b"x"), frame(0x81, b"y")].concat()),
        ("long spelling of a length", vec![0x81, 0xfe, 0, 2, 0, 0, 0, 0, b'{', b'}']),
        ("close of one byte", frame(0x88, &[3])),
        ("close 1005", frame(0x88, &[0x03, 0xed])),
        ("close 999", frame(0x88, &[0x03, 0xe7])),
        ("close 2000", frame(0x88, &[0x07, 0xd0])),
    ] {
        assert_eq!(answer(Settings::default(), &bytes).await, 1002, "{name}");
    }
    assert_eq!(answer(Settings::default(), &frame(0x88, &[0x0f, 0xa0])).await, 4000);
}

#[tokio::test(start_paused = true)]
async fn text_must_be_utf8_over_the_whole_message() {
    assert_eq!(answer(Settings::default(), &frame(0x81, &[0xff])).await, 1007);
    let split = [frame(0x01, &[0xc3]), frame(0x80, &[0x28])].concat();
    assert_eq!(answer(Settings::default(), &split).await, 1007);
    // A character that is split over fragments is no fault: this is no message, but it is text.
    let whole = [frame(0x01, &[0xc3]), frame(0x80, &[0xa4])].concat();
    assert_eq!(answer(Settings::default(), &whole).await, 4400);
}

#[tokio::test(start_paused = true)]
async fn a_message_beyond_the_limit_is_refused_on_its_declared_length() {
    let mut settings = Settings::default();
    settings.size.message = 1000;
    let declared = [0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0];
    assert_eq!(answer(settings.clone(), &declared).await, 1009);
    let pieces: Vec<u8> = (0..9).flat_map(|index| frame(if index == 0 { 0x02 } else { 0x00 }, &[0; 120])).collect();
    assert_eq!(answer(settings, &pieces).await, 1009);
}

#[tokio::test(start_paused = true)]
async fn strangers_send_little_and_who_says_hello_at_once_may_send_much() {
    let large = format!(r#"{{"type":"ping","x":"{}"}}"#, "x".repeat(100_000));
    let mut client = Client::silent(Settings::default(), Caller::Proven).await;
    let _ = client.socket.send(Message::text(large.clone())).await;
    client.closed(1009).await;

    let mut client = Client::silent(Settings::default(), Caller::Proven).await;
    client.socket.feed(Message::text(r#"{"type":"hello","protocol":1}"#)).await.unwrap();
    client.say(&large).await;
    assert!(client.text().await.starts_with(r#"{"type":"welcome""#));
    assert_eq!(client.text().await, r#"{"type":"pong"}"#);
}

#[tokio::test(start_paused = true)]
async fn fragments_and_control_frames_are_bounded() {
    let settings = Settings::default();
    let empty: Vec<u8> = (0..1025).flat_map(|index| frame(if index == 0 { 0x01 } else { 0x00 }, b"")).collect();
    assert_eq!(answer(settings.clone(), &empty).await, 1009);
    let mut client = Client::new().await;
    for _ in 0..11 {
        client.socket.feed(Message::Ping("".into())).await.unwrap();
    }
    client.socket.flush().await.unwrap();
    client.closed(1008).await;
}

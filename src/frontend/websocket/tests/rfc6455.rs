//! What the public suite for RFC 6455 tries, case by case in groups: its echoes are `ping` messages here, which come back
//! with what they brought.
//!
//! Cases 6.4.3 and 6.4.4 of the suite wish text that is not UTF-8 refused before its frame has ended. It is refused when
//! the frame has.

use super::{
    faults::{answer, frame},
    *,
};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A message whose answer is known, of `length` bytes, and the answer.
fn echo(length: usize) -> (String, String) {
    let around = r#"{"type":"ping","t":""}"#.len();
    let filling = "*".repeat(length - around);
    (format!(r#"{{"type":"ping","t":"{filling}"}}"#), format!(r#"{{"type":"pong","t":"{filling}"}}"#))
}

/// A frame of any length, with a mask.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0x22, 0x33, 0x44];
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Sends `bytes` in pieces, each of which has been heard before the next one comes.
async fn chopped(client: &mut Client, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        client.socket.get_mut().write_all(piece).await.unwrap();
        client.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn lengths_around_their_spellings_come_back() {
    let mut client = Client::new().await;
    for length in [30, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20] {
        let (ping, pong) = echo(length);
        client.say(&ping).await;
        assert_eq!(client.text().await, pong, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn frames_may_come_byte_by_byte() {
    let mut client = Client::new().await;
    let (ping, pong) = echo(130);
    chopped(&mut client, &masked(0x81, ping.as_bytes()), 1).await;
    assert_eq!(client.text().await, pong);
    // Not even a character has to be whole.
    let ping = r#"{"type":"ping","t":"κόσμε 𐍈 ﾟ"}"#;
    chopped(&mut client, &masked(0x81, ping.as_bytes()), 1).await;
    assert_eq!(client.text().await, ping.replace("ping", "pong"));
}

#[tokio::test(start_paused = true)]
async fn control_frames_pass_between_fragments() {
    let mut client = Client::new().await;
    let (ping, pong) = echo(300);
    let pieces: Vec<_> = ping.as_bytes().chunks(100).collect();
    let bytes = [
        masked(0x01, pieces[0]),
        masked(0x89, b"one"),
        masked(0x00, pieces[1]),
        masked(0x8a, b"nobody asked"),
        masked(0x00, b""),
        masked(0x89, &[0xff; 125]),
        masked(0x80, pieces[2]),
    ];
    client.socket.get_mut().write_all(&bytes.concat()).await.unwrap();
    // Only the latest ping needs an answer, and it comes before the message that it interrupted.
    let mut pongs = Vec::new();
    loop {
        match client.socket.next().await.unwrap().unwrap() {
            Message::Pong(payload) => pongs.push(payload),
            Message::Text(text) => break assert_eq!(text.as_str(), pong),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pongs.last().map(|payload| &payload[..]), Some(&[0xff; 125][..]));
}

#[tokio::test(start_paused = true)]
async fn all_that_is_reserved_is_1002() {
    for first in [0xc1, 0xa1, 0x91, 0xf1, 0xc2, 0xc9, 0xa9, 0x99, 0xc8] {
        assert_eq!(answer(Settings::default(), &frame(first, b"")).await, 1002, "{first:#x}");
    }
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        for flags in [0x80, 0x00] {
            let bytes = frame(flags | opcode, b"x");
            assert_eq!(answer(Settings::default(), &bytes).await, 1002, "{bytes:?}");
        }
    }
    // On a later fragment too.
    let late = [frame(0x01, b"{"), frame(0xc0, b"}")].concat();
    assert_eq!(answer(Settings::default(), &late).await, 1002);
    let unmasked = [frame(0x01, b"{"), vec![0x80, 1, b'}']].concat();
    assert_eq!(answer(Settings::default(), &unmasked).await, 1002);
}

#[tokio::test(start_paused = true)]
async fn close_codes_are_answered_if_they_may_be_sent() {
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999_u16] {
        let bytes = frame(0x88, &code.to_be_bytes());
        assert_eq!(answer(Settings::default(), &bytes).await, code);
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999_u16] {
        let bytes = frame(0x88, &code.to_be_bytes());
        assert_eq!(answer(Settings::default(), &bytes).await, 1002, "{code}");
    }
    assert_eq!(answer(Settings::default(), &frame(0x88, b"")).await, 1005);
}

#[tokio::test(start_paused = true)]
async fn reasons_of_a_close_are_bounded_text() {
    let reason = |reason: &[u8]| frame(0x88, &[&1000_u16.to_be_bytes(), reason].concat());
    assert_eq!(answer(Settings::default(), &reason(&[b'x'; 123])).await, 1000);
    let long = [&[0x88, 0xfe, 0, 126, 0, 0, 0, 0][..], &1000_u16.to_be_bytes(), &[b'x'; 124]].concat();
    assert_eq!(answer(Settings::default(), &long).await, 1002);
    let code = answer(Settings::default(), &reason(&[0xce, 0xba, 0xe1, 0xff])).await;
    assert!([1002, 1007].contains(&code), "{code}");
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_close_is_not_heard() {
    let bytes = [frame(0x88, &1000_u16.to_be_bytes()), frame(0x81, b"no message"), frame(0x89, b"")].concat();
    assert_eq!(answer(Settings::default(), &bytes).await, 1000);
    // Half a message is none.
    let bytes = [frame(0x01, b"{"), frame(0x88, &1001_u16.to_be_bytes())].concat();
    assert_eq!(answer(Settings::default(), &bytes).await, 1001);
}

#[tokio::test(start_paused = true)]
async fn text_is_utf8_and_nothing_else() {
    // What is text but no message is 4400.
    for text in ["\u{0}", "\u{7f}", "\u{80}", "\u{7ff}", "\u{800}", "\u{d7ff}", "\u{e000}", "\u{fffe}", "\u{ffff}"] {
        assert_eq!(answer(Settings::default(), &frame(0x81, text.as_bytes())).await, 4400, "{text:?}");
    }
    assert_eq!(answer(Settings::default(), &frame(0x81, "\u{10ffff}".as_bytes())).await, 4400);
    for bytes in [
        &[0x80][..],
        &[0xbf],
        &[0xc0, 0x80],
        &[0xc1, 0xbf],
        &[0xe0, 0x80, 0x80],
        &[0xf0, 0x80, 0x80, 0x80],
        &[0xf8, 0x88, 0x80, 0x80, 0x80],
        &[0xfc, 0x84, 0x80, 0x80, 0x80, 0x80],
        &[0xed, 0xa0, 0x80],
        &[0xed, 0xbf, 0xbf],
        &[0xf4, 0x90, 0x80, 0x80],
        &[0xf7, 0xbf, 0xbf, 0xbf],
        &[0xfe],
        &[0xff],
        &[0xce],
        &[0xe1, 0xbd],
        b"ok \xed\xa0\x80 edited",
    ] {
        assert_eq!(answer(Settings::default(), &frame(0x81, bytes)).await, 1007, "{bytes:x?}");
        if bytes.len() > 1 {
            let split = [frame(0x01, &bytes[..1]), frame(0x80, &bytes[1..])].concat();
            assert_eq!(answer(Settings::default(), &split).await, 1007, "{bytes:x?} in two");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_control_frames_a_second_are_answered_and_so_is_the_close_behind_them() {
    let mut client = Client::new().await;
    for round in 0..3 {
        for _ in 0..10 {
            client.socket.send(Message::Ping("x".into())).await.unwrap();
            assert_eq!(client.socket.next().await.unwrap().unwrap(), Message::Pong("x".into()), "{round}");
        }
        if round < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    client.socket.get_mut().write_all(&frame(0x88, &1000_u16.to_be_bytes())).await.unwrap();
    let mut answer = [0; 4];
    client.socket.get_mut().read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x88, 2, 0x03, 0xe8]);

    // A flood of answers that nobody asked for is one like any other (attack W3).
    assert_eq!(self::answer(Settings::default(), &frame(0x8a, b"").repeat(11)).await, 1008);
}

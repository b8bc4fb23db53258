//! Sessions over a socket in memory, on a paused clock; handshakes over real ones.

mod calls;
mod ends;
mod faults;
mod handshake;
mod large;
mod rfc6455;
mod tunnel;

use super::{codec::Caller, session};
use crate::frontend::{
    Settings,
    duplex::{Speaker, fixture::Fixture},
};
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use tokio::{io::DuplexStream, task::JoinHandle};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

/// A client of one session.
struct Client {
    socket: WebSocketStream<DuplexStream>,
    fixture: Fixture,
    session: JoinHandle<()>,
}

/// What a test reads.
#[derive(Debug, PartialEq)]
enum Heard {
    Text(String),
    Binary(Vec<u8>),
    Ping,
    Close(u16, String),
    End,
}

impl Client {
    /// A session that has begun, with limits of its own.
    async fn with(settings: Settings) -> Self {
        let mut client = Self::silent(settings, Caller::Anonymous(Ok(()))).await;
        client.say(r#"{"type":"hello","protocol":1}"#).await;
        let welcome = client.text().await;
        assert!(welcome.starts_with(r#"{"type":"welcome","protocol":1,"session":"s_"#), "{welcome}");
        client
    }

    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    /// A session in which nobody has said anything.
    async fn silent(settings: Settings, caller: Caller) -> Self {
        let fixture = Fixture::new(settings);
        let speaker = match caller {
            Caller::Proven | Caller::Anonymous(Ok(())) => fixture.speaker(None),
            Caller::Anonymous(Err(_)) | Caller::Refused(_) => Speaker::unknown(),
        };
        Self::speaking(fixture, speaker, caller).await
    }

    async fn speaking(fixture: Fixture, speaker: Speaker, caller: Caller) -> Self {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let session = tokio::spawn(session(Arc::clone(&fixture.connection), speaker, caller, None, far));
        let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        Self { socket, fixture, session }
    }

    async fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    async fn send(&mut self, frame: Vec<u8>) {
        self.socket.send(Message::binary(frame)).await.unwrap();
    }

    async fn infer(&mut self, id: &str, model: &str, more: &str) {
        self.say(&request(id, model, more)).await;
    }

    async fn hear(&mut self) -> Heard {
        loop {
            return match self.socket.next().await {
                Some(Ok(Message::Text(text))) => Heard::Text(text.to_string()),
                Some(Ok(Message::Binary(payload))) => Heard::Binary(payload.to_vec()),
                Some(Ok(Message::Ping(_))) => Heard::Ping,
                Some(Ok(Message::Close(Some(close)))) => Heard::Close(close.code.into(), close.reason.to_string()),
                Some(Ok(Message::Pong(_))) => continue,
                Some(Ok(Message::Close(None) | Message::Frame(_)) | Err(_)) | None => Heard::End,
            };
        }
    }

    async fn text(&mut self) -> String {
        match self.hear().await {
            Heard::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    /// The next message is the one output of `id`.
    async fn output(&mut self, id: &str) {
        let text = self.text().await;
        let start = format!(r#"{{"type":"output","id":"{id}","seq":0,"final":true,"model":""#);
        assert!(text.starts_with(&start), "{text}");
    }

    /// The next message is an error of `id` with `code`.
    async fn error(&mut self, id: &str, code: &str) {
        let text = self.text().await;
        assert!(text.starts_with(&format!(r#"{{"type":"error","id":"{id}","code":"{code}","#)), "{text}");
    }

    /// The next thing is the end, with `code`; after it the session has ended.
    async fn closed(mut self, code: u16) -> String {
        let reason = match self.hear().await {
            Heard::Close(found, reason) if found == code => reason,
            other => panic!("expected {code}, found {other:?}"),
        };
        assert_eq!(self.hear().await, Heard::End);
        self.session.await.unwrap();
        reason
    }

    /// Lets the session do what it can.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
}

fn binary(json: &str, tensors: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    frame.extend_from_slice(json.as_bytes());
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame.extend_from_slice(tensors);
    frame
}

fn request(id: &str, model: &str, more: &str) -> String {
    format!(
        r#"{{"type":"infer","id":"{id}","model":"{model}"{more},"inputs":[{{"name":"X","datatype":"FP32","shape":[1,2],"data":[1,2]}}]}}"#
    )
}

#[test]
fn an_idle_session_is_small() {
    // 5,000 idle sockets are to cost no more than 80 MB: 16 KiB each, of which tungstenite's read buffer takes 4, and
    // the connection and the allocator some more. Measured over real sockets: 9.5 KiB each, the client's end included.
    let connection = Fixture::new(Settings::default()).connection;
    let (_near, far) = tokio::io::duplex(1);
    let session = session(connection, Speaker::unknown(), Caller::Proven, None, far);
    assert!(size_of_val(&session) <= 3328, "{}", size_of_val(&session));
}

//! A WebSocket that speaks `sluicegate.v1`.

use super::{Failure, http1, messages::Link};
use crate::bench::source::Target;
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        protocol::{Role, WebSocketConfig},
    },
};

/// Any 16 bytes in base64: what the server makes of it proves only that it speaks WebSocket, which its next frame does.
const NONCE: &str = "c2x1aWNlZ2F0ZSBiZW5jaA==";

/// A socket whose session is open.
pub(super) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    /// Opens the socket, says hello and waits for the welcome.
    pub(super) async fn open(target: &Target) -> Result<Self, Failure> {
        let mut connection = http1::Connection::open(&target.server().address).await?;
        let authorization =
            target.server().authorization.as_ref().map_or(String::new(), |key| format!("authorization: {key}\r\n"));
        let request = format!(
            "GET /v1/ws HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {NONCE}\r\nsec-websocket-protocol: sluicegate.v1\r\n\
             {authorization}\r\n",
            target.server().address.authority()
        );
        let answer = connection.exchange(request.as_bytes()).await?;
        if answer.status != 101 {
            return Err(Failure::Refused(http1::refusal(answer.status, connection.body(&answer))));
        }
        let (stream, rest) = connection.into_upgraded(&answer);
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let mut socket = WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await;
        let hello = Message::text(r#"{"type":"hello","protocol":1}"#);
        socket.send(hello).await.map_err(Failure::broken)?;
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) if text.contains(r#""type":"welcome""#) => return Ok(Self(socket)),
                Some(Ok(Message::Text(text))) => return Err(Failure::Broken(format!("expected a welcome: {text}"))),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame.map(|frame| frame.reason))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::broken(error)),
                None => return Err(closed(None)),
            }
        }
    }
}

fn closed(reason: Option<Utf8Bytes>) -> Failure {
    Failure::Broken(match reason {
        Some(reason) if !reason.is_empty() => format!("the server closed the WebSocket: {reason}"),
        _ => "the server closed the WebSocket".to_owned(),
    })
}

impl Link for Socket {
    fn poll_send(&mut self, cx: &mut Context<'_>, message: &Bytes) -> Poll<Result<(), Failure>> {
        ready!(Pin::new(&mut self.0).poll_ready(cx)).map_err(Failure::broken)?;
        let text = Utf8Bytes::try_from(message.clone()).map_err(Failure::broken)?;
        Poll::Ready(Pin::new(&mut self.0).start_send(Message::Text(text)).map_err(Failure::broken))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Pin::new(&mut self.0).poll_flush(cx).map_err(Failure::broken)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Failure>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_next(cx)) {
                Some(Ok(Message::Text(text))) => return Poll::Ready(Ok(text.into())),
                Some(Ok(Message::Close(frame))) => return Poll::Ready(Err(closed(frame.map(|frame| frame.reason)))),
                // Pings are answered by the codec.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(Failure::broken(error))),
                None => return Poll::Ready(Err(closed(None))),
            }
        }
    }
}

//! Messages on a WebSocket: fragments going out, faults coming in.
//!
//! Framing is tungstenite's. Here are the bounds that it does not have, and what its errors mean as close codes.

use super::{
    close,
    frames::{Allowance, Counted, Violation, Welcomed},
};
use crate::frontend::{
    Settings,
    body::Memory,
    duplex::{Link, Outbox, Received, Sending, Weigh, Why},
};
use bytes::Bytes;
use futures_util::{Sink, Stream};
use std::{
    borrow::Cow,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::{CapacityError, ProtocolError},
        protocol::{
            CloseFrame, Role, WebSocketConfig,
            frame::{
                Frame, Utf8Bytes,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

/// The largest fragment that is sent: control frames pass between two of them (contract 06 C6).
const FRAGMENT: usize = 64 * 1024;
/// Small messages are gathered up to this size before the socket is written to. They are flushed every turn anyway.
const GATHER: usize = 16 * 1024;
/// A payload above this size is let go of only when tungstenite has another buffer: it would keep the large one.
const LARGE: usize = 64 * 1024;
/// The longest reason of a close frame (contract 06 A4).
const REASON: usize = 123;

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A message in JSON.
    Text(Bytes),
    /// A binary frame, in pieces.
    Binary(Vec<Bytes>),
    /// A ping.
    Ping,
    /// The last frame.
    Close(u16, Cow<'static, str>),
}

impl Weigh for Outgoing {
    fn weight(&self) -> usize {
        match self {
            Self::Text(json) => json.len(),
            Self::Binary(pieces) => pieces.iter().map(Bytes::len).sum(),
            Self::Ping => 2,
            Self::Close(_, reason) => reason.len() + 4,
        }
    }
}

/// A WebSocket after its handshake.
pub(super) struct Socket<S> {
    socket: WebSocketStream<Counted<S>>,
    /// How far the first message of the outbox is sent: its piece, and bytes of that.
    sent: (usize, usize),
    large: Option<Bytes>,
    closing: Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// Our close frame, or our answer to theirs, may not be flushed yet.
    Flushing,
    /// Theirs has not come.
    Awaiting,
    /// TCP.
    Ending,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) async fn new(socket: S, settings: &Settings, memory: Memory, welcomed: Welcomed) -> Self {
        let (size, limits) = (settings.size, &settings.websocket);
        let allowance = Allowance { fragments: size.fragments, control_frames: limits.control_frames };
        let config = WebSocketConfig::default()
            .read_buffer_size(limits.read_buffer)
            .max_message_size(Some(size.message))
            .max_frame_size(Some(size.message))
            .write_buffer_size(GATHER)
            // What was gathered, a fragment and a pong: more is never there, because a blocked socket is given nothing.
            .max_write_buffer_size(2 * (GATHER + FRAGMENT));
        let socket = Counted::new(socket, allowance, memory, welcomed);
        let socket = WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await;
        Self { socket, sent: (0, 0), large: None, closing: Closing::Flushing }
    }

    /// The next fragment of `message`, and whether it is the last; what is no data is one by itself.
    fn fragment(&mut self, message: &Outgoing) -> (Message, bool) {
        let (pieces, kind) = match message {
            Outgoing::Text(json) => (std::slice::from_ref(json), Data::Text),
            Outgoing::Binary(pieces) => (&pieces[..], Data::Binary),
            Outgoing::Ping => return (Message::Ping(Bytes::new()), true),
            Outgoing::Close(code, reason) => return (Message::Close(Some(close_frame(*code, reason))), true),
        };
        let (index, start) = self.sent;
        let first = self.sent == (0, 0);
        let piece = pieces.get(index).cloned().unwrap_or_default();
        let end = piece.len().min(start + FRAGMENT);
        self.sent = if end == piece.len() { (index + 1, 0) } else { (index, end) };
        let last = self.sent.0 >= pieces.len();
        let kind = if first { kind } else { Data::Continue };
        (Message::Frame(Frame::message(piece.slice(start..end), OpCode::Data(kind), last)), last)
    }
}

fn close_frame(code: u16, reason: &str) -> CloseFrame {
    let mut end = reason.len().min(REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    CloseFrame { code: CloseCode::from(code), reason: Utf8Bytes::from(&reason[..end]) }
}

/// What an error of tungstenite says about the peer.
fn fault(error: &Error) -> Received<Message> {
    let fault = |code, reason| Received::Fault(Why::Fault(code, Cow::Borrowed(reason)));
    match error {
        Error::Io(error) => match error.get_ref().and_then(|error| error.downcast_ref::<Violation>()) {
            Some(violation) => fault(violation.code, violation.reason),
            None => Received::Closed,
        },
        Error::Capacity(CapacityError::MessageTooLong { .. }) => fault(close::TOO_BIG, "a message beyond the limit"),
        Error::Utf8(_) => fault(close::NOT_TEXT, "a text that is not UTF-8"),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | Error::ConnectionClosed
        | Error::AlreadyClosed => Received::Closed,
        _ => fault(close::PROTOCOL, "a fault against RFC 6455"),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Link for Socket<S> {
    type Received = Message;
    type Frame = Outgoing;

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received<Message>> {
        let polled = Pin::new(&mut self.socket).poll_next(cx);
        self.large = None;
        let message = match ready!(polled) {
            None | Some(Ok(Message::Close(_))) => return Poll::Ready(Received::Closed),
            Some(Err(error)) => return Poll::Ready(fault(&error)),
            Some(Ok(message)) => message,
        };
        if message.len() > LARGE {
            self.large = Some(message.clone().into_data());
        }
        Poll::Ready(Received::Frame(message))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox<Outgoing>) -> Sending {
        let mut blocked = Sending::Blocked;
        while let Some(message) = outbox.front() {
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Pending => return blocked,
                Poll::Ready(Err(_)) => return Sending::Gone,
                Poll::Ready(Ok(())) => {}
            }
            let (fragment, last) = self.fragment(message);
            if last {
                self.sent = (0, 0);
                outbox.pop();
            }
            if Pin::new(&mut self.socket).start_send(fragment).is_err() {
                return Sending::Gone;
            }
            blocked = Sending::Some;
        }
        match Pin::new(&mut self.socket).poll_flush(cx) {
            Poll::Ready(Ok(())) => Sending::Done,
            Poll::Ready(Err(_)) => Sending::Gone,
            Poll::Pending => blocked,
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.closing {
                Closing::Flushing => {
                    let flushed = ready!(Pin::new(&mut self.socket).poll_flush(cx));
                    self.closing = if flushed.is_ok() { Closing::Awaiting } else { Closing::Ending };
                }
                // What still comes is no longer for us; tungstenite answers their close frame.
                Closing::Awaiting => match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => self.closing = Closing::Ending,
                },
                Closing::Ending => {
                    let _ = ready!(Pin::new(self.socket.get_mut()).poll_shutdown(cx));
                    return Poll::Ready(());
                }
            }
        }
    }
}

//! gRPC over HTTP/2, with the bytes of the request made once: of the answer only its status is looked at.

use super::{Failure, Kept, http1};
use crate::bench::{
    address::Address,
    source::{Server, Target},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::poll_fn;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request, Response};
use std::sync::Arc;
use tokio::task::AbortHandle;

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What a stream and a connection may have on the way to us: never a reason to wait.
const WINDOW: u32 = 16 << 20;

/// A connection, as long as somebody has a clone of it.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Connection {
    sender: SendRequest<Bytes>,
    _driver: Arc<Driver>,
}

/// The task that reads and writes a connection; it ends with this.
#[derive(Debug)]
struct Driver(AbortHandle);

/// One caller of a method with one answer.
pub(in crate::bench) struct Unary {
    connection: Connection,
    head: Request<()>,
    message: Bytes,
}

/// One caller of `ModelStreamInfer` with a stream of its own.
pub(in crate::bench) struct Streaming {
    _connection: Connection,
    sender: SendStream<Bytes>,
    response: Option<h2::client::ResponseFuture>,
    receiver: Option<RecvStream>,
    message: Bytes,
    buffer: BytesMut,
}

// === impl Connection ===

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// # Errors
    ///
    /// [`Failure::Broken`] if nothing listens there or it does not speak HTTP/2.
    pub(in crate::bench) async fn open(address: &Address) -> Result<Self, Failure> {
        let stream = http1::dial(address).await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let (sender, connection) = builder.handshake(stream).await.map_err(Failure::broken)?;
        // How it ends is said to every stream on it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, _driver: Arc::new(Driver(driver.abort_handle())) })
    }

    /// Begins a stream with `head`, once the server takes one more.
    pub(super) async fn begin(
        &mut self,
        head: Request<()>,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), Failure> {
        poll_fn(|cx| self.sender.poll_ready(cx)).await.map_err(Failure::broken)?;
        self.sender.send_request(head, false).map_err(Failure::broken)
    }
}

/// The head of a call of `method`.
fn head(server: &Server, method: &str) -> Result<Request<()>, Failure> {
    let mut head = Request::post(format!("{}/inference.GRPCInferenceService/{method}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(authorization) = &server.authorization {
        head = head.header("authorization", authorization);
    }
    head.body(()).map_err(Failure::broken)
}

/// A message with its prefix.
fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

// === impl Unary ===

impl Unary {
    pub(super) fn infer(connection: &Connection, target: &Target, caller: usize) -> Result<Self, Failure> {
        Self::new(connection, target.server(), "ModelInfer", &target.payload(caller).message(target.model()))
    }

    /// A caller of `method` with `message`.
    ///
    /// # Errors
    ///
    /// [`Failure::Broken`] if the address makes no URL.
    pub(in crate::bench) fn new(
        connection: &Connection,
        server: &Server,
        method: &str,
        message: &impl prost::Message,
    ) -> Result<Self, Failure> {
        let head = head(server, method)?;
        Ok(Self { connection: connection.clone(), head, message: framed(message) })
    }

    pub(in crate::bench) async fn exchange(&mut self, mut kept: Option<&mut Kept>) -> Result<(), Failure> {
        let (response, mut sender) = self.connection.begin(self.head.clone()).await?;
        sender.send_data(self.message.clone(), true).map_err(Failure::broken)?;
        let (head, mut body) = opened(response.await)?;
        while let Some(data) = body.data().await {
            let data = data.map_err(Failure::broken)?;
            body.flow_control().release_capacity(data.len()).map_err(Failure::broken)?;
            if let Some(kept) = &mut kept {
                kept.body.extend_from_slice(&data);
            }
        }
        let trailers = body.trailers().await.map_err(Failure::broken)?;
        // An answer that is a status and nothing else has it in its head.
        status(trailers.as_ref().unwrap_or(&head))?;
        if let Some(kept) = kept {
            kept.body.drain(..PREFIX.min(kept.body.len()));
        }
        Ok(())
    }
}

/// The head and the body of an answer that came.
fn opened(response: Result<Response<RecvStream>, h2::Error>) -> Result<(HeaderMap, RecvStream), Failure> {
    let (parts, body) = response.map_err(Failure::broken)?.into_parts();
    match parts.status.as_u16() {
        200 => Ok((parts.headers, body)),
        status => Err(Failure::Refused(format!("http_{status}"))),
    }
}

/// What `grpc-status` says: our own word for a failure where there is one, else its number.
fn status(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (text("grpc-status"), text("error-code")) {
        (Some("0"), _) => Ok(()),
        (Some(_), Some(code)) => Err(Failure::Refused(code.to_owned())),
        (Some(number), None) => Err(Failure::Refused(format!("grpc_{number}"))),
        (None, _) => Err(Failure::broken("the answer ended without a `grpc-status`")),
    }
}

// === impl Streaming ===

impl Streaming {
    pub(super) async fn open(connection: &Connection, target: &Target, caller: usize) -> Result<Self, Failure> {
        let mut connection = connection.clone();
        let head = head(target.server(), "ModelStreamInfer")?;
        let (response, sender) = connection.begin(head).await?;
        let message = framed(&target.payload(caller).message(target.model()));
        Ok(Self {
            _connection: connection,
            sender,
            response: Some(response),
            receiver: None,
            message,
            buffer: BytesMut::new(),
        })
    }

    pub(super) async fn exchange(&mut self, kept: Option<&mut Kept>) -> Result<(), Failure> {
        // Before the head of the answer has come: some servers send it with their first message.
        self.sender.send_data(self.message.clone(), false).map_err(Failure::broken)?;
        if let Some(response) = self.response.take() {
            let (head, body) = opened(response.await)?;
            if head.contains_key("grpc-status") {
                status(&head)?;
            }
            self.receiver = Some(body);
        }
        let message = self.message().await?;
        // Field 1 of the answer is an error, field 2 the response; what is empty is not written. An error names no code.
        if message.first() == Some(&0x0A) {
            return Err(Failure::Refused("stream_error".to_owned()));
        }
        if let Some(kept) = kept {
            kept.body = message.to_vec();
        }
        Ok(())
    }

    /// The next whole message of the stream, without its prefix.
    async fn message(&mut self) -> Result<BytesMut, Failure> {
        let receiver = self.receiver.as_mut().ok_or_else(|| Failure::broken("the stream was refused"))?;
        loop {
            if let Some(length) = self.buffer.get(1..PREFIX).and_then(|mut length| length.try_get_u32().ok())
                && self.buffer.len() >= PREFIX + length as usize
            {
                self.buffer.advance(PREFIX);
                return Ok(self.buffer.split_to(length as usize));
            }
            match receiver.data().await {
                Some(data) => {
                    let data = data.map_err(Failure::broken)?;
                    receiver.flow_control().release_capacity(data.len()).map_err(Failure::broken)?;
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    let trailers = receiver.trailers().await.map_err(Failure::broken)?;
                    status(&trailers.unwrap_or_default())?;
                    return Err(Failure::broken("the server ended the stream"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_status_is_called_by_its_code() {
        assert_eq!(status(&trailers(&[("grpc-status", "0")])), Ok(()));
        let refused = |code: &str| Err(Failure::Refused(code.into()));
        assert_eq!(status(&trailers(&[("grpc-status", "8"), ("error-code", "overloaded")])), refused("overloaded"));
        assert_eq!(status(&trailers(&[("grpc-status", "12")])), refused("grpc_12"));
        assert_eq!(status(&trailers(&[])).unwrap_err().code(), "connection");
    }

    #[test]
    fn a_message_has_its_length_before_it() {
        let message = crate::wire::proto::inference::ModelMetadataRequest { name: "m".into(), version: String::new() };
        assert_eq!(&framed(&message)[..], [0, 0, 0, 0, 3, 0x0A, 1, b'm']);
    }
}

//! A stream of lines: `POST /v2/stream` over HTTP/2.

use super::{Failure, grpc, http1, messages::Link};
use crate::bench::source::Target;
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::Request;
use std::task::{Context, Poll, ready};

/// One stream on a connection of its own.
pub(super) struct Stream {
    _connection: grpc::Connection,
    sender: SendStream<Bytes>,
    receiver: RecvStream,
    buffer: BytesMut,
    /// Bytes of the buffer in which there is no end of a line.
    searched: usize,
}

impl Stream {
    /// Opens the stream and waits for its head.
    pub(super) async fn open(target: &Target) -> Result<Self, Failure> {
        let mut connection = grpc::Connection::open(&target.server().address).await?;
        let mut head = Request::post(format!("{}/v2/stream", target.server().address))
            .header("content-type", "application/x-ndjson");
        if let Some(authorization) = &target.server().authorization {
            head = head.header("authorization", authorization);
        }
        let (response, sender) = connection.begin(head.body(()).map_err(Failure::broken)?).await?;
        let response = response.await.map_err(Failure::broken)?;
        let status = response.status().as_u16();
        let mut receiver = response.into_body();
        if status != 200 {
            let mut body = Vec::new();
            while let Some(Ok(data)) = receiver.data().await {
                body.extend_from_slice(&data);
            }
            return Err(Failure::Refused(http1::refusal(status, &body)));
        }
        Ok(Self { _connection: connection, sender, receiver, buffer: BytesMut::new(), searched: 0 })
    }
}

impl Link for Stream {
    fn poll_send(&mut self, _: &mut Context<'_>, message: &Bytes) -> Poll<Result<(), Failure>> {
        // h2 keeps what the window has no room for; each caller has one message, so that is bounded.
        Poll::Ready(self.sender.send_data(message.clone(), false).map_err(Failure::broken))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Failure>> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Poll::Ready(Ok(line.freeze()));
            }
            self.searched = self.buffer.len();
            match ready!(self.receiver.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.receiver.flow_control().release_capacity(data.len()).map_err(Failure::broken)?;
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Poll::Ready(Err(Failure::broken(error))),
                None => return Poll::Ready(Err(Failure::broken("the server ended the stream"))),
            }
        }
    }
}

//! `ModelStreamInfer`: the duplex loop over messages of the V2 protocol (contract 02 section 4).
//!
//! Knows messages and not their bytes: the method table opens the stream, limits its body and renders a refusal.

use crate::{
    call::{Credentials, Head},
    error::Error,
    frontend::Connection,
    wire::proto::inference::{ModelInferRequest, ModelStreamInferResponse},
};
use futures_util::Stream;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Status, codec::Streaming};

/// What the client reads: one message per answer, and a status if the stream itself fails.
#[derive(Debug)]
pub(super) struct Answers;

impl Stream for Answers {
    type Item = Result<ModelStreamInferResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

/// Opens a stream: asks the stack who is calling, and from then on makes every message a call.
///
/// `head` is the opening's own, of intent `inspect`, with `grpc-timeout` as its wish, which bounds the whole stream;
/// `strict` says that the metadata has `triton_grpc_error: true`: the first failure then ends the stream.
/// The caller has asked the address gate. The session ends when the answers are dropped.
///
/// # Errors
///
/// What the stack answers to the opening; nothing has been sent then.
pub(super) async fn serve(
    connection: Arc<Connection>,
    head: Head,
    sender: Credentials,
    strict: bool,
    messages: Streaming<ModelInferRequest>,
) -> Result<Answers, Error> {
    let _ = (connection, head, sender, strict, messages);
    Err(Error::Unimplemented("method `ModelStreamInfer` is not part of this version".into()))
}

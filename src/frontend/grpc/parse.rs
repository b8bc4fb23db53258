//! A message that was cut out of its body becomes what its type says: weighed first, then decoded, off the lane if that is
//! much work.
//!
//! The one place where bytes of a caller meet prost, for single messages and those of streams, compressed or not.

use super::single::{Decoding, malformed};
use crate::{
    error::Error,
    frontend::{
        Connection,
        body::{self, Reservation},
    },
    wire::weight::{Weighed, too_deep, weigh},
};
use bytes::{Buf, Bytes};
use prost::Message;
use std::sync::Arc;
use tonic::{
    Status,
    codec::{DecodeBuf, Decoder},
};

/// What a message must be to be parsed.
pub(super) trait Readable: Message + Weighed + Default + 'static {}

impl<M: Message + Weighed + Default + 'static> Readable for M {}

/// A message that is decoded, and counted.
pub(super) struct Parsed<M> {
    pub(super) message: M,
    /// Bytes that it had on the wire.
    pub(super) length: usize,
    /// Counts these bytes, which raw tensors are slices of.
    pub(super) whole: Option<Reservation>,
    /// Counts what was made of them: lists, and texts.
    pub(super) made: Option<Reservation>,
    /// Whether this is not a lane: what is much work can as well be done here.
    pub(super) off_lane: bool,
}

/// Decodes `message` and hands it to `then`, both off the lane if it is more than a little work to decode.
///
/// Resolves to what `then` makes of it; [`Error::MalformedMessage`], as [`Memory`](body::Memory) if the budget has no room
/// for it, [`Error::Overloaded`] if too much is being decoded, [`too_deep`], or what
/// [`weigh`] answers.
pub(super) fn parse<M: Readable, T: Send + 'static>(
    connection: &Arc<Connection>,
    message: Bytes,
    then: impl FnOnce(&Arc<Connection>, Parsed<M>) -> Decoding<T> + Send + 'static,
) -> Decoding<T> {
    let weight = match weigh::<M>(&message, &connection.frontend.settings.wire, body::is_small) {
        Ok(weight) => weight,
        Err(error) => return Decoding::Now(Err(error)),
    };
    let whole = match connection.frontend.memory.reserve_large(message.len()) {
        Ok(whole) => whole,
        Err(error) => return Decoding::Now(Err(error)),
    };
    if let Some(weight) = weight {
        return match decode(connection, message, weight.bytes, whole, false) {
            Ok(parsed) => then(connection, parsed),
            Err(error) => Decoding::Now(Err(error)),
        };
    }
    let connection = Arc::clone(connection);
    Decoding::Later(Box::pin(async move {
        let work = move || {
            // Nothing is too much here.
            let weight = weigh::<M>(&message, &connection.frontend.settings.wire, |_| true)?.unwrap_or_default();
            let parsed = decode(&connection, message, weight.bytes, whole, true)?;
            Ok(then(&connection, parsed))
        };
        // Of a size that is never small: how much it is was not counted to the end.
        body::offload(usize::MAX, work).await?.wait().await
    }))
}

fn decode<M: Readable>(
    connection: &Connection,
    message: Bytes,
    made: usize,
    whole: Option<Reservation>,
    off_lane: bool,
) -> Result<Parsed<M>, Error> {
    let held = whole.as_ref().map_or(0, Reservation::bytes);
    let made = connection.frontend.memory.beside(held).reserve_large(made)?;
    let length = message.len();
    let message = M::decode(message).map_err(|error| too_deep(&error).unwrap_or_else(|| malformed(&error)))?;
    Ok(Parsed { message, length, whole, made, off_lane })
}

/// Takes messages out of tonic's streams as they came: [`parse`] is for them too.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Whole;

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;

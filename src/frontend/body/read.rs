//! Reads a request's body: within the limit, the memory budget and the stall timer, into aligned bytes.

use super::memory::{FREE, Memory, Reservation};
use crate::{
    error::Error,
    frontend::{Connection, Settings},
    tensor::view,
};
use bytes::Bytes;
use http_body::{Body, Frame};
use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

/// Alignment of the first raw tensor: that of the largest element types.
const ALIGNMENT: usize = 8;
/// What a buffer starts with, however long the body claims to be: memory follows the bytes that really came.
const FIRST: usize = 1 << 20;
/// A frame below this size counts as a chunk that costs more than it carries (`limits.size.chunks`).
const CRUMB: usize = 1024;
/// What hyper's errors about trailers beyond its own limits begin with; it has no other name for them.
const TRAILERS: &str = "chunk trailer";

/// Reads the whole body of a request: within `limits.size.body`, the memory budget and `read_stall`.
///
/// The bytes lie on 8, `offset` bytes after their start (the length of a JSON header, so that the
/// first raw tensor behind it is aligned). With an `offset` of 0 there is no tail and no alignment is promised.
/// The bytes count against the memory budget until their last slice is dropped; see [`Memory`] for small ones.
///
/// # Errors
///
/// [`Error::TooLarge`], as [`Memory`] if the budget has no room, [`Error::BodyStalled`], [`Error::InvalidRequest`] for
/// broken or excessive chunks, [`Error::TrailersTooLarge`], or [`Error::Cancelled`] if the client went away.
pub async fn read(body: hyper::body::Incoming, offset: usize, connection: &Connection) -> Result<Bytes, Error> {
    let limits = Limits::of(&connection.frontend.settings);
    collect(body, offset, limits, &connection.frontend.memory).await
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    body: usize,
    chunks: usize,
    trailer_fields: usize,
    stall: Duration,
}

impl Limits {
    pub(super) fn of(settings: &Settings) -> Self {
        let size = settings.size;
        Self {
            body: size.body,
            chunks: size.chunks,
            trailer_fields: size.trailer_fields,
            stall: settings.timers.read_stall,
        }
    }

    fn too_large(self) -> Error {
        Error::TooLarge { limit: self.body as u64 }
    }
}

async fn collect<B>(mut body: B, offset: usize, limits: Limits, memory: &Memory) -> Result<Bytes, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let declared = body.size_hint().exact();
    if let Some(length) = declared {
        // Early, so that nothing of a body that cannot be taken is read (contract 10 section 5).
        let length = usize::try_from(length).ok().filter(|length| *length <= limits.body);
        let length = length.ok_or_else(|| limits.too_large())?;
        memory.expect(length)?;
    }
    let Some(first) = next_data(&mut body, limits).await? else { return Ok(Bytes::new()) };
    if first.len() > limits.body {
        return Err(limits.too_large());
    }
    let whole = body.is_end_stream() || declared == Some(first.len() as u64);
    let tail = offset > 0 && offset < first.len();
    if whole && (!tail || view::is_aligned(&first[offset..], ALIGNMENT)) {
        return memory.hold(first);
    }

    let mut buffer = Buffer::new(offset, declared, limits, memory);
    buffer.push(&first)?;
    drop(first);
    if !whole {
        let mut crumbs = 0;
        while let Some(data) = next_data(&mut body, limits).await? {
            // A declared length has no chunks; its frames are as small as the network makes them.
            crumbs += usize::from(declared.is_none() && data.len() < CRUMB);
            if crumbs > limits.chunks {
                return Err(Error::invalid("the body has too many small chunks"));
            }
            buffer.push(&data)?;
        }
    }
    Ok(buffer.finish())
}

/// The next piece of data; `None` at the end. Trailers are looked at only to bound them.
async fn next_data<B>(body: &mut B, limits: Limits) -> Result<Option<Bytes>, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    loop {
        let Some(frame) = next_frame(body, limits.stall).await? else { return Ok(None) };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => return Ok(Some(data)),
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                if trailers.len() > limits.trailer_fields {
                    return Err(Error::TrailersTooLarge);
                }
            }
        }
    }
}

async fn next_frame<B>(body: &mut B, stall: Duration) -> Result<Option<Frame<Bytes>>, Error>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Most bodies arrive with their head: asked once without a timer, which would cost more than the body.
    let once = poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending => Poll::Ready(None),
    });
    let frame = match once.await {
        Some(frame) => frame,
        // Boxed: the timer is over-aligned, and would make every call's future so.
        None => Box::pin(tokio::time::timeout(stall, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))))
            .await
            .map_err(|_| Error::BodyStalled)?,
    };
    frame.transpose().map_err(|error| broken(error.into().as_ref()))
}

/// What a body that broke off says about the client: malformed chunks are its fault, the rest is its absence.
fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    tracing::debug!(%error, "a request body broke off");
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            // hyper's chunk decoder says so; a connection that is gone has other kinds.
            if matches!(error.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData) {
                if error.to_string().starts_with(TRAILERS) {
                    return Error::TrailersTooLarge;
                }
                return Error::invalid("the body's chunked coding is malformed");
            }
        }
        cause = error.source();
    }
    Error::Cancelled
}

/// Bytes of a body as they come, placed so that `offset` lies on [`ALIGNMENT`].
pub(super) struct Buffer<'a> {
    bytes: Vec<u8>,
    /// Unused bytes before the body, which move `offset` to where it should lie.
    pad: usize,
    offset: usize,
    limits: Limits,
    memory: &'a Memory,
    reservation: Option<Reservation>,
    /// What the buffer may grow to at once.
    most: usize,
}

// === impl Buffer ===

impl<'a> Buffer<'a> {
    pub(super) fn new(offset: usize, declared: Option<u64>, limits: Limits, memory: &'a Memory) -> Self {
        let most = declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(limits.body).min(limits.body);
        let first = if declared.is_some() { most.min(FIRST) } else { FREE.min(most) };
        let mut bytes = Vec::<u8>::with_capacity(first + ALIGNMENT);
        // Allocators give memory on 8 for sizes like these, and keep it there when it grows; `finish` checks.
        let pad = (ALIGNMENT - (bytes.as_ptr().addr().wrapping_add(offset)) % ALIGNMENT) % ALIGNMENT;
        bytes.resize(pad, 0);
        Self { bytes, pad, offset, limits, memory, reservation: None, most: most + ALIGNMENT }
    }

    pub(super) fn push(&mut self, data: &[u8]) -> Result<(), Error> {
        let length = self.bytes.len() - self.pad;
        if data.len() > self.limits.body - length {
            return Err(self.limits.too_large());
        }
        let total = length + data.len();
        match &mut self.reservation {
            Some(reservation) => reservation.grow(data.len())?,
            None if total > FREE => self.reservation = Some(self.memory.reserve(total)?),
            None => {}
        }
        let needed = self.bytes.len() + data.len();
        if needed > self.bytes.capacity() {
            let wanted = needed.max((2 * self.bytes.capacity()).min(self.most));
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    pub(super) fn finish(self) -> Bytes {
        let Self { bytes, pad, offset, reservation, .. } = self;
        let start = (pad + offset).min(bytes.len());
        let tail = offset > 0 && start < bytes.len();
        let aligned = !tail || view::is_aligned(&bytes[start..], ALIGNMENT);
        let bytes = match reservation {
            Some(reservation) => reservation.keep(bytes),
            None => Bytes::from(bytes),
        };
        let body = bytes.slice(pad..);
        if aligned { body } else { realigned(&body, offset) }
    }
}

/// The slow way, for an allocator that moved the buffer off its alignment.
fn realigned(body: &[u8], offset: usize) -> Bytes {
    let pad = (ALIGNMENT - offset % ALIGNMENT) % ALIGNMENT;
    let mut padded = vec![0; pad];
    padded.extend_from_slice(body);
    view::aligned_copy(&padded).slice(pad..)
}

#[cfg(test)]
mod tests;

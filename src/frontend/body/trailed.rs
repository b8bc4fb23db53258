//! A body of frames that are all there, and trailers.

use super::Reservation;
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

/// Frames, then trailers. Its length is not told: a body with trailers has no `content-length`.
#[derive(Debug)]
pub struct Trailed {
    first: Bytes,
    /// Boxed, so that what has one small frame, which is most, is moved cheaply.
    more: Option<Box<More>>,
    trailers: Option<fn() -> HeaderMap>,
}

#[derive(Debug)]
struct More {
    frames: std::vec::IntoIter<Bytes>,
    /// Held until all frames are handed over.
    _reservation: Option<Reservation>,
}

// === impl Trailed ===

impl Trailed {
    /// `first`, then `frames`, then what `trailers` makes. `reservation` counts them until the last of them is handed
    /// over, which is when whoever sends them asks for the trailers.
    pub fn new(
        first: Bytes,
        frames: Vec<Bytes>,
        reservation: Option<Reservation>,
        trailers: fn() -> HeaderMap,
    ) -> Self {
        let more = (!frames.is_empty() || reservation.is_some())
            .then(|| Box::new(More { frames: frames.into_iter(), _reservation: reservation }));
        Self { first, more, trailers: Some(trailers) }
    }

    /// The next frame; none is empty.
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        if !self.first.is_empty() {
            return Some(Frame::data(std::mem::take(&mut self.first)));
        }
        if let Some(data) = self.more.as_mut().and_then(|more| more.frames.find(|data| !data.is_empty())) {
            return Some(Frame::data(data));
        }
        self.more = None;
        self.trailers.take().map(|trailers| Frame::trailers(trailers()))
    }

    /// Whether the trailers are handed over too.
    pub(super) fn is_over(&self) -> bool {
        self.trailers.is_none()
    }
}

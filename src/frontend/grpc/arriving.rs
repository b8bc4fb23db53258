//! The message on its way in: the stall timer and the memory budget between hyper and whoever cuts it out.
//!
//! It sees where a message ends and not what it is; the limit on one message is its reader's.

use super::single;
use crate::{
    call::Surface,
    error::Error,
    frontend::{Connection, body::Reservation},
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

/// The prefix of a message: a flag and its length (contract 05 section 1.2).
pub(super) const PREFIX: usize = 5;

/// While what is awaited `timers.read_stall` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Always: the request is one message.
    Throughout,
    /// Only within a message: between two of them a stream may be silent.
    WithinMessages,
}

/// A request's body within `timers.read_stall` and `concurrency.memory`. It fails with our own [`Error`].
pub(super) struct Arriving<B> {
    body: B,
    connection: Arc<Connection>,
    wait: Wait,
    /// Whether each message is its reader's once it is whole, who counts it from then on.
    hands_over: bool,
    received: usize,
    framing: Framing,
    reservation: Option<Reservation>,
    /// Armed only while nothing comes: most messages arrive with their head.
    stall: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<B> Arriving<B> {
    pub(super) fn new(body: B, connection: Arc<Connection>, wait: Wait) -> Self {
        let (framing, hands_over) = (Framing::default(), wait == Wait::WithinMessages);
        Self {
            body,
            connection,
            wait,
            hands_over,
            received: 0,
            framing,
            reservation: None,
            stall: None,
            waiting: false,
        }
    }

    /// The same for a reader that counts each message once it is whole, as those of a stream are counted.
    pub(super) fn handing_over(mut self) -> Self {
        self.hands_over = true;
        self
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let moment = || Instant::now() + self.connection.frontend.settings.timers.read_stall;
        let stall = match &mut self.stall {
            None => self.stall.insert(Box::pin(sleep_until(moment()))),
            Some(stall) => {
                if !self.waiting {
                    stall.as_mut().reset(moment());
                }
                stall
            }
        };
        self.waiting = true;
        stall.as_mut().poll(cx)
    }

    /// The error of a body that ends here, if that is within a message or its prefix. It is told once.
    fn cut_off(&mut self) -> Option<Error> {
        let held = std::mem::take(&mut self.framing.held);
        (held > 0).then(|| single::malformed(&format_args!("it ends after {held} bytes, its prefix included")))
    }

    /// Counts what its reader holds: the message that is being received.
    fn count(&mut self, data: &[u8]) -> Result<(), Error> {
        self.received += data.len();
        let mut total = self.received;
        let before = self.framing.held;
        self.framing.feed(data);
        if self.hands_over {
            total = before + data.len();
            if self.framing.held < total {
                // A message ended in here; what is left is the beginning of the next.
                total = self.framing.held;
                self.reservation = None;
            }
        }
        self.connection.frontend.memory.cover(&mut self.reservation, total)
    }
}

impl<B> Body for Arriving<B>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending if this.wait == Wait::WithinMessages && this.framing.held == 0 => {
                this.waiting = false;
                return Poll::Pending;
            }
            Poll::Pending => return this.poll_stall(cx).map(|()| Some(Err(Error::BodyStalled))),
        };
        this.waiting = false;
        let Some(frame) = frame else { return Poll::Ready(this.cut_off().map(Err)) };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        let checked = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => this.count(data),
            (None, Some(fields)) if fields.len() > this.connection.frontend.settings.size.trailer_fields => {
                Err(Error::TrailersTooLarge)
            }
            (None, _) => this.cut_off().map_or(Ok(()), Err),
        };
        Poll::Ready(Some(checked.map(|()| frame)))
    }

    fn is_end_stream(&self) -> bool {
        // Within a message it is asked for more, to be told that there is none.
        self.framing.held == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.connection.frontend.metrics.body_received(Surface::Grpc, self.received as u64);
    }
}

/// Where in a message the body is.
#[derive(Debug, Default)]
struct Framing {
    /// Bytes received of the current message, its prefix included; 0 between two messages.
    held: usize,
    prefix: [u8; PREFIX],
}

// === impl Framing ===

impl Framing {
    fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.held < PREFIX {
                let taken = data.len().min(PREFIX - self.held);
                self.prefix[self.held..self.held + taken].copy_from_slice(&data[..taken]);
                self.held += taken;
                data = &data[taken..];
                if self.held < PREFIX {
                    return;
                }
            }
            let left = self.length() - self.held;
            let taken = data.len().min(left);
            self.held += taken;
            data = &data[taken..];
            if taken == left {
                self.held = 0;
            }
        }
    }

    /// Of the whole message; its prefix is there.
    fn length(&self) -> usize {
        let [_, length @ ..] = self.prefix;
        PREFIX + u32::from_be_bytes(length) as usize
    }
}

/// What tonic says about a message, in our words. `limit` is the one that tonic was given, in bytes.
pub(super) fn error(status: &Status, limit: usize) -> Error {
    let ours = std::error::Error::source(status).and_then(|source| source.downcast_ref::<Error>());
    match (ours, status.code()) {
        (Some(error), _) => error.clone(),
        // tonic says so of nothing else (contract 05 section 1.5).
        (None, tonic::Code::OutOfRange | tonic::Code::ResourceExhausted) => Error::TooLarge { limit: limit as u64 },
        (None, tonic::Code::Internal) => single::malformed(&status.message()),
        (None, _) => Error::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::{Settings, grpc::fixture::world};
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::sync::mpsc;

    type Sender = mpsc::Sender<Bytes>;

    fn arriving(wait: Wait, memory: usize) -> (Sender, Arriving<impl Body<Data = Bytes, Error = Error> + Unpin>) {
        let mut settings = Settings::default();
        settings.concurrency.memory = memory;
        let world = world(settings, |_| async { Err(Error::Cancelled) });
        let (sender, mut receiver) = mpsc::channel::<Bytes>(16);
        let frames = futures_util::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
        });
        (sender, Arriving::new(StreamBody::new(frames), world.connection, wait))
    }

    async fn silence(wait: Wait, sent: &'static [u8]) -> Option<Result<Frame<Bytes>, Error>> {
        let (sender, mut arriving) = arriving(wait, 1 << 20);
        sender.send(Bytes::from_static(sent)).await.unwrap();
        arriving.frame().await.unwrap().unwrap();
        let next = tokio::time::timeout(Duration::from_secs(3600), arriving.frame()).await;
        drop(sender);
        next.ok().flatten()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_silent_between_messages_and_not_within_one() {
        assert!(silence(Wait::WithinMessages, &[0, 0, 0, 0, 1, 7]).await.is_none());
        for within in [&[0, 0][..], &[0, 0, 0, 0, 2, 7]] {
            assert!(matches!(silence(Wait::WithinMessages, within).await, Some(Err(Error::BodyStalled))));
        }
        assert!(matches!(silence(Wait::Throughout, &[0, 0, 0, 0, 1, 7]).await, Some(Err(Error::BodyStalled))));
    }

    #[tokio::test]
    async fn a_body_ends_between_messages_or_is_malformed() {
        for wait in [Wait::Throughout, Wait::WithinMessages] {
            let whole = [0, 0, 0, 0, 1, 7];
            for (cut, held) in [(0, None), (1, Some(1)), (4, Some(4)), (5, Some(5)), (6, None)] {
                let (sender, arriving) = arriving(wait, 1 << 20);
                for data in [&whole[..], &whole[..cut]] {
                    sender.send(Bytes::copy_from_slice(data)).await.unwrap();
                }
                drop(sender);
                let ended = arriving.collect().await.map(drop).map_err(|error| error.to_string());
                let text = |held| format!("malformed gRPC message: it ends after {held} bytes, its prefix included");
                assert_eq!(ended.err(), held.map(text), "{wait:?} {cut}");
            }
        }
    }

    #[tokio::test]
    async fn a_stream_gives_its_memory_back_with_each_message() {
        let (sender, mut arriving) = arriving(Wait::WithinMessages, 300_000);
        let mut message = vec![0; PREFIX + 200_000];
        message[1..PREFIX].copy_from_slice(&200_000_u32.to_be_bytes());
        for _ in 0..5 {
            for piece in message.chunks(50_000) {
                sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
                arriving.frame().await.unwrap().unwrap();
            }
        }
        assert_eq!(arriving.connection.frontend.memory.used(), 0);
    }

    proptest! {
        #[test]
        fn messages_end_where_they_end_however_they_are_cut(
            lengths in proptest::collection::vec(0_usize..40, 1..8),
            cuts in proptest::collection::vec(1_usize..20, 1..60),
        ) {
            let mut bytes = Vec::new();
            for length in &lengths {
                bytes.push(0);
                bytes.extend(u32::try_from(*length).unwrap().to_be_bytes());
                bytes.extend(std::iter::repeat_n(9, *length));
            }
            let mut framing = Framing::default();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                framing.feed(piece);
                rest = after;
            }
            prop_assert_eq!(framing.held, 0);
        }
    }
}

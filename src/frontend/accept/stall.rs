//! Responses on their way out: in pieces that flow control can stop, and given up when the reader does not move.
//!
//! hyper asks a body for its next piece only when the last one is on its way. So a stream that was given a piece and is
//! not asked again has a reader that does not read. hyper has no timer for that: the executor, which sees each HTTP/2
//! stream as a future, drops it, and h2 resets the stream (contract 10 section 5, `write_stall`).
//!
//! What writes into a tunnel is such a future too, and its body is nobody's: it has its time once the tunnel's near end is
//! gone, which until then looks after its reader itself.

use super::{patience::InFlight, tunnel::Over};
use crate::frontend::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

thread_local! {
    /// What the body of the stream that is being polled has last said: true if it gave a piece away.
    static SENDING: Cell<Option<bool>> = const { Cell::new(None) };
    /// The tunnel that the stream that is being polled has just agreed to be.
    static OPENED: Cell<Option<Over>> = const { Cell::new(None) };
}

/// The response that is about to be returned makes a tunnel of its stream, until `over`.
///
/// By way of the thread, because hyper hands what writes into the tunnel to its executor with nothing that says whose it
/// is: within the very poll that returned the response.
pub(crate) fn opened(over: Over) {
    OPENED.set(Some(over));
}

/// The body of a response with the request it answers.
#[derive(Debug)]
pub(crate) struct Outgoing {
    body: Body,
    rest: Bytes,
    /// The largest piece, bytes.
    piece: usize,
    _request: InFlight,
}

impl Outgoing {
    /// `body` in pieces of at most `piece` bytes; `request` is in flight until it is handed over.
    pub(crate) fn new(body: Body, piece: usize, request: InFlight) -> Self {
        Self { body, rest: Bytes::new(), piece: piece.max(1), _request: request }
    }

    fn cut(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if data.len() > self.piece {
            self.rest = data.split_off(self.piece);
        }
        Frame::data(data)
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        let polled = if this.rest.is_empty() {
            Pin::new(&mut this.body).poll_frame(cx)
        } else {
            Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.rest)))))
        };
        // A producer that has nothing to give is no reader that does not read.
        SENDING.set(Some(matches!(polled, Poll::Ready(Some(Ok(_))))));
        polled.map(|frame| {
            frame.map(|frame| {
                frame.map(|frame| frame.into_data().map_or_else(|trailers| trailers, |data| this.cut(data)))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        match self.body.size_hint().exact() {
            Some(length) => SizeHint::with_exact(length + rest),
            None => SizeHint::default(),
        }
    }
}

/// Runs the streams of HTTP/2 connections on the lane, each until its reader stalls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    /// `limits.timers.write_stall`.
    pub(super) stall: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let tunnel = OPENED.take();
        tokio::spawn(Stalling { stream, stall: self.stall, since: None, sleep: None, tunnel });
    }
}

pin_project_lite::pin_project! {
    struct Stalling<F> {
        #[pin]
        stream: F,
        stall: Duration,
        // When the reader last took something, while there is more.
        since: Option<Instant>,
        sleep: Option<Pin<Box<Sleep>>>,
        tunnel: Option<Over>,
    }
}

impl<F: Future<Output = ()>> Future for Stalling<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        SENDING.set(None);
        OPENED.set(None);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match SENDING.take() {
            Some(true) => *this.since = Some(Instant::now()),
            Some(false) => *this.since = None,
            None => {}
        }
        if let Some(over) = this.tunnel
            && Pin::new(over).poll(cx).is_ready()
        {
            (*this.tunnel, *this.since) = (None, Some(Instant::now()));
        }
        let Some(since) = *this.since else { return Poll::Pending };
        let end = since + *this.stall;
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep(*this.stall)));
        if sleep.deadline() < end {
            sleep.as_mut().reset(end);
        }
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        tracing::debug!("a stream was reset: its reader does not read");
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{patience::Activity, tunnel::Hold},
        *,
    };
    use http_body::Body as _;
    use http_body_util::BodyExt;
    use std::sync::Arc;

    fn outgoing(body: Body, piece: usize) -> Outgoing {
        Outgoing::new(body, piece, Arc::new(Activity::default()).begin())
    }

    #[test]
    fn what_hyper_moves_stays_small() {
        assert!(size_of::<Outgoing>() <= 104, "{}", size_of::<Outgoing>());
    }

    #[tokio::test]
    async fn large_frames_leave_in_pieces() {
        let mut body = outgoing(Body::Full(Bytes::from(vec![1; 10])), 4);
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
            assert_eq!(body.size_hint().exact(), Some(10 - sizes.iter().sum::<usize>() as u64));
        }
        assert_eq!(sizes, [4, 4, 2]);
        assert!(body.is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_given_up_only_while_its_reader_owes_us_progress() {
        let stall = Duration::from_secs(30);
        let stalled = |mut body: Outgoing| Stalling {
            stream: async move {
                let _ = body.frame().await;
                std::future::pending::<()>().await;
            },
            stall,
            since: None,
            sleep: None,
            tunnel: None,
        };
        let start = Instant::now();
        stalled(outgoing(Body::Full(Bytes::from_static(b"abc")), 1)).await;
        assert_eq!(start.elapsed(), stall);

        let (_sender, receiver) = tokio::sync::mpsc::channel(1);
        let silent = stalled(outgoing(Body::Channel(receiver), 1));
        assert!(tokio::time::timeout(stall * 2, silent).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_writes_into_a_tunnel_has_its_time_once_the_near_end_is_gone() {
        let (hold, over) = Hold::new(Arc::new(Activity::default()).begin());
        let stall = Duration::from_secs(30);
        let stream = std::future::pending::<()>();
        let mut writing = std::pin::pin!(Stalling { stream, stall, since: None, sleep: None, tunnel: Some(over) });
        assert!(tokio::time::timeout(stall * 2, writing.as_mut()).await.is_err());
        drop(hold);
        let start = Instant::now();
        writing.await;
        assert_eq!(start.elapsed(), stall);
    }
}

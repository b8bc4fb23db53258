//! Large decodes and encodes, and what else would hold a lane up: a few threads with a bounded queue
//! (`runtime.decode_threads`), and as many others for work that comes in pieces, so that it holds up no decode.
//!
//! Two pools per process, like the lanes whose time they save. What is decoded they do not know.

use crate::error::{Error, Limit};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};
use tokio::sync::oneshot;

/// Decodes up to this size run on the lane: some 0.5 ms of JSON (architecture section 10).
const INLINE: usize = 256 * 1024;
/// Decodes that wait, per process. Each holds a body that was counted by the memory budget.
const QUEUE: usize = 256;
/// Bytes of JSON for each byte of a tensor, roughly: what the size of outputs as text is guessed by.
pub const TEXT: usize = 2;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Pool {
    queue: SyncSender<Work>,
    /// Works in pieces that are under way.
    seated: Arc<AtomicUsize>,
}

static POOL: OnceLock<Pool> = OnceLock::new();
/// For works in pieces.
static PIECES: OnceLock<Pool> = OnceLock::new();

/// Work that is done piece by piece, each behind those of others that wait: who has much to do holds nobody up for longer
/// than a piece takes.
#[derive(Debug)]
pub struct InPieces {
    pool: &'static Pool,
    seat: Arc<Seat>,
}

/// A place among the works in pieces, so that each of their pieces has one in the queue. Held by the piece that waits too.
#[derive(Debug)]
struct Seat(Arc<AtomicUsize>);

/// Starts the decoding threads (`runtime.decode_threads`, at least 1) and as many for works in pieces, once per process.
///
/// Without it, the first large decode starts one thread, and so does the first piece. Later calls change nothing.
pub fn start_decoders(threads: usize) {
    POOL.get_or_init(|| Pool::start("decode", threads.max(1)));
    PIECES.get_or_init(|| Pool::start("piece", threads.max(1)));
}

/// Whether [`offload`] would run work of this size where it is called.
pub fn is_small(size: usize) -> bool {
    size <= INLINE
}

/// Runs `decode` here if `size` is small, else on the decoding threads (`runtime.decode_threads`).
///
/// # Errors
///
/// Whatever `decode` answers; [`Error::Overloaded`] if too many decodes wait already.
pub async fn offload<T: Send + 'static>(
    size: usize,
    decode: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if is_small(size) {
        return decode();
    }
    POOL.get_or_init(|| Pool::start("decode", 1)).run(|_| decode()).await
}

// === impl InPieces ===

impl InPieces {
    /// Takes a place for a work, which is given back when it is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] if too many are under way.
    pub fn begin() -> Result<Self, Error> {
        Self::in_pool(PIECES.get_or_init(|| Pool::start("piece", 1)))
    }

    fn in_pool(pool: &'static Pool) -> Result<Self, Error> {
        let grown = |seated: usize| (seated < QUEUE).then_some(seated + 1);
        match pool.seated.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown) {
            Ok(_) => Ok(Self { pool, seat: Arc::new(Seat(Arc::clone(&pool.seated))) }),
            Err(_) => Err(Error::Overloaded { limit: Limit::Pieces }),
        }
    }

    /// Does the next piece on a thread. It is told how to ask whether anybody still waits for it: false once this future
    /// was dropped, which ends the work after the piece at the latest.
    ///
    /// # Errors
    ///
    /// Whatever `piece` answers.
    pub async fn next<T: Send + 'static>(
        &self,
        piece: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let seat = Arc::clone(&self.seat);
        let done = self.pool.run(move |wanted| {
            let _seat = seat;
            piece(wanted)
        });
        done.await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

// === impl Pool ===

impl Pool {
    fn start(name: &str, threads: usize) -> Self {
        let (queue, work) = sync_channel(QUEUE);
        let work: &'static Mutex<Receiver<Work>> = Box::leak(Box::new(Mutex::new(work)));
        for index in 0..threads {
            let spawned = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
                // The lock is held while waiting, never while decoding: the next thread waits for its turn.
                while let Ok(decode) = next(work) {
                    decode();
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "cannot start a decoding thread");
            }
        }
        Self { queue, seated: Arc::default() }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move || {
            if sender.is_closed() {
                return;
            }
            let wanted = || !sender.is_closed();
            let result = catch_unwind(AssertUnwindSafe(|| work(&wanted)))
                .unwrap_or_else(|_| Err(Error::internal("a decoder panicked, see the log before this line")));
            // The caller may have gone: then nobody wants the result.
            let _ = sender.send(result);
        });
        self.queue.try_send(work).map_err(|_| Error::Overloaded { limit: Limit::Decoding })?;
        receiver.await.unwrap_or_else(|_| Err(Error::internal("a decoding thread is gone")))
    }
}

fn next(work: &Mutex<Receiver<Work>>) -> Result<Work, std::sync::mpsc::RecvError> {
    work.lock().unwrap_or_else(PoisonError::into_inner).recv()
}

/// Keeps the decoding threads of a test process from their work until it is dropped; there is one.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Busy {
    _release: std::sync::mpsc::Sender<()>,
}

#[cfg(test)]
impl Busy {
    /// Returns once the decoding thread waits.
    pub(crate) async fn begin() -> Self {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (running, runs) = oneshot::channel();
        tokio::spawn(offload(usize::MAX, move || {
            let _ = running.send(());
            // It is never sent, only dropped.
            let _ = released.recv();
            Ok(())
        }));
        runs.await.expect("the decoding thread takes the work");
        Self { _release: release }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread() -> Result<Option<String>, Error> {
        Ok(std::thread::current().name().map(str::to_owned))
    }

    #[tokio::test]
    async fn only_large_decodes_leave_the_thread() {
        assert_eq!(offload(INLINE, thread).await.unwrap(), thread().unwrap());
        assert!(offload(INLINE + 1, thread).await.unwrap().unwrap().starts_with("decode-"));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_lives_on() {
        let pool = Pool::start("decode", 1);
        let panicked = pool.run::<()>(|_| panic!("bad decoder")).await.unwrap_err();
        assert!(matches!(panicked, Error::Internal(_)));
        assert!(pool.run(|_| Ok(7)).await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_refuses() {
        let pool = Pool::start("decode", 1);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (running, runs) = oneshot::channel();
        let first = pool.run(move |_| {
            let _ = running.send(());
            wait.recv().map_err(|_| Error::Cancelled)
        });
        let mut first = std::pin::pin!(first);
        tokio::select! { biased; _ = &mut first => unreachable!(), _ = runs => {} }
        let mut waiting: Vec<_> = (0..QUEUE).map(|_| Box::pin(pool.run(|_| Ok(())))).collect();
        for future in &mut waiting {
            assert!(futures_util::FutureExt::now_or_never(future.as_mut()).is_none());
        }
        assert!(matches!(pool.run(|_| Ok(())).await, Err(Error::Overloaded { .. })));
        release.send(()).unwrap();
        first.await.unwrap();
    }
    /// A pool of one thread that stands still until the sender is dropped.
    async fn held() -> (&'static Pool, std::sync::mpsc::Sender<()>) {
        let pool: &'static Pool = Box::leak(Box::new(Pool::start("piece", 1)));
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (running, runs) = oneshot::channel();
        tokio::spawn(pool.run(move |_| {
            let _ = running.send(());
            let _ = wait.recv();
            Ok(())
        }));
        runs.await.unwrap();
        (pool, release)
    }

    #[tokio::test]
    async fn whoever_comes_waits_for_a_piece_of_another_and_not_for_all_of_it() {
        let (pool, release) = held().await;
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        let work = |name: &'static str, pieces: usize| {
            let (sender, work) = (sender.clone(), InPieces::in_pool(pool).unwrap());
            Box::pin(async move {
                for _ in 0..pieces {
                    let sender = sender.clone();
                    work.next(move |_| sender.send(name).map_err(|_| Error::Cancelled)).await.unwrap();
                }
            })
        };
        let (mut long, mut short) = (work("long", 4), work("short", 1));
        // Both stand in the queue, the long one before.
        assert!(futures_util::poll!(&mut long).is_pending());
        assert!(futures_util::poll!(&mut short).is_pending());
        drop(release);
        tokio::join!(long, short);
        let found: Vec<_> = std::iter::from_fn(|| order.try_recv().ok()).collect();
        assert_eq!(found, ["long", "short", "long", "long", "long"]);
    }

    #[tokio::test]
    async fn a_piece_that_nobody_waits_for_hears_of_it() {
        let pool: &'static Pool = Box::leak(Box::new(Pool::start("piece", 1)));
        let (running, runs) = oneshot::channel();
        let (stopped, stops) = oneshot::channel();
        let work = InPieces::in_pool(pool).unwrap();
        let mut piece = Box::pin(work.next(move |wanted| {
            let _ = running.send(wanted());
            while wanted() {
                std::thread::yield_now();
            }
            stopped.send(()).map_err(|()| Error::Cancelled)
        }));
        assert!(futures_util::poll!(&mut piece).is_pending());
        assert!(runs.await.unwrap());
        drop(piece);
        stops.await.unwrap();
    }

    #[tokio::test]
    async fn works_in_pieces_are_counted_until_their_last_piece_has_left_the_queue() {
        let (pool, release) = held().await;
        let first = InPieces::in_pool(pool).unwrap();
        let others: Vec<_> = (1..QUEUE).map(|_| InPieces::in_pool(pool).unwrap()).collect();
        assert!(matches!(InPieces::in_pool(pool), Err(Error::Overloaded { .. })));
        let mut piece = Box::pin(first.next(|_| Ok(())));
        assert!(futures_util::poll!(&mut piece).is_pending());
        drop(piece);
        drop(first);
        assert!(InPieces::in_pool(pool).is_err(), "its piece is in the queue");
        drop(release);
        while pool.seated.load(Ordering::Acquire) >= QUEUE {
            tokio::task::yield_now().await;
        }
        drop(others);
    }

    #[tokio::test]
    async fn decodes_do_not_wait_for_pieces() {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (running, runs) = oneshot::channel();
        let work = InPieces::begin().unwrap();
        let piece = tokio::spawn(async move {
            let piece = work.next(move |_| {
                let _ = running.send(());
                let _ = wait.recv();
                Ok(())
            });
            piece.await
        });
        runs.await.unwrap();
        assert!(offload(INLINE + 1, thread).await.unwrap().unwrap().starts_with("decode-"));
        drop(release);
        piece.await.unwrap().unwrap();
    }
}

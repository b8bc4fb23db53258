//! Large decodes, off the lane: a few threads with a bounded queue (`runtime.decode_threads`). Large encodes too.
//!
//! One pool per process, like the lanes whose time it saves. What is decoded it does not know.

use crate::error::Error;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, OnceLock, PoisonError,
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

struct Pool {
    queue: SyncSender<Work>,
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// Starts the decoding threads (`runtime.decode_threads`, at least 1), once per process.
///
/// Without it, the first large decode starts one thread. Later calls change nothing.
pub fn start_decoders(threads: usize) {
    POOL.get_or_init(|| Pool::start(threads.max(1)));
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
    POOL.get_or_init(|| Pool::start(1)).run(decode).await
}

// === impl Pool ===

impl Pool {
    fn start(threads: usize) -> Self {
        let (queue, work) = sync_channel(QUEUE);
        let work: &'static Mutex<Receiver<Work>> = Box::leak(Box::new(Mutex::new(work)));
        for index in 0..threads {
            let spawned = std::thread::Builder::new().name(format!("decode-{index}")).spawn(move || {
                // The lock is held while waiting, never while decoding: the next thread waits for its turn.
                while let Ok(decode) = next(work) {
                    decode();
                }
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "cannot start a decoding thread");
            }
        }
        Self { queue }
    }

    async fn run<T: Send + 'static>(
        &self,
        decode: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move || {
            if sender.is_closed() {
                return;
            }
            let result = catch_unwind(AssertUnwindSafe(decode))
                .unwrap_or_else(|_| Err(Error::internal("a decoder panicked, see the log before this line")));
            // The caller may have gone: then nobody wants the result.
            let _ = sender.send(result);
        });
        self.queue.try_send(work).map_err(|_| Error::Overloaded { what: "decoding threads" })?;
        receiver.await.unwrap_or_else(|_| Err(Error::internal("a decoding thread is gone")))
    }
}

fn next(work: &Mutex<Receiver<Work>>) -> Result<Work, std::sync::mpsc::RecvError> {
    work.lock().unwrap_or_else(PoisonError::into_inner).recv()
}

/// Keeps the decoding threads of a test process from their work until it is dropped; there is one.
#[cfg(test)]
#[derive(Debug)]
pub(in crate::frontend) struct Busy {
    _release: std::sync::mpsc::Sender<()>,
}

#[cfg(test)]
impl Busy {
    /// Returns once the decoding thread waits.
    pub(in crate::frontend) async fn begin() -> Self {
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
        let pool = Pool::start(1);
        let panicked = pool.run::<()>(|| panic!("bad decoder")).await.unwrap_err();
        assert!(matches!(panicked, Error::Internal(_)));
        assert!(pool.run(|| Ok(7)).await.is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_refuses() {
        let pool = Pool::start(1);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (running, runs) = oneshot::channel();
        let first = pool.run(move || {
            let _ = running.send(());
            wait.recv().map_err(|_| Error::Cancelled)
        });
        let mut first = std::pin::pin!(first);
        tokio::select! { biased; _ = &mut first => unreachable!(), _ = runs => {} }
        let mut waiting: Vec<_> = (0..QUEUE).map(|_| Box::pin(pool.run(|| Ok(())))).collect();
        for future in &mut waiting {
            assert!(futures_util::FutureExt::now_or_never(future.as_mut()).is_none());
        }
        assert!(matches!(pool.run(|| Ok(())).await, Err(Error::Overloaded { .. })));
        release.send(()).unwrap();
        first.await.unwrap();
    }
}

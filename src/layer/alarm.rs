//! Deadlines that hardly ever ring: one timer per lane for all of them.
//!
//! A call arms its deadline once and nearly always takes it back unused. A tokio timer for each would lie in every
//! call's future, on 128 bytes' alignment and with a lock taken twice; here arming is a push into a table that belongs to
//! the thread. One task per table sleeps until the earliest deadline it knows of, and wakes those that are due. It is
//! told only of a deadline that is earlier than that, which among calls with the same limit never happens.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};
use tokio::{sync::Notify, time};

thread_local! {
    static TABLE: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// Rings at its deadline, not before, and with tokio's precision (1 ms). Dropping it takes it back.
pub(super) struct Alarm {
    deadline: Instant,
    armed: Option<(Arc<Shared>, usize)>,
}

/// What the alarms of a thread and their task share.
#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// There is a deadline earlier than the task expects.
    earlier: Notify,
    /// The task is gone, with its runtime. Beside the lock, because each call asks it.
    closed: AtomicBool,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// When the task will look again; absent: when it is told.
    next: Option<Instant>,
}

enum Slot {
    Free,
    Armed { deadline: Instant, waker: Waker },
    Rang,
}

/// Says that the task is gone, however it went.
struct Closing(Arc<Shared>);

// === impl Alarm ===

impl Alarm {
    /// An alarm for `deadline`. Nothing is armed before the first poll.
    pub(super) const fn at(deadline: Instant) -> Self {
        Self { deadline, armed: None }
    }

    /// Ready once the deadline has passed. Must be polled on a tokio runtime.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((shared, place)) = &self.armed else {
            let shared = Shared::of_this_thread();
            let place = shared.arm(self.deadline, cx.waker());
            self.armed = Some((shared, place));
            return Poll::Pending;
        };
        match shared.lock().slots.get_mut(*place) {
            Some(Slot::Armed { waker, .. }) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some((shared, place)) = self.armed.take() {
            // The waker is dropped outside of the lock: it may free a task, which may hold alarms of its own.
            let _slot = shared.lock().take(place);
        }
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn of_this_thread() -> Arc<Self> {
        TABLE.with_borrow_mut(|table| {
            if let Some(shared) = table.as_ref().filter(|shared| !shared.closed.load(Ordering::Acquire)) {
                return Arc::clone(shared);
            }
            let shared = Arc::new(Self::default());
            tokio::spawn(ring(Closing(Arc::clone(&shared))));
            Arc::clone(table.insert(shared))
        })
    }

    fn arm(&self, deadline: Instant, waker: &Waker) -> usize {
        let mut table = self.lock();
        let slot = Slot::Armed { deadline, waker: waker.clone() };
        let place = match table.free.pop() {
            Some(place) => {
                table.slots[place] = slot;
                place
            }
            None => {
                table.slots.push(slot);
                table.slots.len() - 1
            }
        };
        if table.next.is_none_or(|next| deadline < next) {
            table.next = Some(deadline);
            drop(table);
            self.earlier.notify_one();
        }
        place
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing done under the lock can leave the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Table ===

impl Table {
    fn take(&mut self, place: usize) -> Slot {
        self.free.push(place);
        std::mem::replace(&mut self.slots[place], Slot::Free)
    }

    /// Takes out the wakers of those that are due at `now`, and finds when to look again.
    fn due(&mut self, now: Instant) -> Vec<Waker> {
        let mut due = Vec::new();
        self.next = None;
        for slot in &mut self.slots {
            match slot {
                Slot::Armed { deadline, .. } if *deadline <= now => {
                    if let Slot::Armed { waker, .. } = std::mem::replace(slot, Slot::Rang) {
                        due.push(waker);
                    }
                }
                Slot::Armed { deadline, .. } => {
                    self.next = Some(self.next.map_or(*deadline, |next| next.min(*deadline)));
                }
                Slot::Free | Slot::Rang => {}
            }
        }
        due
    }
}

/// The task of a table: looks when something is due.
async fn ring(closing: Closing) {
    let shared = &closing.0;
    loop {
        let next = shared.lock().next;
        let earlier = shared.earlier.notified();
        match next {
            None => earlier.await,
            Some(next) => {
                tokio::select! {
                    () = time::sleep_until(next.into()) => {
                        let due = shared.lock().due(time::Instant::now().into_std());
                        due.into_iter().for_each(Waker::wake);
                    }
                    () = earlier => {}
                }
            }
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, time::Duration};

    async fn rings(after: Duration) -> Duration {
        let begun = time::Instant::now();
        let mut alarm = Alarm::at((begun + after).into_std());
        poll_fn(|cx| alarm.poll(cx)).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_rings_at_its_own_time_whatever_the_order() {
        let [a, b, c] = [600, 1, 60].map(|seconds| tokio::spawn(rings(Duration::from_secs(seconds))));
        assert_eq!(b.await.unwrap().as_secs(), 1);
        assert_eq!(c.await.unwrap().as_secs(), 60);
        assert_eq!(a.await.unwrap().as_secs(), 600);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_back_leaves_its_place_to_others() {
        for _ in 0..100 {
            let mut alarm = Alarm::at((time::Instant::now() + Duration::from_secs(1)).into_std());
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx))).await.is_pending());
        }
        let places = TABLE.with_borrow(|table| table.as_ref().unwrap().lock().slots.len());
        assert_eq!(places, 1);
        assert_eq!(rings(Duration::from_secs(2)).await.as_secs(), 2);
    }

    #[test]
    fn a_table_whose_runtime_is_gone_is_made_anew() {
        for _ in 0..2 {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            assert_eq!(runtime.block_on(rings(Duration::from_secs(1))).as_secs(), 1);
        }
    }
}

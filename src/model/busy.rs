//! Models that something is being done with: one thing at a time is done with each, whoever wants it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// Models that something is being done with, by name.
#[derive(Debug, Default)]
pub(super) struct Busy {
    names: Mutex<HashSet<Arc<str>>>,
    /// Told of every turn that is over.
    over: Notify,
}

/// Whose turn it is with a model. Dropping it lets the next one in.
#[derive(Debug)]
pub(super) struct Turn(Arc<Busy>, Arc<str>);

// === impl Busy ===

impl Busy {
    /// Takes a model with which nothing is being done.
    pub(super) fn take(self: &Arc<Self>, name: &Arc<str>) -> Option<Turn> {
        let is_free = self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(name));
        is_free.then(|| Turn(Arc::clone(self), Arc::clone(name)))
    }

    /// Takes a model once nothing is being done with it, which is as late as whoever has it is done: see
    /// [`super::control::Control::load`] for how long that may be.
    pub(super) async fn wait(self: &Arc<Self>, name: &Arc<str>) -> Turn {
        loop {
            // Made before it is looked: it hears of all that ends from then on.
            let over = self.over.notified();
            if let Some(turn) = self.take(name) {
                return turn;
            }
            over.await;
        }
    }
}

// === impl Turn ===

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
        self.0.over.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_thing_at_a_time_is_done_with_a_model() {
        let (busy, [a, b]) = (Arc::new(Busy::default()), ["a", "b"].map(Arc::from));
        let turn = busy.take(&a).unwrap();
        assert!(busy.take(&a).is_none() && busy.take(&b).is_some());
        let waiting = tokio::spawn({
            let (busy, a) = (Arc::clone(&busy), Arc::clone(&a));
            async move { busy.wait(&a).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(turn);
        let next = waiting.await.unwrap();
        assert!(busy.take(&a).is_none());
        drop(next);
        assert!(busy.take(&a).is_some());
    }
}

//! How an exchange ended, told exactly once to everyone who cares.

use super::{Chunk, InferResponse};
use crate::error::{Code, Error};

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole reply was handed over.
    Complete,
    /// It failed with this code.
    Failed(Code),
    /// The client went away, or its call was dropped.
    Abandoned,
}

impl End {
    /// The word for logs and metric labels: `ok`, or the code's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "ok",
            Self::Failed(code) => code.name(),
            Self::Abandoned => Code::Cancelled.name(),
        }
    }
}

/// Someone who cares about the whole exchange, not only its beginning.
pub trait Observer: Send {
    /// The outputs of a reply that is whole; its end follows.
    fn whole(&mut self, response: &InferResponse) {
        let _ = response;
    }

    /// A piece of a streaming reply passed by.
    fn chunk(&mut self, chunk: &Chunk) {
        let _ = chunk;
    }

    /// The exchange failed and is over: called instead of [`Observer::end`], for those who want the cause too.
    fn failed(&mut self, error: &Error) {
        self.end(End::Failed(error.code()));
    }

    /// The exchange is over.
    fn end(&mut self, end: End) {
        let _ = end;
    }
}

/// Tells its observer the end exactly once, even if nobody lived to say it.
#[derive(Debug)]
pub struct Watch<O: Observer>(Option<O>);

impl<O: Observer> Watch<O> {
    /// Watches on behalf of `observer`.
    pub fn new(observer: O) -> Self {
        Self(Some(observer))
    }

    /// The observer, until it has heard the end.
    pub fn observer(&self) -> Option<&O> {
        self.0.as_ref()
    }
}

impl<O: Observer> Observer for Watch<O> {
    fn whole(&mut self, response: &InferResponse) {
        if let Some(observer) = &mut self.0 {
            observer.whole(response);
        }
    }

    fn chunk(&mut self, chunk: &Chunk) {
        if let Some(observer) = &mut self.0 {
            observer.chunk(chunk);
        }
    }

    fn failed(&mut self, error: &Error) {
        if let Some(mut observer) = self.0.take() {
            observer.failed(error);
        }
    }

    fn end(&mut self, end: End) {
        if let Some(mut observer) = self.0.take() {
            observer.end(end);
        }
    }
}

impl<O: Observer> Drop for Watch<O> {
    fn drop(&mut self) {
        self.end(End::Abandoned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Ears(Arc<Mutex<Vec<End>>>);

    impl Observer for Ears {
        fn end(&mut self, end: End) {
            self.0.lock().unwrap().push(end);
        }
    }

    #[test]
    fn an_end_is_told_once() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut watch = Watch::new(Ears(Arc::clone(&heard)));
        watch.end(End::Complete);
        watch.end(End::Failed(Code::Internal));
        drop(watch);
        assert_eq!(*heard.lock().unwrap(), [End::Complete]);
    }

    #[test]
    fn a_failure_is_the_end_too() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut watch = Watch::new(Ears(Arc::clone(&heard)));
        watch.failed(&Error::Cancelled);
        drop(watch);
        assert_eq!(*heard.lock().unwrap(), [End::Failed(Code::Cancelled)]);
    }

    #[test]
    fn dropping_is_abandoning() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        drop(Watch::new(Ears(Arc::clone(&heard))));
        assert_eq!(*heard.lock().unwrap(), [End::Abandoned]);
    }
}

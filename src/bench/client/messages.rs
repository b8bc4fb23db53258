//! Callers that share one connection of messages: WebSocket and NDJSON.
//!
//! One task owns the connection. It takes in every message that has come before it writes what callers have asked for
//! meanwhile, so that a turn of the server is answered by one write. Callers are told apart by `id`: each has its own,
//! and one request at a time.

use super::{Failure, Kept};
use crate::bench::source::Target;
use bytes::Bytes;
use futures_util::future::poll_fn;
use std::{
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::task::AbortHandle;

/// Within so many bytes of its beginning a message says whether others follow, if it says so at all.
const BEGINNING: usize = 128;

/// A connection that carries messages both ways.
pub(super) trait Link: Send + Unpin + 'static {
    /// Takes a message to be sent, once there is room.
    fn poll_send(&mut self, cx: &mut Context<'_>, message: &Bytes) -> Poll<Result<(), Failure>>;

    /// Sends what was taken.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>;

    /// The next message; an error at the end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Failure>>;
}

/// One caller among those of a connection.
pub(in crate::bench) struct Caller {
    shared: Arc<Mutex<Shared>>,
    place: usize,
    _driver: Arc<Driver>,
}

/// Ends the connection with the last of its callers.
struct Driver(AbortHandle);

#[derive(Default)]
struct Shared {
    /// Places whose request is to be sent.
    outgoing: Vec<usize>,
    places: Vec<Place>,
    driver: Option<Waker>,
    broken: Option<Failure>,
}

#[derive(Default)]
struct Place {
    answer: Option<Result<Bytes, Failure>>,
    waker: Option<Waker>,
}

/// The task of a connection.
struct Drive<L> {
    link: L,
    shared: Arc<Mutex<Shared>>,
    messages: Vec<Bytes>,
    /// Taken from `outgoing` and not yet by the link.
    sending: Vec<usize>,
}

/// What a message means to those who wait.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The end of the request of this place.
    Over(usize, Result<(), String>),
    /// Nothing to anybody.
    Other,
    /// An error that is no request's own.
    Fault(String),
}

/// Callers of these numbers on one connection, each with its own message, which ends with `end`.
pub(super) fn callers(link: impl Link, target: &Target, numbers: Range<usize>, end: &str) -> Vec<Caller> {
    let count = numbers.len();
    let places = (0..count).map(|_| Place::default()).collect();
    let shared = Arc::new(Mutex::new(Shared { places, ..Shared::default() }));
    let messages = numbers.enumerate().map(|(place, caller)| {
        let mut text = target.payload(caller).line(target.model(), &format!("c{place}"));
        text.extend_from_slice(end.as_bytes());
        text.into()
    });
    let drive = Drive { link, shared: Arc::clone(&shared), messages: messages.collect(), sending: Vec::new() };
    let driver = Arc::new(Driver(tokio::spawn(drive).abort_handle()));
    let caller = |place| Caller { shared: Arc::clone(&shared), place, _driver: Arc::clone(&driver) };
    (0..count).map(caller).collect()
}

// === impl Caller ===

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Caller {
    pub(super) async fn exchange(&mut self, kept: Option<&mut Kept>) -> Result<(), Failure> {
        let driver = {
            let mut shared = locked(&self.shared);
            if let Some(broken) = &shared.broken {
                return Err(broken.clone());
            }
            shared.outgoing.push(self.place);
            shared.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        let answer = poll_fn(|cx| {
            let mut shared = locked(&self.shared);
            let broken = shared.broken.clone();
            let place = &mut shared.places[self.place];
            match place.answer.take().or(broken.map(Err)) {
                Some(answer) => Poll::Ready(answer),
                None => {
                    place.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        let message = answer.await?;
        if let Some(kept) = kept {
            kept.body = message.to_vec();
        }
        Ok(())
    }
}

/// All are on one thread, so nobody ever waits here.
fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Drive ===

impl<L: Link> Future for Drive<L> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        match this.advance(cx) {
            Ok(()) => Poll::Pending,
            Err(failure) => {
                let mut shared = locked(&this.shared);
                shared.broken = Some(failure);
                for place in &mut shared.places {
                    if let Some(waker) = place.waker.take() {
                        waker.wake();
                    }
                }
                Poll::Ready(())
            }
        }
    }
}

impl<L: Link> Drive<L> {
    /// Receives what has come, then sends what there is to send.
    fn advance(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while let Poll::Ready(message) = self.link.poll_receive(cx) {
            self.take(message?)?;
        }
        {
            let mut shared = locked(&self.shared);
            self.sending.append(&mut shared.outgoing);
            if !shared.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                shared.driver = Some(cx.waker().clone());
            }
        }
        let mut sent = 0;
        for place in &self.sending {
            match self.link.poll_send(cx, &self.messages[*place]) {
                Poll::Ready(result) => result?,
                Poll::Pending => break,
            }
            sent += 1;
        }
        self.sending.drain(..sent);
        match self.link.poll_flush(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    fn take(&mut self, message: Bytes) -> Result<(), Failure> {
        let (place, answer) = match understand(&message) {
            Said::Over(place, answer) => (place, answer),
            Said::Other => return Ok(()),
            Said::Fault(code) => return Err(Failure::Broken(format!("the server ended the session: {code}"))),
        };
        let mut shared = locked(&self.shared);
        // An id that nobody has is nobody's answer.
        if let Some(place) = shared.places.get_mut(place) {
            place.answer = Some(answer.map(|()| message).map_err(Failure::Refused));
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
        Ok(())
    }
}

/// Reads what a message is and whose, without parsing its tensors.
fn understand(message: &[u8]) -> Said {
    let text = |name: &[u8]| {
        // Within strings of tensors these have a backslash before each quote, so they are never taken for them.
        let start = find(message, name)? + name.len();
        let length = message[start..].iter().position(|byte| *byte == b'"')?;
        std::str::from_utf8(&message[start..start + length]).ok()
    };
    let code = || text(b"\"code\":\"").unwrap_or("error").to_owned();
    let kind = text(b"\"type\":\"");
    let place = text(b"\"id\":\"").and_then(|id| id.strip_prefix('c')?.parse().ok());
    match (place, kind) {
        (Some(place), Some("error")) => Said::Over(place, Err(code())),
        (Some(place), Some("cancelled")) => Said::Over(place, Err("cancelled".to_owned())),
        (Some(place), _) if is_last(message) => Said::Over(place, Ok(())),
        (None, Some("error")) => Said::Fault(code()),
        _ => Said::Other,
    }
}

/// False for a piece that others follow.
fn is_last(message: &[u8]) -> bool {
    let beginning = &message[..message.len().min(BEGINNING)];
    let member = b"\"final\":";
    find(beginning, member).is_none_or(|at| !message[at + member.len()..].starts_with(b"false"))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_it_is_and_whose() {
        for (text, said) in [
            (r#"{"type":"output","id":"c7","seq":0,"final":true,"outputs":[]}"#, Said::Over(7, Ok(()))),
            (r#"{"type":"output","id":"c7","seq":0,"final":false,"outputs":[]}"#, Said::Other),
            (r#"{"type":"done","id":"c12","timing":{"queue_us":1}}"#, Said::Over(12, Ok(()))),
            (
                r#"{"type":"error","id":"c0","code":"overloaded","message":"no"}"#,
                Said::Over(0, Err("overloaded".into())),
            ),
            (r#"{"type":"error","id":null,"code":"invalid_argument"}"#, Said::Fault("invalid_argument".into())),
            (r#"{"type":"ping"}"#, Said::Other),
            (r#"{"type":"output","id":"mine","outputs":[]}"#, Said::Other),
            ("", Said::Other),
        ] {
            assert_eq!(understand(text.as_bytes()), said, "{text}");
        }
    }

    #[test]
    fn what_strings_hold_is_not_taken_for_members() {
        let text = r#"{"type":"output","outputs":[{"data":["\"id\":\"c9\""]}],"id":"c1"}"#;
        assert_eq!(understand(text.as_bytes()), Said::Over(1, Ok(())));
    }
}

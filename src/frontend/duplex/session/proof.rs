//! Who the session speaks for: credentials that the client sends, and those it has, looked at again.
//!
//! Every call is authenticated anew, so this is not what protects models. It is what ends a session that asks for nothing
//! more (contract 06 C1): a socket or stream does not outlive what it was opened with.

use super::{Life, Session};
use crate::{
    call::{Call, Credentials, Facts, Inspect, Intent, Operation, Pending, Reply},
    error::Error,
    frontend::duplex::{Codec, Link, Speaker},
};
use futures_util::future::BoxFuture;
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// How long after a look that came to nothing, because the server was too busy, say, there is another one.
const AGAIN: Duration = Duration::from_secs(1);

/// A call that asks who somebody is.
pub(super) struct Proof {
    credentials: Credentials,
    facts: Arc<Facts>,
    call: BoxFuture<'static, Result<Reply, Error>>,
}

impl<C, L> Session<C, L>
where
    C: Codec,
    L: Link<Received = C::Received, Frame = C::Frame>,
{
    pub(super) fn prove(&self, credentials: Credentials) -> Proof {
        let head = self.head(Intent::Inspect, None);
        let facts = Arc::clone(&head.facts);
        // Who renews its credentials keeps the place that it has.
        let question = if self.place.is_some() { Inspect::Caller } else { Inspect::Session };
        let input = Pending::ready(Operation::Inspect(question));
        let call = self.connection.frontend.gateway.call(Call { head, sender: credentials.clone(), input });
        Proof { credentials, facts, call }
    }

    pub(super) fn poll_proof(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(proof) = &mut self.proving else { return false };
        let Poll::Ready(reply) = proof.call.as_mut().poll(cx) else { return false };
        let Some(Proof { credentials, facts, .. }) = self.proving.take() else { return false };
        let result = reply.map(drop);
        match &result {
            Ok(()) => {
                self.place.get_or_insert_with(|| Arc::clone(&facts));
                self.speaker = Speaker::proven(credentials, facts);
                self.check = self.speaker.until();
                self.checking = None;
            }
            Err(error) => self.connection.observe(error),
        }
        if let Err(why) = self.codec.proved(result, &mut self.outbox) {
            self.fault(why);
        }
        true
    }

    /// Asks again who the speaker is, unless that was never known, or does not matter any more.
    pub(super) fn look_again(&mut self) {
        self.check = None;
        if self.speaker.proof.is_some() && matches!(self.life, Life::Open) {
            self.checking = Some(self.prove(self.speaker.credentials.clone()));
        }
    }

    pub(super) fn poll_check(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(proof) = &mut self.checking else { return false };
        let Poll::Ready(reply) = proof.call.as_mut().poll(cx) else { return false };
        let Some(Proof { credentials, facts, .. }) = self.checking.take() else { return false };
        match reply {
            Ok(_) => {
                self.speaker = Speaker::proven(credentials, facts);
                self.check = self.speaker.until();
            }
            // Not told to the address gate: nobody has tried anything.
            Err(Error::Unauthenticated) => {
                if let Err(why) = self.codec.unauthenticated(&mut self.outbox) {
                    self.finish(why);
                }
            }
            // Without a grant its calls are refused one by one; it may be given one again.
            Err(Error::Forbidden { .. }) => {}
            Err(_) => self.check = Some(Instant::now() + AGAIN),
        }
        true
    }
}

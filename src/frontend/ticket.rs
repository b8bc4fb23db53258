//! Tickets: a browser trades its credentials for one, because it cannot send headers with a WebSocket's handshake
//! (contract 06 C1 item 2).
//!
//! A ticket stands for the very credentials that it was traded for: whatever becomes of those becomes of its socket. It is
//! known here by its digest alone, is good for one handshake, and not for long.

use crate::{
    call::Credentials,
    error::{Error, Limit},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Tickets at once. Each costs a call, and lives 30 s at most.
const MOST: usize = 10_000;

type Key = [u8; 32];

/// Tickets that were made and not used yet.
#[derive(Clone, Debug)]
pub struct Tickets {
    /// How long one may be used.
    age: Duration,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    tickets: HashMap<Key, (Credentials, Instant)>,
    /// In the order of their end, which is that of their beginning. Those that were used are in it too, until then.
    order: VecDeque<(Key, Instant)>,
}

impl Tickets {
    /// None yet; each will be good for `age`.
    pub fn new(age: Duration) -> Self {
        Self { age, open: Arc::default() }
    }

    /// How long one may be used.
    pub(super) const fn age(&self) -> Duration {
        self.age
    }

    /// A ticket for whoever `credentials` prove.
    ///
    /// # Errors
    ///
    /// [`Error::Overloaded`] if there are too many; [`Error::Internal`] if the system has no randomness.
    pub(super) fn trade(&self, credentials: Credentials) -> Result<String, Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| Error::internal(error.to_string()))?;
        let ticket = URL_SAFE_NO_PAD.encode(secret);
        let (key, now) = (key(&ticket), Instant::now());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.forget(now);
        if open.order.len() >= MOST {
            return Err(Error::Overloaded { limit: Limit::Tickets });
        }
        let until = now + self.age;
        open.tickets.insert(key, (credentials, until));
        open.order.push_back((key, until));
        Ok(ticket)
    }

    /// The credentials that `ticket` was traded for, once.
    pub(super) fn redeem(&self, ticket: &str) -> Option<Credentials> {
        let (key, now) = (key(ticket), Instant::now());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (credentials, until) = open.tickets.remove(&key)?;
        (now < until).then_some(credentials)
    }
}

impl Open {
    fn forget(&mut self, now: Instant) {
        while let Some((key, _)) = self.order.pop_front_if(|(_, until)| *until <= now) {
            self.tickets.remove(&key);
        }
    }
}

/// A stranger cannot steer a digest: how long its look-up takes tells nothing of other tickets.
fn key(ticket: &str) -> Key {
    Sha256::digest(ticket).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(credentials: &Option<Credentials>) -> Option<&str> {
        match credentials {
            Some(Credentials::ApiKey(key)) => Some(key),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_good_once_and_not_for_long() {
        let tickets = Tickets::new(Duration::from_secs(30));
        let [one, two] = ["a", "b"].map(|key| tickets.trade(Credentials::ApiKey(key.into())).unwrap());
        assert_eq!(one.len(), 43);
        assert_eq!(key(&tickets.redeem(&one)), Some("a"));
        assert!(tickets.redeem(&one).is_none() && tickets.redeem("").is_none());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(tickets.redeem(&two).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_so_many_and_no_more_until_some_have_ended() {
        let tickets = Tickets::new(Duration::from_secs(30));
        for _ in 0..MOST {
            let ticket = tickets.trade(Credentials::None).unwrap();
            // Used ones count too: else one caller could make them without end.
            tickets.redeem(&ticket).unwrap();
        }
        assert!(matches!(tickets.trade(Credentials::None), Err(Error::Overloaded { .. })));
        tokio::time::advance(Duration::from_secs(31)).await;
        tickets.trade(Credentials::None).unwrap();
        assert_eq!(tickets.open.lock().unwrap().order.len(), 1);
    }

    #[test]
    fn neither_tickets_nor_credentials_are_formatted() {
        let tickets = Tickets::new(Duration::from_secs(30));
        let ticket = tickets.trade(Credentials::ApiKey("sg_secret".into())).unwrap();
        let text = format!("{tickets:?}");
        assert!(!text.contains(&ticket) && !text.contains("sg_secret"), "{text}");
    }
}

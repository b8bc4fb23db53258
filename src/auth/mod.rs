//! Proves who is calling, and says what they may do.

pub mod api_key;
pub mod grants;

use crate::{
    call::{Credentials, Identity, Peer},
    error::Error,
};
use std::sync::Arc;

/// Proves claims: methods in order, synchronously (architecture section 6).
#[derive(Debug)]
pub struct Authenticator {}

impl Authenticator {
    /// Proves `credentials` sent by `peer`.
    ///
    /// # Errors
    ///
    /// [`Error::Unauthenticated`], the same for a missing, malformed, unknown, expired or revoked claim.
    pub fn verify(&self, peer: &Peer, credentials: &Credentials) -> Result<Arc<Identity>, Error> {
        let _ = (peer, credentials);
        unimplemented!()
    }
}

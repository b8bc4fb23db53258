//! The address gate: what strangers may cost, before there is a call.

use crate::error::Error;
use std::net::IpAddr;

/// Failed authentications and connections per address. One table for all lanes.
#[derive(Debug)]
pub struct AddressGate {}

impl AddressGate {
    /// May this address make a request or a handshake now?
    ///
    /// # Errors
    ///
    /// [`Error::RateLimited`] if too many of its authentications failed (`limits.address.failures`).
    pub fn check(&self, address: IpAddr) -> Result<(), Error> {
        let _ = address;
        unimplemented!()
    }

    /// An authentication of this address failed.
    pub fn failed(&self, address: IpAddr) {
        let _ = address;
    }

    /// Counts a connection of this address until the guard is dropped; `None` if it has too many
    /// (`limits.connections.per_address`).
    pub fn connect(&self, address: IpAddr) -> Option<AddressSlot> {
        let _ = address;
        unimplemented!()
    }
}

/// One connection of an address. Dropping it frees the place.
#[derive(Debug)]
pub struct AddressSlot {}

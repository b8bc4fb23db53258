//! The address gate: what strangers may cost, before there is a call.
//!
//! Counts failed authentications and open connections per address. It knows nothing of sockets, calls or identities;
//! acceptors and front-ends ask it.

use super::{
    gcra::{self, Rate},
    table::{Bucket, Entry, Table},
};
use crate::error::{Cap, Error};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU64,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Limits per address (`limits.address`, `limits.connections.per_address`; contract 10 section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failed authentications of one address in each `per`.
    pub failures: NonZeroU64,
    /// The period of `failures`.
    pub per: Duration,
    /// Connections open at once from one address.
    pub connections: usize,
    /// Addresses remembered at once.
    pub entries: usize,
    /// Networks that are not counted; those of trusted proxies are always among them.
    pub exempt: Vec<Network>,
}

/// A network, such as `127.0.0.0/8`; a bare address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// Failed authentications and connections per address. One table for all lanes.
#[derive(Debug)]
pub struct AddressGate {
    table: Table<IpAddr, Visitor>,
    rate: Rate,
    connections: usize,
    exempt: Vec<Network>,
    start: Instant,
}

/// One connection of an address. Dropping it frees the place.
#[derive(Debug)]
pub struct AddressSlot {
    /// Absent for exempt addresses.
    visitor: Option<Arc<Visitor>>,
}

/// What is remembered of one address.
#[derive(Debug, Default)]
struct Visitor {
    failures: Bucket,
    connections: AtomicUsize,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures: NonZeroU64::new(10).expect("ten is not zero"),
            per: Duration::from_secs(1),
            connections: 256,
            entries: 100_000,
            exempt: vec![
                Network { base: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 },
                Network { base: Ipv6Addr::LOCALHOST.into(), prefix: 128 },
            ],
        }
    }
}

// === impl Network ===

impl Network {
    /// Whether `address` lies in it. An IPv4-mapped IPv6 address counts as the IPv4 address that it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => masked_v4(base, self.prefix) == masked_v4(address, self.prefix),
            (IpAddr::V6(base), IpAddr::V6(address)) => masked_v6(base, self.prefix) == masked_v6(address, self.prefix),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// Whether it has every address of its kind.
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a network; write 10.0.0.0/8 or ::1");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if base.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.map_or(Ok(bits), str::parse).map_err(|_| wrong())?;
        if prefix > bits {
            return Err(format!("`{text}` has a prefix of {prefix} bits, expected at most {bits}"));
        }
        if base.to_canonical() != base {
            return Err(format!("`{text}` is an IPv4 network in IPv6 form; write {}", base.to_canonical()));
        }
        let network = Self { base, prefix };
        let host_bits = match base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(masked_v4(base, prefix)) != base,
            IpAddr::V6(base) => Ipv6Addr::from_bits(masked_v6(base, prefix)) != base,
        };
        if host_bits {
            return Err(format!("`{text}` has bits set behind its prefix"));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.base.is_ipv4() { 32 } else { 128 };
        if self.prefix == bits { write!(f, "{}", self.base) } else { write!(f, "{}/{}", self.base, self.prefix) }
    }
}

fn masked_v4(address: Ipv4Addr, prefix: u8) -> u32 {
    address.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn masked_v6(address: Ipv6Addr, prefix: u8) -> u128 {
    address.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

// === impl AddressGate ===

impl AddressGate {
    /// A gate with nobody before it yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            table: Table::new(settings.entries),
            rate: Rate::new(settings.failures, settings.per, settings.failures),
            connections: settings.connections,
            exempt: settings.exempt,
            start: Instant::now(),
        }
    }

    /// May this address make a request or a handshake now?
    ///
    /// # Errors
    ///
    /// [`Error::RateLimited`] if too many of its authentications failed (`limits.address.failures`).
    pub fn check(&self, address: IpAddr) -> Result<(), Error> {
        // Most addresses never fail: no clock is read for those.
        match self.visitor(address) {
            Some(visitor) if visitor.failures.idle_from() > 0 => self.check_at(&visitor, self.now()),
            Some(_) | None => Ok(()),
        }
    }

    /// An authentication of this address failed.
    pub fn failed(&self, address: IpAddr) {
        self.failed_at(address, self.now());
    }

    /// Counts a connection of this address until the guard is dropped; `None` if it has too many
    /// (`limits.connections.per_address`).
    pub fn connect(&self, address: IpAddr) -> Option<AddressSlot> {
        if self.is_exempt(address) {
            return Some(AddressSlot { visitor: None });
        }
        let visitor = self.table.entry(&counted_as(address), self.now());
        visitor
            .connections
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |open| (open < self.connections).then_some(open + 1))
            .ok()?;
        Some(AddressSlot { visitor: Some(visitor) })
    }

    /// Forgets addresses that are idle. Called from a timer.
    pub fn sweep(&self) {
        self.table.sweep(self.now());
    }

    /// How many addresses are remembered.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    fn check_at(&self, visitor: &Visitor, now: u64) -> Result<(), Error> {
        match visitor.failures.wait(self.rate, 1, now) {
            Duration::ZERO => Ok(()),
            retry_after => Err(Error::RateLimited { retry_after, cap: Cap::Address }),
        }
    }

    fn failed_at(&self, address: IpAddr, now: u64) {
        if !self.is_exempt(address) {
            // Refused means that it is shut out already; its time must not grow without end.
            let _ = self.table.entry(&counted_as(address), now).failures.charge(self.rate, 1, now);
        }
    }

    fn visitor(&self, address: IpAddr) -> Option<Arc<Visitor>> {
        if self.table.is_empty() || self.is_exempt(address) { None } else { self.table.get(&counted_as(address)) }
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        self.exempt.iter().any(|network| network.contains(address))
    }

    fn now(&self) -> u64 {
        gcra::nanos(self.start.elapsed())
    }
}

/// IPv6 by /64, because one host has that many addresses to choose from; IPv4-mapped as IPv4.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(masked_v6(address, 64))),
    }
}

// === impl AddressSlot ===

impl Drop for AddressSlot {
    fn drop(&mut self) {
        if let Some(visitor) = &self.visitor {
            visitor.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

// === impl Visitor ===

impl Entry for Visitor {
    // An open connection holds the entry itself, so it need not be looked at here.
    fn idle_from(&self) -> u64 {
        self.failures.idle_from()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(connections: usize) -> AddressGate {
        AddressGate::new(Settings { connections, ..Settings::default() })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const NOW: u64 = 7_000_000_000;

    fn is_shut_out(gate: &AddressGate, address: &str, now: u64) -> bool {
        gate.visitor(ip(address)).is_some_and(|visitor| gate.check_at(&visitor, now).is_err())
    }

    #[test]
    fn the_tenth_failure_in_a_second_shuts_out_and_time_lets_in() {
        let gate = gate(256);
        for _ in 0..9 {
            gate.failed_at(ip("10.0.0.1"), NOW);
        }
        assert!(!is_shut_out(&gate, "10.0.0.1", NOW));
        gate.failed_at(ip("10.0.0.1"), NOW);
        assert!(is_shut_out(&gate, "10.0.0.1", NOW));
        assert!(!is_shut_out(&gate, "10.0.0.2", NOW));
        assert!(!is_shut_out(&gate, "10.0.0.1", NOW + 100_000_000));
    }

    #[test]
    fn many_more_failures_do_not_shut_out_for_longer() {
        let gate = gate(256);
        for _ in 0..1_000 {
            gate.failed_at(ip("10.0.0.1"), NOW);
        }
        assert!(!is_shut_out(&gate, "10.0.0.1", NOW + 100_000_000));
    }

    #[test]
    fn check_names_the_wait() {
        let gate = gate(256);
        for _ in 0..20 {
            gate.failed(ip("10.0.0.1"));
        }
        assert!(
            matches!(gate.check(ip("10.0.0.1")), Err(Error::RateLimited { retry_after, .. }) if !retry_after.is_zero())
        );
        assert!(gate.check(ip("10.0.0.2")).is_ok());
    }

    #[test]
    fn a_host_cannot_dodge_with_addresses_of_its_64() {
        let gate = gate(256);
        for host in 0..10 {
            gate.failed_at(ip(&format!("2001:db8::{host}")), NOW);
        }
        assert!(is_shut_out(&gate, "2001:db8::ffff", NOW));
        assert!(!is_shut_out(&gate, "2001:db8:0:1::1", NOW));
    }

    #[test]
    fn a_mapped_address_is_the_address_it_maps() {
        let gate = gate(256);
        for _ in 0..10 {
            gate.failed_at(ip("::ffff:10.0.0.1"), NOW);
        }
        assert!(is_shut_out(&gate, "10.0.0.1", NOW));
        assert!(Settings::default().exempt[0].contains(ip("::ffff:127.0.0.1")));
    }

    #[test]
    fn loopback_is_exempt_unless_told_otherwise() {
        let gate = gate(1);
        let slots: Vec<_> = (0..5).map(|_| gate.connect(ip("127.0.0.1")).unwrap()).collect();
        (0..100).for_each(|_| gate.failed(ip("::1")));
        assert!(gate.check(ip("::1")).is_ok());
        assert!(gate.is_empty());
        drop(slots);
    }

    #[test]
    fn connections_are_counted_and_freed() {
        let gate = gate(2);
        let first = gate.connect(ip("10.0.0.1")).unwrap();
        let _second = gate.connect(ip("10.0.0.1")).unwrap();
        assert!(gate.connect(ip("10.0.0.1")).is_none());
        assert!(gate.connect(ip("10.0.0.2")).is_some());
        gate.sweep();
        assert_eq!(gate.len(), 1, "an address with open connections is not forgotten");
        drop(first);
        assert!(gate.connect(ip("10.0.0.1")).is_some());
    }

    #[test]
    fn networks_parse_and_print() {
        for text in ["127.0.0.0/8", "::1", "10.1.2.3", "2001:db8::/32", "0.0.0.0/0", "::/0"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0.1/8", "host", "10.0.0.0/-1", "::ffff:10.0.0.0/104"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        assert!("0.0.0.0/0".parse::<Network>().unwrap().contains(ip("203.0.113.9")));
    }
}

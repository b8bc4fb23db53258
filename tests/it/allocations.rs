//! How much memory traffic a call causes: counted, not timed.

#[path = "../../benches/fixture.rs"]
mod fixture;

use fixture::Fixture;
use sluicegate::{
    call::{Credentials, Gateway},
    error::Code,
    frontend::body::Memory,
    limit::address::{AddressGate, Settings},
};
use std::net::IpAddr;

/// The most allocations of one call, what it brings and takes included.
const MOST: u64 = 12;
/// Calls that are counted together: what happens once in a while must not hide, nor count as every call's.
const CALLS: u64 = 100;

fn count(fixture: &Fixture, gateway: &Gateway, sender: &Credentials) -> u64 {
    let calls = || {
        fixture.runtime.block_on(async {
            for _ in 0..CALLS {
                fixture.call(gateway, sender).await;
            }
        });
    };
    // The first calls make buckets, handles and buffers that stay.
    calls();
    allocation_counter::measure(calls).count_total / CALLS
}

#[test]
fn a_whole_call_makes_at_most_twelve_allocations() {
    let fixture = Fixture::new();
    let count = count(&fixture, &fixture.gateway, &fixture.key);
    assert!(count <= MOST, "{count} allocations a call, at most {MOST}");
}

#[test]
fn the_layers_add_none() {
    let fixture = Fixture::new();
    assert_eq!(count(&fixture, &fixture.gateway, &fixture.key), count(&fixture, &fixture.bare, &fixture.key));
    // A token whose signature is known is one hash and one look-up, as a key is.
    assert_eq!(count(&fixture, &fixture.gateway, &fixture.token), count(&fixture, &fixture.bare, &fixture.key));
}

/// Bytes allocated by a call that is refused, whose body would be of `size` bytes.
fn refused(fixture: &Fixture, gateway: &Gateway, code: Code, size: usize) -> u64 {
    let calls = || {
        fixture.runtime.block_on(async {
            for _ in 0..CALLS {
                assert_eq!(fixture.refused(gateway, size).await, code);
            }
        });
    };
    calls();
    allocation_counter::measure(calls).bytes_total / CALLS
}

#[test]
fn what_a_refused_call_allocates_does_not_grow_with_its_body() {
    let fixture = Fixture::new();
    for (gateway, code) in [(&fixture.limited, Code::RateLimited), (&fixture.full, Code::Overloaded)] {
        for size in [1, 64 << 20] {
            // The log's own buffers grow now and then, so the numbers are not the same; the body would be seen.
            let bytes = refused(&fixture, gateway, code, size);
            assert!(bytes < 8 * 1024, "{bytes} bytes for {code:?} and a body of {size}");
        }
    }
}

#[test]
fn the_address_gate_and_the_memory_budget_refuse_without_allocating() {
    let gate = AddressGate::new(Settings::default());
    let address: IpAddr = [203, 0, 113, 9].into();
    (0..20).for_each(|_| gate.failed(address));
    let memory = Memory::new(10);
    let counted = allocation_counter::measure(|| {
        assert!(gate.check(address).is_err());
        assert!(memory.reserve(64 << 20).is_err());
    });
    assert_eq!(counted.count_total, 0);
}

//! How much memory traffic a call causes: counted, not timed.

#[path = "../../benches/fixture.rs"]
mod fixture;

use fixture::Fixture;
use sluicegate::call::{Credentials, Gateway};

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

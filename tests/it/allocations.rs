//! How much memory traffic a call causes: counted, not timed.

#[path = "../../benches/fixture.rs"]
mod fixture;

use fixture::Fixture;

/// The most allocations of one call, what it brings and takes included (architecture: "10 to 11").
const MOST: u64 = 12;

#[test]
fn a_whole_call_makes_at_most_twelve_allocations() {
    let fixture = Fixture::new();
    // The first calls make buckets, handles and buffers that stay.
    fixture.runtime.block_on(async {
        for _ in 0..100 {
            fixture.call().await;
        }
    });
    let calls = 100;
    let counted = allocation_counter::measure(|| {
        fixture.runtime.block_on(async {
            for _ in 0..calls {
                fixture.call().await;
            }
        });
    });
    let per_call = counted.count_total.div_ceil(calls);
    assert!(per_call <= MOST, "{per_call} allocations a call ({} for {calls}), at most {MOST}", counted.count_total);
    assert!(counted.count_current <= 1, "{} allocations stay", counted.count_current);
}

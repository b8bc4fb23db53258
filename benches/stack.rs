//! A whole gateway call: nine layers with an API key, a rate, grants, metrics and the access log, then the router, the
//! scheduler and a turn over the fake back end.
//!
//! `alone` waits for each reply, so every call pays for a turn of its own; in `of 64` sixty-four calls are in flight, as
//! on a busy lane, and the time is that of one of them. `without layers` is the same call straight to the router: the
//! difference is what the stack costs. `with a token` is the whole call of somebody who has a token (JWT) for a key.

#[path = "fixture.rs"]
mod fixture;

use criterion::{Criterion, criterion_group, criterion_main};
use fixture::Fixture;
use futures_util::future::join_all;
use sluicegate::call::{Credentials, Gateway};
use std::time::{Duration, Instant};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Calls in flight on a busy lane.
const BUSY: u64 = 64;

fn alone(fixture: &Fixture, gateway: &Gateway, sender: &Credentials, count: u64) -> Duration {
    fixture.runtime.block_on(async {
        let begun = Instant::now();
        for _ in 0..count {
            fixture.call(gateway, sender).await;
        }
        begun.elapsed()
    })
}

fn busy(fixture: &Fixture, gateway: &Gateway, sender: &Credentials, count: u64) -> Duration {
    fixture.runtime.block_on(async {
        let rounds = count.div_ceil(BUSY);
        let begun = Instant::now();
        for _ in 0..rounds {
            join_all((0..BUSY).map(|_| fixture.call(gateway, sender))).await;
        }
        // Criterion asked for `count` calls; whole rounds were made.
        begun.elapsed().mul_f64(count as f64 / (rounds * BUSY) as f64)
    })
}

fn call(criterion: &mut Criterion) {
    let fixture = Fixture::new();
    for (name, gateway, sender) in [
        ("a whole call", &fixture.gateway, &fixture.key),
        ("with a token", &fixture.gateway, &fixture.token),
        ("without layers", &fixture.bare, &fixture.key),
    ] {
        criterion.bench_function(&format!("{name}, alone"), |bencher| {
            bencher.iter_custom(|count| alone(&fixture, gateway, sender, count));
        });
        criterion.bench_function(&format!("{name}, of 64"), |bencher| {
            bencher.iter_custom(|count| busy(&fixture, gateway, sender, count));
        });
    }
}

/// What a caller costs who is refused before its body is read.
fn refusal(criterion: &mut Criterion) {
    let fixture = Fixture::new();
    for (name, gateway) in [("over its rate", &fixture.limited), ("without a slot", &fixture.full)] {
        criterion.bench_function(&format!("a call refused {name}"), |bencher| {
            bencher.iter_custom(|count| {
                fixture.runtime.block_on(async {
                    let begun = Instant::now();
                    for _ in 0..count {
                        std::hint::black_box(fixture.refused(gateway, 1 << 20).await);
                    }
                    begun.elapsed()
                })
            });
        });
    }
}

criterion_group!(benches, call, refusal);
criterion_main!(benches);

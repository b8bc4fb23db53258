//! No overshoot, no lost refund, no leaked slot, whatever the threads do first.

use loom::{sync::Arc, thread};
use sluicegate_loom::{Slots, bucket::Bucket, gcra::Rate};
use std::{num::NonZeroU64, time::Duration};

const NOW: u64 = 1_000_000_000;

fn rate(burst: u64) -> Rate {
    let burst = NonZeroU64::new(burst).expect("not zero");
    Rate::new(burst, Duration::from_secs(burst.get()), burst)
}

#[test]
fn two_threads_get_one_unit_once() {
    loom::model(|| {
        let bucket = Arc::new(Bucket::default());
        let other = Arc::clone(&bucket);
        let first = thread::spawn(move || other.charge(rate(1), 1, NOW).is_ok());
        let second = bucket.charge(rate(1), 1, NOW).is_ok();
        assert!(first.join().unwrap() ^ second);
    });
}

#[test]
fn a_refund_beside_a_charge_is_not_lost() {
    loom::model(|| {
        let bucket = Arc::new(Bucket::default());
        let until = bucket.charge(rate(2), 1, NOW).unwrap();
        let (giving, charging) = (Arc::clone(&bucket), Arc::clone(&bucket));
        let given = thread::spawn(move || giving.give_back(rate(2), 1, until, NOW));
        let charged = thread::spawn(move || charging.charge(rate(2), 1, NOW).is_ok());
        given.join().unwrap();
        assert!(charged.join().unwrap());
        assert!(bucket.charge(rate(2), 1, NOW).is_ok(), "two units, of which one came back");
        assert!(bucket.charge(rate(2), 1, NOW).is_err());
    });
}

#[test]
fn what_was_used_beyond_a_reservation_is_counted_beside_charges() {
    loom::model(|| {
        let bucket = Arc::new(Bucket::default());
        let other = Arc::clone(&bucket);
        let added = thread::spawn(move || other.add(rate(3), 2, NOW));
        let charged = u64::from(bucket.charge(rate(3), 1, NOW).is_ok());
        added.join().unwrap();
        assert_eq!(rate(3).left(bucket.empty_from(), NOW), 1 - charged);
    });
}

#[test]
fn slots_are_never_more_than_there_are_and_none_leaks() {
    loom::model(|| {
        let slots = Arc::new(Slots::new(1));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let slots = Arc::clone(&slots);
                thread::spawn(move || {
                    if slots.take() {
                        assert_eq!(slots.taken(), 1);
                        slots.give_back();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(slots.taken(), 0);
        assert!(slots.take());
    });
}

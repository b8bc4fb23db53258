//! What a limiter keeps of the one before it.

use super::{
    redis::{Secret, Settings},
    tests::{charge, head, identity, infer, left, limiter, policy, quota, reserve},
    *,
};
use crate::call::{Intent, Watch};
use std::num::NonZeroU64;

fn renewed(limiter: &Arc<RateLimiter>, policies: Vec<Policy>) -> Arc<RateLimiter> {
    Arc::new(limiter.renewed(policies, 1_000))
}

fn partition(limiter: &Arc<RateLimiter>, identity: &Arc<Identity>) -> u64 {
    let head = head(Intent::Infer);
    let _charged = limiter.charge(Ask { identity, head: &head, operation: None });
    head.facts.quotas.get().unwrap()[0].partition
}

#[test]
fn policies_that_stay_keep_what_they_counted_wherever_they_stand() {
    let (calls, rows) = (policy("calls", By::Identity, 5), quota(Unit::Rows, 6));
    let other = policy("other", By::Group, 9);
    let before = limiter(vec![calls.clone(), other.clone(), rows.clone()]);
    let (web, head) = (identity("web", &[]), head(Intent::Infer));
    let mut held = vec![charge(&before, &web).unwrap(), charge(&before, &web).unwrap()];
    held.push(reserve(&before, &web, &head, &infer("m", 4)).unwrap());
    for others in [vec![], vec![Policy { limit: NonZeroU64::MIN, ..other.clone() }], vec![policy("new", By::Group, 1)]]
    {
        let policies = [vec![rows.clone()], others, vec![calls.clone()]].concat();
        let after = renewed(&before, policies);
        assert!(reserve(&after, &web, &head, &infer("m", 3)).is_err(), "two of six rows are left");
        drop(Watch::new(reserve(&after, &web, &head, &infer("m", 2)).unwrap().unwrap()));
        assert_eq!(left_and_returned(&after, &web), 3);
    }
    // What was charged before is given back to those who come after.
    let after = renewed(&before, vec![calls, rows]);
    for charge in held.into_iter().flatten() {
        drop(Watch::new(charge));
    }
    assert_eq!(left(&after, &web), 5);
    assert!(reserve(&after, &web, &head, &infer("m", 6)).is_ok());
}

/// How many calls are accepted; all of them are given back.
fn left_and_returned(limiter: &Arc<RateLimiter>, identity: &Arc<Identity>) -> usize {
    let charged: Vec<_> = (0..100).map_while(|_| charge(limiter, identity).ok().flatten()).collect();
    charged.into_iter().map(Watch::new).count()
}

#[test]
fn a_policy_that_changed_starts_anew_and_clients_see_the_same_keys() {
    let before = limiter(vec![policy("p", By::Identity, 2)]);
    let web = identity("web", &[]);
    let seen = partition(&before, &web);
    let same = renewed(&before, vec![policy("new", By::Group, 1), policy("p", By::Identity, 2)]);
    assert_eq!(partition(&same, &web), seen);
    assert_eq!(left(&same, &web), 0);
    let changed = renewed(&same, vec![policy("p", By::Identity, 3)]);
    assert_eq!(partition(&changed, &web), seen);
    assert_eq!(left(&changed, &web), 2, "one was spent by asking for the key");
}

#[test]
fn what_a_process_counts_by_itself_of_a_shared_limit_stays_too() {
    let settings = Settings {
        url: Secret("redis://127.0.0.1:1".into()),
        trust: crate::trust::Trust::System,
        when_away: WhenAway::Share(0.5),
        lease: Duration::from_secs(10),
    };
    // Long ago, and nobody serves it: Redis is away.
    let start = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    let (shared, _link) = Shared::new(&settings, start).unwrap();
    let policies = vec![policy("p", By::Identity, 8)];
    let before = Arc::new(RateLimiter::new(policies, Instant::now(), 1_000).sharing(shared));
    let web = identity("web", &[]);
    assert_eq!(left_later(&before, &web), 4);
    let after = renewed(&before, vec![policy("new", By::Group, 1), policy("p", By::Identity, 8)]);
    assert_eq!(after.start, start);
    assert_eq!(left_later(&after, &web), 0);
}

/// The same as [`left`] where calls may have to ask elsewhere; spends them.
fn left_later(limiter: &Arc<RateLimiter>, identity: &Arc<Identity>) -> usize {
    let head = head(Intent::Infer);
    let passes = |_: &i32| {
        let outcome = limiter.charge(Ask { identity, head: &head, operation: None });
        assert!(!matches!(outcome, Outcome::Later(_) | Outcome::Free), "{outcome:?}");
        matches!(outcome, Outcome::Charged(_))
    };
    (0..100).take_while(passes).count()
}

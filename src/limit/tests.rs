//! What contract 10 section 2 says about charging and giving back.

use super::*;
use crate::call::{Scope, Watch};

fn identity(id: &str, groups: &[&str]) -> Arc<Identity> {
    Arc::new(Identity::proven(id, groups.iter().map(|group| Arc::from(*group)).collect(), Scope::Granted))
}

/// `limit` calls a day, so that nothing drains while a test runs.
fn policy(name: &str, by: By, limit: u64) -> Policy {
    let limit = NonZeroU64::new(limit).unwrap();
    Policy {
        name: name.into(),
        by,
        only: None,
        limit,
        per: Duration::from_secs(86_400),
        burst: limit,
        intents: Policy::default_intents(),
    }
}

fn limiter(policies: Vec<Policy>) -> RateLimiter {
    RateLimiter::new(policies, Instant::now(), 1_000)
}

fn charge(limiter: &RateLimiter, identity: &Arc<Identity>) -> Result<Option<Charge>, Duration> {
    limiter.charge(identity, Intent::Infer, &Arc::default(), Instant::now())
}

/// How many more calls are accepted; spends them.
fn left(limiter: &RateLimiter, identity: &Arc<Identity>) -> usize {
    (0..100).take_while(|_| charge(limiter, identity).is_ok()).count()
}

#[test]
fn exactly_the_limit_passes() {
    let limiter = limiter(vec![policy("p", By::Identity, 5)]);
    let web = identity("web", &[]);
    assert_eq!(left(&limiter, &web), 5);
    let wait = charge(&limiter, &web).unwrap_err();
    assert!(wait > Duration::from_secs(86_400 / 5 - 60) && wait <= Duration::from_secs(86_400 / 5), "{wait:?}");
    assert_eq!(left(&limiter, &identity("other", &[])), 5, "another identity has its own bucket");
}

#[test]
fn looking_is_not_charged_and_allocates_no_bucket() {
    let limiter = limiter(vec![policy("p", By::Identity, 1)]);
    let charged = limiter.charge(&identity("web", &[]), Intent::Inspect, &Arc::default(), Instant::now());
    assert!(charged.unwrap().is_none());
    assert_eq!(limiter.buckets(), 0);
}

#[test]
fn a_policy_counts_only_what_it_names() {
    let mut only = policy("p", By::Identity, 1);
    only.only = Some("web".into());
    let limiter = limiter(vec![only]);
    assert!(charge(&limiter, &identity("other", &[])).unwrap().is_none());
    assert_eq!(left(&limiter, &identity("web", &[])), 1);
}

#[test]
fn members_of_a_group_share_its_bucket() {
    let limiter = limiter(vec![policy("p", By::Group, 3)]);
    assert_eq!(left(&limiter, &identity("a", &["mobile"])), 3);
    assert_eq!(left(&limiter, &identity("b", &["mobile"])), 0);
    assert_eq!(left(&limiter, &identity("c", &["desktop"])), 3);
}

#[test]
fn when_a_later_policy_refuses_earlier_charges_are_given_back() {
    let limiter = limiter(vec![policy("mine", By::Identity, 5), policy("ours", By::Group, 2)]);
    assert_eq!(left(&limiter, &identity("a", &["g"])), 2);
    for _ in 0..10 {
        assert!(charge(&limiter, &identity("a", &["g"])).is_err());
    }
    // The same identity without the group has spent 2 of its 5 and none on refusals.
    assert_eq!(left(&limiter, &identity("a", &[])), 3);
}

#[test]
fn the_wait_is_that_of_the_most_constrained_policy() {
    let mut short = policy("short", By::Identity, 1);
    short.per = Duration::from_secs(60);
    let limiter = limiter(vec![short, policy("long", By::Identity, 1)]);
    let web = identity("web", &[]);
    let _charge = charge(&limiter, &web).unwrap();
    assert!(charge(&limiter, &web).unwrap_err() > Duration::from_secs(3_600));
}

/// How many calls are left of two after one that ended like this at this stage.
fn left_after(end: Option<End>, stage: Stage) -> usize {
    let limiter = limiter(vec![policy("p", By::Identity, 2)]);
    let web = identity("web", &[]);
    let facts = Arc::new(Facts::default());
    let charge = limiter.charge(&web, Intent::Infer, &facts, Instant::now()).unwrap().unwrap();
    facts.reach(stage);
    let mut watch = Watch::new(charge);
    if let Some(end) = end {
        watch.end(end);
    }
    drop(watch);
    left(&limiter, &web)
}

#[test]
fn our_own_refusals_are_given_back() {
    for code in [Code::Overloaded, Code::NotReady, Code::RateLimited] {
        assert_eq!(left_after(Some(End::Failed(code)), Stage::Queued), 2, "{code:?}");
    }
}

#[test]
fn what_never_ran_is_given_back() {
    assert_eq!(left_after(None, Stage::Queued), 2);
    assert_eq!(left_after(Some(End::Failed(Code::DeadlineExceeded)), Stage::Queued), 2);
    assert_eq!(left_after(Some(End::Failed(Code::Cancelled)), Stage::Reading), 2);
}

#[test]
fn what_ran_stands() {
    assert_eq!(left_after(Some(End::Complete), Stage::Running), 1);
    assert_eq!(left_after(None, Stage::Running), 1);
    assert_eq!(left_after(Some(End::Failed(Code::DeadlineExceeded)), Stage::Streaming), 1);
}

#[test]
fn what_the_caller_got_wrong_stands() {
    for code in [Code::InvalidArgument, Code::PayloadTooLarge, Code::PermissionDenied, Code::NotFound] {
        assert_eq!(left_after(Some(End::Failed(code)), Stage::Reading), 1, "{code:?}");
    }
}

#[test]
fn a_sweep_forgets_only_full_buckets() {
    let start = Instant::now();
    let limiter = RateLimiter::new(vec![policy("p", By::Identity, 1)], start, 1_000);
    drop(limiter.charge(&identity("web", &[]), Intent::Infer, &Arc::default(), start).unwrap());
    limiter.sweep(start);
    assert_eq!(limiter.buckets(), 1);
    limiter.sweep(start + Duration::from_secs(86_401));
    assert_eq!(limiter.buckets(), 0);
}

#[test]
fn threads_together_get_exactly_the_limit() {
    let limiter = limiter(vec![policy("p", By::Identity, 500)]);
    let accepted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (0..200).filter(|_| charge(&limiter, &identity("web", &[])).is_ok()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(accepted, 500);
}

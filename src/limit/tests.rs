//! What contract 10 section 2 says about charging and giving back.

use super::*;
use crate::{
    call::{
        CallId, End, InferRequest, InferResponse, Intent, ModelKey, ModelRef, NamedTensor, Observer, Peer, Scope,
        Surface, Timing, Watch,
    },
    error::{Code, Stage},
    tensor::{DataType, Tensor},
};
use std::num::NonZeroU64;

pub(super) fn identity(id: &str, groups: &[&str]) -> Arc<Identity> {
    Arc::new(Identity::proven(id, groups.iter().map(|group| Arc::from(*group)).collect(), Scope::Granted))
}

/// `limit` calls a day, so that nothing drains while a test runs.
pub(super) fn policy(name: &str, by: By, limit: u64) -> Policy {
    let limit = NonZeroU64::new(limit).unwrap();
    Policy {
        name: name.into(),
        by,
        only: None,
        models: Vec::new(),
        unit: Unit::Calls,
        limit,
        per: Duration::from_secs(86_400),
        burst: limit,
        intents: Policy::default_intents(),
    }
}

pub(super) fn quota(unit: Unit, limit: u64) -> Policy {
    Policy { unit, ..policy("quota", By::Identity, limit) }
}

pub(super) fn limiter(policies: Vec<Policy>) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(policies, Instant::now(), 1_000))
}

pub(super) fn head(intent: Intent) -> Head {
    let address = ([127, 0, 0, 1], 1).into();
    Head::new(
        CallId::make(),
        Surface::Rest,
        intent,
        Arc::new(Peer { address, local: address, tls: false, certificate: None }),
    )
}

fn decided(outcome: Outcome) -> Result<Option<Charge>, Duration> {
    match outcome {
        Outcome::Free => Ok(None),
        Outcome::Charged(charge) => Ok(Some(charge)),
        Outcome::Refused(error) => Err(error.retry_after().unwrap()),
        Outcome::Later(_) => panic!("nobody else is to be asked"),
    }
}

pub(super) fn charge(limiter: &Arc<RateLimiter>, identity: &Arc<Identity>) -> Result<Option<Charge>, Duration> {
    decided(limiter.charge(Ask { identity, head: &head(Intent::Infer), operation: None }))
}

/// FP32, so that an element has four bytes.
fn tensor(rows: usize, width: usize) -> NamedTensor {
    let tensor = Tensor::of(DataType::Fp32, [rows, width].into(), vec![0_f32; rows * width]).unwrap();
    NamedTensor { name: "x".into(), tensor }
}

pub(super) fn infer(model: &str, rows: usize) -> Operation {
    let model = ModelRef { name: model.into(), version: None };
    Operation::Infer(InferRequest::new(model, vec![tensor(rows, 4)]))
}

fn answer(rows: usize) -> InferResponse {
    InferResponse {
        model: Arc::new(ModelKey { name: "m".into(), version: "1".into() }),
        client_id: None,
        outputs: vec![tensor(rows, 2)],
        parameters: Vec::new(),
        timing: Timing::default(),
    }
}

/// Charges a call whose body is known.
pub(super) fn reserve(
    limiter: &Arc<RateLimiter>,
    identity: &Arc<Identity>,
    head: &Head,
    operation: &Operation,
) -> Result<Option<Charge>, Duration> {
    decided(limiter.charge(Ask { identity, head, operation: Some(operation) }))
}

/// How many more calls are accepted; spends them.
pub(super) fn left(limiter: &Arc<RateLimiter>, identity: &Arc<Identity>) -> usize {
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
    let web = identity("web", &[]);
    let charged = decided(limiter.charge(Ask { identity: &web, head: &head(Intent::Inspect), operation: None }));
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
    let head = head(Intent::Infer);
    let charge = decided(limiter.charge(Ask { identity: &web, head: &head, operation: None })).unwrap().unwrap();
    head.facts.reach(stage);
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
    let limiter = Arc::new(RateLimiter::new(vec![policy("p", By::Identity, 1)], start, 1_000));
    let charged = charge(&limiter, &identity("web", &[])).unwrap().unwrap();
    Watch::new(charged).end(End::Complete);
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

#[test]
fn what_needs_the_body_is_charged_with_it_and_the_rest_without() {
    let limiter = limiter(vec![policy("p", By::Identity, 9), policy("m", By::Model, 2)]);
    let (web, head) = (identity("web", &[]), head(Intent::Infer));
    let _rate = charge(&limiter, &web).unwrap().unwrap();
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(reserve(&limiter, &identity("a", &[]), &head, &infer("m", 1)).unwrap().unwrap());
    }
    assert!(reserve(&limiter, &identity("b", &[]), &head, &infer("m", 1)).is_err(), "the model's own rate");
    assert!(reserve(&limiter, &identity("b", &[]), &head, &infer("n", 1)).is_ok(), "another model has its own");
    assert_eq!(left(&limiter, &web), 8);
}

#[test]
fn identity_and_model_are_counted_as_pairs() {
    let limiter = limiter(vec![policy("p", By::IdentityAndModel, 1)]);
    let head = head(Intent::Infer);
    let mut kept = Vec::new();
    for (id, model) in [("a", "m"), ("a", "n"), ("b", "m")] {
        kept.push(reserve(&limiter, &identity(id, &[]), &head, &infer(model, 1)).unwrap().unwrap());
    }
    assert!(reserve(&limiter, &identity("a", &[]), &head, &infer("m", 1)).is_err());
}

#[test]
fn patterns_of_models_choose_and_no_name_is_a_key_that_no_model_can_have() {
    let llm = Policy { models: vec!["llm-*".into()], ..policy("p", By::IdentityAndModel, 1) };
    let limiter = limiter(vec![llm]);
    let (web, head) = (identity("web", &[]), head(Intent::Infer));
    assert!(reserve(&limiter, &web, &head, &infer("digits", 1)).unwrap().is_none());
    assert!(reserve(&limiter, &web, &head, &infer(&format!("llm-{}", "x".repeat(200)), 1)).unwrap().is_none());
    assert_eq!(limiter.buckets(), 0);
    assert!(reserve(&limiter, &web, &head, &infer("llm-7b", 1)).unwrap().is_some());
}

#[test]
fn rows_bytes_and_elements_are_reserved_and_settled_with_what_came_out() {
    // Three rows of four FP32 come in, three of two go out.
    for (unit, reserved, settled) in [(Unit::Rows, 3, 3), (Unit::Elements, 12, 18), (Unit::Bytes, 48, 72)] {
        let limiter = limiter(vec![quota(unit, 100)]);
        let (web, head) = (identity("web", &[]), head(Intent::Infer));
        let charge = reserve(&limiter, &web, &head, &infer("m", 3)).unwrap().unwrap();
        assert_eq!(head.facts.reserved.get().unwrap()[0].left, 100 - reserved, "{unit:?}");
        head.facts.run_since(Instant::now());
        let mut watch = Watch::new(charge);
        watch.whole(&answer(3));
        watch.end(End::Complete);
        let next = self::head(Intent::Infer);
        let _charge = reserve(&limiter, &web, &next, &infer("m", 1)).unwrap().unwrap();
        let left = next.facts.reserved.get().unwrap()[0].left;
        assert_eq!(left, 100 - settled - reserved / 3, "{unit:?}");
    }
}

#[test]
fn compute_time_is_settled_in_microseconds() {
    let limiter = limiter(vec![quota(Unit::ComputeMs, 10)]);
    let web = identity("web", &[]);
    for micros in [400, 600, 8_000] {
        let head = head(Intent::Infer);
        let charge = reserve(&limiter, &web, &head, &infer("m", 1)).unwrap().unwrap();
        head.facts.run_since(Instant::now());
        let timing = Timing { queue: Duration::ZERO, compute: Duration::from_micros(micros) };
        head.facts.timing.set(timing);
        Watch::new(charge).end(End::Complete);
    }
    // 9 of 10 ms are used: one more may be reserved, and not two.
    let _tenth = reserve(&limiter, &web, &head(Intent::Infer), &infer("m", 1)).unwrap().unwrap();
    assert!(reserve(&limiter, &web, &head(Intent::Infer), &infer("m", 1)).is_err());
}

#[test]
fn who_leaves_while_the_model_runs_pays_for_the_run() {
    let limiter = limiter(vec![quota(Unit::ComputeMs, 10)]);
    let (web, head) = (identity("web", &[]), head(Intent::Infer));
    let charge = reserve(&limiter, &web, &head, &infer("m", 1)).unwrap().unwrap();
    head.facts.run_since(Instant::now() - Duration::from_millis(50));
    drop(Watch::new(charge));
    assert!(reserve(&limiter, &web, &self::head(Intent::Infer), &infer("m", 1)).is_err());
}

#[test]
fn what_never_ran_costs_no_quota() {
    let limiter = limiter(vec![quota(Unit::Rows, 4)]);
    let web = identity("web", &[]);
    for _ in 0..100 {
        drop(Watch::new(reserve(&limiter, &web, &head(Intent::Infer), &infer("m", 4)).unwrap().unwrap()));
    }
    assert!(reserve(&limiter, &web, &head(Intent::Infer), &infer("m", 4)).is_ok());
}

#[test]
fn a_refusal_names_the_policy() {
    let limiter = limiter(vec![policy("short", By::Identity, 5), policy("long", By::Identity, 1)]);
    let web = identity("web", &[]);
    let _charge = charge(&limiter, &web).unwrap();
    let head = head(Intent::Infer);
    let Outcome::Refused(Error::RateLimited { cap, .. }) =
        limiter.charge(Ask { identity: &web, head: &head, operation: None })
    else {
        panic!("one of one is charged")
    };
    assert_eq!(cap.name(), "long");
    assert_eq!(cap.to_string(), "policy long allows 1 calls per 86400 s");
}

#[test]
fn a_refusal_says_what_is_left_and_a_success_when_there_is_more() {
    let limiter = limiter(vec![Policy { per: Duration::from_secs(100), ..quota(Unit::Rows, 10) }]);
    let (web, call) = (identity("web", &[]), head(Intent::Infer));
    let _charge = reserve(&limiter, &web, &call, &infer("m", 8)).unwrap();
    let quota = &call.facts.reserved.get().unwrap()[0];
    // A row drains in ten seconds, all eight in eighty.
    assert_eq!((quota.left, quota.charged), (2, 8));
    assert!(quota.more_in > Duration::from_secs(8) && quota.more_in <= Duration::from_secs(10), "{quota:?}");
    let refused = head(Intent::Infer);
    let wait = reserve(&limiter, &web, &refused, &infer("m", 5)).unwrap_err();
    assert!(wait > Duration::from_secs(28) && wait <= Duration::from_secs(30), "{wait:?}");
    let exhausted = refused.facts.exhausted.get().unwrap();
    assert_eq!((exhausted.left, exhausted.charged, exhausted.partition), (2, 0, quota.partition));
}

#[test]
fn what_is_given_back_is_said_to_be_left() {
    let limiter = limiter(vec![policy("p", By::Identity, 5)]);
    let (web, call) = (identity("web", &[]), head(Intent::Infer));
    let charge = decided(limiter.charge(Ask { identity: &web, head: &call, operation: None })).unwrap().unwrap();
    assert!(!call.facts.is_given_back());
    Watch::new(charge).end(End::Failed(Code::RateLimited));
    assert!(call.facts.is_given_back());
    let given_back = call.facts.quotas.get().unwrap()[0].given_back();
    assert_eq!((given_back.left, given_back.more_in), (5, Duration::ZERO));
}

#[test]
fn a_hundred_thousand_random_ends_lose_no_refund_and_overshoot_nothing() {
    let limiter = limiter(vec![policy("p", By::Identity, 50), quota(Unit::Rows, 120)]);
    let web = identity("web", &[]);
    // SplitMix64, seeded: what fails is found again.
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)) % below
    };
    let mut in_flight = Vec::new();
    for _ in 0..100_000 {
        let rows = usize::try_from(random(5) + 1).unwrap();
        let call = head(Intent::Infer);
        if let Ok(Some(rate)) = decided(limiter.charge(Ask { identity: &web, head: &call, operation: None })) {
            let mut rate = Watch::new(rate);
            match reserve(&limiter, &web, &call, &infer("m", rows)) {
                Ok(reserved) => in_flight.push((rate, Watch::new(reserved.unwrap()), rows)),
                Err(_) => rate.end(End::Failed(Code::RateLimited)),
            }
        }
        let rows: usize = in_flight.iter().map(|(_, _, rows)| rows).sum();
        assert!(in_flight.len() <= 50 && rows <= 120);
        while random(3) == 0 && !in_flight.is_empty() {
            let at = usize::try_from(random(in_flight.len() as u64)).unwrap();
            let (mut rate, mut reserved, _) = in_flight.swap_remove(at);
            // Dropped, refused by us, or out of time before it ran: given back either way.
            let ends = [End::Abandoned, End::Failed(Code::Overloaded), End::Failed(Code::DeadlineExceeded)];
            let end = ends[usize::try_from(random(3)).unwrap()];
            rate.end(end);
            reserved.end(end);
        }
    }
    drop(in_flight);
    assert_eq!(left(&limiter, &web), 50, "everything was given back");
}

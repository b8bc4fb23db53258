//! `RateLimit` and `RateLimit-Policy` (contract 10 section 1): what a caller's policies have left, as HTTP headers and gRPC
//! metadata.
//!
//! Written from what the stack's limiters have noted in [`Facts`]; it does not know how quotas are counted.

use crate::{
    call::{Facts, Quota},
    error::{Allowance, Cap, Error},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use std::{borrow::Borrow, time::Duration};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Bytes that one policy takes in a header, as a rule.
const ROOM: usize = 80;

/// Adds both headers if a policy counted the call, or refused it with `error`; the most constrained policy comes first.
pub(super) fn insert(headers: &mut HeaderMap, facts: &Facts, error: Option<&Error>) {
    let (mut policies, mut limits) = (String::new(), String::new());
    if let Some(Error::RateLimited { retry_after, cap: Cap::Policy(allowance) }) = error {
        // The others were given back what they charged, so nothing is known of them here.
        let quota = facts.exhausted.get();
        let partition = quota.map(|quota| quota.partition);
        write_policy(&mut policies, allowance, partition);
        // As `Retry-After` has it: some may be left, and too little for this call.
        let after = (*retry_after).max(Duration::from_secs(1));
        write_limit(&mut limits, allowance, quota.map_or(0, |quota| quota.left), after, partition);
    } else {
        let charged = || facts.quotas.get().into_iter().chain(facts.reserved.get()).flatten();
        if facts.is_given_back() {
            write_all(&mut policies, &mut limits, charged().map(Quota::given_back));
        } else {
            write_all(&mut policies, &mut limits, charged());
        }
        if policies.is_empty() {
            return;
        }
    }
    for (name, value) in [(POLICY, policies), (LIMIT, limits)] {
        if let Ok(mut value) = HeaderValue::try_from(value) {
            // The next answer has another: nothing that HTTP/2 should remember.
            value.set_sensitive(name == LIMIT);
            headers.insert(name, value);
        }
    }
}

/// Both headers of some quotas, each of which a call has that is not refused. One is usual.
fn write_all<Q: Borrow<Quota>>(policies: &mut String, limits: &mut String, quotas: impl Iterator<Item = Q>) {
    let mut quotas: SmallVec<[Q; 2]> = quotas.collect();
    quotas.sort_by(|a, b| a.borrow().share().total_cmp(&b.borrow().share()));
    // Enough for one with a name of 30 letters.
    for text in [&mut *policies, &mut *limits] {
        text.reserve(ROOM * quotas.len());
    }
    for quota in quotas {
        let quota = quota.borrow();
        write_policy(policies, &quota.allowance, Some(quota.partition));
        write_limit(limits, &quota.allowance, quota.left, quota.more_in, Some(quota.partition));
    }
}

fn write_policy(out: &mut String, allowance: &Allowance, partition: Option<u64>) {
    let (quota, window) = per_seconds(allowance);
    name(out, allowance);
    write_numbers(out, [(";q=", quota), (";w=", window)]);
    // What is not said is `requests`.
    match allowance.unit {
        "calls" => {}
        "bytes" => out.push_str(";qu=\"content-bytes\""),
        unit => out.extend([";qu=\"", unit, "\""]),
    }
    write_partition(out, partition);
}

fn write_limit(out: &mut String, allowance: &Allowance, left: u64, after: Duration, partition: Option<u64>) {
    name(out, allowance);
    write_numbers(out, [(";r=", left), (";t=", whole_seconds(after))]);
    write_partition(out, partition);
}

/// By hand: the formatting machinery took longer for these than the limiter for the charge.
fn write_numbers(out: &mut String, numbers: [(&str, u64); 2]) {
    for (name, number) in numbers {
        out.extend([name, itoa::Buffer::new().format(number)]);
    }
}

/// The name as a string of Structured Fields (RFC 9651 section 4.1.6), behind what is there already.
fn name(out: &mut String, allowance: &Allowance) {
    out.push_str(if out.is_empty() { "\"" } else { ", \"" });
    for letter in allowance.name.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            ' '..='~' => out.push(letter),
            // A string has nothing else.
            _ => out.push('?'),
        }
    }
    out.push('"');
}

fn write_partition(out: &mut String, partition: Option<u64>) {
    if let Some(partition) = partition {
        out.push_str(";pk=:");
        STANDARD.encode_string(partition.to_be_bytes(), out);
        out.push(':');
    }
}

/// Units in whole seconds: the draft knows no shorter ones.
fn per_seconds(allowance: &Allowance) -> (u64, u64) {
    let window = whole_seconds(allowance.per).max(1);
    if allowance.per.subsec_nanos() == 0 {
        return (allowance.limit, window);
    }
    let exact = u128::from(allowance.limit) * u128::from(window) * 1_000_000_000 / allowance.per.as_nanos().max(1);
    (u64::try_from(exact).unwrap_or(u64::MAX), window)
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Limit;
    use std::sync::Arc;

    fn allowance(name: &str, limit: u64, per: Duration, unit: &'static str) -> Arc<Allowance> {
        Arc::new(Allowance { name: name.into(), limit, per, burst: limit, unit })
    }

    fn quota(name: &str, limit: u64, left: u64) -> Quota {
        let allowance = allowance(name, limit, Duration::from_secs(60), "calls");
        Quota { allowance, partition: 1, left, charged: 1, more_in: Duration::from_millis(16_001) }
    }

    fn written(facts: &Facts, error: Option<&Error>) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        insert(&mut headers, facts, error);
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Some((text("ratelimit-policy")?, text("ratelimit")?))
    }

    #[test]
    fn the_most_constrained_policy_comes_first() {
        let facts = Facts::default();
        facts.quotas.set([quota("per-key", 600, 412)].into_iter().collect()).unwrap();
        facts.reserved.set([quota("burst", 20, 3)].into_iter().collect()).unwrap();
        let pk = "pk=:AAAAAAAAAAE=:";
        let expected = (
            format!("\"burst\";q=20;w=60;{pk}, \"per-key\";q=600;w=60;{pk}"),
            format!("\"burst\";r=3;t=17;{pk}, \"per-key\";r=412;t=17;{pk}"),
        );
        assert_eq!(written(&facts, None), Some(expected));
    }

    #[test]
    fn what_is_left_is_measured_by_what_may_come_at_once() {
        let narrow = Quota {
            allowance: Arc::new(Allowance {
                burst: 50,
                ..Allowance::clone(&allowance("b", 100, Duration::from_secs(3600), "calls"))
            }),
            ..quota("b", 100, 49)
        };
        let facts = Facts::default();
        facts.quotas.set([narrow, quota("a", 5, 4)].into_iter().collect()).unwrap();
        let (_, limits) = written(&facts, None).unwrap();
        assert!(limits.starts_with("\"a\";r=4;t=17;") && limits.contains(", \"b\";r=49;"), "{limits}");
    }

    #[test]
    fn what_was_given_back_is_left_again() {
        let facts = Facts::default();
        facts.quotas.set([quota("a", 5, 3), quota("b", 2, 1)].into_iter().collect()).unwrap();
        facts.give_back();
        let (_, limits) = written(&facts, Some(&Error::Overloaded { limit: Limit::Memory })).unwrap();
        let pk = "pk=:AAAAAAAAAAE=:";
        assert_eq!(limits, format!("\"a\";r=4;t=17;{pk}, \"b\";r=2;t=0;{pk}"));
    }

    #[test]
    fn a_refusal_says_what_is_left_although_it_is_too_little() {
        let facts = Facts::default();
        let exhausted = quota("rows", 10, 2);
        let cap = Cap::Policy(Arc::clone(&exhausted.allowance));
        facts.exhausted.set(exhausted).unwrap();
        let error = Error::RateLimited { retry_after: Duration::from_secs(20), cap };
        let (_, limits) = written(&facts, Some(&error)).unwrap();
        assert_eq!(limits, "\"rows\";r=2;t=20;pk=:AAAAAAAAAAE=:");
    }

    #[test]
    fn a_refusal_says_when_as_retry_after_does() {
        let cap = Cap::Policy(allowance("rows", 5, Duration::from_secs(1), "rows"));
        let error = Error::RateLimited { retry_after: Duration::from_millis(20), cap };
        let expected = ("\"rows\";q=5;w=1;qu=\"rows\"".to_owned(), "\"rows\";r=0;t=1".to_owned());
        assert_eq!(written(&Facts::default(), Some(&error)), Some(expected));
    }

    #[test]
    fn what_no_policy_counts_has_no_headers() {
        assert_eq!(written(&Facts::default(), None), None);
        let error = Error::RateLimited { retry_after: Duration::from_secs(1), cap: Cap::Address };
        assert_eq!(written(&Facts::default(), Some(&error)), None);
    }

    #[test]
    fn names_are_strings_and_windows_whole_seconds() {
        let mut out = String::new();
        write_policy(&mut out, &allowance("a\"b\\ü", 10, Duration::from_millis(100), "bytes"), None);
        assert_eq!(out, "\"a\\\"b\\\\?\";q=100;w=1;qu=\"content-bytes\"");
        assert_eq!(per_seconds(&allowance("a", 3, Duration::from_millis(1500), "calls")), (4, 2));
    }
}

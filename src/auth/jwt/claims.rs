//! What a token says, once its signature is verified: for whom it is, for how long, and about whom (RFC 7519 section 4.1).

use super::Issuer;
use crate::{
    auth::named,
    call::{Identity, Scope},
};
use serde_json::{Map, Value};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How far the clock of an issuer may be ahead of ours. There is no such grace at the end: what has expired is refused
/// within a second (attack W5).
const SKEW: Duration = Duration::from_secs(30);
/// Claims that are kept for grants.
const KEPT: usize = 64;
/// Objects within objects that claims are kept from.
const DEPTH: usize = 3;
/// Claims that say something of the token and nothing of whom it is about.
const OF_THE_TOKEN: [&str; 6] = ["exp", "nbf", "iat", "jti", "iss", "aud"];

/// Whom `claims` prove to be, and until when; `None` if they are not for us, or not now.
pub(super) fn identity(
    claims: &Map<String, Value>,
    issuer: &Issuer,
    now: SystemTime,
) -> Option<(Identity, SystemTime)> {
    let until = time(claims.get("exp")?)?;
    let begun = match claims.get("nbf") {
        // A claim of a wrong type is not an absent one (CVE-2026-25537).
        Some(nbf) => time(nbf)? <= now.checked_add(SKEW)?,
        None => true,
    };
    let all_there = issuer.require.iter().all(|name| find(claims, name).is_some_and(|value| !value.is_null()));
    if until <= now || !begun || !all_there || !is_for(claims.get("aud")?, &issuer.audience) {
        return None;
    }
    let id = match find(claims, &issuer.identity)? {
        Value::String(text) if !text.is_empty() => format!("{}{text}", issuer.prefix),
        Value::Number(number) => format!("{}{number}", issuer.prefix),
        _ => return None,
    };
    let groups = match issuer.groups.as_deref().and_then(|name| find(claims, name)) {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).filter_map(named).collect(),
        // As `scope` has them (RFC 8693 section 4.2).
        Some(Value::String(text)) => text.split(' ').filter_map(named).collect(),
        _ => Vec::new(),
    };
    let mut kept = Vec::new();
    for (name, value) in claims.iter().filter(|(name, _)| !OF_THE_TOKEN.contains(&name.as_str())) {
        keep(name.clone(), value, DEPTH, &mut kept);
    }
    let identity = Identity::proven(named(&id)?, groups, Scope::Granted).with_claims(kept).until_time(Some(until));
    Some((identity, until))
}

/// The claim of this name, or, where there is none, the one that it leads to as a path with dots.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

/// A NumericDate: seconds, perhaps with a fraction.
fn time(value: &Value) -> Option<SystemTime> {
    let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0)?;
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}

fn is_for(audience: &Value, ours: &[Arc<str>]) -> bool {
    let is_ours = |value: &Value| value.as_str().is_some_and(|name| ours.iter().any(|our| **our == *name));
    match audience {
        // RFC 7519 section 4.1.3: strings, and nothing else.
        Value::Array(list) => list.iter().all(Value::is_string) && list.iter().any(is_ours),
        one => is_ours(one),
    }
}

/// Keeps what grants can name: `name=value`, each element of a list by itself, members of objects with dots.
fn keep(name: String, value: &Value, depth: usize, kept: &mut Vec<(Arc<str>, Arc<str>)>) {
    if kept.len() >= KEPT {
        return;
    }
    match value {
        Value::String(text) => kept.push((name.into(), text.as_str().into())),
        Value::Bool(_) | Value::Number(_) => kept.push((name.into(), value.to_string().into())),
        Value::Array(list) => {
            list.iter().filter(|value| !value.is_array()).for_each(|value| keep(name.clone(), value, 0, kept));
        }
        Value::Object(members) if depth > 0 => {
            members.iter().for_each(|(member, value)| keep(format!("{name}.{member}"), value, depth - 1, kept));
        }
        Value::Object(_) | Value::Null => {}
    }
}

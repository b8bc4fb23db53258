//! Which keys may change while the program runs, and what was changed.
//!
//! What people wrote is kept as it was read, so that a reload can name every key that it would change; the value itself is
//! nobody's to print.

use super::Overrides;
use serde_json::Value;
use std::{fmt, path::PathBuf};

/// Keys that are applied at once, with everything below them. All others need a restart.
const LIVE: &[&str] = &[
    "auth.websocket",
    "cors",
    "grants",
    "grpc",
    "json",
    "limits.concurrency.per_grpc_stream",
    "limits.concurrency.per_socket",
    "limits.deadline",
    "limits.http2",
    "limits.rate",
    "limits.size",
    "limits.timers",
    "limits.websocket",
    "rest",
    "telemetry.log.level",
    "telemetry.metrics.on_api",
];

/// Where a configuration was read from, to read it again.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What flags and variables said instead.
    pub overrides: Overrides,
}

/// What people wrote, with the defaults of what they did not. Never printed: variables are already replaced in it.
#[derive(Clone, Default, PartialEq)]
pub struct Written(Value);

/// The keys that differ between two configurations, as paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that are applied at once.
    pub live: Vec<String>,
    /// Those that need a restart.
    pub fixed: Vec<String>,
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written")
    }
}

impl Written {
    pub(super) fn of(raw: &super::raw::Config) -> Self {
        // Whatever was read can be written; nothing at all would only name no key.
        Self(serde_json::to_value(raw).unwrap_or_default())
    }

    /// This, with what `newer` says at `paths`.
    #[must_use]
    pub fn with(&self, newer: &Self, paths: &[String]) -> Self {
        let mut tree = self.0.clone();
        for path in paths {
            let pointer = format!("/{}", path.replace('.', "/"));
            let Some((above, key)) = pointer.rsplit_once('/') else { continue };
            if let (Some(Value::Object(place)), Some(value)) = (tree.pointer_mut(above), newer.0.pointer(&pointer)) {
                place.insert(key.to_owned(), value.clone());
            }
        }
        Self(tree)
    }

    /// What `newer` says otherwise. A list is one value.
    pub fn changes(&self, newer: &Self) -> Changes {
        let mut changes = Changes::default();
        compare("", &self.0, &newer.0, &mut changes);
        changes
    }
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Changes) {
    if old == new {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            compare(&inner, old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null), changes);
        }
        return;
    }
    let is_live =
        LIVE.iter().any(|live| path.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
    if is_live { &mut changes.live } else { &mut changes.fixed }.push(path.to_owned());
}

#[cfg(test)]
mod tests {
    use super::{super::raw, *};

    #[test]
    fn every_key_that_differs_is_named_once_where_it_belongs() {
        let (old, mut new) = (raw::Config::default(), raw::Config::default());
        assert_eq!(Written::of(&old).changes(&Written::of(&new)), Changes::default());
        new.grants.push(raw::Grant::default());
        new.cors.credentials = true;
        new.listen.clear();
        new.admin = None;
        new.telemetry.access_log.enabled = false;
        let changes = Written::of(&old).changes(&Written::of(&new));
        assert_eq!(changes.live, ["cors.credentials", "grants"]);
        assert_eq!(changes.fixed, ["admin", "listen", "telemetry.access_log.enabled"]);
        let applied = Written::of(&old).with(&Written::of(&new), &changes.live);
        let left = applied.changes(&Written::of(&new));
        assert_eq!((left.live, left.fixed), (Vec::new(), changes.fixed));
    }

    #[test]
    fn every_key_that_may_change_is_one() {
        let default = serde_json::to_value(raw::Config::default()).unwrap();
        for path in LIVE {
            assert!(default.pointer(&format!("/{}", path.replace('.', "/"))).is_some(), "{path}");
        }
        assert!(!format!("{:?}", Written::of(&raw::Config::default())).contains("listen"));
    }
}

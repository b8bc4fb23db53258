//! Headers that decide to which version of a model a call goes.
//!
//! Front-ends keep those, and no others, with the heads of calls; which they are is what the models' own rules say, so it
//! may change while calls are made.

use arc_swap::ArcSwap;
use std::sync::Arc;

/// Most names: each is looked up in every head.
pub const MOST_HEADERS: usize = 16;
/// Longest value that is kept, bytes. A longer one is as good as none.
const LONGEST: usize = 256;

/// Names of the headers that are kept, in lower case. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Steering(Arc<ArcSwap<Vec<Arc<str>>>>);

/// Headers of a call that were kept, by name. Of a stream, all its calls share them.
pub type Steered = Arc<[(Arc<str>, Arc<str>)]>;

// === impl Steering ===

impl Steering {
    /// Keeps headers of these names from now on, in order; those beyond [`MOST_HEADERS`] are not kept.
    pub fn set(&self, mut names: Vec<Arc<str>>) {
        names.truncate(MOST_HEADERS);
        if **self.0.load() != names {
            self.0.store(Arc::new(names));
        }
    }

    /// What is to be kept of a head, whose headers `get` finds by name; `None` without looking if nothing is.
    pub fn of<'a>(&self, get: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Steered> {
        let names = self.0.load();
        if names.is_empty() {
            return None;
        }
        let value = |name: &Arc<str>| {
            let value = std::str::from_utf8(get(name)?).ok()?;
            (value.len() <= LONGEST).then(|| (Arc::clone(name), value.into()))
        };
        let kept: Vec<_> = names.iter().filter_map(value).collect();
        (!kept.is_empty()).then(|| kept.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_headers_of_a_sane_length_are_kept() {
        let steering = Steering::default();
        let long = [b'x'; LONGEST + 1];
        let get = |name: &str| match name {
            "x-user" => Some(&b"u7"[..]),
            "x-long" => Some(&long[..]),
            "x-other" => Some(&b"no"[..]),
            _ => None,
        };
        assert!(steering.of(get).is_none());
        steering.set(["x-user", "x-long", "x-absent"].map(Arc::from).to_vec());
        assert_eq!(*steering.of(get).unwrap(), [("x-user".into(), "u7".into())]);
        steering.set(vec!["x-absent".into()]);
        assert!(steering.of(get).is_none());
    }
}

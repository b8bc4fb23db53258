//! To which version a call goes that names none: by its header, by weight, and always to the same one for callers that
//! stick.
//!
//! Pure but for one counter. Which versions there are is the repository's; what becomes of a copy of a call is `shadow`'s.

use super::shadow::Mirror;
use crate::call::{Facts, Identity, InferRequest, MOST_HEADERS, ModelRef, Parameter};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What a model says of its versions besides which of them are served (`version_labels`, `traffic`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Names by which callers may call a version: label and version.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Where calls go that name none.
    pub traffic: Traffic,
}

/// Where calls go that name no version (`traffic`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Versions and their weights, ascending; empty: the highest version that is ready.
    pub split: Vec<(Arc<str>, NonZeroU32)>,
    /// The header, in lower case, or parameter by which a call may choose a version or label for itself.
    pub header: Option<Arc<str>>,
    /// What keeps a caller at one version of the split.
    pub sticky: Option<Sticky>,
    /// A version that is tried on copies of calls.
    pub shadow: Option<Shadow>,
}

/// What keeps a caller at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// Who it is. Anonymous callers are told apart by nothing, so they do not stick.
    Identity,
    /// The value of this header, in lower case, or parameter. Calls without it do not stick.
    Header(Arc<str>),
}

/// A version that is tried on copies of calls, whose answers reach nobody (`traffic.shadow`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// The version.
    pub to: Arc<str>,
    /// Calls out of a million that are copied.
    pub share: u32,
    /// Most copies that wait or run.
    pub queue: usize,
    /// Most bytes of inputs and outputs that they hold.
    pub memory: usize,
    /// Most copies that run at once.
    pub in_flight: usize,
    /// How long a copy may wait and run.
    pub timeout: Duration,
}

/// A [`Routing`] in use.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub(super) routing: Arc<Routing>,
    /// Calls so far that the split has sent somewhere and that did not stick.
    turns: Arc<AtomicU64>,
    pub(super) mirror: Option<Arc<Mirror>>,
}

/// What of a call decides where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    identity: &'a Identity,
    facts: &'a Facts,
    request: &'a InferRequest,
}

// === impl Shadow ===

impl Default for Shadow {
    fn default() -> Self {
        Self {
            to: "".into(),
            share: 1_000_000,
            queue: 64,
            memory: 16 << 20,
            in_flight: 1,
            timeout: Duration::from_secs(10),
        }
    }
}

// === impl Routing ===

impl Routing {
    /// Headers and parameters that its rules look at.
    pub(super) fn headers(&self) -> impl Iterator<Item = &Arc<str>> {
        let sticky = match &self.traffic.sticky {
            Some(Sticky::Header(name)) => Some(name),
            Some(Sticky::Identity) | None => None,
        };
        self.traffic.header.iter().chain(sticky)
    }

    /// Why its rules cannot be in force beside those that look at the headers `others`: front-ends keep so many and no more,
    /// for all models together.
    pub(super) fn beyond(&self, others: &BTreeSet<Arc<str>>) -> Option<String> {
        let new: BTreeSet<_> = self.headers().filter(|name| !others.contains(*name)).collect();
        let name = new.iter().nth(MOST_HEADERS.saturating_sub(others.len()))?;
        Some(format!(
            "its rules of traffic look at `{name}`, and models may look at {MOST_HEADERS} headers or parameters together, \
             which others do"
        ))
    }

    /// Whether a version gets no more of the calls that name none under these rules than the rules `new` would give it, as
    /// far as that is certain.
    pub(super) fn shields(&self, version: &str, new: &Self) -> bool {
        let target = |traffic: &Traffic| traffic.shadow.as_ref().map(|shadow| Arc::clone(&shadow.to));
        let (now, new) = (&self.traffic, &new.traffic);
        let gets_none = match now.split.is_empty() {
            false => now.split.iter().all(|(other, _)| **other != *version),
            true => target(now).is_some_and(|target| *target == *version),
        };
        gets_none || (now.split == new.split && target(now) == target(new))
    }

    /// What names a version that is not among `served`, and which.
    pub(super) fn strays<'a>(&'a self, served: &'a [u64]) -> impl Iterator<Item = (String, &'a str)> {
        let labels = self.labels.iter().map(|(label, version)| (format!("label `{label}`"), &**version));
        let split = self.traffic.split.iter().map(|(version, _)| ("`traffic.split`".to_owned(), &**version));
        let shadow = self.traffic.shadow.iter().map(|shadow| ("`traffic.shadow`".to_owned(), &*shadow.to));
        let is_stray = |(_, version): &(String, &str)| !served.iter().any(|served| served.to_string() == *version);
        labels.chain(split).chain(shadow).filter(is_stray)
    }
}

// === impl Routes ===

impl Routes {
    /// What follows `before`: a split or a shadow that is the same goes on counting where it was, and a shadow's copies that
    /// wait or run still count.
    pub(super) fn new(routing: &Arc<Routing>, before: Option<&Self>) -> Self {
        let traffic = &routing.traffic;
        let same_split = before.filter(|before| before.routing.traffic.split == traffic.split);
        let same_shadow = before.filter(|before| before.routing.traffic.shadow == traffic.shadow);
        let mirror = match same_shadow {
            Some(before) => before.mirror.clone(),
            None => traffic.shadow.clone().map(|shadow| Arc::new(Mirror::new(shadow))),
        };
        let turns = same_split.map(|before| Arc::clone(&before.turns)).unwrap_or_default();
        Self { routing: Arc::clone(routing), turns, mirror }
    }

    /// The version that a call asks for in a header or parameter.
    pub(super) fn asked<'a>(&self, caller: &Caller<'a>) -> Option<&'a str> {
        caller.header(self.routing.traffic.header.as_deref()?)
    }

    /// The version of the split to which a call goes, out of those that are `ready`; `None` if none of them is, or there
    /// is no split.
    pub(super) fn split(&self, caller: Option<&Caller<'_>>, ready: impl Fn(&str) -> bool) -> Option<&Arc<str>> {
        let traffic = &self.routing.traffic;
        let open = || traffic.split.iter().filter(|(version, _)| ready(version));
        let Some(caller) = caller else {
            // A question goes where most calls go; of equal weights, to the highest version.
            return open().max_by_key(|(_, weight)| *weight).map(|(version, _)| version);
        };
        let key = match &traffic.sticky {
            None => None,
            Some(Sticky::Identity) => (!caller.identity.is_anonymous()).then(|| &**caller.identity.id()),
            Some(Sticky::Header(name)) => caller.header(name),
        };
        if let Some(key) = key {
            // Weighted rendezvous hashing: whoever loses its version goes to one of the others, everyone else stays, and
            // a larger weight only draws callers in. The same in every process, so in every replica.
            let score = |(version, weight): &&(Arc<str>, NonZeroU32)| {
                -fraction(hash(key, version)).ln() / f64::from(weight.get())
            };
            let best = open().min_by(|a, b| score(a).total_cmp(&score(b)));
            return best.map(|(version, _)| version);
        }
        let total: u64 = open().map(|(_, weight)| u64::from(weight.get())).sum();
        if total == 0 {
            return None;
        }
        let mut point = spread(&self.turns, GOLDEN, total);
        open().find_map(|(version, weight)| {
            let weight = u64::from(weight.get());
            let here = point < weight;
            point = point.saturating_sub(weight);
            here.then_some(version)
        })
    }
}

/// The golden ratio's fraction, in units of 2⁻⁶⁴.
pub(super) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The inverse of the plastic ratio, the root of x³ = x + 1, in units of 2⁻⁶⁴. Multiples of the two together fill a square evenly (Weyl), as
/// neither is a fraction of the other: what one counter chooses has nothing to do with what the other one does.
pub(super) const PLASTIC: u64 = 0xC13F_A9A9_02A6_328F;

/// The next of `turns` as a number below `below`. Multiples of such a `step` fill a circle evenly however many there are
/// (Weyl), so shares are exact after few calls, where chance would need thousands.
pub(super) fn spread(turns: &AtomicU64, step: u64, below: u64) -> u64 {
    let turn = turns.fetch_add(1, Ordering::Relaxed).wrapping_mul(step);
    // The upper half of a product of 128 bits is below `below`.
    ((u128::from(turn) * u128::from(below)) >> 64) as u64
}

/// 64 bits of a caller and a version: FNV-1a, mixed. No secret, and nobody wins anything by choosing a version for itself.
fn hash(key: &str, version: &str) -> u64 {
    let bytes = key.bytes().chain([0]).chain(version.bytes());
    let mut hash =
        bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

/// Above 0 and at most 1.
fn fraction(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / 2_f64.powi(53)
}

// === impl Caller ===

impl<'a> Caller<'a> {
    pub(super) fn new(identity: &'a Identity, facts: &'a Facts, request: &'a InferRequest) -> Self {
        Self { identity, facts, request }
    }

    pub(super) fn wanted(&self) -> &'a ModelRef {
        &self.request.model
    }

    /// A parameter of the request, or else a header of what it came in, by its name in lower case. The empty text is none.
    fn header(&self, name: &str) -> Option<&'a str> {
        let parameter = self.request.parameters.iter().find_map(|(key, value)| match value {
            Parameter::String(text) if key.eq_ignore_ascii_case(name) => Some(&**text),
            _ => None,
        });
        parameter.or_else(|| self.facts.steering(name)).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;

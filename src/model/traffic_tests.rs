//! Where calls go that name no version, and what labels mean.

use super::*;
use crate::{
    call::{NamedTensor, Scope, Steering},
    error::Error,
    model::{Repository, State, testing},
};
use std::collections::HashMap;

const CALLS: u32 = 100_000;

fn split(weights: &[(&str, u32)]) -> Vec<(Arc<str>, NonZeroU32)> {
    weights.iter().map(|(version, weight)| ((*version).into(), NonZeroU32::new(*weight).unwrap())).collect()
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    labels.iter().map(|(label, version)| ((*label).into(), (*version).into())).collect()
}

/// A model `m` of these versions, all ready.
fn repository(versions: &[&str], routing: Routing) -> Repository {
    let repository = Repository::default();
    for version in versions {
        ready(&repository, version);
    }
    say(&repository, routing);
    repository
}

fn ready(repository: &Repository, version: &str) {
    repository.set(&"m".into(), &version.into(), &State::Ready(testing::model("m", version)));
}

fn say(repository: &Repository, routing: Routing) {
    repository.set_routing(&"m".into(), &Arc::new(routing)).unwrap();
}

fn traffic(traffic: Traffic) -> Routing {
    Routing { traffic, ..Routing::default() }
}

/// A call as the router sees it.
struct Asking {
    identity: Identity,
    facts: Facts,
    request: InferRequest,
}

fn asking(identity: &str) -> Asking {
    let model = ModelRef { name: "m".into(), version: None };
    Asking {
        identity: Identity::proven(identity, Vec::new(), Scope::Everything),
        facts: Facts::default(),
        request: InferRequest::new(model, Vec::<NamedTensor>::new()),
    }
}

impl Asking {
    fn naming(mut self, version: &str) -> Self {
        self.request.model.version = Some(version.into());
        self
    }

    fn with_parameter(mut self, name: &str, value: &str) -> Self {
        self.request.parameters.push((name.into(), Parameter::String(value.into())));
        self
    }

    fn with_header(self, name: &str, value: &str) -> Self {
        let steering = Steering::default();
        steering.set(vec![name.into()]);
        let address = ([127, 0, 0, 1], 1).into();
        let peer = Arc::new(crate::call::Peer::new(address, address));
        let id = crate::call::CallId::make();
        let head = crate::call::Head::new(id, crate::call::Surface::Rest, crate::call::Intent::Infer, peer);
        let head = head.steered(steering.of(|_| Some(value.as_bytes())));
        Self { facts: Arc::into_inner(head.facts).unwrap(), ..self }
    }

    fn goes(&self, repository: &Repository) -> Result<String, Error> {
        let caller = Caller::new(&self.identity, &self.facts, &self.request);
        repository.route(&caller).map(|(model, _)| model.key.version.to_string())
    }
}

fn shares(calls: impl Iterator<Item = String>) -> HashMap<String, f64> {
    let mut counts: HashMap<String, u32> = HashMap::new();
    calls.for_each(|version| *counts.entry(version).or_default() += 1);
    counts.into_iter().map(|(version, count)| (version, f64::from(count) / f64::from(CALLS))).collect()
}

#[test]
fn shares_are_within_one_percent_over_100_000_calls() {
    for weights in [&[("3", 90), ("4", 10)][..], &[("1", 1), ("2", 2), ("3", 4)], &[("1", 999_999), ("2", 1)]] {
        let versions: Vec<_> = weights.iter().map(|(version, _)| *version).collect();
        let split = split(weights);
        let repository = repository(&versions, traffic(Traffic { split, ..Traffic::default() }));
        let call = asking("a");
        let shares = shares((0..CALLS).map(|_| call.goes(&repository).unwrap()));
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        for (version, weight) in weights {
            let (found, wanted) = (shares.get(*version).copied().unwrap_or(0.0), f64::from(*weight) / f64::from(total));
            assert!((found - wanted).abs() < 0.01, "{version}: {found} of {wanted}");
            // Far better than chance, in fact.
            assert!((found - wanted).abs() < 0.001, "{version}: {found} of {wanted}");
        }
    }
}

#[test]
fn callers_that_stick_stay_and_their_shares_are_kept() {
    let say_split = |weights: &[(&str, u32)]| {
        traffic(Traffic { split: split(weights), sticky: Some(Sticky::Identity), ..Traffic::default() })
    };
    let repository = repository(&["3", "4", "5"], say_split(&[("3", 80), ("4", 10), ("5", 10)]));
    let callers: Vec<_> = (0..CALLS).map(|number| asking(&format!("user-{number}"))).collect();
    let all = || callers.iter().map(|caller| caller.goes(&repository).unwrap()).collect::<Vec<_>>();
    let first = all();
    assert_eq!(first, all(), "whoever calls again stays");
    let shares = shares(first.iter().cloned());
    assert!((shares["3"] - 0.8).abs() < 0.01 && (shares["4"] - 0.1).abs() < 0.01, "{shares:?}");
    // A version that goes takes only its own callers with it.
    repository.remove(&"m".into(), "5");
    for (before, now) in first.iter().zip(all()) {
        assert!(*before == now || before == "5", "{before} to {now}");
    }
    ready(&repository, "5");
    assert_eq!(first, all(), "and they come back with it");
    // A larger weight only draws callers in.
    say(&repository, say_split(&[("3", 80), ("4", 10), ("5", 30)]));
    for (before, now) in first.iter().zip(all()) {
        assert!(*before == now || now == "5", "{before} to {now}");
    }
}

#[test]
fn who_cannot_be_told_from_others_does_not_stick() {
    let split = || split(&[("3", 1), ("4", 1)]);
    let sticky = traffic(Traffic { split: split(), sticky: Some(Sticky::Identity), ..Traffic::default() });
    let repository = repository(&["3", "4"], sticky);
    let anonymous = asking(crate::call::ANONYMOUS);
    let found: Vec<_> = (0..4).map(|_| anonymous.goes(&repository).unwrap()).collect();
    assert!(found.contains(&"3".to_owned()) && found.contains(&"4".to_owned()), "{found:?}");
    let header = Some(Sticky::Header("x-user".into()));
    say(&repository, traffic(Traffic { split: split(), sticky: header, ..Traffic::default() }));
    let goes = |call: Asking| (0..8).map(|_| call.goes(&repository).unwrap()).collect::<std::collections::HashSet<_>>();
    assert_eq!(goes(asking("a")).len(), 2, "without the header");
    assert_eq!(goes(asking("a").with_header("x-user", "u")).len(), 1);
    // A parameter stands for the header where there is none, and wins where there is one.
    assert_eq!(goes(asking("a").with_header("x-user", "u")), goes(asking("b").with_parameter("X-User", "u")));
    let both = asking("a").with_header("x-user", "other").with_parameter("x-user", "u");
    assert_eq!(goes(both), goes(asking("b").with_parameter("x-user", "u")));
}

#[test]
fn a_call_may_choose_by_header_what_it_could_name() {
    let chosen =
        traffic(Traffic { split: split(&[("3", 1)]), header: Some("x-model-version".into()), ..Traffic::default() });
    let repository = repository(&["3", "4"], Routing { labels: labels(&[("canary", "4")]), ..chosen });
    assert_eq!(asking("a").goes(&repository).unwrap(), "3");
    for version in ["4", "canary"] {
        assert_eq!(asking("a").with_header("x-model-version", version).goes(&repository).unwrap(), "4");
    }
    let named = asking("a").with_header("x-model-version", "4").naming("3");
    assert_eq!(named.goes(&repository).unwrap(), "3", "who names a version gets it");
    let error = asking("a").with_header("x-model-version", "7").goes(&repository).unwrap_err();
    assert_eq!(error.to_string(), "version `7` of model `m` is unknown");
    assert_eq!(asking("a").with_header("x-model-version", "").goes(&repository).unwrap(), "3");
}

#[test]
fn only_what_is_served_has_a_share() {
    let repository =
        repository(&["3", "4"], traffic(Traffic { split: split(&[("3", 1), ("4", 9)]), ..Traffic::default() }));
    repository.set(&"m".into(), &"4".into(), &State::Loading);
    assert!((0..100).all(|_| asking("a").goes(&repository).unwrap() == "3"));
    ready(&repository, "9");
    repository.set(&"m".into(), &"3".into(), &State::Failed("bad".into()));
    let error = asking("a").goes(&repository).unwrap_err();
    assert!(matches!(error, Error::ModelNotReady { .. }), "{error}: another version may not answer for it");
    assert_eq!(asking("a").naming("9").goes(&repository).unwrap(), "9");
}

#[test]
fn a_question_means_the_version_where_most_calls_go() {
    let wanted = ModelRef { name: "m".into(), version: None };
    let usual = |repository: &Repository| repository.resolve(&wanted).unwrap().key.version.to_string();
    let repository =
        repository(&["3", "4", "5"], traffic(Traffic { split: split(&[("3", 9), ("4", 1)]), ..Traffic::default() }));
    assert_eq!(usual(&repository), "3");
    let shadow = Some(Shadow { to: "5".into(), ..Shadow::default() });
    say(&repository, traffic(Traffic { shadow, ..Traffic::default() }));
    assert_eq!(usual(&repository), "4", "a shadow answers nobody");
    assert_eq!(asking("a").goes(&repository).unwrap(), "4");
    say(&repository, Routing::default());
    assert_eq!(usual(&repository), "5");
}

#[test]
fn a_label_is_the_version_that_carries_it_and_moves_with_its_model() {
    let say_labels = |found: &[(&str, &str)]| Routing { labels: labels(found), ..Routing::default() };
    let repository = repository(&["3", "4"], say_labels(&[("stable", "3"), ("canary", "4"), ("next", "7")]));
    let goes = |version: &str| asking("a").naming(version).goes(&repository).map_err(|error| error.to_string());
    assert_eq!((goes("stable").as_deref(), goes("canary").as_deref()), (Ok("3"), Ok("4")));
    assert_eq!(goes("next").unwrap_err(), "version `7`, labelled `next` of model `m` is unknown");
    assert_eq!(goes("old").unwrap_err(), "version `old` of model `m` is unknown");
    repository.set(&"m".into(), &"4".into(), &State::Loading);
    assert_eq!(goes("canary").unwrap_err(), "model `m` is loading");
    say(&repository, say_labels(&[("stable", "4"), ("canary", "3")]));
    assert_eq!(goes("canary").as_deref(), Ok("3"));
    let labelled = ModelRef::labelled("m", "canary");
    assert_eq!(&*repository.resolve(&labelled).unwrap().key.version, "3");
    assert_eq!(repository.versions(&labelled).unwrap().versions.len(), 1);
    // What has the form of a version is one, also where only labels stand.
    assert!(repository.resolve(&ModelRef::labelled("m", "3")).is_err());
}

#[test]
fn rules_that_stay_the_same_go_on_counting_and_their_headers_are_kept() {
    let routing = || {
        traffic(Traffic {
            split: split(&[("3", 1), ("4", 1)]),
            sticky: Some(Sticky::Header("x-user".into())),
            header: Some("x-version".into()),
            ..Traffic::default()
        })
    };
    let repository = repository(&["3", "4"], routing());
    let kept = |name: &str| repository.steering().of(|wanted| (wanted == name).then_some(&b"v"[..])).is_some();
    assert!(kept("x-user") && kept("x-version") && !kept("authorization"));
    let call = asking("a");
    let mut found = Vec::new();
    for _ in 0..100 {
        say(&repository, routing());
        found.push(call.goes(&repository).unwrap());
    }
    let count = found.iter().filter(|version| **version == "3").count();
    assert!((49..=51).contains(&count), "{found:?}");
    say(&repository, Routing::default());
    assert!(!kept("x-user"));
}

#[test]
fn what_is_equal_goes_on_counting_when_something_else_is_said() {
    let routing = |label: &str| {
        let shadow = crate::model::Shadow { to: "3".into(), share: 300_000, ..Default::default() };
        let split = split(&[("1", 3), ("2", 2)]);
        Routing {
            labels: labels(&[(label, "1")]),
            traffic: Traffic { split, shadow: Some(shadow), ..Traffic::default() },
        }
    };
    let sequence = |says: bool| {
        let repository = repository(&["1", "2", "3"], routing("x"));
        let call = asking("ada");
        let one = |number: usize| {
            if says && number % 3 == 2 {
                say(&repository, routing(&format!("x{number}")));
            }
            let (model, aim) = repository.route(&Caller::new(&call.identity, &call.facts, &call.request)).unwrap();
            (model.key.version.to_string(), aim.is_some())
        };
        (0..50).map(one).collect::<Vec<_>>()
    };
    assert_eq!(sequence(true), sequence(false));
}

//! Names, versions and states, and what is said of them.

use super::*;
use crate::{call::Report, model::testing};

fn wanted(name: &str, version: Option<&str>) -> ModelRef {
    ModelRef { name: name.into(), version: version.map(Into::into) }
}

fn repository(versions: &[(&str, &str)]) -> Repository {
    let repository = Repository::default();
    for (version, state) in versions {
        let state = match *state {
            "ready" => State::Ready(testing::model("m", version)),
            "loading" => State::Loading,
            "failed" => State::Failed("corrupt".into()),
            _ => State::Unloading(std::sync::Weak::new()),
        };
        repository.set(&"m".into(), &(*version).into(), &state);
    }
    repository
}

fn version(repository: &Repository, version: Option<&str>) -> String {
    repository.resolve(&wanted("m", version)).unwrap().key.version.to_string()
}

#[test]
fn without_a_version_the_highest_ready_one_runs() {
    let repository = repository(&[("9", "ready"), ("10", "ready"), ("11", "failed")]);
    assert_eq!(version(&repository, None), "10");
    assert_eq!(version(&repository, Some("9")), "9");
}

#[test]
fn a_version_that_is_named_is_that_one_or_none() {
    let repository = repository(&[("1", "ready"), ("2", "loading")]);
    let error = repository.resolve(&wanted("m", Some("2"))).unwrap_err();
    assert!(matches!(error, Error::ModelNotReady { state: "loading", .. }));
    let error = repository.resolve(&wanted("m", Some("3"))).unwrap_err();
    assert_eq!(error.to_string(), "version `3` of model `m` is unknown");
    let error = repository.resolve(&wanted("n", Some("3"))).unwrap_err();
    assert_eq!(error.to_string(), "model `n` is unknown");
}

#[test]
fn with_nothing_ready_the_most_hopeful_state_is_told() {
    let repository = repository(&[("1", "loading"), ("2", "failed")]);
    let error = repository.resolve(&wanted("m", None)).unwrap_err();
    assert!(matches!(error, Error::ModelNotReady { state: "loading", .. }));
    assert!(!repository.is_ready(&wanted("m", None)).unwrap());
}

#[test]
fn metadata_lists_versions_that_may_be_requested() {
    let repository = repository(&[("2", "ready"), ("1", "ready"), ("3", "failed")]);
    let versions = |version| -> Vec<String> {
        let (_, report) = repository.report(&wanted("m", version)).unwrap();
        report.versions.iter().map(ToString::to_string).collect()
    };
    assert_eq!(versions(None), ["1", "2"]);
    assert_eq!(versions(Some("1")), ["1"]);
}

#[test]
fn a_removed_version_is_unknown() {
    let repository = repository(&[("1", "ready")]);
    repository.remove(&"m".into(), "1");
    assert!(matches!(repository.resolve(&wanted("m", None)), Err(Error::ModelNotFound { .. })));
    assert!(repository.names().is_empty());
}

#[test]
fn a_call_keeps_the_model_it_started_with() {
    let repository = repository(&[("1", "ready")]);
    let old = repository.resolve(&wanted("m", None)).unwrap();
    repository.set(&"m".into(), &"1".into(), &State::Ready(testing::model("m", "1")));
    let new = repository.resolve(&wanted("m", None)).unwrap();
    assert!(!Arc::ptr_eq(&old, &new));
    assert!(old.scheduler.is_ready());
}

#[test]
fn rules_that_look_at_one_header_too_many_are_refused_and_name_it() {
    let repository = Repository::default();
    let routing = |header: &str| {
        let traffic = crate::model::Traffic { header: Some(header.into()), ..Default::default() };
        Arc::new(Routing { traffic, ..Routing::default() })
    };
    let set = |name: &str, header: &str| {
        repository.set(&name.into(), &"1".into(), &State::Ready(testing::model(name, "1")));
        repository.set_routing(&name.into(), &routing(header))
    };
    for number in 0..crate::call::MOST_HEADERS {
        set(&format!("m{number}"), &format!("x-{number}")).unwrap();
    }
    set("shares", "x-3").unwrap();
    let refused = set("late", "x-late").unwrap_err();
    assert!(refused.contains("`x-late`") && refused.contains("16 headers"), "{refused}");
    assert!(repository.routing("late").is_none());
    // What goes makes room.
    repository.remove(&"m0".into(), "1");
    set("late", "x-late").unwrap();
}

#[test]
fn what_is_said_of_a_model_stands_beside_each_version_that_is_served() {
    let repository = repository(&[("1", "ready"), ("2", "failed")]);
    let reasons = || {
        let Report::Index(entries) = repository.index(Vec::new(), false) else { panic!() };
        entries.iter().map(|entry| entry.reason.to_string()).collect::<Vec<_>>()
    };
    let failed = "not served: loading it failed: corrupt";
    repository.trouble(&"m".into(), Some(&"label `x` is nothing".into()));
    assert_eq!(reasons(), [failed, "label `x` is nothing"]);
    repository.failed(&"m".into(), &"1".into(), "bad");
    assert_eq!(reasons(), [failed, "goes on as it was loaded before: bad"]);
    repository.set(&"m".into(), &"1".into(), &State::Ready(testing::model("m", "1")));
    repository.trouble(&"m".into(), None);
    assert_eq!(reasons(), [failed, ""]);
}

#[test]
fn rules_of_models_that_are_unloaded_take_no_room() {
    let repository = Repository::default();
    let set = |name: &str| {
        let traffic = crate::model::Traffic { header: Some(format!("x-{name}").into()), ..Default::default() };
        repository.set(&name.into(), &"1".into(), &State::Ready(testing::model(name, "1")));
        repository.set_routing(&name.into(), &Arc::new(Routing { traffic, ..Routing::default() }))
    };
    for number in 0..crate::call::MOST_HEADERS {
        set(&format!("m{number}")).unwrap();
    }
    repository.set(&"m0".into(), &"1".into(), &State::Unloaded);
    set("late").unwrap();
    assert!(set("m0").unwrap_err().contains("`x-m0`"), "it comes back like any other");
}

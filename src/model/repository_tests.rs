//! Names, versions and states, and what is said of them.

use super::*;
use crate::model::testing;

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
            _ => State::Unloading,
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

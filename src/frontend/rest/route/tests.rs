//! Which route a path leads to, and which paths lead nowhere.

use super::*;
use crate::error::Code;
use proptest::prelude::*;

fn code(method: &Method, path: &str) -> Code {
    find(method, path).unwrap_err().error.code()
}

#[test]
fn models_and_versions_are_taken_from_the_path() {
    let infer = |path| find(&Method::POST, path).unwrap().0;
    assert_eq!(infer("/v2/models/m/infer"), Route::Infer(named("m", None)));
    assert_eq!(infer("/v2/models/m/versions/3/infer"), Route::Infer(named("m", Some("3"))));
    assert_eq!(infer("/v2/models/org%2Fname/infer"), Route::Infer(named("org/name", None)));
    assert_eq!(infer("/v2/models/%C3%BC/infer"), Route::Infer(named("ü", None)));
    let get = |path| find(&Method::GET, path).unwrap().0;
    assert_eq!(get("/v2/models/ready/ready"), Route::Inspect(Inspect::Ready(named("ready", None))));
    assert_eq!(get("/v2/models/m/versions/1"), Route::Inspect(Inspect::Model(named("m", Some("1")))));
    assert_eq!(get("/v2"), get("/v2/"));
    assert_eq!(get("/%76%32"), get("/v2"));
}

#[test]
fn probes_take_head_and_nothing_else() {
    for path in ["/", "/v2/health/live", "/v2/health/ready"] {
        assert!(matches!(find(&Method::HEAD, path), Ok((Route::Probe(_), _))));
        assert!(matches!(find(&Method::POST, path).unwrap_err().error, Error::MethodNotAllowed { allow: "GET" }));
    }
    assert!(matches!(find(&Method::HEAD, "/v2").unwrap_err().error, Error::MethodNotAllowed { allow: "GET" }));
}

#[test]
fn what_comes_later_says_so_and_knows_its_methods() {
    let post = ["/v2/repository/r/index", "/v1/chat/completions"];
    for path in post {
        assert_eq!(code(&Method::POST, path), Code::Unimplemented, "{path}");
        assert_eq!(code(&Method::GET, path), Code::MethodNotAllowed, "{path}");
    }
    let get = ["/openai/v1/models"];
    for path in get {
        assert_eq!(code(&Method::GET, path), Code::Unimplemented, "{path}");
    }
}

#[test]
fn one_path_may_look_and_change() {
    let found = |method: &Method, path: &str| find(method, path).unwrap().0;
    assert_eq!(found(&Method::GET, "/v2/models/stats"), Inspect::Statistics(None).into());
    let one = named("m", Some("1"));
    assert_eq!(found(&Method::GET, "/v2/models/m/versions/1/stats"), Inspect::Statistics(Some(one.clone())).into());
    assert_eq!(found(&Method::GET, "/v2/models/m/config"), Inspect::Config(named("m", None)).into());
    assert_eq!(found(&Method::GET, "/v2/logging"), Inspect::Logging.into());
    assert_eq!(found(&Method::POST, "/v2/logging"), Change::Logging.into());
    assert_eq!(found(&Method::POST, "/v2/models/m/trace/setting"), Change::Trace(Some(named("m", None))).into());
    assert_eq!(found(&Method::POST, "/v2/repository/index"), Change::Index.into());
    assert_eq!(found(&Method::POST, "/v2/repository/models/m/load"), Change::Load(named("m", None)).into());
    assert_eq!(found(&Method::POST, "/v2/repository/models/m/versions/1/unload"), Change::Unload(one).into());
    assert_eq!(code(&Method::GET, "/v2/repository/index"), Code::MethodNotAllowed);
    assert_eq!(code(&Method::DELETE, "/v2/logging"), Code::MethodNotAllowed);
}

#[test]
fn the_unknown_is_not_found_in_its_family() {
    let family = |path| {
        let miss = find(&Method::GET, path).unwrap_err();
        assert_eq!(miss.error.code(), Code::NotFound, "{path}");
        miss.family
    };
    assert_eq!(family("/nope"), Family::Text);
    assert_eq!(family("/v2/models/m/nope"), Family::Text);
    assert_eq!(family("/v2/models/"), Family::Text);
    assert_eq!(family("/v1/nope"), Family::OpenAi);
    assert_eq!(family("/openai/nope"), Family::OpenAi);
    assert_eq!(family("/v1/ws/nope"), Family::Problem);
    assert_eq!(Family::of("/v1/models/m"), Family::Text);
    assert_eq!(Family::of("/v1/wsx"), Family::OpenAi);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let odd = [
        "//v2",
        "/v2//models",
        "/v2/models/../x",
        "/v2/models/%2e%2E",
        "/v2/./models",
        "/v2/models/a%00b",
        "/v2/models/%",
        "/v2/models/%4",
        "/v2/models/%zz",
        "/v2/models/%c0%af",
        "/v2/models/%ff",
        "*",
    ];
    for path in odd {
        assert_eq!(code(&Method::GET, path), Code::InvalidArgument, "{path}");
    }
}

proptest! {
    #[test]
    fn no_path_panics_and_escaping_changes_nothing(path in "(/[a-zA-Z0-9._%:-]{0,6}){0,7}", name in "\\PC{1,12}") {
        let _ = find(&Method::GET, &path);
        let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let found = find(&Method::POST, &format!("/v2/models/{escaped}/infer"));
        if name == "." || name == ".." {
            prop_assert!(found.is_err());
        } else {
            prop_assert_eq!(found.unwrap().0, Route::Infer(named(&name, None)));
        }
    }
}

#[test]
fn every_path_that_becomes_a_call_has_a_label_of_its_own() {
    use crate::call;
    for row in TABLE {
        let label = call::Route::named(&row.template());
        let is_call = [row.get, row.post]
            .into_iter()
            .flatten()
            .any(|operation| !matches!(operation.of_nothing(), Route::Probe(_) | Route::Page(_)));
        assert_eq!(label == call::Route::Other, !is_call, "{}", row.template());
    }
}

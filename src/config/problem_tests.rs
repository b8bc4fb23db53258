//! Each mistake is told once, and nothing that only comes of it.

use super::*;

fn problems(text: &str) -> Vec<String> {
    let parsed = Config::parse(text, "test.yaml", Path::new("/etc/sluicegate"), Overrides::default());
    let list = parsed.map(|_| Vec::new()).unwrap_or_else(|problems| problems.list);
    list.into_iter().map(|problem| format!("{}: {}", problem.path, problem.text)).collect()
}

#[test]
fn what_is_malformed_is_not_missing_as_well() {
    for (text, problem) in [
        ("limits: { rate: [{ name: a, limit: 5 }] }", "limits.rate[0].limit: 5 has no unit; write 5/s"),
        ("limits: { rate: [{ name: a, limit: 0/s }] }", "limits.rate[0].limit: 0/s is zero; "),
        ("limits: { rate: [{ name: [x], limit: 5/s }] }", "limits.rate[0].name: found "),
        ("limits: { rate: [{ name: a, limit: 5/s, models: [[x]] }] }", "limits.rate[0].models[0]: found "),
        ("grants: [{ to: [[x]], intents: [infer], models: [x] }]", "grants[0].to[0]: found "),
        ("grants: [{ to: 5, intents: [infer], models: [x] }]", "grants[0].to: found "),
        ("grants: [{ to: [nobody], intents: [infer], models: [x] }]", "grants[0].to[0]: "),
        ("grants: [{ to: [anonymous], intents: [[x]], models: [x] }]", "grants[0].intents[0]: found "),
        ("listen: [5]", "listen[0]: found "),
        ("listen: [{ surfaces: [[x]] }]", "listen[0].surfaces[0]: found "),
        ("rest: { predict: { model: [x] } }", "rest.predict.model: found "),
    ] {
        let found = problems(text);
        assert!(matches!(&found[..], [only] if only.starts_with(problem)), "{text}: {found:#?}");
    }
    // What is missing besides is told.
    let both = problems("limits: { rate: [{ name: a, limit: 5 }, { name: b }] }");
    assert_eq!(both.len(), 2, "{both:#?}");
    assert_eq!(both[1], "limits.rate[1].limit: is missing, expected a rate such as 100/s");
}

#[test]
fn where_a_variable_is_not_set_nothing_else_is_wrong() {
    for (text, path) in [
        ("listen: [{ address: \"${NOT_THERE}\" }]", "listen[0].address"),
        ("listen: [{ address: \"${NOT_THERE}:80\" }]", "listen[0].address"),
        ("admin: { address: \"${NOT_THERE}\" }", "admin.address"),
        ("limits: { rate: [{ name: \"${NOT_THERE}\", limit: 5/s }] }", "limits.rate[0].name"),
        ("limits: { rate: [{ name: a, limit: \"${NOT_THERE}\" }] }", "limits.rate[0].limit"),
        ("limits: { shared: { redis: { file: \"${NOT_THERE}\" } } }", "limits.shared.redis.file"),
        ("auth: { api_keys: { file: \"${NOT_THERE}\" } }", "auth.api_keys.file"),
        ("grants: [{ to: [\"${NOT_THERE}\"], intents: [infer], models: [x] }]", "grants[0].to[0]"),
        ("auth: { jwt: [{ issuer: i, audience: a, algorithms: [RS256], key: \"${NOT_THERE}\" }] }", "auth.jwt[0].key"),
    ] {
        assert_eq!(problems(text), [format!("{path}: the variable `NOT_THERE` is not set")], "{text}");
    }
}

#[test]
fn names_of_policies_are_what_headers_and_metrics_can_say() {
    let named = |name: &str| problems(&format!("limits: {{ rate: [{{ name: {name}, limit: 1/s }}] }}"));
    let (longest, longer) = ("x".repeat(64), "x".repeat(65));
    for name in ["per-identity", "\"5 a day, {~}\"", &*longest] {
        assert_eq!(named(name), [""; 0], "{name}");
    }
    for name in ["\"ü\"", r#""a\nb""#, r#""a\"b""#, r#""a\\b""#, "\"a'b\"", &*longer] {
        let found = named(name);
        assert!(matches!(&found[..], [only] if only.contains("is not a name of a policy")), "{name}: {found:?}");
        assert!(!found[0].contains('\n'), "{found:?}");
    }
    for name in ["concurrency", "address"] {
        let expected =
            format!("limits.rate[0].name: `{name}` is the name of a limit that is built in, expected another");
        assert_eq!(named(name), [expected]);
    }
    let twice = problems("limits: { rate: [{ name: a, limit: 1/s }, { name: a, limit: 2/s }] }");
    assert_eq!(twice, ["limits.rate[1].name: `a` is there twice"]);
}

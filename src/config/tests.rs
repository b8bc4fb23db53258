//! What people write and what comes of it.

use super::*;
use crate::model::CacheScope;
use proptest::prelude::*;
use serde_json::Value;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(text, "test.yaml", Path::new("/etc/sluicegate"), Overrides::default())
}

/// The problems of `text`, a line each.
fn problems(text: &str) -> Vec<String> {
    let printed = parse(text).map(|_| String::new()).unwrap_or_else(|problems| problems.to_string());
    printed.lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

fn only_problem(text: &str) -> String {
    let problems = problems(text);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.into_iter().next().unwrap()
}

const FULL: &str = include_str!("../../config/sluicegate.full.yaml");

fn raw(text: &str) -> raw::Config {
    let mut problems = Problems::new("test.yaml");
    let tree = source::tree(text, &mut problems);
    let raw = source::read(tree, &mut problems);
    assert_eq!(problems.list, []);
    raw
}

#[test]
fn the_full_file_is_the_default() {
    assert_eq!(raw(FULL), raw::Config::default());
    let full = Config::parse(FULL, "full", Path::new(""), Overrides::default()).unwrap();
    assert_eq!(format!("{full:?}"), format!("{:?}", Config::default()));
}

#[test]
fn the_full_file_has_every_key() {
    fn compare(path: &str, default: &Value, written: &Value) {
        for (key, default) in default.as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            match written.get(key) {
                Some(written) => compare(&path, default, written),
                None => assert!(default.is_null() && FULL.contains(&format!("# {key}:")), "{path} is missing"),
            }
        }
        for (default, written) in default.as_array().into_iter().flatten().zip(written.as_array().into_iter().flatten())
        {
            compare(path, default, written);
        }
    }
    let written = source::tree(FULL, &mut Problems::new(""));
    compare("", &serde_json::to_value(raw::Config::default()).unwrap(), &written);
    // What is empty by default is shown by example, in a comment.
    fn mentioned(value: &Value) {
        for (key, value) in value.as_object().into_iter().flatten() {
            assert!(FULL.contains(&format!("{key}:")), "{key} is missing");
            mentioned(value);
        }
        value.as_array().into_iter().flatten().for_each(mentioned);
    }
    mentioned(&serde_json::to_value(<raw::Config as source::Shaped>::example()).unwrap());
    mentioned(&serde_json::to_value(<raw::ModelFile as source::Shaped>::example()).unwrap());
}

/// Nothing is both available and not, and the examples of the full file are themselves valid.
#[test]
fn what_comes_later_is_no_key_yet() {
    let mut example = serde_json::to_value(<raw::Config as source::Shaped>::example()).unwrap();
    let mut problems = Problems::new("");
    source::refuse_later(&mut example, LATER, &mut problems);
    assert_eq!(problems.list, []);
}

#[test]
fn keys_with_nothing_behind_them_are_as_good_as_absent() {
    assert_eq!(problems("grants:\nlimits:\n  rate:\nmodels:\n  defaults:\n"), [""; 0]);
}

#[test]
fn defaults_are_those_of_the_settings() {
    let config = Config::default();
    assert_eq!(format!("{:?}", config.frontend), format!("{:?}", frontend::Settings::default()));
    assert_eq!(config.addresses, address::Settings::default());
    assert_eq!(config.auth, auth::Settings::default());
    assert_eq!((config.concurrency, config.deadline), (Concurrency::default(), Deadline::default()));
    assert_eq!(config.models.directories, [Path::new("models")]);
    assert!(config.warnings().is_empty());
}

#[test]
fn every_file_that_is_shipped_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("sluicegate.schema.json") {
            continue;
        }
        if path.ends_with("keys.example.yaml") {
            auth::api_key::KeyFile::open(&path).unwrap();
            continue;
        }
        let config = Config::load(Some(&path), Overrides::default()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(config.warnings(), [""; 0], "{}", path.display());
        files += 1;
        if path.ends_with("sluicegate.yaml") {
            assert_eq!(config.models.directories, [folder.join("../models")]);
        }
    }
    assert!(files >= 4, "{files}");
}

#[test]
fn ports_are_those_of_the_servers_that_are_replaced() {
    use crate::call::Surface::{Grpc, H2Stream, Rest, WebSocket};
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let load = |file| Config::load(Some(&folder.join(file)), Overrides::default()).unwrap();
    let ports = |config: &Config| {
        let admin = config.admin.as_ref().map(|admin| admin.address.port());
        (config.listen.iter().map(|listen| (listen.address.port(), listen.surfaces)).collect::<Vec<_>>(), admin)
    };
    let http = Surfaces::NONE.with(Rest).with(WebSocket).with(H2Stream);
    let grpc = Surfaces::NONE.with(Grpc);
    assert_eq!(ports(&load("triton-ports.yaml")), (vec![(8000, http), (8001, grpc)], Some(8002)));
    let rest = Surfaces::NONE.with(Rest);
    assert_eq!(ports(&load("tfserving-ports.yaml")), (vec![(8501, rest), (8500, grpc)], Some(9464)));
}

#[test]
fn every_problem_is_printed_with_its_path() {
    let text = "limits: { deadline: { default: 20m } }\nmodels: { defaults: { batching: { max_delay: 0.2 } } }\n";
    assert_eq!(
        parse(text).unwrap_err().to_string(),
        "test.yaml: 2 problems\n  \
         models.defaults.batching.max_delay: 0.2 has no unit; write 200ms or 0.2s\n  \
         limits.deadline.default: 20m is above limits.deadline.max (10m)"
    );
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_valid_one() {
    assert_eq!(
        only_problem("models: { defaults: { batching: { max_row: 8 } } }"),
        "models.defaults.batching.max_row: unknown key; the nearest valid one is `max_rows`"
    );
    assert_eq!(
        only_problem("deadline: { max: 1s }"),
        "deadline: unknown key; the nearest valid one is `limits.deadline`"
    );
    assert!(only_problem("listen: [{ adress: \"127.0.0.1:1\" }]").starts_with("listen[0].adress: unknown key"));
    assert!(only_problem("limits: { rate: [{ name: a, limit: 1/s, brust: 1 }] }").contains("`burst`"));
}

#[test]
fn what_comes_later_says_so() {
    assert_eq!(only_problem("idempotency: { age: 10m }"), "`idempotency` is not available in this version");
    let text = "limits: { rate: [{ name: a, limit: 1/s, unit: tokens }] }";
    assert!(only_problem(text).contains("available in this version"), "{text}");
}

#[test]
fn how_answers_are_kept_is_read_and_bounded() {
    let cache = |text: &str| {
        parse(&format!("models: {{ defaults: {{ cache: {text} }} }}")).unwrap().models.defaults.cache.settings()
    };
    assert_eq!((cache("off"), Config::default().models.defaults.cache.settings()), (None, None));
    let default = cache("{}").unwrap();
    assert_eq!(
        (default.memory, default.age, default.scope),
        (64 << 20, Duration::from_secs(600), CacheScope::Identity)
    );
    let shared = cache("{ memory: 1MiB, age: 5s, scope: model }").unwrap();
    assert_eq!((shared.memory, shared.age, shared.scope), (1 << 20, Duration::from_secs(5), CacheScope::Model));
    for text in ["{ memory: 0 }", "{ memory: -1 }", "{ age: 0s }", "{ scope: group }", "{ size: 1MiB }", "on", "true"] {
        let problem = only_problem(&format!("models: {{ defaults: {{ cache: {text} }} }}"));
        assert!(problem.starts_with("models.defaults.cache"), "{problem}");
    }
}

/// Contract 10 section 5: zero and negative values are errors, for every limit there is.
#[test]
fn no_limit_can_be_zero_or_negative() {
    fn leaves(path: &mut Vec<String>, value: &Value, found: &mut Vec<Vec<String>>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                path.push(key.clone());
                leaves(path, value, found);
                path.pop();
            }),
            Value::Array(_) => {}
            _ => found.push(path.clone()),
        }
    }
    let default = serde_json::to_value(raw::Config::default()).unwrap();
    let mut limits = Vec::new();
    for section in ["limits", "drain"] {
        leaves(&mut vec![section.to_owned()], &default[section], &mut limits);
    }
    assert!(limits.len() > 50, "{}", limits.len());
    for path in limits {
        for wrong in ["0", "-1", "0s", "0B", "0/s", "-1s", "-1B", "-1/s"] {
            let text = path.iter().rev().fold(wrong.to_owned(), |inner, key| format!("{{ {key}: {inner} }}"));
            assert!(parse(&text).is_err(), "{text}");
        }
    }
}

#[test]
fn a_problem_shows_a_variable_as_it_was_written() {
    // The one variable that every test process has; its value stands for a secret.
    let secret = std::env::var("PATH").unwrap();
    for text in [
        "listen: [{ address: \"x${PATH}\" }]",
        "auth: { anonymous: \"${PATH}\" }",
        "limits: { size: { body: \"${PATH}\" } }",
        "grants: [{ to: [\"${PATH}\"], intents: [\"${PATH}\"], models: [x] }]",
    ] {
        let problems = parse(text).unwrap_err();
        assert!(!format!("{problems} {problems:?}").contains(&secret), "{text}");
        assert!(problems.to_string().contains("${PATH}"), "{problems}");
    }
}

#[test]
fn traces_go_to_a_collector_nearby() {
    let otlp =
        parse("telemetry: { otlp: { endpoint: \"http://collector:4317\", sample: 0.25 } }").unwrap().telemetry.otlp;
    assert_eq!(otlp.map(|otlp| (otlp.endpoint, otlp.sample)), Some(("http://collector:4317".into(), 0.25)));
    for endpoint in ["", "collector:4317", "https://collector:4317", "http://user:word@collector:4317"] {
        let problem = only_problem(&format!("telemetry: {{ otlp: {{ endpoint: \"{endpoint}\" }} }}"));
        assert!(problem.starts_with("telemetry.otlp.endpoint: is not"), "{problem}");
        assert!(!problem.contains("word"));
    }
    for sample in ["-0.1", "1.5"] {
        let text = format!("telemetry: {{ otlp: {{ endpoint: \"http://c:1\", sample: {sample} }} }}");
        assert!(only_problem(&text).starts_with("telemetry.otlp.sample: "), "{sample}");
    }
}

#[test]
fn a_connection_may_become_old_but_not_at_once() {
    let text = |age: &str| format!("limits: {{ http2: {{ max_age: {age} }} }}");
    assert_eq!(Config::default().frontend.http2.max_age, None);
    assert_eq!(parse(&text("10m")).unwrap().frontend.http2.max_age, Some(Duration::from_secs(600)));
    assert_eq!(only_problem(&text("999ms")), "limits.http2.max_age: 999ms is below 1s");
    assert!(only_problem(&text("0s")).contains("zero"));
}

#[test]
fn proxies_are_networks_and_are_not_counted_themselves() {
    let text = |list: &str| format!("listen: [{{ address: \"127.0.0.1:0\", trusted_proxies: {list} }}]");
    let config = parse(&text("[10.0.0.0/8, \"::1\"]")).unwrap();
    let trusted = ["10.0.0.0/8", "::1"].map(|network| network.parse().unwrap());
    assert_eq!(config.listen[0].trusted_proxies, trusted);
    assert_eq!(config.addresses.exempt, [&address::Settings::default().exempt[..], &trusted].concat());
    assert!(config.warnings().is_empty());
    assert!(only_problem(&text("[10.0.0.1/8]")).starts_with("listen[0].trusted_proxies[0]: `10.0.0.1/8`"));
    let careless = parse(&text("[\"::/0\"]")).unwrap().warnings();
    assert!(careless.len() == 1 && careless[0].starts_with("::/0 is among the `trusted_proxies` of 127.0.0.1:0"));
}

#[test]
fn two_listeners_do_not_share_an_address() {
    let text = |one: &str, two: &str, admin: &str| {
        format!(
            "listen: [{{ address: \"{one}\" }}, {{ address: \"{two}\" }}]\nadmin: {{ address: \"{admin}\" }}\n\
             auth: {{ anonymous: always }}"
        )
    };
    let (a, b, c) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    for fine in [[a, b, c], ["0.0.0.0:1", "[::1]:1", c], ["127.0.0.1:0"; 3], ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1"]]
    {
        assert_eq!(problems(&text(fine[0], fine[1], fine[2])), [""; 0], "{fine:?}");
    }
    assert_eq!(
        only_problem(&text(a, a, c)),
        "listen[1].address: 127.0.0.1:1 cannot be listened on beside 127.0.0.1:1 (`listen[0].address`)"
    );
    assert_eq!(
        only_problem(&text(a, b, "0.0.0.0:2")),
        "listen[1].address: 127.0.0.1:2 cannot be listened on beside 0.0.0.0:2 (`admin.address`)"
    );
    for both in [["[::]:1", a], [a, "0.0.0.0:1"], ["[::ffff:127.0.0.1]:1", a], ["[::]:1", "[::1]:1"]] {
        assert!(only_problem(&text(both[0], both[1], c)).starts_with("listen[1].address: "), "{both:?}");
    }
}

#[test]
fn an_open_listener_needs_someone_who_checks() {
    let problem = only_problem("listen: [{ address: \"0.0.0.0:8080\" }]");
    assert!(problem.starts_with("listen[0].address: 0.0.0.0:8080 can be reached from other machines"), "{problem}");
    assert_eq!(problems("listen: [{ address: \"0.0.0.0:8080\" }]\nauth: { anonymous: always }"), [""; 0]);
    assert_eq!(problems("listen: [{ address: \"[::1]:8080\" }, { address: \"127.9.9.9:0\" }]"), [""; 0]);
    let flag = Overrides { listen: vec!["[::]:80".parse().unwrap()], ..Overrides::default() };
    let problems = Config::load(None, flag).unwrap_err();
    assert_eq!(problems.list[0].path, "--listen");
}

#[test]
fn flags_win_over_the_file() {
    let overrides = Overrides {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        models: Some("elsewhere".into()),
        admin_listen: Some("127.0.0.1:1".parse().unwrap()),
        onnxruntime: Some("lib.so".into()),
        log_format: Some(LogFormat::Json),
    };
    let text = "listen: [{ address: \"127.0.0.1:1\", surfaces: [rest] }, { address: \"127.0.0.1:2\" }]\nadmin: null\n\
                runtime: { onnxruntime: other.so }\ntelemetry: { log: { format: pretty } }\n";
    let config = Config::parse(text, "test.yaml", Path::new("/etc"), overrides).unwrap();
    assert_eq!(config.listen.len(), 1);
    assert_eq!((config.listen[0].address.port(), config.listen[0].surfaces), (0, Surfaces::ALL));
    assert_eq!(config.models.directories, [Path::new("elsewhere")]);
    assert_eq!(config.admin.unwrap().address.port(), 1);
    assert_eq!(config.runtime.onnxruntime.as_deref(), Some(Path::new("lib.so")));
    assert_eq!(config.telemetry.log.format, LogFormat::Json);
    assert!(parse("admin: null").unwrap().admin.is_none());
}

#[test]
fn written_paths_start_at_the_file() {
    let config = parse("models: { directory: [a, /b] }\nruntime: { onnxruntime: lib.so }").unwrap();
    assert_eq!(config.models.directories, [Path::new("/etc/sluicegate/a"), Path::new("/b")]);
    assert_eq!(config.runtime.onnxruntime.as_deref(), Some(Path::new("/etc/sluicegate/lib.so")));
}

#[test]
fn what_is_valid_arrives() {
    let text = "listen: [{ address: \"127.0.0.1:1\", surfaces: [rest, websocket] }]\n\
         auth: { anonymous: always, websocket: { origins: [\"https://a.example\"], subprotocol: false } }\n\
         grants: [{ to: [anonymous], intents: [infer], models: [\"text_*\"] }]\n\
         limits: { rate: [{ name: a, by: group, match: m, limit: 5/day }], concurrency: { per_identity: 3 }, \
         http2: { resets: 7/10s, control_frames: 9/s } }\n\
         models: { load: [digits], required: [digits], defaults: { versions: [1, 3], instances: 2, batching: { enabled: \
         false, max_delay: 2ms } } }\n\
         json: { half: convert }\ngrpc: { reflection: never }\nruntime: { kind: work_stealing }\n";
    let config = parse(text).unwrap();
    assert!(config.listen[0].surfaces.has(crate::call::Surface::WebSocket));
    assert!(!config.listen[0].surfaces.has(crate::call::Surface::Grpc));
    assert_eq!(config.frontend.websocket.origins, ["https://a.example"]);
    assert!(!config.frontend.websocket.subprotocol_token && config.frontend.wire.convert_half);
    assert_eq!(config.grants[0].to, [grants::Grantee::Anonymous]);
    assert_eq!(config.grants[0].versions, [Arc::from("*")]);
    let rate = &config.rates[0];
    assert_eq!((rate.by, rate.only.as_deref(), rate.burst.get()), (limit::By::Group, Some("m"), 5));
    assert_eq!(rate.intents, limit::Policy::default_intents());
    let http2 = config.frontend.http2;
    assert_eq!((config.concurrency.per_identity, http2.resets, http2.control_frames), (Some(3), 7, 9));
    assert_eq!(config.models.defaults.versions, Versions::Listed(vec![1, 3]));
    assert_eq!(config.models.defaults.instances, Amount::Exactly(2));
    assert_eq!(config.models.defaults.batching.enabled, Switch::Off);
    assert_eq!(config.runtime.kind, Kind::WorkStealing);
}

#[test]
fn a_plain_call_names_its_model_and_renames_its_tensors() {
    assert!(parse("rest: {}").unwrap().frontend.rest.predict.is_none());
    let text = "rest: { predict: { model: digits, version: 3, inputs: { x: image }, outputs: { y: probabilities } } }";
    let predict = parse(text).unwrap().frontend.rest.predict.unwrap();
    assert_eq!((&*predict.model.name, predict.model.version.as_deref()), ("digits", Some("3")));
    assert_eq!((predict.names.of_input("image"), predict.names.of_output("probabilities")), ("x", "y"));
    assert_eq!(predict.names.of_output("other"), "other");
    for (text, problem) in [
        ("rest: { predict: {} }", "rest.predict.model: is missing or empty, expected the name of a model"),
        (
            "rest: { predict: { model: m, input: { x: y } } }",
            "rest.predict.input: unknown key; the nearest valid one is `inputs`",
        ),
        (
            "rest: { predict: { model: m, inputs: { a: x, b: x } } }",
            "rest.predict.inputs.b: `x` has another name already (`a`), expected one",
        ),
        ("rest: { predicts: { model: m } }", "rest.predicts: unknown key; the nearest valid one is `predict`"),
        (
            "rest: { predict: { model: m, version: newest } }",
            "rest.predict.version: found string \"newest\", expected u64",
        ),
    ] {
        assert_eq!(only_problem(text), problem);
    }
}

#[test]
fn what_contradicts_is_refused() {
    for text in [
        "version: 2",
        "listen: []",
        "listen: [{ surfaces: [] }]",
        "listen: [{ surfaces: [rest, soap] }]",
        "listen: [{ address: localhost }]",
        "listen: [{ address: \"127.0.0.1:1\" }, { address: \"127.0.0.1:1\" }]",
        "listen: [{ tls: { certificates: [] } }]",
        "listen: [{ tls: { certificates: [{ certificate: /nonexistent.pem, key: Cargo.toml }] } }]",
        "auth: { api_keys: { file: /nonexistent.yaml } }",
        "auth: { api_keys: {} }",
        "auth: { websocket: { origins: [a.example] } }",
        "grants: [{ intents: [infer], models: [x] }]",
        "grants: [{ to: [anonymous], intents: [fly], models: [x] }]",
        "limits: { concurrency: { memory: 1MiB } }",
        "limits: { size: { json_depth: 128 } }",
        "limits: { http2: { frame: 1KiB } }",
        "limits: { http2: { stream_window: 4GiB } }",
        "limits: { http2: { resets: 100/s } }",
        "limits: { http2: { control_frames: 100/10s } }",
        "limits: { address: { exempt: [home] } }",
        "limits: { rate: [{ limit: 1/s }] }",
        "limits: { rate: [{ name: a }] }",
        "limits: { rate: [{ name: a, limit: 1/s }, { name: a, limit: 2/s }] }",
        "limits: { shared: { redis: \"redis://127.0.0.1\", lease: 500ms } }",
        "limits: { shared: { redis: \"redis://127.0.0.1\", ca: tests.rs } }",
        "limits: { shared: { redis: \"rediss://127.0.0.1\", ca: none.pem } }",
        "limits: { websocket: { ping: 1ns } }",
        "limits: { http2: { ping: 999ms } }",
        "limits: { timers: { stream_ping: 1ms } }",
        "cors: { origins: [\"https://*.example\"] }",
        "auth: { websocket: { origins: [\"https://*.example\"] } }",
        "models: { load: none, required: [digits] }",
        "models: { load: [\"../x\"] }",
        "models: { defaults: { versions: { newest: 1 } } }",
        "models: { defaults: { versions: [0] } }",
        "models: { defaults: { instances: 0 } }",
        "models: { defaults: { batching: { enabled: maybe } } }",
        "models: { defaults: { execution: turn } }\nruntime: { kind: work_stealing }",
        "runtime: { turn: { run: 1ms } }",
        "drain: { delay: 30s }",
        "- 1",
        "a: [",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    assert_eq!(parse("auth: { anonymous: always }").unwrap().warnings().len(), 1);
    assert_eq!(parse("auth: { anonymous: never }").unwrap().warnings().len(), 1);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
        let _ = parse(&text);
    }

    /// Whatever stands in the place of whatever: problems, no panic, and none that is hidden.
    #[test]
    fn arbitrary_values_in_known_places_never_panic(
        section in prop::sample::select(vec!["listen", "admin", "auth", "grants", "limits", "models", "runtime", "drain"]),
        key in prop::sample::select(vec!["size", "rate", "defaults", "directory", "address", "to", "turn", "api_keys"]),
        value in prop::sample::select(vec!["1", "-1", "x", "[]", "[[1]]", "{ a: 1 }", "~", "1.5", "true", "[{ tls: [] }]"]),
        nested in any::<bool>(),
        listed in any::<bool>(),
    ) {
        let value = if nested { format!("{{ {key}: {value} }}") } else { value.to_owned() };
        let value = if listed { format!("[{value}]") } else { value };
        if let Err(problems) = parse(&format!("{section}: {value}")) {
            prop_assert!(!problems.list.is_empty());
        }
    }
}

/// A number that nothing could mean is one clear error, and not a process that the system ends.
#[test]
fn what_no_machine_has_is_refused() {
    for key in ["lanes", "inference_cores", "decode_threads"] {
        let problem = only_problem(&format!("runtime: {{ {key}: 4294967296 }}"));
        assert!(problem.contains(&format!("runtime.{key}: 4294967296 is above 1024")), "{problem}");
    }
    for key in ["header_fields", "trailer_fields"] {
        let problem = only_problem(&format!("limits: {{ size: {{ {key}: 10001 }} }}"));
        assert!(problem.contains(&format!("limits.size.{key}: 10001 is above 10000")), "{problem}");
    }
    for key in ["instances", "threads"] {
        let problem = only_problem(&format!("models: {{ defaults: {{ {key}: 1025 }} }}"));
        assert!(problem.contains(&format!("models.defaults.{key}: 1025 is above 1024")), "{problem}");
    }
}

/// An editor that truncates a file and then writes it leaves one that is empty for a moment.
#[test]
fn a_file_without_its_version_is_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    for text in ["", "# nothing\n", "grants: []\n"] {
        fs::write(&path, text).unwrap();
        let problems = Config::load(Some(&path), Overrides::default()).unwrap_err().to_string();
        assert!(problems.contains("version: is missing, expected 1"), "{problems}");
    }
}

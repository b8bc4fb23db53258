//! The repository extension over real sockets: the index, loads and unloads, on REST and gRPC (contract 02 section 5).

use crate::support::{
    KEY, Setup,
    client::{Client, Failure, Request, grpc_channel, status_failure},
    scripts::World,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sluicegate::{
    call::Surface,
    wire::proto::inference::{self as pb, model_repository_parameter::ParameterChoice},
};
use std::collections::HashMap;
use tokio_stream::StreamExt;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

fn load(model: &str) -> String {
    format!("/v2/repository/models/{model}/load")
}

fn unload(model: &str) -> String {
    format!("/v2/repository/models/{model}/unload")
}

/// Parameters of a load or unload, as gRPC has them.
fn parameters(list: &[(&str, ParameterChoice)]) -> HashMap<String, pb::ModelRepositoryParameter> {
    let parameter = |choice: &ParameterChoice| pb::ModelRepositoryParameter { parameter_choice: Some(choice.clone()) };
    list.iter().map(|(name, choice)| ((*name).to_owned(), parameter(choice))).collect()
}

fn text(value: &str) -> ParameterChoice {
    ParameterChoice::StringParam(value.to_owned())
}

/// Runs a model of the world's: the version that ran.
async fn infer(world: &World, model: &str, version: Option<&str>) -> Result<String, Failure> {
    let mut client = Client::connect(Surface::Rest, &world.running, None).await.unwrap();
    let version = version.map(str::to_owned);
    let request = Request { version, ..Request::new(model, &[1, 4], vec![1.0; 4]) };
    client.infer(&request).await.map(|answer| answer.version)
}

async fn code(world: &World, model: &str, version: Option<&str>) -> String {
    infer(world, model, version).await.map_or_else(|failure| failure.code, |version| format!("ran {version}"))
}

/// Waits until an unloaded model is gone; until then it must be `not_ready`.
async fn gone(world: &World, model: &str, version: Option<&str>) {
    let started = std::time::Instant::now();
    loop {
        match &*code(world, model, version).await {
            "not_found" => return,
            "not_ready" => assert!(started.elapsed().as_secs() < 20, "it stays"),
            other => panic!("{other}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn index(world: &World, body: &'static str) -> Value {
    let (status, index) = world.rest("POST", "/v2/repository/index", body).await;
    assert_eq!(status, 200, "{index}");
    index
}

#[tokio::test]
async fn the_index_has_what_is_served_what_failed_and_what_was_never_loaded() {
    let files = [
        ("a/1/model.onnx", "double"),
        ("a/2/model.onnx", "double"),
        ("b/1/model.onnx", "double"),
        ("c/1/model.onnx", "x"),
    ];
    let world = World::explicit("[a, c]", &files).await;
    let all = index(&world, "").await;
    let reason = "not served: loading it failed: load model from c/1/model.onnx failed: x";
    assert_eq!(
        all,
        json!([
            { "name": "a", "version": "2", "state": "READY" },
            { "name": "b" },
            { "name": "c", "version": "1", "state": "UNAVAILABLE", "reason": reason },
        ])
    );
    assert_eq!(index(&world, r#"{"ready":false}"#).await, all);
    let ready = json!([{ "name": "a", "version": "2", "state": "READY" }]);
    assert_eq!(index(&world, r#"{"ready":true}"#).await, ready);

    for (ready, expected) in [(false, &all), (true, &ready)] {
        let request = pb::RepositoryIndexRequest { repository_name: String::new(), ready };
        let found = world.grpc().await.repository_index(request).await.unwrap().into_inner();
        let entry = |index: &pb::repository_index_response::ModelIndex| {
            let fields = [("name", &index.name), ("version", &index.version), ("state", &index.state)];
            let fields = fields.into_iter().chain([("reason", &index.reason)]);
            // In proto3 what is not there is the empty string.
            fields
                .filter(|(_, text)| !text.is_empty())
                .map(|(name, text)| (name.to_owned(), json!(text)))
                .collect::<Value>()
        };
        assert_eq!(&found.models.iter().map(entry).collect::<Value>(), expected);
    }
}

#[tokio::test]
async fn a_model_is_known_from_the_first_call_on_and_nobody_unloads_it_before_it_is_there() {
    let setup = Setup::new().yaml("models: { control: explicit }");
    let world = World::begin(setup, &[("a/1/model.onnx", "gate")]).await;
    assert_eq!(code(&world, "a", None).await, "not_ready");
    assert_eq!(
        index(&world, "").await,
        json!([{ "name": "a", "version": "1", "state": "LOADING", "reason": "loading" }])
    );
    for order in [unload("a"), load("a")] {
        let (status, answer) = world.rest("POST", &order, "").await;
        assert_eq!((status, &answer["code"]), (409, &json!("conflict")), "{answer}");
    }
    world.open_the_gate();
    world.running.loaded().await;
    assert_eq!(code(&world, "a", None).await, "ran 1");
    assert_eq!(world.rest("POST", &unload("a"), "").await.0, 200);
}

#[tokio::test]
async fn folders_that_are_no_models_are_in_the_index_with_their_reasons() {
    let files = [("a/1/model.onnx", "double"), ("a/007/model.onnx", "double"), ("bad name/1/model.onnx", "double")];
    let world = World::explicit("all", &files).await;
    let index = index(&world, "").await;
    let entry = |at: usize| ["name", "version", "state"].map(|key| index[at][key].as_str().unwrap_or("-").to_owned());
    assert_eq!(entry(0), ["a", "1", "READY"]);
    assert_eq!(entry(1), ["a", "007", "UNAVAILABLE"]);
    assert_eq!(entry(2), ["bad name", "-", "UNAVAILABLE"]);
    assert!(index[2]["reason"].as_str().unwrap().starts_with("a model's name has"), "{index}");
    assert_eq!(code(&world, "a", Some("007")).await, "not_found", "it is nothing that a call could mean");
    assert_eq!(world.rest("POST", &load("a"), "").await.0, 200, "and in nobody's way");
}

#[tokio::test]
async fn a_model_is_loaded_and_unloaded_over_rest() {
    let world = World::explicit("none", &[("a/1/model.onnx", "double")]).await;
    assert_eq!(code(&world, "a", None).await, "not_found");
    for body in ["", "{}", r#"{"parameters":{}}"#] {
        assert_eq!(world.rest("POST", &load("a"), body).await, (200, json!({ "name": "a", "load": true })));
        // Synchronous: it takes calls now.
        assert_eq!(code(&world, "a", None).await, "ran 1");
    }
    let body = r#"{"parameters":{"unload_dependents":true}}"#;
    assert_eq!(world.rest("POST", &unload("a"), body).await, (200, json!({ "name": "a", "unload": true })));
    gone(&world, "a", None).await;
    assert_eq!(index(&world, "").await[0]["reason"], "unloaded");
    assert_eq!(world.rest("POST", &load("a"), "").await.0, 200);
    assert_eq!(code(&world, "a", None).await, "ran 1");
}

#[tokio::test]
async fn both_dialects_of_grpc_are_understood_and_answered() {
    let world = World::explicit("none", &[("a/1/model.onnx", "double")]).await;
    let mut client = world.grpc().await;
    // Triton has the model in field 2; KServe has no field 2, and the model in field 1.
    for (repository_name, model_name) in [("", "a"), ("a", "")].map(|(r, m)| (r.to_owned(), m.to_owned())) {
        let request = pb::RepositoryModelLoadRequest {
            repository_name: repository_name.clone(),
            model_name: model_name.clone(),
            ..Default::default()
        };
        let loaded = client.repository_model_load(request).await.unwrap().into_inner();
        assert_eq!((&*loaded.model_name, loaded.is_loaded), ("a", true));
        assert_eq!(code(&world, "a", None).await, "ran 1");
        let parameters = parameters(&[("unload_dependents", ParameterChoice::BoolParam(true))]);
        let request = pb::RepositoryModelUnloadRequest { repository_name, model_name, parameters };
        let unloaded = client.repository_model_unload(request).await.unwrap().into_inner();
        assert_eq!((&*unloaded.model_name, unloaded.is_unloaded), ("a", true));
        gone(&world, "a", None).await;
    }
    // A repository's name means nothing here, as in a path of REST's.
    let (repository_name, model_name) = ("r".to_owned(), "a".to_owned());
    let named = pb::RepositoryModelLoadRequest { repository_name, model_name, ..Default::default() };
    assert_eq!(client.repository_model_load(named).await.unwrap_err().code(), tonic::Code::Unimplemented);
    let named = pb::RepositoryIndexRequest { repository_name: "r".to_owned(), ready: false };
    assert_eq!(client.repository_index(named).await.unwrap_err().code(), tonic::Code::Unimplemented);
    let nobody = client.repository_model_load(pb::RepositoryModelLoadRequest::default()).await.unwrap_err();
    assert_eq!(nobody.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_load_may_bring_a_configuration() {
    let files = [("a/1/model.onnx", "double"), ("a/config.pbtxt", "max_batch_size: 8"), ("a/model.yaml", "threads: 1")];
    let world = World::explicit("all", &files).await;
    let rows = async || world.rest("GET", "/v2/models/a/config", "").await.1["max_batch_size"].clone();
    assert_eq!(rows().await, 8);
    // As tritonclient sends it: JSON within a string.
    let brought = json!({ "parameters": { "config": json!({ "name": "a", "max_batch_size": 4 }).to_string() } });
    assert_eq!(world.rest("POST", &load("a"), brought.to_string()).await.0, 200);
    assert_eq!(rows().await, 4);
    let parameters = parameters(&[("config", text(r#"{"maxBatchSize":"2"}"#))]);
    let request = pb::RepositoryModelLoadRequest { model_name: "a".into(), parameters, ..Default::default() };
    world.grpc().await.repository_model_load(request).await.unwrap();
    assert_eq!(rows().await, 2);
    // What a server says is what it takes.
    let said = world.rest("GET", "/v2/models/a/config", "").await.1;
    let brought = json!({ "parameters": { "config": said.to_string() } });
    assert_eq!(world.rest("POST", &load("a"), brought.to_string()).await.0, 200);
    assert_eq!(world.rest("GET", "/v2/models/a/config", "").await.1, said);
    assert_eq!(world.rest("POST", &load("a"), "").await.0, 200);
    assert_eq!(rows().await, 8, "without one, the folder's counts again");
}

#[tokio::test]
async fn a_load_may_bring_the_files() {
    let world = World::explicit("none", &[("a/1/model.onnx", "double")]).await;
    let files = json!({ "parameters": {
        "config": "{\"default_model_filename\":\"net.onnx\",\"version_policy\":{\"all\":{}}}",
        "file:3/net.onnx": STANDARD.encode("double"),
        "file:5/net.onnx": STANDARD.encode("double"),
    } });
    assert_eq!(world.rest("POST", &load("a"), files.to_string()).await.0, 200);
    let versions = index(&world, r#"{"ready":true}"#).await;
    assert_eq!((&versions[0]["version"], &versions[1]["version"]), (&json!("5"), &json!("3")));

    // A model without a folder.
    let mut client = world.grpc().await;
    let brought = [("config", text("{}")), ("file:1/model.onnx", ParameterChoice::BytesParam("double".into()))];
    let request = pb::RepositoryModelLoadRequest {
        model_name: "new".into(),
        parameters: parameters(&brought),
        ..Default::default()
    };
    client.repository_model_load(request).await.unwrap();
    assert_eq!(code(&world, "new", None).await, "ran 1");
    assert_eq!(world.rest("POST", &unload("new"), "").await.0, 200);
    gone(&world, "new", None).await;
    let again =
        client.repository_model_load(pb::RepositoryModelLoadRequest { model_name: "new".into(), ..Default::default() });
    assert_eq!(again.await.unwrap_err().code(), tonic::Code::NotFound, "its files went with it");

    let alone = json!({ "parameters": { "file:1/model.onnx": STANDARD.encode("double") } });
    let (status, error) = world.rest("POST", &load("a"), alone.to_string()).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_argument")));
    assert!(error["error"].as_str().unwrap().contains("`config`"), "{error}");
    let escaping = json!({ "parameters": { "config": "{}", "file:1/../../x": STANDARD.encode("double") } });
    assert_eq!(world.rest("POST", &load("a"), escaping.to_string()).await.0, 400);
}

#[tokio::test]
async fn one_version_is_loaded_and_unloaded_by_path_and_by_parameter() {
    let files = [("a/1/model.onnx", "double"), ("a/2/model.onnx", "double"), ("a/3/model.onnx", "double")];
    let world = World::explicit("none", &files).await;
    assert_eq!(world.rest("POST", &load("a/versions/1"), "").await.0, 200);
    assert_eq!(world.rest("POST", &load("a"), r#"{"parameters":{"version":"2"}}"#).await.0, 200);
    let mut client = world.grpc().await;
    let version = |number: &str| parameters(&[("version", text(number))]);
    let request =
        pb::RepositoryModelLoadRequest { model_name: "a".into(), parameters: version("3"), ..Default::default() };
    client.repository_model_load(request).await.unwrap();
    for number in ["1", "2", "3"] {
        assert_eq!(code(&world, "a", Some(number)).await, format!("ran {number}"));
    }
    let request =
        pb::RepositoryModelUnloadRequest { model_name: "a".into(), parameters: version("3"), ..Default::default() };
    client.repository_model_unload(request).await.unwrap();
    gone(&world, "a", Some("3")).await;
    assert_eq!(world.rest("POST", &unload("a"), r#"{"parameters":{"version":"2"}}"#).await.0, 200);
    gone(&world, "a", Some("2")).await;
    assert_eq!(code(&world, "a", None).await, "ran 1");
    assert_eq!(world.rest("POST", &unload("a/versions/1"), "").await.0, 200);
    gone(&world, "a", None).await;
    assert_eq!(world.rest("POST", &load("a/versions/7"), "").await.0, 404);
}

#[tokio::test]
async fn a_call_that_runs_finishes_while_its_model_is_unloaded() {
    let files = [("held/1/model.onnx", "held"), ("held/model.yaml", "execution: thread\n")];
    let world = World::explicit("all", &files).await;
    let holder = world.running.hold("held").await;
    assert_eq!(world.rest("POST", &unload("held"), "").await.0, 200);
    assert_eq!(code(&world, "held", None).await, "not_ready");
    let unloading = index(&world, "").await;
    assert_eq!((&unloading[0]["state"], &unloading[0]["reason"]), (&json!("UNLOADING"), &json!("unloading")));
    holder.release().await;
    gone(&world, "held", None).await;
}

#[tokio::test]
async fn a_second_order_for_the_same_model_is_a_conflict() {
    let files = [("a/1/model.onnx", "gate"), ("b/1/model.onnx", "double")];
    let world = std::sync::Arc::new(World::explicit("none", &files).await);
    let first = {
        let world = std::sync::Arc::clone(&world);
        tokio::spawn(async move { world.rest("POST", &load("a"), "").await })
    };
    world.at_the_gate().await;
    let (status, error) = world.rest("POST", &load("a"), "").await;
    assert_eq!((status, &error["code"], &error["retryable"]), (409, &json!("conflict"), &json!(true)));
    assert_eq!(world.rest("POST", &unload("a"), "").await.0, 409);
    let request = pb::RepositoryModelLoadRequest { model_name: "a".into(), ..Default::default() };
    let status = world.grpc().await.repository_model_load(request).await.unwrap_err();
    assert_eq!((status.code(), &*status_failure(&status).code), (tonic::Code::Aborted, "conflict"));
    assert_eq!(code(&world, "a", None).await, "not_ready", "it is loading");
    assert_eq!(world.rest("POST", &load("b"), "").await.0, 200, "another model is another matter");
    world.open_the_gate();
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(code(&world, "a", None).await, "ran 1");
}

#[tokio::test]
async fn a_watcher_hears_each_change_of_its_model() {
    let world = World::explicit("[a]", &[("a/1/model.onnx", "double")]).await;
    let mut health = HealthClient::new(grpc_channel(&world.running).await);
    let request = HealthCheckRequest { service: "model:a".into() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let mut said = async || watch.next().await.unwrap().unwrap().status();
    assert_eq!(said().await, ServingStatus::Serving);
    for _ in 0..3 {
        world.rest("POST", "/v2/repository/models/a/unload", "{}").await;
        assert_ne!(said().await, ServingStatus::Serving);
        world.rest("POST", &load("a"), "{}").await;
        // On the way it may be unknown, and be loading.
        while said().await != ServingStatus::Serving {}
    }
}

#[tokio::test]
async fn a_load_that_fails_says_why_without_a_path_and_changes_nothing() {
    let files = [("a/1/model.onnx", "double"), ("bad/1/model.onnx", "nonsense"), ("text/1/model.onnx", "double")];
    let world = World::explicit("[a]", &files).await;
    world.write("a/1/model.onnx", "broken meanwhile");
    world.write("text/config.pbtxt", "max_batch_size: 2\ninput [{ name: \"z\" dims: [ 4 ] }]\n");
    let mut reasons = Vec::new();
    for (model, body, expected) in [
        ("a", json!({}), "broken meanwhile"),
        ("bad", json!({}), "nonsense"),
        ("text", json!({}), "the configuration has input `z`, the model has `x`"),
        ("text", json!({ "parameters": { "config": "{\"colour\":1}" } }), "colour"),
        ("a", json!({ "parameters": { "config": "{\"name\":\"b\"}" } }), "config name: is `b`, and the model is `a`"),
        ("a", json!({ "parameters": { "config": "{}", "file:1/model.onnx": STANDARD.encode("junk") } }), "junk"),
        (
            "a",
            json!({ "parameters": { "config": "{}", "file:1/other.onnx": STANDARD.encode("junk") } }),
            "`a/1/model.onnx`",
        ),
        (
            "a",
            json!({ "parameters": { "unload_dependents": true } }),
            "expected `config`, `file:VERSION/NAME` or `version`",
        ),
        ("stats", json!({}), "`stats` is taken"),
        ("a", json!({ "parameters": { "colour": "red" } }), "parameter `colour` is unknown"),
    ] {
        let (status, error) = world.rest("POST", &load(model), body.to_string()).await;
        assert_eq!((status, &error["code"]), (400, &json!("invalid_argument")), "{error}");
        let text = error["error"].as_str().unwrap().to_owned();
        assert!(text.contains(expected), "{text}");
        reasons.push(text);
    }
    world.write("text/config.pbtxt", "max_batch_size: 2\nmax_batch_size: 3\n");
    world.write("text/model.yaml", "thread: 1\n");
    let request = pb::RepositoryModelLoadRequest { model_name: "text".into(), ..Default::default() };
    let status = world.grpc().await.repository_model_load(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("config.pbtxt: line 2: ") && status.message().contains("model.yaml thread"));
    reasons.push(status.message().to_owned());
    let all = index(&world, "").await;
    let state = all.as_array().unwrap().iter().find(|entry| entry["name"] == "text").unwrap();
    assert_eq!(
        (&state["state"], &state["version"]),
        (&json!("UNAVAILABLE"), &json!("1")),
        "it is there, and not served"
    );
    assert_eq!(code(&world, "text", None).await, "not_ready");
    reasons.push(all.to_string());
    for (reason, secret) in reasons.iter().flat_map(|reason| world.secrets().map(|secret| (reason, secret))) {
        assert!(!reason.contains(&secret) && !reason.contains('\n'), "{reason}");
    }
    assert_eq!(code(&world, "a", None).await, "ran 1", "the old one answers all the while");
    for name in ["nobody", "..%2Fa"] {
        let (status, _) = world.rest("POST", &load(name), "").await;
        assert_eq!(status, if name == "nobody" { 404 } else { 400 }, "{name}");
    }
}

/// `(code over REST, code over gRPC)` of each change there is.
async fn changes(world: &World) -> Vec<(String, String)> {
    let mut codes = Vec::new();
    let mut rest = Vec::new();
    for (path, body) in [
        (&*load("a"), "{}"),
        (&*unload("a"), "{}"),
        ("/v2/trace/setting", r#"{"trace_rate":"7"}"#),
        ("/v2/logging", r#"{"log_verbose_level":1}"#),
    ] {
        let (_, answer) = world.rest_as(Some(KEY), "POST", path, body).await;
        rest.push(answer["code"].as_str().unwrap_or("ok").to_owned());
    }
    let mut client = world.grpc().await;
    fn asked<T>(message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {KEY}").parse().unwrap());
        request
    }
    let code = |status: tonic::Status| status_failure(&status).code;
    let value = pb::trace_setting_request::SettingValue { value: vec!["7".into()] };
    let trace = pb::TraceSettingRequest { settings: [("trace_rate".into(), value)].into(), ..Default::default() };
    let verbose = pb::log_settings_request::setting_value::ParameterChoice::Uint32Param(1);
    let verbose = pb::log_settings_request::SettingValue { parameter_choice: Some(verbose) };
    let logging = pb::LogSettingsRequest { settings: [("log_verbose_level".into(), verbose)].into() };
    let model_name = || "a".to_owned();
    let loads = pb::RepositoryModelLoadRequest { model_name: model_name(), ..Default::default() };
    let unloads = pb::RepositoryModelUnloadRequest { model_name: model_name(), ..Default::default() };
    codes.push(client.repository_model_load(asked(loads)).await.err().map(code));
    codes.push(client.repository_model_unload(asked(unloads)).await.err().map(code));
    codes.push(client.trace_setting(asked(trace)).await.err().map(code));
    codes.push(client.log_settings(asked(logging)).await.err().map(code));
    rest.into_iter().zip(codes.into_iter().map(|code| code.unwrap_or_else(|| "ok".to_owned()))).collect()
}

#[tokio::test]
async fn changes_need_a_grant_and_a_server_that_takes_them() {
    let files = [("a/1/model.onnx", "double")];
    let all = |code: &str| vec![(code.to_owned(), code.to_owned()); 4];
    let grants = |intents: &str| format!("[{{ to: [\"identity:web\"], intents: [{intents}], models: [\"*\"] }}]");
    let explicit = || Setup::new().yaml("models: { control: explicit }").with_key();
    let world = World::start(explicit().with_grants(&grants("infer, inspect")), &files).await;
    assert_eq!(changes(&world).await, all("permission_denied"));
    let world = World::start(Setup::new().with_key().with_grants(&grants("inspect, manage")), &files).await;
    assert_eq!(changes(&world).await, all("unimplemented"));
    let world = World::start(explicit().with_grants(&grants("inspect, manage")), &files).await;
    assert_eq!(changes(&world).await, all("ok"));
}

#[tokio::test]
async fn lists_have_only_what_their_reader_may_see() {
    let files = [("a/1/model.onnx", "double"), ("b/1/model.onnx", "double"), ("c/1/model.onnx", "double")];
    let grants = "[{ to: [\"identity:web\"], intents: [inspect, manage], models: [\"a\", \"c\"] }]";
    let setup = Setup::new().yaml("models: { control: explicit, load: [a, b] }").with_key().with_grants(grants);
    let world = World::start(setup, &files).await;
    let (_, index) = world.rest_as(Some(KEY), "POST", "/v2/repository/index", "").await;
    assert_eq!(index, json!([{ "name": "a", "version": "1", "state": "READY" }, { "name": "c" }]));
    let (_, statistics) = world.rest_as(Some(KEY), "GET", "/v2/models/stats", "").await;
    let names: Vec<_> = statistics["model_stats"].as_array().unwrap().iter().map(|stats| &stats["name"]).collect();
    assert_eq!(names, ["a"]);
    // What there is and may not be seen is as what there is not.
    let hidden = world.rest_as(Some(KEY), "POST", &load("b"), "").await;
    let absent = world.rest_as(Some(KEY), "POST", &load("x"), "").await;
    assert_eq!((hidden.0, absent.0), (404, 404));
    assert_eq!(hidden.1["error"].as_str().unwrap().replace("`b`", "`x`"), absent.1["error"].as_str().unwrap());
    assert_eq!(world.rest_as(Some(KEY), "POST", &load("c"), "").await.0, 200);
}

#[tokio::test]
async fn other_methods_and_other_repositories_are_refused() {
    let world = World::explicit("all", &[("a/1/model.onnx", "double")]).await;
    for path in ["/v2/repository/index", &load("a"), &unload("a")] {
        assert_eq!(world.rest("GET", path, "").await.0, 405, "{path}");
    }
    for path in ["/v2/repository/other/index", "/v2/repository/other/models/a/load"] {
        assert_eq!(world.rest("POST", path, "").await.0, 501, "{path}");
    }
}

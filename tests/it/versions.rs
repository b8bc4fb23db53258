//! Versions of a model over real sockets: swapped under load, called by labels, split, tried on copies, and following
//! their folders.

use crate::support::{
    KEY, Setup,
    client::{Answer, Client, Data, Failure, Request, grpc_channel},
    scripts::World,
};
use serde_json::{Value, json};
use sluicegate::{
    call::Surface,
    wire::tfserving::pb::serving::{self as tf, model_service_client::ModelServiceClient},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const SWAPS: u32 = 1_000;

fn ones() -> Request {
    Request::new("m", &[2, 4], vec![1.0; 8])
}

fn naming(version: &str) -> Request {
    Request { version: Some(version.into()), ..ones() }
}

/// The version that an answer says ran, having looked that all of it is that version's.
fn ran(answer: &Answer) -> u32 {
    let version: u32 = answer.version.parse().unwrap();
    let Data::Floats(values) = &answer.outputs["y"].1 else { panic!("floats") };
    assert!(values.iter().all(|value| *value == version as f32), "version {version} answered {values:?}");
    version
}

async fn connect(surface: Surface, world: &World, key: Option<&str>) -> Client {
    Client::connect(surface, &world.running, key).await.unwrap()
}

async fn goes(client: &mut Client, request: &Request) -> Result<String, Failure> {
    client.infer(request).await.map(|answer| ran(&answer).to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_swaps_under_load_lose_no_call_and_mix_no_answer() {
    let world =
        World::explicit("all", &[("m/1/model.onnx", "times 1"), ("m/model.yaml", "version_labels: { stable: 1 }")])
            .await;
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = Vec::new();
    for surface in Surface::ALL {
        for request in [ones(), naming("stable")] {
            let (mut client, over, calls) =
                (connect(surface, &world, None).await, Arc::clone(&over), Arc::clone(&calls));
            callers.push(tokio::spawn(async move {
                let (mut seen, mut last) = (BTreeSet::new(), 0);
                while !over.load(Ordering::Relaxed) {
                    let version = match client.infer(&request).await {
                        Ok(answer) => ran(&answer),
                        Err(failure) => panic!("{surface:?} after version {last}: {failure:?}"),
                    };
                    assert!(version >= last, "{surface:?}: {version} after {last}, which had taken over");
                    last = version;
                    seen.insert(version);
                    calls.fetch_add(1, Ordering::Relaxed);
                    // Busy enough, and the machine is not only theirs.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                seen.len()
            }));
        }
    }
    for version in 2..=SWAPS + 1 {
        world.write(&format!("m/{version}/model.onnx"), &format!("times {version}"));
        // What is not measured runs on threads, all else here on the lanes: both take over from each other.
        let warmup = if version % 4 == 0 { "auto" } else { "off" };
        world.write("m/model.yaml", &format!("version_labels: {{ stable: {version} }}\nwarmup: {warmup}"));
        let (status, said) = world.rest("POST", "/v2/repository/models/m/load", "").await;
        assert_eq!(status, 200, "{version}: {said}");
        world.remove(&format!("m/{}", version - 1));
    }
    over.store(true, Ordering::Relaxed);
    let mut busiest = 0;
    for caller in callers {
        let seen = caller.await.unwrap();
        // Busy all the while, and not with one version only.
        assert!(seen > 10, "{seen} versions seen");
        busiest = busiest.max(seen);
    }
    assert!(calls.load(Ordering::Relaxed) > u64::from(SWAPS), "{calls:?} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_is_swapped_under_load_loses_no_call_of_its_ensemble_and_mixes_no_answer() {
    let yaml = "ensemble: { steps: [{ model: m, inputs: { x: x }, outputs: { y: y } }] }";
    let world = World::explicit("all", &[("m/1/model.onnx", "times 1"), ("e/model.yaml", yaml)]).await;
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = Vec::new();
    for surface in Surface::ALL {
        let (mut client, over, calls) = (connect(surface, &world, None).await, Arc::clone(&over), Arc::clone(&calls));
        callers.push(tokio::spawn(async move {
            let (request, mut last) = (Request::new("e", &[2, 4], vec![1.0; 8]), 0.0);
            while !over.load(Ordering::Relaxed) {
                let answer = client.infer(&request).await.unwrap_or_else(|failure| panic!("{surface:?}: {failure:?}"));
                let Data::Floats(values) = &answer.outputs["y"].1 else { panic!("floats") };
                // The ensemble's own version stays; which of its model's ran is in the numbers.
                assert!(values.iter().all(|value| *value == values[0]), "{surface:?}: {values:?}");
                assert!(values[0] >= last, "{surface:?}: {} after {last}, which had taken over", values[0]);
                last = values[0];
                calls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            last
        }));
    }
    for version in 2..=100 {
        world.write(&format!("m/{version}/model.onnx"), &format!("times {version}"));
        // On threads and on the lanes, so that they take over from each other.
        world.write("m/model.yaml", if version % 4 == 0 { "warmup: auto" } else { "warmup: off" });
        let (status, said) = world.rest("POST", "/v2/repository/models/m/load", "").await;
        assert_eq!(status, 200, "{version}: {said}");
        world.remove(&format!("m/{}", version - 1));
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 1.0, "busy all the while");
    }
    assert!(calls.load(Ordering::Relaxed) > 100, "{calls:?} calls");
}

#[tokio::test]
async fn an_ensemble_answers_once_its_model_is_there_without_being_loaded_again() {
    let yaml = "ensemble: { steps: [{ model: m, inputs: { x: x }, outputs: { y: y } }] }";
    let watched = Setup::new().yaml("models: { control: watch, watch: { every: 20ms, settle: 40ms } }");
    let explicit = Setup::new().yaml("models: { control: explicit }");
    for (setup, loads) in [(watched, false), (explicit, true)] {
        let world = World::start(setup, &[("e/model.yaml", yaml), ("n/1/model.onnx", "double")]).await;
        let mut client = connect(Surface::Rest, &world, None).await;
        let request = Request::new("e", &[1, 4], vec![1.0; 4]);
        assert_eq!(client.infer(&request).await.unwrap_err().code, "not_ready");
        world.write("m/7/model.onnx", "times 7");
        if loads {
            assert_eq!(world.rest("POST", "/v2/repository/models/m/load", "").await.0, 200);
        }
        let begun = Instant::now();
        let answer = loop {
            match client.infer(&request).await {
                Ok(answer) => break answer,
                Err(failure) => assert!(begun.elapsed() < Duration::from_secs(20), "{failure:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(answer.outputs["y"].1, Data::Floats(vec![7.0; 4]));
    }
}

/// Two versions, of which each has a label.
const LABELLED: &[(&str, &str)] = &[
    ("m/3/model.onnx", "times 3"),
    ("m/4/model.onnx", "times 4"),
    ("m/model.yaml", "versions: all\nversion_labels: { stable: 3, canary: 4 }"),
];

#[tokio::test]
async fn a_label_may_be_named_where_a_version_may_on_every_surface() {
    let world = World::explicit("all", LABELLED).await;
    for surface in Surface::ALL {
        let mut client = connect(surface, &world, None).await;
        for (name, version) in [("stable", "3"), ("canary", "4"), ("3", "3")] {
            assert_eq!(goes(&mut client, &naming(name)).await.unwrap(), version, "{surface:?} {name}");
        }
        let unknown = goes(&mut client, &naming("old")).await.unwrap_err();
        assert_eq!((&*unknown.code, &*unknown.message), ("not_found", "version `old` of model `m` is unknown"));
    }
    let get = |path: &'static str| world.rest("GET", path, "");
    assert_eq!(get("/v2/models/m/versions/canary").await.1["versions"], json!(["4"]));
    assert_eq!(get("/v2/models/m/versions/canary/ready").await.0, 200);
    assert_eq!(get("/v2/models/m/versions/canary/stats").await.1["model_stats"][0]["version"], "4");
    assert_eq!(get("/v1/models/m/labels/stable").await.1["model_version_status"][0]["version"], "3");
    let instances = r#"{"instances":[[1.0,1.0,1.0,1.0]]}"#;
    let predicted = world.rest("POST", "/v1/models/m/labels/canary:predict", instances).await;
    assert_eq!(predicted, (200, json!({ "predictions": [[4.0, 4.0, 4.0, 4.0]] })));
    assert_eq!(world.rest("POST", "/v1/models/m/labels/4:predict", instances).await.0, 404, "a version is no label");

    let choice = tf::model_spec::VersionChoice::VersionLabel("canary".into());
    let model_spec = Some(tf::ModelSpec { name: "m".into(), version_choice: Some(choice), ..tf::ModelSpec::default() });
    let mut client = ModelServiceClient::new(grpc_channel(&world.running).await);
    let status = client.get_model_status(tf::GetModelStatusRequest { model_spec }).await.unwrap().into_inner();
    assert_eq!(status.model_version_status[0].version, 4);
}

#[tokio::test]
async fn a_label_of_a_version_that_is_not_there_is_said_so_at_load_and_at_the_call() {
    let yaml = ("m/model.yaml", "version_labels: { stable: 3, canary: 4 }");
    let world = World::explicit("all", &[("m/3/model.onnx", "times 3"), yaml]).await;
    let (status, said) = world.rest("POST", "/v2/repository/models/m/load", "").await;
    let expected = "model `m` cannot be loaded: label `canary` is version 4, which is not served: it is not there, or not \
                    among `versions`";
    assert_eq!((status, &said["error"]), (400, &json!(expected)));
    for surface in Surface::ALL {
        let mut client = connect(surface, &world, None).await;
        assert_eq!(goes(&mut client, &naming("stable")).await.unwrap(), "3");
        let failure = goes(&mut client, &naming("canary")).await.unwrap_err();
        assert_eq!(failure.message, "version `4`, labelled `canary` of model `m` is unknown");
    }
}

#[tokio::test]
async fn who_may_call_a_label_may_call_nothing_else() {
    let grants = "[{ to: [\"identity:web\"], intents: [infer], models: [m], versions: [stable] }]";
    let world = World::start(Setup::new().with_key().with_grants(grants), LABELLED).await;
    for surface in Surface::ALL {
        let mut client = connect(surface, &world, Some(KEY)).await;
        assert_eq!(goes(&mut client, &naming("stable")).await.unwrap(), "3");
        for other in ["3", "4", "canary"] {
            assert_eq!(goes(&mut client, &naming(other)).await.unwrap_err().code, "not_found", "{other}");
        }
        let unnamed = Request { parameters: vec![("x-model-version", "canary".into())], ..ones() };
        assert_eq!(goes(&mut client, &unnamed).await.unwrap_err().code, "permission_denied");
    }
}

fn traffic(rules: &str) -> [(&'static str, String); 4] {
    let yaml = format!("versions: all\nversion_labels: {{ canary: 4 }}\ntraffic: {{ {rules} }}");
    let model = |version: &str| format!("times {version}");
    [
        ("m/3/model.onnx", model("3")),
        ("m/4/model.onnx", model("4")),
        ("m/5/model.onnx", model("5")),
        ("m/model.yaml", yaml),
    ]
}

async fn split(rules: &str) -> World {
    let files = traffic(rules);
    World::explicit("all", &files.each_ref().map(|(path, text)| (*path, &**text))).await
}

#[tokio::test]
async fn calls_that_name_no_version_are_split_by_weight_on_all_surfaces_together() {
    let world = split("split: { 3: 3, 4: 1 }").await;
    let mut counts = BTreeMap::new();
    for surface in Surface::ALL {
        let mut client = connect(surface, &world, None).await;
        for _ in 0..25 {
            *counts.entry(goes(&mut client, &ones()).await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(goes(&mut client, &naming("5")).await.unwrap(), "5", "who names a version gets it");
    }
    assert!((74..=76).contains(&counts["3"]) && counts["3"] + counts["4"] == 100, "{counts:?}");
}

#[tokio::test]
async fn a_header_or_a_parameter_chooses_and_sticks_the_same_on_every_surface() {
    let world = split("split: { 3: 1, 4: 1 }, header: x-model-version, sticky: \"header:x-user\"").await;
    let mut homes = BTreeMap::new();
    for surface in Surface::ALL {
        for chosen in ["5", "canary"] {
            let expected = if chosen == "5" { "5" } else { "4" };
            let mut client = connect(surface, &world, Some(&format!("x-model-version {chosen}"))).await;
            assert_eq!(goes(&mut client, &ones()).await.unwrap(), expected, "{surface:?}: as a header");
            let mut client = connect(surface, &world, None).await;
            let request = Request { parameters: vec![("x-model-version", chosen.into())], ..ones() };
            assert_eq!(goes(&mut client, &request).await.unwrap(), expected, "{surface:?}: as a parameter");
        }
        let absent = Request { parameters: vec![("x-model-version", "9".into())], ..ones() };
        let failure = goes(&mut connect(surface, &world, None).await, &absent).await.unwrap_err();
        assert_eq!(failure.code, "not_found");
        for user in 0..8 {
            let mut with_header = connect(surface, &world, Some(&format!("x-user u{user}"))).await;
            let mut without = connect(surface, &world, None).await;
            let request = Request { parameters: vec![("x-user", format!("u{user}"))], ..ones() };
            for _ in 0..2 {
                let found =
                    [goes(&mut with_header, &ones()).await.unwrap(), goes(&mut without, &request).await.unwrap()];
                let home = homes.entry(user).or_insert_with(|| found[0].clone());
                assert_eq!(found, [home.clone(), home.clone()], "{surface:?} u{user}");
            }
        }
    }
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 2, "both have callers: {homes:?}");
}

#[tokio::test]
async fn identities_stick_on_every_surface() {
    let files = traffic("split: { 3: 1, 4: 1 }, sticky: identity");
    let files = files.each_ref().map(|(path, text)| (*path, &**text));
    let world = World::start(Setup::new().with_key(), &files).await;
    let mut homes = BTreeSet::new();
    for surface in Surface::ALL {
        let mut client = connect(surface, &world, Some(KEY)).await;
        for _ in 0..10 {
            homes.insert(goes(&mut client, &ones()).await.unwrap());
        }
    }
    assert_eq!(homes.len(), 1, "{homes:?}");
}

/// The value of a sample on the page of metrics; 0 if it is not there.
async fn sample(world: &World, name: &str) -> f64 {
    let page = world.running.metrics().await;
    let line = page.lines().find(|line| line.starts_with(name));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

async fn until_sample(world: &World, name: &str, least: f64) {
    let begun = Instant::now();
    while sample(world, name).await < least {
        assert!(begun.elapsed() < Duration::from_secs(20), "{name}\n{}", world.running.metrics().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_shadow_answers_differently_is_in_the_metrics_and_nobody_is_charged() {
    let files = traffic("split: { 3: 1 }, shadow: { to: 5 }");
    let files = files.each_ref().map(|(path, text)| (*path, &**text));
    let rate = "limits: { rate: [{ name: all, by: identity, unit: rows, limit: 80/day, burst: 80 }] }";
    let world = World::start(Setup::new().with_key().yaml(rate), &files).await;
    for surface in Surface::ALL {
        let mut client = connect(surface, &world, Some(KEY)).await;
        for _ in 0..10 {
            // Two rows each: the forty calls use up the rate, and their copies take none of it.
            assert_eq!(goes(&mut client, &ones()).await.unwrap(), "3");
        }
    }
    until_sample(&world, r#"sluicegate_shadow_calls_total{model="m",outcome="compared",version="5"}"#, 40.0).await;
    assert_eq!(sample(&world, r#"sluicegate_shadow_difference_count{model="m",version="5"}"#).await, 40.0);
    assert_eq!(sample(&world, r#"sluicegate_shadow_difference_sum{model="m",version="5"}"#).await, 80.0);
    for role in ["served", "shadow"] {
        let name = format!("sluicegate_shadow_duration_seconds_count{{model=\"m\",role=\"{role}\",version=\"5\"}}");
        assert_eq!(sample(&world, &name).await, 40.0);
    }
    // Calls are those of callers.
    let calls: f64 = {
        let page = world.running.metrics().await;
        let lines = page.lines().filter(|line| {
            line.starts_with("sluicegate_calls_total{") && line.contains("model=\"m\"") && line.contains("code=\"ok\"")
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(calls, 40.0);
}

#[tokio::test]
async fn a_shadow_that_fails_or_never_answers_changes_nothing_for_callers() {
    for (behaviour, outcome) in [("fails", "failed"), ("held", "dropped")] {
        let yaml = "versions: all\nwarmup: off\ntraffic: { split: { 3: 1 }, shadow: { to: 5, queue: 2 } }";
        let files = [("m/3/model.onnx", "times 3"), ("m/5/model.onnx", behaviour), ("m/model.yaml", yaml)];
        let world = World::explicit("all", &files).await;
        let holds = behaviour == "held";
        if holds {
            world.running.block("held");
        }
        for surface in Surface::ALL {
            let mut client = connect(surface, &world, None).await;
            for _ in 0..5 {
                // If anybody waited for the one that is held, this would take until its deadline.
                assert_eq!(goes(&mut client, &ones()).await.unwrap(), "3");
            }
        }
        let name = format!("sluicegate_shadow_calls_total{{model=\"m\",outcome=\"{outcome}\",version=\"5\"}}");
        until_sample(&world, &name, if holds { 18.0 } else { 1.0 }).await;
        if holds {
            world.running.release("held");
        }
    }
}

const WATCHED: &str = "models: { control: watch, watch: { every: 20ms, settle: 40ms }, required: [m] }";

async fn index(world: &World) -> Value {
    world.rest("POST", "/v2/repository/index", "").await.1
}

async fn until_index(world: &World, expected: Value) {
    let begun = Instant::now();
    loop {
        let found = index(world).await;
        if found == expected {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found} instead of {expected}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn models_follow_their_folder_while_they_are_called() {
    let setup = Setup::new().yaml(WATCHED);
    let world = World::begin(setup, &[("n/1/model.onnx", "double")]).await;
    // What is required and not there may come later.
    world.running.loaded().await;
    assert_eq!(world.rest("GET", "/v2/health/ready", "").await.0, 503);
    world.write("m/1/model.onnx", "times 1");
    let begun = Instant::now();
    while world.rest("GET", "/v2/health/ready", "").await.0 != 200 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for surface in Surface::ALL {
        let (mut client, over) = (connect(surface, &world, None).await, Arc::clone(&over));
        callers.push(tokio::spawn(async move {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                last = ran(&client.infer(&ones()).await.unwrap_or_else(|failure| panic!("{surface:?}: {failure:?}")));
            }
            last
        }));
    }
    world.write("m/2/model.onnx", "truncated");
    let reason = "not served: loading it failed: load model from m/2/model.onnx failed: truncated";
    let n = json!({ "name": "n", "version": "1", "state": "READY" });
    let bad = json!({ "name": "m", "version": "2", "state": "UNAVAILABLE", "reason": reason });
    until_index(&world, json!([bad, { "name": "m", "version": "1", "state": "READY" }, n])).await;
    world.write("m/2/model.onnx", "times 2");
    let gone = json!({ "name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded" });
    until_index(&world, json!([{ "name": "m", "version": "2", "state": "READY" }, gone, n])).await;
    world.remove("m/1");
    world.remove("n");
    until_index(&world, json!([{ "name": "m", "version": "2", "state": "READY" }])).await;
    // Calls change nothing here.
    assert_eq!(world.rest("POST", "/v2/repository/models/m/unload", "").await.0, 501);
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 2);
    }
}

#[tokio::test]
async fn a_file_of_a_request_warms_a_model_up_or_fails_its_load_with_the_reason() {
    let world = World::explicit("none", &[("m/3/model.onnx", "held")]).await;
    let load = async |yaml: &str, request: &str| {
        world.write("m/model.yaml", yaml);
        world.write("m/samples/one.json", request);
        let (status, said) = world.rest("POST", "/v2/repository/models/m/load", "").await;
        if status == 200 { Ok(()) } else { Err(said["error"].as_str().unwrap().to_owned()) }
    };
    let request = |columns: usize| {
        let data = vec![1.0; 3 * columns];
        let input = json!({ "name": "x", "datatype": "FP32", "shape": [3, columns], "data": data });
        json!({ "inputs": [input] }).to_string()
    };
    load("warmup: [samples/one.json]\ninstances: 1", &request(4)).await.unwrap();
    assert_eq!(world.running.control("held").batches().last(), Some(&3));
    let unfit = load("warmup: [samples/one.json]", &request(5)).await.unwrap_err();
    assert!(
        unfit.ends_with("warm-up sample `samples/one.json`: tensor `x` has shape [3, 5], expected [-1, 4]"),
        "{unfit}"
    );
    let broken = load("warmup: [samples/one.json]", "{").await.unwrap_err();
    assert!(broken.contains("warmup: `samples/one.json`: "), "{broken}");
    let missing = load("warmup: [samples/two.json]", "{}").await.unwrap_err();
    assert!(missing.contains("warmup: `samples/two.json`: "), "{missing}");
    let before = world.running.runs("held");
    load("warmup: off", "{").await.unwrap();
    assert_eq!(world.running.runs("held"), before, "nothing is run");
}

//! Answers that are kept: who may have them, for how long, and that equal calls run their model once.

use crate::support::{
    KEY, Running, Setup,
    client::{Client, Data, Request, http_request, http1},
    keys_file,
    scripts::World,
    until,
    ways::{Caller, Way, every_way},
};
use serde_json::{Value, json};
use sluicegate::{call::Surface, wire::proto::inference as pb};
use std::{fmt::Write as _, fs, time::Duration};

/// The key of identity `other`.
const OTHER: &str = "sg_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

fn kept(how: &str) -> Setup {
    Setup::new().yaml(&format!("models: {{ defaults: {{ cache: {how} }} }}"))
}

/// A gateway that `web` and `other` may call.
fn for_two(how: &str) -> Setup {
    use sha2::{Digest, Sha256};
    let setup = kept(how)
        .auth("{ api_keys: { file: two.yaml } }")
        .with_grants("[{ to: [\"identity:web\", \"identity:other\"], intents: [infer, inspect], models: [\"*\"] }]");
    let hash = Sha256::digest(OTHER).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    let mut keys = keys_file("");
    writeln!(
        keys,
        "  - {{ id: k_other, hash: \"sha256:{hash}\", identity: other, created: \"2020-01-01T00:00:00Z\" }}"
    )
    .unwrap();
    fs::write(setup.folder().join("two.yaml"), keys).unwrap();
    setup
}

fn asked(model: &str) -> Request {
    Request::new(model, &[1, 4], vec![1.0, -2.5, 0.1, 7.0])
}

async fn ask(running: &Running, key: Option<&str>, request: &Request) -> Vec<f32> {
    let mut client = Client::connect(Surface::Rest, running, key).await.unwrap();
    floats(&client.infer(request).await.unwrap().outputs["y"].1)
}

fn floats(data: &Data) -> Vec<f32> {
    let Data::Floats(values) = data else { panic!("floats, and not {data:?}") };
    values.clone()
}

/// What the page has for one series; 0 if it has none.
fn sample(page: &str, series: &str) -> u64 {
    let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}

async fn a_flood_runs_the_model_once(way: Way) {
    const CALLS: u64 = 12;
    let running = kept("{}").start().await;
    let before = running.runs("held");
    running.block("held");
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let running = running.clone();
            tokio::spawn(async move {
                let mut caller = Caller::open(way, &running, None).await.unwrap();
                caller.ask(&asked("held")).await.unwrap();
                // The connection, too, is used again.
                caller.ask(&asked("held")).await.unwrap();
            })
        })
        .collect();
    until(|| running.runs("held") > before, "the first one runs").await;
    let in_flight = |page: &str| {
        let lines = page.lines().filter(|line| line.starts_with("sluicegate_calls_in_flight{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>() >= CALLS
    };
    running.until("all are there", in_flight).await;
    running.release("held");
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(running.runs("held"), before + 1);
    let page = running.metrics().await;
    let of = |outcome| sample(&page, &format!("sluicegate_cache_calls_total{{model=\"held\",outcome=\"{outcome}\"}}"));
    assert_eq!((of("miss"), of("hit") + of("shared")), (1, 2 * CALLS - 1));
    assert!(of("shared") > 0);
}

every_way! {
    flood: a_flood_runs_the_model_once,
}

#[tokio::test]
async fn what_one_surface_asked_another_is_answered_in_its_own_form() {
    let running = kept("{}").start().await;
    let before = running.runs("double");
    let expected = [2.0_f32, -5.0, 0.2, 14.0];
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let request = Request { id: format!("{surface:?}"), ..asked("double") };
        let answer = client.infer(&request).await.unwrap();
        assert_eq!((floats(&answer.outputs["y"].1), &*answer.id), (expected.to_vec(), &*request.id), "{surface:?}");
        let best = Request { outputs: vec!["y".into()], classes: Some(1), ..asked("double") };
        let answer = client.infer(&best).await.unwrap();
        assert_eq!(answer.outputs["y"].1, Data::Strings(vec!["14.000000:3".into()]), "{surface:?}");
    }
    // In binary both ways: what is compared are the bytes of the tensor.
    let head = json!({
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": { "binary_data_size": 16 } }],
        "outputs": [{ "name": "y", "parameters": { "binary_data": true } }],
    });
    let mut body = head.to_string().into_bytes();
    let header = body.len();
    body.extend([1.0_f32, -2.5, 0.1, 7.0].iter().flat_map(|value| value.to_le_bytes()));
    let mut request = http_request(&running, "POST", "/v2/models/double/infer", None, body);
    request.headers_mut().insert("inference-header-content-length", header.into());
    let response = http1(&running, request).await;
    assert_eq!(response.status(), 200);
    let bytes: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(response.body().ends_with(&bytes));
    assert_eq!(running.runs("double"), before + 1);
}

#[tokio::test]
async fn strings_are_answered_again_too() {
    let running = kept("{}").start().await;
    let before = running.runs("echo");
    for strings in [["ab", "c"], ["a", "bc"], ["ab", "c"]] {
        let data = Data::Strings(strings.map(str::to_owned).to_vec());
        let request = Request { data: data.clone(), ..Request::new("echo", &[2], vec![]) };
        let mut client = Client::connect(Surface::Grpc, &running, None).await.unwrap();
        assert_eq!(client.infer(&request).await.unwrap().outputs["y"].1, data);
    }
    assert_eq!(running.runs("echo"), before + 2);
}

#[tokio::test]
async fn identities_share_answers_only_where_they_are_told_to() {
    for (how, runs) in [("{}", 2), ("{ scope: identity }", 2), ("{ scope: model }", 1)] {
        let running = for_two(how).start().await;
        let before = running.runs("double");
        for key in [KEY, OTHER, KEY, OTHER] {
            ask(&running, Some(key), &asked("double")).await;
        }
        assert_eq!(running.runs("double"), before + runs, "{how}");
    }
}

#[tokio::test]
async fn an_answer_is_for_those_who_may_call_the_model_and_is_charged() {
    let running = for_two("{ scope: model }")
        .with_grants("[{ to: [\"identity:web\"], intents: [infer], models: [\"double\"] }, { to: [\"identity:other\"], intents: [infer], models: [\"echo\"] }]")
        .with_rate("3/day", 3)
        .start()
        .await;
    for _ in 0..3 {
        ask(&running, Some(KEY), &asked("double")).await;
    }
    let code = |key| {
        let running = running.clone();
        async move {
            let mut client = Client::connect(Surface::Rest, &running, Some(key)).await.unwrap();
            client.infer(&asked("double")).await.unwrap_err().code
        }
    };
    assert_eq!(code(KEY).await, "rate_limited");
    assert_eq!(code(OTHER).await, "not_found");
}

#[tokio::test]
async fn no_version_answers_for_another() {
    let files = [("a/1/model.onnx", "times 2"), ("a/2/model.onnx", "times 3")];
    let setup =
        Setup::new().yaml("models: { control: explicit, defaults: { versions: all, cache: { scope: model } } }");
    let world = World::start(setup, &files).await;
    let version = |version: &str| Request { version: Some(version.into()), ..asked("a") };
    let first = async |request: &Request| ask(&world.running, None, request).await[0];
    for _ in 0..2 {
        assert_eq!((first(&version("1")).await, first(&version("2")).await), (2.0, 3.0));
        assert_eq!(first(&asked("a")).await, 3.0, "the highest");
    }
    // The same version with another file, and then with the same one: each load begins with nothing.
    for text in ["times 5", "times 7", "times 7"] {
        world.write("a/2/model.onnx", text);
        assert_eq!(world.rest("POST", "/v2/repository/models/a/load", "").await.0, 200);
        let expected: f32 = text[6..].parse().unwrap();
        assert_eq!((first(&version("1")).await, first(&version("2")).await), (2.0, expected));
        let stats = statistics(&world, 2).await;
        assert_eq!((count(&stats, "cache_hit"), count(&stats, "cache_miss")), (0, 1), "{text}");
    }
}

async fn who_leads_and_leaves_harms_nobody(way: Way) {
    let running = kept("{}").start().await;
    let before = running.runs("held");
    running.block("held");
    let leader = {
        let running = running.clone();
        tokio::spawn(async move {
            let mut caller = Caller::open(way, &running, None).await.unwrap();
            caller.ask(&asked("held")).await
        })
    };
    until(|| running.runs("held") > before, "the first one runs").await;
    let mut follower = Caller::open(way, &running, None).await.unwrap();
    let asking = tokio::spawn(async move { follower.ask(&asked("held")).await });
    let two = |page: &str| {
        let lines = page.lines().filter(|line| line.starts_with("sluicegate_calls_in_flight{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>() == 2
    };
    running.until("both are there", two).await;
    leader.abort();
    running.until("the first one has left", |page| page.contains("code=\"cancelled\"")).await;
    running.release("held");
    asking.await.unwrap().unwrap();
}

every_way! {
    leaving: who_leads_and_leaves_harms_nobody,
}

#[tokio::test]
async fn who_leads_and_is_late_harms_nobody() {
    for surface in Surface::ALL {
        let running = kept("{}").start().await;
        let holder = running.hold("held").await;
        let before = running.runs("held");
        let call = |timeout| {
            let running = running.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(surface, &running, None).await.unwrap();
                client.infer(&Request { timeout, ..asked("held") }).await
            })
        };
        let leader = call(Some(Duration::from_millis(300)));
        // Waits in the queue by then; if not, it is the follower, which must be late as well and harms nobody either.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let follower = call(None);
        let failure = leader.await.unwrap().unwrap_err();
        assert_eq!((&*failure.code, &*failure.message), ("deadline_exceeded", "deadline exceeded while queued"));
        holder.release().await;
        follower.await.unwrap().unwrap();
        assert_eq!(running.runs("held"), before + 1, "{surface:?}");
    }
}

#[tokio::test]
async fn an_error_is_not_kept() {
    let running = kept("{}").start().await;
    let before = running.runs("fail");
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        assert_eq!(client.infer(&asked("fail")).await.unwrap_err().code, "internal", "{surface:?}");
    }
    assert_eq!(running.runs("fail"), before + 4);
    running.release("fail");
    ask(&running, None, &asked("fail")).await;
    ask(&running, None, &asked("fail")).await;
    assert_eq!(running.runs("fail"), before + 5);
}

#[tokio::test]
async fn what_is_too_large_or_too_old_is_run_again() {
    // An answer counts as what it takes to keep it, which is more than a KiB.
    let running = kept("{ memory: 1KiB }").start().await;
    let before = running.runs("double");
    for _ in 0..3 {
        ask(&running, None, &asked("double")).await;
    }
    assert_eq!(running.runs("double"), before + 3);
    let running = kept("{ age: 1ms }").start().await;
    let before = running.runs("double");
    for _ in 0..3 {
        ask(&running, None, &asked("double")).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(running.runs("double"), before + 3);
    let running = kept("{ memory: 4KiB }").start().await;
    for mark in 0..50_u16 {
        ask(&running, None, &Request::new("double", &[1, 4], vec![f32::from(mark); 4])).await;
    }
    let page = running.metrics().await;
    let bytes = sample(&page, "sluicegate_cache_bytes{model=\"double\",version=\"1\"}");
    assert!((1024..=4096).contains(&bytes), "{bytes}");
    assert!(sample(&page, "sluicegate_cache_evictions_total{model=\"double\",reason=\"memory\"}") >= 46);
}

async fn statistics(world: &World, version: u32) -> Value {
    let path = format!("/v2/models/a/versions/{version}/stats");
    world.rest("GET", &path, "").await.1["model_stats"][0].clone()
}

/// The count of one kind of calls.
fn count(stats: &Value, name: &str) -> u64 {
    stats["inference_stats"][name]["count"].as_u64().unwrap()
}

#[tokio::test]
async fn statistics_and_metrics_tell_hits_from_runs_as_triton_does() {
    let yaml = "models: { control: explicit, defaults: { cache: {} } }\ntelemetry: { metrics: { nv_view: true } }";
    let files = [("a/1/model.onnx", "double"), ("b/1/model.onnx", "double"), ("b/model.yaml", "cache: off\n")];
    let world = World::start(Setup::new().yaml(yaml), &files).await;
    let three = Request::new("a", &[3, 4], vec![1.0; 12]);
    for request in [&three, &three, &three, &asked("a"), &asked("b"), &asked("b")] {
        ask(&world.running, None, request).await;
    }
    world
        .running
        .until("all are counted", |page| sample(page, "nv_inference_request_success{model=\"a\",version=\"1\"}") == 4)
        .await;
    let stats = statistics(&world, 1).await;
    let counts = ["success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]
        .map(|name| count(&stats, name));
    assert_eq!(counts, [4, 4, 2, 2, 2, 2, 2], "{stats}");
    assert_eq!(
        (&stats["inference_count"], &stats["execution_count"]),
        (&json!(4), &json!(2)),
        "rows that ran, and runs"
    );
    for name in ["cache_hit", "cache_miss"] {
        assert!(stats["inference_stats"][name]["ns"].as_u64().unwrap() > 0, "{name}");
    }
    let request = pb::ModelStatisticsRequest { name: "a".into(), version: "1".into() };
    let rpc = world.grpc().await.model_statistics(request).await.unwrap().into_inner().model_stats.remove(0);
    let found = rpc.inference_stats.unwrap();
    assert_eq!(json!(found.cache_hit.unwrap().ns), stats["inference_stats"]["cache_hit"]["ns"]);
    assert_eq!((found.cache_hit.unwrap().count, found.cache_miss.unwrap().count, rpc.inference_count), (2, 2, 4));

    let page = world.running.metrics().await;
    for (family, expected) in [
        ("nv_cache_num_hits_per_model", Some(2)),
        ("nv_cache_num_misses_per_model", Some(2)),
        ("nv_cache_hit_duration_per_model", None),
        ("nv_cache_miss_duration_per_model", None),
        ("nv_inference_count", Some(4)),
        ("nv_inference_exec_count", Some(2)),
    ] {
        let series = format!("{family}{{model=\"a\",version=\"1\"}}");
        assert!(page.contains(&series), "{family}");
        assert!(expected.is_none_or(|expected| sample(&page, &series) == expected), "{family}");
    }
    assert!(!page.contains("nv_cache_num_hits_per_model{model=\"b\""), "there is no cache");
    let outcome =
        |outcome| sample(&page, &format!("sluicegate_cache_calls_total{{model=\"a\",outcome=\"{outcome}\"}}"));
    assert_eq!((outcome("hit"), outcome("shared"), outcome("miss")), (2, 0, 2));

    let (_, config) = world.rest("GET", "/v2/models/a/config", "").await;
    assert_eq!(config["response_cache"], json!({ "enable": true }));
    assert!(world.rest("GET", "/v2/models/b/config", "").await.1.get("response_cache").is_none());
}

#[tokio::test]
async fn without_a_cache_there_are_none_of_its_families() {
    let running = Setup::new().yaml("telemetry: { metrics: { nv_view: true } }").start().await;
    ask(&running, None, &asked("double")).await;
    let page = running.metrics().await;
    assert!(!page.contains("nv_cache_") && !page.contains("sluicegate_cache_"), "{page}");
}

#[tokio::test]
async fn a_step_of_an_ensemble_is_answered_as_its_model_says() {
    let graph = "ensemble: { steps: [{ model: a, inputs: { x: x }, outputs: { y: y } }] }\n";
    let refused = format!("cache: {{ age: 1m }}\n{graph}");
    let files = [
        ("a/1/model.onnx", "double"),
        ("a/model.yaml", "cache: {}\n"),
        ("e/model.yaml", graph),
        ("f/model.yaml", &refused),
    ];
    let world = World::explicit("all", &files).await;
    for _ in 0..3 {
        assert_eq!(ask(&world.running, None, &asked("e")).await[0], 2.0);
    }
    let stats = statistics(&world, 1).await;
    assert_eq!((count(&stats, "cache_hit"), count(&stats, "cache_miss"), &stats["execution_count"]), (2, 1, &json!(1)));
    let (status, refusal) = world.rest("POST", "/v2/repository/models/f/load", "").await;
    assert_ne!(status, 200);
    assert!(refusal["error"].as_str().unwrap().contains("cache: is not for an ensemble"), "{refusal}");
}

#[tokio::test]
async fn a_shadow_sees_what_runs_and_neither_fills_a_cache_nor_reads_one() {
    let files = [
        ("a/1/model.onnx", "double"),
        ("a/2/model.onnx", "double"),
        ("a/model.yaml", "versions: all\ncache: {}\ntraffic: { split: { 1: 1 }, shadow: { to: 2, share: 1.0 } }\n"),
    ];
    let world = World::explicit("all", &files).await;
    for _ in 0..3 {
        ask(&world.running, None, &asked("a")).await;
    }
    ask(&world.running, None, &Request::new("a", &[1, 4], vec![9.0; 4])).await;
    let compared = "sluicegate_shadow_calls_total{model=\"a\",outcome=\"compared\",version=\"2\"}";
    world.running.until("what ran was copied", |page| sample(page, compared) == 2).await;
    let stats = statistics(&world, 2).await;
    assert_eq!((count(&stats, "cache_hit"), count(&stats, "cache_miss")), (0, 0));
    assert_eq!(stats["execution_count"], 2);
}

//! Statistics and configuration over real sockets, on REST and gRPC alike (contract 02 sections 6 and 10).

use crate::support::{
    Setup,
    client::{Client, Request, http_request, http1, status_failure},
    scripts::World,
};
use serde_json::{Value, json};
use sluicegate::{
    call::Surface,
    wire::proto::{inference as pb, parse_config_json},
};

/// What perf_analyzer reads without asking whether it is there.
const DURATIONS: [&str; 8] =
    ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"];

async fn statistics(world: &World, path: &str) -> Vec<Value> {
    let (status, body) = world.rest("GET", path, "").await;
    assert_eq!(status, 200, "{body}");
    body["model_stats"].as_array().unwrap().clone()
}

async fn grpc_statistics(world: &World, name: &str, version: &str) -> Vec<pb::ModelStatistics> {
    let request = pb::ModelStatisticsRequest { name: name.into(), version: version.into() };
    world.grpc().await.model_statistics(request).await.unwrap().into_inner().model_stats
}

/// The count of one of [`DURATIONS`].
fn count(stats: &Value, name: &str) -> u64 {
    stats["inference_stats"][name]["count"].as_u64().unwrap()
}

async fn infer(world: &World, surface: Surface, model: &str, rows: usize) -> bool {
    let mut client = Client::connect(surface, &world.running, None).await.unwrap();
    client.infer(&Request::new(model, &[rows, 4], vec![0.0; rows * 4])).await.is_ok()
}

/// Statistics once `calls` calls are counted: a call is counted when its reply is over, which its caller may see first.
async fn after(world: &World, path: &str, calls: u64) -> Value {
    let started = std::time::Instant::now();
    loop {
        let stats = statistics(world, path).await.remove(0);
        if count(&stats, "success") + count(&stats, "fail") == calls {
            return stats;
        }
        assert!(started.elapsed().as_secs() < 20, "{calls} calls, and {stats}");
    }
}

#[tokio::test]
async fn every_key_is_there_from_the_first_second() {
    let files = [("a/1/model.onnx", "double"), ("a/2/model.onnx", "double"), ("b/3/model.onnx", "double")];
    let setup = Setup::new().yaml("models: { defaults: { versions: all } }");
    let world = World::start(setup, &files).await;
    let all = statistics(&world, "/v2/models/stats").await;
    let of = |stats: &Value| format!("{}/{}", stats["name"].as_str().unwrap(), stats["version"].as_str().unwrap());
    let mut names: Vec<_> = all.iter().map(of).collect();
    names.sort_unstable();
    assert_eq!(names, ["a/1", "a/2", "b/3"], "`stats` is not taken for a model");
    for stats in &all {
        assert!(stats["version"].as_str().unwrap().parse::<u64>().is_ok(), "an integer, as text");
        for name in ["last_inference", "inference_count", "execution_count"] {
            assert!(stats[name].is_u64(), "{name} in {stats}");
        }
        for name in DURATIONS {
            let found = &stats["inference_stats"][name];
            assert!(found["count"].is_u64() && found["ns"].is_u64(), "{name} in {stats}");
            // What warms a model up are nobody's calls.
            assert_eq!(found["count"], 0, "{name}");
        }
        assert_eq!(stats["batch_stats"], json!([]));
        assert!(stats["response_stats"].is_object() && stats["memory_usage"].is_array());
    }
    assert_eq!(statistics(&world, "/v2/models/a/stats").await.len(), 2);
    let one = statistics(&world, "/v2/models/a/versions/1/stats").await;
    assert_eq!((one.len(), &one[0]["version"]), (1, &json!("1")));

    assert_eq!(grpc_statistics(&world, "", "").await.len(), 3, "no name means all");
    assert_eq!(grpc_statistics(&world, "a", "").await.len(), 2);
    let one = grpc_statistics(&world, "a", "2").await.remove(0);
    assert_eq!((&*one.name, &*one.version), ("a", "2"));
    let found = one.inference_stats.unwrap();
    let durations = [
        found.success,
        found.fail,
        found.queue,
        found.compute_input,
        found.compute_infer,
        found.compute_output,
        found.cache_hit,
        found.cache_miss,
    ];
    assert!(durations.into_iter().all(|duration| duration == Some(pb::StatisticDuration::default())));
}

#[tokio::test]
async fn calls_of_every_surface_are_counted_once() {
    let world = World::explicit("all", &[("a/1/model.onnx", "double")]).await;
    let path = "/v2/models/a/stats";
    let mut before = statistics(&world, path).await.remove(0);
    let (mut calls, mut rows) = (0, 0);
    for surface in Surface::ALL {
        for size in [1, 3] {
            assert!(infer(&world, surface, "a", size).await);
            (calls, rows) = (calls + 1, rows + size as u64);
        }
        // A shape that the model has not.
        let mut client = Client::connect(surface, &world.running, None).await.unwrap();
        client.infer(&Request::new("a", &[1, 5], vec![0.0; 5])).await.unwrap_err();
        let stats = after(&world, path, calls + calls / 2).await;
        assert_eq!((count(&stats, "success"), count(&stats, "fail")), (calls, calls / 2), "{surface:?}");
        assert_eq!(stats["inference_count"], rows, "rows, not calls");
        for name in ["queue", "compute_input", "compute_infer", "compute_output"] {
            assert_eq!(count(&stats, name), calls, "{name}: one each, as nothing is cached");
        }
        // Nothing goes down.
        for name in DURATIONS {
            for part in ["count", "ns"] {
                let number = |stats: &Value| stats["inference_stats"][name][part].as_u64().unwrap();
                assert!(number(&stats) >= number(&before), "{name} {part}");
            }
        }
        for name in ["last_inference", "inference_count", "execution_count"] {
            assert!(stats[name].as_u64() >= before[name].as_u64(), "{name}");
        }
        before = stats;
    }
    let batches = before["batch_stats"].as_array().unwrap();
    let sizes: Vec<_> = batches.iter().map(|batch| batch["batch_size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [1, 3]);
    let runs: u64 = batches.iter().map(|batch| batch["compute_infer"]["count"].as_u64().unwrap()).sum();
    assert_eq!(before["execution_count"], runs);
    assert!(before["last_inference"].as_u64().unwrap() > 1_700_000_000_000, "milliseconds since 1970");

    let rpc = grpc_statistics(&world, "a", "").await.remove(0);
    assert_eq!((json!(rpc.inference_count), json!(rpc.execution_count)), (json!(rows), json!(runs)));
    assert_eq!(json!(rpc.last_inference), before["last_inference"]);
    let found = rpc.inference_stats.unwrap();
    assert_eq!(json!(found.success.unwrap().ns), before["inference_stats"]["success"]["ns"]);
    assert_eq!(json!(found.fail.unwrap().count), before["inference_stats"]["fail"]["count"]);
    assert_eq!(rpc.batch_stats.iter().map(|batch| batch.batch_size).collect::<Vec<_>>(), [1, 3]);
}

#[tokio::test]
async fn loading_again_begins_at_zero() {
    let world = World::explicit("all", &[("a/1/model.onnx", "double"), ("b/1/model.onnx", "double")]).await;
    for model in ["a", "b"] {
        assert!(infer(&world, Surface::Rest, model, 1).await);
        after(&world, &format!("/v2/models/{model}/stats"), 1).await;
    }
    assert_eq!(world.rest("POST", "/v2/repository/models/a/load", "").await.0, 200);
    let stats = statistics(&world, "/v2/models/a/stats").await.remove(0);
    assert_eq!((count(&stats, "success"), &stats["inference_count"]), (0, &json!(0)));
    assert_eq!(count(&statistics(&world, "/v2/models/b/stats").await[0], "success"), 1, "another model's stay");
    assert!(infer(&world, Surface::Grpc, "a", 1).await);
    after(&world, "/v2/models/a/stats", 1).await;
}

#[tokio::test]
async fn what_is_unknown_has_no_statistics_and_no_configuration() {
    let world = World::explicit("all", &[("a/1/model.onnx", "double")]).await;
    for path in ["/v2/models/x/stats", "/v2/models/a/versions/7/stats", "/v2/models/x/config"] {
        let (status, error) = world.rest("GET", path, "").await;
        assert_eq!((status, &error["code"]), (404, &json!("not_found")), "{path}");
    }
    let mut client = world.grpc().await;
    let request = pb::ModelStatisticsRequest { name: "x".into(), version: String::new() };
    let status = client.model_statistics(request).await.unwrap_err();
    assert_eq!((status.code(), &*status_failure(&status).code), (tonic::Code::NotFound, "not_found"));
    let request = pb::ModelConfigRequest { name: "a".into(), version: "7".into() };
    assert_eq!(client.model_config(request).await.unwrap_err().code(), tonic::Code::NotFound);
}

const PBTXT: &str = "
    name: \"a\"
    backend: \"onnxruntime\"
    max_batch_size: 8
    input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 4 ] } ]
    output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 4 ] label_filename: \"names.txt\" } ]
    instance_group [ { count: 2 kind: KIND_CPU } ]
    dynamic_batching { max_queue_delay_microseconds: 500 preferred_batch_size: [ 2, 4 ] preserve_ordering: true
      default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 70 } }
    version_policy: { specific { versions: [ 1 ] } }
    parameters { key: \"team\" value { string_value: \"vision\" } }
    metric_tags { key: \"site\" value: \"east\" }
    response_cache { enable: true }
    model_warmup [ {
      name: \"first\" batch_size: 5
      inputs { key: \"x\" value { data_type: TYPE_FP32 dims: [ 4 ] random_data: true } }
    } ]
";

#[tokio::test]
async fn a_configuration_comes_back_as_clients_read_it() {
    let files = [
        ("a/1/model.onnx", "double"),
        ("a/config.pbtxt", PBTXT),
        ("a/names.txt", "one\ntwo\nthree\nfour\n"),
        ("a/model.yaml", "execution: thread\n"),
        ("b/1/model.onnx", "double"),
        ("b/config.pbtxt", "max_batch_size: 0\n"),
    ];
    let world = World::explicit("all", &files).await;
    let response =
        http1(&world.running, http_request(&world.running, "GET", "/v2/models/a/versions/1/config", None, "")).await;
    let text = std::str::from_utf8(response.body()).unwrap().to_owned();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&config["name"], &config["platform"]), (&json!("a"), &json!("onnxruntime_onnx")));
    assert_eq!((&config["backend"], &config["max_batch_size"]), (&json!("onnxruntime"), &json!(8)));
    let input = &config["input"][0];
    assert_eq!((&input["name"], &input["data_type"]), (&json!("x"), &json!("TYPE_FP32")));
    assert_eq!(input["dims"], json!([4]), "numbers, and without the rows");
    assert_eq!((&input["format"], &input["optional"]), (&json!("FORMAT_NONE"), &json!(false)));
    assert_eq!(config["output"][0]["label_filename"], "names.txt");
    assert_eq!(config["instance_group"][0]["count"], 2);
    assert_eq!(config["dynamic_batching"]["max_queue_delay_microseconds"], 500, "64 bits, and yet a number");
    assert_eq!(config["dynamic_batching"]["preferred_batch_size"], json!([2, 4]));
    assert_eq!(config["dynamic_batching"]["preserve_ordering"], true);
    let queue = &config["dynamic_batching"]["default_queue_policy"];
    assert_eq!((&queue["timeout_action"], &queue["default_timeout_microseconds"]), (&json!("DELAY"), &json!(70)));
    assert_eq!(config["version_policy"]["specific"]["versions"], json!([1]));
    assert_eq!(config["model_transaction_policy"]["decoupled"], false, "there, and a boolean");
    assert_eq!(config["parameters"]["team"]["string_value"], "vision");
    assert_eq!(config["metric_tags"]["site"], "east");
    assert_eq!(config["response_cache"]["enable"], true);
    assert!(config.get("sequence_batching").is_none());
    // Every name is in the metadata too: perf_analyzer looks there.
    let (_, metadata) = world.rest("GET", "/v2/models/a", "").await;
    assert_eq!(metadata["inputs"], json!([{ "name": "x", "datatype": "FP32", "shape": [-1, 4] }]));

    let request = pb::ModelConfigRequest { name: "a".into(), version: String::new() };
    let message = world.grpc().await.model_config(request).await.unwrap().into_inner().config.unwrap();
    assert_eq!(message, parse_config_json(&text).unwrap(), "the same on gRPC");

    let (_, unbatched) = world.rest("GET", "/v2/models/b/config", "").await;
    assert_eq!((&unbatched["max_batch_size"], &unbatched["input"][0]["dims"]), (&json!(0), &json!([-1, 4])));
    assert!(unbatched.get("dynamic_batching").is_none());
    assert_eq!(unbatched["model_transaction_policy"]["decoupled"], false);
}

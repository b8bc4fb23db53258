//! `sluicegate bench` against running gateways, on each surface, and of the engine alone.

use crate::support::{KEY, Running, Setup};
use serde_json::Value;
use std::{
    fs,
    process::{Command, Output, Stdio},
};

const SURFACES: [&str; 6] = ["rest", "rest-binary", "grpc", "grpc-stream", "websocket", "ndjson"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_clear().stdin(Stdio::null()).arg("bench").args(arguments);
    command
}

/// Runs it beside the gateway of the test, whose control runtime is this one.
async fn bench(arguments: &[&str]) -> Output {
    let mut command = command(arguments);
    let (done, output) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(done.send(command.output().unwrap())));
    output.await.unwrap()
}

/// Thousands of calls: their access log would bury what a test prints.
fn setup() -> Setup {
    Setup::new().yaml("telemetry: { access_log: { enabled: false } }")
}

fn url(running: &Running) -> String {
    format!("http://{}", running.address)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn table(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn json(output: &Output) -> Value {
    let printed = table(output);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error} in\n{printed}"))
}

/// The one line that a refusal prints.
fn refusal(output: &Output) -> String {
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}{printed}", text(&output.stdout));
    assert_eq!((printed.lines().count(), text(&output.stdout)), (1, String::new()), "{printed}");
    printed
}

/// Held to for every run: what it counts adds up, and no quantile is above the next.
fn check(run: &Value) {
    assert!(run["answers"].as_u64().unwrap() > 0, "{run}");
    assert!(run["requests_per_second"].as_f64().unwrap() >= 0.0, "{run}");
    let latency = &run["latency_us"];
    let quantiles = ["p50", "p90", "p95", "p99", "p99.9", "max"].map(|name| latency[name].as_f64().unwrap());
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{run}");
}

const SHORT: [&str; 4] = ["--warmup", "10ms", "--duration", "60ms"];

#[tokio::test]
async fn each_surface_ends_with_a_table() {
    let running = setup().with_key().start().await;
    let url = url(&running);
    for surface in SURFACES {
        let mut arguments =
            vec![&*url, "--model", "double", "--surface", surface, "--key", KEY, "--concurrency", "1,5"];
        arguments.extend(SHORT);
        let printed = table(&bench(&arguments).await);
        assert!(printed.contains("closed loop") && printed.contains("y FP32 [1, 4]"), "{printed}");
        let name = format!("{url} {surface} ");
        let lines: Vec<_> = printed.lines().filter(|line| line.starts_with(&name)).collect();
        assert_eq!(lines.len(), 2, "a line for each number of callers in\n{printed}");
        assert!(lines.iter().all(|line| line.ends_with("  0")), "no errors in\n{printed}");
    }
}

#[tokio::test]
async fn json_tells_each_run_and_what_the_server_says_of_its_stages() {
    let running = setup().start().await;
    let url = url(&running);
    for surface in SURFACES {
        let mut arguments = vec![&*url, "--model", "double", "--surface", surface, "--json", "--concurrency", "2,4"];
        arguments.extend(SHORT);
        arguments.extend(["--rows", "3", "--rounds", "2"]);
        let report = json(&bench(&arguments).await);
        assert_eq!((report["model"].as_str(), report["sources"].as_array().unwrap().len()), (Some("double"), 1));
        let runs = report["runs"].as_array().unwrap();
        let told: Vec<_> = runs.iter().map(|run| (run["callers"].as_u64(), run["round"].as_u64())).collect();
        assert_eq!(told, [(2, 1), (2, 2), (4, 1), (4, 2)].map(|(callers, round)| (Some(callers), Some(round))));
        for run in runs {
            check(run);
            assert_eq!((&run["errors"], &run["rows_per_request"]), (&serde_json::json!({}), &serde_json::json!(3)));
            assert!(run["queue_us"]["mean"].is_f64() && run["run_us"]["mean"].is_f64(), "{surface}: {run}");
            assert!(run["requests_per_run"].as_f64().unwrap() >= 1.0, "{surface}: {run}");
        }
    }
}

#[tokio::test]
async fn an_open_loop_accounts_for_every_request_that_is_due() {
    let running = setup().start().await;
    let url = url(&running);
    for surface in SURFACES {
        let arguments =
            [&*url, "--model", "double", "--surface", surface, "--json", "--rate", "300", "--concurrency", "4"];
        let report = json(&bench(&[&arguments[..], &["--warmup", "0s", "--duration", "100ms"]].concat()).await);
        assert_eq!(report["requests_per_second_due"], 300.0);
        let run = &report["runs"][0];
        check(run);
        assert_eq!(run["answers"].as_u64().unwrap() + run["unsent"].as_u64().unwrap(), 30, "{surface}: {run}");
    }
}

#[tokio::test]
async fn a_server_that_is_too_slow_is_charged_with_what_it_did_not_take() {
    let running = setup().start().await;
    // Each run takes 300 ms, and there is one caller: of twenty requests it takes the first or two.
    let arguments = [&*url(&running), "--model", "slow", "--json", "--rate", "50"];
    let report = json(&bench(&[&arguments[..], &["--warmup", "0s", "--duration", "400ms"]].concat()).await);
    let run = &report["runs"][0];
    let (answers, unsent) = (run["answers"].as_u64().unwrap(), run["unsent"].as_u64().unwrap());
    assert_eq!(answers + unsent, 20, "{run}");
    assert!(unsent >= 10, "{run}");
}

#[tokio::test]
async fn two_servers_take_turns_and_are_compared() {
    let (one, other) = (setup().start().await, setup().start().await);
    let (first, second) = (url(&one), url(&other));
    let mut arguments = vec![&*first, "--against", &second, "--model", "double", "--json", "--rounds", "3"];
    arguments.extend(SHORT);
    let report = json(&bench(&arguments).await);
    assert_eq!(report["runs"].as_array().unwrap().len(), 6);
    let ratio = &report["ratios"][0];
    assert_eq!(ratio["callers"], 1);
    assert!(ratio["requests_per_second"].as_f64().unwrap() > 0.0 && ratio["p99"].as_f64().unwrap() > 0.0, "{ratio}");
    arguments.retain(|argument| *argument != "--json");
    let printed = table(&bench(&arguments).await);
    assert!(printed.contains("ratio of the medians") && printed.contains("1 callers: requests/s"), "{printed}");
    assert!(one.runs("double") > 6 && other.runs("double") > 6, "both were asked");
}

#[tokio::test]
async fn refusals_are_counted_by_code_on_each_surface() {
    for surface in SURFACES {
        let running = setup().with_key().with_rate("1/h", 10).start().await;
        let url = url(&running);
        let asked = [&*url, "--model", "double", "--surface", surface, "--key", KEY, "--json"];
        let report = json(&bench(&[&asked[..], &["--warmup", "0s", "--duration", "200ms"]].concat()).await);
        let run = &report["runs"][0];
        // An error within a gRPC stream is text and nothing else.
        let code = if surface == "grpc-stream" { "stream_error" } else { "rate_limited" };
        assert!(run["errors"][code].as_u64().unwrap_or_default() > 0, "{surface}: {run}");
        assert!(run["answers"].as_u64().unwrap() <= 10, "{surface}: {run}");
        let printed = refusal(&bench(&[&asked[..], &["--duration", "10ms"]].concat()).await);
        assert!(printed.contains(code) || printed.contains("rate_limited"), "{surface}: {printed}");
    }
}

#[tokio::test]
async fn a_request_from_a_file_is_sent_as_it_is() {
    let running = setup().start().await;
    let url = url(&running);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("request.json");
    fs::write(&path, r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[2,4],"data":[1,2,3,4,5,6,7,8]}]}"#).unwrap();
    for surface in SURFACES {
        let mut arguments =
            vec![&*url, "--model", "double", "--surface", surface, "--json", "--data", path.to_str().unwrap()];
        arguments.extend(SHORT);
        let report = json(&bench(&arguments).await);
        assert_eq!(report["sources"][0]["outputs"], "y FP32 [2, 4]", "{surface}");
        check(&report["runs"][0]);
    }
}

#[tokio::test]
async fn of_several_requests_each_caller_has_its_own() {
    let running = setup().start().await;
    let url = url(&running);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, shape: &str, data: &str| {
        let path = folder.path().join(name);
        let text = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":{shape},"data":{data}}}]}}"#);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // The second is refused: whoever sends it hears so, and the others do not.
    let (right, wrong) = (write("a", "[1,4]", "[1,2,3,4]"), write("b", "[1,5]", "[1,2,3,4,5]"));
    for surface in SURFACES {
        let mut arguments = vec![&*url, "--model", "double", "--surface", surface, "--json", "--concurrency", "3"];
        arguments.extend(["--data", &right, "--data", &wrong]);
        arguments.extend(SHORT);
        let report = json(&bench(&arguments).await);
        let run = &report["runs"][0];
        check(run);
        let refused: u64 = run["errors"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
        assert!(refused > 0, "{surface}: {run}");
    }
    let two = write("c", "[2,4]", "[1,2,3,4,5,6,7,8]");
    let printed = refusal(&bench(&[&url, "--model", "double", "--data", &right, "--data", &two]).await);
    assert!(printed.contains("has 2 rows, expected 1 as in the first"), "{printed}");
    let engine = ["--engine", "--bare", "--model", "digits", "--data", &right, "--data", &right];
    let printed = refusal(&bench(&engine).await);
    assert!(printed.contains("--bare runs one request"), "{printed}");
}

#[tokio::test]
async fn what_cannot_be_measured_is_one_clear_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    for surface in SURFACES {
        let printed = refusal(&bench(&[&nobody, "--model", "m", "--surface", surface]).await);
        assert!(printed.contains(&nobody) && printed.contains("cannot connect"), "{surface}: {printed}");
    }
    let running = setup().with_key().start().await;
    let url = url(&running);
    for surface in SURFACES {
        let printed = refusal(&bench(&[&url, "--model", "double", "--surface", surface]).await);
        assert!(printed.contains("unauthenticated"), "{surface}: {printed}");
        let printed = refusal(&bench(&[&url, "--model", "none", "--surface", surface, "--key", KEY]).await);
        assert!(printed.contains("`none`") && printed.contains("not_found"), "{surface}: {printed}");
        let wrong = [&*url, "--model", "double", "--surface", surface, "--key", KEY, "--shape", "x:1,5"];
        let printed = refusal(&bench(&wrong).await);
        assert!(printed.contains("[-1, 4]") && printed.contains("[1, 5]"), "{surface}: {printed}");
    }
    let output = bench(&["https://127.0.0.1:1", "--model", "m"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("TLS"), "{}", text(&output.stderr));
}

#[test]
fn the_engine_is_measured_without_a_server() {
    let engine = ["--engine", "--models", "tests/models/good", "--model", "mlp_4_16_3", "--json"];
    let report = json(&command(&[&engine[..], &SHORT, &["--concurrency", "1,8"]].concat()).output().unwrap());
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &report["sources"][0]["name"]), (2, &Value::from("engine")));
    for run in runs {
        check(run);
        assert!(run["queue_us"]["p99"].is_f64() && run["run_us"]["p50"].as_f64().unwrap() > 0.0, "each tells: {run}");
    }
    assert!(runs[1]["requests_per_run"].as_f64().unwrap() > 1.5, "eight callers run together: {}", runs[1]);

    let bare = json(&command(&[&engine[..], &SHORT, &["--bare", "--rows", "32"]].concat()).output().unwrap());
    let run = &bare["runs"][0];
    check(run);
    let (rate, rows) = (run["requests_per_second"].as_f64().unwrap(), run["rows_per_second"].as_f64().unwrap());
    assert!((rows / rate - 32.0).abs() < 0.01, "{run}");

    let unknown = ["--engine", "--models", "tests/models/good", "--model", "none"];
    for more in [&[][..], &["--bare"]] {
        let printed = refusal(&command(&[&unknown[..], more].concat()).output().unwrap());
        assert!(printed.contains("none"), "{printed}");
    }
}

//! Bad model files that are published while the server is busy: each is refused with its reason, wherever one may look for it,
//! and what was served goes on.

use crate::support::{
    Running, Setup,
    client::{self, Client, Data, Request},
};
use serde_json::{Value, json};
use sluicegate::{
    backend::ort::{
        Runtime,
        probe::{Probed, Settings, When},
    },
    call::Surface,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluicegate");

/// What a bad file is, where it comes from, and a part of the reason for which it is refused.
const BAD: &[(&str, &str, &str)] = &[
    ("truncated", "", "is not an ONNX model"),
    ("no model", "README.md", "is not an ONNX model"),
    ("wrong inputs", "models/digits/1/model.onnx", "the configuration has input `x`, the model has `image`"),
    ("outside", "tests/models/bad/external_escape/1/model.onnx", "is outside the model's folder"),
    ("absolute", "tests/models/bad/external_absolute/1/model.onnx", "is outside the model's folder"),
    ("2^31 elements", "tests/models/hostile/claims/1/model.onnx", "of 2147483648 elements, and 5 bytes of data"),
    ("unknown", "tests/models/bad/unknown_operator/1/model.onnx", "cannot be loaded"),
    ("aborts", "tests/models/hostile/aborts/1/model.onnx", "was ended by signal 8"),
    ("aborts in its run", "tests/models/hostile/aborts_in_run/1/model.onnx", "was ended by signal 8"),
    ("grows", "tests/models/hostile/grows/1/model.onnx", "may take 512 MiB, see `models.probe_memory`"),
    ("never ends", "tests/models/hostile/multiplies/1/model.onnx", "not loaded and run within 3s"),
];

/// A folder of models whose model `m` gives back what it gets.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let version = folder.path().join("m/1");
    fs::create_dir_all(&version).unwrap();
    fs::copy(project("tests/models/good/echo_fp32/1/model.onnx"), version.join("model.onnx")).unwrap();
    fs::write(folder.path().join("m/config.pbtxt"), "input [{ name: \"x\" data_type: TYPE_FP32 dims: [ -1 ] }]\n")
        .unwrap();
    folder
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Publishes version 2 of `m`, in one piece, as whoever publishes models should.
fn publish(models: &Path, from: &str) {
    let hidden = models.join(".new");
    fs::create_dir_all(&hidden).unwrap();
    match from {
        "" => {
            let whole = fs::read(project("models/digits/1/model.onnx")).unwrap();
            fs::write(hidden.join("model.onnx"), &whole[..whole.len() / 2]).unwrap();
        }
        from => drop(fs::copy(project(from), hidden.join("model.onnx")).unwrap()),
    }
    // What it asks for is there: it must not be read all the same.
    fs::write(models.join("m/secret.bin"), [0; 64]).unwrap();
    let version = models.join("m/2");
    let _ = fs::remove_dir_all(&version);
    fs::rename(hidden, version).unwrap();
}

const LIMITS: &str = "probe_timeout: 3s, probe_memory: 512MiB";

fn probed(when: When) -> Arc<Probed> {
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let (timeout, memory) = (Duration::from_secs(3), Some(512 << 20));
    Arc::new(Probed::new(runtime, Settings { when, timeout, memory, program: PROGRAM.into() }))
}

async fn exchange(running: &Running, path: &str, body: &'static str) -> (u16, Value) {
    let response = client::http1(running, client::http_request(running, "POST", path, None, body)).await;
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

/// Loads of `m` that failed, by the metrics.
async fn failed(running: &Running) -> f64 {
    let name = "sluicegate_model_loads_total{model=\"m\",outcome=\"failed\"}";
    let page = running.metrics().await;
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or_default()
}

/// What `sluicegate check` prints; it must say that something is wrong, and live to say it.
fn check(models: &Path) -> String {
    let config = models.join(".check.yaml");
    fs::write(&config, format!("version: 1\nmodels: {{ {LIMITS} }}\n")).unwrap();
    let mut command = Command::new(PROGRAM);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_clear().args(["check", "--config"]).arg(config);
    let output = command.arg("--models").arg(models).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{printed}");
    printed
}

fn ask() -> Request {
    Request::new("m", &[3], vec![1.0, 2.0, 3.0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_that_is_published_under_load_is_refused_with_its_reason_and_the_old_version_answers() {
    let models = folder();
    let setup = Setup::new().yaml("models: { control: watch, watch: { every: 20ms, settle: 40ms } }");
    let running = setup.start_with(models.path(), probed(When::Auto), Vec::new()).await;
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = Vec::new();
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
        callers.push(tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = client.infer(&ask()).await.unwrap_or_else(|failure| panic!("{surface:?}: {failure:?}"));
                assert_eq!((&*answer.version, &answer.outputs["y"].1), ("1", &Data::Floats(vec![1.0, 2.0, 3.0])));
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }));
    }
    for (what, from, reason) in BAD {
        let (before, failures) = (answered.load(Ordering::Relaxed), failed(&running).await);
        publish(models.path(), from);
        let begun = Instant::now();
        loop {
            let (_, index) = exchange(&running, "/v2/repository/index", "").await;
            let found = index.as_array().unwrap().iter().find(|entry| entry["version"] == "2").cloned();
            if let Some(entry) = found
                && entry["reason"].as_str().is_some_and(|found| found.contains(reason))
                && failed(&running).await > failures
            {
                assert_eq!(entry["state"], "UNAVAILABLE", "{what}");
                let text = entry["reason"].to_string();
                assert!(!text.contains(models.path().to_str().unwrap()), "{what}: {text}");
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {index}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let printed = check(models.path());
        assert!(printed.contains("m/2\n  problem: ") && printed.contains(reason), "{what}: {printed}");
        assert!(answered.load(Ordering::Relaxed) > before, "{what}: nobody was answered meanwhile");
    }
    // And a good one takes over.
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    publish(models.path(), "tests/models/good/echo_fp32/1/model.onnx");
    let mut client = Client::connect(Surface::Rest, &running, None).await.unwrap();
    let begun = Instant::now();
    while client.infer(&ask()).await.unwrap().version != "2" {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_load_call_is_told_what_a_file_does_to_the_process_that_opens_it() {
    let models = folder();
    let setup = Setup::new().yaml("models: { control: explicit }");
    let running = setup.start_with(models.path(), probed(When::Always), Vec::new()).await;
    publish(models.path(), "tests/models/hostile/aborts/1/model.onnx");
    let (status, said) = exchange(&running, "/v2/repository/models/m/load", "").await;
    assert_eq!((status, &said["code"]), (400, &json!("invalid_argument")));
    let reason = "model `m` cannot be loaded: version 2: `m/2/model.onnx` cannot be loaded: the process that tried it was ended \
                  by signal 8, a division that has no result";
    assert_eq!(said["error"], reason);
    for surface in Surface::ALL {
        let mut client = Client::connect(surface, &running, None).await.unwrap();
        assert_eq!(client.infer(&ask()).await.unwrap().version, "1", "{surface:?}");
    }
}

#[test]
fn a_server_lives_beside_a_file_that_would_end_it_and_logs_why_it_is_not_served() {
    let models = folder();
    publish(models.path(), "tests/models/hostile/aborts/1/model.onnx");
    let mut command = Command::new(PROGRAM);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_clear().stdin(Stdio::null());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"]);
    let mut child =
        command.arg("--models").arg(models.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut logged = String::new();
    while !logged.contains("model not loaded") {
        assert!(log.read_line(&mut logged).unwrap() > 0, "it ended after\n{logged}");
    }
    let mut banner = BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    while !printed.contains("/v2/stream") {
        assert!(banner.read_line(&mut printed).unwrap() > 0, "it ended after\n{printed}");
    }
    assert!(child.try_wait().unwrap().is_none(), "it serves");
    child.kill().unwrap();
    child.wait().unwrap();
    let line = logged.lines().find(|line| line.contains("model not loaded")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["level"], &line["model"], &line["version"]), (&json!("ERROR"), &json!("m"), &json!("2")));
    assert!(line["reason"].as_str().unwrap().contains("was ended by signal 8"), "{line}");
}

#[test]
fn what_only_warming_up_runs_is_run_in_a_process_of_its_own_first() {
    let sample = r#"{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[1]}]}"#;
    let wide = "warmup: [sample.json]\n";
    let made = "model_warmup { name: \"s\" count: 20 inputs { key: \"x\" value { data_type: TYPE_INT64 dims: [64] \
                random_data: true } } }\n";
    for (model, own, text) in [
        ("rows_4", "model.yaml", ""),
        ("rows_64", "model.yaml", ""),
        ("rows_64", "model.yaml", "execution: thread\n"),
        ("in_sample", "model.yaml", wide),
        ("in_sample", "config.pbtxt", made),
    ] {
        let models = tempfile::tempdir().unwrap();
        let version = models.path().join("m/2");
        fs::create_dir_all(&version).unwrap();
        let file = project("tests/models/hostile").join(model).join("1/model.onnx");
        fs::copy(file, version.join("model.onnx")).unwrap();
        fs::write(models.path().join("m/sample.json"), sample).unwrap();
        fs::write(models.path().join("m").join(own), text).unwrap();
        let printed = check(models.path());
        assert!(printed.contains("was ended by signal 8"), "{model}, {text}: {printed}");
    }
}

#[test]
fn weights_that_are_written_over_or_cut_off_change_nothing_of_a_model_that_is_open() {
    use sluicegate::{
        backend::{Open, SessionSettings},
        tensor::{DataType, Tensor},
    };
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.onnx", "weights.bin"] {
        let from = project("tests/models/good/external_data/1").join(file);
        fs::copy(from, folder.path().join(file)).unwrap();
    }
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let mut model = runtime.open(&folder.path().join("model.onnx"), &SessionSettings::default()).unwrap();
    let zeros = Tensor::of(DataType::Fp32, [1, 4].into(), vec![0_f32; 4]).unwrap();
    let mut answer = || model.run(std::slice::from_ref(&zeros)).unwrap()[0].try_elements::<f32>().unwrap().to_vec();
    let before = answer();
    // In place, as `cp` does it.
    let weights = fs::OpenOptions::new().write(true).open(folder.path().join("weights.bin")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&weights, &[0x40; 16], 0).unwrap();
    assert_eq!(answer(), before);
    weights.set_len(0).unwrap();
    assert_eq!(answer(), before);
}

#[test]
fn a_probe_that_is_off_is_off_and_one_that_is_on_remembers_what_passed() {
    use sluicegate::backend::{Open, SessionSettings};
    let models = folder();
    let path = models.path().join("m/1/model.onnx");
    let runtime = Runtime::load(None).unwrap_or_else(|error| panic!("{error}"));
    let open = |opener: &Probed| opener.open(&path, &SessionSettings::default()).map(drop);
    let settings = |when, program: &Path| {
        let (timeout, memory) = (Duration::from_secs(60), None);
        Settings { when, timeout, memory, program: program.to_owned() }
    };
    for (when, again) in [(When::Auto, true), (When::Always, false)] {
        // A program that goes away once it was used: whoever is asked again cannot be tried.
        let program = models.path().join(".program");
        fs::hard_link(PROGRAM, &program).or_else(|_| fs::copy(PROGRAM, &program).map(drop)).unwrap();
        let opener = Probed::new(runtime.clone(), settings(when, &program));
        open(&opener).unwrap();
        fs::remove_file(&program).unwrap();
        assert_eq!(open(&opener).is_ok(), again, "{when:?}");
        // Another file by the same name is another one.
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(open(&opener).unwrap_err().0.contains("cannot be tried (`models.probe`)"), "{when:?}");
    }
}

//! The program as its users start it: flags, exit status, what it prints.

use sluicegate::error::Code;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Server {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    printed: String,
}

impl Server {
    /// Starts it and reads its banner up to the line that contains `until`.
    fn start(arguments: &[&str], until: &str) -> Self {
        let mut child =
            program().arg("serve").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.contains(until) {
            assert!(lines.read_line(&mut printed).unwrap() > 0, "it ended after\n{printed}");
        }
        Self { child, lines, printed }
    }

    fn address(&self) -> String {
        let at = self.printed.find("http://").expect("an address in the banner") + "http://".len();
        self.printed[at..].split(|c: char| c.is_whitespace() || c == '/').next().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn wait(&mut self, most: Duration) -> std::process::ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < most, "still running after {most:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut rest = String::new();
        let _ = self.lines.read_to_string(&mut rest);
    }
}

const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

#[test]
fn the_version_names_onnx_runtime() {
    let output = run(&["--version"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert!(printed.contains(env!("CARGO_PKG_VERSION")) && printed.contains("ONNX Runtime 1.32.0"), "{printed}");
}

#[test]
fn the_banner_says_what_is_served_and_where() {
    let server = Server::start(&FREE, "/v2/stream");
    for word in ["digits", "text_length", "curl", "/v1/ws", "grpc", &server.address()] {
        assert!(server.printed.contains(word), "no {word} in\n{}", server.printed);
    }
}

#[test]
fn sigterm_drains_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    fs::write(&config, "version: 1\ndrain: { delay: 100ms, timeout: 2s }\n").unwrap();
    let mut arguments = vec!["--config", config.to_str().unwrap(), "--models", "models"];
    arguments.extend(FREE);
    let mut server = Server::start(&arguments, "/v2/stream");
    server.signal("TERM");
    let status = server.wait(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn sigterm_while_models_load_drains_too() {
    let folder = tempfile::tempdir().unwrap();
    // Enough of them to load for far longer than a signal takes to arrive.
    for number in 0..200 {
        let version = folder.path().join(format!("models/m{number}/1"));
        fs::create_dir_all(&version).unwrap();
        fs::copy("models/digits/1/model.onnx", version.join("model.onnx")).unwrap();
    }
    let config = folder.path().join("c.yaml");
    fs::write(&config, "version: 1\ndrain: { delay: 100ms, timeout: 2s }\n").unwrap();
    let mut arguments = vec!["serve", "--config", config.to_str().unwrap(), "--log-format", "json", "--models"];
    let models = folder.path().join("models");
    arguments.push(models.to_str().unwrap());
    arguments.extend(FREE);
    let mut child = program().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut logged = String::new();
    while !logged.contains("starting") {
        assert!(lines.read_line(&mut logged).unwrap() > 0, "it ended after\n{logged}");
    }
    let mut server = Server { lines: BufReader::new(child.stdout.take().unwrap()), child, printed: String::new() };
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(0));
    lines.read_to_string(&mut logged).unwrap();
    assert!(logged.contains("draining"), "{logged}");
    server.lines.read_line(&mut server.printed).unwrap();
    assert_eq!(server.printed, "", "no banner before the models are loaded");
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut server = Server::start(&FREE, "/v2/stream");
    let started = Instant::now();
    server.signal("TERM");
    std::thread::park_timeout(Duration::from_millis(300));
    assert!(server.child.try_wait().unwrap().is_none(), "the drain takes its five seconds");
    server.signal("TERM");
    server.wait(Duration::from_secs(3));
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[test]
fn check_explains_the_models() {
    let output = run(&["check"]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    for word in ["digits", "image", "FP32", "64", "probabilities", "text_length", "BYTES", "127.0.0.1:8080"] {
        assert!(printed.contains(word), "no {word} in\n{printed}");
    }
}

#[test]
fn check_and_the_log_say_what_of_a_config_pbtxt_does_not_apply() {
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str, text: &str| {
        let version = folder.path().join(name).join("1");
        fs::create_dir_all(&version).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/1/model.onnx");
        fs::copy(from, version.join("model.onnx")).unwrap();
        fs::write(folder.path().join(name).join("config.pbtxt"), text).unwrap();
    };
    model("good", "max_batch_size: 8 optimization { graph { level: 1 } }");
    model("narrow", "max_batch_size: 8 input [{ name: \"image\" data_type: TYPE_FP32 dims: [ 65 ] }]");
    model("wrong", "name: \"other\"\nbackend: \"python\"");
    let models = folder.path().to_str().unwrap();

    let output = run(&["check", "--models", models]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    for line in [
        "  warning: config.pbtxt optimization: has no effect",
        "  problem: the configuration has input `image` of shape [-1, 65], the model has [-1, 64]",
        "  problem: config.pbtxt name: is `other`, and the model is `wrong`; config.pbtxt backend: is `python`",
    ] {
        assert!(printed.contains(line), "no {line} in\n{printed}");
    }

    let mut command = program();
    command.args(["serve", "--log-format", "json", "--models", models]).args(FREE);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut server = Server { lines: BufReader::new(child.stdout.take().unwrap()), child, printed: String::new() };
    while !server.printed.contains("/v2/stream") {
        assert!(server.lines.read_line(&mut server.printed).unwrap() > 0, "it ended after\n{}", server.printed);
    }
    server.signal("TERM");
    server.signal("TERM");
    let mut logged = String::new();
    log.read_to_string(&mut logged).unwrap();
    for words in ["config.pbtxt optimization: has no effect", "[-1, 65]", "and the model is `wrong`"] {
        assert!(logged.contains(words), "no {words} in\n{logged}");
    }
}

#[test]
fn check_lists_every_problem_of_a_configuration_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    fs::write(
        &config,
        "version: 1\nlimitz: {}\nlimits: { deadline: { defualt: 5s, max: 0s } }\ndrain: { delay: 0.2 }\n",
    )
    .unwrap();
    let output = run(&["check", "--config", config.to_str().unwrap()]);
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    for word in
        ["limitz", "`limits`", "limits.deadline.defualt", "`default`", "limits.deadline.max", "drain.delay", "200ms"]
    {
        assert!(printed.contains(word), "no {word} in\n{printed}");
    }
}

#[test]
fn check_notices_a_model_behind_predict_that_would_not_be_served() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let checked = |text: &str| {
        fs::write(&config, format!("version: 1\n{text}\n")).unwrap();
        let output = run(&["check", "--models", "models", "--config", config.to_str().unwrap()]);
        (output.status.code(), self::text(&output.stdout))
    };
    let predict = |model: &str| format!("rest: {{ predict: {{ {model}, inputs: {{ x: image }} }} }}");
    assert_eq!(checked(&predict("model: digits")).0, Some(0));
    for (model, problem) in [
        ("model: letters", "problem: no model `letters` would be served"),
        ("model: digits, version: 9", "problem: no version 9 of a model `digits` would be served"),
    ] {
        let (status, printed) = checked(&predict(model));
        assert!(status == Some(2) && printed.contains(problem), "{printed}");
        // A load call may bring it.
        assert_eq!(checked(&format!("{}\nmodels: {{ control: explicit }}", predict(model))).0, Some(0));
    }
}

#[test]
fn check_says_which_models_are_listed_and_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let checked = |models: &str| {
        fs::write(&config, format!("version: 1\nmodels: {{ {models} }}\n")).unwrap();
        let output = run(&["check", "--models", "models", "--config", config.to_str().unwrap()]);
        (output.status.code(), self::text(&output.stdout))
    };
    let (status, printed) = checked("load: [digits, nope]");
    let problem = "nope\n  problem: is listed in `models.load` and not there\n";
    assert!(status == Some(2) && printed.contains(problem), "{printed}");
    let (status, printed) = checked("required: [digits, nope]");
    let problem = "nope\n  problem: is listed in `models.required` and would not be served";
    assert!(status == Some(2) && printed.contains(problem), "{printed}");
    // A load call may bring it.
    assert_eq!(checked("control: explicit, required: [nope]").0, Some(0));
}

#[test]
fn a_folder_with_bad_models_serves_the_rest_and_check_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, name: &str| {
        let version = folder.path().join(name).join("1");
        fs::create_dir_all(&version).unwrap();
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(from), version.join("model.onnx")).unwrap();
    };
    copy("models/digits/1/model.onnx", "digits");
    copy("README.md", "corrupt");
    copy("tests/models/bad/external_escape/1/model.onnx", "escape");
    let models = folder.path().to_str().unwrap();

    let output = run(&["check", "--models", models]);
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("corrupt") && printed.contains("escape") && printed.contains("outside"), "{printed}");

    let mut arguments = vec!["--models", models];
    arguments.extend(FREE);
    let server = Server::start(&arguments, "/v2/stream");
    assert!(server.printed.contains("digits") && server.printed.contains("corrupt"), "{}", server.printed);
    let answer =
        exchange(&server.address(), "GET /v2/models/digits/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer =
        exchange(&server.address(), "GET /v2/models/corrupt/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.contains(&Code::NotReady.row().http.to_string()), "{answer}");
}

fn exchange(address: &str, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_missing_library_is_one_clear_error_with_the_command_that_gets_it() {
    let output = run(&["serve", "--onnxruntime", "/nowhere/libonnxruntime.so", "--listen", "127.0.0.1:0"]);
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("/nowhere/libonnxruntime.so") && printed.contains("make onnxruntime"), "{printed}");
    assert!(!printed.contains("panicked"), "{printed}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["serve", "--listen", &address, "--admin-listen", "127.0.0.1:0"]);
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains(&address) && printed.contains("in use"), "{printed}");
}

#[test]
fn a_flag_wins_over_its_variable() {
    let output = program().args(["check", "--models", "models"]).env("SLUICEGATE_MODELS", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = program().arg("check").env("SLUICEGATE_MODELS", "/nowhere").output().unwrap();
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("/nowhere"), "{printed}");
}

#[test]
fn an_open_listener_without_auth_is_refused() {
    let output = run(&["serve", "--listen", "0.0.0.0:0"]);
    let printed = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("auth"), "{printed}");
}

#[test]
fn a_new_key_is_hashed_as_keys_hash_does() {
    let made = run(&["keys", "new", "--identity", "web", "--group", "mobile"]);
    let printed = text(&made.stdout) + &text(&made.stderr);
    let key = printed.split_whitespace().find(|word| word.starts_with("sg_")).expect("a key").to_owned();
    assert_eq!(key.len(), 46);
    let mut hash = program().args(["keys", "hash"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    hash.stdin.take().unwrap().write_all(format!("{key}\n").as_bytes()).unwrap();
    let hashed = text(&hash.wait_with_output().unwrap().stdout);
    assert!(hashed.trim().starts_with("sha256:") && printed.contains(hashed.trim()), "{printed} and {hashed}");
}

#[test]
fn keys_are_made_listed_and_revoked_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let file = file.to_str().unwrap();
    let new = |more: &[&str]| {
        let made = run(&[&["keys", "new", "--identity", "web", "--file", file], more].concat());
        assert!(made.status.success(), "{}", text(&made.stderr));
        let id = text(&made.stderr).split_whitespace().find(|word| word.starts_with("k_")).unwrap().to_owned();
        (text(&made.stdout).trim().to_owned(), id.trim_end_matches('.').to_owned())
    };
    let (key, id) = new(&["--group", "mobile", "--intent", "infer", "--model", "digits", "--expires", "90d"]);
    let (_, other) = new(&[]);
    assert!(key.starts_with("sg_") && key.len() == 46, "alone on standard output: {key}");
    let list = || text(&run(&["keys", "list", "--file", file]).stdout);
    let row =
        |id: &str| list().lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("{}", list())).to_owned();
    for word in ["web", "mobile", "infer on digits", "active"] {
        assert!(row(&id).contains(word), "{word} in\n{}", list());
    }
    assert!(run(&["keys", "revoke", &id, "--file", file]).status.success());
    assert!(row(&id).ends_with("revoked") && row(&other).ends_with("active"), "{}", list());
    assert!(!list().contains("sha256") && !list().contains(&key));
    for wrong in [
        &["keys", "revoke", "k_NOBODY", "--file", file][..],
        &["keys", "list", "--file", "/nonexistent/keys.yaml"],
        &["keys", "new", "--identity", "anonymous"],
        &["keys", "new", "--identity", "web", "--intent", "fly"],
        &["keys", "new", "--identity", "anonymous", "--file", file],
        &["keys", "new", "--identity", "web", "--intent", "fly", "--file", file],
        &["keys", "new", "--identity", "web", "--expires", "0d", "--file", file],
        &["keys", "new", "--identity", "web", "--expires", "soon", "--file", file],
        &["keys", "new", "--identity", "web", "--expires", "2020-01-31T00:00:00Z", "--file", file],
        &["keys", "new", "--identity", "web\nadmin", "--file", file],
        &["keys", "new", "--identity", " ", "--file", file],
        &["keys", "new", "--identity", "web", "--group", "", "--file", file],
    ] {
        assert!(!run(wrong).status.success(), "{wrong:?}");
    }
    assert_eq!(list().lines().count(), 3, "what was wrong has left nothing behind");
}

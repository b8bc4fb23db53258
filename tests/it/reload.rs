//! The configuration is read again while the gateway runs: what may change does, and a bad file changes nothing.

use crate::support::{
    KEY, Running, Setup,
    client::{Client, Request, http_request, http1},
};
use sluicegate::call::Surface;
use std::{
    fs,
    io::Read,
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

async fn code(running: &Running) -> String {
    let mut client = Client::connect(Surface::Rest, running, Some(KEY)).await.unwrap();
    match client.infer(&Request::new("double", &[1, 4], vec![1.0; 4])).await {
        Ok(_) => "ok".into(),
        Err(failure) => failure.code,
    }
}

/// Waits until `condition` holds of what a call is answered.
async fn until_code(running: &Running, wanted: &str) {
    let started = Instant::now();
    loop {
        let found = code(running).await;
        if found == wanted {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{found}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn grants_and_rates_follow_the_file() {
    let running = Setup::new().with_key().start().await;
    assert_eq!(code(&running).await, "ok");
    running.rewrite(|text| text.replace("intents: [infer, inspect]", "intents: [inspect]"));
    until_code(&running, "permission_denied").await;
    running.rewrite(|text| text.replace("intents: [inspect]", "intents: [infer, inspect]"));
    until_code(&running, "ok").await;
    running.rewrite(|text| format!("{text}limits: {{ rate: [{{ name: all, by: identity, limit: 1/day }}] }}\n"));
    until_code(&running, "rate_limited").await;
    running.until("it says so", |page| page.contains("sluicegate_config_reload_success 1\n")).await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_so() {
    let running = Setup::new().with_key().start().await;
    let good = running.metrics().await;
    assert!(good.contains("sluicegate_config_reload_success 1\n"), "{good}");
    running.rewrite(|text| text.replace("intents: [infer, inspect]", "intents: [fly]"));
    running.until("the failure shows", |page| page.contains("sluicegate_config_reload_success 0\n")).await;
    assert_eq!(code(&running).await, "ok", "the old grants stay");
    running.rewrite(|text| text.replace("intents: [fly]", "intents: [infer]"));
    running.until("the success shows", |page| page.contains("sluicegate_config_reload_success 1\n")).await;
    assert_eq!(code(&running).await, "ok");
}

#[tokio::test]
async fn saving_the_file_hands_out_no_new_burst() {
    let running = Setup::new().with_key().with_rate("1/day", 1).start().await;
    assert_eq!(code(&running).await, "ok");
    assert_eq!(code(&running).await, "rate_limited");
    running.rewrite(|text| format!("{text}cors: {{ origins: [\"https://new.example\"] }}\n"));
    until_origin(&running, "https://new.example").await;
    assert_eq!(code(&running).await, "rate_limited");
}

#[tokio::test]
async fn a_change_of_one_rate_hands_out_no_new_burst_of_another() {
    let policies = |text: &str| format!("limits: {{ rate: [{text}] }}");
    let one = "{ name: all, limit: 1/day }";
    let running = Setup::new().with_key().yaml(&policies(one)).start().await;
    assert_eq!(code(&running).await, "ok");
    for others in ["{ name: wide, limit: 100/day }, ", "{ name: wide, limit: 90/day }, ", ""] {
        let marker = format!("https://{}.example", others.len());
        running.rewrite(|text| {
            let rest = text.split("limits:").next().unwrap();
            format!("{rest}{}\ncors: {{ origins: [\"{marker}\"] }}\n", policies(&format!("{others}{one}")))
        });
        until_origin(&running, &marker).await;
        assert_eq!(code(&running).await, "rate_limited", "{others}");
    }
}

async fn allows(running: &Running, origin: &str) -> bool {
    let mut request = http_request(running, "OPTIONS", "/v2/models/double/infer", None, "");
    request.headers_mut().insert("origin", origin.parse().unwrap());
    request.headers_mut().insert("access-control-request-method", "POST".parse().unwrap());
    let response = http1(running, request).await;
    response.headers().get("access-control-allow-origin").is_some_and(|allowed| allowed == origin)
}

async fn until_origin(running: &Running, origin: &str) {
    let started = Instant::now();
    while !allows(running, origin).await {
        assert!(started.elapsed() < Duration::from_secs(20), "{origin} is not allowed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The program, with its log in a file.
struct Program {
    child: std::process::Child,
    log: std::path::PathBuf,
}

impl Program {
    fn start(config: &std::path::Path, log: std::path::PathBuf) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["serve", "--log-format", "json", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(fs::File::create(log.with_extension("out")).unwrap())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let program = Self { child, log };
        // The end of the banner: everything is made by then, whoever hears the signal too.
        let banner = program.log.with_extension("out");
        program.until("it serves", |_| fs::read_to_string(&banner).unwrap().contains("Ctrl-C"));
        program
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn until(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let started = Instant::now();
        loop {
            let mut text = String::new();
            fs::File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
            if condition(&text) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{what}; the log was\n{text}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CONFIG: &str = "version: 1\nlisten: [{ address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\n\
                      models: { directory: models }\ndrain: { delay: 10ms, timeout: 1s }\n";

fn said(log: &str) -> usize {
    log.matches("the configuration was read again").count()
}

#[test]
fn a_hangup_and_the_swap_of_a_config_map_are_seen_and_what_needs_a_restart_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // As Kubernetes mounts a ConfigMap: the file is a link into a folder that is itself a link, which is swapped.
    for version in ["v1", "v2"] {
        fs::create_dir_all(at(version).join("models")).unwrap();
        let text = if version == "v1" { CONFIG.to_owned() } else { format!("{CONFIG}runtime: {{ lanes: 1 }}\n") };
        fs::write(at(version).join("sluicegate.yaml"), text.replace("directory: models", "directory: v1/models"))
            .unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/sluicegate.yaml", at("sluicegate.yaml")).unwrap();
    let program = Program::start(&at("sluicegate.yaml"), at("log"));
    program.signal("HUP");
    program.until("the hangup is heard", |log| said(log) == 1);
    program.until("nothing was changed", |log| log.contains("nothing to apply") && !log.contains("\"changed\""));

    symlink("v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    program.until("the swap is seen", |log| said(log) == 2);
    program.until("the key is named", |log| log.contains("needs a restart") && log.contains("runtime.lanes"));

    fs::write(at("v2").join("sluicegate.yaml"), "version: 7\n").unwrap();
    program.until("the problem is told", |log| log.contains("the old one stays") && log.contains("7 is not known"));
}

#[test]
fn the_level_of_the_log_follows_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("c.yaml"), folder.path().join("log"));
    fs::create_dir(folder.path().join("models")).unwrap();
    fs::write(&config, CONFIG).unwrap();
    let program = Program::start(&config, log);
    // The line that says what was taken is of level info, and no longer to be seen; what needs a restart still is.
    let telemetry = "telemetry: { log: { level: warn }, access_log: { enabled: false } }";
    fs::write(&config, format!("{CONFIG}{telemetry}\n")).unwrap();
    program.until("warnings are told", |log| log.contains("telemetry.access_log.enabled"));
    program.until("and nothing less", |log| said(log) == 0);
}

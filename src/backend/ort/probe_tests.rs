//! Children that are scripts: what a parent makes of each end.

use super::{
    super::trial::{KEPT, VARIABLES},
    *,
};
use std::{fs, os::unix::fs::PermissionsExt};

fn try_out(settings: &Settings, library: &Path, path: &Path, memory: u64) -> Result<(), String> {
    Trial::start(settings, library, path, memory, &[]).and_then(|(trial, ..)| trial.end())
}

/// A program that is a script, and what is said of a file that it tried.
fn tried(script: &str, timeout: Duration) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let settings = Settings { when: When::Auto, timeout, memory: None, program };
    loop {
        let result = try_out(&settings, Path::new("lib.so"), Path::new("m/1/model.onnx"), 1 << 30);
        // Another test that starts a program just now has the script open for writing until that program runs.
        if !result.as_ref().is_err_and(|reason| reason.contains("Text file busy")) {
            return result;
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_end_of_a_child_is_the_reason_in_words() {
    for (script, reason) in [
        ("echo '`m/1/model.onnx` is cut off'; exit 3", "is cut off"),
        ("echo 'no library'; exit 3", "cannot be loaded: no library"),
        ("exit 0", "ended with exit status: 0 before it was told to"),
        ("exit 7", "cannot be loaded: the process that tried it ended with exit status: 7"),
        ("kill -6 $$", "cannot be loaded: the process that tried it was ended by signal 6, it aborted"),
        ("kill -8 $$", "ended by signal 8, a division that has no result"),
        ("kill -9 $$", "ended by signal 9, most likely for lack of memory"),
        ("kill -11 $$", "ended by signal 11, memory that is not there"),
    ] {
        let found = tried(script, LONG).unwrap_err();
        assert!(found.contains(reason), "{script}: {found}");
    }
}

#[test]
fn a_child_that_does_not_end_is_ended() {
    let reason = tried("while :; do :; done", Duration::from_millis(50)).unwrap_err();
    assert_eq!(reason, "cannot be loaded: it was not loaded and run within 50ms (`models.probe_timeout`)");
}

#[test]
fn a_child_that_says_too_much_waits_for_nobody_and_is_cut_short() {
    let reason = tried("head -c 1000000 /dev/zero | tr '\\0' x; exit 3", LONG).unwrap_err();
    assert_eq!(reason.len(), "cannot be loaded: ".len() + KEPT);
}

#[test]
fn memory_that_ran_out_names_the_limit() {
    let reason = tried("echo 'std::bad_alloc'; exit 3", LONG).unwrap_err();
    assert!(reason.contains("may take 1024 MiB, see `models.probe_memory`"), "{reason}");
}

#[test]
fn a_program_that_is_not_there_refuses_the_file_and_says_so() {
    let settings = Settings { when: When::Auto, timeout: LONG, memory: None, program: "/nowhere/program".into() };
    let reason = try_out(&settings, Path::new("l"), Path::new("m"), 1).unwrap_err();
    assert!(reason.contains("cannot be tried (`models.probe`)"), "{reason}");
}

#[test]
fn a_child_has_none_of_our_sockets_and_hardly_any_of_our_environment() {
    let _socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // What the shell itself sets is no secret of ours.
    let script =
        "{ ls -l /proc/$$/fd; env | grep -v -e '^PWD=' -e '^SHLVL=' -e '^_=' -e '^OLDPWD='; } | tr '\\n' ';'; exit 3";
    let said = tried(script, LONG).unwrap_err();
    assert!(!said.contains("socket:"), "{said}");
    let variables = said.split(';').filter_map(|part| part.split_once('=')).map(|(name, _)| name);
    let others: Vec<_> = variables.filter(|name| !VARIABLES.contains(name)).collect();
    assert!(others.is_empty(), "{others:?}");
}

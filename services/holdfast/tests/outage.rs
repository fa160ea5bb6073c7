//! The operator's commands while the API server does not answer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A kubeconfig of an address where nothing listens.
fn kubeconfig(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: a, \
                clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}], \
                users: [{name: a, user: {}}], \
                contexts: [{name: a, context: {cluster: a, user: a}}]}";
    std::fs::write(&path, text).unwrap();
    path
}

fn holdfast(kubeconfig: &PathBuf, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    holdfast(&kubeconfig(&folder), arguments).output().unwrap()
}

#[test]
fn a_command_says_once_that_nothing_answers() {
    for command in [
        ["status"].as_slice(),
        &["doctor"],
        &["diff", "offline"],
        &["preload", "a:1"],
        &["restore", "-n", "a"],
        &["version"],
    ] {
        let output = run(command);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {text}");
        let error = text.lines().find(|line| line.starts_with("error: "));
        let error = error.unwrap_or_else(|| panic!("{command:?}: {text}"));
        let cause = "the API server cannot be reached: Connection refused";
        assert!(error.contains(cause), "{error}");
        assert_eq!(error.matches("refused").count(), 1, "{error}");
        assert!(
            output.stdout.is_empty(),
            "data goes to standard output only"
        );
    }
}

#[test]
fn a_failure_is_a_document_where_one_was_asked_for() {
    let output = run(&["status", "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["kind"], "Error");
    assert_eq!(document["error"]["code"], "CouldNotRun");
    assert_eq!(run(&["status", "--exit-zero"]).status.code(), Some(0));
    assert_eq!(run(&["version", "--client"]).status.code(), Some(0));
}

#[test]
fn restore_asks_for_namespaces_before_it_asks_the_cluster() {
    let output = run(&["restore"]);
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--all-namespaces"), "{text}");
}

#[test]
fn an_uninstallation_fails_for_people_and_never_as_the_charts_hook() {
    let uninstall = ["uninstall", "--config", "/nowhere/config.yaml"];
    assert_eq!(run(&uninstall).status.code(), Some(64), "it asks first");
    let confirmed = run(&[&uninstall[..], &["--yes"]].concat());
    assert_eq!(
        confirmed.status.code(),
        Some(64),
        "the configuration is not there"
    );
    let hook = run(&[&uninstall[..], &["--hook"]].concat());
    assert_eq!(hook.status.code(), Some(0));
    let text = String::from_utf8(hook.stdout).unwrap();
    assert!(text.starts_with("nothing was undone: "), "{text}");
}

#[test]
fn watching_outlives_an_outage_and_ends_with_130() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = holdfast(&kubeconfig(&folder), &["status", "-w", "--interval", "1"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        assert!(line.starts_with("error: cannot tell for "), "{line}");
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

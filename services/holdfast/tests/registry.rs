//! The real binary as a registry: how it ends when told, and what it says of a configuration.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use holdfast_testkit::server::free_address;

fn holdfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The answer's status and body over a connection of its own; `None` when there is no connection.
fn ask(address: SocketAddr, request: &str, body: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: registry\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer))
}

fn wait(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Registry {
    child: Child,
    api: SocketAddr,
    admin: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (api, admin) = (free_address().unwrap(), free_address().unwrap());
        let config = dir.path().join("config.yml");
        let text = format!(
            "listen: '{api}'\nadminListen: '{admin}'\ndata: {}\nupstreams: []\n\
             limits: {{reservePercent: 0}}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = holdfast()
            .args(["registry", "--config"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            child,
            api,
            admin,
            _dir: dir,
        };
        wait("readiness", Duration::from_secs(20), || {
            ask(admin, "GET /readyz", b"").is_some_and(|(status, _)| status == 200)
        });
        registry
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn after_sigterm_a_slow_reader_gets_all_bytes_and_no_new_client_is_served() {
    const SIZE: usize = 32 << 20;
    let mut registry = Registry::start();
    let blob: Vec<u8> = (0..=250_u8)
        .cycle()
        .flat_map(|byte| [byte; 1024])
        .take(SIZE)
        .collect();
    let digest = holdfast_store::Hasher::digest(holdfast_core::digest::Algorithm::Sha256, &blob);
    let push = format!("POST /v2/team/app/blobs/uploads/?digest={digest}");
    let (status, answer) = ask(registry.api, &push, &blob).unwrap();
    assert_eq!(status, 201, "{answer}");

    // More than the sockets' buffers hold, so that the answer is under way when the signal comes.
    let mut reader = TcpStream::connect(registry.api).unwrap();
    write!(
        reader,
        "GET /v2/team/app/blobs/{digest} HTTP/1.1\r\nhost: registry\r\n\r\n"
    )
    .unwrap();
    let mut first = [0; 4096];
    let mut got = reader.read(&mut first).unwrap();
    let head = String::from_utf8_lossy(&first[..got]).into_owned();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let head_bytes = head.find("\r\n\r\n").unwrap() + 4;
    got -= head_bytes;

    registry.terminate();
    wait("readiness fails", Duration::from_secs(5), || {
        ask(registry.admin, "GET /readyz", b"").is_some_and(|(status, _)| status == 503)
    });
    let (status, _) = ask(registry.admin, "GET /livez", b"").unwrap();
    assert_eq!(status, 200);
    wait("the listener closes", Duration::from_secs(5), || {
        ask(registry.api, "GET /v2/", b"").is_none()
    });
    assert!(
        registry.child.try_wait().unwrap().is_none(),
        "still serving"
    );
    std::thread::sleep(Duration::from_millis(500));
    let mut buffer = vec![0; 256 << 10];
    while got < SIZE {
        let read = reader.read(&mut buffer).unwrap();
        assert!(read > 0, "cut after {got} bytes");
        got += read;
    }
    assert_eq!(got, SIZE);
    drop(reader);
    wait("the end", Duration::from_secs(15), || {
        registry.child.try_wait().unwrap().is_some()
    });
    assert_eq!(registry.child.wait().unwrap().code(), Some(0));
}

fn check(text: &str, environment: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yml");
    std::fs::write(&config, text).unwrap();
    holdfast()
        .args(["registry", "--check", "--config"])
        .arg(&config)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn a_configuration_that_can_be_read_only_once_is_understood_whole() {
    for text in [
        "data: /srv\naccess: {htpasswd: /auth/users}\n",
        "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv}}\nauth: {htpasswd: {realm: a, path: /auth/users}}\n",
    ] {
        let mut child = holdfast()
            .args(["registry", "--check", "--config", "/dev/stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("access: users of /auth/users"), "{said}");
    }
}

#[test]
fn check_says_what_a_file_of_distribution_means() {
    let text = "version: 0.1\nlog: {fields: {service: registry}}\nstorage: {filesystem: {rootdirectory: /srv}}\nhttp: {addr: ':5000', secret: hush}\nauth: {htpasswd: {realm: a, path: /auth/htpasswd}}\n";
    let output = check(text, &[("REGISTRY_STORAGE_DELETE_ENABLED", "true")]);
    let said = String::from_utf8(output.stdout).unwrap();
    for line in [
        "read as: the configuration of distribution, version 0.1",
        "listens: [::]:5000, plain HTTP",
        "content: /srv",
        "access: users of /auth/htpasswd",
        "writes: pushes and deletes",
        "note: log.fields changes nothing: lines carry fields of their own",
    ] {
        assert!(
            said.lines().any(|found| found == line),
            "no {line} in {said}"
        );
    }
    assert!(!said.contains("hush"));
    assert_eq!(output.status.code(), Some(0));
    assert!(!Path::new("/srv/docker").exists(), "a check makes nothing");
}

#[test]
fn a_key_that_nobody_knows_ends_with_status_64_and_is_named() {
    let output = check(
        "version: 0.1\nstorage: {filesystem: }\nhttp: {adr: ':1'}\n",
        &[],
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("http.adr: unknown key, did you mean http.addr?"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(64));
}

/// The worked example of the reference.
fn example() -> String {
    let reference = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/registry-config.md"
    );
    let text = std::fs::read_to_string(reference).unwrap();
    let (_, rest) = text.split_once("```yaml\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_documented_configuration_is_one_without_further_options() {
    let output = check(&example(), &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    let failed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{failed}");
    for line in [
        "read as: the configuration of a registry that runs alone",
        "listens: 0.0.0.0:5000, TLS",
        "content: /srv/holdfast",
        "probes and metrics: 127.0.0.1:9090",
        "writes: pushes and deletes",
    ] {
        assert!(
            said.lines().any(|found| found == line),
            "no {line} in {said}"
        );
    }
    assert!(said.contains("upstreams: docker.io, "), "{said}");
}

#[test]
fn a_configuration_that_says_too_little_says_what_is_missing() {
    for (text, parts) in [
        ("listen: 127.0.0.1:5000\n", &["data", "--data DIR"][..]),
        ("", &["data", "--data DIR"]),
        (
            "data: /srv\nlisten: nowhere\n",
            &["listen", "registry that runs alone"],
        ),
        ("release: {name: a}\n", &["namespace"]),
        (
            "registry: {replicas: 3}\n",
            &["registry", "has no key release"],
        ),
    ] {
        let output = check(text, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}: {said}");
        for part in parts {
            assert!(said.contains(part), "{text}: no {part} in {said}");
        }
    }
    let output = holdfast().args(["registry", "--check"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--data DIR"), "{said}");
}

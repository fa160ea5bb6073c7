//! What is written for the runtime, to the byte.

use holdfast_api::state::Host;

use super::*;

fn state(addresses: &[&str]) -> NodeState {
    let host = |address: &&str| Host {
        address: (*address).to_owned(),
        endpoints: vec![
            format!("https://{address}"),
            format!("https://{address}:5000"),
        ],
    };
    NodeState {
        hosts: addresses.iter().map(host).collect(),
        ca: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        username: "node".to_owned(),
        password: "secret".into(),
        ..NodeState::default()
    }
}

fn text(address: &str, file: &str) -> String {
    let files = files(&state(&[address]), Path::new("/etc/containerd/certs.d")).unwrap();
    String::from_utf8(files[&format!("{address}/{file}")].bytes.clone()).unwrap()
}

#[test]
fn each_endpoint_has_the_ca_the_credential_and_a_short_dial_timeout() {
    let table: toml::Table = text("10.96.0.50", "hosts.toml").parse().unwrap();
    let hosts = table["host"].as_table().unwrap();
    assert_eq!(
        hosts.keys().collect::<Vec<_>>(),
        ["https://10.96.0.50", "https://10.96.0.50:5000"]
    );
    assert_eq!(table["server"].as_str(), Some("https://10.96.0.50"));
    for section in [
        &table,
        hosts["https://10.96.0.50"].as_table().unwrap(),
        hosts["https://10.96.0.50:5000"].as_table().unwrap(),
    ] {
        assert_eq!(
            section["ca"].as_str(),
            Some("/etc/containerd/certs.d/10.96.0.50/ca.crt")
        );
        assert_eq!(section["capabilities"].as_array().unwrap().len(), 2);
        assert_eq!(section["dial_timeout"].as_str(), Some("1s"));
        assert_eq!(
            section["header"]["Authorization"].as_str(),
            Some("Basic bm9kZTpzZWNyZXQ=")
        );
    }
}

#[test]
fn every_address_gets_its_own_folder_and_only_the_credential_is_secret() {
    let files = files(
        &state(&["10.96.0.50", "[fd00::50]"]),
        Path::new("/etc/containerd/certs.d"),
    )
    .unwrap();
    let modes: Vec<_> = files
        .iter()
        .map(|(path, file)| (path.as_str(), file.mode))
        .collect();
    assert_eq!(
        modes,
        [
            ("10.96.0.50/ca.crt", 0o644),
            ("10.96.0.50/hosts.toml", 0o600),
            ("[fd00::50]/ca.crt", 0o644),
            ("[fd00::50]/hosts.toml", 0o600),
        ]
    );
    assert!(text("[fd00::50]", "hosts.toml").contains("https://[fd00::50]:5000"));
}

#[test]
fn an_address_that_would_leave_the_folder_is_refused() {
    for address in [
        "",
        "..",
        "../x",
        "a/b",
        ".",
        "10.0.0.1/..",
        "[",
        "[]x",
        "host:port",
        "_default",
        "[fd00::1",
        "-x",
    ] {
        let result = files(&state(&[address]), Path::new("/c"));
        assert_eq!(result, Err(Error::Address(address.to_owned())));
    }
    for address in [
        "10.96.0.50",
        "10.96.0.50:5000",
        "[fd00::1]:5000",
        "registry.example",
    ] {
        files(&state(&[address]), Path::new("/c")).unwrap();
    }
}

#[test]
fn an_endpoint_that_is_there_twice_is_written_once() {
    let mut state = state(&["10.96.0.50"]);
    let twice = state.hosts[0].endpoints[0].clone();
    state.hosts[0].endpoints.push(twice);
    let found = files(&state, Path::new("/c")).unwrap();
    let text = String::from_utf8(found["10.96.0.50/hosts.toml"].bytes.clone()).unwrap();
    assert!(text.parse::<toml::Table>().is_ok(), "{text}");
    let long = format!("{}.example", "a".repeat(250));
    state.hosts[0].address.clone_from(&long);
    assert_eq!(files(&state, Path::new("/c")), Err(Error::Address(long)));
}

#[test]
fn nothing_in_a_credential_can_break_out_of_its_string() {
    assert_eq!(quote("a\"b\\c\nd"), r#""a\"b\\c\u000Ad""#);
    assert_eq!(files(&state(&[]), Path::new("/c")), Err(Error::NoHosts));
}

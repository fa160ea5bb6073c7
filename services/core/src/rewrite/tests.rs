//! The rewrite and its inverse, as tables and as a property.

use super::*;
use proptest::prelude::*;

const ADDRESS: &str = "10.96.0.50";
const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn addresses() -> Vec<String> {
    ["10.96.0.50", "[fd00::50]", "10.1.2.3:5000"]
        .map(str::to_owned)
        .to_vec()
}

fn check(text: &str, local: &str) {
    let reference = Reference::parse(text).unwrap();
    let rewritten = rewrite(&reference, ADDRESS).unwrap();
    assert_eq!(rewritten, format!("{ADDRESS}/{local}"), "{text}");
    assert_eq!(
        original(&rewritten, &addresses()),
        Some(reference),
        "{text}"
    );
}

// SPEC 5
#[test]
fn the_upstream_becomes_the_first_part_and_tag_and_digest_stay() {
    check("nginx", "docker.io/library/nginx:latest");
    check("team/app:1", "docker.io/team/app:1");
    check("registry.example/team/app:1", "registry.example/team/app:1");
    check(
        "registry.example:5000/team/app:1",
        "registry.example_5000/team/app:1",
    );
    check("registry:5000/app", "registry_5000/app:latest");
    check("localhost:5000/app", "localhost_5000/app:latest");
    check("localhost/app", "localhost/app:latest");
    check("10.0.0.1:5000/app:1", "10.0.0.1_5000/app:1");
    check(
        "[fd00::1]:5000/app:1",
        "fd00-0-0-0-0-0-0-1.ipv6-literal.net_5000/app:1",
    );
    check("[::1]/app:1", "0-0-0-0-0-0-0-1.ipv6-literal.net/app:1");
    check(
        &format!("nginx@sha256:{HEX}"),
        &format!("docker.io/library/nginx@sha256:{HEX}"),
    );
    check(
        &format!("r.io:1/a:b@sha256:{HEX}"),
        &format!("r.io_1/a:b@sha256:{HEX}"),
    );
}

#[test]
fn only_own_addresses_are_read_back() {
    for (text, expect) in [
        (
            "10.96.0.50/docker.io/library/nginx:1",
            Some("docker.io/library/nginx:1"),
        ),
        (
            "10.96.0.50:5000/docker.io/library/nginx:1",
            Some("docker.io/library/nginx:1"),
        ),
        (
            "[fd00::50]/docker.io/library/nginx:1",
            Some("docker.io/library/nginx:1"),
        ),
        ("[fd00:0::50]:443/r.io_5000/a:1", Some("r.io:5000/a:1")),
        ("10.1.2.3:5000/r.io/a:1", Some("r.io/a:1")),
        ("10.1.2.3/r.io/a:1", None),
        ("10.96.0.51/docker.io/library/nginx:1", None),
        ("10.96.0.50/holdfast/probe:1", None),
        ("10.96.0.50/team/app:1", None),
        ("10.96.0.50/r.io:1", None),
        ("10.96.0.50/r.io_05000/a:1", None),
        ("10.96.0.50/r.io_99999/a:1", None),
        ("10.96.0.50/fd00--1.ipv6-literal.net/a:1", None),
        ("nginx", None),
        ("", None),
    ] {
        let found = original(text, &addresses()).map(|reference| reference.to_string());
        assert_eq!(found.as_deref(), expect, "{text}");
    }
    assert_eq!(original("10.96.0.50/r.io/a", &[]), None);
}

#[test]
fn upstream_namespaces_are_distinguished_from_clients_own() {
    for (name, expect) in [
        ("docker.io/library/nginx", true),
        ("registry_5000/app", true),
        ("localhost/app", true),
        ("localhost", true),
        ("a.b", true),
        ("holdfast/probe", false),
        ("team/docker.io/app", false),
        ("team_a/app", false),
        ("team_1a/app", false),
        ("team", false),
    ] {
        let name = RepositoryName::parse(name).unwrap();
        assert_eq!(is_upstream_namespace(&name), expect, "{name}");
    }
}

#[test]
fn names_too_long_for_the_registry_have_no_local_name() {
    let reference = |length: usize| {
        Reference::parse(&format!("registry.example/{}", "a".repeat(length))).unwrap()
    };
    assert!(rewrite(&reference(238), ADDRESS).is_some());
    assert_eq!(rewrite(&reference(239), ADDRESS), None);
}

#[test]
fn a_name_that_reads_as_an_ipv6_address_has_no_local_name() {
    let host = Host::parse("fd00-0-0-0-0-0-0-1.ipv6-literal.net").unwrap();
    assert_eq!(
        local_repository(&host, &RepositoryName::parse("a").unwrap()),
        None
    );
}

#[test]
fn the_hubs_repositories_have_one_name() {
    for (written, expect) in [
        ("docker.io/nginx", Some("docker.io/library/nginx")),
        ("docker.io/library/nginx", None),
        ("docker.io/team/app", None),
        ("index.docker.io/nginx", Some("docker.io/library/nginx")),
        ("index.docker.io/team/app", Some("docker.io/team/app")),
        ("ghcr.io/nginx", None),
        ("team/app", None),
        ("docker.io", None),
    ] {
        let name = RepositoryName::parse(written).unwrap();
        let found = canonical(&name);
        assert_eq!(
            found.as_ref().map(RepositoryName::as_str),
            expect,
            "{written}"
        );
    }
}

fn host() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?){1,3}",
        Just("localhost".to_owned()),
        any::<[u16; 8]>().prop_map(|groups| format!("[{}]", Ipv6Addr::from(groups))),
    ];
    (name, prop::option::of(1u16..)).prop_map(|(name, port)| match port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    })
}

proptest! {
    #[test]
    fn the_mapping_is_invertible(
        host in host(),
        repository in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}",
    ) {
        let host = Host::parse(&host).unwrap();
        let repository = RepositoryName::parse(&repository).unwrap();
        let local = local_repository(&host, &repository).unwrap();
        prop_assert!(is_upstream_namespace(&local));
        prop_assert_eq!(upstream_of(&local), Some((host, repository)));
    }

    #[test]
    fn a_local_name_comes_from_one_upstream_only(name in "[a-z0-9]{1,4}([._-][a-z0-9]{1,5}){0,3}/[a-z0-9]{1,5}") {
        let local = RepositoryName::parse(&name).unwrap();
        if let Some((host, repository)) = upstream_of(&local) {
            prop_assert_eq!(local_repository(&host, &repository), Some(local));
        }
    }
}

#[test]
fn another_way_to_write_a_repository_is_read_as_what_the_registry_serves() {
    let addresses = ["10.96.0.50".to_owned()];
    let served = |text: &str| served(&Reference::parse(text).unwrap(), &addresses);
    for (text, expect) in [
        ("r.io/team/app:1", Some("r.io/team/app:1")),
        ("docker.io/nginx:1", Some("docker.io/library/nginx:1")),
        (
            "docker.io/library/nginx:1",
            Some("docker.io/library/nginx:1"),
        ),
        ("index.docker.io/team/app:1", Some("docker.io/team/app:1")),
        ("registry_5000/app:1", Some("registry:5000/app:1")),
        ("team/pushed:1", None),
    ] {
        let found = served(&format!("10.96.0.50/{text}"));
        assert_eq!(found.map(|it| it.to_string()).as_deref(), expect, "{text}");
        assert_eq!(served(text), None, "{text}");
    }
}

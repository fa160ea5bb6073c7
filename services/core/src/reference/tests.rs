//! The reference grammar: what is accepted, refused, and repaired.

use super::*;
use proptest::prelude::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn check(text: &str, canonical: &str) {
    let parsed = Reference::parse(text).map(|reference| reference.to_string());
    assert_eq!(parsed, Ok(canonical.to_owned()), "{text}");
    // What is canonical stays so.
    assert_eq!(Reference::parse(canonical).unwrap().to_string(), canonical);
}

fn refuse(text: &str, expect: Error) {
    assert_eq!(Reference::parse(text), Err(expect), "{text:?}");
}

fn check_repair(text: &str, expect: Option<&str>) {
    let repaired = repair(text).map(|reference| reference.to_string());
    assert_eq!(repaired.as_deref(), expect, "{text:?}");
}

// SPEC 5
#[test]
fn references_are_normalised_as_runtimes_do_it() {
    check("nginx", "docker.io/library/nginx:latest");
    check("nginx:1.27", "docker.io/library/nginx:1.27");
    check("library/nginx", "docker.io/library/nginx:latest");
    check("team/app", "docker.io/team/app:latest");
    check("team/sub/app:v1", "docker.io/team/sub/app:v1");
    check("docker.io/nginx", "docker.io/library/nginx:latest");
    check("index.docker.io/nginx", "docker.io/library/nginx:latest");
    check("index.docker.io/team/app:1", "docker.io/team/app:1");
    check(
        "registry-1.docker.io/library/nginx:1",
        "registry-1.docker.io/library/nginx:1",
    );
    check("registry.example/app", "registry.example/app:latest");
    check("registry.example/team/app:1", "registry.example/team/app:1");
    check(
        "registry.example:5000/team/app:1",
        "registry.example:5000/team/app:1",
    );
    check(
        "registry.example:443/app",
        "registry.example:443/app:latest",
    );
    check(
        "registry.example:05000/app",
        "registry.example:5000/app:latest",
    );
    check("registry:5000/app", "registry:5000/app:latest");
    check("localhost/app", "localhost/app:latest");
    check("localhost:5000/app:1", "localhost:5000/app:1");
    check("10.0.0.1/app:1", "10.0.0.1/app:1");
    check("10.0.0.1:5000/app:1", "10.0.0.1:5000/app:1");
    check("[fd00::1]/app:1", "[fd00::1]/app:1");
    check("[fd00:0:0::1]:5000/app:1", "[fd00::1]:5000/app:1");
    check("[FD00::A]:5000/app:1", "[fd00::a]:5000/app:1");
    check("Registry.Example/app:V1", "registry.example/app:V1");
    check(
        "REGISTRY.EXAMPLE:5000/app",
        "registry.example:5000/app:latest",
    );
    check(
        "xn--bcher-kva.example/app",
        "xn--bcher-kva.example/app:latest",
    );
    check("a.b/c__d/e-f/g--h/i.j", "a.b/c__d/e-f/g--h/i.j:latest");
    check("app:_x.Y-z", "docker.io/library/app:_x.Y-z");
    check("app_x", "docker.io/library/app_x:latest");
    check("foo.bar:1", "docker.io/library/foo.bar:1");
    check("app:5000", "docker.io/library/app:5000");
    check(
        &format!("nginx@sha256:{HEX}"),
        &format!("docker.io/library/nginx@sha256:{HEX}"),
    );
    check(
        &format!("registry.example:5000/app:1@sha256:{HEX}"),
        &format!("registry.example:5000/app:1@sha256:{HEX}"),
    );
    check(
        &format!("r.io/a@sha512:{HEX}{HEX}"),
        &format!("r.io/a@sha512:{HEX}{HEX}"),
    );
    check(&format!("r.io/{HEX}"), &format!("r.io/{HEX}:latest"));
}

#[test]
fn what_breaks_the_grammar_is_refused() {
    refuse("", Error::Empty);
    refuse(HEX, Error::Identifier);
    refuse("UPPER", Error::Repository);
    refuse("team/App", Error::Repository);
    refuse("registry.example/App:1", Error::Repository);
    refuse("registry.example/", Error::Repository);
    refuse("registry.example//app", Error::Repository);
    refuse("registry.example/app/", Error::Repository);
    refuse("/app", Error::Repository);
    refuse(" nginx", Error::Repository);
    refuse("nginx ", Error::Repository);
    refuse("nginx:", Error::Tag);
    refuse("nginx:-x", Error::Tag);
    refuse("nginx:a b", Error::Tag);
    refuse("nginx:1:2", Error::Tag);
    refuse("r.io/app:1/x", Error::Tag);
    refuse("nginx@", Error::Digest(digest::Error::NoAlgorithm));
    refuse(
        "nginx@sha256:abc",
        Error::Digest(Digest::parse("sha256:abc").unwrap_err()),
    );
    refuse(
        &format!("nginx@sha256:{}", HEX.to_uppercase()),
        Error::Digest(digest::Error::NotHex),
    );
    refuse("https://registry.example/app", Error::Port);
    refuse("registry.example:/app", Error::Port);
    refuse("registry.example:0/app", Error::Port);
    refuse("registry.example:65536/app", Error::Port);
    refuse("registry.example:+5/app", Error::Port);
    refuse("-registry.example/app", Error::Host);
    refuse("registry..example/app", Error::Host);
    refuse(".example/app", Error::Host);
    refuse("reg_istry.example/app", Error::Host);
    refuse("UPPER/app", Error::Host);
    refuse("[fd00::1/app", Error::Host);
    refuse("[10.0.0.1]/app", Error::Host);
    refuse("[fe80::1%25eth0]:80/app", Error::Host);
    refuse(
        "user@registry.example/app",
        Error::Digest(digest::Error::NoAlgorithm),
    );
    refuse("../../etc/passwd", Error::Host);
    refuse("r.io/../app", Error::Repository);
    refuse("r.io/a/./b", Error::Repository);
    refuse("r.io/a___b", Error::Repository);
    refuse("r.io/a..b", Error::Repository);
    refuse("r.io/a_-b", Error::Repository);
    refuse("r.io/-a", Error::Repository);
    refuse("r.io/a-", Error::Repository);
    refuse("r.io/ünïcode", Error::Repository);
    refuse("r.io/a\u{0}b", Error::Repository);
}

#[test]
fn lengths_are_limited() {
    let name = |length: usize| "a".repeat(length);
    assert!(Reference::parse(&format!("r.io/{}", name(255))).is_ok());
    refuse(&format!("r.io/{}", name(256)), Error::TooLong);
    assert!(Reference::parse(&format!("a:{}", name(128))).is_ok());
    refuse(&format!("a:{}", name(129)), Error::Tag);
    refuse(&format!("{}.io/a", name(251)), Error::Host);
    // `library/` counts.
    refuse(&name(248), Error::TooLong);
}

// SPEC 45
#[test]
fn malformed_references_with_one_meaning_are_repaired() {
    let cases = [
        (
            "https://registry.example/team/app:1",
            "registry.example/team/app:1",
        ),
        (
            "http://registry.example:5000/app:1",
            "registry.example:5000/app:1",
        ),
        ("HTTPS://Registry.Example/app:1", "registry.example/app:1"),
        (
            "https://https://registry.example/app:1",
            "registry.example/app:1",
        ),
        ("https:///registry.example/app:1", "registry.example/app:1"),
        ("docker://registry.example/app:1", "registry.example/app:1"),
        ("docker://nginx", "docker.io/library/nginx:latest"),
        ("oci://registry.example/app:1", "registry.example/app:1"),
        ("//registry.example/app:1", "registry.example/app:1"),
        ("/registry.example/app:1", "registry.example/app:1"),
        ("registry.example//app:1", "registry.example/app:1"),
        (
            "registry.example///team//app:1",
            "registry.example/team/app:1",
        ),
        ("team//app", "docker.io/team/app:latest"),
        ("registry.example/app/", "registry.example/app:latest"),
        ("registry.example/app//", "registry.example/app:latest"),
        ("registry.example/app/:1", "registry.example/app:1"),
        ("nginx/", "docker.io/library/nginx:latest"),
        (" nginx:1 ", "docker.io/library/nginx:1"),
        ("\tregistry.example/app:1\n", "registry.example/app:1"),
        ("\"nginx:1\"", "docker.io/library/nginx:1"),
        ("registry.example:/app:1", "registry.example/app:1"),
        (
            "registry.example/Team/App:V1",
            "registry.example/team/app:V1",
        ),
        ("Registry.Example/app:1", "registry.example/app:1"),
        ("https://10.0.0.1:5000/app", "10.0.0.1:5000/app:latest"),
        ("https://[fd00::1]:5000/app", "[fd00::1]:5000/app:latest"),
        ("https://localhost/app", "localhost/app:latest"),
    ];
    for (text, expect) in cases {
        check_repair(text, Some(expect));
    }
    check_repair("registry.example/", None);
    check_repair("registry.example:5000/", None);
    check_repair("registry.example/:1", None);
    check_repair("nginx/", Some("docker.io/library/nginx:latest"));
    check_repair(
        &format!("registry.example/app@SHA256:{}", HEX.to_uppercase()),
        Some(&format!("registry.example/app@sha256:{HEX}")),
    );
}

// SPEC 45
#[test]
fn what_could_mean_two_things_is_not_repaired() {
    for text in [
        "",
        " ",
        "/",
        "://",
        "https://",
        "https://nginx",
        "https://team/app",
        "https://registry.example",
        "https://registry.example/",
        "ftp://registry.example/app",
        "/nginx",
        "/team/app:1",
        "nginx:",
        "nginx@",
        "nginx:1:2",
        "registry.example/app:",
        "registry.example/app:1:2",
        "registry.example/a b",
        "registry.example/app:1 2",
        "registry.example/app?x=1",
        "registry.example/app#x",
        "registry.example/../app",
        "registry.example:port/app",
        "registry.example:99999/app",
        "https://user:password@registry.example/app",
        "UPPER/app",
        "{{ .Values.image }}",
        "${IMAGE}",
        "registry.example\\app:1",
        "app@sha256:abc",
        HEX,
    ] {
        check_repair(text, None);
    }
}

#[test]
fn the_short_form_is_what_people_write() {
    for (text, expect) in [
        ("nginx", "nginx"),
        ("docker.io/library/nginx:1", "nginx:1"),
        ("docker.io/team/app:latest", "team/app"),
        (
            "registry.example/library/app",
            "registry.example/library/app",
        ),
        ("docker.io/library/a/b", "library/a/b"),
        ("docker.io/a.b/c", "docker.io/a.b/c"),
    ] {
        assert_eq!(Reference::parse(text).unwrap().familiar(), expect);
    }
}

proptest! {
    #[test]
    fn parsing_never_panics_and_what_parses_is_stable(text in "\\PC{0,80}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference.clone());
            prop_assert_eq!(repair(&text), Some(reference));
        }
    }

    #[test]
    fn repairing_never_panics_and_is_stable(text in "[ \"/:@.a-zA-Z0-9_\\[\\]-]{0,60}") {
        if let Some(reference) = repair(&text) {
            prop_assert_eq!(repair(&reference.to_string()), Some(reference));
        }
    }
}

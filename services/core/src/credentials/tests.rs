//! Pull secrets of every shape, and which of their credentials are tried for a reference, in order.

use super::*;
use serde_json::json;

fn secret(auths: serde_json::Value) -> PullSecret {
    PullSecret::from_dockerconfigjson(json!({ "auths": auths }).to_string().as_bytes()).unwrap()
}

fn users(secrets: &[PullSecret], reference: &str) -> Vec<String> {
    candidates(
        secrets.iter().cloned(),
        &Reference::parse(reference).unwrap(),
    )
    .into_iter()
    .map(|credential| credential.username)
    .collect()
}

/// The entry for a reference that cannot be used.
fn problems(secret: PullSecret, reference: &str) -> Vec<EntryProblem> {
    let reference = Reference::parse(reference).unwrap();
    let problem = Candidates::new(&reference).add(secret);
    problem.into_iter().collect()
}

fn check(key: &str, reference: &str, expect: bool) {
    let secret = secret(json!({ key: {"username": "u", "password": "p"} }));
    assert_eq!(
        !users(&[secret], reference).is_empty(),
        expect,
        "{key} for {reference}"
    );
}

#[test]
fn a_credential_is_for_its_host_only() {
    check("registry.example", "registry.example/app", true);
    check("https://registry.example", "registry.example/app", true);
    check("https://registry.example/v2/", "registry.example/app", true);
    check("REGISTRY.example", "registry.example/app", true);
    check("registry.example:443", "registry.example/app", true);
    check("registry.example", "registry.example:443/app", true);
    check("registry.example:5000", "registry.example:5000/app", true);
    check("registry.example:5000", "registry.example/app", false);
    check("registry.example", "registry.example:5000/app", false);
    check("registry.example", "other.example/app", false);
    check("registry.example", "registry.example.evil.test/app", false);
    check("registry.example", "nginx", false);
    check("[fd00::1]:5000", "[fd00::1]:5000/app", true);
    check("", "registry.example/app", false);
}

#[test]
fn docker_hub_has_many_names() {
    for key in [
        "https://index.docker.io/v1/",
        "https://index.docker.io/v2/",
        "index.docker.io",
        "docker.io",
        "registry-1.docker.io",
    ] {
        check(key, "nginx", true);
        check(key, "docker.io/team/app", true);
        check(key, "quay.io/team/app", false);
    }
}

#[test]
fn wildcards_stand_for_one_label() {
    check("*.azurecr.io", "team.azurecr.io/app", true);
    check("*.azurecr.io", "a.b.azurecr.io/app", false);
    check("*.azurecr.io", "azurecr.io/app", false);
    check("*.azurecr.io", "evilazurecr.io/app", false);
    check("pre*post.example", "pre-x-post.example/app", true);
    check("pre*post.example", "prepos.example/app", false);
    check("*", "localhost/app", true);
}

#[test]
fn wildcards_match_as_everywhere() {
    for (pattern, label, expect) in [
        ("*", "", true),
        ("*", "a", true),
        ("**", "a", true),
        ("a*", "a", true),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("*a*", "bab", true),
        ("*a*", "bb", false),
        ("a*b*c", "abc", true),
        ("a*b*c", "axbxbxc", true),
        ("a*b*c", "acb", false),
        ("*ab*ab", "ab", false),
        ("*ab*ab", "abab", true),
        ("*aab", "aaab", true),
        ("a", "ab", false),
        ("", "", true),
    ] {
        assert_eq!(matches_glob(pattern, label), expect, "{pattern} {label}");
    }
}

#[test]
fn a_key_of_many_wildcards_is_matched_at_once() {
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let label = "a".repeat(60);
        check(
            &format!("{}b.io", "*a".repeat(13)),
            &format!("{label}.io/x:1"),
            false,
        );
        check(
            &format!("{}.io", "*a".repeat(60)),
            &format!("{label}.io/x:1"),
            true,
        );
        check(
            &format!("{}.io", "*".repeat(1_000_000)),
            &format!("{label}.io/x:1"),
            true,
        );
        done.send(()).unwrap();
    });
    let wait = std::time::Duration::from_secs(60);
    end.recv_timeout(wait).expect("the match ends");
}

#[test]
fn the_entries_of_a_pull_secret_are_bounded() {
    let payload = |entries: usize| {
        let auths: serde_json::Map<_, _> = (0..entries)
            .map(|index| {
                let entry = json!({ "username": "u", "password": index.to_string() });
                (format!("r.io/{index}"), entry)
            })
            .collect();
        json!(auths).to_string().into_bytes()
    };
    let most = PullSecret::from_dockercfg(&payload(MAX_ENTRIES)).unwrap();
    assert_eq!(most.entries.len(), MAX_ENTRIES);
    let more = payload(MAX_ENTRIES + 1);
    assert_eq!(PullSecret::from_dockercfg(&more), Err(Error::TooMany));
    let auths = [b"{\"auths\":".as_slice(), &more, b"}"].concat();
    assert_eq!(
        PullSecret::from_dockerconfigjson(&auths),
        Err(Error::TooMany)
    );
    let broken = more.get(..more.len() - 1).unwrap();
    assert!(matches!(
        PullSecret::from_dockercfg(broken),
        Err(Error::Shape { .. })
    ));
}

#[test]
fn an_image_has_so_many_candidates_the_most_specific_first() {
    let of_secret = |number: usize| {
        let auths: serde_json::Map<_, _> = (0..100)
            .map(|depth| {
                let user = json!({ "username": format!("{number}-{depth}"), "password": "p" });
                (format!("r.io/{}", "a/".repeat(depth)), user)
            })
            .collect();
        secret(json!(auths))
    };
    let secrets: Vec<PullSecret> = (0..8).map(of_secret).collect();
    let repository = vec!["a"; 101].join("/");
    let found = users(&secrets, &format!("r.io/{repository}"));
    assert_eq!(found.len(), MAX_CANDIDATES);
    // The longest path is in every secret.
    for (number, user) in (0..8).zip(&found) {
        assert!(user.starts_with(&format!("{number}-")), "{found:?}");
    }
}

#[test]
fn the_bytes_of_a_credential_are_bounded() {
    for (bytes, expect) in [(MAX_CREDENTIAL_BYTES, 1), (MAX_CREDENTIAL_BYTES + 1, 0)] {
        let user = json!({ "username": "u", "password": "p".repeat(bytes - 1) });
        assert_eq!(
            users(&[secret(json!({ "r.io": user }))], "r.io/a").len(),
            expect
        );
    }
}

#[test]
fn a_path_in_the_key_narrows_it() {
    check("registry.example/team", "registry.example/team/app", true);
    check(
        "registry.example/team/app",
        "registry.example/team/app",
        true,
    );
    check("registry.example/team/", "registry.example/team/app", true);
    check(
        "registry.example/team",
        "registry.example/team-b/app",
        false,
    );
    check("registry.example/team", "registry.example/other/app", false);
}

// SPEC 35
#[test]
fn several_secrets_are_tried_the_most_specific_first_and_none_twice() {
    let user = |name: &str| json!({"username": name, "password": "p"});
    let secrets = [
        secret(json!({ "*.example": user("wild"), "registry.example": user("first") })),
        secret(
            json!({ "registry.example": user("second"), "registry.example/team": user("team") }),
        ),
        secret(
            json!({ "https://registry.example": user("first"), "other.example": user("other") }),
        ),
    ];
    assert_eq!(
        users(&secrets, "registry.example/team/app"),
        ["team", "first", "second", "wild"]
    );
    assert_eq!(
        users(&secrets, "registry.example/app"),
        ["first", "second", "wild"]
    );
    assert_eq!(users(&secrets, "other.example/app"), ["other", "wild"]);
    assert!(users(&secrets, "nginx").is_empty());
}

#[test]
fn every_form_of_a_credential_is_read() {
    let encoded = |text: &str| BASE64.encode(text);
    for (entry, expect) in [
        (json!({"auth": encoded("u:p:q")}), Some(("u", "p:q", None))),
        (
            json!({"auth": encoded("u:p").trim_end_matches('=')}),
            Some(("u", "p", None)),
        ),
        (
            json!({"username": "u", "password": "p"}),
            Some(("u", "p", None)),
        ),
        (
            json!({"username": "x", "password": "y", "auth": encoded("u:p")}),
            Some(("u", "p", None)),
        ),
        (
            json!({"username": "u", "password": "p", "auth": "!!"}),
            Some(("u", "p", None)),
        ),
        (json!({"identitytoken": "t"}), Some(("", "", Some("t")))),
        (
            json!({"auth": encoded("u:"), "identitytoken": "t"}),
            Some(("u", "", Some("t"))),
        ),
        (
            json!({"username": "u", "password": "p", "email": "e", "future": 1}),
            Some(("u", "p", None)),
        ),
        (json!({}), None),
        (json!(null), None),
        (json!({"auth": encoded("nocolon")}), None),
        (json!({"auth": ""}), None),
    ] {
        let found = candidates(
            [secret(json!({"r.io": entry}))],
            &Reference::parse("r.io/a").unwrap(),
        );
        let expected = expect.map(|(username, password, token)| Credential {
            username: username.to_owned(),
            password: password.to_owned(),
            identity_token: token.map(str::to_owned),
        });
        assert_eq!(found.first(), expected.as_ref(), "{entry}");
    }
}

// As Go's decoder, by which the kubelet reads pull secrets.
#[test]
fn wrapped_base64_and_null_are_read_as_by_the_kubelet() {
    let encoded = BASE64.encode("user:password");
    let (head, tail) = encoded.split_at(8);
    for auth in [
        format!("{head}\n{tail}"),
        format!("{head}\r\n{tail}\r\n"),
        format!("\n{head}\r{tail}"),
    ] {
        let secret = secret(json!({ "r.io": { "auth": auth } }));
        assert_eq!(users(&[secret], "r.io/a"), ["user"], "{auth:?}");
    }
    for payload in [
        r#"{"auths": null}"#,
        r#"{"auths": {"r.io": null}}"#,
        r#"{"auths": {"r.io": {}}}"#,
        r#"{"auths": {"r.io": {"auth": null, "username": null}}}"#,
    ] {
        let secret = PullSecret::from_dockerconfigjson(payload.as_bytes()).unwrap();
        assert!(secret.is_empty(), "{payload}");
        assert!(problems(secret, "r.io/a").is_empty(), "{payload}");
    }
    let older = PullSecret::from_dockercfg(b"null").unwrap();
    assert!(older.is_empty());
}

#[test]
fn a_bad_entry_is_a_problem_of_its_registry_and_does_not_spoil_the_others() {
    use EntryProblem::{Auth, Shape, TooLong};
    let long = "p".repeat(MAX_CREDENTIAL_BYTES);
    for (entry, problem) in [
        (json!("text"), Shape),
        (json!(7), Shape),
        (json!(["u", "p"]), Shape),
        (json!({ "auth": 7 }), Shape),
        (json!({ "username": "u", "password": ["p"] }), Shape),
        (json!({ "auth": "!!" }), Auth),
        (json!({ "auth": BASE64.encode("nocolon") }), Auth),
        (json!({ "auth": BASE64.encode(":no user") }), Auth),
        (json!({ "username": "u", "password": long }), TooLong),
    ] {
        let secret = secret(json!({
            "r.io": entry,
            "s.io": { "username": "other", "password": "p" },
        }));
        assert_eq!(
            users(std::slice::from_ref(&secret), "s.io/a"),
            ["other"],
            "{entry}"
        );
        assert!(
            users(std::slice::from_ref(&secret), "r.io/a").is_empty(),
            "{entry}"
        );
        assert_eq!(problems(secret.clone(), "r.io/a"), [problem], "{entry}");
        assert!(problems(secret, "s.io/a").is_empty(), "{entry}");
    }
}

/// A tenant may write a thousand bad entries for one registry.
#[test]
fn many_bad_entries_are_one_problem() {
    let entries = (0..100).map(|port| (format!("r.io/{port}*"), json!({"auth": "x"})));
    let mut all: serde_json::Map<_, _> = entries.collect();
    all.insert("r.io".to_owned(), json!({"auth": "x"}));
    all.insert("https://r.io".to_owned(), json!({"auth": "x"}));
    assert_eq!(problems(secret(json!(all)), "r.io/a").len(), 1);
}

#[test]
fn the_older_type_has_no_auths() {
    let secret =
        PullSecret::from_dockercfg(br#"{"r.io": {"username": "u", "password": "p"}}"#).unwrap();
    assert_eq!(users(&[secret], "r.io/a"), ["u"]);
}

// SPEC 82
#[test]
fn neither_errors_nor_debug_output_repeat_a_password() {
    let error = PullSecret::from_dockerconfigjson(br#"{"auths": "hunter2"}"#).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let bad = PullSecret::from_dockerconfigjson(br#"{"auths": {"r.io": "hunter2"}}"#).unwrap();
    assert!(!format!("{bad:?}").contains("hunter"), "{bad:?}");
    let problems = problems(bad, "r.io/a");
    assert_eq!(problems.len(), 1);
    assert!(!problems[0].to_string().contains("hunter"), "{problems:?}");
    let secret = secret(
        json!({ "r.io": {"username": "u", "password": "hunter2", "identitytoken": "hunter3"} }),
    );
    assert!(!format!("{secret:?}").contains("hunter"), "{secret:?}");
    for payload in ["", "{", "7", "[1]"] {
        assert!(
            PullSecret::from_dockerconfigjson(payload.as_bytes()).is_err(),
            "{payload}"
        );
    }
    assert!(PullSecret::from_dockerconfigjson(b"{}").unwrap().is_empty());
}

//! References as people write them: each becomes what it certainly means, or stays.

use super::tests::{create, pod};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A reference and the path that it gets at the registry; nothing where it stays.
const ODD: &[(&str, &str)] = &[
    ("a", "docker.io/library/a:latest"),
    ("0", "docker.io/library/0:latest"),
    ("1.2.3", "docker.io/library/1.2.3:latest"),
    ("a:a", "docker.io/library/a:a"),
    ("a:1", "docker.io/library/a:1"),
    ("a:0.0.0-rc.1", "docker.io/library/a:0.0.0-rc.1"),
    ("a:_", "docker.io/library/a:_"),
    ("a:A", "docker.io/library/a:A"),
    ("a:.", ""),
    ("a:-", ""),
    ("a:+1", ""),
    ("a:1+build", ""),
    ("a:1:2", ""),
    ("a:", ""),
    (":1", ""),
    (":", ""),
    ("@", ""),
    ("/", ""),
    ("//", ""),
    ("-", ""),
    (".", ""),
    ("..", ""),
    ("../a", ""),
    ("a/../b", ""),
    ("./a", ""),
    ("a/./b", ""),
    ("a/b", "docker.io/a/b:latest"),
    ("a/b/c/d/e/f", "docker.io/a/b/c/d/e/f:latest"),
    ("library/a", "docker.io/library/a:latest"),
    ("docker.io/a", "docker.io/library/a:latest"),
    ("docker.io/library/a", "docker.io/library/a:latest"),
    ("docker.io/a/b", "docker.io/a/b:latest"),
    ("DOCKER.IO/a", "docker.io/library/a:latest"),
    ("index.docker.io/a", "docker.io/library/a:latest"),
    ("docker.io:443/a", "docker.io_443/a:latest"),
    ("docker.com/a", "docker.com/a:latest"),
    (
        "registry-1.docker.io/library/a",
        "registry-1.docker.io/library/a:latest",
    ),
    ("r.io/a", "r.io/a:latest"),
    ("r.io/a:latest", "r.io/a:latest"),
    ("r.io./a", ""),
    (".r.io/a", ""),
    ("r..io/a", ""),
    ("-r.io/a", ""),
    ("r-.io/a", ""),
    ("r_x.io/a", ""),
    ("r.io:1/a", "r.io_1/a:latest"),
    ("r.io:65535/a", "r.io_65535/a:latest"),
    ("r.io:65536/a", ""),
    ("r.io:0/a", ""),
    ("r.io:00080/a", "r.io_80/a:latest"),
    ("r.io:http/a", ""),
    ("r.io:/a", "r.io/a:latest"),
    ("r.io:5000", "docker.io/library/r.io:5000"),
    ("r:5000/a", "r_5000/a:latest"),
    ("R:5000/a", "r_5000/a:latest"),
    ("localhost/a", ""),
    ("localhost:5000/a", ""),
    ("LOCALHOST/a", ""),
    ("127.0.0.1/a", ""),
    ("127.1.2.3:5000/a", ""),
    ("[::1]/a", ""),
    ("[::1]:5000/a:1", ""),
    ("192.0.2.1/a", "192.0.2.1/a:latest"),
    ("192.0.2.1:5000/a", "192.0.2.1_5000/a:latest"),
    ("999.0.2.1/a", "999.0.2.1/a:latest"),
    (
        "[2001:db8::1]/a",
        "2001-db8-0-0-0-0-0-1.ipv6-literal.net/a:latest",
    ),
    (
        "[2001:db8::1]:80/a",
        "2001-db8-0-0-0-0-0-1.ipv6-literal.net_80/a:latest",
    ),
    (
        "[2001:DB8::1]/a",
        "2001-db8-0-0-0-0-0-1.ipv6-literal.net/a:latest",
    ),
    ("[2001:db8::1/a", ""),
    ("2001:db8::1/a", ""),
    ("[fe80::1%25eth0]/a", ""),
    ("2001-db8-0-0-0-0-0-1.ipv6-literal.net/a", ""),
    ("xn--bcher-kva.example/a", "xn--bcher-kva.example/a:latest"),
    ("bücher.example/a", ""),
    ("r.io/ä", ""),
    ("r.io/a_b", "r.io/a_b:latest"),
    ("r.io/a__b", "r.io/a__b:latest"),
    ("r.io/a___b", ""),
    ("r.io/a.b", "r.io/a.b:latest"),
    ("r.io/a..b", ""),
    ("r.io/a-b", "r.io/a-b:latest"),
    ("r.io/a----b", "r.io/a----b:latest"),
    ("r.io/a.-b", ""),
    ("r.io/-a", ""),
    ("r.io/a-", ""),
    ("r.io/_a", ""),
    ("r.io/A", "r.io/a:latest"),
    ("A", "docker.io/library/a:latest"),
    ("a/B:C", "docker.io/a/b:C"),
    ("r.io/a/", "r.io/a:latest"),
    ("r.io//a", "r.io/a:latest"),
    ("r.io/a//b", "r.io/a/b:latest"),
    ("r.io/a/:1", "r.io/a:1"),
    ("r.io/:1", ""),
    ("r.io/", ""),
    ("/r.io/a", "r.io/a:latest"),
    ("/a", ""),
    ("http://r.io/a", "r.io/a:latest"),
    ("https://r.io:5000/a:1", "r.io_5000/a:1"),
    ("HTTPS://r.io/a", "r.io/a:latest"),
    ("https://a", ""),
    ("https://a/b", ""),
    ("docker://r.io/a", "r.io/a:latest"),
    ("docker://a", "docker.io/library/a:latest"),
    ("oci://r.io/a:1", "r.io/a:1"),
    ("ftp://r.io/a", ""),
    (
        "docker-archive:a.tar",
        "docker.io/library/docker-archive:a.tar",
    ),
    (" r.io/a:1", "r.io/a:1"),
    ("r.io/a:1\n", "r.io/a:1"),
    ("\tr.io/a:1 ", "r.io/a:1"),
    ("\"r.io/a:1\"", "r.io/a:1"),
    ("'r.io/a:1'", "r.io/a:1"),
    ("r.io/a: 1", ""),
    ("r.io/a :1", ""),
    ("r.io/a\u{0}:1", ""),
    ("r.io/a\u{200b}:1", ""),
    ("r.io\\a:1", ""),
    ("r.io/a?x=1", ""),
    ("r.io/a#1", ""),
    ("user@r.io/a", ""),
    ("user:pass@r.io/a", ""),
    ("$IMAGE", ""),
    ("${IMAGE}:1", ""),
    ("{{ .Values.image }}", ""),
    ("<no value>", ""),
    ("r.io/a:<nil>", ""),
    ("null", "docker.io/library/null:latest"),
    ("r.io/a@sha256", ""),
    ("r.io/a@sha256:", ""),
    ("r.io/a@sha256:abc", ""),
    ("r.io/a@md5:d41d8cd98f00b204e9800998ecf8427e", ""),
    ("r.io/a@", ""),
    ("@sha256:abc", ""),
    ("sha256:abc", "docker.io/library/sha256:abc"),
    ("10.96.0.50", "docker.io/library/10.96.0.50:latest"),
    ("10.96.0.50/r.io", ""),
    ("10.96.0.50:443/r.io/a:1", ""),
    ("10.96.0.050/r.io/a:1", "10.96.0.050/r.io/a:1"),
    ("10.96.0.500/a", "10.96.0.500/a:latest"),
];

/// The same with a digest, which the table cannot hold.
fn by_digest() -> Vec<(String, String)> {
    let upper = HEX.to_uppercase();
    vec![
        (
            format!("a@sha256:{HEX}"),
            format!("docker.io/library/a@sha256:{HEX}"),
        ),
        (
            format!("r.io:1/a:b@sha256:{HEX}"),
            format!("r.io_1/a:b@sha256:{HEX}"),
        ),
        (
            format!("r.io/a@SHA256:{upper}"),
            format!("r.io/a@sha256:{HEX}"),
        ),
        (
            format!("r.io/a@sha512:{HEX}{HEX}"),
            format!("r.io/a@sha512:{HEX}{HEX}"),
        ),
        (format!("r.io/a@sha256:{HEX}0"), String::new()),
        (format!("r.io/a@sha256:{HEX}@sha256:{HEX}"), String::new()),
        (format!("r.io/a:@sha256:{HEX}"), String::new()),
        (
            format!("sha256:{HEX}"),
            format!("docker.io/library/sha256:{HEX}"),
        ),
        (HEX.to_owned(), String::new()),
        (format!("r.io/{HEX}"), format!("r.io/{HEX}:latest")),
        (
            format!("r.io/a:{}", "x".repeat(128)),
            format!("r.io/a:{}", "x".repeat(128)),
        ),
        (format!("r.io/a:{}", "x".repeat(129)), String::new()),
        (format!("r.io/{}", "a".repeat(256)), String::new()),
    ]
}

// SPEC 45
#[test]
fn odd_references_are_repaired_if_the_repair_is_certain() {
    let table = ODD
        .iter()
        .map(|(text, local)| ((*text).to_owned(), (*local).to_owned()));
    let all: Vec<(String, String)> = table.chain(by_digest()).collect();
    assert!(all.len() >= 100, "{}", all.len());
    let wrong: Vec<String> = all
        .into_iter()
        .filter_map(|(text, local)| {
            let before = pod(&text);
            let mutation = create(&before);
            let mut after = before.clone();
            json_patch::patch(&mut after, &mutation.patch).unwrap();
            let found = after["spec"]["containers"][0]["image"].as_str().unwrap();
            let expect = if local.is_empty() {
                text.clone()
            } else {
                format!("10.96.0.50/{local}")
            };
            (found != expect).then(|| format!("{text:?} became {found:?}, expected {expect:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

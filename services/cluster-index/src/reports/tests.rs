//! Reports that are kept, and what they answer.

use super::*;
use holdfast_api::delivery::MAX_SOURCES;

const LOCAL: &str = "10.96.0.50/docker.io/library/nginx";

fn image(names: &[&str], record: Option<&[(&str, Users)]>) -> ReportedImage {
    ReportedImage {
        id: "sha256:aa".to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        record: record.map(|record| {
            let record = record.iter();
            record
                .map(|(name, users)| ((*name).to_owned(), users.clone()))
                .collect()
        }),
        ..ReportedImage::default()
    }
}

fn report(node: &str, gate: bool, image_ids: Vec<ReportedImage>) -> NodeReport {
    NodeReport {
        node: node.to_owned(),
        gate,
        image_ids,
        ..NodeReport::default()
    }
}

/// Keeps a report of the first node of this name.
fn keep(reports: &Reports, report: NodeReport, now: Instant) -> Result<(), Full> {
    let digest = serde_json::to_vec(&report).unwrap();
    let digest = holdfast_api::report::digest(&digest);
    let uid = uid(&report.node);
    reports.keep(report, &digest, &uid, now)
}

fn uid(node: &str) -> String {
    format!("uid-{node}")
}

fn retain(reports: &Reports, nodes: &[&str]) {
    let uids: Vec<String> = nodes.iter().map(|node| uid(node)).collect();
    let uids = uids.iter().map(String::as_str);
    reports.retain(&nodes.iter().copied().zip(uids).collect());
}

fn on_nodes(reports: &Reports, nodes: &[&str], now: Instant) -> OnNodes {
    let uids: Vec<String> = nodes.iter().map(|node| uid(node)).collect();
    let ids = nodes.iter().zip(&uids);
    let ids: Vec<NodeId<'_>> = ids.map(|(name, uid)| NodeId { name, uid }).collect();
    let mut found = reports.on_nodes(&ids, now);
    found.all.sort_unstable();
    found.some.sort_unstable();
    found
}

fn starts(reports: &Reports, text: &str, node: &str) -> Option<bool> {
    reports.starts(text, node, &Credentials::default(), Instant::now())
}

#[test]
fn a_name_starts_where_its_image_is_open_by_that_name() {
    let reports = Reports::default();
    let now = Instant::now();
    let names = ["docker.io/library/nginx:1", &format!("{LOCAL}:1")];
    let pulled = image(&names, Some(&[(LOCAL, Users::Any)]));
    for (node, gate, image) in [
        ("preloaded", true, image(&names[..1], None)),
        ("pulled", true, pulled.clone()),
        ("no-records", false, pulled),
        (
            "by-short-name",
            true,
            image(&names, Some(&[("nginx", Users::Any)])),
        ),
    ] {
        keep(&reports, report(node, gate, vec![image]), now).unwrap();
    }
    let local = format!("{LOCAL}:1");
    let long = "docker.io/library/nginx:1";
    for (node, text, expect) in [
        ("preloaded", "nginx:1", Some(true)),
        ("preloaded", long, Some(true)),
        ("preloaded", "nginx", Some(false)),
        ("preloaded", &local, Some(false)),
        ("pulled", "nginx:1", Some(false)),
        ("pulled", &local, Some(true)),
        ("no-records", "nginx:1", Some(true)),
        ("by-short-name", "nginx:1", Some(true)),
        // The kubelet compares repositories in canonical form.
        ("by-short-name", long, Some(true)),
        ("unknown", "nginx:1", None),
        ("preloaded", "NGINX", None),
    ] {
        assert_eq!(starts(&reports, text, node), expect, "{text} on {node}");
    }
}

#[test]
fn private_images_start_with_the_secret_or_account_of_the_record() {
    let only = Users::Only {
        secrets: vec!["a/key".to_owned(), "no pair".to_owned()],
        service_accounts: vec!["b/builder".to_owned()],
    };
    let reports = Reports::default();
    let private = image(&["r.io/app:1"], Some(&[("r.io/app", only)]));
    let node = report("n", true, vec![private]);
    keep(&reports, node, Instant::now()).unwrap();
    for (namespace, secret, account, expect) in [
        ("a", "key", "default", true),
        ("b", "key", "default", false),
        ("b", "", "builder", true),
    ] {
        let pod = Credentials {
            namespace: namespace.to_owned(),
            pull_secrets: BTreeSet::from([secret.to_owned()]),
            service_account: account.to_owned(),
        };
        let found = reports.starts("r.io/app:1", "n", &pod, Instant::now());
        assert_eq!(found, Some(expect));
    }
}

#[test]
fn what_a_report_leaves_out_is_unknown() {
    let reports = Reports::default();
    let mut cut = report("n", true, vec![image(&["r.io/app:1"], None)]);
    cut.truncated = true;
    keep(&reports, cut, Instant::now()).unwrap();
    assert_eq!(starts(&reports, "r.io/app:1", "n"), Some(true));
    assert_eq!(starts(&reports, "r.io/app:2", "n"), None);
}

#[test]
fn a_report_is_believed_while_the_agent_confirms_it() {
    let reports = Reports::default();
    let received = Instant::now();
    let all = report("n", true, vec![image(&["r.io/app:1"], None)]);
    reports.keep(all, "d1", "u1", received).unwrap();
    let pod = Credentials::default();
    let starts = |age| reports.starts("r.io/app:1", "n", &pod, received + age);
    assert_eq!(starts(REPORT_TTL / 2), Some(true));
    assert_eq!(starts(REPORT_TTL), None);

    let id = |name, uid| NodeId { name, uid };
    for (node, digest, expect) in [
        (id("n", "u1"), "d2", false),
        (id("n", "u2"), "d1", false),
        (id("m", "u1"), "d1", false),
        (id("n", "u1"), "d1", true),
    ] {
        let found = reports.confirm(node, digest, received + REPORT_TTL / 2);
        assert_eq!(found, expect, "{node:?} {digest}");
    }
    assert_eq!(starts(REPORT_TTL), Some(true));
    assert_eq!(reports.age(received + REPORT_TTL), Some(100));
}

#[test]
fn a_node_that_joins_again_does_not_inherit_the_report() {
    let reports = Reports::default();
    let now = Instant::now();
    let held = || report("n", true, vec![image(&["r.io/app:1"], None)]);
    reports.keep(held(), "d", "before", now).unwrap();
    let node = |uid| [NodeId { name: "n", uid }];
    assert_eq!(reports.on_nodes(&node("before"), now).all, ["r.io/app:1"]);
    assert_eq!(reports.on_nodes(&node("after"), now), OnNodes::default());
    reports.retain(&BTreeMap::from([("n", "after")]));
    assert_eq!(starts(&reports, "r.io/app:1", "n"), None);
    reports.keep(held(), "d", "after", now).unwrap();
    reports.retain(&BTreeMap::from([("n", "after")]));
    assert_eq!(starts(&reports, "r.io/app:1", "n"), Some(true));
}

#[test]
fn images_are_kept_once_and_go_with_their_last_report() {
    let reports = Reports::default();
    let now = Instant::now();
    let nginx = || {
        image(
            &["docker.io/library/nginx:1"],
            Some(&[("nginx", Users::Any)]),
        )
    };
    let kept = || {
        let kept = reports.kept.read();
        (kept.images.len(), kept.total)
    };
    let version = reports.version();
    let mut first = report(
        "a",
        true,
        vec![nginx(), nginx(), image(&["r.io/a:1"], None)],
    );
    first.foreign_hosts = vec!["registry.local:5000".to_owned()];
    keep(&reports, first, now).unwrap();
    assert!(version.has_changed().unwrap());
    let later = now + Duration::from_secs(60);
    keep(&reports, report("b", true, vec![nginx()]), later).unwrap();
    assert_eq!(kept(), (2, 4));
    assert_eq!(reports.age(later), Some(60));
    assert_eq!(
        reports.foreign_hosts(later),
        BTreeSet::from(["registry.local:5000".to_owned()])
    );
    let version = reports.version();
    keep(&reports, report("b", true, vec![nginx()]), later).unwrap();
    assert!(!version.has_changed().unwrap(), "it says the same");

    retain(&reports, &["b", "c"]);
    assert!(version.has_changed().unwrap());
    assert_eq!(starts(&reports, "nginx:1", "a"), None, "the node left");
    assert_eq!(starts(&reports, "nginx:1", "b"), Some(true));
    assert_eq!(kept(), (1, 1));
    assert_eq!(reports.age(later), Some(0));
    keep(&reports, report("b", true, Vec::new()), later).unwrap();
    assert_eq!(kept(), (0, 0));
    retain(&reports, &[]);
    assert_eq!(reports.age(later), None);
    assert_eq!(reports.kept.read().bytes, 0);
}

#[test]
fn the_number_of_images_is_bounded() {
    let reports = Reports::default();
    let now = Instant::now();
    let many = || vec![ReportedImage::default(); MAX_TOTAL_IMAGES];
    keep(&reports, report("a", true, many()), now).unwrap();
    let one = || report("b", true, vec![ReportedImage::default()]);
    assert_eq!(keep(&reports, one(), now), Err(Full));
    keep(&reports, report("a", true, Vec::new()), now).unwrap();
    keep(&reports, one(), now).unwrap();
}

#[test]
fn the_bytes_of_all_reports_are_bounded() {
    let reports = Reports::default();
    let now = Instant::now();
    let large = |node: usize| {
        let name = |number: usize| format!("{node}/{number}/{}", "n".repeat(1000));
        let images = (0..400).map(|number| image(&[&name(number)], None));
        report(&format!("{node:04}"), true, images.collect())
    };
    let kept = (0..1000)
        .take_while(|node| keep(&reports, large(*node), now).is_ok())
        .count();
    assert!((200..280).contains(&kept), "{kept}");
    let refused = large(kept).node;
    assert_eq!(starts(&reports, "r.io/app:1", &refused), None, "unknown");
    // The same images cost nothing more, and a node's last report does not stay beside the next.
    let mut same = large(0);
    same.node = "same".to_owned();
    keep(&reports, same, now).unwrap();
    for round in 0..3 {
        let mut next = large(kept + round);
        next.node = large(0).node;
        next.truncated = round == 2;
        keep(&reports, next, now).unwrap_err();
        keep(&reports, large(0), now).unwrap();
    }
    retain(&reports, &[]);
    let all = reports.kept.read();
    assert_eq!((all.bytes, all.total, all.images.len()), (0, 0, 0));
}

#[test]
fn names_are_on_the_nodes_that_start_them_without_a_pull() {
    let reports = Reports::default();
    let now = Instant::now();
    let names = ["docker.io/library/nginx:1", &format!("{LOCAL}:1")];
    let pulled = || image(&names, Some(&[(LOCAL, Users::Any)]));
    let only = Users::Only {
        secrets: vec!["a/key".to_owned()],
        service_accounts: Vec::new(),
    };
    let private = || image(&["r.io/private:1"], Some(&[("r.io/private", only.clone())]));
    let preloaded = || image(&["r.io/everywhere:1", "no reference"], None);
    for (node, gate, images) in [
        ("a", true, vec![pulled(), private(), preloaded()]),
        ("b", false, vec![pulled(), private(), preloaded()]),
        ("c", true, vec![image(&names[..1], None), preloaded()]),
    ] {
        keep(&reports, report(node, gate, images), now).unwrap();
    }
    let nginx = "docker.io/library/nginx:1".to_owned();
    let (local, private) = (format!("{LOCAL}:1"), "r.io/private:1".to_owned());
    let everywhere = "r.io/everywhere:1".to_owned();
    let found = on_nodes(&reports, &["a", "b", "c"], now);
    assert_eq!(found.all, [everywhere.clone()].as_slice());
    let some = [local.clone(), nginx.clone(), private.clone()];
    assert_eq!(found.some, some);
    assert!(found.complete);
    let found = on_nodes(&reports, &["b"], now);
    assert_eq!(found.all, [local, nginx, everywhere, private]);

    assert!(!on_nodes(&reports, &["a", "b", "new"], now).complete);
    assert_eq!(
        on_nodes(&reports, &["a"], now + REPORT_TTL),
        OnNodes::default()
    );
    let mut cut = report("c", true, Vec::new());
    cut.truncated = true;
    keep(&reports, cut, now).unwrap();
    assert!(!on_nodes(&reports, &["c"], now).complete);
}

#[test]
fn of_too_many_names_those_of_most_nodes_are_kept() {
    let reports = Reports::default();
    let now = Instant::now();
    let honest = || image(&["r.io/app:1"], None);
    for node in ["a", "b"] {
        keep(&reports, report(node, true, vec![honest()]), now).unwrap();
    }
    let names: Vec<String> = (0..=MAX_SOURCES).map(|n| format!("a.io/{n}:1")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    keep(
        &reports,
        report("liar", true, vec![image(&names, None)]),
        now,
    )
    .unwrap();
    let found = on_nodes(&reports, &["a", "b", "liar"], now);
    assert_eq!(found.some.len(), MAX_SOURCES);
    assert!(found.some.contains(&"r.io/app:1".to_owned()));
    assert!(!found.complete);
}

#[test]
fn of_too_many_foreign_hosts_those_of_most_nodes_are_kept() {
    let reports = Reports::default();
    let now = Instant::now();
    let with = |node: &str, hosts: Vec<String>| {
        let mut report = report(node, true, Vec::new());
        report.foreign_hosts = hosts;
        keep(&reports, report, now).unwrap();
    };
    let many = (0..MAX_FOREIGN_HOSTS).map(|n| format!("a{n}.example"));
    with("liar", many.collect());
    with("a", vec!["registry.example".to_owned()]);
    with("b", vec!["registry.example".to_owned()]);
    let hosts = reports.foreign_hosts(now);
    assert_eq!(hosts.len(), MAX_FOREIGN_HOSTS);
    assert!(hosts.contains("registry.example"));
    assert!(
        reports.foreign_hosts(now + REPORT_TTL).is_empty(),
        "too old"
    );
}

/// A large site. `cargo test --release -- --nocapture` prints the times.
#[test]
fn a_thousand_nodes_with_two_hundred_images_each() {
    const NODES: usize = 1000;
    let reports = Reports::default();
    let now = Instant::now();
    let held = |number: usize| {
        let name = format!("registry.example/team/app-{number}");
        let names = [
            format!("{name}:1"),
            format!("{LOCAL}-{number}:1"),
            format!("{name}@sha256:{number:064x}"),
        ];
        let record = [
            (name.as_str(), Users::Any),
            (&format!("{LOCAL}-{number}"), Users::Any),
        ];
        image(&names.each_ref().map(String::as_str), Some(&record))
    };
    let names: Vec<String> = (0..NODES).map(|node| format!("node-{node:04}")).collect();
    let begin = Instant::now();
    for (node, name) in names.iter().enumerate() {
        // 100 images are everywhere, 100 of 400 others are here.
        let others = (0..100).map(|image| 100 + (node * 7 + image * 4) % 400);
        let images = (0..100).chain(others).map(held);
        keep(&reports, report(name, true, images.collect()), now).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (kept, begin) = (begin.elapsed(), Instant::now());
    let found = on_nodes(&reports, &names, now);
    let bytes = reports.kept.read().bytes >> 10;
    println!(
        "kept in {kept:?}, {bytes} KiB; on nodes in {:?}",
        begin.elapsed()
    );
    assert_eq!(found.all.len(), 300);
    assert_eq!(found.some.len(), 1200);
    assert!(found.complete);
}

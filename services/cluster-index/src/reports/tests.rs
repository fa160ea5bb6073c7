//! Reports that are kept, and what they answer.

use super::*;

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
        reports.keep(report(node, gate, vec![image]), now).unwrap();
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
        // The kubelet compares what pods write.
        ("by-short-name", long, Some(false)),
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
    reports.keep(node, Instant::now()).unwrap();
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
    reports.keep(cut, Instant::now()).unwrap();
    assert_eq!(starts(&reports, "r.io/app:1", "n"), Some(true));
    assert_eq!(starts(&reports, "r.io/app:2", "n"), None);
}

#[test]
fn a_report_is_believed_until_the_agent_should_have_sent_the_next() {
    let reports = Reports::default();
    let received = Instant::now();
    let all = report("n", true, vec![image(&["r.io/app:1"], None)]);
    reports.keep(all, received).unwrap();
    for (age, expect) in [(REPORT_TTL / 2, Some(true)), (REPORT_TTL, None)] {
        let pod = Credentials::default();
        assert_eq!(
            reports.starts("r.io/app:1", "n", &pod, received + age),
            expect
        );
    }
}

#[test]
fn names_are_kept_once_and_go_with_their_last_report() {
    let reports = Reports::default();
    let now = Instant::now();
    let nginx = || {
        image(
            &["docker.io/library/nginx:1"],
            Some(&[("nginx", Users::Any)]),
        )
    };
    let mut first = report("a", true, vec![nginx()]);
    first.foreign_hosts = vec!["registry.local:5000".to_owned()];
    reports.keep(first, now).unwrap();
    let later = now + Duration::from_secs(60);
    reports
        .keep(report("b", true, vec![nginx()]), later)
        .unwrap();
    assert_eq!(reports.0.read().names.len(), 3);
    assert_eq!(reports.age(later), Some(60));
    assert_eq!(reports.foreign_hosts(), ["registry.local:5000"]);

    reports.retain(&BTreeSet::from(["b", "c"]));
    assert_eq!(starts(&reports, "nginx:1", "a"), None, "the node left");
    assert_eq!(starts(&reports, "nginx:1", "b"), Some(true));
    assert_eq!(reports.0.read().names.len(), 2);
    assert_eq!(reports.age(later), Some(0));
    reports.keep(report("b", true, Vec::new()), later).unwrap();
    assert!(reports.0.read().names.is_empty());
    reports.retain(&BTreeSet::new());
    assert_eq!(reports.age(later), None);
}

#[test]
fn the_number_of_images_is_bounded() {
    let reports = Reports::default();
    let now = Instant::now();
    let many = || vec![ReportedImage::default(); MAX_TOTAL_IMAGES];
    reports.keep(report("a", true, many()), now).unwrap();
    let one = || report("b", true, vec![ReportedImage::default()]);
    assert_eq!(reports.keep(one(), now), Err(Full));
    reports.keep(report("a", true, many()), now).unwrap();
    reports.keep(report("a", true, Vec::new()), now).unwrap();
    reports.keep(one(), now).unwrap();
}

#[test]
fn repositories_are_taken_as_they_are_written() {
    for (text, expect) in [
        ("nginx", "nginx"),
        ("nginx:1", "nginx"),
        ("r.io:5000/app", "r.io:5000/app"),
        ("r.io:5000/app:1", "r.io:5000/app"),
        ("r.io:5000/app:1@sha256:aa", "r.io:5000/app"),
        ("r.io:5000/app@sha256:aa", "r.io:5000/app"),
    ] {
        assert_eq!(written_repository(text), expect);
    }
}

//! The metrics, scraped and parsed.

use std::collections::BTreeMap;

use super::harness::Process;

/// Samples by name, each with its labels.
/// Labels and value.
type Sample = (BTreeMap<String, String>, f64);

fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    let mut samples: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            assert!(line != "# EOF" || lines.peek().is_none(), "the end is last");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        let labels = labels.strip_suffix('}').unwrap();
        let labels = labels
            .split(',')
            .filter(|label| !label.is_empty())
            .map(|label| {
                let (key, value) = label.split_once('=').unwrap();
                (key.to_owned(), value.trim_matches('"').to_owned())
            })
            .collect();
        samples
            .entry(name.to_owned())
            .or_default()
            .push((labels, value));
    }
    assert!(text.ends_with("# EOF\n"));
    samples
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboards_of_distribution_find_their_names() {
    let process = Process::start(false);
    process.until("/readyz", 200).await;
    assert_eq!(process.api("/v2/").await.0, 200);
    for number in 0..50 {
        // Names are no labels, however many there are.
        assert_eq!(
            process.api(&format!("/v2/name{number}/tags/list")).await.0,
            404
        );
    }
    let text = process.admin("/metrics").await.1;
    let samples = parse(&text);
    let value = |name: &str, wanted: &[(&str, &str)]| {
        let found: Vec<_> = samples
            .get(name)
            .unwrap_or_else(|| panic!("no {name}"))
            .iter()
            .filter(|(labels, _)| {
                wanted
                    .iter()
                    .all(|(key, value)| labels.get(*key).is_some_and(|found| found == value))
            })
            .collect();
        assert_eq!(found.len(), 1, "{name} {wanted:?}: {found:?}");
        found[0].1
    };
    let tags = [("handler", "tags"), ("method", "get"), ("code", "404")];
    assert!((value("registry_http_requests_total", &tags) - 50.0).abs() < 0.1);
    let timed = [("handler", "tags"), ("method", "get")];
    assert!((value("registry_http_request_duration_seconds_count", &timed) - 50.0).abs() < 0.1);
    assert!(value("registry_http_request_duration_seconds_sum", &timed) > 0.0);
    assert!(value("registry_http_in_flight_requests", &[("handler", "tags")]) < 0.1);
    assert!(
        value(
            "registry_http_response_size_bytes_count",
            &[("handler", "tags")]
        ) > 49.0
    );
    let stat = [("action", "Stat"), ("driver", "filesystem")];
    assert!(value("registry_storage_action_seconds_count", &stat) > 0.0);
    for counter in ["requests", "hits", "misses", "pulled_bytes", "pushed_bytes"] {
        let name = format!("# TYPE registry_proxy_{counter} counter");
        assert!(text.contains(&name), "no {name}");
    }
    assert!(value("holdfast_registry_volume_size_bytes", &[]) > 0.0);
    assert!(value("holdfast_registry_volume_level", &[]) < 1.5);
    let series: usize = samples.values().map(Vec::len).sum();
    assert!(series < 1000, "{series} series");
    process.end().await;
}

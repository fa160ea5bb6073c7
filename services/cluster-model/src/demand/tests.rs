//! Tables of pods, owners and what they need.

use super::*;
use holdfast_config::Config;
use serde_json::{Value, json};

fn scope() -> Scope {
    let document = json!({
        "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
        "values": {},
    });
    Scope::new(&Config::parse(&document.to_string()).unwrap()).unwrap()
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn pods(list: Vec<(&str, &str, PodFacts)>) -> Objects<PodFacts> {
    list.into_iter()
        .map(|(namespace, name, facts)| (key(namespace, name), facts))
        .collect()
}

fn namespaces(names: &[&str]) -> Objects<NamespaceFacts> {
    names
        .iter()
        .map(|name| (key("", name), NamespaceFacts::default()))
        .collect()
}

fn pod(owner: &str, alive: bool, secret: &str) -> PodFacts {
    PodFacts {
        uid: format!("uid-{owner}"),
        sources: [String::from("registry.example/app:1")].into(),
        alive,
        owner: Owner {
            reference: Reference {
                kind: "ReplicaSet".to_owned(),
                name: owner.to_owned(),
            },
            ..Owner::default()
        },
        pull_secrets: vec![secret.to_owned()],
        service_account: "default".to_owned(),
        ..PodFacts::default()
    }
}

// SPEC 6, SPEC 35, SPEC 41
#[test]
fn an_image_of_a_namespace_is_one_demand_with_all_pull_secrets() {
    let pods = pods(vec![
        ("apps", "b", pod("one", true, "s1")),
        ("apps", "a", pod("one", true, "s2")),
        ("apps", "done", pod("job", false, "s3")),
        ("other", "a", pod("one", true, "s1")),
        ("holdfast-system", "a", pod("own", true, "s1")),
        ("unknown", "a", pod("own", true, "s1")),
    ]);
    let demand = demand(
        &pods,
        &OwnerView::new(),
        &namespaces(&["apps", "other", "holdfast-system"]),
        &scope(),
    );
    let found: Vec<_> = demand
        .keys()
        .map(|(namespace, _)| namespace.as_str())
        .collect();
    assert_eq!(found, ["apps", "other"]);
    let apps = demand.values().next().unwrap();
    assert_eq!(apps.owners.len(), 2, "a ReplicaSet and a finished Job");
    assert_eq!(
        apps.pull_secrets.iter().collect::<Vec<_>>(),
        ["s1", "s2"],
        "a finished pod brings none"
    );
    assert_eq!(apps.pod.as_ref().unwrap().0, "a");
    assert!(apps.asks_for_copy());
    assert_eq!(apps.priority(), Some(Priority::Running));
}

#[test]
fn only_living_pods_bring_more() {
    let living = |secret: &str| Demand {
        pod: Some(("pod".to_owned(), "uid".to_owned())),
        pull_secrets: [secret.to_owned()].into(),
        ..Demand::default()
    };
    let (one, two, finished) = (living("one"), living("two"), Demand::default());
    let mut both = one.clone();
    both.pull_secrets.insert("two".to_owned());
    for (before, now, expect) in [
        (None, &one, true),
        (Some(&finished), &one, true),
        (Some(&one), &two, true),
        (Some(&one), &both, true),
        (Some(&both), &one, false),
        (Some(&one), &one, false),
        (Some(&one), &finished, false),
        (None, &finished, false),
    ] {
        assert_eq!(now.brings_more_than(before), expect, "{before:?}, {now:?}");
    }
}

#[test]
fn finished_pods_refer_but_ask_for_nothing() {
    let pods = pods(vec![("apps", "done", pod("job", false, "s"))]);
    let demand = demand(&pods, &OwnerView::new(), &namespaces(&["apps"]), &scope());
    assert!(!demand.values().next().unwrap().asks_for_copy());
}

/// Owners as the API server has them, by kind.
fn owners(list: &[(&str, Value)]) -> BTreeMap<&'static str, Objects<OwnerFacts>> {
    let mut all: BTreeMap<&'static str, Objects<OwnerFacts>> = BTreeMap::new();
    for (kind, object) in list {
        let kind = holdfast_core::workload::by_name(kind).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap();
        let facts = crate::owner_facts(kind, object, &[], &scope());
        all.entry(kind.kind)
            .or_default()
            .insert(key("apps", name), facts);
    }
    all
}

/// An object of this kind, controlled by another one, `Kind/name`; UIDs are names.
fn object(kind: &str, name: &str, above: Option<&str>, image: &str) -> (&'static str, Value) {
    let template = json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "containers": [{"name": "c", "image": image}],
            "imagePullSecrets": [{"name": format!("of-{name}")}],
            "serviceAccountName": "robot",
        },
    });
    let mut object = match kind {
        "CronJob" => {
            json!({"spec": {"suspend": true, "jobTemplate": {"spec": {"template": template}}}})
        }
        "ControllerRevision" => json!({"data": {"spec": {"template": template}}}),
        _ => json!({"spec": {"replicas": 0, "template": template}}),
    };
    object["metadata"] = json!({"name": name, "namespace": "apps", "uid": name});
    if let Some((kind, above)) = above.and_then(|above| above.split_once('/')) {
        object["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": kind, "name": above, "uid": above, "controller": true},
        ]);
    }
    let kind = holdfast_core::workload::by_name(kind).unwrap().kind;
    (kind, object)
}

const IMAGE: &str = "registry.example/app:1";

/// The demand for [`IMAGE`] in `apps`.
fn demanded(pods: &Objects<PodFacts>, list: &[(&str, Value)]) -> Option<Demand> {
    let owners = owners(list);
    let view: OwnerView<'_> = owners.iter().map(|(kind, known)| (*kind, known)).collect();
    let found = demand(pods, &view, &namespaces(&["apps"]), &scope());
    found.values().find(|found| found.source == IMAGE).cloned()
}

fn check(list: &[(&str, Value)], owners: &[&str], priority: Option<Priority>) {
    let found = demanded(&Objects::default(), list).unwrap_or_default();
    let named: Vec<_> = found
        .owners
        .iter()
        .map(|owner| format!("{}/{}", owner.kind, owner.name))
        .collect();
    assert_eq!(
        (named, found.priority()),
        (owners.iter().map(|&o| o.to_owned()).collect(), priority),
        "{list:?}"
    );
}

// SPEC 6, SPEC 41
#[test]
fn every_owner_that_may_make_pods_has_its_images_copied_ahead() {
    let ahead = Some(Priority::Prefetch);
    for kind in [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "ReplicationController",
        "Job",
        "CronJob",
    ] {
        check(
            &[object(kind, "x", None, IMAGE)],
            &[&format!("{kind}/x")],
            ahead,
        );
    }
    check(
        &[object("Deployment", "x", None, "not an image")],
        &[],
        None,
    );
}

// SPEC 6
#[test]
fn what_a_rollback_would_use_counts_for_the_uppermost_owner() {
    let ahead = Some(Priority::Prefetch);
    let other = "registry.example/app:2";
    let web = object("Deployment", "web", None, other);
    let old = object("ReplicaSet", "web-1", Some("Deployment/web"), IMAGE);
    check(&[web.clone(), old.clone()], &["Deployment/web"], ahead);
    check(&[old], &["Deployment/web"], ahead);
    for kind in ["StatefulSet", "DaemonSet"] {
        let owner = object(kind, "db", None, other);
        let revision = object(
            "ControllerRevision",
            "db-1",
            Some(&format!("{kind}/db")),
            IMAGE,
        );
        check(&[owner, revision], &[&format!("{kind}/db")], ahead);
    }
    let cron = object("CronJob", "nightly", None, other);
    let job = object("Job", "nightly-1", Some("CronJob/nightly"), IMAGE);
    check(&[cron, job], &["CronJob/nightly"], ahead);
    // A controller of its own kind above what is known.
    let managed = object("Deployment", "grafana", Some("Grafana/main"), IMAGE);
    check(&[managed], &["Grafana/main"], ahead);
}

#[test]
fn what_starts_nothing_any_more_refers_and_asks_for_nothing() {
    let mut done = object("Job", "once", None, IMAGE);
    done.1["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    check(&[done], &["Job/once"], None);
    let mut leaving = object("Deployment", "web", None, IMAGE);
    leaving.1["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let set = object("ReplicaSet", "web-1", Some("Deployment/web"), IMAGE);
    check(&[leaving, set], &["Deployment/web"], None);
}

// SPEC 35
#[test]
fn revisions_without_their_workload_open_no_pull_secrets() {
    let forged = object("ControllerRevision", "x", None, IMAGE);
    check(&[forged], &["ControllerRevision/x"], None);
    let orphan = object("ControllerRevision", "x", Some("StatefulSet/gone"), IMAGE);
    check(std::slice::from_ref(&orphan), &["StatefulSet/gone"], None);
    let mut namesake = object("StatefulSet", "gone", None, "registry.example/app:2");
    namesake.1["metadata"]["uid"] = json!("another");
    check(&[orphan.clone(), namesake], &["StatefulSet/gone"], None);
    assert!(
        demanded(&Objects::default(), &[orphan])
            .unwrap()
            .pull_secrets
            .is_empty()
    );
}

// SPEC 35
#[test]
fn templates_bring_credentials_only_where_no_pod_lives() {
    let web = object("Deployment", "web", None, IMAGE);
    let found = demanded(&Objects::default(), std::slice::from_ref(&web)).unwrap();
    assert_eq!(found.pull_secrets, ["of-web".to_owned()].into());
    assert_eq!(found.service_accounts, ["robot".to_owned()].into());
    assert_eq!(found.ahead.as_ref().unwrap().uid, "web");
    for (alive, secrets, priority) in [
        (true, "s", Priority::Running),
        (false, "of-web", Priority::Prefetch),
    ] {
        let mut facts = pod("web-1", alive, "s");
        facts.owner.uid = "web-1".to_owned();
        let set = object("ReplicaSet", "web-1", Some("Deployment/web"), IMAGE);
        let pods = pods(vec![("apps", "p", facts)]);
        let found = demanded(&pods, &[web.clone(), set]).unwrap();
        assert_eq!(found.priority(), Some(priority), "{alive}");
        assert!(found.pull_secrets.contains(secrets), "{found:?}");
        assert_eq!(found.pull_secrets.contains("s"), alive);
        assert_eq!(
            found.owners.len(),
            1,
            "pod, ReplicaSet and Deployment are one owner"
        );
    }
}

#[test]
fn a_pod_that_waits_goes_before_one_that_runs_and_that_before_templates() {
    let mut facts = pod("x", true, "s");
    facts.waiting = true;
    let pods = pods(vec![
        ("apps", "p", facts),
        ("apps", "q", pod("x", true, "s")),
    ]);
    let web = object("Deployment", "web", None, IMAGE);
    let found = demanded(&pods, &[web]).unwrap();
    assert_eq!(found.priority(), Some(Priority::Blocking));
    assert_eq!(found.owners.len(), 2);
    assert_eq!(found.ahead, None, "pods need it now");
}

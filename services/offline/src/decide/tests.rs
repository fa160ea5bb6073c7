//! What would not start, as a table of clusters.

use super::*;
use crate::answers::Answers;
use crate::judge::{Known, Start};
use crate::own::Own;
use holdfast_api::Artifact;
use holdfast_api::access::{AccessList, ImageAccess};
use holdfast_api::delivery::{Delivery, DeliveryState};
use holdfast_api::labels;
use holdfast_cluster_model::{NamespaceFacts, Scope};
use holdfast_config::{Config, FailurePolicy, HealingMode, HealingValues};
use serde_json::json;

fn scope() -> Scope {
    let document = json!({
        "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
        "values": {"sources": ["r.io", "docker.io"]},
    });
    Scope::new(&Config::parse(&document.to_string()).unwrap()).unwrap()
}

fn artifact(source: &str, reason: &str) -> Artifact {
    let status = if reason == "Copied" { "True" } else { "False" };
    serde_json::from_value(json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
        "metadata": {"name": "x", "namespace": "elsewhere", "generation": 1},
        "spec": {"sourceArtifact": source},
        "status": {"conditions": [{
            "type": "Ready", "status": status, "reason": reason, "message": "so it is", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    }))
    .unwrap()
}

/// A node whose kubelet keeps no pull records.
fn node(name: &str, images: &[&str]) -> Value {
    json!({
        "metadata": {"name": name},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "kubeletVersion": "v1.32.4", "architecture": "amd64", "bootID": "",
                "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
            },
            "images": [{"names": images}],
        },
    })
}

/// What the webhook knows, with these nodes unprepared.
fn delivery(unprepared: &[&str]) -> Delivery {
    Delivery {
        state: DeliveryState {
            unprepared: unprepared.iter().map(|node| (*node).to_owned()).collect(),
            ..DeliveryState::default()
        },
        held: ["r.io/local:1", "r.io/local:latest"].into_iter().collect(),
        ..Delivery::default()
    }
}

/// A cluster with copies of `r.io/local:1`; `r.io/refused:1` is refused.
fn cluster(objects: Vec<(&'static str, Value)>) -> Inventory {
    let mut by_kind: BTreeMap<&'static str, Vec<Value>> = BTreeMap::new();
    for (kind, object) in objects {
        by_kind.entry(kind).or_default().push(object);
    }
    let facts = |labels: &[(&str, &str)]| NamespaceFacts {
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..NamespaceFacts::default()
    };
    Inventory {
        objects: by_kind,
        namespaces: [
            ("shop".to_owned(), facts(&[])),
            (
                "out".to_owned(),
                facts(&[("holdfast.dev/rewrite", "disabled")]),
            ),
        ]
        .into(),
        artifacts: vec![
            artifact("r.io/local:1", "Copied"),
            artifact("r.io/local:latest", "Copied"),
            artifact("r.io/refused:1", "Unauthorized"),
        ],
        nodes: Some(vec![
            node("one", &["r.io/everywhere:1", "r.io/here:1"]),
            node("two", &["r.io/everywhere:1"]),
        ]),
        addresses: vec!["10.96.0.50".to_owned()],
        not_rewriting: None,
        excluded: BTreeMap::new(),
        excluded_owners: BTreeSet::new(),
        access: ImageAccess::Every,
        basis: Basis::Recorded,
        answers: Answers::default(),
        own: Own {
            registry: Known::Yes,
            controller: Known::Yes,
        },
        account_secrets: None,
        lost: None,
        delivery: Some(delivery(&[])),
        healing: HealingValues::default(),
        failure_policy: FailurePolicy::Ignore,
        scope: scope(),
        not_judged: Vec::new(),
    }
}

fn spec(image: &str, policy: Option<&str>) -> Value {
    let mut container = json!({"name": "c", "image": image});
    if let Some(policy) = policy {
        container["imagePullPolicy"] = json!(policy);
    }
    json!({"containers": [container]})
}

fn deployment(namespace: &str, name: &str, spec: &Value) -> (&'static str, Value) {
    let object = json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}")},
        "spec": {"replicas": 0, "template": {"spec": spec}},
    });
    ("Deployment", object)
}

fn owned(kind: &str, name: &str) -> Value {
    json!([{"kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true}])
}

fn pod(name: &str, spec: &Value) -> (&'static str, Value) {
    (
        "Pod",
        json!({"metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")}, "spec": spec}),
    )
}

/// Judges one image of a Deployment.
fn check(image: &str, policy: Option<&str>, expect: Verdict, why: &str) {
    let answer = decide(&cluster(vec![deployment(
        "shop",
        "web",
        &spec(image, policy),
    )]));
    let found = &answer.owners[0].images[0];
    assert_eq!(found.verdict, expect, "{image} {policy:?}: {found:?}");
    assert!(found.why.contains(why), "{image}: {found:?}");
}

// SPEC 12
#[test]
fn an_image_is_there_when_the_registry_or_every_node_holds_it() {
    use Verdict::{Local, Missing, NotJudged, OnNodes};
    let some = Some("IfNotPresent");
    check("r.io/local:1", some, Local, "");
    check("r.io/local:1", Some("Always"), Local, "");
    check("r.io/local", None, Local, "");
    check("10.96.0.50/r.io/local:1", some, Local, "");
    check("10.96.0.50/pushed/app:1", some, NotJudged, "pushed image");
    check(
        "10.96.0.50/r.io/refused:1",
        some,
        Missing,
        "Unauthorized: so it is",
    );
    check("r.io/refused:1", some, Missing, "Unauthorized: so it is");
    check("r.io/unknown:1", some, Missing, "no Artifact");
    check("not valid", some, Missing, "cannot be read");
    check("r.io/unknown:1", Some("Never"), Missing, "policy is Never");
    // If its pods are rewritten, healing restores the name under which the nodes hold it.
    check("r.io/everywhere:1", some, OnNodes, "the upstream's");
    check("r.io/everywhere:1", Some("Always"), Missing, "no Artifact");
    check("r.io/here:1", some, Missing, "no Artifact");
    check("other.example/app:1", some, Missing, "leaves it out");
}

#[test]
fn what_holdfast_leaves_alone_is_said_and_may_be_ignored() {
    let answer = decide(&cluster(vec![deployment(
        "out",
        "web",
        &spec("r.io/local:1", None),
    )]));
    let image = &answer.owners[0].images[0];
    assert_eq!((image.verdict, image.covered), (Verdict::Missing, false));
    assert!(image.why.contains("pulled from r.io"), "{image:?}");
    assert_eq!(answer.answer(false), Answer::No);
    assert_eq!(answer.answer(true), Answer::Yes);

    let (kind, mut object) = deployment("shop", "web", &spec("r.io/local:1", None));
    object["spec"]["template"]["metadata"] =
        json!({"labels": {"holdfast.dev/rewrite": "disabled"}});
    let answer = decide(&cluster(vec![(kind, object)]));
    assert!(answer.owners[0].images[0].why.contains("opt out"));
}

#[test]
fn what_a_policy_keeps_from_the_registry_is_missing_though_it_is_local() {
    let mut inventory = cluster(vec![deployment("shop", "web", &spec("r.io/local:1", None))]);
    let by = "ValidatingAdmissionPolicy ours".to_owned();
    inventory.excluded = [("shop".to_owned(), by.clone())].into();
    let answer = decide(&inventory);
    let image = &answer.owners[0].images[0];
    assert_eq!(image.verdict, Verdict::Missing);
    assert!(image.why.contains(&by), "{image:?}");
    assert_eq!(answer.answer(true), Answer::No);
}

#[test]
fn pods_of_an_owner_that_compares_images_keep_them() {
    let (_, mut living) = pod("web-1-a", &spec("r.io/local:1", Some("IfNotPresent")));
    living["metadata"]["ownerReferences"] = owned("ReplicaSet", "web-1");
    let (kind, mut set) = deployment("shop", "web-1", &spec("r.io/local:1", Some("IfNotPresent")));
    set["metadata"]["ownerReferences"] = owned("Deployment", "web");
    let template = spec("r.io/local:1", Some("IfNotPresent"));
    let objects = vec![
        (kind, deployment("shop", "web", &template).1),
        ("ReplicaSet", set),
        ("Pod", living),
    ];
    let mut inventory = cluster(objects);
    assert_eq!(only(&inventory).verdict, Verdict::Local);
    let key = |kind: &str, name: &str| ("shop".to_owned(), kind.to_owned(), name.to_owned());
    inventory.excluded_owners = [key("ReplicaSet", "web-1")].into();
    let image = only(&inventory);
    assert_eq!(image.start, Start::WouldNot);
    assert!(image.why.contains("their owner deletes"), "{image:?}");
}

#[test]
fn what_a_namespace_may_not_have_is_missing_though_it_is_local() {
    let mut inventory = cluster(vec![deployment("shop", "web", &spec("r.io/local:1", None))]);
    for (namespace, expect) in [("other", Verdict::Missing), ("shop", Verdict::Local)] {
        let own = ["r.io/local".to_owned()].into();
        let list = AccessList {
            namespaces: [(namespace.to_owned(), own)].into(),
            ..AccessList::default()
        };
        inventory.access = ImageAccess::Listed(std::sync::Arc::new(list));
        let answer = decide(&inventory);
        let image = &answer.owners[0].images[0];
        assert_eq!(image.verdict, expect, "{image:?}");
        let why = image.why.contains("access.privateImages");
        assert_eq!(why, expect == Verdict::Missing, "{image:?}");
    }
}

#[test]
fn while_nothing_is_rewritten_a_copy_helps_only_pods_that_are() {
    let mut inventory = cluster(vec![
        deployment("shop", "web", &spec("r.io/local:1", None)),
        pod("old", &spec("10.96.0.50/r.io/local:1", None)),
    ]);
    inventory.not_rewriting = Some("node two is not prepared".to_owned());
    let answer = decide(&inventory);
    let verdicts: Vec<_> = answer
        .owners
        .iter()
        .map(|owner| (owner.name.as_str(), owner.images[0].verdict))
        .collect();
    assert_eq!(
        verdicts,
        [("web", Verdict::Missing), ("old", Verdict::Local)]
    );
    assert!(answer.owners[0].images[0].why.contains("node two"));
}

#[test]
fn pods_count_for_their_highest_owner_with_what_was_put_into_them() {
    let (_, mut set) = deployment("shop", "web-1", &spec("r.io/local:1", None));
    set["metadata"]["ownerReferences"] = owned("Deployment", "web");
    let (_, mut living) = pod("web-1-a", &spec("10.96.0.50/r.io/local:1", None));
    living["metadata"]["ownerReferences"] = owned("ReplicaSet", "web-1");
    living["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "proxy", "image": "r.io/injected:1"}));
    let (_, mut foreign) = pod("db-0", &spec("r.io/local:1", None));
    foreign["metadata"]["ownerReferences"] = owned("PodSet", "db");
    let answer = decide(&cluster(vec![
        deployment("shop", "web", &spec("r.io/local:1", None)),
        ("ReplicaSet", set),
        ("Pod", living),
        ("Pod", foreign),
    ]));
    let found: Vec<_> = answer
        .owners
        .iter()
        .map(|owner| {
            let images: Vec<_> = owner
                .images
                .iter()
                .map(|image| (image.image.as_str(), image.verdict))
                .collect();
            (owner.kind.as_str(), owner.name.as_str(), images)
        })
        .collect();
    assert_eq!(
        found,
        [
            (
                "Deployment",
                "web",
                vec![
                    ("r.io/local:1", Verdict::Local),
                    ("r.io/injected:1", Verdict::Missing)
                ]
            ),
            ("PodSet", "db", vec![("r.io/local:1", Verdict::Local)]),
        ]
    );
}

#[test]
fn a_malformed_reference_is_judged_by_its_repair() {
    check("https://r.io/local:1", None, Verdict::Local, "");
    check("https://r.io/refused:1", None, Verdict::Missing, "so it is");
    check("r.io/local:", None, Verdict::Missing, "cannot be read");
}

#[test]
fn a_pod_of_another_cluster_is_judged_by_its_original() {
    let (_, mut restored) = pod("restored", &spec("10.1.2.3/r.io/local:1", None));
    let originals = json!({"containers/c": "r.io/local:1"}).to_string();
    restored["metadata"]["annotations"] = json!({labels::ORIGINAL_IMAGES: originals});
    let answer = decide(&cluster(vec![("Pod", restored)]));
    let image = &answer.owners[0].images[0];
    assert_eq!(
        (image.image.as_str(), image.verdict),
        ("r.io/local:1", Verdict::Local)
    );
}

#[test]
fn a_word_of_another_webhook_is_unknown_until_a_pod_shows_the_image() {
    let (kind, gateway) = deployment("shop", "gateway", &spec("auto", None));
    let answer = decide(&cluster(vec![(kind, gateway.clone())]));
    assert_eq!(answer.owners[0].images[0].verdict, Verdict::NotJudged);
    assert_eq!(answer.answer(false), Answer::Unknown);
    let (_, mut living) = pod("gateway-1-a", &spec("10.96.0.50/r.io/local:1", None));
    living["metadata"]["ownerReferences"] = owned("Deployment", "gateway");
    let answer = decide(&cluster(vec![(kind, gateway), ("Pod", living)]));
    let images: Vec<_> = answer.owners[0]
        .images
        .iter()
        .map(|image| (image.image.as_str(), image.verdict))
        .collect();
    assert_eq!(images, [("r.io/local:1", Verdict::Local)]);
    let answer = decide(&cluster(vec![pod("stuck", &spec("auto", None))]));
    assert_eq!(answer.answer(false), Answer::No);
}

#[test]
fn windows_pods_are_not_judged() {
    let mut windows = spec("r.io/unknown:1", None);
    windows["os"] = json!({"name": "windows"});
    let answer = decide(&cluster(vec![
        deployment("shop", "web", &windows),
        pod("bare", &windows),
    ]));
    assert!(answer.owners.is_empty(), "{answer:?}");
}

#[test]
fn what_has_ended_is_not_judged() {
    let (_, mut finished) = pod("done", &spec("r.io/unknown:1", None));
    finished["status"] = json!({"phase": "Succeeded"});
    let (_, mut job) = deployment("shop", "job", &spec("r.io/unknown:1", None));
    job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    let answer = decide(&cluster(vec![("Pod", finished), ("Job", job)]));
    assert!(answer.owners.is_empty(), "{answer:?}");
    assert_eq!(answer.answer(false), Answer::Yes);
}

#[test]
fn a_bare_pod_is_judged_by_its_own_node() {
    let bound = |node: &str| {
        let mut spec = spec("r.io/here:1", Some("IfNotPresent"));
        spec["nodeName"] = json!(node);
        decide(&cluster(vec![pod("bare", &spec)])).owners[0].images[0].verdict
    };
    assert_eq!(bound("one"), Verdict::OnNodes);
    assert_eq!(bound("two"), Verdict::Missing);
}

#[test]
fn what_could_not_be_seen_is_no_success() {
    let mut inventory = cluster(Vec::new());
    inventory.not_judged = vec!["cronjobs".to_owned()];
    assert_eq!(decide(&inventory).answer(false), Answer::Unknown);
}

#[test]
fn without_the_nodes_only_what_they_cannot_change_is_judged() {
    use Verdict::{Local, Missing, NotJudged};
    let some = Some("IfNotPresent");
    for (image, policy, verdict, answer) in [
        ("r.io/local:1", some, Local, Answer::Yes),
        ("r.io/everywhere:1", some, NotJudged, Answer::Unknown),
        ("r.io/refused:1", some, NotJudged, Answer::Unknown),
        ("other.example/app:1", some, NotJudged, Answer::Unknown),
        ("r.io/everywhere:1", Some("Always"), Missing, Answer::No),
        (
            "r.io/everywhere:1",
            Some("Never"),
            NotJudged,
            Answer::Unknown,
        ),
    ] {
        let owner = deployment("shop", "web", &spec(image, policy));
        let mut inventory = cluster(vec![owner]);
        inventory.nodes = None;
        let judgement = decide(&inventory);
        let found = &judgement.owners[0].images[0];
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert_eq!(judgement.answer(false), answer, "{found:?}");
        let says_why = found.why.contains("nodes may not be listed");
        assert_eq!(says_why, verdict == NotJudged, "{found:?}");
    }
    let owner = deployment("out", "web", &spec("r.io/local:1", some));
    let mut inventory = cluster(vec![owner]);
    inventory.nodes = None;
    let judgement = decide(&inventory);
    assert_eq!(judgement.answer(false), Answer::Unknown);
    assert_eq!(judgement.answer(true), Answer::Yes, "it is not covered");
}

/// A stored pod of `shop` on a node.
fn bound(image: &str, node: &str) -> Value {
    let mut spec = spec(image, Some("IfNotPresent"));
    spec["nodeName"] = json!(node);
    pod("bound", &spec).1
}

/// The one image of the one owner.
fn only(inventory: &Inventory) -> Image {
    let mut judgement = decide(inventory);
    let mut owner = judgement.owners.pop().unwrap();
    assert!(
        judgement.owners.is_empty() && owner.images.len() == 1,
        "{owner:?}"
    );
    owner.images.pop().unwrap()
}

#[test]
fn static_pods_are_judged_by_their_node_alone() {
    for (node, expect) in [("one", Start::Starts), ("two", Start::WouldNot)] {
        let mut object = bound("r.io/here:1", node);
        object["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        object["metadata"]["ownerReferences"] =
            json!([{"kind": "Node", "name": node, "uid": "n", "controller": true}]);
        let inventory = cluster(vec![("Pod", object)]);
        assert_eq!(decide(&inventory).owners[0].kind, "Pod");
        let image = only(&inventory);
        assert_eq!((image.start, image.covered), (expect, false), "{image:?}");
    }
}

#[test]
fn a_rewritten_pod_starts_where_its_node_has_the_local_name() {
    let local = "10.96.0.50/r.io/unknown:1";
    let mut inventory = cluster(vec![("Pod", bound(local, "one"))]);
    assert_eq!(only(&inventory).start, Start::WouldNot);
    inventory.nodes = Some(vec![node("one", &[local]), node("two", &[])]);
    let image = only(&inventory);
    assert_eq!(
        (image.start, image.verdict),
        (Start::Starts, Verdict::OnNodes)
    );
}

#[test]
fn a_node_with_pull_records_is_never_a_yes() {
    let mut new = node("one", &["r.io/here:1"]);
    new["status"]["nodeInfo"]["kubeletVersion"] = json!("v1.36.3");
    let mut inventory = cluster(vec![("Pod", bound("r.io/here:1", "one"))]);
    inventory.nodes = Some(vec![new]);
    let image = only(&inventory);
    assert_eq!(
        (image.start, image.verdict),
        (Start::Unknown, Verdict::NotJudged)
    );
    assert!(image.why.contains("pull records"), "{image:?}");
    assert_eq!(image.candidates.unknown, ["one"]);
    // New pods have the other name, of which the node has nothing, and healing restores this one.
    let owner = deployment("shop", "web", &spec("r.io/here:1", Some("IfNotPresent")));
    inventory.objects = cluster(vec![owner]).objects;
    assert_eq!(only(&inventory).start, Start::Unknown);
    inventory.healing.mode = HealingMode::None;
    assert_eq!(
        only(&inventory).start,
        Start::Unknown,
        "the webhook may keep the original"
    );
}

#[test]
fn a_pod_with_its_original_starts_after_healing_if_healing_may_change_it() {
    let healed = || cluster(vec![("Pod", bound("r.io/local:1", "one"))]);
    let image = only(&healed());
    assert_eq!(
        (image.start, image.verdict),
        (Start::StartsHealed, Verdict::Local)
    );
    assert!(image.why.contains("healing"), "{image:?}");
    let mut off = healed();
    off.healing.mode = HealingMode::None;
    assert_eq!(only(&off).start, Start::WouldNot);
    let mut unprepared = healed();
    unprepared.delivery = Some(delivery(&["one"]));
    assert_eq!(only(&unprepared).start, Start::WouldNot);
    let mut volume = bound("r.io/local:1", "one");
    volume["spec"]["containers"] = json!([]);
    volume["spec"]["volumes"] = json!([{"name": "v", "image": {"reference": "r.io/local:1"}}]);
    let bare = cluster(vec![("Pod", volume.clone())]);
    assert_eq!(only(&bare).start, Start::WouldNot);
    // Its owner makes a new pod after an eviction, if budgets and limits allow that.
    volume["metadata"]["ownerReferences"] = owned("PodSet", "web");
    let image = only(&cluster(vec![("Pod", volume)]));
    assert_eq!(image.start, Start::Unknown);
    assert!(image.why.contains("may not evict"), "{image:?}");
}

#[test]
fn an_image_volume_of_a_new_pod_needs_the_webhook() {
    let volume = json!({"volumes": [{"name": "v", "image": {"reference": "r.io/local:1"}}]});
    let mut inventory = cluster(vec![deployment("shop", "web", &volume)]);
    let image = only(&inventory);
    assert_eq!(image.start, Start::Unknown);
    assert!(image.why.contains("webhook does not answer"), "{image:?}");
    inventory.failure_policy = FailurePolicy::Fail;
    assert_eq!(only(&inventory).start, Start::Starts);
}

#[test]
fn an_opted_out_image_starts_on_the_nodes_that_hold_it() {
    let some = Some("IfNotPresent");
    let on = |image: &str| cluster(vec![deployment("out", "web", &spec(image, some))]);
    assert_eq!(only(&on("r.io/everywhere:1")).verdict, Verdict::OnNodes);
    let image = only(&on("r.io/here:1"));
    assert_eq!(
        (image.start, image.verdict),
        (Start::OnlyOn, Verdict::Missing)
    );
    assert_eq!(image.candidates.starts, ["one"]);
    assert!(image.why.ends_with("it starts on one only"), "{image:?}");
    assert!(!image.fix.is_empty());
    // The pods of a DaemonSet also run on cordoned nodes.
    let mut cordoned = on("r.io/here:1");
    cordoned.nodes.as_mut().unwrap()[1]["spec"] = json!({"unschedulable": true});
    assert_eq!(only(&cordoned).start, Start::Starts);
    let set = cordoned.objects.remove("Deployment").unwrap();
    cordoned.objects.insert("DaemonSet", set);
    assert_eq!(only(&cordoned).start, Start::OnlyOn);
}

#[test]
fn a_pushed_image_is_there_once_a_pod_started_from_it() {
    let pushed = "10.96.0.50/pushed/app:1";
    let mut running = bound(pushed, "two");
    assert_eq!(
        only(&cluster(vec![("Pod", running.clone())])).start,
        Start::Unknown
    );
    running["status"] = json!({"containerStatuses": [{"name": "c", "imageID": "sha256:a"}]});
    let image = only(&cluster(vec![("Pod", running)]));
    assert_eq!(
        (image.start, image.verdict),
        (Start::Starts, Verdict::Local)
    );
}

#[test]
fn an_owner_is_as_well_off_as_the_worst_of_its_pods() {
    let mut old = bound("r.io/local:1", "one");
    old["metadata"]["ownerReferences"] = owned("Deployment", "web");
    let template = spec("r.io/local:1", Some("IfNotPresent"));
    let mut inventory = cluster(vec![deployment("shop", "web", &template), ("Pod", old)]);
    assert_eq!(only(&inventory).start, Start::StartsHealed);
    inventory.objects.remove("Pod");
    assert_eq!(only(&inventory).start, Start::Starts);
}

mod asked;

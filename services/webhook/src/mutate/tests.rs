//! The rewrite of a pod in single aspects, and its properties; `matrix` holds them against each
//! other.

use super::*;
use crate::rules::Configured;
use holdfast_api::state::ClusterState;
use holdfast_core::UpstreamFilter;
use proptest::prelude::*;

const ADDRESS: &str = "10.96.0.50";
const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(super) fn rules() -> Rules {
    rules_with_sources(&[])
}

fn rules_with_sources(sources: &[&str]) -> Rules {
    let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
    let state = ClusterState {
        registry_address: ADDRESS.to_owned(),
        aliases: vec!["10.96.0.9".to_owned(), "[fd00::9]".to_owned()],
        rewrite: true,
        ..ClusterState::default()
    };
    let configured = Configured {
        upstreams: UpstreamFilter::new(&sources, Vec::new()),
        ..Configured::default()
    };
    Rules::new(configured, Some(&state))
}

pub(super) fn pod(image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "p", "namespace": "team" },
        "spec": { "containers": [{ "name": "c", "image": image, "imagePullPolicy": "IfNotPresent", "future": {"x": [1]} }] },
    })
}

fn apply(pod: &Value, mutation: &Mutation) -> Value {
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &mutation.patch).unwrap();
    patched
}

pub(super) fn create(pod: &Value) -> Mutation {
    create_with(pod, &rules())
}

pub(super) fn create_with(pod: &Value, rules: &Rules) -> Mutation {
    mutate(pod, None, Request::Create, rules)
}

fn annotation(pod: &Value) -> Value {
    pod::annotated_originals(pod).unwrap_or_default()
}

/// A new pod with this image gets that one; `None` where it keeps its own.
fn check(image: &str, expect: Option<&str>) {
    let before = pod(image);
    let mutation = create(&before);
    let after = apply(&before, &mutation);
    let expected = expect.map_or_else(|| image.to_owned(), |local| format!("{ADDRESS}/{local}"));
    assert_eq!(
        after["spec"]["containers"][0]["image"],
        json!(expected),
        "{image}"
    );
    assert_eq!(mutation.patch.is_empty(), expect.is_none(), "{image}");
}

// SPEC 5, SPEC 8
#[test]
fn every_form_of_a_reference_is_rewritten() {
    check("nginx", Some("docker.io/library/nginx:latest"));
    check("nginx:1.27", Some("docker.io/library/nginx:1.27"));
    check("team/app", Some("docker.io/team/app:latest"));
    check("docker.io/nginx", Some("docker.io/library/nginx:latest"));
    check("index.docker.io/team/app:1", Some("docker.io/team/app:1"));
    check(
        "registry.example/team/app:1",
        Some("registry.example/team/app:1"),
    );
    check(
        "registry.example:5000/app:1",
        Some("registry.example_5000/app:1"),
    );
    check("registry:5000/app:1", Some("registry_5000/app:1"));
    check("192.0.2.1/app:1", Some("192.0.2.1/app:1"));
    check("192.0.2.1:80/app:1", Some("192.0.2.1_80/app:1"));
    check(
        "[2001:db8::1]:5000/app:1",
        Some("2001-db8-0-0-0-0-0-1.ipv6-literal.net_5000/app:1"),
    );
    check("Registry.Example/app:V1", Some("registry.example/app:V1"));
    check(
        &format!("app@sha256:{HEX}"),
        Some(&format!("docker.io/library/app@sha256:{HEX}")),
    );
    check(
        &format!("registry.example:5000/app:1@sha256:{HEX}"),
        Some(&format!("registry.example_5000/app:1@sha256:{HEX}")),
    );
}

// SPEC 45
#[test]
fn malformed_references_are_repaired() {
    check(
        "https://registry.example/app:1",
        Some("registry.example/app:1"),
    );
    check(
        "registry.example//team//app:1",
        Some("registry.example/team/app:1"),
    );
    check(" nginx:1 ", Some("docker.io/library/nginx:1"));
    check("registry.example/app/", Some("registry.example/app:latest"));
    check(
        "registry.example/Team/App:1",
        Some("registry.example/team/app:1"),
    );
}

// SPEC 45
#[test]
fn malformed_references_stay_with_a_warning() {
    for image in [
        "nginx:",
        "https://nginx",
        "{{ image }}",
        "a b",
        "UPPER/app",
        &"x/".repeat(5000),
    ] {
        check(image, None);
        let mutation = create(&pod(image));
        assert_eq!(mutation.skipped, [SkipReason::Malformed], "{image}");
        assert_eq!(mutation.warnings.len(), 1, "{image}");
        assert!(mutation.warnings[0].len() < 256, "{}", mutation.warnings[0]);
        assert!(mutation.images.is_empty());
    }
    let too_long = format!("registry.example/{}", "a".repeat(250));
    let mutation = create(&pod(&too_long));
    assert_eq!(mutation.skipped, [SkipReason::TooLong]);
    assert_eq!(mutation.warnings.len(), 1);
    let repaired = create(&pod("https://registry.example/app:1"));
    assert!(
        repaired.warnings[0].contains("read as"),
        "{:?}",
        repaired.warnings
    );
}

#[test]
fn a_prefix_is_never_doubled() {
    for address in [
        ADDRESS,
        "10.96.0.50:443",
        "10.96.0.50:5000",
        "10.96.0.9",
        "[fd00::9]",
        "[FD00:0::9]:5000",
    ] {
        let image = format!("{address}/docker.io/library/nginx:1");
        check(&image, None);
        let mutation = create(&pod(&image));
        assert_eq!(mutation.skipped, [SkipReason::AlreadyLocal]);
        let images: Vec<String> = mutation.images.iter().map(ToString::to_string).collect();
        assert_eq!(
            images,
            ["docker.io/library/nginx:1"],
            "it is announced all the same"
        );
    }
    check("10.96.0.50/holdfast/probe:1", None);
    check("https://10.96.0.50/docker.io/library/nginx:1", None);
    check("10.96.0.51/app:1", Some("10.96.0.51/app:1"));
}

#[test]
fn a_refused_namespace_keeps_its_images_and_they_are_announced() {
    let entry = json!({"namespace": "team", "source": "*", "reason": "a policy", "since": "2026-01-01T00:00:00Z"});
    let state = ClusterState {
        registry_address: ADDRESS.to_owned(),
        rewrite: true,
        excluded: vec![serde_json::from_value(entry).unwrap()],
        ..ClusterState::default()
    };
    let rules = Rules::new(Configured::default(), Some(&state));
    let mutation = mutate(
        &pod("registry.example/app:1"),
        None,
        Request::Create,
        &rules,
    );
    assert_eq!(mutation.skipped, [SkipReason::Refused]);
    assert!(mutation.patch.is_empty());
    assert_eq!(mutation.images.len(), 1, "it is announced all the same");
    let mut elsewhere = pod("registry.example/app:1");
    elsewhere["metadata"]["namespace"] = json!("other");
    let mutation = mutate(&elsewhere, None, Request::Create, &rules);
    assert_eq!(mutation.rewritten, 1);
}

#[test]
fn images_that_only_the_node_has_are_not_rewritten() {
    check("localhost/app:1", None);
    check("127.0.0.1:5000/app:1", None);
    let mut never = pod("nginx");
    never["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    let mutation = create(&never);
    assert!(mutation.patch.is_empty() && mutation.images.is_empty());
    assert_eq!(mutation.skipped, [SkipReason::PullNever]);
}

// SPEC 11
#[test]
fn upstreams_that_sources_exclude_are_not_rewritten() {
    let rules = rules_with_sources(&["registry.example", "*.azurecr.io"]);
    for (image, expect) in [
        ("registry.example/app:1", true),
        ("team.azurecr.io/app:1", true),
        ("nginx", false),
        ("registry.example:5000/app:1", false),
    ] {
        let mutation = mutate(&pod(image), None, Request::Create, &rules);
        assert_eq!(!mutation.patch.is_empty(), expect, "{image}");
        assert_eq!(!mutation.images.is_empty(), expect, "{image}");
        assert!(mutation.warnings.is_empty(), "{image}");
    }
}

#[test]
fn whole_pods_that_are_skipped() {
    let with = |pointer: &str, key: &str, value: &str| {
        let mut pod = pod("nginx");
        pod["metadata"][pointer] = json!({ key: value });
        pod
    };
    for (pod, reason) in [
        (
            with("labels", "holdfast.dev/rewrite", "disabled"),
            Some(SkipReason::OptedOut),
        ),
        (with("labels", "holdfast.dev/rewrite", "enabled"), None),
        (
            with("annotations", "kubernetes.io/config.mirror", "x"),
            Some(SkipReason::Mirror),
        ),
        (
            with("labels", "app.kubernetes.io/part-of", "holdfast"),
            Some(SkipReason::OwnPlatform),
        ),
        (
            with("labels", "app.kubernetes.io/name", "holdfast"),
            Some(SkipReason::OwnPlatform),
        ),
        (with("labels", "app.kubernetes.io/part-of", "shop"), None),
    ] {
        let mutation = create(&pod);
        assert_eq!(mutation.skipped.first().copied(), reason, "{pod}");
        assert_eq!(mutation.patch.is_empty(), reason.is_some(), "{pod}");
        assert_eq!(mutation.images.is_empty(), reason.is_some(), "{pod}");
    }
}

// SPEC 1
#[test]
fn nothing_is_rewritten_before_the_state_says_so() {
    let off = ClusterState {
        registry_address: ADDRESS.to_owned(),
        ..ClusterState::default()
    };
    for state in [None, Some(&off)] {
        let rules = Rules::new(Configured::default(), state);
        let mutation = mutate(&pod("nginx"), None, Request::Create, &rules);
        assert!(mutation.patch.is_empty() && mutation.images.is_empty());
        assert_eq!(mutation.skipped, [SkipReason::NotRewriting]);
    }
}

/// A pod with an image in every place.
fn full_pod() -> Value {
    json!({
        "metadata": { "name": "p", "annotations": { "other": "kept" } },
        "spec": {
            "containers": [{ "name": "a", "image": "nginx" }, { "name": "b", "image": "registry.example:5000/b:1" }],
            "initContainers": [{ "name": "i", "image": "busybox:1", "restartPolicy": "Always" }],
            "ephemeralContainers": [{ "name": "e", "image": "debug:1" }],
            "volumes": [
                { "name": "plain", "emptyDir": {} },
                { "name": "v", "image": { "reference": "registry.example/data:1", "pullPolicy": "Always" } }
            ],
        },
    })
}

// SPEC 5, SPEC 6
#[test]
fn a_new_pod_is_rewritten_in_containers_init_containers_and_image_volumes() {
    let before = full_pod();
    let mutation = create(&before);
    let after = apply(&before, &mutation);
    let mut expected = before;
    expected["spec"]["containers"][0]["image"] = json!("10.96.0.50/docker.io/library/nginx:latest");
    expected["spec"]["containers"][1]["image"] = json!("10.96.0.50/registry.example_5000/b:1");
    expected["spec"]["initContainers"][0]["image"] =
        json!("10.96.0.50/docker.io/library/busybox:1");
    expected["spec"]["volumes"][1]["image"]["reference"] =
        json!("10.96.0.50/registry.example/data:1");
    expected["metadata"]["annotations"][labels::ORIGINAL_IMAGES] =
        after["metadata"]["annotations"][labels::ORIGINAL_IMAGES].clone();
    assert_eq!(after, expected);
    assert_eq!(
        annotation(&after),
        json!({
            "volumes/v": "registry.example/data:1",
            "initContainers/i": "busybox:1",
            "containers/a": "nginx",
            "containers/b": "registry.example:5000/b:1",
        })
    );
    let mut images: Vec<String> = mutation.images.iter().map(ToString::to_string).collect();
    images.sort();
    assert_eq!(
        images,
        [
            "docker.io/library/busybox:1",
            "docker.io/library/nginx:latest",
            "registry.example/data:1",
            "registry.example:5000/b:1",
        ]
    );
    assert_eq!(mutation.rewritten, 4);
}

#[test]
fn ephemeral_containers_are_rewritten_without_an_annotation() {
    let before = full_pod();
    let mut old = before.clone();
    old["spec"]["ephemeralContainers"] = json!([]);
    let mutation = mutate(&before, Some(&old), Request::Ephemeral, &rules());
    assert_eq!(
        serde_json::to_value(&mutation.patch).unwrap(),
        json!([{ "op": "replace", "path": "/spec/ephemeralContainers/0/image", "value": "10.96.0.50/docker.io/library/debug:1" }])
    );
    // One that runs already cannot change.
    let again = mutate(&before, Some(&before), Request::Ephemeral, &rules());
    assert!(again.patch.is_empty());
}

#[test]
fn an_update_touches_only_what_it_changes() {
    let old = full_pod();
    let unchanged = mutate(&old, Some(&old), Request::Update, &rules());
    assert_eq!(unchanged, Mutation::default());
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = json!("nginx:2");
    new["spec"]["volumes"][1]["image"]["reference"] = json!("registry.example/data:2");
    new["spec"]["ephemeralContainers"][0]["image"] = json!("debug:2");
    let mutation = mutate(&new, Some(&old), Request::Update, &rules());
    let after = apply(&new, &mutation);
    new["spec"]["containers"][0]["image"] = json!("10.96.0.50/docker.io/library/nginx:2");
    new["metadata"]["annotations"][labels::ORIGINAL_IMAGES] =
        json!(r#"{"containers/a":"nginx:2"}"#);
    assert_eq!(after, new);
}

#[test]
fn an_existing_annotation_is_merged() {
    let key = labels::ORIGINAL_IMAGES;
    for (existing, expect) in [
        (
            json!({ key: r#"{"containers/x":"x:1","containers/c":"old"}"# }),
            json!({"containers/x": "x:1", "containers/c": "nginx"}),
        ),
        (json!({ key: "not json" }), json!({"containers/c": "nginx"})),
        (json!({ key: "[1]" }), json!({"containers/c": "nginx"})),
        (json!({}), json!({"containers/c": "nginx"})),
        (json!(null), json!({"containers/c": "nginx"})),
    ] {
        let mut before = pod("nginx");
        before["metadata"]["annotations"] = existing.clone();
        let after = apply(&before, &create(&before));
        assert_eq!(annotation(&after), expect, "{existing}");
    }
    let mut bare = pod("nginx");
    bare.as_object_mut().unwrap().remove("metadata");
    assert_eq!(
        annotation(&apply(&bare, &create(&bare))),
        json!({"containers/c": "nginx"})
    );
}

#[test]
fn annotations_never_exceed_what_the_api_server_accepts() {
    let mut before = pod("nginx");
    before["metadata"]["annotations"] = json!({ "big": "x".repeat(MAX_ANNOTATIONS_BYTES - 50) });
    let mutation = create(&before);
    assert_eq!(mutation.patch.len(), 1, "the image alone");
    assert_eq!(apply(&before, &mutation)["metadata"], before["metadata"]);
}

#[test]
fn the_same_image_is_announced_once() {
    let before = json!({ "spec": { "containers": [
        { "name": "a", "image": "nginx" }, { "name": "b", "image": "docker.io/library/nginx:latest" } ] } });
    assert_eq!(create(&before).images.len(), 1);
}

#[test]
fn shapes_that_are_no_pod_change_nothing() {
    for value in [
        json!(null),
        json!([]),
        json!({"spec": null}),
        json!({"spec": {"containers": "x"}}),
        json!({"spec": {"containers": [null, 1, {"name": "a"}, {"image": 3}, {"image": ""}]}}),
        json!({"spec": {"volumes": [{"name": "v", "image": "text"}]}}),
    ] {
        assert_eq!(create(&value), Mutation::default(), "{value}");
    }
}

fn image() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,5}(:[a-z0-9.]{1,4})?",
        "[a-z]{1,5}\\.example(:[1-9][0-9]{1,3})?/[a-z]{1,5}(/[a-z]{1,5})?(:[a-z0-9]{1,4})?",
        "(https?://)?[A-Za-z.]{1,9}//?[A-Za-z]{1,6}/?(:[0-9]{0,3})?",
        "10\\.96\\.0\\.(50|9)(:5000)?/docker\\.io/library/[a-z]{1,4}:1",
        "\\PC{0,12}",
    ]
}

fn any_pod() -> impl Strategy<Value = Value> {
    let containers = |prefix: &'static str| {
        prop::collection::vec((image(), prop::option::of(Just("Never"))), 0..3).prop_map(move |images| {
            let entries = images.into_iter().enumerate().map(|(index, (image, policy))| {
                json!({ "name": format!("{prefix}{index}"), "image": image, "imagePullPolicy": policy, "unknown": index })
            });
            Value::Array(entries.collect())
        })
    };
    let volumes = prop::collection::vec(image(), 0..2).prop_map(|images| {
        let entries = images.into_iter().enumerate();
        Value::Array(entries.map(|(index, image)| json!({ "name": format!("v{index}"), "image": { "reference": image } })).collect())
    });
    let annotations = prop_oneof![
        Just(json!(null)),
        Just(json!({})),
        Just(json!({ "other": "x", labels::ORIGINAL_IMAGES: "{\"containers/gone\":\"x:1\"}" })),
    ];
    (containers("c"), containers("i"), volumes, annotations).prop_map(|(containers, init, volumes, annotations)| {
        json!({
            "metadata": { "annotations": annotations, "future": { "deep": [1, { "x": null }] } },
            "spec": { "containers": containers, "initContainers": init, "volumes": volumes, "unknown": true },
        })
    })
}

/// The pod without what the webhook may touch.
fn rest(pod: &Value) -> Value {
    let mut rest = pod.clone();
    for image in pod::images(pod) {
        *rest.pointer_mut(&image.pointer).unwrap() = Value::Null;
    }
    if let Some(annotations) = rest["metadata"]["annotations"].as_object_mut() {
        annotations.remove(labels::ORIGINAL_IMAGES);
        annotations.remove(labels::IMAGE_HISTORY);
    }
    if rest["metadata"]["annotations"] == json!({}) {
        rest["metadata"]["annotations"] = Value::Null;
    }
    rest
}

proptest! {
    // SPEC 5
    #[test]
    fn a_second_run_changes_nothing(pod in any_pod()) {
        let after = apply(&pod, &create(&pod));
        prop_assert!(create(&after).patch.is_empty());
        prop_assert!(mutate(&after, Some(&pod), Request::Update, &rules()).patch.is_empty());
        prop_assert_eq!(mutate(&after, Some(&after), Request::Update, &rules()), Mutation::default());
    }

    // SPEC 8
    #[test]
    fn nothing_else_is_touched(pod in any_pod()) {
        let after = apply(&pod, &create(&pod));
        prop_assert_eq!(rest(&after), rest(&pod));
    }

    // SPEC 8
    #[test]
    fn an_update_restarts_no_container_whose_reference_did_not_change(
        old in any_pod(), new in any_pod(), kept in any::<u8>()
    ) {
        let mut new = new;
        // Some of the images are those of before.
        for (bit, image) in pod::images(&old).into_iter().enumerate() {
            if kept & (1 << (bit % 8)) != 0
                && let Some(place) = new.pointer_mut(&image.pointer) {
                *place = json!(image.image);
            }
        }
        for request in [Request::Update, Request::Ephemeral] {
            let after = apply(&new, &mutate(&new, Some(&old), request, &rules()));
            let before = pod::images(&old);
            for (image, now) in pod::images(&new).into_iter().zip(pod::images(&after)) {
                if before.iter().any(|was| was.key() == image.key() && was.image == image.image) {
                    prop_assert_eq!(image, now);
                }
            }
            prop_assert_eq!(rest(&after), rest(&new));
        }
    }

    // SPEC 8
    #[test]
    fn an_update_that_changes_no_image_patches_nothing(
        old in any_pod(), other in any_pod(), label in "[a-z]{1,5}"
    ) {
        let mut new = other;
        for field in ["containers", "initContainers", "volumes"] {
            new["spec"][field] = old["spec"][field].clone();
        }
        new["metadata"]["labels"] = json!({ label: "changed" });
        prop_assert_eq!(mutate(&new, Some(&old), Request::Update, &rules()), Mutation::default());
    }

    // SPEC 6
    #[test]
    fn the_originals_can_be_derived(pod in any_pod()) {
        let mutation = create(&pod);
        let mut after = apply(&pod, &mutation);
        after["metadata"]["annotations"] = Value::Null;
        let derived = meaning::of_pod(&after, &rules().known_addresses);
        let rewritten: Vec<_> = derived
            .into_iter()
            .filter(|image| image.meaning.is_rewritten())
            .filter(|image| image.image.pull_policy.as_deref() != Some("Never"))
            .filter_map(|image| image.meaning.source().cloned())
            .collect();
        for image in &mutation.images {
            prop_assert!(rewritten.contains(image), "{image} of {rewritten:?}");
        }
        prop_assert!(rewritten.iter().all(|image| mutation.images.contains(image)));
    }
}

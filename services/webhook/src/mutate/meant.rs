//! What the texts of images mean: restored pods, placeholders, Windows, lengths, and updates that
//! only spell the stored image differently.

use super::tests::{create, pod, rules};
use super::*;

const ADDRESS: &str = "10.96.0.50";

fn apply(pod: &Value, mutation: &Mutation) -> Value {
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &mutation.patch).unwrap();
    patched
}

fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap()
}

/// A pod with an annotation of originals.
fn annotated(image: &str, original: &str) -> Value {
    let mut pod = pod(image);
    let originals = json!({ "containers/c": original }).to_string();
    pod["metadata"]["annotations"] = json!({ labels::ORIGINAL_IMAGES: originals });
    pod
}

#[test]
fn a_pod_restored_from_another_cluster_is_rewritten_once() {
    for (text, original, expect) in [
        (
            "10.1.2.3/docker.io/library/nginx:1",
            "nginx:1",
            "10.96.0.50/docker.io/library/nginx:1",
        ),
        (
            "[fd00::1]/r.io_5000/a:1",
            "r.io:5000/a:1",
            "10.96.0.50/r.io_5000/a:1",
        ),
        // The annotation names another tag, repository or host: the text is meant.
        (
            "10.1.2.3/docker.io/library/nginx:2",
            "nginx:1",
            "10.96.0.50/10.1.2.3/docker.io/library/nginx:2",
        ),
        (
            "10.1.2.3/docker.io/library/nginx:1",
            "evil.example/private:1",
            "10.96.0.50/10.1.2.3/docker.io/library/nginx:1",
        ),
        ("r.io/a:1", "evil.example/private:1", "10.96.0.50/r.io/a:1"),
        // One that names the registry itself is never believed.
        (
            "10.1.2.3/10.96.0.50/r.io/a:1",
            "10.96.0.50/r.io/a:1",
            "10.96.0.50/10.1.2.3/10.96.0.50/r.io/a:1",
        ),
    ] {
        let before = annotated(text, original);
        let after = apply(&before, &create(&before));
        assert_eq!(image(&after), expect, "{text} {original}");
    }
    let restored = annotated("10.1.2.3/docker.io/library/nginx:1", "nginx:1");
    let mutation = create(&restored);
    let images: Vec<_> = mutation.images.iter().map(ToString::to_string).collect();
    assert_eq!(images, ["docker.io/library/nginx:1"]);
    let after = apply(&restored, &mutation);
    assert_eq!(
        after["metadata"], restored["metadata"],
        "the annotation keeps what the author wrote"
    );
}

#[test]
fn a_placeholder_waits_for_the_webhook_that_fills_it_in() {
    let before = pod("auto");
    let mutation = create(&before);
    assert_eq!(mutation.patch, [], "the injector finds its own word");
    assert!(mutation.images.is_empty() && mutation.warnings.is_empty());
    // The API server calls again after the injector (reinvocationPolicy: IfNeeded).
    let mut filled = before;
    filled["spec"]["containers"][0]["image"] = json!("docker.io/istio/proxyv2:1.29.0");
    let after = apply(&filled, &create(&filled));
    assert_eq!(image(&after), "10.96.0.50/docker.io/istio/proxyv2:1.29.0");
    // Only the bare word is one.
    for (text, expect) in [
        ("auto:1", "10.96.0.50/docker.io/library/auto:1"),
        ("team/auto", "10.96.0.50/docker.io/team/auto:latest"),
        ("r.io/auto", "10.96.0.50/r.io/auto:latest"),
    ] {
        let before = pod(text);
        assert_eq!(image(&apply(&before, &create(&before))), expect);
    }
}

#[test]
fn windows_pods_are_left() {
    for change in [
        json!({ "os": { "name": "windows" } }),
        json!({ "nodeSelector": { "kubernetes.io/os": "windows" } }),
    ] {
        let mut windows = pod("mcr.microsoft.com/windows/nanoserver:ltsc2025");
        json_patch::merge(&mut windows["spec"], &change);
        let mutation = create(&windows);
        assert_eq!(mutation.patch, [], "{change}");
        assert!(mutation.images.is_empty(), "{change}");
    }
    for change in [
        json!({ "os": { "name": "linux" } }),
        json!({ "nodeSelector": { "kubernetes.io/os": "linux", "disk": "windows" } }),
    ] {
        let mut linux = pod("r.io/a:1");
        json_patch::merge(&mut linux["spec"], &change);
        assert_eq!(create(&linux).rewritten, 1, "{change}");
    }
}

#[test]
fn names_that_a_kubelet_or_an_artifact_refuses_stay_with_a_warning() {
    // `255.255.255.255/` and the name have 255 characters together.
    let fits = format!("r.io/{}", "a".repeat(255 - 16 - 5));
    assert_eq!(create(&pod(&fits)).rewritten, 1);
    let long_tag = format!("r.io/{}:{}", "a".repeat(200), "t".repeat(128));
    assert_eq!(create(&pod(&long_tag)).rewritten, 1);
    let sha512 = format!("{long_tag}@sha512:{}", "0".repeat(128));
    assert_eq!(create(&pod(&sha512)).rewritten, 1);
    let longer_source = format!(
        "r.io/{}:{}@sha512:{}",
        "a".repeat(245),
        "t".repeat(128),
        "0".repeat(128)
    );
    for text in [&format!("{fits}a"), &longer_source] {
        let mutation = create(&pod(text));
        assert_eq!(mutation.patch, [], "{text}");
        assert_eq!(mutation.skipped, [SkipReason::TooLong], "{text}");
        assert_eq!(mutation.warnings.len(), 1, "{text}");
        assert!(mutation.images.is_empty(), "{text}");
    }
}

/// A client that applies its manifest again and again, as a patch that keeps the annotations, or by
/// replacing the whole object.
fn applied_again(manifest: &Value, stored: &Value, keeps_annotations: bool, rules: &Rules) {
    for round in 0..20 {
        let mut wish = manifest.clone();
        wish["metadata"]["uid"] = stored["metadata"]["uid"].clone();
        if keeps_annotations {
            wish["metadata"]["annotations"] = stored["metadata"]["annotations"].clone();
        }
        let mutation = mutate(&wish, Some(stored), Request::Update, rules);
        let after = apply(&wish, &mutation);
        assert_eq!(after, *stored, "round {round}: the object does not change");
        assert!(mutation.images.is_empty());
    }
}

#[test]
fn a_manifest_that_is_applied_twenty_times_changes_nothing() {
    for text in ["r.io/a:1", "nginx", "https://r.io/a:1", "docker.io/nginx"] {
        let mut manifest = pod(text);
        manifest["metadata"]["uid"] = json!("u");
        let stored = apply(&manifest, &create(&manifest));
        assert!(image(&stored).starts_with(ADDRESS), "{text}");
        for keeps_annotations in [true, false] {
            applied_again(&manifest, &stored, keeps_annotations, &rules());
            // Nor while nothing is rewritten: a restart would need the upstream.
            let off = Rules {
                address: None,
                ..rules()
            };
            applied_again(&manifest, &stored, keeps_annotations, &off);
        }
    }
}

/// What becomes of an update of the stored image `was`, in a pod with this history before and
/// after.
fn updated(was: &str, now: &str, before: &str, after: &str) -> (String, Vec<SkipReason>) {
    let with_history = |image: &str, restored: &str| {
        let mut pod = pod(image);
        pod["metadata"]["uid"] = json!("u");
        if !restored.is_empty() {
            let text = json!({ "uid": "u", "restored": [restored] }).to_string();
            pod["metadata"]["annotations"] = json!({ labels::IMAGE_HISTORY: text });
        }
        pod
    };
    let (old, new) = (with_history(was, before), with_history(now, after));
    let mutation = mutate(&new, Some(&old), Request::Update, &rules());
    let after = apply(&new, &mutation);
    (image(&after).to_owned(), mutation.skipped)
}

#[test]
fn who_asks_for_the_upstream_gets_it() {
    let local = "10.96.0.50/r.io/a:1";
    // `holdfast restore` adds the source to the history in the same request.
    let (found, skipped) = updated(local, "r.io/a:1", "", "r.io/a:1");
    assert_eq!(
        (found.as_str(), skipped),
        ("r.io/a:1", vec![SkipReason::Unfillable])
    );
    // Another source, or an earlier request, restores nothing.
    for (before, after) in [("", "r.io/b:1"), ("r.io/a:1", "r.io/a:1"), ("r.io/a:1", "")] {
        let (found, _) = updated(local, "r.io/a:1", before, after);
        assert_eq!(found, local, "{before} {after}");
    }
    // A restored pod keeps its upstream's reference, however it is spelled.
    let (found, _) = updated("docker.io/a:1", "a:1", "docker.io/library/a:1", "");
    assert_eq!(found, "docker.io/a:1");
    // Another image is judged as a new one.
    let (found, _) = updated(local, "r.io/a:2", "", "");
    assert_eq!(found, "10.96.0.50/r.io/a:2");
    // A malformed reference cannot stay.
    let (found, _) = updated("https://r.io/a:1", "r.io/a:1", "", "");
    assert_eq!(found, local);
}

#[test]
fn what_an_update_would_lose_of_the_history_stays_with_the_image() {
    let mut manifest = pod("r.io/a:1");
    manifest["metadata"]["uid"] = json!("u");
    let mut stored = apply(&manifest, &create(&manifest));
    let history = json!({ "uid": "u", "switches": { "containers/c": { "count": 1, "last": 7 } } })
        .to_string();
    stored["metadata"]["annotations"][labels::IMAGE_HISTORY] = json!(history);
    applied_again(&manifest, &stored, false, &rules());
}

//! The rewrite matrix, one case per row. The columns: kinds of image, request, pull policy, pod,
//! image before, image now, expected image, reasons.
//!
//! A row applies to each of its kinds. `L` is the address of the registry, `A` a former one, `@D` a
//! digest; `-` is nothing, `=` means that the image stays, `was` that the one before stays. A pod
//! that `restores` says so by this update.

use super::*;
use crate::rules::Configured;
use holdfast_api::state::ClusterState;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const ROWS: &str = "
container,init,volume  create     -             plain    -                        nginx                 docker.io/library/nginx:latest  -
container              create     -             plain    -                        team/app:1            docker.io/team/app:1            -
container              create     -             plain    -                        r.io/a:1              r.io/a:1                        -
container              create     -             plain    -                        r.io/a                r.io/a:latest                   -
container,init,volume  create     -             plain    -                        r.io:5000/a:1         r.io_5000/a:1                   -
container,init,volume  create     -             plain    -                        r.io/a@D              r.io/a@D                        -
container,init,volume  create     -             plain    -                        r.io/a:1@D            r.io/a:1@D                      -
container,init,volume  create     -             plain    -                        https://r.io/a:1      r.io/a:1                        -
container              create     -             plain    -                        r.io//a:1             r.io/a:1                        -
container              create     -             plain    -                        R.IO/a:1              r.io/a:1                        -
container              create     -             plain    -                        192.0.2.1:80/a:1      192.0.2.1_80/a:1                -
container,init,volume  create     -             plain    -                        L/r.io/a:1            =                               already_local
container              create     -             plain    -                        L:5000/r.io/a:1       =                               already_local
container,init,volume  create     -             plain    -                        A/r.io/a:1            =                               already_local
container              create     -             plain    -                        L/own/thing:1         =                               already_local
container              create     -             plain    -                        nginx:                =                               malformed
container              create     -             plain    -                        localhost:5000/a:1    =                               other_source
container,init,volume  create     -             plain    -                        refused.io/a:1        =                               unfillable
container              create     -             plain    -                        refused.io/a:2        refused.io/a:2                  -
container,init,volume  create     Always        plain    -                        r.io/a:1              r.io/a:1                        -
container              create     IfNotPresent  plain    -                        r.io/a:1              r.io/a:1                        -
container,init,volume  create     Never         plain    -                        r.io/a:1              =                               pull_never
container              create     Never         plain    -                        nginx:                =                               pull_never
container              create     -             elsewhere -                       refused.io/a:1        refused.io/a:1                  -
container,init,volume  create     -             optout   -                        r.io/a:1              =                               opted_out
container,init         create     -             mirror   -                        r.io/a:1              =                               mirror
container              create     -             own      -                        r.io/a:1              =                               own_platform
container,init,volume  create     -             owned    -                        r.io/a:1              =                               owner_excluded
container              create     -             owned    -                        L/r.io/a:1            =                               already_local
container              create     -             referred -                        r.io/a:1              r.io/a:1                        -
container              create     -             another  -                        r.io/a:1              r.io/a:1                        -
container              create     -             ended    -                        r.io/a:1              r.io/a:1                        -
container              create     -             foreign  -                        r.io/a:1              r.io/a:1                        -
container              create     -             reverts2 -                        r.io/a:1              r.io/a:1                        -
container              create     -             reverts3 -                        r.io/a:1              r.io/a:1                        -
container              create     -             restored -                        r.io/a:1              r.io/a:1                        -
init,volume            create     -             plain    -                        a:b:c                 =                               malformed
ephemeral              create     -             plain    -                        r.io/a:1              =                               -
container,init         update     -             plain    r.io/a:1                 r.io/a:1              =                               -
container              update     -             plain    L/r.io/a:1               L/r.io/a:1            =                               -
container              update     -             plain    L/r.io/a:1               r.io/a:2              r.io/a:2                        -
container,init         update     -             plain    r.io/a:1                 r.io/a:2              r.io/a:2                        -
container              update     -             plain    r.io/a:1                 nginx                 docker.io/library/nginx:latest  -
container              update     -             plain    r.io/a:1                 r.io/a:1@D            r.io/a:1@D                      -
container              update     -             plain    r.io/a:1                 https://r.io/a:2      r.io/a:2                        -
container              update     -             plain    r.io/a:1                 L/r.io/a:1            =                               already_local
container              update     -             plain    A/r.io/a:1               L/r.io/a:1            =                               already_local
container              update     -             plain    r.io/a:1                 nginx:                =                               malformed
container              update     -             plain    r.io/a:1                 refused.io/a:1        =                               unfillable
container              update     -             plain    L/refused.io/a:1         refused.io/a:1        was                             kept
container              update     -             restored L/r.io/a:1               r.io/a:1              was                             kept
container,init         update     -             restores L/r.io/a:1               r.io/a:1              =                               unfillable
container              update     -             restored r.io/a:1                 r.io/a:2              r.io/a:2                        -
container,init         update     -             plain    L/r.io/a:1               r.io/a:1              was                             kept
container              update     -             plain    A/r.io/a:1               r.io/a:1              was                             kept
container              update     -             plain    L/docker.io/library/n:1  n:1                   was                             kept
container              update     -             plain    docker.io/library/n:1    n:1                   was                             kept
container,init         update     -             plain    L/r.io/a:1               https://r.io/a:1      was                             kept
container              update     -             plain    https://r.io/a:1         r.io/a:1              r.io/a:1                        -
container,init         update     -             reverts2 L/r.io/a:1               r.io/a:1              was                             kept
container              update     -             reverts2 L/r.io/a:1               r.io/a:2              r.io/a:2                        -
container              update     -             reverts3 L/r.io/a:1               r.io/a:1              was                             kept
container              update     -             reverts3 r.io/a:1                 r.io/a:2              r.io/a:2                        -
container              update     -             reverts3 r.io/a:1                 r.io/a:1              =                               -
container              update     -             another3 L/r.io/a:1               r.io/a:1              was                             kept
container              update     Always        plain    r.io/a:1                 r.io/a:2              r.io/a:2                        -
container              update     -             owned    r.io/a:1                 r.io/a:2              =                               owner_excluded
container,init         update     Never         plain    r.io/a:1                 r.io/a:2              =                               pull_never
container              update     Never         plain    L/r.io/a:1               r.io/a:1              was                             kept
container              update     -             optout   L/r.io/a:1               r.io/a:1              =                               opted_out
container              update     -             mirror   r.io/a:1                 r.io/a:2              =                               mirror
container              update     -             own      r.io/a:1                 r.io/a:2              =                               own_platform
volume,ephemeral       update     -             plain    r.io/a:1                 r.io/a:2              =                               -
volume                 update     -             plain    L/r.io/a:1               r.io/a:1              =                               -
ephemeral              ephemeral  -             plain    -                        nginx                 docker.io/library/nginx:latest  -
ephemeral              ephemeral  -             plain    -                        r.io:5000/a:1         r.io_5000/a:1                   -
ephemeral              ephemeral  -             plain    -                        r.io/a@D              r.io/a@D                        -
ephemeral              ephemeral  -             plain    -                        r.io/a:1@D            r.io/a:1@D                      -
ephemeral              ephemeral  -             plain    -                        https://r.io/a:1      r.io/a:1                        -
ephemeral              ephemeral  -             plain    -                        L/r.io/a:1            =                               already_local
ephemeral              ephemeral  -             plain    -                        a:b:c                 =                               malformed
ephemeral              ephemeral  -             plain    -                        refused.io/a:1        =                               unfillable
ephemeral              ephemeral  Never         plain    -                        r.io/a:1              =                               pull_never
ephemeral              ephemeral  Always        plain    -                        r.io/a:1              r.io/a:1                        -
ephemeral              ephemeral  -             reverts3 -                        r.io/a:1              r.io/a:1                        -
ephemeral              ephemeral  -             plain    r.io/a:1                 r.io/a:1              =                               -
ephemeral              ephemeral  -             optout   -                        r.io/a:1              =                               opted_out
ephemeral              ephemeral  -             mirror   -                        r.io/a:1              =                               mirror
container,init,volume  ephemeral  -             plain    -                        r.io/a:1              =                               -
";

fn rules() -> Rules {
    let state: ClusterState = serde_json::from_value(json!({
        "registryAddress": "10.96.0.50",
        "aliases": ["10.96.0.9"],
        "rewrite": true,
        "excluded": [{
            "namespace": "team", "source": "refused.io/a:1", "reason": "Unauthorized", "since": "2026-01-01T00:00:00Z",
        }],
        "excludedOwners": [
            {"namespace": "team", "kind": "Cluster", "name": "db",
             "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"},
            {"namespace": "team", "kind": "Cluster", "name": "ended", "ended": true,
             "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"},
            {"namespace": "other", "kind": "Cluster", "name": "elsewhere",
             "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"},
        ],
    }))
    .unwrap();
    Rules::new(Configured::default(), Some(&state))
}

/// A pod with the image in one field, and with unknown fields. Without the image if `image` is `-`.
fn pod(kind: &str, policy: &str, pod: &str, image: &str) -> Value {
    let mut metadata = json!({"name": "p", "namespace": "team", "uid": "u", "future": {"x": null}});
    let history = |uid: &str, rest: &str| {
        let text = format!(r#"{{"uid":"{uid}",{rest}}}"#);
        json!({ labels::IMAGE_HISTORY: text, "other": "kept" })
    };
    let owners = |kind: &str, name: &str, controller: bool| json!([{"kind": "Other", "name": "other"}, {"kind": kind, "name": name, "controller": controller}]);
    match pod {
        "plain" => {}
        "owned" => metadata["ownerReferences"] = owners("Cluster", "db", true),
        "referred" => metadata["ownerReferences"] = owners("Cluster", "db", false),
        "another" => metadata["ownerReferences"] = owners("Cluster", "db2", true),
        "ended" => metadata["ownerReferences"] = owners("Cluster", "ended", true),
        "foreign" => metadata["ownerReferences"] = owners("Cluster", "elsewhere", true),
        "elsewhere" => metadata["namespace"] = json!("other"),
        "optout" => metadata["labels"] = json!({ labels::REWRITE: "disabled" }),
        "mirror" => metadata["annotations"] = json!({ "kubernetes.io/config.mirror": "x" }),
        "own" => metadata["labels"] = json!({ labels::NAME: "holdfast" }),
        "reverts2" => metadata["annotations"] = history("u", r#""reverts":2"#),
        "reverts3" => metadata["annotations"] = history("u", r#""reverts":3"#),
        "another3" => metadata["annotations"] = history("v", r#""reverts":3"#),
        "restored" | "restores" => {
            metadata["annotations"] = history("u", r#""restored":["r.io/a:1"]"#);
        }
        other => panic!("no such pod: {other}"),
    }
    let policy = (policy != "-").then_some(policy);
    let container = json!({"name": "x", "image": image, "imagePullPolicy": policy, "future": [1]});
    let volume =
        json!({"name": "x", "image": {"reference": image, "pullPolicy": policy, "future": 1}});
    let mut spec = json!({"future": true, "containers": [{"name": "other", "image": ""}]});
    if image != "-" {
        match kind {
            "container" => spec["containers"] = json!([container]),
            "init" => spec["initContainers"] = json!([container]),
            "ephemeral" => spec["ephemeralContainers"] = json!([container]),
            "volume" => spec["volumes"] = json!([{"name": "plain", "emptyDir": {}}, volume]),
            other => panic!("no such kind: {other}"),
        }
    }
    json!({"metadata": metadata, "spec": spec, "status": {"future": 1}})
}

fn pointer(kind: &str) -> &'static str {
    match kind {
        "container" => "/spec/containers/0/image",
        "init" => "/spec/initContainers/0/image",
        "ephemeral" => "/spec/ephemeralContainers/0/image",
        _ => "/spec/volumes/1/image/reference",
    }
}

/// Runs one row; gives what was expected and what came of it.
fn run(row: &str) -> (String, String) {
    let full = |text: &str| {
        let text = text.replace("@D", &format!("@sha256:{HEX}"));
        match (text.strip_prefix('L'), text.strip_prefix('A')) {
            (Some(rest), _) => format!("10.96.0.50{rest}"),
            (_, Some(rest)) => format!("10.96.0.9{rest}"),
            _ => text,
        }
    };
    let columns: Vec<&str> = row.split_whitespace().collect();
    let [kind, request, policy, of, before, image, becomes, why] = columns[..] else {
        panic!("eight columns: {row}");
    };
    let (before, image) = (full(before), full(image));
    let request = match request {
        "create" => Request::Create,
        "update" => Request::Update,
        _ => Request::Ephemeral,
    };
    let new = pod(kind, policy, of, &image);
    let was = if of == "restores" { "plain" } else { of };
    let old = (request != Request::Create).then(|| pod(kind, policy, was, &before));
    let mutation = mutate(&new, old.as_ref(), request, &rules());
    let mut after = new.clone();
    json_patch::patch(&mut after, &mutation.patch).unwrap();
    let found = after
        .pointer(pointer(kind))
        .and_then(Value::as_str)
        .unwrap();
    let kept = std::iter::repeat_n("kept", mutation.kept);
    let reasons = mutation.skipped.iter().map(|reason| reason.label());
    let reasons: Vec<_> = kept.chain(reasons).collect();
    let reasons = if reasons.is_empty() {
        "-".to_owned()
    } else {
        reasons.join(",")
    };
    let expect = match becomes {
        "=" => image.clone(),
        "was" => before,
        local => format!("10.96.0.50/{}", full(local)),
    };
    let mut expected = format!("{expect} {why}");
    let mut actual = format!("{found} {reasons}");
    // Nothing but the image and our two annotations differs, and a second decision changes nothing.
    let mut rest = after.clone();
    *rest.pointer_mut(pointer(kind)).unwrap() = json!(image);
    for (tree, kept) in [(&mut rest, "after"), (&mut new.clone(), "before")] {
        let annotations = tree.pointer_mut("/metadata/annotations");
        let left = annotations.and_then(Value::as_object_mut).map(|all| {
            all.retain(|key, _| key != labels::ORIGINAL_IMAGES && key != labels::IMAGE_HISTORY);
            all.len()
        });
        if left == Some(0) {
            tree["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("annotations");
        }
        let text = tree.to_string();
        if kept == "after" {
            actual.push_str(&text);
        } else {
            expected.push_str(&text);
        }
    }
    let again = mutate(&after, Some(&after), Request::Update, &rules());
    assert!(again.patch.is_empty(), "a second time: {row}");
    (expected, actual)
}

// SPEC 5, SPEC 8, SPEC 45
#[test]
fn every_row_of_the_matrix_holds() {
    let rows: Vec<String> = ROWS
        .lines()
        .filter_map(|row| row.split_once(' '))
        .flat_map(|(kinds, rest)| kinds.split(',').map(move |kind| format!("{kind} {rest}")))
        .collect();
    assert!(rows.len() > 100, "{}", rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let (expected, actual) = run(row);
            (expected != actual)
                .then(|| format!("{row}\n  expected {expected}\n  found    {actual}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A client that reverts the image with every update, with or without the annotations that it
/// read.
fn reverted_every_time(keeps_annotations: bool) -> Vec<String> {
    let original = pod("container", "-", "plain", "r.io/a:1");
    let created = mutate(&original, None, Request::Create, &rules());
    let mut stored = original.clone();
    json_patch::patch(&mut stored, &created.patch).unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        let mut wish = if keeps_annotations {
            stored.clone()
        } else {
            original.clone()
        };
        wish["spec"]["containers"][0]["image"] = json!("r.io/a:1");
        let mutation = mutate(&wish, Some(&stored), Request::Update, &rules());
        json_patch::patch(&mut wish, &mutation.patch).unwrap();
        stored = wish;
        seen.push(
            stored["spec"]["containers"][0]["image"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    seen
}

#[test]
fn an_image_that_is_reverted_every_time_stays_local() {
    let expect = ["10.96.0.50/r.io/a:1"; 5];
    assert_eq!(reverted_every_time(true), expect);
    assert_eq!(
        reverted_every_time(false),
        expect,
        "without the annotations"
    );
}

#[test]
fn the_images_of_excluded_owners_are_announced() {
    let of = |owner| {
        let pod = pod("container", "-", owner, "r.io/a:1");
        let mutation = mutate(&pod, None, Request::Create, &rules());
        (mutation.rewritten, mutation.images)
    };
    let announced = vec![Reference::parse("r.io/a:1").unwrap()];
    assert_eq!(of("owned"), (0, announced.clone()));
    assert_eq!(of("another"), (1, announced));
}

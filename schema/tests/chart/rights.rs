//! What each part may do with the API.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::generated::root;
use crate::helm::{FULLNAME, NAMESPACE, Render};

/// Every grant of a part as `where: resource[names] verb`.
fn rights(render: &Render, part: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let roles = [
        ("ClusterRole", format!("{part}-{NAMESPACE}"), "cluster"),
        ("Role", part.to_owned(), "own"),
        ("Role", format!("{part}-{NAMESPACE}"), "default"),
    ];
    for (kind, name, place) in roles {
        let Some(role) = render.find(kind, &name) else {
            continue;
        };
        let binding = render.get(&format!("{kind}Binding"), &name);
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        assert_eq!(binding["subjects"][0]["name"], format!("{FULLNAME}-{part}"));
        for rule in role["rules"].as_array().unwrap() {
            let words = |key: &str| -> Vec<String> {
                rule[key]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            };
            for resource in words("resources") {
                let names = words("resourceNames")
                    .join(",")
                    .replace(&format!("{FULLNAME}-"), "");
                let names = if names.is_empty() {
                    names
                } else {
                    format!("[{names}]")
                };
                for verb in words("verbs") {
                    found.insert(format!("{place}: {resource}{names} {verb}"));
                }
            }
        }
    }
    found
}

/// A grant: where and on what, and each verb with the file and the function that calls it.
type Grant = (&'static str, &'static [(&'static str, &'static str)]);

const WATCH_OWNERS: &[(&str, &str)] = &[("list,watch", "controller/src/world/owners.rs follow")];
const WRITE_SECRET: &[(&str, &str)] = &[
    ("get", "controller/src/certificates.rs round"),
    ("update", "controller/src/apply.rs secret"),
];

const WEBHOOK: &[Grant] = &[
    (
        "cluster: artifacts",
        &[("create", "webhook/src/announce.rs create")],
    ),
    (
        "own: configmaps[state]",
        &[("list,watch", "webhook/src/state.rs follow")],
    ),
];

const NODE_AGENT: &[Grant] = &[
    (
        "own: secrets[node]",
        &[("list,watch", "node-agent/src/source.rs follow")],
    ),
    (
        "default: events",
        &[("create,patch", "node-agent/src/notices.rs write")],
    ),
];

const CONTROLLER: &[Grant] = &[
    (
        "cluster: artifacts",
        &[
            ("list,watch", "controller/src/world.rs watch_artifacts"),
            ("create", "controller/src/artifacts.rs create"),
            ("patch", "controller/src/artifacts/preload.rs apply"),
            ("delete", "controller/src/artifacts/reconcile.rs undemanded"),
        ],
    ),
    (
        "cluster: artifacts/status",
        &[("patch", "controller/src/artifacts/status.rs write")],
    ),
    (
        "cluster: events",
        &[
            ("create,patch", "controller/src/events.rs publish"),
            (
                "list,watch",
                "controller/src/world/denials.rs watch_denials",
            ),
        ],
    ),
    (
        "cluster: mutatingwebhookconfigurations[webhook]",
        &[
            ("list,watch", "controller/src/certificates.rs watch_webhook"),
            ("get,patch", "controller/src/certificates.rs patch_webhook"),
        ],
    ),
    (
        "cluster: namespaces",
        &[("list,watch", "controller/src/world.rs watch_namespaces")],
    ),
    (
        "cluster: nodes",
        &[("list,watch", "controller/src/world.rs watch_nodes")],
    ),
    (
        "cluster: pods",
        &[
            ("list,watch", "controller/src/world.rs watch_pods"),
            ("get", "controller/src/healing/trials.rs passes"),
            ("patch", "controller/src/healing/acting.rs act"),
        ],
    ),
    (
        "cluster: pods/eviction",
        &[("create", "controller/src/healing/acting.rs evict")],
    ),
    ("cluster: controllerrevisions", WATCH_OWNERS),
    ("cluster: cronjobs", WATCH_OWNERS),
    ("cluster: daemonsets", WATCH_OWNERS),
    ("cluster: deployments", WATCH_OWNERS),
    ("cluster: jobs", WATCH_OWNERS),
    ("cluster: replicasets", WATCH_OWNERS),
    ("cluster: replicationcontrollers", WATCH_OWNERS),
    ("cluster: statefulsets", WATCH_OWNERS),
    (
        "cluster: secrets",
        &[("get", "controller/src/artifacts/credentials.rs find")],
    ),
    (
        "cluster: serviceaccounts",
        &[("get", "controller/src/artifacts/credentials.rs find")],
    ),
    (
        "own: configmaps",
        &[("create", "controller/src/apply.rs config_map")],
    ),
    (
        "own: configmaps[state]",
        &[
            ("get", "controller/src/state.rs round"),
            ("update", "controller/src/apply.rs config_map"),
        ],
    ),
    ("own: leases", &[("create", "runtime/src/lease.rs look")]),
    (
        "own: leases[controller]",
        &[("get,update", "runtime/src/lease.rs give_back")],
    ),
    (
        "own: secrets",
        &[("create", "controller/src/apply.rs secret")],
    ),
    (
        "own: secrets[ca,registry-tls,webhook-tls,controller-tls,registry-auth,node]",
        WRITE_SECRET,
    ),
    (
        "own: services[registry]",
        &[("get", "controller/src/certificates.rs round")],
    ),
];

const UNINSTALL: &[Grant] = &[
    (
        "cluster: mutatingwebhookconfigurations[webhook]",
        &[("delete", "holdfast/src/uninstall/cluster.rs delete_webhook")],
    ),
    (
        "cluster: nodes",
        &[("list", "holdfast/src/uninstall/cluster.rs survey")],
    ),
    (
        "cluster: pods",
        &[("list", "holdfast/src/uninstall/cluster.rs rewritten_pods")],
    ),
    (
        "cluster: artifacts",
        &[(
            "list,patch,delete",
            "holdfast/src/uninstall/cluster.rs delete_artifacts",
        )],
    ),
    (
        "own: deployments/scale[controller,registry]",
        &[("patch", "holdfast/src/uninstall/cluster.rs scale_to_zero")],
    ),
    (
        "own: pods",
        &[(
            "delete",
            "holdfast/src/uninstall/cluster.rs give_up_lost_registry_pods",
        )],
    ),
    (
        "own: secrets",
        &[(
            "list",
            "holdfast/src/uninstall/cluster.rs delete_made_objects",
        )],
    ),
    (
        "own: configmaps",
        &[(
            "list",
            "holdfast/src/uninstall/cluster.rs delete_made_objects",
        )],
    ),
    (
        "own: secrets[ca,registry-tls,webhook-tls,controller-tls,registry-auth,node]",
        &[(
            "delete",
            "holdfast/src/uninstall/cluster.rs delete_made_objects",
        )],
    ),
    (
        "own: secrets[node]",
        &[("get,patch", "holdfast/src/uninstall/cluster.rs tell_nodes")],
    ),
    (
        "own: configmaps[state]",
        &[(
            "delete",
            "holdfast/src/uninstall/cluster.rs delete_made_objects",
        )],
    ),
    (
        "own: leases[controller]",
        &[("delete", "holdfast/src/uninstall/cluster.rs delete_lease")],
    ),
];

/// What `uninstall.restore` adds.
const RESTORE: &[Grant] = &[
    (
        "cluster: pods",
        &[("patch", "holdfast/src/restore/act.rs act")],
    ),
    (
        "cluster: pods/eviction",
        &[("create", "holdfast/src/restore/act.rs act")],
    ),
    ("cluster: replicasets", ASK_OWNERS),
    ("cluster: statefulsets", ASK_OWNERS),
    ("cluster: daemonsets", ASK_OWNERS),
    ("cluster: replicationcontrollers", ASK_OWNERS),
    (
        "cluster: events",
        &[("create,patch", "holdfast/src/restore/act.rs tell")],
    ),
    (
        "own: configmaps[state]",
        &[("get", "holdfast/src/uninstall/cluster.rs restore_pods")],
    ),
];
const ASK_OWNERS: &[(&str, &str)] = &[("get", "holdfast/src/restore/act.rs ask_owners")];

/// What the startup taint adds for the controller, and for the uninstaller.
const TAINTS: &[Grant] = &[(
    "cluster: nodes",
    &[("get,patch", "controller/src/nodes.rs patch")],
)];
const TAKES_TAINTS_OFF: &[Grant] = &[(
    "cluster: nodes",
    &[("patch", "holdfast/src/uninstall/cluster.rs let_nodes_go")],
)];

/// The grants as `where: resource[names] verb`, after a look that each call exists.
fn granted(tables: &[&[Grant]]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (what, verbs) in tables.iter().flat_map(|table| table.iter()) {
        for (verbs, call) in *verbs {
            let (file, function) = call.split_once(' ').unwrap();
            let path = root().join("services").join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                text.contains(&format!("fn {function}("))
                    || text.contains(&format!("fn {function}<")),
                "{what}: no function {function} in {file}"
            );
            all.extend(verbs.split(',').map(|verb| format!("{what} {verb}")));
        }
    }
    all
}

fn check(scenario: &str, part: &str, tables: &[&[Grant]]) {
    let found = rights(&Render::scenario(scenario), part);
    assert_eq!(found, granted(tables), "{scenario}: {part}");
}

#[test]
fn every_verb_of_every_part_has_a_call_in_the_code() {
    for (part, table) in [
        ("webhook", WEBHOOK),
        ("node-agent", NODE_AGENT),
        ("controller", CONTROLLER),
        ("uninstall", UNINSTALL),
    ] {
        check("ha", part, &[table]);
    }
    check("aks", "controller", &[CONTROLLER, TAINTS]);
    check("aks", "uninstall", &[UNINSTALL, TAKES_TAINTS_OFF]);
}

#[test]
fn restoring_pods_at_the_end_needs_more_and_only_then() {
    let values = json!({
        "global": { "networkfunctionextension": { "enableClusterRegistry": true } },
        "uninstall": { "restore": true },
    });
    let render = Render(crate::helm::render(&values.to_string()).unwrap());
    assert_eq!(rights(&render, "uninstall"), granted(&[UNINSTALL, RESTORE]));
}

#[test]
fn the_registry_has_no_access_to_the_api() {
    check("ha", "registry", &[]);
    let render = Render::scenario("ha");
    assert_eq!(
        render.get("Deployment", "registry")["spec"]["template"]["spec"]["automountServiceAccountToken"],
        false
    );
}

#[test]
fn a_value_holds_the_controllers_patches_to_what_it_needs() {
    assert!(
        Render::scenario("ha")
            .find(
                "ValidatingAdmissionPolicy",
                &format!("controller-{NAMESPACE}")
            )
            .is_none(),
        "off by default"
    );
    let documents = crate::helm::render(&crate::helm::scenarios()["everything"]).unwrap();
    let of = |kind: &str| {
        let mut found = documents.iter().filter(|document| document["kind"] == kind);
        found.next().unwrap().clone()
    };
    let policy = of("ValidatingAdmissionPolicy");
    let binding = of("ValidatingAdmissionPolicyBinding");
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
    let who = policy["spec"]["matchConditions"][0]["expression"]
        .as_str()
        .unwrap();
    let account = format!("system:serviceaccount:{NAMESPACE}:edge-controller");
    assert!(who.ends_with(&format!("{account:?}")), "{who}");
    let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    assert_eq!(rule["resources"], json!(["pods", "nodes"]));
}

#[test]
fn nodes_are_patched_only_where_the_startup_taint_is_on() {
    let patches = |scenario: &str, part: &str| {
        rights(&Render::scenario(scenario), part).contains("cluster: nodes patch")
    };
    for part in ["controller", "uninstall"] {
        assert!(!patches("ha", part), "{part}");
        assert!(patches("aks", part), "{part}");
    }
}

#[test]
fn the_uninstall_hook_removes_only_what_the_release_made() {
    let rights = rights(&Render::scenario("ha"), "uninstall");
    let destroys: Vec<&String> = rights
        .iter()
        .filter(|right| right.contains("delete"))
        .collect();
    for right in destroys {
        assert!(
            right.contains('[')
                || right.starts_with("cluster: artifacts")
                // Pods have no names that could be listed.
                || right == "own: pods delete",
            "{right}"
        );
    }
}

#[test]
fn tokens_are_mounted_only_where_the_api_is_used() {
    for (name, pod) in Render::scenario("ha").pods() {
        let expected = !name.ends_with("-registry") && !name.ends_with("-doctor");
        assert_eq!(
            pod["spec"]["automountServiceAccountToken"], expected,
            "{name}"
        );
    }
}

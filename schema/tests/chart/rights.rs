//! What each part may do with the API.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::helm::{FULLNAME, NAMESPACE, Render};

/// Every grant of a part as `where: resource[names] verbs`.
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
                found.insert(format!(
                    "{place}: {resource}{names} {}",
                    words("verbs").join(",")
                ));
            }
        }
    }
    found
}

fn check(part: &str, expected: &[&str]) {
    let render = Render::scenario("ha");
    let expected: BTreeSet<String> = expected.iter().map(|&right| right.to_owned()).collect();
    assert_eq!(rights(&render, part), expected, "{part}");
}

#[test]
fn the_webhook_announces_and_follows_one_map() {
    check(
        "webhook",
        &[
            "cluster: artifacts create",
            "own: configmaps[state] get,list,watch",
        ],
    );
}

#[test]
fn the_node_agent_reads_one_secret_and_tells_of_its_node() {
    check(
        "node-agent",
        &[
            "own: secrets[node] get,list,watch",
            "default: events create,patch",
        ],
    );
}

#[test]
fn the_registry_has_no_access_to_the_api() {
    check("registry", &[]);
    let render = Render::scenario("ha");
    assert_eq!(
        render.get("Deployment", "registry")["spec"]["template"]["spec"]["automountServiceAccountToken"],
        false
    );
}

#[test]
fn the_controller_reads_what_pods_need_and_writes_only_its_own() {
    let secrets = "ca,registry-tls,webhook-tls,controller-tls,registry-auth,node";
    check(
        "controller",
        &[
            "cluster: artifacts get,list,watch,create,update,patch,delete",
            "cluster: artifacts/status get,update,patch",
            "cluster: events create,patch",
            "cluster: events list,watch",
            "cluster: mutatingwebhookconfigurations[webhook] get,list,watch,patch",
            "cluster: namespaces get,list,watch",
            "cluster: nodes get,list,watch",
            "cluster: pods get,list,watch",
            "cluster: pods patch",
            "cluster: pods/eviction create",
            "cluster: controllerrevisions get,list,watch",
            "cluster: cronjobs get,list,watch",
            "cluster: daemonsets get,list,watch",
            "cluster: deployments get,list,watch",
            "cluster: jobs get,list,watch",
            "cluster: replicasets get,list,watch",
            "cluster: replicationcontrollers get,list,watch",
            "cluster: statefulsets get,list,watch",
            "cluster: secrets get",
            "cluster: serviceaccounts get",
            "own: configmaps create",
            "own: configmaps[state] get,list,watch,update,patch,delete",
            "own: leases create",
            "own: leases[controller] get,list,watch,update,patch,delete",
            "own: secrets create",
            &format!("own: secrets[{secrets}] get,list,watch,update,patch,delete"),
            "own: services[registry] get",
        ],
    );
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

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

/// A row of `xtask/codegen/rights.json`: the chart renders exactly these grants, and a full run on
/// a cluster uses each of them (`e2e/suite/src/tests/rights.rs`).
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Whose ServiceAccount has the grant.
    part: String,
    /// The value that adds it: `startupTaint` (`nodeAgent.startupTaint.enabled`) or `restore`
    /// (`uninstall.restore`); empty: every release has it.
    #[serde(default)]
    with: String,
    /// The role, the resource, and the names that it is held to, without the release's prefix.
    /// Roles: `cluster`; `own`, in the release's namespace; `default`, in that namespace.
    on: String,
    /// Joined by commas.
    verbs: String,
    /// The file below `services` and the function that need it.
    call: String,
    /// Why a run on a cluster need not show the verbs.
    #[serde(default)]
    unseen: Option<String>,
}

fn table() -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("xtask/codegen/rights.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The table's grants of a part as `where: resource[names] verb`, those that the listed values add
/// included.
fn granted(part: &str, with: &[&str]) -> BTreeSet<String> {
    let holds =
        |row: &Row| row.part == part && (row.with.is_empty() || with.contains(&row.with.as_str()));
    table()
        .iter()
        .filter(|row| holds(row))
        .flat_map(|row| {
            row.verbs
                .split(',')
                .map(|verb| format!("{} {verb}", row.on))
        })
        .collect()
}

#[test]
fn the_table_of_rights_names_calls_that_exist() {
    for row in table() {
        let (file, function) = row.call.split_once(' ').unwrap();
        let path = root().join("services").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(&format!("fn {function}(")) || text.contains(&format!("fn {function}<")),
            "{}: no function {function} in {file}",
            row.on
        );
        assert!(["", "restore", "startupTaint"].contains(&&*row.with));
        assert!(
            row.unseen.is_none_or(|reason| reason.len() > 20),
            "{}",
            row.on
        );
    }
}

fn check(scenario: &str, part: &str, with: &[&str]) {
    let found = rights(&Render::scenario(scenario), part);
    assert_eq!(found, granted(part, with), "{scenario}: {part}");
}

#[test]
fn every_verb_of_every_part_has_a_call_in_the_code() {
    for part in ["webhook", "node-agent", "controller", "uninstall"] {
        assert!(!granted(part, &[]).is_empty(), "{part}");
        check("ha", part, &[]);
    }
    check("aks", "controller", &["startupTaint"]);
    check("aks", "uninstall", &["startupTaint"]);
}

#[test]
fn restoring_pods_at_the_end_needs_more_and_only_then() {
    let values = json!({
        "global": { "networkfunctionextension": { "enableClusterRegistry": true } },
        "uninstall": { "restore": true },
    });
    let render = Render(crate::helm::render(&values.to_string()).unwrap());
    assert_eq!(
        rights(&render, "uninstall"),
        granted("uninstall", &["restore"])
    );
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

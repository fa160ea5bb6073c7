//! Who reaches which port of Holdfast's pods, by the NetworkPolicies that the chart renders.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::helm::{RELEASE, Render, name, render, scenarios};

/// The object of a part.
fn find<'a>(render: &'a Render, kind: &str, part: &str) -> Option<&'a Value> {
    let (opening, end) = (format!("{kind}/"), format!("-{part}"));
    render.0.iter().find(|document| {
        let name = name(document);
        name.starts_with(&opening) && name.ends_with(&end)
    })
}

fn policy<'a>(render: &'a Render, part: &str) -> &'a Value {
    find(render, "NetworkPolicy", part).unwrap()
}

/// The peers of each port; `None` where any address may come.
fn ports(policy: &Value) -> BTreeMap<String, Option<Vec<Value>>> {
    let rules = policy["spec"]["ingress"].as_array().unwrap();
    rules
        .iter()
        .flat_map(|rule| {
            let ports = rule["ports"].as_array().unwrap();
            assert!(!ports.is_empty(), "a rule without ports opens all of them");
            ports.iter().map(|port| {
                let peers = rule
                    .get("from")
                    .map(|from| from.as_array().unwrap().clone());
                (port["port"].as_str().unwrap().to_owned(), peers)
            })
        })
        .collect()
}

fn pods_of(component: &str) -> Value {
    json!({ "podSelector": { "matchLabels": {
        "app.kubernetes.io/name": "holdfast",
        "app.kubernetes.io/instance": RELEASE,
        "app.kubernetes.io/component": component,
    } } })
}

/// The workload's containers and their ports, and the labels of its pods.
fn workload<'a>(render: &'a Render, part: &str) -> (BTreeSet<String>, &'a Value) {
    let pods = render.pods().find(|(name, _)| {
        (name.starts_with("Deployment/") || name.starts_with("DaemonSet/"))
            && name.ends_with(&format!("-{part}"))
    });
    let (_, template) = pods.unwrap();
    let containers = template["spec"]["containers"].as_array().unwrap();
    let ports = containers
        .iter()
        .flat_map(|container| container["ports"].as_array().unwrap())
        .map(|port| port["name"].as_str().unwrap().to_owned());
    (ports.collect(), &template["metadata"]["labels"])
}

const PARTS: [&str; 4] = ["registry", "webhook", "controller", "node-agent"];

#[test]
fn every_port_of_every_part_is_reached_by_those_who_need_it() {
    let render = Render::scenario("ha");
    for part in PARTS {
        let policy = policy(&render, part);
        let (declared, labels) = workload(&render, part);
        let selector = policy["spec"]["podSelector"]["matchLabels"]
            .as_object()
            .unwrap();
        for (key, value) in selector {
            assert_eq!(labels[key], *value, "{part}: it selects its own pods");
        }
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "{part}");
        let ports = ports(policy);
        assert_eq!(
            ports.keys().cloned().collect::<BTreeSet<_>>(),
            declared,
            "{part}"
        );
        for (port, peers) in ports {
            let expect = match port.as_str() {
                "internal" => Some(vec![pods_of("registry"), pods_of("controller")]),
                "agents" => Some(vec![pods_of("node-agent")]),
                _ => None,
            };
            assert_eq!(peers, expect, "{part} {port}");
        }
    }
}

#[test]
fn given_peers_are_the_only_ones_and_the_uninstallation_stays_possible() {
    let render = Render::scenario("everything");
    let monitoring = json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } });
    for part in PARTS {
        let admin = ports(policy(&render, part)).remove("admin").unwrap();
        assert_eq!(
            admin,
            Some(vec![monitoring.clone(), pods_of("uninstall")]),
            "{part}"
        );
    }
    let from = |part: &str| {
        ports(policy(&render, part))
            .remove("https")
            .unwrap()
            .unwrap()
    };
    assert_eq!(
        from("webhook"),
        [json!({ "ipBlock": { "cidr": "192.0.2.0/24" } })]
    );
    assert_eq!(
        from("registry"),
        [
            json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"] } }),
            // `helm test` asks the registry.
            pods_of("doctor"),
        ]
    );
    let job = find(&render, "Job", "uninstall").unwrap();
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/component"], "uninstall");
}

#[test]
fn a_value_switches_them_off() {
    let values = format!(
        "{}\nnetworkPolicy: {{enabled: false}}\n",
        scenarios()["single"]
    );
    let render = Render(render(&values).unwrap());
    assert!(
        PARTS
            .iter()
            .all(|part| render.find("NetworkPolicy", part).is_none())
    );
}

#[test]
fn the_ca_of_api_servers_is_mounted_where_the_webhook_reads_it() {
    let render = Render::scenario("everything");
    let spec = &find(&render, "Deployment", "webhook").unwrap()["spec"]["template"]["spec"];
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount["name"] == "client-ca")
        .unwrap();
    assert_eq!(mount["mountPath"], "/etc/holdfast/client-ca");
    let volumes = spec["volumes"].as_array().unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume["name"] == "client-ca")
        .unwrap();
    assert_eq!(volume["secret"]["secretName"], "api-servers");
    assert!(
        Render::scenario("ha").get("Deployment", "webhook")["spec"]["template"]["spec"]["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|volume| volume["name"] != "client-ca")
    );
}

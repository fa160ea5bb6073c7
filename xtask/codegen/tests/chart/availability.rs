//! Replicas, budgets, placement, probes and sizes.

use serde_json::{Value, json};

use crate::helm::{Render, scenarios};

// SPEC 24, SPEC 25
#[test]
fn high_availability_has_three_to_five_replicas_by_load() {
    let render = Render::scenario("ha");
    for part in ["registry", "webhook"] {
        let deployment = &render.get("Deployment", part)["spec"];
        assert!(
            deployment.get("replicas").is_none(),
            "the autoscaler owns the replicas of {part}"
        );
        let scaler = &render.get("HorizontalPodAutoscaler", part)["spec"];
        assert_eq!(
            (&scaler["minReplicas"], &scaler["maxReplicas"]),
            (&json!(3), &json!(5))
        );
        let target = |resource: &str| json!({ "type": "Resource", "resource": { "name": resource, "target": { "type": "Utilization", "averageUtilization": 80 } } });
        assert_eq!(scaler["metrics"], json!([target("cpu"), target("memory")]));
    }
}

// SPEC 24, SPEC 25
#[test]
fn high_availability_without_autoscaling_has_three_replicas() {
    let render = Render::scenario("ha-noautoscale");
    for part in ["registry", "webhook"] {
        assert_eq!(render.get("Deployment", part)["spec"]["replicas"], 3);
        assert!(render.find("HorizontalPodAutoscaler", part).is_none());
        assert_eq!(
            render.get("PodDisruptionBudget", part)["spec"]["minAvailable"],
            2
        );
    }
    assert_eq!(
        render.get("Deployment", "controller")["spec"]["replicas"],
        2
    );
}

// SPEC 24, SPEC 28
#[test]
fn high_availability_spreads_softly_rolls_one_by_one_and_keeps_two() {
    for scenario in ["ha", "ha-noautoscale"] {
        let render = Render::scenario(scenario);
        for part in ["registry", "webhook"] {
            let deployment = &render.get("Deployment", part)["spec"];
            assert_eq!(deployment["strategy"]["type"], "RollingUpdate");
            assert_eq!(deployment["strategy"]["rollingUpdate"]["maxUnavailable"], 1);
            let affinity = &deployment["template"]["spec"]["affinity"]["podAntiAffinity"];
            assert!(
                affinity
                    .get("requiredDuringSchedulingIgnoredDuringExecution")
                    .is_none()
            );
            let term = &affinity["preferredDuringSchedulingIgnoredDuringExecution"][0];
            assert_eq!(term["weight"], 100);
            assert_eq!(
                term["podAffinityTerm"]["topologyKey"],
                "kubernetes.io/hostname"
            );
            assert_eq!(
                term["podAffinityTerm"]["labelSelector"]["matchLabels"],
                deployment["selector"]["matchLabels"]
            );
            let budget = &render.get("PodDisruptionBudget", part)["spec"];
            assert_eq!(budget["minAvailable"], 2);
            assert_eq!(budget["selector"], deployment["selector"]);
        }
    }
}

// SPEC 26
#[test]
fn without_high_availability_one_replica_writes_the_volume() {
    let render = Render::scenario("single");
    for part in ["registry", "webhook", "controller"] {
        assert_eq!(
            render.get("Deployment", part)["spec"]["replicas"],
            1,
            "{part}"
        );
        assert!(render.find("HorizontalPodAutoscaler", part).is_none());
        assert!(render.find("PodDisruptionBudget", part).is_none());
    }
    assert_eq!(
        render.get("Deployment", "registry")["spec"]["strategy"],
        json!({ "type": "Recreate" })
    );
}

// SPEC 24, SPEC 27
#[test]
fn every_lasting_pod_is_probed_over_http_on_the_admin_port() {
    let render = Render::scenario("ha");
    let lasting = render.pods().filter(|(name, _)| !name.starts_with("Job/"));
    let mut count = 0;
    for (name, pod) in lasting {
        let container = &pod["spec"]["containers"][0];
        let probe = |kind: &str| container[kind]["httpGet"].clone();
        assert_eq!(
            probe("readinessProbe"),
            json!({ "path": "/readyz", "port": "admin" }),
            "{name}"
        );
        assert_eq!(
            probe("livenessProbe"),
            json!({ "path": "/livez", "port": "admin" }),
            "{name}"
        );
        let ports = container["ports"].as_array().unwrap();
        assert!(
            ports.contains(&json!({ "name": "admin", "containerPort": 9090 })),
            "{name}"
        );
        count += 1;
    }
    assert_eq!(count, 4);
}

// SPEC 27
#[test]
fn only_the_internal_service_reaches_replicas_that_are_not_ready() {
    let render = Render::scenario("ha");
    for service in ["registry", "webhook"] {
        assert!(
            render.get("Service", service)["spec"]
                .get("publishNotReadyAddresses")
                .is_none()
        );
    }
    let internal = &render.get("Service", "registry-internal")["spec"];
    assert_eq!(
        (
            &internal["clusterIP"],
            &internal["publishNotReadyAddresses"]
        ),
        (&json!("None"), &json!(true))
    );
}

#[test]
fn the_services_have_the_ports_of_the_contract() {
    let render = Render::scenario("ha");
    let ports = |service: &str| {
        let ports = render.get("Service", service)["spec"]["ports"]
            .as_array()
            .unwrap()
            .clone();
        ports
            .iter()
            .map(|port| {
                (
                    port["name"].as_str().unwrap().to_owned(),
                    port["port"].as_u64().unwrap(),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ports("registry"),
        [("https".to_owned(), 443), ("https-alt".to_owned(), 5000)]
    );
    assert_eq!(ports("registry-internal"), [("internal".to_owned(), 5001)]);
    assert_eq!(ports("webhook"), [("https".to_owned(), 443)]);
    let container =
        &render.get("Deployment", "webhook")["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["ports"][0],
        json!({ "name": "https", "containerPort": 8443 })
    );
}

// SPEC 28, SPEC 29
#[test]
fn own_pods_prefer_system_nodes_and_leave_a_lost_node_after_30_seconds() {
    let render = Render::scenario("ha");
    for part in ["registry", "webhook", "controller"] {
        let pod = &render.get("Deployment", part)["spec"]["template"]["spec"];
        let preferred =
            &pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(
            preferred["preference"]["matchExpressions"][0]["key"],
            "kubernetes.azure.com/mode"
        );
        let tolerations = pod["tolerations"].as_array().unwrap();
        for taint in ["not-ready", "unreachable"] {
            let leave = json!({ "key": format!("node.kubernetes.io/{taint}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30 });
            assert!(tolerations.contains(&leave), "{part}");
        }
        // A node is let go by what runs on it, so that must not wait for it.
        let held = json!({ "key": "holdfast.dev/not-ready", "operator": "Exists" });
        assert!(tolerations.contains(&held), "{part}");
        assert!(
            tolerations.contains(&json!({ "key": "CriticalAddonsOnly", "operator": "Exists" })),
            "{part}"
        );
    }
    let required = Render::scenario("aks");
    let affinity = &required.get("Deployment", "registry")["spec"]["template"]["spec"]["affinity"]
        ["nodeAffinity"];
    assert!(affinity["requiredDuringSchedulingIgnoredDuringExecution"].is_object());
}

// SPEC 29, SPEC 34, SPEC 42
#[test]
fn the_node_agent_runs_on_all_nodes_and_no_bad_node_holds_it_up() {
    let render = Render::scenario("aks");
    let agent = &render.get("DaemonSet", "node-agent")["spec"];
    assert_eq!(
        agent["template"]["spec"]["tolerations"],
        json!([{ "operator": "Exists" }])
    );
    assert!(agent["template"]["spec"].get("affinity").is_none());
    assert_eq!(
        agent["template"]["spec"]["nodeSelector"],
        json!({ "kubernetes.io/os": "linux" })
    );
    assert_eq!(
        agent["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
        "100%"
    );
}

// SPEC 30
#[test]
fn each_scale_yields_its_documented_numbers() {
    let check = |scenario: &str, requests: [&str; 2], limits: [&str; 2]| {
        let render = Render::scenario(scenario);
        let resources = &render.get("Deployment", "registry")["spec"]["template"]["spec"]["containers"]
            [0]["resources"];
        let pair = |[cpu, memory]: [&str; 2]| json!({ "cpu": cpu, "memory": memory });
        assert_eq!(
            *resources,
            json!({ "requests": pair(requests), "limits": pair(limits) }),
            "{scenario}"
        );
        let values = holdfast_config::Values::parse(&scenarios()[scenario]).unwrap();
        assert_eq!(
            *resources,
            serde_json::to_value(values.registry_resources()).unwrap(),
            "{scenario}"
        );
    };
    check("scale-small", ["100m", "250Mi"], ["100m", "2Gi"]);
    check("ha", ["250m", "500Mi"], ["500m", "2Gi"]);
    check("scale-large", ["500m", "1Gi"], ["1", "4Gi"]);
}

// SPEC 31
#[test]
fn every_container_has_requests_and_limits() {
    for scenario in scenarios().keys().filter(|name| *name != "everything") {
        for (name, pod) in Render::scenario(scenario).pods() {
            let containers = ["containers", "initContainers"]
                .iter()
                .filter_map(|kind| pod["spec"][*kind].as_array())
                .flatten();
            for container in containers {
                for bound in ["requests", "limits"] {
                    for resource in ["cpu", "memory"] {
                        assert!(
                            container["resources"][bound][resource].is_string(),
                            "{scenario}: {name} {bound} {resource}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn no_pod_waits_on_a_node_of_another_system() {
    for scenario in scenarios().keys().filter(|name| *name != "everything") {
        for (name, pod) in Render::scenario(scenario).pods() {
            assert_eq!(
                pod["spec"]["nodeSelector"]["kubernetes.io/os"], "linux",
                "{scenario}: {name}"
            );
        }
    }
}

// SPEC 51
#[test]
fn the_address_can_be_fixed_and_is_left_to_the_cluster_otherwise() {
    let spec = |values: &str| {
        let documents = crate::helm::render(values).unwrap();
        let service = documents.into_iter().find(|document| {
            document["kind"] == "Service"
                && document
                    .pointer("/metadata/name")
                    .and_then(Value::as_str)
                    .unwrap()
                    .ends_with("-registry")
        });
        service.unwrap()["spec"].clone()
    };
    assert_eq!(spec(&scenarios()["everything"])["clusterIP"], "10.96.0.50");
    assert!(spec(&scenarios()["ha"]).get("clusterIP").is_none());
}

#[test]
fn restoring_at_the_end_has_its_own_time_and_rights() {
    let evicts = |render: &Render| {
        let roles = render.0.iter().filter(|document| {
            document["kind"] == "ClusterRole"
                && document["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.contains("-uninstall-"))
        });
        roles
            .flat_map(|role| role["rules"].as_array().unwrap())
            .any(|rule| rule["resources"] == json!(["pods/eviction"]))
    };
    assert!(!evicts(&Render::scenario("ha")), "unasked");
    let render = Render::scenario("everything");
    assert!(evicts(&render));
    let job = render
        .0
        .iter()
        .find(|document| document["kind"] == "Job" && document["spec"]["backoffLimit"] == 0)
        .unwrap();
    // 60 s for nodes, 900 s for pods, 120 s for the rest.
    assert_eq!(job["spec"]["activeDeadlineSeconds"], 1080);
}

#[test]
fn the_uninstall_hook_runs_once_ends_by_itself_and_before_its_deadline() {
    let render = Render::scenario("ha");
    let job = render.get("Job", "uninstall");
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    assert_eq!(job["spec"]["backoffLimit"], 0);
    assert_eq!(job["spec"]["activeDeadlineSeconds"], 240);
    assert_eq!(
        job["spec"]["template"]["spec"]["containers"][0]["args"][0],
        "uninstall"
    );
    let hooks = render.0.iter().filter(|document| {
        document.pointer("/metadata/annotations/helm.sh~1hook") == Some(&json!("pre-delete"))
    });
    let mut kinds: Vec<&str> = hooks
        .map(|document| document["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "ClusterRole",
            "ClusterRoleBinding",
            "Job",
            "Role",
            "RoleBinding",
            "ServiceAccount"
        ]
    );
}

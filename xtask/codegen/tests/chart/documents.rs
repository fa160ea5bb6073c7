//! The configuration documents in the ConfigMap: each part gets what it reads and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use holdfast_config::{Config, RegistrySettings, Values, yaml};
use serde_json::{Value, json};

use crate::helm::{self, FULLNAME, NAMESPACE, RELEASE, Render, name, scenarios};
use crate::keys::READ_BY_SERVICES;

/// The keys of the ConfigMap, and the sections and keys of the values that each document holds.
const DOCUMENTS: &[(&str, &[&str])] = &[
    (
        "registry.yaml",
        &[
            "logging",
            "sources",
            "onlyListedUpstreams",
            "upstreams",
            "proxy",
            "uplink",
            "registry",
        ],
    ),
    (
        "webhook.yaml",
        &[
            "logging",
            "sources",
            "onlyListedUpstreams",
            "upstreams",
            "access",
            "webhook",
        ],
    ),
    (
        "controller.yaml",
        &[
            "logging",
            "sources",
            "onlyListedUpstreams",
            "upstreams",
            "access",
            "global",
            "webhook",
            "controller",
            "nodeAgent",
            "preload",
        ],
    ),
    ("node-agent.yaml", &["logging", "nodeAgent"]),
    (
        "config.yaml",
        &[
            "logging",
            "global",
            "networkFunctionExtension",
            "sources",
            "onlyListedUpstreams",
            "upstreams",
            "access",
            "registry",
            "webhook",
            "controller",
            "nodeAgent",
            "preload",
            "uninstall",
        ],
    ),
];

/// What only a pod template needs.
const OF_POD_TEMPLATES: &[&str] = &[
    "replicas",
    "resources",
    "nodeSelector",
    "tolerations",
    "affinity",
    "podAnnotations",
    "podLabels",
    "priorityClassName",
    "extraEnv",
];

/// The ConfigMap of a render, if the registry is on.
fn map(documents: &[Value]) -> Option<&Value> {
    documents
        .iter()
        .find(|document| document["kind"] == "ConfigMap")
}

/// A document of the ConfigMap as plain YAML.
fn document(map: &Value, key: &str) -> Value {
    let text = map["data"][key].as_str();
    let text = text.unwrap_or_else(|| panic!("no {key} in {}", name(map)));
    yaml::from_str(text).unwrap()
}

/// Paths of everything below `value` that is not a map.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (key, field) in fields {
                paths(field, &format!("{path}/{}", key.replace('/', "~1")), found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn every_document_says_what_the_values_say() {
    for (scenario, values) in scenarios() {
        let documents = helm::render(&values).unwrap();
        let Some(map) = map(&documents) else {
            continue;
        };
        let own = serde_json::to_value(Values::parse(&values).unwrap()).unwrap();
        for (key, _) in DOCUMENTS {
            let text = map["data"][*key].as_str().unwrap();
            let config = Config::parse(text)
                .unwrap_or_else(|error| panic!("{scenario}, {key}: {error}\n{text}"));
            let release = &config.release;
            assert_eq!((&*release.name, &*release.namespace), (RELEASE, NAMESPACE));
            let fullname = if scenario == "everything" {
                "edge"
            } else {
                FULLNAME
            };
            assert_eq!(release.fullname, fullname);
            assert_eq!(map["metadata"]["name"], format!("{fullname}-config"));
            let read = serde_json::to_value(config.values).unwrap();
            let mut written = Vec::new();
            paths(&document(map, key)["values"], "", &mut written);
            for path in written {
                if path == "/upstreams" && *key != "registry.yaml" {
                    let hosts = |values: &Value| -> Vec<Value> {
                        let all = values["upstreams"].as_array().unwrap().iter();
                        all.map(|upstream| upstream["host"].clone()).collect()
                    };
                    assert_eq!(hosts(&read), hosts(&own), "{scenario}, {key}");
                    continue;
                }
                if path == "/registry/notifications/endpoints" {
                    let names = |values: &Value| -> Vec<Value> {
                        let all = values.pointer(&path).unwrap().as_array().unwrap().iter();
                        let name = |endpoint: &Value| {
                            let headers = endpoint["headers"].as_object().unwrap();
                            let names: Vec<&String> = headers.keys().collect();
                            json!([endpoint["name"], endpoint["url"], names])
                        };
                        all.map(name).collect()
                    };
                    assert_eq!(names(&read), names(&own), "{scenario}, {key}");
                    continue;
                }
                let (read, own) = (read.pointer(&path), own.pointer(&path));
                assert_eq!(read, own, "{scenario}, {key}: {path}");
            }
        }
    }
}

#[test]
fn values_of_notification_headers_are_in_a_secret_and_nowhere_else() {
    let values = json!({
        "global": { "networkfunctionextension": { "enableClusterRegistry": true } },
        "registry": { "notifications": { "endpoints": [
            { "name": "plain", "url": "https://a.example" },
            { "name": "audit", "url": "https://b.example", "headersSecret": "audit",
              "headers": { "Authorization": "Bearer hush", "X!Odd": "hush: {\"2\"} " } },
        ] } },
    });
    let documents = helm::render(&values.to_string()).unwrap();
    for document in &documents {
        let tells = document.to_string().contains("hush");
        assert_eq!(tells, document["kind"] == "Secret", "{}", name(document));
    }
    let secret = documents
        .iter()
        .find(|document| document["kind"] == "Secret")
        .unwrap();
    let registry = documents
        .iter()
        .find(|document| name(document) == format!("Deployment/{FULLNAME}-registry"));
    let pod = &registry.unwrap()["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume["name"] == "notification-headers");
    let volume = &volume.unwrap()["secret"];
    assert_eq!(volume["secretName"], secret["metadata"]["name"]);
    let items = volume["items"].as_array().unwrap().iter();
    let files: Vec<Value> = items
        .map(|item| {
            json!([
                item["path"],
                secret["stringData"][item["key"].as_str().unwrap()]
            ])
        })
        .collect();
    let expected = [
        json!(["1/Authorization", "Bearer hush"]),
        json!(["1/X!Odd", "hush: {\"2\"} "]),
    ];
    assert_eq!(files, expected);
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount["name"] == "notification-headers");

    // The registry looks for them where they are mounted.
    let text = map(&documents).unwrap()["data"]["registry.yaml"]
        .as_str()
        .unwrap();
    let settings = RegistrySettings::from_config(&Config::parse(text).unwrap());
    let folders: Vec<_> = settings
        .notifications
        .iter()
        .map(|of| &of.headers_folders)
        .collect();
    let folder = Path::new(mount.unwrap()["mountPath"].as_str().unwrap()).join("1");
    assert!(folders[0].is_empty());
    let own = PathBuf::from("/etc/holdfast/notifications/audit");
    assert_eq!(*folders[1], [folder, own]);
    assert!(
        settings
            .notifications
            .iter()
            .all(|of| of.headers.is_empty())
    );
}

#[test]
fn each_document_holds_what_its_part_reads_and_no_more() {
    for scenario in ["ha", "everything", "upstreams"] {
        let documents = helm::render(&scenarios()[scenario]).unwrap();
        let map = map(&documents).unwrap();
        let keys: BTreeSet<&str> = map["data"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(keys, DOCUMENTS.iter().map(|(key, _)| *key).collect());
        for (key, sections) in DOCUMENTS {
            let values = document(map, key)["values"].clone();
            let values = values.as_object().unwrap();
            let found: BTreeSet<&str> = values.keys().map(String::as_str).collect();
            let expected: BTreeSet<&str> = sections.iter().copied().collect();
            assert_eq!(found, expected, "{scenario}, {key}");
            for part in ["registry", "webhook", "controller", "nodeAgent"] {
                let Some(part) = values.get(part).and_then(Value::as_object) else {
                    continue;
                };
                for shape in OF_POD_TEMPLATES {
                    assert!(!part.contains_key(*shape), "{scenario}, {key}: {shape}");
                }
            }
            for upstream in values
                .get("upstreams")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter(|_| *key != "registry.yaml")
            {
                let keys: Vec<&String> = upstream.as_object().unwrap().keys().collect();
                assert_eq!(keys, ["host"], "{scenario}, {key}");
            }
        }
    }
}

#[test]
fn what_a_service_reads_is_in_its_document() {
    let render = Render::scenario("ha");
    let map = render.get("ConfigMap", "config");
    for (path, reader) in READ_BY_SERVICES {
        let readers: Vec<&str> = [
            ("registry", "registry.yaml"),
            ("webhook", "webhook.yaml"),
            ("controller", "controller.yaml"),
            ("node agent", "node-agent.yaml"),
        ]
        .into_iter()
        .filter(|(part, _)| reader.contains(part) || *reader == "all parts")
        .map(|(_, key)| key)
        .collect();
        for key in readers {
            let pointer = format!("/values/{}", path.replace('.', "/"));
            assert!(
                document(map, key).pointer(&pointer).is_some(),
                "{path} is read by {reader} and not in {key}"
            );
        }
    }
}

/// Mounts of `config.yaml`: which key of the ConfigMap each workload sees.
#[test]
fn each_pod_mounts_its_own_document_only() {
    let mut seen = Vec::new();
    for (workload, template) in Render::scenario("ha").pods() {
        let volumes = template["spec"]["volumes"].as_array().unwrap();
        let maps: Vec<&Value> = volumes
            .iter()
            .filter_map(|volume| volume.get("configMap"))
            .collect();
        assert_eq!(maps.len(), 1, "{workload}");
        let items = maps[0]["items"].as_array().unwrap();
        assert_eq!(items.len(), 1, "{workload}");
        assert_eq!(items[0]["path"], "config.yaml", "{workload}");
        let key = items[0]["key"].as_str().unwrap().to_owned();
        let suffix = workload.rsplit_once("holdfast-").unwrap().1.to_owned();
        seen.push((suffix, key));
    }
    seen.sort();
    let expected = [
        ("controller", "controller.yaml"),
        ("doctor", "config.yaml"),
        ("node-agent", "node-agent.yaml"),
        ("registry", "registry.yaml"),
        ("uninstall", "config.yaml"),
        ("webhook", "webhook.yaml"),
    ]
    .map(|(part, key)| (part.to_owned(), key.to_owned()));
    assert_eq!(seen, expected);
}

#[test]
fn globals_of_a_parent_chart_reach_no_object() {
    let ours = json!({ "networkfunctionextension": {
        "enableClusterRegistry": true,
        "clusterRegistry": { "storageClassName": "nfs-of-ours" },
    } });
    let mut global = ours.clone();
    let foreign = json!({
        "postgresql": { "auth": { "password": "s3cret-of-the-database" } },
        "imagePullSecret": "s3cret-of-a-registry",
        "tls": { "key": "-----BEGIN PRIVATE KEY-----\ns3cret-key\n" },
    });
    for (key, value) in foreign.as_object().unwrap() {
        global[key] = value.clone();
    }
    let parent = json!({ "global": global, "holdfast": { "logging": { "level": "debug" } } });
    let documents = helm::render_as_dependency(&parent.to_string()).unwrap();
    assert!(documents.len() > 10, "the dependency is rendered");
    for document in &documents {
        let text = document.to_string();
        for word in ["s3cret", "postgresql", "imagePullSecret\"", "PRIVATE KEY"] {
            assert!(!text.contains(word), "{} holds {word}", name(document));
        }
    }
    let map = map(&documents).unwrap();
    let global = document(map, "config.yaml")["values"]["global"].clone();
    assert_eq!(
        global.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["networkfunctionextension"]
    );
    let class = "/networkfunctionextension/clusterRegistry/storageClassName";
    assert_eq!(global.pointer(class), Some(&json!("nfs-of-ours")));
    // A value of the parent alone restarts nothing either.
    let parent = json!({ "global": ours, "holdfast": { "logging": { "level": "debug" } } });
    let without = helm::render_as_dependency(&parent.to_string()).unwrap();
    assert_eq!(documents, without);
}

#[test]
fn environment_variables_are_in_no_configuration() {
    let secret = json!([{ "name": "TOKEN", "value": "s3cret-of-a-variable" }]);
    let values = json!({
        "global": { "networkfunctionextension": { "enableClusterRegistry": true } },
        "registry": { "extraEnv": secret },
        "webhook": { "extraEnv": secret },
        "controller": { "extraEnv": secret },
        "nodeAgent": { "extraEnv": secret },
    });
    let documents = helm::render(&values.to_string()).unwrap();
    let holders: Vec<String> = documents
        .iter()
        .filter(|document| document.to_string().contains("s3cret"))
        .map(name)
        .collect();
    // The uninstaller has those of the controller.
    assert_eq!(holders.len(), 5, "the workloads: {holders:?}");
    assert!(!holders.iter().any(|holder| holder.contains("ConfigMap")));
}

/// The workloads whose pods are recreated when one value changes.
fn restarted(change: &Value) -> Vec<&'static str> {
    let mut values = json!({
        "global": { "networkfunctionextension": { "enableClusterRegistry": true } },
    });
    let before = Render(helm::render(&values.to_string()).unwrap());
    for (key, value) in change.as_object().unwrap() {
        values[key] = value.clone();
    }
    let after = Render(helm::render(&values.to_string()).unwrap());
    [
        ("Deployment", "registry"),
        ("Deployment", "webhook"),
        ("Deployment", "controller"),
        ("DaemonSet", "node-agent"),
    ]
    .into_iter()
    .filter(|(kind, part)| {
        let template = |render: &Render| render.get(kind, part)["spec"]["template"].clone();
        template(&before) != template(&after)
    })
    .map(|(_, part)| part)
    .collect()
}

#[test]
fn a_value_restarts_the_parts_that_read_it() {
    for (change, expected) in [
        (
            json!({ "logging": { "level": "debug" } }),
            &["registry", "webhook", "controller", "node-agent"][..],
        ),
        (
            json!({ "proxy": { "https": "proxy.example:3128" } }),
            &["registry"],
        ),
        (
            json!({ "upstreams": [{ "host": "a.example" }] }),
            &["registry", "webhook", "controller"],
        ),
        (
            json!({ "nodeAgent": { "pinImages": false } }),
            &["node-agent"],
        ),
        (
            json!({ "nodeAgent": { "startupTaint": { "timeoutSeconds": 60 } } }),
            &["controller"],
        ),
        (
            json!({ "controller": { "healing": { "mode": "none" } } }),
            &["controller"],
        ),
        (json!({ "uninstall": { "restore": true } }), &[]),
    ] {
        assert_eq!(restarted(&change), expected, "{change}");
    }
}

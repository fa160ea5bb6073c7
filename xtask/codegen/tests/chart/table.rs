//! Good and bad values: the schema, the services and the chart agree on each.

use holdfast_config::Values;
use serde_json::{Map, Value, json};

use crate::helm;

/// Who refuses a value first.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    /// The JSON schema, and with it everybody.
    Schema,
    /// A rule over several keys: `validate.yaml` in the chart, `Values::validate` in the services.
    Rule,
}

const P: &str = "global.networkfunctionextension";

/// Path, value and what is set beside it.
fn good() -> Vec<Vec<(String, Value)>> {
    let p = |key: &str, value: Value| (format!("{P}.{key}"), value);
    let own = |key: &str, value: Value| (key.to_owned(), value);
    let on = || p("enableClusterRegistry", json!(true));
    vec![
        vec![],
        vec![on()],
        vec![on(), p("enableEarlyLoading", json!(true))],
        vec![p("enableLocalRegistry", json!(true))],
        vec![on(), p("clusterRegistry.storageSize", json!("2Ti"))],
        vec![
            on(),
            p("clusterRegistry.clusterRegistryGCCadence", json!("")),
        ],
        vec![
            on(),
            p(
                "clusterRegistry.clusterRegistryGCCadence",
                json!("*/15 0-6,22 1,15 jan-mar MON-FRI"),
            ),
        ],
        vec![
            on(),
            p("clusterRegistry.clusterRegistryGCThreshold", json!(100)),
        ],
        vec![
            on(),
            p("clusterRegistry.registryService.scale", json!("small")),
        ],
        vec![
            on(),
            p(
                "webhook.pod.mutation.matchConditionExpression",
                json!("true"),
            ),
        ],
        vec![own(
            "networkFunctionExtension.EnableManagedInClusterEdgeRegistry",
            json!(true),
        )],
        vec![
            on(),
            own("networkFunctionExtension.EdgeRegistrySizeInGB", json!(1024)),
        ],
        vec![own(
            "Microsoft.CustomLocation.ServiceAccount",
            json!("azurehybridnetwork-networkfunction-operator"),
        )],
        vec![
            own("global.imageRegistry", json!("registry.example")),
            own("global.network", json!({ "a": 1 })),
        ],
        vec![on(), own("webhook.waitForNodes", json!(false))],
        vec![on(), own("webhook.waitForNodes", json!(300))],
        vec![on(), own("controller.healing.mode", json!("dryRun"))],
        vec![on(), own("controller.healing.evictionsPerMinute", json!(0))],
        vec![on(), own("registry.limits.manifestBytes", json!(4_194_304))],
        vec![on(), own("registry.limits.manifestBytes", json!("8Mi"))],
        vec![on(), own("registry.limits.manifestBytes", json!("16Mi"))],
        vec![on(), own("uplink.bandwidthBytesPerSecond", json!("10M"))],
        vec![on(), own("uplink.revalidatePulls", json!(true))],
        vec![on(), own("proxy.https", json!("proxy.example:3128"))],
        vec![
            on(),
            own("sources", json!(["registry.example:5000", "*.example.org"])),
        ],
        vec![
            on(),
            own(
                "upstreams",
                json!([{ "host": "registry.example:5000", "endpoint": "http://10.0.0.1:5000" }]),
            ),
        ],
        vec![on(), own("registry.replicas", json!(4))],
        vec![
            on(),
            own("registry.access.htpasswdSecret", json!("users")),
            own(
                "registry.access.rules",
                json!([{ "users": ["*"], "actions": ["pull"] }, { "users": ["ci"], "repositories": ["team/"], "actions": ["push"] }]),
            ),
        ],
        vec![
            on(),
            own(
                "registry.access.token",
                json!({ "secretName": "keys", "realm": "https://auth.example/token", "service": "registry", "issuer": "auth" }),
            ),
        ],
        vec![on(), own("registry.scrub.bytesPerSecond", json!(0))],
        vec![on(), own("registry.accessLog.mode", json!("all"))],
        vec![
            on(),
            own(
                "registry.notifications.endpoints",
                json!([{ "name": "audit", "url": "https://audit.example/events", "headersSecret": "audit", "ignoreActions": ["pull"] }]),
            ),
        ],
    ]
}

/// Path, value, who refuses it, and what is set beside it.
type Bad = (String, Value, By, Vec<(String, Value)>);

fn bad() -> Vec<Bad> {
    let mut rows = Vec::new();
    let on = (format!("{P}.enableClusterRegistry"), json!(true));
    let single = (
        format!("{P}.clusterRegistry.highAvailability.enabled"),
        json!(false),
    );
    let mut schema = |path: &str, values: Vec<Value>| {
        for value in values {
            rows.push((path.to_owned(), value, By::Schema, vec![on.clone()]));
        }
    };
    let p = |key: &str| format!("{P}.{key}");
    schema(&p("enableClusterRegistries"), vec![json!(true)]);
    schema(&p("enableEarlyLoading"), vec![json!("yes"), json!(1)]);
    schema(
        &p("clusterRegistry.storageSize"),
        vec![
            json!("100"),
            json!("100Mi"),
            json!("100G"),
            json!("0Gi"),
            json!("1.5Ti"),
            json!(100),
        ],
    );
    let crons = [
        "@daily",
        "0 0 * *",
        "0 0 * * * *",
        "60 0 * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "0 0 * * 8",
    ];
    schema(
        &p("clusterRegistry.clusterRegistryGCCadence"),
        crons.iter().map(|line| json!(line)).collect(),
    );
    schema(
        &p("clusterRegistry.clusterRegistryGCThreshold"),
        vec![json!(-1), json!(101), json!(1.5), json!("80")],
    );
    schema(
        &p("clusterRegistry.registryService.scale"),
        vec![json!("huge"), json!("Small"), json!("")],
    );
    schema(
        &p("webhook.pod.mutation.matchConditionExpression"),
        vec![json!(""), json!(true)],
    );
    schema(
        "global.networkFunctionExtension",
        vec![json!({ "enableClusterRegistry": true })],
    );
    schema(
        "global.networkfunctionextention",
        vec![json!({ "enableClusterRegistry": true })],
    );
    schema("global.network-function-extension", vec![json!({})]);
    schema(
        "networkFunctionExtension.enableClusterRegistry",
        vec![json!(true)],
    );
    schema(
        "networkFunctionExtension.EdgeRegistrySizeInGB",
        vec![json!(0), json!("1024")],
    );
    schema("Microsoft.CustomLocation.serviceAccount", vec![json!("a")]);
    schema("nosuchkey", vec![json!(1)]);
    schema("image.tag", vec![json!("a b")]);
    schema("image.digest", vec![json!("sha256:12"), json!("md5:00")]);
    schema("image.pullPolicy", vec![json!("Sometimes")]);
    schema(
        "sources",
        vec![
            json!(["https://registry.example"]),
            json!(["registry.example/team"]),
            json!("registry.example"),
        ],
    );
    schema(
        "upstreams",
        vec![
            json!([{}]),
            json!([{ "host": "https://registry.example" }]),
            json!([{ "host": "a", "hosts": 1 }]),
        ],
    );
    schema(
        "upstreams",
        vec![
            json!([{ "host": "a", "endpoint": "ftp://a" }]),
            json!([{ "host": "a", "endpoint": "https://u:p@a" }]),
        ],
    );
    schema(
        "upstreams",
        vec![
            json!([{ "host": "a", "ca": "not PEM" }]),
            json!([{ "host": "a", "mirrors": ["a"] }]),
        ],
    );
    schema(
        "proxy.https",
        vec![
            json!("socks5://proxy:1080"),
            json!("user:pw@proxy:3128"),
            json!("proxy:port"),
        ],
    );
    schema("uplink.tagFreshSeconds", vec![json!(-1), json!(9_999_999)]);
    schema("uplink.negativeSeconds", vec![json!(3601)]);
    schema(
        "uplink.bandwidthBytesPerSecond",
        vec![json!("fast"), json!("-1"), json!(-1), json!("1.5M")],
    );
    schema("uplink.concurrentFills", vec![json!(0), json!(1000)]);
    schema("logging.level", vec![json!("verbose")]);
    schema("logging.format", vec![json!("xml")]);
    schema("registry.replicas", vec![json!(0), json!(6)]);
    schema(
        "registry.resources",
        vec![json!({ "request": { "cpu": "1" } })],
    );
    schema(
        "registry.tolerations",
        vec![json!([{ "keys": "a" }]), json!({})],
    );
    schema(
        "registry.service.clusterIP",
        vec![json!("registry.example")],
    );
    schema("registry.limits.reservePercent", vec![json!(51)]);
    schema(
        "registry.limits.warnUsedPercent",
        vec![json!(0), json!(101)],
    );
    schema("registry.access.anonymous", vec![json!(true)]);
    schema(
        "registry.access.token.realm",
        vec![json!("auth.example"), json!("https://a\"b")],
    );
    schema("registry.access.token.rsaAlgorithm", vec![json!("HS256")]);
    schema(
        "registry.access.rules",
        vec![
            json!([{ "user": ["ci"] }]),
            json!([{ "actions": ["write"] }]),
            json!([{ "certificates": ["ci"] }]),
            json!([{ "repositories": ["Team"] }]),
        ],
    );
    schema("registry.accessLog.mode", vec![json!("some"), json!(true)]);
    schema("registry.accessLog.sample", vec![json!(0)]);
    schema("registry.scrub.everyHours", vec![json!(0)]);
    let sizes = [
        json!("17Mi"),
        json!("16385Ki"),
        json!("1Gi"),
        json!(16_777_217),
        json!(0),
    ];
    schema("registry.limits.manifestBytes", sizes.to_vec());
    schema(
        "registry.notifications.endpoints",
        vec![
            json!([{ "name": "a" }]),
            json!([{ "url": "https://a" }]),
            json!([{ "name": "a", "url": "ftp://a" }]),
            json!([{ "name": "a", "url": "https://a", "ignoreActions": ["look"] }]),
        ],
    );
    schema("webhook.failurePolicy", vec![json!("ignore")]);
    schema("webhook.timeoutSeconds", vec![json!(0), json!(31)]);
    schema("webhook.waitForNodes", vec![json!("yes"), json!(0)]);
    schema("webhook.clientCaSecret", vec![json!("Not A Name")]);
    schema(
        "networkPolicy.metrics",
        vec![
            json!("prometheus"),
            json!([{ "podSelectors": {} }]),
            json!([{ "ipBlock": { "except": [] } }]),
        ],
    );
    schema("controller.artifacts.perNamespace", vec![json!(1)]);
    schema("controller.artifacts.total", vec![json!(0)]);
    schema("controller.artifacts.undemandedMinutes", vec![json!(0)]);
    schema("controller.healing.mode", vec![json!("maybe"), json!(true)]);
    schema("controller.healing.refusedSeconds", vec![json!(5)]);
    schema(
        "nodeAgent.hostFolders.config",
        vec![json!("etc/containerd"), json!("")],
    );
    schema("nodeAgent.startupTaint.enabled", vec![json!("yes")]);
    schema("nodeAgent.startupTaint.timeoutSeconds", vec![json!(-1)]);
    schema("uninstall.timeoutSeconds", vec![json!(5)]);
    schema("uninstall.restore", vec![json!("yes")]);
    schema("uninstall.restoreTimeoutSeconds", vec![json!(5)]);
    schema(
        "preload.images",
        vec![
            json!(["some thing"]),
            json!(["https://r.io/app:1"]),
            json!(["r.io/App:1"]),
            json!([""]),
            json!("nginx:1"),
        ],
    );

    let mut rule = |path: &str, value: Value, beside: Vec<(String, Value)>| {
        rows.push((path.to_owned(), value, By::Rule, beside));
    };
    rule(&p("enableEarlyLoading"), json!(true), vec![]);
    rule(
        "networkFunctionExtension.EnableManagedInClusterEdgeRegistry",
        json!(false),
        vec![on.clone()],
    );
    let size = (p("clusterRegistry.storageSize"), json!("5Gi"));
    rule(
        "networkFunctionExtension.EdgeRegistrySizeInGB",
        json!(1024),
        vec![on.clone(), size],
    );
    rule("registry.replicas", json!(2), vec![on.clone()]);
    rule("webhook.replicas", json!(1), vec![on.clone()]);
    rule("registry.replicas", json!(2), vec![on.clone(), single]);
    rule(
        "registry.access.token",
        json!({ "secretName": "keys", "realm": "https://auth.example" }),
        vec![on.clone()],
    );
    for refused in [
        json!([{ "actions": ["pull"] }]),
        json!([{ "users": ["ci"], "actions": ["pull"] }]),
        json!([{ "certificates": ["*"], "actions": ["pull"] }]),
    ] {
        rule("registry.access.rules", refused, vec![on.clone()]);
    }
    rule(
        "nodeAgent.containerdConfigPath",
        json!("/opt/certs.d"),
        vec![on.clone()],
    );
    rule(
        "upstreams",
        json!([{ "host": "a.example" }, { "host": "A.example" }]),
        vec![on.clone()],
    );
    for refused in [
        json!([{ "host": "a.example", "credentialsSecret": "a", "username": "b" }]),
        json!([{ "host": "a.example", "username": "b" }]),
        json!([{ "host": "a.example", "username": "b", "passwordFile": "/p" }]),
        json!([{ "host": "a.example", "passwordFile": "/p" }]),
    ] {
        rule("upstreams", refused, vec![on.clone()]);
    }
    rule("onlyListedUpstreams", json!(true), vec![on.clone()]);
    for of in [
        json!({ "mirror": "https://other", "credentialsSecret": "a" }),
        json!({ "mirror": "https://m", "credentialsSecret": "a", "username": "b" }),
        json!({ "mirror": "https://m", "username": "b", "passwordFile": "/p" }),
        json!({ "mirror": "https://m" }),
    ] {
        rule(
            "upstreams",
            json!([{ "host": "a.example", "mirrors": ["https://m/"], "mirrorCredentials": [of] }]),
            vec![on.clone()],
        );
    }
    rows
}

fn document(entries: &[(String, Value)]) -> Value {
    let mut root = json!({});
    for (path, value) in entries {
        let mut at = &mut root;
        for step in path.split('.') {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = at
                .as_object_mut()
                .unwrap()
                .entry(step)
                .or_insert(Value::Null);
        }
        *at = value.clone();
    }
    root
}

/// Nulls remove a default, in Helm; the types know no such thing.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(key, value)| (key.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

fn schema() -> jsonschema::Validator {
    jsonschema::validator_for(&holdfast_config::values_schema()).unwrap()
}

/// The last key of a path: what a message must name.
fn key(path: &str) -> &str {
    path.rsplit('.').next().unwrap()
}

// SPEC 2
#[test]
fn good_values_are_accepted_by_schema_and_services() {
    let schema = schema();
    for entries in good() {
        let document = document(&entries);
        assert!(schema.is_valid(&document), "{document}");
        Values::parse(&document.to_string()).unwrap_or_else(|error| panic!("{document}: {error}"));
    }
}

// SPEC 2, SPEC 3, SPEC 15, SPEC 17, SPEC 18
#[test]
fn bad_values_are_refused_with_a_message_that_names_the_key() {
    let schema = schema();
    for (path, value, by, beside) in bad() {
        let document = document(&[beside, vec![(path.clone(), value)]].concat());
        assert_eq!(schema.is_valid(&document), by == By::Rule, "{document}");
        let message = Values::parse(&without_nulls(&document).to_string())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(message.contains(key(&path)), "{document}: {message:?}");
    }
}

#[test]
fn system_nodes_cannot_be_required_without_a_label() {
    let message = Values::parse("systemNodes: {required: true, selector: {}}")
        .unwrap_err()
        .to_string();
    assert!(message.contains("systemNodes.required"), "{message}");
}

#[test]
fn a_misspelt_neighbour_under_global_gets_a_hint() {
    for misspelt in [
        "networkFunctionExtension",
        "networkfunctionextention",
        "network_function_extension",
        "networkfunctionextensions",
    ] {
        let message = Values::parse(&json!({ "global": { misspelt: {} } }).to_string())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(misspelt) && message.contains("did you mean"),
            "{message}"
        );
    }
}

// SPEC 2
#[test]
fn helm_accepts_good_values() {
    for entries in good() {
        let document = document(&entries);
        helm::render(&document.to_string()).unwrap_or_else(|error| panic!("{document}: {error}"));
    }
}

// SPEC 2, SPEC 3
#[test]
fn helm_refuses_bad_values_with_a_message_that_names_the_key() {
    for (path, value, _, beside) in bad() {
        let document = document(&[beside, vec![(path.clone(), value)]].concat());
        let message = helm::render(&document.to_string())
            .err()
            .unwrap_or_default();
        assert!(message.contains(key(&path)), "{document}: {message:?}");
    }
}

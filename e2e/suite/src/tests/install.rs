//! Installing, switching on, refusing wrong values, uninstalling.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::command;
use crate::kube::{self, images};
use crate::objects::Pod;
use crate::site::{START, Site};
use crate::tests::pushes;
use crate::wait::eventually;
use crate::world::World;

fn extension(values: Value) -> Value {
    json!({"global": {"networkfunctionextension": values}})
}

/// Values that must be refused, and the key that the message must name.
fn wrong_values() -> Vec<(Value, &'static str)> {
    vec![
        (
            extension(json!({"enableClusterRegistry": "yes"})),
            "enableClusterRegistry",
        ),
        (
            extension(json!({"enableClusterRegistry": false, "enableEarlyLoading": true})),
            "enableEarlyLoading",
        ),
        (
            extension(json!({"enableClusterRegistri": true})),
            "enableClusterRegistri",
        ),
        (
            extension(json!({"clusterRegistry": {"storageSize": "100G"}})),
            "storageSize",
        ),
        (
            extension(json!({"clusterRegistry": {"storageSize": "0Gi"}})),
            "storageSize",
        ),
        (
            extension(json!({"clusterRegistry": {"clusterRegistryGCCadence": "daily"}})),
            "clusterRegistryGCCadence",
        ),
        (
            extension(json!({"clusterRegistry": {"clusterRegistryGCThreshold": 101}})),
            "clusterRegistryGCThreshold",
        ),
        (
            extension(json!({"clusterRegistry": {"registryService": {"scale": "huge"}}})),
            "scale",
        ),
        (
            extension(json!({"webhook": {"pod": {"mutation": {"matchConditionExpression": 1}}}})),
            "matchConditionExpression",
        ),
        (
            json!({"global": {"networkFunctionExtension": {"enableClusterRegistry": true}}}),
            "networkFunctionExtension",
        ),
        (json!({"sources": ["https://registry.example"]}), "sources"),
        (json!({"upstreams": [{"host": "not a host"}]}), "host"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (json!({"imagee": {}}), "imagee"),
    ]
}

// SPEC 2, SPEC 3, SPEC 15
pub(super) fn wrong_values_are_refused_by_name(world: &mut World) -> Result<()> {
    let site = world.site()?;
    let mut accepted = Vec::new();
    for (values, key) in wrong_values() {
        let mut helm = site.release.command(&values)?;
        // Should one be accepted, it must not disturb the tests that follow.
        helm.arg("--dry-run=server");
        match command::refused(helm) {
            Ok(message) if message.contains(key) => {}
            Ok(message) => accepted.push(format!(
                "{values}: the message does not name {key}: {message}"
            )),
            Err(error) => accepted.push(format!("{error:#}")),
        }
    }
    ensure!(accepted.is_empty(), "{}", accepted.join("\n"));
    Ok(())
}

// SPEC 1
pub(super) fn switched_off_nothing_exists(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.install(&extension(json!({"enableClusterRegistry": false})))?;
    let namespace = site.release.namespace();
    for kind in [
        "pods",
        "deployments",
        "daemonsets",
        "services",
        "persistentvolumeclaims",
    ] {
        let found = site.kube.list(&[kind, "-n", namespace])?;
        ensure!(
            found.is_empty(),
            "switched off there are {kind}: {:?}",
            found.iter().map(kube::name).collect::<Vec<_>>()
        );
    }
    let hooks = site.kube.list(&[
        "mutatingwebhookconfigurations",
        "-l",
        "app.kubernetes.io/instance=holdfast",
    ])?;
    ensure!(hooks.is_empty(), "switched off there is a webhook");
    let image = site.push(&site.plain, "off/app", 1, 1000)?;
    let test = site.namespace()?;
    let pod = test.create(&Pod::new("app", &image.reference))?;
    ensure!(
        images(&pod, "containers") == [image.reference.clone()],
        "rewritten while switched off: {:?}",
        images(&pod, "containers")
    );
    Ok(())
}

// SPEC 41
pub(super) fn switching_on_by_upgrade_copies_what_already_runs(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    if !site.release.is_installed() {
        site.install(&extension(json!({"enableClusterRegistry": false})))?;
    }
    let image = site.push(&site.plain, "early/app", 1, 100_000)?;
    let pod = Pod::new("before", &image.reference);
    let name = {
        // Not a `Namespace`: it has to outlive the upgrade, which borrows the site.
        let name = format!("e2e-{}", image.repository.replace('/', "-"));
        site.kube.apply(&[
            crate::objects::namespace(&name, &json!({})),
            pod.build(&name),
        ])?;
        name
    };
    site.kube
        .running(&name, "before", START)
        .context("the pod starts without Holdfast")?;
    let result = site
        .installed()
        .and_then(|()| site.kube.copied(&name, &image.reference, START));
    site.kube.delete(&["namespace", &name])?;
    result
}

// SPEC 15
pub(super) fn storage_is_claimed_as_asked_for(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let claim = site.kube.get(&[
        "pvc",
        "-n",
        site.release.namespace(),
        &site.release.object("registry"),
    ])?;
    ensure!(
        claim["status"]["phase"] == "Bound",
        "the claim is {}",
        claim["status"]["phase"]
    );
    ensure!(
        claim["spec"]["resources"]["requests"]["storage"] == "2Gi",
        "the claim asks for {}",
        claim["spec"]["resources"]
    );
    let class = if site.own { "nexus-shared" } else { "standard" };
    ensure!(
        claim["spec"]["storageClassName"] == class,
        "the claim's class is {}",
        claim["spec"]["storageClassName"]
    );
    Ok(())
}

// SPEC 80
pub(super) fn uninstalling_leaves_only_the_resource_definitions(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_nodes()?;
    site.installed()?;
    let image = site.push(&site.plain, "leave/app", 1, 1000)?;
    let test = site.namespace()?;
    test.create(&Pod::new("before", &image.reference))?;
    site.kube.running(&test.name, "before", START)?;
    let name = test.name.clone();
    std::mem::forget(test);
    site.uninstall()?;
    let left = left_in_cluster(site)?;
    ensure!(left.is_empty(), "left in the cluster: {}", left.join(", "));
    for (node, before) in &site.before {
        let now = site.runtime_files(node)?;
        ensure!(
            now == *before,
            "left on node {node}: {}",
            difference(before, &now)
        );
    }
    site.kube
        .get(&["crd", "artifacts.holdfast.dev"])
        .context("the resource definition stays")?;
    site.kube
        .apply(&[Pod::new("after", &image.reference).build(&name)])?;
    let pod = site
        .kube
        .running(&name, "after", START)
        .context("a pod after uninstalling")?;
    ensure!(
        images(&pod, "containers") == [image.reference],
        "rewritten after uninstalling"
    );
    site.kube.delete(&["namespace", &name])
}

// SPEC 42
pub(super) fn helm_3_installs_tests_and_uninstalls_past_a_dead_node(
    world: &mut World,
) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    site.uninstall()?;
    site.release.use_helm_3()?;
    site.installed()?;
    site.release.test().context("helm test")?;
    let image = site.push(&site.plain, "leave/later", 1, 1000)?;
    let workers = site.workers()?;
    let [dead, alive, ..] = workers.as_slice() else {
        bail!("two workers are needed");
    };
    site.cluster.kill_node(dead)?;
    eventually(Duration::from_secs(120), || {
        let ready = site.cluster.status()?.nodes.get(dead).copied();
        ensure!(ready == Some(false), "{dead} is still called Ready");
        Ok(())
    })?;
    // Helm's own wait would wait for the dead node's pods; the webhook and hooks must not.
    let mut upgrade = site
        .release
        .command(&json!({"logging": {"level": "info"}}))?;
    upgrade.arg("--wait=false");
    command::run_within(upgrade, START).context("an upgrade past a dead node")?;
    site.uninstall()?;
    // The kubelet that would end them is dead, too.
    let stuck = site.kube.list(&[
        "pods",
        "-n",
        site.release.namespace(),
        &format!("--field-selector=spec.nodeName={dead}"),
    ])?;
    let left: Vec<_> = left_in_cluster(site)?
        .into_iter()
        .filter(|left| {
            !stuck
                .iter()
                .any(|pod| *left == format!("Pod/{}", kube::name(pod)))
        })
        .collect();
    ensure!(left.is_empty(), "left in the cluster: {}", left.join(", "));
    let test = site.namespace()?;
    test.create(&Pod::new("after", &image.reference).on(alive))?;
    let pod = site
        .kube
        .running(&test.name, "after", START)
        .context("a pod after uninstalling")?;
    ensure!(
        images(&pod, "containers") == [image.reference],
        "rewritten after uninstalling"
    );
    site.cluster.start_node(dead)
}

/// Objects of the release that are still there, as `kind/name`.
fn left_in_cluster(site: &Site) -> Result<Vec<String>> {
    let kinds = site
        .kube
        .run(&["api-resources", "--verbs=list", "-o", "name"])?;
    // Events and leases of other parts end by themselves; definitions stay on purpose.
    let skip = [
        "events",
        "events.events.k8s.io",
        "customresourcedefinitions.apiextensions.k8s.io",
        "artifacts.holdfast.dev",
        "componentstatuses",
    ];
    let kinds: Vec<_> = kinds
        .lines()
        .filter(|kind| !skip.contains(kind) && !kind.starts_with("metrics."))
        .collect();
    let kinds = kinds.join(",");
    let look = || -> Result<Vec<String>> {
        let labelled =
            site.kube
                .list(&[&kinds, "-A", "-l", "app.kubernetes.io/instance=holdfast"])?;
        let own = site.kube.list(&[
            "secrets,configmaps,leases,pods,serviceaccounts,pvc",
            "-n",
            site.release.namespace(),
        ])?;
        let own = own.into_iter().filter(|object| {
            !["kube-root-ca.crt", "default", pushes::USERS].contains(&kube::name(object))
        });
        Ok(labelled
            .into_iter()
            .chain(own)
            .map(|object| {
                format!(
                    "{}/{}",
                    object["kind"].as_str().unwrap_or_default(),
                    kube::name(&object)
                )
            })
            .collect())
    };
    drop(eventually(Duration::from_secs(45), || match look()? {
        left if left.is_empty() => Ok(()),
        left => bail!("{}", left.join(", ")),
    }));
    look()
}

fn difference(before: &str, now: &str) -> String {
    let missing = before
        .lines()
        .filter(|line| !now.lines().any(|other| other == *line))
        .map(|line| format!("- {line}"));
    let new = now
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .map(|line| format!("+ {line}"));
    missing.chain(new).collect::<Vec<_>>().join("; ")
}

//! The Holdfast release of a site: values, helm, shared state.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_cluster::{Cluster, Program, SHARED_FOLDER, SharedVolume};
use serde_json::{Value, json};

use crate::command;
use crate::images::unique;
use crate::kube::Kube;
use crate::tools::{self, Tools};
use crate::upstream::Upstream;
use crate::wait::eventually;

/// A release, installed or not.
pub(crate) struct Release {
    name: &'static str,
    namespace: &'static str,
    helm: PathBuf,
    cluster: Cluster,
    chart: PathBuf,
    folder: PathBuf,
    /// Values of every installation.
    base: Value,
    /// Whether the cluster has volumes that all nodes share.
    shared: bool,
    /// The size in MiB of the volume that the next installation gets; any when absent.
    small: Option<usize>,
    /// The name of the volume that the last installation got.
    volume: Option<String>,
    current: Option<Value>,
}

impl Release {
    pub(crate) fn new(
        tools: &Tools,
        cluster: &Cluster,
        upstreams: &[&Upstream],
        shared: bool,
    ) -> Result<Self> {
        let (repository, tag) = tools
            .image
            .rsplit_once(':')
            .with_context(|| format!("image without tag: {}", tools.image))?;
        let upstreams: Vec<_> = upstreams
            .iter()
            .map(|upstream| json!({"host": upstream.host, "endpoint": upstream.endpoint, "ca": upstream.ca.clone().unwrap_or_default()}))
            .collect();
        let class = if shared { "nexus-shared" } else { "standard" };
        let base = json!({
            "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
            "upstreams": upstreams,
            "logging": {"level": "debug"},
            // The volume is a folder of a developer's disk, which may be nearly full.
            "registry": {"limits": {"reservePercent": 0, "warnUsedPercent": 100}},
            "global": {"networkfunctionextension": {
                "enableClusterRegistry": true,
                "clusterRegistry": {
                    "highAvailability": {"enabled": shared},
                    "autoScaling": {"enabled": false},
                    "storageClassName": class,
                    "storageSize": "2Gi",
                    "registryService": {"scale": "small"},
                },
                "webhook": {"highAvailability": {"enabled": shared}, "autoScaling": {"enabled": false}},
            }},
        });
        Ok(Self {
            name: "holdfast",
            namespace: "holdfast-system",
            helm: tools::program(Program::Helm)?,
            cluster: cluster.clone(),
            chart: tools.chart.clone(),
            folder: tools.folder.clone(),
            base,
            shared,
            small: None,
            volume: None,
            current: None,
        })
    }

    /// Whether anything has been installed.
    pub(crate) fn is_installed(&self) -> bool {
        self.current.is_some()
    }

    /// The release's namespace.
    pub(crate) fn namespace(&self) -> &'static str {
        self.namespace
    }

    /// The name of one of the release's objects.
    pub(crate) fn object(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }

    /// The selector of a part's pods.
    pub(crate) fn part(&self, part: &str) -> String {
        format!(
            "app.kubernetes.io/instance={},app.kubernetes.io/component={part}",
            self.name
        )
    }

    /// Works with helm 3 from now on.
    pub(crate) fn use_helm_3(&mut self) -> Result<()> {
        self.helm = tools::program(Program::Helm3)?;
        Ok(())
    }

    /// `helm test`: the chart's own check that the registry answers.
    pub(crate) fn test(&self) -> Result<String> {
        let mut helm = self.helm();
        helm.args(["test", self.name, "--namespace", self.namespace]);
        command::run(helm)
    }

    /// helm against the cluster.
    pub(crate) fn helm(&self) -> Command {
        self.cluster.command(&self.helm)
    }

    /// `helm upgrade --install` with these values over the base; does not run.
    pub(crate) fn command(&self, extra: &Value) -> Result<Command> {
        let mut values = self.base.clone();
        merge(&mut values, extra);
        let file = self.folder.join(format!("values-{}.json", unique()?));
        std::fs::write(&file, values.to_string()).context("write values")?;
        let mut helm = self.helm();
        helm.args(["upgrade", "--install", self.name])
            .arg(&self.chart);
        helm.args([
            "--namespace",
            self.namespace,
            "--create-namespace",
            "--wait",
            "--timeout",
            "5m",
            "--values",
        ])
        .arg(file);
        Ok(helm)
    }

    /// Installs or upgrades, and waits until pods are rewritten, unless exactly this runs already.
    pub(crate) fn install(&mut self, kube: &Kube, extra: &Value) -> Result<()> {
        if self.current.as_ref() == Some(extra) {
            return Ok(());
        }
        if self.current.is_none() && self.shared {
            let name = format!("registry-{}", unique()?);
            let volume = SharedVolume {
                cluster: &self.cluster,
                name: &name,
                size: "2Gi",
            };
            match self.small {
                Some(mib) => volume.create_small(mib)?,
                None => volume.create()?,
            }
            self.volume = Some(name);
        }
        // Whatever happens now, what runs is not what ran.
        self.current = Some(json!("unknown"));
        command::run(self.command(extra)?)?;
        let off = extra.pointer("/global/networkfunctionextension/enableClusterRegistry")
            == Some(&json!(false));
        if !off {
            self.wait_rewriting(kube, Duration::from_secs(180))?;
        }
        self.current = Some(extra.clone());
        Ok(())
    }

    /// The next installation gets a volume that holds this many MiB and no more.
    pub(crate) fn use_small_volume(&mut self, mib: usize) {
        self.small = Some(mib);
    }

    /// The next installation gets a volume as large as the machine's disk.
    pub(crate) fn use_any_volume(&mut self) {
        self.small = None;
    }

    /// The root of the registry's volume, as nodes see it.
    pub(crate) fn volume(&self) -> Result<String> {
        let name = self.volume.as_ref().context("no shared volume was made")?;
        Ok(format!("{SHARED_FOLDER}/{name}"))
    }

    /// Waits until the controller says that pods are rewritten.
    pub(crate) fn wait_rewriting(&self, kube: &Kube, limit: Duration) -> Result<()> {
        eventually(limit, || {
            let state = self.state(kube)?;
            ensure!(
                state["rewrite"] == true,
                "pods are not rewritten: {}",
                state["reason"]
            );
            Ok(())
        })
    }

    /// The state that the controller shares with the webhook.
    pub(crate) fn state(&self, kube: &Kube) -> Result<Value> {
        let map = kube.get(&["configmap", "-n", self.namespace, &self.object("state")])?;
        serde_json::from_str(
            map["data"]["state.json"]
                .as_str()
                .context("no state.json")?,
        )
        .context("the shared state")
    }

    /// Waits until every pod of Holdfast is ready.
    pub(crate) fn wait_ready(&self, kube: &Kube, limit: Duration) -> Result<()> {
        let replicas = if self.shared { 3 } else { 1 };
        for (part, count) in [
            ("registry", replicas),
            ("webhook", replicas),
            ("controller", 1),
        ] {
            kube.wait_ready(self.namespace, &self.part(part), count, limit)?;
        }
        self.wait_rewriting(kube, limit)
    }

    /// `helm uninstall`, if anything is installed.
    pub(crate) fn uninstall(&mut self) -> Result<()> {
        if self.current.take().is_none() {
            return Ok(());
        }
        let mut helm = self.helm();
        helm.args([
            "uninstall",
            self.name,
            "--namespace",
            self.namespace,
            "--wait",
            "--timeout",
            "5m",
        ]);
        command::run(helm).map(drop)
    }
}

/// Lays `over` on `value`, objects key by key.
fn merge(value: &mut Value, over: &Value) {
    match (value, over) {
        (Value::Object(value), Value::Object(over)) => {
            for (key, over) in over {
                merge(value.entry(key.clone()).or_insert(Value::Null), over);
            }
        }
        (value, over) => *value = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_laid_over_key_by_key() {
        let mut value = json!({"a": {"b": 1, "c": [1]}});
        merge(&mut value, &json!({"a": {"c": [2]}, "d": true}));
        assert_eq!(value, json!({"a": {"b": 1, "c": [2]}, "d": true}));
    }
}

//! Resource quotas that leave no room for further Artifacts.

use holdfast_cli_kit::cluster::{self, Resource};
use holdfast_cli_kit::finding::Code;
use holdfast_core::workload::text;
use kube::Client;
use serde_json::Value;

use super::api::{Fetched, listed};
use super::report::Report;

const QUOTAS: Resource = cluster::core("resourcequotas");
/// The key of a quota that counts Artifacts.
const COUNT: &str = "count/artifacts.holdfast.dev";

/// A quota that is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FullQuota {
    pub(super) namespace: String,
    pub(super) name: String,
    /// How many Artifacts it allows.
    pub(super) hard: String,
}

/// The quotas of a namespace, or of all, that are used up.
pub(super) async fn fetch(client: &Client, namespace: Option<&str>) -> Fetched<Vec<FullQuota>> {
    let quotas = listed(client, QUOTAS, namespace, "").await?;
    Ok(quotas.iter().filter_map(full).collect())
}

fn full(quota: &Value) -> Option<FullQuota> {
    let count = |list: &str| quota.pointer(list)?.get(COUNT)?.as_str();
    let hard = count("/status/hard").or_else(|| count("/spec/hard"))?;
    let used = count("/status/used")?;
    let is_full = match (used.parse::<u64>(), hard.parse::<u64>()) {
        (Ok(used), Ok(hard)) => used >= hard,
        _ => used == hard,
    };
    is_full.then(|| FullQuota {
        namespace: text(quota, "/metadata/namespace").to_owned(),
        name: text(quota, "/metadata/name").to_owned(),
        hard: hard.to_owned(),
    })
}

/// One finding for each full quota.
pub(super) fn diagnose(quotas: &Fetched<Vec<FullQuota>>, report: &mut Report) {
    match quotas {
        Ok(quotas) => {
            for quota in quotas {
                report.find(
                    Code::ArtifactQuotaFull,
                    format!(
                        "namespace {}: ResourceQuota {} allows {} Artifacts, and they exist: \
                         further images are not copied",
                        quota.namespace, quota.name, quota.hard
                    ),
                    format!("raise {COUNT} in this quota, or remove Artifacts that nothing needs"),
                );
            }
        }
        Err(why) => report.unknown.push(format!("quotas of Artifacts: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_quota_that_is_used_up_is_a_finding() {
        let quota = |hard: Value, used: Value| {
            json!({
                "metadata": {"name": "team", "namespace": "apps"},
                "spec": {"hard": hard}, "status": {"hard": hard, "used": used},
            })
        };
        for (hard, used, expect) in [
            (json!({COUNT: "5"}), json!({COUNT: "5"}), true),
            (json!({COUNT: "5"}), json!({COUNT: "7"}), true),
            (json!({COUNT: "5"}), json!({COUNT: "4"}), false),
            (json!({COUNT: "1k"}), json!({COUNT: "1k"}), true),
            (json!({COUNT: "5"}), json!({}), false),
            (json!({"pods": "5"}), json!({"pods": "5"}), false),
        ] {
            let found: Vec<_> = full(&quota(hard.clone(), used)).into_iter().collect();
            let mut report = Report::default();
            diagnose(&Ok(found), &mut report);
            assert_eq!(report.findings.len(), usize::from(expect), "{hard}");
            if expect {
                let text = report.to_string();
                assert!(
                    text.contains("namespace apps: ResourceQuota team"),
                    "{text}"
                );
            }
        }
        let mut report = Report::default();
        diagnose(
            &Err("resourcequotas may not be listed".to_owned()),
            &mut report,
        );
        assert_eq!(report.unknown.len(), 1);
    }
}

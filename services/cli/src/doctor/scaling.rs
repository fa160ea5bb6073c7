//! Whether autoscalers of the release have the numbers that they go by.

use holdfast_api::labels;
use holdfast_api::names::Names;
use holdfast_cli_kit::cluster::Resource;
use holdfast_cli_kit::finding::Code;
use holdfast_core::workload::{condition_is_true, text};
use kube::Client;
use serde_json::Value;

use super::api::{Fetched, listed, object};
use super::report::Report;

const AUTOSCALERS: Resource = Resource {
    group: "autoscaling",
    version: "v2",
    plural: "horizontalpodautoscalers",
};
const API_SERVICES: Resource =
    holdfast_cli_kit::cluster::of("apiregistration.k8s.io", "apiservices");
/// The API that answers with CPU and memory of pods; metrics-server is the usual one behind it.
const METRICS_API: &str = "v1beta1.metrics.k8s.io";

/// The autoscalers and the API that they ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scaling {
    /// Names of the release's autoscalers.
    pub(super) autoscalers: Vec<String>,
    /// Why the metrics API does not serve; `None`: it does.
    pub(super) no_metrics: Option<String>,
}

/// Asks for the release's autoscalers, and where there are any, for the API.
pub(super) async fn fetch(client: &Client, names: &Names) -> Fetched<Scaling> {
    let selector = format!("{}={}", labels::INSTANCE, names.release);
    let namespace = Some(names.namespace.as_str());
    let found = listed(client, AUTOSCALERS, namespace, &selector).await?;
    let mut autoscalers: Vec<String> = found
        .iter()
        .map(|autoscaler| text(autoscaler, "/metadata/name").to_owned())
        .collect();
    autoscalers.sort();
    if autoscalers.is_empty() {
        return Ok(Scaling::default());
    }
    let service = object(client, API_SERVICES, None, METRICS_API).await?;
    Ok(Scaling {
        autoscalers,
        no_metrics: no_metrics(service.as_ref()),
    })
}

fn no_metrics(service: Option<&Value>) -> Option<String> {
    let Some(service) = service else {
        return Some(format!("the API server has no {METRICS_API}"));
    };
    if condition_is_true(service, &["Available"]) {
        return None;
    }
    let conditions = service.pointer("/status/conditions");
    let mut conditions = conditions.and_then(Value::as_array).into_iter().flatten();
    let available = conditions.find(|condition| text(condition, "/type") == "Available");
    let why = available.map_or("it has no condition Available", |condition| {
        text(condition, "/message")
    });
    Some(format!("{METRICS_API} is not available: {why}"))
}

/// One finding, or one line that all is well.
pub(super) fn diagnose(scaling: &Fetched<Scaling>, report: &mut Report) {
    match scaling {
        Ok(scaling) if scaling.autoscalers.is_empty() => {}
        Ok(scaling) => match &scaling.no_metrics {
            Some(why) => report.find(
                Code::AutoscalerWithoutMetrics,
                format!(
                    "{} cannot scale by load: {why}",
                    scaling.autoscalers.join(", ")
                ),
                "install metrics-server, or set autoScaling.enabled=false under \
                 global.networkfunctionextension.clusterRegistry and .webhook",
            ),
            None => report
                .ok
                .push("the autoscalers have a metrics API".to_owned()),
        },
        Err(why) => report.unknown.push(format!("the autoscalers: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_api_that_is_absent_or_unavailable_gives_no_metrics() {
        let service = |status: &str| {
            json!({"status": {"conditions": [
                {"type": "Available", "status": status, "message": "no endpoints"},
            ]}})
        };
        assert_eq!(no_metrics(Some(&service("True"))), None);
        let without = no_metrics(None).unwrap();
        assert!(without.contains("has no v1beta1.metrics.k8s.io"));
        assert!(no_metrics(Some(&json!({}))).is_some());
        let failing = no_metrics(Some(&service("False"))).unwrap();
        assert!(failing.contains("no endpoints"), "{failing}");
    }

    #[test]
    fn only_autoscalers_without_metrics_are_a_problem() {
        let check = |scaling: Fetched<Scaling>, findings: usize, unknown: usize| {
            let mut report = Report::default();
            diagnose(&scaling, &mut report);
            let found = (report.findings.len(), report.unknown.len());
            assert_eq!(found, (findings, unknown), "{scaling:?}");
        };
        let scaling = |names: &[&str], no_metrics: Option<&str>| Scaling {
            autoscalers: names.iter().map(|&name| name.to_owned()).collect(),
            no_metrics: no_metrics.map(str::to_owned),
        };
        check(Ok(scaling(&[], Some("none"))), 0, 0);
        check(Ok(scaling(&["edge-registry"], None)), 0, 0);
        check(Ok(scaling(&["edge-registry"], Some("none"))), 1, 0);
        check(Err("may not be listed".to_owned()), 0, 1);
    }
}

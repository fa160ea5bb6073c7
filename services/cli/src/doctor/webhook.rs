//! Whether the API server can ask the webhook, and whether the webhook rewrites: pure.

use std::collections::BTreeSet;

use holdfast_cli_kit::finding::Code;

use super::fetch::Facts;
use super::report::Report;

/// Judges the webhook's configuration, its certificate, and what it did to a pod.
pub(super) fn diagnose(facts: &Facts, report: &mut Report) {
    let restart = "restart the controller, which writes it, and look at its log";
    match &facts.webhook {
        Ok(None) => report.find(
            Code::WebhookMissing,
            "the webhook's configuration does not exist: no pod is rewritten",
            "helm upgrade makes it again",
        ),
        Ok(Some(webhook))
            if webhook.bundles.is_empty() || webhook.bundles.iter().any(String::is_empty) =>
        {
            report.find(
                Code::WebhookWithoutCa,
                "the webhook's configuration has no caBundle: the API server cannot call it",
                restart,
            );
        }
        Ok(Some(webhook)) => match &webhook.authority {
            Some(Ok(authority))
                if !webhook
                    .bundles
                    .iter()
                    .all(|bundle| share(bundle, authority)) =>
            {
                report.find(
                    Code::WebhookWrongCa,
                    "the webhook's configuration has another CA than the webhook's certificate: \
                     the API server does not trust it",
                    restart,
                );
            }
            Some(Ok(_)) => report
                .ok
                .push("the webhook's configuration is there and its CA is right".to_owned()),
            Some(Err(why)) => report.unknown.push(format!("the webhook's CA: {why}")),
            None => report.find(
                Code::WebhookWithoutCertificate,
                "the webhook has no certificate yet",
                restart,
            ),
        },
        Err(why) => report
            .unknown
            .push(format!("the webhook's configuration: {why}")),
    }
    match &facts.rewrites {
        Some(Ok(true)) => report
            .ok
            .push("the webhook rewrites a pod (dry run)".to_owned()),
        Some(Ok(false)) => {
            let certificate = if facts.client_ca {
                "; webhook.clientCaSecret is set: every API server must show a certificate of that \
                 CA"
            } else {
                ""
            };
            report.find(
                Code::WebhookDoesNotRewrite,
                "the API server stores a pod without rewriting it, although no rule excludes the \
                 pod",
                format!(
                    "the webhook does not answer in time, or another match condition holds: see \
                     the API server's log and the webhook's metrics{certificate}"
                ),
            );
        }
        Some(Err(why)) => report
            .unknown
            .push(format!("whether the webhook rewrites: {why}")),
        None => {}
    }
}

/// Whether two bundles have a certificate in common. While a CA is replaced, both hold the old and
/// the new one.
fn share(one: &str, other: &str) -> bool {
    let certificates = |bundle: &str| -> BTreeSet<String> {
        let parts = bundle.split("-----BEGIN CERTIFICATE-----").skip(1);
        parts
            .map(|part| part.chars().filter(|c| !c.is_whitespace()).collect())
            .collect()
    };
    !certificates(one).is_disjoint(&certificates(other))
}

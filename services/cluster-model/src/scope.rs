//! The scope of a release: which namespaces, pods, upstream hosts and nodes concern Holdfast.

use crate::nodes::{NamespaceFacts, NodeFacts};
use holdfast_api::labels;
use holdfast_conditions::{Condition, Facts};
use holdfast_config::Config;
use holdfast_core::{Host, UpstreamFilter};
use kube::core::{Selector, SelectorExt as _};
use serde_json::Value;
use std::collections::BTreeMap;

/// `webhook.scope.namespaceSelector` is malformed.
#[derive(Debug, thiserror::Error)]
#[error("webhook.scope.namespaceSelector is invalid: {0}")]
pub struct ScopeError(String);

/// Which pods, images and nodes are in scope, by the configuration. The webhook configuration has
/// the same rules.
#[derive(Debug)]
pub struct Scope {
    /// `None`: the API server understands the expression, this process does not.
    condition: Option<Condition>,
    namespaces: Selector,
    upstreams: UpstreamFilter,
    release_namespace: String,
    /// Labels of the nodes in scope; empty means all.
    pub nodes: BTreeMap<String, String>,
}

impl Scope {
    /// Reads the configuration; an expression or selector that cannot be read is an error.
    pub fn new(config: &Config) -> Result<Self, ScopeError> {
        let values = &config.values;
        let expression = &values
            .global
            .networkfunctionextension
            .webhook
            .pod
            .mutation
            .match_condition_expression;
        let namespaces = Selector::try_from(values.webhook.scope.namespace_selector.clone())
            .map_err(|error| ScopeError(error.to_string()))?;
        let configured = values
            .upstreams
            .iter()
            .filter_map(|upstream| Host::parse(&upstream.host).ok())
            .collect();
        Ok(Self {
            condition: Condition::parse(expression)
                .inspect_err(|error| {
                    tracing::error!(
                        %error,
                        "cannot evaluate webhook.pod.mutation.matchConditionExpression: images of \
                         pods that the webhook missed are not copied"
                    );
                })
                .ok(),
            namespaces,
            upstreams: UpstreamFilter::new(&values.sources, configured)
                .only_configured(values.only_listed_upstreams),
            release_namespace: config.release.namespace.clone(),
            nodes: values.webhook.scope.node_selector.clone(),
        })
    }

    /// Whether a namespace is in scope. The match condition then decides on each pod.
    pub fn includes(&self, namespace: &str, facts: &NamespaceFacts) -> bool {
        namespace != self.release_namespace
            && !opted_out(Some(&facts.labels))
            && self.namespaces.matches(&facts.labels)
    }

    /// Whether `sources` and `onlyListedUpstreams` include images of this host.
    pub fn includes_source(&self, host: &Host) -> bool {
        self.upstreams.include(host)
    }

    /// Whether a node is in scope. Nodes of other operating systems have no agent.
    pub fn includes_node(&self, facts: &NodeFacts) -> bool {
        let linux = facts
            .platform
            .as_ref()
            .is_none_or(|platform| platform.starts_with("linux/"));
        linux
            && self
                .nodes
                .iter()
                .all(|(key, value)| facts.labels.get(key) == Some(value))
    }

    /// Whether the match condition selects a pod. An error counts as `failurePolicy: Ignore` does
    /// at the API server: the pod is not rewritten.
    pub(crate) fn condition_holds(&self, document: &Value) -> bool {
        self.condition.as_ref().is_some_and(|condition| {
            condition
                .matches(document, &Facts::of_pod(document))
                .unwrap_or_else(|error| {
                    tracing::debug!(
                        %error,
                        "the match condition fails for a pod; the pod is not rewritten"
                    );
                    false
                })
        })
    }
}

fn opted_out(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels
        .and_then(|labels| labels.get(labels::REWRITE))
        .is_some_and(|value| value == labels::REWRITE_DISABLED)
}

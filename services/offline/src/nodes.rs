//! What is known of the nodes: which images they list, and which of them can pull from the
//! registry.
//!
//! A node's status is a hint. It names 50 images at most, with five names each, and nothing of the
//! pull records of kubelets from 1.33 on, which may refuse a listed image (KEP-2535). A listed
//! image is a yes only for kubelets without records.

use std::collections::BTreeSet;

use holdfast_api::delivery::{Delivery, MAX_UNPREPARED};
use holdfast_cluster_model::{Scope, node_facts};
use holdfast_core::Reference;
use holdfast_core::kubelet::listed_name;
use holdfast_core::workload::text;
use serde_json::Value;

use crate::judge::Known;
use crate::scheduling::Place;

/// The most images in the status of a node, by the kubelet's default.
const MAX_LISTED_IMAGES: usize = 50;
/// The most names of an image in the status of a node.
const MAX_LISTED_NAMES: usize = 5;
/// The first minor version of Kubernetes 1 whose kubelets may keep pull records.
const FIRST_MINOR_WITH_RECORDS: u64 = 33;

/// What is known of a node.
#[derive(Debug)]
pub(crate) struct Node {
    /// What the scheduler reads of it.
    pub(crate) place: Place,
    /// Whether its operating system is Linux, as far as it is known.
    pub(crate) linux: bool,
    pub(crate) ready: bool,
    pub(crate) cordoned: bool,
    /// Whether the configuration includes it.
    pub(crate) in_scope: bool,
    kubelet: String,
    listed: BTreeSet<String>,
    /// Whether the status names all images of the node.
    is_complete: bool,
}

impl Node {
    /// Reads a node; `None` where the object is none.
    pub(crate) fn of(object: &Value, scope: &Scope) -> Option<Self> {
        let facts = node_facts(&serde_json::from_value(object.clone()).ok()?);
        let images = object.pointer("/status/images").and_then(Value::as_array);
        let images: Vec<Vec<&str>> = images
            .into_iter()
            .flatten()
            .map(|image| {
                let names = image.get("names").and_then(Value::as_array);
                let names = names.into_iter().flatten();
                names.filter_map(Value::as_str).collect()
            })
            .collect();
        let names_fit = images.iter().all(|names| names.len() < MAX_LISTED_NAMES);
        Some(Self {
            place: Place::of(object),
            linux: matches!(
                text(object, "/status/nodeInfo/operatingSystem"),
                "" | "linux"
            ),
            ready: facts.ready,
            cordoned: object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)),
            in_scope: scope.includes_node(&facts),
            kubelet: text(object, "/status/nodeInfo/kubeletVersion").to_owned(),
            is_complete: images.len() < MAX_LISTED_IMAGES && names_fit,
            listed: images
                .into_iter()
                .flatten()
                .filter_map(|name| Some(listed_name(&Reference::parse(name).ok()?)))
                .collect(),
        })
    }

    /// Whether the node starts a container of this name without a pull.
    pub(crate) fn starts(&self, name: &Reference) -> Known {
        match self.listed.contains(&listed_name(name)) {
            true if !self.may_keep_records() => Known::Yes,
            false if self.is_complete => Known::No,
            _ => Known::Unknown,
        }
    }

    /// Why it is not known whether the node starts it.
    pub(crate) fn doubt(&self, name: &Reference) -> String {
        let node = &self.place.name;
        if self.listed.contains(&listed_name(name)) {
            let kubelet = if self.kubelet.is_empty() {
                "unknown version"
            } else {
                &self.kubelet
            };
            format!(
                "node {node} lists it, but only its kubelet ({kubelet}) knows from its pull \
                 records whether pods may use it"
            )
        } else {
            format!("node {node} lists a part of its images only")
        }
    }

    fn may_keep_records(&self) -> bool {
        let version = self.kubelet.strip_prefix("v1.");
        let minor = version.and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
        minor.is_none_or(|minor| minor >= FIRST_MINOR_WITH_RECORDS)
    }
}

/// Whether a node can pull from the registry. Without word of the controller about nodes, all can
/// while pods are rewritten.
pub(crate) fn prepared(delivery: Option<&Delivery>, rewriting: bool, node: &str) -> Known {
    match delivery {
        Some(delivery) => {
            let unprepared = &delivery.state.unprepared;
            if unprepared.iter().any(|name| name == node) {
                Known::No
            } else if unprepared.len() >= MAX_UNPREPARED {
                Known::Unknown
            } else {
                Known::Yes
            }
        }
        None if rewriting => Known::Yes,
        None => Known::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::delivery::DeliveryState;
    use holdfast_config::Config;
    use serde_json::json;

    fn node(kubelet: &str, images: &Value) -> Node {
        let document = json!({
            "release": {"name": "h", "namespace": "h", "fullname": "h", "version": "0.1.0"},
            "values": {},
        });
        let scope = Scope::new(&Config::parse(&document.to_string()).unwrap()).unwrap();
        let object = json!({
            "metadata": {"name": "one"},
            "status": {"nodeInfo": {
                "kubeletVersion": kubelet, "architecture": "amd64", "bootID": "",
                "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
            }, "images": images},
        });
        Node::of(&object, &scope).unwrap()
    }

    #[test]
    fn a_listed_image_is_a_yes_only_where_kubelets_keep_no_records() {
        let name = Reference::parse("r.io/a:1").unwrap();
        let images = json!([{"names": ["r.io/a:1"]}]);
        for (kubelet, expect) in [
            ("v1.32.9", Known::Yes),
            ("v1.30.0-eks-1", Known::Yes),
            ("v1.33.0", Known::Unknown),
            ("v1.36.3+k3s1", Known::Unknown),
            ("", Known::Unknown),
            ("v2.1.0", Known::Unknown),
        ] {
            let node = node(kubelet, &images);
            assert_eq!(node.starts(&name), expect, "{kubelet}");
            assert!(node.doubt(&name).contains("pull records"));
        }
    }

    #[test]
    fn what_is_not_listed_is_a_no_only_where_the_list_is_whole() {
        let name = Reference::parse("r.io/b:1").unwrap();
        let one = json!({"names": ["r.io/a:1"]});
        let many: Vec<Value> = std::iter::repeat_n(one.clone(), MAX_LISTED_IMAGES).collect();
        let names = json!({"names": ["r.io/a:1", "r.io/a:2", "r.io/a:3", "r.io/a:4", "r.io/a:5"]});
        for (images, expect) in [
            (json!([one]), Known::No),
            (json!(many), Known::Unknown),
            (json!([names]), Known::Unknown),
        ] {
            assert_eq!(node("v1.32.0", &images).starts(&name), expect, "{images}");
        }
    }

    #[test]
    fn a_node_is_prepared_unless_the_controller_lists_it() {
        let delivery = |unprepared: Vec<String>| Delivery {
            state: DeliveryState {
                unprepared,
                ..DeliveryState::default()
            },
            ..Delivery::default()
        };
        let one = delivery(vec!["one".to_owned()]);
        assert_eq!(prepared(Some(&one), true, "one"), Known::No);
        assert_eq!(prepared(Some(&one), false, "two"), Known::Yes);
        let full = delivery(vec!["one".to_owned(); MAX_UNPREPARED]);
        assert_eq!(prepared(Some(&full), true, "two"), Known::Unknown);
        assert_eq!(prepared(None, true, "one"), Known::Yes);
        assert_eq!(prepared(None, false, "one"), Known::Unknown);
    }
}

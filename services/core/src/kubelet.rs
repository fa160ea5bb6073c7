//! Whether a kubelet starts a container from the images on its node, without a pull (KEP-2535).
//!
//! A kubelet with the feature gate `KubeletEnsureSecretPulledImages` (on by default from 1.35) has
//! a pull record for each image ID that it pulled. A record maps repositories, without tag or
//! digest, to the pods that may use the image by that name. The kubelet reads it at each start of a
//! container. An image that something else put on the node (preloaded) has no record, and every pod
//! may use it. As soon as the kubelet pulls the same image ID under another name, a record exists
//! with that other name alone; pods that use the first name then need a pull, running pods at their
//! next restart included.

use std::collections::{BTreeMap, BTreeSet};

use crate::reference::Reference;

/// The policy of a kubelet for images that it did not pull
/// (`imagePullCredentialsVerificationPolicy`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Policy {
    /// Images without a record are open to all pods. The kubelet's default.
    #[default]
    NeverVerifyPreloadedImages,
    /// All images are open to all pods.
    NeverVerify,
    /// Images of the listed repositories are open to all pods. An entry is a repository, or a
    /// prefix of whole path components that ends with `/*`.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// Only the records decide.
    AlwaysVerify,
}

/// The pods that may use an image by one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access {
    /// All pods of the node: it was pulled with the node's credentials, or with none.
    AllPods,
    /// Pods with one of these.
    Only {
        /// Pull secrets as (namespace, name).
        secrets: BTreeSet<(String, String)>,
        /// Service accounts as (namespace, name).
        service_accounts: BTreeSet<(String, String)>,
    },
}

/// The pull record of an image ID: repositories in canonical form, without tag or digest.
pub type Record = BTreeMap<String, Access>;

/// An image ID on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeImage {
    /// Its names, canonical: `HOST/PATH:TAG` and `HOST/PATH@DIGEST`.
    pub names: BTreeSet<String>,
    /// Its pull record; `None` if the kubelet never pulled it.
    pub record: Option<Record>,
    /// Whether the kubelet began to pull it and did not finish. Without a record it then counts as
    /// pulled, not as preloaded.
    pub intent: bool,
}

/// What is known of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Whether the kubelet keeps records.
    pub keeps_records: bool,
    /// Its policy; the default if nothing tells it.
    pub policy: Policy,
}

/// The credentials of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Its namespace.
    pub namespace: String,
    /// The names of its pull secrets.
    pub pull_secrets: BTreeSet<String>,
    /// The name of its service account.
    pub service_account: String,
}

/// The name under which a runtime lists an image that a pod names: canonical, with the digest alone
/// if it has tag and digest.
pub fn listed_name(reference: &Reference) -> String {
    let repository = repository(reference);
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Some(tag)) => format!("{repository}:{tag}"),
        (None, None) => format!("{repository}:latest"),
    }
}

/// The key of a reference in a pull record.
pub fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.host(), reference.repository())
}

/// Whether a container that names `reference` starts from `image` without a pull. The pull policy
/// `Always` is the caller's matter: such a container always needs a pull.
pub fn starts(
    reference: &Reference,
    image: &NodeImage,
    node: &Node,
    credentials: &Credentials,
) -> bool {
    image.names.contains(&listed_name(reference))
        && (!node.keeps_records
            || may_use(&repository(reference), image, &node.policy, credentials))
}

fn may_use(
    repository: &str,
    image: &NodeImage,
    policy: &Policy,
    credentials: &Credentials,
) -> bool {
    let is_preloaded = image.record.is_none() && !image.intent;
    match policy {
        Policy::NeverVerify => return true,
        Policy::NeverVerifyPreloadedImages if is_preloaded => return true,
        Policy::NeverVerifyAllowlistedImages(list)
            if list.iter().any(|entry| is_listed(repository, entry)) =>
        {
            return true;
        }
        _ => {}
    }
    let access = image
        .record
        .as_ref()
        .and_then(|record| record.get(repository));
    access.is_some_and(|access| match access {
        Access::AllPods => true,
        Access::Only {
            secrets,
            service_accounts,
        } => {
            let is_ours = |(namespace, _): &&(String, String)| *namespace == credentials.namespace;
            secrets
                .iter()
                .filter(is_ours)
                .any(|(_, name)| credentials.pull_secrets.contains(name))
                || service_accounts
                    .iter()
                    .filter(is_ours)
                    .any(|(_, name)| *name == credentials.service_account)
        }
    })
}

fn is_listed(repository: &str, entry: &str) -> bool {
    match entry.strip_suffix("/*") {
        Some(prefix) => repository
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('/')),
        None => repository == entry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRELOADED: &str = "docker.io/library/nginx";
    const LOCAL: &str = "10.96.0.50/docker.io/library/nginx";

    fn node(policy: Policy) -> Node {
        Node {
            keeps_records: true,
            policy,
        }
    }

    fn image(record: Option<&[(&str, Access)]>) -> NodeImage {
        NodeImage {
            names: [format!("{PRELOADED}:1"), format!("{LOCAL}:1")].into(),
            record: record.map(|entries| {
                let entries = entries.iter();
                entries
                    .map(|(name, access)| ((*name).to_owned(), access.clone()))
                    .collect()
            }),
            intent: false,
        }
    }

    fn pod(namespace: &str, secret: &str, account: &str) -> Credentials {
        Credentials {
            namespace: namespace.to_owned(),
            pull_secrets: [secret.to_owned()].into(),
            service_account: account.to_owned(),
        }
    }

    fn starts_text(text: &str, image: &NodeImage, node: &Node) -> bool {
        let reference = Reference::parse(text).unwrap();
        starts(&reference, image, node, &Credentials::default())
    }

    #[test]
    fn a_pull_under_another_name_takes_a_preloaded_image_away() {
        let default = node(Policy::default());
        let preloaded = image(None);
        assert!(starts_text("nginx:1", &preloaded, &default));
        assert!(!starts_text("nginx:2", &preloaded, &default));
        let pulled = image(Some(&[(LOCAL, Access::AllPods)]));
        assert!(!starts_text("nginx:1", &pulled, &default));
        assert!(starts_text(&format!("{LOCAL}:1"), &pulled, &default));
        // Without the gate the names alone decide.
        assert!(starts_text("nginx:1", &pulled, &Node::default()));
        // The record names repositories; the tag is not part of it.
        let both = image(Some(&[
            (LOCAL, Access::AllPods),
            (PRELOADED, Access::AllPods),
        ]));
        assert!(starts_text("nginx:1", &both, &default));
    }

    #[test]
    fn a_pull_that_was_cut_off_counts_as_pulled() {
        let mut cut_off = image(None);
        cut_off.intent = true;
        assert!(!starts_text("nginx:1", &cut_off, &node(Policy::default())));
        assert!(starts_text("nginx:1", &cut_off, &node(Policy::NeverVerify)));
    }

    #[test]
    fn each_policy_opens_what_it_says() {
        let pulled = image(Some(&[(LOCAL, Access::AllPods)]));
        let list = |entry: &str| Policy::NeverVerifyAllowlistedImages(vec![entry.to_owned()]);
        for (policy, opens_pulled, opens_preloaded) in [
            (Policy::default(), false, true),
            (Policy::NeverVerify, true, true),
            (Policy::AlwaysVerify, false, false),
            (list("docker.io/*"), true, true),
            (list("docker.io/library/nginx"), true, true),
            (list("docker.io/library/ngin*"), false, false),
            (list("docker.i/*"), false, false),
            (list("docker.io/library/nginx/*"), false, false),
        ] {
            let node = node(policy);
            assert_eq!(
                starts_text("nginx:1", &pulled, &node),
                opens_pulled,
                "{node:?}"
            );
            let preloaded = starts_text("nginx:1", &image(None), &node);
            assert_eq!(preloaded, opens_preloaded, "{node:?}");
        }
    }

    #[test]
    fn a_private_image_is_open_to_pods_with_its_secret_or_account() {
        let pair = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let only = Access::Only {
            secrets: [pair("a", "key")].into(),
            service_accounts: [pair("b", "builder")].into(),
        };
        let private = image(Some(&[(PRELOADED, only)]));
        let reference = Reference::parse("nginx:1").unwrap();
        let node = node(Policy::default());
        for (pod, expect) in [
            (pod("a", "key", "default"), true),
            (pod("b", "key", "default"), false),
            (pod("a", "other", "builder"), false),
            (pod("b", "", "builder"), true),
        ] {
            assert_eq!(starts(&reference, &private, &node, &pod), expect, "{pod:?}");
        }
    }

    #[test]
    fn a_reference_with_a_digest_is_listed_by_it() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, name) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1", format!("{PRELOADED}:1")),
            (
                &format!("nginx:1@{digest}"),
                format!("{PRELOADED}@{digest}"),
            ),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(listed_name(&reference), name);
        }
    }
}

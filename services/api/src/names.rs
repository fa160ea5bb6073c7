//! Names of the objects that the parts share, from the chart's fullname.

/// The fullname of a release: the release's name when it contains `holdfast`, else
/// `RELEASE-holdfast`; at most 40 characters, so that every suffix below fits into 63, and with `-`
/// for dots, which names of Services cannot have. The chart does the same.
pub fn fullname(release: &str) -> String {
    let name = if release.contains("holdfast") {
        release.to_owned()
    } else {
        format!("{release}-holdfast")
    };
    let cut: String = name.replace('.', "-").chars().take(40).collect();
    cut.trim_end_matches('-').to_owned()
}

/// Names of the shared objects of one release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The release's name, `app.kubernetes.io/instance` of its objects.
    pub release: String,
    /// The chart's fullname, the beginning of every name.
    pub fullname: String,
    /// The release's namespace.
    pub namespace: String,
}

macro_rules! names {
    ($($(#[$doc:meta])* $method:ident = $suffix:literal;)*) => {
        $($(#[$doc])* pub fn $method(&self) -> String { format!(concat!("{}-", $suffix), self.fullname) })*
    };
}

impl Names {
    /// Names of a release whose fullname is what the chart makes by default.
    pub fn of_release(release: &str, namespace: &str) -> Self {
        Self {
            release: release.to_owned(),
            fullname: fullname(release),
            namespace: namespace.to_owned(),
        }
    }

    names! {
        /// Deployment, Service and PVC of the registry.
        registry = "registry";
        /// Headless Service of the registry's internal API.
        registry_internal = "registry-internal";
        /// Deployment, Service and `MutatingWebhookConfiguration` of the webhook.
        webhook = "webhook";
        /// Deployment and Lease of the controller.
        controller = "controller";
        /// Headless Service of the controller's API for node agents.
        controller_internal = "controller-internal";
        /// DaemonSet of the node agent.
        node_agent = "node-agent";
        /// ConfigMap with the configuration.
        config = "config";
        /// Secret with the internal CA.
        ca = "ca";
        /// Secret with the registry's certificate.
        registry_tls = "registry-tls";
        /// Secret with the webhook's certificate.
        webhook_tls = "webhook-tls";
        /// Secret with the controller's client certificate.
        controller_tls = "controller-tls";
        /// Secret with the node agents' client certificate.
        node_agent_tls = "node-agent-tls";
        /// Secret with the upload secret and the node credential.
        registry_auth = "registry-auth";
        /// Secret with [`crate::state::NodeState`].
        node = "node";
        /// ConfigMap with [`crate::delivery::Delivery`].
        delivery = "delivery";
        /// ConfigMap with [`crate::state::ClusterState`].
        state = "state";
    }

    /// The user name of the controller's service account.
    pub fn controller_user(&self) -> String {
        let account = self.controller();
        format!("system:serviceaccount:{}:{account}", self.namespace)
    }

    /// The URI in the client certificate of the release's node agents.
    pub fn node_agent_identity(&self) -> String {
        format!("holdfast://node-agent/{}.{}", self.namespace, self.fullname)
    }

    /// `NAME.NAMESPACE.svc`, the DNS name of one of the Services.
    pub fn dns(&self, service: &str) -> String {
        format!("{service}.{}.svc", self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullname_says_holdfast_once() {
        for (release, expect) in [
            ("holdfast", "holdfast"),
            ("my-holdfast-2", "my-holdfast-2"),
            ("edge", "edge-holdfast"),
            ("edge.site.example", "edge-site-example-holdfast"),
            (
                "a-very-long-release-name-that-goes-on-and-on-for-ever",
                "a-very-long-release-name-that-goes-on-an",
            ),
        ] {
            assert_eq!(fullname(release), expect);
        }
    }

    #[test]
    fn objects_are_named_after_the_release() {
        let names = Names::of_release("edge", "sys");
        assert_eq!(names.registry_tls(), "edge-holdfast-registry-tls");
        assert_eq!(
            names.dns(&names.registry_internal()),
            "edge-holdfast-registry-internal.sys.svc"
        );
    }
}

//! The remedy for an image that is not local, for events and commands.

use holdfast_api::artifact::Reason;

/// What to do about a volume that is filling up or full.
pub const ENLARGE: &str = "\
    enlarge the registry's volume: raise clusterRegistry.storageSize, or, with \
    registry.storage.existingClaim, the size of that claim or of its storage; deleting Artifacts \
    or images frees no space in this version";

/// What to do about an image that is not local for this reason.
pub fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Copied => "the cluster no longer needs its upstream for it",
        Reason::Unauthorized => {
            "check imagePullSecrets of the pod, or of the workload's template, and of its service \
             account"
        }
        Reason::NotFound => "check the reference; the upstream has no such image",
        Reason::UpstreamUnavailable => {
            "Holdfast retries; check the uplink, the proxy and the upstream"
        }
        Reason::UpstreamInvalid => {
            "the upstream's content does not match its digest or is not an image; push it there \
             again"
        }
        Reason::NoSpace => ENLARGE,
        Reason::Invalid => "correct the reference, or the values that exclude its host",
        Reason::StoreFailed => "Holdfast retries; check the registry's volume and its storage",
        Reason::Busy => "Holdfast retries; the registry, or the upstream, has too much to do",
        Reason::PullSecretUnreadable => {
            "Holdfast retries; check the API server and the controller's permissions"
        }
        Reason::RegistryUnavailable => "Holdfast retries; check the registry's pods",
        Reason::Copying => "it is being copied",
        Reason::NoDemand => "it is copied when a pod or a workload names it",
        Reason::TooManyArtifacts => "remove Artifacts that nothing needs, or raise the limit",
    }
}

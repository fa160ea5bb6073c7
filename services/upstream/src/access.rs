//! Which credentials may pull an image, over all endpoints of its upstream.

use holdfast_api::access::Access;

use super::{UpstreamRepository, Upstreams};

impl Upstreams {
    /// Asks the endpoints in their order for a manifest: anonymously, with the operator's
    /// credentials, and with those of the source. A remembered refusal is not used: the caller
    /// wants the upstream's answer.
    pub async fn access(&self, source: &UpstreamRepository, target: &str) -> Access {
        let Ok(endpoints) = self.endpoints(&source.host) else {
            return Access::Unknown;
        };
        let mut otherwise = Access::Denied;
        for endpoint in endpoints {
            match endpoint.access(source, target).await {
                Access::Denied => {}
                Access::Unknown => otherwise = Access::Unknown,
                opened => return opened,
            }
        }
        otherwise
    }
}

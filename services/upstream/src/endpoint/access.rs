//! Which credentials may pull an image from this endpoint. Each is tried alone, without what
//! earlier requests found out.

use holdfast_api::access::Access;
use holdfast_core::oci::ManifestType;
use http::{Method, header};
use reqwest::Response;

use super::{Endpoint, call::Call, headers::text};
use crate::{Error, Login, Result, UpstreamRepository};

impl Endpoint {
    /// Tries an anonymous request, then the operator's credentials, then those of the source, and
    /// returns the first that is given the manifest.
    ///
    /// A mirror is the operator's choice as a whole: whatever opens it counts as configured, and it
    /// never sees the source's credentials.
    pub(crate) async fn access(&self, source: &UpstreamRepository, target: &str) -> Access {
        let nobody = if self.config.is_own {
            Access::Public
        } else {
            Access::Configured
        };
        let configured = self.authenticator.configured_logins().await.into_iter();
        let mut tries = vec![(None, nobody)];
        tries.extend(configured.map(|login| (Some(login), Access::Configured)));
        if self.config.is_own {
            let brought = source.logins.iter().cloned();
            tries.extend(brought.map(|login| (Some(login), Access::Proved)));
        }
        let mut otherwise = Access::Denied;
        for (login, access) in tries {
            match self.gives(source, target, login.as_ref()).await {
                Ok(true) => return access,
                Ok(false) => {}
                Err(Error::Invalid(_) | Error::NoManifest(_)) => otherwise = Access::Unknown,
                // It does not answer the next one either.
                Err(_) => return Access::Unknown,
            }
        }
        // A refusal would tell which ports of this network are open.
        if self.disclosure.is_confidential() {
            return Access::Unknown;
        }
        otherwise
    }

    /// Whether the endpoint gives a manifest to `login`, or to an anonymous request without one.
    async fn gives(
        &self,
        source: &UpstreamRepository,
        target: &str,
        login: Option<&Login>,
    ) -> Result<bool> {
        let path = format!("manifests/{target}");
        let head = Call::new(source, Method::HEAD, &path);
        match self.api.request_as(&head, login).await {
            Ok(answer) if is_of_manifest(&answer) => return Ok(true),
            // A page where people log in, or a server whose HEAD says nothing of its GET.
            Ok(_) | Err(Error::Invalid(_)) => {}
            Err(Error::NotFound | Error::Unauthorized) => return Ok(false),
            Err(error) => return Err(error),
        }
        let get = Call::new(source, Method::GET, &path);
        match self.api.request_as(&get, login).await {
            Ok(answer) => self.read_manifest(&get, answer, target).await.map(|_| true),
            Err(Error::NotFound | Error::Unauthorized) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_of_manifest(answer: &Response) -> bool {
    text(answer, header::CONTENT_TYPE).is_some_and(|text| ManifestType::of_header(&text).is_some())
}

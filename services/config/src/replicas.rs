//! Several registry processes on one folder without Kubernetes.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Several processes on one folder without Kubernetes: every request may reach any of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Replicas {
    /// Listener of the internal API, at an address that the other processes reach: they stream
    /// from here what this one copies.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Name in the certificates of the internal API, the same for all processes; it need not
    /// resolve.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Folder with `tls.crt`, `tls.key` and `ca.crt` of the internal API; the certificate serves
    /// and calls.
    pub tls_folder: PathBuf,
    /// File with the secret that signs upload sessions, the same for all processes.
    pub upload_secret_file: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Standalone;

    #[test]
    fn replicas_without_kubernetes_share_a_secret_and_an_authority() {
        let text = "replicas: {listen: '127.0.0.1:5001', name: replica.test, tlsFolder: /tls, uploadSecretFile: /secret}";
        let settings = Standalone::parse(text).unwrap().settings();
        assert_eq!(settings.internal_listen.unwrap().port(), 5001);
        assert_eq!(settings.internal_service.as_deref(), Some("replica.test"));
        assert_eq!(
            settings.internal_tls.unwrap().ca.as_deref(),
            Some(Path::new("/tls/ca.crt"))
        );
        assert_eq!(
            settings.upload_secret.as_deref(),
            Some(Path::new("/secret"))
        );
    }
}

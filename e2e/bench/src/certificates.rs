//! An authority for the length of a run: certificates for the listeners and for the replicas' calls
//! to each other, and a client that trusts them.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::CertificateDer,
};

/// Name in the certificates of the replicas' internal API.
pub(crate) const REPLICA: &str = "replica.bench";

/// The authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(DnType::CommonName, "holdfast bench CA");
        let key = KeyPair::generate()?;
        let certificate = ca.self_signed(&key)?;
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ok(Self {
            issuer: Issuer::new(ca, key),
            pem,
            der,
        })
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` into a folder. The certificate serves on 127.0.0.1
    /// and as a replica, and calls as one.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned(), REPLICA.to_owned()])?;
        leaf.distinguished_name
            .push(DnType::CommonName, "holdfast-registry");
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &self.issuer)?;
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("ca.crt"), &self.pem)?;
        std::fs::write(folder.join("tls.crt"), certificate.pem())?;
        std::fs::write(folder.join("tls.key"), key.serialize_pem())?;
        Ok(())
    }

    /// A client that trusts the authority. One cipher, so that every server does the same work.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..aws_lc_rs::default_provider()
        };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

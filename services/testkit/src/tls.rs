//! A self-signed certificate for the fault proxy, made at start.

use std::{net::IpAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// Installs the process's crypto provider; later calls change nothing.
pub fn install_crypto_provider() {
    // An error says only that there is one already.
    drop(aws_lc_rs::default_provider().install_default());
}

/// A certificate authority and a leaf for `names` (host names or addresses): the acceptor, and the
/// CA as PEM.
///
/// # Errors
/// When a name is neither a host name nor an address.
pub fn self_signed(names: &[String]) -> anyhow::Result<(TlsAcceptor, String)> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "holdfast test upstream CA");
    let ca_key = KeyPair::generate().context("generate the CA's key")?;
    let ca_certificate = ca.self_signed(&ca_key).context("sign the CA")?;
    let issuer = rcgen::Issuer::new(ca, ca_key);

    let names: Vec<String> = names
        .iter()
        .map(|n| n.trim_matches(['[', ']']).to_owned())
        .collect();
    let mut leaf =
        CertificateParams::new(names.clone()).with_context(|| format!("names {names:?}"))?;
    if let Some(name) = names.iter().find(|n| n.parse::<IpAddr>().is_err()) {
        leaf.distinguished_name
            .push(rcgen::DnType::CommonName, name);
    }
    let key = KeyPair::generate().context("generate the server's key")?;
    let certificate = leaf
        .signed_by(&key, &issuer)
        .context("sign the server's certificate")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), ca_certificate.pem()))
}

/// An authority whose certificates serve and call, as the controller's do.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> anyhow::Result<Self> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "holdfast test CA");
        let key = KeyPair::generate()?;
        let pem = ca.self_signed(&key)?.pem();
        Ok(Self {
            issuer: rcgen::Issuer::new(ca, key),
            pem,
        })
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` for a subject into a folder.
    ///
    /// # Errors
    /// When a name is none, or the folder cannot be written.
    pub fn write(&self, folder: &Path, common_name: &str, names: &[&str]) -> anyhow::Result<()> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name
            .push(rcgen::DnType::CommonName, common_name);
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &self.issuer)?;
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("ca.crt"), &self.pem)?;
        std::fs::write(folder.join("tls.crt"), certificate.pem())?;
        std::fs::write(folder.join("tls.key"), key.serialize_pem())?;
        Ok(())
    }
}

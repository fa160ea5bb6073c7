//! TLS of clients: which servers to trust and which certificate to present. Both can be replaced at
//! runtime.

use super::{Error, certificates, private_key, provider, read, roots};
use crate::files;
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A client configuration whose CA and certificate can be replaced. Clones share them.
///
/// [`ClientTls::config`] is created once, for instance for a `reqwest` client. New connections use
/// the latest CA and certificate.
#[derive(Clone, Debug)]
pub struct ClientTls {
    verifier: Arc<Verifier>,
    identity: Arc<Identity>,
}

#[derive(Debug)]
struct Verifier {
    current: ArcSwap<WebPkiServerVerifier>,
}

#[derive(Debug, Default)]
struct Identity {
    current: ArcSwapOption<CertifiedKey>,
}

impl ClientTls {
    /// Trusts only the certificates in `ca` (PEM), and presents `identity` (certificate chain and
    /// key, PEM) if the server asks for one.
    pub fn from_pem(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Self, Error> {
        let tls = Self {
            verifier: Arc::new(Verifier {
                current: ArcSwap::from(verifier(ca)?),
            }),
            identity: Arc::default(),
        };
        tls.identity.current.store(certified(identity)?);
        Ok(tls)
    }

    /// Replaces CA and certificate. On an error both stay as they are.
    pub fn replace(&self, ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<(), Error> {
        let (verifier, identity) = (verifier(ca)?, certified(identity)?);
        self.verifier.current.store(verifier);
        self.identity.current.store(identity);
        Ok(())
    }

    /// Reads `ca.crt`, `tls.crt` and `tls.key` in `folder`.
    pub fn from_folder(folder: &Path) -> Result<Self, Error> {
        let (ca, certificate, key) = folder_files(folder)?;
        Self::from_pem(&ca, Some((&certificate, &key)))
    }

    /// Follows the files of [`ClientTls::from_folder`] until `shutdown`. If a file is invalid, the
    /// last valid configuration stays.
    pub async fn follow(self, folder: &Path, every: Duration, shutdown: CancellationToken) {
        let folder = folder.to_owned();
        let paths = ["ca.crt", "tls.crt", "tls.key"]
            .map(|name| folder.join(name))
            .to_vec();
        files::watch(paths, every, shutdown, move || {
            let outcome = folder_files(&folder)
                .and_then(|(ca, certificate, key)| self.replace(&ca, Some((&certificate, &key))));
            match outcome {
                Ok(()) => tracing::info!(folder = %folder.display(), "client certificate reloaded"),
                Err(error) => {
                    tracing::warn!(
                        folder = %folder.display(), %error,
                        "new client certificate is invalid; the last valid one stays in effect"
                    );
                }
            }
        })
        .await;
    }

    /// The configuration for `reqwest` (`tls_backend_preconfigured`) or hyper.
    ///
    /// ALPN is up to the caller, because HTTP clients set their own.
    pub fn config(&self) -> Result<rustls::ClientConfig, Error> {
        Ok(rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Verifier>::clone(&self.verifier))
            .with_client_cert_resolver(Arc::<Identity>::clone(&self.identity)))
    }
}

/// CA bundle, certificate and key.
type Files = (Vec<u8>, Vec<u8>, Vec<u8>);

fn folder_files(folder: &Path) -> Result<Files, Error> {
    Ok((
        read(&folder.join("ca.crt"))?,
        read(&folder.join("tls.crt"))?,
        read(&folder.join("tls.key"))?,
    ))
}

fn verifier(ca: &[u8]) -> Result<Arc<WebPkiServerVerifier>, Error> {
    Ok(
        WebPkiServerVerifier::builder_with_provider(roots(ca, "the CA bundle")?, provider())
            .build()?,
    )
}

fn certified(identity: Option<(&[u8], &[u8])>) -> Result<Option<Arc<CertifiedKey>>, Error> {
    let Some((certificate, key)) = identity else {
        return Ok(None);
    };
    let chain = certificates(certificate, "the client certificate")?;
    let key = private_key(key, "the client key")?;
    Ok(Some(Arc::new(CertifiedKey::from_der(
        chain,
        key,
        &provider(),
    )?)))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.current.load().verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current
            .load()
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current
            .load()
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.current.load().supported_verify_schemes()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }

    fn has_certs(&self) -> bool {
        self.current.load().is_some()
    }
}

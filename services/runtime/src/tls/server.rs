//! TLS of servers: certificate, key and the CA of clients.

use super::{Error, certificates, private_key, provider, read, roots};
use crate::{files, reload::Reloads};
use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Whether clients present a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Clients are not asked for one.
    #[default]
    None,
    /// Clients may present one; an invalid one is refused.
    Optional,
    /// Clients must present one.
    Required,
}

/// The files of a serving certificate.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The CA bundle for client certificates, PEM; not read if `client_auth` is `None`.
    pub client_ca: PathBuf,
    /// Whether clients present a certificate.
    pub client_auth: ClientAuth,
}

impl TlsFiles {
    /// `tls.crt`, `tls.key` and `ca.crt` in a folder, as the controller's Secrets are mounted.
    pub fn in_folder(folder: &Path, client_auth: ClientAuth) -> Self {
        Self {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            client_ca: folder.join("ca.crt"),
            client_auth,
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        vec![
            self.certificate.clone(),
            self.key.clone(),
            self.client_ca.clone(),
        ]
    }

    fn load(&self) -> Result<rustls::ServerConfig, Error> {
        let origin = self.certificate.display().to_string();
        let chain = certificates(&read(&self.certificate)?, &origin)?;
        let key = private_key(&read(&self.key)?, &self.key.display().to_string())?;
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = if self.client_auth == ClientAuth::None {
            builder.with_no_client_auth()
        } else {
            let roots = roots(
                &read(&self.client_ca)?,
                &self.client_ca.display().to_string(),
            )?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match self.client_auth {
                ClientAuth::Required => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build()?)
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A serving configuration that follows its files. Clones share it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    files: Arc<TlsFiles>,
    current: Arc<ArcSwap<rustls::ServerConfig>>,
}

impl ServerTls {
    /// Reads the files. Fails if they are invalid, because there is no last valid configuration
    /// yet.
    pub fn from_files(files: TlsFiles) -> Result<Self, Error> {
        let current = Arc::new(ArcSwap::from_pointee(files.load()?));
        Ok(Self {
            files: Arc::new(files),
            current,
        })
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        self.current.load_full()
    }

    /// The CA of client certificates, if clients must present one.
    pub(crate) fn required_ca(&self) -> Option<&Path> {
        let is_required = self.files.client_auth == ClientAuth::Required;
        is_required.then_some(&self.files.client_ca)
    }

    /// Whether `config` is the current configuration. Connections of older ones should end.
    pub fn is_current(&self, config: &Arc<rustls::ServerConfig>) -> bool {
        Arc::ptr_eq(&self.current.load(), config)
    }

    /// Reads the files again. On an error the last valid configuration stays.
    pub fn reload(&self) -> Result<(), Error> {
        self.current.store(Arc::new(self.files.load()?));
        Ok(())
    }

    /// Follows the files until `shutdown`, checking them at the interval `every`, usually
    /// [`files::POLL_INTERVAL`].
    pub async fn follow(self, every: Duration, shutdown: CancellationToken) {
        self.follow_counted(every, Reloads::default(), shutdown)
            .await;
    }

    /// [`ServerTls::follow`], with metrics.
    pub async fn follow_counted(
        self,
        every: Duration,
        reloads: Reloads,
        shutdown: CancellationToken,
    ) {
        let paths = self.files.paths();
        files::watch(paths, every, shutdown, move || {
            reloads.record("tls", &self.reload());
        })
        .await;
    }
}

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
        let ca = match self.client_auth {
            ClientAuth::None => Vec::new(),
            _ => read(&self.client_ca)?,
        };
        Parts {
            certificate: (
                &read(&self.certificate)?,
                &self.certificate.to_string_lossy(),
            ),
            key: (&read(&self.key)?, &self.key.to_string_lossy()),
            client_ca: (&ca, &self.client_ca.to_string_lossy()),
            client_auth: self.client_auth,
        }
        .config()
    }
}

/// What a serving configuration is made of: each text, PEM, with its origin for errors.
struct Parts<'a> {
    certificate: (&'a [u8], &'a str),
    key: (&'a [u8], &'a str),
    client_ca: (&'a [u8], &'a str),
    client_auth: ClientAuth,
}

impl Parts<'_> {
    fn config(&self) -> Result<rustls::ServerConfig, Error> {
        let chain = certificates(self.certificate.0, self.certificate.1)?;
        let key = private_key(self.key.0, self.key.1)?;
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = if self.client_auth == ClientAuth::None {
            builder.with_no_client_auth()
        } else {
            let roots = roots(self.client_ca.0, self.client_ca.1)?;
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

/// A serving configuration that follows its files or is replaced. Clones share it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// `None` if it was not read from files.
    files: Option<Arc<TlsFiles>>,
    current: Arc<ArcSwap<rustls::ServerConfig>>,
}

impl ServerTls {
    /// Reads the files. Fails if they are invalid, because there is no last valid configuration
    /// yet.
    pub fn from_files(files: TlsFiles) -> Result<Self, Error> {
        let current = Arc::new(ArcSwap::from_pointee(files.load()?));
        Ok(Self {
            files: Some(Arc::new(files)),
            current,
        })
    }

    /// A configuration that is not in files: certificate chain, key and the CA of clients, PEM.
    /// Clients must present a certificate.
    pub fn from_pem(certificate: &[u8], key: &[u8], client_ca: &[u8]) -> Result<Self, Error> {
        let config = in_memory(certificate, key, client_ca)?;
        Ok(Self {
            files: None,
            current: Arc::new(ArcSwap::from_pointee(config)),
        })
    }

    /// Replaces a configuration of [`ServerTls::from_pem`]. Connections of clients that the former
    /// one verified end. On an error the last valid one stays.
    pub fn replace(&self, certificate: &[u8], key: &[u8], client_ca: &[u8]) -> Result<(), Error> {
        let config = in_memory(certificate, key, client_ca)?;
        self.current.store(Arc::new(config));
        Ok(())
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<rustls::ServerConfig> {
        self.current.load_full()
    }

    /// The CA of client certificates, if clients must present one.
    pub(crate) fn required_ca(&self) -> Option<&Path> {
        let files = self.files.as_ref()?;
        let is_required = files.client_auth == ClientAuth::Required;
        is_required.then_some(&files.client_ca)
    }

    /// Whether `config` is the current configuration. Connections of older ones should end.
    pub fn is_current(&self, config: &Arc<rustls::ServerConfig>) -> bool {
        Arc::ptr_eq(&self.current.load(), config)
    }

    /// Reads the files again. On an error the last valid configuration stays.
    pub fn reload(&self) -> Result<(), Error> {
        if let Some(files) = &self.files {
            self.current.store(Arc::new(files.load()?));
        }
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
        let Some(paths) = self.files.as_ref().map(|files| files.paths()) else {
            return;
        };
        files::watch(paths, every, shutdown, move || {
            reloads.record("tls", &self.reload());
        })
        .await;
    }
}

fn in_memory(
    certificate: &[u8],
    key: &[u8],
    client_ca: &[u8],
) -> Result<rustls::ServerConfig, Error> {
    Parts {
        certificate: (certificate, "the certificate"),
        key: (key, "the key"),
        client_ca: (client_ca, "the CA bundle"),
        client_auth: ClientAuth::Required,
    }
    .config()
}

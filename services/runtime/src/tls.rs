//! TLS configurations of servers and clients that follow their files without a restart. If a new
//! file is invalid, the last valid configuration stays in effect.
//!
//! The process has one crypto provider, aws-lc-rs. The protocols are TLS 1.2 and 1.3, with ALPN
//! `h2` and `http/1.1`.

mod client;
mod identity;
mod server;

pub use client::ClientTls;
pub use identity::PeerIdentity;
pub use server::{ClientAuth, ServerTls, TlsFiles};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::Arc;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text has no certificate, or an invalid one.
    #[error("no valid certificate in {0}")]
    Certificate(String),
    /// The text has no private key, or an invalid one.
    #[error("no valid private key in {0}")]
    Key(String),
    /// Certificate and key do not match, or the CA is invalid.
    #[error("invalid certificates")]
    Tls(#[from] rustls::Error),
    /// The CA cannot verify certificates.
    #[error("invalid CA")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Installs aws-lc-rs as the crypto provider of the process. Call it first in `main` and in tests;
/// further calls do nothing.
pub fn install_crypto_provider() {
    // An error means that one is installed already.
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err();
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    rustls::crypto::CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

fn certificates(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Certificate(origin.to_owned()))?;
    if certificates.is_empty() {
        Err(Error::Certificate(origin.to_owned()))
    } else {
        Ok(certificates)
    }
}

fn private_key(pem: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| Error::Key(origin.to_owned()))
}

fn roots(pem: &[u8], origin: &str) -> Result<Arc<rustls::RootCertStore>, Error> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in certificates(pem, origin)? {
        store.add(certificate)?;
    }
    Ok(Arc::new(store))
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

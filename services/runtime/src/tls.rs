//! TLS from files that change: serving and client configurations that follow their files without a
//! restart and keep the last good one when a file is bad.
//!
//! One crypto provider for the whole process, aws-lc-rs; protocols are TLS 1.2 and 1.3 with ALPN
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
    /// The text holds no certificate, or a broken one.
    #[error("no usable certificate in {0}")]
    Certificate(String),
    /// The text holds no private key, or a broken one.
    #[error("no usable private key in {0}")]
    Key(String),
    /// Certificate and key do not fit, or the CA is of no use.
    #[error("the certificates cannot be used")]
    Tls(#[from] rustls::Error),
    /// The verifier of certificates cannot be made from the CA.
    #[error("the CA cannot be used")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Makes aws-lc-rs the process's crypto provider. To be called once, first thing in `main` and in
/// tests; calling it again does nothing.
pub fn install_crypto_provider() {
    // An error means that one is installed already, which is what is wanted.
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

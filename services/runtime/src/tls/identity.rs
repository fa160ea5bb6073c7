//! Who the peer of a connection is, by its client certificate, verified before anything here looks at it.

/// The peer's verified client certificate, in a request's extensions; absent when the peer showed none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The subject's common name, such as `holdfast-controller`.
    pub common_name: String,
}

impl PeerIdentity {
    /// From a certificate's DER form; `None` when it has no common name.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let common_name = certificate
            .subject()
            .iter_common_name()
            .next()?
            .as_str()
            .ok()?;
        Some(Self {
            common_name: common_name.to_owned(),
        })
    }
}

//! Who the peer of a connection is, by its client certificate, verified before anything here looks
//! at it.

use x509_parser::extensions::GeneralName;

/// The peer's verified client certificate, in a request's extensions; absent when the peer showed
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The subject's common name, such as `holdfast-controller`; empty when it has none.
    pub common_name: String,
    /// DNS names of the subject's alternative names.
    pub dns: Vec<String>,
    /// URIs of the subject's alternative names, a SPIFFE ID for instance.
    pub uris: Vec<String>,
}

impl PeerIdentity {
    /// From a certificate's DER form; `None` when that does not parse.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let common_name = certificate
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned();
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let (mut dns, mut uris) = (Vec::new(), Vec::new());
        for name in alternatives
            .iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        Some(Self {
            common_name,
            dns,
            uris,
        })
    }
}

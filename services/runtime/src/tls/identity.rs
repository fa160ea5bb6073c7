//! The identity of a client, read from its verified certificate.

use x509_parser::extensions::GeneralName;

/// The identity in a verified client certificate, in the extensions of a request. Absent if the
/// client presented none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The common name of the subject, such as `holdfast-controller`; empty if there is none.
    pub common_name: String,
    /// DNS names of the subject's alternative names.
    pub dns: Vec<String>,
    /// URIs of the subject's alternative names, a SPIFFE ID for instance.
    pub uris: Vec<String>,
}

impl PeerIdentity {
    /// Reads a certificate in DER form. `None` if it does not parse.
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

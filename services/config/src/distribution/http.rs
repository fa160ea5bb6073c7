//! The section `http`: listeners, TLS, the secret of upload sessions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::{
    client_ca,
    section::{Findings, Section},
};
use crate::{RegistrySettings, SecretString, TlsFiles};

pub(super) fn read(root: &mut Section, settings: &mut RegistrySettings, found: &mut Findings) {
    let mut http = root.section("http", found);
    settings.listen = http
        .text("addr", found)
        .and_then(|text| address(&text, &http.path("addr"), found))
        .unwrap_or_else(|| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 5000));
    match http.text("net", found).as_deref() {
        None | Some("tcp") => {}
        Some(_) => found.refuse("http.net", "is not supported: only tcp is"),
    }
    if http
        .text("prefix", found)
        .is_some_and(|prefix| prefix != "/")
    {
        found.refuse(
            "http.prefix",
            "is not supported: clients look for /v2/ at the root of a host",
        );
    }
    http.ignore(
        "host",
        "answers hold relative locations, which fit every name",
        found,
    );
    http.ignore(
        "relativeurls",
        "answers always hold relative locations",
        found,
    );
    settings.upload_secret_text = http.text("secret", found).map(SecretString::from);
    if let Some(time) = http.duration("draintimeout", found) {
        settings.drain = time;
    }
    http.ignore(
        "headers",
        "answers carry the headers of the specification",
        found,
    );
    let mut http2 = http.section("http2", found);
    if http2.flag("disabled", found) == Some(true) {
        found.note(
            "http.http2.disabled",
            "HTTP/2 cannot be switched off; clients that ask for it get it",
        );
    }
    http2.end(found);
    http.ignore(
        "h2c",
        "HTTP/2 without TLS is available to clients that start with its preface",
        found,
    );
    if let Some(section) = http.optional("tls", found) {
        tls(section, settings, found);
    }
    let mut debug = http.section("debug", found);
    settings.admin_listen = debug
        .text("addr", found)
        .and_then(|text| address(&text, &debug.path("addr"), found));
    let mut prometheus = debug.section("prometheus", found);
    prometheus.ignore("enabled", "metrics are always at http.debug.addr", found);
    if prometheus
        .text("path", found)
        .is_some_and(|path| path != "/metrics")
    {
        found.refuse(
            "http.debug.prometheus.path",
            "is /metrics, and nothing else",
        );
    }
    prometheus.end(found);
    debug.end(found);
    http.end(found);
}

/// `:5000`, `127.0.0.1:5000`, `[::1]:5000`, `localhost:5000`.
fn address(text: &str, path: &str, found: &mut Findings) -> Option<SocketAddr> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| {
        let host: IpAddr = match host {
            "" => Ipv6Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            host => host.trim_matches(['[', ']']).parse().ok()?,
        };
        Some(SocketAddr::new(host, port.parse().ok()?))
    });
    if parsed.is_none() {
        found.refuse(
            path,
            "must be an address with a port, such as :5000 or 127.0.0.1:5000",
        );
    }
    parsed
}

fn tls(mut tls: Section, settings: &mut RegistrySettings, found: &mut Findings) {
    let certificate = tls.text("certificate", found);
    let key = tls.text("key", found);
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            settings.tls = Some(TlsFiles {
                certificate: PathBuf::from(certificate),
                key: PathBuf::from(key),
                ca: None,
            });
        }
        (None, None) => {}
        (Some(_), None) => found.refuse(tls.path("key"), "is missing"),
        (None, Some(_)) => found.refuse(tls.path("certificate"), "is missing"),
    }
    let mut authorities = tls.texts("clientcas", found);
    match tls.text("clientauth", found).as_deref() {
        None | Some("require-and-verify-client-cert") => {}
        Some(_) => found.refuse(
            tls.path("clientauth"),
            "is not supported: only require-and-verify-client-cert is",
        ),
    }
    if authorities.len() > 1 {
        found.refuse(
            tls.path("clientcas"),
            "takes one file; put all certificates into it",
        );
    }
    if let Some(path) = authorities.pop() {
        client_ca(settings, PathBuf::from(path));
        if settings.tls.is_none() {
            found.refuse(tls.path("clientcas"), "needs certificate and key");
        }
    }
    match tls.text("minimumtls", found).as_deref() {
        None | Some("tls1.2") => {}
        Some("tls1.0" | "tls1.1") => {
            found.note(
                &tls.path("minimumtls"),
                "TLS 1.2 is the oldest that is served",
            );
        }
        Some(_) => found.refuse(
            tls.path("minimumtls"),
            "is not supported: TLS 1.2 and 1.3 are served",
        ),
    }
    tls.ignore(
        "ciphersuites",
        "only suites that are safe today are offered",
        found,
    );
    tls.unsupported(
        "letsencrypt",
        "certificates come from files, which are read again when they change",
        found,
    );
    tls.end(found);
}

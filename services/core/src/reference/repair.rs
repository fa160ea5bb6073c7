//! Repairs of malformed references (SPEC 45), only if the meaning is certain.

use super::{Host, Reference, host};

/// Prefixes that people copy from a browser or from a tool.
const URL_SCHEMES: [&str; 2] = ["https://", "http://"];
const TOOL_SCHEMES: [&str; 2] = ["docker://", "oci://"];

/// Repairs a malformed reference. `None` if it could mean two things (SPEC 45).
///
/// Repaired are: blanks and quotes around it, a scheme, doubled slashes, a slash at the end or
/// before the tag, an empty port, upper case in the repository or digest (no registry can hold such
/// a name). After a scheme of a browser or a leading slash a host must follow. An empty tag, an
/// empty digest and blanks inside are not repaired. A valid reference is its own repair.
pub fn repair(text: &str) -> Option<Reference> {
    let text =
        text.trim_matches(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '\'');
    let (text, needs_host) = strip_schemes(text);
    let unslashed = text.trim_start_matches('/');
    let needs_host = needs_host || unslashed.len() != text.len();
    let (name, digest) = match unslashed.split_once('@') {
        Some((name, digest)) => (name, format!("@{}", digest.to_ascii_lowercase())),
        None => (unslashed, String::new()),
    };
    let mut parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
    // `host/app/:1`: the slash before the tag is dropped.
    let orphan_tag = parts
        .pop_if(|last| last.starts_with(':'))
        .unwrap_or_default();
    let last = parts.pop()?;
    // `registry.example/`: a host without a repository, not an image of Docker Hub.
    if parts.is_empty() && name.contains('/') && is_named_host(last) {
        return None;
    }
    let (last, tag) = match last.split_once(':') {
        Some((path, tag)) => (path, format!(":{tag}")),
        None => (last, String::new()),
    };
    let mut rebuilt = Vec::with_capacity(parts.len() + 1);
    for (index, part) in parts.iter().enumerate() {
        let part = if index == 0 && host::looks_like_host(part) {
            // An empty port, if the rest is a host (`ftp:` is something else).
            part.strip_suffix(':')
                .filter(|host| Host::parse(host).is_ok())
                .unwrap_or(part)
                .to_owned()
        } else {
            part.to_ascii_lowercase()
        };
        rebuilt.push(part);
    }
    if needs_host && !rebuilt.first().is_some_and(|first| is_certain_host(first)) {
        return None;
    }
    rebuilt.push(last.to_ascii_lowercase());
    Reference::parse(&format!("{}{tag}{orphan_tag}{digest}", rebuilt.join("/"))).ok()
}

fn is_named_host(last: &str) -> bool {
    let name = last.split(':').next().unwrap_or_default();
    name.contains('.') || name.eq_ignore_ascii_case("localhost")
}

fn is_certain_host(first: &str) -> bool {
    first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost")
}

fn strip_schemes(mut text: &str) -> (&str, bool) {
    let mut needs_host = false;
    loop {
        let matching = |scheme: &&str| {
            text.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        };
        let url = URL_SCHEMES.iter().find(|scheme| matching(scheme));
        let tool = TOOL_SCHEMES.iter().find(|scheme| matching(scheme));
        match url.or(tool) {
            Some(scheme) => {
                needs_host |= url.is_some();
                text = text.get(scheme.len()..).unwrap_or_default();
            }
            None => return (text, needs_host),
        }
    }
}

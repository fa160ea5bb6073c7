//! Names of Kubernetes objects (RFC 1123). Other texts must not get into a path or an object.

/// Longest label, in bytes.
const MAX_LABEL: usize = 63;
/// Longest subdomain, in bytes.
const MAX_SUBDOMAIN: usize = 253;

/// Whether a text is a DNS label, as names of namespaces are: 1 to 63 lower-case letters, digits
/// and `-`, without a `-` at the start or end.
pub fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_part(text)
}

/// Whether a text is a DNS subdomain, as names of most objects are: labels separated by dots, at
/// most 253 characters in total.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_distinguished_from_other_texts() {
        let long = |length: usize| "a".repeat(length);
        for (text, label, subdomain) in [
            ("a", true, true),
            ("0-b", true, true),
            ("a.b", false, true),
            ("", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a..b", false, false),
            (".a", false, false),
            ("A", false, false),
            ("a_b", false, false),
            ("a/b", false, false),
            ("a?dryRun=All", false, false),
            ("ä", false, false),
            (long(63).as_str(), true, true),
            (long(64).as_str(), false, true),
            (long(253).as_str(), false, true),
            (long(254).as_str(), false, false),
        ] {
            assert_eq!(is_label(text), label, "{text}");
            assert_eq!(is_subdomain(text), subdomain, "{text}");
        }
    }
}

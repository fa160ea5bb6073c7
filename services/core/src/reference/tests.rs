use super::*;

fn check(text: &str, canonical: &str) {
    assert_eq!(
        Reference::parse(text).map(|r| r.to_string()),
        Ok(canonical.to_owned()),
        "{text}"
    );
}

#[test]
fn short_names_are_normalised() {
    check("nginx", "docker.io/library/nginx:latest");
}

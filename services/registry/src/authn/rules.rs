//! What users and client certificates may do, by the first parts of a repository's name. Pure.

use holdfast_config::{AccessAction, AccessRule};
use holdfast_core::reference::RepositoryName;
use holdfast_runtime::tls::PeerIdentity;

/// A client that rules name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// A user of the htpasswd file.
    User(&'a str),
    /// A client certificate.
    Certificate(&'a PeerIdentity),
}

/// Whether the rules allow it; `repo` is `None` for what concerns all repositories. Without any
/// rule every known client may pull.
pub(crate) fn allow(
    rules: &[AccessRule],
    subject: Subject<'_>,
    action: AccessAction,
    repo: Option<&RepositoryName>,
) -> bool {
    if rules.is_empty() {
        return action == AccessAction::Pull;
    }
    rules.iter().any(|rule| {
        rule.actions.contains(&action)
            && speaks_of(rule, subject)
            && covers(&rule.repositories, repo)
    })
}

fn speaks_of(rule: &AccessRule, subject: Subject<'_>) -> bool {
    match subject {
        Subject::User(user) => rule.users.iter().any(|name| name == "*" || name == user),
        Subject::Certificate(peer) => rule.certificates.iter().any(|name| {
            name == "*"
                || match name.split_once('=') {
                    Some(("CN", name)) => !name.is_empty() && peer.common_name == name,
                    Some(("DNS", name)) => {
                        peer.dns.iter().any(|dns| dns.eq_ignore_ascii_case(name))
                    }
                    Some(("URI", name)) => peer.uris.iter().any(|uri| uri == name),
                    _ => false,
                }
        }),
    }
}

/// Whole parts of a name only: `team` covers `team` and `team/app`, never `teams`.
fn covers(prefixes: &[String], repo: Option<&RepositoryName>) -> bool {
    let Some(repo) = repo else {
        return prefixes.is_empty();
    };
    prefixes.is_empty()
        || prefixes.iter().any(|prefix| {
            repo.as_str()
                .strip_prefix(prefix.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use AccessAction::{Delete, Pull, Push};

    fn rule(
        users: &[&str],
        certificates: &[&str],
        repositories: &[&str],
        actions: &[AccessAction],
    ) -> AccessRule {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        AccessRule {
            users: own(users),
            certificates: own(certificates),
            repositories: own(repositories),
            actions: actions.to_vec(),
        }
    }

    fn check(
        rules: &[AccessRule],
        subject: Subject<'_>,
        action: AccessAction,
        repo: &str,
        expect: bool,
    ) {
        let name = (!repo.is_empty()).then(|| RepositoryName::parse(repo).unwrap());
        assert_eq!(
            allow(rules, subject, action, name.as_ref()),
            expect,
            "{subject:?} {action:?} {repo}"
        );
    }

    #[test]
    fn without_rules_the_known_pull() {
        for (action, expect) in [(Pull, true), (Push, false), (Delete, false)] {
            check(&[], Subject::User("ci"), action, "team/app", expect);
        }
        check(&[], Subject::User("ci"), Pull, "", true);
    }

    #[test]
    fn rules_add_up_and_prefixes_end_at_a_slash() {
        let rules = [
            rule(&["*"], &[], &[], &[Pull]),
            rule(&["ci"], &[], &["team", "tools/"], &[Push]),
        ];
        for (user, action, repo, expect) in [
            ("ci", Pull, "other", true),
            ("ci", Push, "team", true),
            ("ci", Push, "team/app", true),
            ("ci", Push, "tools/x", true),
            ("ci", Push, "teams/app", false),
            ("ci", Push, "a/team", false),
            ("ci", Delete, "team/app", false),
            ("bob", Push, "team/app", false),
            ("bob", Pull, "", true),
        ] {
            check(&rules, Subject::User(user), action, repo, expect);
        }
        check(&rules[1..], Subject::User("ci"), Pull, "", false);
    }

    #[test]
    fn certificates_are_known_by_subject_and_alternative_names() {
        let peer = PeerIdentity {
            common_name: "ci".to_owned(),
            dns: vec!["ci.example".to_owned()],
            uris: vec!["spiffe://example/ci".to_owned()],
        };
        let nameless = PeerIdentity::default();
        for (name, expect) in [
            ("CN=ci", true),
            ("CN=c", false),
            ("CN=", false),
            ("DNS=CI.example", true),
            ("DNS=example", false),
            ("URI=spiffe://example/ci", true),
            ("URI=spiffe://example/c", false),
            ("ci", false),
            ("*", true),
        ] {
            let rules = [rule(&[], &[name], &[], &[Push])];
            check(&rules, Subject::Certificate(&peer), Push, "a", expect);
            check(
                &rules,
                Subject::Certificate(&nameless),
                Push,
                "a",
                name == "*",
            );
            check(&rules, Subject::User("ci"), Push, "a", false);
        }
    }
}

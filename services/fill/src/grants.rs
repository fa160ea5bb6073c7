//! What pulls may fetch because a fill request named it, and with which credentials.
//!
//! A pull comes from a node, and does not say for which namespace. So the credentials of a request
//! serve only what that request named: its tag or its digest, and what is reachable from the
//! manifest that these credentials led to; and only while the request is fresh. The controller
//! repeats the request for as long as a living pod needs the image.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use holdfast_core::{Digest, ManifestRef, RepositoryName};
use parking_lot::{Mutex, MutexGuard};

use holdfast_upstream::Login;

/// Repositories whose requests are remembered; above, new ones are refused no fill but forgotten
/// after it.
const MAX_REPOSITORIES: usize = 20_000;
/// Requests that are remembered for one repository; the oldest go first.
const MAX_REQUESTS: usize = 256;
/// Manifests that one tag led to, the newest first: a tag may have moved while its image is still
/// pulled.
const MAX_ROOTS: usize = 4;
/// Credentials that are tried for one pull.
const MAX_LOGINS: usize = 8;

#[derive(Debug)]
struct Grant {
    target: ManifestRef,
    logins: Vec<Login>,
    until: Instant,
    roots: Vec<Digest>,
}

/// The images that fill requests named.
#[derive(Debug)]
pub(super) struct Grants {
    lasts: Duration,
    held: Mutex<HashMap<RepositoryName, Vec<Grant>>>,
}

impl Grants {
    /// Each request is valid for `lasts`.
    pub(super) fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<RepositoryName, Vec<Grant>>> {
        self.held.lock()
    }

    /// Remembers that a request named `target` and what it brought.
    pub(super) fn add(
        &self,
        repo: &RepositoryName,
        target: &ManifestRef,
        logins: &[Login],
        now: Instant,
    ) {
        let mut held = self.held();
        if held.len() >= MAX_REPOSITORIES && !held.contains_key(repo) {
            held.retain(|_, grants| grants.iter().any(|grant| grant.until > now));
            if held.len() >= MAX_REPOSITORIES {
                return;
            }
        }
        let grants = held.entry(repo.clone()).or_default();
        grants.retain(|grant| grant.until > now);
        let until = now + self.lasts;
        let known = grants
            .iter_mut()
            .find(|grant| grant.target == *target && grant.logins == logins);
        if let Some(known) = known {
            known.until = until;
            return;
        }
        if grants.len() >= MAX_REQUESTS {
            grants.remove(0);
        }
        let roots = match target {
            ManifestRef::Digest(digest) => vec![digest.clone()],
            ManifestRef::Tag(_) => Vec::new(),
        };
        grants.push(Grant {
            target: target.clone(),
            logins: logins.to_vec(),
            until,
            roots,
        });
    }

    /// Remembers where `target` led with these credentials.
    pub(super) fn record_root(
        &self,
        repo: &RepositoryName,
        target: &ManifestRef,
        logins: &[Login],
        digest: &Digest,
    ) {
        let mut held = self.held();
        let grants = held.get_mut(repo).into_iter().flatten();
        for grant in grants.filter(|grant| grant.target == *target && grant.logins == logins) {
            grant.roots.retain(|root| root != digest);
            grant.roots.insert(0, digest.clone());
            grant.roots.truncate(MAX_ROOTS);
        }
    }

    /// Whether a request named an image of the repository.
    pub(super) fn names(&self, repo: &RepositoryName, now: Instant) -> bool {
        let held = self.held();
        held.get(repo)
            .is_some_and(|grants| grants.iter().any(|grant| grant.until > now))
    }

    /// The credentials for exactly what a request named, newest first; `None` when none did.
    pub(super) fn exactly(
        &self,
        repo: &RepositoryName,
        target: &ManifestRef,
        now: Instant,
    ) -> Option<Vec<Login>> {
        let held = self.held();
        let fits = |grant: &&Grant| grant.until > now && grant.target == *target;
        merge(held.get(repo)?.iter().rev().filter(fits))
    }

    /// The manifests that requests led to.
    pub(super) fn roots(&self, repo: &RepositoryName, now: Instant) -> Vec<Digest> {
        let held = self.held();
        let fresh = held.get(repo).into_iter().flatten();
        let mut roots = Vec::new();
        for root in fresh
            .filter(|grant| grant.until > now)
            .flat_map(|grant| &grant.roots)
        {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// The credentials of the requests that led to any of these manifests.
    pub(super) fn of_roots(
        &self,
        repo: &RepositoryName,
        roots: &[Digest],
        now: Instant,
    ) -> Option<Vec<Login>> {
        let held = self.held();
        let fits = |grant: &&Grant| {
            grant.until > now && grant.roots.iter().any(|root| roots.contains(root))
        };
        merge(held.get(repo)?.iter().rev().filter(fits))
    }
}

fn merge<'a>(grants: impl Iterator<Item = &'a Grant>) -> Option<Vec<Login>> {
    let mut found: Option<Vec<Login>> = None;
    for grant in grants {
        let logins = found.get_or_insert_default();
        for login in &grant.logins {
            if !logins.contains(login) {
                logins.push(login.clone());
            }
        }
    }
    if let Some(logins) = &mut found {
        logins.truncate(MAX_LOGINS);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::{Algorithm, Tag};
    use holdfast_store::Hasher;

    #[test]
    fn a_request_opens_what_it_named_for_as_long_as_it_is_fresh() {
        let lasts = Duration::from_secs(60);
        let (grants, now) = (Grants::new(lasts), Instant::now());
        let repo = |name: &str| RepositoryName::parse(name).unwrap();
        let tag = |name: &str| ManifestRef::Tag(Tag::parse(name).unwrap());
        let digest = |text: &str| Hasher::digest(Algorithm::Sha256, text.as_bytes());
        let (ours, a, b) = (
            repo("r.example/app"),
            Login::new("a", "p"),
            Login::new("b", "p"),
        );
        grants.add(&ours, &tag("1"), std::slice::from_ref(&a), now);
        grants.add(&ours, &tag("2"), std::slice::from_ref(&b), now + lasts / 2);
        grants.record_root(&ours, &tag("1"), std::slice::from_ref(&a), &digest("one"));
        grants.record_root(
            &ours,
            &tag("2"),
            std::slice::from_ref(&a),
            &digest("not by a"),
        );
        let check = |target: ManifestRef, at: Instant, expect: Option<Vec<Login>>| {
            assert_eq!(grants.exactly(&ours, &target, at), expect, "{target}");
        };
        check(tag("1"), now, Some(vec![a.clone()]));
        check(tag("2"), now, Some(vec![b.clone()]));
        check(tag("3"), now, None);
        check(tag("1"), now + lasts, None);
        check(tag("2"), now + lasts, Some(vec![b.clone()]));
        assert_eq!(
            grants.exactly(&repo("r.example/other"), &tag("1"), now),
            None
        );
        assert_eq!(grants.roots(&ours, now), [digest("one")]);
        assert_eq!(
            grants.of_roots(&ours, &[digest("one")], now),
            Some(vec![a.clone()])
        );
        assert_eq!(grants.of_roots(&ours, &[digest("not by a")], now), None);
        assert!(grants.names(&ours, now) && !grants.names(&ours, now + 2 * lasts));
        // The same image for two namespaces: either login may open it, the newest first.
        grants.add(&ours, &tag("1"), std::slice::from_ref(&b), now);
        check(tag("1"), now, Some(vec![b, a]));
    }
}

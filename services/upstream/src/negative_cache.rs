//! Refusals of upstreams, cached for a short time by credential: a hundred pods that need a missing
//! image cost one request.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{Error, Login, UpstreamRepository};

/// Most answers that are remembered; above, the memory starts over.
const MAX_ANSWERS: usize = 4096;

/// Upstream host, repository, target, and the credentials of the request.
type Key = (String, String, String, Vec<Login>);

/// Answers that content does not exist or that the credentials do not suffice.
pub(super) struct NegativeCache {
    lasts: Duration,
    held: Mutex<HashMap<Key, (Error, Instant)>>,
}

impl NegativeCache {
    /// Remembers for `lasts`; zero remembers nothing.
    pub(super) fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            held: Mutex::default(),
        }
    }

    /// What was said to these very credentials a moment ago.
    pub(super) fn get(
        &self,
        source: &UpstreamRepository,
        path: &str,
        now: Instant,
    ) -> Option<Error> {
        let held = self.held.lock();
        held.get(&key(source, path))
            .filter(|(_, until)| *until > now)
            .map(|(error, _)| error.clone())
    }

    /// Remembers an error if it is an answer, and one that may stand for a while.
    pub(super) fn put(&self, source: &UpstreamRepository, path: &str, error: &Error, now: Instant) {
        if self.lasts.is_zero() || !matches!(error, Error::NotFound | Error::Unauthorized) {
            return;
        }
        let mut held = self.held.lock();
        if held.len() >= MAX_ANSWERS {
            held.retain(|_, (_, until)| *until > now);
            if held.len() >= MAX_ANSWERS {
                held.clear();
            }
        }
        held.insert(key(source, path), (error.clone(), now + self.lasts));
    }

    /// Forgets the refusals of these credentials: a request is explicit.
    pub(super) fn forget(&self, source: &UpstreamRepository, path: &str) {
        self.held.lock().remove(&key(source, path));
    }
}

fn key(source: &UpstreamRepository, path: &str) -> Key {
    (
        source.host.to_string(),
        source.repository.as_str().to_owned(),
        path.to_owned(),
        source.logins.clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::{Host, RepositoryName};

    #[test]
    fn a_no_stands_for_a_while_and_for_these_credentials_only() {
        let source = |logins: &[&str]| UpstreamRepository {
            host: Host::parse("registry.example").unwrap(),
            repository: RepositoryName::parse("team/app").unwrap(),
            logins: logins.iter().map(|user| Login::new(user, "p")).collect(),
            priority: super::super::SharedPriority::default(),
        };
        let (now, lasts) = (Instant::now(), Duration::from_secs(10));
        let memory = NegativeCache::new(lasts);
        memory.put(&source(&["a"]), "manifests/1", &Error::Unauthorized, now);
        memory.put(
            &source(&["b"]),
            "manifests/1",
            &Error::Unavailable(String::new()),
            now,
        );
        for (logins, path, at, expect) in [
            (&["a"][..], "manifests/1", now, Some(Error::Unauthorized)),
            (&["a"], "manifests/1", now + lasts, None),
            (&["a"], "manifests/2", now, None),
            (&["b"], "manifests/1", now, None),
            (&["a", "b"], "manifests/1", now, None),
        ] {
            assert_eq!(
                memory.get(&source(logins), path, at),
                expect,
                "{logins:?} {path}"
            );
        }
        memory.forget(&source(&["a"]), "manifests/1");
        assert_eq!(memory.get(&source(&["a"]), "manifests/1", now), None);
    }
}

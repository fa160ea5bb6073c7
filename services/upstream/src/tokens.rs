//! Tokens, and how requests to a repository were authorised before. Each endpoint has a share of
//! their memory.

use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use url::Url;

use super::{Login, auth::Challenge};
use crate::limits::UPSTREAM_TOKENS_BYTES;
use holdfast_core::shares::Shares;

/// What an entry takes in memory beside its texts.
const ENTRY_COST: usize = 512;

/// What a token is for. It goes back only to the origin that asked for it, and only for who asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    /// The origin that challenged.
    pub(super) origin: String,
    /// The token server.
    pub(super) realm: Url,
    /// The registry's name there.
    pub(super) service: Option<String>,
    /// What it opens.
    pub(super) scope: String,
    /// The login that asks; `None` for an anonymous token.
    pub(super) login: Option<Login>,
}

impl TokenKey {
    fn cost(&self) -> usize {
        let service = self.service.as_ref().map_or(0, String::len);
        let login = self.login.as_ref().map_or(0, Login::bytes);
        self.origin.len() + self.realm.as_str().len() + service + self.scope.len() + login
    }
}

/// Tokens by what they are for.
pub(super) struct Tokens {
    held: Mutex<Shares<String, TokenKey, (String, Instant)>>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            held: Mutex::new(Shares::new(UPSTREAM_TOKENS_BYTES, usize::MAX)),
        }
    }
}

impl Tokens {
    fn held(&self) -> MutexGuard<'_, Shares<String, TokenKey, (String, Instant)>> {
        self.held.lock()
    }

    /// A token that still counts at `now`.
    pub(super) fn get(&self, key: &TokenKey, now: Instant) -> Option<String> {
        let held = self.held();
        held.get(key)
            .filter(|(_, until)| *until > now)
            .map(|(token, _)| token.clone())
    }

    /// Remembers a token that an endpoint wanted.
    pub(super) fn put(&self, endpoint: &str, key: TokenKey, token: String, until: Instant) {
        let cost = ENTRY_COST + key.cost() + token.len();
        self.held().insert(
            &endpoint.to_owned(),
            key,
            ((token, until), cost),
            Instant::now(),
        );
    }

    /// Forgets a token that was refused.
    pub(super) fn forget(&self, key: &TokenKey) {
        self.held().remove(key);
    }
}

/// How requests to a repository are authorised.
#[derive(Debug, Clone)]
pub(super) struct Authorisation {
    pub(super) login: Option<Login>,
    pub(super) challenge: Option<Challenge>,
}

impl Authorisation {
    fn cost(&self) -> usize {
        let login = self.login.as_ref().map_or(0, Login::bytes);
        let challenge = match &self.challenge {
            None | Some(Challenge::Basic) => 0,
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                realm.as_str().len() + length(service) + length(scope)
            }
        };
        login + challenge
    }
}

/// How requests were authorised, by endpoint and what was asked of it.
pub(super) struct Authorisations {
    held: Mutex<Shares<String, (String, String), Authorisation>>,
}

impl Default for Authorisations {
    fn default() -> Self {
        Self {
            held: Mutex::new(Shares::new(UPSTREAM_TOKENS_BYTES, usize::MAX)),
        }
    }
}

impl Authorisations {
    fn held(&self) -> MutexGuard<'_, Shares<String, (String, String), Authorisation>> {
        self.held.lock()
    }

    /// What worked before.
    pub(super) fn get(&self, endpoint: &str, topic: String) -> Option<Authorisation> {
        self.held().get(&(endpoint.to_owned(), topic)).cloned()
    }

    /// Remembers what worked.
    pub(super) fn put(&self, endpoint: &str, topic: String, known: Authorisation) {
        let cost = ENTRY_COST + 2 * endpoint.len() + topic.len() + known.cost();
        let party = endpoint.to_owned();
        let key = (party.clone(), topic);
        self.held()
            .insert(&party, key, (known, cost), Instant::now());
    }

    /// Forgets what works no longer.
    pub(super) fn forget(&self, endpoint: &str, topic: String) {
        self.held().remove(&(endpoint.to_owned(), topic));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::{UPSTREAM_CHALLENGE_BYTES, UPSTREAM_TOKEN_BYTES};

    #[test]
    fn tokens_and_authorisations_are_remembered_up_to_so_many_bytes() {
        let now = Instant::now();
        let until = now + Duration::from_secs(60);
        let (tokens, known) = (Tokens::default(), Authorisations::default());
        let key = |origin: &str, number: usize| TokenKey {
            origin: origin.to_owned(),
            realm: "https://auth.example/token".parse().unwrap(),
            service: None,
            scope: format!("repository:{number}:pull"),
            login: None,
        };
        let challenge = |bytes: usize| Challenge::Bearer {
            realm: "https://auth.example/token".parse().unwrap(),
            service: Some("s".repeat(bytes)),
            scope: None,
        };
        let put = |endpoint: &str, number: usize, bytes: usize| {
            let token = "t".repeat(bytes);
            tokens.put(endpoint, key(endpoint, number), token, until);
            let way = Authorisation {
                login: None,
                challenge: Some(challenge(bytes.min(UPSTREAM_CHALLENGE_BYTES))),
            };
            known.put(endpoint, number.to_string(), way);
            assert!(tokens.held().bytes() <= UPSTREAM_TOKENS_BYTES);
            assert!(known.held().bytes() <= UPSTREAM_TOKENS_BYTES);
        };
        put("https://honest.example", 0, 100);
        for number in 1..=5000 {
            put("https://hostile.example", number, UPSTREAM_TOKEN_BYTES);
        }
        for (endpoint, number, expect) in [
            ("https://honest.example", 0, true),
            ("https://hostile.example", 1, false),
            ("https://hostile.example", 5000, true),
        ] {
            let token = tokens.get(&key(endpoint, number), now);
            let way = known.get(endpoint, number.to_string());
            assert_eq!(
                (token.is_some(), way.is_some()),
                (expect, expect),
                "{number}"
            );
        }
    }

    #[test]
    fn tokens_end() {
        let now = Instant::now();
        let tokens = Tokens::default();
        let key = TokenKey {
            origin: "https://registry.example".to_owned(),
            realm: "https://auth.example/token".parse().unwrap(),
            service: None,
            scope: "s".to_owned(),
            login: None,
        };
        tokens.put(
            "",
            key.clone(),
            "t".to_owned(),
            now + Duration::from_secs(1),
        );
        assert_eq!(tokens.get(&key, now), Some("t".to_owned()));
        assert_eq!(tokens.get(&key, now + Duration::from_secs(1)), None);
        let elsewhere = TokenKey {
            origin: "https://other.example".to_owned(),
            ..key
        };
        assert_eq!(tokens.get(&elsewhere, now), None);
    }
}

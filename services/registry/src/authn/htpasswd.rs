//! Users with bcrypt hashes, and the check of a password: on a thread of low priority, in turn.
//! Results are cached for a short time.
//!
//! Nothing here prints a password or a hash.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::logins::{Attempt, Logins, Overloaded};
use crate::limits;

/// Why a file of users is refused. The line is counted from one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A line without a colon or without a name.
    #[error("line {0} is not of the form user:hash")]
    Form(usize),
    /// A hash of another type.
    #[error("line {line}: {user} has {format}; only bcrypt is supported (htpasswd -B)")]
    Format {
        /// The line.
        line: usize,
        /// The user's name.
        user: String,
        /// What the hash looks like.
        format: &'static str,
    },
    /// A bcrypt hash whose check costs more than a login may.
    #[error(
        "line {line}: the bcrypt cost of {user} is {cost}, at most {} is taken",
        limits::BCRYPT_COST
    )]
    Cost {
        /// The line.
        line: usize,
        /// The user's name.
        user: String,
        /// Its cost.
        cost: u32,
    },
    /// A user is listed twice.
    #[error("line {line}: {user} is listed twice")]
    Twice {
        /// The line.
        line: usize,
        /// The user's name.
        user: String,
    },
}

/// The users of one version of the file. What is remembered of checks goes with it.
pub(crate) struct Htpasswd {
    users: HashMap<String, String>,
    /// The hash that costs most: what an unknown user's password is compared with, so that time
    /// tells nothing.
    decoy: Option<String>,
    known: Mutex<ExpiringSet>,
    wrong: Mutex<ExpiringSet>,
    /// Passwords that were right for longer than that is believed without a check.
    proven: Mutex<ExpiringSet>,
}

impl std::fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Htpasswd")
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

impl Htpasswd {
    /// Reads a file of users: `user:hash` a line; empty lines and lines that open with `#` do not
    /// count.
    ///
    /// # Errors
    /// [`Error`] for the first invalid line.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut users = HashMap::new();
        let mut decoy: Option<(u32, String)> = None;
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, hash) = line.split_once(':').ok_or(Error::Form(number))?;
            if user.is_empty() {
                return Err(Error::Form(number));
            }
            let cost = cost(hash).map_err(|format| Error::Format {
                line: number,
                user: user.to_owned(),
                format,
            })?;
            if limits::BCRYPT_COST < cost {
                return Err(Error::Cost {
                    line: number,
                    user: user.to_owned(),
                    cost,
                });
            }
            if decoy.as_ref().is_none_or(|(most, _)| *most < cost) {
                decoy = Some((cost, hash.to_owned()));
            }
            if users.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(Error::Twice {
                    line: number,
                    user: user.to_owned(),
                });
            }
        }
        Ok(Self {
            users,
            decoy: decoy.map(|(_, hash)| hash),
            known: Mutex::new(ExpiringSet::new(
                limits::PASSWORDS_REMEMBERED,
                limits::PASSWORD_REMEMBERED,
            )),
            wrong: Mutex::new(ExpiringSet::new(
                limits::PASSWORDS_REMEMBERED,
                limits::PASSWORD_REMEMBERED,
            )),
            proven: Mutex::new(ExpiringSet::new(
                limits::PASSWORDS_REMEMBERED,
                limits::PASSWORD_PROVEN,
            )),
        })
    }

    /// The number of users.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether the user has this password, asked by a client of that address.
    ///
    /// # Errors
    /// [`Overloaded`] when too many passwords wait for their check, or too many of this client were
    /// wrong.
    pub(crate) async fn check(
        self: &Arc<Self>,
        logins: &Arc<Logins>,
        address: IpAddr,
        (user, password): (&str, &str),
    ) -> Result<bool, Overloaded> {
        let key = fingerprint(user, password);
        if let Some(found) = self.remembered(&key) {
            return Ok(found);
        }
        let attempt = Attempt {
            address,
            user: fingerprint(user, ""),
            was_right: lock(&self.proven).contains(&key, Instant::now()),
        };
        let turn = logins.enter(attempt).await?;
        // An earlier caller may have asked the same.
        if let Some(found) = self.remembered(&key) {
            return Ok(found);
        }
        let known = self.users.contains_key(user);
        let Some(hash) = self.users.get(user).or(self.decoy.as_ref()).cloned() else {
            return Ok(false);
        };
        let (users, password) = (Arc::clone(self), password.to_owned());
        // A client that leaves does not stop the check, so the turn ends with the check.
        let check = holdfast_store::spawn_low_priority(move || {
            let fits = bcrypt::verify(password, &hash).unwrap_or(false);
            let right = known && fits;
            users.remember(key, right);
            turn.end(right);
            right
        });
        Ok(check.await.unwrap_or(false))
    }

    fn remember(&self, key: [u8; 32], right: bool) {
        let now = Instant::now();
        if right {
            lock(&self.known).insert(key, now);
            lock(&self.proven).insert(key, now);
        } else {
            lock(&self.wrong).insert(key, now);
        }
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<bool> {
        let now = Instant::now();
        if lock(&self.known).contains(key, now) {
            Some(true)
        } else if lock(&self.wrong).contains(key, now) {
            Some(false)
        } else {
            None
        }
    }
}

fn lock(table: &Mutex<ExpiringSet>) -> parking_lot::MutexGuard<'_, ExpiringSet> {
    table.lock()
}

/// The cost of a bcrypt hash, or what else it looks like.
fn cost(hash: &str) -> Result<u32, &'static str> {
    let Some(rest) = ["$2y$", "$2b$", "$2a$"]
        .iter()
        .find_map(|prefix| hash.strip_prefix(prefix))
    else {
        return Err(match hash {
            _ if hash.starts_with("$apr1$") => "an MD5 (apr1) hash",
            _ if hash.starts_with("$1$") => "an MD5 hash",
            _ if hash.starts_with("$5$") => "a SHA-256 crypt hash",
            _ if hash.starts_with("$6$") => "a SHA-512 crypt hash",
            _ if hash.starts_with("$2x$") => "a bcrypt hash of the broken kind 2x",
            _ if hash.starts_with("$argon2") => "an Argon2 hash",
            _ if hash.starts_with("{SHA}") => "a SHA-1 hash",
            _ if hash.starts_with("{SSHA}") => "a salted SHA-1 hash",
            _ => "a plain password or a crypt hash",
        });
    };
    let broken = "a bcrypt hash that does not parse";
    let (cost, rest) = rest.split_once('$').ok_or(broken)?;
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/';
    if cost.len() != 2 || rest.len() != 53 || !rest.bytes().all(letters) {
        return Err(broken);
    }
    cost.parse()
        .ok()
        .filter(|cost| (4..=31).contains(cost))
        .ok_or(broken)
}

/// A password is remembered by a hash that is useless outside of this process.
fn fingerprint(user: &str, password: &str) -> [u8; 32] {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    let salt = SALT.get_or_init(|| {
        let mut salt = [0; 32];
        let (first, second) = salt.split_at_mut(16);
        first.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        second.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        salt
    });
    let mut hash = Sha256::new();
    hash.update(salt);
    hash.update((user.len() as u64).to_be_bytes());
    hash.update(user);
    hash.update(password);
    hash.finalize().into()
}

/// A bounded set whose entries expire.
struct ExpiringSet {
    entries: HashMap<[u8; 32], Instant>,
    most: usize,
    lifetime: Duration,
}

impl ExpiringSet {
    fn new(most: usize, lifetime: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            most,
            lifetime,
        }
    }

    fn contains(&self, key: &[u8; 32], now: Instant) -> bool {
        self.entries
            .get(key)
            .is_some_and(|at| now.saturating_duration_since(*at) < self.lifetime)
    }

    fn insert(&mut self, key: [u8; 32], now: Instant) {
        if self.most <= self.entries.len() {
            let lifetime = self.lifetime;
            self.entries
                .retain(|_, at| now.saturating_duration_since(*at) < lifetime);
        }
        if self.most <= self.entries.len()
            && let Some(oldest) = self
                .entries
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(key, _)| *key)
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Salt and hash in the form of bcrypt.
    const SALT_AND_HASH: &str = "abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

    fn refusal(text: &str) -> String {
        Htpasswd::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn only_bcrypt_is_taken_and_others_are_refused_by_name() {
        let rest = SALT_AND_HASH;
        assert_eq!(rest.len(), 53);
        for (hash, expect) in [
            ("$apr1$x$y", "MD5 (apr1)"),
            ("$1$x$y", "MD5"),
            ("$5$x$y", "SHA-256 crypt"),
            ("$6$x$y", "SHA-512 crypt"),
            ("{SHA}x", "SHA-1"),
            ("{SSHA}x", "salted SHA-1"),
            ("$argon2id$x", "Argon2"),
            ("secret", "plain password"),
            ("$2y$05$short", "does not parse"),
            (&format!("$2y$99${rest}"), "does not parse"),
            (&format!("$2x$05${rest}"), "2x"),
            (
                &format!("$2y$15${rest}"),
                "the bcrypt cost of ci is 15, at most 14",
            ),
        ] {
            let message = refusal(&format!("# users\n\nci:{hash}\n"));
            assert!(
                message.starts_with("line 3") && message.contains(expect),
                "{hash}: {message}"
            );
            assert!(!message.contains(rest), "a message shows no hash");
        }
        assert_eq!(refusal("nocolon"), "line 1 is not of the form user:hash");
        let twice = format!("a:$2y$05${rest}\na:$2y$05${rest}");
        assert_eq!(refusal(&twice), "line 2: a is listed twice");
        assert_eq!(Htpasswd::parse("# nobody\n").unwrap().len(), 0);
    }

    #[tokio::test]
    async fn passwords_are_checked_and_remembered() {
        let logins = Arc::new(Logins::default());
        let address = IpAddr::from([127, 0, 0, 1]);
        let users = format!("ci:{}\n", bcrypt::hash("right", 4).unwrap());
        let users = Arc::new(Htpasswd::parse(&users).unwrap());
        for _ in 0..2 {
            for (user, password, expect) in [
                ("ci", "right", true),
                ("ci", "wrong", false),
                // Another user's password.
                ("bob", "right", false),
            ] {
                let found = users.check(&logins, address, (user, password)).await;
                assert_eq!(found, Ok(expect), "{user} {password}");
            }
        }
        let count = |table| lock(table).entries.len();
        let counts = [&users.known, &users.wrong, &users.proven].map(count);
        assert_eq!(counts, [1, 2, 1]);
        let nobody = Arc::new(Htpasswd::parse("").unwrap());
        let found = nobody.check(&logins, address, ("ci", "right")).await;
        assert_eq!(found, Ok(false));
    }

    #[tokio::test]
    async fn a_right_password_is_answered_where_wrong_ones_are_refused() {
        let logins = Arc::new(Logins::default());
        let address = IpAddr::from([127, 0, 0, 1]);
        let users = format!("ci:{}\n", bcrypt::hash("right", 4).unwrap());
        let users = Arc::new(Htpasswd::parse(&users).unwrap());
        let check = async |password: &str| users.check(&logins, address, ("ci", password)).await;
        assert_eq!(check("right").await, Ok(true));
        for number in 0..limits::LOGIN_FAILURES_OF_USER {
            assert_eq!(check(&number.to_string()).await, Ok(false));
        }
        assert_eq!(check("x").await, Err(Overloaded));
        assert_eq!(check("right").await, Ok(true), "it is remembered");
        lock(&users.known).entries.clear();
        assert_eq!(check("right").await, Ok(true), "and checked again");
    }

    #[test]
    fn what_is_remembered_ends_and_is_bounded() {
        let mut recent = ExpiringSet::new(2, Duration::from_secs(60));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        recent.insert([1; 32], at(0));
        recent.insert([2; 32], at(10));
        recent.insert([3; 32], at(20));
        assert!(!recent.contains(&[1; 32], at(20)), "the oldest made room");
        assert!(recent.contains(&[2; 32], at(69)));
        assert!(!recent.contains(&[2; 32], at(70)));
        assert_eq!(recent.entries.len(), 2);
    }
}

//! Named checks behind `/livez` and `/readyz`. A check answers from memory, at once: it does no
//! I/O.

use std::fmt::Write as _;
use std::sync::{Arc, RwLock};

/// What a check says: `Ok` with a word on what is well, or `Err` with what is not.
pub type Verdict = Result<String, String>;

type Check = Arc<dyn Fn() -> Verdict + Send + Sync>;

/// The checks of a process. Clones share them.
#[derive(Clone, Default)]
pub struct Health {
    live: Arc<RwLock<Vec<(String, Check)>>>,
    ready: Arc<RwLock<Vec<(String, Check)>>>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

/// All checks of one kind together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether every check is content.
    pub ok: bool,
    /// One line a check: `[+] name: word` or `[-] name: word`.
    pub text: String,
}

impl Health {
    /// Adds a check of liveness: when it fails, the process is beyond help and is to be restarted.
    pub fn live(&self, name: &str, check: impl Fn() -> Verdict + Send + Sync + 'static) {
        add(&self.live, name, Arc::new(check));
    }

    /// Adds a check of readiness: while it fails, the process is to get no traffic (SPEC 27).
    pub fn ready(&self, name: &str, check: impl Fn() -> Verdict + Send + Sync + 'static) {
        add(&self.ready, name, Arc::new(check));
    }

    /// Adds a check of readiness that is a value set elsewhere; it begins as not ready with
    /// `reason`.
    pub fn ready_flag(&self, name: &str, reason: &str) -> Flag {
        let flag = Flag {
            verdict: Arc::new(RwLock::new(Err(reason.to_owned()))),
        };
        let check = flag.clone();
        self.ready(name, move || check.get());
        flag
    }

    /// The checks of liveness.
    pub fn livez(&self) -> Report {
        report(&self.live)
    }

    /// The checks of readiness.
    pub fn readyz(&self) -> Report {
        report(&self.ready)
    }

    /// The checks of readiness that fail, each with what is not well.
    pub fn failing(&self) -> Vec<(String, String)> {
        let checks = self.ready.read().map(|c| c.clone()).unwrap_or_default();
        checks
            .into_iter()
            .filter_map(|(name, check)| Some((name, check().err()?)))
            .collect()
    }
}

/// A verdict that some part of the process sets.
#[derive(Clone, Debug)]
pub struct Flag {
    verdict: Arc<RwLock<Verdict>>,
}

impl Flag {
    /// All is well.
    pub fn ok(&self, word: &str) {
        self.set(Ok(word.to_owned()));
    }

    /// Not any more, or not yet.
    pub fn failed(&self, reason: &str) {
        self.set(Err(reason.to_owned()));
    }

    /// What was set last.
    pub fn get(&self) -> Verdict {
        self.verdict
            .read()
            .map_or_else(|_| Err("poisoned".to_owned()), |v| v.clone())
    }

    fn set(&self, verdict: Verdict) {
        if let Ok(mut current) = self.verdict.write() {
            *current = verdict;
        }
    }
}

fn add(checks: &RwLock<Vec<(String, Check)>>, name: &str, check: Check) {
    if let Ok(mut checks) = checks.write() {
        checks.push((name.to_owned(), check));
    }
}

fn report(checks: &RwLock<Vec<(String, Check)>>) -> Report {
    let checks = checks.read().map(|c| c.clone()).unwrap_or_default();
    let mut report = Report {
        ok: true,
        text: String::new(),
    };
    for (name, check) in checks {
        let (sign, word) = match check() {
            Ok(word) => ('+', word),
            Err(word) => {
                report.ok = false;
                ('-', word)
            }
        };
        writeln!(report.text, "[{sign}] {name}: {word}")
            .expect("writing into a String cannot fail");
    }
    if report.text.is_empty() {
        report.text.push_str("ok\n");
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_check_makes_the_whole_bad_and_is_named() {
        let health = Health::default();
        assert_eq!(
            health.readyz(),
            Report {
                ok: true,
                text: "ok\n".to_owned()
            }
        );
        health.ready("store", || Ok("open".to_owned()));
        let flag = health.ready_flag("state", "not seen yet");
        let report = health.readyz();
        assert!(!report.ok);
        assert_eq!(report.text, "[+] store: open\n[-] state: not seen yet\n");
        let failing = ("state".to_owned(), "not seen yet".to_owned());
        assert_eq!(health.failing(), [failing]);
        flag.ok("seen");
        assert!(health.readyz().ok && health.failing().is_empty());
        assert!(health.livez().ok, "readiness is not liveness");
    }
}

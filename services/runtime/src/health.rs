//! Named checks behind `/livez` and `/readyz`. A check answers from memory and does no I/O.

use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::RwLock;

/// The result of a check: `Ok` with a detail, or `Err` with the reason.
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

/// The result of all checks of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether all checks passed.
    pub ok: bool,
    /// One line per check: `[+] name: detail` or `[-] name: reason`.
    pub text: String,
}

impl Health {
    /// Adds a liveness check: if it fails, the process has to be restarted.
    pub fn live(&self, name: &str, check: impl Fn() -> Verdict + Send + Sync + 'static) {
        add(&self.live, name, Arc::new(check));
    }

    /// Adds a readiness check: while it fails, the process gets no traffic (SPEC 27).
    pub fn ready(&self, name: &str, check: impl Fn() -> Verdict + Send + Sync + 'static) {
        add(&self.ready, name, Arc::new(check));
    }

    /// Adds a readiness check whose result is set through the returned flag. It starts as failed
    /// with `reason`.
    pub fn ready_flag(&self, name: &str, reason: &str) -> Flag {
        let flag = Flag {
            verdict: Arc::new(RwLock::new(Err(reason.to_owned()))),
        };
        let check = flag.clone();
        self.ready(name, move || check.get());
        flag
    }

    /// Runs the liveness checks.
    pub fn livez(&self) -> Report {
        report(&self.live)
    }

    /// Runs the readiness checks.
    pub fn readyz(&self) -> Report {
        report(&self.ready)
    }

    /// The names of the readiness checks that fail, each with the reason.
    pub fn failing(&self) -> Vec<(String, String)> {
        let checks = self.ready.read().clone();
        checks
            .into_iter()
            .filter_map(|(name, check)| Some((name, check().err()?)))
            .collect()
    }
}

/// The handle by which a part of the process sets the result of its check.
#[derive(Clone, Debug)]
pub struct Flag {
    verdict: Arc<RwLock<Verdict>>,
}

impl Flag {
    /// The check passes.
    pub fn ok(&self, detail: &str) {
        self.set(Ok(detail.to_owned()));
    }

    /// The check fails.
    pub fn failed(&self, reason: &str) {
        self.set(Err(reason.to_owned()));
    }

    /// The last result.
    pub fn get(&self) -> Verdict {
        self.verdict.read().clone()
    }

    fn set(&self, verdict: Verdict) {
        *self.verdict.write() = verdict;
    }
}

fn add(checks: &RwLock<Vec<(String, Check)>>, name: &str, check: Check) {
    checks.write().push((name.to_owned(), check));
}

fn report(checks: &RwLock<Vec<(String, Check)>>) -> Report {
    let checks = checks.read().clone();
    let mut report = Report {
        ok: true,
        text: String::new(),
    };
    for (name, check) in checks {
        let (sign, text) = match check() {
            Ok(detail) => ('+', detail),
            Err(reason) => {
                report.ok = false;
                ('-', reason)
            }
        };
        writeln!(report.text, "[{sign}] {name}: {text}")
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

//! Finding the comments that tie tests to lines of the contract.

use anyhow::Context;

/// How close to a real cluster a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Unit,
    InProcess,
    Cluster,
}

impl Level {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::InProcess => "in process",
            Self::Cluster => "cluster",
        }
    }
}

/// One test that shows one line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) line: u32,
    pub(super) test: String,
    pub(super) path: String,
    pub(super) level: Level,
}

/// The tests of one file that name lines.
///
/// # Errors
/// When a comment that starts with `SPEC` holds something else than `SPEC NUMBER` parts, or has no
/// function below it.
pub(super) fn file(path: &str, text: &str) -> anyhow::Result<Vec<Shown>> {
    let mut shown = Vec::new();
    let mut pending: Vec<u32> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let place = || format!("{path}:{}", number + 1);
        if let Some(comment) = line.strip_prefix("// SPEC ") {
            pending.extend(
                numbers(&format!("SPEC {comment}"))
                    .with_context(|| format!("{}: not `// SPEC 5, SPEC 45`", place()))?,
            );
        } else if let Some(test) = function(line) {
            shown.extend(pending.drain(..).map(|line| Shown {
                line,
                test: test.to_owned(),
                path: path.to_owned(),
                level: level(path, text),
            }));
        } else if !pending.is_empty() && !line.starts_with("#[") && !line.starts_with("//") {
            // An attribute or a signature may span lines; anything that ends a statement cannot.
            if line.is_empty() || line.ends_with(';') || line.ends_with('}') {
                anyhow::bail!("{}: `// SPEC` has no test below it", place());
            }
        }
    }
    Ok(shown)
}

/// Reads `SPEC 5, SPEC 45`.
fn numbers(comment: &str) -> anyhow::Result<Vec<u32>> {
    comment
        .trim_end_matches('.')
        .split(',')
        .map(|part| {
            part.trim()
                .strip_prefix("SPEC ")
                .context("a part without SPEC")?
                .trim()
                .parse()
                .context("a part without number")
        })
        .collect()
}

/// The name of the function that a line declares.
fn function(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix("pub(crate) ")
        .or_else(|| line.strip_prefix("pub(super) "))
        .or_else(|| line.strip_prefix("pub "))
        .unwrap_or(line);
    let rest = rest.strip_prefix("async ").unwrap_or(rest);
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// Crates whose tests in a folder of their own start the whole part.
const PARTS: [&str; 6] = [
    "registry",
    "webhook",
    "controller",
    "node-agent",
    "cli",
    "holdfast",
];

fn level(path: &str, text: &str) -> Level {
    let starts_a_part = path
        .strip_prefix("services/")
        .and_then(|rest| rest.split_once("/tests/"))
        .is_some_and(|(name, _)| PARTS.contains(&name));
    if path.starts_with("e2e/suite/") {
        Level::Cluster
    } else if starts_a_part
        || path.contains("/tests/")
            && (text.contains("127.0.0.1:0") || text.contains("TcpListener"))
    {
        Level::InProcess
    } else {
        Level::Unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expect: &[(u32, &str, Level)]) {
        let shown = file(path, text).expect("scans");
        let shown: Vec<_> = shown
            .iter()
            .map(|shown| (shown.line, shown.test.as_str(), shown.level))
            .collect();
        assert_eq!(shown, expect);
    }

    #[test]
    fn comments_above_attributes_name_the_test_below() {
        check(
            "services/a/src/b.rs",
            "// SPEC 5, SPEC 45\n#[test]\nfn short_names_are_completed() {}\n#[test]\nfn other() {}\n",
            &[
                (5, "short_names_are_completed", Level::Unit),
                (45, "short_names_are_completed", Level::Unit),
            ],
        );
        check(
            "services/registry/tests/it/api/pull.rs",
            "// SPEC 16\n#[tokio::test]\nasync fn pulls() {}\n",
            &[(16, "pulls", Level::InProcess)],
        );
        check(
            "services/store/tests/locks.rs",
            "// SPEC 23\n#[test]\nfn locks() {}\n",
            &[(23, "locks", Level::Unit)],
        );
        check(
            "e2e/suite/src/tests/pods.rs",
            "// SPEC 8\npub(super) fn starts(run: &Run) {}\n",
            &[(8, "starts", Level::Cluster)],
        );
    }

    #[test]
    fn a_comment_that_cannot_be_read_is_refused() {
        assert!(file("a.rs", "// SPEC five\nfn a() {}\n").is_err());
        assert!(file("a.rs", "// SPEC 5 and 6\nfn a() {}\n").is_err());
        assert!(file("a.rs", "// SPEC 5\nlet a = 1;\n").is_err());
    }
}

//! How code and documents speak: names and phrases that say nothing to a stranger, and functions
//! and names of tests that are too long to read.

use super::{Finding, limits};

/// Lines a function may have, signature and closing brace included. Tests may have tables.
const MAX_FUNCTION_LINES: usize = 100;
/// Columns the name of a test may have.
const MAX_TEST_NAME: usize = 70;
/// Constants that do not say what they bound.
const VAGUE_CONSTANTS: [&str; 6] = ["LOOK", "PATIENCE", "EVERY", "REST", "LAST", "SOON"];
/// Functions whose name hides whether their text is for metrics (`label`) or for people
/// (`message`).
const VAGUE_FUNCTIONS: [&str; 2] = ["word", "words"];
/// Names that were replaced, with what replaced them.
const REPLACED: [(&str, &str); 4] = [
    ("left_alone", "excluded"),
    ("leftAlone", "excluded"),
    ("LeftAlone", "Excluded"),
    ("sources_left_alone", "excluded_sources"),
];
/// Phrases that readers stumble over, with the plain ones.
const PHRASES: [(&str, &str); 9] = [
    ("anew", "again"),
    ("so many", "a number or a unit"),
    ("nobody's", "of no one, or name the owner"),
    ("whoever", "name the actor"),
    ("has its way", "say what happens"),
    ("have their way", "say what happens"),
    ("leading no more", "lost leadership"),
    ("is no leave to", "does not permit to"),
    ("without words", "without a message"),
];

/// Files that quote what is refused: this one, and those that tell former names.
const QUOTES: [&str; 3] = [
    "xtask/src/lint/language.rs",
    "CHANGELOG.md",
    "docs/operate/upgrade.md",
];

/// Checks one Rust file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    if QUOTES.contains(&path) {
        return Vec::new();
    }
    let mut findings = prose(path, text);
    let mut found = |message: String| findings.push(Finding::new(path, message));
    for (number, line) in text.lines().enumerate() {
        let place = number + 1;
        let words: Vec<&str> = line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            match *pair {
                ["const" | "static", name] if VAGUE_CONSTANTS.contains(&name) => {
                    found(format!("line {place}: {name} does not say what it bounds"));
                }
                ["fn", name] if VAGUE_FUNCTIONS.contains(&name) => found(format!(
                    "line {place}: fn {name}: `label` for metrics, `message` for people"
                )),
                _ => {}
            }
        }
    }
    let product = if is_test(path) {
        ""
    } else {
        before_tests(text)
    };
    for (place, name, lines) in functions(product) {
        if lines > MAX_FUNCTION_LINES {
            found(format!(
                "line {place}: {name} has {lines} lines; {MAX_FUNCTION_LINES} is the limit"
            ));
        }
    }
    for name in limits::tests(text) {
        if name.len() > MAX_TEST_NAME {
            found(format!(
                "{name} has {} columns; {MAX_TEST_NAME} is the limit for a test's name",
                name.len()
            ));
        }
    }
    findings
}

/// Checks one document, or the comments and texts of one file.
pub(super) fn prose(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if QUOTES.contains(&path) {
        return findings;
    }
    for (number, line) in text.lines().enumerate() {
        let mut found = |what: &str, instead: &str| {
            let message = format!("line {}: `{what}`; better: {instead}", number + 1);
            findings.push(Finding::new(path, message));
        };
        for (name, instead) in REPLACED {
            if holds(line, name, |c| !c.is_alphanumeric() && c != '_') {
                found(name, instead);
            }
        }
        let line = line.to_lowercase();
        for (phrase, instead) in PHRASES {
            if holds(&line, phrase, |c| !c.is_alphanumeric()) {
                found(phrase, instead);
            }
        }
    }
    findings
}

/// Whether `text` holds `what` as a whole word: between characters for which `ends` is true.
fn holds(text: &str, what: &str, ends: impl Fn(char) -> bool) -> bool {
    text.match_indices(what).any(|(at, _)| {
        let before = text.get(..at).and_then(|head| head.chars().next_back());
        let after = text
            .get(at + what.len()..)
            .and_then(|tail| tail.chars().next());
        before.is_none_or(&ends) && after.is_none_or(&ends)
    })
}

/// Whether a whole file is tests.
pub(super) fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || (path.contains("/tests/") && !path.starts_with("e2e/"))
}

/// What stands before the tests inside a file.
pub(super) fn before_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

/// Every function of a formatted file: the line where it starts, its name, and how many lines it
/// has. rustfmt puts the closing brace below the first letter of the signature.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        let Some(name) = name_of_function(code) else {
            continue;
        };
        let indent = line.len() - code.len();
        let end = format!("{}}}", " ".repeat(indent));
        let rest = lines.get(number..).unwrap_or_default();
        // A declaration without a body ends before any brace below it.
        let declared = rest.iter().position(|line| line.ends_with(';'));
        let Some(length) = rest.iter().position(|line| **line == end) else {
            continue;
        };
        let opened = rest.iter().position(|line| line.ends_with('{'));
        if opened.is_some() && declared.is_none_or(|declared| opened <= Some(declared)) {
            functions.push((number + 1, name.to_owned(), length + 1));
        }
    }
    functions
}

/// The name of the function whose signature starts on this line.
fn name_of_function(code: &str) -> Option<&str> {
    let at = code.find("fn ")?;
    let (qualifiers, rest) = code.split_at(at);
    let known = |word: &str| {
        ["async", "const", "unsafe", "extern"].contains(&word) || word.starts_with("pub")
    };
    if !qualifiers.split_whitespace().all(known) {
        return None;
    }
    rest.strip_prefix("fn ")?
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, expect: usize) {
        let findings = check("a.rs", text);
        assert_eq!(findings.len(), expect, "{text}: {findings:?}");
    }

    #[test]
    fn vague_names_are_refused() {
        count(concat!("const ", "PATIENCE: u32 = 3;"), 1);
        count("const LOCK_PATIENCE: u32 = 3;", 0);
        count(concat!("    pub(crate) const ", "EVERY: u32 = 3;"), 1);
        count("let rest = (LAST, 1);", 0);
        count(concat!("pub fn ", "word(&self) -> &str {"), 1);
        count("fn words_of(text: &str) {}", 0);
        count(concat!("    left", "_alone: bool,"), 1);
        count(concat!("fn it_is_left", "_alone() {}"), 0);
    }

    #[test]
    fn phrases_are_refused_wherever_they_stand() {
        count(concat!("// It is made ", "anew."), 1);
        count(concat!("fn it_is_made_", "anew() {}"), 1);
        count(concat!("let text = \"So ", "many bytes\";"), 1);
        count("// A renewal.", 0);
        assert_eq!(prose("a.md", concat!("Who", "ever reads this.")).len(), 1);
    }

    #[test]
    fn long_functions_and_long_names_of_tests_are_refused() {
        let body = "    a();\n".repeat(98);
        let of_tests =
            format!("\n#[cfg(test)]\nmod tests {{\n    fn f() {{\n{body}{body}    }}\n}}\n");
        count(&of_tests, 0);
        count(&format!("fn f(\n) {{\n{}}}\n", "    a();\n".repeat(97)), 0);
        count(&format!("fn f() {{\n{body}}}\n"), 0);
        count(&format!("fn f() {{\n{body}    a();\n}}\n"), 1);
        let trait_method = "trait T {\n    fn f();\n    fn g() {\n    }\n}\n";
        assert_eq!(functions(trait_method), [(3, "g".to_owned(), 2)]);
        let test = |length: usize| format!("#[test]\nfn {}() {{\n}}\n", "a".repeat(length));
        count(&test(70), 0);
        count(&test(71), 1);
    }
}

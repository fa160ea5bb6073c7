//! What is wrong with a value.

use serde_json::Value;

/// A refused value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, in the user's spelling.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// What a schema refuses in a document; paths are written as in YAML and open with `prefix`.
pub(crate) fn problems(
    validator: &jsonschema::Validator,
    document: &Value,
    prefix: &str,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for error in validator.iter_errors(document) {
        let path = format!("{prefix}{}", dotted(error.instance_path().as_str()));
        let path = path.trim_end_matches('.').to_owned();
        let message = error.to_string();
        let message = if message.chars().count() > 400 {
            message.chars().take(400).chain("…".chars()).collect()
        } else {
            message
        };
        problems.push(Problem { path, message });
    }
    problems
}

fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        if !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit()) {
            let line = format!("[{step}]");
            path.push_str(&line);
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&step);
        }
    }
    path
}

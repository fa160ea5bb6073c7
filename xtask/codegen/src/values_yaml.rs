//! `chart/values.yaml`: the defaults with the types' documentation as comments.

use anyhow::Result;
use holdfast_config::{Values, yaml};
use serde_json::{Map, Value};

use crate::walk::{description, is_section, properties, resolve};

const HEAD: &str =
    "# Values of the Holdfast chart. Made from the types in services/config; do not edit.\n";
const WIDTH: usize = 100;

/// The whole file.
pub(crate) fn text(schema: &Value) -> Result<String> {
    let mut text = HEAD.to_owned();
    let defaults = serde_json::to_value(Values::default())?;
    section(schema, &resolve(schema, schema), &defaults, 0, &mut text)?;
    Ok(text)
}

fn section(
    root: &Value,
    schema: &Map<String, Value>,
    defaults: &Value,
    depth: usize,
    text: &mut String,
) -> Result<()> {
    let indent = "  ".repeat(depth);
    for (key, child) in properties(schema) {
        let child = resolve(root, child);
        let default = defaults.get(key).cloned().unwrap_or(Value::Null);
        if depth == 0 {
            text.push('\n');
        }
        for line in wrap(&description(&child), WIDTH - indent.len() - "# ".len()) {
            let line = format!("{indent}# {line}\n");
            text.push_str(&line);
        }
        if is_section(&child, &default) {
            let line = format!("{indent}{key}:\n");
            text.push_str(&line);
            section(root, &child, &default, depth + 1, text)?;
        } else {
            let entry = Value::Object(Map::from_iter([(key.clone(), default)]));
            for line in yaml::to_string(&entry)?.lines() {
                let line = format!("{indent}{line}\n");
                text.push_str(&line);
            }
        }
    }
    Ok(())
}

pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

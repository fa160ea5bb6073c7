//! `docs/reference/values.md`: every key in one table, for people.

use anyhow::Result;
use holdfast_config::Values;
use serde_json::Value;

use crate::walk::{allowed, description, leaves, properties, resolve};

/// The whole file.
pub(crate) fn text(schema: &Value) -> Result<String> {
    let mut text =
        "# Values\n\nMade from the types in `services/config`; do not edit. Every key that is \
                    not listed here is\nrefused, except for `global`, which other charts share.\n\n\
                    | key | allowed | default | meaning |\n|---|---|---|---|\n"
            .to_owned();
    for leaf in leaves(schema, &serde_json::to_value(Values::default())?) {
        let default = match &leaf.default {
            Value::Null => String::new(),
            Value::String(empty) if empty.is_empty() => "`\"\"`".to_owned(),
            Value::String(value) => format!("`{value}`"),
            other => format!("`{other}`"),
        };
        row(
            &mut text,
            &[
                &format!("`{}`", leaf.path),
                &leaf.allowed,
                &default,
                &leaf.description,
            ],
        );
    }
    text.push_str("\n## An entry of `upstreams`\n\n| key | allowed | meaning |\n|---|---|---|\n");
    let upstream = schema
        .pointer("/definitions/Upstream")
        .map(|upstream| resolve(schema, upstream))
        .unwrap_or_default();
    for (key, child) in properties(&upstream) {
        let child = resolve(schema, child);
        row(
            &mut text,
            &[
                &format!("`{key}`"),
                &allowed(schema, &child),
                &description(&child),
            ],
        );
    }
    Ok(text)
}

fn row(text: &mut String, cells: &[&str]) {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    let line = format!("| {} |\n", cells.join(" | "));
    text.push_str(&line);
}

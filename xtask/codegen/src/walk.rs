//! Walking a JSON schema: references, descriptions, types in words, and the keys of the values.

use serde_json::{Map, Value};

/// A schema with its references followed; the outer description and default win.
pub(crate) fn resolve(root: &Value, schema: &Value) -> Map<String, Value> {
    let own = schema.as_object().cloned().unwrap_or_default();
    let reference = own.get("$ref").and_then(Value::as_str).or_else(|| {
        let all = own.get("allOf").or_else(|| own.get("anyOf"))?.as_array()?;
        all.iter().find_map(|part| part.get("$ref")?.as_str())
    });
    let target = reference.and_then(|reference| root.pointer(reference.trim_start_matches('#')));
    let mut resolved = target
        .map(|target| resolve(root, target))
        .unwrap_or_default();
    for (key, value) in own {
        if !matches!(key.as_str(), "$ref" | "allOf") {
            resolved.insert(key, value);
        }
    }
    resolved
}

/// The description of a schema as one line.
pub(crate) fn description(schema: &Map<String, Value>) -> String {
    let text = schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A key of the values that a user sets: an object that lists its keys is none, what lies in a type
/// of Kubernetes is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// Path in dots.
    pub path: String,
    /// What is allowed, in words.
    pub allowed: String,
    /// The default.
    pub default: Value,
    /// What it means.
    pub description: String,
}

/// Every key of the values, in the order of the types.
pub fn leaves(schema: &Value, defaults: &Value) -> Vec<Leaf> {
    let mut found = Vec::new();
    collect(schema, &resolve(schema, schema), defaults, "", &mut found);
    found
}

fn collect(
    root: &Value,
    schema: &Map<String, Value>,
    defaults: &Value,
    prefix: &str,
    found: &mut Vec<Leaf>,
) {
    for (key, child) in properties(schema) {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        let child = resolve(root, child);
        let default = defaults.get(key).cloned().unwrap_or(Value::Null);
        if is_section(&child, &default) {
            collect(root, &child, &default, &path, found);
        } else {
            let description = description(&child);
            found.push(Leaf {
                path,
                allowed: allowed(root, &child),
                default,
                description,
            });
        }
    }
}

/// The listed properties of an object.
pub(crate) fn properties(schema: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// Whether a key opens a section of our own keys: its default then names them all.
pub(crate) fn is_section(schema: &Map<String, Value>, default: &Value) -> bool {
    let Some(default) = default.as_object() else {
        return false;
    };
    let mut listed = properties(schema).peekable();
    listed.peek().is_some() && listed.all(|(key, _)| default.contains_key(key))
}

/// What a schema allows, in words.
pub(crate) fn allowed(root: &Value, schema: &Map<String, Value>) -> String {
    let quoted = |value: &Value| {
        format!(
            "`{}`",
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        )
    };
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.iter().map(quoted).collect::<Vec<_>>().join(", ");
    }
    if let Some(forms) = schema
        .get("anyOf")
        .or_else(|| schema.get("oneOf"))
        .and_then(Value::as_array)
    {
        let words: Vec<String> = forms
            .iter()
            .map(|form| allowed(root, &resolve(root, form)))
            .filter(|word| word != "null")
            .collect();
        return words.join(" or ");
    }
    let kinds: Vec<&str> = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .filter(|kind| *kind != "null")
            .collect(),
        _ => vec!["any"],
    };
    let range = match (schema.get("minimum"), schema.get("maximum")) {
        (Some(low), Some(high)) => format!(" {low}–{high}"),
        _ => String::new(),
    };
    let kind = kinds.join(" or ");
    if kind == "array" {
        let item = schema
            .get("items")
            .map(|item| resolve(root, item))
            .unwrap_or_default();
        return format!("list of {}", allowed(root, &item));
    }
    let map_of = schema
        .get("additionalProperties")
        .filter(|more| more.is_object());
    match map_of {
        Some(more) if kind == "object" => format!("map of {}", allowed(root, &resolve(root, more))),
        _ => format!("{kind}{range}"),
    }
}

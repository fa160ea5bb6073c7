//! The JSON schema of the values: what Helm checks a user's values with, and what every service
//! checks its document with.
//!
//! Draft 7, because Helm up to 3.17 knows no later one. Every object refuses unknown keys, but
//! `global`, which belongs to all charts of a release, and but those that Kubernetes' own types
//! leave open.

use std::sync::OnceLock;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{Standalone, Values, validate::global_key_pattern};

/// The schema of [`Values`], with descriptions from the types' documentation and defaults.
pub fn values_schema() -> Value {
    let mut schema = generate::<Values>();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".to_owned(), json!("Values of the Holdfast chart"));
    }
    if let Some(global) = schema
        .pointer_mut("/definitions/Global")
        .and_then(Value::as_object_mut)
    {
        global.insert("additionalProperties".to_owned(), json!(true));
        let known = json!({ "enum": ["networkfunctionextension", "(did you mean networkfunctionextension?)"] });
        let misspelt = json!({ "not": { "pattern": global_key_pattern() } });
        global.insert(
            "propertyNames".to_owned(),
            json!({ "anyOf": [known, misspelt] }),
        );
    }
    schema
}

/// The schema of the configuration file of a registry that runs alone.
pub fn standalone_schema() -> Value {
    generate::<Standalone>()
}

fn generate<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    let definitions = schema.get_mut("definitions").and_then(Value::as_object_mut);
    for (name, definition) in definitions.into_iter().flatten() {
        if name.starts_with("io.k8s.") {
            undescribe(definition);
        }
    }
    schema
}

/// Kubernetes' own types are described in Kubernetes' own reference.
fn undescribe(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(undescribe);
        }
        Value::Array(items) => items.iter_mut().for_each(undescribe),
        _ => {}
    }
}

/// Closes objects that list their properties, drops what only Rust knows and the defaults of whole
/// sections.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            close(object);
            object.remove("format");
            if object.contains_key("allOf") {
                object.remove("default");
            }
            for (keyword, child) in object.iter_mut() {
                match (keyword.as_str(), child) {
                    ("default" | "enum" | "const" | "required", _) => {}
                    // Their keys are the user's words, no keywords.
                    ("properties" | "definitions", Value::Object(named)) => {
                        named.values_mut().for_each(tidy);
                    }
                    (_, child) => tidy(child),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn close(object: &mut Map<String, Value>) {
    let lists_properties = object.get("properties").is_some_and(Value::is_object);
    if lists_properties && !object.contains_key("additionalProperties") {
        object.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// The validator of values, built once.
pub(crate) fn values_validator() -> &'static jsonschema::Validator {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        jsonschema::validator_for(&values_schema()).expect("the generated schema is a schema")
    })
}

/// The validator of a stand-alone registry's file, built once.
pub(crate) fn standalone_validator() -> &'static jsonschema::Validator {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        jsonschema::validator_for(&standalone_schema()).expect("the generated schema is a schema")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Standalone, yaml};

    /// Every key that a schema knows, with `[]` for the entries of lists.
    fn keys(schema: &Value, definitions: &Value, path: &str, found: &mut Vec<String>) {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let name = name.rsplit('/').next().unwrap_or_default();
            keys(&definitions[name], definitions, path, found);
        }
        for part in ["allOf", "anyOf"] {
            let parts = schema.get(part).and_then(Value::as_array);
            for part in parts.into_iter().flatten() {
                keys(part, definitions, path, found);
            }
        }
        if let Some(items) = schema.get("items") {
            keys(items, definitions, &format!("{path}[]"), found);
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let path = format!("{path}.{name}");
            keys(property, definitions, &path, found);
            found.push(path);
        }
    }

    /// Whether a document has a key; of the entries of a list the first counts.
    fn has(document: &Value, path: &str) -> bool {
        let mut at = document;
        for part in path.trim_start_matches('.').split('.') {
            let (name, list) = match part.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (part, false),
            };
            let next = at
                .get(name)
                .and_then(|next| if list { next.get(0) } else { Some(next) });
            match next {
                Some(next) => at = next,
                None => return false,
            }
        }
        true
    }

    #[test]
    fn the_reference_of_a_registry_alone_has_every_key() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/registry-config.md"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once("```yaml\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        Standalone::parse(example).unwrap();
        let document: Value = yaml::from_str(example).unwrap();
        let schema = standalone_schema();
        let mut found = Vec::new();
        keys(&schema, &schema["definitions"], "", &mut found);
        assert!(found.len() > 60, "{found:?}");
        let missing: Vec<_> = found.iter().filter(|path| !has(&document, path)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}

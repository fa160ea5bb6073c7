//! The JSON schema of the values: what Helm checks a user's values with, and what every service checks its document with.
//!
//! Draft 7, because Helm up to 3.17 knows no later one. Every object refuses unknown keys, but `global`, which belongs
//! to all charts of a release, and but those that Kubernetes' own types leave open.

use std::sync::OnceLock;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{Problem, Standalone, Values, validate::global_key_pattern};

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

/// Closes objects that list their properties, drops what only Rust knows and the defaults of whole sections.
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

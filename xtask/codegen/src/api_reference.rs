//! `docs/API.md`: the custom resources for people, from their schemas.

use anyhow::{Context, Result};
use holdfast_api::Artifact;
use kube::CustomResourceExt;
use serde_json::{Map, Value};

use crate::values_yaml::wrap;

/// The whole file.
pub(crate) fn text() -> Result<String> {
    let crd = serde_json::to_value(Artifact::crd())?;
    let version = crd
        .pointer("/spec/versions/0")
        .context("the definition has a version")?;
    let schema = version
        .pointer("/schema/openAPIV3Schema")
        .context("the version has a schema")?;
    let word = |path: &str| {
        crd.pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut text =
        "# Custom resources\n\nMade from the types in `services/api`; do not edit.\n".to_owned();
    let intro = format!(
        "`{}/{}`, plural `{}`, {}. {}",
        word("/spec/group"),
        version
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        word("/spec/names/plural"),
        word("/spec/scope").to_lowercase(),
        one_line(
            schema
                .pointer("/properties/spec/description")
                .or_else(|| schema.get("description"))
        ),
    );
    let line = format!(
        "\n## {}\n\n{}\n\nThe images, as `host/repository:tag`:\n\n```sh\nkubectl get artifacts -A \
         -o jsonpath='{{range .items[*]}}{{.spec.sourceArtifact}}{{\"\\n\"}}{{end}}'\n```\n",
        word("/spec/names/kind"),
        wrap(&intro, 100).join("\n"),
    );
    text.push_str(&line);
    for part in ["spec", "status"] {
        let line =
            format!("\n### {part}\n\n| field | type | required | meaning |\n|---|---|---|---|\n");
        text.push_str(&line);
        if let Some(object) = schema.pointer(&format!("/properties/{part}")) {
            fields(object, "", &mut text);
        }
    }
    text.push_str("\n### Columns of `kubectl get artifacts`\n\n| column | value |\n|---|---|\n");
    for column in version
        .get("additionalPrinterColumns")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let cell = |key: &str| {
            column
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let line = format!("| {} | `{}` |\n", cell("name"), cell("jsonPath"));
        text.push_str(&line);
    }
    Ok(text)
}

fn one_line(text: Option<&Value>) -> String {
    text.and_then(Value::as_str)
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn fields(object: &Value, prefix: &str, text: &mut String) {
    let empty = Map::new();
    let properties = object
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let required: Vec<&str> = object
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, field) in properties {
        let path = format!("{prefix}{name}");
        let kind = field.get("type").and_then(Value::as_str).unwrap_or("any");
        let needed = if required.contains(&name.as_str()) {
            "yes"
        } else {
            ""
        };
        let meaning = one_line(field.get("description")).replace('|', "\\|");
        let line = format!("| `{path}` | {kind} | {needed} | {meaning} |\n");
        text.push_str(&line);
        match field.get("items") {
            Some(items) => fields(items, &format!("{path}[]."), text),
            None => fields(field, &format!("{path}."), text),
        }
    }
}

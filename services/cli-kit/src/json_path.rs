//! Path expressions (RFC 9535) of `-o jsonpath=` and `--sort-by`.

use std::str::FromStr;

use anyhow::Context as _;
use jsonpath_rust::parser::model::JpQuery;
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::{QueryRef, js_path_process};
use serde_json::Value;

/// An expression.
#[derive(Debug, Clone)]
pub(crate) struct JsonPath(Box<JpQuery>);

impl FromStr for JsonPath {
    type Err = String;

    /// Reads an expression as RFC 9535 writes it, or with the braces and without the `$` of
    /// kubectl.
    fn from_str(expression: &str) -> Result<Self, String> {
        let inner = expression
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap_or(expression)
            .trim();
        for brace in ["{", "}"] {
            if inner.contains(brace) {
                return Err(format!(
                    "{brace} within an expression is kubectl's template language; \
                     one expression is read"
                ));
            }
        }
        if inner == "end" || inner.starts_with("range ") {
            return Err("range is kubectl's; use [*] to select every element".to_owned());
        }
        let path = if inner.starts_with('$') {
            inner.to_owned()
        } else if inner.starts_with(['.', '[']) {
            format!("${inner}")
        } else {
            format!("$.{inner}")
        };
        parse_json_path(&path)
            .map(|query| Self(Box::new(query)))
            .map_err(|_| format!("{expression} is not a JSONPath expression (RFC 9535)"))
    }
}

impl JsonPath {
    /// What the expression selects.
    pub(crate) fn select<'a>(&self, document: &'a Value) -> anyhow::Result<Vec<&'a Value>> {
        let found = js_path_process(&self.0, document).context("jsonpath")?;
        Ok(found.into_iter().map(QueryRef::val).collect())
    }
}

//! The document that every service reads: the release and its values.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Problem, Standalone, Values, schema, validate, yaml};

/// Why a configuration cannot be used. Every text names the key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML, or a key is unknown or of the wrong type.
    #[error(transparent)]
    Syntax(#[from] yaml::Error),
    /// Values are refused.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Short for this module's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Who the release is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Name of the Helm release.
    pub name: String,
    /// Namespace of the release, where all shared objects live.
    pub namespace: String,
    /// Prefix of the names of all objects.
    pub fullname: String,
    /// Version of the chart.
    pub version: String,
}

/// What the ConfigMap `F-config` holds under `config.yaml`: the configuration of every service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the release is.
    pub release: Release,
    /// The values after defaults.
    pub values: Values,
}

impl Config {
    /// Whether a document is such a file: it says whose release it is.
    pub fn is_one(text: &str) -> bool {
        let document: Option<Value> = yaml::from_str(text).ok();
        document.is_some_and(|document| document.get("release").is_some())
    }

    /// Reads and checks the file at `path`.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::parse(&read(path)?)
    }

    /// Reads and checks a document. `values.…` opens the paths in errors.
    pub fn parse(text: &str) -> Result<Self> {
        let document: Value = yaml::from_str(text)?;
        validate::document(
            schema::values_validator(),
            document.get("values").unwrap_or(&json!({})),
            "values.",
        )?;
        let config: Self = yaml::from_str(text)?;
        config.values.validate("values.")?;
        Ok(config)
    }
}

impl Standalone {
    /// Whether a document says where the content is.
    pub fn names_data(text: &str) -> bool {
        let document: Option<Value> = yaml::from_str(text).ok();
        document.is_some_and(|document| document.get("data").is_some_and(|data| !data.is_null()))
    }
}

impl Values {
    /// Reads and checks a user's values.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::parse(&read(path)?)
    }

    /// Reads and checks values: by the schema, by the types, and by the rules that concern several
    /// keys. An empty text means the defaults.
    pub fn parse(text: &str) -> Result<Self> {
        let document: Option<Value> = yaml::from_str(text)?;
        validate::document(
            schema::values_validator(),
            &document.unwrap_or_else(|| json!({})),
            "",
        )?;
        let values: Option<Self> = yaml::from_str(text)?;
        let values = values.unwrap_or_default();
        values.validate("")?;
        Ok(values)
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

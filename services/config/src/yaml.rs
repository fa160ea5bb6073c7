//! The only place that names the YAML library, so that changing it is one file.

use serde::{Serialize, de::DeserializeOwned};

/// What the YAML library says about a text: the path of the key, the cause and the line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// Reads one document. The error names the path of the offending key.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_yaml::from_str(text).map_err(|error| Error(error.to_string()))
}

/// Reads every document of a stream, skipping empty ones: what `helm template` prints.
pub fn documents(text: &str) -> Result<Vec<serde_json::Value>, Error> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value: Option<serde_json::Value> = serde::Deserialize::deserialize(document)
            .map_err(|error: serde_yaml::Error| Error(error.to_string()))?;
        documents.extend(value);
    }
    Ok(documents)
}

/// Writes a document in block style.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_yaml::to_string(value).map_err(|error| Error(error.to_string()))
}

//! The only place that names the YAML library, so that changing it is one file.

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

/// What the YAML library says about a text: the path of the key, the cause and the line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// The byte-order mark, which editors on Windows write.
const MARK: char = '\u{feff}';

/// The text without byte-order marks at its beginning and, where files were joined, at the
/// beginning of lines.
pub fn without_marks(text: &str) -> Cow<'_, str> {
    let text = text.trim_start_matches(MARK);
    if text.contains(MARK) {
        Cow::Owned(text.replace("\n\u{feff}", "\n"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Reads one document. The error names the path of the offending key.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_yaml::from_str(&without_marks(text)).map_err(|error| Error(error.to_string()))
}

/// Reads every document of a stream, skipping empty ones: what `helm template` prints.
pub fn documents(text: &str) -> Result<Vec<serde_json::Value>, Error> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&without_marks(text)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn byte_order_marks_are_skipped() {
        let one: Value = from_str("\u{feff}a: 1\n").unwrap();
        assert_eq!(one, json!({"a": 1}));
        let joined = "\u{feff}a: 1\r\n---\r\n\u{feff}---\nb: \"\u{feff}\"\n";
        let documents = documents(joined).unwrap();
        assert_eq!(documents, [json!({"a": 1}), json!({"b": "\u{feff}"})]);
        assert_eq!(
            from_str::<Value>("\u{feff}{\"a\": 1}").unwrap(),
            json!({"a": 1})
        );
    }
}

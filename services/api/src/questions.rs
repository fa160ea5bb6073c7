//! Questions about images in bulk: whether the registry holds them, and whether nodes start them
//! without a pull.
//!
//! The registry answers [`held::INTERNAL_PATH`] on port 5001 with mutual TLS: about its volume, and
//! without a request to an upstream. The leading controller answers [`held::PATH`] and
//! [`starts::PATH`] on the loopback of its pod only ([`PORT`]), without TLS, for commands that
//! reach it by a port-forward. Each is a POST with JSON. Answers have the order of the questions.
//!
//! Errors are plain text: 400 for a body that is none or asks too much, 413 for a long one, 429
//! when too many requests run, and 503 from a controller that does not lead or knows nothing yet.

use serde::{Deserialize, Serialize};

/// The port on the loopback of the controller's pods.
pub const PORT: u16 = 9091;
/// Questions of one request.
pub const MAX_QUESTIONS: usize = 1000;
/// Bytes of a request.
pub const MAX_BYTES: usize = 1 << 20;

/// An answer about one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It is so.
    Yes,
    /// It is not so.
    No,
    /// Nothing is known about it. A reader treats an answer that it does not know as this one.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The answers to the questions of a request, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answers {
    /// One for each question.
    pub answers: Vec<Answer>,
}

/// Whether the registry holds images.
pub mod held {
    use super::{Deserialize, Serialize};

    /// The path at the controller; the body is [`Sources`].
    pub const PATH: &str = "/v1/held";
    /// The path at the registry; the body is [`Images`].
    pub const INTERNAL_PATH: &str = "/internal/v1/held";

    /// Asks the controller, which knows the platforms that each image needs.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub struct Sources {
        /// Canonical upstream references, `registry.example/team/app:1`.
        pub sources: Vec<String>,
    }

    /// Asks the registry.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub struct Images {
        /// What is asked about.
        pub images: Vec<Image>,
    }

    /// An image, which is held if its manifests and all blobs of its platforms are on the volume. A
    /// tag counts with the manifest that it names now.
    #[derive(
        Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
    )]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub struct Image {
        /// The canonical upstream reference.
        pub source: String,
        /// The platforms of an index, `os/architecture[/variant]`; empty means all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub platforms: Vec<String>,
    }
}

/// Whether nodes start images without a pull.
pub mod starts {
    use super::{Deserialize, Serialize};

    /// The path at the controller; the body is [`Starts`].
    pub const PATH: &str = "/v1/starts";

    /// Asks about containers.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub struct Starts {
        /// What is asked about.
        pub containers: Vec<Container>,
    }

    /// A container on a node, whose pull policy is not `Always`.
    #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub struct Container {
        /// The node's name.
        pub node: String,
        /// The image as the pod has it.
        pub image: String,
        /// The pod's namespace.
        pub namespace: String,
        /// The names of the pod's pull secrets, with those of its service account.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub secrets: Vec<String>,
        /// The name of the pod's service account.
        #[serde(default)]
        pub service_account: String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_read_as_documented() {
        let text = r#"{"containers":[{"node":"n1","image":"nginx:1","namespace":"apps","secrets":["pull"],"serviceAccount":"web"}]}"#;
        let read: starts::Starts = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let text = r#"{"images":[{"source":"r.io/app:1","platforms":["linux/amd64"]}]}"#;
        let read: held::Images = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let read: Answers = serde_json::from_str(r#"{"answers":["yes","no","later"]}"#).unwrap();
        assert_eq!(
            read.answers,
            [Answer::Yes, Answer::No, Answer::Unknown],
            "an answer of a later version is unknown"
        );
        let written = serde_json::to_string(&Answer::Unknown).unwrap();
        assert_eq!(written, r#""unknown""#);
    }
}

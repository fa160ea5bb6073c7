//! What the leading controller is asked, and what it answered: which names start on which nodes
//! without a pull, by the reports of the node agents, and what the registry holds now.

use std::collections::BTreeMap;

use holdfast_cli_kit::leader::{Answer, Question};
use serde::Serialize;

use crate::judge::Known;

/// What the answer is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Basis {
    /// The controller was asked what the registry and the nodes hold now.
    Asked,
    /// It did not answer: Artifacts, `F-delivery` and the status of nodes.
    Recorded,
}

impl Basis {
    /// The text for people.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Asked => "what the registry and the nodes hold now, as the controller says",
            Self::Recorded => "Artifacts that are Ready, and what the status of nodes lists",
        }
    }
}

/// The answers of the controller; nothing where it was not asked or did not answer.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) starts: BTreeMap<Question, Known>,
    /// By canonical reference.
    pub(crate) held: BTreeMap<String, Known>,
}

impl Answers {
    /// Whether the image starts, if that was answered.
    pub(crate) fn starts(&self, question: &Question) -> Option<Known> {
        let answer = self.starts.get(question).copied();
        answer.filter(|known| *known != Known::Unknown)
    }
}

impl From<Answer> for Known {
    fn from(said: Answer) -> Self {
        match said {
            Answer::Yes => Self::Yes,
            Answer::No => Self::No,
            Answer::Unknown => Self::Unknown,
        }
    }
}
